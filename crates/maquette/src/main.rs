//! The `maquette` command: arguments, then one function per command.

mod args;
mod commands;
mod errors;
mod output;

use std::process::ExitCode;

use clap::FromArgMatches;

use args::{Cli, Command};
use errors::Usage;
use output::Output;

/// A training step allocates and frees hundreds of megabytes; the system's allocator gives them back to
/// the kernel each time, and pays for fresh pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stops the allocator from handing back what one step freed and the next asks for again: resident
/// memory would rise and fall with the machine's load. `MIMALLOC_PURGE_DELAY` (milliseconds) still
/// has its say.
#[allow(unsafe_code)]
fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc.h, which the bindings leave out.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: writes one number of the allocator's table of options, while there is one thread.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) }
}

fn main() -> ExitCode {
    keep_freed_memory();
    let matches = args::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            eprintln!("{report:?}");
            ExitCode::from(if report.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> miette::Result<()> {
    let output = Output {
        json: cli.json,
        quiet: cli.quiet,
    };
    commands::threads::limit(cli.threads)?;
    // On a worker thread: a parallel loop then begins at once on the thread that asks for it, instead
    // of sleeping while another is woken, which for a small model is a third of a training step.
    rayon::scope(|_| dispatch(cli, output))
}

fn dispatch(cli: Cli, output: Output) -> miette::Result<()> {
    match cli.command {
        Command::Train(args) => commands::train::run(args, output),
        Command::Generate(args) => commands::generate::run(*args, output),
        Command::Evaluate(args) => commands::evaluate::run(args, output),
        Command::Metric(command) => commands::metric::run(command, output),
        Command::Arena(args) => commands::arena::run(&args, output),
        Command::Tokenizer(command) => commands::tokenizer::run(command, output),
        Command::Convert(args) => commands::convert::run(&args, output),
        Command::Lab(args) => commands::lab::run(&args, output),
        Command::Bench(command) => commands::bench::run(&command, cli.threads, output),
        Command::List(args) => commands::list::run(&args, output),
        Command::Doctor(args) => commands::doctor::run(&args, output),
        Command::Completions(args) => commands::completions::run(&args),
    }
}
