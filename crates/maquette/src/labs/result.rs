//! What a finished lab leaves behind: `result.json` and `plot.svg`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Claim, LabError};

/// How much of the experiment was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Seconds, on built-in data: what CI runs.
    Quick,
    /// Everything, on real data where there is some.
    Full,
}

/// The record of one lab: `{"lab", "claims", "seconds", "seed", "pass", ...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabResult {
    /// The topic's number.
    pub lab: u8,
    /// The topic's name.
    pub title: String,
    /// What was asserted.
    pub claims: Vec<Claim>,
    /// Wall time.
    pub seconds: f64,
    /// The seed of every random number in it.
    pub seed: u64,
    /// Whether every claim held.
    pub pass: bool,
    /// Quick or full.
    pub mode: Mode,
    /// The processor it ran on.
    pub machine: String,
    /// What a reader must know besides, such as claims left out for want of data.
    pub notes: Vec<String>,
}

impl LabResult {
    /// Reads the `result.json` in `folder`; `None` when it was never recorded.
    ///
    /// # Errors
    /// [`LabError::Io`] or [`LabError::Json`] for a file that cannot be read or understood.
    pub fn read(folder: &Path) -> Result<Option<Self>, LabError> {
        let path = folder.join("result.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(|e| LabError::io(&path, e))?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| LabError::Json { path, source })
    }

    /// Writes `result.json` and `plot.svg` into `folder`, which is made if missing.
    ///
    /// # Errors
    /// [`LabError::Io`] when a file cannot be written.
    pub fn write(&self, plot: &str, folder: &Path) -> Result<(), LabError> {
        fs::create_dir_all(folder).map_err(|e| LabError::io(folder, e))?;
        let path = folder.join("result.json");
        let mut json = serde_json::to_string_pretty(self).map_err(|source| LabError::Json {
            path: path.clone(),
            source,
        })?;
        json.push('\n');
        for (name, text) in [("result.json", json.as_str()), ("plot.svg", plot)] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| LabError::io(&path, e))?;
        }
        Ok(())
    }
}

/// This machine in a few words: cores and processor.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!(
        "{cores} cores, {}",
        processor().unwrap_or_else(|| std::env::consts::ARCH.into())
    )
}

fn processor() -> Option<String> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_cpu_all();
    let brand = system.cpus().first()?.brand().trim().to_string();
    (!brand.is_empty()).then_some(brand)
}
