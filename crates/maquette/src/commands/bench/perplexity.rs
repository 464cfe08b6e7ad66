//! `maquette bench perplexity`: how well a GGUF file knows a text, by llama.cpp's rule and beside it.
//!
//! llama-perplexity cuts the tokens of a text into pieces as long as the context, side by side, puts
//! the token that begins a text in place of each piece's first, and averages over the second half of
//! each piece.

use std::path::Path;
use std::process::Command;

use maquette::generate::engine::{Engine, EngineOptions, Event, Request, Weights};
use maquette::generate::gguf as tokens;
use maquette::generate::sampling::{Decoding, TokenSampler};
use maquette::models::gguf;
use maquette::rng::{Stream, rng};
use miette::miette;
use serde_json::json;

use crate::args::BenchPerplexityArgs;
use crate::commands::progress::Status;
use crate::errors::failed;
use crate::output::Output;

/// Measure every model that was named.
pub(crate) fn run(
    args: &BenchPerplexityArgs,
    threads: usize,
    output: Output,
) -> miette::Result<()> {
    let status = Status::new(output.quiet);
    let text = std::fs::read_to_string(&args.text).map_err(failed)?;
    let mut results = Vec::new();
    for file in &args.models {
        status.say(&format!("reading with {}", file.display()));
        let ours = perplexity(file, &text, args)?;
        let peer = match &args.peer {
            Some(program) => Some(of_peer(program, file, args, threads)?),
            None => None,
        };
        status.clear();
        let ratio = peer.map(|peer| ours / peer);
        let beside = match (peer, ratio) {
            (Some(peer), Some(ratio)) => {
                format!(", llama.cpp {peer:.4} ({:+.2} %)", 100.0 * (ratio - 1.0))
            }
            _ => String::new(),
        };
        output.line(format_args!(
            "{}: perplexity {ours:.4}{beside}",
            file.display()
        ));
        results.push(json!({
            "suite": "perplexity", "model": file, "precision": super::decode::precision(file)?,
            "unit": "perplexity", "ours": ours, "peer": peer,
            "peer_name": peer.map(|_| "llama.cpp"), "ratio": ratio,
        }));
    }
    output.object(&json!({ "results": results }));
    Ok(())
}

fn perplexity(file: &Path, text: &str, args: &BenchPerplexityArgs) -> miette::Result<f64> {
    let context = args.context;
    let opened = gguf::File::open(file).map_err(failed)?;
    let tokenizer = tokens::tokenizer(&opened).map_err(failed)?;
    let tokenizer = tokenizer.ok_or_else(|| miette!("{} holds no tokenizer", file.display()))?;
    let begin = tokens::begins_with(&opened);
    let mut ids = Vec::from_iter(begin);
    ids.extend(tokenizer.encode_literal(text).map_err(failed)?);
    let weights = Weights::open(file).map_err(failed)?;
    let mut engine = Engine::new(weights, EngineOptions::default());
    let mut handles = Vec::new();
    for piece in ids
        .chunks_exact(context)
        .take(args.pieces.unwrap_or(usize::MAX))
    {
        let mut ids = piece.to_vec();
        ids[0] = begin.unwrap_or(ids[0]);
        let sampler = TokenSampler::new(Decoding::default(), &ids).map_err(failed)?;
        let request = Request {
            max_tokens: 0,
            score_prompt: true,
            ..Request::new(sampler, rng(0, Stream::Sample, 0))
        };
        handles.push(engine.submit(request).map_err(failed)?);
    }
    let (mut total, mut count) = (0.0, 0);
    while engine.is_busy() {
        for event in engine.step() {
            if let Event::Prompt { log_probs, .. } = event {
                let half = &log_probs[context / 2..];
                total -= half.iter().map(|p| f64::from(p.log_prob)).sum::<f64>();
                count += half.len();
            }
        }
    }
    match count {
        0 => Err(miette!(
            "{} has {} tokens, fewer than one piece of {context}",
            args.text.display(),
            ids.len()
        )),
        count => Ok((total / count as f64).exp()),
    }
}

/// What llama-perplexity says last.
fn of_peer(
    program: &Path,
    file: &Path,
    args: &BenchPerplexityArgs,
    threads: usize,
) -> miette::Result<f64> {
    let mut command = Command::new(program);
    command.arg("-m").arg(file).arg("-f").arg(&args.text);
    command.args(["-c", &args.context.to_string(), "-t", &threads.to_string()]);
    if let Some(pieces) = args.pieces {
        command.args(["--chunks", &pieces.to_string()]);
    }
    // It may end before its last lines are written: it logs from a thread of its own.
    let mut status = None;
    for _ in 0..5 {
        let out = command.output().map_err(failed)?;
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let last = said
            .split("PPL = ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        if let Some(estimate) = last.and_then(|number| number.parse().ok()) {
            return Ok(estimate);
        }
        status = Some(out.status);
    }
    Err(miette!(
        "{} gave no estimate ({status:?})",
        program.display()
    ))
}
