//! Softmax and cross-entropy in one pass over the logits, keeping one number per row.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, integers, is_flex_f32, written};
use crate::elementwise::{max, rows_of_exponentials, sums, total, vectorized};
use crate::simd::{Isa, Lanes};
use crate::vector::{MOST, Machine, Vector};

/// The constants of a [`cross_entropy_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// Share of the target's probability that is spread over all classes (Szegedy et al. 2016,
    /// arXiv:1512.00567), in `[0, 1]`.
    pub label_smoothing: f64,
    /// Rows with this target count for nothing.
    pub ignore: Option<i64>,
}

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
    cross_entropy_with(logits, targets, CrossEntropyOptions::default())
}

/// As [`cross_entropy`], with smoothed labels and rows that are left out; the mean is over the others,
/// and zero if there are none.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`, each below `classes` or ignored
/// - output: `[1]`
///
/// # Panics
/// If there is not one target per row, a target is not a class, or the smoothing is not in `[0, 1]`.
pub fn cross_entropy_with(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    options: CrossEntropyOptions,
) -> Tensor<1> {
    let [rows, classes] = logits.dims();
    assert_eq!(
        targets.dims(),
        [rows],
        "cross_entropy: one target per row of the logits"
    );
    let smoothing = options.label_smoothing;
    assert!(
        (0.0..=1.0).contains(&smoothing),
        "cross_entropy: a smoothing of {smoothing} is not in [0, 1]"
    );
    if !is_flex_f32(&logits) || rows * classes == 0 {
        return composed(logits, targets, options);
    }
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_cross_entropy(logits, targets, options))
}

/// The same of Burn's operators.
fn composed(logits: Tensor<2>, targets: Tensor<1, Int>, options: CrossEntropyOptions) -> Tensor<1> {
    let [rows, _] = logits.dims();
    let (counted, targets) = match options.ignore {
        Some(ignore) => {
            let ignored = targets.clone().equal_scalar(ignore);
            let counted: Tensor<1> = ignored.clone().bool_not().float().cast(logits.dtype());
            (Some(counted), targets.mask_fill(ignored, 0))
        }
        None => (None, targets),
    };
    let log_p = log_softmax(logits, 1);
    let chosen = log_p.clone().gather(1, targets.reshape([rows, 1]));
    let loss = match options.label_smoothing {
        0.0 => chosen,
        smoothing => chosen * (1.0 - smoothing) + log_p.mean_dim(1) * smoothing,
    };
    match counted {
        Some(counted) => {
            let sum = (loss.reshape([rows]) * counted.clone()).sum().neg();
            sum / counted.sum().clamp_min(1.0)
        }
        None => loss.mean().neg(),
    }
}

/// The loss as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedCrossEntropy: Backend {
    /// See [`cross_entropy_with`].
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> FloatTensor<Self>;
}

impl FusedCrossEntropy for Flex {
    fn fused_cross_entropy(
        logits: FlexTensor,
        targets: FlexTensor,
        options: CrossEntropyOptions,
    ) -> FlexTensor {
        let targets = Targets::new(targets, logits.shape()[1], options);
        forward(logits, &targets).0
    }
}

impl<C: CheckpointStrategy> FusedCrossEntropy for Autodiff<Flex, C> {
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> FloatTensor<Self> {
        let targets = Targets::new(targets, logits.shape()[1], options);
        match LossBackward
            .prepare::<C>([logits.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&logits);
                let (loss, totals) = forward(logits.into_primitive(), &targets);
                prep.finish((saved, targets, totals.into()), loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(forward(logits.into_primitive(), &targets).0),
        }
    }
}

/// What the rows should have been.
#[derive(Clone, Debug)]
struct Targets {
    /// Per row the class, or [`IGNORED`].
    classes: Arc<[usize]>,
    /// Rows that are not ignored, at least 1.
    counted: usize,
    smoothing: f32,
}

/// Stands for the class of a row that counts for nothing.
const IGNORED: usize = usize::MAX;

impl Targets {
    /// Reads them, whatever integer type the device keeps them in.
    fn new(targets: FlexTensor, classes: usize, options: CrossEntropyOptions) -> Self {
        let check = |target: i64| {
            if options.ignore == Some(target) {
                return IGNORED;
            }
            let class = usize::try_from(target)
                .ok()
                .filter(|class| *class < classes);
            class.unwrap_or_else(|| {
                panic!("cross_entropy: a target is not one of {classes} classes")
            })
        };
        let classes: Arc<[usize]> = integers(targets).into_iter().map(check).collect();
        let counted = classes.iter().filter(|class| **class != IGNORED).count();
        Self {
            classes,
            counted: counted.max(1),
            smoothing: options.label_smoothing as f32,
        }
    }
}

impl Targets {
    /// The mean logit of a row under the distribution its class stands for.
    fn expected(&self, isa: Isa, row: &[f32], class: usize) -> f32 {
        match self.smoothing {
            0.0 => row[class],
            part => (1.0 - part) * row[class] + part * total(isa, row) / row.len() as f32,
        }
    }
}

/// The loss, and of each row that counts the logarithm of the sum of exponentials.
fn forward(logits: FlexTensor, targets: &Targets) -> (FlexTensor, Vec<f32>) {
    let width = logits.shape()[1];
    let logits = contiguous(logits);
    let (isa, logits): (_, &[f32]) = (Isa::detect(), logits.storage());
    let classes = &*targets.classes;
    let rows = task(width);
    let mut totals = vec![0.0; classes.len()];
    let losses: Vec<f64> = totals
        .par_chunks_mut(rows)
        .zip(logits.par_chunks(rows * width))
        .zip(classes.par_chunks(rows))
        .map(|((totals, logits), classes)| {
            log_sum_exp(isa, logits, classes, totals);
            let rows = logits.chunks_exact(width).zip(classes).zip(totals);
            let counted = rows.filter(|((_, class), _)| **class != IGNORED);
            let loss = |((row, class), total): ((&[f32], &usize), &mut f32)| {
                f64::from(*total - targets.expected(isa, row, *class))
            };
            counted.map(loss).sum()
        })
        .collect();
    let mean = (losses.into_iter().sum::<f64>() / targets.counted as f64) as f32;
    (flex_tensor(vec![mean], &[1]), totals)
}

/// Rows of a task: some vectors full of them, see [`log_sum_exp`].
fn task(width: usize) -> usize {
    rows_of_exponentials(width).next_multiple_of(MOST)
}

/// A sum over the target's exponential, of about 14 nats, beyond which digits would be lost.
const FAR: f32 = (1 << 20) as f32;

vectorized! {
    /// As many rows at once as a vector has lanes: to reduce a row alone would take longer than to read
    /// a short one.
    ///
    /// Exponentials are taken of what lies between a logit and the target's, of which one is zero. Only
    /// where one is too far above is the largest logit looked for.
    fn log_sum_exp<L>(machine, logits: &[f32], classes: &[usize], totals: &mut [f32]) {
        let width = logits.len() / classes.len();
        let whole = width - columns_apart::<L>(width);
        let blocks = logits.chunks(L::N * width).zip(classes.chunks(L::N));
        for ((logits, classes), totals) in blocks.zip(totals.chunks_mut(L::N)) {
            let rows = || logits.chunks_exact(width).zip(classes).enumerate();
            let counted = || rows().filter(|(_, (_, class))| **class != IGNORED);
            let (mut partial, mut zeros) = ([machine.splat(0.0); MOST], [0.0; MOST]);
            for (place, (row, class)) in counted() {
                let zero = row[*class];
                zeros[place] = zero;
                partial[place] = exponentials(machine, &row[..whole], zero);
            }
            let mut all = Vector::across(partial, |a, b| a + b);
            for column in whole..width {
                let mut x = zeros;
                counted().for_each(|(place, (row, _))| x[place] = row[column]);
                all = all + (machine.of(&x, 0) - machine.of(&zeros, 0)).exp();
            }
            let all = all.lanes();
            // Of all lanes, whether there are rows for them or not: a loop the compiler makes vectors of.
            for (zero, sum) in zeros.iter_mut().zip(all) {
                *zero += ln(sum);
            }
            totals.copy_from_slice(&zeros[..totals.len()]);
            for ((place, (row, _)), sum) in rows().zip(all) {
                if sum.is_nan() || sum >= FAR {
                    let top = max(machine, row);
                    let [sum] = sums(machine, [row], |[x]| [(x - top).exp_of_negative()]);
                    totals[place] = top + sum.ln();
                }
            }
        }
    }
}

/// The last columns of rows of `width` numbers that are taken for many rows at once, since they fill so
/// little of a vector that a row's own would cost more than to gather them.
#[inline(always)]
fn columns_apart<L: Lanes>(width: usize) -> usize {
    let rest = width % L::N;
    if rest <= L::N / 4 { rest } else { 0 }
}

/// Vectors at a time, so that a sum does not wait for the last addition.
const BLOCK: usize = 4;

/// The sum of `e^(x - zero)`, of which the lanes are still to be added up.
///
/// As a loop over whole blocks and one over what is left: with a test per vector, rows of few classes
/// took a fifth longer.
#[inline(always)]
fn exponentials<L: Lanes>(machine: Machine<L>, row: &[f32], zero: f32) -> Vector<L> {
    let blocks = row.chunks_exact(BLOCK * L::N);
    let rest = blocks.remainder();
    let mut sums = [machine.splat(0.0); BLOCK];
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = *sum + (machine.of(block, i * L::N) - zero).exp();
        }
    }
    for at in (0..rest.len()).step_by(L::N) {
        let (x, count) = ((machine.of(rest, at) - zero).exp(), rest.len() - at);
        sums[0] = sums[0] + if count < L::N { x.first(count) } else { x };
    }
    let [a, b, c, d] = sums;
    (a + b) + (c + d)
}

/// Natural logarithm of a normal number above zero to a few units in the last place, without branches so
/// that the compiler makes vectors of it: with `x = 2^n m` and `m` about one, `n ln 2 + 2 artanh(s)` of
/// `s = (m - 1) / (m + 1)`, at most 0.172, of whose series five terms are left.
#[inline(always)]
fn ln(x: f32) -> f32 {
    /// The bits of the square root of a half, so that `m` lies between it and twice as much.
    const LEAST: u32 = 0x3f35_04f3;
    let above = x.to_bits().wrapping_sub(LEAST);
    let n = (above as i32 >> 23) as f32;
    let m = f32::from_bits((above & 0x7f_ffff) + LEAST);
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let series = 1.0 / 9.0 * square + 1.0 / 7.0;
    let series = (series * square + 1.0 / 5.0) * square + 1.0 / 3.0;
    let artanh = series * square * s + s;
    2.0 * artanh + n * std::f32::consts::LN_2
}

#[derive(Debug)]
struct LossBackward;

impl Backward<Flex, 1> for LossBackward {
    type State = (NodeId, Targets, Arc<[f32]>);

    /// The gradient of a logit is its probability, less that of the (smoothed) target, over the
    /// rows.
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
        let scale = grad.storage::<f32>()[0] / targets.counted as f32;
        let (isa, shape) = (Isa::detect(), logits.shape());
        let classes = shape[1];
        let smoothing = targets.smoothing;
        let write = |out: &mut [MaybeUninit<f32>]| {
            let rows = task(classes);
            out.par_chunks_mut(rows * classes)
                .zip(logits.storage::<f32>().par_chunks(rows * classes))
                .zip(
                    targets
                        .classes
                        .par_chunks(rows)
                        .zip(totals.par_chunks(rows)),
                )
                .for_each(|((out, logits), (chosen, totals))| {
                    probabilities(isa, logits, totals, smoothing / classes as f32, scale, out);
                    for (out, chosen) in out.chunks_exact_mut(classes).zip(chosen) {
                        if *chosen == IGNORED {
                            out.fill(MaybeUninit::new(0.0));
                            continue;
                        }
                        // SAFETY: it has just been written with the rest of the row.
                        let chosen = unsafe { out[*chosen].assume_init_mut() };
                        *chosen -= scale * (1.0 - smoothing);
                    }
                });
        };
        // SAFETY: every row is written from its start to its end.
        let out = unsafe { written(targets.classes.len() * classes, write) };
        grads.register::<Flex>(node.id, flex_tensor(out, &shape));
    }
}

vectorized! {
    /// Of rows with these sums, `scale` times what is more than `less`.
    fn probabilities<L>(
        machine,
        logits: &[f32],
        totals: &[f32],
        less: f32,
        scale: f32,
        out: &mut [MaybeUninit<f32>],
    ) {
        let width = logits.len() / totals.len();
        let whole = width - columns_apart::<L>(width);
        let blocks = logits.chunks(L::N * width).zip(out.chunks_mut(L::N * width));
        for ((logits, out), totals) in blocks.zip(totals.chunks(L::N)) {
            let rows = logits.chunks_exact(width).zip(out.chunks_exact_mut(width));
            for ((row, out), total) in rows.zip(totals) {
                let (row, out) = (&row[..whole], &mut out[..whole]);
                let mut blocks = out.chunks_exact_mut(BLOCK * L::N);
                for (out, row) in blocks.by_ref().zip(row.chunks_exact(BLOCK * L::N)) {
                    for at in (0..BLOCK * L::N).step_by(L::N) {
                        let x = machine.of(row, at);
                        (((x - *total).exp_of_negative() - less) * scale).write(&mut out[at..]);
                    }
                }
                let out = blocks.into_remainder();
                let row = &row[row.len() - out.len()..];
                for at in (0..out.len()).step_by(L::N) {
                    let x = machine.of(row, at);
                    (((x - *total).exp_of_negative() - less) * scale).write(&mut out[at..]);
                }
            }
            for column in whole..width {
                let mut x = [0.0; MOST];
                for (x, row) in x.iter_mut().zip(logits.chunks_exact(width)) {
                    *x = row[column];
                }
                let x = (machine.of(&x, 0) - machine.of(totals, 0)).exp_of_negative();
                let x = (x - less) * scale;
                for (out, x) in out.chunks_exact_mut(width).zip(x.lanes()) {
                    out[column].write(x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_exact_to_a_few_units_in_the_last_place() {
        for i in 0..200_000 {
            let x = (f64::from(i) / 2_000.0).exp2() as f32;
            for x in [x, 1.0 / x, 1.0 + 1e-3 / x] {
                let exact = f64::from(x).ln();
                let error = (f64::from(ln(x)) - exact).abs();
                assert!(error <= 3e-7 * exact.abs().max(1.0), "of {x}: {}", ln(x));
            }
        }
    }

    #[test]
    fn logits_far_apart_have_a_sum() {
        let rows = [
            [0.0, 200.0, -5.0],
            [-300.0, 0.0, 0.0],
            [f32::NEG_INFINITY, 1.0, 1.0],
        ];
        for isa in Isa::available() {
            let mut totals = [0.0; 3];
            log_sum_exp(isa, rows.as_flattened(), &[0, 0, 0], &mut totals);
            let expected = [200.0, 2f32.ln(), 1.0 + 2f32.ln()];
            for (total, expected) in totals.iter().zip(expected) {
                assert!(
                    (total - expected).abs() < 1e-6,
                    "{isa:?}: {total}, not {expected}"
                );
            }
        }
    }
}
