//! What models write under twenty schemas parses and validates, whatever the model.
//!
//! `cargo test --release -p maquette-generate --test constrained -- --ignored` writes a thousand texts.

mod validate;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use maquette_data::Tokenizer;
use maquette_data::tokenizer::TokenizerConfig;
use maquette_generate::constraint::Form;
use maquette_generate::text::{GenerateOptions, Generated, complete};
use maquette_models::gpt::{Gpt, GptConfig};
use maquette_models::llama2c;
use maquette_models::nn::InitScheme;
use maquette_rng::{Stream, rng};
use serde_json::Value;

const SCHEMAS: &str = include_str!("../../fixtures/schemas.json");

fn schemas() -> Vec<Value> {
    let schemas: Vec<Value> = serde_json::from_str(SCHEMAS).unwrap();
    assert_eq!(schemas.len(), 20);
    schemas
}

/// Bytes, and a byte-level BPE, each with weights as they were drawn.
fn untrained() -> Vec<(Gpt, Tokenizer)> {
    let text = SCHEMAS.to_owned();
    let bpe = TokenizerConfig {
        vocab_size: 400,
        ..TokenizerConfig::default()
    };
    let bpe = bpe.train(std::iter::once(Ok(text))).unwrap();
    let tokenizers = [Tokenizer::byte(&["<|endoftext|>".to_owned()]), bpe];
    let tokenizers = tokenizers.into_iter().zip(0..);
    let models = tokenizers.map(|(tokenizer, seed)| {
        let config = GptConfig {
            vocab_size: tokenizer.vocab_size(),
            seq_len: 64,
            d_model: 32,
            n_layers: 2,
            n_heads: 2,
            // Large enough weights for a model with likes and dislikes.
            init: InitScheme::He,
            ..GptConfig::default()
        };
        let model = config.init(&Device::flex(), &mut rng(seed, Stream::Init, 0));
        (model, tokenizer)
    });
    models.collect()
}

/// Published weights, where they are.
fn trained() -> Option<(Gpt, Tokenizer)> {
    let root = std::env::var_os("MAQUETTE_TEST_DATA").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new("../../../shared/data").into());
    let folder = root.join("stories260k");
    if !folder.is_dir() {
        eprintln!(
            "skipped the trained model: {} is not there",
            folder.display()
        );
        return None;
    }
    let (_, model) = llama2c::load(&folder.join("stories260K.bin"), &Device::flex()).unwrap();
    let tokenizer = Tokenizer::load_llama2c(&folder.join("tok512.bin")).unwrap();
    Some((model, tokenizer))
}

fn write((model, tokenizer): &(Gpt, Tokenizer), schema: &Value, seed: u64) -> Generated {
    let options = GenerateOptions {
        max_tokens: 3000,
        form: Some(Form::JsonSchema(schema.clone())),
        ..GenerateOptions::default()
    };
    let random = &mut rng(seed, Stream::Sample, 0);
    let go_on = |_: &str| ControlFlow::Continue(());
    complete(model, tokenizer, "A", &options, random, go_on).unwrap()
}

/// Writes `count` texts under all schemas, by all models in turn.
fn all_parse_and_validate(count: usize) {
    let models: Vec<_> = untrained().into_iter().chain(trained()).collect();
    let schemas = schemas();
    let mut written = 0;
    for (schema, seed) in schemas.iter().cycle().zip(0..).take(count) {
        let model = &models[(seed / schemas.len()) % models.len()];
        let made = write(model, schema, seed as u64);
        assert!(
            made.in_form,
            "{schema}: cut after {} tokens: {}",
            made.ids.len(),
            made.text
        );
        let value: Value = serde_json::from_str(&made.text).expect(&made.text);
        if let Err(what) = validate::validate(schema, &value) {
            panic!("{schema}: {what}");
        }
        written += 1;
    }
    println!(
        "{written} of {count} texts parse and validate, by {} models",
        models.len()
    );
}

#[test]
fn texts_under_twenty_schemas_parse_and_validate() {
    all_parse_and_validate(60);
}

#[test]
#[ignore = "a thousand texts: cargo test --release -p maquette-generate --test constrained -- --ignored"]
fn a_thousand_texts_under_twenty_schemas_parse_and_validate() {
    all_parse_and_validate(1000);
}
