//! A small generator in the manner of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958): noise is mapped
//! to a style, and the style scales the channels of every convolution of a learnt constant.
//!
//! As there: modulated and demodulated kernels, images as sums over resolutions. Left out: the noise added
//! per pixel, so that a picture is a function of its latent alone, and the smoothing of resampled images.

use burn::{
    module::{Module, Param},
    nn::Initializer,
    tensor::{Device, Tensor},
};
use maquette_nn::{
    Conv2d, Conv2dConfig, Linear, LinearConfig, conv::upsample, leaky_relu, project,
};

use super::layer::{Activation, Layer, LayerConfig};

/// Layers of the mapping from noise to style.
const MAPPING: usize = 4;
const SLOPE: f32 = 0.2;

#[derive(Module, Debug)]
pub(super) struct StyleNet {
    mapping: Vec<Layer>,
    /// What every image starts from, `[1, channels, side, side]`.
    start: Param<Tensor<4>>,
    blocks: Vec<StyleBlock>,
}

/// Two convolutions at one resolution, and what they add to the image.
#[derive(Module, Debug)]
struct StyleBlock {
    first: Modulated,
    second: Modulated,
    colour: Modulated,
}

/// A convolution whose input channels a style scales.
#[derive(Module, Debug)]
struct Modulated {
    style: Linear,
    conv: Conv2d,
    /// `[d_out]`.
    offset: Param<Tensor<1>>,
    /// Whether each output channel is scaled back to the deviation that it would have without a style.
    demodulate: bool,
}

impl StyleNet {
    /// `[side, levels]`: the smallest image, and how often it is doubled.
    pub(super) fn new(
        d_in: usize,
        width: usize,
        [side, levels]: [usize; 2],
        channels: usize,
        device: &Device,
    ) -> Self {
        let hidden = LayerConfig {
            activation: Some(Activation::LeakyRelu),
            ..LayerConfig::default()
        };
        let d_style = 2 * width;
        let mapping = (0..MAPPING)
            .map(|i| hidden.dense(if i == 0 { d_in } else { d_style }, d_style, device))
            .collect();
        let blocks = (0..=levels)
            .map(|_| StyleBlock {
                first: Modulated::new(d_style, [width, width], 3, device),
                second: Modulated::new(d_style, [width, width], 3, device),
                colour: Modulated::new(d_style, [width, channels], 1, device),
            })
            .collect();
        Self {
            mapping,
            start: Initializer::Zeros.init([1, width, side, side], device),
            blocks,
        }
    }

    /// Noise, with the label if there is one, to a style: `[batch, d_in]` to `[batch, d_style]`.
    pub(super) fn style(&self, z: Tensor<2>) -> Tensor<2> {
        // Onto the sphere, as in the paper: only the direction of the noise counts.
        let length = (z.clone() * z.clone()).mean_dim(1) + 1e-8;
        let z = z / length.sqrt();
        let [batch, width] = z.dims();
        let z = z.reshape([batch, width, 1, 1]);
        let w = self.mapping.iter().fold(z, |w, layer| layer.forward(w));
        w.flatten(1, 3)
    }

    #[cfg(test)]
    pub(super) fn first_weight(&self) -> Tensor<2> {
        self.mapping[0].dense_weight()
    }

    /// # Shapes
    /// - style: `[batch, d_style]`
    /// - output: `[batch, channels, height, width]`, unbounded
    pub(super) fn image(&self, style: Tensor<2>) -> Tensor<4> {
        let batch = style.dims()[0];
        let mut x = self.start.val().repeat_dim(0, batch);
        let mut image: Option<Tensor<4>> = None;
        for (level, block) in self.blocks.iter().enumerate() {
            if level > 0 {
                x = upsample(x);
            }
            x = leaky_relu(block.first.forward(x, style.clone()), SLOPE);
            x = leaky_relu(block.second.forward(x, style.clone()), SLOPE);
            let colour = block.colour.forward(x.clone(), style.clone());
            image = Some(match image {
                Some(coarse) => upsample(coarse) + colour,
                None => colour,
            });
        }
        image.expect("there is a smallest resolution")
    }
}

impl Modulated {
    fn new(d_style: usize, [d_in, d_out]: [usize; 2], kernel: usize, device: &Device) -> Self {
        let conv = Conv2dConfig {
            bias: false,
            ..Conv2dConfig::same(d_in, d_out, kernel)
        };
        Self {
            style: LinearConfig::new(d_style, d_in).init(device),
            conv: conv.init(device),
            offset: Initializer::Zeros.init([d_out], device),
            demodulate: kernel > 1,
        }
    }

    /// Scaling the input's channels is scaling the kernel's, without a kernel per image.
    fn forward(&self, x: Tensor<4>, style: Tensor<2>) -> Tensor<4> {
        let bias = self.style.bias.as_ref().map(|bias| bias.val());
        let gain = project(
            style,
            self.style.weight.val(),
            bias,
            maquette_nn::Activation::Identity,
        );
        let gain = gain + 1.0;
        let [batch, d_in] = gain.dims();
        let weight = self.conv.weight.val();
        let mut y = self
            .conv
            .forward(x * gain.clone().reshape([batch, d_in, 1, 1]));
        if self.demodulate {
            let [d_out, ..] = weight.dims();
            let energy = weight.square().sum_dim(3).sum_dim(2).reshape([d_out, d_in]);
            let energy = gain.square().matmul(energy.transpose()) + 1e-8;
            y = y / energy.sqrt().reshape([batch, d_out, 1, 1]);
        }
        let d_out = self.offset.dims()[0];
        y + self.offset.val().reshape([1, d_out, 1, 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_nn::{InitScheme, init::initialise};
    use maquette_rng::{Stream, normal, rng};

    #[test]
    fn a_scaled_input_is_a_scaled_kernel() {
        let device = Device::flex();
        let random = &mut rng(0, Stream::Init, 0);
        let layer = initialise(Modulated::new(5, [3, 4], 3, &device), random, |slot| {
            InitScheme::He.fill(slot)
        });
        let draw = |shape: [usize; 4], seed| {
            let values = normal(&mut rng(seed, Stream::Data, 0), shape.iter().product());
            Tensor::<4>::from_data(burn::tensor::TensorData::new(values, shape), &device)
        };
        let (x, style) = (draw([1, 3, 6, 6], 1), draw([1, 5, 1, 1], 2).reshape([1, 5]));
        let got = layer.forward(x.clone(), style.clone());
        // Equations 1 and 3 of the paper, written as they stand there.
        let bias = layer.style.bias.as_ref().unwrap().val().unsqueeze();
        let gain: Tensor<2> = style.matmul(layer.style.weight.val()) + bias + 1.0;
        let weight = layer.conv.weight.val() * gain.reshape([1, 3, 1, 1]);
        let length = weight.clone().square().sum_dim(3).sum_dim(2).sum_dim(1) + 1e-8;
        let expected = layer.conv.forward_with(x, weight / length.sqrt());
        let gap = (got - expected).abs().max().into_scalar::<f32>();
        assert!(gap < 1e-5, "{gap}");
    }
}
