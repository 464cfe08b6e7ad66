//! One recipe, one remedy at a time: the runs that the labs on adversarial networks share.
//!
//! A remedy is a list of switches, the same that `maquette train gan-ring8-plain --set` takes.

use std::time::Instant;

use super::training::recipe;
use super::{Doing, LabContext, LabError, heat};
use crate::train::Phase;
use crate::train::diagnosis::Finding;
use crate::train::run::{Record, findings, records};

/// The adversarial network without any remedy.
pub(crate) const PLAIN: &str = include_str!("../../../../recipes/gan-ring8-plain.toml");

/// Switches of a recipe: keys and values.
pub(crate) type Sets = &'static [(&'static str, &'static str)];

/// A remedy: its name and the switches that make it.
#[derive(Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) sets: Sets,
}

impl Variant {
    pub(crate) const fn new(name: &'static str, sets: Sets) -> Self {
        Self { name, sets }
    }
}

/// What came of one run.
pub(crate) struct Found {
    pub(crate) modes: f64,
    pub(crate) high_quality: f64,
    /// What the diagnosis named.
    pub(crate) findings: Vec<Finding>,
    seconds: f64,
    records: Vec<Record>,
}

impl Found {
    /// The values of one phase's curve by step.
    pub(crate) fn curve(&self, phase: Phase, name: &str) -> Vec<(f64, f64)> {
        let of = self.records.iter().filter(|record| record.phase == phase);
        of.filter_map(|record| Some((record.step as f64, *record.values.get(name)?)))
            .collect()
    }
}

/// A variant with its runs, one for each seed.
pub(crate) struct Tried {
    pub(crate) variant: Variant,
    pub(crate) runs: Vec<Found>,
}

/// Trains `text` as `variant` says after `common`, with `seeds` seeds from the lab's own on.
pub(crate) fn tried(
    lab: &LabContext<'_>,
    text: &str,
    common: &[(&str, &str)],
    variant: Variant,
    seeds: u64,
) -> Result<Tried, LabError> {
    let folder = tempfile::tempdir().doing("making a folder")?;
    let runs = (lab.seed..lab.seed + seeds)
        .map(|seed| {
            lab.say(&format!("{}, seed {seed}", variant.name));
            let out = folder.path().join(seed.to_string());
            let seed = seed.to_string();
            let sets = [common, variant.sets, &[("train.seed", &seed)]].concat();
            let start = Instant::now();
            let ran = recipe(lab, text, &sets, &out)?;
            let seconds = start.elapsed().as_secs_f64();
            let records = records(&out).doing("reading the run's log")?;
            Ok(Found {
                modes: ran.metric("modes"),
                high_quality: ran.metric("high_quality"),
                findings: findings(&out).doing("reading the diagnosis")?,
                seconds,
                records,
            })
        })
        .collect::<Result<_, LabError>>()?;
    Ok(Tried { variant, runs })
}

impl Tried {
    pub(crate) fn high_quality(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.high_quality).collect()
    }

    /// Modes, seed by seed.
    pub(crate) fn modes(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.modes).collect()
    }

    /// The same as one text.
    pub(crate) fn listed_modes(&self) -> String {
        let modes = self.modes().into_iter();
        modes
            .map(|modes| format!("{modes:.0}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Modes, on average over the seeds.
    pub(crate) fn mean_modes(&self) -> f64 {
        mean(&self.modes())
    }

    /// Seconds that each run took.
    pub(crate) fn seconds(&self) -> Vec<f64> {
        self.runs.iter().map(|run| run.seconds).collect()
    }
}

/// A panel of shades of what `of` gives: a row for each variant, a column for each seed.
pub(crate) fn by_seed<'a>(
    lab: &LabContext<'_>,
    title: &str,
    rows: impl Iterator<Item = &'a Tried>,
    of: impl Fn(&Tried) -> Vec<f64>,
) -> String {
    let (names, values): (Vec<&str>, Vec<_>) =
        rows.map(|tried| (tried.variant.name, of(tried))).unzip();
    let columns: Vec<String> = (lab.seed..)
        .take(values.first().map_or(0, Vec::len))
        .map(|seed| format!("seed {seed}"))
        .collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    heat(title, (&names, &columns), &values)
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
