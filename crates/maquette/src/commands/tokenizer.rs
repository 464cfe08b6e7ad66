//! `maquette tokenizer`: train, encode, decode, inspect.

use std::io::Read;
use std::path::{Path, PathBuf};

use maquette::data::hub::Want;
use maquette::data::{Tokenizer, text, tokenizer};
use serde_json::json;

use super::hub;
use super::progress::Status;
use crate::args::{TokenizerCommand, TokenizerKind};
use crate::errors::{Usage, failed};
use crate::output::Output;

/// Run one of the sub-commands.
pub(crate) fn run(command: TokenizerCommand, output: Output) -> miette::Result<()> {
    match command {
        TokenizerCommand::Train {
            files,
            kind,
            vocab_size,
            special,
            out,
        } => {
            let config = tokenizer::TokenizerConfig {
                kind: kind.into(),
                vocab_size,
                special_tokens: special,
                ..tokenizer::TokenizerConfig::default()
            };
            train(&config, &files, out, output)
        }
        TokenizerCommand::Encode { tokenizer, text } => {
            let tokenizer = load(&tokenizer, output)?;
            let text = text.map_or_else(stdin, Ok)?;
            let pieces = tokenizer.pieces(&text).map_err(failed)?;
            let ids: Vec<_> = pieces.iter().map(|piece| piece.id.to_string()).collect();
            output.line(ids.join(" "));
            output.object(&json!({ "ids": pieces.iter().map(|p| p.id).collect::<Vec<_>>(), "tokens": pieces }));
            Ok(())
        }
        TokenizerCommand::Decode { tokenizer, ids } => {
            let tokenizer = load(&tokenizer, output)?;
            let ids = if ids.is_empty() {
                parse_ids(&stdin()?)?
            } else {
                ids
            };
            let text = tokenizer.decode(&ids).map_err(failed)?;
            output.line(&text);
            output.object(&json!({ "text": text }));
            Ok(())
        }
        TokenizerCommand::Inspect { tokenizer, text } => inspect(tokenizer, text, output),
    }
}

fn train(
    config: &tokenizer::TokenizerConfig,
    files: &[PathBuf],
    out: PathBuf,
    output: Output,
) -> miette::Result<()> {
    let status = Status::new(output.quiet);
    status.say("reading and counting");
    let mut paths = Vec::new();
    for file in files {
        paths.extend(text::files(file).map_err(failed)?);
    }
    let tokenizer = config.train_files(&paths).map_err(failed);
    status.clear();
    let tokenizer = tokenizer?;
    tokenizer.save(&out).map_err(failed)?;
    output.line(format_args!(
        "{} entries, written to {}",
        tokenizer.vocab_size(),
        out.display()
    ));
    output.object(&json!({ "path": out, "vocab_size": tokenizer.vocab_size() }));
    Ok(())
}

fn load(path: &Path, output: Output) -> miette::Result<Tokenizer> {
    let path = hub::local(path, Want::Tokenizer, output)?;
    Tokenizer::load(path).map_err(failed)
}

fn inspect(path: PathBuf, sample: Option<PathBuf>, output: Output) -> miette::Result<()> {
    let tokenizer = load(&path, output)?;
    let sample = sample.map(text::read).transpose().map_err(failed)?;
    let found = tokenizer.inspect(sample.as_deref()).map_err(failed)?;
    output.line(format_args!(
        "kind             {}",
        json!(found.kind).as_str().unwrap_or_default()
    ));
    output.line(format_args!("vocabulary       {}", found.vocab_size));
    let special: Vec<_> = found
        .special_tokens
        .iter()
        .map(|(token, id)| format!("{token} = {id}"))
        .collect();
    output.line(format_args!(
        "special tokens   {}",
        if special.is_empty() {
            "none".into()
        } else {
            special.join(", ")
        }
    ));
    if !found.longest.is_empty() {
        output.line(format_args!("longest entries  {}", found.longest.join(" ")));
    }
    if let Some(bytes) = found.bytes_per_token {
        output.line(format_args!("bytes per token  {bytes:.3}"));
    }
    output.line(format_args!("sha256           {}", found.hash));
    output.object(&json!(found));
    Ok(())
}

fn stdin() -> miette::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| {
            Usage::new(
                format!("cannot read stdin: {error}"),
                "give the input as an argument, or as UTF-8 on stdin",
            )
        })?;
    Ok(text)
}

fn parse_ids(text: &str) -> Result<Vec<u32>, Usage> {
    let id = |word: &str| {
        word.parse().map_err(|_| {
            Usage::new(
                format!("`{word}` is not a token id"),
                "give numbers separated by spaces",
            )
        })
    };
    text.split(|c: char| c.is_whitespace() || c == ',')
        .filter(|word| !word.is_empty())
        .map(id)
        .collect()
}

impl From<TokenizerKind> for tokenizer::TokenizerKind {
    fn from(kind: TokenizerKind) -> Self {
        match kind {
            TokenizerKind::Byte => Self::Byte,
            TokenizerKind::Char => Self::Char,
            TokenizerKind::Bpe => Self::Bpe,
            TokenizerKind::WordPiece => Self::WordPiece,
            TokenizerKind::Unigram => Self::Unigram,
        }
    }
}
