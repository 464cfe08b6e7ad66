//! A small convolutional classifier: the judge that reads generated images back, and the source of
//! features for metrics on small images.

use burn::{
    module::Module,
    nn::{Dropout, DropoutConfig},
    tensor::{Device, Int, Tensor},
};
use maquette_nn::{
    Activation, Conv2d, Conv2dConfig, InitScheme, Linear, LinearConfig, cross_entropy,
    init::initialise, norm::GroupNorm,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// Configuration of a [`Classifier`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassifierConfig {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Number of classes; 0 in a recipe means "the data's".
    pub n_classes: usize,
    /// Channels after each convolution, each of which halves the size, rounding up.
    pub channels: Vec<usize>,
    /// Width of the last hidden layer, whose activations are the features.
    pub d_features: usize,
    /// Dropout of the features in training.
    pub dropout: f64,
    /// How weights are drawn.
    pub init: InitScheme,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self {
            image: [1, 28, 28],
            n_classes: 0,
            channels: vec![32, 64, 128],
            d_features: 128,
            dropout: 0.2,
            init: InitScheme::He,
        }
    }
}

impl ClassifierConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        for (key, value) in [
            ("image", self.image.iter().copied().min().unwrap_or(0)),
            ("n_classes", self.n_classes),
            ("channels", self.channels.iter().copied().min().unwrap_or(0)),
            ("d_features", self.d_features),
        ] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })
    }

    /// A network with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`ClassifierConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> Classifier {
        if let Err(error) = self.validate() {
            panic!("invalid ClassifierConfig: {error}");
        }
        let [colours, mut height, mut width] = self.image;
        let mut d_in = colours;
        let stages = self.channels.iter().map(|&d_out| {
            (height, width) = (height.div_ceil(2), width.div_ceil(2));
            let conv = Conv2dConfig::halve(std::mem::replace(&mut d_in, d_out), d_out);
            Stage {
                conv: conv.init(device),
                norm: GroupNorm::new(8, d_out, device),
            }
        });
        let stages = stages.collect();
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).init(device);
        let model = Classifier {
            stages,
            hidden: linear(d_in * height * width, self.d_features),
            dropout: DropoutConfig::new(self.dropout).init(),
            output: linear(self.d_features, self.n_classes),
        };
        initialise(model, rng, |slot| self.init.fill(slot))
    }
}

#[derive(Module, Debug)]
struct Stage {
    conv: Conv2d,
    norm: GroupNorm,
}

/// A small convolutional classifier.
#[derive(Module, Debug)]
pub struct Classifier {
    stages: Vec<Stage>,
    hidden: Linear,
    dropout: Dropout,
    output: Linear,
}

impl Classifier {
    /// Activations of the last hidden layer.
    ///
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - output: `[batch, d_features]`
    pub fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let stage = |x, stage: &Stage| stage.norm.forward(stage.conv.forward(x), Activation::Silu);
        let x = self.stages.iter().fold(x, stage);
        self.hidden
            .forward_through(x.flatten::<2>(1, 3), Activation::Relu)
    }

    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - output: logits, `[batch, n_classes]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        self.classify(self.features(x))
    }

    /// The logits of [`features`](Self::features).
    ///
    /// # Shapes
    /// - features: `[batch, d_features]`
    /// - output: `[batch, n_classes]`
    pub fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        self.output.forward(self.dropout.forward(features))
    }

    /// Mean negative log-likelihood of the labels, in nats, `[1]`.
    ///
    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - labels: `[batch]`
    pub fn loss(&self, x: Tensor<4>, labels: Tensor<1, Int>) -> Tensor<1> {
        cross_entropy(self.forward(x), labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn shapes() {
        let config = ClassifierConfig {
            image: [3, 7, 9],
            n_classes: 5,
            ..ClassifierConfig::default()
        };
        let model = config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
        let x = Tensor::<4>::ones([2, 3, 7, 9], &Device::flex());
        assert_eq!(model.features(x.clone()).dims(), [2, 128]);
        assert_eq!(model.forward(x).dims(), [2, 5]);
    }
}
