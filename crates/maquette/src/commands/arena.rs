//! `maquette arena`: a page that asks which of two models' pictures are better.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use maquette::serve::{Arena, Contestant, arena};
use maquette::train::hash::sha256_file;
use maquette::train::recipes::generate::draw;
use maquette::train::recipes::pictures::ImageRequest;
use serde_json::json;

use super::device;
use super::progress::Status;
use crate::args::ArenaArgs;
use crate::errors::{Usage, failed, report};
use crate::output::Output;

/// Draw, show the page until Ctrl-C, print the scores.
pub(crate) fn run(args: &ArenaArgs, output: Output) -> miette::Result<()> {
    let device = device::parse(&args.device)?;
    let status = Status::new(output.quiet);
    let contestants = args.runs.iter().map(|run| {
        status.say(&format!("drawing of {}", run.display()));
        contestant(run, args, &device)
    });
    let contestants = contestants.collect::<miette::Result<Vec<_>>>();
    status.clear();
    let (contestants, grid) = (contestants?, usize::from(args.grid));
    let arena = Arena::new(contestants, grid, args.seed).map_err(failed)?;
    if !args.scores {
        let listener = TcpListener::bind(("127.0.0.1", args.port)).map_err(|error| {
            Usage::new(
                format!("port {} of this machine: {error}", args.port),
                "choose another with --port, or --port 0 for any",
            )
        })?;
        let address = listener.local_addr().map_err(failed)?;
        output.line(format_args!("http://{address}"));
        if !output.quiet {
            eprintln!("open the page in a browser; Ctrl-C ends it");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        ctrlc::set_handler(move || told.store(true, Ordering::Relaxed)).map_err(failed)?;
        arena::serve(&arena, listener, &stop).map_err(failed)?;
    }
    let ratings = arena.ratings().map_err(failed)?;
    output.line(format_args!(
        "{:>6}  {:16} {:>12}  run",
        "score", "95 %", "won"
    ));
    for one in &ratings {
        let interval = match one.votes {
            0 => "no votes yet".to_owned(),
            _ => format!("{:.0} to {:.0}", one.score.low, one.score.high),
        };
        output.line(format_args!(
            "{:6.0}  {interval:16} {:>12}  {}",
            one.score.value,
            format!("{} of {}", one.wins, one.votes),
            one.run
        ));
    }
    output.object(&json!({ "votes": arena.count(), "ratings": ratings }));
    Ok(())
}

fn contestant(run: &Path, args: &ArenaArgs, device: &Device) -> miette::Result<Contestant> {
    let labels = args.label.iter().flat_map(|text| text.split(','));
    let shown = usize::from(args.grid).pow(2);
    let request = ImageRequest {
        // Scores need no more pictures than one question would.
        count: if args.scores {
            shown
        } else {
            args.images.max(shown)
        },
        seed: args.seed,
        labels: labels.map(|label| label.trim().to_owned()).collect(),
        ..ImageRequest::default()
    };
    Ok(Contestant {
        name: run.display().to_string(),
        folder: run.to_owned(),
        model: sha256_file(&run.join("model.safetensors")).map_err(report)?,
        pictures: draw(run, &request, device).map_err(report)?,
    })
}
