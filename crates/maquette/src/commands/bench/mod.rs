//! `maquette bench`: how fast, and how much memory, side by side with the peers.

mod dcgan;
mod decode;
mod decode_worker;
mod kernels;
mod perplexity;
mod random;
mod side;
mod suites;
mod tokenize;
mod train;
mod worker;

use crate::args::BenchCommand;
use crate::output::Output;

/// Measure what was asked for. `threads` is the global flag; one per core by default.
pub(crate) fn run(
    command: &BenchCommand,
    threads: Option<u16>,
    output: Output,
) -> miette::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.map_or(cores, usize::from);
    match command {
        BenchCommand::Train(args) => train::run(args, threads, output),
        BenchCommand::Decode(args) => decode::run(args, threads, output),
        BenchCommand::Perplexity(args) => perplexity::run(args, threads, output),
        BenchCommand::DecodeWorker(args) => decode_worker::run(args),
        BenchCommand::Kernels(args) => kernels::run(args, output),
        BenchCommand::Tokenize(args) => tokenize::run(args, output),
        BenchCommand::Worker(args) => worker::run(args),
    }
}
