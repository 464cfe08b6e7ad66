//! Optimisers against PyTorch's trace step for step, a race, and schedules.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor};

use crate::data::{Normalization, Order, Split};
use crate::labs::training::{
    Training, all, curve, glyph_set, labels, last, matrix, numbers, order, rows,
};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::perceptron::{Perceptron, PerceptronConfig};
use crate::rng::{Stream, rng};
use crate::train::spec::{OptimizerKind, ScheduleKind};
use crate::train::{Batch, OptimizerSpec, ScheduleSpec, Task, TrainError, optimizer};

/// What `reference.py` wrote.
#[derive(serde::Deserialize)]
struct Reference {
    a: Vec<f32>,
    b: Vec<f32>,
    w0: Vec<f32>,
    traces: BTreeMap<String, Vec<Vec<f32>>>,
}

#[derive(Module, Debug)]
struct Weights {
    weight: Param<Tensor<2>>,
}

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let mut claims = parity(lab)?;
    let task = Glyphs::new(lab)?;
    let (race, race_claims) = race(lab, &task)?;
    let (schedules, schedule_claims) = schedules(lab, &task)?;
    claims.extend(race_claims);
    claims.extend(schedule_claims);
    Ok(Outcome {
        claims,
        plot: panels(&[race, schedules]),
        notes: vec![],
    })
}

fn parity(lab: &LabContext<'_>) -> Result<Vec<Claim>, LabError> {
    let reference: Reference = serde_json::from_str(include_str!("reference.json"))
        .doing("reading the reference trace")?;
    let device = lab.device.clone().autodiff();
    let (a, b) = (
        matrix(reference.a.clone(), 6, &device),
        matrix(reference.b.clone(), 6, &device),
    );
    let mut claims = Vec::new();
    for (name, spec) in reference_specs() {
        let trace = reference.traces.get(name).map_or(&[][..], Vec::as_slice);
        let w0 = matrix(reference.w0.clone(), 4, &device);
        let mut model = Weights {
            weight: Param::from_tensor(w0),
        };
        let mut optimiser = optimizer::build(&spec, &model);
        let mut worst: f64 = if trace.is_empty() { f64::INFINITY } else { 0.0 };
        for expected in trace {
            let error = a.clone().matmul(model.weight.val()) - b.clone();
            let gradients = (error.clone() * error).mean().backward();
            let gradients = GradientsParams::from_grads(gradients, &model);
            model = optimiser.step(spec.lr, model, gradients);
            let got = numbers(model.weight.val())?;
            for (got, expected) in got.iter().zip(expected) {
                worst = worst.max(f64::from((got - expected).abs()));
            }
        }
        let claim = format!("{name}: 20 steps against the reference trace, worst weight");
        claims.push(Claim::at_most(claim, worst, 2e-5));
    }
    Ok(claims)
}

/// The constants of `reference.py`.
fn reference_specs() -> [(&'static str, OptimizerSpec); 6] {
    use OptimizerKind::{Adam, AdamW, Muon, RmsProp, Sgd};
    let spec = OptimizerSpec::new;
    [
        ("sgd", spec(Sgd, 0.1)),
        (
            "momentum",
            OptimizerSpec {
                momentum: Some(0.9),
                ..spec(Sgd, 0.05)
            },
        ),
        ("rmsprop", spec(RmsProp, 0.01)),
        ("adam", spec(Adam, 0.02)),
        (
            "adamw",
            OptimizerSpec {
                weight_decay: 0.1,
                ..spec(AdamW, 0.02)
            },
        ),
        (
            "muon",
            OptimizerSpec {
                weight_decay: 0.1,
                ..spec(Muon, 0.02)
            },
        ),
    ]
}

/// The same perceptron on the same glyphs, each optimiser at the best of three learning rates.
fn race(lab: &LabContext<'_>, task: &Glyphs) -> Result<(Chart, Vec<Claim>), LabError> {
    use OptimizerKind::{Adam, AdamW, Muon, RmsProp, Sgd};
    let mut chart = Chart::new("The race: training loss", "step", "nats").log_y();
    let mut ends = BTreeMap::new();
    let mut start = f64::NAN;
    let momentum = |lr| OptimizerSpec {
        momentum: Some(0.9),
        ..OptimizerSpec::new(Sgd, lr)
    };
    type Entry<'a> = (&'a str, &'a dyn Fn(f64) -> OptimizerSpec, [f64; 3]);
    let entries: [Entry<'_>; 6] = [
        ("SGD", &|lr| OptimizerSpec::new(Sgd, lr), [0.03, 0.1, 0.3]),
        ("momentum", &momentum, [0.01, 0.03, 0.1]),
        (
            "RMSProp",
            &|lr| OptimizerSpec::new(RmsProp, lr),
            [3e-4, 1e-3, 3e-3],
        ),
        (
            "Adam",
            &|lr| OptimizerSpec::new(Adam, lr),
            [3e-4, 1e-3, 3e-3],
        ),
        (
            "AdamW",
            &|lr| OptimizerSpec {
                weight_decay: 0.1,
                ..OptimizerSpec::new(AdamW, lr)
            },
            [3e-4, 1e-3, 3e-3],
        ),
        (
            "Muon",
            &|lr| OptimizerSpec::new(Muon, lr),
            [1e-3, 3e-3, 1e-2],
        ),
    ];
    for (name, spec, rates) in entries {
        lab.say(name);
        let mut best: Option<Vec<f64>> = None;
        for lr in rates {
            // A rate that is too high may diverge; it is not the best then.
            let Some(losses) = task.run(lab, &spec(lr), &ScheduleSpec::default())? else {
                continue;
            };
            if best.as_ref().is_none_or(|b| last(&losses) < last(b)) {
                best = Some(losses);
            }
        }
        let best = best.unwrap_or_default();
        start = best.first().copied().unwrap_or(f64::NAN);
        ends.insert(name, last(&best));
        chart = chart.line(name, curve(&best, 5));
    }
    let slowest = ends.values().copied().fold(0.0, f64::max);
    let claims = vec![
        Claim::at_most(
            "race: the slowest optimiser's final loss over the first",
            slowest / start,
            0.8,
        ),
        Claim::at_most(
            "race: Adam's final loss over SGD's",
            ends["Adam"] / ends["SGD"],
            0.8,
        ),
        Claim::at_most(
            "race: momentum's final loss over SGD's",
            ends["momentum"] / ends["SGD"],
            0.9,
        ),
        Claim::at_most(
            "race: Muon's final loss over SGD's",
            ends["Muon"] / ends["SGD"],
            0.8,
        ),
    ];
    Ok((chart, claims))
}

/// Adam at a high rate under each schedule.
fn schedules(lab: &LabContext<'_>, task: &Glyphs) -> Result<(Chart, Vec<Claim>), LabError> {
    lab.say("schedules");
    let steps = STEPS;
    let schedule = |kind, warmup| ScheduleSpec {
        kind,
        warmup,
        ..ScheduleSpec::default()
    };
    let entries = [
        ("constant", schedule(ScheduleKind::Constant, 0)),
        ("linear with warm-up", schedule(ScheduleKind::Linear, 15)),
        ("cosine with warm-up", schedule(ScheduleKind::Cosine, 15)),
        (
            "step",
            ScheduleSpec {
                every: Some(steps / 4),
                gamma: Some(0.3),
                ..schedule(ScheduleKind::Step, 0)
            },
        ),
        (
            "exponential",
            ScheduleSpec {
                gamma: Some(0.98),
                ..schedule(ScheduleKind::Exponential, 0)
            },
        ),
    ];
    let mut chart = Chart::new("Adam at 0.01 under a schedule", "step", "nats").log_y();
    let mut ends = BTreeMap::new();
    for (name, schedule) in entries {
        let spec = OptimizerSpec::new(OptimizerKind::Adam, 0.01);
        let losses = task.run(lab, &spec, &schedule)?.unwrap_or(vec![f64::NAN]);
        ends.insert(name, last(&losses));
        chart = chart.line(name, curve(&losses, 5));
    }
    let ratio = |name| ends[name] / ends["constant"];
    let claims = ["linear with warm-up", "cosine with warm-up"].map(|name| {
        Claim::at_most(
            format!("{name}: final loss over the constant rate's"),
            ratio(name),
            0.9,
        )
    });
    Ok((chart, claims.into()))
}

const STEPS: u64 = 150;

/// The task of the race: 62 classes of glyphs for a small perceptron.
struct Glyphs {
    pixels: Tensor<2>,
    classes: Tensor<1, Int>,
    order: Order,
}

impl Glyphs {
    fn new(lab: &LabContext<'_>) -> Result<Self, LabError> {
        let device = lab.device.clone().autodiff();
        let set = glyph_set(Split::Train, lab.seed, 62, 40)?;
        Ok(Self {
            pixels: rows(&set, &all(&set), &Normalization::Symmetric, &device),
            classes: labels(&set, &all(&set), &device),
            order: order(&set, 64, lab.seed)?,
        })
    }

    /// The loss curve of one run; `None` when it diverged.
    fn run(
        &self,
        lab: &LabContext<'_>,
        spec: &OptimizerSpec,
        schedule: &ScheduleSpec,
    ) -> Result<Option<Vec<f64>>, LabError> {
        let device = self.pixels.device();
        let config = PerceptronConfig::new(self.pixels.dims()[1], 64, 3, 62);
        let model = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
        let mut training = Training::new(spec.clone(), STEPS, 64, lab.seed);
        training.schedule = schedule.clone();
        let task = Task::new(
            |step| {
                let at: Vec<i32> = self
                    .order
                    .indices(step)
                    .into_iter()
                    .map(|i| i as i32)
                    .collect();
                Ok(Batch::from(Tensor::<1, Int>::from_ints(
                    at.as_slice(),
                    &device,
                )))
            },
            |model: &Perceptron, at, _| {
                let x = self.pixels.clone().select(0, at.clone());
                model.loss(x, self.classes.clone().select(0, at)).into()
            },
        );
        match training.run(model, task, &device) {
            Ok(trained) => Ok(Some(trained.losses)),
            Err(unfinished) => match unfinished.error {
                TrainError::Diverged { .. } => Ok(None),
                _ => Err(unfinished.into()),
            },
        }
    }
}
