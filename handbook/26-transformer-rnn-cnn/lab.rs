//! Transformer, recurrent network and causal convolution at equal parameters and equal time, and
//! what each remembers of a text that repeats itself.

use std::time::Instant;

use crate::burn::module::Module;
use crate::data::recall::Repeats;
use crate::data::tokenizer::{TokenizerConfig, TokenizerKind};
use crate::data::{TokenSet, stories, text};
use crate::eval::bigrams::Bigrams;
use crate::labs::language::{language, named, repeater};
use crate::labs::training::Training;
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::{CausalConvConfig, Cell, GptConfig, LanguageConfig, RecurrentConfig};
use crate::rng::{Stream, rng};
use crate::train::spec::OptimizerKind;
use crate::train::{Metrics, OptimizerSpec};

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (race, mut claims, note) = race(lab)?;
    let (memory, memory_claims) = memory(lab)?;
    claims.extend(memory_claims);
    Ok(Outcome {
        claims,
        plot: panels(&[race, memory]),
        notes: vec![note],
    })
}

/// The text, in tokens to learn from and held-out ones, and how many there are.
fn corpus(lab: &LabContext<'_>) -> Result<(TokenSet, TokenSet, usize), LabError> {
    let whole = match lab.real("tinyshakespeare/input.txt") {
        Some(path) => text::read(path).doing("reading the text")?,
        None => stories::generate(300, lab.seed),
    };
    let config = TokenizerConfig {
        kind: TokenizerKind::Char,
        ..TokenizerConfig::default()
    };
    let tokenizer = config.train(std::iter::once(Ok(whole.clone())));
    let tokenizer = tokenizer.doing("learning the characters")?;
    let tokens = TokenSet::encode(&whole, &tokenizer).doing("encoding")?;
    let (train, held_out) = tokens.split(0.02).doing("splitting")?;
    Ok((train, held_out, tokenizer.vocab_size()))
}

/// One network of the race.
struct Lane {
    parameters: usize,
    /// Seconds and held-out nats.
    curve: Vec<(f64, f64)>,
}

impl Lane {
    fn end(&self) -> f64 {
        self.curve.last().map_or(f64::NAN, |(_, loss)| *loss)
    }
}

/// Seconds of training that every network gets, as a few steps of it say.
const BUDGET: f64 = 15.0;

fn lane<C: LanguageConfig>(
    lab: &LabContext<'_>,
    config: C,
    texts: (&TokenSet, &TokenSet),
    lr: f64,
) -> Result<Lane, LabError> {
    let random = &mut rng(lab.seed, Stream::Init, 0);
    let parameters = config.init(&lab.device, random).num_params();
    let adam = OptimizerSpec {
        betas: Some([0.9, 0.99]),
        ..OptimizerSpec::new(OptimizerKind::AdamW, lr)
    };
    let training = |steps: u64, points: u64| {
        let mut training = Training::new(adam.clone(), steps, 12, lab.seed);
        training.schedule.warmup = steps / 10;
        training.train.clip_norm = Some(1.0);
        training.train.validate_every = Some(steps.div_ceil(points));
        training
    };
    // What a step takes, next to no validation among it.
    let few = if lab.full() { 30 } else { 4 };
    let (_, little) = texts.1.split(0.1).doing("splitting")?;
    let start = Instant::now();
    language(lab, &config, (texts.0, &little), &training(few, 1))?;
    let step = start.elapsed().as_secs_f64() / few as f64;
    let steps = match lab.full() {
        true => ((BUDGET / step) as u64).clamp(10, 5000),
        false => 60,
    };
    let trained = language(
        lab,
        &config,
        texts,
        &training(steps, if lab.full() { 8 } else { 2 }),
    )?;
    let at = |(steps, metrics): (u64, Metrics)| (steps as f64 * step, metrics["loss"]);
    Ok(Lane {
        parameters,
        curve: trained.validations.into_iter().map(at).collect(),
    })
}

/// Nats per token of counting in `train` which token follows which, or only how often each stands.
fn counted(train: &TokenSet, held_out: &TokenSet, vocab_size: usize, pairs: bool) -> f64 {
    let seen = Bigrams::count(&train.tokens, vocab_size);
    let of = |pair: &[u32]| match pairs {
        true => seen.after(pair[0], pair[1]),
        false => seen.alone(pair[1]),
    };
    let nats = held_out.tokens.windows(2).map(|pair| -of(pair).ln());
    nats.sum::<f64>() / (held_out.len() - 1) as f64
}

fn race(lab: &LabContext<'_>) -> Result<(Chart, Vec<Claim>, String), LabError> {
    let (train, held_out, vocab_size) = corpus(lab)?;
    let texts = (&train, &held_out);
    // About 205 thousand parameters each, in the quick form about 45 thousand.
    let width = |full, quick| if lab.full() { full } else { quick };
    let gpt = GptConfig {
        vocab_size,
        d_model: width(64, 40),
        n_layers: width(4, 2),
        bias: false,
        ..GptConfig::default()
    };
    let recurrent = |cell, d_model| RecurrentConfig {
        vocab_size,
        cell,
        d_model,
        ..RecurrentConfig::default()
    };
    let conv = CausalConvConfig {
        vocab_size,
        d_model: width(75, 34),
        ..CausalConvConfig::default()
    };
    let lr = if lab.full() { 2e-3 } else { 3e-3 };
    lab.say("transformer");
    let mut lanes = vec![("transformer", lane(lab, gpt, texts, lr)?)];
    for (name, cell, d_model) in [
        ("RNN", Cell::Rnn, width(218, 96)),
        ("LSTM", Cell::Lstm, width(111, 50)),
        ("GRU", Cell::Gru, width(127, 57)),
    ] {
        // Gates take the longest to open; the quick form has no time for two kinds of them.
        if !lab.full() && cell == Cell::Gru {
            continue;
        }
        lab.say(name);
        let lr = if lab.full() { 3e-3 } else { 1e-2 };
        lanes.push((name, lane(lab, recurrent(cell, d_model), texts, lr)?));
    }
    lab.say("convolution");
    lanes.push(("convolution", lane(lab, conv, texts, lr)?));

    let sizes = lanes.iter().map(|(_, lane)| lane.parameters);
    let (least, most) = (sizes.clone().min(), sizes.max());
    let spread = most.unwrap_or(0) as f64 / least.unwrap_or(1) as f64;
    let mut claims = vec![Claim::at_most(
        "parameters of the largest network over the smallest's",
        spread,
        1.06,
    )];
    let counted = counted(&train, &held_out, vocab_size, lab.full());
    let what = if lab.full() {
        "pairs of characters"
    } else {
        "characters"
    };
    let mut chart = Chart::new("Equal parameters, equal time", "seconds", "held-out nats");
    for (name, lane) in &lanes {
        chart = chart.line(name, lane.curve.iter().copied());
        let claim = format!("{name}: held-out nats over those of counting {what}");
        let most = if lab.full() { 1.0 } else { 0.95 };
        claims.push(Claim::at_most(claim, lane.end() / counted, most));
    }
    let ends = lanes
        .iter()
        .map(|(name, lane)| format!("{name} {:.3}", lane.end()));
    let ends: Vec<String> = ends.collect();
    let note = format!(
        "Held-out nats at the end: {}; counting {what}: {counted:.3}.",
        ends.join(", ")
    );
    Ok((chart, claims, note))
}

/// The share of certain tokens named, by the distance after which the text repeats itself.
fn memory(lab: &LabContext<'_>) -> Result<(Chart, Vec<Claim>), LabError> {
    let distances: &[usize] = if lab.full() {
        &[2, 4, 8, 16, 32, 48]
    } else {
        &[2, 20]
    };
    let [.., far] = distances else {
        return Ok((Chart::new("", "", ""), vec![]));
    };
    let (vocab_size, d_model) = (8, if lab.full() { 64 } else { 32 });
    let gpt = GptConfig {
        vocab_size,
        d_model,
        n_layers: 2,
        ..GptConfig::default()
    };
    let lstm = RecurrentConfig {
        vocab_size,
        d_model,
        ..RecurrentConfig::default()
    };
    let conv = CausalConvConfig {
        vocab_size,
        d_model,
        n_layers: 4,
        max_dilation: 8,
        ..CausalConvConfig::default()
    };
    // A shorter reach for the quick form's shorter distance.
    let conv = match lab.full() {
        true => conv,
        false => CausalConvConfig {
            n_layers: 3,
            ..conv
        },
    };
    let reach = conv.receptive_field();
    let adam = OptimizerSpec::new(OptimizerKind::Adam, 5e-3);
    let steps = if lab.full() { 400 } else { 90 };
    let mut training = Training::new(adam, steps, 32, lab.seed);
    training.train.clip_norm = Some(1.0);
    let mut found = [(); 3].map(|()| Vec::new());
    for &distance in distances {
        lab.say(&format!("repeats after {distance}"));
        let repeats = Repeats {
            symbols: vocab_size,
            distances: distance..=distance,
        };
        let shares = [
            named(&repeater(&gpt, &repeats, &training, lab)?, &repeats, lab),
            named(&repeater(&lstm, &repeats, &training, lab)?, &repeats, lab),
            named(&repeater(&conv, &repeats, &training, lab)?, &repeats, lab),
        ];
        for (found, share) in found.iter_mut().zip(shares) {
            found.push((distance as f64, share));
        }
    }
    let last = |points: &[(f64, f64)]| points.last().map_or(f64::NAN, |(_, share)| *share);
    let [gpt, lstm, conv] = &found;
    let claims = vec![
        Claim::at_least(
            format!("transformer: tokens named that come again after {far}"),
            last(gpt),
            0.95,
        ),
        Claim::at_most(format!("LSTM: the same after {far}"), last(lstm), 0.6),
        Claim::at_least("convolution: the same after 2", conv[0].1, 0.95),
        Claim::at_most(
            format!("convolution that sees {reach} tokens: the same after {far} (chance 0.125)"),
            last(conv),
            0.2,
        ),
    ];
    let mut chart = Chart::new("A text that repeats itself", "after tokens", "share named");
    for (name, points) in ["transformer", "LSTM", "convolution"]
        .into_iter()
        .zip(found)
    {
        chart = chart.line(name, points);
    }
    Ok((chart, claims))
}
