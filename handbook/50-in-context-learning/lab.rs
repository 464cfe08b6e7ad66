//! A transformer that has never seen a function learns it from the examples in its context, about
//! as well as least squares does.

use std::path::Path;

use crate::data::functions::{LinearFunctions, Prompts};
use crate::labs::training::{numbers, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::{InContext, InContextConfig, store};
use crate::rng::rand::seq::SliceRandom as _;
use crate::rng::{Stream, rng};
use crate::train::recipes::in_context::{errors, tensors};

const RECIPE: &str = include_str!("../../recipes/in-context-linear.toml");

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    // The recipe as it is; the quick form has one number instead of five.
    let quick = [
        ("data.d_x", "1"),
        ("model.examples", "9"),
        ("model.d_model", "32"),
        ("model.n_layers", "2"),
        ("curriculum.every", "1"),
        ("train.steps", "400"),
        ("train.validate_every", "400"),
        ("schedule.warmup", "20"),
    ];
    let d_x = if lab.full() { 5 } else { 1 };
    let functions = LinearFunctions { d_x, noise: 0.5 };
    let asked = if lab.full() { 2 * d_x } else { 8 };
    let examples = asked + 1;
    lab.say("training");
    let folder = tempfile::tempdir().doing("making a folder")?;
    let run = folder.path().join("run");
    recipe(lab, RECIPE, if lab.full() { &[] } else { &quick }, &run)?;
    let model = trained(lab, &run)?;

    lab.say("measuring");
    let measured = if lab.full() { 2000 } else { 1000 };
    let shape = (examples, measured);
    let errors = errors(&model, &functions, shape, lab.seed, &lab.device).map_err(|source| {
        LabError::Step {
            doing: "measuring",
            source,
        }
    })?;
    let mut claims = vec![
        Claim::at_most(
            format!("squared error after {asked} examples over that of least squares"),
            errors.model[asked] / errors.least_squares[asked],
            if lab.full() { 1.1 } else { 1.8 },
        ),
        Claim::at_most(
            "the same over that of the zero predictor's",
            errors.model[asked] / errors.zero[asked],
            0.5,
        ),
        Claim::at_least(
            "error after no example over that after all",
            errors.model[0] / errors.model[asked],
            2.0,
        ),
    ];
    let (told, shuffled) = shuffled(lab, &model, &functions, examples)?;
    claims.push(Claim::at_least(
        "error with the examples' answers shuffled over that with the right ones",
        shuffled / told,
        1.5,
    ));
    let curve = |values: &[f64]| -> Vec<(f64, f64)> {
        let numbered = values.iter().enumerate();
        numbered
            .map(|(n, value)| (n as f64, value.min(2.0 * errors.zero[0])))
            .collect()
    };
    let chart = Chart::new("Learning in the context", "examples", "squared error")
        .line("transformer", curve(&errors.model))
        .line("least squares", curve(&errors.least_squares))
        .line("posterior mean", curve(&errors.bayes))
        .line("always zero", curve(&errors.zero));
    let right = Chart::new("What the demonstrations are for", "", "squared error")
        .bar("right answers", told)
        .bar("shuffled answers", shuffled)
        .bar("no example", errors.model[0]);
    Ok(Outcome {
        claims,
        plot: panels(&[chart, right]),
        notes: vec![],
    })
}

fn trained(lab: &LabContext<'_>, run: &Path) -> Result<InContext, LabError> {
    let config = std::fs::read(run.join("config.json")).doing("reading the model")?;
    let config: serde_json::Value = serde_json::from_slice(&config).doing("reading the model")?;
    let config: InContextConfig =
        serde_json::from_value(config["model"].clone()).doing("reading the model")?;
    let empty = config.init(&lab.device, &mut rng(lab.seed, Stream::Init, 0));
    store::load(empty, &run.join("model.safetensors")).doing("loading the model")
}

/// The error of the last prediction with the answers of the examples before it as they are, and
/// with the same answers in another order.
fn shuffled(
    lab: &LabContext<'_>,
    model: &InContext,
    functions: &LinearFunctions,
    examples: usize,
) -> Result<(f64, f64), LabError> {
    const FUNCTIONS: usize = 500;
    let random = &mut rng(lab.seed, Stream::Evaluate, 1_000_000);
    let prompts = functions.draw(FUNCTIONS, examples, functions.d_x, random);
    let mut other = prompts.clone();
    for row in other.y.chunks_mut(examples) {
        row[..examples - 1].shuffle(random);
    }
    let error = |asked: &Prompts| -> Result<f64, LabError> {
        let (x, y) = tensors(asked, &lab.device);
        let said = numbers(model.forward(x, y))?;
        let last = said.chunks(examples).zip(prompts.y.chunks(examples));
        let squares = last.map(|(said, y)| f64::from(said[examples - 1] - y[examples - 1]).powi(2));
        Ok(squares.sum::<f64>() / FUNCTIONS as f64)
    };
    Ok((error(&prompts)?, error(&other)?))
}
