//! The encoder-decoder: equal to PyTorch's layers, and a task that no shorter path solves.

use burn::tensor::{Device, Int, Tensor};
use serde_json::Value;

use crate::labs::training::{Ran, numbers, recipe, token_rows};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, heat};
use crate::models::{EncoderDecoder, EncoderDecoderConfig, store};
use crate::rng::{Stream, rng};

const RECIPE: &str = include_str!("../../recipes/reverse.toml");
/// Weights and logits of PyTorch's own layers, made by `original.py` beside them.
const WEIGHTS: &[u8] =
    include_bytes!("../../crates/maquette-models/fixtures/original/model.safetensors");
const EXPECTED: &str = include_str!("../../crates/maquette-models/fixtures/original/expected.json");

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    lab.say("against PyTorch's layers");
    let folder = tempfile::tempdir().doing("making a folder")?;
    let mut claims = vec![Claim::at_most(
        "logits: largest difference from PyTorch's layers with the same weights",
        parity(lab, folder.path())?,
        1e-4,
    )];

    lab.say("training on letters to be written backwards");
    let run = folder.path().join("run");
    let small = [
        ("data.count", "5000"),
        ("data.held_out", "100"),
        ("model.d_model", "32"),
        ("model.n_layers", "1"),
        ("train.steps", "120"),
        ("optimizer.lr", "3e-3"),
        ("schedule.warmup", "20"),
        ("train.validate_every", "120"),
    ];
    let ran: Ran = recipe(lab, RECIPE, if lab.full() { &[] } else { &small }, &run)?;
    let (loss, exact) = (ran.metric("test_loss"), ran.metric("test_exact"));
    if lab.full() {
        let claim = "answers that training never saw, right to the last letter";
        claims.push(Claim::at_least(claim, exact, 0.99));
    }
    // A model that knows only letters and lengths has ln 26 for all but the end of an answer.
    let claim = "nats per letter of answers that training never saw";
    claims.push(Claim::at_most(
        claim,
        loss,
        if lab.full() { 0.05 } else { 3.1 },
    ));

    let plot = plot(lab, &run)?;
    Ok(Outcome {
        claims,
        plot,
        notes: vec![format!("Answers right to the last letter: {exact:.3}.")],
    })
}

fn parity(lab: &LabContext<'_>, folder: &std::path::Path) -> Result<f64, LabError> {
    let config = EncoderDecoderConfig {
        vocab_size: 16,
        seq_len: 8,
        d_model: 8,
        n_layers: 2,
        n_heads: 2,
        d_ff: Some(12),
        ..EncoderDecoderConfig::default()
    };
    let path = folder.join("model.safetensors");
    std::fs::write(&path, WEIGHTS).doing("writing the weights")?;
    let empty = config.init(&lab.device, &mut rng(lab.seed, Stream::Init, 0));
    let model = store::load(empty, &path).doing("loading the weights")?;
    let expected: Value = serde_json::from_str(EXPECTED).doing("reading the logits")?;
    let (tokens, mask) = (
        table(&expected["tokens"], &lab.device),
        table(&expected["mask"], &lab.device),
    );
    let memory = model.encode(tokens, Some(mask.float()));
    let got = numbers(model.decode(table(&expected["answers"], &lab.device), &memory, None))?;
    let gaps = got.iter().zip(flat(&expected["logits"]));
    Ok(gaps
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, f64::max))
}

fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap_or(f64::NAN)],
    }
}

fn table(value: &Value, device: &Device) -> Tensor<2, Int> {
    let rows = value.as_array().map_or(0, Vec::len);
    let ids: Vec<u32> = flat(value).into_iter().map(|id| id as u32).collect();
    token_rows(&ids, rows, device)
}

/// Where the last decoder block looks in the source while it writes it backwards, mean of its heads,
/// beside the loss.
fn plot(lab: &LabContext<'_>, run: &std::path::Path) -> Result<String, LabError> {
    let text = "transformer";
    let config: Value =
        serde_json::from_slice(&std::fs::read(run.join("config.json")).doing("reading the model")?)
            .doing("reading the model")?;
    let config: EncoderDecoderConfig =
        serde_json::from_value(config["model"].clone()).doing("reading the model")?;
    let empty = config.init(&lab.device, &mut rng(lab.seed, Stream::Init, 0));
    let model: EncoderDecoder =
        store::load(empty, &run.join("model.safetensors")).doing("loading the model")?;
    let tokenizer = crate::data::Tokenizer::load(run).doing("loading the tokenizer")?;
    let source = tokenizer.encode(text).doing("encoding")?;
    let start = tokenizer.token_to_id("<s>").unwrap_or_default();
    let mut answer = vec![start];
    answer.extend(source.iter().rev());
    let memory = model.encode(token_rows(&source, 1, &lab.device), None);
    let mut maps = model
        .attention_maps(token_rows(&answer, 1, &lab.device), &memory)
        .cross;
    let last = maps.remove(config.decoder_layers() - 1);
    let weights = numbers(last.mean_dim(1))?;
    let rows: Vec<Vec<f64>> = weights
        .chunks(source.len())
        .map(|row| row.iter().map(|w| f64::from(*w)).collect())
        .collect();
    let letters: Vec<String> = text.chars().map(String::from).collect();
    let columns: Vec<&str> = letters.iter().map(String::as_str).collect();
    let mut written: Vec<&str> = columns.iter().rev().copied().collect();
    written.push("end");
    let map = heat(
        "Where the decoder looks (across) to write (down)",
        (&written, &columns),
        &rows,
    );
    let mut chart = Chart::new("Training", "step", "nats per letter");
    for phase in ["train", "validation"] {
        chart = chart.line(phase, losses(run, phase)?);
    }
    Ok(beside(&[map, chart.svg()]))
}

/// The loss over the steps of a run.
fn losses(run: &std::path::Path, phase: &str) -> Result<Vec<(f64, f64)>, LabError> {
    let records = crate::train::run::records(run).doing("reading the run's log")?;
    let of = records.iter().filter(|record| record.phase.name() == phase);
    Ok(of
        .filter_map(|record| Some((record.step as f64, *record.values.get("loss")?)))
        .collect())
}
