//! `maquette bench tokenize`: text to ids, beside tiktoken and Hugging Face's library.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use maquette::data::{Tokenizer, text};
use serde_json::json;

use super::side::{Side, SideError};
use super::train::quantile;
use crate::args::BenchTokenizeArgs;
use crate::commands::progress::Status;
use crate::errors::failed;
use crate::output::Output;

const SCRIPT: &str = include_str!("../../../../../bench/peers/tokenize.py");
const PEERS: [&str; 2] = ["tiktoken", "tokenizers"];

/// Megabytes per second on one thread; in every round each side encodes the text once.
pub(crate) fn run(args: &BenchTokenizeArgs, output: Output) -> miette::Result<()> {
    let tokenizer = Tokenizer::load(&args.tokenizer).map_err(failed)?;
    let text = text::read(&args.text).map_err(failed)?;
    let status = Status::new(output.quiet);
    let ids = tokenizer.encode_literal(&text).map_err(failed)?.len();
    let mut sides = match args.peers {
        true => peers(&tokenizer, &text, ids, args, &status)?,
        false => Vec::new(),
    };
    let mut ours = Vec::new();
    let mut theirs = vec![Vec::new(); sides.len()];
    for round in 1..=args.rounds {
        status.say(&format!("round {round} of {}", args.rounds));
        // A tokenizer that has seen nothing yet: what it remembers of one round would help the next.
        let fresh = Tokenizer::load(&args.tokenizer).map_err(failed)?;
        let began = Instant::now();
        fresh.encode_literal(&text).map_err(failed)?;
        ours.push(began.elapsed().as_secs_f64());
        for (side, times) in sides.iter_mut().zip(&mut theirs) {
            times.push(side.block(1).map_err(failed)?.seconds);
        }
    }
    status.clear();
    let rate = |times: &[f64]| text.len() as f64 / 1e6 / quantile(times.to_vec(), 0.5);
    let mut results = Vec::new();
    let row = |peer: Option<(&str, f64, f64)>| {
        json!({
            "suite": "tokenize", "precision": "none", "unit": "MB/s", "ours": rate(&ours),
            "peer": peer.map(|peer| peer.1), "peer_name": peer.map(|peer| peer.0),
            "ratio": peer.map(|peer| peer.2), "ids": ids, "bytes": text.len(),
        })
    };
    output.line(format_args!(
        "{:24} {:>9.1} MB/s  {ids} ids",
        "maquette",
        rate(&ours)
    ));
    for (side, times) in sides.iter().zip(&theirs) {
        let ratios = ours.iter().zip(times).map(|(ours, theirs)| theirs / ours);
        let ratio = quantile(ratios.collect(), 0.5);
        let name = side.ready.name.as_str();
        output.line(format_args!(
            "{name:24} {:>9.1} MB/s  ratio {ratio:.2}",
            rate(times)
        ));
        results.push(row(Some((name, rate(times), ratio))));
    }
    if results.is_empty() {
        results.push(row(None));
    }
    output.object(&json!({ "results": results, "threads": 1 }));
    Ok(())
}

/// The peers that are installed and find as many ids.
fn peers(
    tokenizer: &Tokenizer,
    text: &str,
    ids: usize,
    args: &BenchTokenizeArgs,
    status: &Status,
) -> miette::Result<Vec<Side>> {
    let folder = tempfile::tempdir().map_err(failed)?;
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).map(|()| path)
    };
    let script = put("peer.py", SCRIPT).map_err(failed)?;
    let saved = put("tokenizer.json", &tokenizer.to_json().map_err(failed)?).map_err(failed)?;
    let sample = put("sample.txt", text).map_err(failed)?;
    let mut sides = Vec::new();
    for peer in PEERS {
        status.say(&format!("starting {peer}"));
        let mut command = Command::new(&args.python);
        let arguments: [&OsStr; 4] = [
            script.as_ref(),
            peer.as_ref(),
            saved.as_ref(),
            sample.as_ref(),
        ];
        command.args(arguments);
        match Side::start(peer, command) {
            Ok(side) if side.ready.parameters == ids => sides.push(side),
            Ok(side) => eprintln!(
                "{peer} finds {} ids where there are {ids}: not the same tokenizer",
                side.ready.parameters
            ),
            Err(SideError::Missing(what)) => {
                eprintln!("no peer ({what}); {}", install(&args.python, peer))
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(sides)
}

fn install(python: &Path, peer: &str) -> String {
    format!(
        "install it with\n  {} -m pip install {peer}",
        python.display()
    )
}
