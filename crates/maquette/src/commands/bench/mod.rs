//! `maquette bench`: how fast, and how much memory, side by side with the peers.

mod dcgan;
mod kernels;
mod side;
mod suites;
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
    match command {
        BenchCommand::Train(args) => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            train::run(args, threads.map_or(cores, usize::from), output)
        }
        BenchCommand::Kernels(args) => kernels::run(args, output),
        BenchCommand::Worker(args) => worker::run(args),
    }
}
