//! An activation of one tensor times another, in one pass over memory each way.

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

use crate::activation::{Activation, activate};
use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{GRAIN, map, vectorized, walk};
use crate::simd::Isa;

/// `activation(gate) * x`: the gated linear units between the projections of a transformer (Shazeer 2020,
/// arXiv:2002.05202), SwiGLU with [`Activation::Silu`] and GEGLU with a GELU.
///
/// # Shapes
/// - `gate`, `x`, output: any, the same
///
/// # Panics
/// If the shapes disagree.
pub fn gated<const D: usize>(gate: Tensor<D>, x: Tensor<D>, activation: Activation) -> Tensor<D> {
    assert_eq!(gate.dims(), x.dims(), "gated: one gate per number");
    if is_flex_f32(&gate) && is_flex_f32(&x) {
        let (gate, x) = (gate.into_dispatch(), x.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_gate(gate, x, activation));
    }
    activate(gate, activation) * x
}

/// Gates as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedGate: Backend {
    /// See [`gated`].
    fn fused_gate(
        gate: FloatTensor<Self>,
        x: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
}

impl FusedGate for Flex {
    fn fused_gate(gate: FlexTensor, x: FlexTensor, activation: Activation) -> FlexTensor {
        let shape = gate.shape();
        let [gate, x] = [gate, x].map(contiguous);
        let (gate, x): (&[f32], &[f32]) = (gate.storage(), x.storage());
        let isa = Isa::detect();
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(GRAIN)
                .zip(gate.par_chunks(GRAIN))
                .zip(x.par_chunks(GRAIN))
                .for_each(|((out, gate), x)| gate_pass(isa, activation, [gate, x], out));
        };
        // SAFETY: every chunk is written from its start to its end.
        flex_tensor(unsafe { written(gate.len(), write) }, &shape)
    }
}

impl<C: CheckpointStrategy> FusedGate for Autodiff<Flex, C> {
    fn fused_gate(
        gate: FloatTensor<Self>,
        x: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        match GateBackward
            .prepare::<C>([gate.node(), x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = ([prep.checkpoint(&gate), prep.checkpoint(&x)], activation);
                let (gate, x) = (gate.into_primitive(), x.into_primitive());
                prep.finish(state, Flex::fused_gate(gate, x, activation))
            }
            OpsKind::UnTracked(prep) => {
                let (gate, x) = (gate.into_primitive(), x.into_primitive());
                prep.finish(Flex::fused_gate(gate, x, activation))
            }
        }
    }
}

#[derive(Debug)]
struct GateBackward;

impl Backward<Flex, 2> for GateBackward {
    type State = ([NodeId; 2], Activation);

    /// With `g` the gradient of the output, that of the gate is `g x activation'(gate)` and that of `x` is
    /// `g activation(gate)`.
    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, activation) = ops.state;
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
                .for_each(|((dx, grad), from)| gate_gradient(isa, activation, from, grad, dx));
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

vectorized! {
    fn gate_pass<L>(machine, activation: Activation, inputs: [&[f32]; 2], out: &mut [MaybeUninit<f32>]) {
        map(machine, inputs, out, |[gate, x]| activation.of(gate) * x);
    }
}

vectorized! {
    /// The gate's gradient is written over the output's.
    fn gate_gradient<L>(
        machine,
        activation: Activation,
        inputs: (&[f32], &[f32]),
        grad: &mut [f32],
        dx: &mut [MaybeUninit<f32>],
    ) {
        let ((gate, x), len) = (inputs, grad.len());
        assert!([gate.len(), x.len(), dx.len()] == [len; 3], "slices of one length");
        let grad = grad.as_mut_ptr();
        let places = ([gate.as_ptr(), x.as_ptr(), grad], [grad, dx.as_mut_ptr().cast()]);
        // SAFETY: four slices of one length, of which `grad` and `dx` are borrowed to be written.
        unsafe {
            walk(machine, len, places, |[gate, x, grad]| {
                let [value, slope] = activation.with_slope(gate);
                ([grad * x * slope, grad * value], [])
            });
        }
    }
}
