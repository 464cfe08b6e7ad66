//! The run folder: all that came of one experiment.
//!
//! ```text
//! runs/<recipe>-<time>/
//!   recipe.toml        the resolved recipe
//!   environment.json   machine and versions
//!   metrics.jsonl      one record per logged step and per validation
//!   events.out.tfevents.*   the same for TensorBoard
//!   checkpoints/  samples/
//!   model.safetensors, config.json, ...   the trained model, written by the recipe
//!   result.json  report.html
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::diagnosis::Finding;
use crate::events::EventWriter;
use crate::files::{
    create_folder, create_folder_atomic, read_text, remove_unfinished, write_atomic,
};
use crate::recipe::changes;
use crate::{Fitted, TrainError, report};

const RECIPE: &str = "recipe.toml";
const ENVIRONMENT: &str = "environment.json";
const METRICS: &str = "metrics.jsonl";
const RESULT: &str = "result.json";
const DIAGNOSIS: &str = "diagnosis.jsonl";

/// Numbers by name. Losses are in nats.
pub type Metrics = BTreeMap<String, f64>;

/// Where a run lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A new folder `<root>/<name>-<time>`.
    New {
        /// The folder of all runs.
        root: PathBuf,
        /// The recipe's name.
        name: String,
    },
    /// A new run in exactly this folder, which must be empty or absent.
    Out(PathBuf),
    /// Continue the run in this folder.
    Resume(PathBuf),
}

/// What identifies a run.
#[derive(Debug, Clone)]
pub struct RunSpec<'a> {
    /// Where it lives.
    pub place: Place,
    /// The resolved recipe, from [`crate::recipe::resolved`].
    pub recipe: &'a str,
    /// The SHA-256 of the training data.
    pub data_sha256: &'a str,
    /// The device it runs on, in words.
    pub device: &'a str,
}

/// Which curve a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The training loop's own numbers.
    Train,
    /// Numbers on held-out data.
    Validation,
}

impl Phase {
    /// `train` or `validation`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done when it was taken.
    pub step: u64,
    /// Its curve.
    pub phase: Phase,
    /// Unix time in seconds.
    pub time: f64,
    /// The numbers.
    #[serde(flatten)]
    pub values: Metrics,
}

/// Machine and versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Maquette's version.
    pub maquette: String,
    /// Burn's version.
    pub burn: String,
    /// The device of the run.
    pub device: String,
    /// Operating system.
    pub os: String,
    /// Instruction set.
    pub arch: String,
    /// Widest vector instructions found.
    pub simd: String,
    /// Processor cores the program may use.
    pub cores: usize,
    /// SHA-256 of the training data.
    pub data_sha256: String,
    /// When the run began, RFC 3339.
    pub started: String,
}

impl Environment {
    /// The machine this runs on.
    pub fn detect(device: &str, data_sha256: &str) -> Self {
        Self {
            maquette: env!("CARGO_PKG_VERSION").into(),
            burn: "0.22".into(),
            device: device.into(),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            simd: simd().into(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            data_sha256: data_sha256.into(),
            started: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        }
    }
}

/// The widest vector instructions of this processor, in words.
pub fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
        "SSE2"
    }
    #[cfg(target_arch = "aarch64")]
    {
        "NEON"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "none known"
    }
}

/// The last line of `maquette train --json`, kept as `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The run folder.
    pub run: PathBuf,
    /// Optimiser steps done.
    pub steps: u64,
    /// Seconds of training, over all sittings.
    pub seconds: f64,
    /// Final validation and evaluation metrics.
    pub metrics: Metrics,
    /// How each metric was measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signatures: BTreeMap<String, String>,
}

/// Numbers, and how each was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// By name; losses in nats.
    pub metrics: Metrics,
    /// By the name of the metric.
    pub signatures: BTreeMap<String, String>,
}

impl Evaluation {
    /// Adds one number and how it was measured.
    pub fn put(&mut self, name: &str, value: impl Into<f64>, signature: impl std::fmt::Display) {
        self.metrics.insert(name.to_owned(), value.into());
        self.signatures
            .insert(name.to_owned(), signature.to_string());
    }

    /// Only the metrics of these names; all when there are none.
    ///
    /// # Errors
    /// A name that no metric has.
    pub fn keep(mut self, wanted: &[String]) -> Result<Self, TrainError> {
        if let Some(unknown) = wanted.iter().find(|name| !self.metrics.contains_key(*name)) {
            let known: Vec<_> = self.metrics.keys().map(String::as_str).collect();
            return Err(TrainError::other(format!(
                "there is no metric `{unknown}` here; there are {}",
                known.join(", ")
            )));
        }
        let keep = |name: &String| wanted.is_empty() || wanted.contains(name);
        self.metrics.retain(|name, _| keep(name));
        self.signatures.retain(|name, _| keep(name));
        Ok(self)
    }
}

impl From<Metrics> for Evaluation {
    fn from(metrics: Metrics) -> Self {
        Self {
            metrics,
            signatures: BTreeMap::new(),
        }
    }
}

/// An open run folder.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    recipe: String,
    data_sha256: String,
    checkpoint: Option<Checkpoint>,
    metrics: File,
    events: EventWriter,
    /// Held while the run is open, released by the system however the process ends.
    _lock: File,
}

impl Run {
    /// Creates a run folder, or opens one to continue it from its newest checkpoint (from the
    /// start when it has none).
    ///
    /// # Errors
    /// [`TrainError::FolderInUse`], [`TrainError::NotARun`], [`TrainError::DamagedCheckpoint`],
    /// [`TrainError::RecipeChanged`], [`TrainError::DataChanged`], [`TrainError::Io`].
    pub fn open(spec: &RunSpec<'_>) -> Result<Self, TrainError> {
        let dir = match &spec.place {
            Place::New { root, name } => {
                let dir = fresh(root, name);
                create(&dir, spec)?;
                dir
            }
            Place::Out(dir) => {
                let empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
                if !empty {
                    return Err(TrainError::FolderInUse(dir.clone()));
                }
                create(dir, spec)?;
                dir.clone()
            }
            Place::Resume(dir) => {
                if !dir.join(RECIPE).is_file() {
                    return Err(TrainError::NotARun(dir.clone()));
                }
                dir.clone()
            }
        };
        let lock = lock(&dir)?;
        remove_unfinished(&dir)?;
        remove_unfinished(&dir.join("checkpoints"))?;
        let checkpoint = Checkpoint::newest(&dir.join("checkpoints"))?;
        same(&dir, checkpoint.as_ref(), spec)?;
        let done = checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.state.step);
        let (metrics, events) = continue_logs(&dir, done)?;
        Ok(Self {
            dir,
            recipe: spec.recipe.into(),
            data_sha256: spec.data_sha256.into(),
            checkpoint,
            metrics,
            events,
            _lock: lock,
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// The SHA-256 of the data.
    pub fn data_sha256(&self) -> &str {
        &self.data_sha256
    }

    /// The checkpoint this run continues from.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Steps already done: where the data should start.
    pub fn start_step(&self) -> u64 {
        self.checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.state.step)
    }

    /// Where a stateful data stream should continue.
    pub fn stream_state(&self) -> Option<&serde_json::Value> {
        self.checkpoint.as_ref()?.state.stream.as_ref()
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// The folder for the samples taken after `step`, created.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn samples(&self, step: u64) -> Result<PathBuf, TrainError> {
        let folder = self.dir.join("samples").join(format!("step-{step:08}"));
        create_folder(&folder)?;
        Ok(folder)
    }

    /// Appends one record to `metrics.jsonl` and to the event file.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn log(&mut self, phase: Phase, step: u64, values: &Metrics) -> Result<(), TrainError> {
        let record = Record {
            step,
            phase,
            time: now(),
            values: values.clone(),
        };
        let mut line = serde_json::to_vec(&record).map_err(TrainError::other)?;
        line.push(b'\n');
        self.metrics
            .write_all(&line)
            .map_err(TrainError::io("write", self.dir.join(METRICS)))?;
        write_events(&mut self.events, &record)
    }

    /// Appends a finding to `diagnosis.jsonl`.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub(crate) fn keep_finding(&self, finding: &Finding) -> Result<(), TrainError> {
        let path = self.dir.join(DIAGNOSIS);
        let mut line = serde_json::to_vec(finding).map_err(TrainError::other)?;
        line.push(b'\n');
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(&line))
            .map_err(TrainError::io("write", &path))
    }

    /// What was found up to the checkpoint that this run continues from; later findings are dropped, as
    /// those steps are taken again.
    pub(crate) fn findings(&self) -> Result<Vec<Finding>, TrainError> {
        let mut found = findings(&self.dir)?;
        let before = found.len();
        found.retain(|finding| finding.step <= self.start_step());
        if found.len() < before {
            let mut text = String::new();
            for finding in &found {
                text += &serde_json::to_string(finding).map_err(TrainError::other)?;
                text.push('\n');
            }
            write_atomic(&self.dir.join(DIAGNOSIS), text.as_bytes())?;
        }
        Ok(found)
    }

    /// Puts the logs on disk; called before every checkpoint, so that no record up to it is lost.
    pub(crate) fn sync_logs(&self) -> Result<(), TrainError> {
        self.metrics
            .sync_data()
            .map_err(TrainError::io("write", self.dir.join(METRICS)))
    }

    /// Writes `result.json` and `report.html`. Call it when the model's files are in the folder.
    ///
    /// # Errors
    /// [`TrainError::Io`], or a log that no longer parses.
    pub fn finish<M>(
        self,
        fitted: &Fitted<M>,
        evaluation: impl Into<Evaluation>,
    ) -> Result<RunResult, TrainError> {
        let Evaluation {
            metrics,
            signatures,
        } = evaluation.into();
        let result = RunResult {
            run: self.dir.clone(),
            steps: fitted.step,
            seconds: fitted.seconds,
            metrics,
            signatures,
        };
        let json = serde_json::to_vec_pretty(&result).map_err(TrainError::other)?;
        write_atomic(&self.dir.join(RESULT), &json)?;
        self.sync_logs()?;
        report::write(&self.dir)?;
        Ok(result)
    }
}

/// What was found wrong with the game of the run in `dir`. A last line that a kill cut short is ignored.
///
/// # Errors
/// [`TrainError::Io`].
pub fn findings(dir: &Path) -> Result<Vec<Finding>, TrainError> {
    let path = dir.join(DIAGNOSIS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// `<root>/<name>-<time>`, with a counter when that exists.
fn fresh(root: &Path, name: &str) -> PathBuf {
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let first = root.join(format!("{name}-{time}"));
    std::iter::once(first)
        .chain((2..).map(|n| root.join(format!("{name}-{time}-{n}"))))
        .find(|dir| !dir.exists())
        .expect("the counter is unbounded")
}

fn create(dir: &Path, spec: &RunSpec<'_>) -> Result<(), TrainError> {
    let environment = Environment::detect(spec.device, spec.data_sha256);
    let environment = serde_json::to_vec_pretty(&environment).map_err(TrainError::other)?;
    // An empty folder given with --out is replaced; on some systems a rename does not do that.
    if dir.exists() {
        fs::remove_dir(dir).map_err(TrainError::io("replace", dir))?;
    }
    create_folder_atomic(dir, |folder| {
        write_atomic(&folder.join(RECIPE), spec.recipe.as_bytes())?;
        write_atomic(&folder.join(ENVIRONMENT), &environment)
    })
}

/// A run continues only the experiment it was begun with: that of its checkpoint, or of the
/// folder's own files before the first one.
fn same(dir: &Path, checkpoint: Option<&Checkpoint>, spec: &RunSpec<'_>) -> Result<(), TrainError> {
    let (was_recipe, was_data) = match checkpoint {
        Some(Checkpoint { state, .. }) => (state.recipe.clone(), state.data_sha256.clone()),
        None => (recipe(dir)?, environment(dir)?.data_sha256),
    };
    let changes = changes(&was_recipe, spec.recipe);
    if !changes.is_empty() {
        return Err(TrainError::RecipeChanged {
            run: dir.into(),
            changes: changes.join(", "),
        });
    }
    if was_data != spec.data_sha256 {
        return Err(TrainError::DataChanged {
            run: dir.into(),
            was: was_data,
            now: spec.data_sha256.into(),
        });
    }
    Ok(())
}

/// Keeps a second process from writing into the same run. A file system that knows no locks does
/// without.
fn lock(dir: &Path) -> Result<File, TrainError> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(|source| TrainError::Io {
        action: "create",
        path,
        source,
    })?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(TrainError::Busy(dir.into())),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Drops the records after step `done` (a resumed run takes those steps again) and reopens both
/// logs for appending.
fn continue_logs(dir: &Path, done: u64) -> Result<(File, EventWriter), TrainError> {
    let path = dir.join(METRICS);
    let logged = match path.exists() {
        true => log_lines(dir)?,
        false => Vec::new(),
    };
    let kept = logged.into_iter().filter(|(_, record)| record.step <= done);
    // Lines are kept as they stand: a number parsed and printed again may differ in its last bit.
    let (lines, kept): (Vec<String>, Vec<Record>) = kept.unzip();
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    write_atomic(&path, text.as_bytes())?;
    let file = OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(TrainError::io("open", &path))?;
    Ok((file, continue_events(dir, &kept)?))
}

/// The event file is derived from the kept records, so the two logs always agree.
fn continue_events(dir: &Path, kept: &[Record]) -> Result<EventWriter, TrainError> {
    let is_events = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("events.out.tfevents."))
    };
    let existing = fs::read_dir(dir)
        .map_err(TrainError::io("read", dir))?
        .flatten()
        .map(|entry| entry.path())
        .find(is_events);
    let started = kept.first().map_or_else(now, |record| record.time);
    let path = existing
        .unwrap_or_else(|| dir.join(format!("events.out.tfevents.{:.0}.maquette", started)));
    let mut events = EventWriter::create(&path, started)?;
    for record in kept {
        write_events(&mut events, record)?;
    }
    Ok(events)
}

fn write_events(events: &mut EventWriter, record: &Record) -> Result<(), TrainError> {
    for (name, value) in &record.values {
        let tag = format!("{}/{name}", record.phase.name());
        events.scalar(&tag, record.step, *value, record.time)?;
    }
    Ok(())
}

/// The records of a run. A last line that a kill cut short is ignored.
///
/// # Errors
/// [`TrainError::Malformed`] with the line number, [`TrainError::Io`].
pub fn records(dir: &Path) -> Result<Vec<Record>, TrainError> {
    let logged = log_lines(dir)?.into_iter();
    Ok(logged.map(|(_, record)| record).collect())
}

/// Every whole line of the log with what it says.
fn log_lines(dir: &Path) -> Result<Vec<(String, Record)>, TrainError> {
    let path = dir.join(METRICS);
    let text = read_text(&path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(at, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(record) => Ok((line.to_owned(), record)),
        Err(error) => Err(TrainError::Malformed {
            path: path.clone(),
            what: "metrics file",
            reason: format!("line {}: {error}", at + 1),
        }),
    };
    whole.lines().enumerate().map(parse).collect()
}

/// Reads one of a run's JSON files.
fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    what: &'static str,
) -> Result<T, TrainError> {
    serde_json::from_str(&read_text(path)?).map_err(|error| TrainError::Malformed {
        path: path.into(),
        what,
        reason: error.to_string(),
    })
}

/// The result of a finished run.
///
/// # Errors
/// [`TrainError::Io`] when the run is not finished, [`TrainError::Malformed`].
pub fn result(dir: &Path) -> Result<RunResult, TrainError> {
    read_json(&dir.join(RESULT), "result")
}

/// The environment of a run.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Malformed`].
pub fn environment(dir: &Path) -> Result<Environment, TrainError> {
    read_json(&dir.join(ENVIRONMENT), "environment")
}

/// The resolved recipe of a run.
///
/// # Errors
/// [`TrainError::NotARun`] when there is none, [`TrainError::Io`].
pub fn recipe(dir: &Path) -> Result<String, TrainError> {
    match dir.join(RECIPE).is_file() {
        true => read_text(&dir.join(RECIPE)),
        false => Err(TrainError::NotARun(dir.into())),
    }
}

fn now() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1000.0
}
