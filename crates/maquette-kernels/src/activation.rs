//! Activations in one pass over memory each way.

use std::mem::MaybeUninit;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, activation};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{GRAIN, exp, sigmoid, vectorized};
use crate::simd::Isa;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// See [`relu`].
    Relu,
    /// See [`leaky_relu`].
    LeakyRelu(f32),
    /// See [`silu`].
    Silu,
    /// See [`gelu`].
    Gelu,
    /// See [`gelu_tanh`].
    GeluTanh,
}

/// `x * sigmoid(x)`, also called swish.
///
/// # Shapes
/// - input, output: any, the same
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Curve::Silu)
}

/// `x * P(Z < x)` of a standard normal `Z` (Hendrycks and Gimpel 2016, arXiv:1606.08415), to an
/// absolute error of `2e-7 |x|`.
///
/// # Shapes
/// - input, output: any, the same
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Curve::Gelu)
}

/// [`gelu`] with the tanh approximation, GPT-2's `gelu_new`.
///
/// It is `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, since
/// `(1 + tanh u) / 2 = sigmoid(2 u)`.
///
/// # Shapes
/// - input, output: any, the same
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Curve::GeluTanh)
}

/// `max(x, 0)`.
///
/// # Shapes
/// - input, output: any, the same
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Curve::Relu)
}

/// `x` where it is positive, `slope x` elsewhere (Maas et al. 2013).
///
/// # Shapes
/// - input, output: any, the same
pub fn leaky_relu<const D: usize>(x: Tensor<D>, slope: f32) -> Tensor<D> {
    activate(x, Curve::LeakyRelu(slope))
}

/// What a normalisation applies after scale and shift, in the same pass over memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(z, 0)`.
    Relu,
    /// `z` where it is positive, this times `z` elsewhere.
    LeakyRelu(f32),
    /// `z * sigmoid(z)`, also called swish.
    Silu,
}

impl Activation {
    /// The same of Burn's operators.
    pub(crate) fn composed<const D: usize>(self, z: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity => z,
            Self::Relu => activation::relu(z),
            Self::LeakyRelu(slope) => activation::leaky_relu(z, f64::from(slope)),
            Self::Silu => activation::silu(z),
        }
    }
}

/// Applies `curve` to every number.
pub(crate) fn activate<const D: usize>(x: Tensor<D>, curve: Curve) -> Tensor<D> {
    if is_flex_f32(&x) {
        return Tensor::from_dispatch(Dispatch::fused_activation(x.into_dispatch(), curve));
    }
    match curve {
        Curve::Relu => activation::relu(x),
        Curve::LeakyRelu(slope) => activation::leaky_relu(x, f64::from(slope)),
        Curve::Silu => x.clone() * activation::sigmoid(x),
        Curve::Gelu => activation::gelu(x),
        Curve::GeluTanh => {
            let square = x.clone() * x.clone();
            let inner = x.clone() * (square * CUBIC + LINEAR);
            x * activation::sigmoid(inner)
        }
    }
}

/// `2 sqrt(2 / pi)`
const LINEAR: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715 * LINEAR;

impl Curve {
    /// Of every number of `x`.
    pub(crate) fn forward(self, isa: Isa, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        match self {
            Self::Relu => relu_forward(isa, x, out),
            Self::LeakyRelu(slope) => leaky_relu_forward(isa, slope, x, out),
            Self::Silu => silu_forward(isa, x, out),
            Self::Gelu => gelu_forward(isa, x, out),
            Self::GeluTanh => gelu_tanh_forward(isa, x, out),
        }
    }

    /// Turns the gradient of the output into that of the input `x`.
    pub(crate) fn backward(self, isa: Isa, x: &[f32], grad: &mut [f32]) {
        match self {
            Self::Relu => leaky_relu_backward(isa, 0.0, x, grad),
            Self::LeakyRelu(slope) => leaky_relu_backward(isa, slope, x, grad),
            Self::Silu => silu_backward(isa, x, grad),
            Self::Gelu => gelu_backward(isa, x, grad),
            Self::GeluTanh => gelu_tanh_backward(isa, x, grad),
        }
    }
}

/// The activations as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedActivation: Backend {
    /// Applies the curve to every number.
    fn fused_activation(x: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self>;
}

impl FusedActivation for Flex {
    fn fused_activation(x: FlexTensor, curve: Curve) -> FlexTensor {
        let shape = x.shape();
        let x = contiguous(x);
        let values: &[f32] = x.storage();
        let isa = Isa::detect();
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(GRAIN)
                .zip(values.par_chunks(GRAIN))
                .for_each(|(out, x)| curve.forward(isa, x, out));
        };
        // SAFETY: every chunk is written from its start to its end.
        flex_tensor(unsafe { written(values.len(), write) }, &shape)
    }
}

impl<C: CheckpointStrategy> FusedActivation for Autodiff<Flex, C> {
    fn fused_activation(x: FloatTensor<Self>, curve: Curve) -> FloatTensor<Self> {
        match ActivationBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), curve);
                prep.finish(state, Flex::fused_activation(x.into_primitive(), curve))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_activation(x.into_primitive(), curve))
            }
        }
    }
}

#[derive(Debug)]
struct ActivationBackward;

impl Backward<Flex, 1> for ActivationBackward {
    type State = (NodeId, Curve);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (x, curve) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(x));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let (isa, x): (_, &[f32]) = (Isa::detect(), x.storage());
        grad.storage_mut::<f32>()
            .par_chunks_mut(GRAIN)
            .zip(x.par_chunks(GRAIN))
            .for_each(|(grad, x)| curve.backward(isa, x, grad));
        grads.register::<Flex>(node.id, grad);
    }
}

vectorized! {
    fn relu_forward(x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            // A NaN stays one.
            out.write(if x < 0.0 { 0.0 } else { x });
        }
    }
}

vectorized! {
    fn leaky_relu_forward(slope: f32, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(x * if x > 0.0 { 1.0 } else { slope });
        }
    }
}

vectorized! {
    fn leaky_relu_backward(slope: f32, x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad *= if x > 0.0 { 1.0 } else { slope };
        }
    }
}

vectorized! {
    fn silu_forward(x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(x * sigmoid(x));
        }
    }
}

vectorized! {
    fn silu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let s = sigmoid(x);
            *grad *= s + x * s * (1.0 - s);
        }
    }
}

vectorized! {
    fn gelu_forward(x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(x * normal(x).0);
        }
    }
}

vectorized! {
    fn gelu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let (below, density) = normal(x);
            *grad *= below + x * density;
        }
    }
}

vectorized! {
    fn gelu_tanh_forward(x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(x * sigmoid(x * (CUBIC * x * x + LINEAR)));
        }
    }
}

vectorized! {
    fn gelu_tanh_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let square = x * x;
            let s = sigmoid(x * (CUBIC * square + LINEAR));
            *grad *= s + x * s * (1.0 - s) * (3.0 * CUBIC * square + LINEAR);
        }
    }
}

/// `P(Z < x)` and the density at `x` of a standard normal `Z`; Abramowitz and Stegun 1964, 7.1.26.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let gauss = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let p = 1.061_405_4;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let above = 0.5 * p * t * gauss;
    let below = if x > 0.0 { 1.0 - above } else { above };
    (below, 0.398_942_3 * gauss)
}
