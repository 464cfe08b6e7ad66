//! Byte-level byte-pair encoding, fast.
//!
//! The library encodes any `tokenizer.json`, and keeps for every token its text and its place. Where
//! a file is of the common kind (bytes, merges, a pattern known to [`Cut`]) and only ids are wanted,
//! this finds the same ids many times faster: words are cut by hand, and a word seen before is
//! looked up.

mod cut;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;

use aho_corasick::{AhoCorasick, MatchKind};
use rustc_hash::FxHashMap;
use serde_json::Value;
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer, Tokenizer as HfTokenizer};

use self::cut::Cut;
use super::simple::byte_spelling;

/// Words longer than this are not remembered.
const LONGEST_WORD: usize = 15;
/// Words that become more tokens than this are not remembered.
const MOST_TOKENS: usize = 3;
/// Places for remembered words, a power of two: 2 MiB.
const SLOTS: usize = 1 << 16;
/// No symbol before or after.
const NONE: u32 = u32::MAX;

/// Encodes text to the ids that the library finds with the same `tokenizer.json`.
#[derive(Debug)]
pub(super) struct ByteLevel {
    cut: Cut,
    /// Whether characters are composed (NFC) first.
    composes: bool,
    /// The token of each byte.
    bytes: Vec<u32>,
    /// Of two neighbouring tokens: when they merge (the lowest first), and what they become.
    merges: FxHashMap<(u32, u32), (u32, u32)>,
    /// Words that are a token whatever the merges say.
    whole: FxHashMap<Vec<u8>, u32>,
    added: Added,
    /// Memories of encoders that are done, for the next.
    spare: Mutex<Vec<Memory>>,
}

/// Tokens that stand whole in a text.
#[derive(Debug)]
struct Added {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

/// What an encoder works with.
#[derive(Debug)]
struct Memory {
    words: Vec<Word>,
    symbols: Vec<Symbol>,
    /// Pairs that may merge: when, and the place of the left one.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A remembered word.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Bytes and, on top, their number; 0 is an empty place.
    key: u128,
    ids: [u32; MOST_TOKENS],
    n_ids: u32,
}

/// A token of a word that is being merged.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    /// [`NONE`] once it is merged into the one before.
    id: u32,
    before: u32,
    after: u32,
}

impl ByteLevel {
    /// Reads a `tokenizer.json` that the library has read as `hf`; none if it is of another kind.
    pub(super) fn from_json(file: &Value, hf: &HfTokenizer) -> Option<Self> {
        let model = &file["model"];
        let absent = |key: &str| model[key].is_null() || model[key] == "";
        let plain = model["type"] == "BPE"
            && model["byte_fallback"] != true
            && ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]
                .into_iter()
                .all(absent);
        if !plain {
            return None;
        }
        let composes = match &file["normalizer"] {
            Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        let vocab = model["vocab"].as_object()?;
        let id = |token: &str| {
            vocab
                .get(token)?
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
        };
        let spelling = byte_spelling();
        let bytes = spelling.iter().map(|c| id(c.encode_utf8(&mut [0; 4])));
        let whole = match model["ignore_merges"] == true {
            false => FxHashMap::default(),
            true => {
                let byte: FxHashMap<char, u8> = spelling.iter().copied().zip(0..=255).collect();
                let bytes = |token: &str| -> Option<Vec<u8>> {
                    token.chars().map(|c| byte.get(&c).copied()).collect()
                };
                let words = vocab
                    .keys()
                    .filter_map(|token| Some((bytes(token)?, id(token)?)));
                words.collect()
            }
        };
        Some(Self {
            cut: cut(&file["pre_tokenizer"])?,
            composes,
            bytes: bytes.collect::<Option<_>>()?,
            merges: merges(&model["merges"], id)?,
            whole,
            added: added(&file["added_tokens"], composes, hf)?,
            spare: Mutex::default(),
        })
    }

    /// The tokens of a text; without `special`, tokens written out in it are text like any other.
    pub(super) fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let mut memory = self.spare().pop().unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let mut from = 0;
        if special && !self.added.ids.is_empty() {
            for found in self.added.finder.find_iter(text) {
                self.segment(&text[from..found.start()], &mut memory, &mut ids);
                ids.push(self.added.ids[found.pattern().as_usize()]);
                from = found.end();
            }
        }
        self.segment(&text[from..], &mut memory, &mut ids);
        self.spare().push(memory);
        ids
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Memory>> {
        self.spare.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Text without added tokens.
    fn segment(&self, text: &str, memory: &mut Memory, ids: &mut Vec<u32>) {
        let text = match self.composes {
            true => composed(text),
            false => Cow::Borrowed(text),
        };
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let end = self.cut.end(&text, at);
            let key = key(bytes, at, end);
            let slot = slot(key);
            let known = memory.words[slot];
            if key != 0 && known.key == key {
                ids.extend_from_slice(&known.ids[..known.n_ids as usize]);
            } else {
                let first = ids.len();
                self.merge(&bytes[at..end], memory, ids);
                let made = &ids[first..];
                if key != 0 && made.len() <= MOST_TOKENS {
                    let mut word = Word {
                        key,
                        ids: [0; MOST_TOKENS],
                        n_ids: made.len() as u32,
                    };
                    word.ids[..made.len()].copy_from_slice(made);
                    memory.words[slot] = word;
                }
            }
            at = end;
        }
    }

    /// Merges the bytes of a word: at every step the pair that comes first among the merges, the
    /// leftmost of equals.
    fn merge(&self, word: &[u8], memory: &mut Memory, ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(word) {
            return ids.push(id);
        }
        let Memory { symbols, queue, .. } = memory;
        symbols.clear();
        queue.clear();
        symbols.extend(word.iter().zip(0u32..).map(|(&byte, at)| Symbol {
            id: self.bytes[usize::from(byte)],
            before: at.wrapping_sub(1),
            after: if at as usize + 1 < word.len() {
                at + 1
            } else {
                NONE
            },
        }));
        for at in 1..symbols.len() {
            if let Some(&(when, _)) = self.merges.get(&(symbols[at - 1].id, symbols[at].id)) {
                queue.push(Reverse((when, at as u32 - 1)));
            }
        }
        while let Some(Reverse((when, at))) = queue.pop() {
            let left = symbols[at as usize];
            let Some(&right) = symbols.get(left.after as usize) else {
                continue;
            };
            // One of the two may have become another token since.
            let Some(&(now, id)) = self.merges.get(&(left.id, right.id)) else {
                continue;
            };
            if now != when {
                continue;
            }
            symbols[left.after as usize].id = NONE;
            symbols[at as usize] = Symbol {
                id,
                after: right.after,
                ..left
            };
            if let Some(after) = symbols.get_mut(right.after as usize) {
                after.before = at;
                if let Some(&(when, _)) = self.merges.get(&(id, after.id)) {
                    queue.push(Reverse((when, at)));
                }
            }
            if let Some(before) = symbols.get(left.before as usize)
                && let Some(&(when, _)) = self.merges.get(&(before.id, id))
            {
                queue.push(Reverse((when, left.before)));
            }
        }
        ids.extend(
            symbols
                .iter()
                .map(|symbol| symbol.id)
                .filter(|id| *id != NONE),
        );
    }
}

impl Default for Memory {
    fn default() -> Self {
        let empty = Word {
            key: 0,
            ids: [0; MOST_TOKENS],
            n_ids: 0,
        };
        Self {
            words: vec![empty; SLOTS],
            symbols: Vec::new(),
            queue: BinaryHeap::new(),
        }
    }
}

/// A word as a number; 0 if it is too long.
fn key(bytes: &[u8], at: usize, end: usize) -> u128 {
    let length = end - at;
    if length > LONGEST_WORD {
        return 0;
    }
    let bits = match bytes[at..].first_chunk::<16>() {
        Some(chunk) => u128::from_le_bytes(*chunk) & ((1 << (8 * length)) - 1),
        None => {
            let mut chunk = [0; 16];
            chunk[..length].copy_from_slice(&bytes[at..end]);
            u128::from_le_bytes(chunk)
        }
    };
    bits | (length as u128) << 120
}

fn slot(key: u128) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let folded = key as u64 ^ ((key >> 64) as u64).wrapping_mul(ODD);
    (folded.wrapping_mul(ODD) >> 40) as usize % SLOTS
}

/// The text with its characters composed; what lies below the first combining mark is so already.
fn composed(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| c < '\u{300}') {
        return Cow::Borrowed(text);
    }
    let mut normal = NormalizedString::from(text);
    match NFC.normalize(&mut normal) {
        Ok(()) => Cow::Owned(normal.get().to_owned()),
        Err(never) => unreachable!("composing has no error to report: {never}"),
    }
}

fn cut(before: &Value) -> Option<Cut> {
    let bytes = |step: &Value, cuts: bool| {
        let uses = step["use_regex"].as_bool().unwrap_or(true);
        step["type"] == "ByteLevel" && step["add_prefix_space"] == false && uses == cuts
    };
    if bytes(before, true) {
        return Some(Cut::Gpt2);
    }
    let [split, after] = before["pretokenizers"].as_array()?.as_slice() else {
        return None;
    };
    let plain = before["type"] == "Sequence"
        && split["type"] == "Split"
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && bytes(after, false);
    let pattern = split["pattern"]["Regex"].as_str().filter(|_| plain)?;
    Cut::ALL.into_iter().find(|cut| cut.pattern() == pattern)
}

fn merges(
    list: &Value,
    id: impl Fn(&str) -> Option<u32>,
) -> Option<FxHashMap<(u32, u32), (u32, u32)>> {
    let pairs = list.as_array()?.iter().filter_map(|pair| match pair {
        Value::String(pair) if pair.starts_with("#version") => None,
        Value::String(pair) => Some(pair.split_once(' ')),
        pair => Some(pair[0].as_str().zip(pair[1].as_str())),
    });
    let merges = pairs.zip(0..).map(|(pair, when)| {
        let (left, right) = pair?;
        let merged = [left, right].concat();
        Some(((id(left)?, id(right)?), (when, id(&merged)?)))
    });
    merges.collect()
}

/// None where the library's rules for added tokens say more than "the longest, from the left".
fn added(list: &Value, composes: bool, hf: &HfTokenizer) -> Option<Added> {
    let list = list.as_array()?;
    let plain = |token: &Value| {
        let flags = ["single_word", "lstrip", "rstrip"];
        flags.into_iter().all(|flag| token[flag] == false)
            && token["normalized"] == list[0]["normalized"]
            && !(composes && token["normalized"] == true)
    };
    if !list.iter().all(plain) {
        return None;
    }
    let tokens = list.iter().filter_map(|token| token["content"].as_str());
    let tokens: Vec<&str> = tokens.filter(|token| !token.is_empty()).collect();
    let ids = tokens.iter().map(|token| hf.token_to_id(token));
    Some(Added {
        ids: ids.collect::<Option<_>>()?,
        finder: AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens)
            .ok()?,
    })
}

#[cfg(test)]
mod tests;
