//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

use crate::recipe::RecipeError;

/// Any error, for closures that a recipe hands to the loop.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong between a recipe and a finished run.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe does not parse or asks for something impossible.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The file system refused.
    #[error("could not {action} {}: {source}{}", .path.display(), io_help(.source))]
    Io {
        /// What was attempted, as a verb: "write", "read", "create".
        action: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// A file of a run folder does not hold what it should.
    #[error("{} is not a valid {what}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// `--out` names a folder that holds something else.
    #[error(
        "{} is not empty; choose another --out, or continue the run in it with --resume {}",
        .0.display(), .0.display()
    )]
    FolderInUse(PathBuf),
    /// Another process trains in the folder.
    #[error("another process is training in {}; wait for it, or stop it (Ctrl-C saves)", .0.display())]
    Busy(PathBuf),
    /// `--resume` names something that is not a run folder.
    #[error("{} is not a run folder: it has no recipe.toml", .0.display())]
    NotARun(PathBuf),
    /// A checkpoint's bytes are not the bytes that were written.
    #[error("checkpoint {} is damaged: {reason}. {help}", .path.display())]
    DamagedCheckpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Which file, and how it differs.
        reason: String,
        /// How to continue from an earlier one.
        help: String,
    },
    /// The recipe is not the one the checkpoint was trained with.
    #[error(
        "cannot resume {}: the recipe has changed since the checkpoint: {changes}. \
         Restore these values, or start a new run",
        .run.display()
    )]
    RecipeChanged {
        /// The run folder.
        run: PathBuf,
        /// `key: old -> new`, comma separated.
        changes: String,
    },
    /// The data is not the data the checkpoint was trained on.
    #[error(
        "cannot resume {}: the data has changed since the checkpoint (sha256 was {was}, is {now}). \
         Point --data at the same data, or start a new run",
        .run.display()
    )]
    DataChanged {
        /// The run folder.
        run: PathBuf,
        /// The hash in the checkpoint.
        was: String,
        /// The hash of the data given now.
        now: String,
    },
    /// The loss or the gradient left the finite numbers, or the loss ran away.
    #[error("training diverged at step {step}: {cause}. {kept}")]
    Diverged {
        /// The step (counted from 1) that failed.
        step: u64,
        /// What was seen.
        cause: String,
        /// What is left: the last good checkpoint, and what to try.
        kept: String,
    },
    /// Ctrl-C: a checkpoint was saved.
    #[error("interrupted after step {step}; resume with: maquette train --resume {}", .run.display())]
    Interrupted {
        /// Steps done.
        step: u64,
        /// The run folder.
        run: PathBuf,
    },
    /// A penalty or an optimiser group names parameters the model does not have.
    #[error("pattern `{pattern}` matches no parameter of the model; it has: {known}")]
    NoSuchParameters {
        /// The pattern.
        pattern: String,
        /// Parameter paths, comma separated.
        known: String,
    },
    /// The recipe's own part of the loop failed: reading a batch, validating, sampling.
    #[error("{doing} failed at step {step}: {source}")]
    Task {
        /// Which part.
        doing: &'static str,
        /// The step.
        step: u64,
        /// The cause.
        source: BoxError,
    },
    /// Anything a recipe function meets outside the loop (data, model, evaluation).
    #[error(transparent)]
    Other(BoxError),
}

impl TrainError {
    /// Wraps an input/output error: `.map_err(TrainError::io("write", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Wraps the error of another crate: `.map_err(TrainError::other)`.
    pub fn other(source: impl Into<BoxError>) -> Self {
        Self::Other(source.into())
    }
}

fn io_help(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and resume, what was saved before is intact"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; the folder must be writable, what was saved before is intact"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do_and_what_is_safe() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let message = TrainError::io("write", "runs/a/model.bpk")(full).to_string();
        assert!(message.contains("runs/a/model.bpk"), "{message}");
        assert!(
            message.contains("free some space") && message.contains("intact"),
            "{message}"
        );
    }
}
