//! `family = "diffusion"`: denoising diffusion on images, with or without classes.

use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Normalization;
use maquette_generate::diffusion::{Sampler, Spacing, TimeGrid, guided, noise, sample};
use maquette_models::diffusion::unet::{UNet, UNetConfig};
use maquette_models::diffusion::{DiffusionConfig, drop_labels};
use maquette_rng::{Stream, normal, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::judge::{Judge, copies_of_training};
use super::pictures::{
    Draw, ImageRequest, Stamp, as_set, draw_all, labels, save as save_pictures, save_sheet,
};
use super::sections::{ImageData, Images};
use super::{EvaluateJob, Job, Outcome, images, validate, weights};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    Evaluation, LoopSpec, OptimizerSpec, Plan, ScheduleSpec, Source, Task, TrainError, fit,
};

/// What the network sees and gives is on `[-1, 1]`.
const RANGE: (f32, f32) = (-1.0, 1.0);

/// Everything about one diffusion model of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionRecipe {
    /// One line for listings.
    pub summary: String,
    /// `diffusion`.
    pub family: super::Family,
    /// Share of labels hidden in training, so that guidance has an unconditional model to leave from.
    #[serde(default = "tenth")]
    pub label_dropout: f32,
    /// Where images come from.
    pub data: ImageData,
    /// The network. `image` and `n_classes` are the data's.
    #[serde(default)]
    pub model: UNetConfig,
    /// The process and what the network is asked for.
    #[serde(default)]
    pub diffusion: DiffusionConfig,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// The loop.
    pub train: LoopSpec,
    /// How images are drawn from the model.
    #[serde(default)]
    pub sample: ImageSample,
    /// What is measured at the end.
    #[serde(default)]
    pub evaluate: DiffusionEvaluation,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

fn tenth() -> f32 {
    0.1
}

/// `[sample]` of an image model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSample {
    /// Images in a sample sheet.
    pub count: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 is none.
    pub guidance: f64,
    /// The walk from noise to data.
    pub sampler: Sampler,
    /// Which steps are visited.
    pub spacing: Spacing,
}

impl Default for ImageSample {
    fn default() -> Self {
        Self {
            count: 64,
            steps: 50,
            guidance: 2.0,
            sampler: Sampler::default(),
            spacing: Spacing::default(),
        }
    }
}

/// `[evaluate]` of an image model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionEvaluation {
    /// Images drawn for the measurements; 0 leaves them out.
    pub samples: usize,
    /// Training steps of the judge that reads them.
    pub judge_steps: u64,
}

impl Default for DiffusionEvaluation {
    fn default() -> Self {
        Self {
            samples: 1000,
            judge_steps: 1200,
        }
    }
}

impl DiffusionRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        recipe
            .data
            .validate()
            .map_err(|invalid| source.locate("data", invalid))?;
        source.check("model", recipe.model.validate())?;
        source.check("diffusion", recipe.diffusion.validate())?;
        if !(0.0..=1.0).contains(&recipe.label_dropout) {
            let error = Invalid::new("label_dropout", "must lie between 0 and 1", "0.1 is usual");
            return Err(source.locate("", error).into());
        }
        if recipe.evaluate.samples > 0 && recipe.evaluate.judge_steps == 0 {
            let error = Invalid::new(
                "judge_steps",
                "a judge must learn for at least one step",
                "1200 is usual",
            );
            return Err(source.locate("evaluate", error).into());
        }
        recipe
            .time_grid(recipe.sample.steps)
            .map_err(|error| source.at("sample.steps", error.to_string(), None))?;
        Ok(recipe)
    }

    fn time_grid(&self, steps: usize) -> Result<TimeGrid, TrainError> {
        let alpha_bar = self.diffusion.schedule.alpha_bar(self.diffusion.steps);
        TimeGrid::new(&alpha_bar, steps, self.sample.spacing).map_err(TrainError::other)
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = DiffusionRecipe::parse(&job.source)?;
    let mut data = job.open_images(&mut recipe.data, &recipe.train)?;
    let class_names = data.train.class_names.clone();
    recipe.model.image = images::shape(&data.train);
    recipe.model.n_classes = class_names.len();
    recipe.model.validate().map_err(TrainError::other)?;
    let sha256 = data.hash();
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);

    // 2. Model and objective
    let device = job.device.clone().autodiff();
    let model = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));
    let diffusion = recipe.diffusion.init();
    let run = job.open_run(&recipe, &sha256)?;

    // 3. Loop
    let normalization = Normalization::Symmetric;
    let mut feed = images::Feed::new(
        &recipe.data,
        &mut data,
        &recipe.train,
        normalization,
        run.as_ref(),
        recipe.train.grad_accumulation,
    )?;
    let batches = |step| feed.batch(step);
    let loss = |model: &UNet, batch: images::Batch, step: u64| {
        let random = &mut rng(seed, Stream::Noise, step);
        let steps = diffusion.draw_steps(batch.size(), random);
        let classes = drop_labels(
            &batch.classes(),
            recipe.label_dropout,
            recipe.model.n_classes,
            random,
        );
        let classes = (recipe.model.n_classes > 0).then(|| images::label_tensor(&classes, &device));
        let x0 = batch.tensor(&device);
        let shape = x0.dims();
        let eps = Tensor::from_data(
            TensorData::new(normal(random, shape.iter().product()), shape),
            &device,
        );
        diffusion
            .loss(|x, t| model.forward(x, t, classes), x0, &steps, eps)
            .into()
    };
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(data.examples),
        device: &device,
    };
    let painter = Painter {
        recipe: &recipe,
        class_names: &class_names,
        device: &job.device.clone(),
    };
    let task = Task::new(batches, loss)
        .counting(batch as f64, "images")
        .sample(|model: &UNet, _, folder: &Path| {
            let request = ImageRequest {
                count: recipe.sample.count,
                seed,
                ..ImageRequest::default()
            };
            let all = draw_all(&request, RANGE, &mut |request, range| {
                painter.draw(model, request, range)
            })?;
            Ok(save_sheet(&folder.join("sheet.png"), &all)?)
        });
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, measure, report
    let dir = run.dir().to_owned();
    save(&fitted.model, &recipe, &class_names, &dir)?;
    let evaluation = measure(&fitted.model, &painter, &data, Some(&dir), &mut |what| {
        job.say(what)
    })?;
    Ok(Outcome::Trained(run.finish(&fitted, evaluation)?))
}

/// Measures a run's model again.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = DiffusionRecipe::parse(source)?;
    (job.say)("reading the images");
    let data = recipe.data.open(job.data.as_deref(), &recipe.train)?;
    let (model, class_names) = load(&recipe, &job.run, &job.device)?;
    let painter = Painter {
        recipe: &recipe,
        class_names: &class_names,
        device: &job.device,
    };
    measure(&model, &painter, &data, None, job.say)
}

/// The function that draws images of a run, and their range.
///
/// # Errors
/// No weights.
pub fn drawing(
    source: &Source,
    dir: &Path,
    device: &Device,
) -> Result<((f32, f32), Box<Draw<'static>>), TrainError> {
    let recipe = DiffusionRecipe::parse(source)?;
    let (model, class_names) = load(&recipe, dir, device)?;
    let device = device.clone();
    let draw = move |request: &ImageRequest, range: Range<usize>| {
        Painter {
            recipe: &recipe,
            class_names: &class_names,
            device: &device,
        }
        .draw(&model, request, range)
    };
    Ok((RANGE, Box::new(draw)))
}

/// Draws images as the recipe's `[sample]` and a request say.
struct Painter<'a> {
    recipe: &'a DiffusionRecipe,
    class_names: &'a [String],
    device: &'a Device,
}

impl Painter<'_> {
    /// Images `range` of a request, `[range.len(), channels, height, width]`.
    fn draw(
        &self,
        model: &UNet,
        request: &ImageRequest,
        range: Range<usize>,
    ) -> Result<Tensor<4>, TrainError> {
        let Self {
            recipe,
            class_names,
            device,
        } = self;
        if request.truncation.is_some() {
            return Err(TrainError::other(
                "a diffusion model draws noise as large as its images and is not truncated; guidance trades variety \
                 for clarity",
            ));
        }
        let grid = recipe.time_grid(request.steps.unwrap_or(recipe.sample.steps))?;
        let sampler = request.sampler.unwrap_or(recipe.sample.sampler);
        let guidance = request.guidance.unwrap_or(recipe.sample.guidance);
        let diffusion = recipe.diffusion.init();
        let n = range.len();
        let [channels, height, width] = recipe.model.image;
        let mut random: Vec<_> = range
            .clone()
            .map(|i| rng(request.seed, Stream::Sample, i as u64))
            .collect();
        let start = noise([n, channels, height, width], &mut random, device);
        let x0 = |x: Tensor<4>, t: usize, labels| {
            let times = diffusion.times(&vec![t; x.dims()[0]], device);
            diffusion
                .predict(
                    model.forward(x.clone(), times, labels),
                    x,
                    diffusion.alpha_bar(t),
                )
                .x0
        };
        if class_names.is_empty() {
            if !request.labels.is_empty() {
                return Err(TrainError::other(
                    "this model knows no labels: its data had none",
                ));
            }
            let denoise = |x, t| x0(x, t, None).clamp(RANGE.0, RANGE.1);
            return Ok(sample(sampler, denoise, start, &grid, &mut random, |_| {}));
        }
        let classes: Vec<usize> = labels(request, range, class_names)?
            .into_iter()
            .map(usize::from)
            .collect();
        let null = recipe.model.n_classes as i64;
        let mut denoise = guided(
            |x, t, labels| x0(x, t, Some(labels)),
            images::label_tensor(&classes, device),
            null,
            guidance,
        );
        let denoise = |x, t| denoise(x, t).clamp(RANGE.0, RANGE.1);
        Ok(sample(sampler, denoise, start, &grid, &mut random, |_| {}))
    }
}

fn save(
    model: &UNet,
    recipe: &DiffusionRecipe,
    class_names: &[String],
    dir: &Path,
) -> Result<(), TrainError> {
    let config = json!({
        "architecture": "unet", "model": recipe.model, "diffusion": recipe.diffusion, "class_names": class_names,
    });
    weights::save(model, &config, dir)
}

/// The network and the names of its classes.
fn load(
    recipe: &DiffusionRecipe,
    dir: &Path,
    device: &Device,
) -> Result<(UNet, Vec<String>), TrainError> {
    let empty = recipe.model.init(device, &mut rng(0, Stream::Init, 0));
    Ok((weights::load(empty, dir)?, weights::class_names(dir)?))
}

/// Drawn images beside real ones as a judge sees them, and how near they are to the training images. Writes the samples
/// into `dir`, if given.
fn measure(
    model: &UNet,
    painter: &Painter<'_>,
    data: &Images,
    dir: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> Result<Evaluation, TrainError> {
    let recipe = painter.recipe;
    let n = recipe.evaluate.samples;
    let mut evaluation = Evaluation::default();
    if n == 0 {
        return Ok(evaluation);
    }
    say(&format!("drawing {n} images to measure"));
    let request = ImageRequest {
        count: n,
        seed: recipe.train.seed,
        ..ImageRequest::default()
    };
    let all = draw_all(&request, RANGE, &mut |request, range| {
        painter.draw(model, request, range)
    })?;
    if let Some(dir) = dir {
        let shown = ImageRequest {
            count: recipe.sample.count.min(n),
            ..request.clone()
        };
        save_pictures(
            &dir.join("samples").join("final"),
            &all[..shown.count],
            &Stamp::of_run(dir, &request)?,
        )?;
    }
    let how = format!(
        "n={n}|seed={}|steps={}|guidance={}|sampler={:?}",
        request.seed, recipe.sample.steps, recipe.sample.guidance, recipe.sample.sampler
    );
    let classes = (!painter.class_names.is_empty())
        .then(|| labels(&request, 0..n, painter.class_names))
        .transpose()?;
    let drawn = as_set(&all, classes, painter.class_names);

    if !painter.class_names.is_empty() {
        say("training the judge");
        let steps = recipe.evaluate.judge_steps;
        let judge = Judge::train(data, recipe.data.source, steps, painter.device)?;
        say("comparing with real images");
        judge.measure(&drawn, &how, &mut evaluation)?;
    }
    say("looking for copies of training images");
    copies_of_training(&drawn, data, &how, &mut evaluation)?;
    Ok(evaluation)
}
