//! `family = "in-context"`: a transformer that learns linear functions from examples in its context.

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::functions::{LinearFunctions, Prompts};
use maquette_eval::regression::least_squares;
use maquette_models::{InContext, InContextConfig};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{EvaluateJob, Job, Outcome, test_metrics, validate, weights};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    BoxError, Evaluation, LoopSpec, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit, hash,
};

/// Functions that a model is measured on, and how many at once.
const MEASURED: usize = 2000;
const ROWS: usize = 200;

/// Everything about one in-context learner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InContextRecipe {
    /// One line for listings.
    pub summary: String,
    /// `in-context`.
    pub family: super::Family,
    /// The functions.
    pub data: LinearFunctions,
    /// The network. `d_x` is the data's.
    #[serde(default)]
    pub model: InContextConfig,
    /// From few numbers and examples to all.
    #[serde(default)]
    pub curriculum: Curriculum,
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

/// How the task grows (Garg et al. 2022, appendix A): numbers of `x` that are not zero one by one,
/// and two examples with each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Curriculum {
    /// Numbers that are not zero at first; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<usize>,
    /// Steps from one number to the next.
    pub every: u64,
}

impl Default for Curriculum {
    fn default() -> Self {
        Self {
            start: None,
            every: 1,
        }
    }
}

impl Curriculum {
    /// Numbers that are not zero, and examples, at `step` of a task that ends with `d_x` and `all`.
    pub fn at(&self, step: u64, d_x: usize, all: usize) -> (usize, usize) {
        let Some(start) = self.start else {
            return (d_x, all);
        };
        let grown = usize::try_from(step / self.every).unwrap_or(d_x);
        let active = start.saturating_add(grown).min(d_x);
        (active, all.saturating_sub(2 * (d_x - active)).max(1))
    }
}

impl InContextRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let mut recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        let LinearFunctions { d_x, noise } = recipe.data;
        if d_x == 0 || !(noise >= 0.0 && noise.is_finite()) {
            let what = "d_x must be at least 1, and noise no negative number";
            let error = Invalid::new("d_x", what, "try d_x = 5 and noise = 0.5");
            return Err(source.locate("data", error).into());
        }
        if recipe.curriculum.every == 0 || recipe.curriculum.start == Some(0) {
            let what = "start and every must be at least 1";
            let error = Invalid::new("every", what, "leave the table out to train on all at once");
            return Err(source.locate("curriculum", error).into());
        }
        recipe.model.d_x = d_x;
        source.check("model", recipe.model.validate())?;
        Ok(recipe)
    }

    fn init(&self, device: &Device) -> InContext {
        let random = &mut rng(self.train.seed, Stream::Init, 0);
        self.model.init(device, random)
    }
}

/// `x` and `y` of prompts, `[functions, examples, d_x]` and `[functions, examples]`.
pub fn tensors(prompts: &Prompts, device: &Device) -> (Tensor<3>, Tensor<2>) {
    let [functions, examples, _] = prompts.shape;
    (
        Tensor::from_data(TensorData::new(prompts.x.clone(), prompts.shape), device),
        Tensor::from_data(
            TensorData::new(prompts.y.clone(), [functions, examples]),
            device,
        ),
    )
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and model; the data is drawn as it is needed.
    let recipe = InContextRecipe::parse(&job.source)?;
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);
    let device = job.device.clone().autodiff();
    let model = recipe.init(&device);
    let data = hash::sha256(format!("{:?} {seed}", recipe.data).as_bytes());
    let run = job.open_run(&recipe, &data)?;

    // 2. Loop
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(0),
        device: &device,
    };
    let batches = |step: u64| {
        let (d_x, examples) = (recipe.data.d_x, recipe.model.examples);
        let (active, examples) = recipe.curriculum.at(step, d_x, examples);
        let random = &mut rng(seed, Stream::Data, step);
        Ok(recipe.data.draw(batch, examples, active, random).into())
    };
    let loss = |model: &InContext, prompts: Prompts, _| {
        let (x, y) = tensors(&prompts, &device);
        model.loss(x, y).into()
    };
    let inner = job.device.clone();
    let task = Task::new(batches, loss)
        .counting(batch as f64, "functions")
        .validate(|model: &InContext| measure(model, &recipe, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 3. Save, report
    let config = json!({ "architecture": "in-context", "model": recipe.model });
    weights::save(&fitted.model, &config, run.dir())?;
    let metrics = test_metrics(&fitted.validation);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

/// Measures a run's model on functions it has not seen.
///
/// # Errors
/// No weights.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = InContextRecipe::parse(source)?;
    let model = weights::load(recipe.init(&job.device), &job.run)?;
    let metrics = measure(&model, &recipe, &job.device).map_err(TrainError::Other)?;
    let mut evaluation = Evaluation::default();
    for (name, value) in test_metrics(&metrics) {
        let LinearFunctions { d_x, noise } = recipe.data;
        let how = format!("{name}|functions={MEASURED}|d_x={d_x}|noise={noise}|of=noisy-y");
        evaluation.put(&name, value, how);
    }
    Ok(evaluation)
}

/// Mean squared errors after 0, 1, 2 .. examples.
#[derive(Debug, Clone)]
pub struct Errors {
    /// The model's.
    pub model: Vec<f64>,
    /// Least squares on the same examples, the shortest weights where they are not determined.
    pub least_squares: Vec<f64>,
    /// The mean of the posterior: no method does better.
    pub bayes: Vec<f64>,
    /// Of always saying zero.
    pub zero: Vec<f64>,
}

/// The errors of `model` on `functions` functions that are drawn for evaluation.
///
/// # Errors
/// The device's.
pub fn errors(
    model: &InContext,
    data: &LinearFunctions,
    (examples, functions): (usize, usize),
    seed: u64,
    device: &Device,
) -> Result<Errors, BoxError> {
    let mut sums = [(); 4].map(|()| vec![0.0; examples]);
    let ridge = f64::from(data.noise).powi(2);
    for (batch, first) in (0..functions).step_by(ROWS).enumerate() {
        let rows = ROWS.min(functions - first);
        let random = &mut rng(seed, Stream::Evaluate, batch as u64);
        let prompts = data.draw(rows, examples, data.d_x, random);
        let (x, y) = tensors(&prompts, device);
        let said: Vec<f32> = model.forward(x, y).try_into_vec_as()?;
        for (row, said) in said.chunks(examples).enumerate() {
            let (x, y) = prompts.function(row);
            for (n, (query, y_n)) in x.chunks(data.d_x).zip(y).enumerate() {
                let fitted = |ridge| {
                    let w = least_squares(&x[..n * data.d_x], &y[..n], data.d_x, ridge);
                    let product = |(w, x): (&f64, &f32)| w * f64::from(*x);
                    w.iter().zip(query).map(product).sum::<f64>()
                };
                let all = [f64::from(said[n]), fitted(0.0), fitted(ridge), 0.0];
                for (sum, prediction) in sums.iter_mut().zip(all) {
                    sum[n] += (prediction - f64::from(*y_n)).powi(2) / functions as f64;
                }
            }
        }
    }
    let [model, least_squares, bayes, zero] = sums;
    Ok(Errors {
        model,
        least_squares,
        bayes,
        zero,
    })
}

/// `loss`: the mean over all numbers of examples; `error_after_N`, `least_squares_after_N`,
/// `bayes_after_N`; `zero`; and the ratio of the model to least squares after twice `d_x`.
fn measure(
    model: &InContext,
    recipe: &InContextRecipe,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let (d_x, examples) = (recipe.data.d_x, recipe.model.examples);
    let shape = (examples, MEASURED);
    let errors = errors(model, &recipe.data, shape, recipe.train.seed, device)?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut metrics = Metrics::from([
        ("loss".to_owned(), mean(&errors.model)),
        ("zero".to_owned(), mean(&errors.zero)),
    ]);
    for (name, values) in [
        ("error", &errors.model),
        ("least_squares", &errors.least_squares),
        ("bayes", &errors.bayes),
    ] {
        let named = |(n, value): (usize, &f64)| (format!("{name}_after_{n:02}"), *value);
        metrics.extend(values.iter().enumerate().map(named));
    }
    if let (Some(model), Some(exact)) =
        (errors.model.get(2 * d_x), errors.least_squares.get(2 * d_x))
    {
        metrics.insert("ratio_to_least_squares".to_owned(), model / exact);
    }
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curriculum_grows_to_the_whole_task() {
        let curriculum = Curriculum {
            start: Some(2),
            every: 10,
        };
        assert_eq!(curriculum.at(0, 5, 11), (2, 5));
        assert_eq!(curriculum.at(19, 5, 11), (3, 7));
        assert_eq!(curriculum.at(1000, 5, 11), (5, 11));
        assert_eq!(Curriculum::default().at(0, 5, 11), (5, 11));
    }
}
