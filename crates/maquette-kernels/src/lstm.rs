//! The recurrence of a long short-term memory over a whole sequence.
//!
//! Sequences of a batch do not meet, so each task walks all time steps of a few of them, without
//! waiting for another. The recurrent weight is packed once and read once per time step and task.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::activation::{sigmoid as burn_sigmoid, tanh as burn_tanh};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32};
use crate::elementwise::{vectorized, walk};
use crate::linear::fresh_product;
use crate::matrix::Matrix;
use crate::precision::Precision;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};

/// Sequences of a task: as many as share one reading of the weight, but enough tasks for two
/// threads where the batch allows.
fn group(batch: usize) -> usize {
    if batch < 2 * MOST { MOST / 2 } else { MOST }
}

const MOST: usize = 16;

/// Outputs of a recurrent layer that starts from zeros (Hochreiter & Schmidhuber 1997; gates in
/// the order input, forget, cell, output, as PyTorch has them).
///
/// With `[i, f, g, o] = x_t + h_{t-1} weight`:
/// `c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)`, `h_t = sigmoid(o) tanh(c_t)`.
///
/// # Shapes
/// - x: `[batch, seq, 4 d_hidden]`, the gates' inputs with their offsets
/// - weight: `[d_hidden, 4 d_hidden]`
/// - output: `[batch, seq, d_hidden]`
///
/// # Panics
/// If the sizes do not fit together, or one is zero.
pub fn lstm(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let ([batch, seq, width], [d_hidden, _]) = (x.dims(), weight.dims());
    assert!(
        weight.dims()[1] == width && 4 * d_hidden == width && batch * seq * width > 0,
        "lstm: gates of {width} do not fit a weight of {:?}",
        weight.dims()
    );
    if !is_flex_f32(&x) || !is_flex_f32(&weight) {
        return composed(x, weight);
    }
    Tensor::from_dispatch(Dispatch::fused_lstm(
        x.into_dispatch(),
        weight.into_dispatch(),
    ))
}

fn composed(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [batch, seq, width] = x.dims();
    let d_hidden = width / 4;
    let mut state: Option<(Tensor<2>, Tensor<2>)> = None;
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let mut gates = x.clone().narrow(1, t, 1).reshape([batch, width]);
        if let Some((hidden, _)) = &state {
            gates = gates + hidden.clone().matmul(weight.clone());
        }
        let gate = |index: usize| gates.clone().narrow(1, index * d_hidden, d_hidden);
        let mut cell = burn_sigmoid(gate(0)) * burn_tanh(gate(2));
        if let Some((_, before)) = state {
            cell = burn_sigmoid(gate(1)) * before + cell;
        }
        let hidden = burn_sigmoid(gate(3)) * burn_tanh(cell.clone());
        outputs.push(hidden.clone().unsqueeze_dim::<3>(1));
        state = Some((hidden, cell));
    }
    Tensor::cat(outputs, 1)
}

/// The recurrence as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedLstm: Backend {
    /// See [`lstm`].
    fn fused_lstm(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl FusedLstm for Flex {
    fn fused_lstm(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        forward(x, weight).0
    }
}

impl<C: CheckpointStrategy> FusedLstm for Autodiff<Flex, C> {
    fn fused_lstm(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        match LstmBackward
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (out, walk) = forward(x.into_primitive(), weight.into_primitive());
                prep.finish(walk, out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(forward(x.into_primitive(), weight.into_primitive()).0)
            }
        }
    }
}

/// What the backward pass needs of the forward pass.
#[derive(Clone, Debug)]
struct Walk {
    /// The four gates after their curves, `[batch, seq, 4 d_hidden]`.
    gates: FlexTensor,
    /// `[batch, seq, d_hidden]`.
    cells: FlexTensor,
    /// The output one step earlier, zero at first, `[batch, seq, d_hidden]`.
    before: FlexTensor,
    weight: FlexTensor,
}

#[derive(Debug)]
struct LstmBackward;

impl Backward<Flex, 2> for LstmBackward {
    type State = Walk;

    fn backward(self, ops: Ops<Walk, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let before = ops.state.before.clone();
        let slopes = backward(ops.state, &grad);
        let [x, weight] = ops.parents;
        if let Some(node) = weight {
            grads.register::<Flex>(node.id, weight_gradient(&before, &slopes));
        }
        if let Some(node) = x {
            grads.register::<Flex>(node.id, slopes);
        }
    }
}

fn forward(x: FlexTensor, weight: FlexTensor) -> (FlexTensor, Walk) {
    let shape = x.shape();
    let [batch, seq, width] = [shape[0], shape[1], shape[2]];
    let d_hidden = width / 4;
    let isa = Isa::detect();
    let weight = contiguous(weight);
    let packed = {
        let weight: &[f32] = weight.storage();
        Packed::new(isa, [d_hidden, width], |k, j| weight[k * width + j])
    };
    let mut gates = contiguous(x);
    let size = batch * seq * d_hidden;
    let [mut cells, mut before, mut out] = std::array::from_fn(|_| vec![0.0; size]);
    let (rows, row) = (group(batch), seq * d_hidden);
    (
        gates.storage_mut::<f32>()[..4 * size].par_chunks_mut(4 * rows * row),
        cells.par_chunks_mut(rows * row),
        before.par_chunks_mut(rows * row),
        out.par_chunks_mut(rows * row),
    )
        .into_par_iter()
        .for_each(|(gates, cells, before, out)| {
            let mut hidden = vec![0.0; rows * d_hidden];
            let mut products = vec![0.0; rows * packed.cols];
            let zeros = vec![0.0; d_hidden];
            for t in 0..seq {
                if t > 0 {
                    packed.multiply(&hidden, &mut products);
                }
                for (r, gates) in gates.chunks_exact_mut(seq * width).enumerate() {
                    let at = r * row + t * d_hidden;
                    let hidden = &mut hidden[r * d_hidden..][..d_hidden];
                    before[at..][..d_hidden].copy_from_slice(hidden);
                    let (past, now) = cells[r * row..].split_at_mut(t * d_hidden);
                    let past = match t {
                        0 => &zeros,
                        _ => &past[past.len() - d_hidden..],
                    };
                    let gates = &mut gates[t * width..][..width];
                    let products = &products[r * packed.cols..][..width];
                    unit_forward(isa, gates, products, past, &mut now[..d_hidden], hidden);
                    out[at..][..d_hidden].copy_from_slice(hidden);
                }
            }
        });
    let small = [batch, seq, d_hidden];
    let walk = Walk {
        gates,
        cells: flex_tensor(cells, &small),
        before: flex_tensor(before, &small),
        weight,
    };
    (flex_tensor(out, &small), walk)
}

/// The gradient of the gates' inputs, from the last time step to the first.
fn backward(walk: Walk, grad: &FlexTensor) -> FlexTensor {
    let Walk {
        mut gates,
        cells,
        weight,
        ..
    } = walk;
    let shape = cells.shape();
    let [batch, seq, d_hidden] = [shape[0], shape[1], shape[2]];
    let width = 4 * d_hidden;
    let isa = Isa::detect();
    let packed = {
        let weight: &[f32] = weight.storage();
        Packed::new(isa, [width, d_hidden], |k, j| weight[j * width + k])
    };
    let size = batch * seq * d_hidden;
    let (cells, grad): (&[f32], &[f32]) = (cells.storage(), grad.storage());
    let (rows, row) = (group(batch), seq * d_hidden);
    (
        gates.storage_mut::<f32>()[..4 * size].par_chunks_mut(4 * rows * row),
        cells[..size].par_chunks(rows * row),
        grad[..size].par_chunks(rows * row),
    )
        .into_par_iter()
        .for_each(|(gates, cells, grad)| {
            let mut slopes = vec![0.0; rows * width];
            let mut products = vec![0.0; rows * packed.cols];
            let mut carry = vec![0.0; rows * d_hidden];
            let zeros = vec![0.0; d_hidden];
            for t in (0..seq).rev() {
                if t + 1 < seq {
                    packed.multiply(&slopes, &mut products);
                }
                for (r, gates) in gates.chunks_exact_mut(seq * width).enumerate() {
                    let at = r * row + t * d_hidden;
                    let past = match t {
                        0 => &zeros,
                        _ => &cells[at - d_hidden..at],
                    };
                    let gates = &mut gates[t * width..][..width];
                    unit_backward(
                        isa,
                        gates,
                        [past, &cells[at..][..d_hidden]],
                        [
                            &grad[at..][..d_hidden],
                            &products[r * packed.cols..][..d_hidden],
                        ],
                        &mut carry[r * d_hidden..][..d_hidden],
                    );
                    slopes[r * width..][..width].copy_from_slice(gates);
                }
            }
        });
    gates
}

/// `before^T slopes`, summed over batch and time.
fn weight_gradient(before: &FlexTensor, slopes: &FlexTensor) -> FlexTensor {
    let shape = before.shape();
    let (times, d_hidden) = (shape[0] * shape[1], shape[2]);
    let width = 4 * d_hidden;
    let before = Matrix::of(before.storage(), 0, [times, d_hidden], d_hidden);
    let slopes = Matrix::of(slopes.storage(), 0, [times, width], width);
    let out = fresh_product(before.transposed(), slopes, Precision::F32);
    flex_tensor(out, &[d_hidden, width])
}

vectorized! {
    /// One time step of one sequence; the gates' inputs become the gates.
    fn unit_forward<L>(
        machine,
        gates: &mut [f32],
        products: &[f32],
        past: &[f32],
        cell: &mut [f32],
        hidden: &mut [f32],
    ) {
        let d = hidden.len();
        let lens = [gates.len() / 4, products.len() / 4, past.len(), cell.len()];
        assert!(lens.iter().all(|len| *len >= d), "one unit per gate");
        let (gates, products) = (gates.as_mut_ptr(), products.as_ptr());
        // SAFETY: four times `d` floats are in `gates` and in `products`.
        let places = unsafe {
            let gates = [0, 1, 2, 3].map(|gate| gates.add(gate * d));
            let products = [0, 1, 2, 3].map(|gate| products.add(gate * d));
            let ([i, f, g, o], [pi, pf, pg, po]) = (gates, products);
            let from = [i.cast_const(), f, g, o, pi, pf, pg, po, past.as_ptr()];
            (from, [i, f, g, o, cell.as_mut_ptr(), hidden.as_mut_ptr()])
        };
        // SAFETY: `d` floats at each; what is written is borrowed for it.
        unsafe {
            walk(machine, d, places, |[i, f, g, o, pi, pf, pg, po, past]| {
                let (i, f, o) = ((i + pi).sigmoid(), (f + pf).sigmoid(), (o + po).sigmoid());
                let g = (g + pg).tanh();
                let cell = f.mul_add(past, i * g);
                ([i, f, g, o, cell, o * cell.tanh()], [])
            });
        }
    }
}

vectorized! {
    /// One time step of one sequence backwards; the gates become the gradients of their inputs.
    /// `grads` are those of the output from outside and from the next time step, `carry` that of
    /// the cell.
    fn unit_backward<L>(
        machine,
        gates: &mut [f32],
        cells: [&[f32]; 2],
        grads: [&[f32]; 2],
        carry: &mut [f32],
    ) {
        let d = carry.len();
        let lens = [gates.len() / 4, cells[0].len(), cells[1].len(), grads[0].len(), grads[1].len()];
        assert!(lens.iter().all(|len| *len >= d), "one unit per gate");
        let (gates, carry) = (gates.as_mut_ptr(), carry.as_mut_ptr());
        // SAFETY: four times `d` floats are in `gates`.
        let [i, f, g, o] = [0, 1, 2, 3].map(|gate| unsafe { gates.add(gate * d) });
        let [[past, cell], [outside, next]] = [cells, grads].map(|pair| pair.map(<[f32]>::as_ptr));
        let from = [i.cast_const(), f, g, o, past, cell, outside, next, carry];
        // SAFETY: `d` floats at each; what is written is borrowed for it.
        unsafe {
            walk(machine, d, (from, [i, f, g, o, carry]), |x| {
                let [i, f, g, o, past, cell, outside, next, carry] = x;
                let one = carry.splat(1.0);
                let dh = outside + next;
                let top = cell.tanh();
                let dc = (dh * o).mul_add(top.neg_mul_add(top, one), carry);
                let di = dc * g * i * (one - i);
                let df = dc * past * f * (one - f);
                let dg = dc * i * g.neg_mul_add(g, one);
                let d_o = dh * top * o * (one - o);
                ([di, df, dg, d_o, dc * f], [])
            });
        }
    }
}

/// Vectors of a panel of packed columns.
const VECTORS: usize = 2;

/// A matrix that many small ones are multiplied with: `[panel][depth][column in panel]`, the last
/// panel filled up with zeros.
struct Packed {
    values: Vec<f32>,
    depth: usize,
    /// Columns, whole panels.
    cols: usize,
    isa: Isa,
}

impl Packed {
    fn new(
        isa: Isa,
        [depth, cols]: [usize; 2],
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let width = VECTORS * isa.lanes();
        let padded = cols.next_multiple_of(width);
        let mut values = vec![0.0; depth * padded];
        values
            .par_chunks_mut(depth * width)
            .enumerate()
            .for_each(|(panel, values)| {
                for (k, values) in values.chunks_exact_mut(width).enumerate() {
                    let from = panel * width;
                    for (j, to) in (from..cols).zip(values) {
                        *to = value(k, j);
                    }
                }
            });
        Self {
            values,
            depth,
            cols: padded,
            isa,
        }
    }

    /// `out = rows * self`, `rows` of this matrix's depth and `out` of its padded columns.
    ///
    /// # Panics
    /// If the lengths do not fit, or the number of rows is no multiple of eight.
    fn multiply(&self, rows: &[f32], out: &mut [f32]) {
        let count = rows.len() / self.depth;
        assert!(
            rows.len() == count * self.depth
                && out.len() == count * self.cols
                && count.is_multiple_of(MOST / 2),
            "rows do not fit the packed matrix"
        );
        // SAFETY: `Isa` values other than `Portable` exist only where detection found the
        // instructions; the lengths were just checked, and eight rows are whole tiles everywhere.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => multiply_avx512(self, rows, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => multiply_avx2(self, rows, out),
                Isa::Portable => self.run::<Portable, 4>(rows, out),
            }
        }
    }

    /// Panels outside, rows inside: a panel stays in the first cache.
    ///
    /// # Safety
    /// The machine has the instructions of `L`, the matrix was packed for them, and the lengths
    /// are as [`Self::multiply`] checks them with whole tiles of `ROWS`.
    #[inline(always)]
    unsafe fn run<L: Lanes, const ROWS: usize>(&self, rows: &[f32], out: &mut [f32]) {
        let width = VECTORS * L::N;
        let count = rows.len() / self.depth;
        for panel in 0..self.cols / width {
            for first in (0..count).step_by(ROWS) {
                // SAFETY: the panel's `depth * width` packed numbers, the tile's `ROWS` rows of
                // `depth` numbers and its part of `out` are inside the checked lengths.
                unsafe {
                    let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
                    let mut right = self.values.as_ptr().add(panel * self.depth * width);
                    let left = rows.as_ptr().add(first * self.depth);
                    for k in 0..self.depth {
                        let mut columns = [L::splat(0.0); VECTORS];
                        for (i, columns) in columns.iter_mut().enumerate() {
                            *columns = L::load(right.add(i * L::N));
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let value = L::splat(*left.add(row * self.depth + k));
                            for (sum, columns) in sums.iter_mut().zip(columns) {
                                *sum = L::mul_add(value, columns, *sum);
                            }
                        }
                        right = right.add(width);
                    }
                    for (row, sums) in sums.iter().enumerate() {
                        let to = (first + row) * self.cols + panel * width;
                        let to = out.as_mut_ptr().add(to);
                        for (i, sum) in sums.iter().enumerate() {
                            L::store(to.add(i * L::N), *sum);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_avx512(packed: &Packed, rows: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { packed.run::<Avx512, 8>(rows, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_avx2(packed: &Packed, rows: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's. Fewer rows at a time, as there are only sixteen registers.
    unsafe { packed.run::<Avx2, 4>(rows, out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_multiplies_alike() {
        for isa in Isa::available() {
            for [depth, cols] in [[1, 1], [7, 33], [20, 64]] {
                let packed = Packed::new(isa, [depth, cols], |k, j| (k * 31 + j * 7 % 13) as f32);
                let rows: Vec<f32> = (0..8 * depth).map(|i| (i % 5) as f32 - 2.0).collect();
                let mut out = vec![f32::NAN; 8 * packed.cols];
                packed.multiply(&rows, &mut out);
                for r in 0..8 {
                    for j in 0..cols {
                        let term = |k: usize| rows[r * depth + k] * (k * 31 + j * 7 % 13) as f32;
                        let expected: f32 = (0..depth).map(term).sum();
                        assert_eq!(out[r * packed.cols + j], expected, "{isa:?}");
                    }
                }
            }
        }
    }
}
