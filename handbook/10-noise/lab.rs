//! Noise by the formula, and what truncating it does to samples.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::data::glyphs::{GlyphConfig, glyphs};
use crate::data::{Normalization, Split};
use crate::eval::diversity::diversity;
use crate::generate::latent::{spherical, truncated_normal};
use crate::labs::training::{Training, autoencoder, labels, matrix, numbers, order, rows};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};
use crate::models::perceptron::{Perceptron, PerceptronConfig};
use crate::models::vae::VaeNetwork;
use crate::models::{Vae, VaeConfig};
use crate::rng::{Stream, normal, rng, uniform};
use crate::train::spec::OptimizerKind;
use crate::train::{Batch, OptimizerSpec, Task};

const D_LATENT: usize = 12;
const SAMPLES: usize = 400;
/// Truncation bounds in deviations.
const BOUNDS: [f32; 6] = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let mut claims = moments(lab)?;
    // One letter: the middle of its latent space is then a typical letter, not a blend of several.
    let one = GlyphConfig {
        alphabet: Some("A".into()),
        per_class: 1500,
        ..GlyphConfig::default()
    };
    let train = glyphs(Split::Train, lab.seed, &one).doing("drawing glyphs")?;
    let config = VaeConfig {
        network: VaeNetwork::Mlp { hidden: vec![256] },
        d_latent: D_LATENT,
        ..VaeConfig::default()
    };
    lab.say("training an autoencoder on glyphs");
    let model = autoencoder(lab, &train, &config, 2000)?.model;

    let draw = |seed| -> Result<Vec<f32>, LabError> {
        let z = normal(&mut rng(seed, Stream::Sample, 0), SAMPLES * D_LATENT);
        decode(lab, &model, z)
    };
    let (a, again, other) = (draw(lab.seed)?, draw(lab.seed)?, draw(lab.seed + 1)?);
    let pixels = a.len() / SAMPLES;
    let differing = a
        .iter()
        .zip(&again)
        .filter(|(a, b)| a.to_bits() != b.to_bits())
        .count();
    let equal = a
        .chunks(pixels)
        .zip(other.chunks(pixels))
        .filter(|(a, b)| a == b)
        .count();
    claims.push(Claim::at_most(
        "same seed: pixels of 400 samples that differ",
        differing as f64,
        0.0,
    ));
    claims.push(Claim::at_most(
        "another seed: samples of 400 that are the same",
        equal as f64,
        0.0,
    ));

    lab.say("truncating the latents");
    let judge = judge(lab)?;
    let (mut varied, mut faithful) = (Vec::new(), Vec::new());
    for bound in BOUNDS {
        let mut rng = rng(lab.seed, Stream::Sample, 1);
        let z = truncated_normal(SAMPLES * D_LATENT, bound, &mut rng).doing("truncated noise")?;
        let images = decode(lab, &model, z)?;
        varied.push((
            f64::from(bound),
            diversity(&images, pixels).doing("diversity")?.mean,
        ));
        faithful.push((f64::from(bound), recognised(lab, &judge, images)?));
    }
    let least = |points: &[(f64, f64)]| {
        points
            .windows(2)
            .map(|w| w[1].1 - w[0].1)
            .fold(f64::INFINITY, f64::min)
    };
    claims.extend([
        Claim::at_least(
            "diversity: least rise from one bound to the next",
            least(&varied),
            0.0,
        ),
        Claim::at_most(
            "diversity at bound 0.25 over that at 3",
            varied[0].1 / varied[5].1,
            0.5,
        ),
        Claim::at_most(
            "share not recognised as the letter, at bound 0.5 over that at 3",
            (1.0 - faithful[1].1) / (1.0 - faithful[5].1),
            0.5,
        ),
    ]);
    let trade = varied.iter().zip(&faithful).map(|(v, f)| (v.1, f.1));
    let plot = panels(&[
        Chart::new(
            "The trade, bounds 0.25 to 3",
            "diversity: mean distance of two samples",
            "fidelity: probability of the letter",
        )
        .line("", trade),
        Chart::new(
            "Diversity",
            "truncation bound, deviations",
            "mean distance of two samples",
        )
        .line("", varied),
        Chart::new(
            "Fidelity",
            "truncation bound, deviations",
            "probability of the letter",
        )
        .line("", faithful),
    ]);
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

fn decode(lab: &LabContext<'_>, model: &Vae, z: Vec<f32>) -> Result<Vec<f32>, LabError> {
    let z: Tensor<2> = matrix(z, SAMPLES, &lab.device);
    numbers(model.decode(z))
}

/// A classifier of the 26 capitals, the judge of fidelity.
fn judge(lab: &LabContext<'_>) -> Result<Perceptron, LabError> {
    const BATCH: usize = 64;
    let letters = GlyphConfig {
        alphabet: Some(('A'..='Z').collect()),
        per_class: 100,
        ..GlyphConfig::default()
    };
    let set = glyphs(Split::Train, lab.seed + 1, &letters).doing("drawing glyphs")?;
    let device = lab.device.clone().autodiff();
    let order = order(&set, BATCH, lab.seed)?;
    let model = PerceptronConfig::new(set.height * set.width, 128, 2, 26)
        .init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let adam = OptimizerSpec::new(OptimizerKind::Adam, 1e-3);
    let task = Task::new(
        |step| {
            let at = order.indices(step);
            let x = rows(&set, &at, &Normalization::MinMax, &device);
            Ok(Batch::from((x, labels(&set, &at, &device))))
        },
        |model: &Perceptron, (x, y), _| model.loss(x, y).into(),
    );
    let training = Training::new(adam, 400, BATCH, lab.seed);
    Ok(training.run(model, task, &device)?.model)
}

/// Mean probability that the judge gives the letter A.
fn recognised(lab: &LabContext<'_>, judge: &Perceptron, images: Vec<f32>) -> Result<f64, LabError> {
    let probabilities = softmax(judge.forward(matrix(images, SAMPLES, &lab.device)), 1);
    let letter_a = numbers(probabilities.narrow(1, 0, 1))?;
    Ok(letter_a.iter().map(|p| f64::from(*p)).sum::<f64>() / SAMPLES as f64)
}

/// Four kinds of noise against their formulas.
fn moments(lab: &LabContext<'_>) -> Result<Vec<Claim>, LabError> {
    const N: usize = 200_000;
    let draw = |step| rng(lab.seed, Stream::Noise, step);
    let variance = |x: &[f32]| {
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        x.iter()
            .map(|v| (f64::from(*v) - mean).powi(2))
            .sum::<f64>()
            / x.len() as f64
    };
    let truncated = truncated_normal(N, 1.0, &mut draw(2)).doing("truncated noise")?;
    let largest = truncated.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    // 1 - 2 phi(1) / (2 Phi(1) - 1)
    let expected = 1.0 - 2.0 * 0.241_970_724_519 / 0.682_689_492_137;
    let sphere = spherical(64, &mut draw(3));
    let radius = sphere
        .iter()
        .map(|v| f64::from(*v).powi(2))
        .sum::<f64>()
        .sqrt();
    Ok(vec![
        Claim::within(
            "Gaussian: variance",
            variance(&normal(&mut draw(0), N)),
            1.0,
            0.015,
        ),
        Claim::within(
            "uniform on [0, 1): variance",
            variance(&uniform(&mut draw(1), N)),
            1.0 / 12.0,
            0.001,
        ),
        Claim::within(
            "Gaussian truncated at 1: variance",
            variance(&truncated),
            expected,
            0.005,
        ),
        Claim::at_most(
            "Gaussian truncated at 1: largest absolute value",
            largest,
            1.0,
        ),
        Claim::within("spherical in 64 dimensions: length", radius, 8.0, 1e-4),
    ])
}
