//! Activations, norms and the loss against the same built of Burn's operators.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, Tolerance};
use maquette_kernels::{
    Activation, CrossEntropyOptions, cross_entropy, cross_entropy_with, embedding, gated, gelu,
    gelu_tanh, layer_norm, leaky_relu, relu, rms_norm, silu,
};

mod support;
use support::{ACTIVATIONS, activated, tensor};

fn assert_close(fused: &[TensorData], plain: &[TensorData], context: &str) {
    assert_eq!(fused.len(), plain.len());
    for (fused, plain) in fused.iter().zip(plain) {
        assert_eq!(fused.shape(), plain.shape(), "{context}");
        fused.assert_approx_eq::<f32>(plain, Tolerance::rel_abs(1e-4, 1e-5));
    }
}

/// Output and input gradient of a function of one tensor.
fn curve(f: impl Fn(Tensor<2>) -> Tensor<2>, shape: [usize; 2]) -> [TensorData; 2] {
    let device = Device::flex().autodiff();
    let leaf = (tensor([shape[1], shape[0]], 1, &device) * 8.0).require_grad();
    let out = f(leaf.clone().swap_dims(0, 1));
    let grads = (out.clone() * tensor(shape, 2, &device)).sum().backward();
    [
        out.into_data(),
        leaf.grad(&grads).expect("tracked").into_data(),
    ]
}

#[test]
fn activations_agree_with_their_definitions() {
    type Function = fn(Tensor<2>) -> Tensor<2>;
    let functions: [Function; 6] = [|x| x, relu, |x| leaky_relu(x, 0.2), silu, gelu, gelu_tanh];
    for shape in [[1, 1], [3, 17], [129, 257]] {
        for (activation, function) in ACTIVATIONS.into_iter().zip(functions) {
            let plain = curve(|x| activated(x, activation), shape);
            assert_close(&curve(function, shape), &plain, &format!("{activation:?}"));
        }
    }
}

#[test]
fn activations_pass_a_nan_on() {
    let x = Tensor::<1>::from_floats([f32::NAN, 1.0], &Device::flex());
    for function in [relu, |x| leaky_relu(x, 0.2), silu, gelu, gelu_tanh] {
        let out: Vec<f32> = function(x.clone()).into_data().iter().collect();
        assert!(out[0].is_nan() && !out[1].is_nan());
    }
}

#[test]
fn activations_grow_with_their_argument() {
    let x = Tensor::<1>::from_floats([f32::INFINITY, 1e30, -1e30], &Device::flex());
    for function in [relu, silu, gelu, gelu_tanh] {
        let out: Vec<f32> = function(x.clone()).into_data().iter().collect();
        assert_eq!(out[..2], [f32::INFINITY, 1e30]);
        assert!(out[2].abs() < 1e-5, "{out:?}");
    }
}

#[test]
fn gates_agree_with_their_definition() {
    for shape in [[1, 1], [3, 17], [129, 257]] {
        for activation in ACTIVATIONS {
            let run = |fused: bool| {
                let device = Device::flex().autodiff();
                let gate = (tensor([shape[1], shape[0]], 1, &device) * 8.0).require_grad();
                let x = tensor([shape[1], shape[0]], 3, &device).require_grad();
                let (z, y) = (gate.clone().transpose(), x.clone().transpose());
                let out = if fused {
                    gated(z, y, activation)
                } else {
                    activated(z, activation) * y
                };
                let grads = (out.clone() * tensor(shape, 2, &device)).sum().backward();
                let gradients = [gate, x].map(|leaf| leaf.grad(&grads).expect("tracked"));
                [vec![out], gradients.to_vec()].concat()
            };
            let data = |fused| -> Vec<TensorData> {
                run(fused).into_iter().map(|x| x.into_data()).collect()
            };
            assert_close(&data(true), &data(false), &format!("{activation:?}"));
        }
    }
}

/// Output and gradients of input, gain and, if any, offset.
fn norm(
    f: impl Fn(Tensor<3>, Tensor<1>, Option<Tensor<1>>) -> Tensor<3>,
    shape: [usize; 3],
    offset: bool,
) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let x = (tensor(shape, 1, &device) * 2.0 + 5.0).require_grad();
    let gamma = tensor([shape[2]], 2, &device).require_grad();
    let beta = offset.then(|| tensor([shape[2]], 3, &device).require_grad());
    let out = f(x.clone(), gamma.clone(), beta.clone());
    let grads = (out.clone() * tensor(shape, 4, &device)).sum().backward();
    let mut results = vec![
        out.into_data(),
        x.grad(&grads).expect("tracked").into_data(),
        gamma.grad(&grads).expect("tracked").into_data(),
    ];
    results.extend(beta.map(|beta| beta.grad(&grads).expect("tracked").into_data()));
    results
}

fn plain_norm(x: Tensor<3>, gamma: Tensor<1>, beta: Option<Tensor<1>>) -> Tensor<3> {
    let square = x.clone().powi_scalar(2).mean_dim(2);
    let out = x / (square + 1e-5).sqrt() * gamma.unsqueeze();
    beta.into_iter()
        .fold(out, |out, beta| out + beta.unsqueeze())
}

#[test]
fn norms_agree_with_their_definitions() {
    let layer = |x, gamma, beta| layer_norm(x, gamma, beta, 1e-5);
    let plain_layer =
        |x: Tensor<3>, gamma, beta| plain_norm(x.clone() - x.mean_dim(2), gamma, beta);
    let rms = |x, gamma, _| rms_norm(x, gamma, 1e-5);
    for shape in [[1, 1, 1], [2, 3, 5], [4, 33, 128], [1, 130, 67]] {
        for offset in [true, false] {
            assert_close(
                &norm(layer, shape, offset),
                &norm(plain_layer, shape, offset),
                "layer",
            );
        }
        assert_close(
            &norm(rms, shape, false),
            &norm(plain_norm, shape, false),
            "rms",
        );
    }
}

fn loss(f: impl Fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>, shape: [usize; 2]) -> [TensorData; 2] {
    let device = Device::flex().autodiff();
    let logits = (tensor(shape, 1, &device) * 20.0).require_grad();
    let targets: Vec<i64> = (0..shape[0]).map(|i| (i * 7 % shape[1]) as i64).collect();
    let targets = Tensor::from_data(TensorData::new(targets, [shape[0]]), &device);
    let loss = f(logits.clone(), targets);
    let grads = (loss.clone() * 3.0).backward();
    [
        loss.into_data(),
        logits.grad(&grads).expect("tracked").into_data(),
    ]
}

#[test]
fn the_loss_agrees_with_its_definition() {
    let plain = |logits: Tensor<2>, targets: Tensor<1, Int>| {
        let rows = targets.dims()[0];
        log_softmax(logits, 1)
            .gather(1, targets.reshape([rows, 1]))
            .mean()
            .neg()
    };
    for shape in [[1, 1], [1, 2], [5, 3], [77, 65], [9, 1000]] {
        assert_close(
            &loss(cross_entropy, shape),
            &loss(plain, shape),
            "cross-entropy",
        );
    }
}

#[test]
fn smoothed_and_ignored_targets_agree_with_the_composed_form() {
    for (rows, classes) in [(1, 1), (5, 3), (77, 65), (9, 1000)] {
        for label_smoothing in [0.0, 0.1, 1.0] {
            for ignore in [None, Some(-100), Some(0)] {
                let options = CrossEntropyOptions {
                    label_smoothing,
                    ignore,
                };
                let targets: Vec<i64> = (0..rows)
                    .map(|i| match ignore {
                        Some(ignore) if i % 3 == 1 => ignore,
                        _ => (i * 7 % classes) as i64,
                    })
                    .collect();
                let on = |wide: bool| {
                    let device = Device::flex().autodiff();
                    let leaf = (tensor([rows, classes], 1, &device) * 9.0).require_grad();
                    let logits = match wide {
                        true => leaf.clone().cast(FloatDType::F64),
                        false => leaf.clone(),
                    };
                    let targets = TensorData::new(targets.clone(), [rows]);
                    let targets = Tensor::from_data(targets, &device);
                    let loss = cross_entropy_with(logits, targets, options);
                    let loss = loss.cast(FloatDType::F32);
                    let grads = (loss.clone() * 3.0).backward();
                    [
                        loss.into_data(),
                        leaf.grad(&grads).expect("tracked").into_data(),
                    ]
                };
                assert_close(&on(false), &on(true), &format!("{options:?}"));
            }
        }
    }
}

#[test]
fn a_table_s_gradient_is_added_up_by_row() {
    for (rows, d, shape) in [
        (1, 1, [1, 1]),
        (7, 5, [3, 11]),
        (300, 40, [4, 9]),
        (3, 17, [20, 50]),
    ] {
        let run = |fused: bool| {
            let device = Device::flex().autodiff();
            let table = tensor([d, rows], 1, &device).require_grad();
            let indices: Vec<i64> = (0..shape[0] * shape[1])
                .map(|i| (i * 31 % 101 % rows) as i64)
                .collect();
            let indices = Tensor::from_data(TensorData::new(indices, shape), &device);
            let look_up = if fused {
                embedding
            } else {
                burn::tensor::module::embedding
            };
            let out = look_up(table.clone().transpose(), indices);
            let upstream = tensor(out.dims(), 2, &device);
            let grads = (out.clone() * upstream).sum().backward();
            [
                out.into_data(),
                table.grad(&grads).expect("tracked").into_data(),
            ]
        };
        assert_close(&run(true), &run(false), "embedding");
    }
}

#[test]
#[should_panic(expected = "index 3 is not one of 3 rows")]
fn a_table_names_an_index_it_has_not() {
    let device = Device::flex();
    embedding(
        tensor([3, 2], 1, &device),
        Tensor::from_ints([[3]], &device),
    );
}

#[test]
fn the_loss_survives_huge_logits() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[1e30, -1e30], [500.0, 400.0]], &device);
    let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
    assert_eq!(cross_entropy(logits, targets).into_scalar::<f32>(), 50.0);
}

#[test]
#[should_panic(expected = "a target is not one of 3 classes")]
fn the_loss_names_a_target_that_is_no_class() {
    let device = Device::flex();
    cross_entropy(tensor([1, 3], 1, &device), Tensor::from_ints([3], &device));
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let all = || {
        let mut results = norm(|x, g, b| layer_norm(x, g, b, 1e-5), [5, 60, 40], true);
        results.extend(curve(gelu_tanh, [300, 200]));
        results.extend(curve(|x| gated(x.clone(), x, Activation::Silu), [300, 200]));
        results.extend(loss(cross_entropy, [99, 65]));
        results
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(all)
    };
    assert_eq!(on(1), on(3));
}
