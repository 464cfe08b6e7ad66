//! Rotary positions (Su et al. 2021, arXiv:2104.09864), in place.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, is_flex_f32};
use crate::elementwise::{GRAIN, vectorized};
use crate::simd::Isa;

/// Turns the pairs `(x[i], x[i + turned / 2])` of the first `heads` heads by the angles of their
/// position; what else there is stays as it is. The two halves of what is turned are paired, not
/// neighbours, as in the Llama family.
///
/// # Shapes
/// - `x` and output: `[batch, seq, slots, d_head]`, `slots` at least `heads`
/// - `cos`, `sin` of the angles, which get no gradient: `[seq, turned / 2]`, `turned` at most `d_head`
///
/// # Panics
/// If the shapes disagree.
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>, heads: usize) -> Tensor<4> {
    let [batch, seq, slots, d_head] = x.dims();
    let [_, half] = cos.dims();
    assert!(
        heads <= slots && 2 * half <= d_head && cos.dims() == [seq, half],
        "rotary: {heads} heads of {:?} by angles of {:?}",
        x.dims(),
        cos.dims()
    );
    assert_eq!(sin.dims(), cos.dims(), "rotary: sines and cosines");
    let fused = is_flex_f32(&x) && is_flex_f32(&cos) && is_flex_f32(&sin);
    if !fused || batch * seq * slots * half == 0 {
        return composed(x, cos, sin, heads);
    }
    let turn = Turn {
        heads,
        d_head,
        half,
        back: false,
    };
    let (x, cos, sin) = (x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_rotary(x, cos, sin, turn))
}

/// The same of Burn's operators.
fn composed(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>, heads: usize) -> Tensor<4> {
    let [_, seq, slots, d_head] = x.dims();
    let [_, half] = cos.dims();
    let [cos, sin] = [cos, sin].map(|table| table.reshape([1, seq, 1, half]));
    let turned = match heads {
        0 => return x,
        _ => x.clone().narrow(2, 0, heads),
    };
    let (low, high) = (
        turned.clone().narrow(3, 0, half),
        turned.clone().narrow(3, half, half),
    );
    let mut parts = vec![
        low.clone() * cos.clone() - high.clone() * sin.clone(),
        high * cos + low * sin,
    ];
    if 2 * half < d_head {
        parts.push(turned.narrow(3, 2 * half, d_head - 2 * half));
    }
    let mut out = vec![Tensor::cat(parts, 3)];
    if heads < slots {
        out.push(x.narrow(2, heads, slots - heads));
    }
    Tensor::cat(out, 2)
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    heads: usize,
    d_head: usize,
    /// Pairs of a head.
    half: usize,
    /// Whether by the opposite angles, which is its gradient.
    back: bool,
}

/// The rotation as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedRotary: Backend {
    /// See [`rotary`].
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self>;
}

impl FusedRotary for Flex {
    fn fused_rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, turn: Turn) -> FlexTensor {
        let [mut x, cos, sin] = [x, cos, sin].map(contiguous);
        let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
        let isa = Isa::detect();
        let width = x.shape()[2] * turn.d_head;
        let rows = GRAIN.div_ceil(width);
        x.storage_mut::<f32>()
            .par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(task, x)| {
                for (row, x) in (task * rows..).zip(x.chunks_exact_mut(width)) {
                    // Images follow each other; each has as many positions as the tables.
                    let start = row * turn.half % cos.len();
                    let angles = [cos, sin].map(|table| &table[start..][..turn.half]);
                    rotate(isa, turn, angles, x);
                }
            });
        x
    }
}

impl<C: CheckpointStrategy> FusedRotary for Autodiff<Flex, C> {
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turn: Turn,
    ) -> FloatTensor<Self> {
        let [cos, sin] = [cos, sin].map(|table| table.into_primitive());
        match RotaryBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let state = ([cos.clone(), sin.clone()], turn);
                let out = Flex::fused_rotary(x.into_primitive(), cos, sin, turn);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_rotary(x.into_primitive(), cos, sin, turn))
            }
        }
    }
}

#[derive(Debug)]
struct RotaryBackward;

impl Backward<Flex, 1> for RotaryBackward {
    type State = ([FlexTensor; 2], Turn);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let ([cos, sin], turn) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node);
        let [Some(node)] = ops.parents else { return };
        let turn = Turn { back: true, ..turn };
        grads.register::<Flex>(node.id, Flex::fused_rotary(grad, cos, sin, turn));
    }
}

vectorized! {
    fn rotate(turn: Turn, angles: [&[f32]; 2], row: &mut [f32]) {
        let sign = if turn.back { -1.0 } else { 1.0 };
        for head in row.chunks_exact_mut(turn.d_head).take(turn.heads) {
            let (low, high) = head.split_at_mut(turn.half);
            let pairs = low.iter_mut().zip(high).zip(angles[0].iter().zip(angles[1]));
            for ((low, high), (cos, sin)) in pairs {
                let (a, b, sin) = (*low, *high, sign * sin);
                *low = a * cos - b * sin;
                *high = b * cos + a * sin;
            }
        }
    }
}
