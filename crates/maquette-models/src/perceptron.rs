//! The multilayer perceptron with every part exchangeable: activation, normalisation, residual
//! connections, dropout and initialisation.
//!
//! A block is `activation(norm(W x + b))`, with dropout behind it and, where asked for and the
//! widths agree, the block's input added to its output (He et al. 2016, arXiv 1512.03385).

use burn::{
    module::Module,
    nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig},
    tensor::{Device, Int, Tensor, activation},
};
use maquette_nn::{
    InitScheme, Norm, NormConfig, NormKind, cross_entropy,
    init::{Fill, initialise},
    norm::GroupNorm,
    spectral::spectral_norm,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

/// The non-linearity between two layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(0, x)` (Glorot et al. 2011).
    #[default]
    Relu,
    /// `x` above zero, `0.01 x` below.
    LeakyRelu,
    /// `x Phi(x)` (Hendrycks & Gimpel 2016, arXiv 1606.08415).
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
}

impl Activation {
    /// Element by element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Sigmoid => activation::sigmoid(x),
            Self::Tanh => activation::tanh(x),
            Self::Relu => activation::relu(x),
            Self::LeakyRelu => activation::leaky_relu(x, 0.01),
            Self::Gelu => activation::gelu(x),
            Self::Silu => activation::silu(x),
        }
    }
}

/// What stands between a layer and its activation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// Nothing.
    #[default]
    None,
    /// Each feature over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).
    BatchNorm,
    /// Each example over its features (Ba et al. 2016, arXiv 1607.06450).
    LayerNorm,
    /// As layer norm without the mean (Zhang & Sennrich 2019, arXiv 1910.07467).
    RmsNorm,
    /// Each example over eight groups of features (Wu & He 2018, arXiv 1803.08494).
    GroupNorm,
    /// The weights instead: divided by their largest singular value (Miyato et al. 2018, arXiv
    /// 1802.05957).
    SpectralNorm,
}

/// Configuration of a [`Perceptron`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerceptronConfig {
    /// Numbers per example.
    pub d_input: usize,
    /// Width of the hidden layers.
    pub d_hidden: usize,
    /// Hidden layers.
    pub n_layers: usize,
    /// Numbers per answer: classes, or regressed values.
    pub d_output: usize,
    /// Between the layers.
    #[serde(default)]
    pub activation: Activation,
    /// Normalisation of the hidden layers.
    #[serde(default)]
    pub norm: Normalise,
    /// Whether a hidden layer adds its input to its output.
    #[serde(default)]
    pub residual: bool,
    /// Share of hidden numbers set to zero in training (Srivastava et al. 2014).
    #[serde(default)]
    pub dropout: f64,
    /// How the weights are drawn.
    #[serde(default = "he")]
    pub init: InitScheme,
}

fn he() -> InitScheme {
    InitScheme::He
}

impl PerceptronConfig {
    /// ReLU layers drawn by He's rule, nothing else.
    pub fn new(d_input: usize, d_hidden: usize, n_layers: usize, d_output: usize) -> Self {
        Self {
            d_input,
            d_hidden,
            n_layers,
            d_output,
            activation: Activation::default(),
            norm: Normalise::default(),
            residual: false,
            dropout: 0.0,
            init: he(),
        }
    }

    /// A network whose weights are drawn from `rng`.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Perceptron {
        let layers = (0..self.n_layers).map(|i| {
            let d_input = if i == 0 { self.d_input } else { self.d_hidden };
            self.layer(d_input, device)
        });
        let network = Perceptron {
            layers: layers.collect(),
            head: LinearConfig::new(
                if self.n_layers == 0 {
                    self.d_input
                } else {
                    self.d_hidden
                },
                self.d_output,
            )
            .init(device),
            activation: self.activation,
        };
        initialise(network, rng, |slot| {
            match slot.path.rsplit('.').next().unwrap_or_default() {
                // Burn's batch norm names its gains and statistics so.
                "gamma" | "running_var" => Fill::Constant(1.0),
                "beta" | "running_mean" => Fill::Constant(0.0),
                _ => self.init.fill(slot),
            }
        })
    }

    fn layer(&self, d_input: usize, device: &Device) -> Layer {
        let width = self.d_hidden;
        let norm = |kind| {
            NormConfig {
                kind,
                d_model: width,
                eps: 1e-5,
                bias: true,
            }
            .init(device)
        };
        Layer {
            linear: LinearConfig::new(d_input, width).init(device),
            batch: (self.norm == Normalise::BatchNorm)
                .then(|| BatchNormConfig::new(width).init(device)),
            norm: match self.norm {
                Normalise::LayerNorm => Some(norm(NormKind::LayerNorm)),
                Normalise::RmsNorm => Some(norm(NormKind::RmsNorm)),
                _ => None,
            },
            group: (self.norm == Normalise::GroupNorm).then(|| GroupNorm::new(8, width, device)),
            dropout: DropoutConfig::new(self.dropout).init(),
            residual: self.residual && d_input == width,
            spectral: self.norm == Normalise::SpectralNorm,
        }
    }
}

/// One hidden layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// `[d_in, d_hidden]`.
    pub linear: Linear,
    batch: Option<BatchNorm>,
    norm: Option<Norm>,
    group: Option<GroupNorm>,
    dropout: Dropout,
    residual: bool,
    spectral: bool,
}

impl Layer {
    fn forward(&self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        let mut h = match self.spectral {
            true => {
                let bias = self.linear.bias.as_ref().map(|b| b.val().unsqueeze());
                let h = x.clone().matmul(spectral_norm(self.linear.weight.val(), 5));
                bias.map_or(h.clone(), |bias: Tensor<2>| h + bias)
            }
            false => self.linear.forward(x.clone()),
        };
        if let Some(norm) = &self.batch {
            h = norm.forward(h);
        }
        if let Some(norm) = &self.norm {
            h = norm.forward(h);
        }
        if let Some(norm) = &self.group {
            let [batch, width] = h.dims();
            h = norm
                .forward(
                    h.reshape([batch, width, 1, 1]),
                    maquette_nn::Activation::Identity,
                )
                .reshape([batch, width]);
        }
        let h = self.dropout.forward(activation.forward(h));
        if self.residual { x + h } else { h }
    }
}

/// A multilayer perceptron.
#[derive(Module, Debug)]
pub struct Perceptron {
    /// The hidden layers, first to last.
    pub layers: Vec<Layer>,
    /// The last linear map, `[d_hidden, d_output]`.
    pub head: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Perceptron {
    /// # Shapes
    /// - x: `[batch, d_input]`
    /// - output: `[batch, d_output]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let hidden = self
            .layers
            .iter()
            .fold(x, |x, layer| layer.forward(x, self.activation));
        self.head.forward(hidden)
    }

    /// Cross-entropy as a classifier, in nats.
    ///
    /// # Shapes
    /// - x: `[batch, d_input]`
    /// - labels: `[batch]`
    /// - output: `[1]`
    pub fn loss(&self, x: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
        cross_entropy(self.forward(x), labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    fn network(change: impl Fn(&mut PerceptronConfig)) -> Perceptron {
        let mut config = PerceptronConfig::new(3, 16, 3, 2);
        change(&mut config);
        config.init(&mut rng(0, Stream::Init, 0), &Device::flex().autodiff())
    }

    fn input() -> Tensor<2> {
        let x = maquette_rng::normal(&mut rng(1, Stream::Data, 0), 12);
        Tensor::<1>::from_floats(x.as_slice(), &Device::flex().autodiff()).reshape([4, 3])
    }

    #[test]
    fn every_combination_gives_finite_gradients_for_every_layer() {
        use Normalise::*;
        for norm in [None, BatchNorm, LayerNorm, RmsNorm, GroupNorm, SpectralNorm] {
            for residual in [false, true] {
                let network = network(|c| (c.norm, c.residual, c.dropout) = (norm, residual, 0.1));
                let labels = Tensor::from_ints([0, 1, 0, 1], &Device::flex().autodiff());
                let gradients = network.loss(input(), labels).backward();
                for layer in &network.layers {
                    let gradient = layer.linear.weight.grad(&gradients).unwrap();
                    let norm_of = gradient.abs().sum().into_scalar::<f32>();
                    assert!(norm_of.is_finite() && norm_of > 0.0, "{norm:?} {residual}");
                }
            }
        }
    }

    #[test]
    fn same_generator_same_network() {
        let (a, b) = (network(|_| ()), network(|_| ()));
        assert_eq!(
            a.forward(input()).into_data(),
            b.forward(input()).into_data()
        );
    }

    #[test]
    fn batch_norm_starts_as_the_identity_in_inference() {
        let plain = network(|_| ()).valid();
        let normed = network(|c| c.norm = Normalise::BatchNorm).valid();
        let input = input().inner();
        let (a, b) = (plain.forward(input.clone()), normed.forward(input));
        let worst = (a - b).abs().max().into_scalar::<f32>();
        assert!(worst < 1e-4, "{worst}");
    }

    #[test]
    fn unknown_keys_are_refused() {
        let json = r#"{"d_input":1,"d_hidden":1,"n_layers":1,"d_output":1,"depth":3}"#;
        assert!(serde_json::from_str::<PerceptronConfig>(json).is_err());
    }
}
