use std::path::PathBuf;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::images::hex;
use crate::testing::{shared, texts};
use crate::tokenizer::library::Library;
use crate::tokenizer::{Tokenizer, TokenizerConfig};

/// A vocabulary of 600 learnt from short stories, as the `tokenizer.json` of a family that cuts text
/// in its own way.
fn file(cut: Cut) -> Value {
    static LEARNT: OnceLock<Value> = OnceLock::new();
    let learnt = LEARNT.get_or_init(|| {
        let config = TokenizerConfig {
            vocab_size: 600,
            special_tokens: vec!["<|endoftext|>".into(), "<|end|>".into(), "<|end|>of".into()],
            ..TokenizerConfig::default()
        };
        let text = crate::stories::generate(200, 0) + "\nIT'S 1234 5678 é é ñ n\u{303}\r\n";
        let learnt = config.train(std::iter::once(Ok(text))).unwrap();
        serde_json::from_str(&learnt.to_json().unwrap()).unwrap()
    });
    let mut file = learnt.clone();
    if cut == Cut::Gpt2 {
        return file;
    }
    file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": cut.pattern() }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
    ] });
    match cut {
        Cut::Llama3 => file["model"]["ignore_merges"] = json!(true),
        _ => file["normalizer"] = json!({ "type": "NFC" }),
    }
    file
}

fn library(cut: Cut) -> &'static Library {
    static ALL: OnceLock<Vec<(Cut, Library)>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let read = |cut| {
            let file = file(cut);
            Library::new(file.to_string().parse().unwrap(), &file)
        };
        Cut::ALL.map(|cut| (cut, read(cut))).into()
    });
    &all.iter().find(|(known, _)| *known == cut).unwrap().1
}

fn agrees(text: &str) {
    for cut in Cut::ALL {
        let (fast, slow) = (library(cut), library(cut).slow());
        assert!(fast.is_fast() && !slow.is_fast());
        assert_eq!(
            fast.encode(text).unwrap(),
            slow.encode(text).unwrap(),
            "{cut:?} {text:?}"
        );
        assert_eq!(
            fast.encode_literal(text).unwrap(),
            slow.encode_literal(text).unwrap(),
            "{cut:?} {text:?}"
        );
    }
}

#[test]
fn special_tokens_and_long_words_are_encoded_as_by_the_library() {
    let long = "anticonstitutionnellement".repeat(40);
    for text in [
        "",
        "<|endoftext|>",
        "a story<|end|>of a cat <|end|> <|endoftext|>\n\n<|end",
        "the cat sat on the mat and the cat ran",
        "n\u{303} é e\u{301} \u{1100}\u{1161} Å",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bababababababababa",
        long.as_str(),
    ] {
        agrees(text);
        agrees(text);
    }
}

proptest! {
    #[test]
    fn any_text_is_encoded_as_by_the_library(
        text in "([a-z]{1,12}| |\n|the|cat|<.end.>|<.endoftext.>|[0-9]{1,5}|é|e\u{301}|\\PC|.){0,30}"
    ) {
        agrees(&text);
    }
}

#[test]
fn a_template_adds_what_it_adds() {
    let mut file = file(Cut::Llama3);
    file["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"] } },
    });
    let library = Library::new(file.to_string().parse().unwrap(), &file);
    let ids = library.encode_with_template("a cat").unwrap();
    assert_eq!(ids[0], 0);
    assert_eq!(ids[1..], library.encode("a cat").unwrap());
    assert_eq!(ids, library.slow().encode_with_template("a cat").unwrap());
}

#[test]
fn other_kinds_are_left_to_the_library() {
    type Change = fn(&mut Value);
    let changes: [Change; 8] = [
        |f| f["model"]["dropout"] = json!(0.1),
        |f| f["model"]["end_of_word_suffix"] = json!("</w>"),
        |f| f["model"]["byte_fallback"] = json!(true),
        |f| f["normalizer"] = json!({ "type": "NFKC" }),
        |f| f["pre_tokenizer"]["add_prefix_space"] = json!(true),
        |f| f["pre_tokenizer"] = json!(null),
        |f| f["added_tokens"][0]["lstrip"] = json!(true),
        |f| f["added_tokens"][0]["normalized"] = json!(true),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut file = file(Cut::Gpt2);
        change(&mut file);
        let library = Library::new(file.to_string().parse().unwrap(), &file);
        assert!(!library.is_fast(), "change {i}");
    }
}

fn gpt2() -> Option<Tokenizer> {
    Some(Tokenizer::load(shared("gpt2-bpe")?).unwrap())
}

/// Of every shared file, the hash of its ids; made by `fixtures/tiktoken_ids.py`, which is tiktoken.
#[test]
fn gpt2_ids_of_shared_files_are_those_of_tiktoken() {
    let (Some(gpt2), Some(root)) = (gpt2(), shared("")) else {
        return;
    };
    assert!(gpt2.inspect(None).unwrap().fast);
    let rows = include_str!("../../../fixtures/tiktoken_ids.json");
    let rows: Vec<(PathBuf, usize, String)> = serde_json::from_str(rows).unwrap();
    assert!(rows.len() > 30);
    for (path, count, hash) in rows {
        let Some(text) = texts(&root.join(&path)) else {
            continue;
        };
        let ids = gpt2.encode_literal(&text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(
            (ids.len(), hex(&Sha256::digest(&bytes))),
            (count, hash),
            "{}",
            path.display()
        );
    }
}
