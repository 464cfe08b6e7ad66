//! Pooling and repetition of pixels against the same of Burn's operators.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{Windows, avg_pool2d, composed, max_pool2d, upsample_nearest2d};

mod support;
use support::tensor;

// Even sizes are done in vectors; their rows end within one, or after one or more.
const SHAPES: [[usize; 4]; 8] = [
    [1, 1, 4, 4],
    [3, 5, 7, 9],
    [2, 33, 28, 28],
    [17, 1, 5, 64],
    [1, 1, 2, 2],
    [2, 3, 6, 38],
    [2, 2, 4, 102],
    [64, 65, 2, 6],
];

/// Output and gradient, with a gradient that differs at every output.
fn run(f: impl Fn(Tensor<4>) -> Tensor<4>, shape: [usize; 4]) -> [TensorData; 2] {
    let device = Device::flex().autodiff();
    let [batch, channels, height, width] = shape;
    // A view that is not contiguous.
    let leaf = tensor([batch, channels, width, height], 1, &device).require_grad();
    let out = f(leaf.clone().swap_dims(2, 3));
    let grads = (out.clone() * tensor(out.dims(), 2, &device))
        .sum()
        .backward();
    [
        out.into_data(),
        leaf.grad(&grads).expect("tracked").into_data(),
    ]
}

fn assert_agree(f: impl Fn(Tensor<4>) -> Tensor<4> + Copy, shape: [usize; 4]) {
    let plain = composed(|| run(f, shape));
    for (fused, plain) in run(f, shape).iter().zip(plain) {
        assert_eq!(fused.shape(), plain.shape(), "{shape:?}");
        fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-5, 1e-5));
    }
}

#[test]
fn pooling_agrees_with_burn() {
    let windows = [
        Windows::tiles(1),
        Windows::tiles(2),
        Windows {
            side: 3,
            stride: 2,
            padding: 1,
        },
        Windows {
            side: 3,
            stride: 1,
            padding: 0,
        },
    ];
    for shape in SHAPES {
        for windows in windows.into_iter().filter(|w| w.side <= shape[2]) {
            assert_agree(|x| max_pool2d(x, windows), shape);
            assert_agree(|x| avg_pool2d(x, windows), shape);
        }
    }
}

#[test]
fn repetition_agrees_with_burn() {
    for shape in SHAPES {
        for factor in 1..=3 {
            assert_agree(|x| upsample_nearest2d(x, factor), shape);
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    let device = Device::flex();
    let windows = Windows {
        side: 3,
        stride: 2,
        padding: 1,
    };
    let shape = [2, 3, 5, 6];
    let slopes = |f: &dyn Fn(Tensor<4>) -> Tensor<4>| {
        let [_, gradient] = run(f, shape);
        let gradient = Tensor::<4>::from_data(gradient, &device).swap_dims(2, 3);
        let x = tensor([2, 3, 6, 5], 1, &device).swap_dims(2, 3);
        // Small, so that no other pixel becomes the largest.
        let step = tensor(shape, 9, &device) * 1e-4;
        let loss = |x: Tensor<4>| {
            let out = f(x);
            (out.clone() * tensor(out.dims(), 2, &device))
                .sum()
                .into_scalar::<f32>()
        };
        let slope = loss(x.clone() + step.clone()) - loss(x - step.clone());
        let expected = 2.0 * (gradient * step).sum().into_scalar::<f32>();
        assert!((slope - expected).abs() < 2e-5, "{slope}, {expected}");
    };
    slopes(&|x| max_pool2d(x, windows));
    slopes(&|x| avg_pool2d(x, windows));
    slopes(&|x| upsample_nearest2d(x, 2));
}

#[test]
fn the_first_of_equals_takes_the_gradient() {
    let device = Device::flex().autodiff();
    let x = Tensor::<4>::ones([1, 1, 2, 2], &device).require_grad();
    let grads = max_pool2d(x.clone(), Windows::tiles(2)).sum().backward();
    let gradient = x.grad(&grads).expect("tracked").into_data();
    assert_eq!(gradient.try_to_vec::<f32>().unwrap(), [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_nan_is_the_largest() {
    // Wide enough for whole vectors; a NaN at each of the four places in turn, and one block of them.
    let (rows, cols) = (4, 36);
    let mut x: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 101) as f32).collect();
    let nans = [
        0,
        3,
        cols + 4,
        cols + 7,
        2 * cols + 8,
        2 * cols + 9,
        3 * cols + 8,
        3 * cols + 9,
    ];
    nans.iter().for_each(|at| x[*at] = f32::NAN);
    let device = Device::flex().autodiff();
    let leaf = Tensor::<1>::from_floats(x.as_slice(), &device).require_grad();
    let image = leaf.clone().reshape([1, 1, rows, cols]);
    let out = max_pool2d(image, Windows::tiles(2));
    let grads = out.clone().sum().backward();
    let out: Vec<f32> = out.into_data().iter().collect();
    assert_eq!(out.iter().filter(|x| x.is_nan()).count(), 5);
    let gradient: Vec<f32> = leaf
        .grad(&grads)
        .expect("tracked")
        .into_data()
        .iter()
        .collect();
    let expected = |at: usize| f32::from(nans[..5].contains(&at));
    for quad in [0, 2, 4, 6, 2 * cols + 8] {
        for at in [quad, quad + 1, quad + cols, quad + cols + 1] {
            assert_eq!(gradient[at], expected(at), "{at}");
        }
    }
}

#[test]
#[should_panic(expected = "do not fit 2 pixels")]
fn names_windows_that_do_not_fit() {
    max_pool2d(tensor([1, 1, 2, 2], 1, &Device::flex()), Windows::tiles(3));
}
