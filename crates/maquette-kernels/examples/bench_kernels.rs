//! Times each kernel, forward and backward, against the same of Burn's operators, in alternating
//! runs of which the fastest counts.
//!
//! `cargo run --release -p maquette-kernels --example bench_kernels`

use std::time::Instant;

use burn::module::Param;
use burn::nn::LayerNormConfig;
use burn::tensor::activation::{gelu, log_softmax, sigmoid, softmax};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Bool, Device, Distribution, Int, Tensor};
use maquette_kernels::{
    Activation, AttentionOptions, GroupNormOptions, conv2d, cross_entropy, gelu_tanh, group_norm,
    layer_norm, self_attention,
};

const ROUNDS: usize = 15;

fn main() {
    println!(
        "{:<42} {:>9} {:>9} {:>6}",
        "forward + backward", "fused", "burn", "ratio"
    );
    // [batch, channels in, size, channels out, kernel, stride]
    for case in [
        [64, 64, 14, 64, 3, 1],
        [64, 32, 28, 32, 3, 1],
        [64, 128, 14, 128, 3, 1],
        [64, 128, 7, 128, 3, 1],
        [64, 32, 28, 64, 3, 2],
        [64, 128, 14, 64, 1, 1],
        [64, 1, 28, 32, 3, 1],
        [64, 32, 28, 1, 3, 1],
    ] {
        bench_conv2d(case);
    }
    for shape in [[64, 64, 14, 14], [64, 32, 28, 28]] {
        bench_group_norm(shape);
    }
    // [batch, seq, d_model, heads, classes]
    for case in [[12, 64, 128, 4, 65], [8, 256, 384, 6, 65]] {
        bench_transformer(case);
    }
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::random(shape, uniform, &Device::flex().autodiff()).require_grad()
}

/// Seconds of the fastest forward and backward pass of each.
fn compare<const D: usize>(
    name: &str,
    flops: Option<f64>,
    fused: impl Fn() -> Tensor<D>,
    plain: impl Fn() -> Tensor<D>,
) {
    let time = |f: &dyn Fn() -> Tensor<D>| {
        let start = Instant::now();
        drop(f().sum().backward());
        start.elapsed().as_secs_f64()
    };
    let mut best = [f64::INFINITY; 2];
    for _ in 0..ROUNDS {
        best[0] = best[0].min(time(&fused));
        best[1] = best[1].min(time(&plain));
    }
    let [fused, plain] = best;
    let rate = flops.map(|flops| format!("{:>7.1} GFLOP/s", flops / fused / 1e9));
    println!(
        "{name:<42} {:>6.2} ms {:>6.2} ms {:>5.2}x {}",
        fused * 1e3,
        plain * 1e3,
        plain / fused,
        rate.unwrap_or_default(),
    );
}

fn bench_conv2d([batch, channels_in, size, channels_out, kernel, stride]: [usize; 6]) {
    let x = random([batch, channels_in, size, size]);
    let weight = random([channels_out, channels_in, kernel, kernel]);
    let (strides, padding) = ([stride; 2], [kernel / 2; 2]);
    let outputs = batch * channels_out * size.div_ceil(stride).pow(2);
    let flops = 3 * 2 * outputs * channels_in * kernel * kernel;
    compare(
        &format!(
            "conv [{batch},{channels_in},{size},{size}] -> {channels_out}, {kernel}x{kernel}/{stride}"
        ),
        Some(flops as f64),
        || conv2d(x.clone(), weight.clone(), None, strides, padding),
        || {
            let options = ConvOptions::new(strides, padding, [1, 1], 1);
            burn::tensor::module::conv2d(x.clone(), weight.clone(), None, options)
        },
    );
}

fn bench_group_norm(shape: [usize; 4]) {
    let [batch, channels, height, width] = shape;
    let (x, gamma, beta) = (random(shape), random([1, channels]), random([1, channels]));
    let options = GroupNormOptions {
        groups: 8,
        epsilon: 1e-5,
        activation: Activation::Silu,
    };
    compare(
        &format!("group norm + silu {shape:?}"),
        None,
        || group_norm(x.clone(), gamma.clone(), beta.clone(), options),
        || {
            let x = x.clone().reshape([batch, 8, channels / 8 * height * width]);
            let x = x.clone() - x.mean_dim(2);
            let variance = (x.clone() * x.clone()).mean_dim(2);
            let x = (x * (variance + 1e-5).sqrt().recip()).reshape(shape);
            let x = x * gamma.clone().reshape([1, channels, 1, 1]);
            let x = x + beta.clone().reshape([1, channels, 1, 1]);
            x.clone() * sigmoid(x)
        },
    );
}

fn bench_transformer([batch, seq, d_model, n_heads, classes]: [usize; 5]) {
    let name = |what: &str| format!("{what} batch {batch} seq {seq} d {d_model}");
    let x = random([batch, seq, d_model]);
    let mut norm = LayerNormConfig::new(d_model).init(&Device::flex().autodiff());
    norm.gamma = Param::from_tensor(random([d_model]));
    let (gamma, beta) = (norm.gamma.val(), norm.beta.as_ref().map(|beta| beta.val()));
    compare(
        &name("layer norm"),
        None,
        || layer_norm(x.clone(), gamma.clone(), beta.clone(), 1e-5),
        || norm.forward(x.clone()),
    );
    let wide = random([batch, seq, 4 * d_model]);
    compare(
        &name("gelu (4 d wide)"),
        None,
        || gelu_tanh(wide.clone()),
        || gelu(wide.clone()),
    );
    let logits = random([batch * seq, classes]);
    let targets = Tensor::<1, Int>::zeros([batch * seq], &Device::flex().autodiff());
    compare(
        &name(&format!("cross-entropy of {classes}")),
        None,
        || cross_entropy(logits.clone(), targets.clone()),
        || {
            let targets = targets.clone().reshape([batch * seq, 1]);
            log_softmax(logits.clone(), 1)
                .gather(1, targets)
                .mean()
                .neg()
        },
    );
    let qkv = random([batch, seq, 3 * d_model]);
    let options = AttentionOptions::causal(n_heads, n_heads);
    compare(
        &name(&format!("attention {n_heads} heads")),
        None,
        || self_attention(qkv.clone(), options),
        || plain_attention(qkv.clone(), n_heads),
    );
}

fn plain_attention(qkv: Tensor<3>, n_heads: usize) -> Tensor<3> {
    let [batch, seq, width] = qkv.dims();
    let d_head = width / 3 / n_heads;
    let heads = |part: usize| {
        let part = qkv
            .clone()
            .narrow(2, part * n_heads * d_head, n_heads * d_head);
        part.reshape([batch, seq, n_heads, d_head]).swap_dims(1, 2)
    };
    let scores = (heads(0) * (d_head as f64).sqrt().recip()).matmul(heads(1).swap_dims(2, 3));
    let future = Tensor::<2, Bool>::tril_mask([seq, seq], 0, &scores.device());
    let scores = scores.mask_fill(future.unsqueeze::<4>(), f32::NEG_INFINITY);
    let mixed = softmax(scores, 3).matmul(heads(2));
    mixed
        .swap_dims(1, 2)
        .reshape([batch, seq, n_heads * d_head])
}
