//! BERT's folders: `BertModel`, and `BertFor` masked LM, pretraining, sequence and token
//! classification, and question answering.

use std::{fs, path::Path};

use burn::tensor::Device;
use maquette_nn::MlpKind;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    CONFIG, WEIGHTS,
    config::LARGEST,
    layout::{Entry, assemble, disassemble},
    read_json, read_model, read_weights, write_json,
};
use crate::{
    bert::{Bert, BertConfig, BertHead},
    error::ModelError,
    store::{self, Metadata, Tensors},
};

const SUPPORTED: &str = "model_type bert with absolute positions, gelu or relu, and the architectures \
    BertModel, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, \
    BertForTokenClassification, BertForQuestionAnswering";

#[derive(Deserialize)]
struct BertJson {
    architectures: Option<Vec<String>>,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default)]
    hidden_dropout_prob: f64,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    tie_word_embeddings: Option<bool>,
    id2label: Option<Map<String, Value>>,
    num_labels: Option<usize>,
}

fn gelu() -> String {
    "gelu".into()
}

fn two() -> usize {
    2
}

fn eps() -> f64 {
    1e-12
}

fn read_config(path: &Path) -> Result<BertConfig, ModelError> {
    let unsupported = |what: String| ModelError::Unsupported {
        path: path.to_owned(),
        what,
        supported: SUPPORTED,
    };
    let json: BertJson = read_model(path, "bert", SUPPORTED)?;
    let positions = json.position_embedding_type.unwrap_or("absolute".into());
    if positions != "absolute" {
        return Err(unsupported(format!("position_embedding_type {positions}")));
    }
    if json.is_decoder || json.tie_word_embeddings == Some(false) {
        return Err(unsupported("a decoder, or a head that is not tied,".into()));
    }
    let mlp = match json.hidden_act.as_str() {
        "gelu" => MlpKind::GeluExact,
        "gelu_new" | "gelu_pytorch_tanh" => MlpKind::Gelu,
        "relu" => MlpKind::Relu,
        other => return Err(unsupported(format!("hidden_act {other}"))),
    };
    let listed = json.id2label.as_ref().map(Map::len);
    let labels = listed.or(json.num_labels).unwrap_or(2);
    let architecture = json.architectures.into_iter().flatten().next();
    let head = match architecture.as_deref().unwrap_or("BertModel") {
        "BertModel" => BertHead::Features,
        "BertForMaskedLM" => BertHead::MaskedLm,
        "BertForPreTraining" => BertHead::Pretraining,
        "BertForSequenceClassification" => BertHead::Classify(labels),
        "BertForTokenClassification" => BertHead::Tag(labels),
        "BertForQuestionAnswering" => BertHead::Answer,
        other => return Err(unsupported(format!("the architecture {other}"))),
    };
    let config = BertConfig {
        vocab_size: json.vocab_size,
        seq_len: json.max_position_embeddings,
        n_segments: json.type_vocab_size,
        d_model: json.hidden_size,
        n_layers: json.num_hidden_layers,
        n_heads: json.num_attention_heads,
        d_ff: Some(json.intermediate_size),
        mlp,
        norm_eps: json.layer_norm_eps,
        dropout: json.hidden_dropout_prob,
        pooler: true,
        head,
        ..BertConfig::default()
    };
    config.validate()?;
    let sizes = [
        config.vocab_size,
        config.seq_len,
        config.n_segments,
        config.d_model,
        config.mlp_width(),
        labels,
    ];
    match sizes.iter().find(|size| **size > LARGEST) {
        Some(size) => Err(unsupported(format!("a size of {size}, above {LARGEST},"))),
        None => Ok(config),
    }
}

/// The name without what differs between versions and heads; `None` for what is written twice.
fn plain_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    let twice = [
        "position_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ];
    let name = name
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias");
    (!twice.iter().any(|end| name.ends_with(end))).then_some(name)
}

/// The inverse of [`plain_name`].
fn full_name(name: String, head: BertHead) -> String {
    let encoder = ["embeddings.", "encoder.", "pooler."];
    match encoder.iter().any(|start| name.starts_with(start)) && head != BertHead::Features {
        true => format!("bert.{name}"),
        false => name,
    }
}

/// Plain names, see [`plain_name`].
fn layout(config: &BertConfig) -> Vec<Entry> {
    let (d, d_ff) = (config.d_model, config.mlp_width());
    let table = |ours: &str, rows, theirs: &str| {
        Entry::matrix(
            ours,
            rows,
            [(format!("embeddings.{theirs}").as_str(), d)],
            false,
        )
    };
    let mut entries = vec![
        table("tokens.weight", config.vocab_size, "word_embeddings.weight"),
        table(
            "positions.weight",
            config.seq_len,
            "position_embeddings.weight",
        ),
        table(
            "segments.weight",
            config.n_segments,
            "token_type_embeddings.weight",
        ),
    ];
    entries.extend(Entry::norm("norm", "embeddings.LayerNorm", d));
    for i in 0..config.n_layers {
        let ours = |name: &str| format!("blocks.{i}.{name}");
        let theirs = |name: &str| format!("encoder.layer.{i}.{name}");
        let (query, key, value) = (
            theirs("attention.self.query"),
            theirs("attention.self.key"),
            theirs("attention.self.value"),
        );
        let qkv = [(query.as_str(), d), (key.as_str(), d), (value.as_str(), d)];
        entries.extend(Entry::linear(&ours("attention.qkv"), &qkv, d));
        let mut linear = |a: &str, b: &str, d_in, d_out| {
            entries.extend(Entry::linear(&ours(a), &[(&theirs(b), d_out)], d_in));
        };
        linear("attention.proj", "attention.output.dense", d, d);
        linear("mlp.up", "intermediate.dense", d, d_ff);
        linear("mlp.down", "output.dense", d_ff, d);
        let mut norm = |a: &str, b: &str| entries.extend(Entry::norm(&ours(a), &theirs(b), d));
        norm("attention_norm", "attention.output.LayerNorm");
        norm("mlp_norm", "output.LayerNorm");
    }
    if config.pooler {
        entries.extend(Entry::linear("pooler", &[("pooler.dense", d)], d));
    }
    if matches!(config.head, BertHead::MaskedLm | BertHead::Pretraining) {
        let theirs = "cls.predictions.transform";
        let dense = format!("{theirs}.dense");
        entries.extend(Entry::linear("masked.transform", &[(&dense, d)], d));
        entries.extend(Entry::norm(
            "masked.norm",
            &format!("{theirs}.LayerNorm"),
            d,
        ));
        entries.push(Entry::vector(
            "masked.bias",
            "cls.predictions.bias",
            config.vocab_size,
        ));
    }
    let output = match config.head {
        BertHead::Features | BertHead::MaskedLm => None,
        BertHead::Pretraining => Some(("cls.seq_relationship", 2)),
        BertHead::Classify(labels) | BertHead::Tag(labels) => Some(("classifier", labels)),
        BertHead::Answer => Some(("qa_outputs", 2)),
    };
    if let Some(theirs) = output {
        entries.extend(Entry::linear("output", &[theirs], d));
    }
    entries
}

/// Loads a BERT that `transformers`, `sentence-transformers` or [`save_bert`] saved. Whether it has
/// a pooler is read off its weights.
///
/// # Errors
/// As [`super::load`].
pub fn load_bert(dir: &Path, device: &Device) -> Result<(BertConfig, Bert), ModelError> {
    let mut config = read_config(&dir.join(CONFIG))?;
    let (path, theirs) = read_weights(dir, plain_name)?;
    config.pooler = theirs.contains_key("pooler.dense.weight");
    config.validate()?;
    super::check_depth(config.n_layers, theirs.len(), &path)?;
    let ours = assemble(&layout(&config), theirs, &path)?;
    let model = store::assign(config.init_empty(device), ours, &path)?;
    Ok((config, model))
}

/// Saves `config.json` and `model.safetensors`.
///
/// # Errors
/// [`ModelError::Io`].
pub fn save_bert(dir: &Path, config: &BertConfig, model: &Bert) -> Result<(), ModelError> {
    fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
    let theirs: Tensors = disassemble(&layout(config), &store::tensors(model))
        .into_iter()
        .map(|(name, data)| (full_name(name, config.head), data))
        .collect();
    let metadata = Metadata::from([("format".into(), "pt".into())]);
    store::write(&dir.join(WEIGHTS), &theirs, &metadata)?;
    write_json(&dir.join(CONFIG), &config_json(config))
}

/// Gives the classes or tags of a saved BERT their names, in the order of their numbers.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Json`].
pub fn name_labels(dir: &Path, names: &[String]) -> Result<(), ModelError> {
    let path = dir.join(CONFIG);
    let mut json: Value = read_json(&path)?;
    let by_id = names.iter().enumerate();
    json["id2label"] = by_id
        .map(|(i, name)| (i.to_string(), json!(name)))
        .collect();
    let by_name = names.iter().enumerate();
    json["label2id"] = by_name.map(|(i, name)| (name.clone(), json!(i))).collect();
    write_json(&path, &json)
}

/// The names of a folder's classes or tags, in the order of their numbers; empty if it has none.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Json`].
pub fn labels(dir: &Path) -> Result<Vec<String>, ModelError> {
    let path = dir.join(CONFIG);
    let json: BertJson = read_json(&path)?;
    let names = json.id2label.unwrap_or_default();
    let name = |i: usize| names.get(&i.to_string()).and_then(Value::as_str);
    Ok((0..names.len())
        .map(|i| name(i).unwrap_or_default().to_owned())
        .collect())
}

fn config_json(config: &BertConfig) -> Value {
    let (architecture, labels) = match config.head {
        BertHead::Features => ("BertModel", None),
        BertHead::MaskedLm => ("BertForMaskedLM", None),
        BertHead::Pretraining => ("BertForPreTraining", None),
        BertHead::Classify(labels) => ("BertForSequenceClassification", Some(labels)),
        BertHead::Tag(labels) => ("BertForTokenClassification", Some(labels)),
        BertHead::Answer => ("BertForQuestionAnswering", None),
    };
    let mut json = json!({
        "model_type": "bert",
        "architectures": [architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.mlp_width(),
        "hidden_act": match config.mlp {
            MlpKind::Gelu => "gelu_new",
            MlpKind::Relu => "relu",
            _ => "gelu",
        },
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.seq_len,
        "type_vocab_size": config.n_segments,
        "layer_norm_eps": config.norm_eps,
        "torch_dtype": "float32",
        // `transformers` would otherwise leave out the embedding of token 0.
        "pad_token_id": null,
    });
    if let Some(labels) = labels {
        let names = (0..labels).map(|i| (i.to_string(), Value::from(format!("LABEL_{i}"))));
        let ids = (0..labels).map(|i| (format!("LABEL_{i}"), Value::from(i)));
        json["id2label"] = Value::Object(names.collect());
        json["label2id"] = Value::Object(ids.collect());
    }
    json
}
