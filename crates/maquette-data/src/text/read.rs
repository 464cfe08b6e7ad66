//! Reading text files and JSONL at bounded memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::{DataError, Result};

/// One line of JSONL larger than this is refused.
const MAX_LINE: u64 = 64 << 20;

/// A stretch of text out of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether a document (a file, a JSONL line) ends here.
    pub ends_document: bool,
}

/// The text files at `path`: itself, or every `.txt`, `.text`, `.md` and `.jsonl` file below a
/// folder, sorted.
///
/// # Errors
/// When there is none.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.exists() {
        return Err(DataError::Missing(path.to_owned()));
    }
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.map_err(|e| DataError::io(path)(e.into()))?;
        let extension = entry.path().extension().and_then(|e| e.to_str());
        if entry.file_type().is_file() && matches!(extension, Some("txt" | "text" | "md" | "jsonl"))
        {
            files.push(entry.into_path());
        }
    }
    match files.is_empty() {
        true => Err(DataError::format(
            path,
            "no text in this folder; expected .txt, .md or .jsonl files",
        )),
        false => Ok(files),
    }
}

/// The text of `files` in pieces of about `piece_bytes`, cut at line ends where there are any.
/// Holds one piece at a time, however large the files are.
pub fn pieces(files: &[PathBuf], piece_bytes: usize) -> Pieces {
    Pieces {
        files: files.iter().cloned().collect(),
        piece_bytes: piece_bytes.max(64),
        open: None,
    }
}

/// The iterator made by [`pieces`]. After an error it ends.
#[derive(Debug)]
pub struct Pieces {
    files: VecDeque<PathBuf>,
    piece_bytes: usize,
    open: Option<Open>,
}

/// A file being read.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    reader: BufReader<File>,
    jsonl: bool,
    /// Bytes read and not yet given out: the beginning of a character.
    carry: Vec<u8>,
    /// Bytes and lines given out.
    offset: u64,
    lines: u64,
}

impl Iterator for Pieces {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.advance().transpose();
        if matches!(piece, Some(Err(_))) {
            self.files.clear();
            self.open = None;
        }
        piece
    }
}

impl Pieces {
    fn advance(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.open.is_none() {
                let Some(path) = self.files.pop_front() else {
                    return Ok(None);
                };
                self.open = Some(Open::new(path)?);
            }
            let Some(open) = &mut self.open else {
                continue;
            };
            let piece = match open.jsonl {
                true => open.line()?,
                false => open.piece(self.piece_bytes)?,
            };
            if piece.is_some() {
                return Ok(piece);
            }
            self.open = None;
        }
    }
}

impl Open {
    fn new(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(DataError::io(&path))?;
        let metadata = file.metadata().map_err(DataError::io(&path))?;
        if metadata.is_file() && metadata.len() == 0 {
            return Err(DataError::Empty(path));
        }
        Ok(Self {
            jsonl: path.extension().is_some_and(|e| e == "jsonl"),
            reader: BufReader::new(file),
            carry: Vec::new(),
            offset: 0,
            lines: 0,
            path,
        })
    }

    /// The next stretch of a plain text file.
    fn piece(&mut self, bytes: usize) -> Result<Option<Piece>> {
        let mut buffer = std::mem::take(&mut self.carry);
        let io = |e| DataError::io(&self.path)(e);
        let limit = bytes as u64;
        (&mut self.reader)
            .take(limit)
            .read_to_end(&mut buffer)
            .map_err(io)?;
        (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut buffer)
            .map_err(io)?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let at_end = self.reader.fill_buf().map_err(io)?.is_empty();
        if let Err(e) = std::str::from_utf8(&buffer) {
            // A cut through the middle of a character is completed by the next read.
            if e.error_len().is_some() || at_end {
                return Err(self.not_utf8(&buffer[..e.valid_up_to()]));
            }
            self.carry = buffer.split_off(e.valid_up_to());
        }
        self.offset += buffer.len() as u64;
        self.lines += newlines(&buffer);
        let text = String::from_utf8(buffer).expect("validated above");
        Ok(Some(Piece {
            text,
            ends_document: at_end,
        }))
    }

    /// The `text` of the next line of JSONL that is not blank.
    fn line(&mut self) -> Result<Option<Piece>> {
        loop {
            let mut buffer = Vec::new();
            let read = (&mut self.reader)
                .take(MAX_LINE + 1)
                .read_until(b'\n', &mut buffer)
                .map_err(DataError::io(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            let wrong = |reason: String| DataError::Jsonl {
                path: self.path.clone(),
                line: self.lines + 1,
                reason,
            };
            if read as u64 > MAX_LINE {
                return Err(wrong(format!("longer than {MAX_LINE} bytes")));
            }
            let line = match std::str::from_utf8(&buffer) {
                Ok(line) => line,
                Err(e) => return Err(self.not_utf8(&buffer[..e.valid_up_to()])),
            };
            let piece = match line.trim().is_empty() {
                true => None,
                false => Some(Piece {
                    text: jsonl_text(line).map_err(wrong)?,
                    ends_document: true,
                }),
            };
            self.offset += read as u64;
            self.lines += 1;
            if piece.is_some() {
                return Ok(piece);
            }
        }
    }

    /// The error for a bad byte that follows `valid`, itself following what was given out.
    fn not_utf8(&self, valid: &[u8]) -> DataError {
        DataError::NotUtf8 {
            path: self.path.clone(),
            offset: self.offset + valid.len() as u64,
            line: self.lines + newlines(valid) + 1,
        }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

/// The `text` field of one JSONL line; the error says what is there instead.
pub(crate) fn jsonl_text(line: &str) -> Result<String, String> {
    use serde_json::Value;
    let value: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let Value::Object(mut fields) = value else {
        return Err("expected an object with a `text` field".into());
    };
    match fields.remove("text") {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err("the `text` field is not a string".into()),
        None => {
            let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
            Err(format!(
                "no `text` field; the line has: {}",
                keys.join(", ")
            ))
        }
    }
}
