//! `family = "classifier"`: an image classifier, the judge of generated images.

use std::path::Path;

use burn::tensor::Device;
use burn::tensor::activation::log_softmax;
use maquette_data::Normalization;
use maquette_models::classifier::{Classifier, ClassifierConfig};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::sections::{ImageData, Images};
use super::{EvaluateJob, Family, Job, Outcome, images, of_run, test_metrics, validate, weights};
use crate::spec::PublishedNumbers;
use crate::{
    BoxError, Evaluation, LoopSpec, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit,
};

/// Everything about one classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierRecipe {
    /// One line for listings.
    pub summary: String,
    /// `classifier`.
    pub family: super::Family,
    /// Where images come from.
    pub data: ImageData,
    /// The network. `image` and `n_classes` are the data's.
    #[serde(default)]
    pub model: ClassifierConfig,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// The loop.
    pub train: LoopSpec,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

impl ClassifierRecipe {
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
        let sized = ClassifierConfig {
            n_classes: recipe.model.n_classes.max(1),
            ..recipe.model.clone()
        };
        source.check("model", sized.validate())?;
        Ok(recipe)
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = ClassifierRecipe::parse(&job.source)?;
    let mut data = job.open_images(&mut recipe.data, &recipe.train)?;
    if data.train.labels.is_none() {
        return Err(TrainError::other(
            "a classifier needs labels: put each class in a sub-folder of its own",
        ));
    }
    recipe.model.image = images::shape(&data.train);
    recipe.model.n_classes = data.train.class_names.len();
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
    let loss = |model: &Classifier, batch: images::Batch, _| {
        let labels = batch.labels(&device);
        model.loss(batch.tensor(&device), labels).into()
    };
    let inner = job.device.clone();
    let test = &data.test;
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(data.examples),
        device: &device,
    };
    let task = Task::new(batches, loss)
        .counting(batch as f64, "images")
        .validate(|model: &Classifier| measure(model, test, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, report
    let config = json!({
        "architecture": "classifier", "model": recipe.model, "class_names": data.test.class_names,
    });
    weights::save(&fitted.model, &config, run.dir())?;
    let metrics = test_metrics(&fitted.validation);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

/// Measures a run's model on the test images.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = ClassifierRecipe::parse(source)?;
    let Images { test, .. } = recipe.data.open(job.data.as_deref(), &recipe.train)?;
    let model = load(&recipe, &job.run, &job.device)?;
    let metrics = measure(&model, &test, &job.device).map_err(TrainError::Other)?;
    let mut evaluation = Evaluation::default();
    for (name, value) in test_metrics(&metrics) {
        evaluation.put(&name, value, format!("{name}|n={}|split=test", test.len()));
    }
    Ok(evaluation)
}

/// The classifier of a run.
pub(crate) struct Opened {
    pub(crate) model: Classifier,
    /// Channels, height and width of the images it reads.
    pub(crate) image: [usize; 3],
    pub(crate) class_names: Vec<String>,
}

/// Opens the classifier of the run `dir`.
///
/// # Errors
/// Not a run, a run of another family, or no trained weights in it.
pub(crate) fn open(dir: &Path, device: &Device) -> Result<Opened, TrainError> {
    let source = of_run(dir)?;
    let family = Family::of(&source)?;
    if family != Family::Classifier {
        return Err(TrainError::other(format!(
            "{} is a {family:?} model; images are compared by the features of a classifier",
            dir.display()
        )));
    }
    let recipe = ClassifierRecipe::parse(&source)?;
    Ok(Opened {
        model: load(&recipe, dir, device)?,
        image: recipe.model.image,
        class_names: weights::class_names(dir)?,
    })
}

fn load(recipe: &ClassifierRecipe, dir: &Path, device: &Device) -> Result<Classifier, TrainError> {
    let empty = recipe.model.init(device, &mut rng(0, Stream::Init, 0));
    weights::load(empty, dir)
}

fn measure(
    model: &Classifier,
    test: &maquette_data::ImageSet,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let (mut nats, mut right) = (0.0, 0usize);
    for indices in images::chunks(test.len(), 256) {
        let batch = images::Batch::new(test, &indices, &Normalization::MinMax, None);
        let labels = batch.labels(device);
        let logits = model.forward(batch.tensor(device));
        let agree = logits
            .clone()
            .argmax(1)
            .squeeze_dim::<1>(1)
            .equal(labels.clone());
        right += agree.int().sum().into_scalar::<i32>() as usize;
        let log_p = log_softmax(logits, 1).gather(1, labels.unsqueeze_dim(1));
        nats -= f64::from(log_p.sum().into_scalar::<f32>());
    }
    let n = test.len() as f64;
    Ok(Metrics::from([
        ("loss".to_owned(), nats / n),
        ("accuracy".to_owned(), right as f64 / n),
    ]))
}
