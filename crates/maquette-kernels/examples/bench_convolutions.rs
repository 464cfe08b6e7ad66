//! Times the convolutions of a U-Net, a GAN and a VAE, forward and each gradient, in GFLOP/s.
//!
//! `cargo build --release --workspace --example bench_convolutions`, then run the binary.
//!
//! Operations are counted as the definition has them, so minimal filtering can pass the machine's
//! peak. The peak beside is the best matrix product of Burn's in the same run.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use maquette_kernels::{conv_transpose2d, conv2d};

const ROUNDS: usize = 9;

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let side = 1024;
    let (a, b) = (random([side, side], false), random([side, side], false));
    let product = seconds(|| a.clone().matmul(b.clone()));
    let peak = 2.0 * (side as f64).powi(3) / product / 1e9;
    println!("peak {peak:.0} GFLOP/s (a product of {side} x {side})");
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>9} {:>6}",
        "", "forward", "input", "weight", "GFLOP/s", "peak"
    );
    // [batch, channels in, size, channels out, kernel, stride]
    for case in [
        [32, 64, 32, 64, 3, 1],
        [32, 128, 32, 64, 3, 1],
        [32, 128, 16, 128, 3, 1],
        [32, 256, 16, 128, 3, 1],
        [32, 128, 8, 128, 3, 1],
        [32, 128, 16, 128, 3, 2],
        [32, 1, 32, 64, 3, 1],
        [32, 64, 32, 1, 3, 1],
        [32, 128, 32, 64, 1, 1],
        [64, 3, 32, 64, 4, 2],
        [64, 64, 16, 128, 4, 2],
        [64, 128, 8, 256, 4, 2],
        [64, 256, 4, 1, 4, 1],
        [32, 48, 14, 48, 3, 1],
        [32, 96, 7, 96, 3, 1],
        [1, 64, 64, 64, 3, 1],
    ] {
        for transposed in [false, true] {
            // A transposed convolution of the same sizes, the other way round.
            if !transposed || (case[4] == 4) {
                bench(case, transposed, &filter, peak);
            }
        }
    }
}

fn random<const D: usize>(shape: [usize; D], tracked: bool) -> Tensor<D> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    let device = if tracked {
        Device::flex().autodiff()
    } else {
        Device::flex()
    };
    let tensor = Tensor::random(shape, uniform, &device);
    if tracked {
        tensor.require_grad()
    } else {
        tensor
    }
}

/// Of the fastest run.
fn seconds<T>(mut f: impl FnMut() -> T) -> f64 {
    let time = |_| {
        let start = Instant::now();
        std::hint::black_box(f());
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}

fn bench(case: [usize; 6], transposed: bool, filter: &str, peak: f64) {
    let [batch, c_in, size, c_out, kernel, stride] = case;
    let kind = if transposed {
        "transposed"
    } else {
        "convolution"
    };
    let name = format!("{kind} {batch}x{c_in}x{size}x{size} to {c_out}, {kernel}/{stride}");
    if !name.contains(filter) {
        return;
    }
    let padding = if size == kernel { 0 } else { (kernel - 1) / 2 };
    let (strides, padding) = ([stride; 2], [padding; 2]);
    let small = (size + 2 * padding[0] - kernel) / stride + 1;
    let image = |tracked| {
        let shape = if transposed {
            [batch, c_out, small, small]
        } else {
            [batch, c_in, size, size]
        };
        random(shape, tracked)
    };
    let weight = |tracked| random([c_out, c_in, kernel, kernel], tracked);
    let run = |x: &Tensor<4>, weight: &Tensor<4>| {
        let (x, weight) = (x.clone(), weight.clone());
        if transposed {
            conv_transpose2d(x, weight, None, strides, padding)
        } else {
            conv2d(x, weight, None, strides, padding)
        }
    };
    let (x, w) = (image(false), weight(false));
    let forward = seconds(|| run(&x, &w));
    let backward = |x: Tensor<4>, weight: Tensor<4>| {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let out = run(&x, &weight).sum();
            let start = Instant::now();
            std::hint::black_box(out.backward());
            best = best.min(start.elapsed().as_secs_f64());
        }
        best
    };
    let input = backward(image(true), weight(false).autodiff());
    let weight = backward(image(false).autodiff(), weight(true));
    let flops = (2 * batch * small * small * c_out * c_in * kernel * kernel) as f64;
    let rate = 3.0 * flops / (forward + input + weight) / 1e9;
    println!(
        "{name:<44} {:>8.2} {:>8.2} {:>8.2} {rate:>9.0} {:>5.0}%",
        forward * 1e3,
        input * 1e3,
        weight * 1e3,
        100.0 * rate / peak,
    );
}
