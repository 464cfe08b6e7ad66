//! Times the fused convolution against Burn's own, forward and backward, in alternating runs.
//!
//! `cargo run --release -p maquette-kernels --example bench_conv2d`

use std::time::Instant;

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Tensor};

fn main() {
    println!(
        "{:<34} {:>10} {:>10} {:>7}",
        "x -> channels, kernel/stride", "fused", "burn", "ratio"
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
        bench(case);
    }
}

fn bench([batch, channels_in, size, channels_out, kernel, stride]: [usize; 6]) {
    let device = Device::flex().autodiff();
    let uniform = Distribution::Uniform(-1.0, 1.0);
    let x = Tensor::<4>::random([batch, channels_in, size, size], uniform, &device);
    let shape = [channels_out, channels_in, kernel, kernel];
    let weight = Tensor::<4>::random(shape, uniform, &device).require_grad();
    let (stride, padding) = ([stride; 2], [kernel / 2; 2]);
    let step = |fused: bool| {
        let x = x.clone().require_grad();
        let start = Instant::now();
        let out = if fused {
            maquette_kernels::conv2d(x, weight.clone(), None, stride, padding)
        } else {
            let options = ConvOptions::new(stride, padding, [1, 1], 1);
            burn::tensor::module::conv2d(x, weight.clone(), None, options)
        };
        let forward = start.elapsed().as_secs_f64();
        let outputs = out.shape().num_elements();
        drop(out.sum().backward());
        (forward, start.elapsed().as_secs_f64(), outputs)
    };
    let mut best = [[f64::INFINITY; 2]; 2];
    let mut flops = 0.0;
    for _ in 0..15 {
        for (best, fused) in best.iter_mut().zip([true, false]) {
            let (forward, both, outputs) = step(fused);
            flops = 2.0 * (outputs * channels_in * kernel * kernel) as f64;
            best[0] = best[0].min(forward);
            best[1] = best[1].min(both);
        }
    }
    let name = format!(
        "[{batch},{channels_in},{size},{size}] -> {channels_out}, {kernel}x{kernel}/{}",
        stride[0]
    );
    let [fused, plain] = best;
    for (pass, times, i) in [("forward", 1.0, 0), ("forward + backward", 3.0, 1)] {
        println!(
            "{name:<34} {:>6.1} ms {:>7.1} ms {:>6.2}x  {:>6.1} GFLOP/s  {pass}",
            fused[i] * 1e3,
            plain[i] * 1e3,
            plain[i] / fused[i],
            times * flops / fused[i] / 1e9,
        );
    }
}
