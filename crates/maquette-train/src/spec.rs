//! The sections that every recipe shares: `[optimizer]`, `[schedule]`, `[train]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A value that parses but cannot be used. [`crate::Source::locate`] gives it its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key inside the section.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Invalid {
    /// A value that cannot be used.
    pub fn new(key: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            key,
            message: message.into(),
            help: help.into(),
        }
    }
}

/// The update rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW,
    /// Adam (Kingma and Ba, 2015).
    Adam,
    /// Stochastic gradient descent, with momentum when `momentum` is given.
    Sgd,
    /// RMSProp (Tieleman and Hinton, 2012).
    RmsProp,
    /// Muon (Jordan, 2024) on hidden matrices, AdamW on everything else.
    Muon,
}

/// Which parameters weight decay pulls to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecayOn {
    /// Everything with two or more dimensions: no biases, no norm gains (as nanoGPT).
    #[default]
    Matrices,
    /// As `matrices`, without embeddings and output heads.
    HiddenMatrices,
    /// Every parameter.
    All,
}

/// `[optimizer]`: the update rule and its constants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSpec {
    /// The update rule.
    pub kind: OptimizerKind,
    /// Peak learning rate; the schedule scales it.
    pub lr: f64,
    /// Decay of the two moments (adamw, adam, muon's AdamW part). Default `[0.9, 0.999]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f32; 2]>,
    /// Added to the denominator (all but sgd). Default `1e-8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f32>,
    /// Momentum (sgd and rmsprop, default 0; muon, default 0.95).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f32>,
    /// Nesterov momentum (sgd, default false; muon, default true).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// Smoothing of the squared gradient (rmsprop). Default 0.99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
    /// Weight decay: decoupled in adamw and muon, added to the gradient in the others.
    #[serde(default)]
    pub weight_decay: f32,
    /// Which parameters decay.
    #[serde(default)]
    pub decay: DecayOn,
}

impl OptimizerSpec {
    /// AdamW at `lr` with the usual constants and no weight decay.
    pub fn adamw(lr: f64) -> Self {
        Self::new(OptimizerKind::AdamW, lr)
    }

    /// An update rule at `lr` with its default constants and no weight decay.
    pub fn new(kind: OptimizerKind, lr: f64) -> Self {
        Self {
            kind,
            lr,
            betas: None,
            eps: None,
            momentum: None,
            nesterov: None,
            alpha: None,
            weight_decay: 0.0,
            decay: DecayOn::default(),
        }
    }

    /// Checks ranges, and that no constant is given to a rule that does not use it.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        use OptimizerKind::{Adam, AdamW, Muon, RmsProp, Sgd};
        positive("lr", self.lr)?;
        let uses = |key, given: bool, kinds: &[OptimizerKind]| match given
            && !kinds.contains(&self.kind)
        {
            true => Err(Invalid::new(
                key,
                format!("`{key}` is not used by this optimizer"),
                format!(
                    "remove `{key}`, or replace the whole section: --set 'optimizer={{kind=\"...\", lr=...}}'"
                ),
            )),
            false => Ok(()),
        };
        uses("betas", self.betas.is_some(), &[AdamW, Adam, Muon])?;
        uses("eps", self.eps.is_some(), &[AdamW, Adam, RmsProp, Muon])?;
        uses("momentum", self.momentum.is_some(), &[Sgd, RmsProp, Muon])?;
        uses("nesterov", self.nesterov.is_some(), &[Sgd, Muon])?;
        uses("alpha", self.alpha.is_some(), &[RmsProp])?;
        for beta in self.betas.unwrap_or_default() {
            fraction("betas", beta.into())?;
        }
        fraction("momentum", self.momentum.unwrap_or_default().into())?;
        fraction("alpha", self.alpha.unwrap_or_default().into())?;
        positive("eps", self.eps.unwrap_or(1e-8).into())?;
        if self.nesterov == Some(true) && self.kind == Sgd && self.momentum.unwrap_or(0.0) == 0.0 {
            return Err(Invalid::new(
                "nesterov",
                "nesterov needs momentum",
                "set `momentum`",
            ));
        }
        not_negative("weight_decay", self.weight_decay.into())
    }
}

/// The shapes a learning rate can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// The peak throughout.
    #[default]
    Constant,
    /// A straight line from the peak to `final_lr`.
    Linear,
    /// Half a cosine from the peak to `final_lr`.
    Cosine,
    /// Times `gamma` at every `every` steps.
    Step,
    /// Times `gamma` at every step, never below `final_lr`.
    Exponential,
}

/// `[schedule]`: the learning rate over time. [`crate::schedule::lr`] evaluates it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// The shape.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Steps of linear warm-up before it.
    #[serde(default)]
    pub warmup: u64,
    /// The learning rate at the end (linear, cosine) or the floor (step, exponential).
    #[serde(default)]
    pub final_lr: f64,
    /// The step at which `final_lr` is reached. Default: the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// Steps between two drops (step).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Factor of a drop (step) or of a step (exponential).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
}

impl ScheduleSpec {
    /// Checks that the shape has what it needs.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let needs = |key: &'static str, given: bool| match given {
            true => Ok(()),
            false => Err(Invalid::new(
                "kind",
                format!("this schedule needs `{key}`"),
                format!("add `{key} = ...` to [schedule]"),
            )),
        };
        let gamma = matches!(self.kind, ScheduleKind::Step | ScheduleKind::Exponential);
        needs("gamma", !gamma || self.gamma.is_some())?;
        needs(
            "every",
            self.kind != ScheduleKind::Step || self.every.is_some(),
        )?;
        if self.every == Some(0) {
            return Err(Invalid::new(
                "every",
                "every must be at least 1",
                "try 1000",
            ));
        }
        if let Some(gamma) = self.gamma {
            positive("gamma", gamma)?;
        }
        not_negative("final_lr", self.final_lr)
    }
}

/// `[generator]` and `[critic]`: how one of two players learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlayerSpec {
    /// Updates per step of the loop. A Wasserstein critic usually takes five.
    #[serde(default = "one")]
    pub turns: u64,
    /// Scale the gradient down to this global norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Clamp every component of the gradient to plus or minus this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f64>,
    /// Clamp every weight to plus or minus this after each update (Arjovsky et al. 2017).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_weights: Option<f64>,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over the steps of the loop.
    #[serde(default)]
    pub schedule: ScheduleSpec,
}

impl PlayerSpec {
    /// One update per step by `optimizer`, nothing clipped.
    pub fn new(optimizer: OptimizerSpec) -> Self {
        Self {
            turns: 1,
            clip_norm: None,
            clip_value: None,
            clip_weights: None,
            optimizer,
            schedule: ScheduleSpec::default(),
        }
    }

    /// Checks ranges; `optimizer` and `schedule` are checked as sections of their own.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.turns == 0 {
            return Err(Invalid::new(
                "turns",
                "`turns` must be at least 1",
                "1 is usual",
            ));
        }
        for (key, clip) in [
            ("clip_norm", self.clip_norm),
            ("clip_value", self.clip_value),
            ("clip_weights", self.clip_weights),
        ] {
            clip.map_or(Ok(()), |clip| positive(key, clip))?;
        }
        Ok(())
    }
}

/// L1 or L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PenaltyKind {
    /// `weight * sum |w|`.
    L1,
    /// `weight * sum w^2`.
    L2,
}

/// One entry of `train.penalties`: a term added to the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PenaltySpec {
    /// L1 or L2.
    pub kind: PenaltyKind,
    /// Its factor.
    pub weight: f64,
    /// Which parameters: a path in the model, `*` stands for anything (`encoder.*.weight`).
    #[serde(default = "everything")]
    pub params: String,
}

fn everything() -> String {
    "*".into()
}

/// The precision of a training step's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionSpec {
    /// 32-bit floats.
    #[default]
    F32,
    /// Factors rounded to bf16, sums in 32 bits; weights, norms and losses stay 32-bit.
    Bf16,
}

impl From<PrecisionSpec> for maquette_models::nn::Precision {
    fn from(spec: PrecisionSpec) -> Self {
        match spec {
            PrecisionSpec::F32 => Self::F32,
            PrecisionSpec::Bf16 => Self::Bf16,
        }
    }
}

/// `[train]`: the loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopSpec {
    /// Optimiser steps. With `epochs` as well, whichever ends first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Examples per micro-batch.
    pub batch: usize,
    /// The seed of everything random in the run.
    #[serde(default)]
    pub seed: u64,
    /// Precision of the matrix products of forward and backward pass: `f32`, or `bf16` for speed
    /// (CPU). Validation and samples are always `f32`.
    #[serde(default)]
    pub precision: PrecisionSpec,
    /// Micro-batches whose gradients are averaged into one step.
    #[serde(default = "one")]
    pub grad_accumulation: u64,
    /// Scale the gradient down to this global norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Clamp every component of the gradient to plus or minus this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f64>,
    /// Decay of the moving average of the weights; the average is what is validated and saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Steps between two records in `metrics.jsonl`.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Steps between two validations. Default: only at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<u64>,
    /// Steps between two checkpoints. Default: only at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Steps between two sets of samples. Default: only at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_every: Option<u64>,
    /// How many of the newest checkpoints are kept.
    #[serde(default = "three")]
    pub keep_checkpoints: usize,
    /// Stop after this many validations without a new lowest loss, and return the best weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Stop as diverged when the smoothed loss is above its first value and exceeds this many times
    /// its lowest (positive) one.
    #[serde(default = "ten_times")]
    pub divergence: f64,
    /// L1 and L2 terms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub penalties: Vec<PenaltySpec>,
}

fn one() -> u64 {
    1
}

fn ten() -> u64 {
    10
}

fn three() -> usize {
    3
}

fn ten_times() -> f64 {
    10.0
}

impl LoopSpec {
    /// `steps` steps of `batch` examples, everything else at its default.
    pub fn new(steps: u64, batch: usize, seed: u64) -> Self {
        Self {
            steps: Some(steps),
            epochs: None,
            batch,
            seed,
            precision: PrecisionSpec::F32,
            grad_accumulation: 1,
            clip_norm: None,
            clip_value: None,
            ema: None,
            log_every: ten(),
            validate_every: None,
            checkpoint_every: None,
            sample_every: None,
            keep_checkpoints: three(),
            patience: None,
            divergence: ten_times(),
            penalties: Vec::new(),
        }
    }

    /// Optimiser steps in all, on `examples` examples; a last batch that is not full is left out.
    pub fn total_steps(&self, examples: usize) -> u64 {
        let per_epoch = examples as u64 / (self.batch as u64 * self.grad_accumulation).max(1);
        let epochs = self.epochs.map(|epochs| epochs.saturating_mul(per_epoch));
        let limits = [self.steps, epochs];
        limits.into_iter().flatten().min().unwrap_or(0)
    }

    /// Refuses what only the loop of one loss has.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate_for_players(&self) -> Result<(), Invalid> {
        let of_a_player = "it is a player's: move it to [generator] or [critic]";
        let of_one_loss = "leave it out";
        let given = [
            ("clip_norm", self.clip_norm.is_some(), of_a_player),
            ("clip_value", self.clip_value.is_some(), of_a_player),
            ("penalties", !self.penalties.is_empty(), of_one_loss),
            ("patience", self.patience.is_some(), of_one_loss),
            (
                "grad_accumulation",
                self.grad_accumulation != 1,
                of_one_loss,
            ),
        ];
        match given.into_iter().find(|(_, given, _)| *given) {
            Some((key, _, help)) => {
                let message = format!("`{key}` is not used where two players train");
                Err(Invalid::new(key, message, help))
            }
            None => Ok(()),
        }
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        let at_least_one = |key, value: Option<u64>| match value {
            Some(0) => Err(Invalid::new(
                key,
                format!("`{key}` must be at least 1"),
                format!("leave `{key}` out to switch it off"),
            )),
            _ => Ok(()),
        };
        if self.steps.is_none() && self.epochs.is_none() {
            return Err(Invalid::new(
                "steps",
                "the length of the training is missing",
                "add `steps = ...` or `epochs = ...` to [train]",
            ));
        }
        at_least_one("steps", self.steps)?;
        at_least_one("epochs", self.epochs)?;
        at_least_one("batch", Some(self.batch as u64))?;
        at_least_one("grad_accumulation", Some(self.grad_accumulation))?;
        at_least_one("log_every", Some(self.log_every))?;
        at_least_one("keep_checkpoints", Some(self.keep_checkpoints as u64))?;
        at_least_one("validate_every", self.validate_every)?;
        at_least_one("checkpoint_every", self.checkpoint_every)?;
        at_least_one("sample_every", self.sample_every)?;
        at_least_one("patience", self.patience)?;
        if self.seed > i64::MAX as u64 {
            return Err(Invalid::new(
                "seed",
                "the seed is too large",
                "TOML integers end at 2^63 - 1",
            ));
        }
        if self.patience.is_some() && self.validate_every.is_none() {
            return Err(Invalid::new(
                "patience",
                "early stopping needs validations",
                "set `validate_every` as well",
            ));
        }
        fraction("ema", self.ema.unwrap_or_default())?;
        positive("clip_norm", self.clip_norm.unwrap_or(1.0))?;
        positive("clip_value", self.clip_value.unwrap_or(1.0))?;
        if self.divergence.is_nan() || self.divergence <= 1.0 {
            return Err(Invalid::new(
                "divergence",
                "must be above 1",
                "the default is 10",
            ));
        }
        self.penalties
            .iter()
            .try_for_each(|penalty| not_negative("penalties", penalty.weight))
    }
}

/// Which side of a published number is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Losses, distances.
    #[default]
    Lower,
    /// Accuracies, coverages.
    Higher,
}

/// `[published.<metric>]`: a number somebody else reported for the same experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The number.
    pub value: f64,
    /// Who reported it, where.
    pub source: String,
    /// Which side is better.
    #[serde(default)]
    pub better: Better,
}

/// Published numbers by metric name; a field of every recipe, shown in its report.
pub type PublishedNumbers = BTreeMap<String, Published>;

fn positive(key: &'static str, value: f64) -> Result<(), Invalid> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(Invalid::new(
            key,
            format!("`{key}` must be above 0, not {value}"),
            "choose a positive number",
        )),
    }
}

fn not_negative(key: &'static str, value: f64) -> Result<(), Invalid> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(Invalid::new(
            key,
            format!("`{key}` must not be negative, but is {value}"),
            "0 switches it off",
        )),
    }
}

fn fraction(key: &'static str, value: f64) -> Result<(), Invalid> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(Invalid::new(
            key,
            format!("`{key}` must be in [0, 1), not {value}"),
            "0.9 to 0.999 is usual",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_the_rule_does_not_use_is_refused() {
        let spec = OptimizerSpec {
            betas: Some([0.9, 0.99]),
            ..OptimizerSpec::new(OptimizerKind::Sgd, 0.1)
        };
        assert_eq!(spec.validate().unwrap_err().key, "betas");
        assert!(OptimizerSpec::adamw(1e-3).validate().is_ok());
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(
            OptimizerSpec::adamw(f64::NAN).validate().unwrap_err().key,
            "lr"
        );
        assert_eq!(LoopSpec::new(0, 1, 0).validate().unwrap_err().key, "steps");
        let patience = LoopSpec {
            patience: Some(3),
            ..LoopSpec::new(1, 1, 0)
        };
        assert_eq!(patience.validate().unwrap_err().key, "patience");
        let ema = LoopSpec {
            ema: Some(1.0),
            ..LoopSpec::new(1, 1, 0)
        };
        assert_eq!(ema.validate().unwrap_err().key, "ema");
        let endless = LoopSpec {
            steps: None,
            ..LoopSpec::new(1, 1, 0)
        };
        assert_eq!(endless.validate().unwrap_err().key, "steps");
        let step = ScheduleSpec {
            kind: ScheduleKind::Step,
            ..Default::default()
        };
        assert!(step.validate().unwrap_err().message.contains("gamma"));
    }

    #[test]
    fn steps_and_epochs_whichever_ends_first() {
        let epochs = |steps| LoopSpec {
            steps,
            epochs: Some(10),
            ..LoopSpec::new(1, 128, 0)
        };
        assert_eq!(epochs(None).total_steps(60_000), 4680);
        assert_eq!(epochs(Some(100)).total_steps(60_000), 100);
        assert_eq!(LoopSpec::new(7, 4, 0).total_steps(0), 7);
    }
}
