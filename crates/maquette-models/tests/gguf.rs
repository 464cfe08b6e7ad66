//! GGUF: number formats against the reference package (`fixtures/gguf_blocks.py`), models there and back, and
//! files that lie.

use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor};
use maquette_models::gguf::{self, File, Format, Metadata, Mix, Value};
use maquette_models::gpt::Experts;
use maquette_models::{Gpt, GptConfig, ModelError, RawWeights};
use maquette_nn::RopeScaling;
use maquette_rng::{Stream, normal, rng};
use proptest::prelude::*;
use tempfile::TempDir;

fn format(name: &str) -> Format {
    let mut all = Format::ALL.into_iter();
    all.find(|format| format.name() == name).unwrap()
}

fn cases(kind: &str) -> Vec<(Format, Vec<u8>, Vec<f32>)> {
    let all: serde_json::Value =
        serde_json::from_str(include_str!("../fixtures/gguf_blocks.json")).unwrap();
    let case = |case: &serde_json::Value| {
        let hex = case["bytes"].as_str().unwrap().as_bytes();
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let numbers = case["numbers"].as_array().unwrap();
        (
            format(case["format"].as_str().unwrap()),
            hex.chunks(2).map(byte).collect(),
            numbers.iter().map(|x| x.as_f64().unwrap() as f32).collect(),
        )
    };
    all[kind].as_array().unwrap().iter().map(case).collect()
}

#[test]
fn blocks_are_read_as_the_reference_reads_them() {
    for (format, bytes, expected) in cases("decode") {
        let mut numbers = vec![0.0; expected.len()];
        format.decode(&bytes, &mut numbers);
        for (i, (got, expected)) in numbers.iter().zip(&expected).enumerate() {
            let bound = 1e-6 * expected.abs().max(1e-3);
            assert!(
                (got - expected).abs() <= bound,
                "{format:?} {i}: {got} {expected}"
            );
        }
    }
}

#[test]
fn blocks_are_written_as_the_reference_writes_them() {
    for (format, bytes, numbers) in cases("encode") {
        assert_eq!(format.encode(&numbers), bytes, "{format:?}");
    }
}

/// Root mean square error relative to that of the numbers.
fn error(format: Format, numbers: &[f32]) -> f64 {
    let mut back = vec![0.0; numbers.len()];
    format.decode(&format.encode(numbers), &mut back);
    let square = |x: f64| x * x;
    let lost: f64 = numbers
        .iter()
        .zip(&back)
        .map(|(a, b)| square(f64::from(a - b)))
        .sum();
    let all: f64 = numbers.iter().map(|a| square(f64::from(*a))).sum();
    (lost / all).sqrt()
}

#[test]
fn fewer_bits_lose_more() {
    let numbers = normal(&mut rng(0, Stream::Data, 0), 64 * 256);
    let bounds = [
        (Format::F16, 3e-4),
        (Format::Bf16, 2e-3),
        (Format::Q8_0, 0.007),
        (Format::Q6K, 0.02),
        (Format::Q5K, 0.04),
        (Format::Q4K, 0.08),
        (Format::Q4_0, 0.10),
    ];
    let mut least = 0.0;
    for (format, bound) in bounds {
        let lost = error(format, &numbers);
        assert!(lost > least && lost < bound, "{format:?} {lost}");
        least = lost;
    }
    // What is zero stays zero.
    for format in Format::ALL {
        let mut back = vec![1.0; 256];
        format.decode(&format.encode(&[0.0; 256]), &mut back);
        assert_eq!(back, [0.0; 256], "{format:?}");
    }
}

fn models() -> Vec<GptConfig> {
    let small = GptConfig {
        vocab_size: 40,
        seq_len: 16,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        ..GptConfig::default()
    };
    let llama = GptConfig {
        n_kv_heads: Some(2),
        tied_head: false,
        ..llama_of(&small)
    };
    vec![
        small.clone(),
        llama.clone(),
        // Qwen2 and Qwen3.
        GptConfig {
            qkv_bias: Some(true),
            tied_head: true,
            ..llama.clone()
        },
        GptConfig {
            qk_norm: true,
            d_head: Some(16),
            ..llama.clone()
        },
        GptConfig {
            rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }),
            ..llama.clone()
        },
        GptConfig {
            rope_scaling: Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 32,
            }),
            ..llama.clone()
        },
        // Mixtral; every token passes all, so that rounding sends none elsewhere.
        GptConfig {
            experts: Some(Experts {
                count: 3,
                active: 3,
                ..Experts::default()
            }),
            ..llama
        },
    ]
}

fn llama_of(small: &GptConfig) -> GptConfig {
    GptConfig {
        vocab_size: small.vocab_size,
        seq_len: small.seq_len,
        d_model: small.d_model,
        n_layers: small.n_layers,
        n_heads: small.n_heads,
        ..GptConfig::llama()
    }
}

fn logits(model: &Gpt) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_ints([[3, 1, 4, 1, 5, 9, 2, 6]], &Device::flex());
    model.forward(ids).into_data().iter().collect()
}

#[test]
fn models_come_back() {
    let device = Device::flex();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    for config in models() {
        let model = config.init(&device, &mut rng(1, Stream::Init, 0));
        let expected = logits(&model);
        let spread = expected.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        for (name, mix) in Mix::ALL {
            gguf::save(&path, &config, &model, mix, Metadata::new()).unwrap();
            let file = File::open(&path).unwrap();
            let (again, back) = gguf::load(&file, &device).unwrap();
            assert_eq!(
                (
                    again.n_heads,
                    again.kv_heads(),
                    again.tied_head,
                    again.qkv_bias()
                ),
                (
                    config.n_heads,
                    config.kv_heads(),
                    config.tied_head,
                    config.qkv_bias()
                )
            );
            let bound = match mix {
                Mix::All(Format::F32) => 1e-6,
                Mix::All(Format::F16) => 2e-3,
                Mix::All(Format::Bf16 | Format::Q8_0) => 0.03,
                _ => 0.3,
            };
            for (got, expected) in logits(&back).iter().zip(&expected) {
                let off = (got - expected).abs();
                assert!(off <= bound * spread, "{name}: {got} {expected}");
            }
        }
    }
}

#[test]
fn what_a_file_cannot_say_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    let yarn = |beta_fast| GptConfig {
        rope_scaling: Some(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 4,
            beta_fast,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        }),
        ..models()[1].clone()
    };
    let save = |config: GptConfig| {
        let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
        gguf::save(
            &path,
            &config,
            &model,
            Mix::All(Format::F32),
            Metadata::new(),
        )
    };
    save(yarn(32.0)).unwrap();
    let (again, _) = gguf::load(&File::open(&path).unwrap(), &Device::flex()).unwrap();
    assert_eq!(again.rope_scaling, yarn(32.0).rope_scaling);
    let refused = save(yarn(16.0)).unwrap_err().to_string();
    assert!(refused.contains("beta_fast: 16"), "{refused}");
    let window = GptConfig {
        window: Some(4),
        ..models()[1].clone()
    };
    assert!(save(window).unwrap_err().to_string().contains("window"));
}

fn written() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    let config = &models()[1];
    let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
    let tokenizer = Metadata::from([(
        "tokenizer.ggml.tokens".to_owned(),
        Value::Array(vec![Value::String("a".into()), Value::String("b".into())]),
    )]);
    gguf::save(&path, config, &model, Mix::All(Format::F16), tokenizer).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (dir, path, bytes)
}

fn open(path: &PathBuf, bytes: &[u8]) -> Result<(), ModelError> {
    std::fs::write(path, bytes).unwrap();
    let file = File::open(path)?;
    let mapped = RawWeights::gguf(&file).map(|_| ());
    let loaded = gguf::load(&file, &Device::flex()).map(|_| ());
    assert_eq!(mapped.is_ok(), loaded.is_ok(), "{mapped:?} {loaded:?}");
    loaded
}

#[test]
fn damage_is_named() {
    let (_dir, path, bytes) = written();
    let says = |bytes: &[u8], words: &str| {
        let error = open(&path, bytes).unwrap_err().to_string();
        assert!(error.contains(words), "no `{words}` in: {error}");
    };
    says(b"GGML", "does not begin with GGUF");
    says(&bytes[..40], "in the middle of its header");
    says(&bytes[..bytes.len() - 64], "reaches beyond the file");
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    says(&patched(4, &9u32.to_le_bytes()), "version 9");
    says(&patched(4, &3u32.to_be_bytes()), "big-endian");
    says(&patched(8, &u64::MAX.to_le_bytes()), "of rank");
    let at = |text: &str| {
        let mut windows = bytes.windows(text.len());
        windows
            .position(|window| window == text.as_bytes())
            .unwrap()
    };
    let architecture = at("general.architecture") + 20 + 4 + 8;
    says(&patched(architecture, b"bloom"), "architecture bloom");
    let tokens = at("tokenizer.ggml.tokens") + 21 + 4 + 4;
    says(&patched(tokens, &u64::MAX.to_le_bytes()), "an array of");
    let shape = at("token_embd.weight") + 17 + 4;
    says(&patched(shape, &31u64.to_le_bytes()), "shape");
    says(
        &patched(shape + 16, &99u32.to_le_bytes()),
        "number format 99",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Nothing in a file makes the reader panic or ask for absurd memory.
    #[test]
    fn a_changed_byte_never_panics(at in 0.0..1.0f64, value: u8) {
        let (_dir, path, mut bytes) = written();
        // Mostly in the header.
        let end = bytes.len().min(2400);
        bytes[(at * end as f64) as usize] = value;
        let _ = open(&path, &bytes);
    }
}
