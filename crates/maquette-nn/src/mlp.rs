//! The position-wise network of a transformer block.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::linear::{Curve, Linear, LinearConfig};

/// What stands between the two projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MlpKind {
    /// `down(gelu(up(x)))`, GPT-2's.
    Gelu,
    /// `down(silu(gate(x)) * up(x))` (Shazeer 2020), the Llama family's.
    Swiglu,
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
        let gated = self.kind == MlpKind::Swiglu;
        Mlp {
            gate: gated.then(|| linear(self.d_model, self.d_ff)),
            up: linear(self.d_model, self.d_ff),
            down: linear(self.d_ff, self.d_model),
        }
    }
}

/// The position-wise network of a transformer block.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d_model, d_ff]`, with SwiGLU only.
    pub gate: Option<Linear>,
    /// `[d_model, d_ff]`.
    pub up: Linear,
    /// `[d_ff, d_model]`.
    pub down: Linear,
}

impl Mlp {
    /// # Shapes
    /// - input, output: `[..., d_model]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let hidden = match &self.gate {
            Some(gate) => gate.forward_through(x.clone(), Curve::Silu) * self.up.forward(x),
            None => self.up.forward_through(x, Curve::GeluTanh),
        };
        self.down.forward(hidden)
    }
}
