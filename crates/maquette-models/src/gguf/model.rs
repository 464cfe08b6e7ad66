//! A decoder in a GGUF file: the names, orders and keys of llama.cpp.
//!
//! Everything goes by way of the Hugging Face layout, whose reader checks names and shapes. Of that,
//! llama.cpp differs in three things: names; matrices of GPT-2, which it has `[d_out, d_in]`; and, in
//! files of architecture `llama`, the rows of queries and keys, whose rotated pairs it has side by
//! side instead of half a head apart.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, TensorData};
use maquette_nn::RopeScaling;
use maquette_rng::{Rng, normal};
use serde_json::{Value as Json, json};

use super::names::{experts, heads_of, is_linear, place, to_hugging_face};
use super::{File, Format, Head, Metadata, Value, rope, write};
use crate::{
    error::ModelError,
    gpt::{Gpt, GptConfig},
    hf::{self, Family},
    store::Tensors,
};

/// Architectures read and written, for messages.
const SUPPORTED: &str = "llama (Llama, Mistral, Mixtral), qwen2, qwen3 and gpt2, with rotary positions plain, linear, \
     yarn or Llama 3's";

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
        let [_, .., columns] = shape else {
            return Format::F32;
        };
        // The router is small, and what it says decides much.
        if name.starts_with("position_embd") || name.contains("ffn_gate_inp") {
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
        more && matches!(kind, Some("attn_v" | "ffn_down" | "ffn_down_exps"))
    }
}

/// Loads a decoder, its weights widened to 32 bits.
///
/// # Errors
/// [`ModelError::Unsupported`] (another architecture or variant), [`ModelError::Corrupt`],
/// [`ModelError::Config`], [`ModelError::Names`] or [`ModelError::Shape`].
pub fn load(file: &File, device: &Device) -> Result<(GptConfig, Gpt), ModelError> {
    let path = file.path();
    let (config, family) = self::config(file)?;
    let permuted = pairs_are_neighbours(file)?;
    let mut theirs = Tensors::new();
    for (name, ..) in file.tensors() {
        let Some(data) = file.tensor(name) else {
            continue;
        };
        // Of this the configuration knows.
        if name == rope::FACTORS {
            continue;
        }
        let count = config.experts.map_or(0, |experts| experts.count);
        if let Some(names) = experts(name, count) {
            theirs.extend(names.into_iter().zip(unstacked(data, count)));
            continue;
        }
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
    let metadata = file_metadata(path, config, family, mix, extra)?;
    let permuted = architecture_of(family) == "llama";
    let mut tensors: BTreeMap<String, Vec<TensorData>> = BTreeMap::new();
    for (plain, data) in theirs {
        let place = place(&plain, family);
        let place = place.ok_or_else(|| unsupported(path, format!("parameter `{plain}`")))?;
        let data = match () {
            () if family == Family::Gpt2 && is_linear(&plain) => transposed(data),
            () if permuted => match heads_of(&plain, config) {
                Some(heads) => reorder(data, heads, true),
                None => data,
            },
            () => data,
        };
        let stack = tensors.entry(place.name).or_default();
        // Names come in the order of their letters, which for experts is not that of numbers.
        let at = place.expert.unwrap_or(0);
        stack.resize_with(stack.len().max(at + 1), || TensorData::zeros::<f32, _>([0]));
        stack[at] = data;
    }
    if let Some(factors) = rope::factors(config) {
        let shape = [factors.len()];
        tensors.insert(rope::FACTORS.into(), vec![TensorData::new(factors, shape)]);
    }
    let head = |(name, parts): (&String, &Vec<TensorData>)| {
        let mut shape = parts[0].shape().to_vec();
        if name.contains("_exps.") {
            shape.insert(0, parts.len());
        }
        Head {
            format: mix.format(name, &shape, config.n_layers, config.tied_head),
            name: name.clone(),
            shape,
        }
    };
    let heads: Vec<Head> = tensors.iter().map(head).collect();
    write(path, &metadata, &heads, |head, file| {
        tensors[&head.name].iter().try_for_each(|part| {
            let numbers: Vec<f32> = part.iter().collect();
            file.write_all(&head.format.encode(&numbers))
        })
    })
}

/// Writes a decoder of this shape with random weights, the same few rows over and over: a file to
/// measure speed with, of any size in little memory.
///
/// # Errors
/// As [`save`].
pub fn save_random(
    path: &Path,
    config: &GptConfig,
    mix: Mix,
    extra: Metadata,
    rng: &mut Rng,
) -> Result<(), ModelError> {
    const ROWS: usize = 61;
    config.validate()?;
    let family = hf::family(config, path)?;
    let metadata = file_metadata(path, config, family, mix, extra)?;
    let parts = hf::parts(config, family, usize::MAX, path)?;
    let head = |part: hf::Part| {
        let place = place(&part.theirs, family).filter(|place| place.expert.is_none());
        let place = place.ok_or_else(|| unsupported(path, format!("made-up `{}`", part.theirs)))?;
        let (name, mut shape) = (place.name, part.shape);
        if part.turned {
            shape.reverse();
        }
        let format = mix.format(&name, &shape, config.n_layers, config.tied_head);
        Ok(Head {
            name,
            shape,
            format,
        })
    };
    let heads = parts
        .into_iter()
        .map(head)
        .collect::<Result<Vec<_>, ModelError>>()?;
    let mut known: BTreeMap<(u32, usize), Vec<u8>> = BTreeMap::new();
    write(path, &metadata, &heads, |head, file| {
        let [rows, columns] = match head.shape[..] {
            [rows, columns] => [rows, columns],
            // Gains of one.
            _ => return file.write_all(&head.format.encode(&vec![1.0; head.shape[0]])),
        };
        let some = known.entry((head.format.id(), columns)).or_insert_with(|| {
            let mut numbers = normal(rng, ROWS * columns);
            numbers.iter_mut().for_each(|x| *x *= 0.02);
            head.format.encode(&numbers)
        });
        let row = some.len() / ROWS;
        (0..rows).try_for_each(|i| file.write_all(&some[i % ROWS * row..][..row]))
    })
}

/// All metadata of a file.
fn file_metadata(
    path: &Path,
    config: &GptConfig,
    family: Family,
    mix: Mix,
    extra: Metadata,
) -> Result<Metadata, ModelError> {
    let mut metadata = metadata(path, config, family)?;
    metadata.insert("general.file_type".into(), Value::U32(mix.file_type()));
    if mix.quantised() {
        metadata.insert("general.quantization_version".into(), Value::U32(2));
    }
    metadata.insert("tokenizer.ggml.model".into(), text("none"));
    metadata.extend(extra);
    Ok(metadata)
}

/// The configuration in a file's metadata, and whose layout it maps to.
pub(crate) fn config(file: &File) -> Result<(GptConfig, Family), ModelError> {
    let (family, config) = hf::parse_config(file.path(), config_json(file)?)?;
    Ok((config, family))
}

/// Whether the file has rotated features side by side.
pub(crate) fn pairs_are_neighbours(file: &File) -> Result<bool, ModelError> {
    Ok(architecture(file)? == "llama")
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
    let experts = find("expert_count").and_then(Value::as_u64);
    let experts = experts.filter(|experts| *experts > 0);
    if experts.is_some() && name != "llama" {
        return Err(unsupported(
            path,
            format!("a mixture of experts of architecture {name}"),
        ));
    }
    let stacked = shape("blk.0.ffn_gate_exps.weight").map(|shape| shape[0] as u64);
    if experts != stacked {
        return Err(unsupported(
            path,
            "a number of experts that is not that of its tensors",
        ));
    }
    let factors = file.tensor(rope::FACTORS);
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
    let theta = number("rope.freq_base").unwrap_or(10_000.0);
    let scaling = match factors {
        None => scaling,
        Some(_) if !scaling.is_null() => {
            return Err(unsupported(
                path,
                "rope_freqs.weight beside another rope scaling",
            ));
        }
        Some(factors) => {
            let factors: Vec<f32> = factors.iter().collect();
            let found = rope::scaling(&factors, d_head as usize, theta);
            json!(found.ok_or_else(|| unsupported(path, "rope_freqs.weight of another scheme"))?)
        }
    };
    Ok(json!({
        "model_type": if experts.is_some() { "mixtral" } else { name },
        "num_local_experts": experts,
        "num_experts_per_tok": find("expert_used_count").and_then(Value::as_u64),
        "vocab_size": vocab_size,
        "max_position_embeddings": size("context_length")?,
        "hidden_size": size("embedding_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": find("attention.head_count_kv").and_then(Value::as_u64),
        "head_dim": d_head,
        "intermediate_size": size("feed_forward_length")?,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_bias": name == "llama" && shape("blk.0.attn_q.bias").is_some(),
        "mlp_bias": shape("blk.0.ffn_down.bias").is_some(),
        "tie_word_embeddings": tied,
    }))
}

/// The inverse of [`config_json`].
fn metadata(path: &Path, config: &GptConfig, family: Family) -> Result<Metadata, ModelError> {
    let name = architecture_of(family);
    if config.window.is_some_and(|window| window < config.seq_len) {
        return Err(unsupported(
            path,
            format!(
                "a sliding window shorter than the context, which llama.cpp has not for {name},"
            ),
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
    if let Some(experts) = &config.experts {
        put("expert_count", size(experts.count));
        put("expert_used_count", size(experts.active));
    }
    match config.rope_scaling {
        // Llama 3's factors are a tensor.
        None | Some(RopeScaling::Llama3 { .. }) => {}
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

/// The parts of a stack.
fn unstacked(data: TensorData, count: usize) -> Vec<TensorData> {
    let shape = data.shape().to_vec();
    let numbers: Vec<f32> = data.iter().collect();
    let each = numbers.len() / count.max(1);
    let parts = numbers.chunks_exact(each.max(1));
    parts
        .map(|part| TensorData::new(part.to_vec(), shape[1..].to_vec()))
        .collect()
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
