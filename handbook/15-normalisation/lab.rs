//! Every normalisation with every regulariser on one network, and the scaling of its input.

use burn::tensor::{Device, Tensor};

use crate::data::{ImageSet, Normalization, Split};
use crate::labs::training::{
    Trained, Training, all, glyph_set, labels, last, matrix, numbers, order, rows,
};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, beside, heat};
use crate::models::perceptron::{Normalise, Perceptron, PerceptronConfig};
use crate::nn::InitScheme;
use crate::nn::{Activation, norm::GroupNorm};
use crate::rng::{Stream, normal, rng};
use crate::train::spec::{OptimizerKind, PenaltyKind, PenaltySpec};
use crate::train::{Batch, OptimizerSpec, Task, TrainError};

const CLASSES: usize = 10;
const BATCH: usize = 50;
const STEPS: u64 = 120;

const NORMS: [(&str, Normalise); 6] = [
    ("none", Normalise::None),
    ("batch", Normalise::BatchNorm),
    ("layer", Normalise::LayerNorm),
    ("RMS", Normalise::RmsNorm),
    ("group", Normalise::GroupNorm),
    ("spectral", Normalise::SpectralNorm),
];

#[derive(Clone, Copy, PartialEq)]
enum Regulariser {
    None,
    L1,
    L2,
    Dropout,
}

const REGULARISERS: [(&str, Regulariser); 4] = [
    ("none", Regulariser::None),
    ("L1", Regulariser::L1),
    ("L2", Regulariser::L2),
    ("dropout", Regulariser::Dropout),
];

struct Data {
    train: (Tensor<2>, ImageSet),
    test: (Tensor<2>, ImageSet),
}

/// After training: the loss on both sets, how far the logits move per unit of input, and the share
/// of hidden weights that are as good as zero.
#[derive(Clone, Copy)]
struct Cell {
    train: f64,
    test: f64,
    sensitivity: f64,
    zeros: f64,
}

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let train = glyph_set(Split::Train, lab.seed, CLASSES, 30)?;
    let test = glyph_set(Split::Test, lab.seed, CLASSES, 60)?;
    let mut claims = inputs(lab, &train)?;
    claims.push(instance_norm(lab)?);

    let norm = Normalization::standardize(&train);
    let device = lab.device.clone().autodiff();
    let data = Data {
        train: (rows(&train, &all(&train), &norm, &device), train),
        test: (rows(&test, &all(&test), &norm, &lab.device), test),
    };
    let mut grid = Vec::new();
    for (name, norm) in NORMS {
        lab.say(name);
        let cells = REGULARISERS
            .iter()
            .map(|(_, regulariser)| cell(lab, &data, norm, *regulariser))
            .collect::<Result<Vec<_>, _>>()?;
        grid.push((name, cells));
    }
    claims.extend(judge(&grid));

    let rows: Vec<&str> = grid.iter().map(|(name, _)| *name).collect();
    let columns = REGULARISERS.map(|(name, _)| name);
    let panel = |title, pick: fn(&Cell) -> f64| {
        let values: Vec<Vec<f64>> = grid
            .iter()
            .map(|(_, cells)| cells.iter().map(pick).collect())
            .collect();
        heat(title, (&rows, &columns), &values)
    };
    let bars = REGULARISERS.iter().enumerate().fold(
        Chart::new("Gap between test and training loss, layer norm", "", "nats"),
        |chart, (r, (name, _))| chart.bar(name, grid[2].1[r].test - grid[2].1[r].train),
    );
    let plot = beside(&[
        panel("Training loss by norm and regulariser", |cell| cell.train),
        panel("Test loss", |cell| cell.test),
        bars.svg(),
    ]);
    Ok(Outcome {
        claims,
        plot,
        notes: vec![gaps(&grid)],
    })
}

/// How much worse each is on the test set, in nats.
fn gaps(grid: &[(&str, Vec<Cell>)]) -> String {
    let columns = REGULARISERS
        .iter()
        .enumerate()
        .map(|(r, (regulariser, _))| {
            let of_norm = |(norm, cells): &(&str, Vec<Cell>)| {
                format!("{norm} {:.3} - {:.3}", cells[r].test, cells[r].train)
            };
            let norms: Vec<String> = grid.iter().map(of_norm).collect();
            format!("{regulariser}: {}", norms.join(", "))
        });
    let columns: Vec<String> = columns.collect();
    format!("Test less training loss, nats. {}.", columns.join("; "))
}

fn judge(grid: &[(&str, Vec<Cell>)]) -> Vec<Claim> {
    let plain = grid[0].1[0];
    let mut claims = Vec::new();
    for (name, cells) in grid.iter().skip(1).filter(|(name, _)| *name != "spectral") {
        let claim = format!("{name} norm: training loss over that without norm");
        claims.push(Claim::at_most(claim, cells[0].train / plain.train, 0.5));
    }
    // Spectral norm does not ease the training of a classifier; it bounds the network's slope.
    let (batch, spectral) = (grid[1].1[0], grid[grid.len() - 1].1[0]);
    claims.push(Claim::at_most(
        "spectral norm: movement of the logits per unit of input, over batch norm's",
        spectral.sensitivity / batch.sensitivity,
        0.1,
    ));
    // Over the normalisations that train, because a regulariser must not need a particular one.
    let gap = |cell: &Cell| cell.test - cell.train;
    let mean = |r: usize| {
        grid[1..grid.len() - 1]
            .iter()
            .map(|(_, cells)| gap(&cells[r]))
            .sum::<f64>()
    };
    for (r, (name, _)) in REGULARISERS.iter().enumerate().skip(2) {
        let claim = format!("{name}: mean gap over that without a regulariser");
        claims.push(Claim::at_most(claim, mean(r) / mean(0), 0.9));
    }
    // L1 selects weights; what it does for the gap depends on how hard it is pressed.
    claims.push(Claim::at_least(
        "L1 with batch norm: share of hidden weights below 0.001, over that without",
        grid[1].1[1].zeros / grid[1].1[0].zeros,
        3.0,
    ));
    claims
}

fn cell(
    lab: &LabContext<'_>,
    data: &Data,
    norm: Normalise,
    regulariser: Regulariser,
) -> Result<Cell, LabError> {
    let (x, set) = &data.train;
    let mut config = PerceptronConfig::new(x.dims()[1], 64, 6, CLASSES);
    config.norm = norm;
    // Weights that start too small: what normalisation is there to mend.
    config.init = InitScheme::Scaled;
    config.dropout = if regulariser == Regulariser::Dropout {
        0.2
    } else {
        0.0
    };
    let penalty = |kind, weight| {
        vec![PenaltySpec {
            kind,
            weight,
            params: "*.weight".into(),
        }]
    };
    let penalties = match regulariser {
        Regulariser::L1 => penalty(PenaltyKind::L1, 1e-3),
        Regulariser::L2 => penalty(PenaltyKind::L2, 5e-2),
        _ => Vec::new(),
    };
    let trained = match train(lab, (x, set), config, penalties)? {
        Some(trained) => trained,
        None => {
            return Ok(Cell {
                train: f64::INFINITY,
                test: f64::INFINITY,
                sensitivity: f64::NAN,
                zeros: f64::NAN,
            });
        }
    };
    let loss = |x: Tensor<2>, set: &ImageSet, device: &Device| {
        let labels = labels(set, &all(set), device);
        f64::from(trained.model.loss(x, labels).into_scalar::<f32>())
    };
    Ok(Cell {
        train: loss(x.clone().inner(), set, &lab.device),
        test: loss(data.test.0.clone(), &data.test.1, &lab.device),
        sensitivity: sensitivity(&trained.model, &data.test.0),
        zeros: zeros(&trained.model)?,
    })
}

/// The largest movement of the logits per unit of input, over neighbouring pairs of examples.
fn sensitivity(model: &Perceptron, x: &Tensor<2>) -> f64 {
    let n = x.dims()[0] - 1;
    let length = |d: Tensor<2>| (d.clone() * d).sum_dim(1).sqrt();
    let apart = |t: Tensor<2>| length(t.clone().narrow(0, 1, n) - t.narrow(0, 0, n));
    let ratio = apart(model.forward(x.clone())) / apart(x.clone());
    f64::from(ratio.max().into_scalar::<f32>())
}

/// The share of hidden weights below a thousandth.
fn zeros(model: &Perceptron) -> Result<f64, LabError> {
    let (mut small, mut count) = (0.0, 0.0);
    for layer in &model.layers {
        let weights = numbers(layer.linear.weight.val())?;
        small += weights.iter().filter(|w| w.abs() < 1e-3).count() as f64;
        count += weights.len() as f64;
    }
    Ok(small / count)
}

/// Plain gradient descent, which feels normalisation most. `None` when the run diverged.
fn train(
    lab: &LabContext<'_>,
    (x, set): (&Tensor<2>, &ImageSet),
    config: PerceptronConfig,
    penalties: Vec<PenaltySpec>,
) -> Result<Option<Trained<Perceptron>>, LabError> {
    let device = x.device();
    let order = order(set, BATCH, lab.seed)?;
    let y = labels(set, &all(set), &device);
    let model = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let optimizer = OptimizerSpec {
        momentum: Some(0.9),
        ..OptimizerSpec::new(OptimizerKind::Sgd, 0.01)
    };
    let mut training = Training::new(optimizer, STEPS, BATCH, lab.seed);
    training.train.penalties = penalties;
    let task = Task::new(
        |step| {
            let indices: Vec<i32> = order.indices(step).into_iter().map(|i| i as i32).collect();
            Ok(Batch::from(Tensor::<1, burn::tensor::Int>::from_ints(
                indices.as_slice(),
                &device,
            )))
        },
        |model: &Perceptron, at, _| {
            model
                .loss(x.clone().select(0, at.clone()), y.clone().select(0, at))
                .into()
        },
    );
    match training.run(model, task, &device) {
        Ok(trained) => Ok(Some(trained)),
        Err(unfinished) => match unfinished.error {
            TrainError::Diverged { .. } => Ok(None),
            _ => Err(unfinished.into()),
        },
    }
}

/// The same network on raw bytes, on [0, 1], and standardised.
fn inputs(lab: &LabContext<'_>, set: &ImageSet) -> Result<Vec<Claim>, LabError> {
    let device = lab.device.clone().autodiff();
    let loss = |norm: &Normalization, scale: f32| -> Result<f64, LabError> {
        let x = rows(set, &all(set), norm, &device) * scale;
        let config = PerceptronConfig::new(x.dims()[1], 64, 2, CLASSES);
        let trained = train(lab, (&x, set), config, Vec::new())?;
        // A guess has the loss ln 10; a diverged run is no better.
        Ok(trained.map_or((CLASSES as f64).ln(), |t| last(&t.losses)))
    };
    lab.say("scaling of the input");
    let raw = loss(&Normalization::MinMax, 255.0)?;
    let min_max = loss(&Normalization::MinMax, 1.0)?;
    let standard = loss(&Normalization::standardize(set), 1.0)?;
    Ok(vec![
        Claim::at_most(
            "inputs in [0, 1]: final loss over that of bytes 0 to 255",
            min_max / raw,
            0.5,
        ),
        Claim::at_most(
            "standardised inputs: final loss over that of [0, 1]",
            standard / min_max,
            0.8,
        ),
    ])
}

/// One channel per group: each channel of each image ends with mean 0 and variance 1.
fn instance_norm(lab: &LabContext<'_>) -> Result<Claim, LabError> {
    let values = normal(&mut rng(lab.seed, Stream::Evaluate, 0), 4 * 8 * 36);
    let x = (matrix(values, 4, &lab.device) * 3.0 + 5.0).reshape([4, 8, 6, 6]);
    let y = GroupNorm::new(8, 8, &lab.device).forward(x, Activation::Identity);
    let y = numbers(y)?;
    let mut worst: f64 = 0.0;
    for channel in y.chunks(36) {
        let mean = channel.iter().map(|v| f64::from(*v)).sum::<f64>() / 36.0;
        let variance = channel
            .iter()
            .map(|v| (f64::from(*v) - mean).powi(2))
            .sum::<f64>()
            / 36.0;
        worst = worst.max(mean.abs()).max((variance - 1.0).abs());
    }
    Ok(Claim::at_most(
        "instance norm: distance from mean 0 and variance 1, worst channel",
        worst,
        1e-4,
    ))
}
