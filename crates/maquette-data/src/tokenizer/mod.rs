//! Tokenizers: bytes, characters, and every `tokenizer.json` of the Hugging Face ecosystem.
//!
//! All three are saved as a `tokenizer.json` that `tokenizers` and `transformers` open.

mod byte_level;
mod bytes;
mod library;
mod pieces;
mod sentencepiece;
mod simple;
mod train;

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use crate::{DataError, Result, images::hex};
use library::Library;
use simple::Simple;

pub use train::TokenizerConfig;

/// A `tokenizer.json` larger than this is refused.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// Ids above this are refused: an embedding table would be built for them.
const MAX_ID: u32 = 1 << 24;
/// Names under which an end-of-text token is known, the most usual first.
const END_OF_TEXT: [&str; 8] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|im_end|>",
    "<end>",
    "[SEP]",
];

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerKind {
    /// Each of the 256 bytes is a token.
    Byte,
    /// Each character of the training text is a token.
    Char,
    /// Byte-level byte-pair encoding (as GPT-2).
    Bpe,
    /// WordPiece (as BERT), case kept.
    WordPiece,
    /// Unigram language model (as SentencePiece).
    Unigram,
    /// Any other model out of a `tokenizer.json`.
    WordLevel,
}

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    model: Model,
    /// Largest id, plus one.
    vocab_size: usize,
}

#[derive(Debug, Clone)]
enum Model {
    Simple(Simple),
    Hf(Box<Library>),
}

/// One token of an encoded text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenPiece {
    /// The token's id.
    pub id: u32,
    /// The token as the vocabulary spells it.
    pub token: String,
    /// The bytes of the text that it covers.
    pub bytes: Range<usize>,
}

/// What there is to know about a tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// How text becomes tokens.
    pub kind: TokenizerKind,
    /// Largest id plus one: the height of an embedding table.
    pub vocab_size: usize,
    /// Special tokens and their ids, by id.
    pub special_tokens: Vec<(String, u32)>,
    /// The token that closes a document, if there is one.
    pub end_of_text: Option<u32>,
    /// The ten longest tokens as the vocabulary spells them.
    pub longest: Vec<String>,
    /// Whether ids are found by the fast way of byte-level byte-pair encoding.
    pub fast: bool,
    /// Bytes of text per token on the sample, if one was given.
    pub bytes_per_token: Option<f64>,
    /// SHA-256 of the saved form.
    pub hash: String,
}

fn error(e: impl std::fmt::Display) -> DataError {
    DataError::Tokenizer(e.to_string())
}

impl Tokenizer {
    /// The byte tokenizer: ids 0 to 255 are the bytes, `special_tokens` follow.
    pub fn byte(special_tokens: &[String]) -> Self {
        Self::simple(Simple::byte(special_tokens))
    }

    fn simple(simple: Simple) -> Self {
        Self {
            vocab_size: simple.vocab_size(),
            model: Model::Simple(simple),
        }
    }

    /// A tokenizer of the library, which made it without a file.
    fn hf(hf: HfTokenizer) -> Result<Self> {
        let file = serde_json::to_value(&hf).map_err(error)?;
        Self::library(hf, &file)
    }

    fn library(mut hf: HfTokenizer, file: &serde_json::Value) -> Result<Self> {
        // A stored truncation would silently shorten a training text.
        hf.with_truncation(None).map_err(error)?.with_padding(None);
        let max = hf.get_vocab(true).into_values().max();
        match max {
            None => Err(error("the vocabulary is empty")),
            Some(max) if max > MAX_ID => Err(error(format!(
                "an id of {max} is out of reason (at most {MAX_ID}); the file is damaged"
            ))),
            Some(max) => Ok(Self {
                model: Model::Hf(Box::new(Library::new(hf, file))),
                vocab_size: max as usize + 1,
            }),
        }
    }

    /// Opens a `tokenizer.json` or a SentencePiece `.model`, or a folder that holds the first,
    /// GPT-2's pair of files (`vocab.json` and `merges.txt`, also under their first names
    /// `encoder.json` and `vocab.bpe`), or a `tokenizer.model`.
    ///
    /// # Errors
    /// When nothing of this is there, or it is damaged.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(DataError::Missing(path.to_owned()));
        }
        if path.is_file()
            && path
                .extension()
                .is_some_and(|extension| extension == "model")
        {
            return Self::load_sentencepiece(path);
        }
        if path.is_file() {
            return Self::from_json(&read(path)?)
                .map_err(|e| DataError::format(path, e.to_string()));
        }
        let file = path.join("tokenizer.json");
        if file.is_file() {
            return Self::load(file);
        }
        for (vocab, merges) in [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")] {
            let (vocab, merges) = (path.join(vocab), path.join(merges));
            if vocab.is_file() && merges.is_file() {
                return Self::gpt2(&vocab, &merges)
                    .map_err(|e| DataError::format(path, e.to_string()));
            }
        }
        let model = path.join("tokenizer.model");
        if model.is_file() {
            return Self::load_sentencepiece(&model);
        }
        Err(DataError::format(
            path,
            "no tokenizer here: expected tokenizer.json, vocab.json with merges.txt, or \
             tokenizer.model (SentencePiece)",
        ))
    }

    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is damaged or of an unknown form.
    pub fn from_json(json: &str) -> Result<Self> {
        let file: serde_json::Value =
            serde_json::from_str(json).map_err(|e| error(format!("not a tokenizer.json: {e}")))?;
        if let Some(simple) = Simple::from_json(&file) {
            return Ok(Self::simple(simple));
        }
        // The library panics on some damaged files instead of returning its error.
        let parsed = std::panic::catch_unwind(|| json.parse::<HfTokenizer>());
        let damaged = |_| error("not a tokenizer.json: a part of it is of no known form");
        let hf = parsed.map_err(damaged)?;
        let hf = hf.map_err(|e| error(format!("not a tokenizer.json: {e}")))?;
        Self::library(hf, &file)
    }

    /// GPT-2's byte-level BPE out of its two files.
    fn gpt2(vocab: &Path, merges: &Path) -> Result<Self> {
        read(vocab)?;
        read(merges)?;
        let [vocab, merges] = [vocab, merges].map(|p| p.to_str().map(str::to_owned));
        let (Some(vocab), Some(merges)) = (vocab, merges) else {
            return Err(error("the path is not UTF-8"));
        };
        let bpe = BPE::from_file(&vocab, &merges).build().map_err(error)?;
        let mut hf = HfTokenizer::new(bpe);
        hf.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::default()));
        if hf.token_to_id(END_OF_TEXT[0]).is_some() {
            hf.add_special_tokens([AddedToken::from(END_OF_TEXT[0], true)])
                .map_err(error)?;
        }
        Self::hf(hf)
    }

    /// The text of this tokenizer's `tokenizer.json`.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn to_json(&self) -> Result<String> {
        match &self.model {
            Model::Simple(simple) => Ok(simple.to_json()),
            Model::Hf(library) => library.hf.to_string(true).map_err(error),
        }
    }

    /// Saves to `path`: a `tokenizer.json`, or a folder, which also gets the
    /// `tokenizer_config.json` that `transformers` looks for. Files are replaced whole or not at
    /// all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !path.is_dir() {
            return write(path, &self.to_json()?);
        }
        let token = |id: Option<u32>| id.and_then(|id| self.id_to_token(id));
        let one_of = |names: [&'static str; 2]| {
            let mut names = names.into_iter();
            names.find(|name| self.token_to_id(name).is_some())
        };
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "eos_token": token(self.end_of_text()),
            "unk_token": one_of(["[UNK]", "<unk>"]),
            "pad_token": one_of(["[PAD]", "<pad>"]),
            "cls_token": one_of(["[CLS]", "<cls>"]),
            "sep_token": one_of(["[SEP]", "<sep>"]),
            "mask_token": one_of(["[MASK]", "<mask>"]),
        });
        write(&path.join("tokenizer_config.json"), &format!("{config:#}"))?;
        write(&path.join("tokenizer.json"), &self.to_json()?)
    }

    /// How text becomes tokens.
    pub fn kind(&self) -> TokenizerKind {
        use tokenizers::ModelWrapper::{BPE, Unigram, WordLevel, WordPiece};
        match &self.model {
            Model::Simple(simple) => simple.kind(),
            Model::Hf(library) => match library.hf.get_model() {
                BPE(_) => TokenizerKind::Bpe,
                WordPiece(_) => TokenizerKind::WordPiece,
                Unigram(_) => TokenizerKind::Unigram,
                WordLevel(_) => TokenizerKind::WordLevel,
            },
        }
    }

    /// Largest id plus one: the height of an embedding table.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokens of `text`. Special tokens written out in the text become their ids; none are
    /// added.
    ///
    /// # Errors
    /// When the text has a character the tokenizer does not know and cannot replace.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.model {
            Model::Simple(simple) => simple.encode(text),
            Model::Hf(library) => library.encode(text),
        }
    }

    /// As [`encode`](Self::encode), but special tokens written out in the text are text like any
    /// other: for text that nobody vouches for.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        match &self.model {
            Model::Simple(simple) => simple.encode_literal(text),
            Model::Hf(library) => library.encode_literal(text),
        }
    }

    /// As [`encode`](Self::encode), with the special tokens that the tokenizer's own template
    /// adds (`[CLS]` and `[SEP]`, a beginning-of-text).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_template(&self, text: &str) -> Result<Vec<u32>> {
        match &self.model {
            Model::Simple(simple) => simple.encode(text),
            Model::Hf(library) => library.encode_with_template(text),
        }
    }

    /// The tokens of `text` one by one, with their spelling and place.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn pieces(&self, text: &str) -> Result<Vec<TokenPiece>> {
        match &self.model {
            Model::Simple(simple) => simple.pieces(text),
            Model::Hf(library) => {
                let encoding = library.hf.encode(text, false).map_err(error)?;
                let tokens = encoding.get_tokens().iter().cloned();
                let ids = encoding.get_ids().iter().zip(encoding.get_offsets());
                Ok(ids
                    .zip(tokens)
                    .map(|((&id, &(from, to)), token)| TokenPiece {
                        id,
                        token,
                        bytes: from..to,
                    })
                    .collect())
            }
        }
    }

    /// The text of `ids`, special tokens included. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, false)
    }

    /// The text of `ids` without special tokens, as a reader wants to see it.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode_visible(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, true)
    }

    fn decode_as(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(error(format!(
                "token id {id} is outside the vocabulary of {}",
                self.vocab_size
            )));
        }
        match &self.model {
            Model::Simple(simple) => Ok(simple.decode(ids, skip_special)),
            Model::Hf(library) => library.hf.decode(ids, skip_special).map_err(error),
        }
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.model {
            Model::Simple(simple) => simple.token_to_id(token),
            Model::Hf(library) => library.hf.token_to_id(token),
        }
    }

    /// The spelling of an id in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match &self.model {
            Model::Simple(simple) => simple.id_to_token(id),
            Model::Hf(library) => library.hf.id_to_token(id),
        }
    }

    /// Special tokens and their ids, by id.
    pub fn special_tokens(&self) -> Vec<(String, u32)> {
        let mut tokens: Vec<(String, u32)> = match &self.model {
            Model::Simple(simple) => simple.special_tokens(),
            Model::Hf(library) => library
                .hf
                .get_added_tokens_decoder()
                .into_iter()
                .filter(|(_, token)| token.special)
                .map(|(id, token)| (token.content, id))
                .collect(),
        };
        tokens.sort_by_key(|(_, id)| *id);
        tokens
    }

    /// The id of the token that closes a document, if there is one under a usual name.
    pub fn end_of_text(&self) -> Option<u32> {
        let special = self.special_tokens();
        let named = |name: &&str| special.iter().find(|(token, _)| token == name);
        END_OF_TEXT.iter().find_map(named).map(|(_, id)| *id)
    }

    /// SHA-256 of the saved form, in hexadecimal.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn hash(&self) -> Result<String> {
        Ok(hex(&Sha256::digest(self.to_json()?)))
    }

    /// What there is to know; `sample` measures how densely it encodes.
    ///
    /// # Errors
    /// When the sample cannot be encoded.
    pub fn inspect(&self, sample: Option<&str>) -> Result<Inspection> {
        let mut longest: Vec<String> = match &self.model {
            Model::Simple(_) => Vec::new(),
            Model::Hf(library) => library.hf.get_vocab(false).into_keys().collect(),
        };
        longest.sort_by(|a, b| b.chars().count().cmp(&a.chars().count()).then(a.cmp(b)));
        longest.truncate(10);
        let bytes_per_token = match sample {
            Some(text) => Some(text.len() as f64 / self.encode(text)?.len().max(1) as f64),
            None => None,
        };
        Ok(Inspection {
            kind: self.kind(),
            vocab_size: self.vocab_size,
            special_tokens: self.special_tokens(),
            end_of_text: self.end_of_text(),
            longest,
            fast: matches!(&self.model, Model::Hf(library) if library.is_fast()),
            bytes_per_token,
            hash: self.hash()?,
        })
    }
}

fn read(path: &Path) -> Result<String> {
    let size = fs::metadata(path).map_err(DataError::io(path))?.len();
    match size {
        0 => Err(DataError::Empty(path.to_owned())),
        n if n > MAX_FILE_BYTES => Err(DataError::TooLarge {
            path: path.to_owned(),
            limit: MAX_FILE_BYTES,
        }),
        _ => fs::read_to_string(path).map_err(DataError::io(path)),
    }
}

/// Replaces a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("json.tmp");
    let written = fs::File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        DataError::io(path)(e)
    })
}

#[cfg(test)]
mod tests;
