//! What a critic may know of a whole batch: where all examples look alike, the generator has collapsed.

use burn::{
    module::{Module, Param},
    nn::Initializer,
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

/// Configuration of minibatch discrimination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MinibatchConfig {
    /// Features added per example.
    pub kernels: usize,
    /// Numbers that each is a distance of.
    pub dims: usize,
}

impl Default for MinibatchConfig {
    fn default() -> Self {
        Self {
            kernels: 8,
            dims: 4,
        }
    }
}

/// Minibatch discrimination: features of an example that say how close the rest of its batch is
/// (Salimans et al. 2016, section 3.2, arXiv:1606.03498).
#[derive(Module, Debug)]
pub(super) struct Minibatch {
    /// `T`, `[features, kernels * dims]`.
    projection: Param<Tensor<2>>,
    kernels: usize,
    dims: usize,
}

impl Minibatch {
    pub(super) fn new(config: MinibatchConfig, features: usize, device: &Device) -> Self {
        let MinibatchConfig { kernels, dims } = config;
        Self {
            projection: Initializer::Zeros.init([features, kernels * dims], device),
            kernels,
            dims,
        }
    }

    /// `o_b(i) = sum_j exp(-|M_ib - M_jb|_1)` beside the features, `M_i = f_i T`.
    ///
    /// # Shapes
    /// - features: `[batch, features]`
    /// - output: `[batch, features + kernels]`
    pub(super) fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let batch = features.dims()[0];
        let (kernels, dims) = (self.kernels, self.dims);
        let m = features.clone().matmul(self.projection.val());
        let m = m.reshape([batch, kernels, dims]).permute([2, 1, 0]);
        // Term by term, so that no sum is over a few numbers each: [1, kernels, batch, batch] throughout.
        let distance = (0..dims).map(|d| {
            let m = m.clone().narrow(0, d, 1);
            let (one, other) = (m.clone().unsqueeze_dim::<4>(3), m.unsqueeze_dim::<4>(2));
            (one - other).abs()
        });
        let distance = distance.reduce(|a, b| a + b).expect("dims is at least 1");
        let closeness = distance.neg().exp().sum_dim(3).reshape([kernels, batch]);
        Tensor::cat(vec![features, closeness.transpose()], 1)
    }
}

/// The standard deviation of each feature over the batch, averaged into one number that is shown
/// beside each example's features (Karras et al. 2018, section 3, arXiv:1710.10196).
///
/// # Shapes
/// - features: `[batch, features]`
/// - output: `[batch, features + 1]`
pub(super) fn with_deviation(features: Tensor<2>) -> Tensor<2> {
    let batch = features.dims()[0];
    let centred = features.clone() - features.clone().mean_dim(0);
    let deviation = (centred.square().mean_dim(0) + 1e-8).sqrt().mean_dim(1);
    Tensor::cat(vec![features, deviation.repeat_dim(0, batch)], 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closeness_and_deviation_by_hand() {
        let device = Device::flex();
        let features = || Tensor::<2>::from_floats([[0.0, 1.0], [2.0, 1.0]], &device);
        let config = MinibatchConfig {
            kernels: 1,
            dims: 2,
        };
        let mut minibatch = Minibatch::new(config, 2, &device);
        minibatch.projection = Param::from_tensor(Tensor::eye(2, &device));
        let got = minibatch.forward(features());
        let got = got.into_data().try_to_vec::<f32>().unwrap();
        // Each is at distance 0 from itself and 2 from the other.
        let closeness = 1.0 + (-2f32).exp();
        assert_eq!((got[0], got[1], got[3], got[4]), (0.0, 1.0, 2.0, 1.0));
        assert!((got[2] - closeness).abs() < 1e-6 && (got[5] - closeness).abs() < 1e-6);
        let got = with_deviation(features());
        let got = got.into_data().try_to_vec::<f32>().unwrap();
        // Deviations 1 and 0 (1e-4 under the root), mean one half.
        assert!((got[2] - 0.5).abs() < 1e-3 && (got[5] - 0.5).abs() < 1e-3);
    }
}
