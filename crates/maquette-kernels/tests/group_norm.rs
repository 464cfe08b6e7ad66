//! The fused group normalisation against the same built of Burn's operators.

use burn::tensor::{Device, Tensor, TensorData, Tolerance, activation};
use maquette_kernels::{Activation, GroupNormOptions, group_norm};

mod support;
use support::tensor;

/// The definition, one operator at a time.
fn plain(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, options: GroupNormOptions) -> Tensor<4> {
    let shape = x.dims();
    let [batch, channels, height, width] = shape;
    let x = x.reshape([
        batch,
        options.groups,
        channels / options.groups * height * width,
    ]);
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().powi_scalar(2).mean_dim(2);
    let z = (centred / (variance + options.epsilon).sqrt()).reshape(shape);
    let z = z * gamma.reshape([1, channels, 1, 1]) + beta.reshape([1, channels, 1, 1]);
    match options.activation {
        Activation::Identity => z,
        Activation::Silu => z.clone() * activation::sigmoid(z),
    }
}

fn run(shape: [usize; 4], options: GroupNormOptions, fused: bool) -> [TensorData; 4] {
    let device = Device::flex().autodiff();
    // Far from mean zero, where a careless variance loses its digits.
    let x = (tensor(shape, 1, &device) * 3.0 + 10.0).require_grad();
    let gamma = tensor([shape[1]], 2, &device).require_grad();
    let beta = tensor([shape[1]], 3, &device).require_grad();
    let norm = if fused { group_norm } else { plain };
    let out = norm(x.clone(), gamma.clone(), beta.clone(), options);
    let grads = (out.clone() * tensor(shape, 4, &device)).sum().backward();
    [
        out.into_data(),
        x.grad(&grads).expect("tracked").into_data(),
        gamma.grad(&grads).expect("tracked").into_data(),
        beta.grad(&grads).expect("tracked").into_data(),
    ]
}

#[test]
fn agrees_with_the_definition() {
    let cases = [
        ([1, 1, 1, 2], 1),
        ([3, 6, 5, 7], 1),
        ([3, 6, 5, 7], 3),
        ([2, 6, 5, 7], 6),
        ([5, 32, 14, 14], 8),
        ([2, 64, 28, 28], 32),
    ];
    for (shape, groups) in cases {
        for activation in [Activation::Identity, Activation::Silu] {
            let options = GroupNormOptions {
                groups,
                epsilon: 1e-5,
                activation,
            };
            for (fused, plain) in run(shape, options, true)
                .iter()
                .zip(run(shape, options, false))
            {
                assert_eq!(fused.shape(), plain.shape(), "{shape:?} {options:?}");
                fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(2e-4, 2e-4));
            }
        }
    }
}

#[test]
fn takes_views_and_other_types() {
    let options = GroupNormOptions {
        groups: 2,
        epsilon: 1e-5,
        activation: Activation::Silu,
    };
    let device = Device::flex();
    let x = tensor([2, 5, 3, 4], 1, &device).swap_dims(1, 3);
    let gamma = tensor([8], 2, &device).narrow(0, 4, 4);
    let beta = tensor([8], 3, &device).narrow(0, 4, 4);
    let fused = group_norm(x.clone(), gamma.clone(), beta.clone(), options);
    let expected = plain(x, gamma, beta, options).into_data();
    fused
        .into_data()
        .assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-4));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let options = GroupNormOptions {
        groups: 4,
        epsilon: 1e-5,
        activation: Activation::Silu,
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(|| run([7, 8, 9, 9], options, true))
    };
    assert_eq!(on(1), on(3));
}

#[test]
#[should_panic(expected = "4 groups do not divide 6 channels")]
fn names_groups_that_do_not_fit() {
    let device = Device::flex();
    let options = GroupNormOptions {
        groups: 4,
        epsilon: 1e-5,
        activation: Activation::Identity,
    };
    group_norm(
        tensor([1, 6, 2, 2], 1, &device),
        tensor([6], 2, &device),
        tensor([6], 3, &device),
        options,
    );
}
