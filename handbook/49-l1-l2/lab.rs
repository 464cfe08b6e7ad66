//! Ridge and lasso with orthonormal inputs, where the exact answer is known.

use crate::labs::training::{Training, matrix, numbers};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome};
use crate::models::perceptron::{Perceptron, PerceptronConfig};
use crate::rng::{Rng, Stream, normal, rng};
use crate::train::spec::{OptimizerKind, PenaltyKind, PenaltySpec, ScheduleKind};
use crate::train::{Batch, OptimizerSpec, ScheduleSpec, Task};

const ROWS: usize = 256;
const INPUTS: usize = 64;
const RELEVANT: usize = 8;
const LAMBDA: f64 = 0.15;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let mut rng = rng(lab.seed, Stream::Data, 0);
    let columns = orthonormal(&mut rng);
    let truth: Vec<f64> = (0..INPUTS)
        .map(|i| {
            if i < RELEVANT {
                1.0 + 0.2 * i as f64
            } else {
                0.0
            }
        })
        .collect();
    let noise = normal(&mut rng, ROWS);
    let answers: Vec<f64> = (0..ROWS)
        .map(|r| {
            let signal: f64 = columns.iter().zip(&truth).map(|(c, w)| c[r] * w).sum();
            3.0 + signal + f64::from(noise[r])
        })
        .collect();
    // Orthonormal inputs: least squares is one scalar product per weight.
    let least_squares: Vec<f64> = columns
        .iter()
        .map(|c| c.iter().zip(&answers).map(|(x, y)| x * y).sum::<f64>() / ROWS as f64)
        .collect();

    let fitted = |kind: Option<PenaltyKind>| fit(lab, &columns, &answers, kind);
    lab.say("three fits of 64 weights");
    let (plain, _) = fitted(None)?;
    let (lasso, lasso_bias) = fitted(Some(PenaltyKind::L1))?;
    let (ridge, _) = fitted(Some(PenaltyKind::L2))?;

    let soft = |w: &f64| w.signum() * (w.abs() - LAMBDA).max(0.0);
    let exact_lasso: Vec<f64> = least_squares.iter().map(soft).collect();
    let exact_ridge: Vec<f64> = least_squares
        .iter()
        .map(|w| w / (1.0 + 2.0 * LAMBDA))
        .collect();
    let zeros = |w: &[f64]| w.iter().filter(|w| w.abs() < 1e-3).count() as f64;
    let found = lasso
        .iter()
        .take(RELEVANT)
        .filter(|w| w.abs() > 0.1)
        .count() as f64;
    let length = |w: &[f64]| w.iter().map(|w| w * w).sum::<f64>().sqrt();
    let mean = answers.iter().sum::<f64>() / ROWS as f64;

    let claims = vec![
        Claim::at_most(
            "no penalty: distance to least squares, worst weight",
            worst(&plain, &least_squares),
            1e-3,
        ),
        Claim::at_least(
            "L1: weights at zero, of 56 that do not matter",
            zeros(&lasso),
            50.0,
        ),
        Claim::at_least("L1: weights kept, of 8 that matter", found, 8.0),
        Claim::at_most(
            "L1: distance to soft thresholding, worst weight",
            worst(&lasso, &exact_lasso),
            5e-3,
        ),
        Claim::at_most("L2: weights at zero, of 64", zeros(&ridge), 3.0),
        Claim::within(
            "L2: length of the weights, as a share of no penalty's",
            length(&ridge) / length(&plain),
            1.0 / (1.0 + 2.0 * LAMBDA),
            1e-3,
        ),
        Claim::at_most(
            "L2: distance to w / (1 + 2 lambda), worst weight",
            worst(&ridge, &exact_ridge),
            1e-3,
        ),
        Claim::within("the unpenalised intercept under L1", lasso_bias, mean, 1e-3),
    ];
    let mut by_size: Vec<usize> = (0..INPUTS).collect();
    by_size.sort_by(|a, b| plain[*b].abs().total_cmp(&plain[*a].abs()));
    let sorted = |w: &[f64]| -> Vec<(f64, f64)> {
        by_size
            .iter()
            .enumerate()
            .map(|(i, &at)| (i as f64 + 1.0, w[at].abs()))
            .collect()
    };
    let plot = Chart::new("64 weights, 8 of which matter", "rank", "|weight|")
        .line("no penalty", sorted(&plain))
        .line("L1: towards zero by lambda", sorted(&lasso))
        .line("L2: divided by 1 + 2 lambda", sorted(&ridge))
        .svg();
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

/// Columns of mean 0, mean square 1 and no correlation: Gram-Schmidt on normal draws.
fn orthonormal(rng: &mut Rng) -> Vec<Vec<f64>> {
    let mut basis = vec![vec![1.0; ROWS]];
    while basis.len() <= INPUTS {
        let mut column: Vec<f64> = normal(rng, ROWS).into_iter().map(f64::from).collect();
        // Twice, because once leaves rounding errors of the size of single precision.
        for _ in 0..2 {
            for other in &basis {
                let along =
                    other.iter().zip(&column).map(|(a, b)| a * b).sum::<f64>() / ROWS as f64;
                column
                    .iter_mut()
                    .zip(other)
                    .for_each(|(c, o)| *c -= along * o);
            }
        }
        let size = (column.iter().map(|c| c * c).sum::<f64>() / ROWS as f64).sqrt();
        column.iter_mut().for_each(|c| *c /= size);
        basis.push(column);
    }
    basis.split_off(1)
}

/// Weights and intercept of a linear model trained with one penalty on its weights.
fn fit(
    lab: &LabContext<'_>,
    columns: &[Vec<f64>],
    answers: &[f64],
    kind: Option<PenaltyKind>,
) -> Result<(Vec<f64>, f64), LabError> {
    let device = lab.device.clone().autodiff();
    let rows = (0..ROWS)
        .flat_map(|r| columns.iter().map(move |c| c[r] as f32))
        .collect();
    let x = matrix(rows, ROWS, &device);
    let y = matrix(answers.iter().map(|y| *y as f32).collect(), ROWS, &device);

    let config = PerceptronConfig::new(INPUTS, INPUTS, 0, 1);
    let model = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let mut training = Training::new(
        OptimizerSpec::new(OptimizerKind::Sgd, 0.5),
        300,
        ROWS,
        lab.seed,
    );
    // L1's pull does not fade near zero, the step must: a constant step would swing around it.
    training.schedule = ScheduleSpec {
        kind: ScheduleKind::Linear,
        ..ScheduleSpec::default()
    };
    training.train.penalties = kind
        .map(|kind| PenaltySpec {
            kind,
            weight: LAMBDA,
            params: "head.weight".into(),
        })
        .into_iter()
        .collect();
    let task = Task::new(
        |_| Ok(Batch::from(())),
        |model: &Perceptron, (), _| {
            let error = model.forward(x.clone()) - y.clone();
            ((error.clone() * error).mean() * 0.5).into()
        },
    );
    let model = training.run(model, task, &device)?.model;
    let bias = model
        .head
        .bias
        .map_or(0.0, |b| f64::from(b.val().into_scalar::<f32>()));
    let weights = numbers(model.head.weight.val())?;
    Ok((weights.into_iter().map(f64::from).collect(), bias))
}
