//! Cross-entropy of independent binary variables in one pass over the logits.

use std::mem::MaybeUninit;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{map, rows_of_exponentials, sums, vectorized};
use crate::simd::Isa;
use crate::vector::Vector;

/// Of each row, the negative log-probability of `targets` under Bernoulli variables with these
/// `logits`, added up over the row, in nats: `softplus(l) - x l`, finite for any finite logit.
///
/// Targets may lie between 0 and 1. They are data: no gradient reaches them.
///
/// # Shapes
/// - `logits`, `targets`: `[rows, variables]`
/// - output: `[rows, 1]`
///
/// # Panics
/// If the shapes differ.
pub fn binary_cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<2> {
    assert_eq!(
        logits.dims(),
        targets.dims(),
        "binary_cross_entropy: one target per logit"
    );
    let targets = targets.detach();
    let [rows, variables] = logits.dims();
    let fused = is_flex_f32(&logits) && is_flex_f32(&targets) && rows * variables > 0;
    if !fused {
        // softplus(l) = max(l, 0) + log(1 + exp(-|l|))
        let rest = logits.clone().abs().neg().exp().log1p();
        return (relu(logits.clone()) + rest - targets * logits).sum_dim(1);
    }
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_binary_cross_entropy(logits, targets))
}

/// The loss as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedBinaryCrossEntropy: Backend {
    /// See [`binary_cross_entropy`].
    fn fused_binary_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl FusedBinaryCrossEntropy for Flex {
    fn fused_binary_cross_entropy(logits: FlexTensor, targets: FlexTensor) -> FlexTensor {
        forward(logits, &contiguous(targets))
    }
}

impl<C: CheckpointStrategy> FusedBinaryCrossEntropy for Autodiff<Flex, C> {
    fn fused_binary_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let targets = contiguous(targets.into_primitive());
        match LossBackward
            .prepare::<C>([logits.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&logits);
                let loss = forward(logits.into_primitive(), &targets);
                prep.finish((saved, targets), loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(forward(logits.into_primitive(), &targets)),
        }
    }
}

fn forward(logits: FlexTensor, targets: &FlexTensor) -> FlexTensor {
    let [rows, variables] = [logits.shape()[0], logits.shape()[1]];
    let logits = contiguous(logits);
    let isa = Isa::detect();
    let losses: Vec<f32> = logits
        .storage::<f32>()
        .par_chunks_exact(variables)
        .with_min_len(rows_of_exponentials(variables))
        .zip(targets.storage::<f32>().par_chunks_exact(variables))
        .map(|(logits, targets)| row_loss(isa, logits, targets))
        .collect();
    flex_tensor(losses, &[rows, 1])
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Flex, 1> for LossBackward {
    type State = (NodeId, FlexTensor);

    /// The gradient of a logit is its probability less the target.
    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (logits, targets) = ops.state;
        let logits = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(logits));
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let (isa, shape) = (Isa::detect(), logits.shape());
        let [rows, variables] = [shape[0], shape[1]];
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_exact_mut(variables)
                .with_min_len(rows_of_exponentials(variables))
                .zip(logits.storage::<f32>().par_chunks_exact(variables))
                .zip(targets.storage::<f32>().par_chunks_exact(variables))
                .zip(grad.storage::<f32>())
                .for_each(|(((out, logits), targets), scale)| {
                    row_gradient(isa, logits, targets, *scale, out);
                });
        };
        // SAFETY: every row is written from its start to its end.
        let out = unsafe { written(rows * variables, write) };
        grads.register::<Flex>(node.id, flex_tensor(out, &shape));
    }
}

vectorized! {
    fn row_loss<L>(machine, logits: &[f32], targets: &[f32]) -> f32 {
        let term = |[logit, target]: [Vector<L>; 2]| [target.neg_mul_add(logit, logit.softplus())];
        sums(machine, [logits, targets], term)[0]
    }
}

vectorized! {
    fn row_gradient<L>(
        machine,
        logits: &[f32],
        targets: &[f32],
        scale: f32,
        out: &mut [MaybeUninit<f32>],
    ) {
        map(machine, [logits, targets], out, |[logit, target]| (logit.sigmoid() - target) * scale);
    }
}
