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
use crate::elementwise::{GRAIN, map, update, vectorized};
use crate::pieces::{BEYOND, FAR, SLOPE};
use crate::simd::{Isa, Lanes};
use crate::vector::Vector;

/// An activation function: on its own, after a linear layer or a norm in the same pass over memory, or of
/// a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Nothing.
    Identity,
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
    activate(x, Activation::Silu)
}

/// `x * P(Z < x)` of a standard normal `Z` (Hendrycks and Gimpel 2016, arXiv:1606.08415), to an
/// absolute error of `2e-7 |x|`.
///
/// # Shapes
/// - input, output: any, the same
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Activation::Gelu)
}

/// [`gelu`] with the tanh approximation, GPT-2's `gelu_new`.
///
/// It is `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, since
/// `(1 + tanh u) / 2 = sigmoid(2 u)`.
///
/// # Shapes
/// - input, output: any, the same
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Activation::GeluTanh)
}

/// `max(x, 0)`.
///
/// # Shapes
/// - input, output: any, the same
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Activation::Relu)
}

/// `x` where it is positive, `slope x` elsewhere (Maas et al. 2013).
///
/// # Shapes
/// - input, output: any, the same
pub fn leaky_relu<const D: usize>(x: Tensor<D>, slope: f32) -> Tensor<D> {
    activate(x, Activation::LeakyRelu(slope))
}

/// Applies the activation to every number.
///
/// # Shapes
/// - input, output: any, the same
pub fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    if activation == Activation::Identity || !is_flex_f32(&x) {
        return activation.composed(x);
    }
    Tensor::from_dispatch(Dispatch::fused_activation(x.into_dispatch(), activation))
}

/// `2 sqrt(2 / pi)`
const LINEAR: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715 * LINEAR;

impl Activation {
    /// The same of Burn's operators.
    pub(crate) fn composed<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity => x,
            Self::Relu => activation::relu(x),
            Self::LeakyRelu(slope) => activation::leaky_relu(x, f64::from(slope)),
            Self::Silu => x.clone() * activation::sigmoid(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => {
                let square = x.clone() * x.clone();
                let inner = x.clone() * (square * CUBIC + LINEAR);
                x * activation::sigmoid(inner)
            }
        }
    }

    /// Of each lane.
    #[inline(always)]
    pub(crate) fn of<L: Lanes>(self, x: Vector<L>) -> Vector<L> {
        match self {
            Self::Identity => x,
            // A NaN stays one.
            Self::Relu => x.splat(0.0).greater(x, x.splat(0.0), x),
            Self::LeakyRelu(slope) => x * x.greater(x.splat(0.0), x.splat(1.0), x.splat(slope)),
            Self::Silu => x * x.sigmoid(),
            Self::Gelu => gelu_of(x),
            Self::GeluTanh => {
                let inner = (x * x).mul_add(x.splat(CUBIC), x.splat(LINEAR));
                x * (x * inner).sigmoid()
            }
        }
    }

    /// Of each lane, and its slope there.
    #[inline(always)]
    pub(crate) fn with_slope<L: Lanes>(self, x: Vector<L>) -> [Vector<L>; 2] {
        let one = x.splat(1.0);
        match self {
            Self::Identity => [x, one],
            Self::Relu => [self.of(x), x.greater(x.splat(0.0), one, x.splat(0.0))],
            Self::LeakyRelu(slope) => {
                let slope = x.greater(x.splat(0.0), one, x.splat(slope));
                [x * slope, slope]
            }
            Self::Silu => {
                let s = x.sigmoid();
                let y = x * s;
                [y, y.mul_add(one - s, s)]
            }
            Self::Gelu => {
                let slope = SLOPE.at(x.abs());
                [gelu_of(x), x.greater(x.splat(0.0), one - slope, slope)]
            }
            Self::GeluTanh => {
                let square = x * x;
                let s = (x * square.mul_add(x.splat(CUBIC), x.splat(LINEAR))).sigmoid();
                let y = x * s;
                let inner = square.mul_add(x.splat(3.0 * CUBIC), x.splat(LINEAR));
                [y, (y * (one - s)).mul_add(inner, s)]
            }
        }
    }
}

vectorized! {
    /// Of every number.
    pub(crate) fn apply<L>(machine, activation: Activation, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        map(machine, [x], out, |[x]| activation.of(x));
    }
}

vectorized! {
    /// As [`apply`], in place.
    pub(crate) fn apply_to<L>(machine, activation: Activation, values: &mut [f32]) {
        update(machine, values, [], |[x]| (activation.of(x), []));
    }
}

vectorized! {
    /// Turns the gradient of the output into that of the input `x`.
    pub(crate) fn apply_slope<L>(machine, activation: Activation, x: &[f32], grad: &mut [f32]) {
        update(machine, grad, [x], |[grad, x]| (grad * activation.with_slope(x)[1], []));
    }
}

/// The activations as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedActivation: Backend {
    /// Applies the activation to every number.
    fn fused_activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
}

impl FusedActivation for Flex {
    fn fused_activation(x: FlexTensor, activation: Activation) -> FlexTensor {
        let shape = x.shape();
        let x = contiguous(x);
        let values: &[f32] = x.storage();
        let isa = Isa::detect();
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(GRAIN)
                .zip(values.par_chunks(GRAIN))
                .for_each(|(out, x)| apply(isa, activation, x, out));
        };
        // SAFETY: every chunk is written from its start to its end.
        flex_tensor(unsafe { written(values.len(), write) }, &shape)
    }
}

impl<C: CheckpointStrategy> FusedActivation for Autodiff<Flex, C> {
    fn fused_activation(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        match ActivationBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), activation);
                prep.finish(
                    state,
                    Flex::fused_activation(x.into_primitive(), activation),
                )
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_activation(x.into_primitive(), activation))
            }
        }
    }
}

#[derive(Debug)]
struct ActivationBackward;

impl Backward<Flex, 1> for ActivationBackward {
    type State = (NodeId, Activation);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (x, activation) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(x));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let (isa, x): (_, &[f32]) = (Isa::detect(), x.storage());
        grad.storage_mut::<f32>()
            .par_chunks_mut(GRAIN)
            .zip(x.par_chunks(GRAIN))
            .for_each(|(grad, x)| apply_slope(isa, activation, x, grad));
        grads.register::<Flex>(node.id, grad);
    }
}

/// `x P(Z < x)`
#[inline(always)]
fn gelu_of<L: Lanes>(x: Vector<L>) -> Vector<L> {
    // A NaN stays one; of what is far below zero, nothing is left.
    let (positive, size) = (x.splat(0.0).max(x), x.splat(FAR).min(x.abs()));
    size.neg_mul_add(BEYOND.at(size), positive)
}
