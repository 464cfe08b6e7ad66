//! One run in three forms: unclipped it explodes, clipped by norm or by value it converges.

use burn::tensor::{Device, Tensor};

use crate::labs::training::{Training, Unfinished, matrix};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome};
use crate::models::perceptron::{Perceptron, PerceptronConfig};
use crate::rng::{Rng, Stream, normal, rng};
use crate::train::spec::OptimizerKind;
use crate::train::{Batch, OptimizerSpec, Task, TrainError};

const INPUTS: usize = 8;
const BATCH: usize = 64;
const STEPS: u64 = 600;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    lab.say("the run without clipping");
    let exploded = match train(lab, None, None) {
        Ok(_) => None,
        Err(unfinished) => match unfinished.error {
            TrainError::Diverged { step, .. } => Some((step, unfinished.losses)),
            _ => return Err(unfinished.into()),
        },
    };
    lab.say("the run clipped by norm");
    let (by_norm, norm_losses) = train(lab, Some(1.0), None)?;
    lab.say("the run clipped by value");
    let (by_value, value_losses) = train(lab, None, Some(0.05))?;

    let claims = vec![
        Claim::at_most(
            "no clipping: step at which the loop stopped the run as diverged",
            exploded
                .as_ref()
                .map_or(f64::INFINITY, |(step, _)| *step as f64),
            STEPS as f64,
        ),
        Claim::at_most(
            "clipped by norm: share of the variance left unexplained",
            by_norm,
            0.15,
        ),
        Claim::at_most(
            "clipped by value: share of the variance left unexplained",
            by_value,
            0.15,
        ),
    ];
    let points = |losses: &[f64]| -> Vec<(f64, f64)> {
        losses
            .iter()
            .enumerate()
            .map(|(i, l)| (i as f64 + 1.0, l.min(1e9)))
            .collect()
    };
    let plot = Chart::new(
        "Heavy-tailed inputs, plain gradient descent",
        "step",
        "loss",
    )
    .line("clipped by value, 0.05", points(&value_losses))
    .line("clipped by norm, 1.0", points(&norm_losses))
    .line(
        "not clipped",
        exploded.map(|(_, l)| points(&l)).unwrap_or_default(),
    )
    .log_y()
    .svg();
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

type Run = Result<(f64, Vec<f64>), Box<Unfinished>>;

/// The unexplained share of the variance on ordinary inputs after training, and the loss curve.
fn train(lab: &LabContext<'_>, clip_norm: Option<f64>, clip_value: Option<f64>) -> Run {
    let device = lab.device.clone().autodiff();
    let config = PerceptronConfig::new(INPUTS, 32, 6, 1);
    let model = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let mut training = Training::new(
        OptimizerSpec::new(OptimizerKind::Sgd, 0.03),
        STEPS,
        BATCH,
        lab.seed,
    );
    training.train.clip_norm = clip_norm;
    training.train.clip_value = clip_value;
    // Judged by numbers that are none or beyond all measure, not by the swings of a noisy loss.
    training.train.divergence = 1e6;
    let task = Task::new(
        |step| {
            let mut rng = rng(lab.seed, Stream::Data, step);
            Ok(Batch::from(batch(&mut rng, true)))
        },
        |model: &Perceptron, (x, y): (Vec<f32>, Vec<f32>), _| {
            squared_error(model, x, y, &device).into()
        },
    );
    let trained = training.run(model, task, &device)?;
    let (x, y) = batch(&mut rng(lab.seed, Stream::Evaluate, 0), false);
    let mean = y.iter().sum::<f32>() / y.len() as f32;
    let variance = y.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / y.len() as f32;
    let error = squared_error(&trained.model, x, y, &lab.device).into_scalar::<f32>();
    Ok((f64::from(error / variance), trained.losses))
}

fn squared_error(model: &Perceptron, x: Vec<f32>, y: Vec<f32>, device: &Device) -> Tensor<1> {
    let n = y.len();
    let error = model.forward(matrix(x, n, device)) - matrix(y, n, device);
    (error.clone() * error).mean()
}

/// Inputs and the answers of a fixed rule. With a heavy tail (Student's t with two degrees of
/// freedom) a few inputs in a thousand are very large: the cliffs of this landscape.
fn batch(rng: &mut Rng, heavy: bool) -> (Vec<f32>, Vec<f32>) {
    let n = if heavy { BATCH } else { 1024 };
    let mut x = normal(rng, n * INPUTS);
    if heavy {
        for row in x.chunks_mut(INPUTS) {
            let chi = normal(rng, 2).iter().map(|z| z * z).sum::<f32>() / 2.0;
            row.iter_mut().for_each(|v| *v /= chi.sqrt().max(1e-3));
        }
    }
    let answer = |row: &[f32]| row[0] - 0.5 * row[1] + 0.5 * row[2].abs();
    let y = x.chunks(INPUTS).map(answer).collect();
    (x, y)
}
