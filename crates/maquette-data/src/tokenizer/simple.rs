//! Bytes and characters as tokens, without a model, and their form as a `tokenizer.json`: a BPE
//! with no merges, which `tokenizers` and `transformers` open like any other.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::{TokenPiece, TokenizerKind, error};
use crate::Result;

/// Ids are the units in order, then the special tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Simple {
    units: Units,
    special: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Units {
    Bytes,
    Chars {
        chars: Vec<char>,
        ids: HashMap<char, u32>,
    },
}

impl Simple {
    pub(super) fn byte(special: &[String]) -> Self {
        Self {
            units: Units::Bytes,
            special: distinct(special),
        }
    }

    pub(super) fn chars(chars: BTreeSet<char>, special: &[String]) -> Self {
        let chars: Vec<char> = chars.into_iter().collect();
        let ids = chars.iter().zip(0..).map(|(&c, id)| (c, id)).collect();
        Self {
            units: Units::Chars { chars, ids },
            special: distinct(special),
        }
    }

    pub(super) fn kind(&self) -> TokenizerKind {
        match self.units {
            Units::Bytes => TokenizerKind::Byte,
            Units::Chars { .. } => TokenizerKind::Char,
        }
    }

    pub(super) fn is_bytes(&self) -> bool {
        matches!(self.units, Units::Bytes)
    }

    fn n_units(&self) -> usize {
        match &self.units {
            Units::Bytes => 256,
            Units::Chars { chars, .. } => chars.len(),
        }
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.n_units() + self.special.len()
    }

    pub(super) fn special_tokens(&self) -> Vec<(String, u32)> {
        let first = self.n_units() as u32;
        self.special.iter().cloned().zip(first..).collect()
    }

    /// The next special token in `text`: its place and number. The longest wins at one place.
    fn next_special(&self, text: &str) -> Option<(usize, usize)> {
        let found = self.special.iter().enumerate();
        found
            .filter_map(|(k, token)| Some((text.find(token.as_str())?, k)))
            .min_by_key(|&(at, k)| (at, usize::MAX - self.special[k].len()))
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        self.each(text, |id, _| ids.push(id))?;
        Ok(ids)
    }

    /// Special tokens in the text are characters like any other.
    pub(super) fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        self.units(text, 0..text.len(), &mut |id, _| ids.push(id))?;
        Ok(ids)
    }

    pub(super) fn pieces(&self, text: &str) -> Result<Vec<TokenPiece>> {
        let mut pieces = Vec::new();
        self.each(text, |id, bytes| {
            let token = self.id_to_token(id).unwrap_or_default();
            pieces.push(TokenPiece { id, token, bytes });
        })?;
        Ok(pieces)
    }

    /// Calls `out` with every id and the bytes of the text it stands for.
    fn each(&self, text: &str, mut out: impl FnMut(u32, Range<usize>)) -> Result<()> {
        let mut from = 0;
        loop {
            let special = self.next_special(&text[from..]);
            let to = special.map_or(text.len(), |(at, _)| from + at);
            self.units(text, from..to, &mut out)?;
            let Some((_, k)) = special else {
                return Ok(());
            };
            from = to + self.special[k].len();
            out((self.n_units() + k) as u32, to..from);
        }
    }

    /// The same for a part of the text that has no special tokens.
    fn units(
        &self,
        text: &str,
        part: Range<usize>,
        out: &mut impl FnMut(u32, Range<usize>),
    ) -> Result<()> {
        match &self.units {
            Units::Bytes => {
                for (i, b) in part.clone().zip(text[part].bytes()) {
                    out(u32::from(b), i..i + 1);
                }
            }
            Units::Chars { ids, .. } => {
                for (i, c) in text[part.clone()].char_indices() {
                    let at = part.start + i;
                    let Some(&id) = ids.get(&c) else {
                        return Err(error(format!(
                            "character {c:?} at byte {at} is not in this vocabulary of {} characters; \
                             use the byte or bpe kind for open text",
                            ids.len()
                        )));
                    };
                    out(id, at..at + c.len_utf8());
                }
            }
        }
        Ok(())
    }

    /// The text of ids, all of which are inside the vocabulary.
    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len());
        for &id in ids {
            let id = id as usize;
            if let Some(special) = id.checked_sub(self.n_units()) {
                if !skip_special {
                    bytes.extend_from_slice(self.special[special].as_bytes());
                }
                continue;
            }
            match &self.units {
                Units::Bytes => bytes.push(id as u8),
                Units::Chars { chars, .. } => {
                    bytes.extend_from_slice(chars[id].encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// Units as the vocabulary of the file spells them.
    fn spelling(&self) -> Vec<char> {
        match &self.units {
            Units::Bytes => byte_spelling(),
            Units::Chars { chars, .. } => chars.clone(),
        }
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        if let Some(k) = self.special.iter().position(|s| s == token) {
            return Some((self.n_units() + k) as u32);
        }
        let c = single(token)?;
        self.spelling()
            .iter()
            .position(|s| *s == c)
            .map(|id| id as u32)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        let id = id as usize;
        match id.checked_sub(self.n_units()) {
            Some(k) => self.special.get(k).cloned(),
            None => match &self.units {
                Units::Bytes => Some(byte_spelling()[id].to_string()),
                Units::Chars { chars, .. } => Some(chars[id].to_string()),
            },
        }
    }

    pub(super) fn to_json(&self) -> String {
        let vocab: Map<String, Value> = self
            .spelling()
            .iter()
            .enumerate()
            .map(|(id, c)| (c.to_string(), id.into()))
            .collect();
        let added: Vec<Value> = self
            .special_tokens()
            .into_iter()
            .map(|(content, id)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let (pre_tokenizer, decoder) = match self.units {
            Units::Bytes => (byte_level(), byte_level()),
            Units::Chars { .. } => (Value::Null, json!({"type": "Fuse"})),
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
        });
        format!("{file:#}")
    }

    /// Recognises what [`to_json`](Self::to_json) writes, and nothing else: the candidate that the
    /// file describes must write exactly the same file.
    pub(super) fn from_json(file: &Value) -> Option<Self> {
        if !file["model"]["merges"].as_array()?.is_empty() {
            return None;
        }
        let vocab = file["model"]["vocab"].as_object()?;
        let special: Vec<String> = file["added_tokens"]
            .as_array()?
            .iter()
            .map(|token| Some(token["content"].as_str()?.to_owned()))
            .collect::<Option<_>>()?;
        let candidate = match file["decoder"]["type"].as_str()? {
            "ByteLevel" => Self::byte(&special),
            _ => Self::chars(
                vocab.keys().map(|k| single(k)).collect::<Option<_>>()?,
                &special,
            ),
        };
        let same: Value = serde_json::from_str(&candidate.to_json()).ok()?;
        (same == *file).then_some(candidate)
    }
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

fn single(token: &str) -> Option<char> {
    let mut chars = token.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// Empty and repeated tokens would make encoding ambiguous.
fn distinct(tokens: &[String]) -> Vec<String> {
    let mut seen = Vec::new();
    for token in tokens {
        if !token.is_empty() && !seen.contains(token) {
            seen.push(token.clone());
        }
    }
    seen
}

/// The inverse of [`byte_spelling`].
pub(super) fn byte_of(spelt: char) -> Option<u8> {
    static BYTES: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| byte_spelling().into_iter().zip(0..=255).collect());
    bytes.get(&spelt).copied()
}

/// How GPT-2 spells each byte as a visible character: itself where it is printable Latin-1, and
/// otherwise the next free character from U+0100 on.
pub(super) fn byte_spelling() -> Vec<char> {
    let mut free = 0x100;
    (0..=255u8)
        .map(|b| match b {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(b),
            _ => {
                free += 1;
                char::from_u32(free - 1).expect("below the surrogates")
            }
        })
        .collect()
}
