//! Activations in one pass over memory each way.

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

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32};
use crate::elementwise::{GRAIN, sigmoid, vectorized};
use crate::simd::Isa;

/// `x * sigmoid(x)`, also called swish.
///
/// # Shapes
/// - input, output: any, the same
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !is_flex_f32(&x) {
        return x.clone() * activation::sigmoid(x);
    }
    Tensor::from_dispatch(Dispatch::fused_activation(x.into_dispatch(), Curve::Silu))
}

/// GELU with the tanh approximation, GPT-2's `gelu_new` (Hendrycks and Gimpel 2016,
/// arXiv:1606.08415).
///
/// It is `x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, since
/// `(1 + tanh u) / 2 = sigmoid(2 u)`.
///
/// # Shapes
/// - input, output: any, the same
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !is_flex_f32(&x) {
        let square = x.clone() * x.clone();
        let inner = x.clone() * (square * CUBIC + LINEAR);
        return x * activation::sigmoid(inner);
    }
    Tensor::from_dispatch(Dispatch::fused_activation(
        x.into_dispatch(),
        Curve::GeluTanh,
    ))
}

/// `max(x, 0)`.
///
/// # Shapes
/// - input, output: any, the same
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !is_flex_f32(&x) {
        return activation::relu(x);
    }
    Tensor::from_dispatch(Dispatch::fused_activation(x.into_dispatch(), Curve::Relu))
}

/// `x` where it is positive, `slope x` elsewhere (Maas et al. 2013).
///
/// # Shapes
/// - input, output: any, the same
pub fn leaky_relu<const D: usize>(x: Tensor<D>, slope: f32) -> Tensor<D> {
    if !is_flex_f32(&x) {
        return activation::leaky_relu(x, f64::from(slope));
    }
    let curve = Curve::LeakyRelu(slope);
    Tensor::from_dispatch(Dispatch::fused_activation(x.into_dispatch(), curve))
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

/// `2 sqrt(2 / pi)`
const LINEAR: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715 * LINEAR;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Curve {
    Silu,
    GeluTanh,
    Relu,
    LeakyRelu(f32),
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
        let mut out = vec![0.0; values.len()];
        out.par_chunks_mut(GRAIN)
            .zip(values.par_chunks(GRAIN))
            .for_each(|(out, x)| match curve {
                Curve::Silu => silu_forward(isa, x, out),
                Curve::GeluTanh => gelu_forward(isa, x, out),
                Curve::Relu => relu_forward(isa, x, out),
                Curve::LeakyRelu(slope) => leaky_relu_forward(isa, slope, x, out),
            });
        flex_tensor(out, &shape)
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
        let chunks = grad
            .storage_mut::<f32>()
            .par_chunks_mut(GRAIN)
            .zip(x.par_chunks(GRAIN));
        chunks.for_each(|(grad, x)| match curve {
            Curve::Silu => silu_backward(isa, x, grad),
            Curve::GeluTanh => gelu_backward(isa, x, grad),
            Curve::Relu => leaky_relu_backward(isa, 0.0, x, grad),
            Curve::LeakyRelu(slope) => leaky_relu_backward(isa, slope, x, grad),
        });
        grads.register::<Flex>(node.id, grad);
    }
}

vectorized! {
    fn silu_forward(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * sigmoid(x);
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
    fn gelu_forward(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * sigmoid(x * (CUBIC * x * x + LINEAR));
        }
    }
}

vectorized! {
    fn gelu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let square = x * x;
            let s = sigmoid(x * (CUBIC * square + LINEAR));
            *grad *= s + x * s * (1.0 - s) * (3.0 * CUBIC * square + LINEAR);
        }
    }
}

vectorized! {
    fn relu_forward(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            // A NaN stays one.
            *out = if x < 0.0 { 0.0 } else { x };
        }
    }
}

vectorized! {
    fn leaky_relu_forward(slope: f32, x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * if x > 0.0 { 1.0 } else { slope };
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
