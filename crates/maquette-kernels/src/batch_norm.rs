//! Batch normalisation with its activation in the same pass (Ioffe and Szegedy 2015,
//! arXiv:1502.03167).

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::activation::Activation;
use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::planes::{Moments, Plane, Planes};
use crate::shared::Shared;
use crate::simd::Isa;

/// What [`batch_norm`] gives.
#[derive(Clone, Debug)]
pub struct BatchNormOutput {
    /// The normalised images, `[batch, channels, height, width]`.
    pub output: Tensor<4>,
    /// Mean of each channel, `[channels]`; a constant to the backward pass.
    pub mean: Tensor<1>,
    /// Variance of each channel, divided by the count, `[channels]`; a constant as well.
    pub variance: Tensor<1>,
}

/// Normalises each channel over batch and positions to mean zero and variance one, scales and
/// shifts it, and applies the activation. `epsilon` is added to the variance.
///
/// # Shapes
/// - `x`: `[batch, channels, height, width]`
/// - `gamma` (scale) and `beta` (shift): `[channels]`
///
/// # Panics
/// If the shape of `gamma` or `beta` is another.
pub fn batch_norm(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f32,
    activation: Activation,
) -> BatchNormOutput {
    let shape = x.dims();
    let [_, channels, ..] = shape;
    for (name, [given]) in [("scale", gamma.dims()), ("shift", beta.dims())] {
        assert_eq!(
            given, channels,
            "batch_norm: one {name} per channel, of which there are {channels}"
        );
    }
    let numbers: usize = shape.iter().product();
    if numbers == 0 || !(is_flex_f32(&x) && is_flex_f32(&gamma) && is_flex_f32(&beta)) {
        return composed(x, gamma, beta, epsilon, activation);
    }
    let options = Options {
        shape,
        epsilon,
        activation,
    };
    let (x, gamma, beta) = (
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    );
    let (output, moments) = Dispatch::fused_batch_norm(x, gamma, beta, options);
    let moments = Tensor::<2>::from_dispatch(moments);
    BatchNormOutput {
        output: Tensor::from_dispatch(output),
        mean: moments.clone().narrow(0, 0, 1).reshape([channels]),
        variance: moments.narrow(0, 1, 1).reshape([channels]),
    }
}

/// The same of Burn's operators.
fn composed(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f32,
    activation: Activation,
) -> BatchNormOutput {
    let [_, channels, ..] = x.dims();
    let over_images = |x: Tensor<4>| x.mean_dim(0).mean_dim(2).mean_dim(3);
    let per_channel = |values: Tensor<1>| values.reshape([1, channels, 1, 1]);
    let mean = over_images(x.clone());
    let centred = x - mean.clone();
    let variance = over_images(centred.clone().square());
    let z = centred / (variance.clone() + epsilon).sqrt() * per_channel(gamma) + per_channel(beta);
    BatchNormOutput {
        output: activation.composed(z),
        mean: mean.detach().reshape([channels]),
        variance: variance.detach().reshape([channels]),
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    shape: [usize; 4],
    epsilon: f32,
    activation: Activation,
}

impl Options {
    fn planes(&self) -> Planes {
        let [batch, _, height, width] = self.shape;
        Planes {
            len: height * width,
            together: batch,
            epsilon: self.epsilon,
            activation: self.activation,
        }
    }

    /// The planes of a channel.
    fn of_channel(
        self,
        channel: usize,
        [gamma, beta]: [&[f32]; 2],
    ) -> impl Iterator<Item = Plane> + Clone + use<> {
        let [batch, channels, height, width] = self.shape;
        let (gamma, beta) = (gamma[channel], beta[channel]);
        (0..batch).map(move |image| Plane {
            start: (image * channels + channel) * height * width,
            gamma,
            beta,
        })
    }
}

/// Batch normalisation as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedBatchNorm: Backend {
    /// See [`batch_norm`]. The second tensor holds means and variances, `[2, channels]`.
    fn fused_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl FusedBatchNorm for Flex {
    fn fused_batch_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        options: Options,
    ) -> (FlexTensor, FlexTensor) {
        let (out, moments) = forward(x, gamma, beta, &options);
        (out, statistics(&moments))
    }
}

impl<C: CheckpointStrategy> FusedBatchNorm for Autodiff<Flex, C> {
    fn fused_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (out, moments) = match BatchNormBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = [
                    prep.checkpoint(&x),
                    prep.checkpoint(&gamma),
                    prep.checkpoint(&beta),
                ];
                let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
                let (out, moments) = forward(x, gamma, beta.into_primitive(), &options);
                let moments: Arc<[Moments]> = moments.into();
                (prep.finish((saved, moments.clone(), options), out), moments)
            }
            OpsKind::UnTracked(prep) => {
                let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
                let (out, moments) = forward(x, gamma, beta.into_primitive(), &options);
                (prep.finish(out), moments.into())
            }
        };
        (out, Self::from_inner(statistics(&moments)))
    }
}

#[derive(Debug)]
struct BatchNormBackward;

impl Backward<Flex, 3> for BatchNormBackward {
    type State = ([NodeId; 3], Arc<[Moments]>, Options);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, moments, options) = ops.state;
        let [x, gamma, beta] =
            saved.map(|id| contiguous(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let parameters = [gamma.storage(), beta.storage()];
        // Without a parent before it the sums are all that is asked for.
        let into_input = ops.parents[0].is_some();
        let sums = backward(
            x.storage(),
            parameters,
            &moments,
            (grad.storage_mut(), into_input),
            &options,
        );
        let channels = options.shape[1];
        let of = |which: usize| {
            let values = sums.iter().map(|sums| sums[which]).collect();
            flex_tensor(values, &[channels])
        };
        let gradients = [grad, of(1), of(0)];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

fn statistics(channels: &[Moments]) -> FlexTensor {
    let means = channels.iter().map(|moments| moments.mean);
    let variances = channels.iter().map(|moments| moments.variance);
    flex_tensor(means.chain(variances).collect(), &[2, channels.len()])
}

/// One task a channel.
fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    options: &Options,
) -> (FlexTensor, Vec<Moments>) {
    let [x, gamma, beta] = [x, gamma, beta].map(contiguous);
    let (x, parameters): (&[f32], _) = (x.storage(), [gamma.storage(), beta.storage()]);
    let (isa, planes) = (Isa::detect(), options.planes());
    let mut moments = Vec::new();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let out = Shared::unwritten(out);
        let task = |channel| {
            let of_channel = options.of_channel(channel, parameters);
            // SAFETY: `out` lives on, and the planes of a channel are its task's own.
            unsafe { planes.forward(isa, of_channel, x, out) }
        };
        let channels = (0..options.shape[1]).into_par_iter();
        moments = channels.map(task).collect();
    };
    // SAFETY: the planes of the channels are the whole, and each is written.
    let out = unsafe { written(x.len(), write) };
    (flex_tensor(out, &options.shape), moments)
}

/// Per channel the gradients of shift and scale; the input's is written over `grad` if asked for, which
/// is spoilt in any case.
fn backward(
    x: &[f32],
    parameters: [&[f32]; 2],
    moments: &[Moments],
    (grad, into_input): (&mut [f32], bool),
    options: &Options,
) -> Vec<[f32; 2]> {
    let (isa, planes) = (Isa::detect(), options.planes());
    let grad = Shared::new(grad);
    let task = |(channel, moments): (usize, &Moments)| {
        let of_channel = options.of_channel(channel, parameters);
        let mut totals = [0.0f64; 2];
        // SAFETY: `grad` is borrowed for the whole call, and the planes of a channel are its task's own.
        unsafe {
            planes.backward(
                isa,
                of_channel,
                *moments,
                x,
                (grad, into_input),
                |_, sums| {
                    totals[0] += f64::from(sums[0]);
                    totals[1] += f64::from(sums[1]);
                },
            );
        }
        totals.map(|total| total as f32)
    };
    moments.par_iter().enumerate().map(task).collect()
}
