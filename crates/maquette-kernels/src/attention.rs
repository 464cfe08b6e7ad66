//! Self-attention that never holds the whole matrix of scores (after Dao et al. 2022,
//! arXiv:2205.14135): blocks of queries attend one after the other, and the backward pass computes
//! the weights again from one number kept per query.
//!
//! Queries, keys and values are read where their common projection left them, and the heads'
//! results are written where the next projection wants them, so nothing is permuted in memory.

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32};
use crate::elementwise::{exp, max, sum, vectorized};
use crate::matrix::{Into, Matrix, multiply};
use crate::simd::Isa;

/// Queries that attend together.
const BLOCK: usize = 64;

/// The constants of one [`self_attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`, and neighbouring query heads share one (Ainslie et
    /// al. 2023, arXiv:2305.13245).
    pub n_kv_heads: usize,
    /// Whether a position sees only itself and those before.
    pub causal: bool,
}

/// `softmax(q k^T / sqrt(d_head)) v` for every head (Vaswani et al. 2017, arXiv:1706.03762).
///
/// # Shapes
/// - `qkv`: `[batch, seq, (n_heads + 2 n_kv_heads) d_head]`: all queries, all keys, all values
/// - output: `[batch, seq, n_heads d_head]`
///
/// # Panics
/// If the heads do not divide each other or the width of `qkv`.
pub fn self_attention(qkv: Tensor<3>, options: AttentionOptions) -> Tensor<3> {
    let [batch, seq, width] = qkv.dims();
    let AttentionOptions {
        n_heads,
        n_kv_heads,
        ..
    } = options;
    assert!(
        n_kv_heads > 0 && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "self_attention: {n_kv_heads} key heads do not divide {n_heads} query heads"
    );
    let slots = n_heads + 2 * n_kv_heads;
    assert!(
        width.is_multiple_of(slots),
        "self_attention: a width of {width} is not {slots} heads (queries, keys and values)"
    );
    if !is_flex_f32(&qkv) || batch * seq * width == 0 {
        return composed(qkv, options);
    }
    let layout = Layout {
        batch,
        seq,
        d_head: width / slots,
        options,
    };
    Tensor::from_dispatch(Dispatch::fused_attention(qkv.into_dispatch(), layout))
}

/// The same of Burn's operators.
fn composed(qkv: Tensor<3>, options: AttentionOptions) -> Tensor<3> {
    let [batch, seq, width] = qkv.dims();
    let AttentionOptions {
        n_heads,
        n_kv_heads,
        causal,
    } = options;
    let d_head = width / (n_heads + 2 * n_kv_heads);
    let heads = |first: usize, count: usize| {
        let part = qkv.clone().narrow(2, first * d_head, count * d_head);
        part.reshape([batch, seq, count, d_head]).swap_dims(1, 2)
    };
    // The queries of a group are laid end to end, so that its key head is not repeated.
    let rows = n_heads / n_kv_heads * seq;
    let q = heads(0, n_heads).reshape([batch, n_kv_heads, rows, d_head]);
    let k = heads(n_heads, n_kv_heads);
    let v = heads(n_heads + n_kv_heads, n_kv_heads);
    let scores = (q * (d_head as f64).sqrt().recip()).matmul(k.swap_dims(2, 3));
    let mut scores = scores.reshape([batch, n_heads, seq, seq]);
    if causal {
        let future = Tensor::<2, Bool>::tril_mask([seq, seq], 0, &scores.device());
        scores = scores.mask_fill(future.unsqueeze::<4>(), f32::NEG_INFINITY);
    }
    let weights = softmax(scores, 3).reshape([batch, n_kv_heads, rows, seq]);
    let mixed = weights.matmul(v).reshape([batch, n_heads, seq, d_head]);
    mixed
        .swap_dims(1, 2)
        .reshape([batch, seq, n_heads * d_head])
}

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    batch: usize,
    seq: usize,
    d_head: usize,
    options: AttentionOptions,
}

impl Layout {
    /// Length of a row of `qkv`.
    fn width(&self) -> usize {
        (self.options.n_heads + 2 * self.options.n_kv_heads) * self.d_head
    }

    /// Length of a row of the output.
    fn out_width(&self) -> usize {
        self.options.n_heads * self.d_head
    }

    /// Query heads per key head.
    fn group(&self) -> usize {
        self.options.n_heads / self.options.n_kv_heads
    }

    /// Blocks of queries, each with how many positions it sees.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let (seq, causal) = (self.seq, self.options.causal);
        (0..seq).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(seq - first);
            let seen = if causal { first + rows } else { seq };
            Block {
                first,
                rows,
                seen,
                causal,
            }
        })
    }

    /// Start of head `slot` (queries, then keys, then values) at `position` of an image of `qkv`.
    fn at(&self, batch: usize, position: usize, slot: usize) -> usize {
        (batch * self.seq + position) * self.width() + slot * self.d_head
    }
}

/// Queries that attend together, and the positions at least one of them sees.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    rows: usize,
    seen: usize,
    causal: bool,
}

impl Block {
    /// How many positions the query in `row` sees.
    fn seen_by(&self, row: usize) -> usize {
        if self.causal {
            self.first + row + 1
        } else {
            self.seen
        }
    }
}

/// Attention as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedAttention: Backend {
    /// See [`self_attention`].
    fn fused_attention(qkv: FloatTensor<Self>, layout: Layout) -> FloatTensor<Self>;
}

impl FusedAttention for Flex {
    fn fused_attention(qkv: FlexTensor, layout: Layout) -> FlexTensor {
        forward(contiguous(qkv).storage(), &layout).0
    }
}

impl<C: CheckpointStrategy> FusedAttention for Autodiff<Flex, C> {
    fn fused_attention(qkv: FloatTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        match AttentionBackward
            .prepare::<C>([qkv.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&qkv);
                let (out, totals) = forward(contiguous(qkv.into_primitive()).storage(), &layout);
                prep.finish((saved, totals.into(), layout), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(forward(contiguous(qkv.into_primitive()).storage(), &layout).0)
            }
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 1> for AttentionBackward {
    type State = (NodeId, Arc<[f32]>, Layout);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (qkv, totals, layout) = ops.state;
        let qkv = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(qkv));
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let out = backward(qkv.storage(), &totals, grad.storage(), &layout);
        grads.register::<Flex>(node.id, flex_tensor(out, &qkv.shape()));
    }
}

/// Output memory that tasks write disjoint columns of.
struct Columns<'a> {
    data: *mut f32,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer stands for an exclusive borrow of floats, which may be used from any thread;
// that threads use distinct elements is promised by every caller of `matrix`.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(values: &'a mut [f32]) -> Self {
        Self {
            data: values.as_mut_ptr(),
            len: values.len(),
            owner: std::marker::PhantomData,
        }
    }

    /// # Safety
    /// While the matrix is in use no other thread uses any of its elements.
    unsafe fn matrix(&self, start: usize, size: [usize; 2], stride: usize) -> Matrix {
        // SAFETY: `data` and `len` come from one live slice; `Matrix` keeps a pointer only, so the
        // overlap of this view with another thread's is never a use of the same element.
        unsafe { Matrix::of_raw(self.data, self.len, start, size, stride) }
    }
}

/// The mixed values, and per batch, head and query the logarithm of the sum of exponentials.
fn forward(qkv: &[f32], layout: &Layout) -> (FlexTensor, Vec<f32>) {
    let Layout {
        batch,
        seq,
        d_head,
        options,
    } = *layout;
    let isa = Isa::detect();
    let (width, out_width) = (layout.width(), layout.out_width());
    let scale = (d_head as f32).sqrt().recip();
    let mut out = vec![0.0; batch * seq * out_width];
    let mut totals = vec![0.0; batch * options.n_heads * seq];
    let columns = Columns::new(&mut out);
    totals.par_chunks_mut(seq).enumerate().for_each_init(
        || vec![0.0; BLOCK * seq],
        |scores, (task, totals)| {
            let (image, head) = (task / options.n_heads, task % options.n_heads);
            let key = options.n_heads + head / layout.group();
            let value = key + options.n_kv_heads;
            for block in layout.blocks() {
                let Block {
                    first, rows, seen, ..
                } = block;
                let q = Matrix::of(qkv, layout.at(image, first, head), [rows, d_head], width);
                let k = Matrix::of(qkv, layout.at(image, 0, key), [seen, d_head], width);
                let v = Matrix::of(qkv, layout.at(image, 0, value), [seen, d_head], width);
                let weights = Matrix::of_mut(scores, 0, [rows, seen], seen);
                // SAFETY: `scores` belongs to this thread.
                unsafe { multiply(weights, Into::Replace, scale, q, k.transposed()) };
                softmax_rows(isa, block, scores, &mut totals[first..]);
                let weights = Matrix::of(scores, 0, [rows, seen], seen);
                let start = (image * seq + first) * out_width + head * d_head;
                // SAFETY: the columns of this head in this image are this task's alone.
                unsafe {
                    let mixed = columns.matrix(start, [rows, d_head], out_width);
                    multiply(mixed, Into::Replace, 1.0, weights, v);
                }
            }
        },
    );
    (flex_tensor(out, &[batch, seq, out_width]), totals)
}

vectorized! {
    /// Turns scores into weights, zero beyond what a query sees.
    fn softmax_rows(block: Block, scores: &mut [f32], totals: &mut [f32]) {
        let rows = scores.chunks_exact_mut(block.seen).take(block.rows);
        for (row, (scores, total)) in rows.zip(totals).enumerate() {
            let (seen, future) = scores.split_at_mut(block.seen_by(row));
            let top = max(seen);
            for score in &mut *seen {
                *score = exp(*score - top);
            }
            let all = sum(seen.len(), |i| seen[i]);
            for score in seen {
                *score /= all;
            }
            future.fill(0.0);
            *total = top + all.ln();
        }
    }
}

/// With weights `P` and `dP = dO V^T`: `dV = P^T dO`, `dS = P (dP - rowsum(P dP))`,
/// `dQ = dS K / sqrt(d)` and `dK = dS^T Q / sqrt(d)`.
fn backward(qkv: &[f32], totals: &[f32], grad: &[f32], layout: &Layout) -> Vec<f32> {
    let Layout {
        batch,
        seq,
        d_head,
        options,
    } = *layout;
    let isa = Isa::detect();
    let (width, out_width) = (layout.width(), layout.out_width());
    let scale = (d_head as f32).sqrt().recip();
    let mut out = vec![0.0; qkv.len()];
    let columns = Columns::new(&mut out);
    // One task owns a key head and all queries that share it, so sums run in a fixed order.
    (0..batch * options.n_kv_heads)
        .into_par_iter()
        .for_each_init(
            || (vec![0.0; BLOCK * seq], vec![0.0; BLOCK * seq]),
            |(scores, slopes), task| {
                let (image, shared) = (task / options.n_kv_heads, task % options.n_kv_heads);
                let key = options.n_heads + shared;
                let value = key + options.n_kv_heads;
                for head in shared * layout.group()..(shared + 1) * layout.group() {
                    let totals = &totals[(image * options.n_heads + head) * seq..][..seq];
                    for block in layout.blocks() {
                        let Block {
                            first, rows, seen, ..
                        } = block;
                        let [q_at, k_at, v_at] = [(first, head), (0, key), (0, value)]
                            .map(|(position, slot)| layout.at(image, position, slot));
                        let q = Matrix::of(qkv, q_at, [rows, d_head], width);
                        let k = Matrix::of(qkv, k_at, [seen, d_head], width);
                        let v = Matrix::of(qkv, v_at, [seen, d_head], width);
                        let start = (image * seq + first) * out_width + head * d_head;
                        let mixed = Matrix::of(grad, start, [rows, d_head], out_width);
                        let weights = Matrix::of_mut(scores, 0, [rows, seen], seen);
                        let dweights = Matrix::of_mut(slopes, 0, [rows, seen], seen);
                        // SAFETY: both belong to this thread.
                        unsafe {
                            multiply(weights, Into::Replace, scale, q, k.transposed());
                            multiply(dweights, Into::Replace, 1.0, mixed, v.transposed());
                        }
                        softmax_gradient(isa, block, &totals[first..], scores, slopes);
                        let weights = Matrix::of(scores, 0, [rows, seen], seen);
                        let dscores = Matrix::of(slopes, 0, [rows, seen], seen);
                        // SAFETY: the columns of this key head, its value head and the query heads of
                        // its group in this image are this task's alone.
                        unsafe {
                            let dq = columns.matrix(q_at, [rows, d_head], width);
                            let dk = columns.matrix(k_at, [seen, d_head], width);
                            let dv = columns.matrix(v_at, [seen, d_head], width);
                            multiply(dv, Into::Add, 1.0, weights.transposed(), mixed);
                            multiply(dk, Into::Add, scale, dscores.transposed(), q);
                            multiply(dq, Into::Replace, scale, dscores, k);
                        }
                    }
                }
            },
        );
    out
}

vectorized! {
    /// Turns scores into weights and the gradient of the weights into that of the scores.
    fn softmax_gradient(
        block: Block,
        totals: &[f32],
        scores: &mut [f32],
        slopes: &mut [f32],
    ) {
        let scores = scores.chunks_exact_mut(block.seen).take(block.rows);
        let rows = scores.zip(slopes.chunks_exact_mut(block.seen)).zip(totals);
        for (row, ((weights, slopes), total)) in rows.enumerate() {
            let seen = block.seen_by(row);
            for weight in &mut weights[..seen] {
                *weight = exp(*weight - total);
            }
            weights[seen..].fill(0.0);
            slopes[seen..].fill(0.0);
            let (weights, slopes) = (&weights[..seen], &mut slopes[..seen]);
            let mean = sum(seen, |i| weights[i] * slopes[i]);
            for (slope, weight) in slopes.iter_mut().zip(weights) {
                *slope = weight * (*slope - mean);
            }
        }
    }
}
