//! Activations in one pass over memory each way.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid as burn_sigmoid;
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
        return x.clone() * burn_sigmoid(x);
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
        return x * burn_sigmoid(inner);
    }
    Tensor::from_dispatch(Dispatch::fused_activation(
        x.into_dispatch(),
        Curve::GeluTanh,
    ))
}

/// `2 sqrt(2 / pi)`
const LINEAR: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715 * LINEAR;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Curve {
    Silu,
    GeluTanh,
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
