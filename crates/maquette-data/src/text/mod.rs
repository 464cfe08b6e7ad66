//! Text as one row of tokens, and the windows a language model is trained and measured on.

mod read;

use std::path::{Path, PathBuf};

use maquette_rng::{Stream, rand::Rng as _, rng};
use sha2::{Digest, Sha256};

use crate::{DataError, Result, Tokenizer, images::hex};

pub(crate) use read::jsonl_text;
pub use read::{Pieces, files, pieces};

/// Text is tokenised in pieces of about this size, cut at line ends.
const PIECE_BYTES: usize = 1 << 20;

/// A row of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet {
    /// The tokens, in reading order.
    pub tokens: Vec<u32>,
}

/// A batch for next-token prediction: `targets[t] = inputs[t + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// `[batch, seq_len]`.
    pub inputs: Vec<u32>,
    /// `[batch, seq_len]`, one token later.
    pub targets: Vec<u32>,
    /// Rows.
    pub batch: usize,
    /// Columns.
    pub seq_len: usize,
}

impl Windows {
    /// Cuts one row for each start. Every start leaves room for `seq_len + 1` tokens.
    pub(crate) fn cut<'a>(rows: impl Iterator<Item = &'a [u32]>, seq_len: usize) -> Self {
        let (mut inputs, mut targets, mut batch) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            inputs.extend_from_slice(&row[..seq_len]);
            targets.extend_from_slice(&row[1..=seq_len]);
            batch += 1;
        }
        Self {
            inputs,
            targets,
            batch,
            seq_len,
        }
    }
}

impl TokenSet {
    /// Tokenises a text file, a JSONL file (`text` fields) or a folder of such files. Where the
    /// tokenizer has an end-of-text token it closes every document: each file, each JSONL line.
    ///
    /// # Errors
    /// When the path is missing or empty, text is not UTF-8, a JSONL line has no `text`, or the
    /// tokenizer does not know a character.
    pub fn open(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let separator = tokenizer.end_of_text();
        let mut tokens = Vec::new();
        for piece in pieces(&files(path.as_ref())?, PIECE_BYTES) {
            let piece = piece?;
            tokens.extend(tokenizer.encode(&piece.text)?);
            if piece.ends_document {
                tokens.extend(separator);
            }
        }
        Ok(Self { tokens })
    }

    /// Tokenises a text held in memory.
    ///
    /// # Errors
    /// When the tokenizer does not know a character.
    pub fn encode(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self {
            tokens: tokenizer.encode(text)?,
        })
    }

    /// How many tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Splits off the last `fraction` of the tokens: `(train, validation)`. Text is not shuffled:
    /// neighbouring windows would leak from one part into the other.
    ///
    /// # Errors
    /// When one part would be empty.
    pub fn split(&self, fraction: f64) -> Result<(TokenSet, TokenSet)> {
        let cut = (self.len() as f64 * (1.0 - fraction)) as usize;
        if !(0.0..1.0).contains(&fraction) || cut == 0 || cut >= self.len() {
            return Err(DataError::Config(format!(
                "a validation fraction of {fraction} of {} tokens leaves one part empty",
                self.len()
            )));
        }
        let (train, validation) = self.tokens.split_at(cut);
        Ok((
            TokenSet {
                tokens: train.to_vec(),
            },
            TokenSet {
                tokens: validation.to_vec(),
            },
        ))
    }

    /// Checks that windows of `seq_len` can be cut.
    ///
    /// # Errors
    /// When the set is shorter than `seq_len + 1` tokens, or either size is zero, or the batch is
    /// larger than the number of windows.
    pub fn check(&self, batch: usize, seq_len: usize) -> Result<()> {
        if batch == 0 || seq_len == 0 {
            return Err(DataError::Config(
                "batch and seq_len must be at least 1".into(),
            ));
        }
        if self.len() <= seq_len {
            return Err(DataError::ContextTooLong {
                seq_len,
                tokens: self.len(),
            });
        }
        match self.len() - seq_len {
            starts if batch > starts => Err(DataError::BatchTooLarge { batch, len: starts }),
            _ => Ok(()),
        }
    }

    /// `batch` windows at random places, a pure function of `(seed, step)`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn windows(&self, batch: usize, seq_len: usize, seed: u64, step: u64) -> Result<Windows> {
        self.check(batch, seq_len)?;
        let starts = (self.len() - seq_len) as u64;
        let mut rng = rng(seed, Stream::Shuffle, step);
        let rows = (0..batch).map(|_| &self.tokens[(rng.next_u64() % starts) as usize..]);
        Ok(Windows::cut(rows, seq_len))
    }

    /// Windows side by side from start to end, for evaluation: every token but the first is
    /// predicted exactly once. The last batch may have fewer rows, and what remains after the
    /// last full window comes as one row of its own.
    ///
    /// # Errors
    /// As [`check`](Self::check), though any batch size will do.
    pub fn coverage(&self, batch: usize, seq_len: usize) -> Result<impl Iterator<Item = Windows>> {
        self.check(batch.min(1), seq_len)?;
        let full = (self.len() - 1) / seq_len;
        let remainder = (self.len() - 1) % seq_len;
        let batches = (0..full).step_by(batch).map(move |first| {
            let rows = (first..(first + batch).min(full)).map(|w| &self.tokens[w * seq_len..]);
            Windows::cut(rows, seq_len)
        });
        let tail = (remainder > 0)
            .then(|| Windows::cut(std::iter::once(&self.tokens[full * seq_len..]), remainder));
        Ok(batches.chain(tail))
    }

    /// SHA-256 of the tokens, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        for token in &self.tokens {
            sha.update(token.to_le_bytes());
        }
        hex(&sha.finalize())
    }
}

/// The whole text of a file or folder, documents separated by a blank line. For small data only:
/// see [`pieces`] and [`TextStream`](crate::stream::TextStream).
///
/// # Errors
/// As [`TokenSet::open`].
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let files: Vec<PathBuf> = files(path.as_ref())?;
    let mut text = String::new();
    let mut pending = false;
    for piece in pieces(&files, PIECE_BYTES) {
        let piece = piece?;
        if pending {
            text.push_str("\n\n");
        }
        text.push_str(&piece.text);
        pending = piece.ends_document;
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
