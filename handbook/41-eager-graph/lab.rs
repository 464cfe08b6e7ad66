//! One training step twice: operator by operator, and with whole expressions as one operator.

use std::time::Instant;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::kernels::{composed, gelu_tanh};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, panels};
use crate::models::{Gpt, GptConfig};
use crate::rng::{Stream, normal, rng, uniform};
use crate::train::{OptimizerSpec, clip, optimizer};

const BATCH: usize = 8;
const VOCAB: usize = 65;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    // 1. The same numbers: two runs from the same weights on the same batches.
    let steps = if lab.full() { 60 } else { 15 };
    lab.say("training operator by operator");
    let mut eager = Run::new(lab, true);
    let eager_losses: Vec<f64> = (0..steps).map(|step| eager.step(step)).collect();
    lab.say("training fused");
    let mut fused = Run::new(lab, false);
    let fused_losses: Vec<f64> = (0..steps).map(|step| fused.step(step)).collect();
    let apart = eager_losses
        .iter()
        .zip(&fused_losses)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    let learnt = fused_losses[0] - fused_losses[steps as usize - 1];

    // 2. The time: both go on, a step each in turn, so that a busy machine slows both.
    lab.say("timing steps in turn");
    let rounds = if lab.full() { 60 } else { 12 };
    let mut times = [Vec::new(), Vec::new()];
    for step in steps..steps + rounds {
        for (run, times) in [&mut eager, &mut fused].into_iter().zip(&mut times) {
            let began = Instant::now();
            run.step(step);
            times.push(began.elapsed().as_secs_f64());
        }
    }
    let ratios = times[0].iter().zip(&times[1]).map(|(e, f)| e / f).collect();
    let gain = median(ratios);
    let [eager_ms, fused_ms] = times.map(|times| 1e3 * median(times));

    // 3. Why: one expression over ever longer vectors.
    lab.say("one expression at many lengths");
    let longest = if lab.full() { 23 } else { 21 };
    let lengths: Vec<usize> = (8..=longest).map(|power| 1 << power).collect();
    let curves: Vec<Point> = lengths.iter().map(|n| expression(lab, *n)).collect();
    let worst = curves.iter().map(|point| point.apart).fold(0.0, f64::max);
    let last = &curves[curves.len() - 1];

    let claims = vec![
        Claim::at_most(
            format!("largest difference of the two loss curves over {steps} steps, nats"),
            apart,
            1e-3,
        ),
        Claim::at_least("what the fused run learnt meanwhile, nats", learnt, 0.1),
        Claim::at_least(
            "time of a step operator by operator over fused, median of pairs",
            gain,
            1.1,
        ),
        Claim::at_most(
            "one expression (GELU): largest difference of value or gradient",
            worst,
            1e-5,
        ),
        Claim::at_least(
            format!("one expression at {} numbers: gain", last.length),
            last.eager / last.fused,
            2.0,
        ),
    ];
    let per_number = |time: fn(&Point) -> f64| -> Vec<(f64, f64)> {
        let nanoseconds = |point: &Point| 1e9 * time(point) / point.length as f64;
        curves
            .iter()
            .map(|point| ((point.length as f64).log2(), nanoseconds(point)))
            .collect()
    };
    let plot = panels(&[
        Chart::new(
            "One expression, both ways",
            "log2 of the length",
            "ns per number",
        )
        .line("operator by operator", per_number(|point| point.eager))
        .line("fused", per_number(|point| point.fused))
        .log_y(),
        Chart::new("A training step of a small GPT", "", "ms")
            .bar("operator by operator", eager_ms)
            .bar("fused", fused_ms),
    ]);
    let notes = vec![format!(
        "A step took {eager_ms:.1} ms operator by operator and {fused_ms:.1} ms fused. Both are ours: \
         what PyTorch takes for its eager and compiled steps, `maquette bench train --peers` measures."
    )];
    Ok(Outcome {
        claims,
        plot,
        notes,
    })
}

/// A model in training, one way or the other.
struct Run {
    eager: bool,
    model: Gpt,
    optimizer: burn::optim::ModuleOptimizer,
    spec: OptimizerSpec,
    seed: u64,
    seq: usize,
    device: Device,
}

impl Run {
    fn new(lab: &LabContext<'_>, eager: bool) -> Self {
        let config = GptConfig {
            vocab_size: VOCAB,
            ..GptConfig::default()
        };
        let device = lab.device.clone().autodiff();
        let model = config.init(&device, &mut rng(lab.seed, Stream::Init, 0));
        let spec = OptimizerSpec::adamw(1e-3);
        Self {
            eager,
            optimizer: optimizer::build(&spec, &model),
            model,
            spec,
            seed: lab.seed,
            seq: config.seq_len,
            device,
        }
    }

    /// Forward, backward, clipping, update. The loss, in nats.
    fn step(&mut self, index: u64) -> f64 {
        match self.eager {
            true => composed(|| self.advance(index)),
            false => self.advance(index),
        }
    }

    fn advance(&mut self, index: u64) -> f64 {
        let (inputs, targets) = self.batch(index);
        let loss = self.model.loss(inputs, targets);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let mut grads = GradientsParams::from_grads(loss.backward(), &self.model);
        let norm = clip::global_norm(&self.model, &grads);
        clip::by_norm(&self.model, &mut grads, norm, 1.0);
        self.model = self.optimizer.step(self.spec.lr, self.model.clone(), grads);
        value
    }

    /// Texts that count up from a random token: easy to learn.
    fn batch(&self, index: u64) -> (Tensor<2, Int>, Tensor<2, Int>) {
        let starts = uniform(&mut rng(self.seed, Stream::Data, index), BATCH);
        let token = |i: usize| {
            let start = (starts[i / (self.seq + 1)] * VOCAB as f32) as usize;
            ((start + i % (self.seq + 1)) % VOCAB) as i32
        };
        let ids: Vec<i32> = (0..BATCH * (self.seq + 1)).map(token).collect();
        let shape = [BATCH, self.seq + 1];
        let text = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &self.device);
        (
            text.clone().narrow(1, 0, self.seq),
            text.narrow(1, 1, self.seq),
        )
    }
}

/// What one expression took at one length, in seconds, and how far its two forms lay apart.
struct Point {
    length: usize,
    eager: f64,
    fused: f64,
    apart: f64,
}

/// GELU and its gradient: ten operators or so, or one.
fn expression(lab: &LabContext<'_>, length: usize) -> Point {
    let values = normal(&mut rng(lab.seed, Stream::Data, length as u64), length);
    let device = lab.device.clone().autodiff();
    let x = Tensor::<1>::from_data(TensorData::new(values, [length]), &device).require_grad();
    let both = || {
        let out = gelu_tanh(x.clone());
        let grads = out.clone().sum().backward();
        (out.inner(), x.grad(&grads))
    };
    let (fused_value, fused_slope) = both();
    let (value, slope) = composed(both);
    let difference =
        |a: Tensor<1>, b: Tensor<1>| f64::from((a - b).abs().max().into_scalar::<f32>());
    let apart = match (fused_slope, slope) {
        (Some(fused), Some(slope)) => difference(fused_value, value).max(difference(fused, slope)),
        _ => f64::INFINITY,
    };
    // Enough repetitions to be timed, the fastest of a few attempts in turn.
    let repeats = (1 << 18) / length.min(1 << 18);
    let mut best = [f64::INFINITY; 2];
    for _ in 0..7 {
        for (eager, best) in [true, false].into_iter().zip(&mut best) {
            let began = Instant::now();
            for _ in 0..repeats {
                match eager {
                    true => drop(composed(both)),
                    false => drop(both()),
                }
            }
            *best = best.min(began.elapsed().as_secs_f64() / repeats as f64);
        }
    }
    Point {
        length,
        eager: best[0],
        fused: best[1],
        apart,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
