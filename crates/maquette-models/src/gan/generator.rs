//! The generator: noise, and a label where there are any, to examples.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use super::growth::Growth;
use super::layer::{Layer, LayerConfig};
use super::stage::{Residual, Resize, Stage};
use super::style::StyleNet;
use super::{GanConfig, Network, halvings};

/// Maps noise to examples.
#[derive(Module, Debug)]
pub struct Generator {
    net: Net,
    /// What make images of the smaller sizes, the smallest first, where the players grow.
    heads: Vec<Layer>,
    #[module(skip)]
    growth: Growth,
    image: [usize; 3],
    /// Whether pixels are bounded to `[-1, 1]`; points are not.
    bounded: bool,
}

#[derive(Module, Debug)]
enum Net {
    Stack(Vec<Stage>),
    Style(StyleNet),
}

impl Generator {
    pub(super) fn new(config: &GanConfig, growth: Growth, device: &Device) -> Self {
        let [channels, height, width] = config.image;
        Self {
            heads: growth
                .smaller()
                .map(|level| head(config, level, device))
                .collect(),
            growth,
            net: match config.network {
                Network::Mlp => Net::Stack(mlp(config, device)),
                Network::Dcgan => Net::Stack(dcgan(config, device)),
                Network::Resnet => Net::Stack(resnet(config, device)),
                Network::Style => Net::Style(StyleNet::new(
                    config.generator_inputs(),
                    config.width,
                    halvings(height),
                    channels,
                    device,
                )),
            },
            image: config.image,
            bounded: height * width > 1,
        }
    }

    /// # Shapes
    /// - z: `[batch, d_latent]`, standard normal
    /// - output: `[batch, channels, height, width]`; images are on `[-1, 1]`
    pub fn forward(&self, z: Tensor<2>) -> Tensor<4> {
        self.forward_as(z, None)
    }

    /// [`Generator::forward`] of the classes that are asked for.
    ///
    /// # Shapes
    /// - labels: one-hot, `[batch, n_classes]`; none where the generator knows no classes
    pub fn forward_as(&self, z: Tensor<2>, labels: Option<Tensor<2>>) -> Tensor<4> {
        let x = match &self.net {
            Net::Stack(stages) => {
                let start = with_labels(z, labels);
                let [batch, width] = start.dims();
                let start = start.reshape([batch, width, 1, 1]);
                let x = self.growth.rise(stages, &self.heads, start);
                let [channels, height, width] = self.image;
                x.reshape([batch, channels, height, width])
            }
            Net::Style(net) => net.image(net.style(with_labels(z, labels))),
        };
        self.squashed(x)
    }

    /// Images whose styles are pulled towards the mean of `centre`'s: `psi` 1 leaves them, 0 makes them
    /// all alike (truncation trick of Karras et al. 2019, appendix B, arXiv:1812.04948). None where the
    /// generator has no styles.
    ///
    /// # Shapes
    /// - z, labels: as [`Generator::forward_as`]
    /// - centre: `[draws, d_latent]`, each seen with every label of the batch
    pub fn truncated(
        &self,
        z: Tensor<2>,
        labels: Option<Tensor<2>>,
        psi: f64,
        centre: Tensor<2>,
    ) -> Option<Tensor<4>> {
        let Net::Style(net) = &self.net else {
            return None;
        };
        let batch = z.dims()[0];
        let style = net.style(with_labels(z, labels.clone()));
        let draws = centre.dims()[0];
        let middle = match labels {
            None => net.style(centre).mean_dim(0),
            Some(labels) => {
                let rows = (0..batch).map(|i| {
                    let label = labels.clone().narrow(0, i, 1).repeat_dim(0, draws);
                    net.style(with_labels(centre.clone(), Some(label)))
                        .mean_dim(0)
                });
                Tensor::cat(rows.collect(), 0)
            }
        };
        let style = middle.clone() + (style - middle) * psi;
        Some(self.squashed(net.image(style)))
    }

    fn squashed(&self, x: Tensor<4>) -> Tensor<4> {
        if self.bounded { x.tanh() } else { x }
    }

    #[cfg(test)]
    pub(super) fn first_weight(&self) -> Tensor<2> {
        match &self.net {
            Net::Stack(stages) => match &stages[0] {
                Stage::Layer(layer) => layer.dense_weight(),
                _ => panic!("a generator starts with a dense layer"),
            },
            Net::Style(net) => net.first_weight(),
        }
    }
}

fn with_labels(z: Tensor<2>, labels: Option<Tensor<2>>) -> Tensor<2> {
    match labels {
        Some(labels) => Tensor::cat(vec![z, labels], 1),
        None => z,
    }
}

fn hidden(config: &GanConfig) -> LayerConfig {
    LayerConfig {
        norm: config.generator.norm,
        activation: Some(config.generator.activation),
        spectral: false,
    }
}

fn mlp(config: &GanConfig, device: &Device) -> Vec<Stage> {
    let sizes = std::iter::once(config.generator_inputs())
        .chain(std::iter::repeat_n(config.width, config.n_layers))
        .collect::<Vec<_>>();
    let mut stages: Vec<_> = sizes
        .windows(2)
        .map(|pair| Stage::Layer(hidden(config).dense(pair[0], pair[1], device)))
        .collect();
    let outputs = config.image.iter().product();
    let last = LayerConfig::default().dense(config.width, outputs, device);
    stages.push(Stage::Layer(last));
    stages
}

/// A 1x1 convolution from the features of a size to an image.
fn head(config: &GanConfig, level: usize, device: &Device) -> Layer {
    let [channels, height, _] = config.image;
    let [_, levels] = halvings(height);
    let width = match config.network {
        Network::Dcgan => config.width << (levels - 1 - level),
        _ => config.width,
    };
    LayerConfig::default().same([width, channels], 1, device)
}

/// Transposed convolutions that double the size, half the channels each (Radford et al. 2016, figure 1,
/// arXiv:1511.06434).
fn dcgan(config: &GanConfig, device: &Device) -> Vec<Stage> {
    let [channels, height, _] = config.image;
    let [side, levels] = halvings(height);
    let widths: Vec<_> = (0..levels)
        .rev()
        .map(|level| config.width << level)
        .collect();
    let layer = hidden(config);
    let start = layer.spread(config.generator_inputs(), [widths[0], side], device);
    let mut stages = vec![Stage::Layer(start)];
    let pairs = widths.windows(2);
    stages.extend(pairs.map(|pair| Stage::Layer(layer.double([pair[0], pair[1]], device))));
    let last = LayerConfig::default().double([config.width, channels], device);
    stages.push(Stage::Layer(last));
    stages
}

/// Residual blocks that double the size (Miyato et al. 2018, table 4, arXiv:1802.05957).
fn resnet(config: &GanConfig, device: &Device) -> Vec<Stage> {
    let [channels, height, _] = config.image;
    let [side, levels] = halvings(height);
    let (width, layer) = (config.width, hidden(config));
    let start = LayerConfig::default().spread(config.generator_inputs(), [width, side], device);
    let mut stages = vec![Stage::Layer(start)];
    stages.extend((0..levels).map(|_| {
        let block = Residual::new(layer, [width, width], Resize::Up, false, device);
        Stage::Residual(block)
    }));
    stages.push(Stage::Finish(layer.finish(width, device)));
    let last = LayerConfig::default().same([width, channels], 3, device);
    stages.push(Stage::Layer(last));
    stages
}
