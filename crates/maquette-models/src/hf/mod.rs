//! Language models as Hugging Face folders, named and laid out as `transformers` does for
//! `GPT2LMHeadModel`, and `LlamaForCausalLM` and its relatives (Mistral, Qwen2, Qwen3).
//!
//! A folder holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` and the
//! shards that it names, and may hold `generation_config.json`. Two things differ from our own
//! layout: Llama keeps queries, keys and values apart, and its matrices are `[d_out, d_in]`;
//! GPT-2's are fused and `[d_in, d_out]`, as ours.

mod bert;
mod config;
mod layout;
mod t5;

pub use bert::{labels, load_bert, name_labels, save_bert};
pub use t5::{load_t5, save_t5};

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub(crate) use self::config::{Family, family, parse_config};
pub(crate) use self::layout::Part;
use self::{
    config::{config_json, read_config},
    layout::{assemble, disassemble, full_name, layout, plain_name},
};
use crate::{
    error::ModelError,
    gpt::{Gpt, GptConfig},
    store::{self, Metadata, Tensors},
};

/// The weights' file in a folder.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that says which shard holds which weight, where they are in several.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
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
    let (path, mut theirs) = read_weights(dir, plain_name)?;
    if config.tied_head {
        theirs.remove("lm_head.weight");
    }
    let model = from_tensors(&config, family, theirs, &path, device)?;
    Ok((config, model))
}

/// What a folder's `config.json` calls its kind of model: `gpt2`, `llama`, `bert`.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Json`].
pub fn model_type(dir: &Path) -> Result<String, ModelError> {
    let value: Value = read_json(&dir.join(CONFIG))?;
    let named = value.get("model_type").and_then(Value::as_str);
    Ok(named.unwrap_or_default().to_owned())
}

/// A decoder out of tensors that are named and laid out as in a folder of its family; `path` is for
/// errors.
pub(crate) fn from_tensors(
    config: &GptConfig,
    family: Family,
    tensors: Tensors,
    path: &Path,
    device: &Device,
) -> Result<Gpt, ModelError> {
    check_depth(config.n_layers, tensors.len(), path)?;
    let ours = assemble(&layout(config, family), tensors, path)?;
    store::assign(config.init_empty(device), ours, path)
}

/// The inverse of [`from_tensors`]. A GPT-2 without offsets has zeros for them.
pub(crate) fn to_tensors(
    config: &GptConfig,
    model: &Gpt,
    path: &Path,
) -> Result<(Family, Tensors), ModelError> {
    let family = family(config, path)?;
    let theirs = disassemble(&layout(config, family), &store::tensors(model));
    Ok((family, theirs))
}

/// Refuses more layers than there are tensors: a layer has several, so this bounds what a layout
/// allocates by the file.
fn check_depth(n_layers: usize, n_tensors: usize, path: &Path) -> Result<(), ModelError> {
    if n_layers <= n_tensors {
        return Ok(());
    }
    Err(ModelError::Names {
        path: path.to_owned(),
        missing: vec![format!("layer {n_tensors} of {n_layers}")],
        unexpected: vec![],
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let bytes = fs::read(path).map_err(ModelError::io(path))?;
    serde_json::from_slice(&bytes).map_err(ModelError::json(path))
}

#[derive(Deserialize)]
struct WeightsIndex {
    weight_map: BTreeMap<String, String>,
}

/// A `config.json` of one model type.
fn read_model<T: DeserializeOwned>(
    path: &Path,
    model_type: &str,
    supported: &'static str,
) -> Result<T, ModelError> {
    let value: Value = read_json(path)?;
    let found = value.get("model_type").and_then(Value::as_str);
    if found != Some(model_type) {
        return Err(ModelError::Unsupported {
            path: path.to_owned(),
            what: format!("model_type {}", found.unwrap_or("(absent)")),
            supported,
        });
    }
    serde_json::from_value(value).map_err(ModelError::json(path))
}

/// The tensors that a decoder's folder, one with `n_tensors` of them, must hold; experts are several.
pub(crate) fn parts(
    config: &GptConfig,
    family: Family,
    n_tensors: usize,
    path: &Path,
) -> Result<Vec<Part>, ModelError> {
    let experts = config.experts.map_or(1, |experts| experts.count);
    check_depth(config.n_layers.saturating_mul(experts), n_tensors, path)?;
    Ok(layout::parts(&layout(config, family)))
}

/// The configuration of a decoder's folder.
pub(crate) fn read_folder_config(dir: &Path) -> Result<(GptConfig, Family), ModelError> {
    let (family, config) = read_config(&dir.join(CONFIG))?;
    Ok((config, family))
}

/// All weights of a decoder's folder where they lie, with their shapes, and the file that names them.
pub(crate) fn map_weights(dir: &Path) -> Result<(PathBuf, store::Mapped), ModelError> {
    read_files(dir, plain_name, |path| store::map_as(path, plain_name))
}

/// All weights of a folder under the names that `rename` gives them, and the file that names them.
fn read_weights(
    dir: &Path,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<(PathBuf, Tensors), ModelError> {
    read_files(dir, &rename, |path| Ok(store::read_as(path, &rename)?.0))
}

/// The one file of a folder's weights, or all shards that its index names, as `read` reads each.
fn read_files<T>(
    dir: &Path,
    rename: impl Fn(&str) -> Option<String>,
    read: impl Fn(&Path) -> Result<BTreeMap<String, T>, ModelError>,
) -> Result<(PathBuf, BTreeMap<String, T>), ModelError> {
    let whole = dir.join(WEIGHTS);
    let path = dir.join(WEIGHTS_INDEX);
    if whole.exists() || !path.exists() {
        let tensors = read(&whole)?;
        return Ok((whole, tensors));
    }
    let WeightsIndex { weight_map } = read_json(&path)?;
    let corrupt = |reason: String| ModelError::Corrupt {
        path: path.clone(),
        format: "safetensors",
        reason,
    };
    let announced: BTreeMap<String, &String> = weight_map
        .iter()
        .filter_map(|(name, shard)| Some((rename(name)?, shard)))
        .collect();
    let mut tensors = BTreeMap::new();
    for shard in weight_map.values().collect::<BTreeSet<_>>() {
        // A shard stands beside its index and nowhere else.
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            return Err(corrupt(format!("shard `{shard}` is not a file's name")));
        }
        for (name, data) in read(&dir.join(shard))? {
            if announced.get(&name) != Some(&shard) {
                return Err(corrupt(format!("`{name}` stands in {shard} unannounced")));
            }
            tensors.insert(name, data);
        }
    }
    let lacking = announced
        .iter()
        .find(|(name, _)| !tensors.contains_key(*name));
    if let Some((name, shard)) = lacking {
        return Err(corrupt(format!("{shard} lacks `{name}`")));
    }
    Ok((path, tensors))
}

/// Saves `config.json` and `model.safetensors`. A GPT-2 without offsets is saved with zeros.
///
/// # Errors
/// [`ModelError::Unsupported`] if the configuration is of neither family; [`ModelError::Io`].
pub fn save(dir: &Path, config: &GptConfig, model: &Gpt) -> Result<(), ModelError> {
    let path = dir.join(CONFIG);
    let (family, mut theirs) = to_tensors(config, model, &path)?;
    fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
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

impl TokenIds {
    /// All of them.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
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
