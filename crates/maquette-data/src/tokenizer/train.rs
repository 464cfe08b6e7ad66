//! Learning a vocabulary from text at bounded memory.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer as HfTokenizer, Trainer,
};

use super::{Simple, Tokenizer, TokenizerKind, error};
use crate::{DataError, Result, text};

/// What a WordPiece token that continues a word begins with.
const PREFIX: &str = "##";
const NO_TEXT: &str = "there is no text to learn from";
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

    /// Learns from texts. The same texts give the same tokenizer, but for exact ties of unigram
    /// tokens.
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
            true => Err(error(NO_TEXT)),
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
        let mut trainer = TrainerWrapper::from(trainer);
        checked(texts, |texts| hf.train(&mut trainer, texts).map(drop))?;
        Tokenizer::hf(hf)
    }

    fn train_word_piece(
        &self,
        texts: impl Iterator<Item = Result<String>> + Send,
    ) -> Result<Tokenizer> {
        let unknown = "[UNK]";
        self.at_least(self.special_tokens.len() + 1, "the special tokens")?;
        let mut hf = HfTokenizer::new(WordPiece::default());
        hf.with_normalizer(Some(BertNormalizer::new(true, true, Some(false), false)))
            .map_err(error)?
            .with_pre_tokenizer(Some(BertPreTokenizer))
            .with_decoder(Some(WordPieceDecoder::new(PREFIX.into(), true)));
        let mut trainer = BpeTrainer::builder()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .show_progress(false)
            .special_tokens(self.special(Some(unknown)))
            .continuing_subword_prefix(PREFIX.into())
            .build();
        let inner = Mutex::new(BTreeSet::new());
        let split = |text: &str| {
            let words = words(&hf, text)?;
            let mut inner = inner.lock().unwrap_or_else(|e| e.into_inner());
            inner.extend(words.iter().flat_map(|w| w.chars().skip(1)));
            Ok(words)
        };
        checked(texts, |texts| trainer.feed(texts, split))?;
        // The trainer numbers characters inside words in the order of a hash table, which differs
        // from run to run. Naming them beforehand, in their own order, makes it repeatable.
        let inner = inner.into_inner().unwrap_or_else(|e| e.into_inner());
        let inner = inner
            .into_iter()
            .map(|c| AddedToken::from(format!("{PREFIX}{c}"), false));
        trainer.special_tokens.extend(inner);
        let mut bpe = BPE::default();
        trainer.train(&mut bpe).map_err(error)?;
        hf.with_model(WordPiece::from_bpe(&bpe));
        hf.add_special_tokens(self.special(Some(unknown)))
            .map_err(error)?;
        let named = |token: &str| Some((token.to_owned(), hf.token_to_id(token)?));
        if let (Some(cls), Some(sep)) = (named("[CLS]"), named("[SEP]")) {
            hf.with_post_processor(Some(BertProcessing::new(sep, cls)));
        }
        Tokenizer::hf(hf)
    }

    /// The library's own training walks hash tables, whose order differs from run to run: words
    /// are counted in order here, on one thread, and the result is put in order. Tokens that are
    /// exactly as good as each other, frequent in tiny texts only, can still change places.
    fn train_unigram(
        &self,
        texts: impl Iterator<Item = Result<String>> + Send,
    ) -> Result<Tokenizer> {
        let unknown = "<unk>";
        let special = self.special(Some(unknown));
        let trainer = UnigramTrainer::builder()
            .vocab_size(u32::try_from(self.vocab_size).map_err(error)?)
            .show_progress(false)
            .special_tokens(special.clone())
            .unk_token(Some(unknown.into()))
            .build()
            .map_err(error)?;
        let mut hf = HfTokenizer::new(Unigram::default());
        hf.with_pre_tokenizer(Some(Metaspace::default()))
            .with_decoder(Some(Metaspace::default()));
        let mut counts = BTreeMap::<String, u32>::new();
        for text in texts {
            for word in words(&hf, &text?).map_err(error)? {
                let count = counts.entry(word).or_default();
                *count = count.saturating_add(1);
            }
        }
        if counts.is_empty() {
            return Err(error(NO_TEXT));
        }
        let mut model = Unigram::default();
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(error)?;
        one.install(|| trainer.do_train(counts.into_iter().collect(), &mut model))
            .map_err(|e| error(format!("{e}; try another vocab_size")))?;
        let first = |token: &str| {
            special
                .iter()
                .position(|s| s.content == token)
                .unwrap_or(special.len())
        };
        // Scores of nine decimals survive being written and read.
        let rounded = |score: f64| (score * 1e9).round() / 1e9;
        let mut vocab: Vec<(String, f64)> = model
            .iter()
            .map(|(t, s)| (t.clone(), rounded(*s)))
            .collect();
        vocab.sort_by(|a, b| {
            let by_score = b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0));
            first(&a.0).cmp(&first(&b.0)).then(by_score)
        });
        hf.with_model(Unigram::from(vocab, Some(0), false).map_err(error)?);
        hf.add_special_tokens(special).map_err(error)?;
        Tokenizer::hf(hf)
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
}

/// Hands texts to a trainer; an error among them ends them and is the error of the whole.
fn checked<'a, T>(
    texts: impl Iterator<Item = Result<String>> + Send + 'a,
    train: impl FnOnce(Box<dyn Iterator<Item = String> + Send + '_>) -> tokenizers::Result<T>,
) -> Result<T> {
    let mut failed: Option<DataError> = None;
    let mut seen = false;
    let texts = texts.map_while(|text| text.map_err(|e| failed = Some(e)).ok());
    let trained = train(Box::new(texts.inspect(|_| seen = true)));
    match failed {
        Some(e) => Err(e),
        None if !seen => Err(error(NO_TEXT)),
        None => trained.map_err(|e| error(format!("{e}; try another vocab_size"))),
    }
}

/// The words of a text, as the tokenizer's own first steps cut it.
fn words(hf: &HfTokenizer, text: &str) -> tokenizers::Result<Vec<String>> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = hf.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    let mut cut = PreTokenizedString::from(normalized);
    if let Some(pre_tokenizer) = hf.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut cut)?;
    }
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(splits
        .into_iter()
        .map(|(word, ..)| word.to_owned())
        .collect())
}
