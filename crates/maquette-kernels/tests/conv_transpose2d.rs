//! The fused transposed convolution against Burn's own: values and all three gradients.

use burn::tensor::ops::ConvTransposeOptions;
use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{ConvOptions, conv_transpose2d};

mod support;
use support::tensor;

#[derive(Clone, Copy, Debug)]
struct Case {
    /// `[batch, channels_in, height, width]`
    x: [usize; 4],
    channels_out: usize,
    kernel: [usize; 2],
    options: ConvOptions,
    bias: bool,
}

fn apply(
    case: Case,
    fused: bool,
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
) -> Tensor<4> {
    if fused {
        return conv_transpose2d(x, weight, bias, case.options);
    }
    let ConvOptions {
        stride,
        padding,
        dilation,
        groups,
    } = case.options;
    let options = ConvTransposeOptions::new(stride, padding, [0, 0], dilation, groups);
    burn::tensor::module::conv_transpose2d(x, weight, bias, options)
}

/// Output and gradients of input, weight and bias, with a gradient that differs at every output.
fn run(case: Case, fused: bool) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let [_, channels_in, ..] = case.x;
    let [rows, cols] = case.kernel;
    let x = tensor(case.x, 1, &device).require_grad();
    let per_group = case.channels_out / case.options.groups;
    let weight = tensor([channels_in, per_group, rows, cols], 2, &device).require_grad();
    let bias = case
        .bias
        .then(|| tensor([case.channels_out], 3, &device).require_grad());
    let out = apply(case, fused, x.clone(), weight.clone(), bias.clone());
    let grads = (out.clone() * tensor(out.dims(), 4, &device))
        .sum()
        .backward();
    let mut results = vec![
        out.into_data(),
        x.grad(&grads).expect("x is tracked").into_data(),
        weight.grad(&grads).expect("weight is tracked").into_data(),
    ];
    results.extend(bias.map(|bias| bias.grad(&grads).expect("bias is tracked").into_data()));
    results
}

const BASE: Case = Case {
    x: [2, 5, 4, 6],
    channels_out: 3,
    kernel: [4, 4],
    options: ConvOptions {
        stride: [2, 2],
        padding: [1, 1],
        dilation: [1, 1],
        groups: 1,
    },
    bias: true,
};

#[test]
fn agrees_with_burn() {
    let cases = [
        BASE,
        Case {
            x: [1, 1, 1, 1],
            channels_out: 1,
            kernel: [1, 1],
            options: ConvOptions::new([1, 1], [0, 0]),
            ..BASE
        },
        // From one pixel to an image, as generators begin.
        Case {
            x: [9, 20, 1, 1],
            channels_out: 33,
            options: ConvOptions::new([1, 1], [0, 0]),
            ..BASE
        },
        Case {
            x: [17, 40, 4, 4],
            channels_out: 24,
            bias: false,
            ..BASE
        },
        Case {
            x: [3, 24, 8, 8],
            ..BASE
        },
        Case {
            kernel: [3, 3],
            ..BASE
        },
        Case {
            kernel: [3, 3],
            channels_out: 20,
            options: ConvOptions::new([1, 1], [1, 1]),
            ..BASE
        },
        Case {
            kernel: [3, 5],
            options: ConvOptions::new([3, 2], [0, 2]),
            ..BASE
        },
        // Gaps that no tap reaches.
        Case {
            kernel: [1, 2],
            options: ConvOptions::new([2, 3], [0, 0]),
            ..BASE
        },
        // Depthwise, in narrow groups and in wide ones, with taps apart.
        Case {
            x: [3, 6, 5, 7],
            channels_out: 6,
            options: ConvOptions {
                groups: 6,
                ..BASE.options
            },
            ..BASE
        },
        Case {
            x: [3, 4, 5, 7],
            channels_out: 6,
            options: ConvOptions {
                groups: 2,
                dilation: [2, 3],
                ..BASE.options
            },
            ..BASE
        },
        Case {
            x: [2, 32, 6, 6],
            channels_out: 16,
            options: ConvOptions {
                groups: 2,
                ..BASE.options
            },
            ..BASE
        },
        Case {
            kernel: [3, 2],
            options: ConvOptions {
                dilation: [3, 2],
                ..ConvOptions::new([1, 1], [2, 0])
            },
            ..BASE
        },
    ];
    for case in cases {
        for (fused, plain) in run(case, true).iter().zip(run(case, false)) {
            assert_eq!(fused.shape(), plain.shape(), "{case:?}");
            fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-4, 1e-4));
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    let case = Case {
        x: [2, 16, 4, 4],
        channels_out: 16,
        ..BASE
    };
    let device = Device::flex();
    let inputs = [
        tensor(case.x, 1, &device),
        tensor([16, 16, 4, 4], 2, &device),
    ];
    let gradients = run(case, true);
    let loss = |x: Tensor<4>, weight: Tensor<4>| {
        let bias = tensor([16], 3, &device);
        let out = apply(case, true, x, weight, Some(bias));
        let weights = tensor(out.dims(), 4, &device);
        (out * weights).sum().into_scalar::<f32>()
    };
    for (which, input) in inputs.iter().enumerate() {
        // Linear in each argument, so that a whole step is as good as a small one.
        let step = tensor(input.dims(), 9, &device);
        let moved = input.clone() + step.clone();
        let slope = match which {
            0 => loss(moved, inputs[1].clone()),
            _ => loss(inputs[0].clone(), moved),
        } - loss(inputs[0].clone(), inputs[1].clone());
        let gradient = Tensor::<4>::from_data(gradients[1 + which].clone(), &device);
        let expected = (gradient * step).sum().into_scalar::<f32>();
        let error = (slope - expected).abs();
        assert!(
            error < 1e-3 * expected.abs().max(10.0),
            "{slope}, {expected}"
        );
    }
}

#[test]
fn takes_views_that_are_not_contiguous() {
    let device = Device::flex();
    let x = tensor([2, 6, 5, 4], 1, &device).swap_dims(1, 3);
    let weight = tensor([3, 4, 4, 4], 2, &device).swap_dims(0, 1);
    let fused = apply(BASE, true, x.clone(), weight.clone(), None);
    let plain = apply(BASE, false, x, weight, None);
    fused
        .into_data()
        .assert_approx_eq::<f32>(&plain.into_data(), Tolerance::rel_abs(1e-4, 1e-4));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let case = Case {
        x: [19, 17, 8, 8],
        channels_out: 20,
        ..BASE
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(|| run(case, true))
    };
    assert_eq!(on(1), on(3));
}

#[test]
#[should_panic(expected = "the input has 2 channels, the weight expects 3")]
fn names_the_channels_that_disagree() {
    let device = Device::flex();
    let (x, weight) = (
        tensor([1, 2, 4, 4], 1, &device),
        tensor([3, 1, 3, 3], 2, &device),
    );
    conv_transpose2d(x, weight, None, ConvOptions::new([1, 1], [0, 0]));
}
