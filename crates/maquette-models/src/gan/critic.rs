//! The critic: examples to scores.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use super::layer::{Layer, LayerConfig};
use super::minibatch::{Minibatch, with_deviation};
use super::{CriticConfig, GanConfig};

/// Tells real examples from made ones. A high score means real.
#[derive(Module, Debug)]
pub struct Critic {
    body: Vec<Layer>,
    minibatch: Option<Minibatch>,
    head: Layer,
    deviation: bool,
    pack: usize,
}

/// What a critic says of a batch.
pub struct Judgement {
    /// `[batch / packing]`.
    pub scores: Tensor<1>,
    /// What the score is a linear map of, before anything about the batch is added:
    /// `[batch / packing, features]`.
    pub features: Tensor<2>,
}

impl Critic {
    pub(super) fn new(config: &GanConfig, device: &Device) -> Self {
        let CriticConfig {
            activation,
            norm,
            spectral_norm: spectral,
            minibatch_deviation: deviation,
            ..
        } = config.critic;
        let hidden = LayerConfig {
            norm,
            activation: Some(activation),
            spectral,
        };
        let last = LayerConfig {
            spectral,
            ..LayerConfig::default()
        };
        let pack = config.critic.pack();
        let inputs = pack * config.image.iter().product::<usize>();
        let sizes = std::iter::once(inputs)
            .chain(std::iter::repeat_n(config.width, config.n_layers))
            .collect::<Vec<_>>();
        let body: Vec<_> = sizes
            .windows(2)
            .map(|pair| hidden.dense(pair[0], pair[1], device))
            .collect();
        let features = config.width;
        let minibatch = config.critic.minibatch_discrimination;
        let seen = features + minibatch.map_or(0, |m| m.kernels) + usize::from(deviation);
        Self {
            body,
            minibatch: minibatch.map(|minibatch| Minibatch::new(minibatch, features, device)),
            head: last.dense(seen, 1, device),
            deviation,
            pack,
        }
    }

    /// # Shapes
    /// - x: `[batch, channels, height, width]`, the batch a multiple of the packing
    pub fn judge(&self, x: Tensor<4>) -> Judgement {
        let x = self.packed(x);
        let x = self.body.iter().fold(x, |x, layer| layer.forward(x));
        let features: Tensor<2> = x.flatten(1, 3);
        let mut seen = features.clone();
        if let Some(minibatch) = &self.minibatch {
            seen = minibatch.forward(seen);
        }
        if self.deviation {
            seen = with_deviation(seen);
        }
        let [batch, width] = seen.dims();
        let scores = self.head.forward(seen.reshape([batch, width, 1, 1]));
        Judgement {
            scores: scores.reshape([batch]),
            features,
        }
    }

    /// The scores, and the gradient of each with respect to its input, as forward operators: what is
    /// computed of it can be differentiated once more with respect to the weights. The input itself
    /// counts as a constant.
    ///
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - scores: `[batch / packing]`
    /// - gradient: `[batch / packing, numbers]`
    ///
    /// # Panics
    /// If the activation is not piecewise linear, or a score depends on the rest of the batch:
    /// [`ObjectiveConfig::validate`](super::ObjectiveConfig::validate) refuses both.
    pub fn input_gradient(&self, x: Tensor<4>) -> (Tensor<1>, Tensor<2>) {
        assert!(
            self.minibatch.is_none() && !self.deviation,
            "scores depend on their batch"
        );
        let mut x = self.packed(x.detach());
        let mut traces = Vec::with_capacity(self.body.len() + 1);
        for layer in self.layers() {
            let (y, trace) = layer.traced(x);
            traces.push(trace);
            x = y;
        }
        let mut grad = x.ones_like().detach();
        for (layer, trace) in self.layers().rev().zip(traces.into_iter().rev()) {
            grad = layer.pullback(trace, grad);
        }
        (x.flatten(0, 3), grad.flatten(1, 3))
    }

    /// The layers when nothing but linear ones and their activations stand between input and score.
    pub(super) fn plain_layers(&self) -> Option<Vec<(&Layer, Tensor<2>, Tensor<1>)>> {
        if self.minibatch.is_some() || self.deviation {
            return None;
        }
        self.layers()
            .map(|layer| {
                layer
                    .plain_dense()
                    .map(|(weight, bias)| (layer, weight, bias))
            })
            .collect()
    }

    /// Examples judged together.
    pub(super) fn pack(&self) -> usize {
        self.pack
    }

    fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        self.body.iter().chain([&self.head])
    }

    /// Before each update: one more round of the power iterations of spectral normalisation.
    pub fn renew(&self) {
        self.layers().for_each(Layer::renew);
    }

    /// Neighbours in the batch, side by side in the channels.
    pub(super) fn packed(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        x.reshape([batch / self.pack, self.pack * channels, height, width])
    }
}
