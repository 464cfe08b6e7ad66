//! Models with made-up weights to measure speed with, so that nobody needs a download.

use std::path::{Path, PathBuf};

use maquette::models::GptConfig;
use maquette::models::gguf::{self, Metadata, Mix, Value};
use maquette::rng::{Stream, rng};

use crate::args::{RandomShape, spelled};
use crate::commands::progress::Status;
use crate::errors::failed;

impl RandomShape {
    fn config(self) -> GptConfig {
        match self {
            Self::Tinyllama => GptConfig {
                vocab_size: 32_000,
                seq_len: 2048,
                d_model: 2048,
                n_layers: 22,
                n_heads: 32,
                n_kv_heads: Some(4),
                d_ff: Some(5632),
                ..GptConfig::llama()
            },
            Self::Llama110m => GptConfig {
                vocab_size: 32_000,
                seq_len: 1024,
                d_model: 768,
                n_layers: 12,
                n_heads: 12,
                d_ff: Some(2048),
                tied_head: true,
                ..GptConfig::llama()
            },
        }
    }
}

/// A file of every type in `folder`; those that are there already are taken as they are.
pub(super) fn files(
    shape: RandomShape,
    types: &[String],
    folder: &Path,
    status: &Status,
) -> miette::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(failed)?;
    let config = shape.config();
    let mut made = Vec::new();
    for (name, mix) in Mix::ALL
        .iter()
        .filter(|(name, _)| types.iter().any(|t| t == name))
    {
        let path = folder.join(format!("{}-{name}.gguf", spelled(&shape)));
        if !path.exists() {
            status.say(&format!("writing {}", path.display()));
            let random = &mut rng(0, Stream::Init, 0);
            let tokens = tokenizer(config.vocab_size);
            gguf::save_random(&path, &config, *mix, tokens, random).map_err(failed)?;
        }
        made.push(path);
    }
    Ok(made)
}

/// A vocabulary of bytes and made-up words, of the kind that llama.cpp calls `llama`.
fn tokenizer(vocab_size: usize) -> Metadata {
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const NORMAL: i32 = 1;
    const BYTE: i32 = 6;
    let token = |i: usize| match i {
        0 => ("<unk>".to_owned(), UNKNOWN),
        1 => ("<s>".to_owned(), CONTROL),
        2 => ("</s>".to_owned(), CONTROL),
        3..259 => (format!("<0x{:02X}>", i - 3), BYTE),
        _ => (word(i - 259), NORMAL),
    };
    let all: Vec<(String, i32)> = (0..vocab_size).map(token).collect();
    let array = |values: Vec<Value>| Value::Array(values);
    let texts = all.iter().map(|(text, _)| Value::String(text.clone()));
    let kinds = all.iter().map(|(_, kind)| Value::I32(*kind));
    let scores = (0..vocab_size).map(|i| Value::F32(-(i as f32)));
    [
        ("model", Value::String("llama".into())),
        ("tokens", array(texts.collect())),
        ("scores", array(scores.collect())),
        ("token_type", array(kinds.collect())),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("unknown_token_id", Value::U32(0)),
    ]
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .into()
}

/// The `i`th word over 26 letters, the short ones first.
fn word(mut i: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + (i % 26) as u8));
        if i < 26 {
            break;
        }
        i = i / 26 - 1;
    }
    let letters: String = letters.iter().rev().collect();
    format!("\u{2581}{letters}")
}
