//! SentencePiece's byte-pair encoding out of its pieces and scores, as llama2.c and GGUF store it.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Result, Tokenizer, error};
use crate::DataError;

/// What SentencePiece writes for a space.
pub(super) const SPACE: &str = "\u{2581}";
/// The unknown token, the beginning and the end of a text, in the order of their ids.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// A vocabulary's file larger than this is refused.
pub(super) const LARGEST_FILE: u64 = 64 << 20;

impl Tokenizer {
    /// A SentencePiece byte-pair encoding: two neighbouring pieces merge when both together are a
    /// piece, those of the highest score first; what no piece spells becomes bytes (`<0x0A>`).
    /// Encoding puts a space before the text, and the template `<s>` before that.
    ///
    /// The first three pieces are the special tokens; spaces may stand as such or as `U+2581`.
    ///
    /// # Errors
    /// When there are no more than three pieces, or two are the same.
    pub fn from_pieces(pieces: &[(String, f32)]) -> Result<Self> {
        if pieces.len() <= SPECIAL.len() {
            return Err(error("a vocabulary of no more than its special tokens"));
        }
        let spelt = pieces.iter().enumerate();
        let spelt = spelt.map(|(id, (text, _))| match SPECIAL.get(id) {
            Some(special) => (*special).to_owned(),
            None => text.replace(' ', SPACE),
        });
        let scores = pieces.iter().map(|(_, score)| *score).enumerate();
        let merging = Merging::new(spelt, scores.skip(SPECIAL.len()))?;
        let special = SPECIAL.iter().enumerate().map(|(id, token)| {
            json!({
                "id": id, "content": token, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            })
        });
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": special.collect::<Vec<_>>(),
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": SPACE },
                replace(" ", SPACE),
            ] },
            "pre_tokenizer": null,
            "post_processor": template(1, SPECIAL[1], true),
            "decoder": { "type": "Sequence", "decoders": [
                replace(SPACE, " "),
                { "type": "ByteFallback" },
                { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": merging.model(Some(SPECIAL[0]), true),
        });
        Self::from_json(&file.to_string())
    }

    /// Opens the `tokenizer.bin` of llama2.c: the longest piece's length, then for every piece its
    /// score, its length and its bytes.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn load_llama2c(path: &Path) -> Result<Self> {
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(io)?.len() > LARGEST_FILE {
            return Err(DataError::format(path, "too large for a tokenizer.bin"));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let damaged = || {
            let what = "damaged, or not the tokenizer.bin of llama2.c; export it again";
            DataError::format(path, what)
        };
        let mut rest = bytes.get(4..).ok_or_else(damaged)?;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (score, tail) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let (length, tail) = tail.split_first_chunk::<4>().ok_or_else(damaged)?;
            let length = usize::try_from(i32::from_le_bytes(*length)).map_err(|_| damaged())?;
            let text = tail.get(..length).ok_or_else(damaged)?;
            rest = &tail[length..];
            let text = std::str::from_utf8(text).map_err(|_| damaged())?;
            pieces.push((text.to_owned(), f32::from_le_bytes(*score)));
        }
        Self::from_pieces(&pieces).map_err(|e| DataError::format(path, e.to_string()))
    }
}

/// Which pieces merge: neighbours that together are a word, the words of the highest score first.
pub(super) struct Merging {
    vocab: HashMap<String, usize>,
    merges: Vec<[String; 2]>,
}

impl Merging {
    /// All `pieces` in the order of their ids, and the scores of those that are words.
    ///
    /// # Errors
    /// When two pieces are the same.
    pub(super) fn new(
        pieces: impl Iterator<Item = String>,
        scores: impl Iterator<Item = (usize, f32)>,
    ) -> Result<Self> {
        let pieces: Vec<String> = pieces.collect();
        let mut vocab = HashMap::new();
        for (id, text) in pieces.iter().enumerate() {
            if vocab.insert(text.clone(), id).is_some() {
                return Err(error(format!("the piece `{text}` stands there twice")));
            }
        }
        let mut merges: Vec<(f32, usize, [&str; 2])> = Vec::new();
        for (id, score) in scores {
            let text = &pieces[id];
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if vocab.contains_key(left) && vocab.contains_key(right) {
                    merges.push((score, id, [left, right]));
                }
            }
        }
        merges.sort_by(|(a, i, x), (b, j, y)| {
            b.total_cmp(a)
                .then(i.cmp(j))
                .then(vocab[x[0]].cmp(&vocab[y[0]]))
        });
        let merges = merges
            .into_iter()
            .map(|(_, _, pair)| pair.map(str::to_owned));
        Ok(Self {
            merges: merges.collect(),
            vocab,
        })
    }

    /// The model of a `tokenizer.json`; what no piece spells becomes bytes if there are any.
    pub(super) fn model(&self, unknown: Option<&str>, bytes: bool) -> Value {
        json!({
            "type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": bytes, "ignore_merges": false,
            "vocab": self.vocab, "merges": self.merges,
        })
    }
}

/// The template of a `tokenizer.json` that puts a token before or behind every text.
pub(super) fn template(id: usize, token: &str, before: bool) -> Value {
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let around = |text: &str| {
        let text = json!({ "Sequence": { "id": text, "type_id": 0 } });
        match before {
            true => vec![special.clone(), text],
            false => vec![text, special.clone()],
        }
    };
    let pair = [around("A"), around("B")].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": pair,
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Vec<(String, f32)> {
        let mut pieces: Vec<(String, f32)> = SPECIAL.map(|s| (s.to_owned(), 0.0)).to_vec();
        pieces.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0)));
        let scored = [
            (" a", -1.0),
            ("ab", 0.0),
            (" ab", -2.0),
            (" ", -3.0),
            ("a", -4.0),
            ("b", -5.0),
        ];
        pieces.extend(scored.map(|(text, score)| (text.to_owned(), score)));
        pieces
    }

    #[test]
    fn merges_by_score_and_falls_back_to_bytes() {
        let tokenizer = Tokenizer::from_pieces(&pieces()).unwrap();
        // ` abb`: `ab` before ` a`, then ` ab`.
        assert_eq!(tokenizer.encode("abb").unwrap(), [261, 264]);
        assert_eq!(tokenizer.encode_with_template("a\n").unwrap(), [1, 259, 13]);
        assert_eq!(
            tokenizer.decode_visible(&[1, 261, 13, 264]).unwrap(),
            "ab\nb"
        );
    }

    #[test]
    fn reads_llama2c_and_refuses_what_is_cut() {
        let mut bytes = 6i32.to_le_bytes().to_vec();
        for (text, score) in pieces() {
            bytes.extend(score.to_le_bytes());
            bytes.extend((text.len() as i32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.bin");
        std::fs::write(&path, &bytes).unwrap();
        let tokenizer = Tokenizer::load_llama2c(&path).unwrap();
        assert_eq!(tokenizer.encode("abb").unwrap(), [261, 264]);
        for end in [0, 3, 9, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..end]).unwrap();
            assert!(Tokenizer::load_llama2c(&path).is_err(), "cut at {end}");
        }
    }
}
