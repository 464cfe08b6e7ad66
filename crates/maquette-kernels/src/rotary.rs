//! Rotary positions (Su et al. 2021, arXiv:2104.09864), in place where nothing else holds the input.

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{GRAIN, vectorized};
use crate::shared::Shared;
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
        slots,
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
    slots: usize,
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
        let tables: [&[f32]; 2] = [cos.storage(), sin.storage()];
        if x.is_unique() {
            let values: &mut [f32] = x.storage_mut();
            let (from, to) = (values.as_ptr(), Shared::new(values));
            // SAFETY: as many numbers, in place.
            unsafe { turn.all(tables, from, to) };
            return x;
        }
        let values: &[f32] = x.storage();
        let write = |out: &mut [MaybeUninit<f32>]| {
            // SAFETY: as many numbers, in memory of their own.
            unsafe { turn.all(tables, values.as_ptr(), Shared::unwritten(out)) };
        };
        // SAFETY: every row is written, with what is not turned.
        let out = unsafe { written(values.len(), write) };
        flex_tensor(out, &x.shape())
    }
}

impl Turn {
    /// Turns all rows.
    ///
    /// # Safety
    /// `from` has as many floats as `to`, in the same place or another, and nobody else uses either.
    unsafe fn all(self, tables: [&[f32]; 2], from: *const f32, to: Shared) {
        let from = Source(from);
        let (isa, width) = (Isa::detect(), self.slots * self.d_head);
        let each = GRAIN.div_ceil(width);
        let rows = to.len() / width;
        (0..rows.div_ceil(each)).into_par_iter().for_each(|task| {
            for row in task * each..rows.min((task + 1) * each) {
                // Images follow each other; each has as many positions as the tables.
                let start = row * self.half % tables[0].len();
                let angles = tables.map(|table| &table[start..][..self.half]);
                // SAFETY: the row is inside, and no other task's.
                let (from, to) = unsafe {
                    let to = to.unwritten_part(row * width, width).as_mut_ptr().cast();
                    (from.get().add(row * width), to)
                };
                rotate(isa, self, angles, from, to);
            }
        });
    }
}

/// Where rows are read.
#[derive(Clone, Copy)]
struct Source(*const f32);

// SAFETY: only a pointer; whoever reads through it vouches for the access.
unsafe impl Sync for Source {}

impl Source {
    fn get(&self) -> *const f32 {
        self.0
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
    /// Turns a row of `slots` heads, which lies at `from`, into the one at `to`: the same place, or one
    /// that does not overlap with it.
    fn rotate<L>(machine, turn: Turn, angles: [&[f32]; 2], from: *const f32, to: *mut f32) {
        let Turn { heads, slots, d_head, half, back } = turn;
        let [cos, sin] = angles.map(<[f32]>::as_ptr);
        let sign = if back { -1.0 } else { 1.0 };
        let turned = heads * d_head;
        // SAFETY: a row holds `slots` heads of `d_head` numbers, twice `half` of them at most turned, and
        // the angles are `half`.
        unsafe {
            // The angles of two vectors once for all heads: at 32 pairs a head is read from end to end.
            for at in (0..half).step_by(2 * L::N) {
                let next = half.min(at + L::N);
                let [here, there] = [half - at, half - next];
                let both = [
                    (
                        at,
                        here,
                        machine.load_some(cos.add(at), here),
                        machine.load_some(sin.add(at), here) * sign,
                    ),
                    (
                        next,
                        there,
                        machine.load_some(cos.add(next), there),
                        machine.load_some(sin.add(next), there) * sign,
                    ),
                ];
                for head in (0..turned).step_by(d_head) {
                    for (at, count, cos, sin) in both {
                        let (low, high) = (head + at, head + at + half);
                        let a = machine.load_some(from.add(low), count);
                        let b = machine.load_some(from.add(high), count);
                        b.neg_mul_add(sin, a * cos).store_some(to.add(low), count);
                        a.mul_add(sin, b * cos).store_some(to.add(high), count);
                    }
                }
            }
            if to.cast_const() != from {
                let rest = d_head - 2 * half;
                for head in (0..turned).step_by(d_head).filter(|_| rest > 0) {
                    to.add(head + 2 * half).copy_from(from.add(head + 2 * half), rest);
                }
                to.add(turned).copy_from(from.add(turned), slots * d_head - turned);
            }
        }
    }
}
