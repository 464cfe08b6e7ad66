//! T5's folders: `T5ForConditionalGeneration`, of the first version and of 1.1.

use std::{fs, path::Path};

use burn::tensor::Device;
use maquette_nn::{InitScheme, MlpKind, NormKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CONFIG, WEIGHTS,
    config::LARGEST,
    layout::{Entry, assemble, disassemble},
    read_model, read_weights, write_json,
};
use crate::{
    encoder_decoder::{EncoderDecoder, EncoderDecoderConfig, Relative},
    error::ModelError,
    store::{self, Metadata},
};

const SUPPORTED: &str = "model_type t5 with feed_forward_proj relu or gated-gelu";
/// The longest text read, since T5 itself knows no end.
const SEQ_LEN: usize = 512;
/// What `config.json` calls our longest text, which T5 itself does not have.
const LENGTH: &str = "n_positions";
/// The embedding, and the names under which it is written again.
const TWICE: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

#[derive(Deserialize)]
struct T5Json {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "max_distance")]
    relative_attention_max_distance: usize,
    #[serde(default)]
    dropout_rate: f64,
    #[serde(default = "eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    n_positions: Option<usize>,
}

fn buckets() -> usize {
    32
}

fn max_distance() -> usize {
    128
}

fn eps() -> f64 {
    1e-6
}

fn relu() -> String {
    "relu".into()
}

fn read_config(path: &Path) -> Result<EncoderDecoderConfig, ModelError> {
    let unsupported = |what: String| ModelError::Unsupported {
        path: path.to_owned(),
        what,
        supported: SUPPORTED,
    };
    let json: T5Json = read_model(path, "t5", SUPPORTED)?;
    let mlp = match json.feed_forward_proj.as_str() {
        "relu" => MlpKind::Relu,
        "gated-gelu" => MlpKind::Geglu,
        other => return Err(unsupported(format!("feed_forward_proj {other}"))),
    };
    let tied = json.tie_word_embeddings != Some(false);
    let config = EncoderDecoderConfig {
        vocab_size: json.vocab_size,
        seq_len: json.n_positions.unwrap_or(SEQ_LEN),
        d_model: json.d_model,
        n_layers: json.num_layers,
        n_decoder_layers: json.num_decoder_layers.filter(|n| *n != json.num_layers),
        n_heads: json.num_heads,
        d_head: Some(json.d_kv).filter(|width| width * json.num_heads != json.d_model),
        d_ff: Some(json.d_ff),
        relative: Some(Relative {
            buckets: json.relative_attention_num_buckets,
            max_distance: json.relative_attention_max_distance,
        }),
        norm_eps: json.layer_norm_epsilon,
        mlp,
        scaled_head: json.scale_decoder_outputs.unwrap_or(tied),
        dropout: json.dropout_rate,
        init: InitScheme::Scaled,
        ..EncoderDecoderConfig::t5()
    };
    config.validate()?;
    let sizes = [
        config.vocab_size,
        config.seq_len,
        config.d_model,
        config.mlp_width(),
        config.head_width(),
        config.n_heads,
        json.relative_attention_num_buckets,
    ];
    match sizes.iter().find(|size| **size > LARGEST) {
        Some(size) => Err(unsupported(format!("a size of {size}, above {LARGEST},"))),
        None => Ok(config),
    }
}

fn layout(config: &EncoderDecoderConfig) -> Vec<Entry> {
    let (d, d_ff) = (config.d_model, config.mlp_width());
    let inner = config.head_width() * config.n_heads;
    let table = [("shared.weight", d)];
    let mut entries = vec![Entry::matrix(
        "tokens.weight",
        config.vocab_size,
        table,
        false,
    )];
    let stacks = [
        ("encoder", config.n_layers, 1),
        ("decoder", config.decoder_layers(), 2),
    ];
    for (stack, n_layers, mlp) in stacks {
        for i in 0..n_layers {
            let block = |name: &str| format!("{stack}.block.{i}.layer.{name}");
            let ours = |name: &str| format!("{stack}.blocks.{i}.{name}.weight");
            let mut matrix = |a: &str, theirs: &[&str], d_in, d_out| {
                let names = theirs
                    .iter()
                    .map(|b| (format!("{}.weight", block(b)), d_out));
                entries.push(Entry::matrices(&ours(a), d_in, names.collect()));
            };
            let own = [
                "0.SelfAttention.q",
                "0.SelfAttention.k",
                "0.SelfAttention.v",
            ];
            matrix("attention.qkv", &own, d, inner);
            matrix("attention.proj", &["0.SelfAttention.o"], inner, d);
            if mlp == 2 {
                matrix("cross.q", &["1.EncDecAttention.q"], d, inner);
                let other = ["1.EncDecAttention.k", "1.EncDecAttention.v"];
                matrix("cross.kv", &other, d, inner);
                matrix("cross.proj", &["1.EncDecAttention.o"], inner, d);
            }
            let dense = |name: &str| format!("{mlp}.DenseReluDense.{name}");
            if config.mlp.is_gated() {
                matrix("mlp.gate", &[&dense("wi_0")], d, d_ff);
                matrix("mlp.up", &[&dense("wi_1")], d, d_ff);
            } else {
                matrix("mlp.up", &[&dense("wi")], d, d_ff);
            }
            matrix("mlp.down", &[&dense("wo")], d_ff, d);
            let mut norm = |a: &str, at: usize| {
                let theirs = block(&format!("{at}.layer_norm.weight"));
                entries.push(Entry::vector(&ours(a), &theirs, d));
            };
            norm("attention_norm", 0);
            if mlp == 2 {
                norm("cross_norm", 1);
            }
            norm("mlp_norm", mlp);
        }
        let norm = format!("{stack}.final_layer_norm.weight");
        entries.push(Entry::vector(&format!("{stack}.norm.weight"), &norm, d));
        if let Some(relative) = config.relative {
            let theirs =
                format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
            let theirs = [(theirs.as_str(), config.n_heads)];
            let ours = format!("{stack}.distances");
            entries.push(Entry::matrix(&ours, relative.buckets, theirs, false));
        }
    }
    if !config.tied_head {
        let theirs = vec![("lm_head.weight".to_owned(), config.vocab_size)];
        entries.push(Entry::matrices("head.weight", d, theirs));
    }
    entries
}

/// Loads a T5 that `transformers` or [`save_t5`] saved. Whether its head is the embedding is read off
/// the weights.
///
/// # Errors
/// As [`super::load`].
pub fn load_t5(
    dir: &Path,
    device: &Device,
) -> Result<(EncoderDecoderConfig, EncoderDecoder), ModelError> {
    let mut config = read_config(&dir.join(CONFIG))?;
    let keep = |name: &str| (!TWICE.contains(&name)).then(|| name.to_owned());
    let (path, theirs) = read_weights(dir, keep)?;
    config.tied_head = !theirs.contains_key("lm_head.weight");
    super::check_depth(config.n_layers, theirs.len(), &path)?;
    super::check_depth(config.decoder_layers(), theirs.len(), &path)?;
    let ours = assemble(&layout(&config), theirs, &path)?;
    let model = store::assign(config.init_empty(device), ours, &path)?;
    Ok((config, model))
}

/// Saves `config.json` and `model.safetensors`.
///
/// # Errors
/// [`ModelError::Unsupported`] if the model is no T5; [`ModelError::Io`].
pub fn save_t5(
    dir: &Path,
    config: &EncoderDecoderConfig,
    model: &EncoderDecoder,
) -> Result<(), ModelError> {
    let path = dir.join(CONFIG);
    let (Some(relative), true) = (config.relative, is_t5(config)) else {
        return Err(ModelError::Unsupported {
            path,
            what: "an encoder-decoder of another layout".into(),
            supported: "T5's: relative, rms norm before each block, relu or geglu, no offsets, \
                        scores that are not scaled",
        });
    };
    fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
    let theirs = disassemble(&layout(config), &store::tensors(model));
    let metadata = Metadata::from([("format".into(), "pt".into())]);
    store::write(&dir.join(WEIGHTS), &theirs, &metadata)?;
    write_json(&path, &config_json(config, relative))
}

fn is_t5(config: &EncoderDecoderConfig) -> bool {
    config.norm == NormKind::RmsNorm
        && config.pre_norm
        && matches!(config.mlp, MlpKind::Relu | MlpKind::Geglu)
        && !config.bias
        && !config.scaled_scores
}

fn config_json(config: &EncoderDecoderConfig, relative: Relative) -> Value {
    json!({
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": true,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_width(),
        "d_ff": config.mlp_width(),
        "num_layers": config.n_layers,
        "num_decoder_layers": config.decoder_layers(),
        "num_heads": config.n_heads,
        "relative_attention_num_buckets": relative.buckets,
        "relative_attention_max_distance": relative.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": match config.mlp {
            MlpKind::Geglu => "gated-gelu",
            _ => "relu",
        },
        // Of the two, `transformers` reads the first as a sign of the second.
        "tie_word_embeddings": config.scaled_head,
        "scale_decoder_outputs": config.scaled_head,
        LENGTH: config.seq_len,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    })
}
