//! The head that resolves a reference, found by its score and silenced.

use crate::data::recall::Repeats;
use crate::labs::language::{named, repeater};
use crate::labs::training::{Training, token_rows};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, heat};
use crate::models::gpt::Positions;
use crate::models::{Gpt, GptConfig};
use crate::rng::{Stream, rng};
use crate::train::OptimizerSpec;
use crate::train::attention::{Attention, HeadScore};
use crate::train::spec::OptimizerKind;

const LAYERS: usize = 2;
const HEADS: usize = 4;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    lab.say("training");
    let (farthest, steps) = if lab.full() { (16, 1200) } else { (8, 600) };
    let repeats = Repeats {
        symbols: 16,
        distances: 4..=farthest,
    };
    let config = GptConfig {
        vocab_size: repeats.symbols,
        seq_len: 64,
        d_model: 64,
        n_heads: HEADS,
        n_layers: LAYERS,
        positions: Positions::Rotary,
        tied_head: false,
        ..GptConfig::default()
    };
    let adam = OptimizerSpec::new(OptimizerKind::Adam, 1e-3);
    let mut training = Training::new(adam, steps, 32, lab.seed);
    training.train.clip_norm = Some(1.0);
    let model = repeater(&config, &repeats, &training, lab)?;
    let whole = named(&model, &repeats, lab);

    lab.say("scoring the heads");
    let (scores, map) = scores(lab, &model, &repeats)?;
    let mut chart = Chart::new(
        "The heads by what they do",
        "score as a head that looks one back",
        "score as a head that copies",
    );
    let best = |of: fn(&HeadScore) -> f64| scores.iter().map(of).fold(0.0, f64::max);
    let (copies, looks_back) = (best(|s| s.induction), best(|s| s.previous_token));
    // A head counts as one that copies, or looks back, with half of the best one's score.
    let mut kinds = ["copy", "look one back", "do neither"].map(|name| (name, Vec::new()));
    for score in &scores {
        let kind = match score {
            _ if score.induction > copies / 2.0 => 0,
            _ if score.previous_token > looks_back / 2.0 => 1,
            _ => 2,
        };
        kinds[kind].1.push(*score);
    }
    let mut bars = Chart::new("Tokens named without the heads that", "", "share").bar("-", whole);
    let mut left = Vec::new();
    for (name, heads) in &kinds {
        let less = |model: Gpt, score: &HeadScore| model.without_head(score.layer, score.head);
        let share = named(&heads.iter().fold(model.clone(), less), &repeats, lab);
        left.push(share);
        bars = bars.bar(&format!("{name} ({})", heads.len()), share);
        let places = heads.iter().map(|s| (s.previous_token, s.induction));
        chart = chart.dots(name, places);
    }
    let [(_, copying), _, (_, others)] = &kinds;
    let all = scores.len() as f64;
    let claims = vec![
        Claim::at_least("tokens named that come again (chance 0.0625)", whole, 0.9),
        Claim::at_least("the best head's score as one that copies", copies, 0.5),
        Claim::at_most("share of heads that copy", copying.len() as f64 / all, 0.5),
        Claim::at_least(
            "share of heads that do neither",
            others.len() as f64 / all,
            0.25,
        ),
        Claim::at_most("tokens named without the heads that copy", left[0], 0.2),
        Claim::at_most(
            "tokens named without those that look one back",
            left[1],
            0.8,
        ),
        Claim::at_least("tokens named without those that do neither", left[2], 0.5),
    ];
    Ok(Outcome {
        claims,
        plot: beside(&[map, chart.svg(), bars.svg()]),
        notes: vec![],
    })
}

/// Every head's scores, mean over texts, and where the best one looks on a short one.
fn scores(
    lab: &LabContext<'_>,
    model: &Gpt,
    repeats: &Repeats,
) -> Result<(Vec<HeadScore>, String), LabError> {
    const TEXTS: usize = 16;
    let random = &mut rng(lab.seed, Stream::Evaluate, 1);
    let read = |text: &[u32]| {
        let maps = model.attention_maps(token_rows(text, 1, &lab.device));
        Attention::new(text, &maps).doing("reading the maps")
    };
    let length = 2 * repeats.distances.end();
    let mut means: Vec<HeadScore> = Vec::new();
    for text in repeats.draw(TEXTS, length, random).chunks(length) {
        let scores = read(text)?.scores().doing("scoring the heads")?;
        if means.is_empty() {
            means = scores.clone();
            means
                .iter_mut()
                .for_each(|m| (m.induction, m.previous_token) = (0.0, 0.0));
        }
        for (mean, score) in means.iter_mut().zip(scores) {
            mean.induction += score.induction / TEXTS as f64;
            mean.previous_token += score.previous_token / TEXTS as f64;
        }
    }
    let short = Repeats {
        distances: 6..=6,
        ..repeats.clone()
    };
    let text = short.draw(1, 13, random);
    let best = means
        .iter()
        .max_by(|a, b| a.induction.total_cmp(&b.induction));
    let map = match best {
        Some(best) => map(&text, &read(&text)?, best),
        None => String::new(),
    };
    Ok((means, map))
}

fn map(text: &[u32], attention: &Attention, of: &HeadScore) -> String {
    let letters: Vec<String> = text
        .iter()
        .map(|id| char::from(b'a' + *id as u8).to_string())
        .collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    // Two digits, so that a figure fits its square.
    let two = |weight: &f32| (f64::from(*weight) * 100.0).round() / 100.0;
    let rows: Vec<Vec<f64>> = attention
        .head(of.layer, of.head)
        .chunks(text.len())
        .map(|row| row.iter().map(two).collect())
        .collect();
    let title = format!(
        "Head {} of block {}: who (down) looks at whom",
        of.head + 1,
        of.layer + 1
    );
    heat(&title, (&letters, &letters), &rows)
}
