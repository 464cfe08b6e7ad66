use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::images::{Sizes, Split, open};
use crate::{Tokenizer, glyphs, stories};

fn put(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn bytes() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::byte(&["<|endoftext|>".into()]))
}

fn config() -> TextStreamConfig {
    TextStreamConfig {
        batch: 3,
        seq_len: 40,
        chunk_bytes: 1024,
        buffer: 8,
        seed: 7,
        holdout: 0.0,
    }
}

proptest! {
    #[test]
    fn each_epoch_draws_every_record_once(records in 1u64..300, capacity in 1usize..50, seed: u64) {
        let mut buffer = ShuffleBuffer::new(records, capacity, seed).unwrap();
        for epoch in 0..3 {
            let drawn: Vec<(u64, u64)> = (0..records).map(|_| buffer.draw()).collect();
            prop_assert!(drawn.iter().all(|d| d.0 == epoch));
            prop_assert_eq!(drawn.iter().map(|d| d.1).collect::<HashSet<u64>>().len() as u64, records);
        }
    }
}

#[test]
fn a_text_stream_resumes_exactly_at_any_step() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir, "a.txt", stories::generate(20, 0));
    let lines: String = (0..30)
        .map(|i| serde_json::json!({"text": stories::story(1, i)}).to_string() + "\n")
        .collect();
    put(&dir, "b.jsonl", lines);
    let mut whole = TextStream::open(dir.path(), bytes(), config()).unwrap();
    let mut states = vec![whole.state()];
    let batches: Vec<_> = (0..400)
        .map(|_| {
            let batch = whole.next_batch().unwrap();
            states.push(whole.state());
            batch
        })
        .collect();
    assert!(whole.epoch() >= 1, "the test must cross an epoch");
    for at in [0, 1, 17, 100, 250, 399] {
        let saved = serde_json::to_string(&states[at]).unwrap();
        let state = serde_json::from_str(&saved).unwrap();
        let mut resumed = TextStream::resume(dir.path(), bytes(), state).unwrap();
        for batch in &batches[at..(at + 60).min(400)] {
            assert_eq!(&resumed.next_batch().unwrap(), batch);
        }
    }
}

#[test]
fn text_windows_are_stretches_of_the_text_and_cover_it() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..9000).map(|i| format!("{i} é ")).collect();
    let path = put(&dir, "a.txt", &text);
    let mut stream = TextStream::open(&path, bytes(), config()).unwrap();
    let mut seen = vec![false; text.len()];
    while stream.epoch() < 3 {
        let w = stream.next_batch().unwrap();
        for (row, target) in w.inputs.chunks(40).zip(w.targets.chunks(40)) {
            let row: Vec<u8> = row
                .iter()
                .chain(&target[39..])
                .map(|id| *id as u8)
                .collect();
            if row.contains(&0) {
                continue; // the end-of-text token, 256, does not fit a byte
            }
            let at = text.as_bytes().windows(41).position(|w| w == row).unwrap();
            seen[at..at + 41].fill(true);
        }
    }
    let covered = seen.iter().filter(|s| **s).count() as f64 / seen.len() as f64;
    assert!(covered > 0.95, "{covered}");
}

#[test]
fn chunks_meet_without_gap_or_overlap() {
    let dir = tempfile::tempdir().unwrap();
    // No spaces and three-byte characters: boundaries fall inside characters.
    let dense = "日本語".repeat(2000);
    let mixed = stories::generate(40, 9) + &"é".repeat(5000) + "\n" + &stories::generate(5, 1);
    for text in [dense, mixed] {
        let path = put(&dir, "a.txt", &text);
        let tokenizer = Arc::new(Tokenizer::byte(&[]));
        let config = TextStreamConfig {
            holdout: 0.999,
            chunk_bytes: 1024,
            ..config()
        };
        let all = TextStreamConfig {
            holdout: 0.0,
            ..config.clone()
        };
        assert!(TextStream::open(&path, tokenizer.clone(), config).is_err());
        let half = TextStreamConfig {
            holdout: 0.5,
            ..all
        };
        let mut stream = TextStream::open(&path, tokenizer, half).unwrap();
        let tail: Vec<u8> = stream
            .holdout(usize::MAX)
            .unwrap()
            .tokens
            .iter()
            .map(|t| *t as u8)
            .collect();
        assert!(text.as_bytes().ends_with(&tail));
        assert!((0.45..0.55).contains(&(tail.len() as f64 / text.len() as f64)));
    }
}

#[test]
fn prefetching_a_stream_keeps_position_and_batch_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(&dir, "a.txt", stories::generate(60, 0));
    let mut stream = TextStream::open(&path, bytes(), config()).unwrap();
    let mut ahead = crate::prefetch(0, 3, move |_| {
        let batch = stream.next_batch().unwrap();
        (batch, stream.state())
    });
    let (_, state) = ahead.nth(4).unwrap();
    let (next, _) = ahead.next().unwrap();
    drop(ahead);
    let mut resumed = TextStream::resume(&path, bytes(), state).unwrap();
    assert_eq!(resumed.next_batch().unwrap(), next);
}

#[test]
fn text_streams_explain_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &PathBuf, config| TextStream::open(path, bytes(), config);
    let message = |path: &PathBuf, config| open(path, config).unwrap_err().to_string();
    assert!(message(&dir.path().join("nowhere"), config()).contains("no such file"));
    assert!(message(&put(&dir, "e.txt", ""), config()).contains("empty"));
    let path = put(&dir, "a.txt", stories::generate(20, 0));
    assert!(
        message(
            &path,
            TextStreamConfig {
                batch: 0,
                ..config()
            }
        )
        .contains("batch")
    );
    assert!(
        message(
            &path,
            TextStreamConfig {
                chunk_bytes: 3,
                ..config()
            }
        )
        .contains("chunk_bytes")
    );
    let long = TextStreamConfig {
        seq_len: 100_000,
        ..config()
    };
    let error = open(&path, long)
        .unwrap()
        .next_batch()
        .unwrap_err()
        .to_string();
    assert!(error.contains("seq_len = 100000"), "{error}");
    let mut bad = stories::generate(20, 0).into_bytes();
    bad[5000] = 0xff;
    let line = bad[..5000].iter().filter(|b| **b == b'\n').count() + 1;
    let mut stream = open(&put(&dir, "bad.txt", bad), config()).unwrap();
    let error = (0..1000)
        .find_map(|_| stream.next_batch().err())
        .unwrap()
        .to_string();
    assert!(
        error.contains(&format!("byte 5000 (line {line})")),
        "{error}"
    );
}

#[test]
fn a_changed_text_or_tokenizer_does_not_resume() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(&dir, "a.txt", stories::generate(20, 0));
    let mut stream = TextStream::open(&path, bytes(), config()).unwrap();
    stream.next_batch().unwrap();
    let state = stream.state();
    let other = Arc::new(Tokenizer::byte(&[]));
    let error = TextStream::resume(&path, other, state.clone())
        .unwrap_err()
        .to_string();
    assert!(error.contains("the tokenizer has changed"));
    put(&dir, "a.txt", stories::generate(20, 1));
    let error = TextStream::resume(&path, bytes(), state.clone())
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot resume"), "{error}");
    let mut forged = serde_json::to_value(&state).unwrap();
    forged["shuffle"]["pending"] = serde_json::json!([1u64 << 60]);
    put(&dir, "a.txt", stories::generate(20, 0));
    let forged = serde_json::from_value(forged).unwrap();
    assert!(TextStream::resume(&path, bytes(), forged).is_err());
}

/// Forty pictures in two class folders, as a folder, a tar and an idx file.
fn image_sources(dir: &TempDir) -> Vec<PathBuf> {
    let glyphs = glyphs::glyphs(
        Split::Train,
        0,
        &glyphs::GlyphConfig {
            alphabet: Some("AB".into()),
            per_class: 20,
            ..Default::default()
        },
    )
    .unwrap();
    let folder = dir.path().join("pictures");
    let mut tar = tar::Builder::new(fs::File::create(dir.path().join("pictures.tar")).unwrap());
    let mut idx = 0x0803u32.to_be_bytes().to_vec();
    for n in [40u32, 28, 28] {
        idx.extend(n.to_be_bytes());
    }
    let mut labels = vec![0, 0, 8, 1, 0, 0, 0, 40];
    for i in 0..40 {
        let class = usize::from(glyphs.labels.as_ref().unwrap()[i]);
        let picture = ::image::GrayImage::from_raw(28, 28, glyphs.image(i).to_vec()).unwrap();
        let path = folder
            .join(&glyphs.class_names[class])
            .join(format!("{i}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture.save(&path).unwrap();
        let inner = PathBuf::from("pictures").join(path.strip_prefix(&folder).unwrap());
        tar.append_path_with_name(&path, inner).unwrap();
        idx.extend(glyphs.image(i));
        labels.push(class as u8);
    }
    tar.finish().unwrap();
    put(dir, "train-images-idx3-ubyte", idx);
    put(dir, "train-labels-idx1-ubyte", labels);
    vec![
        folder,
        dir.path().join("pictures.tar"),
        dir.path().join("train-images-idx3-ubyte"),
    ]
}

#[test]
fn image_streams_resume_exactly_and_agree_with_the_set_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for path in image_sources(&dir) {
        let config = ImageStreamConfig {
            batch: 8,
            seed: 1,
            buffer: 10,
            channels: 1,
            sizes: Sizes::Agree,
        };
        let mut stream = ImageStream::open(&path, config).unwrap();
        assert_eq!(stream.len(), 40);
        let first: Vec<_> = (0..5).map(|_| stream.next_batch().unwrap()).collect();
        let set = open(&path, Split::Train).unwrap();
        let pair =
            |s: &crate::ImageSet, i: usize| (s.image(i).to_vec(), s.labels.as_ref().unwrap()[i]);
        let mut streamed: Vec<_> = first
            .iter()
            .flat_map(|b| (0..8).map(|i| pair(b, i)))
            .collect();
        let mut held: Vec<_> = (0..40).map(|i| pair(&set, i)).collect();
        streamed.sort();
        held.sort();
        assert_eq!(streamed, held, "one epoch is the whole set");
        let state = serde_json::from_str(&serde_json::to_string(&stream.state()).unwrap()).unwrap();
        let mut resumed = ImageStream::resume(&path, state).unwrap();
        for _ in 0..12 {
            assert_eq!(resumed.next_batch().unwrap(), stream.next_batch().unwrap());
        }
    }
}

#[test]
fn image_streams_explain_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &PathBuf, batch| {
        let config = ImageStreamConfig {
            batch,
            ..Default::default()
        };
        ImageStream::open(path, config)
            .and_then(|mut s| s.next_batch())
            .unwrap_err()
            .to_string()
    };
    let sources = image_sources(&dir);
    assert!(message(&sources[0], 41).contains("batch (41)"));
    assert!(message(&put(&dir, "a.gz", [0x1f, 0x8b, 8]), 1).contains("unpack it"));
    assert!(message(&put(&dir, "empty", []), 1).contains("empty"));
    let idx = fs::read(&sources[2]).unwrap();
    assert!(message(&put(&dir, "short-images-idx3-ubyte", &idx[..900]), 1).contains("truncated"));
    put(&dir, "pictures/A/broken.png", b"nonsense");
    assert!(message(&sources[0], 41).contains("broken.png"));
    assert!(message(&dir.path().join("nothing"), 1).contains("no such file"));
    fs::create_dir(dir.path().join("bare")).unwrap();
    assert!(message(&dir.path().join("bare"), 1).contains("no images"));
}
