//! One file per family: how a recipe becomes a trained, measured model.
//!
//! Each reads top to bottom: data, model, optimiser, loop, save, measure. What they share is here:
//! the job, the run folder it opens, and the choice of the family.

pub mod bert;
pub mod classifier;
pub mod diffusion;
pub mod finetune;
pub mod gan;
pub mod generate;
pub mod gpt;
pub mod images;
pub mod in_context;
pub mod judge;
pub mod latent;
pub mod mask_predict;
pub mod opening;
pub mod pictures;
pub mod points;
pub mod sections;
pub mod seq2seq;
pub mod text;
pub mod translate;
pub mod vae;
mod weights;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use burn::module::Module;
use burn::tensor::Device;
use maquette_models::{CausalConvConfig, GptConfig, RecurrentConfig};
use serde::{Deserialize, Serialize};

use self::sections::{ImageData, Images};
use crate::spec::Invalid;
use crate::{
    Control, Evaluation, Event, LoopSpec, Metrics, OptimizerSpec, Place, Plan, RecipeError, Run,
    RunResult, RunSpec, ScheduleSpec, Source, Task, TrainError, fit, recipe, run,
};

/// The kinds of model that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Autoregressive transformer on text.
    Gpt,
    /// Recurrent network on text.
    Recurrent,
    /// Causal convolution on text.
    CausalConv,
    /// Masked language model on text.
    Bert,
    /// A trained transformer encoder on classes, tags or answers.
    Finetune,
    /// Encoder-decoder transformer on pairs of texts.
    Seq2seq,
    /// Encoder-decoder that writes answers at once and refines them.
    MaskPredict,
    /// Transformer that learns functions from examples in its context.
    InContext,
    /// Variational autoencoder on images.
    Vae,
    /// Denoising diffusion on images.
    Diffusion,
    /// Denoising diffusion on points in the plane.
    Points,
    /// Generative adversarial network on images.
    Gan,
    /// Generative adversarial network on points in the plane.
    GanPoints,
    /// Adversarial translation of images to images.
    Translate,
    /// Image classifier.
    Classifier,
}

/// Every family with its one line, for listings.
pub const FAMILIES: &[(&str, &str)] = &[
    (
        "gpt",
        "decoder-only transformer (GPT-2 and Llama forms) on text",
    ),
    ("recurrent", "recurrent network (RNN, LSTM, GRU) on text"),
    ("causal-conv", "dilated causal convolution on text"),
    (
        "bert",
        "transformer encoder that guesses masked words of a text",
    ),
    (
        "finetune",
        "a trained transformer encoder that learns classes, tags or answers from examples",
    ),
    (
        "seq2seq",
        "encoder-decoder transformer (original and T5 layout) on pairs of texts",
    ),
    (
        "mask-predict",
        "encoder-decoder that writes answers at once and refines them",
    ),
    (
        "in-context",
        "transformer that learns functions from examples in its context",
    ),
    (
        "vae",
        "variational autoencoder (MLP or convolutional) on images",
    ),
    (
        "diffusion",
        "denoising diffusion (U-Net, class-conditional) on images",
    ),
    ("points", "denoising diffusion (MLP) on points in the plane"),
    (
        "gan",
        "generative adversarial network (DCGAN, residual, style-based) on images",
    ),
    (
        "gan-points",
        "generative adversarial network (MLP) on points in the plane",
    ),
    (
        "translate",
        "image-to-image translation: pix2pix with pairs, CycleGAN without",
    ),
    (
        "classifier",
        "convolutional image classifier, the judge of generated images",
    ),
];

impl Family {
    /// The family that a recipe names.
    ///
    /// # Errors
    /// No `family`, or one that is not known.
    pub fn of(source: &Source) -> Result<Self, RecipeError> {
        let name = source.top("family")?;
        match name.as_str() {
            "gpt" => Ok(Self::Gpt),
            "recurrent" => Ok(Self::Recurrent),
            "causal-conv" => Ok(Self::CausalConv),
            "bert" => Ok(Self::Bert),
            "finetune" => Ok(Self::Finetune),
            "seq2seq" => Ok(Self::Seq2seq),
            "mask-predict" => Ok(Self::MaskPredict),
            "in-context" => Ok(Self::InContext),
            "vae" => Ok(Self::Vae),
            "diffusion" => Ok(Self::Diffusion),
            "points" => Ok(Self::Points),
            "gan" => Ok(Self::Gan),
            "gan-points" => Ok(Self::GanPoints),
            "translate" => Ok(Self::Translate),
            "classifier" => Ok(Self::Classifier),
            _ => {
                let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
                let help = format!("families are {}", known.join(", "));
                Err(source.at("family", format!("there is no family `{name}`"), Some(help)))
            }
        }
    }
}

/// What the caller wants trained, where, and how he watches.
pub struct Job<'a> {
    /// The recipe and its overrides.
    pub source: Source,
    /// A new run folder, or the one to go on with.
    pub place: Place,
    /// `--data`: stands for the recipe's `data.path`.
    pub data: Option<PathBuf>,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// What the user calls it.
    pub device_name: String,
    /// Measure a few steps instead of training.
    pub dry_run: bool,
    /// Set to stop after the current step.
    pub stop: &'a AtomicBool,
    /// Called on every event.
    pub on_event: &'a mut dyn FnMut(Event<'_>),
}

/// What came of a job.
pub enum Outcome {
    /// A run folder.
    Trained(RunResult),
    /// `--dry-run`.
    Estimated(Estimate),
}

/// What training would take.
pub struct Estimate {
    /// The recipe with every default written out, TOML.
    pub recipe: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// Memory of the process after the measured steps, in MiB.
    pub memory_mib: f64,
    /// Seconds of one optimiser step.
    pub seconds_per_step: f64,
    /// Over how many steps that was measured.
    pub measured_steps: u64,
    /// Steps of the recipe.
    pub steps: u64,
}

impl Estimate {
    /// The time of all steps.
    pub fn training(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds_per_step * self.steps as f64)
            .unwrap_or(Duration::MAX)
    }
}

/// Trains the recipe of `job`, or estimates what that would take.
///
/// # Errors
/// Anything between a recipe that does not parse and a full disk; see [`TrainError`].
pub fn train(job: Job<'_>) -> Result<Outcome, TrainError> {
    match Family::of(&job.source)? {
        Family::Gpt => gpt::train::<GptConfig>(job),
        Family::Recurrent => gpt::train::<RecurrentConfig>(job),
        Family::CausalConv => gpt::train::<CausalConvConfig>(job),
        Family::Bert => bert::train(job),
        Family::Finetune => finetune::train(job),
        Family::Seq2seq => seq2seq::train(job),
        Family::MaskPredict => mask_predict::train(job),
        Family::InContext => in_context::train(job),
        Family::Vae => vae::train(job),
        Family::Diffusion => diffusion::train(job),
        Family::Points => points::train(job),
        Family::Gan => gan::images::train(job),
        Family::GanPoints => gan::points::train(job),
        Family::Translate => translate::train(job),
        Family::Classifier => classifier::train(job),
    }
}

/// A request to measure a run's model again.
pub struct EvaluateJob<'a> {
    /// The run folder.
    pub run: PathBuf,
    /// Stands for the recipe's `data.path`.
    pub data: Option<PathBuf>,
    /// Only these metrics; all when empty.
    pub metrics: Vec<String>,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// Told what is being done.
    pub say: &'a mut dyn FnMut(&str),
}

/// Measures the model of a run on its data, as the end of training does.
///
/// # Errors
/// Not a run, no trained model in it, data that is missing, or an unknown metric.
pub fn evaluate(job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let source = of_run(&job.run)?;
    let wanted = job.metrics.clone();
    let all = match Family::of(&source)? {
        Family::Gpt => gpt::evaluate::<GptConfig>(&source, job)?,
        Family::Recurrent => gpt::evaluate::<RecurrentConfig>(&source, job)?,
        Family::CausalConv => gpt::evaluate::<CausalConvConfig>(&source, job)?,
        Family::Bert => bert::evaluate(&source, job)?,
        Family::Finetune => finetune::evaluate(&source, job)?,
        Family::Seq2seq => seq2seq::evaluate(&source, job)?,
        Family::MaskPredict => mask_predict::evaluate(&source, job)?,
        Family::InContext => in_context::evaluate(&source, job)?,
        Family::Vae => vae::evaluate(&source, job)?,
        Family::Diffusion => diffusion::evaluate(&source, job)?,
        Family::Points => points::evaluate(&source, job)?,
        Family::Gan => gan::images::evaluate(&source, job)?,
        Family::GanPoints => gan::points::evaluate(&source, job)?,
        Family::Translate => translate::evaluate(&source, job)?,
        Family::Classifier => classifier::evaluate(&source, job)?,
    };
    all.keep(&wanted)
}

/// The recipe of a run folder.
///
/// # Errors
/// Not a run folder.
pub fn of_run(dir: &Path) -> Result<Source, TrainError> {
    Ok(Source::new(
        &dir.join("recipe.toml").display().to_string(),
        &run::recipe(dir)?,
        &[],
    ))
}

impl Job<'_> {
    /// The path of the data: `--data`, else the recipe's `data.path`.
    pub(crate) fn data_path<'a>(&'a self, recipe: Option<&'a Path>) -> Option<&'a Path> {
        self.data.as_deref().or(recipe)
    }

    /// Opens the images of an image family, which from then on stand in its recipe.
    pub(crate) fn open_images(
        &mut self,
        data: &mut ImageData,
        train: &LoopSpec,
    ) -> Result<Images, TrainError> {
        self.remember_data(&mut data.path);
        self.say("reading the images");
        data.open(self.data.as_deref(), train)
    }

    /// Writes `--data` into a new run's recipe, so that the run can be resumed and measured without it.
    /// A resumed run keeps what it has: the data's hash decides whether it is the same data.
    pub(crate) fn remember_data(&self, path: &mut Option<PathBuf>) {
        if let (Some(data), Place::New { .. } | Place::Out(_)) = (&self.data, &self.place) {
            *path = Some(std::path::absolute(data).unwrap_or_else(|_| data.clone()));
        }
    }

    /// Opens the run folder of this job; a dry run has none.
    pub(crate) fn open_run<R: Serialize>(
        &self,
        recipe: &R,
        data_sha256: &str,
    ) -> Result<Option<Run>, TrainError> {
        if self.dry_run {
            return Ok(None);
        }
        Run::open(&RunSpec {
            place: self.place.clone(),
            recipe: &recipe::resolved(recipe)?,
            data_sha256,
            device: &self.device_name,
        })
        .map(Some)
    }

    /// Says what is being done outside the loop.
    pub(crate) fn say(&mut self, what: &str) {
        (self.on_event)(Event::Doing(what));
    }

    /// The handles that the loop needs.
    pub(crate) fn control(&mut self) -> Control<'_> {
        Control {
            stop: self.stop,
            on_event: self.on_event,
        }
    }

    /// Ends a `--dry-run`.
    pub(crate) fn estimate<R: Serialize, M: Module, B>(
        &self,
        recipe: &R,
        model: M,
        task: Task<'_, M, B>,
        plan: &Plan<'_>,
    ) -> Result<Outcome, TrainError> {
        self.estimated(recipe, fit::measure(model, task, plan)?, plan.steps)
    }

    /// Ends a `--dry-run` whose steps were `measured`.
    pub(crate) fn estimated<R: Serialize>(
        &self,
        recipe: &R,
        measured: fit::Measured,
        all_steps: u64,
    ) -> Result<Outcome, TrainError> {
        let fit::Measured {
            parameters,
            seconds_per_step,
            steps,
        } = measured;
        Ok(Outcome::Estimated(Estimate {
            recipe: recipe::resolved(recipe)?,
            parameters,
            memory_mib: resident_mib(),
            seconds_per_step,
            measured_steps: steps,
            steps: all_steps,
        }))
    }
}

/// Checks the three sections that every recipe has.
pub(crate) fn validate(
    source: &Source,
    optimizer: &OptimizerSpec,
    schedule: &ScheduleSpec,
    train: &LoopSpec,
) -> Result<(), RecipeError> {
    let at = |section: &'static str| move |invalid: Invalid| source.locate(section, invalid);
    optimizer.validate().map_err(at("optimizer"))?;
    schedule.validate().map_err(at("schedule"))?;
    train.validate().map_err(at("train"))
}

/// The metrics of the last validation, under the names of a final measurement.
fn test_metrics(metrics: &Metrics) -> Metrics {
    metrics
        .iter()
        .map(|(name, value)| (format!("test_{name}"), *value))
        .collect()
}

/// Memory of this process, in MiB; 0 where the system does not tell.
pub fn resident_mib() -> f64 {
    let Ok(mut system) = sysinfo::System::new() else {
        return 0.0;
    };
    let Ok(pid) = sysinfo::get_current_pid() else {
        return 0.0;
    };
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[pid]), true);
    system
        .process(pid)
        .map_or(0.0, |process| process.memory() as f64 / (1u64 << 20) as f64)
}
