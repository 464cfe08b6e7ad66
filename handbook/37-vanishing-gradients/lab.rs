//! The gradient norm at each depth of a deep perceptron, one remedy at a time.

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};

use crate::labs::training::{matrix, numbers};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, panels};
use crate::models::perceptron::{Activation, Normalise, PerceptronConfig};
use crate::nn::InitScheme;
use crate::rng::{Stream, normal, rng};
use crate::train::clip;

const DEPTH: usize = 32;
const WIDTH: usize = 64;
const BATCH: usize = 128;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let base = PerceptronConfig::new(WIDTH, WIDTH, DEPTH, 10);
    let with = |change: &dyn Fn(&mut PerceptronConfig)| {
        let mut config = base.clone();
        change(&mut config);
        profile(lab, &config)
    };
    lab.say("gradients through 32 layers");
    let sigmoid = with(&|c| (c.activation, c.init) = (Activation::Sigmoid, InitScheme::Xavier))?;
    let tanh = with(&|c| (c.activation, c.init) = (Activation::Tanh, InitScheme::Xavier))?;
    let relu_xavier = with(&|c| c.init = InitScheme::Xavier)?;
    let relu_small = with(&|c| c.init = InitScheme::Scaled)?;
    let relu = with(&|_| ())?;
    let normed = with(&|c| {
        (c.activation, c.init, c.norm) = (
            Activation::Sigmoid,
            InitScheme::Xavier,
            Normalise::LayerNorm,
        )
    })?;
    let residual = with(&|c| {
        (c.activation, c.init, c.residual) = (Activation::Sigmoid, InitScheme::Xavier, true)
    })?;

    let share_left = |profile: &[f64]| profile[0] / profile[DEPTH - 1];
    // A bad initialisation shrinks the signal on its way up and the gradient on its way down, so
    // remedies are compared by the gradient that arrives at layer 1, not by the share of it.
    let won = |remedy: &[f64], without: &[f64]| (remedy[0] / without[0]).log10();
    let mut claims = vec![
        Claim::at_most(
            "sigmoid: gradient at layer 1 over that at layer 32",
            share_left(&sigmoid),
            1e-12,
        ),
        Claim::at_least("ReLU with He init: the same", share_left(&relu), 0.01),
        Claim::at_least(
            "ReLU instead of sigmoid: powers of ten won at layer 1",
            won(&relu, &sigmoid),
            10.0,
        ),
        Claim::at_least(
            "He instead of Xavier init under ReLU: powers of ten won",
            won(&relu, &relu_xavier),
            3.0,
        ),
        Claim::at_least(
            "He instead of a deviation of 0.02 under ReLU: powers of ten won",
            won(&relu, &relu_small),
            10.0,
        ),
        Claim::at_least(
            "layer norm under sigmoid: powers of ten won",
            won(&normed, &sigmoid),
            5.0,
        ),
        Claim::at_least(
            "residual connections under sigmoid: powers of ten won",
            won(&residual, &sigmoid),
            10.0,
        ),
    ];
    claims.extend(clipping(lab, &base)?);

    let points = |p: &[f64]| -> Vec<(f64, f64)> {
        p.iter()
            .enumerate()
            .map(|(i, g)| (i as f64 + 1.0, *g))
            .collect()
    };
    let chart = |title| Chart::new(title, "layer", "gradient norm").log_y();
    let plot = panels(&[
        chart("Activation and initialisation")
            .line("sigmoid, Xavier", points(&sigmoid))
            .line("tanh, Xavier", points(&tanh))
            .line("ReLU, deviation 0.02", points(&relu_small))
            .line("ReLU, Xavier", points(&relu_xavier))
            .line("ReLU, He", points(&relu)),
        chart("Sigmoid with a remedy")
            .line("nothing", points(&sigmoid))
            .line("layer norm", points(&normed))
            .line("residual", points(&residual)),
    ]);
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

/// Random vectors with random labels: at initialisation the task does not matter.
fn batch(seed: u64, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let x = normal(&mut rng(seed, Stream::Data, 0), BATCH * WIDTH);
    let labels: Vec<i32> = (0..BATCH as i32).map(|i| i % 10).collect();
    (
        matrix(x, BATCH, device),
        Tensor::from_ints(labels.as_slice(), device),
    )
}

/// The norm of the gradient of each hidden layer's weights, first layer first.
fn profile(lab: &LabContext<'_>, config: &PerceptronConfig) -> Result<Vec<f64>, LabError> {
    let device = lab.device.clone().autodiff();
    let network = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let (x, labels) = batch(lab.seed, &device);
    let gradients = network.loss(x, labels).backward();
    let mut norms = Vec::new();
    for layer in &network.layers {
        let Some(gradient) = layer.linear.weight.grad(&gradients) else {
            norms.push(f64::NAN);
            continue;
        };
        let squares = numbers(gradient)?.into_iter().map(|g| f64::from(g).powi(2));
        norms.push(squares.sum::<f64>().sqrt());
    }
    Ok(norms)
}

/// The other direction: residual sums without a norm double the signal at each layer.
fn clipping(lab: &LabContext<'_>, base: &PerceptronConfig) -> Result<Vec<Claim>, LabError> {
    let device = lab.device.clone().autodiff();
    let config = PerceptronConfig {
        residual: true,
        ..base.clone()
    };
    let network = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);
    let (x, labels) = batch(lab.seed, &device);
    let gradients = network.loss(x, labels).backward();
    let mut gradients = GradientsParams::from_grads(gradients, &network);
    let before = clip::global_norm(&network, &gradients);
    clip::by_norm(&network, &mut gradients, before, 1.0);
    let after = clip::global_norm(&network, &gradients);
    Ok(vec![
        Claim::at_least(
            "residual sums under ReLU without norm: gradient norm",
            before,
            1e3,
        ),
        Claim::within("the same gradient clipped to norm 1", after, 1.0, 1e-3),
    ])
}
