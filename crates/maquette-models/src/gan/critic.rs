//! The critic: examples to scores.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use super::condition::beside;
use super::growth::Growth;
use super::layer::{Layer, LayerConfig, PlainDense};
use super::minibatch::{Minibatch, with_deviation};
use super::stage::{Residual, Resize, Stage};
use super::{Conditioning, CriticConfig, GanConfig, Network, halvings};

/// Tells real examples from made ones. A high score means real.
#[derive(Module, Debug)]
pub struct Critic {
    body: Vec<Stage>,
    /// What let images of the smaller sizes in, the smallest first, where the players grow.
    doors: Vec<Layer>,
    #[module(skip)]
    growth: Growth,
    minibatch: Option<Minibatch>,
    head: Layer,
    /// What classes have to do with features: a vector each, or a score for each.
    classes: Option<Layer>,
    #[module(skip)]
    conditioning: Option<Conditioning>,
    deviation: bool,
    pack: usize,
    scale: f64,
}

/// What a critic says of a batch.
pub struct Judgement {
    /// `[batch / packing]`.
    pub scores: Tensor<1>,
    /// What the score is a linear map of, before anything about the batch is added:
    /// `[batch / packing, features]`.
    pub features: Tensor<2>,
    /// Logits of the classes, `[batch, n_classes]`, where the critic names them.
    pub classes: Option<Tensor<2>>,
}

impl Critic {
    pub(super) fn new(config: &GanConfig, growth: Growth, device: &Device) -> Self {
        let CriticConfig {
            spectral_norm: spectral,
            minibatch_deviation: deviation,
            ..
        } = config.critic;
        let last = LayerConfig {
            spectral,
            ..LayerConfig::default()
        };
        let (body, features) = match config.network {
            Network::Mlp => mlp(config, device),
            Network::Dcgan => dcgan(config, device),
            Network::Resnet | Network::Style => resnet(config, device),
        };
        let minibatch = config.critic.minibatch_discrimination;
        let seen = features + minibatch.map_or(0, |m| m.kernels) + usize::from(deviation);
        let n = config.n_classes;
        Self {
            body,
            doors: growth
                .smaller()
                .map(|level| door(config, level, device))
                .collect(),
            growth,
            minibatch: minibatch.map(|minibatch| Minibatch::new(minibatch, features, device)),
            head: last.dense(seen, 1, device),
            classes: match config.conditioning() {
                None | Some(Conditioning::Concat) => None,
                Some(Conditioning::Auxiliary) => Some(last.dense(features, n, device)),
                Some(Conditioning::Projection) => Some(last.dense(n, features, device)),
            },
            conditioning: config.conditioning(),
            deviation,
            pack: config.critic.pack(),
            scale: config.critic.scale(),
        }
    }

    /// # Shapes
    /// - x: `[batch, channels, height, width]`, the batch a multiple of the packing
    pub fn judge(&self, x: Tensor<4>) -> Judgement {
        self.judge_as(x, None)
    }

    /// [`Critic::judge`] of examples that are said to be of these classes.
    ///
    /// # Shapes
    /// - labels: one-hot, `[batch, n_classes]`; none where the critic knows no classes
    pub fn judge_as(&self, x: Tensor<4>, labels: Option<Tensor<2>>) -> Judgement {
        let x = self.seen(x, labels.clone());
        let x = self.growth.fall(&self.body, &self.doors, x);
        let features: Tensor<2> = x.flatten(1, 3);
        let mut seen = features.clone();
        if let Some(minibatch) = &self.minibatch {
            seen = minibatch.forward(seen);
        }
        if self.deviation {
            seen = with_deviation(seen);
        }
        let scores = dense(&self.head, seen).flatten::<1>(0, 1);
        let (extra, classes) = match (self.conditioning, &self.classes, labels) {
            (Some(Conditioning::Projection), Some(vectors), Some(labels)) => {
                let product = dense(vectors, labels) * features.clone();
                (Some(product.sum_dim(1).flatten::<1>(0, 1)), None)
            }
            (Some(Conditioning::Auxiliary), Some(logits), _) => {
                (None, Some(dense(logits, features.clone())))
            }
            _ => (None, None),
        };
        Judgement {
            scores: match extra {
                Some(extra) => scores + extra,
                None => scores,
            },
            features,
            classes,
        }
    }

    /// The scores, and the gradient of each with respect to its input, as forward operators: what is
    /// computed of it can be differentiated once more with respect to the weights. The input itself
    /// counts as a constant.
    ///
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - labels: as [`Critic::judge_as`]
    /// - scores: `[batch / packing]`
    /// - gradient: `[batch / packing, numbers]`
    ///
    /// # Panics
    /// If the activation is not piecewise linear, or a score depends on the rest of the batch:
    /// [`ObjectiveConfig::validate`](super::ObjectiveConfig::validate) refuses both.
    pub fn input_gradient(
        &self,
        x: Tensor<4>,
        labels: Option<Tensor<2>>,
    ) -> (Tensor<1>, Tensor<2>) {
        assert!(
            self.minibatch.is_none() && !self.deviation,
            "scores depend on their batch"
        );
        let [batch, channels, height, width] = x.dims();
        let x = self.seen(x.detach(), labels.clone());
        let [_, told, ..] = x.dims();
        let (h, fall) = self.growth.traced_fall(&self.body, &self.doors, x);
        let vectors = match (self.conditioning, &self.classes, labels) {
            (Some(Conditioning::Projection), Some(vectors), Some(labels)) => {
                Some(dense(vectors, labels).reshape(h.dims()))
            }
            _ => None,
        };
        let (scores, trace) = self.head.traced(h.clone());
        let mut scores: Tensor<2> = scores.flatten(1, 3);
        let one = scores.ones_like().detach();
        let mut grad = self
            .head
            .pullback(trace, one.reshape([batch / self.pack, 1, 1, 1]));
        if let Some(vectors) = vectors {
            scores = scores + (vectors.clone() * h).flatten::<2>(1, 3).sum_dim(1);
            grad = grad + vectors;
        }
        let grad = self.growth.pullback(&self.body, &self.doors, fall, grad);
        // The labels' channels are no part of the example.
        let grad = grad
            .reshape([batch, told / self.pack, height, width])
            .narrow(1, 0, channels)
            * self.scale;
        let numbers = self.pack * channels * height * width;
        (
            scores.flatten(0, 1),
            grad.reshape([batch / self.pack, numbers]),
        )
    }

    /// The layers when nothing but linear ones and their activations stand between input and score.
    pub(super) fn plain_layers(&self) -> Option<Vec<(&Layer, PlainDense)>> {
        if self.minibatch.is_some() || self.deviation {
            return None;
        }
        let body = self.body.iter().map(|stage| match stage {
            Stage::Layer(layer) => Some(layer),
            _ => None,
        });
        body.chain([Some(&self.head)])
            .map(|layer| {
                let layer = layer?;
                Some((layer, layer.plain_dense()?))
            })
            .collect()
    }

    /// How large the images are that both players play at from this step on, where they grow.
    pub fn grow(&self, step: u64) {
        self.growth.set(step);
    }

    /// Examples judged together.
    pub(super) fn pack(&self) -> usize {
        self.pack
    }

    /// Before each update: one more round of the power iterations of spectral normalisation.
    pub fn renew(&self) {
        self.body.iter().for_each(Stage::renew);
        self.doors.iter().for_each(Layer::renew);
        self.head.renew();
        self.classes.iter().for_each(Layer::renew);
    }

    /// What the first layer sees: examples at their scale, with the labels' channels where the critic is
    /// told of labels so, and neighbours in the batch side by side in the channels.
    pub(super) fn seen(&self, x: Tensor<4>, labels: Option<Tensor<2>>) -> Tensor<4> {
        let x = if self.scale == 1.0 { x } else { x * self.scale };
        let x = match (self.conditioning, labels) {
            (Some(Conditioning::Concat), Some(labels)) => beside(x, labels),
            _ => x,
        };
        let [batch, channels, height, width] = x.dims();
        x.reshape([batch / self.pack, self.pack * channels, height, width])
    }
}

/// A dense layer on rows.
fn dense(layer: &Layer, x: Tensor<2>) -> Tensor<2> {
    let [batch, width] = x.dims();
    layer.forward(x.reshape([batch, width, 1, 1])).flatten(1, 3)
}

fn hidden(config: &GanConfig) -> LayerConfig {
    LayerConfig {
        norm: config.critic.norm,
        activation: Some(config.critic.activation),
        spectral: config.critic.spectral_norm,
    }
}

fn mlp(config: &GanConfig, device: &Device) -> (Vec<Stage>, usize) {
    let [_, height, width] = config.image;
    let inputs = config.critic_channels() * height * width;
    let sizes = std::iter::once(inputs)
        .chain(std::iter::repeat_n(
            config.critic_width(),
            config.critic_layers(),
        ))
        .collect::<Vec<_>>();
    let layer = |pair: &[usize]| Stage::Layer(hidden(config).dense(pair[0], pair[1], device));
    (sizes.windows(2).map(layer).collect(), config.critic_width())
}

/// Convolutions that halve the size, twice the channels each, and no norm at the image (Radford et al.
/// 2016, section 3, arXiv:1511.06434).
fn dcgan(config: &GanConfig, device: &Device) -> (Vec<Stage>, usize) {
    let [side, levels] = halvings(config.image[1]);
    let layer = hidden(config);
    let first = LayerConfig {
        norm: super::NormChoice::None,
        ..layer
    };
    let mut channels = config.critic_channels();
    let mut stages = Vec::with_capacity(levels);
    for level in 0..levels {
        let (layer, width) = (
            if level == 0 { first } else { layer },
            config.critic_width() << level,
        );
        stages.push(Stage::Layer(layer.halve([channels, width], device)));
        channels = width;
    }
    (stages, channels * side * side)
}

/// A 1x1 convolution from an image of a size to the features of that size.
fn door(config: &GanConfig, level: usize, device: &Device) -> Layer {
    let [_, levels] = halvings(config.image[1]);
    let bare = LayerConfig {
        spectral: config.critic.spectral_norm,
        ..LayerConfig::default()
    };
    let (layer, width) = match config.network {
        Network::Dcgan => {
            let activation = Some(config.critic.activation);
            let width = config.critic_width() << (levels - 1 - level);
            (LayerConfig { activation, ..bare }, width)
        }
        // A block begins with its activation.
        _ => (bare, config.critic_width()),
    };
    layer.same([config.critic_channels(), width], 1, device)
}

/// Residual blocks, all but the last two of which halve the size, and a sum over places (Miyato et al.
/// 2018, table 4, arXiv:1802.05957).
fn resnet(config: &GanConfig, device: &Device) -> (Vec<Stage>, usize) {
    let [_, levels] = halvings(config.image[1]);
    let (width, layer) = (config.critic_width(), hidden(config));
    let block = |d_in, resize, at_image| {
        Stage::Residual(Residual::new(
            layer,
            [d_in, width],
            resize,
            at_image,
            device,
        ))
    };
    let mut stages = vec![block(config.critic_channels(), Resize::Down, true)];
    stages.extend((1..levels).map(|_| block(width, Resize::Down, false)));
    stages.extend((0..2).map(|_| block(width, Resize::Keep, false)));
    stages.push(Stage::Sum(layer.finish(width, device)));
    (stages, width)
}
