//! The fused batch normalisation against the same built of Burn's operators.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{Activation, batch_norm};

mod support;
use support::{ACTIVATIONS, activated, tensor};

/// The definition, one operator at a time: output, mean, variance.
fn plain(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, after: Activation) -> [Tensor<4>; 3] {
    let [batch, channels, height, width] = x.dims();
    let columns = x
        .clone()
        .swap_dims(0, 1)
        .reshape([channels, batch * height * width]);
    let spread = |values: Tensor<2>| values.reshape([1, channels, 1, 1]);
    let mean = columns.clone().mean_dim(1);
    let variance = (columns - mean.clone()).powi_scalar(2).mean_dim(1);
    let (mean, variance) = (spread(mean), spread(variance));
    let z = (x - mean.clone()) / (variance.clone() + 1e-5).sqrt();
    let z = z * spread(gamma.unsqueeze()) + spread(beta.unsqueeze());
    let out = activated(z, after);
    [out, mean, variance]
}

fn fused(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, after: Activation) -> [Tensor<4>; 3] {
    let channels = x.dims()[1];
    let found = batch_norm(x, gamma, beta, 1e-5, after);
    let spread = |values: Tensor<1>| values.reshape([1, channels, 1, 1]);
    [found.output, spread(found.mean), spread(found.variance)]
}

/// Output, statistics and all gradients.
fn run(shape: [usize; 4], after: Activation, is_fused: bool) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    // Far from mean zero, where a careless variance loses its digits.
    let x = (tensor(shape, 1, &device) * 3.0 + 10.0).require_grad();
    let gamma = tensor([shape[1]], 2, &device).require_grad();
    let beta = tensor([shape[1]], 3, &device).require_grad();
    let norm = if is_fused { fused } else { plain };
    let outs = norm(x.clone(), gamma.clone(), beta.clone(), after);
    let grads = (outs[0].clone() * tensor(shape, 4, &device))
        .sum()
        .backward();
    let mut results = vec![
        x.grad(&grads).expect("tracked").into_data(),
        gamma.grad(&grads).expect("tracked").into_data(),
        beta.grad(&grads).expect("tracked").into_data(),
    ];
    results.extend(outs.map(Tensor::into_data));
    results
}

#[test]
fn agrees_with_the_definition() {
    for shape in [[2, 1, 1, 1], [3, 6, 5, 7], [17, 33, 4, 4], [2, 5, 28, 28]] {
        for after in ACTIVATIONS {
            for (fused, plain) in run(shape, after, true).iter().zip(run(shape, after, false)) {
                assert_eq!(fused.shape(), plain.shape(), "{shape:?} {after:?}");
                fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(3e-4, 3e-4));
            }
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    let shape = [3, 4, 3, 3];
    let device = Device::flex();
    let (gamma, beta) = (tensor([4], 2, &device), tensor([4], 3, &device));
    let loss = |x: Tensor<4>, after| {
        let [out, ..] = fused(x, gamma.clone(), beta.clone(), after);
        (out * tensor(shape, 4, &device)).sum().into_scalar::<f32>()
    };
    for after in [Activation::Identity, Activation::Silu] {
        let gradient = Tensor::<4>::from_data(run(shape, after, true)[0].clone(), &device);
        let x = tensor(shape, 1, &device) * 3.0 + 10.0;
        let step = tensor(shape, 9, &device) * 1e-2;
        let slope = loss(x.clone() + step.clone(), after) - loss(x - step.clone(), after);
        let expected = 2.0 * (gradient * step).sum().into_scalar::<f32>();
        assert!((slope - expected).abs() < 2e-4, "{slope}, {expected}");
    }
}

#[test]
fn composed_where_there_is_no_kernel() {
    use burn::tensor::FloatDType;
    let device = Device::flex();
    let x = tensor([3, 6, 5, 7], 1, &device);
    let (gamma, beta) = (tensor([6], 2, &device), tensor([6], 3, &device));
    for after in ACTIVATIONS {
        let fused = fused(x.clone(), gamma.clone(), beta.clone(), after);
        let found = batch_norm(
            x.clone().cast(FloatDType::F64),
            gamma.clone().cast(FloatDType::F64),
            beta.clone().cast(FloatDType::F64),
            1e-5,
            after,
        );
        let found = found.output.into_data().convert::<f32>();
        let [output, ..] = fused;
        output
            .into_data()
            .assert_approx_eq::<f32>(&found, Tolerance::rel_abs(1e-5, 1e-5));
    }
}

#[test]
fn frozen_parameters_cost_no_gradient() {
    let device = Device::flex().autodiff();
    let x = tensor([2, 3, 4, 4], 1, &device);
    let gamma = tensor([3], 2, &device).require_grad();
    let beta = tensor([3], 3, &device);
    let found = batch_norm(
        x.clone(),
        gamma.clone(),
        beta.clone(),
        1e-5,
        Activation::Relu,
    );
    let grads = found.output.sum().backward();
    assert!(x.grad(&grads).is_none() && beta.grad(&grads).is_none());
    assert_eq!(gamma.grad(&grads).expect("tracked").dims(), [3]);
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(|| run([7, 8, 9, 9], Activation::LeakyRelu(0.1), true))
    };
    assert_eq!(on(1), on(3));
}
