//! Self-attention that never holds the whole matrix of scores (after Dao et al. 2022,
//! arXiv:2205.14135): blocks of queries attend one after the other, and the backward pass computes
//! the weights again from one number kept per query.
//!
//! Queries, keys and values are read where their common projection left them, and the heads'
//! results are written where the next projection wants them, so nothing is permuted in memory.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::dropout::Dropout;
use crate::elementwise::{exp, max, sum, vectorized};
use crate::gemm::product_here;
use crate::matrix::{Into, Matrix, multiply};
use crate::precision::Precision;
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
    /// How many positions a causal one sees, itself included (sliding window, Beltagy et al. 2020,
    /// arXiv:2004.05150); all before it if absent.
    pub window: Option<usize>,
    /// Dropout of the weights.
    pub dropout: Option<Dropout>,
}

impl AttentionOptions {
    /// Every head sees everything before it, and nothing is dropped.
    pub fn causal(n_heads: usize, n_kv_heads: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads,
            causal: true,
            window: None,
            dropout: None,
        }
    }

    /// Every head sees everything, and nothing is dropped.
    pub fn full(n_heads: usize, n_kv_heads: usize) -> Self {
        Self {
            causal: false,
            ..Self::causal(n_heads, n_kv_heads)
        }
    }

    /// The first position that the one at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        }
    }
}

/// `softmax(q k^T / sqrt(d_head)) v` for every head (Vaswani et al. 2017, arXiv:1706.03762).
///
/// # Shapes
/// - `qkv`: `[batch, seq, (n_heads + 2 n_kv_heads) d_head]`: all queries, all keys, all values
/// - output: `[batch, seq, n_heads d_head]`
///
/// Products are taken in the precision of [`autocast`](crate::autocast).
///
/// # Panics
/// If the heads do not divide each other or the width of `qkv`, or a window is empty or not causal.
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
    assert!(
        options
            .window
            .is_none_or(|window| window > 0 && options.causal),
        "self_attention: a sliding window is causal and at least 1 wide"
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
        precision: Precision::current(),
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
        window,
        dropout,
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
    if let Some(window) = window {
        let recent = Tensor::<2, Bool>::triu_mask([seq, seq], 1 - window as i64, &scores.device());
        scores = scores.mask_fill(recent.unsqueeze::<4>(), f32::NEG_INFINITY);
    }
    let mut weights = softmax(scores, 3);
    if let Some(dropout) = dropout {
        let mut mask = vec![0.0; weights.shape().num_elements()];
        for (row, mask) in mask.chunks_exact_mut(seq).enumerate() {
            dropout.factors(row as u64, mask);
        }
        let mask = TensorData::new(mask, weights.dims());
        let mask = Tensor::<4>::from_data(mask, &weights.device());
        weights = weights.clone() * mask.cast(weights.dtype());
    }
    let weights = weights.reshape([batch, n_kv_heads, rows, seq]);
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
    precision: Precision,
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

    /// The block of queries that begins at `first`.
    fn block(&self, first: usize) -> Block {
        let rows = BLOCK.min(self.seq - first);
        let seen = if self.options.causal {
            first + rows
        } else {
            self.seq
        };
        Block {
            first,
            rows,
            from: self.options.first_seen(first),
            seen,
            options: self.options,
        }
    }

    /// All blocks of queries.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        (0..self.seq).step_by(BLOCK).map(|first| self.block(first))
    }

    /// The generator's row for the query at `position`.
    fn row(&self, image: usize, head: usize, position: usize) -> u64 {
        ((image * self.options.n_heads + head) * self.seq + position) as u64
    }

    /// `out = a b`, or that added, on the calling thread.
    ///
    /// # Safety
    /// See [`multiply`].
    unsafe fn multiply(&self, out: Matrix, into: Into, a: Matrix, b: Matrix) {
        // SAFETY: the caller's; rows of every matrix that is written are contiguous.
        unsafe {
            match self.precision {
                Precision::F32 => multiply(out, into, 1.0, a, b),
                Precision::Bf16 => product_here(out, into, a, b, Precision::Bf16),
            }
        }
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
    /// Positions `from..seen` are seen by one of them.
    from: usize,
    seen: usize,
    options: AttentionOptions,
}

impl Block {
    /// Positions seen by one of its queries or more.
    fn width(&self) -> usize {
        self.seen - self.from
    }

    /// Which of those the query in `row` sees.
    #[inline(always)]
    fn seen_by(&self, row: usize) -> std::ops::Range<usize> {
        let position = self.first + row;
        let end = if self.options.causal {
            position + 1
        } else {
            self.seen
        };
        self.options.first_seen(position) - self.from..end - self.from
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
    fn of(values: &'a mut [f32]) -> Self {
        Self {
            data: values.as_mut_ptr(),
            len: values.len(),
            owner: std::marker::PhantomData,
        }
    }

    /// Memory to be written before it is read.
    fn new(values: &'a mut [MaybeUninit<f32>]) -> Self {
        Self {
            data: values.as_mut_ptr().cast(),
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
        ..
    } = *layout;
    let isa = Isa::detect();
    let (width, out_width) = (layout.width(), layout.out_width());
    let scale = (d_head as f32).sqrt().recip();
    let mut totals = vec![0.0; batch * options.n_heads * seq];
    let blocks = totals.par_chunks_mut(seq).enumerate();
    let blocks = blocks.flat_map(|(task, totals)| {
        let blocks = totals.par_chunks_mut(BLOCK).enumerate();
        blocks.map(move |(block, totals)| (task, block * BLOCK, totals))
    });
    let write = |out: &mut [MaybeUninit<f32>]| {
        let columns = Columns::new(out);
        blocks.for_each_init(
            || (vec![0.0; BLOCK * seq], vec![0.0; seq]),
            |(scores, mask), (task, first, totals)| {
                let (image, head) = (task / options.n_heads, task % options.n_heads);
                let key = options.n_heads + head / layout.group();
                let value = key + options.n_kv_heads;
                let block = layout.block(first);
                let (rows, from, seen) = (block.rows, block.from, block.width());
                let q = Matrix::of(qkv, layout.at(image, first, head), [rows, d_head], width);
                let k = Matrix::of(qkv, layout.at(image, from, key), [seen, d_head], width);
                let v = Matrix::of(qkv, layout.at(image, from, value), [seen, d_head], width);
                let weights = Matrix::of_mut(scores, 0, [rows, seen], seen);
                // SAFETY: `scores` belongs to this thread.
                unsafe { layout.multiply(weights, Into::Replace, q, k.transposed()) };
                softmax_rows(isa, block, scale, scores, totals);
                if let Some(dropout) = options.dropout {
                    for (row, weights) in scores.chunks_exact_mut(seen).take(rows).enumerate() {
                        let mask = &mut mask[..block.seen];
                        dropout.factors(layout.row(image, head, first + row), mask);
                        multiply_by(isa, weights, &mask[from..]);
                    }
                }
                let weights = Matrix::of(scores, 0, [rows, seen], seen);
                let start = (image * seq + first) * out_width + head * d_head;
                // SAFETY: these rows and columns are this task's alone.
                unsafe {
                    let mixed = columns.matrix(start, [rows, d_head], out_width);
                    layout.multiply(mixed, Into::Replace, weights, v);
                }
            },
        );
    };
    // SAFETY: the tasks together write every row and every head's columns.
    let out = unsafe { written(batch * seq * out_width, write) };
    (flex_tensor(out, &[batch, seq, out_width]), totals)
}

vectorized! {
    fn multiply_by(values: &mut [f32], factors: &[f32]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

vectorized! {
    /// Turns products of queries and keys into weights, zero where a query does not see.
    fn softmax_rows(block: Block, scale: f32, scores: &mut [f32], totals: &mut [f32]) {
        let rows = scores.chunks_exact_mut(block.width()).take(block.rows);
        for (row, (scores, total)) in rows.zip(totals).enumerate() {
            let range = block.seen_by(row);
            let (seen, future) = scores.split_at_mut(range.end);
            let (past, seen) = seen.split_at_mut(range.start);
            let top = max(seen) * scale;
            for score in &mut *seen {
                *score = exp(*score * scale - top);
            }
            let all = sum([&*seen], |[weight]| weight);
            let share = 1.0 / all;
            for score in seen {
                *score *= share;
            }
            past.fill(0.0);
            future.fill(0.0);
            *total = top + all.ln();
        }
    }
}

/// With weights `P`, dropped `D = P M` and `dP = M dO V^T`: `dV = D^T dO`,
/// `dS = P (dP - rowsum(P dP))`, `dQ = dS K / sqrt(d)` and `dK = dS^T Q / sqrt(d)`.
fn backward(qkv: &[f32], totals: &[f32], grad: &[f32], layout: &Layout) -> Vec<f32> {
    let Layout {
        batch,
        seq,
        d_head,
        options,
        ..
    } = *layout;
    let isa = Isa::detect();
    let (width, out_width) = (layout.width(), layout.out_width());
    let scale = (d_head as f32).sqrt().recip();
    let mut out = vec![0.0; qkv.len()];
    let columns = Columns::of(&mut out);
    // One task owns a key head and all queries that share it, so sums run in a fixed order.
    (0..batch * options.n_kv_heads)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(
            || [BLOCK * seq, BLOCK * seq, seq].map(|len| vec![0.0; len]),
            |[scores, slopes, mask], task| {
                let (image, shared) = (task / options.n_kv_heads, task % options.n_kv_heads);
                let key = options.n_heads + shared;
                let value = key + options.n_kv_heads;
                for head in shared * layout.group()..(shared + 1) * layout.group() {
                    let totals = &totals[(image * options.n_heads + head) * seq..][..seq];
                    for block in layout.blocks() {
                        let (first, rows, from) = (block.first, block.rows, block.from);
                        let seen = block.width();
                        let [q_at, k_at, v_at] = [(first, head), (from, key), (from, value)]
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
                            layout.multiply(weights, Into::Replace, q, k.transposed());
                            layout.multiply(dweights, Into::Replace, mixed, v.transposed());
                        }
                        for row in 0..rows {
                            let part = row * seen..(row + 1) * seen;
                            let (scores, slopes) = (&mut scores[part.clone()], &mut slopes[part]);
                            let mask = &mut mask[..block.seen];
                            match options.dropout {
                                Some(dropout) => {
                                    dropout.factors(layout.row(image, head, first + row), mask);
                                }
                                None => mask.fill(1.0),
                            }
                            let (mask, range) = (&mask[from..], block.seen_by(row));
                            let total = totals[first + row];
                            softmax_gradient(isa, range, scale, total, mask, scores, slopes);
                        }
                        let weights = Matrix::of(scores, 0, [rows, seen], seen);
                        let dscores = Matrix::of(slopes, 0, [rows, seen], seen);
                        // SAFETY: the columns of this key head, its value head and the query heads of
                        // its group in this image are this task's alone.
                        unsafe {
                            let dq = columns.matrix(q_at, [rows, d_head], width);
                            let dk = columns.matrix(k_at, [seen, d_head], width);
                            let dv = columns.matrix(v_at, [seen, d_head], width);
                            layout.multiply(dv, Into::Add, weights.transposed(), mixed);
                            layout.multiply(dk, Into::Add, dscores.transposed(), q);
                            layout.multiply(dq, Into::Replace, dscores, k);
                        }
                    }
                }
            },
        );
    out
}

vectorized! {
    /// Of one query: turns scores into dropped weights, and the gradient of the dropped weights into
    /// that of the products of query and keys.
    fn softmax_gradient(
        range: std::ops::Range<usize>,
        scale: f32,
        total: f32,
        mask: &[f32],
        weights: &mut [f32],
        slopes: &mut [f32],
    ) {
        let (start, end) = (range.start, range.end);
        for unseen in [0..start, end..weights.len()] {
            weights[unseen.clone()].fill(0.0);
            slopes[unseen].fill(0.0);
        }
        let mask = &mask[start..end];
        let (weights, slopes) = (&mut weights[start..end], &mut slopes[start..end]);
        for ((weight, slope), mask) in weights.iter_mut().zip(&mut *slopes).zip(mask) {
            *weight = exp(*weight * scale - total);
            *slope *= mask;
        }
        let mean = sum([&*weights, &*slopes], |[weight, slope]| weight * slope);
        for ((weight, slope), mask) in weights.iter_mut().zip(slopes).zip(mask) {
            *slope = scale * *weight * (*slope - mean);
            *weight *= mask;
        }
    }
}
