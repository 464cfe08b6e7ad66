//! What the loop tells whoever watches it, and how he stops it.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::LoopSpec;
use crate::Metrics;
use crate::checkpoint::LoopState;

/// How the caller watches the loop and stops it.
pub struct Control<'a> {
    /// Set (by Ctrl-C) to save a checkpoint and return.
    pub stop: &'a AtomicBool,
    /// Called on every event.
    pub on_event: &'a mut dyn FnMut(Event<'_>),
}

/// What happens in the loop.
#[derive(Debug)]
pub enum Event<'a> {
    /// The loop begins, or continues after `step` steps.
    Started {
        /// Steps already done.
        step: u64,
        /// Parameters of the model.
        parameters: usize,
    },
    /// A step was taken.
    Step(Progress),
    /// The model was validated.
    Validated {
        /// Steps done.
        step: u64,
        /// The metrics.
        metrics: &'a Metrics,
    },
    /// Samples were written.
    Sampled {
        /// Steps done.
        step: u64,
        /// Their folder.
        path: &'a Path,
    },
    /// A checkpoint was written.
    Saved {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: &'a Path,
    },
    /// A fault of an adversarial game was found.
    Found(&'a crate::diagnosis::Finding),
    /// Something outside the loop takes a while: reading data, measuring.
    Doing(&'a str),
}

/// The live line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
    /// The training loss of this step; the generator's, where two players train.
    pub loss: f64,
    /// The critic's loss, where there is one.
    pub critic: Option<f64>,
    /// The learning rate of this step.
    pub lr: f64,
    /// Items per second in this sitting.
    pub rate: f64,
    /// What the items are.
    pub unit: &'static str,
    /// Time left at this rate.
    pub left: Duration,
}

/// Rate and time left, measured over this sitting.
pub(crate) struct Clock {
    began: Instant,
    first_step: u64,
    seconds_before: f64,
    total: u64,
    items_per_step: f64,
    unit: &'static str,
}

impl Clock {
    pub(crate) fn start(
        state: &LoopState,
        train: &LoopSpec,
        total: u64,
        (items, unit): (f64, &'static str),
    ) -> Self {
        // Without a count from the recipe, items are examples.
        let items = if items > 0.0 {
            items
        } else {
            train.batch as f64
        };
        Self {
            began: Instant::now(),
            first_step: state.step,
            seconds_before: state.seconds,
            total,
            items_per_step: items * train.grad_accumulation as f64,
            unit,
        }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64()
    }

    pub(crate) fn progress(&self, step: u64, loss: f64, lr: f64) -> Progress {
        let elapsed = self.began.elapsed().as_secs_f64().max(1e-9);
        let per_second = (step - self.first_step) as f64 / elapsed;
        Progress {
            step,
            total: self.total,
            loss,
            critic: None,
            lr,
            rate: per_second * self.items_per_step,
            unit: self.unit,
            left: Duration::try_from_secs_f64(self.total.saturating_sub(step) as f64 / per_second)
                .unwrap_or(Duration::MAX),
        }
    }
}
