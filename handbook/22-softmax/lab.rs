//! Softmax at its limits, and what temperature does to it.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor};

use crate::generate::sampling::{Decoding, distribution};
use crate::labs::training::numbers;
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::rng::{Stream, normal, rng};

const VOCABULARY: usize = 50;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let mut claims = extremes(&lab.device)?;

    // One set of logits, as a language model would give them for the next token.
    let logits: Vec<f32> = normal(&mut rng(lab.seed, Stream::Data, 0), VOCABULARY)
        .iter()
        .map(|z| 2.0 * z)
        .collect();
    let temperatures: Vec<f64> = (1..=60).map(|i| 0.1 * f64::from(i)).collect();
    let (mut measured, mut predicted) = (Vec::new(), Vec::new());
    let mut worst: f64 = 0.0;
    for &t in &temperatures {
        // dH/dT = Var(logits) / T^3, the heat capacity of the distribution over T.
        let step = 0.01 * t;
        let rise = entropy(&at(&logits, t + step)?) - entropy(&at(&logits, t - step)?);
        let slope = variance(&at(&logits, t)?, &logits) / t.powi(3);
        measured.push((t, rise / (2.0 * step)));
        predicted.push((t, slope));
        worst = worst.max((rise / (2.0 * step) - slope).abs() / slope.max(1e-3));
    }
    claims.push(Claim::at_most(
        "entropy's slope over temperature against Var(logits)/T³, worst relative difference",
        worst,
        0.01,
    ));
    claims.push(Claim::within(
        "entropy at temperature 1000 against ln 50, nats",
        entropy(&at(&logits, 1000.0)?),
        (VOCABULARY as f64).ln(),
        1e-3,
    ));
    claims.push(Claim::at_most(
        "entropy at temperature 0.0001, nats",
        entropy(&at(&logits, 1e-4)?),
        1e-3,
    ));

    let mut entropies = Vec::new();
    for &t in &temperatures {
        entropies.push((t, entropy(&at(&logits, t)?)));
    }
    let plot = panels(&[
        Chart::new("Entropy of the same logits", "temperature", "nats").line("", entropies),
        Chart::new("Its slope", "temperature", "nats per unit")
            .line("predicted: Var / T³", predicted)
            .line("measured", measured),
    ]);
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

/// Logits no naive softmax survives.
fn extremes(device: &Device) -> Result<Vec<Claim>, LabError> {
    let rows: [[f32; 4]; 6] = [
        [1e4, 1e4, -1e4, 0.0],
        [1e30, -1e30, 0.0, 1.0],
        [f32::MAX, f32::MIN, 0.0, 0.0],
        [-1e4, -1e4, -1e4, -1e4],
        [89.0, 90.0, 91.0, 92.0],
        [f32::NEG_INFINITY, 0.0, 100.0, -100.0],
    ];
    let (mut worst, mut failures): (f64, u32) = (0.0, 0);
    for row in rows {
        let ours: Vec<f32> = distribution(&row, &[], &Decoding::default()).doing("softmax")?;
        let tensor = numbers(softmax(Tensor::<1>::from_floats(row, device), 0))?;
        for p in [ours, tensor] {
            let error = (p.iter().map(|&p| f64::from(p)).sum::<f64>() - 1.0).abs();
            // `max` would drop a NaN, and a NaN is what this looks for.
            worst = if error.is_nan() {
                error
            } else {
                worst.max(error)
            };
        }
        let naive = row.map(f32::exp);
        let sum: f32 = naive.iter().sum();
        failures += u32::from(!naive.iter().all(|e| (e / sum).is_finite()));
    }
    // -ln softmax of the losing one of two logits 200 apart is 200; the softmax itself rounds to 0.
    let pair = Tensor::<1>::from_floats([200.0, 0.0], device);
    let loss = numbers(log_softmax(pair, 0))?;
    Ok(vec![
        Claim::at_most(
            "|sum - 1| at logits up to the largest float, worst row",
            worst,
            1e-6,
        ),
        Claim::at_least(
            "rows of the same six where exp(x)/Σexp(x) is not a number",
            failures,
            5,
        ),
        Claim::within(
            "loss of a token 200 logits behind, nats",
            -loss[1],
            200.0,
            1e-3,
        ),
    ])
}

fn at(logits: &[f32], temperature: f64) -> Result<Vec<f32>, LabError> {
    distribution(
        logits,
        &[],
        &Decoding {
            temperature,
            ..Decoding::default()
        },
    )
    .doing("softmax")
}

fn entropy(p: &[f32]) -> f64 {
    p.iter()
        .map(|&p| f64::from(p))
        .filter(|&p| p > 0.0)
        .map(|p| -p * p.ln())
        .sum()
}

fn variance(p: &[f32], x: &[f32]) -> f64 {
    let mean = |f: &dyn Fn(f64) -> f64| -> f64 {
        p.iter()
            .zip(x)
            .map(|(&p, &x)| f64::from(p) * f(f64::from(x)))
            .sum()
    };
    let centre = mean(&|x| x);
    mean(&|x| (x - centre).powi(2))
}
