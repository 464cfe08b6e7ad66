//! Softmax and cross-entropy in one pass over the logits, keeping one number per row.

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32};
use crate::elementwise::{exp, max, sum, vectorized};
use crate::simd::Isa;

/// Mean over the rows of the negative log-probability of the target class, in nats.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`, each below `classes`
/// - output: `[1]`
///
/// # Panics
/// If there is not one target per row, or a target is not a class.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [rows, classes] = logits.dims();
    assert_eq!(
        targets.dims(),
        [rows],
        "cross_entropy: one target per row of the logits"
    );
    if !is_flex_f32(&logits) || rows * classes == 0 {
        let targets = targets.reshape([rows, 1]);
        return log_softmax(logits, 1).gather(1, targets).mean().neg();
    }
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_cross_entropy(logits, targets))
}

/// The loss as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedCrossEntropy: Backend {
    /// See [`cross_entropy`].
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl FusedCrossEntropy for Flex {
    fn fused_cross_entropy(logits: FlexTensor, targets: FlexTensor) -> FlexTensor {
        let classes = logits.shape()[1];
        forward(logits, &indices(targets, classes)).0
    }
}

impl<C: CheckpointStrategy> FusedCrossEntropy for Autodiff<Flex, C> {
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let targets = indices(targets, logits.shape()[1]);
        match LossBackward
            .prepare::<C>([logits.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&logits);
                let (loss, totals) = forward(logits.into_primitive(), &targets);
                prep.finish((saved, targets.into(), totals.into()), loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(forward(logits.into_primitive(), &targets).0),
        }
    }
}

/// The targets as indices, whatever integer type the device keeps them in.
fn indices(targets: FlexTensor, classes: usize) -> Vec<usize> {
    let targets = contiguous(targets);
    let check = |target: Option<usize>| {
        let target = target.filter(|target| *target < classes);
        target.unwrap_or_else(|| panic!("cross_entropy: a target is not one of {classes} classes"))
    };
    macro_rules! read {
        ($type:ty) => {
            targets
                .storage::<$type>()
                .iter()
                .map(|t| check(usize::try_from(*t).ok()))
                .collect()
        };
    }
    match targets.dtype() {
        DType::I64 => read!(i64),
        DType::I32 => read!(i32),
        DType::I16 => read!(i16),
        DType::I8 => read!(i8),
        DType::U64 => read!(u64),
        DType::U32 => read!(u32),
        DType::U16 => read!(u16),
        DType::U8 => read!(u8),
        other => panic!("cross_entropy: targets must be integers, not {other:?}"),
    }
}

/// The loss, and of each row the logarithm of the sum of exponentials.
fn forward(logits: FlexTensor, targets: &[usize]) -> (FlexTensor, Vec<f32>) {
    let classes = logits.shape()[1];
    let logits = contiguous(logits);
    let (isa, logits): (_, &[f32]) = (Isa::detect(), logits.storage());
    let totals: Vec<f32> = logits
        .par_chunks_exact(classes)
        .with_min_len(8)
        .map(|row| log_sum_exp(isa, row))
        .collect();
    let rows = logits.chunks_exact(classes).zip(&totals).zip(targets);
    let loss: f64 = rows
        .map(|((row, total), target)| f64::from(total - row[*target]))
        .sum();
    (
        flex_tensor(vec![(loss / targets.len() as f64) as f32], &[1]),
        totals,
    )
}

vectorized! {
    fn log_sum_exp(row: &[f32]) -> f32 {
        let top = max(row);
        top + sum(row.len(), |i| exp(row[i] - top)).ln()
    }
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Flex, 1> for LossBackward {
    type State = (NodeId, Arc<[usize]>, Arc<[f32]>);

    /// The gradient of a logit is its probability, less one for the target, over the rows.
    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (logits, targets, totals) = ops.state;
        let logits = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(logits));
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let scale = grad.storage::<f32>()[0] / targets.len() as f32;
        let (isa, shape) = (Isa::detect(), logits.shape());
        let classes = shape[1];
        let mut out = vec![0.0; targets.len() * classes];
        out.par_chunks_exact_mut(classes)
            .with_min_len(8)
            .zip(logits.storage::<f32>().par_chunks_exact(classes))
            .zip(&*targets)
            .zip(&*totals)
            .for_each(|(((out, row), target), total)| {
                probabilities(isa, row, *total, scale, out);
                out[*target] -= scale;
            });
        grads.register::<Flex>(node.id, flex_tensor(out, &shape));
    }
}

vectorized! {
    fn probabilities(row: &[f32], total: f32, scale: f32, out: &mut [f32]) {
        for (out, logit) in out.iter_mut().zip(row) {
            *out = scale * exp(logit - total);
        }
    }
}
