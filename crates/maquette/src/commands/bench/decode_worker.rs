//! Our side of `bench decode`, in a process of its own so that its memory is its own.
//!
//! Once its first token is made it says how many bytes a token reads; then it answers every line on
//! stdin with a number, a rate for most.

use std::io::{BufRead, Write};
use std::time::Instant;

use maquette::generate::engine::{Engine, EngineOptions, Request, Session, Weights};
use maquette::generate::sampling::{Decoding, TokenSampler};
use maquette::rng::{Stream, rng, uniform};
use miette::{IntoDiagnostic, miette};
use serde_json::json;

use super::worker::{peak_mb, reset_peak};
use crate::args::BenchDecodeWorkerArgs;
use crate::errors::failed;

/// Answers until stdin ends.
pub(crate) fn run(args: &BenchDecodeWorkerArgs) -> miette::Result<()> {
    let weights = Weights::open(&args.model).map_err(failed)?;
    let vocab_size = weights.config().vocab_size;
    Session::new(&weights).read(&[1]);
    say(weights.bytes_per_token() as f64)?;
    let mut weights = Some(weights);
    for line in std::io::stdin().lock().lines() {
        let line = line.into_diagnostic()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words.get(i).and_then(|word| word.parse::<usize>().ok());
        let mut model = weights.take().ok_or_else(|| miette!("no model"))?;
        let (rate, model) = match (words.first().copied(), number(1), number(2), number(3)) {
            (Some("settle"), ..) => {
                model.settle();
                reset_peak();
                (0.0, model)
            }
            (Some("peak"), ..) => (peak_mb().unwrap_or(0.0), model),
            (Some("pp"), Some(n), ..) => (prompt(&model, &tokens(n, vocab_size, 0)), model),
            (Some("tg"), Some(n), ..) => (one_by_one(&model, &tokens(n, vocab_size, 0)), model),
            (Some("batch"), Some(count), Some(prompt), Some(new)) => {
                batch(model, count, prompt, new)?
            }
            _ => return Err(miette!("cannot measure `{line}`")),
        };
        weights = Some(model);
        say(rate)?;
    }
    Ok(())
}

fn say(rate: f64) -> miette::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({ "rate": rate })).into_diagnostic()?;
    out.flush().into_diagnostic()
}

/// Made-up tokens.
fn tokens(count: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let draws = uniform(&mut rng(seed, Stream::Data, 0), count);
    let token = |x: f32| ((x * vocab_size as f32) as usize).min(vocab_size - 1) as u32;
    draws.into_iter().map(token).collect()
}

/// Tokens per second of a prompt read at once; the second time, so that memory is warm.
fn prompt(weights: &Weights, tokens: &[u32]) -> f64 {
    let mut session = Session::new(weights);
    session.read(tokens);
    session.truncate(0);
    let began = Instant::now();
    session.read(tokens);
    tokens.len() as f64 / began.elapsed().as_secs_f64()
}

/// Tokens per second of tokens read one by one, after one that is not counted.
fn one_by_one(weights: &Weights, tokens: &[u32]) -> f64 {
    let mut session = Session::new(weights);
    session.read(&tokens[..1]);
    session.truncate(0);
    let began = Instant::now();
    for token in tokens {
        session.read(&[*token]);
    }
    tokens.len() as f64 / began.elapsed().as_secs_f64()
}

/// New tokens per second of several texts together, their prompts' reading included.
fn batch(
    weights: Weights,
    count: usize,
    prompt: usize,
    new: usize,
) -> miette::Result<(f64, Weights)> {
    let vocab_size = weights.config().vocab_size;
    let options = EngineOptions {
        sequences: count,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(weights, options);
    let submitted = (0..count as u64).map(|seed| {
        let prompt = tokens(prompt, vocab_size, seed);
        let sampler = TokenSampler::new(Decoding::greedy(), &prompt).map_err(failed)?;
        let request = Request {
            max_tokens: new,
            ..Request::new(sampler, rng(seed, Stream::Sample, 0))
        };
        engine.submit(request).map_err(failed)
    });
    let handles = submitted.collect::<miette::Result<Vec<_>>>()?;
    let began = Instant::now();
    while engine.is_busy() {
        engine.step();
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(handles);
    Ok(((count * new) as f64 / seconds, engine.into_weights()))
}
