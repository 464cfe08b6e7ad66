//! SentencePiece's `.model` files: pieces and settings as a protocol buffer (`sentencepiece_model.proto`
//! of google/sentencepiece), read here field by field.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::pieces::{LARGEST_FILE, Merging, SPACE, template};
use super::{Result, Tokenizer, error};
use crate::DataError;

/// What a piece is for; the rest are words.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// `TrainerSpec.model_type`.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// A `.model` file.
#[derive(Debug, Default)]
struct Model {
    pieces: Vec<Piece>,
    kind: Option<u64>,
    charsmap: Vec<u8>,
    dummy_prefix: Option<u64>,
    remove_extra_whitespaces: Option<u64>,
    escape_whitespaces: Option<u64>,
}

#[derive(Debug, Default)]
struct Piece {
    text: String,
    score: f32,
    kind: Option<u64>,
}

impl Tokenizer {
    /// Opens a SentencePiece `.model` of byte-pair encoding or of unigrams.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another kind.
    pub fn load_sentencepiece(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(DataError::io(path))?.len();
        if size > LARGEST_FILE {
            return Err(DataError::TooLarge {
                path: path.to_owned(),
                limit: LARGEST_FILE,
            });
        }
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        Self::from_sentencepiece(&bytes).map_err(|e| DataError::format(path, e.to_string()))
    }

    /// Reads the bytes of a SentencePiece `.model`.
    ///
    /// # Errors
    /// When they are damaged, or of another kind than byte-pair encoding or unigrams.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Self> {
        let model = Model::read(bytes)
            .filter(|model| !model.pieces.is_empty())
            .ok_or_else(|| error("damaged, or not a SentencePiece model"))?;
        Self::from_json(&model.to_json()?.to_string())
    }
}

impl Model {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut model = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Wire::Bytes(spec)) => {
                    for field in Fields(spec) {
                        if let (3, Wire::Number(kind)) = field? {
                            model.kind = Some(kind);
                        }
                    }
                }
                (3, Wire::Bytes(spec)) => {
                    for field in Fields(spec) {
                        match field? {
                            (2, Wire::Bytes(map)) => model.charsmap = map.to_vec(),
                            (3, Wire::Number(flag)) => model.dummy_prefix = Some(flag),
                            (4, Wire::Number(flag)) => model.remove_extra_whitespaces = Some(flag),
                            (5, Wire::Number(flag)) => model.escape_whitespaces = Some(flag),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(model)
    }

    fn special(&self, kind: u64) -> impl Iterator<Item = (usize, &str)> {
        let pieces = self.pieces.iter().enumerate();
        let of_kind = move |(_, piece): &(usize, &Piece)| piece.kind == Some(kind);
        pieces
            .filter(of_kind)
            .map(|(id, piece)| (id, piece.text.as_str()))
    }

    /// The `tokenizer.json` that encodes alike.
    fn to_json(&self) -> Result<Value> {
        let on = |flag: Option<u64>| flag != Some(0);
        if !on(self.escape_whitespaces) {
            return Err(error(
                "a SentencePiece model that does not escape white space is not supported",
            ));
        }
        let unknown = self.special(UNKNOWN).next();
        let added = [(UNKNOWN, true), (CONTROL, true), (USER_DEFINED, false)];
        let added = added.into_iter().flat_map(|(kind, special)| {
            self.special(kind).map(move |(id, token)| {
                json!({
                    "id": id, "content": token, "special": special, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
        });
        let replace = |pattern: Value, to: &str| json!({ "type": "Replace", "pattern": pattern, "content": to });
        let mut normalizers = Vec::new();
        if !self.charsmap.is_empty() {
            let map = BASE64_STANDARD.encode(&self.charsmap);
            normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
        }
        if on(self.remove_extra_whitespaces) {
            normalizers.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
            normalizers.push(replace(json!({ "Regex": " {2,}" }), " "));
        }
        if on(self.dummy_prefix) {
            normalizers.push(json!({ "type": "Prepend", "prepend": SPACE }));
        }
        normalizers.push(replace(json!({ "String": " " }), SPACE));
        let begin = self.special(CONTROL).find(|(_, token)| *token == "<s>");
        let end = self.special(CONTROL).find(|(_, token)| *token == "</s>");
        let (model, around) = match self.kind.unwrap_or(UNIGRAM) {
            // Llama's texts have a token that begins them, T5's one that ends them.
            BPE => (
                self.byte_pairs(unknown)?,
                begin.map(|(id, token)| template(id, token, true)),
            ),
            UNIGRAM => (
                self.unigrams(unknown),
                end.map(|(id, token)| template(id, token, false)),
            ),
            other => {
                return Err(error(format!(
                    "a SentencePiece model of kind {other} is not supported; there are unigram (1) and bpe (2)"
                )));
            }
        };
        let strip = match on(self.dummy_prefix) {
            true => json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }),
            false => json!({ "type": "Fuse" }),
        };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "post_processor": around,
            "decoder": { "type": "Sequence", "decoders": [
                replace(json!({ "String": SPACE }), " "), { "type": "ByteFallback" }, { "type": "Fuse" }, strip,
            ] },
            "model": model,
        }))
    }

    fn byte_pairs(&self, unknown: Option<(usize, &str)>) -> Result<Value> {
        let words = self.pieces.iter().enumerate().filter(|(_, piece)| {
            piece
                .kind
                .is_none_or(|kind| ![UNKNOWN, CONTROL, USER_DEFINED, BYTE].contains(&kind))
        });
        let merging = Merging::new(
            self.pieces.iter().map(|piece| piece.text.clone()),
            words.map(|(id, piece)| (id, piece.score)),
        )?;
        Ok(merging.model(unknown.map(|(_, token)| token), self.has_bytes()))
    }

    fn unigrams(&self, unknown: Option<(usize, &str)>) -> Value {
        let vocab = self
            .pieces
            .iter()
            .map(|piece| json!([piece.text, f64::from(piece.score)]));
        json!({
            "type": "Unigram", "unk_id": unknown.map(|(id, _)| id), "byte_fallback": self.has_bytes(),
            "vocab": vocab.collect::<Vec<_>>(),
        })
    }

    fn has_bytes(&self) -> bool {
        self.special(BYTE).next().is_some()
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
                (2, Wire::Four(score)) => piece.score = f32::from_le_bytes(score),
                (3, Wire::Number(kind)) => piece.kind = Some(kind),
                _ => {}
            }
        }
        piece.score.is_finite().then_some(piece)
    }
}

/// A value of a protocol buffer.
#[derive(Debug)]
enum Wire<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    /// Eight bytes; no field here has them.
    Other,
}

/// The fields of a message: number and value, or none where the bytes make no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => {
                self.take(8)?;
                Wire::Other
            }
            2 => {
                let length = self.number()?;
                Wire::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => Wire::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::images::hex;
    use crate::testing::{shared, texts};

    /// Ids of every shared file by sentencepiece; made by `fixtures/sentencepiece_ids.py`.
    #[test]
    fn llama_2_encodes_shared_files_as_sentencepiece_does() {
        let (Some(root), Some(folder)) = (shared(""), shared("llama2-tokenizer")) else {
            return;
        };
        let llama = Tokenizer::load(&folder).unwrap();
        assert_eq!(llama.vocab_size(), 32_000);
        assert_eq!(llama.encode_with_template("Hello").unwrap(), [1, 15043]);
        let rows = include_str!("../../fixtures/sentencepiece_ids.json");
        let rows: Vec<(PathBuf, usize, String)> = serde_json::from_str(rows).unwrap();
        assert!(rows.len() > 30);
        // The library merges a text as one word; the largest files would take a minute each.
        for (path, count, hash) in rows.into_iter().filter(|(_, count, _)| *count < 100_000) {
            let Some(text) = texts(&root.join(&path)) else {
                continue;
            };
            let ids = llama.encode_literal(&text).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let found = (ids.len(), hex(&Sha256::digest(&bytes)));
            assert_eq!(found, (count, hash), "{}", path.display());
        }
    }

    /// A unigram model of 200 pieces trained by `fixtures/sentencepiece_ids.py`, and its ids of a few texts.
    #[test]
    fn unigrams_encode_as_sentencepiece_does() {
        let tokenizer =
            Tokenizer::from_sentencepiece(include_bytes!("../../fixtures/unigram.model")).unwrap();
        let rows = include_str!("../../fixtures/unigram_encodings.json");
        let rows: Vec<(String, Vec<u32>)> = serde_json::from_str(rows).unwrap();
        for (text, ids) in rows {
            assert_eq!(tokenizer.encode_literal(&text).unwrap(), ids, "{text:?}");
        }
    }

    #[test]
    fn damaged_models_are_errors() {
        let whole = include_bytes!("../../fixtures/unigram.model");
        for end in [0, 1, 2, 5, whole.len() / 2, whole.len() - 1] {
            assert!(
                Tokenizer::from_sentencepiece(&whole[..end]).is_err(),
                "cut at {end}"
            );
        }
        // A length beyond the end, a number without one, a wire type that is none.
        for bytes in [
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
            &[0xff; 12],
            &[0x0b, 1],
        ] {
            assert!(Tokenizer::from_sentencepiece(bytes).is_err());
        }
    }
}
