//! Activations in the form that costs the fewest passes over memory.

use burn::tensor::{Tensor, activation::sigmoid};

/// GELU with the tanh approximation, GPT-2's `gelu_new` (Hendrycks & Gimpel 2016).
///
/// Written as `x * sigmoid(2 u)`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`, which is the same function
/// since `(1 + tanh u) / 2 = sigmoid(2 u)`.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    /// `2 sqrt(2 / pi)`
    const SCALE: f64 = 1.595_769_121_605_731;
    let square = x.clone() * x.clone();
    let inner = x.clone() * (square * (SCALE * 0.044715) + SCALE);
    x * sigmoid(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn matches_torch() {
        // torch.nn.functional.gelu(torch.tensor([-3, -1, 0, 0.5, 2.]), approximate="tanh")
        let x = Tensor::<1>::from_floats([-3.0, -1.0, 0.0, 0.5, 2.0], &Device::flex());
        let got = gelu_tanh(x).into_data().try_to_vec::<f32>().unwrap();
        let expected = [-0.003_637_392, -0.158_808_01, 0.0, 0.345_714, 1.954_597_7];
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} against {expected}");
        }
    }
}
