//! Text as the data of a recipe: where it comes from, its tokens, and batches of windows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::stream::{TextStream, TextStreamConfig, TextStreamState};
use maquette_data::tokenizer::TokenizerConfig;
use maquette_data::{TokenSet, Tokenizer, Windows, stories, text};
use serde::{Deserialize, Serialize};

use super::sections::missing_path;
use crate::files::write_atomic;
use crate::spec::Invalid;
use crate::{Batch, BoxError, Run, TrainError};

/// Windows of held-out text that a streamed run is measured on, unless the recipe says otherwise.
const STREAMED_WINDOWS: usize = 1024;

/// Where text comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextSource {
    /// A text or JSONL file, or a folder of them; `--data` gives it.
    Path,
    /// Short stories from a grammar. No download.
    Stories,
}

/// `[data]` of a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextData {
    /// Where it comes from.
    pub source: TextSource,
    /// The path, for `source = "path"`; `--data` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How many stories, for `source = "stories"`.
    #[serde(default = "stories_count")]
    pub count: usize,
    /// The last share of the text is held out.
    #[serde(default = "tenth")]
    pub validation: f64,
    /// Read from disk while training, at constant memory.
    #[serde(default)]
    pub streaming: bool,
    /// Documents, each closed by the tokenizer's end-of-text token, do not look into each other
    /// where several stand in one window.
    #[serde(default)]
    pub packing: bool,
    /// Windows among which a streamed batch is drawn.
    #[serde(default = "buffer")]
    pub shuffle_buffer: usize,
    /// Windows of held-out text measured at a validation; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_windows: Option<usize>,
}

fn stories_count() -> usize {
    8000
}

fn tenth() -> f64 {
    0.1
}

fn buffer() -> usize {
    4096
}

impl TextData {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(0.0 < self.validation && self.validation < 1.0) {
            return Err(Invalid::new(
                "validation",
                "must lie between 0 and 1",
                "0.1 holds out a tenth",
            ));
        }
        if self.packing && self.streaming {
            let help = "leave one of them out";
            return Err(Invalid::new(
                "packing",
                "does not go with streaming yet",
                help,
            ));
        }
        if self.shuffle_buffer == 0 || self.count == 0 {
            return Err(Invalid::new(
                "shuffle_buffer",
                "shuffle_buffer and count must be at least 1",
                "try 4096",
            ));
        }
        Ok(())
    }
}

/// What is read, and the shape of the batches made of it.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) data: &'a TextData,
    pub(super) tokenizer: &'a TokenizerConfig,
    pub(super) batch: usize,
    pub(super) seq_len: usize,
    pub(super) seed: u64,
}

/// Text ready for a model.
pub(super) struct Corpus {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) train: TrainText,
    pub(super) validation: TokenSet,
    /// Bytes of the held-out text, for bits per byte.
    pub(super) validation_bytes: usize,
    pub(super) sha256: String,
}

/// Where training windows come from.
pub(super) enum TrainText {
    /// Any window of text held in memory; a function of the step.
    Memory(TokenSet),
    /// Windows read from disk in the order of a shuffle buffer.
    Disk(Box<TextStream>),
}

impl TrainText {
    /// Goes on where `run` was, if text is streamed.
    pub(super) fn resume(
        self,
        run: Option<&Run>,
        path: Option<&Path>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<Self, TrainError> {
        let (Self::Disk(_), Some(state), Some(path)) =
            (&self, run.and_then(Run::stream_state), path)
        else {
            return Ok(self);
        };
        let state: TextStreamState =
            serde_json::from_value(state.clone()).map_err(TrainError::other)?;
        let stream =
            TextStream::resume(path, tokenizer.clone(), state).map_err(TrainError::other)?;
        Ok(Self::Disk(Box::new(stream)))
    }

    /// The micro-batch `step` of the run.
    pub(super) fn batch(
        &mut self,
        reading: Reading<'_>,
        step: u64,
    ) -> Result<Batch<Windows>, BoxError> {
        match self {
            Self::Memory(tokens) => Ok(tokens
                .windows(reading.batch, reading.seq_len, reading.seed, step)?
                .into()),
            Self::Disk(stream) => {
                let data = stream.next_batch()?;
                Ok(Batch {
                    data,
                    stream: Some(serde_json::to_value(stream.state())?),
                })
            }
        }
    }
}

impl Reading<'_> {
    /// The text on disk, if any is read. Streamed stories are written to a file first.
    pub(super) fn path(self, given: Option<&Path>) -> Result<Option<PathBuf>, TrainError> {
        let count = self.data.count;
        match self.data.source {
            TextSource::Path => Ok(Some(given.ok_or_else(missing_path)?.to_owned())),
            TextSource::Stories if self.data.streaming => {
                let name = format!("maquette-stories-{count}-{}.txt", self.seed);
                let file = std::env::temp_dir().join(name);
                write_atomic(&file, stories::generate(count, self.seed).as_bytes())?;
                Ok(Some(file))
            }
            TextSource::Stories => Ok(None),
        }
    }

    /// The token that closes a document, where documents are packed.
    pub(super) fn packing(self, tokenizer: &Tokenizer) -> Result<Option<u32>, TrainError> {
        match (self.data.packing, tokenizer.end_of_text()) {
            (false, _) => Ok(None),
            (true, Some(end)) => Ok(Some(end)),
            (true, None) => Err(TrainError::other(
                "data.packing needs a token that closes a document; add \
                 special_tokens = [\"<|endoftext|>\"] to [tokenizer]",
            )),
        }
    }
}

/// The documents at `path` (files, JSONL lines) or the stories of `whole`, each closed by `end`.
fn documents(
    path: Option<&Path>,
    whole: &str,
    tokenizer: &Tokenizer,
    end: u32,
) -> Result<TokenSet, TrainError> {
    if let Some(path) = path {
        return TokenSet::open(path, tokenizer).map_err(TrainError::other);
    }
    let mut tokens = Vec::new();
    for story in whole.split("\n\n").filter(|story| !story.is_empty()) {
        tokens.extend(tokenizer.encode(story).map_err(TrainError::other)?);
        tokens.push(end);
    }
    Ok(TokenSet { tokens })
}

impl Corpus {
    /// Text, a tokenizer learnt from it, and what is held out.
    pub(super) fn open(reading: Reading<'_>, path: Option<&Path>) -> Result<Self, TrainError> {
        let data = reading.data;
        let whole = match path {
            Some(path) if data.streaming => return Self::stream(reading, path),
            Some(path) => text::read(path).map_err(TrainError::other)?,
            None => stories::generate(data.count, reading.seed),
        };
        let tokenizer = reading
            .tokenizer
            .train(std::iter::once(Ok(whole.clone())))
            .map_err(TrainError::other)?;
        let tokens = match reading.packing(&tokenizer)? {
            None => TokenSet::encode(&whole, &tokenizer).map_err(TrainError::other)?,
            Some(end) => documents(path, &whole, &tokenizer, end)?,
        };
        let (train, validation) = tokens.split(data.validation).map_err(TrainError::other)?;
        train
            .check(reading.batch, reading.seq_len)
            .map_err(TrainError::other)?;
        Self::new(
            tokenizer,
            TrainText::Memory(train),
            validation,
            tokens.hash(),
            reading.seq_len,
        )
    }

    /// A stream over files of any size. A learnt vocabulary comes from their first 32 MiB.
    fn stream(reading: Reading<'_>, path: &Path) -> Result<Self, TrainError> {
        const PIECE: usize = 64 << 10;
        const PIECES: usize = 512;
        let files = text::files(path).map_err(TrainError::other)?;
        let head = text::pieces(&files, PIECE)
            .take(PIECES)
            .map(|piece| Ok(piece?.text));
        let tokenizer = Arc::new(reading.tokenizer.train(head).map_err(TrainError::other)?);
        let config = TextStreamConfig {
            batch: reading.batch,
            seq_len: reading.seq_len,
            seed: reading.seed,
            buffer: reading.data.shuffle_buffer,
            holdout: reading.data.validation,
            ..TextStreamConfig::default()
        };
        let mut stream =
            TextStream::open(path, tokenizer.clone(), config).map_err(TrainError::other)?;
        let windows = reading.data.validation_windows.unwrap_or(STREAMED_WINDOWS);
        let validation = stream
            .holdout(windows * reading.seq_len)
            .map_err(TrainError::other)?;
        let sha256 = stream.hash().to_owned();
        let tokenizer = Arc::unwrap_or_clone(tokenizer);
        Self::new(
            tokenizer,
            TrainText::Disk(Box::new(stream)),
            validation,
            sha256,
            reading.seq_len,
        )
    }

    fn new(
        tokenizer: Tokenizer,
        train: TrainText,
        validation: TokenSet,
        sha256: String,
        seq_len: usize,
    ) -> Result<Self, TrainError> {
        validation.check(1, seq_len).map_err(TrainError::other)?;
        let validation_bytes = tokenizer
            .decode(&validation.tokens)
            .map_err(TrainError::other)?
            .len();
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            train,
            validation,
            validation_bytes,
            sha256,
        })
    }
}

/// `[batch, seq_len]` inputs and targets.
pub(super) fn tensors(windows: &Windows, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let tensor = |ids: &[u32]| {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        Tensor::from_data(
            TensorData::new(ids, [windows.batch, windows.seq_len]),
            device,
        )
    };
    (tensor(&windows.inputs), tensor(&windows.targets))
}
