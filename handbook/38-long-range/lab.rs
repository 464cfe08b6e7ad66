//! A needle in a haystack under four kinds of positions: by distance, and in texts longer than any
//! that was trained on.

use crate::data::recall::{Haystack, Repeats};
use crate::labs::language::{found, named_in, needle_finder, repeater};
use crate::labs::training::Training;
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, panels};
use crate::models::GptConfig;
use crate::models::gpt::Positions;
use crate::train::OptimizerSpec;
use crate::train::spec::OptimizerKind;

const HAYSTACK: Haystack = Haystack { values: 8, hay: 16 };

const KINDS: [(&str, Positions); 4] = [
    ("sinusoidal", Positions::Sinusoidal),
    ("learned", Positions::Learned),
    ("rotary", Positions::Rotary),
    ("ALiBi", Positions::Alibi),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (trained, steps, lr) = if lab.full() {
        (64, 600, 1e-3)
    } else {
        (24, 200, 3e-3)
    };
    let mut within = Chart::new(
        &format!("Texts of {trained} tokens, as in training"),
        "distance of the needle",
        "share found",
    );
    let mut beyond = Chart::new(
        "Longer texts, needle at the start",
        "length of the text",
        "share found",
    );
    let mut order = Chart::new(
        "Longer texts, the token eight back",
        "length of the text",
        "share named",
    );
    let repeats = Repeats {
        symbols: 8,
        distances: 8..=8,
    };
    let mut claims = Vec::new();
    for (name, positions) in KINDS {
        lab.say(name);
        let config = GptConfig {
            vocab_size: HAYSTACK.vocab_size(),
            seq_len: 4 * trained,
            d_model: if lab.full() { 64 } else { 32 },
            n_layers: 2,
            positions,
            tied_head: false,
            ..GptConfig::default()
        };
        let adam = OptimizerSpec::new(OptimizerKind::Adam, lr);
        let mut training = Training::new(adam, steps, 32, lab.seed);
        training.train.clip_norm = Some(1.0);
        let model = needle_finder(&config, (HAYSTACK, trained), &training, lab)?;
        let share = |length, distance| found(&model, HAYSTACK, (length, distance), lab);

        let distances = (0..8).map(|i| 1 + i * (trained - 2) / 7);
        let by_distance: Vec<(f64, f64)> = distances
            .map(|distance| (distance as f64, share(trained, distance)))
            .collect();
        let lengths = [2, 3, 4, 6, 8].map(|halves| halves * trained / 2);
        let by_length = lengths.map(|length| (length as f64, share(length, length - 1)));

        let least = by_distance.iter().map(|(_, share)| *share);
        claims.push(Claim::at_least(
            format!("{name}: needles found within the trained length, at the worst distance"),
            least.fold(1.0, f64::min),
            if lab.full() { 0.95 } else { 0.8 },
        ));
        if matches!(positions, Positions::Rotary | Positions::Alibi) {
            let [.., (_, farthest)] = by_length;
            let claim = format!("{name}: found in texts four times as long");
            claims.push(Claim::at_least(claim, farthest, 0.9));
        }
        // What was said eight tokens ago: a place, not a kind of token.
        let config = GptConfig {
            vocab_size: repeats.symbols,
            ..config
        };
        let model = repeater(&config, &repeats, &training, lab)?;
        let by_order = [24, 36, 48, 72, 96]
            .map(|length| (length as f64, named_in(&model, &repeats, length, lab)));
        let [(_, near), .., (_, far)] = by_order;
        let least = if lab.full() { 0.9 } else { 0.4 };
        claims.push(Claim::at_least(
            format!("{name}: tokens of eight back named (chance 0.125)"),
            near,
            if positions == Positions::Alibi {
                least
            } else {
                0.9
            },
        ));
        let claim = format!("{name}: the same in texts four times as long");
        claims.extend(match positions {
            Positions::Sinusoidal | Positions::Learned => Some(Claim::at_most(claim, far, 0.5)),
            Positions::Alibi => Some(Claim::at_least(claim, far, least)),
            Positions::Rotary => None,
        });
        order = order.line(name, by_order);
        within = within.line(name, by_distance);
        beyond = beyond.line(name, by_length);
    }
    Ok(Outcome {
        claims,
        plot: panels(&[within, beyond, order]),
        notes: vec![],
    })
}
