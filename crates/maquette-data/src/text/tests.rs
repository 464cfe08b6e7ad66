use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::Tokenizer;

fn put(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn bytes() -> Tokenizer {
    Tokenizer::byte(&["<|endoftext|>".into()])
}

fn set(n: u32) -> TokenSet {
    TokenSet {
        tokens: (0..n).collect(),
    }
}

fn all_text(path: PathBuf, piece: usize) -> Result<String> {
    pieces(&[path], piece).map(|p| Ok(p?.text)).collect()
}

#[test]
fn pieces_make_up_the_text_whatever_their_size() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        "Zwölf Boxkämpfer\njagen Viktor\n\nquer über 🦀🦀🦀🦀 den großen Sylter Deich. ".repeat(40);
    let long = "ß".repeat(3000);
    for text in [text, long] {
        let path = put(&dir, "a.txt", &text);
        for piece in [64, 65, 66, 67, 1000, 1 << 20] {
            assert_eq!(all_text(path.clone(), piece).unwrap(), text);
        }
    }
}

#[test]
fn bad_utf8_is_placed_by_byte_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "good line\n".repeat(100).into_bytes();
    text[705] = 0xff;
    for piece in [64, 100, 1 << 20] {
        let message = all_text(put(&dir, "a.txt", &text), piece)
            .unwrap_err()
            .to_string();
        assert!(message.contains("byte 705 (line 71)"), "{message}");
    }
    let cut = all_text(put(&dir, "b.txt", b"caf\xc3"), 64)
        .unwrap_err()
        .to_string();
    assert!(cut.contains("byte 3 (line 1)"), "{cut}");
}

#[test]
fn jsonl_gives_texts_and_places_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let good = put(
        &dir,
        "a.jsonl",
        "{\"text\": \"one\"}\n\n{\"id\": 3, \"text\": \"two\"}\n",
    );
    let tokens = TokenSet::open(&good, &bytes()).unwrap().tokens;
    let expected = [
        b"one".map(u32::from).as_slice(),
        &[256],
        &b"two".map(u32::from),
        &[256],
    ]
    .concat();
    assert_eq!(tokens, expected);
    assert_eq!(read(&good).unwrap(), "one\n\ntwo");
    let wrong = [
        ("{\"text\": \"a\"}\n{oops\n", "line 2: not JSON"),
        ("\n\n[1]\n", "line 3: expected an object"),
        (
            "{\"body\": \"a\", \"id\": 1}\n",
            "line 1: no `text` field; the line has: body, id",
        ),
        (
            "{\"text\": 7}\n",
            "line 1: the `text` field is not a string",
        ),
    ];
    for (text, part) in wrong {
        let message = TokenSet::open(put(&dir, "b.jsonl", text), &bytes())
            .unwrap_err()
            .to_string();
        assert!(message.contains(part), "{message}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_text_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 1..300), piece in 64usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let read = all_text(put(&dir, "a.txt", &bytes), piece);
        match std::str::from_utf8(&bytes) {
            Ok(text) => prop_assert_eq!(read.unwrap(), text),
            Err(e) => {
                let place = format!("at byte {} (line", e.valid_up_to());
                prop_assert!(read.unwrap_err().to_string().contains(&place));
            }
        }
        let _ = all_text(put(&dir, "a.jsonl", &bytes), piece);
    }
}

#[test]
fn missing_and_empty_text_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: PathBuf| TokenSet::open(path, &bytes()).unwrap_err().to_string();
    assert!(open(dir.path().join("nowhere.txt")).contains("no such file"));
    assert!(open(dir.path().to_owned()).contains("no text in this folder"));
    assert!(open(put(&dir, "a.txt", "")).contains("empty"));
}

#[test]
fn a_folder_is_read_in_order_with_document_ends() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir, "b.md", "B");
    put(&dir, "a.txt", "A");
    put(&dir, "c.png", "ignored");
    assert_eq!(
        TokenSet::open(dir.path(), &bytes()).unwrap().tokens,
        [65, 256, 66, 256]
    );
}

#[test]
fn windows_are_crops_with_targets_one_later() {
    let set = set(100);
    let w = set.windows(4, 8, 1, 5).unwrap();
    assert_eq!((w.batch, w.seq_len, w.inputs.len()), (4, 8, 32));
    for (row, target) in w.inputs.chunks(8).zip(w.targets.chunks(8)) {
        assert!(row.windows(2).all(|p| p[1] == p[0] + 1));
        assert!(row.iter().zip(target).all(|(a, b)| *b == a + 1));
    }
    assert_eq!(w, set.windows(4, 8, 1, 5).unwrap());
    assert_ne!(w, set.windows(4, 8, 1, 6).unwrap());
    assert_ne!(w, set.windows(4, 8, 2, 5).unwrap());
}

#[test]
fn random_windows_reach_both_ends() {
    let set = set(12);
    let w = set.windows(2, 10, 0, 0).unwrap();
    assert_eq!(w.targets.len(), 20);
    let firsts: Vec<u32> = (0..50)
        .map(|s| set.windows(1, 10, 0, s).unwrap().inputs[0])
        .collect();
    assert!(firsts.contains(&0) && firsts.contains(&1));
}

#[test]
fn coverage_predicts_every_token_once() {
    for (n, batch, seq_len) in [(100, 3, 7), (50, 4, 7), (10, 9, 9), (10, 1, 1)] {
        let targets: Vec<u32> = set(n)
            .coverage(batch, seq_len)
            .unwrap()
            .flat_map(|w| {
                assert_eq!(w.inputs.len(), w.batch * w.seq_len);
                assert!(w.inputs.iter().zip(&w.targets).all(|(a, b)| *b == a + 1));
                w.targets
            })
            .collect();
        assert_eq!(targets, (1..n).collect::<Vec<u32>>());
    }
}

#[test]
fn contexts_and_batches_that_do_not_fit_are_errors() {
    let message = set(10).windows(1, 10, 0, 0).unwrap_err().to_string();
    assert!(
        message.contains("needs 11 tokens but the data has 10"),
        "{message}"
    );
    assert!(
        set(10)
            .windows(2, 9, 0, 0)
            .unwrap_err()
            .to_string()
            .contains("batch (2)")
    );
    assert!(set(10).windows(0, 5, 0, 0).is_err());
    assert!(set(10).coverage(0, 5).is_err());
    assert!(set(10).coverage(99, 10).is_err());
}

#[test]
fn the_split_keeps_the_end_for_validation() {
    let (train, val) = set(100).split(0.1).unwrap();
    assert_eq!((train.len(), val.tokens[0]), (90, 90));
    assert!(set(3).split(0.0).is_err() && set(3).split(1.0).is_err());
}
