//! Every handwritten gradient against finite differences, which no composed form can mislead.
//! (Attention, convolution, the LSTM and the linear layer have theirs beside their other tests.)

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_kernels::{
    Activation, CrossEntropyOptions, Dropout, GroupNormOptions, Windows, avg_pool2d, batch_norm,
    binary_cross_entropy, cross_entropy_with, dropout, embedding, gated, gelu, gelu_tanh,
    group_norm, layer_norm, leaky_relu, max_pool2d, relu, rms_norm, silu, upsample_nearest2d,
};

mod support;
use support::{ACTIVATIONS, tensor};

/// Asserts that the gradient of every input is the slope of `f`, at every number of the input.
///
/// `f` is given inputs of these lengths, and its output is weighted number by number, so that no two
/// outputs look alike. Inputs lie on `-spread..spread`, apart from each other and from zero by more
/// than the step, lest it crosses a kink.
fn assert_slopes(what: &str, lens: &[usize], spread: f32, f: impl Fn(&[Tensor<1>]) -> Tensor<1>) {
    let inputs: Vec<Vec<f32>> = (1..)
        .zip(lens)
        .map(|(salt, len)| {
            // A shuffle of evenly spaced numbers, none of them zero.
            let order: Vec<f32> = tensor([*len], salt, &Device::flex())
                .into_data()
                .iter()
                .collect();
            let rank = |x: &f32| order.iter().filter(|y| *y < x).count() as f32 + 0.25;
            let place = |x| 2.0 * rank(x) / *len as f32 - 1.0;
            order.iter().map(|x| spread * place(x)).collect()
        })
        .collect();
    let longest = lens.iter().max().copied().unwrap_or(1);
    let step = (0.4 * spread / longest as f32).min(1e-2);
    let loss = |inputs: &[Vec<f32>], device: &Device| {
        let leaf = |values: &Vec<f32>| {
            let x = Tensor::<1>::from_data(TensorData::new(values.clone(), [values.len()]), device);
            if device.is_autodiff() {
                x.require_grad()
            } else {
                x
            }
        };
        let leaves: Vec<Tensor<1>> = inputs.iter().map(leaf).collect();
        let out = f(&leaves);
        let weights = tensor(out.dims(), 99, device);
        (leaves, (out * weights).sum())
    };
    let (leaves, value) = loss(&inputs, &Device::flex().autodiff());
    let grads = value.backward();
    for (which, leaf) in leaves.iter().enumerate() {
        let gradient = leaf.grad(&grads).expect("tracked").into_data();
        for (at, exact) in gradient.iter::<f32>().enumerate() {
            let shifted = |by: f32| {
                let mut inputs = inputs.clone();
                inputs[which][at] += by;
                let (_, value) = loss(&inputs, &Device::flex());
                f64::from(value.into_scalar::<f32>())
            };
            let numeric = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
            let error = (numeric - f64::from(exact)).abs();
            assert!(
                error < 2e-2 * f64::from(exact.abs()).max(0.3),
                "{what}, input {which} at {at}: {exact}, but the slope is {numeric}"
            );
        }
    }
}

#[test]
fn activations() {
    type Function = fn(Tensor<1>) -> Tensor<1>;
    let curves: [(&str, Function); 5] = [
        ("relu", relu),
        ("leaky relu", |x| leaky_relu(x, 0.2)),
        ("silu", silu),
        ("gelu", gelu),
        ("gelu tanh", gelu_tanh),
    ];
    for (name, curve) in curves {
        assert_slopes(name, &[37], 3.0, |x| curve(x[0].clone()));
    }
}

#[test]
fn gates() {
    for activation in ACTIVATIONS {
        assert_slopes(&format!("{activation:?} gate"), &[37, 37], 2.0, |x| {
            gated(x[0].clone(), x[1].clone(), activation)
        });
    }
}

#[test]
fn norms() {
    let [rows, d] = [5, 7];
    let lens = [rows * d, d, d];
    assert_slopes("layer norm", &lens, 2.0, |x| {
        let out = layer_norm(
            x[0].clone().reshape([rows, d]),
            x[1].clone(),
            Some(x[2].clone()),
            1e-3,
        );
        out.reshape([rows * d])
    });
    assert_slopes("layer norm without offset", &lens[..2], 2.0, |x| {
        let out = layer_norm(x[0].clone().reshape([rows, d]), x[1].clone(), None, 1e-3);
        out.reshape([rows * d])
    });
    assert_slopes("RMS norm", &lens[..2], 2.0, |x| {
        let out = rms_norm(x[0].clone().reshape([rows, d]), x[1].clone(), 1e-3);
        out.reshape([rows * d])
    });
}

#[test]
fn norms_of_images() {
    let shape @ [batch, channels, height, width] = [3, 4, 2, 3];
    let len = batch * channels * height * width;
    // A step may cross the kink that the others have.
    let kinked =
        |activation: &Activation| matches!(activation, Activation::Relu | Activation::LeakyRelu(_));
    for activation in ACTIVATIONS
        .into_iter()
        .filter(|activation| !kinked(activation))
    {
        for images in [1, batch] {
            let options = GroupNormOptions {
                groups: 2,
                epsilon: 1e-3,
                activation,
            };
            let lens = [len, images * channels, images * channels];
            assert_slopes(&format!("group norm, {options:?}"), &lens, 2.0, |x| {
                let [gain, offset] = [1, 2].map(|i| x[i].clone().reshape([images, channels]));
                group_norm(x[0].clone().reshape(shape), gain, offset, options).reshape([len])
            });
        }
        let lens = [len, channels, channels];
        assert_slopes(&format!("batch norm, {activation:?}"), &lens, 2.0, |x| {
            let image = x[0].clone().reshape(shape);
            let out = batch_norm(image, x[1].clone(), x[2].clone(), 1e-3, activation);
            out.output.reshape([len])
        });
    }
}

#[test]
fn losses() {
    let [rows, classes] = [4, 6];
    let len = rows * classes;
    for label_smoothing in [0.0, 0.2] {
        for ignore in [None, Some(1)] {
            let options = CrossEntropyOptions {
                label_smoothing,
                ignore,
            };
            assert_slopes(&format!("cross-entropy, {options:?}"), &[len], 3.0, |x| {
                let targets = Tensor::<1, Int>::from_ints([5, 1, 0, 3], &x[0].device());
                cross_entropy_with(x[0].clone().reshape([rows, classes]), targets, options)
            });
        }
    }
    assert_slopes("binary cross-entropy", &[len], 3.0, |x| {
        let targets = (tensor([rows, classes], 7, &x[0].device()) + 1.0) / 2.0;
        let out = binary_cross_entropy(x[0].clone().reshape([rows, classes]), targets);
        out.reshape([rows])
    });
}

#[test]
fn dropped() {
    let options = Dropout {
        probability: 0.3,
        key: 5,
    };
    assert_slopes("dropout", &[41], 2.0, |x| {
        dropout(x[0].clone(), None, options)
    });
    assert_slopes("dropout onto a residual", &[41, 41], 2.0, |x| {
        dropout(x[0].clone(), Some(x[1].clone()), options)
    });
}

#[test]
fn tables() {
    let [rows, d] = [5, 3];
    assert_slopes("embedding", &[rows * d], 2.0, |x| {
        let indices = Tensor::<2, Int>::from_ints([[4, 0, 4], [2, 4, 1]], &x[0].device());
        embedding(x[0].clone().reshape([rows, d]), indices).reshape([6 * d])
    });
}

#[test]
fn resampling() {
    // Odd sizes, and even ones, of which two by two is done apart.
    for shape in [[2, 3, 5, 4], [2, 3, 4, 6]] {
        let len = shape.iter().product();
        let overlapping = Windows {
            side: 3,
            stride: 2,
            padding: 1,
        };
        for windows in [Windows::tiles(2), overlapping] {
            assert_slopes(&format!("maximum, {windows:?}"), &[len], 2.0, |x| {
                max_pool2d(x[0].clone().reshape(shape), windows).reshape([-1])
            });
            assert_slopes(&format!("mean, {windows:?}"), &[len], 2.0, |x| {
                avg_pool2d(x[0].clone().reshape(shape), windows).reshape([-1])
            });
        }
        for factor in [1, 2, 3] {
            assert_slopes(&format!("repetition, {factor}"), &[len], 2.0, |x| {
                upsample_nearest2d(x[0].clone().reshape(shape), factor).reshape([-1])
            });
        }
    }
}
