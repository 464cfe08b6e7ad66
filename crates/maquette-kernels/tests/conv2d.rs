//! The fused convolution against Burn's own: values and all three gradients.

use burn::tensor::ops;
use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{ConvOptions, Precision, autocast, conv2d};

mod support;
use support::tensor;

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    channels: [usize; 2],
    size: [usize; 2],
    kernel: [usize; 2],
    options: ConvOptions,
    bias: bool,
}

/// Burn's own.
fn plain(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, o: ConvOptions) -> Tensor<4> {
    let options = ops::ConvOptions::new(o.stride, o.padding, o.dilation, o.groups);
    burn::tensor::module::conv2d(x, weight, bias, options)
}

/// Output and gradients of input, weight and bias, with a gradient that differs at every output.
fn run(case: Case, fused: bool) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let Case {
        batch,
        channels: [channels_in, channels_out],
        size,
        kernel,
        ..
    } = case;
    let x = tensor([batch, channels_in, size[0], size[1]], 1, &device).require_grad();
    let weight = tensor(
        [
            channels_out,
            channels_in / case.options.groups,
            kernel[0],
            kernel[1],
        ],
        2,
        &device,
    )
    .require_grad();
    let bias = case
        .bias
        .then(|| tensor([channels_out], 3, &device).require_grad());
    let run = if fused { conv2d } else { plain };
    let out = run(x.clone(), weight.clone(), bias.clone(), case.options);
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

fn assert_close(case: Case) {
    let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-4);
    for (fused, plain) in run(case, true).iter().zip(run(case, false)) {
        assert_eq!(fused.shape(), plain.shape(), "{case:?}");
        fused.assert_approx_eq::<f32>(&plain, tolerance);
    }
}

#[test]
fn agrees_with_burn_over_kernels_strides_and_paddings() {
    for kernel in [1, 3, 4, 5] {
        for stride in [1, 2] {
            for padding in [0, 1, 2] {
                assert_close(Case {
                    batch: 3,
                    channels: [5, 9],
                    size: [7, 11],
                    kernel: [kernel, kernel],
                    options: ConvOptions::new([stride; 2], [padding; 2]),
                    bias: padding != 1,
                });
            }
        }
    }
}

#[test]
fn agrees_with_burn_on_odd_and_uneven_shapes() {
    let base = Case {
        batch: 1,
        channels: [1, 1],
        size: [1, 1],
        kernel: [1, 1],
        options: ConvOptions::new([1, 1], [0, 0]),
        bias: true,
    };
    let cases = [
        base,
        Case {
            kernel: [3, 3],
            options: ConvOptions::new([1, 1], [1, 1]),
            ..base
        },
        Case {
            size: [5, 1],
            kernel: [3, 1],
            options: ConvOptions::new([1, 1], [1, 0]),
            ..base
        },
        Case {
            size: [1, 9],
            kernel: [1, 4],
            options: ConvOptions::new([1, 3], [0, 2]),
            ..base
        },
        Case {
            size: [6, 8],
            kernel: [2, 5],
            options: ConvOptions::new([3, 2], [1, 2]),
            ..base
        },
        Case {
            size: [5, 5],
            options: ConvOptions::new([2, 2], [0, 0]),
            ..base
        },
        Case {
            size: [4, 4],
            options: ConvOptions::new([4, 4], [1, 1]),
            ..base
        },
        Case {
            batch: 2,
            channels: [1, 32],
            size: [28, 28],
            kernel: [3, 3],
            options: ConvOptions::new([1, 1], [1, 1]),
            ..base
        },
        Case {
            batch: 2,
            channels: [32, 1],
            size: [28, 28],
            kernel: [3, 3],
            options: ConvOptions::new([1, 1], [1, 1]),
            ..base
        },
        Case {
            batch: 17,
            channels: [33, 65],
            size: [7, 7],
            kernel: [3, 3],
            options: ConvOptions::new([1, 1], [1, 1]),
            ..base
        },
        Case {
            batch: 9,
            channels: [16, 48],
            size: [14, 14],
            kernel: [4, 4],
            options: ConvOptions::new([2, 2], [1, 1]),
            ..base
        },
    ];
    cases.into_iter().for_each(assert_close);
}

/// [channels in, channels out, groups, dilation, stride]: groups narrow and wide, depthwise with and
/// without a multiplier, dilations that share a factor with the stride and that do not.
const GROUPED: [[usize; 5]; 9] = [
    [6, 6, 6, 1, 1],
    [6, 18, 6, 2, 1],
    [4, 8, 2, 1, 2],
    [6, 9, 3, 3, 2],
    [8, 2, 2, 2, 2],
    [16, 32, 2, 1, 1],
    [36, 40, 4, 1, 2],
    [5, 7, 1, 2, 3],
    [40, 24, 2, 2, 1],
];

#[test]
fn agrees_with_burn_over_groups_and_dilations() {
    for [c_in, c_out, groups, dilation, stride] in GROUPED {
        for (size, kernel, padding) in [
            ([9, 12], [3, 3], [1, 2]),
            ([7, 7], [1, 1], [0, 0]),
            ([11, 8], [4, 2], [3, 0]),
            ([17, 20], [5, 5], [2, 2]),
            ([31, 33], [3, 3], [1, 1]),
        ] {
            assert_close(Case {
                batch: 3,
                channels: [c_in, c_out],
                size,
                kernel,
                options: ConvOptions {
                    dilation: [dilation; 2],
                    groups,
                    ..ConvOptions::new([stride; 2], padding)
                },
                bias: stride == 1,
            });
        }
    }
    // A kernel as large as the image, in groups.
    let base = Case {
        batch: 2,
        channels: [16, 24],
        size: [4, 4],
        kernel: [4, 4],
        options: ConvOptions {
            groups: 2,
            ..ConvOptions::new([1, 1], [0, 0])
        },
        bias: true,
    };
    assert_close(base);
}

#[test]
fn gradients_are_the_slopes() {
    let plain = [[16, 32, 1, 1, 1]];
    for [c_in, c_out, groups, dilation, stride] in plain.into_iter().chain(GROUPED) {
        let case = Case {
            batch: 2,
            channels: [c_in, c_out],
            size: [10, 12],
            kernel: [3, 3],
            options: ConvOptions {
                dilation: [dilation; 2],
                groups,
                ..ConvOptions::new([stride; 2], [1, 1])
            },
            bias: false,
        };
        let device = Device::flex();
        let inputs = [
            tensor([2, c_in, 10, 12], 1, &device),
            tensor([c_out, c_in / groups, 3, 3], 2, &device),
        ];
        let loss = |[x, weight]: [Tensor<4>; 2]| {
            let out = conv2d(x, weight, None, case.options);
            let weights = tensor(out.dims(), 4, &device);
            (out * weights).sum().into_scalar::<f32>()
        };
        let results = run(case, true);
        for which in 0..2 {
            // Linear in each argument, so that a whole step is as good as a small one.
            let step = tensor(inputs[which].dims(), 9, &device);
            let mut moved = inputs.clone();
            moved[which] = moved[which].clone() + step.clone();
            let slope = loss(moved) - loss(inputs.clone());
            let gradient = Tensor::<4>::from_data(results[1 + which].clone(), &device);
            let expected = (gradient * step).sum().into_scalar::<f32>();
            let error = (slope - expected).abs();
            assert!(
                error < 1e-3 * expected.abs().max(10.0),
                "{slope}, {expected}, {case:?}"
            );
        }
    }
}

/// What is rounded: products of matrices, and sums over taps where minimal filtering saves less than
/// rounding does. Odd numbers of channels and images leave pairs half empty.
#[test]
fn bf16_is_within_its_rounding() {
    for (channels, size, kernel, stride, dilation, groups) in [
        ([9, 33], [7, 9], [1, 1], 1, 1, 1),
        ([17, 12], [4, 4], [4, 4], 1, 1, 1),
        ([21, 35], [17, 15], [5, 5], 1, 1, 1),
        ([21, 35], [17, 15], [3, 3], 2, 1, 1),
        ([10, 16], [12, 13], [3, 3], 1, 2, 1),
        ([22, 26], [12, 13], [5, 4], 2, 1, 2),
    ] {
        let options = ConvOptions {
            dilation: [dilation; 2],
            groups,
            ..ConvOptions::new([stride; 2], [0, 0])
        };
        let case = Case {
            batch: 5,
            channels,
            size,
            kernel,
            options,
            bias: false,
        };
        let exact = run(case, true);
        let rounded = || {
            let _guard = autocast(Precision::Bf16);
            run(case, true)
        };
        for (rounded, exact) in rounded().iter().zip(&exact) {
            let pairs = || rounded.iter::<f64>().zip(exact.iter::<f64>());
            let error: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
            let error = (error / pairs().map(|(_, b)| b * b).sum::<f64>()).sqrt();
            assert!(error > 1e-5, "nothing was rounded: {case:?}");
            assert!(error < 5e-3, "{error}: {case:?}");
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let elsewhere = pool.expect("threads").install(rounded);
        assert_eq!(elsewhere, rounded());
    }
}

#[test]
fn takes_views_that_are_not_contiguous() {
    let device = Device::flex();
    let x = tensor([2, 6, 5, 4], 1, &device)
        .swap_dims(1, 3)
        .slice([0..2, 1..4, 0..5, 0..6]);
    let weight = tensor([3, 3, 3, 7], 2, &device).swap_dims(0, 3);
    let bias = tensor([14], 3, &device).narrow(0, 7, 7);
    let options = ConvOptions::new([1, 1], [1, 1]);
    let fused = conv2d(x.clone(), weight.clone(), Some(bias.clone()), options);
    let plain = plain(x, weight, Some(bias), options);
    let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-4);
    fused
        .into_data()
        .assert_approx_eq::<f32>(&plain.into_data(), tolerance);
}

#[test]
fn tracks_only_what_asks_for_a_gradient() {
    let device = Device::flex().autodiff();
    let x = tensor([1, 1, 4, 4], 1, &device);
    let weight = tensor([2, 1, 3, 3], 2, &device).require_grad();
    let out = conv2d(
        x.clone(),
        weight.clone(),
        None,
        ConvOptions::new([1, 1], [0, 0]),
    );
    let grads = out.sum().backward();
    assert!(x.grad(&grads).is_none());
    assert_eq!(weight.grad(&grads).expect("tracked").dims(), [2, 1, 3, 3]);
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    for (channels, groups) in [([7, 20], 1), ([6, 6], 6), ([32, 16], 2)] {
        let case = Case {
            batch: 19,
            channels,
            size: [9, 9],
            kernel: [3, 3],
            options: ConvOptions {
                groups,
                ..ConvOptions::new([1, 1], [1, 1])
            },
            bias: true,
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
}

#[test]
#[should_panic(expected = "the input has 2 channels, the weight expects 3")]
fn names_the_channels_that_disagree() {
    let device = Device::flex();
    conv2d(
        tensor([1, 2, 4, 4], 1, &device),
        tensor([1, 3, 3, 3], 2, &device),
        None,
        ConvOptions::new([1, 1], [0, 0]),
    );
}
