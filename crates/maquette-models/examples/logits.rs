//! Prints tokens and the logits that a Hugging Face folder's model gives them, as JSON; what
//! `fixtures/check_export.py` compares with `transformers`.
//!
//! `cargo run --release -p maquette-models --example logits -- FOLDER`

use std::{error::Error, path::Path};

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_models::hf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: logits FOLDER")?;
    let device = Device::flex();
    let (config, model) = hf::load(Path::new(&folder), &device)?;
    // Two texts of the whole context, of tokens in no particular order.
    let ids: Vec<i64> = (0..2 * config.seq_len)
        .map(|i| (i * 7919 % config.vocab_size) as i64)
        .collect();
    let tokens = TensorData::new(ids.clone(), [2, config.seq_len]);
    let logits = model
        .forward(Tensor::<2, Int>::from_data(tokens, &device))
        .into_data();
    let logits: Vec<f32> = logits.iter::<f32>().collect();
    let texts: Vec<Vec<_>> = logits
        .chunks(config.seq_len * config.vocab_size)
        .map(|text| text.chunks(config.vocab_size).collect())
        .collect();
    let tokens: Vec<_> = ids.chunks(config.seq_len).collect();
    println!(
        "{}",
        serde_json::json!({ "tokens": tokens, "logits": texts })
    );
    Ok(())
}
