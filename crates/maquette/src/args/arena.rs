//! The arguments of `maquette arena`.

use std::path::PathBuf;

use clap::Args;

/// `maquette arena`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  maquette arena runs/vae-mnist-20260101-120000 runs/diffusion-mnist-20260101-130000\n  maquette arena runs/a runs/b runs/c --label 3,7 --grid 4\n  maquette arena runs/a runs/b --scores --json\n\nThe page shows pictures of two runs side by side without their names. Votes are kept in votes.jsonl of both\nruns; Ctrl-C ends the page and prints the scores."
)]
pub(crate) struct ArenaArgs {
    /// Two runs or more that draw pictures.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Print the scores of the votes so far; show no page.
    #[arg(long)]
    pub(crate) scores: bool,
    /// Pictures in a row, and rows, on each side.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=10))]
    pub(crate) grid: u8,
    /// Pictures drawn of each run, at least one grid of them.
    #[arg(long, value_name = "N", default_value_t = 90)]
    pub(crate) images: usize,
    /// Class names or numbers to draw, separated by commas, repeated in turn.
    #[arg(long, value_name = "A,B")]
    pub(crate) label: Option<String>,
    /// The seed of pictures, sides and resamples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The page's port on 127.0.0.1; 0 takes one that is free.
    #[arg(long, value_name = "N", default_value_t = 8090)]
    pub(crate) port: u16,
    /// Where to compute: cpu, cuda[:N] or wgpu[:N].
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub(crate) device: String,
}
