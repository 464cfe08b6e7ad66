//! One game, both players' curves.

use std::f64::consts::LN_2;

use crate::labs::ring::{Variant, tried};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, panels};
use crate::train::Phase;

const RECIPE: &str = include_str!("../../recipes/gan-ring8.toml");

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let common: &[(&str, &str)] = match lab.quick {
        true => &[
            ("train.steps", "2000"),
            ("train.batch", "128"),
            ("train.ema", "0.99"),
            ("generator.optimizer.lr", "3e-3"),
            ("critic.optimizer.lr", "3e-3"),
            ("train.validate_every", "100"),
            ("train.checkpoint_every", "10000"),
            ("train.sample_every", "10000"),
        ],
        false => &[("train.validate_every", "250")],
    };
    let tried = tried(lab, RECIPE, common, Variant::new("gan-ring8", &[]), 1)?;
    let run = &tried.runs[0];
    let accuracy = run.curve(Phase::Train, "critic_accuracy");
    let quality = run.curve(Phase::Validation, "high_quality");
    let modes = run.curve(Phase::Validation, "modes");
    let generator = run.curve(Phase::Train, "generator_loss");
    let critic = run.curve(Phase::Train, "critic_loss");

    let tenth = (accuracy.len() / 10).max(1);
    let mean =
        |points: &[(f64, f64)]| points.iter().map(|(_, y)| y).sum::<f64>() / points.len() as f64;
    let last = |points: &[(f64, f64)]| mean(&points[points.len() - tenth.min(points.len())..]);
    let best = accuracy[..tenth]
        .iter()
        .map(|(_, y)| *y)
        .fold(0.0, f64::max);
    let claims = vec![
        Claim::at_least(
            "share that the critic judges right, at its best in the first tenth",
            best,
            0.75,
        ),
        Claim::within(
            "the same, mean of the last tenth",
            last(&accuracy),
            0.5,
            0.1,
        ),
        Claim::at_least(
            "share of made points of high quality, gained from the first count to the last",
            quality[quality.len() - 1].1 - quality[0].1,
            if lab.quick { 0.25 } else { 0.4 },
        ),
        Claim::at_least("modes covered at the end, of 8", run.modes, 8.0),
        Claim::within(
            "the critic's loss, mean of the last tenth, in nats",
            last(&critic),
            2.0 * LN_2,
            0.1,
        )
        .published(
            1.386,
            "log 4 at the equilibrium: Goodfellow et al., theorem 1, arXiv 1406.2661",
        ),
        Claim::within("the generator's", last(&generator), LN_2, 0.1),
    ];
    let smooth = |points: Vec<(f64, f64)>| -> Vec<(f64, f64)> {
        points
            .chunks(tenth.div_ceil(4))
            .map(|part| (part[0].0, mean(part)))
            .collect()
    };
    let share = modes.into_iter().map(|(step, modes)| (step, modes / 8.0));
    let plot = panels(&[
        Chart::new("Two players, two yardsticks", "step", "share")
            .line("critic right", smooth(accuracy))
            .line("of high quality", quality)
            .line("modes covered", share),
        Chart::new("Their losses say little", "step", "nats")
            .line("generator", smooth(generator))
            .line("critic", smooth(critic)),
    ]);
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}
