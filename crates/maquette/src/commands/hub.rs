//! Paths as typed: of this machine, or of the Hugging Face hub.

use std::path::{Path, PathBuf};

use maquette::data::hub::{self, Want};

use super::progress::Status;
use crate::errors::failed;
use crate::output::Output;

/// The path itself, or for `hf://org/name` where the cache has it after it was fetched.
pub(crate) fn local(path: &Path, want: Want, output: Output) -> miette::Result<PathBuf> {
    let status = Status::new(output.quiet);
    let found = hub::local(path, want, &mut |what| status.say(what));
    status.clear();
    found.map_err(failed)
}
