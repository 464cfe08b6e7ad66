//! Layer norm (Ba et al. 2016, arXiv:1607.06450) and RMS norm (Zhang and Sennrich 2019,
//! arXiv:1910.07467) over the last dimension.

use std::mem::MaybeUninit;
use std::sync::Arc;

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

use crate::dispatch::{Optional, contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{map, partial_sums, vectorized};
use crate::simd::Isa;
use crate::team;
use crate::vector::{MOST, Vector};

/// Rows of one task. Fixed, so that the order in which the gains' gradients are added does not
/// depend on the number of threads.
const ROWS: usize = 64;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over the last dimension.
///
/// # Shapes
/// - `x` and output: `[.., d]`
/// - `gamma` (gain) and `beta` (offset): `[d]`
///
/// # Panics
/// If `gamma` or `beta` is not as long as the last dimension.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Option<Tensor<1>>,
    epsilon: f64,
) -> Tensor<D> {
    normalise(x, gamma, beta, Kind::Layer, epsilon)
}

/// `x / sqrt(mean(x^2) + epsilon) * gamma` over the last dimension.
///
/// # Shapes
/// - `x` and output: `[.., d]`
/// - `gamma` (gain): `[d]`
///
/// # Panics
/// If `gamma` is not as long as the last dimension.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    normalise(x, gamma, None, Kind::Rms, epsilon)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Layer,
    Rms,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    kind: Kind,
    epsilon: f32,
}

fn normalise<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Option<Tensor<1>>,
    kind: Kind,
    epsilon: f64,
) -> Tensor<D> {
    let dims = x.dims();
    assert_eq!(
        gamma.dims()[0],
        dims[D - 1],
        "norm: one gain per feature of the last dimension"
    );
    if let Some(beta) = &beta {
        assert_eq!(
            beta.dims(),
            gamma.dims(),
            "norm: one offset per feature of the last dimension"
        );
    }
    let fused = is_flex_f32(&x) && is_flex_f32(&gamma) && beta.as_ref().is_none_or(is_flex_f32);
    if !fused || dims.contains(&0) {
        let x = match kind {
            Kind::Layer => x.clone() - x.mean_dim(D - 1),
            Kind::Rms => x,
        };
        let square = (x.clone() * x.clone()).mean_dim(D - 1);
        let out = x / (square + epsilon).sqrt() * gamma.unsqueeze();
        return match beta {
            Some(beta) => out + beta.unsqueeze(),
            None => out,
        };
    }
    let beta = match beta {
        Some(beta) => Optional::Given(beta.into_dispatch()),
        None => Optional::Absent,
    };
    let norm = Norm {
        kind,
        epsilon: epsilon as f32,
    };
    let out = Dispatch::fused_norm(x.into_dispatch(), gamma.into_dispatch(), beta, norm);
    Tensor::from_dispatch(out)
}

/// The norms as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedNorm: Backend {
    /// See [`layer_norm`] and [`rms_norm`].
    fn fused_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        #[extension_type] beta: Optional<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;
}

impl FusedNorm for Flex {
    fn fused_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: Optional<Self>,
        norm: Norm,
    ) -> FlexTensor {
        forward(x, gamma, beta, norm).0
    }
}

impl<C: CheckpointStrategy> FusedNorm for Autodiff<Flex, C> {
    fn fused_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: Optional<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        // Two arms, because the number of parents is part of the type.
        macro_rules! record {
            ($nodes:expr, $beta:expr) => {
                match NormBackward.prepare::<C>($nodes).compute_bound().stateful() {
                    OpsKind::Tracked(mut prep) => {
                        let saved = [prep.checkpoint(&x), prep.checkpoint(&gamma)];
                        let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
                        let (out, moments) = forward(x, gamma, $beta, norm);
                        prep.finish((saved, moments.into(), norm), out)
                    }
                    OpsKind::UnTracked(prep) => {
                        let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
                        prep.finish(forward(x, gamma, $beta, norm).0)
                    }
                }
            };
        }
        match beta {
            Optional::Given(beta) => {
                let nodes = [x.node(), gamma.node(), beta.node()];
                record!(nodes, Optional::Given(beta.into_primitive()))
            }
            Optional::Absent => record!([x.node(), gamma.node()], Optional::Absent),
        }
    }
}

/// Mean and inverse standard deviation of a row; the mean of an RMS norm is zero.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    mean: f32,
    scale: f32,
}

fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: Optional<Flex>,
    norm: Norm,
) -> (FlexTensor, Vec<Moments>) {
    let shape = x.shape();
    let (x, gamma) = (contiguous(x), contiguous(gamma));
    let (x, gamma): (&[f32], &[f32]) = (x.storage(), gamma.storage());
    let zeros;
    let given;
    let beta: &[f32] = match beta {
        Optional::Given(beta) => {
            given = contiguous(beta);
            given.storage()
        }
        Optional::Absent => {
            zeros = vec![0.0; gamma.len()];
            &zeros
        }
    };
    let (isa, d) = (Isa::detect(), gamma.len());
    let mut moments = vec![Moments::default(); x.len() / d];
    let write = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut(ROWS * d)
            .zip(x.par_chunks(ROWS * d))
            .zip(moments.par_chunks_mut(ROWS))
            .for_each(|((out, x), moments)| {
                forward_rows(isa, norm, x, [gamma, beta], moments, out)
            });
    };
    // SAFETY: every row is written from its start to its end.
    let out = unsafe { written(x.len(), write) };
    (flex_tensor(out, &shape), moments)
}

vectorized! {
    fn forward_rows<L>(
        machine,
        norm: Norm,
        x: &[f32],
        line: [&[f32]; 2],
        moments: &mut [Moments],
        out: &mut [MaybeUninit<f32>],
    ) {
        let [gamma, beta] = line;
        let d = gamma.len();
        let blocks = out.chunks_mut(L::N * d).zip(x.chunks(L::N * d));
        for ((out, x), moments) in blocks.zip(moments.chunks_mut(L::N)) {
            // Rows are summed up together, since a row alone waits for its lanes to be added.
            let (zero, d_inverse) = (machine.splat(0.0), 1.0 / d as f32);
            let (mut means, mut squares) = ([0.0; MOST], [zero; MOST]);
            if norm.kind == Kind::Layer {
                let mut sums = [zero; MOST];
                for (sum, x) in sums.iter_mut().zip(x.chunks_exact(d)) {
                    [*sum] = partial_sums(machine, [x], |[x]| [x]);
                }
                means = (Vector::across(sums, |a, b| a + b) * d_inverse).lanes();
            }
            for ((sum, x), mean) in squares.iter_mut().zip(x.chunks_exact(d)).zip(means) {
                [*sum] = partial_sums(machine, [x], |[x]| {
                    let centred = x - mean;
                    [centred * centred]
                });
            }
            let variances = (Vector::across(squares, |a, b| a + b) * d_inverse).lanes();
            let rows = out.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(moments);
            for (((out, x), moments), (mean, variance)) in rows.zip(means.into_iter().zip(variances)) {
                let scale = 1.0 / (variance + norm.epsilon).sqrt();
                *moments = Moments { mean, scale };
                map(machine, [x, gamma, beta], out, |[x, gamma, beta]| {
                    ((x - mean) * scale).mul_add(gamma, beta)
                });
            }
        }
    }
}

/// [`layer_norm`] or, without an offset, [`rms_norm`] of rows on slices.
///
/// # Panics
/// If the lengths disagree.
pub(crate) fn rows(x: &[f32], gamma: &[f32], beta: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    let d = gamma.len();
    assert!(
        d > 0 && x.len().is_multiple_of(d) && out.len() == x.len(),
        "norm: {} numbers in rows of {d} into {}",
        x.len(),
        out.len()
    );
    let zeros;
    let (kind, beta) = match beta {
        Some(beta) => (Kind::Layer, beta),
        None => {
            zeros = vec![0.0; d];
            (Kind::Rms, &*zeros)
        }
    };
    assert_eq!(beta.len(), d, "norm: one offset per feature");
    let (isa, norm) = (Isa::detect(), Norm { kind, epsilon });
    team::each_part(out, ROWS * d, |part, out| {
        let x = &x[part * ROWS * d..][..out.len()];
        let mut moments = [Moments::default(); ROWS];
        // SAFETY: initialised floats may be overwritten as if they were not.
        let out = unsafe { &mut *(out as *mut [f32] as *mut [MaybeUninit<f32>]) };
        forward_rows(isa, norm, x, [gamma, beta], &mut moments, out);
    });
}

#[derive(Debug)]
struct NormBackward;

/// Parents are the input, the gain and, with three of them, the offset.
impl<const PARENTS: usize> Backward<Flex, PARENTS> for NormBackward {
    type State = ([NodeId; 2], Arc<[Moments]>, Norm);

    fn backward(
        self,
        ops: Ops<Self::State, PARENTS>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, moments, norm) = ops.state;
        let [x, gamma] =
            saved.map(|id| contiguous(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, gamma): (&[f32], &[f32]) = (x.storage(), gamma.storage());
        let (isa, d) = (Isa::detect(), gamma.len());
        let partial: Vec<Vec<f32>> = grad
            .storage_mut::<f32>()
            .par_chunks_mut(ROWS * d)
            .zip(x.par_chunks(ROWS * d))
            .zip(moments.par_chunks(ROWS))
            .map(|((grad, x), moments)| {
                let mut sums = vec![0.0; 2 * d];
                backward_rows(isa, norm, [x, gamma], moments, grad, &mut sums);
                sums
            })
            .collect();
        let mut sums = vec![0.0; 2 * d];
        for partial in &partial {
            sums.iter_mut()
                .zip(partial)
                .for_each(|(sum, part)| *sum += part);
        }
        let dbeta = sums.split_off(d);
        let gradients = [grad, flex_tensor(sums, &[d]), flex_tensor(dbeta, &[d])];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

vectorized! {
    /// With `h` the normalised input and `g` the gradient times the gain, the input's gradient,
    /// written over the output's, is `scale * (g - mean(g) - h mean(g h))`; an RMS norm has no
    /// `mean(g)`. The gradients of gain and offset are added to the halves of `totals`.
    fn backward_rows<L>(
        machine,
        norm: Norm,
        inputs: [&[f32]; 2],
        moments: &[Moments],
        grad: &mut [f32],
        totals: &mut [f32],
    ) {
        let [x, gamma] = inputs;
        let d = gamma.len();
        let (dgamma, dbeta) = totals.split_at_mut(d);
        // Both sums of a row, of as many rows as one reduction across vectors takes.
        let block = L::N / 2;
        let blocks = grad.chunks_mut(block * d).zip(x.chunks(block * d));
        for ((grad, x), moments) in blocks.zip(moments.chunks(block)) {
            let mut sums = [machine.splat(0.0); MOST];
            let (plain, weighted) = sums.split_at_mut(block);
            let rows = grad.chunks_exact(d).zip(x.chunks_exact(d)).zip(moments);
            for (((grad, x), Moments { mean, .. }), (plain, weighted)) in
                rows.zip(plain.iter_mut().zip(weighted))
            {
                [*plain, *weighted] = partial_sums(machine, [grad, gamma, x], |[grad, gamma, x]| {
                    let g = grad * gamma;
                    [g, g * (x - *mean)]
                });
            }
            let means = (Vector::across(sums, |a, b| a + b) * (1.0 / d as f32)).lanes();
            let (plain, weighted) = means.split_at(block);
            for at in (0..d).step_by(L::N) {
                let gamma = machine.of(gamma, at);
                let (mut gain, mut offset) = (machine.of(dgamma, at), machine.of(dbeta, at));
                let rows = grad.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(moments);
                for (((grad, x), moments), (plain, weighted)) in rows.zip(plain.iter().zip(weighted)) {
                    let Moments { mean, scale } = *moments;
                    let plain = match norm.kind {
                        Kind::Layer => *plain,
                        Kind::Rms => 0.0,
                    };
                    let (dy, h) = (machine.of(grad, at), (machine.of(x, at) - mean) * scale);
                    (gain, offset) = (dy.mul_add(h, gain), offset + dy);
                    let g = dy.mul_add(gamma, h.splat(-plain));
                    (h.neg_mul_add(h.splat(weighted * scale), g) * scale).put(&mut grad[at..]);
                }
                gain.put(&mut dgamma[at..]);
                offset.put(&mut dbeta[at..]);
            }
        }
    }
}
