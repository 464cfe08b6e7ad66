//! `config.json`: what of it is read, and what is written.

use std::{fs, path::Path};

use maquette_nn::{MlpKind, NormKind, RopeScaling};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    error::ModelError,
    gpt::{Experts, GptConfig, Positions},
};

/// What is read, for messages.
const SUPPORTED: &str = "model_type gpt2, llama, mistral, mixtral, qwen2 and qwen3";

/// The largest size believed of a configuration, so that no table is allocated on its word alone.
pub(super) const LARGEST: usize = 1 << 20;

/// Whose code in `transformers` computes a model. All but the first share one layout of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Gpt2,
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
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

/// Llama's keys and those that its relatives add.
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
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(alias = "num_experts")]
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    router_aux_loss_coef: Option<f64>,
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
    parse_config(
        path,
        serde_json::from_slice(&bytes).map_err(ModelError::json(path))?,
    )
}

/// What a `config.json` says; `path` is for errors.
pub(crate) fn parse_config(path: &Path, value: Value) -> Result<(Family, GptConfig), ModelError> {
    let (family, config) = match value.get("model_type").and_then(Value::as_str) {
        Some("gpt2") => (Family::Gpt2, gpt2(path, value)?),
        Some("llama") => (Family::Llama, llama(path, value, Family::Llama)?),
        Some("mistral") => (Family::Mistral, llama(path, value, Family::Mistral)?),
        Some("mixtral") => (Family::Mixtral, llama(path, value, Family::Mixtral)?),
        Some("qwen2") => (Family::Qwen2, llama(path, value, Family::Qwen2)?),
        Some("qwen3") => (Family::Qwen3, llama(path, value, Family::Qwen3)?),
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
        config.head_width(),
        config.n_heads,
        config.experts.map_or(0, |experts| experts.count),
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
    let mlp = match json.activation_function.as_str() {
        "gelu_new" | "gelu_pytorch_tanh" => MlpKind::Gelu,
        "gelu" => MlpKind::GeluExact,
        "relu" => MlpKind::Relu,
        other => return Err(unsupported(path, format!("activation_function {other}"))),
    };
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
        mlp,
        norm_eps: json.layer_norm_epsilon,
        tied_head: json.tie_word_embeddings,
        dropout: json.resid_pdrop,
        ..GptConfig::default()
    })
}

fn llama(path: &Path, value: Value, family: Family) -> Result<GptConfig, ModelError> {
    let json: LlamaJson = serde_json::from_value(value).map_err(ModelError::json(path))?;
    if json.hidden_act != "silu" {
        return Err(unsupported(path, format!("hidden_act {}", json.hidden_act)));
    }
    let (window, window_from) = window(path, &json, family)?;
    // What `bias` says already is not said again.
    let unless = |bias: bool| Some(bias).filter(|bias| *bias != json.mlp_bias);
    let mut rope_theta = json.rope_theta;
    let mut rope_scaling = None;
    for rope in [json.rope_scaling, json.rope_parameters] {
        let (theta, scaling) = rope_parameters(path, rope)?;
        rope_theta = theta.or(rope_theta);
        rope_scaling = scaling.or(rope_scaling);
    }
    Ok(GptConfig {
        vocab_size: json.vocab_size,
        seq_len: json.max_position_embeddings,
        d_model: json.hidden_size,
        n_layers: json.num_hidden_layers,
        n_heads: json.num_attention_heads,
        n_kv_heads: json.num_key_value_heads,
        d_head: json
            .head_dim
            .filter(|width| width * json.num_attention_heads != json.hidden_size),
        d_ff: Some(json.intermediate_size),
        norm_eps: json.rms_norm_eps,
        bias: json.mlp_bias,
        qkv_bias: unless(json.attention_bias || family == Family::Qwen2),
        proj_bias: unless(json.attention_bias),
        qk_norm: family == Family::Qwen3,
        experts: (family == Family::Mixtral).then(|| {
            let default = Experts::default();
            Experts {
                count: json.num_local_experts.unwrap_or(default.count),
                active: json.num_experts_per_tok.unwrap_or(default.active),
                balance: json.router_aux_loss_coef.unwrap_or(default.balance),
                z: 0.0,
            }
        }),
        window,
        window_from,
        tied_head: json.tie_word_embeddings,
        rope_theta: rope_theta.unwrap_or(10_000.0),
        rope_scaling,
        ..GptConfig::llama()
    })
}

/// The sliding window, and the first layer that has it.
fn window(
    path: &Path,
    json: &LlamaJson,
    family: Family,
) -> Result<(Option<usize>, usize), ModelError> {
    let slides = match family {
        Family::Mistral | Family::Mixtral => true,
        Family::Qwen2 | Family::Qwen3 => json.use_sliding_window,
        Family::Gpt2 | Family::Llama => false,
    };
    let Some(window) = json.sliding_window.filter(|_| slides) else {
        return Ok((None, 0));
    };
    if matches!(family, Family::Mistral | Family::Mixtral) {
        return Ok((Some(window), 0));
    }
    let from = json.max_window_layers.unwrap_or(0);
    let full = |layer: usize| layer < from;
    let listed = json.layer_types.iter().flatten().enumerate();
    for (layer, kind) in listed {
        let expected = match full(layer) {
            true => "full_attention",
            false => "sliding_attention",
        };
        if kind != expected {
            let what = format!("layer_types[{layer}] = {kind} with max_window_layers = {from}");
            return Err(unsupported(path, what));
        }
    }
    Ok((Some(window), from))
}

/// The base and the scheme in `rope_parameters`, or in `rope_scaling` as older folders have it.
fn rope_parameters(
    path: &Path,
    rope: Option<Value>,
) -> Result<(Option<f64>, Option<RopeScaling>), ModelError> {
    let Some(Value::Object(mut rope)) = rope else {
        return Ok((None, None));
    };
    if let Some(kind) = rope.remove("type") {
        rope.entry("rope_type").or_insert(kind);
    }
    let number = |value: Value| value.as_f64();
    let theta = rope.remove("rope_theta").and_then(number);
    let partial = rope.remove("partial_rotary_factor").and_then(number);
    if partial.is_some_and(|share| share != 1.0) {
        return Err(unsupported(path, "partial_rotary_factor"));
    }
    let scales = ["mscale", "mscale_all_dim"].map(|key| rope.remove(key).and_then(number));
    let kind = rope.get("rope_type").and_then(Value::as_str);
    let kind = kind.unwrap_or("default").to_owned();
    let scaling = match kind.as_str() {
        "default" => return Ok((theta, None)),
        "linear" | "dynamic" => {
            rope.remove("original_max_position_embeddings");
            rope
        }
        "llama3" => rope,
        "yarn" => {
            rope.retain(|_, value| !value.is_null());
            if let ([Some(above), Some(below)], Some(factor)) =
                (scales, rope.get("factor").and_then(Value::as_f64))
            {
                // The temperature that DeepSeek writes as a quotient.
                let scale = |times: f64| 0.1 * times * factor.max(1.0).ln() + 1.0;
                let quotient = scale(above) / scale(below);
                rope.entry("attention_factor").or_insert(quotient.into());
            }
            rope
        }
        other => return Err(unsupported(path, format!("rope_type {other}"))),
    };
    let scaling = serde_json::from_value(Value::Object(scaling)).map_err(ModelError::json(path))?;
    Ok((theta, Some(scaling)))
}

/// The family whose code in `transformers` computes this model.
pub(crate) fn family(config: &GptConfig, path: &Path) -> Result<Family, ModelError> {
    let ours = (config.positions, config.norm, config.mlp);
    let biases = (config.qkv_bias(), config.proj_bias(), config.mlp_bias());
    match ours {
        (
            Positions::Learned,
            NormKind::LayerNorm,
            MlpKind::Gelu | MlpKind::GeluExact | MlpKind::Relu,
        ) if config.kv_heads() == config.n_heads
            && config.head_width() * config.n_heads == config.d_model
            && config.window.is_none()
            && !config.qk_norm
            && config.experts.is_none() =>
        {
            return Ok(Family::Gpt2);
        }
        (Positions::Rotary, NormKind::RmsNorm, MlpKind::Swiglu) => {
            match (config.qk_norm, config.window, biases) {
                (false, _, (false, false, false))
                    if config.experts.is_some() && config.window_from == 0 =>
                {
                    return Ok(Family::Mixtral);
                }
                _ if config.experts.is_some() => {}
                (true, _, (qkv, proj, false)) if qkv == proj => return Ok(Family::Qwen3),
                (false, None, (qkv, proj, _)) if qkv == proj => return Ok(Family::Llama),
                (false, _, (true, false, false)) => return Ok(Family::Qwen2),
                (false, Some(_), (false, false, false)) if config.window_from == 0 => {
                    return Ok(Family::Mistral);
                }
                _ => {}
            }
        }
        _ => {}
    }
    let window = config
        .window
        .map_or(String::new(), |n| format!(", a window of {n}"));
    let norm = if config.qk_norm { ", qk_norm" } else { "" };
    let experts = if config.experts.is_some() {
        ", experts"
    } else {
        ""
    };
    Err(ModelError::Unsupported {
        path: path.to_owned(),
        what: format!(
            "a mix of {ours:?} with {} key heads, offsets {biases:?}{window}{norm}{experts}",
            config.kv_heads()
        ),
        supported: "learned positions, layer norm and gelu with as many key heads as heads \
                    (GPT-2); rotary positions, rms norm and swiglu (Llama), with a window \
                    (Mistral), experts (Mixtral), qkv_bias (Qwen2) or qk_norm (Qwen3)",
    })
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
            "activation_function": match config.mlp {
                MlpKind::GeluExact => "gelu",
                MlpKind::Relu => "relu",
                _ => "gelu_new",
            },
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }),
        Family::Llama | Family::Mistral | Family::Mixtral | Family::Qwen2 | Family::Qwen3 => {
            llama_json(config, family)
        }
    };
    json["vocab_size"] = config.vocab_size.into();
    json["tie_word_embeddings"] = config.tied_head.into();
    json["torch_dtype"] = "float32".into();
    // `transformers` would otherwise assume the ids of its own tokenizers.
    json["bos_token_id"] = Value::Null;
    json["eos_token_id"] = Value::Null;
    json
}

fn llama_json(config: &GptConfig, family: Family) -> Value {
    let mut rope = match &config.rope_scaling {
        Some(scaling) => json!(scaling),
        None => json!({ "rope_type": "default" }),
    };
    rope["rope_theta"] = config.rope_theta.into();
    let mut json = json!({
        "max_position_embeddings": config.seq_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads(),
        "head_dim": config.head_width(),
        "intermediate_size": config.mlp_width(),
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        // Once for versions of `transformers` before 5, once for those from then on.
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "rope_parameters": rope,
        "attention_dropout": config.dropout,
    });
    let mut put = |key: &str, value: Value| json[key] = value;
    let (model_type, architecture) = match family {
        Family::Mistral => ("mistral", "MistralForCausalLM"),
        Family::Mixtral => ("mixtral", "MixtralForCausalLM"),
        Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        Family::Llama | Family::Gpt2 => ("llama", "LlamaForCausalLM"),
    };
    put("model_type", model_type.into());
    put("architectures", json!([architecture]));
    if matches!(family, Family::Llama | Family::Qwen3) {
        put("attention_bias", config.qkv_bias().into());
    }
    if family == Family::Llama {
        put("mlp_bias", config.mlp_bias().into());
    } else {
        put("sliding_window", json!(config.window));
    }
    if let Some(experts) = &config.experts {
        put("num_local_experts", experts.count.into());
        put("num_experts_per_tok", experts.active.into());
        put("router_aux_loss_coef", experts.balance.into());
    }
    if matches!(family, Family::Qwen2 | Family::Qwen3) {
        put("use_sliding_window", config.window.is_some().into());
        let from = config
            .window
            .map_or(config.n_layers, |_| config.window_from);
        put("max_window_layers", from.into());
    }
    json
}
