//! Inputs for the tests.
#![allow(unreachable_pub)] // each test file compiles its own copy

use burn::tensor::{Device, Tensor, TensorData};

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
