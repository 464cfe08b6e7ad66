//! Language models as Hugging Face folders, named and laid out as `transformers` does for
//! `GPT2LMHeadModel` and `LlamaForCausalLM`.
//!
//! A folder holds `config.json` and `model.safetensors`, and may hold `generation_config.json`.
//! Two things differ from our own layout: Llama keeps queries, keys and values apart, and its
//! matrices are `[d_out, d_in]`; GPT-2's are fused and `[d_in, d_out]`, as ours.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{Device, TensorData};
use maquette_nn::{MlpKind, NormKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    error::ModelError,
    gpt::{Gpt, GptConfig, Positions},
    store::{self, Metadata, Tensors},
};

/// The weights' file in a folder.
pub const WEIGHTS: &str = "model.safetensors";
/// The configuration's file in a folder.
pub const CONFIG: &str = "config.json";
/// The file of decoding defaults in a folder.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// What is read, for messages.
const SUPPORTED: &str = "model_type gpt2 (gelu_new) and llama (silu, plain rotary positions)";

/// The largest size believed of a configuration, so that no table is allocated on its word alone.
const LARGEST: usize = 1 << 20;

/// Which of the two layouts a configuration has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Gpt2,
    Llama,
}

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

// --- config.json ---------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Gpt2Json {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "eps")]
    layer_norm_epsilon: f64,
    #[serde(default)]
    resid_pdrop: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
}

#[derive(Deserialize)]
struct LlamaJson {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    intermediate_size: usize,
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: String,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeJson>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
struct RopeJson {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

fn gelu_new() -> String {
    "gelu_new".into()
}

fn silu() -> String {
    "silu".into()
}

fn eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

fn read_config(path: &Path) -> Result<(Family, GptConfig), ModelError> {
    let bytes = fs::read(path).map_err(ModelError::io(path))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(ModelError::json(path))?;
    let (family, config) = match value.get("model_type").and_then(Value::as_str) {
        Some("gpt2") => (Family::Gpt2, gpt2(path, value)?),
        Some("llama") => (Family::Llama, llama(path, value)?),
        other => {
            let what = format!("model_type {}", other.unwrap_or("(absent)"));
            return Err(unsupported(path, what));
        }
    };
    config.validate()?;
    let sizes = [
        config.vocab_size,
        config.seq_len,
        config.d_model,
        config.mlp_width(),
    ];
    match sizes.iter().find(|size| **size > LARGEST) {
        Some(size) => Err(unsupported(
            path,
            format!("a size of {size}, above {LARGEST},"),
        )),
        None => Ok((family, config)),
    }
}

fn unsupported(path: &Path, what: impl Into<String>) -> ModelError {
    ModelError::Unsupported {
        path: path.to_owned(),
        what: what.into(),
        supported: SUPPORTED,
    }
}

fn gpt2(path: &Path, value: Value) -> Result<GptConfig, ModelError> {
    let json: Gpt2Json = serde_json::from_value(value).map_err(ModelError::json(path))?;
    let activation = json.activation_function;
    if !["gelu_new", "gelu_pytorch_tanh"].contains(&activation.as_str()) {
        return Err(unsupported(
            path,
            format!("activation_function {activation}"),
        ));
    }
    if !json.scale_attn_weights || json.scale_attn_by_inverse_layer_idx {
        return Err(unsupported(path, "another scaling of the attention"));
    }
    Ok(GptConfig {
        vocab_size: json.vocab_size,
        seq_len: json.n_positions,
        d_model: json.n_embd,
        n_layers: json.n_layer,
        n_heads: json.n_head,
        d_ff: json.n_inner,
        norm_eps: json.layer_norm_epsilon,
        tied_head: json.tie_word_embeddings,
        dropout: json.resid_pdrop,
        ..GptConfig::default()
    })
}

fn llama(path: &Path, value: Value) -> Result<GptConfig, ModelError> {
    let json: LlamaJson = serde_json::from_value(value).map_err(ModelError::json(path))?;
    if json.hidden_act != "silu" {
        return Err(unsupported(path, format!("hidden_act {}", json.hidden_act)));
    }
    if json.attention_bias != json.mlp_bias {
        return Err(unsupported(path, "attention_bias other than mlp_bias"));
    }
    let d_head = json.hidden_size / json.num_attention_heads.max(1);
    if json.head_dim.is_some_and(|head_dim| head_dim != d_head) {
        return Err(unsupported(
            path,
            "head_dim other than hidden_size / num_attention_heads",
        ));
    }
    let mut rope_theta = json.rope_theta;
    for rope in [json.rope_scaling, json.rope_parameters]
        .into_iter()
        .flatten()
    {
        rope_theta = rope.rope_theta.or(rope_theta);
        if let Some(kind) = rope.rope_type.filter(|kind| kind != "default") {
            return Err(unsupported(path, format!("rope_type {kind}")));
        }
    }
    Ok(GptConfig {
        vocab_size: json.vocab_size,
        seq_len: json.max_position_embeddings,
        d_model: json.hidden_size,
        n_layers: json.num_hidden_layers,
        n_heads: json.num_attention_heads,
        n_kv_heads: json.num_key_value_heads,
        d_ff: Some(json.intermediate_size),
        norm_eps: json.rms_norm_eps,
        bias: json.mlp_bias,
        tied_head: json.tie_word_embeddings,
        rope_theta: rope_theta.unwrap_or(10_000.0),
        ..GptConfig::llama()
    })
}

/// The family whose code in `transformers` computes this model.
fn family(config: &GptConfig, path: &Path) -> Result<Family, ModelError> {
    let ours = (config.positions, config.norm, config.mlp);
    match ours {
        (Positions::Learned, NormKind::LayerNorm, MlpKind::Gelu)
            if config.kv_heads() == config.n_heads =>
        {
            Ok(Family::Gpt2)
        }
        (Positions::Rotary, NormKind::RmsNorm, MlpKind::Swiglu) => Ok(Family::Llama),
        _ => Err(ModelError::Unsupported {
            path: path.to_owned(),
            what: format!("a mix of {ours:?} with {} key heads", config.kv_heads()),
            supported: "learned positions, layer norm and gelu with as many key heads as heads \
                        (GPT-2); rotary positions, rms norm and swiglu (Llama)",
        }),
    }
}

fn config_json(config: &GptConfig, family: Family) -> Value {
    let mut json = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.seq_len,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }),
        Family::Llama => json!({
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": config.seq_len,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.kv_heads(),
            "head_dim": config.d_model / config.n_heads,
            "intermediate_size": config.mlp_width(),
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "attention_dropout": config.dropout,
            "attention_bias": config.bias,
            "mlp_bias": config.bias,
        }),
    };
    json["vocab_size"] = config.vocab_size.into();
    json["tie_word_embeddings"] = config.tied_head.into();
    json["torch_dtype"] = "float32".into();
    // `transformers` would otherwise assume the ids of its own tokenizers.
    json["bos_token_id"] = Value::Null;
    json["eos_token_id"] = Value::Null;
    json
}

// --- model.safetensors ---------------------------------------------------------------------------

/// One of our parameters and the tensors it stands as in the folder.
struct Entry {
    ours: String,
    /// Names and widths; our columns are theirs, side by side.
    theirs: Vec<(String, usize)>,
    /// Rows of our matrix; `None` for a vector.
    rows: Option<usize>,
    /// Whether theirs are `[d_out, d_in]`.
    transposed: bool,
}

/// The name without what differs between versions of `transformers`; `None` for buffers that old
/// versions saved.
fn plain_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("transformer.").unwrap_or(name);
    let buffer = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    (!buffer.iter().any(|end| name.ends_with(end))).then(|| name.to_owned())
}

/// The inverse of [`plain_name`] for a GPT-2.
fn full_name(name: String) -> String {
    if name.starts_with("lm_head.") {
        name
    } else {
        format!("transformer.{name}")
    }
}

fn layout(config: &GptConfig, family: Family) -> Vec<Entry> {
    match family {
        Family::Gpt2 => gpt2_layout(config),
        Family::Llama => llama_layout(config),
    }
}

/// Plain names, see [`plain_name`].
fn gpt2_layout(config: &GptConfig) -> Vec<Entry> {
    let (d, d_ff) = (config.d_model, config.mlp_width());
    let mut entries = vec![
        Entry::matrix(
            "tokens.weight",
            config.vocab_size,
            [("wte.weight", d)],
            false,
        ),
        Entry::matrix(
            "positions.weight",
            config.seq_len,
            [("wpe.weight", d)],
            false,
        ),
    ];
    let mut affine = |ours: &str, theirs: &str, d_in: Option<usize>, width: usize| {
        for name in ["weight", "bias"] {
            entries.push(Entry {
                ours: format!("{ours}.{name}"),
                theirs: vec![(format!("{theirs}.{name}"), width)],
                rows: d_in.filter(|_| name == "weight"),
                transposed: false,
            });
        }
    };
    for i in 0..config.n_layers {
        let (ours, theirs) = (format!("blocks.{i}"), format!("h.{i}"));
        let mut part = |a: &str, b: &str, d_in, width| {
            affine(
                &format!("{ours}.{a}"),
                &format!("{theirs}.{b}"),
                d_in,
                width,
            );
        };
        part("attention_norm", "ln_1", None, d);
        part("attention.qkv", "attn.c_attn", Some(d), 3 * d);
        part("attention.proj", "attn.c_proj", Some(d), d);
        part("mlp_norm", "ln_2", None, d);
        part("mlp.up", "mlp.c_fc", Some(d), d_ff);
        part("mlp.down", "mlp.c_proj", Some(d_ff), d);
    }
    affine("norm", "ln_f", None, d);
    if !config.tied_head {
        entries.push(head(config));
    }
    entries
}

fn llama_layout(config: &GptConfig) -> Vec<Entry> {
    let (d, d_ff) = (config.d_model, config.mlp_width());
    let d_kv = d / config.n_heads * config.kv_heads();
    let embedding = [("model.embed_tokens.weight", d)];
    let mut entries = vec![Entry::matrix(
        "tokens.weight",
        config.vocab_size,
        embedding,
        false,
    )];
    for i in 0..config.n_layers {
        let prefix = format!("model.layers.{i}");
        let mut part = |ours: &str, theirs: &[(&str, usize)], d_in: Option<usize>| {
            let names: &[&str] = match d_in {
                Some(_) if config.bias => &["weight", "bias"],
                _ => &["weight"],
            };
            for name in names {
                let full = |(t, width): &(&str, usize)| (format!("{prefix}.{t}.{name}"), *width);
                entries.push(Entry {
                    ours: format!("blocks.{i}.{ours}.{name}"),
                    theirs: theirs.iter().map(full).collect(),
                    rows: d_in.filter(|_| *name == "weight"),
                    transposed: true,
                });
            }
        };
        let qkv = [
            ("self_attn.q_proj", d),
            ("self_attn.k_proj", d_kv),
            ("self_attn.v_proj", d_kv),
        ];
        part("attention_norm", &[("input_layernorm", d)], None);
        part("attention.qkv", &qkv, Some(d));
        part("attention.proj", &[("self_attn.o_proj", d)], Some(d));
        part("mlp_norm", &[("post_attention_layernorm", d)], None);
        part("mlp.gate", &[("mlp.gate_proj", d_ff)], Some(d));
        part("mlp.up", &[("mlp.up_proj", d_ff)], Some(d));
        part("mlp.down", &[("mlp.down_proj", d)], Some(d_ff));
    }
    entries.push(Entry {
        ours: "norm.weight".into(),
        theirs: vec![("model.norm.weight".into(), d)],
        rows: None,
        transposed: false,
    });
    if !config.tied_head {
        entries.push(head(config));
    }
    entries
}

fn head(config: &GptConfig) -> Entry {
    let theirs = [("lm_head.weight", config.vocab_size)];
    Entry::matrix("head.weight", config.d_model, theirs, true)
}

/// Names and shapes a folder must have.
fn expected(layout: &[Entry]) -> BTreeMap<String, Vec<usize>> {
    let tensors = layout.iter().flat_map(|entry| {
        entry
            .theirs
            .iter()
            .map(|(name, width)| (name.clone(), entry.shape(*width)))
    });
    tensors.collect()
}

impl Entry {
    fn matrix<const N: usize>(
        ours: &str,
        rows: usize,
        theirs: [(&str, usize); N],
        transposed: bool,
    ) -> Self {
        let theirs = theirs
            .map(|(name, width)| (name.to_owned(), width))
            .to_vec();
        Self {
            ours: ours.to_owned(),
            theirs,
            rows: Some(rows),
            transposed,
        }
    }

    /// Shape of one of theirs.
    fn shape(&self, width: usize) -> Vec<usize> {
        match self.rows {
            None => vec![width],
            Some(rows) if self.transposed => vec![width, rows],
            Some(rows) => vec![rows, width],
        }
    }

    /// Takes theirs, whose names and shapes were checked, and makes ours: each transposed if need
    /// be, side by side.
    fn join(&self, theirs: &mut Tensors) -> TensorData {
        let (rows, total) = (self.rows.unwrap_or(1), self.total());
        let mut ours = vec![0f32; rows * total];
        let mut first = 0;
        for (name, width) in &self.theirs {
            let data = theirs
                .remove(name)
                .unwrap_or_else(|| TensorData::zeros::<f32, _>([0]));
            for (i, value) in data.iter::<f32>().enumerate() {
                let (row, column) = self.place(i, rows, *width);
                ours[row * total + first + column] = value;
            }
            first += width;
        }
        match self.rows {
            Some(rows) => TensorData::new(ours, [rows, total]),
            None => TensorData::new(ours, [total]),
        }
    }

    /// The inverse of [`Entry::join`]; zeros for an offset that ours lacks.
    fn split(&self, ours: Option<&TensorData>, theirs: &mut Tensors) {
        let (rows, total) = (self.rows.unwrap_or(1), self.total());
        let ours: Vec<f32> = match ours {
            Some(data) => data.iter::<f32>().collect(),
            None => vec![0.0; rows * total],
        };
        let mut first = 0;
        for (name, width) in &self.theirs {
            let value = |i| {
                let (row, column) = self.place(i, rows, *width);
                ours[row * total + first + column]
            };
            let values: Vec<f32> = (0..rows * width).map(value).collect();
            theirs.insert(name.clone(), TensorData::new(values, self.shape(*width)));
            first += width;
        }
    }

    /// Width of ours.
    fn total(&self) -> usize {
        self.theirs.iter().map(|(_, width)| width).sum()
    }

    /// Row and column, in our orientation, of the `i`th number of one of theirs.
    fn place(&self, i: usize, rows: usize, width: usize) -> (usize, usize) {
        if self.transposed {
            (i % rows, i / rows)
        } else {
            (i / width, i % width)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Int, Tensor};
    use maquette_rng::{Stream, rng};
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures")).join(name)
    }

    /// An empty folder for one test.
    fn folder(name: &str) -> PathBuf {
        let name = format!("maquette-hf-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A copy of a fixture whose configuration was changed.
    fn changed(fixture_name: &str, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let copy = folder(name);
        fs::copy(fixture(fixture_name).join(WEIGHTS), copy.join(WEIGHTS)).unwrap();
        let bytes = fs::read(fixture(fixture_name).join(CONFIG)).unwrap();
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        change(&mut config);
        write_json(&copy.join(CONFIG), &config).unwrap();
        copy
    }

    fn message(folder: &Path) -> String {
        load(folder, &Device::flex()).unwrap_err().to_string()
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
            let copy = folder(&format!("copy-{name}"));
            save(&copy, &config, &model).unwrap();
            let (theirs, metadata) = store::read(&fixture(name).join(WEIGHTS)).unwrap();
            assert_eq!(
                store::read(&copy.join(WEIGHTS)).unwrap(),
                (theirs, metadata)
            );
            assert_eq!(load(&copy, &Device::flex()).unwrap().0, config);
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
        let dir = folder("no-bias");
        save(&dir, &config, &model).unwrap();
        let (loaded, again) = load(&dir, &device).unwrap();
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
        let cut = changed("gpt2-tiny", "cut", |_| ());
        let bytes = fs::read(cut.join(WEIGHTS)).unwrap();
        fs::write(cut.join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
        assert!(message(&cut).contains("damaged"), "{}", message(&cut));

        let deeper = changed("gpt2-tiny", "deeper", |json| json["n_layer"] = 3.into());
        assert!(
            message(&deeper).contains("h.2.attn.c_attn.bias"),
            "{}",
            message(&deeper)
        );
        let endless = changed("llama-tiny", "endless", |json| {
            json["num_hidden_layers"] = u64::MAX.into();
        });
        assert!(
            message(&endless).contains("missing"),
            "{}",
            message(&endless)
        );

        let wider = changed("llama-tiny", "wider", |json| {
            json["intermediate_size"] = 32.into()
        });
        assert!(
            message(&wider).contains("shape [16, 24]"),
            "{}",
            message(&wider)
        );

        let bert = changed("gpt2-tiny", "bert", |json| {
            json["model_type"] = "bert".into()
        });
        assert!(
            message(&bert).contains("model_type bert is not supported"),
            "{}",
            message(&bert)
        );
        let scaled = changed("llama-tiny", "scaled", |json| {
            json["rope_parameters"]["rope_type"] = "yarn".into();
        });
        assert!(
            message(&scaled).contains("rope_type yarn"),
            "{}",
            message(&scaled)
        );
        let heads = changed("llama-tiny", "heads", |json| {
            json["num_attention_heads"] = 0.into()
        });
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
            save(&folder("mixed"), &mixed, &model),
            Err(ModelError::Unsupported { .. })
        ));
    }

    #[test]
    fn generation_config_round_trip() {
        let dir = folder("generation");
        assert_eq!(
            load_generation_config(&dir).unwrap(),
            GenerationConfig::default()
        );
        let config = GenerationConfig {
            eos_token_id: Some(TokenIds::Many(vec![1, 2])),
            temperature: Some(0.8),
            ..GenerationConfig::default()
        };
        save_generation_config(&dir, &config).unwrap();
        assert_eq!(load_generation_config(&dir).unwrap(), config);
        let theirs = load_generation_config(&fixture("gpt2-tiny")).unwrap();
        assert_eq!(theirs.eos_token_id, Some(TokenIds::One(0)));
    }
}
