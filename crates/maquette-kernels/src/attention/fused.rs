//! Attention on slices: blocks of queries against all they see.

use std::mem::MaybeUninit;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{AttentionOptions, FEW_QUERIES, few};
use crate::dispatch::{flex_tensor, written};
use crate::elementwise::{max, multiply_by, update, vectorized, walk};
use crate::gemm::product_here;
use crate::matrix::{Into, Matrix, multiply};
use crate::precision::Precision;
use crate::shared::Shared;
use crate::simd::Isa;

/// Queries that attend together.
const BLOCK: usize = 64;

/// Multiplications of one product that are worth a task: ten microseconds of them.
const TASK: usize = 1 << 17;

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    batch: usize,
    queries: usize,
    keys: usize,
    d_head: usize,
    options: AttentionOptions,
    precision: Precision,
}

/// Where heads lie in memory: in numbers, the start, and the distances between images, heads and
/// positions. The features of a head at a position are neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) image: usize,
    pub(super) head: usize,
    pub(super) row: usize,
}

impl Place {
    /// `[batch, seq, n_heads, d_head]` in row-major order.
    pub(super) fn packed(seq: usize, n_heads: usize, d_head: usize) -> Self {
        let row = n_heads * d_head;
        Self {
            start: 0,
            image: seq * row,
            head: d_head,
            row,
        }
    }

    fn at(&self, image: usize, head: usize, position: usize) -> usize {
        self.start + image * self.image + head * self.head + position * self.row
    }
}

/// Heads to be read.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) values: &'a [f32],
    pub(super) place: Place,
}

impl Heads<'_> {
    /// The positions of one head from `first` on.
    fn few(&self, image: usize, head: usize, first: usize, d_head: usize) -> few::Rows<'_> {
        few::Rows {
            values: &self.values[self.place.at(image, head, first)..],
            len: d_head,
            apart: self.place.row,
        }
    }

    /// Some positions of one head, as rows.
    fn rows(&self, image: usize, head: usize, first: usize, size: [usize; 2]) -> Matrix {
        let start = self.place.at(image, head, first);
        Matrix::of(self.values, start, size, self.place.row)
    }
}

/// Queries, keys and values.
pub(super) type Operands<'a> = [Heads<'a>; 3];

impl Layout {
    pub(super) fn new(
        batch: usize,
        [queries, keys]: [usize; 2],
        d_head: usize,
        options: AttentionOptions,
    ) -> Self {
        Self {
            batch,
            queries,
            keys,
            d_head,
            options,
            precision: match queries < FEW_QUERIES.min(keys) {
                true => Precision::F32,
                false => Precision::current(),
            },
        }
    }

    pub(super) fn n_heads(&self) -> usize {
        self.options.n_heads
    }

    pub(super) fn d_head(&self) -> usize {
        self.d_head
    }

    /// Shape of the output.
    pub(super) fn output(&self) -> [usize; 3] {
        [self.batch, self.queries, self.n_heads() * self.d_head]
    }

    /// Where the output lies.
    pub(super) fn mixed(&self) -> Place {
        Place::packed(self.queries, self.n_heads(), self.d_head)
    }

    /// Where queries, keys and values lie in a joint projection.
    pub(super) fn joint(&self) -> [Place; 3] {
        let AttentionOptions {
            n_heads,
            n_kv_heads,
            ..
        } = self.options;
        let all = Place::packed(self.keys, n_heads + 2 * n_kv_heads, self.d_head);
        [0, n_heads, n_heads + n_kv_heads].map(|first| Place {
            start: first * self.d_head,
            ..all
        })
    }

    /// The same with the query heads of a key head as the queries of one head, if each has a single
    /// query that sees all keys: fewer and larger products.
    fn folded(self, places: [Place; 2]) -> Option<(Self, [Place; 2])> {
        let group = self.group();
        let all = self.options.window.is_none_or(|window| window >= self.keys);
        let apart = places.iter().all(|place| place.head >= self.d_head);
        if self.queries > 1 || group == 1 || !all || !apart {
            return None;
        }
        let layout = Self {
            queries: group,
            options: AttentionOptions {
                n_heads: self.options.n_kv_heads,
                causal: false,
                window: None,
                scale: Some(self.options.scale_of(self.d_head)),
                ..self.options
            },
            ..self
        };
        let fold = |place: Place| Place {
            row: place.head,
            head: group * place.head,
            ..place
        };
        Some((layout, places.map(fold)))
    }

    /// Query heads per key head.
    fn group(&self) -> usize {
        self.options.n_heads / self.options.n_kv_heads
    }

    /// The block of queries that begins at `first`.
    fn block(&self, first: usize) -> Block {
        let rows = BLOCK.min(self.queries - first);
        let mut block = Block {
            position: first,
            rows,
            from: 0,
            seen: self.keys,
            options: self.options,
        };
        if self.options.causal {
            block.position += self.keys - self.queries;
            block.from = self.options.first_seen(block.position);
            block.seen = block.position + rows;
        }
        block
    }

    /// The generator's row for the query at `position`.
    fn row(&self, image: usize, head: usize, position: usize) -> u64 {
        ((image * self.options.n_heads + head) * self.queries + position) as u64
    }

    /// Numbers of the scores of a block.
    fn scores(&self) -> usize {
        BLOCK.min(self.queries) * self.keys
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
}

/// Queries that attend together, and the positions at least one of them sees.
#[derive(Clone, Copy)]
struct Block {
    /// Of the first query, among the keys if causal.
    position: usize,
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
        if !self.options.causal {
            return 0..self.width();
        }
        let position = self.position + row;
        self.options.first_seen(position) - self.from..position + 1 - self.from
    }
}

/// Memory that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    data: *mut f32,
    len: usize,
    owner: std::marker::PhantomData<&'a f32>,
}

// SAFETY: the pointer stands for an exclusive borrow of floats, which may be used from any thread;
// that threads use distinct elements is promised by every caller of `matrix`.
unsafe impl Sync for Columns<'_> {}
// SAFETY: as above.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    pub(super) fn of(values: &'a mut [f32]) -> Self {
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
pub(super) fn forward(&[q, k, v]: &Operands, layout: &Layout) -> (FlexTensor, Vec<f32>) {
    let output = layout.output();
    let places = [q.place, layout.mixed()];
    let (layout, [q_place, place]) = layout.folded(places).unwrap_or((*layout, places));
    let q = Heads {
        place: q_place,
        ..q
    };
    let Layout {
        batch,
        queries,
        d_head,
        options,
        ..
    } = layout;
    let isa = Isa::detect();
    let scale = options.scale_of(d_head);
    let mut totals = vec![0.0; batch * options.n_heads * queries];
    let shared_totals = Shared::new(&mut totals);
    let blocks = queries.div_ceil(BLOCK);
    let write = |out: &mut [MaybeUninit<f32>]| {
        let columns = Columns::new(out);
        let tasks = (0..batch * options.n_heads * blocks).into_par_iter();
        let least = TASK.div_ceil(layout.scores() * d_head);
        let few = queries < FEW_QUERIES && layout.precision == Precision::F32;
        // Of one query the factors of dropout, then of few what they mix.
        let line = layout.keys.max(queries.min(FEW_QUERIES) * d_head);
        tasks.with_min_len(least).for_each_init(
            || [layout.scores(), line].map(|len| vec![0.0; len]),
            |[scores, mask], task| {
                let (pair, first) = (task / blocks, task % blocks * BLOCK);
                let (image, head) = (pair / options.n_heads, pair % options.n_heads);
                let shared = head / layout.group();
                let block = layout.block(first);
                let (rows, from, seen) = (block.rows, block.from, block.width());
                // SAFETY: the totals outlive this loop, and these are the task's own.
                let totals = unsafe { shared_totals.part(pair * queries + first, rows) };
                let scores = &mut scores[..rows * seen];
                if few {
                    let q = q.few(image, head, first, d_head);
                    few::scores(isa, q, k.few(image, shared, from, d_head), seen, scores);
                } else {
                    let q = q.rows(image, head, first, [rows, d_head]);
                    let k = k.rows(image, shared, from, [seen, d_head]);
                    let weights = Matrix::of_mut(scores, 0, [rows, seen], seen);
                    // SAFETY: `scores` belongs to this thread.
                    unsafe { layout.multiply(weights, Into::Replace, q, k.transposed()) };
                }
                softmax_rows(isa, block, scale, scores, totals);
                if let Some(dropout) = options.dropout {
                    for (row, weights) in scores.chunks_exact_mut(seen).take(rows).enumerate() {
                        let mask = &mut mask[..block.seen];
                        dropout.factors(layout.row(image, head, first + row), mask);
                        multiply_by(isa, weights, &mask[from..]);
                    }
                }
                let start = place.at(image, head, first);
                // SAFETY: these rows and columns are this task's alone.
                let mixed = unsafe { columns.matrix(start, [rows, d_head], place.row) };
                if few {
                    let v = v.few(image, shared, from, d_head);
                    few::mix(isa, scores, v, seen, &mut mask[..rows * d_head]);
                    for (row, values) in mask.chunks_exact(d_head).take(rows).enumerate() {
                        // SAFETY: as above.
                        unsafe { mixed.write_row(row, values) };
                    }
                } else {
                    let weights = Matrix::of(scores, 0, [rows, seen], seen);
                    let v = v.rows(image, shared, from, [seen, d_head]);
                    // SAFETY: as above.
                    unsafe { layout.multiply(mixed, Into::Replace, weights, v) };
                }
            },
        );
    };
    // SAFETY: the tasks together write every row and every head's columns.
    let out = unsafe { written(output.iter().product(), write) };
    (flex_tensor(out, &output), totals)
}

vectorized! {
    /// Turns products of queries and keys into weights, zero where a query does not see.
    fn softmax_rows<L>(machine, block: Block, scale: f32, scores: &mut [f32], totals: &mut [f32]) {
        let rows = scores.chunks_exact_mut(block.width()).take(block.rows);
        for (row, (scores, total)) in rows.zip(totals).enumerate() {
            let range = block.seen_by(row);
            let (seen, future) = scores.split_at_mut(range.end);
            let (past, seen) = seen.split_at_mut(range.start);
            let top = max(machine, seen) * scale;
            let [all] = update(machine, seen, [], |[score]| {
                let weight = score.mul_add(score.splat(scale), score.splat(-top)).exp_of_negative();
                (weight, [weight])
            });
            let share = 1.0 / all;
            update(machine, seen, [], |[weight]| (weight * share, []));
            past.fill(0.0);
            future.fill(0.0);
            *total = top + all.ln();
        }
    }
}

/// With weights `P`, dropped `D = P M` and `dP = M dO V^T`: `dV = D^T dO`,
/// `dS = P (dP - rowsum(P dP))`, `dQ = scale dS K` and `dK = scale dS^T Q`; the last two and `dV` go
/// where `into` says, which is zero before.
///
/// # Safety
/// The places of `into` are in memory of their own, and do not overlap.
pub(super) unsafe fn backward(
    [q, k, v]: &Operands,
    totals: &[f32],
    grad: &Heads,
    [dq, dk, dv]: [(Columns, Place); 3],
    layout: &Layout,
) {
    let Layout {
        batch,
        queries,
        d_head,
        options,
        ..
    } = *layout;
    let isa = Isa::detect();
    let scale = options.scale_of(d_head);
    // One task owns a key head and all queries that share it, so sums run in a fixed order.
    (0..batch * options.n_kv_heads)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(
            || [layout.scores(), layout.scores(), layout.keys].map(|len| vec![0.0; len]),
            |[scores, slopes, mask], task| {
                let (image, shared) = (task / options.n_kv_heads, task % options.n_kv_heads);
                let blocks = (0..queries).step_by(BLOCK);
                let heads = shared * layout.group()..(shared + 1) * layout.group();
                for (head, first) in heads.flat_map(|head| blocks.clone().map(move |b| (head, b))) {
                    let totals = &totals[(image * options.n_heads + head) * queries..][..queries];
                    let block = layout.block(first);
                    let (rows, from, seen) = (block.rows, block.from, block.width());
                    let [q, mixed] = [q, grad].map(|x| x.rows(image, head, first, [rows, d_head]));
                    let [k, v] = [k, v].map(|x| x.rows(image, shared, from, [seen, d_head]));
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
                    // SAFETY: this key head, its value head and the query heads of its group in
                    // this image are this task's alone.
                    unsafe {
                        let part = |(columns, place): (Columns, Place), head, first, rows| {
                            let start = place.at(image, head, first);
                            columns.matrix(start, [rows, d_head], place.row)
                        };
                        let dq = part(dq, head, first, rows);
                        let (dk, dv) = (part(dk, shared, from, seen), part(dv, shared, from, seen));
                        layout.multiply(dv, Into::Add, weights.transposed(), mixed);
                        layout.multiply(dk, Into::Add, dscores.transposed(), q);
                        layout.multiply(dq, Into::Replace, dscores, k);
                    }
                }
            },
        );
}

vectorized! {
    /// Of one query: turns scores into dropped weights, and the gradient of the dropped weights into
    /// that of the products of query and keys.
    fn softmax_gradient<L>(
        machine,
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
        let (mask, len) = (mask[start..end].as_ptr(), end - start);
        let (weights, slopes) = (&mut weights[start..end], &mut slopes[start..end]);
        let [weights, slopes] = [weights, slopes].map(<[f32]>::as_mut_ptr);
        let places = ([weights.cast_const(), slopes, mask], [weights, slopes]);
        // SAFETY: three slices of one length, of which two are borrowed to be changed.
        unsafe {
            let [mean] = walk(machine, len, places, |[weight, slope, mask]| {
                let weight = weight.mul_add(weight.splat(scale), weight.splat(-total)).exp_of_negative();
                let slope = slope * mask;
                ([weight, slope], [weight * slope])
            });
            walk(machine, len, places, |[weight, slope, mask]| {
                ([weight * mask, weight * scale * (slope - mean)], [])
            });
        }
    }
}
