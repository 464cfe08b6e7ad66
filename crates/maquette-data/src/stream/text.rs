//! Windows of tokens out of text files of any size.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maquette_rng::{Stream, rand::Rng as _, rng, seed_for};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ShuffleBuffer;
use crate::images::hex;
use crate::text::{files, jsonl_text};
use crate::{DataError, Result, TokenSet, Tokenizer, Windows};

/// How far after its nominal place a chunk may begin, looking for the end of a word.
const LOOK_AHEAD: u64 = 256;
/// One line of JSONL larger than this is refused.
const MAX_LINE: u64 = 64 << 20;
/// Of each file, this many blocks of `BLOCK` bytes go into the fingerprint.
const BLOCKS: u64 = 64;
const BLOCK: u64 = 4096;

/// How a text stream cuts and shuffles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextStreamConfig {
    /// Rows of a batch; each reads a chunk of its own.
    pub batch: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Size of a chunk in bytes, at least 1024. A chunk gives several windows.
    pub chunk_bytes: u64,
    /// Chunks in the shuffle buffer (their numbers only).
    pub buffer: usize,
    /// Fraction of the chunks, at the end, that is left for validation.
    pub holdout: f64,
}

impl Default for TextStreamConfig {
    fn default() -> Self {
        Self {
            batch: 12,
            seq_len: 64,
            seed: 0,
            chunk_bytes: 32 << 10,
            buffer: 1024,
            holdout: 0.0,
        }
    }
}

impl TextStreamConfig {
    fn check(&self) -> Result<()> {
        let fits = self.batch > 0
            && self.seq_len > 0
            && (1024..=1 << 30).contains(&self.chunk_bytes)
            && (0.0..1.0).contains(&self.holdout);
        match fits {
            true => Ok(()),
            false => Err(DataError::Config(format!(
                "a text stream needs batch and seq_len above 0, chunk_bytes of 1 KiB to 1 GiB \
                 and holdout in 0..1; got {self:?}"
            ))),
        }
    }
}

/// Reads text and JSONL files of any size as an endless row of batches.
///
/// Files are cut into chunks near multiples of `chunk_bytes`, at a line end or before a space
/// (JSONL: between lines). Each of the `batch` rows walks through a chunk window by window, from
/// a random first token so that other epochs cut it elsewhere, and then draws another chunk.
#[derive(Debug)]
pub struct TextStream {
    config: TextStreamConfig,
    tokenizer: Arc<Tokenizer>,
    source: Source,
    shuffle: ShuffleBuffer,
    lanes: Vec<Lane>,
    /// SHA-256 of data and tokenizer, by which a saved position knows them again.
    data_hash: String,
    tokenizer_hash: String,
}

/// Where a text stream stands. Small, and independent of the size of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextStreamState {
    config: TextStreamConfig,
    data: String,
    tokenizer: String,
    shuffle: ShuffleBuffer,
    rows: Vec<Option<Position>>,
}

/// A chunk being read, and the token at which its next window begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    chunk: u64,
    token: usize,
}

#[derive(Debug, Default)]
struct Lane {
    position: Option<Position>,
    tokens: Vec<u32>,
}

impl TextStream {
    /// Opens a text file, a JSONL file or a folder of such files.
    ///
    /// # Errors
    /// When nothing is there, a file is empty, or the configuration is out of range.
    pub fn open(
        path: impl AsRef<Path>,
        tokenizer: Arc<Tokenizer>,
        config: TextStreamConfig,
    ) -> Result<Self> {
        config.check()?;
        let source = Source::open(path.as_ref(), config.chunk_bytes)?;
        let records = source.train_chunks(config.holdout)?;
        Ok(Self {
            shuffle: ShuffleBuffer::new(records, config.buffer, config.seed)?,
            lanes: (0..config.batch).map(|_| Lane::default()).collect(),
            data_hash: source.fingerprint()?,
            tokenizer_hash: tokenizer.hash()?,
            config,
            tokenizer,
            source,
        })
    }

    /// Opens the same data again and goes to a saved position.
    ///
    /// # Errors
    /// When data or tokenizer are not those of the saved position.
    pub fn resume(
        path: impl AsRef<Path>,
        tokenizer: Arc<Tokenizer>,
        state: TextStreamState,
    ) -> Result<Self> {
        let mut stream = Self::open(path, tokenizer, state.config)?;
        if stream.data_hash != state.data {
            return Err(DataError::Resume("the text files have changed".into()));
        }
        if stream.tokenizer_hash != state.tokenizer {
            return Err(DataError::Resume("the tokenizer has changed".into()));
        }
        if state.rows.len() != stream.lanes.len() {
            return Err(DataError::Resume(
                "the saved rows are not as many as the batch".into(),
            ));
        }
        let records = stream.shuffle.records;
        state
            .shuffle
            .check(records, stream.config.buffer, stream.config.seed)?;
        stream.shuffle = state.shuffle;
        for (k, position) in state.rows.into_iter().enumerate() {
            if let Some(at) = position {
                if at.chunk >= records {
                    return Err(DataError::Resume("a saved row is outside the data".into()));
                }
                stream.lanes[k].tokens = stream.source.tokens(at.chunk, &stream.tokenizer)?;
            }
            stream.lanes[k].position = position;
        }
        Ok(stream)
    }

    /// Where the stream stands: what follows the batches given out so far.
    pub fn state(&self) -> TextStreamState {
        TextStreamState {
            config: self.config.clone(),
            data: self.data_hash.clone(),
            tokenizer: self.tokenizer_hash.clone(),
            shuffle: self.shuffle.clone(),
            rows: self.lanes.iter().map(|lane| lane.position).collect(),
        }
    }

    /// Passes over the data begun before this one.
    pub fn epoch(&self) -> u64 {
        self.shuffle.epoch
    }

    /// SHA-256 of the sizes of the files and of blocks spread evenly over them, in hexadecimal. A
    /// change between the blocks that keeps the size goes unnoticed: reading all of the data
    /// would take as long as an epoch.
    pub fn hash(&self) -> &str {
        &self.data_hash
    }

    /// The next batch.
    ///
    /// # Errors
    /// When a file cannot be read or is not UTF-8, or no chunk holds `seq_len + 1` tokens.
    pub fn next_batch(&mut self) -> Result<Windows> {
        for k in 0..self.lanes.len() {
            let lane = &self.lanes[k];
            let left = lane
                .position
                .map_or(0, |at| lane.tokens.len().saturating_sub(at.token));
            if left <= self.config.seq_len {
                self.lanes[k] = self.fresh_lane()?;
            }
        }
        let seq_len = self.config.seq_len;
        let rows = self
            .lanes
            .iter()
            .filter_map(|l| Some(&l.tokens[l.position?.token..]));
        let windows = Windows::cut(rows, seq_len);
        for position in self.lanes.iter_mut().filter_map(|l| l.position.as_mut()) {
            position.token += seq_len;
        }
        Ok(windows)
    }

    /// Draws chunks until one is long enough for a window.
    fn fresh_lane(&mut self) -> Result<Lane> {
        let seq_len = self.config.seq_len;
        let mut longest = 0;
        for _ in 0..=self.shuffle.records {
            let (epoch, chunk) = self.shuffle.draw();
            let tokens = self.source.tokens(chunk, &self.tokenizer)?;
            longest = longest.max(tokens.len());
            if tokens.len() > seq_len {
                let spare = (tokens.len() - 1) % seq_len;
                let key = seed_for(self.config.seed, Stream::Data, epoch);
                let skip = rng(key, Stream::Data, chunk).next_u64() % (spare as u64 + 1);
                let position = Some(Position {
                    chunk,
                    token: skip as usize,
                });
                return Ok(Lane { position, tokens });
            }
        }
        Err(DataError::ContextTooLong {
            seq_len,
            tokens: longest,
        })
    }

    /// The held-out end of the data as tokens, at most about `max_tokens` of them.
    ///
    /// # Errors
    /// When `holdout` is 0, or the text cannot be read.
    pub fn holdout(&mut self, max_tokens: usize) -> Result<TokenSet> {
        let mut tokens = Vec::new();
        for chunk in self.shuffle.records..self.source.chunks() {
            if tokens.len() >= max_tokens {
                break;
            }
            tokens.extend(self.source.tokens(chunk, &self.tokenizer)?);
        }
        tokens.truncate(max_tokens);
        match tokens.is_empty() {
            true => Err(DataError::Config(
                "this text stream holds nothing out: set `holdout`".into(),
            )),
            false => Ok(TokenSet { tokens }),
        }
    }
}

/// The files, as one row of chunks.
#[derive(Debug)]
struct Source {
    files: Vec<SourceFile>,
    chunk_bytes: u64,
    /// The file last read.
    open: Option<(usize, File)>,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    bytes: u64,
    /// Chunks in this file and those before it.
    chunks_to_here: u64,
    jsonl: bool,
}

impl Source {
    fn open(path: &Path, chunk_bytes: u64) -> Result<Self> {
        let mut chunks = 0;
        let mut list = Vec::new();
        for path in files(path)? {
            let bytes = std::fs::metadata(&path)
                .map_err(DataError::io(&path))?
                .len();
            if bytes == 0 {
                return Err(DataError::Empty(path));
            }
            // The last chunk of a file takes what does not make another whole one.
            chunks += (bytes / chunk_bytes).max(1);
            let jsonl = path.extension().is_some_and(|e| e == "jsonl");
            list.push(SourceFile {
                path,
                bytes,
                chunks_to_here: chunks,
                jsonl,
            });
        }
        Ok(Self {
            files: list,
            chunk_bytes,
            open: None,
        })
    }

    fn chunks(&self) -> u64 {
        self.files.last().map_or(0, |f| f.chunks_to_here)
    }

    fn train_chunks(&self, holdout: f64) -> Result<u64> {
        let chunks = self.chunks();
        let train = chunks - (chunks as f64 * holdout).ceil() as u64;
        match train {
            0 => Err(DataError::Config(format!(
                "holding out {holdout} of {chunks} chunks leaves none to train on; lower chunk_bytes"
            ))),
            train => Ok(train),
        }
    }

    /// The tokens of one chunk.
    fn tokens(&mut self, chunk: u64, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let index = self.files.partition_point(|f| f.chunks_to_here <= chunk);
        let before = index
            .checked_sub(1)
            .map_or(0, |i| self.files[i].chunks_to_here);
        let info = &self.files[index];
        let (from, last) = (
            (chunk - before) * self.chunk_bytes,
            chunk + 1 == info.chunks_to_here,
        );
        let to = if last {
            info.bytes
        } else {
            from + self.chunk_bytes
        };
        let file = match &mut self.open {
            Some((open, file)) if *open == index => file,
            slot => {
                &mut slot
                    .insert((
                        index,
                        File::open(&info.path).map_err(DataError::io(&info.path))?,
                    ))
                    .1
            }
        };
        let separator = tokenizer.end_of_text();
        if info.jsonl {
            return jsonl_tokens(file, info, from..to, tokenizer);
        }
        let text = plain_chunk(file, info, from..to)?;
        let mut tokens = tokenizer.encode(&text)?;
        tokens.extend(separator.filter(|_| last));
        Ok(tokens)
    }

    fn fingerprint(&self) -> Result<String> {
        let mut sha = Sha256::new();
        for info in &self.files {
            sha.update(info.bytes.to_le_bytes());
            let io = |e| DataError::io(&info.path)(e);
            let mut file = File::open(&info.path).map_err(io)?;
            for k in 0..BLOCKS {
                let at = info.bytes.saturating_sub(BLOCK) as u128 * u128::from(k)
                    / u128::from(BLOCKS - 1);
                file.seek(SeekFrom::Start(at as u64)).map_err(io)?;
                let mut block = Vec::new();
                (&mut file)
                    .take(BLOCK)
                    .read_to_end(&mut block)
                    .map_err(io)?;
                sha.update(&block);
            }
        }
        Ok(hex(&sha.finalize()))
    }
}

/// The text of one chunk of a plain file: both ends moved on to the end of a word.
fn plain_chunk(file: &mut File, info: &SourceFile, range: std::ops::Range<u64>) -> Result<String> {
    let io = |e| DataError::io(&info.path)(e);
    // One byte more in front, to see whether the chunk begins a line.
    let base = range.start.saturating_sub(1);
    file.seek(SeekFrom::Start(base)).map_err(io)?;
    let mut bytes = Vec::new();
    let want = (range.end + LOOK_AHEAD).min(info.bytes) - base;
    file.take(want).read_to_end(&mut bytes).map_err(io)?;
    if (bytes.len() as u64) < want {
        return Err(DataError::format(
            &info.path,
            "the file became shorter while it was read",
        ));
    }
    let begin = match range.start {
        0 => 0,
        _ => boundary(&bytes, (range.start - base) as usize),
    };
    let end = match range.end == info.bytes {
        true => bytes.len(),
        false => boundary(&bytes, (range.end - base) as usize),
    };
    bytes.truncate(end);
    bytes.drain(..begin);
    String::from_utf8(bytes).map_err(|e| {
        let offset = base + begin as u64 + e.utf8_error().valid_up_to() as u64;
        not_utf8(&info.path, offset)
    })
}

/// The first place from `at` on where a line begins or a space stands, near enough; otherwise
/// where a character begins. The boundary of a later place is never earlier, so chunks meet.
fn boundary(bytes: &[u8], at: usize) -> usize {
    let stop = bytes.len().min(at + LOOK_AHEAD as usize);
    let word = (at..stop).find(|&p| bytes[p] == b' ' || bytes[p - 1] == b'\n');
    word.unwrap_or_else(|| {
        let starts = |p: &usize| bytes[*p] & 0b1100_0000 != 0b1000_0000;
        (at..stop).find(starts).unwrap_or(stop)
    })
}

/// The documents whose lines begin within `range`, each closed by the end-of-text token.
fn jsonl_tokens(
    file: &mut File,
    info: &SourceFile,
    range: std::ops::Range<u64>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let io = |e| DataError::io(&info.path)(e);
    let mut at = range.start.saturating_sub(1);
    file.seek(SeekFrom::Start(at)).map_err(io)?;
    let mut reader = BufReader::new(file);
    if range.start > 0 {
        at += reader.skip_until(b'\n').map_err(io)? as u64;
    }
    let mut tokens = Vec::new();
    while at < range.end {
        let mut line = Vec::new();
        let read = (&mut reader)
            .take(MAX_LINE + 1)
            .read_until(b'\n', &mut line)
            .map_err(io)? as u64;
        if read == 0 {
            break;
        }
        let wrong = |reason| DataError::Jsonl {
            path: info.path.clone(),
            line: line_of(&info.path, at),
            reason,
        };
        if read > MAX_LINE {
            return Err(wrong(format!("longer than {MAX_LINE} bytes")));
        }
        let line = std::str::from_utf8(&line)
            .map_err(|e| not_utf8(&info.path, at + e.valid_up_to() as u64))?;
        if !line.trim().is_empty() {
            tokens.extend(tokenizer.encode(&jsonl_text(line).map_err(wrong)?)?);
            tokens.extend(tokenizer.end_of_text());
        }
        at += read;
    }
    Ok(tokens)
}

fn not_utf8(path: &Path, offset: u64) -> DataError {
    DataError::NotUtf8 {
        path: path.to_owned(),
        offset,
        line: line_of(path, offset),
    }
}

/// The line, from 1, in which a byte stands. Walks the file from its start, once an error has
/// already happened; 0 when it cannot be read any more.
fn line_of(path: &Path, offset: u64) -> u64 {
    let Ok(file) = File::open(path) else {
        return 0;
    };
    let mut reader = BufReader::new(file.take(offset));
    let mut line = 1;
    loop {
        let Ok(buffer) = reader.fill_buf() else {
            return 0;
        };
        if buffer.is_empty() {
            return line;
        }
        line += buffer.iter().filter(|b| **b == b'\n').count() as u64;
        let n = buffer.len();
        reader.consume(n);
    }
}
