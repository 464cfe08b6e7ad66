//! The tokenizer inside a GGUF file, both ways.
//!
//! llama.cpp stores pieces, not a `tokenizer.json`: tokens in the order of their ids, and merges
//! (byte-level BPE, its `gpt2`) or scores (SentencePiece's BPE, its `llama`). How text is cut before
//! merging it knows by name only. `fixtures/llama_cpp.mjs` shows what llama.cpp writes with a file.

use std::collections::HashMap;

use maquette_data::Tokenizer;
use maquette_models::gguf::{File, Metadata, Value};
use maquette_models::hf::{GenerationConfig, TokenIds};
use serde_json::{Value as Json, json};

use crate::GenerateError;

/// `tokenizer.ggml.token_type` of words, of what no text may spell, of what stands whole in a text,
/// of fillings, and of single bytes.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Names of ways to cut text, and the patterns they stand for; GPT-2's is built into the library.
const CUTS: [(&str, &str); 2] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// The tokenizer of a file; none if it has none.
///
/// # Errors
/// [`GenerateError::Tokenizer`] if it is of a kind that is not read here, or damaged.
pub fn tokenizer(file: &File) -> Result<Option<Tokenizer>, GenerateError> {
    let find = |key: &str| file.metadata().get(&format!("tokenizer.ggml.{key}"));
    let kind = find("model").and_then(Value::as_str).unwrap_or("none");
    if kind == "none" {
        return Ok(None);
    }
    let damaged = |what: &str| failed(format!("tokenizer.ggml.{what} is missing or damaged"));
    let texts = |key: &str| -> Result<Vec<&str>, GenerateError> {
        let values = find(key).and_then(Value::as_array);
        let texts = values.map(|values| values.iter().map(Value::as_str).collect());
        texts.flatten().ok_or_else(|| damaged(key))
    };
    let tokens = texts("tokens")?;
    match kind {
        "llama" => {
            let scores = find("scores").and_then(Value::as_array);
            let scores: Option<Vec<f64>> =
                scores.and_then(|scores| scores.iter().map(Value::as_f64).collect());
            let scores = scores
                .filter(|scores| scores.len() == tokens.len())
                .ok_or_else(|| damaged("scores"))?;
            let pieces: Vec<(String, f32)> = tokens
                .iter()
                .zip(scores)
                .map(|(token, score)| ((*token).to_owned(), score as f32))
                .collect();
            Tokenizer::from_pieces(&pieces).map(Some).map_err(failed)
        }
        "gpt2" => {
            let types: Vec<i32> = match find("token_type").and_then(Value::as_array) {
                None => vec![NORMAL; tokens.len()],
                Some(types) => types
                    .iter()
                    .map(|kind| kind.as_u64().map_or(NORMAL, |kind| kind as i32))
                    .collect(),
            };
            let cut = find("pre").and_then(Value::as_str).unwrap_or("gpt-2");
            byte_level(&tokens, &types, &texts("merges")?, cut).map(Some)
        }
        other => Err(failed(format!(
            "a tokenizer of kind `{other}` is not read; known: gpt2 (byte-level BPE) and llama \
             (SentencePiece BPE)"
        ))),
    }
}

/// The tokens that begin and end a text, as a file names them.
pub fn generation_config(file: &File) -> GenerationConfig {
    let token = |key: &str| {
        let id = file
            .metadata()
            .get(&format!("tokenizer.ggml.{key}_token_id"))?;
        u32::try_from(id.as_u64()?).ok()
    };
    GenerationConfig {
        bos_token_id: token("bos"),
        eos_token_id: token("eos").map(TokenIds::One),
        ..GenerationConfig::default()
    }
}

/// The token that a file wants before every text, if any: by its word, or, where it has none, as
/// SentencePiece's models are used to.
pub fn begins_with(file: &File) -> Option<u32> {
    let find = |key: &str| file.metadata().get(&format!("tokenizer.ggml.{key}"));
    let usual = find("model").and_then(Value::as_str) == Some("llama");
    let wanted = find("add_bos_token")
        .and_then(Value::as_bool)
        .unwrap_or(usual);
    generation_config(file).bos_token_id.filter(|_| wanted)
}

/// The inverse of [`generation_config`]: of several tokens that end a text, the first.
pub fn add_generation_config(metadata: &mut Metadata, config: &GenerationConfig) {
    let eos = config
        .eos_token_id
        .as_ref()
        .and_then(|ids| ids.ids().first().copied());
    for (key, id) in [("bos", config.bos_token_id), ("eos", eos)] {
        if let Some(id) = id {
            metadata.insert(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
        }
    }
}

fn failed(what: impl std::fmt::Display) -> GenerateError {
    GenerateError::Tokenizer(what.to_string())
}

fn byte_level(
    tokens: &[&str],
    types: &[i32],
    merges: &[&str],
    cut: &str,
) -> Result<Tokenizer, GenerateError> {
    let bytes = |cuts: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts });
    let pattern = CUTS.iter().find(|(name, _)| *name == cut);
    let before = match (cut, pattern) {
        ("gpt-2" | "default", _) => bytes(true),
        (_, Some((_, pattern))) => json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            bytes(false),
        ] }),
        _ => {
            let known: Vec<&str> = CUTS.iter().map(|(name, _)| *name).collect();
            return Err(failed(format!(
                "text is cut as `{cut}` before it is merged, which is not known here; known: gpt-2, {}",
                known.join(", ")
            )));
        }
    };
    let vocab: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let whole = tokens.iter().zip(types).enumerate();
    let added: Vec<Json> = whole
        .filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "special": *kind == CONTROL, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": before,
        "post_processor": bytes(true),
        "decoder": bytes(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": cut == "llama-bpe", "vocab": vocab, "merges": merges,
        },
    });
    Tokenizer::from_json(&file.to_string()).map_err(failed)
}

/// What a file says of `tokenizer`; none of a kind that llama.cpp does not know. Ids up to
/// `vocab_size` that it has no token for get one that no text spells.
///
/// # Errors
/// [`GenerateError::Tokenizer`] if its saved form lacks what it should have.
pub fn metadata(
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<Option<Metadata>, GenerateError> {
    let file = tokenizer.to_json().map_err(failed)?;
    let file: Json = serde_json::from_str(&file).map_err(failed)?;
    let model = &file["model"];
    let pieces = model["byte_fallback"] == true;
    let kind = match (model["type"].as_str(), pieces) {
        (Some("BPE"), true) => "llama",
        (Some("BPE"), false) if file["decoder"]["type"] == "ByteLevel" => "gpt2",
        _ => return Ok(None),
    };
    // 1. Tokens in the order of their ids.
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; vocab_size];
    let mut put = |id: Option<u64>, token: &str, kind: i32| {
        if let Some(id) = id
            .and_then(|id| usize::try_from(id).ok())
            .filter(|id| *id < vocab_size)
        {
            token.clone_into(&mut tokens[id]);
            types[id] = kind;
        }
    };
    for (token, id) in model["vocab"].as_object().into_iter().flatten() {
        let byte = pieces && token.len() == 6 && token.starts_with("<0x");
        put(id.as_u64(), token, if byte { BYTE } else { NORMAL });
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let content = added["content"].as_str().unwrap_or_default();
        let kind = match added["special"] == true {
            true if pieces && content == "<unk>" => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        put(added["id"].as_u64(), content, kind);
    }
    // 2. Merges, or scores that order them.
    let merges: Option<Vec<[String; 2]>> = model["merges"]
        .as_array()
        .and_then(|merges| merges.iter().map(merge).collect());
    let merges = merges.ok_or_else(|| failed("the tokenizer's merges are damaged"))?;
    let mut all = Metadata::new();
    let mut add = |key: &str, value: Value| all.insert(format!("tokenizer.ggml.{key}"), value);
    match pieces {
        true => {
            let mut rank = HashMap::new();
            for (at, [left, right]) in merges.iter().enumerate() {
                rank.entry(format!("{left}{right}")).or_insert(at);
            }
            let score = |token: &String| -(*rank.get(token).unwrap_or(&merges.len()) as f32);
            let scores = tokens.iter().map(|token| Value::F32(score(token)));
            add("scores", Value::Array(scores.collect()));
            for (key, token) in [("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>")] {
                if let Some(id) = tokenizer.token_to_id(token) {
                    add(&format!("{key}_token_id"), Value::U32(id));
                }
            }
            add("add_bos_token", Value::Bool(true));
        }
        false => {
            let merges = merges.iter().map(|pair| Value::String(pair.join(" ")));
            add("merges", Value::Array(merges.collect()));
            let cut = cut_of(&file["pre_tokenizer"])
                .ok_or_else(|| failed("text is cut in a way that llama.cpp has no name for"))?;
            add("pre", Value::String(cut.into()));
            // Where a file names no end, llama.cpp takes token 11, whatever that is. The byte zero
            // (byte-level BPE writes it so) stands in no text.
            let end = tokenizer.end_of_text().or(tokenizer.token_to_id("\u{100}"));
            if let Some(id) = end {
                add("bos_token_id", Value::U32(id));
                add("eos_token_id", Value::U32(id));
            }
            add("add_bos_token", Value::Bool(false));
        }
    }
    add("model", Value::String(kind.into()));
    add(
        "tokens",
        Value::Array(tokens.into_iter().map(Value::String).collect()),
    );
    add(
        "token_type",
        Value::Array(types.into_iter().map(Value::I32).collect()),
    );
    Ok(Some(all))
}

/// A merge, `"a b"` or `["a", "b"]`.
fn merge(merge: &Json) -> Option<[String; 2]> {
    let (left, right) = match merge {
        Json::String(pair) => pair.split_once(' ')?,
        Json::Array(pair) => (pair.first()?.as_str()?, pair.get(1)?.as_str()?),
        _ => return None,
    };
    Some([left.to_owned(), right.to_owned()])
}

/// llama.cpp's name of a way to cut text.
fn cut_of(before: &Json) -> Option<&'static str> {
    if before["type"] == "ByteLevel" && before["use_regex"] != false {
        return Some("gpt-2");
    }
    let pattern = before["pretokenizers"][0]["pattern"]["Regex"].as_str()?;
    let known = CUTS.iter().find(|(_, known)| *known == pattern);
    known.map(|(name, _)| *name)
}
