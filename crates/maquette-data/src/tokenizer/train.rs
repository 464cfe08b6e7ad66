//! Learning a vocabulary from text at bounded memory.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use super::{Simple, Tokenizer, TokenizerKind, error};
use crate::{DataError, Result, text};

/// Text is read in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;

/// How to make a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerConfig {
    /// How text becomes tokens.
    pub kind: TokenizerKind,
    /// Size of the vocabulary to learn, special tokens included (bpe, word-piece, unigram); a
    /// small text may give fewer. Bytes and characters have the size they have.
    pub vocab_size: usize,
    /// Tokens with a meaning of their own, such as `<|endoftext|>`.
    pub special_tokens: Vec<String>,
    /// Pairs seen less often are not merged (bpe, word-piece).
    pub min_frequency: u64,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            kind: TokenizerKind::Bpe,
            vocab_size: 8000,
            special_tokens: Vec::new(),
            min_frequency: 2,
        }
    }
}

impl TokenizerConfig {
    /// Learns from text and JSONL files. Memory grows with the number of different words, not
    /// with the size of the files.
    ///
    /// # Errors
    /// When a file cannot be read or a setting does not fit the text.
    pub fn train_files(&self, files: &[PathBuf]) -> Result<Tokenizer> {
        let pieces = text::pieces(files, PIECE_BYTES);
        self.train(pieces.map(|piece| Ok(piece?.text)))
    }

    /// Learns from texts.
    ///
    /// # Errors
    /// The first error among the texts, or a setting that does not fit them.
    pub fn train(&self, texts: impl Iterator<Item = Result<String>> + Send) -> Result<Tokenizer> {
        if self.special_tokens.iter().any(String::is_empty) {
            return Err(error("a special token is empty"));
        }
        match self.kind {
            TokenizerKind::Byte => Ok(Tokenizer::byte(&self.special_tokens)),
            TokenizerKind::Char => self.train_chars(texts),
            TokenizerKind::Bpe => self.train_bpe(texts),
            TokenizerKind::WordPiece => self.train_word_piece(texts),
            TokenizerKind::Unigram => self.train_unigram(texts),
            TokenizerKind::WordLevel => Err(error(
                "word-level vocabularies are opened, not trained; use byte, char, bpe, word-piece or unigram",
            )),
        }
    }

    fn train_chars(&self, texts: impl Iterator<Item = Result<String>>) -> Result<Tokenizer> {
        let mut chars = BTreeSet::new();
        for text in texts {
            let mut text = text?;
            for token in &self.special_tokens {
                text = text.replace(token, "");
            }
            chars.extend(text.chars());
        }
        match chars.is_empty() {
            true => Err(error("there is no text to learn characters from")),
            false => Ok(Tokenizer::simple(Simple::chars(
                chars,
                &self.special_tokens,
            ))),
        }
    }

    fn train_bpe(&self, texts: impl Iterator<Item = Result<String>> + Send) -> Result<Tokenizer> {
        self.at_least(
            256 + self.special_tokens.len(),
            "the 256 bytes and the special tokens",
        )?;
        let trainer = BpeTrainer::builder()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .show_progress(false)
            .special_tokens(self.special(None))
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
            .build();
        let mut hf = HfTokenizer::new(BPE::default());
        hf.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::default()));
        self.fit(hf, trainer, texts)
    }

    fn train_word_piece(
        &self,
        texts: impl Iterator<Item = Result<String>> + Send,
    ) -> Result<Tokenizer> {
        let unknown = "[UNK]";
        self.at_least(self.special_tokens.len() + 1, "the special tokens")?;
        let trainer = WordPieceTrainer::builder()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .show_progress(false)
            .special_tokens(self.special(Some(unknown)))
            .build();
        let model = WordPiece::builder()
            .unk_token(unknown.into())
            .build()
            .map_err(error)?;
        let mut hf = HfTokenizer::new(model);
        hf.with_normalizer(Some(BertNormalizer::new(true, true, Some(false), false)))
            .map_err(error)?
            .with_pre_tokenizer(Some(BertPreTokenizer))
            .with_decoder(Some(WordPieceDecoder::new("##".into(), true)));
        self.fit(hf, trainer, texts)
    }

    fn train_unigram(
        &self,
        texts: impl Iterator<Item = Result<String>> + Send,
    ) -> Result<Tokenizer> {
        let unknown = "<unk>";
        let size = u32::try_from(self.vocab_size).map_err(error)?;
        let trainer = UnigramTrainer::builder()
            .vocab_size(size)
            .show_progress(false)
            .special_tokens(self.special(Some(unknown)))
            .unk_token(Some(unknown.into()))
            .build()
            .map_err(error)?;
        let mut hf = HfTokenizer::new(Unigram::default());
        hf.with_pre_tokenizer(Some(Metaspace::default()))
            .with_decoder(Some(Metaspace::default()));
        self.fit(hf, trainer, texts)
    }

    fn at_least(&self, size: usize, what: &str) -> Result<()> {
        match self.vocab_size < size {
            true => Err(error(format!(
                "vocab_size = {} has no room for {what}; give at least {size}",
                self.vocab_size
            ))),
            false => Ok(()),
        }
    }

    /// The special tokens, the one for unknown text first where a model needs one.
    fn special(&self, unknown: Option<&str>) -> Vec<AddedToken> {
        let asked = self.special_tokens.iter().map(String::as_str);
        let rest = asked.filter(|t| Some(*t) != unknown);
        unknown
            .into_iter()
            .chain(rest)
            .map(|t| AddedToken::from(t, true))
            .collect()
    }

    /// Runs a trainer; an error among the texts ends them and is the error of the whole.
    fn fit(
        &self,
        mut hf: HfTokenizer,
        trainer: impl Into<TrainerWrapper>,
        texts: impl Iterator<Item = Result<String>> + Send,
    ) -> Result<Tokenizer> {
        let mut trainer = trainer.into();
        let mut failed: Option<DataError> = None;
        let mut seen = false;
        let texts = texts.map_while(|text| text.map_err(|e| failed = Some(e)).ok());
        let trained = hf
            .train(&mut trainer, texts.inspect(|_| seen = true))
            .map(drop);
        if let Some(e) = failed {
            return Err(e);
        }
        if !seen {
            return Err(error("there is no text to learn from"));
        }
        trained.map_err(|e| error(format!("{e}; try another vocab_size")))?;
        Tokenizer::hf(hf)
    }
}
