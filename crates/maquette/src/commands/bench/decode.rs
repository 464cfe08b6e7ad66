//! `maquette bench decode`: a language model reading and writing, beside llama.cpp.
//!
//! As llama-bench: `pp512` reads a prompt of 512 tokens, `tg128` writes 128 tokens after nothing, one
//! by one, without drawing them. Both in tokens per second; ours and the peer's take turns.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use maquette::kernels::roofline;
use maquette::models::gguf;
use miette::{IntoDiagnostic, miette};
use serde::Deserialize;
use serde_json::{Value, json};

use super::random;
use super::worker::resident_peak;
use crate::args::BenchDecodeArgs;
use crate::commands::progress::Status;
use crate::errors::{Usage, failed};
use crate::output::Output;

/// What is measured: a name, and what the worker is told.
struct Suite {
    name: String,
    /// `pp N`, `tg N` or `batch SEQUENCES PROMPT NEW`.
    task: String,
}

/// Measures of one suite of one file, one per round.
#[derive(Default)]
struct Measures {
    ours: Vec<f64>,
    peer: Vec<f64>,
    /// Share of what reading the weights from memory at full speed would allow.
    share: Vec<f64>,
}

/// Measure every model that was named.
pub(crate) fn run(args: &BenchDecodeArgs, threads: usize, output: Output) -> miette::Result<()> {
    let status = Status::new(output.quiet);
    let files = match args.random {
        Some(shape) => random::files(shape, &args.types, &args.folder, &status)?,
        None => args.models.clone(),
    };
    if files.is_empty() {
        return Err(Usage::new(
            "bench decode of what?",
            "give --model FILE.gguf, or --random tinyllama-1.1b for made-up weights",
        )
        .into());
    }
    let mut suites = vec![
        Suite {
            name: format!("pp{}", args.prompt),
            task: format!("pp {}", args.prompt),
        },
        Suite {
            name: format!("tg{}", args.tokens),
            task: format!("tg {}", args.tokens),
        },
    ];
    if let Some(sequences) = args.sequences {
        suites.push(Suite {
            name: format!("batch{sequences}"),
            task: format!("batch {sequences} 100 64"),
        });
    }
    output.line(format_args!(
        "{:28} {:>8} {:>9} {:>10} {:>10} {:>7} {:>7} {:>8} {:>9}",
        "model", "type", "suite", "tokens/s", "peer", "ratio", "share", "peak MB", "peer MB"
    ));
    let mut results = Vec::new();
    for file in &files {
        results.extend(measure(file, &suites, args, threads, &status, output)?);
    }
    output.object(&json!({ "results": results }));
    Ok(())
}

/// One model: every suite, round by round, ours and the peer's in turn.
fn measure(
    file: &Path,
    suites: &[Suite],
    args: &BenchDecodeArgs,
    threads: usize,
    status: &Status,
    output: Output,
) -> miette::Result<Vec<Value>> {
    let named = precision(file)?;
    let mut measures: Vec<Measures> = suites.iter().map(|_| Measures::default()).collect();
    let (mut bandwidths, mut first_tokens) = (Vec::new(), Vec::new());
    let (mut peak, mut peer_peak) = (None, None);
    for round in 0..args.rounds {
        status.say(&format!("{} round {}", file.display(), round + 1));
        let began = Instant::now();
        let mut worker = Worker::start(file, threads)?;
        first_tokens.push(began.elapsed().as_secs_f64());
        worker.ask("settle")?;
        let mut bandwidth = 0.0;
        for (suite, measures) in suites.iter().zip(&mut measures) {
            // On a machine that is shared bandwidth changes from one moment to the next.
            bandwidth = roofline::read_bandwidth();
            let rate = worker.ask(&suite.task)?.rate;
            measures.ours.push(rate);
            if suite.task.starts_with("tg") {
                bandwidth = (bandwidth + roofline::read_bandwidth()) / 2.0;
                measures.share.push(rate * worker.bytes as f64 / bandwidth);
            }
        }
        bandwidths.push(bandwidth);
        peak = worker.ask("peak").ok().map(|answer| answer.rate).or(peak);
        drop(worker);
        if let Some(peer) = &args.peer {
            let (rates, peak) = peer_rates(peer, file, suites, args, threads)?;
            for (measures, rate) in measures.iter_mut().zip(rates) {
                measures.peer.extend(rate);
            }
            peer_peak = peak.or(peer_peak);
        }
    }
    status.clear();
    let mut results = Vec::new();
    let mut name = file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for (suite, measures) in suites.iter().zip(&measures) {
        let ratios: Vec<f64> = measures
            .ours
            .iter()
            .zip(&measures.peer)
            .map(|(ours, peer)| ours / peer)
            .collect();
        let [ours, peer, ratio, share] =
            [&measures.ours, &measures.peer, &ratios, &measures.share].map(|all| median(all));
        let shown = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".into(),
        };
        output.line(format_args!(
            "{:28} {:>8} {:>9} {:>10} {:>10} {:>7} {:>7} {:>8} {:>9}",
            std::mem::take(&mut name),
            named,
            suite.name,
            shown(ours, 1),
            shown(peer, 1),
            shown(ratio, 2),
            shown(share.map(|share| 100.0 * share), 0),
            shown(peak, 0),
            shown(peer_peak, 0),
        ));
        results.push(json!({
            "suite": suite.name, "model": file, "precision": named, "unit": "tokens/s",
            "ours": ours, "peer": peer, "peer_name": args.peer.as_ref().map(|_| "llama.cpp"),
            "ratio": ratio, "roofline_share": share, "peak_mb": peak, "peer_peak_mb": peer_peak,
            "read_gb_per_second": median(&bandwidths).map(|bytes| bytes / 1e9),
            "first_token_seconds": median(&first_tokens),
        }));
    }
    output.line(format_args!(
        "{:28} read bandwidth {:.1} GB/s, first token {:.2} s after start",
        "",
        median(&bandwidths).unwrap_or(f64::NAN) / 1e9,
        median(&first_tokens).unwrap_or(f64::NAN),
    ));
    Ok(results)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The number format that most bytes of a file are in.
pub(super) fn precision(file: &Path) -> miette::Result<&'static str> {
    let opened = gguf::File::open(file).map_err(failed)?;
    let mut counts = std::collections::BTreeMap::new();
    for (_, shape, format) in opened.tensors() {
        *counts.entry(format.name()).or_insert(0) += shape.iter().product::<usize>();
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.map_or("-", |(name, _)| name))
}

/// What a worker answers.
#[derive(Deserialize)]
struct Answer {
    /// Tokens or bytes per second, or units of 10^6 bytes.
    rate: f64,
}

/// Our side: this program, reading a model, answering line by line.
struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Of weights read per token.
    bytes: usize,
}

impl Worker {
    /// Started, and its first token made.
    fn start(file: &Path, threads: usize) -> miette::Result<Self> {
        let program = std::env::current_exe().into_diagnostic()?;
        let mut child = Command::new(program)
            .args(["bench", "decode-worker", "--threads", &threads.to_string()])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .into_diagnostic()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| miette!("a worker without pipes"))?;
        let mut worker = Self {
            child,
            input,
            output: BufReader::new(output),
            bytes: 0,
        };
        worker.bytes = worker.answer()?.rate as usize;
        Ok(worker)
    }

    fn ask(&mut self, task: &str) -> miette::Result<Answer> {
        writeln!(self.input, "{task}").into_diagnostic()?;
        self.input.flush().into_diagnostic()?;
        self.answer()
    }

    fn answer(&mut self) -> miette::Result<Answer> {
        let mut line = String::new();
        let n = self.output.read_line(&mut line).into_diagnostic()?;
        if n == 0 {
            return Err(miette!("our worker ended early; its message is above"));
        }
        serde_json::from_str(&line).into_diagnostic()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of what llama-bench prints as JSON lines.
#[derive(Deserialize)]
struct PeerLine {
    n_prompt: usize,
    n_gen: usize,
    avg_ts: f64,
}

/// One line of llama-batched-bench's.
#[derive(Deserialize)]
struct BatchLine {
    t_pp: f64,
    t_tg: f64,
}

/// The peer's tokens per second of each suite, and its peak memory.
fn peer_rates(
    bench: &Path,
    file: &Path,
    suites: &[Suite],
    args: &BenchDecodeArgs,
    threads: usize,
) -> miette::Result<(Vec<Option<f64>>, Option<f64>)> {
    let text = |number: usize| number.to_string();
    let (out, peak) = output_of(
        Command::new(bench)
            .arg("-m")
            .arg(file)
            .args(["-p", &text(args.prompt), "-n", &text(args.tokens)])
            .args(["-t", &text(threads), "-r", "1", "-o", "jsonl"]),
    )?;
    let lines = out
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<PeerLine> = lines.collect();
    let single = |task: &str| {
        let prompt = task.starts_with("pp");
        let line = lines
            .iter()
            .find(|line| (line.n_prompt > 0) == prompt && (line.n_gen > 0) != prompt);
        line.map(|line| line.avg_ts)
    };
    let mut rates = Vec::new();
    for suite in suites {
        rates.push(match suite.task.strip_prefix("batch ") {
            None => single(&suite.task),
            Some(_) => peer_batch(bench, file, args.sequences.unwrap_or(1), threads)?,
        });
    }
    Ok((rates, peak))
}

/// New tokens per second of all sequences together, their prompts' reading included.
fn peer_batch(
    bench: &Path,
    file: &Path,
    sequences: usize,
    threads: usize,
) -> miette::Result<Option<f64>> {
    let batched = bench.with_file_name("llama-batched-bench");
    if !batched.is_file() {
        return Ok(None);
    }
    let text = |number: usize| number.to_string();
    let (out, _) = output_of(
        Command::new(batched)
            .arg("-m")
            .arg(file)
            .args(["-npp", "100", "-ntg", "64", "-npl", &text(sequences)])
            .args(["-c", &text(sequences * 164 + 64), "-t", &text(threads)])
            .args(["--output-format", "jsonl"]),
    )?;
    let line: Option<BatchLine> = out.lines().find_map(|line| serde_json::from_str(line).ok());
    Ok(line.map(|line| (sequences * 64) as f64 / (line.t_pp + line.t_tg)))
}

/// What a program printed, and the most memory it was seen to hold, in units of 10^6 bytes.
fn output_of(command: &mut Command) -> miette::Result<(String, Option<f64>)> {
    let program = PathBuf::from(command.get_program());
    let broken = |what: String| miette!("{} {what}", program.display());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| broken(format!("cannot be started: {error}")))?;
    let out = child.stdout.take();
    let reader = std::thread::spawn(move || out.map(std::io::read_to_string));
    let (id, mut peak) = (child.id().to_string(), None);
    let status = loop {
        if let Some(status) = child.try_wait().into_diagnostic()? {
            break status;
        }
        peak = resident_peak(&id).or(peak);
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    if !status.success() {
        return Err(broken(format!("failed ({status})")));
    }
    match reader.join() {
        Ok(Some(Ok(text))) => Ok((text, peak)),
        _ => Err(broken("printed nothing that can be read".into())),
    }
}
