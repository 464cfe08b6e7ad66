//! Embedding of a diffusion time.

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};

use crate::Activation;
use crate::linear::{Linear, LinearConfig};

/// Sines and cosines of `t` at `d / 2` wavelengths from `2 pi` to `10,000 * 2 pi` (Vaswani et al.
/// 2017, as used by Ho et al. 2020).
///
/// # Shapes
/// - t: `[batch]`
/// - output: `[batch, d]`, `d` even
pub fn sinusoidal(t: Tensor<1>, d: usize) -> Tensor<2> {
    let half = d / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / half as f64).exp() as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &t.device());
    let angles = t.unsqueeze_dim::<2>(1) * frequencies;
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}

/// Two layers over sinusoidal features of the time.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    inner: Linear,
    outer: Linear,
    d_features: usize,
}

impl TimeEmbedding {
    /// `d_features` sinusoids (even) in, `d_out` features out.
    pub fn new(d_features: usize, d_out: usize, device: &Device) -> Self {
        Self {
            inner: LinearConfig::new(d_features, d_out).init(device),
            outer: LinearConfig::new(d_out, d_out).init(device),
            d_features,
        }
    }

    /// # Shapes
    /// - t: `[batch]`, as a step of a schedule of 1,000
    /// - output: `[batch, d_out]`
    pub fn forward(&self, t: Tensor<1>) -> Tensor<2> {
        let features = sinusoidal(t, self.d_features);
        let hidden = self.inner.forward_through(features, Activation::Silu);
        self.outer.forward(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_by_hand() {
        let t = Tensor::<1>::from_floats([2.0], &Device::flex());
        let got = sinusoidal(t, 4).into_data().try_to_vec::<f32>().unwrap();
        let expected = [2f32.cos(), 0.02f32.cos(), 2f32.sin(), 0.02f32.sin()];
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 1e-6, "{got:?}");
        }
    }
}
