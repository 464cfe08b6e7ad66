//! A denoiser for points.

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig},
    tensor::{Device, Int, Tensor, TensorData},
};
use maquette_nn::{
    InitScheme, Linear, LinearConfig, TimeEmbedding,
    init::{Fill, Slot, initialise},
    silu,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// Configuration of a [`DenoiserMlp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DenoiserMlpConfig {
    /// Numbers per point.
    pub d_data: usize,
    /// Width.
    pub d_model: usize,
    /// Number of residual blocks.
    pub n_layers: usize,
    /// Sines and cosines of each coordinate, at wavelengths 8, 4, 2, ...: what lets a small network
    /// draw sharp modes (Tancik et al. 2020).
    pub n_frequencies: usize,
    /// Number of classes; 0 for none.
    pub n_classes: usize,
}

impl Default for DenoiserMlpConfig {
    fn default() -> Self {
        Self {
            d_data: 2,
            d_model: 128,
            n_layers: 3,
            n_frequencies: 6,
            n_classes: 0,
        }
    }
}

impl DenoiserMlpConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        let even = self.d_model > 0 && self.d_model.is_multiple_of(2);
        require(self.d_data > 0, "d_data", || "must be at least 1".into())?;
        require(even, "d_model", || "must be even and at least 2".into())?;
        require(self.n_frequencies <= 16, "n_frequencies", || {
            "must be at most 16".into()
        })
    }

    /// A network with weights drawn from `rng`; its first answer is zero.
    ///
    /// # Panics
    /// If [`DenoiserMlpConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> DenoiserMlp {
        if let Err(error) = self.validate() {
            panic!("invalid DenoiserMlpConfig: {error}");
        }
        let d = self.d_model;
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).init(device);
        let block = |_| MlpBlock {
            time: linear(d, d),
            inner: linear(d, d),
            outer: linear(d, d),
        };
        let model = DenoiserMlp {
            time: TimeEmbedding::new(d, d, device),
            labels: (self.n_classes > 0)
                .then(|| EmbeddingConfig::new(self.n_classes + 1, d).init(device)),
            input: linear(self.d_data * (1 + 2 * self.n_frequencies), d),
            blocks: (0..self.n_layers).map(block).collect(),
            output: linear(d, self.d_data),
            n_frequencies: self.n_frequencies,
        };
        initialise(model, rng, |slot: &Slot| match slot.path {
            "output.weight" | "output.bias" => Fill::Constant(0.0),
            "labels.weight" => Fill::Normal { std: 0.02 },
            _ => InitScheme::FanIn.fill(slot),
        })
    }
}

#[derive(Module, Debug)]
struct MlpBlock {
    time: Linear,
    inner: Linear,
    outer: Linear,
}

/// Residual blocks over Fourier features of the point, each told the time.
#[derive(Module, Debug)]
pub struct DenoiserMlp {
    time: TimeEmbedding,
    labels: Option<Embedding>,
    input: Linear,
    blocks: Vec<MlpBlock>,
    output: Linear,
    n_frequencies: usize,
}

impl DenoiserMlp {
    /// # Shapes
    /// - x: `[batch, d_data]`
    /// - t: `[batch]`, on `[0, 1000)`
    /// - labels: `[batch]`, each below `n_classes`, or `n_classes` for none
    /// - output: `[batch, d_data]`
    pub fn forward(&self, x: Tensor<2>, t: Tensor<1>, labels: Option<Tensor<1, Int>>) -> Tensor<2> {
        let mut time = self.time.forward(t);
        if let (Some(table), Some(labels)) = (&self.labels, labels) {
            time = time
                + table
                    .forward(labels.unsqueeze_dim::<2>(1))
                    .squeeze_dim::<2>(1);
        }
        let time = silu(time);
        let mut h = self.input.forward(self.features(x));
        for block in &self.blocks {
            let inner = block.inner.forward(silu(h.clone())) + block.time.forward(time.clone());
            h = h + block.outer.forward(silu(inner));
        }
        self.output.forward(silu(h))
    }

    /// The point and its sines and cosines, `[batch, d_data (1 + 2 n_frequencies)]`.
    fn features(&self, x: Tensor<2>) -> Tensor<2> {
        let [batch, d_data] = x.dims();
        let n = self.n_frequencies;
        if n == 0 {
            return x;
        }
        let waves: Vec<f32> = (0..n)
            .map(|i| std::f32::consts::FRAC_PI_4 * 2f32.powi(i as i32))
            .collect();
        let waves = Tensor::<3>::from_data(TensorData::new(waves, [1, 1, n]), &x.device());
        let angles = (x.clone().unsqueeze_dim::<3>(2) * waves).reshape([batch, d_data * n]);
        Tensor::cat(vec![x, angles.clone().sin(), angles.cos()], 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn starts_at_zero_and_keeps_the_shape() {
        let config = DenoiserMlpConfig {
            n_classes: 3,
            ..DenoiserMlpConfig::default()
        };
        let device = Device::flex();
        let model = config.init(&device, &mut rng(0, Stream::Init, 0));
        let x = Tensor::<2>::ones([4, 2], &device);
        let t = Tensor::<1>::from_floats([0.0, 1.0, 500.0, 999.0], &device);
        let labels = Tensor::<1, Int>::from_ints([0, 1, 2, 3], &device);
        let y = model.forward(x, t, Some(labels));
        assert_eq!(y.dims(), [4, 2]);
        assert_eq!(y.abs().max().into_scalar::<f32>(), 0.0);
    }
}
