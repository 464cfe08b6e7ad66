//! `maquette completions`: a completion script on stdout.

use crate::args::{self, CompletionsArgs};

/// Print the script for the asked shell.
pub(crate) fn run(args: &CompletionsArgs) -> miette::Result<()> {
    clap_complete::generate(
        args.shell,
        &mut args::command(),
        "maquette",
        &mut std::io::stdout(),
    );
    Ok(())
}
