//! A curve of one tensor times another, in one pass over memory each way.

use std::mem::MaybeUninit;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::activation::{Curve, activate};
use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{GRAIN, multiply_by};
use crate::simd::Isa;

/// Numbers whose curve is kept at hand between the two products of the backward pass.
const PART: usize = 256;

/// `curve(gate) * x`: the gated linear units between the projections of a transformer (Shazeer 2020,
/// arXiv:2002.05202), SwiGLU with [`Curve::Silu`] and GEGLU with a GELU.
///
/// # Shapes
/// - `gate`, `x`, output: any, the same
///
/// # Panics
/// If the shapes disagree.
pub fn gated<const D: usize>(gate: Tensor<D>, x: Tensor<D>, curve: Curve) -> Tensor<D> {
    assert_eq!(gate.dims(), x.dims(), "gated: one gate per number");
    if is_flex_f32(&gate) && is_flex_f32(&x) {
        let (gate, x) = (gate.into_dispatch(), x.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_gate(gate, x, curve));
    }
    activate(gate, curve) * x
}

/// Gates as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedGate: Backend {
    /// See [`gated`].
    fn fused_gate(gate: FloatTensor<Self>, x: FloatTensor<Self>, curve: Curve)
    -> FloatTensor<Self>;
}

impl FusedGate for Flex {
    fn fused_gate(gate: FlexTensor, x: FlexTensor, curve: Curve) -> FlexTensor {
        let shape = gate.shape();
        let [gate, x] = [gate, x].map(contiguous);
        let (gate, x): (&[f32], &[f32]) = (gate.storage(), x.storage());
        let isa = Isa::detect();
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(GRAIN)
                .zip(gate.par_chunks(GRAIN))
                .zip(x.par_chunks(GRAIN))
                .for_each(|((out, gate), x)| {
                    let parts = out.chunks_mut(PART).zip(gate.chunks(PART));
                    for ((out, gate), x) in parts.zip(x.chunks(PART)) {
                        curve.forward(isa, gate, out);
                        // SAFETY: `forward` writes all of `out`, which is a slice of floats.
                        let out = unsafe { &mut *(out as *mut [MaybeUninit<f32>] as *mut [f32]) };
                        multiply_by(isa, out, x);
                    }
                });
        };
        // SAFETY: every chunk is written from its start to its end.
        flex_tensor(unsafe { written(gate.len(), write) }, &shape)
    }
}

impl<C: CheckpointStrategy> FusedGate for Autodiff<Flex, C> {
    fn fused_gate(
        gate: FloatTensor<Self>,
        x: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        match GateBackward
            .prepare::<C>([gate.node(), x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = ([prep.checkpoint(&gate), prep.checkpoint(&x)], curve);
                let (gate, x) = (gate.into_primitive(), x.into_primitive());
                prep.finish(state, Flex::fused_gate(gate, x, curve))
            }
            OpsKind::UnTracked(prep) => {
                let (gate, x) = (gate.into_primitive(), x.into_primitive());
                prep.finish(Flex::fused_gate(gate, x, curve))
            }
        }
    }
}

#[derive(Debug)]
struct GateBackward;

impl Backward<Flex, 2> for GateBackward {
    type State = ([NodeId; 2], Curve);

    /// With `g` the gradient of the output, that of the gate is `g x curve'(gate)` and that of `x` is
    /// `g curve(gate)`.
    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, curve) = ops.state;
        let [gate, x] =
            saved.map(|id| contiguous(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (gate, x): (&[f32], &[f32]) = (gate.storage(), x.storage());
        let (isa, shape) = (Isa::detect(), grad.shape());
        let values = grad.storage_mut::<f32>();
        let write = |dx: &mut [MaybeUninit<f32>]| {
            dx.par_chunks_mut(GRAIN)
                .zip(values.par_chunks_mut(GRAIN))
                .zip(gate.par_chunks(GRAIN).zip(x.par_chunks(GRAIN)))
                .for_each(|((dx, grad), (gate, x))| {
                    let out = dx.chunks_mut(PART).zip(grad.chunks_mut(PART));
                    let from = gate.chunks(PART).zip(x.chunks(PART));
                    for ((dx, grad), (gate, x)) in out.zip(from) {
                        curve.forward(isa, gate, dx);
                        // SAFETY: `forward` writes all of `dx`, which is a slice of floats.
                        let dx = unsafe { &mut *(dx as *mut [MaybeUninit<f32>] as *mut [f32]) };
                        multiply_by(isa, dx, grad);
                        multiply_by(isa, grad, x);
                        curve.backward(isa, gate, grad);
                    }
                });
        };
        // SAFETY: every chunk is written from its start to its end.
        let dx = flex_tensor(unsafe { written(gate.len(), write) }, &shape);
        for (node, gradient) in ops.parents.into_iter().zip([grad, dx]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}
