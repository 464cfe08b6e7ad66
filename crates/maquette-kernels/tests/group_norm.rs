//! The fused group normalisation against the same built of Burn's operators.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{Activation, GroupNormOptions, group_norm};

mod support;
use support::{ACTIVATIONS, activated, tensor};

/// The definition, one operator at a time.
fn plain(x: Tensor<4>, gamma: Tensor<2>, beta: Tensor<2>, options: GroupNormOptions) -> Tensor<4> {
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
    let spread = |values: Tensor<2>| values.unsqueeze_dims::<4>(&[2, 3]);
    let z = z * spread(gamma) + spread(beta);
    activated(z, options.activation)
}

/// Output and all gradients, with scale and shift of `images`, one or all of the batch.
fn run(
    shape: [usize; 4],
    images: usize,
    options: GroupNormOptions,
    fused: bool,
) -> [TensorData; 4] {
    let device = Device::flex().autodiff();
    // Far from mean zero, where a careless variance loses its digits.
    let x = (tensor(shape, 1, &device) * 3.0 + 10.0).require_grad();
    let gamma = tensor([images, shape[1]], 2, &device).require_grad();
    let beta = tensor([images, shape[1]], 3, &device).require_grad();
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
        for activation in ACTIVATIONS {
            let options = GroupNormOptions {
                groups,
                epsilon: 1e-5,
                activation,
            };
            for images in [1, shape[0]] {
                let fused = run(shape, images, options, true);
                let plain = run(shape, images, options, false);
                for (fused, plain) in fused.iter().zip(plain) {
                    assert_eq!(fused.shape(), plain.shape(), "{shape:?} {options:?}");
                    fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(2e-4, 2e-4));
                }
            }
        }
    }
}

#[test]
fn takes_views_that_are_not_contiguous() {
    let options = GroupNormOptions {
        groups: 2,
        epsilon: 1e-5,
        activation: Activation::Silu,
    };
    let device = Device::flex();
    let x = tensor([2, 5, 3, 4], 1, &device).swap_dims(1, 3);
    let gamma = tensor([1, 8], 2, &device).narrow(1, 4, 4);
    let beta = tensor([2, 8], 3, &device).narrow(1, 4, 4);
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
        pool.install(|| run([7, 8, 9, 9], 1, options, true))
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
        tensor([1, 6], 2, &device),
        tensor([1, 6], 3, &device),
        options,
    );
}
