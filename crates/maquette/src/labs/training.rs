//! What the labs that train have in common: the library's loop in a folder that is thrown away,
//! glyphs as tensors, small language models.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use tempfile::TempDir;

use super::{Doing, LabContext, LabError};
use crate::data::glyphs::{GlyphConfig, glyphs};
use crate::data::tokenizer::{TokenizerConfig, TokenizerKind};
use crate::data::{Augment, ImageSet, Normalization, Order, Split, TokenSet, Tokenizer, Windows};
use crate::models::{Gpt, GptConfig, Vae, VaeConfig};
use crate::rng::{Stream, normal, rng};
use crate::train::recipes::{self, Job};
use crate::train::run::Place;
use crate::train::spec::{OptimizerKind, ScheduleKind};
use crate::train::{
    Batch, Control, Event, LoopSpec, Metrics, OptimizerSpec, Plan, Run, RunSpec, ScheduleSpec,
    Source, Task, TrainError, fit,
};

/// One training of an experiment: the sections of a recipe that the loop follows.
#[derive(Clone)]
pub(crate) struct Training {
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    pub schedule: ScheduleSpec,
    /// The loop.
    pub train: LoopSpec,
}

impl Training {
    /// `steps` steps of `batch` examples with a constant learning rate.
    pub(crate) fn new(optimizer: OptimizerSpec, steps: u64, batch: usize, seed: u64) -> Self {
        let train = LoopSpec {
            log_every: steps,
            ..LoopSpec::new(steps, batch, seed)
        };
        Self {
            optimizer,
            schedule: ScheduleSpec::default(),
            train,
        }
    }

    /// Runs the library's loop.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] among others; an experiment may expect it.
    pub(crate) fn run<M: Module, B>(
        &self,
        model: M,
        task: Task<'_, M, B>,
        device: &Device,
    ) -> Result<Trained<M>, Box<Unfinished>> {
        let mut losses = Vec::new();
        let mut validations = Vec::new();
        let mut on_event = |event: Event<'_>| match event {
            Event::Step(progress) => losses.push(progress.loss),
            Event::Validated { step, metrics } => validations.push((step, metrics.clone())),
            _ => {}
        };
        let stop = AtomicBool::new(false);
        let fitted = self.fit(
            model,
            task,
            device,
            &mut Control {
                stop: &stop,
                on_event: &mut on_event,
            },
        );
        match fitted {
            Ok(model) => Ok(Trained {
                model,
                losses,
                validations,
            }),
            Err(error) => Err(Box::new(Unfinished { error, losses })),
        }
    }

    fn fit<M: Module, B>(
        &self,
        model: M,
        task: Task<'_, M, B>,
        device: &Device,
        control: &mut Control<'_>,
    ) -> Result<M, TrainError> {
        let (_folder, mut run) = scratch()?;
        let plan = Plan {
            optimizer: &self.optimizer,
            schedule: &self.schedule,
            train: &self.train,
            steps: self.train.steps.unwrap_or(0),
            device,
        };
        fit(model, task, &plan, &mut run, control).map(|fitted| fitted.model)
    }
}

/// A run of no recipe, in a folder that goes when it is dropped.
pub(crate) fn scratch() -> Result<(TempDir, Run), TrainError> {
    let folder = tempfile::tempdir().map_err(|source| TrainError::Io {
        action: "make a folder in",
        path: std::env::temp_dir(),
        source,
    })?;
    let run = Run::open(&RunSpec {
        place: Place::Out(folder.path().join("run")),
        recipe: "",
        data_sha256: "",
        device: "",
    })?;
    Ok((folder, run))
}

/// A trained model, without gradients, and how it came about.
pub(crate) struct Trained<M> {
    pub(crate) model: M,
    /// The training loss at every step.
    pub(crate) losses: Vec<f64>,
    /// Validation metrics by step.
    pub(crate) validations: Vec<(u64, Metrics)>,
}

/// A training that failed, and its losses until then.
pub(crate) struct Unfinished {
    pub(crate) error: TrainError,
    pub(crate) losses: Vec<f64>,
}

impl From<Box<Unfinished>> for LabError {
    fn from(unfinished: Box<Unfinished>) -> Self {
        Self::Step {
            doing: "training",
            source: Box::new(unfinished.error),
        }
    }
}

/// What came of a recipe.
pub(crate) struct Ran {
    /// What it measured at the end.
    pub(crate) metrics: Metrics,
    /// What it said meanwhile.
    pub(crate) said: Vec<String>,
}

impl Ran {
    /// A number it measured; none of that name is not a number, which no claim holds for.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).copied().unwrap_or(f64::NAN)
    }
}

/// Trains a recipe, changed by `sets`, in the folder `out`.
pub(crate) fn recipe(
    lab: &LabContext<'_>,
    text: &str,
    sets: &[(&str, &str)],
    out: &Path,
) -> Result<Ran, LabError> {
    let seed = lab.seed.to_string();
    let sets: Vec<_> = [&[("train.seed", &*seed)], sets]
        .concat()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let mut said = Vec::new();
    let stop = AtomicBool::new(false);
    let job = Job {
        source: Source::new("recipe", text, &sets),
        place: Place::Out(out.to_owned()),
        data: None,
        device: lab.device.clone(),
        device_name: "cpu".into(),
        dry_run: false,
        stop: &stop,
        on_event: &mut |event| {
            if let Event::Doing(what) = event {
                said.push(what.to_owned());
            }
        },
    };
    let metrics = match recipes::train(job).doing("training a recipe")? {
        recipes::Outcome::Trained(result) => result.metrics,
        recipes::Outcome::Estimated(_) => Metrics::new(),
    };
    Ok(Ran { metrics, said })
}

/// The mean of the last tenth of a loss curve.
pub(crate) fn last(losses: &[f64]) -> f64 {
    let tail = &losses[losses.len() - (losses.len() / 10).max(1)..];
    tail.iter().sum::<f64>() / tail.len() as f64
}

/// A loss curve as points of a chart, each the mean of `width` steps.
pub(crate) fn curve(losses: &[f64], width: usize) -> Vec<(f64, f64)> {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    losses
        .chunks(width)
        .enumerate()
        .map(|(i, part)| ((i * width + 1) as f64, mean(part)))
        .collect()
}

/// Built-in glyphs: `per_class` examples of each of `classes`.
pub(crate) fn glyph_set(
    split: Split,
    seed: u64,
    classes: usize,
    per_class: usize,
) -> Result<ImageSet, LabError> {
    let config = GlyphConfig {
        classes,
        per_class,
        ..GlyphConfig::default()
    };
    glyphs(split, seed, &config).doing("drawing glyphs")
}

/// Images as flat rows, `[n, channels * height * width]`.
pub(crate) fn rows(
    set: &ImageSet,
    indices: &[usize],
    norm: &Normalization,
    device: &Device,
) -> Tensor<2> {
    matrix(set.batch(indices, norm, None), indices.len(), device)
}

/// As [`rows`], each image changed by `augment` with the randomness of `step`.
pub(crate) fn augmented(
    set: &ImageSet,
    indices: &[usize],
    norm: &Normalization,
    (augment, seed, step): (&Augment, u64, u64),
    device: &Device,
) -> Tensor<2> {
    let mut rng = rng(seed, Stream::Augment, step);
    matrix(
        set.batch(indices, norm, Some((augment, &mut rng))),
        indices.len(),
        device,
    )
}

/// Numbers as `n` rows.
pub(crate) fn matrix(values: Vec<f32>, n: usize, device: &Device) -> Tensor<2> {
    let width = values.len() / n;
    Tensor::from_data(TensorData::new(values, [n, width]), device)
}

/// The labels of the images at `indices`, `[n]`.
pub(crate) fn labels(set: &ImageSet, indices: &[usize], device: &Device) -> Tensor<1, Int> {
    let labels = set.labels_at(indices).unwrap_or_default();
    let labels: Vec<i32> = labels.into_iter().map(i32::from).collect();
    let n = labels.len();
    Tensor::from_data(TensorData::new(labels, [n]), device)
}

/// A tensor's numbers, in order.
pub(crate) fn numbers<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, LabError> {
    tensor
        .into_data()
        .try_to_vec::<f32>()
        .doing("reading a tensor")
}

/// All indices of a set.
pub(crate) fn all(set: &ImageSet) -> Vec<usize> {
    (0..set.len()).collect()
}

/// The order in which a training visits a set.
pub(crate) fn order(set: &ImageSet, batch: usize, seed: u64) -> Result<Order, LabError> {
    Order::new(set.len(), batch, seed).doing("ordering the batches")
}

/// Images in `[0, 1]`, `[n, channels, height, width]`.
pub(crate) fn pictures(set: &ImageSet, indices: &[usize], device: &Device) -> Tensor<4> {
    let values = set.batch(indices, &Normalization::MinMax, None);
    let shape = [indices.len(), set.channels, set.height, set.width];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Tokens as `[batch, seq_len]`.
pub(crate) fn token_rows(ids: &[u32], batch: usize, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let width = ids.len() / batch;
    Tensor::from_data(TensorData::new(ids, [batch, width]), device)
}

/// Standard normal noise for a batch, drawn from `(seed, step)`.
pub(crate) fn noise(
    batch: usize,
    width: usize,
    (seed, step): (u64, u64),
    device: &Device,
) -> Tensor<2> {
    matrix(
        normal(&mut rng(seed, Stream::Noise, step), batch * width),
        batch,
        device,
    )
}

/// A variational autoencoder trained on `set` by Adam, batch size 100.
pub(crate) fn autoencoder(
    lab: &LabContext<'_>,
    set: &ImageSet,
    config: &VaeConfig,
    steps: u64,
) -> Result<Trained<Vae>, LabError> {
    const BATCH: usize = 100;
    let device = lab.device.clone().autodiff();
    let order = order(set, BATCH, lab.seed)?;
    let model = config.init(&device, &mut rng(lab.seed, Stream::Init, 0));
    let adam = OptimizerSpec::new(OptimizerKind::Adam, 2e-3);
    let mut training = Training::new(adam, steps, BATCH, lab.seed);
    training.schedule = ScheduleSpec {
        kind: ScheduleKind::Cosine,
        ..ScheduleSpec::default()
    };
    let task = Task::new(
        |step| Ok(Batch::from(pictures(set, &order.indices(step), &device))),
        |model: &Vae, x, step| {
            let noise = noise(BATCH, config.d_latent, (lab.seed, step), &device);
            model.loss(x, noise).total.into()
        },
    );
    Ok(training.run(model, task, &device)?)
}

/// A language model to be trained on a text, whose last tenth is held out.
pub(crate) struct TextTraining<'a> {
    pub(crate) corpus: &'a str,
    pub(crate) tokenizer: Tokenizer,
    /// `vocab_size` is the tokenizer's.
    pub(crate) config: GptConfig,
    pub(crate) steps: u64,
    pub(crate) batch: usize,
    /// Learning rates at the beginning and the end of a cosine.
    pub(crate) rates: (f64, f64),
}

/// A trained language model.
pub(crate) struct TextModel {
    pub(crate) config: GptConfig,
    pub(crate) model: Gpt,
    pub(crate) tokenizer: Tokenizer,
    held_out: TokenSet,
}

impl TextTraining<'_> {
    /// Trains it by AdamW.
    pub(crate) fn run(self, lab: &LabContext<'_>) -> Result<TextModel, LabError> {
        lab.say("training a small GPT");
        let tokens = TokenSet::encode(self.corpus, &self.tokenizer).doing("encoding the text")?;
        let (train, held_out) = tokens.split(0.1).doing("splitting the text")?;
        let device = lab.device.clone().autodiff();
        let config = GptConfig {
            vocab_size: self.tokenizer.vocab_size(),
            ..self.config
        };
        let model = config.init(&device, &mut rng(lab.seed, Stream::Init, 0));
        let adamw = OptimizerSpec {
            betas: Some([0.9, 0.99]),
            weight_decay: 0.1,
            ..OptimizerSpec::adamw(self.rates.0)
        };
        let mut training = Training::new(adamw, self.steps, self.batch, lab.seed);
        training.schedule = ScheduleSpec {
            kind: ScheduleKind::Cosine,
            warmup: 100.min(self.steps / 10),
            final_lr: self.rates.1,
            ..ScheduleSpec::default()
        };
        training.train.clip_norm = Some(1.0);
        let (batch, seq_len) = (self.batch, config.seq_len);
        let task = Task::new(
            |step| Ok(Batch::from(train.windows(batch, seq_len, lab.seed, step)?)),
            |model: &Gpt, w: Windows, _| {
                let inputs = token_rows(&w.inputs, w.batch, &device);
                let targets = token_rows(&w.targets, w.batch, &device);
                model.loss(inputs, targets).into()
            },
        );
        Ok(TextModel {
            model: training.run(model, task, &device)?.model,
            config,
            tokenizer: self.tokenizer,
            held_out,
        })
    }
}

impl TextModel {
    /// The loss on text that was held out, in nats per token.
    pub(crate) fn held_out_loss(&self, lab: &LabContext<'_>) -> Result<f64, LabError> {
        let (mut sum, mut rows) = (0.0, 0.0);
        let windows = self.held_out.coverage(32, self.config.seq_len);
        for w in windows.doing("reading held-out text")?.take(100) {
            let inputs = token_rows(&w.inputs, w.batch, &lab.device);
            let targets = token_rows(&w.targets, w.batch, &lab.device);
            let loss = self.model.loss(inputs, targets);
            sum += f64::from(loss.into_scalar::<f32>()) * w.batch as f64;
            rows += w.batch as f64;
        }
        Ok(sum / rows)
    }
}

/// The characters of a text as tokens.
pub(crate) fn characters(corpus: &str) -> Result<Tokenizer, LabError> {
    let config = TokenizerConfig {
        kind: TokenizerKind::Char,
        ..TokenizerConfig::default()
    };
    let text = std::iter::once(Ok(corpus.to_owned()));
    config.train(text).doing("collecting characters")
}

/// Two layers of 64 features.
pub(crate) fn small_gpt(seq_len: usize) -> GptConfig {
    GptConfig {
        seq_len,
        d_model: 64,
        n_layers: 2,
        n_heads: 4,
        ..GptConfig::default()
    }
}
