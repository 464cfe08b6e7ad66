//! A GPT and an LSTM of as many parameters on the same stories: loss, speed of training by length,
//! cost of generating, and what each remembers.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::burn::module::Module;
use crate::burn::tensor::{Int, Tensor};
use crate::data::recall::Repeats;
use crate::data::tokenizer::TokenizerConfig;
use crate::data::{TokenSet, Tokenizer, stories};
use crate::generate::sampling::Decoding;
use crate::generate::text::{GenerateOptions, complete, generate_ids, token_model};
use crate::labs::language::{language, named, repeater};
use crate::labs::training::{Trained, Training, token_rows};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::{GptConfig, LanguageConfig, LanguageModel, RecurrentConfig};
use crate::rng::{Stream, rng};
use crate::train::OptimizerSpec;
use crate::train::spec::OptimizerKind;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (tokens, held_out, tokenizer) = corpus(lab)?;
    let (d_gpt, d_lstm) = if lab.full() { (128, 208) } else { (32, 40) };
    let gpt = GptConfig {
        vocab_size: tokenizer.vocab_size(),
        seq_len: 64,
        d_model: d_gpt,
        n_layers: if lab.full() { 4 } else { 2 },
        bias: false,
        ..GptConfig::default()
    };
    let lstm = RecurrentConfig {
        vocab_size: tokenizer.vocab_size(),
        seq_len: 64,
        d_model: d_lstm,
        ..RecurrentConfig::default()
    };
    // 1. The same text, the same steps.
    let texts = (&tokens, &held_out);
    lab.say("GPT");
    let by_gpt = train(lab, &gpt, texts, if lab.full() { 1e-3 } else { 3e-3 })?;
    lab.say("LSTM");
    let by_lstm = train(lab, &lstm, texts, 3e-3)?;
    let sizes = [by_gpt.model.num_params(), by_lstm.model.num_params()];
    let ratio = sizes[0].max(sizes[1]) as f64 / sizes[0].min(sizes[1]) as f64;
    let mut claims = vec![Claim::at_most(
        "parameters of the larger over the smaller's",
        ratio,
        1.1,
    )];
    let mut losses = Chart::new("The same stories", "step", "held-out nats");
    let uniform = (tokenizer.vocab_size() as f64).ln();
    for (name, curve) in [("GPT", curve(&by_gpt)), ("LSTM", curve(&by_lstm))] {
        let end = curve.last().map_or(f64::NAN, |(_, loss)| *loss);
        claims.push(Claim::at_most(
            format!("{name}: held-out nats over those of guessing"),
            end / uniform,
            if lab.full() { 0.5 } else { 0.95 },
        ));
        losses = losses.line(name, curve);
    }
    // 2. What a text costs in training, by its length.
    lab.say("training on longer texts");
    let few = if lab.full() { 128 } else { 24 };
    let grown = GptConfig {
        seq_len: 8 * few,
        ..gpt.clone()
    };
    let lengths = [1, 2, 4, 8].map(|n| n * few / 2);
    let mut chained = Chart::new(
        "Training on one text",
        "its tokens",
        "milliseconds per token",
    );
    let seconds = training_seconds(lab, &grown, &lstm, &lengths);
    let per_token = |which: usize| {
        let of = lengths.iter().zip(&seconds);
        of.map(move |(n, seconds)| (*n as f64, seconds[which] * 1e3 / *n as f64))
    };
    for (which, name) in ["GPT", "LSTM"].into_iter().enumerate() {
        chained = chained.line(name, per_token(which));
    }
    if let (true, Some([gpt, lstm])) = (lab.full(), seconds.last()) {
        claims.push(Claim::at_least(
            "training on the longest text: the LSTM's time over the GPT's",
            lstm / gpt,
            1.2,
        ));
    }
    // 3. The cost of a further token, after few and after many.
    lab.say("generating");
    let grown = grown.init(&lab.device, &mut rng(lab.seed, Stream::Init, 0));
    let costs = [token_costs(&grown, few)?, token_costs(&by_lstm.model, few)?];
    if lab.full() {
        let growth = |costs: &[(f64, f64)]| costs[costs.len() - 1].1 / costs[0].1;
        claims.push(Claim::at_least(
            "growth of a token's cost: the GPT's over the LSTM's",
            growth(&costs[0]) / growth(&costs[1]),
            1.2,
        ));
    }
    let mut cost = Chart::new(
        "The cost of a further token",
        "tokens before",
        "milliseconds",
    );
    for (name, costs) in ["GPT", "LSTM"].into_iter().zip(&costs) {
        cost = cost.line(name, costs.iter().copied());
    }
    // 4. Memory: a text that repeats itself.
    lab.say("remembering");
    let distance = if lab.full() { 32 } else { 20 };
    let repeats = Repeats {
        symbols: 8,
        distances: distance..=distance,
    };
    let adam = OptimizerSpec::new(OptimizerKind::Adam, 5e-3);
    let mut training = Training::new(adam, if lab.full() { 400 } else { 100 }, 32, lab.seed);
    training.train.clip_norm = Some(1.0);
    let small = GptConfig {
        vocab_size: 8,
        d_model: 32,
        n_layers: 2,
        ..GptConfig::default()
    };
    let state = RecurrentConfig {
        vocab_size: 8,
        d_model: 48,
        ..RecurrentConfig::default()
    };
    claims.push(Claim::at_least(
        format!("GPT: tokens named that come again after {distance}"),
        named(&repeater(&small, &repeats, &training, lab)?, &repeats, lab),
        0.9,
    ));
    claims.push(Claim::at_most(
        format!("LSTM: the same after {distance}"),
        named(&repeater(&state, &repeats, &training, lab)?, &repeats, lab),
        0.7,
    ));
    Ok(Outcome {
        claims,
        plot: panels(&[losses, chained, cost]),
        notes: written(lab, &tokenizer, &by_gpt.model, &by_lstm.model)?,
    })
}

fn corpus(lab: &LabContext<'_>) -> Result<(TokenSet, TokenSet, Tokenizer), LabError> {
    let text = stories::generate(if lab.full() { 4000 } else { 300 }, lab.seed);
    let config = TokenizerConfig {
        vocab_size: if lab.full() { 512 } else { 300 },
        ..TokenizerConfig::default()
    };
    let tokenizer = config.train(std::iter::once(Ok(text.clone())));
    let tokenizer = tokenizer.doing("learning the vocabulary")?;
    let tokens = TokenSet::encode(&text, &tokenizer).doing("encoding")?;
    let (tokens, held_out) = tokens.split(0.03).doing("splitting")?;
    Ok((tokens, held_out, tokenizer))
}

fn train<C: LanguageConfig>(
    lab: &LabContext<'_>,
    config: &C,
    texts: (&TokenSet, &TokenSet),
    lr: f64,
) -> Result<Trained<C::Model>, LabError> {
    let steps = if lab.full() { 500 } else { 40 };
    let adam = OptimizerSpec::new(OptimizerKind::AdamW, lr);
    let mut training = Training::new(adam, steps, 12, lab.seed);
    training.schedule.warmup = steps / 10;
    training.train.clip_norm = Some(1.0);
    training.train.validate_every = Some(steps / 5);
    language(lab, config, texts, &training)
}

fn curve<M>(trained: &Trained<M>) -> Vec<(f64, f64)> {
    let at = |(step, metrics): &(u64, crate::train::Metrics)| (*step as f64, metrics["loss"]);
    trained.validations.iter().map(at).collect()
}

/// The least seconds of a few forward and backward passes over one text of each length, the two
/// networks in turn.
fn training_seconds(
    lab: &LabContext<'_>,
    gpt: &GptConfig,
    lstm: &RecurrentConfig,
    lengths: &[usize],
) -> Vec<[f64; 2]> {
    const ROUNDS: usize = 7;
    let device = lab.device.clone().autodiff();
    let random = &mut rng(lab.seed, Stream::Init, 0);
    let (gpt, lstm) = (gpt.init(&device, random), lstm.init(&device, random));
    let of = |n: &usize| {
        let tokens: Vec<u32> = (0..*n as u32).map(|i| i % 256).collect();
        let tokens = token_rows(&tokens, 1, &device);
        let seconds = |loss: &dyn Fn(Tensor<2, Int>) -> Tensor<1>| {
            let began = Instant::now();
            let _ = loss(tokens.clone()).backward();
            began.elapsed().as_secs_f64()
        };
        let mut least = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            least[0] = least[0].min(seconds(&|t| gpt.training_loss(t.clone(), t).total));
            least[1] = least[1].min(seconds(&|t| lstm.training_loss(t.clone(), t).total));
        }
        least
    };
    lengths.iter().map(of).collect()
}

/// Milliseconds of a token, mean over `few`, by the number of tokens before.
fn token_costs<M: LanguageModel>(model: &M, few: usize) -> Result<Vec<(f64, f64)>, LabError> {
    let mut stamps = Vec::new();
    let start = Instant::now();
    let random = &mut rng(0, Stream::Sample, 0);
    let note = |_| {
        stamps.push(start.elapsed().as_secs_f64());
        Ok(ControlFlow::Continue(()))
    };
    let n = 6 * few;
    generate_ids(
        &mut token_model(model),
        &[1],
        n,
        &Decoding::default(),
        random,
        note,
    )
    .doing("generating")?;
    let mean = |(part, stamps): (usize, &[f64])| {
        let [first, .., last] = stamps else {
            return (0.0, 0.0);
        };
        let tokens = (part as f64 + 0.5) * few as f64;
        (tokens, (last - first) * 1e3 / (stamps.len() - 1) as f64)
    };
    Ok(stamps.chunks(few).enumerate().map(mean).collect())
}

/// A few words of each.
fn written(
    lab: &LabContext<'_>,
    tokenizer: &Tokenizer,
    gpt: &impl LanguageModel,
    lstm: &impl LanguageModel,
) -> Result<Vec<String>, LabError> {
    let options = GenerateOptions {
        max_tokens: 30,
        decoding: Decoding::greedy(),
        ..GenerateOptions::default()
    };
    let go_on = |_: &str| ControlFlow::Continue(());
    let prompt = "Once upon a time";
    let random = &mut rng(lab.seed, Stream::Sample, 0);
    let by_gpt = complete(gpt, tokenizer, prompt, &options, random, go_on).doing("writing")?;
    let by_lstm = complete(lstm, tokenizer, prompt, &options, random, go_on).doing("writing")?;
    let line = |name: &str, text: &str| format!("{name}: \"{prompt}{}\"", text.replace('\n', " "));
    Ok(vec![line("GPT", &by_gpt.text), line("LSTM", &by_lstm.text)])
}
