//! `family = "vae"`: a variational autoencoder on images.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::{ImageSet, Normalization};
use maquette_eval::Estimate;
use maquette_generate::latent::truncated_normal;
use maquette_models::vae::{Vae, VaeConfig};
use maquette_rng::{Stream, normal, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::judge::{Judge, copies_of_training};
use super::latent::LatentModel;
use super::pictures::{Draw, ImageRequest, as_set, draw_all, save_sheet};
use super::sections::{ImageData, Images};
use super::{EvaluateJob, Job, Outcome, images, test_metrics, validate, weights};
use crate::spec::PublishedNumbers;
use crate::{
    BoxError, Evaluation, LoopSpec, Loss, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit,
};

/// Everything about one autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeRecipe {
    /// One line for listings.
    pub summary: String,
    /// `vae`.
    pub family: super::Family,
    /// Where images come from. Pixels are on `[0, 1]`, as both likelihoods expect.
    pub data: ImageData,
    /// The network. `image` is the data's.
    #[serde(default)]
    pub model: VaeConfig,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// The loop.
    pub train: LoopSpec,
    /// What is measured at the end.
    #[serde(default)]
    pub evaluate: VaeEvaluation,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

/// `[evaluate]` of an autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeEvaluation {
    /// Latents per image of the importance-weighted likelihood; 0 leaves it out.
    pub importance_samples: usize,
    /// Over how many test images.
    pub importance_images: usize,
    /// Images drawn from the prior to be compared with real ones; 0 leaves it out.
    pub samples: usize,
    /// Training steps of the judge whose features compare them, where the data has labels.
    pub judge_steps: u64,
}

impl Default for VaeEvaluation {
    fn default() -> Self {
        Self {
            importance_samples: 100,
            importance_images: 500,
            samples: 0,
            judge_steps: 1200,
        }
    }
}

impl VaeRecipe {
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
        Ok(recipe)
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = VaeRecipe::parse(&job.source)?;
    let mut data = job.open_images(&mut recipe.data, &recipe.train)?;
    recipe.model.image = images::shape(&data.train);
    recipe.model.validate().map_err(TrainError::other)?;
    let sha256 = data.hash();
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);

    // 2. Model
    let device = job.device.clone().autodiff();
    let model = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));
    let run = job.open_run(&recipe, &sha256)?;

    // 3. Loop
    let normalization = Normalization::MinMax;
    let mut feed = images::Feed::new(
        &recipe.data,
        &mut data,
        &recipe.train,
        normalization,
        run.as_ref(),
        recipe.train.grad_accumulation,
    )?;
    let batches = |step| feed.batch(step);
    let loss = |model: &Vae, batch: images::Batch, step: u64| {
        let noise = noise(
            batch.size(),
            &recipe.model,
            &mut rng(seed, Stream::Noise, step),
            &device,
        );
        let loss = model.loss(batch.tensor(&device), noise);
        Loss {
            total: loss.total,
            parts: vec![("reconstruction", loss.reconstruction), ("kl", loss.kl)],
        }
    };
    let (inner, test) = (job.device.clone(), &data.test);
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(data.examples),
        device: &device,
    };
    let task = Task::new(batches, loss)
        .counting(batch as f64, "images")
        .validate(|model: &Vae| measure(model, test, &recipe, &inner))
        .sample(|model: &Vae, _, folder: &Path| samples(model, folder, &recipe, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, measure, report
    save(&fitted.model, run.dir())?;
    let mut metrics = test_metrics(&fitted.validation);
    job.say("importance-weighted likelihood");
    metrics.extend(importance(&fitted.model, test, &recipe, &job.device)?);
    let mut evaluation = metrics.into();
    let device = job.device.clone();
    let say = &mut |what: &str| job.say(what);
    compare(&fitted.model, &data, &recipe, &device, say, &mut evaluation)?;
    Ok(Outcome::Trained(run.finish(&fitted, evaluation)?))
}

/// Measures a run's model on the test images.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = VaeRecipe::parse(source)?;
    (job.say)("reading the images");
    let data = recipe.data.open(job.data.as_deref(), &recipe.train)?;
    let model = load(&recipe, &job.run, &job.device)?;
    (job.say)("measuring");
    let elbo = measure(&model, &data.test, &recipe, &job.device).map_err(TrainError::Other)?;
    let mut evaluation = Evaluation::default();
    for (name, value) in test_metrics(&elbo) {
        let signature = format!(
            "{name}|nats-per-image|n={}|latents=1|pixels={:?}",
            data.test.len(),
            recipe.model.likelihood
        );
        evaluation.put(&name, value, signature);
    }
    let importance = importance(&model, &data.test, &recipe, &job.device)?;
    for (name, value) in importance {
        let VaeEvaluation {
            importance_samples,
            importance_images,
            ..
        } = recipe.evaluate;
        evaluation.put(
            &name,
            value,
            format!("{name}|nats-per-image|n={importance_images}|latents={importance_samples}"),
        );
    }
    compare(
        &model,
        &data,
        &recipe,
        &job.device,
        job.say,
        &mut evaluation,
    )?;
    Ok(evaluation)
}

/// Draws from the prior and compares with real images, as the recipe's `[evaluate]` says.
fn compare(
    model: &Vae,
    data: &Images,
    recipe: &VaeRecipe,
    device: &Device,
    say: &mut dyn FnMut(&str),
    evaluation: &mut Evaluation,
) -> Result<(), TrainError> {
    let n = recipe.evaluate.samples;
    if n == 0 {
        return Ok(());
    }
    say(&format!("drawing {n} images to measure"));
    let request = ImageRequest {
        count: n,
        seed: recipe.train.seed,
        ..ImageRequest::default()
    };
    let all = draw_all(&request, (0.0, 1.0), &mut |request, range| {
        prior(model, request, range, device)
    })?;
    let drawn = as_set(&all, None, &[]);
    let how = format!("n={n}|seed={}", request.seed);
    if data.test.labels.is_some() {
        say("training the judge");
        let steps = recipe.evaluate.judge_steps;
        let judge = Judge::train(data, recipe.data.source, steps, device)?;
        say("comparing with real images");
        judge.measure(&drawn, &how, evaluation)?;
    }
    say("looking for copies of training images");
    copies_of_training(&drawn, data, &how, evaluation)
}

/// The function that draws images from a run's prior; their range is `[0, 1]`.
///
/// # Errors
/// No weights.
pub fn drawing(
    source: &Source,
    dir: &Path,
    device: &Device,
) -> Result<((f32, f32), Box<Draw<'static>>), TrainError> {
    let recipe = VaeRecipe::parse(source)?;
    let model = load(&recipe, dir, device)?;
    let device = device.clone();
    Ok((
        (0.0, 1.0),
        Box::new(move |request, range| prior(&model, request, range, &device)),
    ))
}

/// The latent space of a run.
///
/// # Errors
/// No weights.
pub fn latent(source: &Source, dir: &Path, device: &Device) -> Result<LatentModel, TrainError> {
    let recipe = VaeRecipe::parse(source)?;
    let device = device.clone().autodiff();
    let model = load(&recipe, dir, &device)?;
    let encoder = model.clone();
    Ok(LatentModel {
        d_latent: recipe.model.d_latent,
        image: recipe.model.image,
        range: (0.0, 1.0),
        device,
        decode: Box::new(move |z| model.decode(z)),
        encode: Some(Box::new(move |x| encoder.encode(x).mean())),
    })
}

/// Images `range` of a request: each decoded from its own draw of the prior.
fn prior(
    model: &Vae,
    request: &ImageRequest,
    range: std::ops::Range<usize>,
    device: &Device,
) -> Result<Tensor<4>, TrainError> {
    if !request.labels.is_empty() {
        return Err(TrainError::other(
            "this model knows no labels: it was trained without them",
        ));
    }
    let d_latent = model.config().d_latent;
    let shape = [range.len(), d_latent];
    let mut latents = Vec::with_capacity(range.len() * d_latent);
    for i in range {
        let random = &mut rng(request.seed, Stream::Sample, i as u64);
        latents.extend(match request.truncation {
            Some(bound) => truncated_normal(d_latent, bound, random).map_err(TrainError::other)?,
            None => normal(random, d_latent),
        });
    }
    Ok(model.decode(Tensor::from_data(TensorData::new(latents, shape), device)))
}

fn noise(
    batch: usize,
    config: &VaeConfig,
    random: &mut maquette_rng::Rng,
    device: &Device,
) -> Tensor<2> {
    let values = normal(random, batch * config.d_latent);
    Tensor::from_data(TensorData::new(values, [batch, config.d_latent]), device)
}

fn samples(
    model: &Vae,
    folder: &Path,
    recipe: &VaeRecipe,
    device: &Device,
) -> Result<(), BoxError> {
    let request = ImageRequest {
        count: 64,
        seed: recipe.train.seed,
        ..ImageRequest::default()
    };
    let all = draw_all(&request, (0.0, 1.0), &mut |request, range| {
        prior(model, request, range, device)
    })?;
    Ok(save_sheet(&folder.join("prior.png"), &all)?)
}

fn save(model: &Vae, dir: &Path) -> Result<(), TrainError> {
    let config = json!({ "architecture": "vae", "model": model.config() });
    weights::save(model, &config, dir)
}

fn load(recipe: &VaeRecipe, dir: &Path, device: &Device) -> Result<Vae, TrainError> {
    let empty = recipe.model.init(device, &mut rng(0, Stream::Init, 0));
    weights::load(empty, dir)
}

/// The negative evidence bound and its two parts, nats per test image, one latent each.
fn measure(
    model: &Vae,
    test: &ImageSet,
    recipe: &VaeRecipe,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let mut sums = [0.0; 3];
    for (i, indices) in images::chunks(test.len(), 250).enumerate() {
        let batch = images::Batch::new(test, &indices, &Normalization::MinMax, None);
        let noise = noise(
            batch.size(),
            &recipe.model,
            &mut rng(recipe.train.seed, Stream::Evaluate, i as u64),
            device,
        );
        let loss = model.loss(batch.tensor(device), noise);
        for (sum, part) in sums
            .iter_mut()
            .zip([loss.total, loss.reconstruction, loss.kl])
        {
            *sum += f64::from(part.into_scalar::<f32>()) * indices.len() as f64;
        }
    }
    let [loss, reconstruction, kl] = sums.map(|sum| sum / test.len() as f64);
    let named = [
        ("loss", loss),
        ("reconstruction", reconstruction),
        ("kl", kl),
    ];
    Ok(named.map(|(name, value)| (name.to_owned(), value)).into())
}

/// The importance-weighted negative log-likelihood with its standard error, nats per test image.
fn importance(
    model: &Vae,
    test: &ImageSet,
    recipe: &VaeRecipe,
    device: &Device,
) -> Result<Metrics, TrainError> {
    let VaeEvaluation {
        importance_samples,
        importance_images,
        ..
    } = recipe.evaluate;
    let n = importance_images.min(test.len());
    if importance_samples == 0 || n < 2 {
        return Ok(Metrics::new());
    }
    let mut nats = Vec::with_capacity(n);
    for (i, indices) in images::chunks(n, 50).enumerate() {
        let batch = images::Batch::new(test, &indices, &Normalization::MinMax, None);
        let random = &mut rng(recipe.train.seed, Stream::Evaluate, 1 << 32 | i as u64);
        let log_p = model.log_likelihood(batch.tensor(device), importance_samples, random);
        nats.extend(log_p.into_iter().map(|log_p| -log_p));
    }
    let estimate = Estimate::of(&nats).map_err(TrainError::other)?;
    Ok(Metrics::from([
        ("importance_weighted_nll".to_owned(), estimate.mean),
        (
            "importance_weighted_nll_error".to_owned(),
            estimate.standard_error,
        ),
    ]))
}
