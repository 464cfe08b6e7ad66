//! `family = "gan-points"`: adversarial networks on points in the plane, where the truth is known.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Order;
use maquette_models::gan::Generator;
use maquette_rng::{Stream, rng};

use super::{Examples, GanRecipe, Pixels, contest, load, noise, save};
use crate::adversarial::{self, Match, adversarial};
use crate::files::write_atomic;
use crate::recipes::generate::{GenerateJob, Made};
use crate::recipes::points::{PointData, plane, sha256};
use crate::recipes::{EvaluateJob, Job, Outcome};
use crate::spec::Invalid;
use crate::{Evaluation, Metrics, Source, TrainError};

/// Everything about one adversarial network of points.
pub type GanPointsRecipe = GanRecipe<PointData>;

/// Points counted when the model is validated.
const VALIDATED: usize = 1000;
/// Points drawn when a picture is asked for during training.
const PICTURED: usize = 2000;

/// Reads and checks a recipe.
///
/// # Errors
/// Pointing at the line or the `--set` at fault.
pub fn parse(source: &Source) -> Result<GanPointsRecipe, TrainError> {
    let recipe = GanPointsRecipe::read(source, [2, 1, 1])?;
    if recipe.model.image != [2, 1, 1] {
        let error = Invalid::new("image", "points are images of [2, 1, 1]", "leave it out");
        return Err(source.locate("model", error).into());
    }
    if recipe.model.conditioning.is_some() {
        let error = Invalid::new("conditioning", "points have no labels", "leave it out");
        return Err(source.locate("model", error).into());
    }
    if recipe.pixels != Pixels::Symmetric {
        let error = Invalid::new("pixels", "points have no pixels", "leave it out");
        return Err(source.locate("", error).into());
    }
    if recipe.data.count == 0 {
        let error = Invalid::new("count", "count must be at least 1", "20000 is usual");
        return Err(source.locate("data", error).into());
    }
    Ok(recipe)
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let recipe = parse(&job.source)?;
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);
    let data = recipe.data.open(seed);
    let order = Order::new(data.len(), batch, seed).map_err(TrainError::other)?;

    // 2. Players
    let device = job.device.clone().autodiff();
    let gan = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));

    // 3. Loop
    let batches = |turn: u64| {
        let points = data.batch(&order.indices(turn));
        let points = TensorData::new(points, [batch, 2, 1, 1]);
        let real = Tensor::from_data(points, &device);
        Ok(Examples { real, labels: None }.into())
    };
    let inner = job.device.clone();
    let plan = Match {
        generator: &recipe.generator,
        critic: &recipe.critic,
        train: &recipe.train,
        steps: recipe.train.total_steps(data.len()),
        device: &device,
    };
    let contest = contest(&recipe, batches)
        .counting("points")
        .validate(|model| {
            let made = draw(model, &recipe, VALIDATED, seed, &inner)?;
            let found = recipe.data.modes(&made)?;
            let named = found.map(|found| {
                let share = found.covered as f64 / found.total as f64;
                [
                    ("modes".into(), found.covered as f64),
                    ("mode_share".into(), share),
                    ("high_quality".into(), found.high_quality),
                ]
            });
            Ok(Metrics::from_iter(named.into_iter().flatten()))
        })
        .sample(|model, _, folder: &Path| {
            let made = draw(model, &recipe, PICTURED, seed, &inner)?;
            let picture = recipe.data.scatter(&made);
            Ok(write_atomic(
                &folder.join("points.svg"),
                picture.as_bytes(),
            )?)
        });
    let players = (gan.generator, gan.critic);
    let Some(mut run) = job.open_run(&recipe, &sha256(&data))? else {
        let measured = adversarial::measure(players, contest, &plan)?;
        return job.estimated(&recipe, measured, plan.steps);
    };
    let fitted = adversarial(players, contest, &plan, &mut run, &mut job.control())?;

    // 4. Save, measure, report
    save(&fitted.model, &recipe, &[], run.dir())?;
    let evaluation = measure(&fitted.model.0, &recipe, &job.device)?;
    Ok(Outcome::Trained(run.finish(&fitted, evaluation)?))
}

/// Measures a run's model again.
///
/// # Errors
/// No weights.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = parse(source)?;
    let model = load(&recipe, &job.run, &job.device)?;
    measure(&model, &recipe, &job.device)
}

/// Writes `points.csv` and `points.svg`.
///
/// # Errors
/// No weights, or a folder that cannot be written.
pub fn generate(source: &Source, job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    let recipe = parse(source)?;
    let model = load(&recipe, &job.model, &job.device)?;
    let (count, seed) = (job.images.count, job.images.seed);
    let made = draw(&model, &recipe, count, seed, &job.device)?;
    recipe.data.write(&made, &job)
}

/// `count` points of the model.
pub fn draw(
    model: &Generator,
    recipe: &GanPointsRecipe,
    count: usize,
    seed: u64,
    device: &Device,
) -> Result<Vec<[f32; 2]>, TrainError> {
    let random = &mut rng(seed, Stream::Sample, 0);
    plane(model.forward(noise(count, recipe.model.d_latent, random, device)))
}

fn measure(
    model: &Generator,
    recipe: &GanPointsRecipe,
    device: &Device,
) -> Result<Evaluation, TrainError> {
    let seed = recipe.train.seed;
    let made = draw(model, recipe, recipe.evaluate.count, seed, device)?;
    recipe.data.measure(&made, "generator", seed)
}
