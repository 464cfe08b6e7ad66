//! A linear layer that fuses its offset and activation.

use burn::{
    module::{Module, Param},
    nn::Initializer,
    tensor::{Device, Tensor},
};
use maquette_kernels::{Activation, linear};

/// Configuration of a [`Linear`].
#[derive(Debug, Clone, Copy)]
pub struct LinearConfig {
    /// Number of inputs.
    pub d_in: usize,
    /// Number of outputs.
    pub d_out: usize,
    /// Whether an offset is added.
    pub bias: bool,
}

impl LinearConfig {
    /// A layer with an offset.
    pub fn new(d_in: usize, d_out: usize) -> Self {
        Self {
            d_in,
            d_out,
            bias: true,
        }
    }

    /// With an offset or without.
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// A layer of zeros; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Linear {
        Linear {
            weight: Initializer::Zeros.init([self.d_in, self.d_out], device),
            bias: self
                .bias
                .then(|| Initializer::Zeros.init([self.d_out], device)),
        }
    }
}

/// `x weight + bias`. Parameters are named and laid out as those of [`burn::nn::Linear`]; the
/// product is taken in the precision of [`maquette_kernels::autocast`].
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// # Shapes
    /// - input: `[.., d_in]`
    /// - output: `[.., d_out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val(), self.offset(), Activation::Identity)
    }

    /// The activation of [`Linear::forward`], in the same pass.
    ///
    /// # Shapes
    /// - input: `[.., d_in]`
    /// - output: `[.., d_out]`
    pub fn forward_through<const D: usize>(
        &self,
        x: Tensor<D>,
        activation: Activation,
    ) -> Tensor<D> {
        linear(x, self.weight.val(), self.offset(), activation)
    }

    fn offset(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(|bias| bias.val())
    }
}
