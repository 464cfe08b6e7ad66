//! What runs where the kernels cannot: 64-bit floats take the composed form of every operator.
//! It must agree with the fused one.

use burn::tensor::{Device, FloatDType, Int, Tensor, Tolerance};
use maquette_kernels::{
    Activation, AttentionOptions, ConvOptions, GroupNormOptions, conv2d, cross_entropy, gated,
    gelu_tanh, group_norm, layer_norm, rms_norm, self_attention, silu,
};

mod support;
use support::tensor;

fn wide<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().cast(FloatDType::F64)
}

fn assert_agree<const D: usize>(fused: Tensor<D>, composed: Tensor<D>) {
    let composed = composed.into_data().convert::<f32>();
    fused
        .into_data()
        .assert_approx_eq::<f32>(&composed, Tolerance::rel_abs(1e-5, 1e-5));
}

#[test]
fn images() {
    let device = Device::flex();
    let x = tensor([3, 6, 9, 7], 1, &device);
    let (weight, bias) = (tensor([4, 6, 3, 3], 2, &device), tensor([4], 3, &device));
    let options = ConvOptions {
        dilation: [1, 2],
        ..ConvOptions::new([2, 1], [1, 1])
    };
    assert_agree(
        conv2d(x.clone(), weight.clone(), Some(bias.clone()), options),
        conv2d(wide(&x), wide(&weight), Some(wide(&bias)), options),
    );
    let (gamma, beta) = (tensor([3, 6], 2, &device), tensor([1, 6], 3, &device));
    for activation in [Activation::Identity, Activation::Relu, Activation::Silu] {
        let options = GroupNormOptions {
            groups: 3,
            epsilon: 1e-5,
            activation,
        };
        assert_agree(
            group_norm(x.clone(), gamma.clone(), beta.clone(), options),
            group_norm(wide(&x), wide(&gamma), wide(&beta), options),
        );
    }
}

#[test]
fn rows() {
    let device = Device::flex();
    let x = tensor([5, 37], 1, &device) * 4.0;
    let (gamma, beta) = (tensor([37], 2, &device), tensor([37], 3, &device));
    assert_agree(gelu_tanh(x.clone()), gelu_tanh(wide(&x)));
    assert_agree(silu(x.clone()), silu(wide(&x)));
    assert_agree(
        gated(x.clone(), x.clone() + 1.0, Activation::Silu),
        gated(wide(&x), wide(&x) + 1.0, Activation::Silu),
    );
    assert_agree(
        layer_norm(x.clone(), gamma.clone(), Some(beta.clone()), 1e-5),
        layer_norm(wide(&x), wide(&gamma), Some(wide(&beta)), 1e-5),
    );
    assert_agree(
        rms_norm(x.clone(), gamma.clone(), 1e-5),
        rms_norm(wide(&x), wide(&gamma), 1e-5),
    );
    let targets = Tensor::<1, Int>::from_ints([0, 36, 5, 1, 20], &device);
    assert_agree(
        cross_entropy(x.clone(), targets.clone()),
        cross_entropy(wide(&x), targets),
    );
}

#[test]
fn attention() {
    let qkv = tensor([2, 70, 40], 1, &Device::flex());
    let patterns = [AttentionOptions::causal, AttentionOptions::full];
    for options in patterns.map(|pattern| pattern(6, 2)) {
        assert_agree(
            self_attention(qkv.clone(), options),
            self_attention(wide(&qkv), options),
        );
    }
}
