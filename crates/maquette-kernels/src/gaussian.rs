//! What a variational autoencoder does with the normal distribution its encoder gives: a draw from it
//! and its divergence from the standard one (Kingma and Welling 2014, arXiv:1312.6114, section 2.4 and
//! appendix B).

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

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{map, rows_of_exponentials, sums, vectorized};
use crate::simd::Isa;

/// `mean + exp(log_variance / 2) * noise`: a draw that gradients pass through.
///
/// # Shapes
/// - `normal`: means and logarithms of variances beside each other, `[rows, 2 variables]`
/// - `noise`, standard normal, which gets no gradient: `[rows, variables]`
/// - output: `[rows, variables]`
///
/// # Panics
/// If the shapes disagree.
pub fn gaussian_sample(normal: Tensor<2>, noise: Tensor<2>) -> Tensor<2> {
    let ([rows, both], [_, variables]) = (normal.dims(), noise.dims());
    assert!(
        both == 2 * variables && noise.dims() == [rows, variables],
        "gaussian_sample: noise of {:?} for means and variances of {:?}",
        noise.dims(),
        normal.dims()
    );
    let noise = noise.detach();
    if !(is_flex_f32(&normal) && is_flex_f32(&noise)) || rows * variables == 0 {
        let mean = normal.clone().narrow(1, 0, variables);
        let log_variance = normal.narrow(1, variables, variables);
        return mean + (log_variance * 0.5).exp() * noise;
    }
    let (normal, noise) = (normal.into_dispatch(), noise.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_gaussian_sample(normal, noise))
}

/// Of each row, the divergence of its normal distribution from the standard one, in nats:
/// `(mean^2 + variance - log_variance - 1) / 2`, added up.
///
/// # Shapes
/// - `normal`: means and logarithms of variances beside each other, `[rows, 2 variables]`
/// - output: `[rows, 1]`
///
/// # Panics
/// If a row is of odd length.
pub fn gaussian_kl(normal: Tensor<2>) -> Tensor<2> {
    let [rows, both] = normal.dims();
    assert!(
        both.is_multiple_of(2),
        "gaussian_kl: a mean for each variance, not {both} numbers"
    );
    if !is_flex_f32(&normal) || rows * both == 0 {
        let mean = normal.clone().narrow(1, 0, both / 2);
        let log_variance = normal.narrow(1, both / 2, both / 2);
        let variance = log_variance.clone().exp();
        return (mean.square() + variance - log_variance - 1.0).sum_dim(1) * 0.5;
    }
    Tensor::from_dispatch(Dispatch::fused_gaussian_kl(normal.into_dispatch()))
}

/// Both as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedGaussian: Backend {
    /// See [`gaussian_sample`].
    fn fused_gaussian_sample(
        normal: FloatTensor<Self>,
        noise: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`gaussian_kl`].
    fn fused_gaussian_kl(normal: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl FusedGaussian for Flex {
    fn fused_gaussian_sample(normal: FlexTensor, noise: FlexTensor) -> FlexTensor {
        let shape = noise.shape();
        let [normal, noise] = [normal, noise].map(contiguous);
        let (isa, noise, variables): (_, &[f32], _) = (Isa::detect(), noise.storage(), shape[1]);
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_exact_mut(variables)
                .with_min_len(rows_of_exponentials(variables))
                .zip(noise.par_chunks_exact(variables))
                .zip(normal.storage::<f32>().par_chunks_exact(2 * variables))
                .for_each(|((out, noise), row)| draw(isa, row.split_at(variables), noise, out));
        };
        // SAFETY: every row is written from its start to its end.
        flex_tensor(unsafe { written(noise.len(), write) }, &shape)
    }

    fn fused_gaussian_kl(normal: FlexTensor) -> FlexTensor {
        let [rows, both] = [normal.shape()[0], normal.shape()[1]];
        let (isa, normal) = (Isa::detect(), contiguous(normal));
        let each = normal.storage::<f32>().par_chunks_exact(both);
        let divergences: Vec<f32> = each
            .with_min_len(rows_of_exponentials(both))
            .map(|row| divergence(isa, row.split_at(both / 2)))
            .collect();
        flex_tensor(divergences, &[rows, 1])
    }
}

impl<C: CheckpointStrategy> FusedGaussian for Autodiff<Flex, C> {
    fn fused_gaussian_sample(
        normal: FloatTensor<Self>,
        noise: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let noise = noise.into_primitive();
        match SampleBackward
            .prepare::<C>([normal.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&normal);
                let out = Flex::fused_gaussian_sample(normal.into_primitive(), noise.clone());
                prep.finish((saved, noise), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_gaussian_sample(normal.into_primitive(), noise))
            }
        }
    }

    fn fused_gaussian_kl(normal: FloatTensor<Self>) -> FloatTensor<Self> {
        match DivergenceBackward
            .prepare::<C>([normal.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&normal);
                prep.finish(saved, Flex::fused_gaussian_kl(normal.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_gaussian_kl(normal.into_primitive()))
            }
        }
    }
}

#[derive(Debug)]
struct SampleBackward;

impl Backward<Flex, 1> for SampleBackward {
    type State = (NodeId, FlexTensor);

    /// Of the mean it is the gradient itself, of the variance's logarithm that times
    /// `exp(log_variance / 2) * noise / 2`.
    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (normal, noise) = ops.state;
        let [normal, noise] = [checkpointer.retrieve_node_output(normal), noise].map(contiguous);
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let (isa, shape) = (Isa::detect(), normal.shape());
        let variables = shape[1] / 2;
        let row = |((out, normal), (noise, grad)): ((&mut [MaybeUninit<f32>], &[f32]), _)| {
            let (to_mean, to_variance) = out.split_at_mut(variables);
            draw_gradient(isa, &normal[variables..], noise, grad, to_mean, to_variance);
        };
        let chunks = |tensor| FlexTensor::storage::<f32>(tensor).par_chunks_exact(variables);
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_exact_mut(2 * variables)
                .with_min_len(rows_of_exponentials(variables))
                .zip(normal.storage::<f32>().par_chunks_exact(2 * variables))
                .zip(chunks(&noise).zip(chunks(&grad)))
                .for_each(row);
        };
        // SAFETY: both halves of every row are written.
        let out = unsafe { written(2 * noise.storage::<f32>().len(), write) };
        grads.register::<Flex>(node.id, flex_tensor(out, &shape));
    }
}

#[derive(Debug)]
struct DivergenceBackward;

impl Backward<Flex, 1> for DivergenceBackward {
    type State = NodeId;

    /// `mean` and `(variance - 1) / 2`, times the gradient of the row.
    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let normal = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(ops.state));
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let (isa, shape) = (Isa::detect(), normal.shape());
        let both = shape[1];
        let write = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_exact_mut(both)
                .with_min_len(rows_of_exponentials(both))
                .zip(normal.storage::<f32>().par_chunks_exact(both))
                .zip(grad.storage::<f32>())
                .for_each(|((out, row), grad)| {
                    let (to_mean, to_variance) = out.split_at_mut(both / 2);
                    let (mean, log_variance) = row.split_at(both / 2);
                    divergence_gradient(isa, mean, log_variance, *grad, to_mean, to_variance);
                });
        };
        // SAFETY: both halves of every row are written.
        let out = unsafe { written(normal.storage::<f32>().len(), write) };
        grads.register::<Flex>(node.id, flex_tensor(out, &shape));
    }
}

vectorized! {
    fn draw<L>(
        machine,
        normal: (&[f32], &[f32]),
        noise: &[f32],
        out: &mut [MaybeUninit<f32>],
    ) {
        map(machine, [normal.0, normal.1, noise], out, |[mean, log_variance, noise]| {
            (log_variance * 0.5).exp().mul_add(noise, mean)
        });
    }
}

vectorized! {
    fn draw_gradient<L>(
        machine,
        log_variance: &[f32],
        noise: &[f32],
        grad: &[f32],
        to_mean: &mut [MaybeUninit<f32>],
        to_variance: &mut [MaybeUninit<f32>],
    ) {
        map(machine, [grad], to_mean, |[grad]| grad);
        map(machine, [log_variance, noise, grad], to_variance, |[log_variance, noise, grad]| {
            (log_variance * 0.5).exp() * noise * grad * 0.5
        });
    }
}

vectorized! {
    fn divergence<L>(machine, normal: (&[f32], &[f32])) -> f32 {
        let [sum] = sums(machine, [normal.0, normal.1], |[mean, log_variance]| {
            [mean.mul_add(mean, log_variance.exp() - log_variance - 1.0)]
        });
        0.5 * sum
    }
}

vectorized! {
    fn divergence_gradient<L>(
        machine,
        mean: &[f32],
        log_variance: &[f32],
        grad: f32,
        to_mean: &mut [MaybeUninit<f32>],
        to_variance: &mut [MaybeUninit<f32>],
    ) {
        map(machine, [mean], to_mean, |[mean]| mean * grad);
        map(machine, [log_variance], to_variance, |[log_variance]| {
            (log_variance.exp() - 1.0) * (0.5 * grad)
        });
    }
}
