//! The fused linear layer against the same built of Burn's operators, and against differences.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{Activation, Precision, autocast, linear};

mod support;
use support::{ACTIVATIONS, activated, tensor};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: [usize; 2],
    d_in: usize,
    d_out: usize,
    bias: bool,
    transposed: bool,
    activation: Activation,
}

fn plain(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
) -> Tensor<3> {
    let z = x.matmul(weight.unsqueeze());
    let z = bias.into_iter().fold(z, |z, bias| z + bias.unsqueeze());
    activated(z, activation)
}

/// Output and gradients of input, weight and offset.
fn run(case: Case, fused: bool) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    // Neither input nor, if so asked, weight is contiguous.
    let [batch, seq] = case.rows;
    let x = tensor([seq, batch, case.d_in], 1, &device).require_grad();
    let weight = if case.transposed {
        [case.d_out, case.d_in]
    } else {
        [case.d_in, case.d_out]
    };
    let weight = tensor(weight, 2, &device).require_grad();
    let bias = case
        .bias
        .then(|| tensor([case.d_out], 3, &device).require_grad());
    let view = if case.transposed {
        weight.clone().transpose()
    } else {
        weight.clone()
    };
    let input = x.clone().swap_dims(0, 1);
    let f = if fused { linear } else { plain };
    let out = f(input, view, bias.clone(), case.activation);
    let grads = (out.clone() * tensor(out.dims(), 4, &device))
        .sum()
        .backward();
    let mut results = vec![
        out.into_data(),
        x.grad(&grads).expect("tracked").into_data(),
        weight.grad(&grads).expect("tracked").into_data(),
    ];
    results.extend(bias.map(|bias| bias.grad(&grads).expect("tracked").into_data()));
    results
}

fn cases() -> Vec<Case> {
    let sizes = [
        ([1, 1], 1, 1),
        ([2, 3], 5, 7),
        ([1, 9], 17, 49),
        ([3, 70], 65, 33),
        ([2, 40], 600, 130),
    ];
    let mut cases = Vec::new();
    for (rows, d_in, d_out) in sizes {
        for activation in ACTIVATIONS {
            for flags in 0..4 {
                let [bias, transposed] = [1, 2].map(|bit| flags & bit != 0);
                cases.push(Case {
                    rows,
                    d_in,
                    d_out,
                    bias,
                    transposed,
                    activation,
                });
            }
        }
    }
    cases
}

#[test]
fn agrees_with_the_definition() {
    for case in cases() {
        for (fused, plain) in run(case, true).iter().zip(run(case, false)) {
            assert_eq!(fused.shape(), plain.shape(), "{case:?}");
            fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-4, 1e-4));
        }
    }
}

/// Euclidean norm of the difference over that of the numbers.
fn relative(a: &TensorData, b: &TensorData) -> f64 {
    let pairs = || a.iter::<f64>().zip(b.iter::<f64>());
    let square: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
    (square / pairs().map(|(_, b)| b.powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn bf16_is_within_its_rounding() {
    // At a kink the least rounding turns a whole gradient off.
    let kinked = |activation| matches!(activation, Activation::Relu | Activation::LeakyRelu(_));
    let smooth = |case: &Case| case.d_in > 16 && !kinked(case.activation);
    for case in cases().into_iter().filter(smooth) {
        let exact = run(case, true);
        let guard = autocast(Precision::Bf16);
        let rounded = run(case, true);
        drop(guard);
        assert_ne!(exact, rounded, "nothing was rounded: {case:?}");
        for (rounded, exact) in rounded.iter().zip(&exact) {
            let error = relative(rounded, exact);
            assert!(error < 0.01, "{error}: {case:?}");
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for activation in ACTIVATIONS {
        let case = Case {
            rows: [2, 5],
            d_in: 6,
            d_out: 4,
            bias: true,
            transposed: false,
            activation,
        };
        let device = Device::flex();
        let loss = |x: Tensor<3>, weight, bias| {
            let out = linear(x, weight, Some(bias), activation);
            let shape = out.dims();
            (out * tensor(shape, 4, &device)).sum().into_scalar::<f32>()
        };
        let x = tensor([5, 2, 6], 1, &device).swap_dims(0, 1);
        let (weight, bias) = (tensor([6, 4], 2, &device), tensor([4], 3, &device));
        let gradients = run(case, true);
        let step = 1e-2;
        let at = |data: &TensorData, index: usize| data.iter::<f64>().nth(index);
        let near = |numeric: f32, exact: Option<f64>| {
            let exact = exact.expect("inside") as f32;
            assert!(
                (numeric - exact).abs() < 5e-3,
                "{activation:?}: {numeric} against {exact}"
            );
        };
        for index in [0, 3, 11, 23] {
            let shift = |by: f32| {
                let at = [index / 4..index / 4 + 1, index % 4..index % 4 + 1];
                let moved = weight.clone().slice(at.clone()) + by;
                weight.clone().slice_assign(at, moved)
            };
            let loss = |by| loss(x.clone(), shift(by), bias.clone());
            near(
                (loss(step) - loss(-step)) / (2.0 * step),
                at(&gradients[2], index),
            );
        }
        for index in 0..4 {
            let shift = |by: f32| {
                let moved = bias.clone().narrow(0, index, 1) + by;
                bias.clone().slice_assign(index..index + 1, moved)
            };
            let loss = |by| loss(x.clone(), weight.clone(), shift(by));
            near(
                (loss(step) - loss(-step)) / (2.0 * step),
                at(&gradients[3], index),
            );
        }
        for index in [0, 7, 31, 59] {
            let at3 = [index / 12, index / 6 % 2, index % 6];
            let shift = |by: f32| {
                let at = [at3[1]..at3[1] + 1, at3[0]..at3[0] + 1, at3[2]..at3[2] + 1];
                let moved = x.clone().slice(at.clone()) + by;
                x.clone().slice_assign(at, moved)
            };
            let loss = |by| loss(shift(by), weight.clone(), bias.clone());
            near(
                (loss(step) - loss(-step)) / (2.0 * step),
                at(&gradients[1], index),
            );
        }
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let case = Case {
        rows: [3, 190],
        d_in: 700,
        d_out: 450,
        bias: true,
        transposed: false,
        activation: Activation::GeluTanh,
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| {
                let _guard = autocast(precision);
                run(case, true)
            })
        };
        assert_eq!(on(1), on(3));
    }
}

#[test]
fn tracks_only_what_asks_for_a_gradient() {
    let device = Device::flex().autodiff();
    let x = tensor([9, 4], 1, &device);
    let weight = tensor([4, 3], 2, &device).require_grad();
    let grads = linear(x.clone(), weight.clone(), None, Activation::Identity)
        .sum()
        .backward();
    assert!(x.grad(&grads).is_none());
    assert_eq!(weight.grad(&grads).expect("tracked").dims(), [4, 3]);
}

#[test]
#[should_panic(expected = "against the weight's 3 inputs")]
fn names_the_sizes_that_disagree() {
    let device = Device::flex();
    linear(
        tensor([2, 4], 1, &device),
        tensor([3, 5], 2, &device),
        None,
        Activation::Identity,
    );
}
