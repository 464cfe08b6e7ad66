//! Inputs for the tests.
#![allow(unreachable_pub, dead_code)] // each test file compiles its own copy

use burn::tensor::{Device, Tensor, TensorData, activation};
use maquette_kernels::Activation;

/// Every activation.
pub const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu(0.2),
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
];

/// The definition of each, of Burn's operators.
pub fn activated<const D: usize>(z: Tensor<D>, by: Activation) -> Tensor<D> {
    match by {
        Activation::Identity => z,
        Activation::Relu => activation::relu(z),
        Activation::LeakyRelu(slope) => activation::leaky_relu(z, f64::from(slope)),
        Activation::Silu => z.clone() * activation::sigmoid(z),
        Activation::Gelu => activation::gelu(z),
        Activation::GeluTanh => {
            let inner = (z.clone() + z.clone().powi_scalar(3) * 0.044715)
                * (2.0 / std::f64::consts::PI).sqrt();
            z * (inner.tanh() + 1.0) / 2.0
        }
    }
}

/// Numbers in -1..1 without structure, the same on every machine.
fn numbers(count: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// A tensor of such numbers.
pub fn tensor<const D: usize>(shape: [usize; D], salt: u64, device: &Device) -> Tensor<D> {
    let data = TensorData::new(numbers(shape.iter().product(), salt), shape);
    Tensor::from_data(data, device)
}
