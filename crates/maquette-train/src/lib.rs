//! Training: from a recipe to a run folder.
//!
//! A **recipe** ([`recipe`]) is a TOML text that says everything about one experiment; a **run**
//! ([`run`]) is the folder that holds everything that came of it. Between them stands a loop:
//! [`fit::fit`] for one loss (batch, loss, gradient, penalties, clipping, update, log, validate,
//! checkpoint), [`adversarial::adversarial`] for two players.
//! A run that was killed and resumed ends in the same bytes as a run that was not
//! ([`checkpoint`]).

pub mod adversarial;
pub mod attention;
pub mod checkpoint;
pub mod clip;
pub mod diagnosis;
pub mod error;
pub mod events;
pub mod feature_net;
pub mod files;
pub mod fit;
pub mod hash;
pub mod language;
pub mod optimizer;
pub mod parameters;
pub mod penalty;
pub mod plot;
pub mod progress;
pub mod recipe;
pub mod recipes;
pub mod report;
pub mod run;
pub mod schedule;
pub mod spec;
pub mod task;

pub use adversarial::{Contest, Match, adversarial};
pub use error::{BoxError, TrainError};
pub use fit::{Ending, Fitted, Plan, fit};
pub use progress::{Control, Event, Progress};
pub use recipe::{RecipeError, Source};
pub use run::{Evaluation, Metrics, Phase, Place, Run, RunResult, RunSpec};
pub use spec::{LoopSpec, OptimizerSpec, PlayerSpec, ScheduleSpec};
pub use task::{Batch, Loss, Task};
