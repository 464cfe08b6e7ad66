//! Folders of decoders against `transformers`; `fixtures/make.py` made them and the numbers.

mod common;

use std::{fs, path::Path};

use burn::tensor::{Device, Int, Tensor};
use common::{Expected, fixture};
use maquette_models::{
    GptConfig, LanguageModel as _, ModelError,
    hf::{
        CONFIG, GenerationConfig, TokenIds, WEIGHTS, WEIGHTS_INDEX, load, load_generation_config,
        save, save_generation_config,
    },
    nn::NormKind,
    store,
};
use maquette_rng::{Stream, rng};
use serde_json::Value;
use tempfile::TempDir;

/// Every folder that `fixtures/make.py` makes with the logits of `transformers`.
const FIXTURES: [&str; 12] = [
    "gpt2-tiny",
    "gpt2-relu",
    "llama-tiny",
    "llama-biased",
    "llama-linear",
    "llama-dynamic",
    "llama-llama3",
    "llama-yarn",
    "mistral-bf16",
    "mixtral-three",
    "qwen2-windowed",
    "qwen3-tied",
];

fn write_json(path: &Path, value: &Value) -> std::io::Result<()> {
    fs::write(path, value.to_string())
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A copy of a fixture whose configuration was changed.
fn changed(fixture_name: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let copy = folder();
    fs::copy(
        fixture(fixture_name).join(WEIGHTS),
        copy.path().join(WEIGHTS),
    )
    .unwrap();
    let bytes = fs::read(fixture(fixture_name).join(CONFIG)).unwrap();
    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut config);
    write_json(&copy.path().join(CONFIG), &config).unwrap();
    copy
}

fn message(folder: &TempDir) -> String {
    load(folder.path(), &Device::flex())
        .unwrap_err()
        .to_string()
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in FIXTURES {
        let expected = Expected::of(name);
        let (_, model) = load(&fixture(name), &Device::flex()).unwrap();
        let tokens = expected.ids("tokens");
        expected.check(name, "logits", model.forward(tokens.clone()));
        if expected.get("balance").is_some() {
            let balance = model.training_loss(tokens.clone(), tokens).balance();
            expected.check(name, "balance", balance.unwrap());
        }
    }
}

#[test]
fn shards_are_one_model() {
    let shards = fixture("llama-sharded");
    let path = |name: &str| shards.join(name);
    let whole = fixture("llama-tiny");
    assert!(!path(WEIGHTS).exists());
    let (_, model) = load(&shards, &Device::flex()).unwrap();
    let (_, expected) = load(&whole, &Device::flex()).unwrap();
    assert_eq!(store::tensors(&model), store::tensors(&expected));

    let copy = folder();
    let copied = |name: &str| fs::copy(path(name), copy.path().join(name)).unwrap();
    copied(CONFIG);
    let index: Value = serde_json::from_slice(&fs::read(path(WEIGHTS_INDEX)).unwrap()).unwrap();
    let first = index["weight_map"]["lm_head.weight"].clone();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut index = index.clone();
        change(&mut index["weight_map"]);
        write_json(&copy.path().join(WEIGHTS_INDEX), &index).unwrap();
        message(&copy)
    };
    assert!(changed(&|_| ()).contains("No such file"));
    let outside = changed(&|map| map["lm_head.weight"] = "../model.safetensors".into());
    assert!(outside.contains("not a file's name"), "{outside}");
    for entry in fs::read_dir(&shards).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".safetensors") {
            copied(&name);
        }
    }
    let extra = changed(&|map| map["stray"] = first.clone());
    assert!(extra.contains("lacks `stray`"), "{extra}");
    let silent = changed(&|map| {
        map.as_object_mut().unwrap().remove("lm_head.weight");
    });
    assert!(silent.contains("unannounced"), "{silent}");
}

#[test]
fn saves_the_tensors_that_transformers_saved() {
    for name in FIXTURES.into_iter().filter(|name| *name != "mistral-bf16") {
        let (config, model) = load(&fixture(name), &Device::flex()).unwrap();
        let copy = folder();
        save(copy.path(), &config, &model).unwrap();
        let (theirs, metadata) = store::read(&fixture(name).join(WEIGHTS)).unwrap();
        assert_eq!(
            store::read(&copy.path().join(WEIGHTS)).unwrap(),
            (theirs, metadata)
        );
        assert_eq!(load(copy.path(), &Device::flex()).unwrap().0, config);
    }
}

#[test]
fn gpt2_without_offsets_keeps_its_function() {
    let config = GptConfig {
        vocab_size: 9,
        seq_len: 4,
        d_model: 8,
        n_layers: 1,
        n_heads: 2,
        bias: false,
        tied_head: false,
        ..GptConfig::default()
    };
    let device = Device::flex();
    let model = config.init(&device, &mut rng(0, Stream::Init, 0));
    let dir = folder();
    save(dir.path(), &config, &model).unwrap();
    let (loaded, again) = load(dir.path(), &device).unwrap();
    assert_eq!(
        loaded,
        GptConfig {
            bias: true,
            ..config
        }
    );
    let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3]], &device);
    let difference = model.forward(tokens.clone()) - again.forward(tokens);
    assert!(difference.abs().max().into_scalar::<f32>() < 1e-6);
}

#[test]
fn faults_are_named() {
    let cut = changed("gpt2-tiny", |_| ());
    let bytes = fs::read(cut.path().join(WEIGHTS)).unwrap();
    fs::write(cut.path().join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
    assert!(message(&cut).contains("damaged"), "{}", message(&cut));

    let deeper = changed("gpt2-tiny", |json| json["n_layer"] = 3.into());
    assert!(
        message(&deeper).contains("h.2.attn.c_attn.bias"),
        "{}",
        message(&deeper)
    );
    let endless = changed("llama-tiny", |json| {
        json["num_hidden_layers"] = u64::MAX.into();
    });
    assert!(
        message(&endless).contains("missing"),
        "{}",
        message(&endless)
    );

    let wider = changed("llama-tiny", |json| json["intermediate_size"] = 32.into());
    assert!(
        message(&wider).contains("shape [16, 24]"),
        "{}",
        message(&wider)
    );

    let other = changed("gpt2-tiny", |json| json["model_type"] = "mamba".into());
    assert!(
        message(&other)
            .contains("model_type mamba is not supported; supported: model_type gpt2, llama"),
        "{}",
        message(&other)
    );
    let scaled = changed("llama-tiny", |json| {
        json["rope_parameters"]["rope_type"] = "longrope".into();
    });
    assert!(
        message(&scaled).contains("rope_type longrope"),
        "{}",
        message(&scaled)
    );
    let heads = changed("llama-tiny", |json| json["num_attention_heads"] = 0.into());
    assert!(message(&heads).contains("n_heads"), "{}", message(&heads));

    let mixed = GptConfig {
        norm: NormKind::RmsNorm,
        ..GptConfig::default()
    };
    let mixed = GptConfig {
        vocab_size: 5,
        ..mixed
    };
    let model = mixed.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
    assert!(matches!(
        save(folder().path(), &mixed, &model),
        Err(ModelError::Unsupported { .. })
    ));
}

#[test]
fn generation_config_round_trip() {
    let dir = folder();
    assert_eq!(
        load_generation_config(dir.path()).unwrap(),
        GenerationConfig::default()
    );
    let config = GenerationConfig {
        eos_token_id: Some(TokenIds::Many(vec![1, 2])),
        temperature: Some(0.8),
        ..GenerationConfig::default()
    };
    save_generation_config(dir.path(), &config).unwrap();
    assert_eq!(load_generation_config(dir.path()).unwrap(), config);
    let theirs = load_generation_config(&fixture("gpt2-tiny")).unwrap();
    assert_eq!(theirs.eos_token_id, Some(TokenIds::One(0)));
}
