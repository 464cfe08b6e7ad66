//! What batch norm does for a generator, and what it does to whoever expects one example to be one example.

use std::cell::RefCell;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::data::{ImageSet, Split};
use crate::labs::training::{Training, glyph_set, last, noise, numbers, order, pictures};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, number, panels};
use crate::models::GanConfig;
use crate::models::gan::{
    Gan, Generator, Network, NormChoice, ObjectiveConfig, PenaltyConfig, PenaltyKind,
};
use crate::nn::init::{Fill, initialise};
use crate::rng::{Stream, rng};
use crate::train::spec::OptimizerKind;
use crate::train::{Batch, OptimizerSpec, Task};

const LATENT: usize = 32;
/// Images made to compare two ways of making them.
const COUNT: usize = 64;
const CLASSES: usize = 10;
const BATCH: usize = 50;
/// Weights as He's rule draws them, and some times as large.
const SCALES: [f32; 4] = [0.1, 0.3, 1.0, 3.0];
const NORMS: [(&str, NormChoice); 3] = [
    ("no norm", NormChoice::None),
    ("batch norm", NormChoice::Batch),
    ("layer norm", NormChoice::Layer),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let set = glyph_set(Split::Train, lab.seed, CLASSES, 20)?;
    let (speed, mut claims, errors) = starts(lab, &set)?;
    claims.extend(signal(lab, &set)?);
    let (gap, of_gap) = two_modes(lab, &set)?;
    claims.extend(of_gap);
    claims.extend(company(lab)?);
    Ok(Outcome {
        claims,
        plot: panels(&[speed, gap]),
        notes: vec![errors],
    })
}

/// A small DCGAN generator of glyphs.
fn generator(lab: &LabContext<'_>, set: &ImageSet, norm: NormChoice, scale: f32) -> Generator {
    let mut config = GanConfig {
        image: [set.channels, set.height, set.width],
        d_latent: LATENT,
        network: Network::Dcgan,
        width: 8,
        ..GanConfig::default()
    };
    config.generator.norm = norm;
    let random = &mut rng(lab.seed, Stream::Init, 0);
    let device = lab.device.clone().autodiff();
    let Gan { generator, .. } = config.init(&device, random);
    initialise(generator, random, |slot| {
        match slot.path.rsplit('.').next().unwrap_or_default() {
            "gamma" | "running_var" => Fill::Constant(1.0),
            "weight" if slot.shape.len() == 1 => Fill::Constant(1.0),
            _ if slot.shape.len() == 1 => Fill::Constant(0.0),
            // The layer that makes the image has no norm after it, and starts the same everywhere.
            _ if slot.shape[1] == set.channels => Fill::Normal {
                std: (2.0 / slot.fan_in as f32).sqrt(),
            },
            _ => Fill::Normal {
                std: scale * (2.0 / slot.fan_in as f32).sqrt(),
            },
        }
    })
}

/// A generator that is told which image belongs to which noise, before its last step,
/// and its losses: a generator's half of the work without the game (Bojanowski et al. 2018,
/// arXiv:1707.05776, with codes that stay).
fn told(
    lab: &LabContext<'_>,
    set: &ImageSet,
    generator: Generator,
    (optimizer, steps): (&OptimizerSpec, u64),
) -> Result<(Generator, Vec<f64>), LabError> {
    let device = lab.device.clone().autodiff();
    let order = order(set, BATCH, lab.seed)?;
    let codes = noise(set.len(), LATENT, (lab.seed, 0), &device);
    let mut training = Training::new(optimizer.clone(), steps, BATCH, lab.seed);
    training.train.clip_norm = Some(1.0);
    let learning = RefCell::new(generator.clone());
    let task = Task::new(
        |step| Ok(Batch::from(order.indices(step))),
        |generator: &Generator, indices: Vec<usize>, step| {
            if step + 1 == steps {
                learning.replace(generator.clone());
            }
            let rows: Vec<i32> = indices.iter().map(|i| *i as i32).collect();
            let rows = Tensor::<1, burn::tensor::Int>::from_ints(rows.as_slice(), &device);
            let made = generator.forward(codes.clone().select(0, rows));
            let wanted = pictures(set, &indices, &device) * 2.0 - 1.0;
            (made - wanted).square().mean().into()
        },
    );
    let trained = training.run(generator, task, &device)?;
    Ok((learning.into_inner(), trained.losses))
}

/// From weights of four sizes, with and without norms, by two update rules.
fn starts(lab: &LabContext<'_>, set: &ImageSet) -> Result<(Chart, Vec<Claim>, String), LabError> {
    let steps = if lab.quick { 150 } else { 600 };
    let mut chart = Chart::new(
        "A generator told what to make, gradient descent",
        "size of the first weights, of He's",
        "squared error at the end",
    );
    let mut table = String::from("| squared error, first weights of He's times |");
    table.extend(SCALES.iter().map(|scale| format!(" {scale} |")));
    table += "\n|---|---|---|---|---|";
    let mut claims = Vec::new();
    for (rule, optimizer) in [("gradient descent", descent()), ("Adam", adam())] {
        let mut ends = Vec::new();
        for (name, norm) in NORMS {
            lab.say(&format!("{name}, {rule}"));
            table += &format!("\n| {name}, {rule} |");
            let mut row = Vec::new();
            for scale in SCALES {
                let generator = generator(lab, set, norm, scale);
                let (_, losses) = told(lab, set, generator, (&optimizer, steps))?;
                table += &format!(" {} |", number(last(&losses)));
                row.push(last(&losses));
            }
            if rule != "Adam" {
                let sizes = SCALES.iter().map(|scale| f64::from(*scale));
                chart = chart.line(name, sizes.zip(row.iter().copied()));
            }
            ends.push(row);
        }
        claims.push(Claim::at_most(
            format!("{rule}, weights a tenth as large: error with batch norm over that without"),
            ends[1][0] / ends[0][0],
            0.7,
        ));
    }
    Ok((chart, claims, table))
}

fn descent() -> OptimizerSpec {
    OptimizerSpec {
        momentum: Some(0.9),
        ..OptimizerSpec::new(OptimizerKind::Sgd, 0.1)
    }
}

/// The rule of most adversarial networks.
fn adam() -> OptimizerSpec {
    OptimizerSpec {
        betas: Some([0.5, 0.999]),
        ..OptimizerSpec::new(OptimizerKind::Adam, 1e-3)
    }
}

/// How large a signal is where it reaches the image, from weights a tenth of He's over that from He's.
fn signal(lab: &LabContext<'_>, set: &ImageSet) -> Result<Vec<Claim>, LabError> {
    let mut claims = Vec::new();
    for (name, norm) in &NORMS[..2] {
        let size = |scale| -> Result<f64, LabError> {
            let z = noise(COUNT, LATENT, (lab.seed, 1), &lab.device.clone().autodiff());
            let made = generator(lab, set, *norm, scale).forward(z);
            let square: f64 = numbers(made)?.iter().map(|v| f64::from(*v).powi(2)).sum();
            Ok(square.sqrt())
        };
        let claim = format!(
            "{name}: size of a fresh image from weights a tenth as large, of that from He's"
        );
        let kept = size(0.1)? / size(1.0)?;
        claims.push(match norm {
            // Two hidden layers, a tenth each; the larger image is cut off by tanh.
            NormChoice::None => Claim::at_most(claim, kept, 0.05),
            _ => Claim::within(claim, kept, 1.0, 0.01),
        });
    }
    Ok(claims)
}

/// A trained generator with the statistics of its batch and with those that it remembers.
fn two_modes(lab: &LabContext<'_>, set: &ImageSet) -> Result<(Chart, Vec<Claim>), LabError> {
    let steps = if lab.quick { 150 } else { 600 };
    let mut chart = Chart::new(
        "The same noise, in company and by memory",
        "examples in the batch",
        "difference over deviation",
    );
    let mut claims = Vec::new();
    for (name, norm) in &NORMS[1..] {
        lab.say(&format!("{name}: training and use"));
        let generator = generator(lab, set, *norm, 1.0);
        let (learning, _) = told(lab, set, generator, (&adam(), steps))?;
        // Before any forward pass here adds to what the norms remember.
        let used = learning.clone().valid();
        let alone = used.forward(noise(COUNT, LATENT, (lab.seed, 1), &lab.device));
        let gaps = [1usize, 2, 4, 16, 64]
            .map(|batch| Ok((batch as f64, gap(lab, &learning, &alone, batch)?)))
            .into_iter()
            .collect::<Result<Vec<_>, LabError>>()?;
        let (pair, many) = (gaps[1].1, gaps[4].1);
        if *norm == NormChoice::Batch {
            claims.extend([
                Claim::at_least(
                    "batch norm: images made in pairs, distance from those made in use, in deviations",
                    pair,
                    0.1,
                ),
                Claim::at_most("the same among 64, over that in pairs", many / pair, 0.6),
            ]);
        } else {
            claims.push(Claim::at_most(
                format!("{name}: the largest such distance"),
                gaps.iter().map(|(_, gap)| *gap).fold(0.0, f64::max),
                1e-4,
            ));
        }
        chart = chart.line(name, gaps);
    }
    Ok((chart, claims))
}

/// How far images made with the statistics of batches of `batch` lie from those made with remembered ones,
/// in deviations of a pixel over the latter.
fn gap(
    lab: &LabContext<'_>,
    learning: &Generator,
    alone: &Tensor<4>,
    batch: usize,
) -> Result<f64, LabError> {
    let rows = noise(COUNT, LATENT, (lab.seed, 1), &lab.device.clone().autodiff());
    let parts = (0..COUNT / batch).map(|i| {
        let part = rows.clone().narrow(0, i * batch, batch);
        learning.forward(part).inner()
    });
    let company = Tensor::cat(parts.collect(), 0);
    let spread = alone.clone() - alone.clone().mean_dim(0);
    let size = |x: Tensor<4>| -> Result<f64, LabError> {
        let values = numbers(x)?;
        Ok(values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
    };
    Ok((size(company - alone.clone())? / size(spread)?).sqrt())
}

/// What a critic's score of one example has to do with the others of its batch.
fn company(lab: &LabContext<'_>) -> Result<Vec<Claim>, LabError> {
    lab.say("a critic's score and its neighbours");
    let device = lab.device.clone().autodiff();
    let mut claims = Vec::new();
    for (name, norm) in NORMS {
        let mut config = GanConfig::default();
        config.critic.norm = norm;
        let random = &mut rng(lab.seed, Stream::Init, 0);
        let critic = config.init(&device, random).critic;
        let x = noise(16, 2, (lab.seed, 2), &device).reshape([16, 2, 1, 1]);
        let x = x.require_grad();
        let first = critic.judge(x.clone()).scores.narrow(0, 0, 1);
        let grads = first.backward();
        let slopes = match x.grad(&grads) {
            Some(grad) => numbers(grad)?,
            None => Vec::new(),
        };
        let square = |part: &[f32]| part.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let (own, others) = slopes.split_at(2.min(slopes.len()));
        let share = (square(others) / square(own)).sqrt();
        let claim = format!(
            "{name} in the critic: slope of a score to the other 15 examples, over its own"
        );
        claims.push(match norm {
            NormChoice::Batch => Claim::at_least(claim, share, 0.1),
            _ => Claim::at_most(claim, share, 0.0),
        });
        let objective = ObjectiveConfig {
            gradient_penalty: Some(PenaltyConfig {
                kind: PenaltyKind::WganGp,
                weight: 10.0,
            }),
            ..ObjectiveConfig::default()
        };
        let refused = f64::from(u8::from(objective.validate(&config).is_err()));
        let expected = f64::from(u8::from(norm == NormChoice::Batch));
        claims.push(Claim::within(
            format!("{name} in the critic: a penalty on each example's gradient is refused"),
            refused,
            expected,
            0.0,
        ));
    }
    Ok(claims)
}
