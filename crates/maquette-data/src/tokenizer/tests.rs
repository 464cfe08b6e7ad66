use std::path::PathBuf;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

const TEXT: &str = "The cat sat on the mat. The dog sat on the log.\nA cat and a dog, a log and a mat; \
                    the end of the story of the cat that sat and the dog that ran.\n";

fn trained(kind: TokenizerKind, vocab_size: usize) -> Tokenizer {
    let config = TokenizerConfig {
        kind,
        vocab_size,
        special_tokens: vec!["<|endoftext|>".into()],
        min_frequency: 2,
    };
    config
        .train(std::iter::repeat_n(TEXT, 20).map(|t| Ok(t.to_owned())))
        .unwrap()
}

fn all() -> Vec<Tokenizer> {
    use TokenizerKind::{Bpe, Byte, Char, Unigram, WordPiece};
    [
        (Byte, 0),
        (Char, 0),
        (Bpe, 300),
        (WordPiece, 80),
        (Unigram, 60),
    ]
    .map(|(kind, size)| trained(kind, size))
    .into()
}

/// The saved form as the ecosystem's own library reads it.
fn as_library(t: &Tokenizer) -> HfTokenizer {
    t.to_json().unwrap().parse().unwrap()
}

#[test]
fn every_kind_saves_and_loads_to_the_same_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    for t in all() {
        let file = dir.path().join("one.json");
        t.save(&file).unwrap();
        t.save(dir.path()).unwrap();
        for path in [file.as_path(), dir.path()] {
            let back = Tokenizer::load(path).unwrap();
            assert_eq!(back.kind(), t.kind());
            assert_eq!(back.vocab_size(), t.vocab_size());
            assert_eq!(back.encode(TEXT).unwrap(), t.encode(TEXT).unwrap());
            assert_eq!(back.special_tokens(), t.special_tokens());
            assert_eq!(back.hash().unwrap(), t.hash().unwrap());
        }
        assert!(dir.path().join("tokenizer_config.json").is_file());
    }
}

#[test]
fn the_library_reads_every_kind_alike() {
    let text = format!("{TEXT}<|endoftext|>{TEXT}");
    for t in all() {
        let library = as_library(&t);
        let theirs = library.encode(text.as_str(), false).unwrap();
        assert_eq!(t.encode(&text).unwrap(), theirs.get_ids(), "{:?}", t.kind());
        let ids = theirs.get_ids();
        assert_eq!(t.decode(ids).unwrap(), library.decode(ids, false).unwrap());
        assert_eq!(
            t.decode_visible(ids).unwrap(),
            library.decode(ids, true).unwrap()
        );
        for piece in t.pieces(&text).unwrap() {
            assert_eq!(library.token_to_id(&piece.token), Some(piece.id));
            assert_eq!(t.token_to_id(&piece.token), Some(piece.id));
        }
        assert_eq!(t.vocab_size(), library.get_vocab_size(true));
    }
}

#[test]
fn training_twice_gives_the_same_tokenizer() {
    // Unigram comes last: in so small a text it has ties, which the library breaks at random.
    for (a, b) in all().into_iter().zip(all()).take(4) {
        assert_eq!(a.to_json().unwrap(), b.to_json().unwrap(), "{:?}", a.kind());
    }
}

#[test]
fn training_keeps_to_the_asked_size() {
    for t in all().into_iter().skip(2) {
        let limit = [300, 80, 60][t.kind() as usize - 2];
        assert!(
            t.vocab_size() <= limit,
            "{:?}: {}",
            t.kind(),
            t.vocab_size()
        );
    }
    assert!(
        trained(TokenizerKind::Bpe, 300)
            .encode("the cat")
            .unwrap()
            .len()
            <= 4
    );
}

/// Small learned tokenizers, learned once.
fn learned(kind: TokenizerKind) -> &'static Tokenizer {
    static LEARNED: OnceLock<[Tokenizer; 3]> = OnceLock::new();
    use TokenizerKind::{Bpe, Char, WordPiece};
    let all = LEARNED
        .get_or_init(|| [(Char, 0), (Bpe, 280), (WordPiece, 80)].map(|(k, n)| trained(k, n)));
    all.iter().find(|t| t.kind() == kind).unwrap()
}

proptest! {
    #[test]
    fn bytes_and_bpe_give_back_any_text(text in "\\PC*|[a-z \\n]{0,40}|.*") {
        for t in [&Tokenizer::byte(&[]), learned(TokenizerKind::Bpe)] {
            let ids = t.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|id| (*id as usize) < t.vocab_size()));
            prop_assert_eq!(t.decode(&ids).unwrap(), text.clone());
        }
    }

    #[test]
    fn characters_give_back_text_over_their_alphabet(text in "[Tcatsonhemdgl .\\n]*") {
        let t = learned(TokenizerKind::Char);
        let ids = t.encode(&text).unwrap();
        prop_assert_eq!(ids.len(), text.chars().count());
        prop_assert_eq!(t.decode(&ids).unwrap(), text);
    }

    #[test]
    fn damaged_files_are_errors_not_panics(at in 0usize..4000, byte: u8) {
        let mut json = learned(TokenizerKind::WordPiece).to_json().unwrap().into_bytes();
        let at = at % json.len();
        json[at] = byte;
        if let Ok(t) = String::from_utf8(json).map_err(error).and_then(|j| Tokenizer::from_json(&j)) {
            let _ = t.encode(TEXT);
        }
    }
}

#[test]
fn special_tokens_are_one_token_and_follow_the_units() {
    let t = Tokenizer::byte(&[
        "<|endoftext|>".into(),
        "<|end".into(),
        "<|endoftext|>".into(),
    ]);
    assert_eq!(
        t.encode("a<|endoftext|>b<|end").unwrap(),
        [97, 256, 98, 257]
    );
    assert_eq!(t.end_of_text(), Some(256));
    assert_eq!(t.decode(&[97, 256]).unwrap(), "a<|endoftext|>");
    assert_eq!(t.decode_visible(&[97, 256]).unwrap(), "a");
    assert_eq!(t.pieces("é<|end").unwrap()[2].bytes, 2..7);
}

#[test]
fn errors_say_what_to_do() {
    let t = trained(TokenizerKind::Char, 0);
    let message = t.encode("a cat €").unwrap_err().to_string();
    assert!(
        message.contains("'€' at byte 6") && message.contains("byte or bpe"),
        "{message}"
    );
    assert!(
        t.decode(&[9999])
            .unwrap_err()
            .to_string()
            .contains("9999 is outside the vocabulary")
    );
    let train = |kind, vocab_size, texts: Vec<Result<String>>| {
        TokenizerConfig {
            kind,
            vocab_size,
            ..Default::default()
        }
        .train(texts.into_iter())
        .unwrap_err()
        .to_string()
    };
    assert!(train(TokenizerKind::Bpe, 100, vec![]).contains("at least 256"));
    assert!(train(TokenizerKind::Bpe, 300, vec![]).contains("no text"));
    assert!(train(TokenizerKind::Char, 0, vec![]).contains("no text"));
    assert!(train(TokenizerKind::Unigram, 5, vec![Ok(TEXT.into())]).contains("vocab_size"));
    let bad = DataError::Config("bad page".into());
    assert!(train(TokenizerKind::Bpe, 300, vec![Ok(TEXT.into()), Err(bad)]).contains("bad page"));
}

#[test]
fn files_that_are_no_tokenizer_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let load = |p: &Path| Tokenizer::load(p).unwrap_err().to_string();
    assert!(load(&dir.path().join("nowhere")).contains("no such file"));
    assert!(load(dir.path()).contains("expected tokenizer.json"));
    let file = dir.path().join("tokenizer.json");
    for (text, part) in [
        ("", "empty"),
        ("{}", "not a tokenizer.json"),
        ("[[[", "not a tokenizer.json"),
    ] {
        fs::write(&file, text).unwrap();
        assert!(load(dir.path()).contains(part));
    }
    let huge = Tokenizer::byte(&["<x>".into()])
        .to_json()
        .unwrap()
        .replace("\": 33,", "\": 4000000000,");
    fs::write(&file, huge).unwrap();
    assert!(Tokenizer::load(&file).is_err());
}

#[test]
fn a_stored_truncation_is_not_applied() {
    let mut library = as_library(&trained(TokenizerKind::Bpe, 300));
    let short = tokenizers::TruncationParams {
        max_length: 3,
        ..Default::default()
    };
    library.with_truncation(Some(short)).unwrap();
    let t = Tokenizer::from_json(&library.to_string(false).unwrap()).unwrap();
    assert!(t.encode(TEXT).unwrap().len() > 3);
}

#[test]
fn training_reads_files() {
    let dir = tempfile::tempdir().unwrap();
    let (text, jsonl) = (dir.path().join("a.txt"), dir.path().join("b.jsonl"));
    fs::write(&text, "abc").unwrap();
    fs::write(&jsonl, "{\"text\": \"cde\"}\n").unwrap();
    let config = TokenizerConfig {
        kind: TokenizerKind::Char,
        ..Default::default()
    };
    assert_eq!(config.train_files(&[text, jsonl]).unwrap().vocab_size(), 5);
    assert!(config.train_files(&[PathBuf::from("nowhere")]).is_err());
}

/// Numbers made by `fixtures/gpt2_encodings.py`.
#[test]
fn gpt2_encodes_as_its_definition() {
    let Some(path) = crate::testing::shared("gpt2-bpe") else {
        return;
    };
    let gpt2 = Tokenizer::load(path).unwrap();
    assert_eq!(
        (gpt2.vocab_size(), gpt2.end_of_text()),
        (50_257, Some(50_256))
    );
    #[derive(Deserialize)]
    struct Row {
        text: String,
        ids: Vec<u32>,
    }
    let rows: Vec<Row> =
        serde_json::from_str(include_str!("../../fixtures/gpt2_encodings.json")).unwrap();
    for row in rows {
        assert_eq!(gpt2.encode(&row.text).unwrap(), row.ids, "{:?}", row.text);
        assert_eq!(gpt2.decode(&row.ids).unwrap(), row.text);
    }
}
