//! The generator: noise to examples.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use super::GanConfig;
use super::layer::{Layer, LayerConfig};

/// Maps noise to examples.
#[derive(Module, Debug)]
pub struct Generator {
    layers: Vec<Layer>,
    image: [usize; 3],
    /// Whether pixels are bounded to `[-1, 1]`; points are not.
    bounded: bool,
}

impl Generator {
    pub(super) fn new(config: &GanConfig, device: &Device) -> Self {
        let hidden = LayerConfig {
            norm: config.generator.norm,
            activation: Some(config.generator.activation),
            spectral: false,
        };
        let last = LayerConfig::default();
        let sizes = std::iter::once(config.d_latent)
            .chain(std::iter::repeat_n(config.width, config.n_layers))
            .collect::<Vec<_>>();
        let mut layers: Vec<_> = sizes
            .windows(2)
            .map(|pair| hidden.dense(pair[0], pair[1], device))
            .collect();
        let [channels, height, width] = config.image;
        layers.push(last.dense(config.width, channels * height * width, device));
        Self {
            layers,
            image: config.image,
            bounded: height * width > 1,
        }
    }

    /// # Shapes
    /// - z: `[batch, d_latent]`, standard normal
    /// - output: `[batch, channels, height, width]`; images are on `[-1, 1]`
    pub fn forward(&self, z: Tensor<2>) -> Tensor<4> {
        let [batch, d_latent] = z.dims();
        let [channels, height, width] = self.image;
        let start = z.reshape([batch, d_latent, 1, 1]);
        let x = self.layers.iter().fold(start, |x, layer| layer.forward(x));
        let x = x.reshape([batch, channels, height, width]);
        if self.bounded { x.tanh() } else { x }
    }

    #[cfg(test)]
    pub(super) fn first_weight(&self) -> Tensor<2> {
        self.layers[0].dense_weight()
    }
}
