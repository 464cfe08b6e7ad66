//! `family = "points"`: diffusion on points in the plane, where the truth is known.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Order;
use maquette_data::points::{self, PointSet};
use maquette_eval::modes::{ModeRule, Modes, modes};
use maquette_eval::{Points, two_sample::sliced_wasserstein};
use maquette_generate::diffusion::{Sampler, Spacing, TimeGrid, noise, sample};
use maquette_models::diffusion::DiffusionConfig;
use maquette_models::diffusion::mlp::{DenoiserMlp, DenoiserMlpConfig};
use maquette_rng::{Stream, normal, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::generate::{GenerateJob, Made};
use super::{EvaluateJob, Job, Outcome, validate, weights};
use crate::files::{create_folder, write_atomic};
use crate::plot::{self, Frame, Series};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    Evaluation, LoopSpec, OptimizerSpec, Plan, ScheduleSpec, Source, Task, TrainError, fit, hash,
};

/// Everything about one model of points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointsRecipe {
    /// One line for listings.
    pub summary: String,
    /// `points`.
    pub family: super::Family,
    /// Which points.
    pub data: PointData,
    /// The network.
    #[serde(default)]
    pub model: DenoiserMlpConfig,
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
    /// How points are drawn from the model.
    #[serde(default)]
    pub sample: PointSample,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

/// The point sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointSource {
    /// Eight Gaussians on a ring.
    #[serde(rename = "ring8")]
    Ring8,
    /// Twenty-five Gaussians on a grid.
    #[serde(rename = "grid25")]
    Grid25,
    /// Two half circles.
    Moons,
    /// A spiral.
    SwissRoll,
}

impl PointSource {
    /// `count` points.
    pub fn points(self, count: usize, seed: u64) -> PointSet {
        match self {
            Self::Ring8 => points::ring8(count, seed),
            Self::Grid25 => points::grid25(count, seed),
            Self::Moons => points::moons(count, seed),
            Self::SwissRoll => points::swiss_roll(count, seed),
        }
    }

    /// Centres and standard deviation, where the truth is a mixture.
    pub fn truth(self) -> Option<(Vec<[f32; 2]>, f64)> {
        match self {
            Self::Ring8 => Some((points::ring8_centres(), f64::from(points::RING8_SIGMA))),
            Self::Grid25 => Some((points::grid25_centres(), f64::from(points::GRID25_SIGMA))),
            Self::Moons | Self::SwissRoll => None,
        }
    }
}

/// `[data]` of a model of points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointData {
    /// Which set.
    pub source: PointSource,
    /// How many points to learn from.
    #[serde(default = "twenty_thousand")]
    pub count: usize,
}

fn twenty_thousand() -> usize {
    20_000
}

/// `[sample]` of a model of points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PointSample {
    /// Points measured at the end.
    pub count: usize,
    /// Denoising steps.
    pub steps: usize,
    /// The walk from noise to data.
    pub sampler: Sampler,
    /// Which steps are visited.
    pub spacing: Spacing,
}

impl Default for PointSample {
    fn default() -> Self {
        Self {
            count: 10_000,
            steps: 50,
            sampler: Sampler::default(),
            spacing: Spacing::default(),
        }
    }
}

impl PointData {
    /// The points to learn from.
    pub(super) fn open(&self, seed: u64) -> PointSet {
        self.source.points(self.count, seed)
    }

    /// Adds to `evaluation` how good `made` is: mode coverage where the truth is a mixture, distance
    /// to fresh points everywhere. `how` says in the signatures how they were made.
    pub(super) fn measure(
        &self,
        made: &[[f32; 2]],
        how: &str,
        seed: u64,
    ) -> Result<Evaluation, TrainError> {
        let signature = |metric: &str| format!("{metric}|n={}|{how}", made.len());
        let mut evaluation = Evaluation::default();
        if let Some(found) = self.modes(made)? {
            let rule = ModeRule::default();
            evaluation.put("modes", found.covered as f64, signature("modes"));
            evaluation.put(
                "high_quality",
                found.high_quality,
                format!("{}|within={}sigma", signature("high_quality"), rule.n_sigma),
            );
        }
        // Fresh points: neither those learnt from nor those the noise came from.
        let fresh = self.source.points(made.len(), seed.wrapping_add(1));
        let (ours, truth) = (
            Points::plane(made).map_err(TrainError::other)?,
            Points::plane(&fresh.points).map_err(TrainError::other)?,
        );
        let random = &mut rng(seed, Stream::Evaluate, 0);
        let distance = sliced_wasserstein(ours, truth, 64, random).map_err(TrainError::other)?;
        evaluation.put(
            "sliced_wasserstein",
            distance,
            format!("{}|projections=64", signature("sliced_wasserstein")),
        );
        Ok(evaluation)
    }

    /// How `made` covers the modes, where the truth is a mixture.
    pub(super) fn modes(&self, made: &[[f32; 2]]) -> Result<Option<Modes>, TrainError> {
        let Some((centres, sigma)) = self.source.truth() else {
            return Ok(None);
        };
        modes(made, &centres, sigma, &ModeRule::default())
            .map(Some)
            .map_err(TrainError::other)
    }

    /// A picture of `made` over the truth.
    pub(super) fn scatter(&self, made: &[[f32; 2]]) -> String {
        let truth = self.source.points(made.len().min(2000), 1);
        let series = |name, points: &[[f32; 2]]| {
            Series::new(
                name,
                points.iter().map(|[x, y]| (f64::from(*x), f64::from(*y))),
            )
        };
        let shown = &made[..made.len().min(2000)];
        plot::scatter(
            &Frame::new("", "x", "y").sized(480, 480),
            &[series("data", &truth.points), series("model", shown)],
        )
    }

    /// Writes `points.csv` and `points.svg` for a request.
    pub(super) fn write(
        &self,
        made: &[[f32; 2]],
        job: &GenerateJob<'_>,
    ) -> Result<Vec<Made>, TrainError> {
        let folder = job
            .out
            .clone()
            .unwrap_or_else(|| job.model.join("samples").join("generated"));
        create_folder(&folder)?;
        let rows: String = made.iter().map(|[x, y]| format!("{x},{y}\n")).collect();
        let (table, picture) = (folder.join("points.csv"), folder.join("points.svg"));
        write_atomic(&table, format!("x,y\n{rows}").as_bytes())?;
        write_atomic(&picture, self.scatter(made).as_bytes())?;
        Ok([table, picture]
            .map(|path| Made::Image {
                path,
                seed: job.images.seed,
            })
            .into())
    }
}

/// The SHA-256 of points.
pub(super) fn sha256(data: &PointSet) -> String {
    let coordinates = data.points.iter().flatten();
    let bytes: Vec<u8> = coordinates.flat_map(|x| x.to_le_bytes()).collect();
    hash::sha256(&bytes)
}

/// Rows of two numbers.
pub(super) fn plane<const D: usize>(made: Tensor<D>) -> Result<Vec<[f32; 2]>, TrainError> {
    let flat = made
        .try_into_vec_as::<f32>()
        .map_err(|error| TrainError::other(format!("{error:?}")))?;
    Ok(flat.chunks_exact(2).map(|xy| [xy[0], xy[1]]).collect())
}

impl PointsRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        source.check("model", recipe.model.validate())?;
        source.check("diffusion", recipe.diffusion.validate())?;
        if recipe.model.d_data != 2 || recipe.model.n_classes != 0 {
            let error = Invalid::new(
                "d_data",
                "points have d_data = 2 and n_classes = 0",
                "leave both out",
            );
            return Err(source.locate("model", error).into());
        }
        if recipe.data.count == 0 || recipe.sample.count == 0 {
            let error = Invalid::new("count", "count must be at least 1", "20000 is usual");
            return Err(source.locate("data", error).into());
        }
        Ok(recipe)
    }

    fn grid(&self) -> Result<TimeGrid, TrainError> {
        let alpha_bar = self.diffusion.schedule.alpha_bar(self.diffusion.steps);
        TimeGrid::new(&alpha_bar, self.sample.steps, self.sample.spacing).map_err(TrainError::other)
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let recipe = PointsRecipe::parse(&job.source)?;
    recipe.grid()?;
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);
    let data = recipe.data.open(seed);
    let order = Order::new(data.len(), batch, seed).map_err(TrainError::other)?;

    // 2. Model and objective
    let device = job.device.clone().autodiff();
    let model = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));
    let diffusion = recipe.diffusion.init();

    // 3. Loop
    let batches = |step: u64| Ok(order.indices(step).into());
    let loss = |model: &DenoiserMlp, indices: Vec<usize>, step: u64| {
        let shape = [indices.len(), 2];
        let x0 = Tensor::from_data(TensorData::new(data.batch(&indices), shape), &device);
        let random = &mut rng(seed, Stream::Noise, step);
        let steps = diffusion.draw_steps(indices.len(), random);
        let eps = Tensor::from_data(
            TensorData::new(normal(random, 2 * indices.len()), shape),
            &device,
        );
        diffusion
            .loss(|x, t| model.forward(x, t, None), x0, &steps, eps)
            .into()
    };
    let inner = job.device.clone();
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(data.len()),
        device: &device,
    };
    let task = Task::new(batches, loss)
        .counting(batch as f64, "points")
        .sample(|model: &DenoiserMlp, step, folder: &Path| {
            let made = draw(model, &recipe, 2000, step, &inner)?;
            Ok(write_atomic(
                &folder.join("points.svg"),
                recipe.data.scatter(&made).as_bytes(),
            )?)
        });
    let Some(mut run) = job.open_run(&recipe, &sha256(&data))? else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, measure, report
    save(&fitted.model, &recipe, run.dir())?;
    let evaluation = measure(&fitted.model, &recipe, &job.device)?;
    Ok(Outcome::Trained(run.finish(&fitted, evaluation)?))
}

/// Measures a run's model again.
///
/// # Errors
/// No weights.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = PointsRecipe::parse(source)?;
    let model = load(&recipe, &job.run, &job.device)?;
    measure(&model, &recipe, &job.device)
}

/// Writes `points.csv` and `points.svg`.
///
/// # Errors
/// No weights, or a folder that cannot be written.
pub fn generate(source: &Source, job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    let mut recipe = PointsRecipe::parse(source)?;
    let model = load(&recipe, &job.model, &job.device)?;
    recipe.sample.steps = job.images.steps.unwrap_or(recipe.sample.steps);
    recipe.sample.sampler = job.images.sampler.unwrap_or(recipe.sample.sampler);
    let made = draw(
        &model,
        &recipe,
        job.images.count,
        job.images.seed,
        &job.device,
    )?;
    recipe.data.write(&made, &job)
}

fn save(model: &DenoiserMlp, recipe: &PointsRecipe, dir: &Path) -> Result<(), TrainError> {
    let config = json!({
        "architecture": "denoiser-mlp", "model": recipe.model, "diffusion": recipe.diffusion,
    });
    weights::save(model, &config, dir)
}

fn load(recipe: &PointsRecipe, dir: &Path, device: &Device) -> Result<DenoiserMlp, TrainError> {
    let empty = recipe.model.init(device, &mut rng(0, Stream::Init, 0));
    weights::load(empty, dir)
}

/// `count` points of the model.
pub fn draw(
    model: &DenoiserMlp,
    recipe: &PointsRecipe,
    count: usize,
    seed: u64,
    device: &Device,
) -> Result<Vec<[f32; 2]>, TrainError> {
    let diffusion = recipe.diffusion.init();
    let data = &recipe.data;
    let reach = data.source.points(data.count, recipe.train.seed).reach();
    let denoise = |x: Tensor<2>, t: usize| {
        let steps = vec![t; x.dims()[0]];
        let output = model.forward(x.clone(), diffusion.times(&steps, device), None);
        let guess = diffusion.predict(output, x, diffusion.alpha_bar(t)).x0;
        guess.clamp(-reach, reach)
    };
    let mut random = [rng(seed, Stream::Sample, 0)];
    let start = noise([count, 2], &mut random, device);
    let made = sample(
        recipe.sample.sampler,
        denoise,
        start,
        &recipe.grid()?,
        &mut random,
        |_| {},
    );
    plane(made)
}

/// Mode coverage where the truth is a mixture; distance to fresh data everywhere.
fn measure(
    model: &DenoiserMlp,
    recipe: &PointsRecipe,
    device: &Device,
) -> Result<Evaluation, TrainError> {
    let count = recipe.sample.count;
    let made = draw(model, recipe, count, recipe.train.seed, device)?;
    let how = format!(
        "steps={}|sampler={:?}",
        recipe.sample.steps, recipe.sample.sampler
    );
    recipe.data.measure(&made, &how, recipe.train.seed)
}
