//! Beam search finds what `transformers` finds; `fixtures/beam_search.py` asked it.

use std::path::Path;

use burn::tensor::Device;
use maquette_generate::search::{BeamOptions, EarlyStopping, beam_search, reader};
use maquette_models::hf;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    model: String,
    prompt: Vec<u32>,
    end_tokens: Vec<u32>,
    beams: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    max_tokens: usize,
    texts: Vec<Vec<u32>>,
    scores: Vec<f64>,
}

#[test]
fn beams_are_those_of_transformers() {
    let file = include_str!("../fixtures/beam_search.json");
    let cases: Vec<Case> = serde_json::from_str(file).unwrap();
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("../maquette-models/fixtures");
    let load = |name: &str| hf::load(&folders.join(name), &Device::flex()).unwrap().1;
    let models = ["llama-tiny", "gpt2-tiny"].map(|name| (name, load(name)));
    for (at, case) in cases.iter().enumerate() {
        let (_, model) = models.iter().find(|(name, _)| *name == case.model).unwrap();
        let options = BeamOptions {
            beams: case.beams,
            length_penalty: case.length_penalty,
            early_stopping: case.early_stopping,
            max_tokens: case.max_tokens,
            end_tokens: case.end_tokens.clone(),
        };
        let found = beam_search(reader(model), &case.prompt, model.seq_len(), &options).unwrap();
        let texts: Vec<&Vec<u32>> = found.iter().map(|text| &text.ids).collect();
        assert_eq!(texts, case.texts.iter().collect::<Vec<_>>(), "case {at}");
        for (ours, theirs) in found.iter().zip(&case.scores) {
            assert!(
                (ours.score - theirs).abs() < 1e-4,
                "case {at}: {} {theirs}",
                ours.score
            );
        }
    }
}
