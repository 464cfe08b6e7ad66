//! The layers that generators and critics are made of: a kernel, a norm, an activation.
//!
//! Beside its forward pass each layer has its *pullback*: the gradient of a critic's score with respect
//! to the layer's input, given that of its output, written as forward operators of weights and masks.
//! Burn differentiates once; so differentiated, the pullback gives exact gradients of gradients.

use burn::{
    module::Module,
    tensor::{Device, Tensor, activation},
};
use maquette_nn::{
    BatchNorm, Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig, Linear, LinearConfig,
    norm::GroupNorm, project, spectral::PowerIteration,
};
use serde::{Deserialize, Serialize};

/// The non-linearity of a player's hidden layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(0, x)`.
    Relu,
    /// `x` above zero, `0.2 x` below, as in DCGAN's critic.
    #[default]
    LeakyRelu,
    /// `x Phi(x)`.
    Gelu,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

const SLOPE: f32 = 0.2;

impl Activation {
    /// Whether it is made of straight pieces, so that its slope does not change with its input but at
    /// corners: what exact gradient penalties rest on.
    pub fn is_piecewise_linear(self) -> bool {
        matches!(self, Self::Relu | Self::LeakyRelu)
    }

    /// The kernel that can be fused to a layer before it, if there is one.
    fn fused(self) -> Option<maquette_nn::Activation> {
        match self {
            Self::Relu => Some(maquette_nn::Activation::Relu),
            Self::LeakyRelu => Some(maquette_nn::Activation::LeakyRelu(SLOPE)),
            Self::Gelu => Some(maquette_nn::Activation::Gelu),
            Self::Silu => Some(maquette_nn::Activation::Silu),
            Self::Tanh | Self::Sigmoid => None,
        }
    }

    /// The slope at each number, a constant to whoever differentiates. Of a piecewise linear activation
    /// through the origin, the number times its slope is the activation.
    fn slope<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let low = match self {
            Self::LeakyRelu => f64::from(SLOPE),
            _ => 0.0,
        };
        x.detach().greater_elem(0.0).float() * (1.0 - low) + low
    }

    /// Element by element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Relu => maquette_nn::relu(x),
            Self::LeakyRelu => maquette_nn::leaky_relu(x, SLOPE),
            Self::Gelu => maquette_nn::gelu(x),
            Self::Silu => maquette_nn::silu(x),
            Self::Tanh => activation::tanh(x),
            Self::Sigmoid => activation::sigmoid(x),
        }
    }
}

/// What is normalised between a layer and its activation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormChoice {
    /// Nothing.
    #[default]
    None,
    /// Each channel over the batch (Ioffe and Szegedy 2015, arXiv:1502.03167).
    Batch,
    /// Each example over all channels and places (Ba et al. 2016, arXiv:1607.06450).
    Layer,
    /// Each channel of each example over its places (Ulyanov et al. 2016, arXiv:1607.08022).
    Instance,
}

/// The linear part of a layer.
#[derive(Module, Debug)]
pub(super) enum Kernel {
    Dense(Linear),
    Conv(Conv2d),
    Up(ConvTranspose2d),
}

impl Kernel {
    fn channels(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight.dims()[1],
            Self::Conv(conv) => conv.weight.dims()[0],
            Self::Up(conv) => conv.weight.dims()[1],
        }
    }
}

#[derive(Module, Debug)]
enum Normaliser {
    Batch(BatchNorm),
    Groups(GroupNorm),
}

/// How a layer is built.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LayerConfig {
    pub(super) norm: NormChoice,
    pub(super) activation: Option<Activation>,
    /// Whether the weight is divided by its largest singular value.
    pub(super) spectral: bool,
}

impl LayerConfig {
    fn init(self, kernel: Kernel, device: &Device) -> Layer {
        Layer {
            spectral: self
                .spectral
                .then(|| PowerIteration::new(kernel.rows(), device)),
            finish: self.finish(kernel.channels(), device),
            kernel,
            side: 1,
        }
    }

    /// The norm and the activation alone.
    pub(super) fn finish(self, channels: usize, device: &Device) -> Finish {
        let groups = |n| Some(Normaliser::Groups(GroupNorm::new(n, channels, device)));
        Finish {
            norm: match self.norm {
                NormChoice::None => None,
                NormChoice::Batch => Some(Normaliser::Batch(BatchNorm::new(channels, device))),
                NormChoice::Layer => groups(1),
                NormChoice::Instance => groups(channels),
            },
            activation: self.activation,
        }
    }

    /// A linear layer: any image to one pixel.
    pub(super) fn dense(self, d_in: usize, d_out: usize, device: &Device) -> Layer {
        let kernel = Kernel::Dense(LinearConfig::new(d_in, d_out).init(device));
        self.init(kernel, device)
    }

    /// A linear layer from one pixel to `channels` of `side` x `side`; the offset is a channel's.
    pub(super) fn spread(
        self,
        d_in: usize,
        [channels, side]: [usize; 2],
        device: &Device,
    ) -> Layer {
        let config = LinearConfig::new(d_in, channels * side * side);
        Layer {
            side,
            finish: self.finish(channels, device),
            ..self.init(Kernel::Dense(config.init(device)), device)
        }
    }

    /// A convolution of an odd kernel that keeps the size.
    pub(super) fn same(self, [d_in, d_out]: [usize; 2], kernel: usize, device: &Device) -> Layer {
        self.conv(Conv2dConfig::same(d_in, d_out, kernel), device)
    }

    /// A 4x4 convolution that halves the size.
    pub(super) fn halve(self, [d_in, d_out]: [usize; 2], device: &Device) -> Layer {
        let config = Conv2dConfig {
            kernel: 4,
            ..Conv2dConfig::halve(d_in, d_out)
        };
        self.conv(config, device)
    }

    fn conv(self, config: Conv2dConfig, device: &Device) -> Layer {
        let config = Conv2dConfig {
            bias: self.has_offset(),
            ..config
        };
        self.init(Kernel::Conv(config.init(device)), device)
    }

    /// A 4x4 transposed convolution that doubles the size.
    pub(super) fn double(self, [d_in, d_out]: [usize; 2], device: &Device) -> Layer {
        let config = ConvTranspose2dConfig {
            bias: self.has_offset(),
            ..ConvTranspose2dConfig::double(d_in, d_out)
        };
        self.init(Kernel::Up(config.init(device)), device)
    }

    /// A norm over each channel takes the offset away again.
    fn has_offset(self) -> bool {
        !matches!(self.norm, NormChoice::Batch | NormChoice::Instance)
    }
}

/// A kernel, a norm, an activation; on images, of which points are those of one pixel.
#[derive(Module, Debug)]
pub(super) struct Layer {
    kernel: Kernel,
    spectral: Option<PowerIteration>,
    finish: Finish,
    /// Side of the image that a dense layer makes.
    side: usize,
}

/// What follows a kernel: a norm, then an activation.
#[derive(Module, Debug)]
pub(super) struct Finish {
    norm: Option<Normaliser>,
    #[module(skip)]
    activation: Option<Activation>,
}

impl Kernel {
    /// Rows of the weight as a matrix.
    fn rows(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight.dims()[0],
            Self::Conv(conv) => conv.weight.dims()[0],
            Self::Up(conv) => conv.weight.dims()[0],
        }
    }
}

impl Finish {
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (own, rest) = self.fused();
        let x = match &self.norm {
            None => maquette_nn::activate(x, own),
            Some(norm) => norm.forward(x, own),
        };
        rest.map_or(x.clone(), |activation| activation.forward(x))
    }

    /// The activation as far as it can be fused to what comes before it, and what is left of it.
    fn fused(&self) -> (maquette_nn::Activation, Option<Activation>) {
        let identity = maquette_nn::Activation::Identity;
        match self.activation {
            None => (identity, None),
            Some(activation) => match activation.fused() {
                Some(fused) => (fused, None),
                None => (identity, Some(activation)),
            },
        }
    }

    /// [`Finish::forward`] in plain operators, with what [`Finish::pullback`] needs of it.
    ///
    /// # Panics
    /// If the activation is not piecewise linear, or the norm is over the batch.
    pub(super) fn traced(&self, x: Tensor<4>) -> (Tensor<4>, FinishTrace) {
        let (x, norm) = match &self.norm {
            None => (x, None),
            Some(Normaliser::Groups(norm)) => {
                let (x, trace) = GroupTrace::of(norm, x);
                (x, Some(trace))
            }
            Some(Normaliser::Batch(_)) => panic!("a batch norm has no gradient per example"),
        };
        let Some(activation) = self.activation else {
            return (x, FinishTrace { slope: None, norm });
        };
        assert!(
            activation.is_piecewise_linear(),
            "{activation:?} is not piecewise linear"
        );
        let slope = activation.slope(x.clone());
        let trace = FinishTrace {
            slope: Some(slope.clone()),
            norm,
        };
        (x * slope, trace)
    }

    pub(super) fn pullback(&self, trace: FinishTrace, grad: Tensor<4>) -> Tensor<4> {
        let grad = match trace.slope {
            Some(slope) => grad * slope,
            None => grad,
        };
        match (trace.norm, &self.norm) {
            (Some(norm), Some(Normaliser::Groups(groups))) => norm.pullback(groups, grad),
            _ => grad,
        }
    }
}

impl Layer {
    /// # Shapes
    /// - x: `[batch, channels, height, width]`; flattened for a dense layer
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        if self.finish.norm.is_some() {
            return self.finish.forward(self.linear(x, IDENTITY));
        }
        // Without a norm between them, the activation is fused to the kernel where it can be.
        let (own, rest) = self.finish.fused();
        let x = self.linear(x, own);
        rest.map_or(x.clone(), |activation| activation.forward(x))
    }

    /// [`Layer::forward`] in plain operators, with what [`Layer::pullback`] needs of it.
    ///
    /// # Panics
    /// As [`Finish::traced`].
    pub(super) fn traced(&self, x: Tensor<4>) -> (Tensor<4>, Trace) {
        let input = x.dims();
        let (y, finish) = self.finish.traced(self.linear(x, IDENTITY));
        (y, Trace { input, finish })
    }

    /// From the gradient of a score with respect to this layer's output, that with respect to its input.
    pub(super) fn pullback(&self, trace: Trace, grad: Tensor<4>) -> Tensor<4> {
        let grad = self.finish.pullback(trace.finish, grad);
        match &self.kernel {
            Kernel::Dense(linear) => {
                let weight = self.weight(linear.weight.val());
                let grad = grad.flatten::<2>(1, 3).matmul(weight.transpose());
                grad.reshape(trace.input)
            }
            Kernel::Conv(conv) => conv.pullback(grad, self.weight(conv.weight.val())),
            Kernel::Up(_) => panic!("a critic has no transposed convolution"),
        }
    }

    /// Takes one more step of the power iteration of a spectrally normalised layer.
    pub(super) fn renew(&self) {
        if let Some(spectral) = &self.spectral {
            match &self.kernel {
                Kernel::Dense(linear) => spectral.renew(linear.weight.val()),
                Kernel::Conv(conv) => spectral.renew(conv.weight.val()),
                Kernel::Up(conv) => spectral.renew(conv.weight.val()),
            }
        }
    }

    fn linear(&self, x: Tensor<4>, activation: maquette_nn::Activation) -> Tensor<4> {
        match &self.kernel {
            Kernel::Dense(linear) => {
                let bias = linear.bias.as_ref().map(|bias| bias.val());
                let h = project(
                    x.flatten::<2>(1, 3),
                    self.weight(linear.weight.val()),
                    bias,
                    activation,
                );
                let [batch, width] = h.dims();
                let area = self.side * self.side;
                h.reshape([batch, width / area, self.side, self.side])
            }
            Kernel::Conv(conv) => maquette_nn::activate(
                conv.forward_with(x, self.weight(conv.weight.val())),
                activation,
            ),
            Kernel::Up(conv) => maquette_nn::activate(
                conv.forward_with(x, self.weight(conv.weight.val())),
                activation,
            ),
        }
    }

    /// A linear layer without a norm after it.
    pub(super) fn plain_dense(&self) -> Option<PlainDense> {
        match &self.kernel {
            Kernel::Dense(linear) if self.finish.norm.is_none() => Some(PlainDense {
                weight: linear.weight.val(),
                bias: linear.bias.as_ref()?.val(),
                left: self.spectral.as_ref().map(PowerIteration::left),
            }),
            _ => None,
        }
    }

    #[cfg(test)]
    pub(super) fn dense_weight(&self) -> Tensor<2> {
        match &self.kernel {
            Kernel::Dense(linear) => linear.weight.val(),
            _ => panic!("not a dense layer"),
        }
    }

    /// [`Activation::slope`] of the layer's own; 1 throughout where there is none.
    pub(super) fn slope(&self, x: Tensor<2>) -> Tensor<2> {
        match self.finish.activation {
            Some(activation) => activation.slope(x),
            None => x.ones_like(),
        }
    }

    fn weight<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        match &self.spectral {
            Some(spectral) => spectral.divide(weight),
            None => weight,
        }
    }
}

const IDENTITY: maquette_nn::Activation = maquette_nn::Activation::Identity;

/// The parameters of a linear layer.
#[derive(Clone)]
pub(super) struct PlainDense {
    /// `[d_in, d_out]`.
    pub(super) weight: Tensor<2>,
    /// `[d_out]`.
    pub(super) bias: Tensor<1>,
    /// The left vector of the power iteration, `[1, d_in]`, where the weight is spectrally normalised.
    pub(super) left: Option<Tensor<2>>,
}

/// What the pullback of a [`Layer`] needs of its forward pass.
pub(super) struct Trace {
    input: [usize; 4],
    finish: FinishTrace,
}

/// What the pullback of a [`Finish`] needs of its forward pass.
pub(super) struct FinishTrace {
    /// Of the activation; 1 throughout where there is none.
    slope: Option<Tensor<4>>,
    norm: Option<GroupTrace>,
}

/// A group norm in plain operators: the normalised numbers and the inverse deviation of their group.
struct GroupTrace {
    /// `[batch, groups, numbers]`.
    normal: Tensor<3>,
    /// `[batch, groups, 1]`.
    inverse: Tensor<3>,
}

impl GroupTrace {
    fn of(norm: &GroupNorm, x: Tensor<4>) -> (Tensor<4>, Self) {
        let shape = x.dims();
        let x: Tensor<3> = x.reshape([shape[0] as i32, norm.groups() as i32, -1]);
        let centred = x.clone() - x.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let inverse = (variance + GroupNorm::EPSILON).sqrt().recip();
        let normal = centred * inverse.clone();
        let per_channel = |param: Tensor<1>| param.reshape([1, shape[1], 1, 1]);
        let y = normal.clone().reshape(shape) * per_channel(norm.weight.val())
            + per_channel(norm.bias.val());
        (y, Self { normal, inverse })
    }

    fn pullback(self, norm: &GroupNorm, grad: Tensor<4>) -> Tensor<4> {
        let shape = grad.dims();
        let gain = norm.weight.val().reshape([1, shape[1], 1, 1]);
        let grad: Tensor<3> = (grad * gain).reshape(self.normal.dims());
        let along = (grad.clone() * self.normal.clone()).mean_dim(2);
        let rest = grad.clone() - grad.mean_dim(2) - self.normal * along;
        (rest * self.inverse).reshape(shape)
    }
}

impl Normaliser {
    fn forward(&self, x: Tensor<4>, activation: maquette_nn::Activation) -> Tensor<4> {
        match self {
            Self::Batch(norm) => norm.forward(x, activation),
            Self::Groups(norm) => norm.forward(x, activation),
        }
    }
}
