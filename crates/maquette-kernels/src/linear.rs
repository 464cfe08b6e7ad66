//! A linear layer with its offset and activation in the same pass.

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

use crate::activation::{Activation, activate, apply, apply_slope, apply_to};
use crate::dispatch::{Optional, contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::add;
use crate::gemm::{Epilogue, Plain, product};
use crate::matrix::{Into, Matrix, multiply};
use crate::precision::Precision;
use crate::simd::Isa;

/// Below as many rows packing the weight costs more than it saves.
const FEW_ROWS: usize = 8;

/// Rows of one task of the backward pass' element-wise part. Fixed, so that the order in which the
/// offset's gradient is added does not depend on the number of threads.
const ROWS: usize = 64;

/// `activation(x weight + bias)`, in the precision of [`autocast`](crate::autocast).
///
/// `weight` may be a transposed view: it is read where it lies, and its gradient is laid out the
/// same way.
///
/// # Shapes
/// - `x`: `[.., d_in]`
/// - `weight`: `[d_in, d_out]`
/// - `bias`: `[d_out]`
/// - output: `[.., d_out]`
///
/// # Panics
/// If the sizes do not match.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
) -> Tensor<D> {
    let [d_in, d_out] = weight.dims();
    assert_eq!(
        x.dims()[D - 1],
        d_in,
        "linear: the last dimension of the input against the weight's {d_in} inputs"
    );
    if let Some(bias) = &bias {
        assert_eq!(
            bias.dims(),
            [d_out],
            "linear: one offset for each of the weight's {d_out} outputs"
        );
    }
    let fused = is_flex_f32(&x) && is_flex_f32(&weight) && bias.as_ref().is_none_or(is_flex_f32);
    if !fused || x.dims().contains(&0) || d_out == 0 {
        let z = burn::tensor::module::linear(x, weight, bias);
        return activate(z, activation);
    }
    let job = Job {
        activation,
        precision: Precision::current(),
    };
    let bias = match bias {
        Some(bias) => Optional::Given(bias.into_dispatch()),
        None => Optional::Absent,
    };
    let out = Dispatch::fused_linear(x.into_dispatch(), weight.into_dispatch(), bias, job);
    Tensor::from_dispatch(out)
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    activation: Activation,
    precision: Precision,
}

/// The layer as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedLinear: Backend {
    /// See [`linear`].
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        job: Job,
    ) -> FloatTensor<Self>;
}

impl FusedLinear for Flex {
    fn fused_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Optional<Self>,
        job: Job,
    ) -> FlexTensor {
        forward(x, &weight, bias, job, false).0
    }
}

impl<C: CheckpointStrategy> FusedLinear for Autodiff<Flex, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        job: Job,
    ) -> FloatTensor<Self> {
        // Two arms, because the number of parents is part of the type.
        macro_rules! record {
            ($nodes:expr, $bias:expr) => {
                match LinearBackward
                    .prepare::<C>($nodes)
                    .compute_bound()
                    .stateful()
                {
                    OpsKind::Tracked(mut prep) => {
                        let saved = [prep.checkpoint(&x), prep.checkpoint(&weight)];
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        let (out, inner) = forward(x, &weight, $bias, job, true);
                        prep.finish((saved, inner, job), out)
                    }
                    OpsKind::UnTracked(prep) => {
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(forward(x, &weight, $bias, job, false).0)
                    }
                }
            };
        }
        match bias {
            Optional::Given(bias) => {
                let nodes = [x.node(), weight.node(), bias.node()];
                record!(nodes, Optional::Given(bias.into_primitive()))
            }
            Optional::Absent => record!([x.node(), weight.node()], Optional::Absent),
        }
    }
}

/// The output, and, if `keep`, what the activation was applied to.
fn forward(
    x: FlexTensor,
    weight: &FlexTensor,
    bias: Optional<Flex>,
    job: Job,
    keep: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let mut shape = x.shape();
    let (x, weight) = (contiguous(x), positive(weight));
    let (a, b) = (rows_of(&x), Matrix::of_tensor(&weight));
    let [rows, d_out] = [a.size[0], b.size[1]];
    let last = shape.num_dims() - 1;
    shape[last] = d_out;
    let bias = match bias {
        Optional::Given(bias) => Some(contiguous(bias)),
        Optional::Absent => None,
    };
    let mut active = Vec::new();
    let keep = keep && job.activation != Activation::Identity;
    if keep {
        active.reserve_exact(rows * d_out);
    }
    let finish = Finish {
        isa: Isa::detect(),
        bias: bias.as_ref().map(|bias| bias.storage()),
        activation: job.activation,
        active: keep.then_some(active.as_mut_ptr()),
        width: d_out,
    };
    // SAFETY: `forward_into` writes every number of the product.
    let out = unsafe { written(rows * d_out, |out| forward_into(out, a, b, job, &finish)) };
    if !keep {
        return (flex_tensor(out, &shape), None);
    }
    // SAFETY: the capacity was reserved above, and `Finish::finish` has been called for every part
    // of every row, writing each number.
    unsafe { active.set_len(rows * d_out) };
    (flex_tensor(active, &shape), Some(flex_tensor(out, &shape)))
}

fn forward_into(out: &mut [MaybeUninit<f32>], a: Matrix, b: Matrix, job: Job, finish: &Finish) {
    let [rows, d_out] = [a.size[0], b.size[1]];
    // SAFETY: `out` is as long as the product and this function's alone; the factors are alive.
    unsafe {
        let data = out.as_mut_ptr().cast::<f32>();
        let target = Matrix::of_raw(data, out.len(), 0, [rows, d_out], d_out);
        if rows < FEW_ROWS {
            multiply(target, Into::Replace, 1.0, a, b);
            for (row, values) in std::slice::from_raw_parts_mut(data, rows * d_out)
                .chunks_exact_mut(d_out)
                .enumerate()
            {
                finish.finish(row, 0, values);
            }
        } else {
            product(target, Into::Replace, a, b, job.precision, finish);
        }
    }
}

/// What follows the product: the offset, then the activation, in place or to memory of its own.
struct Finish<'a> {
    isa: Isa,
    bias: Option<&'a [f32]>,
    activation: Activation,
    active: Option<*mut f32>,
    width: usize,
}

// SAFETY: `active` points to memory as large as the product, of which every call of `finish` writes
// only the part it is called for.
unsafe impl Sync for Finish<'_> {}

impl Epilogue for Finish<'_> {
    fn finish(&self, row: usize, col: usize, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            add(self.isa, values, &bias[col..col + values.len()]);
        }
        if self.activation == Activation::Identity {
            return;
        }
        match self.active {
            Some(active) => {
                // SAFETY: the same part of the same row as in the product, which nothing else uses.
                let out = unsafe {
                    let start = active.add(row * self.width + col);
                    std::slice::from_raw_parts_mut(start.cast(), values.len())
                };
                apply(self.isa, self.activation, values, out);
            }
            None => apply_to(self.isa, self.activation, values),
        }
    }
}

/// All rows of a contiguous tensor, whatever its shape.
fn rows_of(x: &FlexTensor) -> Matrix {
    let shape = x.shape();
    let width = shape[shape.num_dims() - 1];
    let values: &[f32] = x.storage();
    Matrix::of(values, 0, [values.len() / width, width], width)
}

/// As it is, unless it is reversed or repeated in memory.
fn positive(weight: &FlexTensor) -> FlexTensor {
    if weight.layout().strides().iter().all(|stride| *stride > 0) {
        weight.clone()
    } else {
        contiguous(weight.clone())
    }
}

#[derive(Debug)]
struct LinearBackward;

/// Parents are the input, the weight and, with three of them, the offset.
impl<const PARENTS: usize> Backward<Flex, PARENTS> for LinearBackward {
    type State = ([NodeId; 2], Option<FlexTensor>, Job);

    /// With `z = x W + b` and `dz` its gradient: `dx = dz W^T`, `dW = x^T dz`, `db` the sum of `dz`
    /// over the rows.
    fn backward(
        self,
        ops: Ops<Self::State, PARENTS>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, inner, job) = ops.state;
        let [x, weight] = saved.map(|id| checkpointer.retrieve_node_output::<FlexTensor>(id));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let mut parents = ops.parents.into_iter();
        let [dx, dw, db] = std::array::from_fn(|_| parents.next().flatten());
        let (x, weight) = (contiguous(x), positive(&weight));
        let (a, b) = (rows_of(&x), Matrix::of_tensor(&weight));
        // 1. Through the activation, summing the columns on the way.
        let sums = through(&mut grad, inner, job.activation, b.size[1], db.is_some());
        if let Some(node) = db {
            grads.register::<Flex>(node.id, flex_tensor(sums, &[b.size[1]]));
        }
        // 2. The two products.
        let dz = rows_of(&grad);
        if let Some(node) = dw {
            grads.register::<Flex>(node.id, weight_gradient(a, dz, b, job.precision));
        }
        if let Some(node) = dx {
            let out = fresh_product(dz, b.transposed(), job.precision);
            grads.register::<Flex>(node.id, flex_tensor(out, &x.shape()));
        }
    }
}

/// `x^T dz` in the layout of the weight `like`.
fn weight_gradient(x: Matrix, dz: Matrix, like: Matrix, precision: Precision) -> FlexTensor {
    let [d_in, d_out] = like.size;
    if like.strides[1] == 1 {
        let out = fresh_product(x.transposed(), dz, precision);
        flex_tensor(out, &[d_in, d_out])
    } else {
        let out = fresh_product(dz.transposed(), x, precision);
        flex_tensor(out, &[d_out, d_in]).transpose(0, 1)
    }
}

/// `a b` in new memory.
pub(crate) fn fresh_product(a: Matrix, b: Matrix, precision: Precision) -> Vec<f32> {
    let size = [a.size[0], b.size[1]];
    let write = |out: &mut [MaybeUninit<f32>]| {
        // SAFETY: `out` is as long as the product and new; callers hold the factors.
        unsafe {
            let data = out.as_mut_ptr().cast();
            let target = Matrix::of_raw(data, out.len(), 0, size, size[1]);
            product(target, Into::Replace, a, b, precision, &Plain);
        }
    };
    // SAFETY: `product` writes every number.
    unsafe { written(size[0] * size[1], write) }
}

/// Turns the gradient of the output into that of the activation's input, and adds up its columns if
/// `sum`.
fn through(
    grad: &mut FlexTensor,
    inner: Option<FlexTensor>,
    activation: Activation,
    width: usize,
    sum: bool,
) -> Vec<f32> {
    let isa = Isa::detect();
    if inner.is_none() && !sum {
        return Vec::new();
    }
    let task = |(index, grad): (usize, &mut [f32])| {
        if let Some(inner) = &inner {
            let inner = &inner.storage::<f32>()[index * ROWS * width..][..grad.len()];
            apply_slope(isa, activation, inner, grad);
        }
        let mut sums = vec![0.0; if sum { width } else { 0 }];
        for row in grad.chunks_exact(width).filter(|_| sum) {
            add(isa, &mut sums, row);
        }
        sums
    };
    let chunks = grad.storage_mut::<f32>().par_chunks_mut(ROWS * width);
    let parts: Vec<Vec<f32>> = chunks.enumerate().map(task).collect();
    let mut total = vec![0.0; if sum { width } else { 0 }];
    for part in &parts {
        add(isa, &mut total, part);
    }
    total
}
