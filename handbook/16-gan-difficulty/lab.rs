//! Five faults of adversarial games, each provoked on purpose, and games without any.

use crate::labs::training::recipe;
use crate::labs::{Claim, Doing, LabContext, LabError, Outcome, heat};
use crate::train::diagnosis::Fault;
use crate::train::run::findings;

const POINTS: &str = include_str!("../../recipes/gan-ring8.toml");
const IMAGES: &str = include_str!("../../recipes/gan-glyphs.toml");
const FAULTS: [Fault; 5] = [
    Fault::Collapse,
    Fault::VanishingGradient,
    Fault::Domination,
    Fault::Oscillation,
    Fault::RangeMismatch,
];

/// A game, and the fault that it is made to have.
struct Game {
    name: &'static str,
    fault: Fault,
    recipe: &'static str,
    sets: &'static [(&'static str, &'static str)],
}

/// A small game of images, which a critic learns to tell apart without fault.
const SMALL: [(&str, &str); 8] = [
    ("model.width", "8"),
    ("model.critic.spectral_norm", "false"),
    ("train.batch", "16"),
    ("data.glyphs.per_class", "50"),
    ("evaluate.count", "16"),
    ("evaluate.judge_steps", "10"),
    ("train.ema", "0.9"),
    ("train.steps", "400"),
];
const FREE: (&str, &str) = ("objective.gradient_penalty.weight", "0");
const IDLE: (&str, &str) = ("generator.optimizer.lr", "1e-6");

const GAMES: [Game; 5] = [
    Game {
        name: "minimax without a penalty",
        fault: Fault::Collapse,
        recipe: POINTS,
        sets: &[FREE, ("objective.loss", "minimax")],
    },
    Game {
        name: "minimax against a critic far ahead",
        fault: Fault::VanishingGradient,
        recipe: IMAGES,
        sets: &[
            IDLE,
            ("objective.loss", "minimax"),
            ("critic.optimizer.lr", "2e-3"),
        ],
    },
    Game {
        name: "the same with the non-saturating loss",
        fault: Fault::Domination,
        recipe: IMAGES,
        sets: &[
            IDLE,
            ("objective.loss", "non-saturating"),
            ("critic.optimizer.lr", "2e-3"),
        ],
    },
    Game {
        name: "steps too long, with momentum",
        fault: Fault::Oscillation,
        recipe: POINTS,
        sets: &[
            FREE,
            ("objective.loss", "minimax"),
            ("generator.optimizer.lr", "5e-3"),
            ("generator.optimizer.betas", "[0.9, 0.999]"),
            ("critic.optimizer.lr", "5e-3"),
            ("critic.optimizer.betas", "[0.9, 0.999]"),
        ],
    },
    Game {
        name: "pixels on [0, 1] against tanh",
        fault: Fault::RangeMismatch,
        recipe: IMAGES,
        sets: &[("pixels", "unit"), ("train.steps", "40")],
    },
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let folder = tempfile::tempdir().doing("making a folder")?;
    let length: &[(&str, &str)] = match lab.quick {
        true => &[("train.steps", "1200"), ("train.validate_every", "1200")],
        false => &[],
    };
    let play = |seed: u64, recipe_text: &str, sets: &[&[(&str, &str)]], name: &str| {
        lab.say(name);
        let lab = LabContext {
            seed: lab.seed + seed,
            quick: lab.quick,
            data: None,
            device: lab.device.clone(),
            progress: lab.progress,
        };
        let out = folder.path().join(name.replace(' ', "-"));
        recipe(&lab, recipe_text, &sets.concat(), &out)?;
        let found = findings(&out).doing("reading the diagnosis")?;
        Ok::<Vec<Fault>, LabError>(found.into_iter().map(|found| found.fault).collect())
    };
    let (mut claims, mut rows) = (Vec::new(), Vec::new());
    for game in &GAMES {
        let size = if game.recipe == POINTS {
            length
        } else {
            &SMALL
        };
        let named = play(0, game.recipe, &[size, game.sets], game.name)?;
        claims.push(Claim::at_least(
            format!("{}: named as {}", game.name, game.fault.name()),
            f64::from(u8::from(named.contains(&game.fault))),
            1.0,
        ));
        rows.push((game.name.to_owned(), named));
    }
    let seeds = if lab.quick { 1 } else { 5 };
    let mut raised = 0;
    for seed in 0..seeds {
        let name = format!("the recipe as it is, seed {}", lab.seed + seed);
        let named = play(seed, POINTS, &[length], &name)?;
        raised += named.len();
        rows.push((name, named));
    }
    claims.push(Claim::at_most(
        format!("healthy games, {seeds} seeds: faults named"),
        raised as f64,
        0.0,
    ));
    let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
    let cells: Vec<Vec<f64>> = rows
        .iter()
        .map(|(_, named)| {
            let cell = |fault| f64::from(u8::from(named.contains(fault)));
            FAULTS.iter().map(cell).collect()
        })
        .collect();
    Ok(Outcome {
        claims,
        plot: heat(
            "What was named in which game",
            (&names, &FAULTS.map(Fault::name)),
            &cells,
        ),
        notes: vec![],
    })
}
