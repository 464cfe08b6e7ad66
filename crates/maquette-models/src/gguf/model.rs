//! A decoder in a GGUF file: the names, orders and keys of llama.cpp.
//!
//! Everything goes by way of the Hugging Face layout, whose reader checks names and shapes. Of that,
//! llama.cpp differs in three things: names; matrices of GPT-2, which it has `[d_out, d_in]`; and, in
//! files of architecture `llama`, the rows of queries and keys, whose rotated pairs it has side by
//! side instead of half a head apart.

use std::path::Path;

use burn::tensor::{Device, TensorData};
use maquette_nn::RopeScaling;
use serde_json::{Value as Json, json};

use super::{Encoded, File, Format, Metadata, Value, write};
use crate::{
    error::ModelError,
    gpt::{Gpt, GptConfig},
    hf::{self, Family},
    store::Tensors,
};

/// Architectures read and written, for messages.
const SUPPORTED: &str =
    "llama (Llama, Mistral), qwen2, qwen3 and gpt2, with rotary positions plain, linear or yarn";

/// Which format each matrix of a file has, under llama.cpp's name for the whole. Vectors and learnt
/// positions are always 32-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// One format throughout; of the quantised ones below 8 bits, the head has 6 bits.
    All(Format),
    /// `Q4_K_M`: 4 bits, 6 bits for the head and for half of the values and second MLP matrices.
    Q4KM,
}

impl Mix {
    /// Every mix with its name on the command line.
    pub const ALL: [(&'static str, Self); 8] = [
        ("f32", Self::All(Format::F32)),
        ("f16", Self::All(Format::F16)),
        ("bf16", Self::All(Format::Bf16)),
        ("q8_0", Self::All(Format::Q8_0)),
        ("q6_k", Self::All(Format::Q6K)),
        ("q5_k", Self::All(Format::Q5K)),
        ("q4_0", Self::All(Format::Q4_0)),
        ("q4_k_m", Self::Q4KM),
    ];

    /// `general.file_type`, which is for people only.
    fn file_type(self) -> u32 {
        match self {
            Self::All(Format::F32) => 0,
            Self::All(Format::F16) => 1,
            Self::All(Format::Q4_0) => 2,
            Self::All(Format::Q8_0) => 7,
            Self::All(Format::Q4K) => 14,
            Self::Q4KM => 15,
            Self::All(Format::Q5K) => 16,
            Self::All(Format::Q6K) => 18,
            Self::All(Format::Bf16) => 32,
        }
    }

    fn quantised(self) -> bool {
        !matches!(self, Self::All(Format::F32 | Format::F16 | Format::Bf16))
    }

    /// The format of a tensor; the next larger one where a row is not of whole blocks.
    fn format(self, name: &str, shape: &[usize], depth: usize, tied: bool) -> Format {
        let [_, columns] = shape else {
            return Format::F32;
        };
        if name.starts_with("position_embd") {
            return Format::F32;
        }
        let head = name == "output.weight" || tied && name == "token_embd.weight";
        let wanted = match self {
            Self::All(Format::Q4_0 | Format::Q4K | Format::Q5K) if head => Format::Q6K,
            Self::All(format) => format,
            Self::Q4KM if head || self.precious(name, depth) => Format::Q6K,
            Self::Q4KM => Format::Q4K,
        };
        let fits = |format: &Format| format.row_bytes(*columns).is_some();
        let larger = [wanted, Format::Q8_0, Format::F16];
        larger.into_iter().find(fits).unwrap_or(Format::F32)
    }

    /// Whether a matrix has more bits in `Q4_K_M`: those whose errors cost most, in the first and last
    /// eighth of the layers and every third between.
    fn precious(self, name: &str, depth: usize) -> bool {
        let mut parts = name.split('.');
        let layer = match (parts.next(), parts.next().map(str::parse::<usize>)) {
            (Some("blk"), Some(Ok(layer))) => layer,
            _ => return false,
        };
        let kind = parts.next();
        let more =
            layer < depth / 8 || layer >= 7 * depth / 8 || (layer.wrapping_sub(depth / 8)) % 3 == 2;
        more && matches!(kind, Some("attn_v" | "ffn_down"))
    }
}

/// Loads a decoder, its weights widened to 32 bits.
///
/// # Errors
/// [`ModelError::Unsupported`] (another architecture or variant), [`ModelError::Corrupt`],
/// [`ModelError::Config`], [`ModelError::Names`] or [`ModelError::Shape`].
pub fn load(file: &File, device: &Device) -> Result<(GptConfig, Gpt), ModelError> {
    let path = file.path();
    let (family, config) = hf::parse_config(path, config_json(file)?)?;
    let permuted = architecture(file)? == "llama";
    let mut theirs = Tensors::new();
    for (name, ..) in file.tensors() {
        let Some(data) = file.tensor(name) else {
            continue;
        };
        let Some(plain) = to_hugging_face(name, family) else {
            return Err(unsupported(path, format!("tensor `{name}`")));
        };
        let data = match () {
            () if family == Family::Gpt2 && is_linear(&plain) => transposed(data),
            () if permuted => match heads_of(&plain, &config) {
                Some(heads) => reorder(data, heads, false),
                None => data,
            },
            () => data,
        };
        theirs.insert(plain, data);
    }
    let model = hf::from_tensors(&config, family, theirs, path, device)?;
    Ok((config, model))
}

/// Writes a decoder in the formats of `mix`, with `extra` metadata: its tokenizer's, its name.
///
/// # Errors
/// [`ModelError::Unsupported`] if llama.cpp has no architecture for the model; [`ModelError::Io`].
pub fn save(
    path: &Path,
    config: &GptConfig,
    model: &Gpt,
    mix: Mix,
    extra: Metadata,
) -> Result<(), ModelError> {
    let (family, theirs) = hf::to_tensors(config, model, path)?;
    let mut metadata = metadata(path, config, family)?;
    metadata.insert("general.file_type".into(), Value::U32(mix.file_type()));
    if mix.quantised() {
        metadata.insert("general.quantization_version".into(), Value::U32(2));
    }
    metadata.insert("tokenizer.ggml.model".into(), text("none"));
    metadata.extend(extra);
    let permuted = architecture_of(family) == "llama";
    let mut tensors = Vec::new();
    for (plain, data) in theirs {
        let name = from_hugging_face(&plain, family)
            .ok_or_else(|| unsupported(path, format!("parameter `{plain}`")))?;
        let data = match () {
            () if family == Family::Gpt2 && is_linear(&plain) => transposed(data),
            () if permuted => match heads_of(&plain, config) {
                Some(heads) => reorder(data, heads, true),
                None => data,
            },
            () => data,
        };
        let shape = data.shape().to_vec();
        let format = mix.format(&name, &shape, config.n_layers, config.tied_head);
        let numbers: Vec<f32> = data.iter().collect();
        tensors.push(Encoded {
            name,
            shape,
            format,
            bytes: format.encode(&numbers),
        });
    }
    write(path, &metadata, &tensors)
}

fn unsupported(path: &Path, what: impl Into<String>) -> ModelError {
    ModelError::Unsupported {
        path: path.to_owned(),
        what: what.into(),
        supported: SUPPORTED,
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn architecture(file: &File) -> Result<&str, ModelError> {
    let known = file.metadata().get("general.architecture");
    known
        .and_then(Value::as_str)
        .ok_or_else(|| unsupported(file.path(), "a file without general.architecture"))
}

fn architecture_of(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "gpt2",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        _ => "llama",
    }
}

/// The metadata as the `config.json` of the same model.
fn config_json(file: &File) -> Result<Json, ModelError> {
    let path = file.path();
    let name = architecture(file)?;
    if !["llama", "qwen2", "qwen3", "gpt2"].contains(&name) {
        return Err(unsupported(path, format!("architecture {name}")));
    }
    let find = |key: &str| file.metadata().get(&format!("{name}.{key}"));
    let size = |key: &str| -> Result<u64, ModelError> {
        find(key)
            .and_then(Value::as_u64)
            .ok_or_else(|| unsupported(path, format!("a file without {name}.{key}")))
    };
    let number = |key: &str| find(key).and_then(Value::as_f64);
    let shape = |tensor: &str| {
        let mut all = file.tensors();
        all.find(|(name, ..)| *name == tensor)
            .map(|(_, shape, _)| shape.to_vec())
    };
    let vocab_size = shape("token_embd.weight").map_or(0, |shape| shape[0]);
    let tied = shape("output.weight").is_none();
    let heads = size("attention.head_count")?;
    if name == "gpt2" {
        return Ok(json!({
            "model_type": "gpt2",
            "vocab_size": vocab_size,
            "n_positions": size("context_length")?,
            "n_embd": size("embedding_length")?,
            "n_layer": size("block_count")?,
            "n_head": heads,
            "n_inner": size("feed_forward_length")?,
            "layer_norm_epsilon": number("attention.layer_norm_epsilon"),
            "tie_word_embeddings": tied,
        }));
    }
    let d_head = match find("attention.key_length").and_then(Value::as_u64) {
        Some(width) => width,
        None => size("embedding_length")? / heads.max(1),
    };
    if find("rope.dimension_count")
        .and_then(Value::as_u64)
        .is_some_and(|part| part != d_head)
    {
        return Err(unsupported(path, "rotary positions on part of a head"));
    }
    if find("expert_count")
        .and_then(Value::as_u64)
        .is_some_and(|experts| experts > 0)
    {
        return Err(unsupported(path, "a mixture of experts"));
    }
    let scaling = match find("rope.scaling.type").and_then(Value::as_str) {
        None | Some("none") => Json::Null,
        Some(kind @ ("linear" | "yarn")) => {
            let mut scaling = json!({ "rope_type": kind, "factor": number("rope.scaling.factor") });
            if kind == "yarn" {
                let original = find("rope.scaling.original_context_length");
                scaling["original_max_position_embeddings"] =
                    json!(original.and_then(Value::as_u64));
            }
            scaling
        }
        Some(other) => return Err(unsupported(path, format!("rope scaling {other}"))),
    };
    Ok(json!({
        "model_type": name,
        "vocab_size": vocab_size,
        "max_position_embeddings": size("context_length")?,
        "hidden_size": size("embedding_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": find("attention.head_count_kv").and_then(Value::as_u64),
        "head_dim": d_head,
        "intermediate_size": size("feed_forward_length")?,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base").unwrap_or(10_000.0),
        "rope_scaling": scaling,
        "attention_bias": name == "llama" && shape("blk.0.attn_q.bias").is_some(),
        "mlp_bias": shape("blk.0.ffn_down.bias").is_some(),
        "tie_word_embeddings": tied,
    }))
}

/// The inverse of [`config_json`].
fn metadata(path: &Path, config: &GptConfig, family: Family) -> Result<Metadata, ModelError> {
    let name = architecture_of(family);
    if family == Family::Mixtral {
        return Err(unsupported(path, "a mixture of experts"));
    }
    if config.window.is_some_and(|window| window < config.seq_len) {
        return Err(unsupported(
            path,
            "a sliding window shorter than the context",
        ));
    }
    let size = |size: usize| Value::U32(size as u32);
    let number = |number: f64| Value::F32(number as f32);
    let mut all = Metadata::from([("general.architecture".into(), text(name))]);
    let mut put = |key: &str, value: Value| all.insert(format!("{name}.{key}"), value);
    put("context_length", size(config.seq_len));
    put("embedding_length", size(config.d_model));
    put("block_count", size(config.n_layers));
    put("feed_forward_length", size(config.mlp_width()));
    put("attention.head_count", size(config.n_heads));
    put("attention.head_count_kv", size(config.kv_heads()));
    put("vocab_size", size(config.vocab_size));
    if family == Family::Gpt2 {
        put("attention.layer_norm_epsilon", number(config.norm_eps));
        return Ok(all);
    }
    put("attention.layer_norm_rms_epsilon", number(config.norm_eps));
    put("attention.key_length", size(config.head_width()));
    put("attention.value_length", size(config.head_width()));
    put("rope.dimension_count", size(config.head_width()));
    put("rope.freq_base", number(config.rope_theta));
    match config.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) => {
            put("rope.scaling.type", text("linear"));
            put("rope.scaling.factor", number(factor));
        }
        // A file has no keys for the other settings, so they must be the usual ones.
        Some(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        }) => {
            put("rope.scaling.type", text("yarn"));
            put("rope.scaling.factor", number(factor));
            put(
                "rope.scaling.original_context_length",
                size(original_max_position_embeddings),
            );
        }
        Some(other) => return Err(unsupported(path, format!("rope scaling {other:?}"))),
    }
    Ok(all)
}

/// Names outside the blocks: Llama's, GPT-2's, llama.cpp's.
const WHOLE: [[&str; 3]; 4] = [
    ["model.embed_tokens", "wte", "token_embd"],
    ["", "wpe", "position_embd"],
    ["model.norm", "ln_f", "output_norm"],
    ["lm_head", "lm_head", "output"],
];

/// Names inside a block.
const BLOCK: [[&str; 3]; 12] = [
    ["input_layernorm", "ln_1", "attn_norm"],
    ["", "attn.c_attn", "attn_qkv"],
    ["self_attn.q_proj", "", "attn_q"],
    ["self_attn.k_proj", "", "attn_k"],
    ["self_attn.v_proj", "", "attn_v"],
    ["self_attn.o_proj", "attn.c_proj", "attn_output"],
    ["self_attn.q_norm", "", "attn_q_norm"],
    ["self_attn.k_norm", "", "attn_k_norm"],
    ["post_attention_layernorm", "ln_2", "ffn_norm"],
    ["mlp.gate_proj", "", "ffn_gate"],
    ["mlp.up_proj", "mlp.c_fc", "ffn_up"],
    ["mlp.down_proj", "mlp.c_proj", "ffn_down"],
];

/// What blocks are called before their number: by Llama, by GPT-2, by llama.cpp.
const PREFIX: [&str; 3] = ["model.layers.", "h.", "blk."];

/// Column of the tables above.
const LLAMA_CPP: usize = 2;

fn column(family: Family) -> usize {
    usize::from(family == Family::Gpt2)
}

fn rename(name: &str, from: usize, to: usize) -> Option<String> {
    let (stem, end) = name.rsplit_once('.')?;
    let find = |table: &[[&str; 3]], stem: &str| {
        let mut rows = table.iter().filter(|row| !row[from].is_empty());
        let row = rows.find(|row| row[from] == stem)?;
        Some(row[to].to_owned()).filter(|name| !name.is_empty())
    };
    match stem.strip_prefix(PREFIX[from]) {
        None => Some(format!("{}.{end}", find(&WHOLE, stem)?)),
        Some(rest) => {
            let (layer, stem) = rest.split_once('.')?;
            layer.parse::<usize>().ok()?;
            Some(format!(
                "{}{layer}.{}.{end}",
                PREFIX[to],
                find(&BLOCK, stem)?
            ))
        }
    }
}

fn to_hugging_face(name: &str, family: Family) -> Option<String> {
    rename(name, LLAMA_CPP, column(family))
}

fn from_hugging_face(name: &str, family: Family) -> Option<String> {
    rename(name, column(family), LLAMA_CPP)
}

/// Whether this is one of GPT-2's matrices that it stores `[d_in, d_out]`.
fn is_linear(plain: &str) -> bool {
    plain.ends_with(".weight")
        && ["attn.c_", "mlp.c_"]
            .iter()
            .any(|part| plain.contains(part))
}

/// How many heads the rows of a query or key projection belong to; none of another tensor.
fn heads_of(plain: &str, config: &GptConfig) -> Option<usize> {
    match () {
        () if plain.contains("self_attn.q_proj") => Some(config.n_heads),
        () if plain.contains("self_attn.k_proj") => Some(config.kv_heads()),
        () => None,
    }
}

fn transposed(data: TensorData) -> TensorData {
    let &[rows, columns] = &data.shape().to_vec()[..] else {
        return data;
    };
    let numbers: Vec<f32> = data.iter().collect();
    let turned = (0..rows * columns).map(|i| numbers[i % rows * columns + i / rows]);
    TensorData::new(turned.collect::<Vec<_>>(), [columns, rows])
}

/// Moves the rows of each head between halves (`0 1 2 .. | d/2 ..`) and pairs (`0 d/2 1 d/2+1 ..`).
fn reorder(data: TensorData, heads: usize, to_pairs: bool) -> TensorData {
    let shape = data.shape().to_vec();
    let columns: usize = shape[1..].iter().product();
    let d_head = shape[0] / heads.max(1);
    if d_head * heads != shape[0] || !d_head.is_multiple_of(2) {
        // The check of shapes that follows names what is wrong.
        return data;
    }
    let numbers: Vec<f32> = data.iter().collect();
    let mut moved = Vec::with_capacity(numbers.len());
    for row in 0..shape[0] {
        let (head, at) = (row / d_head, row % d_head);
        let from = match to_pairs {
            true => at % 2 * (d_head / 2) + at / 2,
            false => at % (d_head / 2) * 2 + at / (d_head / 2),
        };
        let from = (head * d_head + from) * columns;
        moved.extend_from_slice(&numbers[from..from + columns]);
    }
    TensorData::new(moved, shape)
}
