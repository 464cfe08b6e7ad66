//! The position-wise network of a transformer block.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use maquette_kernels::{gated, gelu, gelu_tanh, relu, silu};
use serde::{Deserialize, Serialize};

use crate::Activation;
use crate::linear::{Linear, LinearConfig};

/// What stands between the two projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MlpKind {
    /// `down(gelu(up(x)))` with GELU's tanh approximation, GPT-2's.
    Gelu,
    /// The same with the exact GELU, BERT's.
    GeluExact,
    /// `down(relu(up(x)))` (Vaswani et al. 2017).
    Relu,
    /// `down(silu(gate(x)) * up(x))` (Shazeer 2020), the Llama family's.
    Swiglu,
    /// `down(gelu(gate(x)) * up(x))` (Shazeer 2020), T5 1.1's; the tanh approximation.
    Geglu,
}

impl MlpKind {
    /// Whether a gate multiplies the hidden features.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Swiglu | Self::Geglu)
    }

    /// The activation alone, without projections or gate.
    pub fn activate<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu | Self::Geglu => gelu_tanh(x),
            Self::GeluExact => gelu(x),
            Self::Relu => relu(x),
            Self::Swiglu => silu(x),
        }
    }

    /// The activation between the projections.
    pub fn activation(self) -> Activation {
        match self {
            Self::Gelu | Self::Geglu => Activation::GeluTanh,
            Self::GeluExact => Activation::Gelu,
            Self::Relu => Activation::Relu,
            Self::Swiglu => Activation::Silu,
        }
    }
}

/// Configuration of an [`Mlp`].
#[derive(Debug, Clone, Copy)]
pub struct MlpConfig {
    /// Which non-linearity.
    pub kind: MlpKind,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width in between.
    pub d_ff: usize,
    /// Whether the projections add an offset.
    pub bias: bool,
}

impl MlpConfig {
    /// A block; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Mlp {
        let linear = |d_in, d_out| {
            LinearConfig::new(d_in, d_out)
                .with_bias(self.bias)
                .init(device)
        };
        Mlp {
            gate: self
                .kind
                .is_gated()
                .then(|| linear(self.d_model, self.d_ff)),
            up: linear(self.d_model, self.d_ff),
            down: linear(self.d_ff, self.d_model),
            kind: self.kind,
        }
    }
}

/// The position-wise network of a transformer block.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d_model, d_ff]`, of the gated kinds only.
    pub gate: Option<Linear>,
    /// `[d_model, d_ff]`.
    pub up: Linear,
    /// `[d_ff, d_model]`.
    pub down: Linear,
    #[module(skip)]
    kind: MlpKind,
}

impl Mlp {
    /// # Shapes
    /// - input, output: `[..., d_model]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let hidden = match &self.gate {
            Some(gate) => gated(
                gate.forward(x.clone()),
                self.up.forward(x),
                self.kind.activation(),
            ),
            None => self.up.forward_through(x, self.kind.activation()),
        };
        self.down.forward(hidden)
    }
}
