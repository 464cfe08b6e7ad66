//! Looking rows up in a table, and adding their gradients back.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Int, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, integers, is_flex_f32, written};
use crate::elementwise::add;
use crate::simd::Isa;

/// Rows of one task.
const ROWS: usize = 64;

/// The row of `table` at each index.
///
/// # Shapes
/// - `table`: `[rows, d]`
/// - `indices`: `[batch, seq]`, each below `rows`
/// - output: `[batch, seq, d]`
///
/// # Panics
/// If an index is not a row.
pub fn embedding(table: Tensor<2>, indices: Tensor<2, Int>) -> Tensor<3> {
    let ([rows, d], [batch, seq]) = (table.dims(), indices.dims());
    if !is_flex_f32(&table) || rows * d * batch * seq == 0 {
        return burn::tensor::module::embedding(table, indices);
    }
    let out = Dispatch::fused_embedding(table.into_dispatch(), indices.into_dispatch());
    Tensor::from_dispatch(out)
}

/// The look-up as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedEmbedding: Backend {
    /// See [`embedding`].
    fn fused_embedding(table: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self>;
}

impl FusedEmbedding for Flex {
    fn fused_embedding(table: FlexTensor, indices: FlexTensor) -> FlexTensor {
        let shape = indices.shape();
        let rows = check(indices, table.shape()[0]);
        forward(table, &rows, [shape[0], shape[1]])
    }
}

impl<C: CheckpointStrategy> FusedEmbedding for Autodiff<Flex, C> {
    fn fused_embedding(table: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        let (size, shape) = (table.shape(), indices.shape());
        let rows = check(indices, size[0]);
        let prep = EmbeddingBackward
            .prepare::<C>([table.node()])
            .compute_bound();
        let out = forward(table.into_primitive(), &rows, [shape[0], shape[1]]);
        match prep.stateful() {
            OpsKind::Tracked(prep) => prep.finish((rows.into(), [size[0], size[1]]), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

fn check(indices: FlexTensor, rows: usize) -> Vec<usize> {
    let valid = |index: i64| {
        let row = usize::try_from(index).ok().filter(|row| *row < rows);
        row.unwrap_or_else(|| panic!("embedding: index {index} is not one of {rows} rows"))
    };
    integers(indices).into_iter().map(valid).collect()
}

fn forward(table: FlexTensor, rows: &[usize], [batch, seq]: [usize; 2]) -> FlexTensor {
    let d = table.shape()[1];
    let table = contiguous(table);
    let values: &[f32] = table.storage();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let chunks = out.par_chunks_mut(ROWS * d).zip(rows.par_chunks(ROWS));
        chunks.for_each(|(out, rows)| {
            for (out, row) in out.chunks_exact_mut(d).zip(rows) {
                out.write_copy_of_slice(&values[row * d..(row + 1) * d]);
            }
        });
    };
    // SAFETY: every row is written from its start to its end.
    let out = unsafe { written(rows.len() * d, write) };
    flex_tensor(out, &[batch, seq, d])
}

#[derive(Debug)]
struct EmbeddingBackward;

impl Backward<Flex, 1> for EmbeddingBackward {
    /// The rows looked up, and the shape of the table.
    type State = (Arc<[usize]>, [usize; 2]);

    /// A row's gradient is the sum of those of its look-ups, in their order.
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (rows, [count, d]) = ops.state;
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let values: &[f32] = grad.storage();
        // 1. The look-ups sorted by row, those of one row in order.
        let mut ends = vec![0; count + 1];
        for row in &*rows {
            ends[row + 1] += 1;
        }
        for row in 0..count {
            ends[row + 1] += ends[row];
        }
        let mut sorted = vec![0; rows.len()];
        let mut next = ends.clone();
        for (position, row) in rows.iter().enumerate() {
            sorted[next[*row]] = position;
            next[*row] += 1;
        }
        // 2. Each row by one task.
        let isa = Isa::detect();
        let mut out = vec![0.0; count * d];
        let chunks = out.par_chunks_mut(ROWS * d).enumerate();
        chunks.for_each(|(chunk, out)| {
            for (i, out) in out.chunks_exact_mut(d).enumerate() {
                let row = chunk * ROWS + i;
                for position in &sorted[ends[row]..ends[row + 1]] {
                    add(isa, out, &values[position * d..(position + 1) * d]);
                }
            }
        });
        grads.register::<Flex>(node.id, flex_tensor(out, &[count, d]));
    }
}
