//! Checkpoints: everything the loop needs to continue as if it had never stopped.
//!
//! A checkpoint is a folder `checkpoints/step-00000500/`. It is filled under another name and
//! renamed when all of it is on disk, so a folder with that name is always whole; its manifest
//! holds the SHA-256 of every file, so a damaged one is never loaded. Model records keep the
//! parameters' ids, because the optimiser's state is keyed by them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::Bytes;
use serde::{Deserialize, Serialize};

use crate::files::{create_folder_atomic, write_atomic};
use crate::hash::{sha256, sha256_file};
use crate::{Metrics, Run, TrainError};

const MODEL: &str = "model.bpk";
const EMA: &str = "ema.bpk";
const BEST: &str = "best.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const CRITIC_OPTIMIZER: &str = "critic-optimizer.bpk";
const STATE: &str = "trainer.json";
const MANIFEST: &str = "manifest.json";
const PREFIX: &str = "step-";

/// The loop's own memory, beside weights and optimiser.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoopState {
    /// Steps done.
    pub step: u64,
    /// Seconds spent, over all sittings.
    pub seconds: f64,
    /// The lowest validation loss so far, with its step.
    pub best: Option<(u64, Exact)>,
    /// Validations since then.
    pub bad_validations: u64,
    /// The course of the training loss.
    pub course: Option<Course>,
    /// The validation metrics of the weights that would be returned now.
    pub validation: BTreeMap<String, Exact>,
    /// Where a stateful data stream stands after the last batch used.
    pub stream: Option<serde_json::Value>,
    /// The resolved recipe.
    pub recipe: String,
    /// The SHA-256 of the data.
    pub data_sha256: String,
}

impl LoopState {
    /// Of a run that begins.
    pub(crate) fn of(run: &Run) -> Self {
        Self {
            recipe: run.recipe().into(),
            data_sha256: run.data_sha256().into(),
            ..Self::default()
        }
    }

    /// Remembers what the last validation found.
    pub(crate) fn validated(&mut self, metrics: Metrics) {
        let exact = |(name, value)| (name, Exact(value));
        self.validation = metrics.into_iter().map(exact).collect();
    }

    /// What the last validation found.
    pub(crate) fn validation(&self) -> Metrics {
        let plain = |(name, value): (&String, &Exact)| (name.clone(), value.0);
        self.validation.iter().map(plain).collect()
    }
}

/// What divergence is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The loss of the first step.
    pub first: Exact,
    /// The smoothed loss.
    pub smoothed: Exact,
    /// The lowest smoothed loss.
    pub lowest: Exact,
}

impl Course {
    /// The course after one more `loss`.
    pub fn after(course: Option<Self>, loss: f64) -> Self {
        let Some(Self {
            first,
            smoothed,
            lowest,
        }) = course
        else {
            let loss = Exact(loss);
            return Self {
                first: loss,
                smoothed: loss,
                lowest: loss,
            };
        };
        let smoothed = 0.9 * smoothed.0 + 0.1 * loss;
        Self {
            first,
            smoothed: Exact(smoothed),
            lowest: Exact(lowest.0.min(smoothed)),
        }
    }

    /// Whether the loss has run away: more than `factor` times its lowest value and worse than at
    /// the start. A loss near zero may well multiply between two batches without either. Losses
    /// that can be negative (a Gaussian likelihood) are not judged.
    pub fn diverged(&self, factor: f64) -> bool {
        let (first, smoothed, lowest) = (self.first.0, self.smoothed.0, self.lowest.0);
        lowest > 0.0 && smoothed > factor * lowest && smoothed > first
    }
}

/// A number that survives JSON to the last bit: written as text, which Rust reads back exactly.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Exact(pub f64);

impl From<Exact> for String {
    fn from(value: Exact) -> Self {
        value.0.to_string()
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// What goes into a checkpoint.
pub struct Snapshot<'a, M, E = M> {
    /// The trained weights; of two players, both.
    pub model: &'a M,
    /// Their moving average; of two players, the generator's.
    pub ema: Option<&'a E>,
    /// The weights of the best validation, when early stopping may return them.
    pub best: Option<&'a M>,
    /// The optimiser; of two players, the generator's.
    pub optimizer: &'a ModuleOptimizer,
    /// The critic's optimiser, where there is one.
    pub critic_optimizer: Option<&'a ModuleOptimizer>,
    /// The loop.
    pub state: &'a LoopState,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    files: Vec<FileHash>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHash {
    name: String,
    sha256: String,
}

/// Writes a checkpoint under `root` and removes the oldest beyond `keep`.
///
/// # Errors
/// [`TrainError::Io`] on a full or read-only disk; the earlier checkpoints are then untouched.
pub fn save<M: Module, E: Module>(
    root: &Path,
    snapshot: &Snapshot<'_, M, E>,
    keep: usize,
) -> Result<PathBuf, TrainError> {
    let path = root.join(format!("{PREFIX}{:08}", snapshot.state.step));
    create_folder_atomic(&path, |folder| {
        let mut files = Vec::new();
        let mut write = |name: &str, bytes: &[u8]| {
            files.push(FileHash {
                name: name.into(),
                sha256: sha256(bytes),
            });
            write_atomic(&folder.join(name), bytes)
        };
        write(MODEL, &record(snapshot.model)?)?;
        if let Some(ema) = snapshot.ema {
            write(EMA, &record(ema)?)?;
        }
        if let Some(best) = snapshot.best {
            write(BEST, &record(best)?)?;
        }
        let optimizers = [
            (OPTIMIZER, Some(snapshot.optimizer)),
            (CRITIC_OPTIMIZER, snapshot.critic_optimizer),
        ];
        for (name, optimizer) in optimizers {
            if let Some(optimizer) = optimizer {
                write(name, &optimizer.into_bytes().map_err(TrainError::other)?)?;
            }
        }
        write(STATE, &json(snapshot.state)?)?;
        write_atomic(&folder.join(MANIFEST), &json(&Manifest { files })?)
    })?;
    for old in list(root)?.into_iter().rev().skip(keep) {
        fs::remove_dir_all(&old).map_err(TrainError::io("remove", &old))?;
    }
    Ok(path)
}

fn record<M: Module>(model: &M) -> Result<Bytes, TrainError> {
    model
        .clone()
        .into_record()
        .into_bytes()
        .map_err(TrainError::other)
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec_pretty(value).map_err(TrainError::other)
}

/// A checkpoint whose bytes have been verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// The loop's memory.
    pub state: LoopState,
}

impl Checkpoint {
    /// The newest checkpoint under `root`; none when there is none yet.
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] when the newest is damaged: falling back to an older one
    /// is for the user to decide.
    pub fn newest(root: &Path) -> Result<Option<Self>, TrainError> {
        list(root)?.pop().map(|path| Self::open(&path)).transpose()
    }

    /// Opens and verifies one checkpoint folder.
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] naming the file.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let state = Self::verify(path).map_err(|reason| TrainError::DamagedCheckpoint {
            path: path.into(),
            reason,
            help: fallback(path),
        })?;
        Ok(Self {
            path: path.into(),
            state,
        })
    }

    fn verify(path: &Path) -> Result<LoopState, String> {
        let manifest =
            fs::read(path.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
        let manifest: Manifest =
            serde_json::from_slice(&manifest).map_err(|error| format!("{MANIFEST}: {error}"))?;
        for needed in [MODEL, OPTIMIZER, STATE] {
            if !manifest.files.iter().any(|file| file.name == needed) {
                return Err(format!("{MANIFEST} does not list {needed}"));
            }
        }
        for file in &manifest.files {
            let known = [MODEL, EMA, BEST, OPTIMIZER, CRITIC_OPTIMIZER, STATE];
            if !known.contains(&file.name.as_str()) {
                return Err(format!("{MANIFEST} lists an unknown file {:?}", file.name));
            }
            let found = sha256_file(&path.join(&file.name)).map_err(|error| error.to_string())?;
            if found != file.sha256 {
                return Err(format!(
                    "{} has sha256 {found}, but was written with {}",
                    file.name, file.sha256
                ));
            }
        }
        let state = fs::read(path.join(STATE)).map_err(|error| format!("{STATE}: {error}"))?;
        serde_json::from_slice(&state).map_err(|error| format!("{STATE}: {error}"))
    }

    /// The trained weights, ids included, in a model of the same shape.
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] when they do not fit.
    pub fn model<M: Module>(&self, into: M) -> Result<M, TrainError> {
        self.load(MODEL, into)
    }

    /// The moving average of the weights, if the run keeps one.
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] when it does not fit.
    pub fn ema<M: Module>(&self, into: &M) -> Result<Option<M>, TrainError> {
        self.load_if_there(EMA, into)
    }

    /// The weights of the best validation, if the run keeps them.
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] when they do not fit.
    pub fn best<M: Module>(&self, into: &M) -> Result<Option<M>, TrainError> {
        self.load_if_there(BEST, into)
    }

    /// The optimiser with its moments. Build it for the loaded model: its groups go by path, its
    /// state by the parameters' ids.
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] when it cannot be read.
    pub fn optimizer(&self, into: ModuleOptimizer) -> Result<ModuleOptimizer, TrainError> {
        self.load_optimizer(OPTIMIZER, into)
    }

    /// The critic's optimiser, as [`Checkpoint::optimizer`].
    ///
    /// # Errors
    /// [`TrainError::DamagedCheckpoint`] when it cannot be read.
    pub fn critic_optimizer(&self, into: ModuleOptimizer) -> Result<ModuleOptimizer, TrainError> {
        self.load_optimizer(CRITIC_OPTIMIZER, into)
    }

    fn load_optimizer(
        &self,
        name: &str,
        into: ModuleOptimizer,
    ) -> Result<ModuleOptimizer, TrainError> {
        let bytes = self.read(name)?;
        let record =
            OptimizerRecord::from_bytes(bytes).map_err(|error| self.unfit(name, &error))?;
        Ok(into.load_record(record))
    }

    fn load_if_there<M: Module>(&self, name: &str, into: &M) -> Result<Option<M>, TrainError> {
        match self.path.join(name).exists() {
            true => self.load(name, into.valid()).map(Some),
            false => Ok(None),
        }
    }

    fn load<M: Module>(&self, name: &str, into: M) -> Result<M, TrainError> {
        ModuleRecord::from_bytes(self.read(name)?)
            .and_then(|record| into.try_load_record(record))
            .map_err(|error| self.unfit(name, &error))
    }

    fn read(&self, name: &str) -> Result<Bytes, TrainError> {
        let path = self.path.join(name);
        fs::read(&path)
            .map(Bytes::from_bytes_vec)
            .map_err(TrainError::io("read", &path))
    }

    fn unfit(&self, name: &str, error: &RecordError) -> TrainError {
        TrainError::DamagedCheckpoint {
            path: self.path.clone(),
            reason: format!("{name}: {error}"),
            help: fallback(&self.path),
        }
    }
}

/// How to continue without the checkpoint at `path`.
fn fallback(path: &Path) -> String {
    let earlier = path
        .parent()
        .and_then(|root| list(root).ok())
        .unwrap_or_default();
    let earlier = earlier.iter().rev().find(|other| other.as_path() < path);
    match earlier.and_then(|earlier| earlier.file_name()) {
        Some(name) => format!(
            "Remove this folder and resume again to continue from {}",
            name.to_string_lossy()
        ),
        None => "There is no earlier one: remove this folder and resume again to start over".into(),
    }
}

/// The checkpoint folders under `root`, oldest first; none when there is no such folder. Names are
/// zero-padded, so text order is step order.
///
/// # Errors
/// [`TrainError::Io`] when the folder is there and cannot be read: taking it for empty would start
/// the run over.
pub fn list(root: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(TrainError::io("read", root))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(TrainError::io("read", root))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix(PREFIX).unwrap_or_default();
        if step.len() >= 8 && step.bytes().all(|byte| byte.is_ascii_digit()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(losses: &[f64]) -> Course {
        losses
            .iter()
            .fold(None, |course, loss| Some(Course::after(course, *loss)))
            .unwrap()
    }

    #[test]
    fn a_runaway_loss_is_told_from_a_noisy_one() {
        assert!(!course(&[2.3, 0.001, 0.001]).diverged(10.0));
        let learnt = [2.3].into_iter().chain([0.0; 200]).collect::<Vec<_>>();
        assert!(!course(&[&learnt[..], &[0.5]].concat()).diverged(10.0));
        assert!(course(&[&learnt[..], &[500.0]].concat()).diverged(10.0));
        assert!(course(&[4.0, 4.0, 1e3]).diverged(10.0));
        assert!(!course(&[-1.0, -5.0, -0.1]).diverged(10.0));
    }

    #[test]
    fn numbers_survive_json_to_the_last_bit() {
        for value in [0.1 + 0.2, f64::MIN_POSITIVE, 1.0 / 3.0, -1e300] {
            let text = serde_json::to_string(&Exact(value)).unwrap();
            let back: Exact = serde_json::from_str(&text).unwrap();
            assert_eq!(back.0.to_bits(), value.to_bits());
        }
        assert!(serde_json::from_str::<Exact>("\"much\"").is_err());
    }
}
