//! `config.json`: what of it is read, and what is written.

use std::{fs, path::Path};

use maquette_nn::{MlpKind, NormKind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    error::ModelError,
    gpt::{GptConfig, Positions},
};

/// What is read, for messages.
const SUPPORTED: &str = "model_type gpt2 (gelu_new) and llama (silu, plain rotary positions)";

/// The largest size believed of a configuration, so that no table is allocated on its word alone.
const LARGEST: usize = 1 << 20;

/// Which of the two layouts a configuration has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Gpt2,
    Llama,
}

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

pub(super) fn read_config(path: &Path) -> Result<(Family, GptConfig), ModelError> {
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
pub(super) fn family(config: &GptConfig, path: &Path) -> Result<Family, ModelError> {
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

pub(super) fn config_json(config: &GptConfig, family: Family) -> Value {
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
