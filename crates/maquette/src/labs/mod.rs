//! The handbook's experiments: each topic that works has a lab whose claims can fail.
//!
//! A lab is one function from a [`LabContext`] to an [`Outcome`]; its code, page, plot and recorded
//! result stand together in `handbook/NN-slug/`. [`run`] times it and judges its claims,
//! [`record`] writes what it found into the handbook, and [`ledger`] gathers all recorded results.

mod claim;
mod duel;
mod language;
pub mod ledger;
mod plot;
mod result;
mod ring;
mod topics;
mod training;

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;

pub use claim::{Claim, Published, Relation, number};
pub use ledger::{handbook, record};
pub use plot::{Chart, beside, heat, panels, strips};
pub use result::{LabResult, Mode, machine};
pub use topics::{TOPICS, find};

/// One of the sixty questions.
pub struct Topic {
    /// Its number, 1 to 60.
    pub number: u8,
    /// Its short name: the handbook's folder is `NN-slug`.
    pub slug: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Its experiment; `None` until it works.
    pub lab: Option<Lab>,
}

impl Topic {
    /// The name of the topic's folder in the handbook: `04-kl-divergence`.
    pub fn folder(&self) -> String {
        format!("{:02}-{}", self.number, self.slug)
    }

    /// `works` or `not yet`.
    pub fn state(&self) -> &'static str {
        if self.lab.is_some() {
            "works"
        } else {
            "not yet"
        }
    }
}

/// The experiment that answers a topic.
pub struct Lab {
    /// Whether the quick form runs in CI.
    pub ci: bool,
    /// The experiment.
    pub run: fn(&LabContext<'_>) -> Result<Outcome, LabError>,
}

/// What a lab is given.
pub struct LabContext<'a> {
    /// The seed of every random number it draws.
    pub seed: u64,
    /// Seconds instead of minutes, built-in data only.
    pub quick: bool,
    /// The folder of real data sets, see [`data_root`].
    pub data: Option<PathBuf>,
    /// Where tensors live, without autodiff.
    pub device: Device,
    /// Told in a few words what is being done.
    pub progress: &'a dyn Fn(&str),
}

impl LabContext<'_> {
    /// The real data set `name` (a path below the data root), in full mode and where it is on disk.
    pub fn real(&self, name: &str) -> Option<PathBuf> {
        if self.quick {
            return None;
        }
        self.data
            .as_ref()
            .map(|root| root.join(name))
            .filter(|path| path.exists())
    }

    /// Whether a full run was asked for.
    pub fn full(&self) -> bool {
        !self.quick
    }

    /// Reports progress.
    pub fn say(&self, what: &str) {
        (self.progress)(what);
    }
}

/// What a lab hands back.
pub struct Outcome {
    /// Its assertions.
    pub claims: Vec<Claim>,
    /// The plot that makes the point, as SVG.
    pub plot: String,
    /// What a reader must know besides.
    pub notes: Vec<String>,
}

/// Why a lab could not be run, written or recorded. A claim that does not hold is not an error.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A recorded result is not what [`LabResult`] writes.
    #[error("{}: not a lab result: {source}; record the lab again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        source: serde_json::Error,
    },
    /// There is no such topic, or it has no lab yet.
    #[error("no lab {0:?}; `maquette lab list` shows the sixty topics and which of them work")]
    Unknown(String),
    /// A page lacks the markers between which its results are written.
    #[error("{}: the lines {begin:?} and {end:?} are missing; add them where the results belong",
        path.display(), begin = ledger::BEGIN, end = ledger::END)]
    Page {
        /// The page.
        path: PathBuf,
    },
    /// A part of the library failed inside the experiment.
    #[error("{doing}: {source}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LabError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}

/// Names the step of an experiment in which a library call failed.
trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, LabError>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, LabError> {
        self.map_err(|source| LabError::Step {
            doing,
            source: Box::new(source),
        })
    }
}

/// The folder of real data sets: the one given, else `MAQUETTE_DATA`, `MAQUETTE_TEST_DATA` or
/// `../shared/data`, whichever exists first.
pub fn data_root(given: Option<&Path>) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    [
        given.map(Path::to_path_buf),
        variable("MAQUETTE_DATA"),
        variable("MAQUETTE_TEST_DATA"),
        Some(PathBuf::from("../shared/data")),
    ]
    .into_iter()
    .flatten()
    .find(|path| path.is_dir())
}

/// Runs the lab of `topic` and judges its claims. Returns the result and the plot.
///
/// # Errors
/// [`LabError::Unknown`] when the topic has no lab yet, else whatever stopped the experiment.
pub fn run(topic: &Topic, context: &LabContext<'_>) -> Result<(LabResult, String), LabError> {
    let lab = topic
        .lab
        .as_ref()
        .ok_or_else(|| LabError::Unknown(topic.slug.into()))?;
    let start = Instant::now();
    let outcome = (lab.run)(context)?;
    let result = LabResult {
        lab: topic.number,
        title: topic.title.into(),
        pass: !outcome.claims.is_empty() && outcome.claims.iter().all(|claim| claim.pass),
        claims: outcome.claims,
        seconds: (start.elapsed().as_secs_f64() * 100.0).round() / 100.0,
        seed: context.seed,
        mode: if context.quick {
            Mode::Quick
        } else {
            Mode::Full
        },
        machine: machine(),
        notes: outcome.notes,
    };
    Ok((result, outcome.plot))
}
