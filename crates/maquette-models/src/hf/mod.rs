//! Language models as Hugging Face folders, named and laid out as `transformers` does for
//! `GPT2LMHeadModel` and `LlamaForCausalLM`.
//!
//! A folder holds `config.json` and `model.safetensors`, and may hold `generation_config.json`.
//! Two things differ from our own layout: Llama keeps queries, keys and values apart, and its
//! matrices are `[d_out, d_in]`; GPT-2's are fused and `[d_in, d_out]`, as ours.

mod config;
mod layout;

use std::{fs, path::Path};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    config::{Family, config_json, family, read_config},
    layout::{expected, full_name, layout, plain_name},
};
use crate::{
    error::ModelError,
    gpt::{Gpt, GptConfig},
    store::{self, Metadata, Tensors},
};

/// The weights' file in a folder.
pub const WEIGHTS: &str = "model.safetensors";
/// The configuration's file in a folder.
pub const CONFIG: &str = "config.json";
/// The file of decoding defaults in a folder.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// Loads a folder saved by `transformers` or by [`save`].
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::Unsupported`] (another architecture or
/// variant), [`ModelError::Config`], [`ModelError::Corrupt`], [`ModelError::Names`] or
/// [`ModelError::Shape`].
pub fn load(dir: &Path, device: &Device) -> Result<(GptConfig, Gpt), ModelError> {
    let (family, config) = read_config(&dir.join(CONFIG))?;
    let path = dir.join(WEIGHTS);
    let (mut theirs, _) = store::read(&path)?;
    theirs = theirs
        .into_iter()
        .filter_map(|(name, data)| Some((plain_name(&name)?, data)))
        .collect();
    if config.tied_head {
        theirs.remove("lm_head.weight");
    }
    // A layer has more tensors than one, so this bounds what `layout` allocates by the file.
    if config.n_layers > theirs.len() {
        let missing = vec![format!("layer {} of {}", theirs.len(), config.n_layers)];
        return Err(ModelError::Names {
            path,
            missing,
            unexpected: vec![],
        });
    }
    let layout = layout(&config, family);
    store::check(&expected(&layout), &theirs, &path)?;
    let ours = layout
        .iter()
        .map(|entry| (entry.ours.clone(), entry.join(&mut theirs)));
    let model = store::assign(config.init_empty(device), ours.collect(), &path)?;
    Ok((config, model))
}

/// Saves `config.json` and `model.safetensors`. A GPT-2 without offsets is saved with zeros.
///
/// # Errors
/// [`ModelError::Unsupported`] if the configuration is of neither family; [`ModelError::Io`].
pub fn save(dir: &Path, config: &GptConfig, model: &Gpt) -> Result<(), ModelError> {
    let path = dir.join(CONFIG);
    let family = family(config, &path)?;
    fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
    let ours = store::tensors(model);
    let mut theirs = Tensors::new();
    for entry in layout(config, family) {
        entry.split(ours.get(&entry.ours), &mut theirs);
    }
    if family == Family::Gpt2 {
        theirs = theirs
            .into_iter()
            .map(|(name, data)| (full_name(name), data))
            .collect();
    }
    let metadata = Metadata::from([("format".into(), "pt".into())]);
    store::write(&dir.join(WEIGHTS), &theirs, &metadata)?;
    write_json(&path, &config_json(config, family))
}

/// Decoding defaults and special tokens, as `generation_config.json` holds them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// The token before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<TokenIds>,
    /// Whether to sample rather than to take the likeliest token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,
    /// Divides the logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keep this many likeliest tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens that have this much probability together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep tokens at least this share as likely as the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Divides the positive logits of tokens already there, multiplies the negative ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
}

/// One token or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One token.
    One(u32),
    /// Several.
    Many(Vec<u32>),
}

/// Reads `generation_config.json`; the default if the folder has none.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Json`].
pub fn load_generation_config(dir: &Path) -> Result<GenerationConfig, ModelError> {
    let path = dir.join(GENERATION_CONFIG);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(ModelError::json(&path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Default::default()),
        Err(error) => Err(ModelError::io(&path)(error)),
    }
}

/// Writes `generation_config.json`.
///
/// # Errors
/// [`ModelError::Io`].
pub fn save_generation_config(dir: &Path, config: &GenerationConfig) -> Result<(), ModelError> {
    write_json(&dir.join(GENERATION_CONFIG), &json!(config))
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    store::replace(path, |file| {
        use std::io::Write;
        writeln!(file, "{value:#}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Int, Tensor, TensorData};
    use maquette_nn::NormKind;
    use maquette_rng::{Stream, rng};
    use std::path::PathBuf;
    use tempfile::TempDir;

    fn fixture(name: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures")).join(name)
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

    #[derive(Deserialize)]
    struct Expected {
        tokens: Vec<Vec<i64>>,
        logits: Vec<Vec<Vec<f32>>>,
    }

    #[test]
    fn logits_equal_those_of_transformers() {
        for name in ["gpt2-tiny", "llama-tiny"] {
            let device = Device::flex();
            let (config, model) = load(&fixture(name), &device).unwrap();
            let bytes = fs::read(fixture(name).join("expected.json")).unwrap();
            let expected: Expected = serde_json::from_slice(&bytes).unwrap();
            let shape = [expected.tokens.len(), expected.tokens[0].len()];
            let tokens = TensorData::new(expected.tokens.concat(), shape);
            let logits = model
                .forward(Tensor::<2, Int>::from_data(tokens, &device))
                .into_data();
            let expected = expected.logits.concat().concat();
            assert_eq!(expected.len(), shape[0] * shape[1] * config.vocab_size);
            let difference = logits
                .iter::<f32>()
                .zip(expected)
                .map(|(a, b)| (a - b).abs());
            let largest = difference.fold(0.0, f32::max);
            assert!(largest < 1e-4, "{name}: {largest}");
        }
    }

    #[test]
    fn saves_the_tensors_that_transformers_saved() {
        for name in ["gpt2-tiny", "llama-tiny"] {
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

        let bert = changed("gpt2-tiny", |json| json["model_type"] = "bert".into());
        assert!(
            message(&bert).contains("model_type bert is not supported"),
            "{}",
            message(&bert)
        );
        let scaled = changed("llama-tiny", |json| {
            json["rope_parameters"]["rope_type"] = "yarn".into();
        });
        assert!(
            message(&scaled).contains("rope_type yarn"),
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
}
