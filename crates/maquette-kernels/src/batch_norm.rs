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
use crate::elementwise::{sum, vectorized};
use crate::group_norm::{Line, Moments, gradient_sums, input_gradient};
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
    /// Numbers of one channel of one image.
    fn plane(&self) -> usize {
        self.shape[2] * self.shape[3]
    }

    /// Where the planes of a channel begin.
    fn planes(self, channel: usize) -> impl Iterator<Item = usize> {
        let [batch, channels, ..] = self.shape;
        (0..batch).map(move |image| (image * channels + channel) * self.plane())
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
                let moments: Arc<[Channel]> = moments.into();
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
    type State = ([NodeId; 3], Arc<[Channel]>, Options);

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

/// A channel's moments, and its variance as such.
#[derive(Clone, Copy, Debug)]
struct Channel {
    moments: Moments,
    variance: f32,
}

fn statistics(channels: &[Channel]) -> FlexTensor {
    let means = channels.iter().map(|channel| channel.moments.mean);
    let variances = channels.iter().map(|channel| channel.variance);
    flex_tensor(means.chain(variances).collect(), &[2, channels.len()])
}

/// One task a channel, whose planes stay in a near cache from the mean to the activation.
fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    options: &Options,
) -> (FlexTensor, Vec<Channel>) {
    let [x, gamma, beta] = [x, gamma, beta].map(contiguous);
    let (x, gamma, beta): (&[f32], &[f32], &[f32]) = (x.storage(), gamma.storage(), beta.storage());
    let (isa, len) = (Isa::detect(), options.plane());
    let count = (options.shape[0] * len) as f64;
    let channel = |shared: Shared, channel: usize| {
        let planes = || options.planes(channel).map(|start| &x[start..][..len]);
        let total: f64 = planes().map(|x| f64::from(plain_sum(isa, x))).sum();
        let mean = (total / count) as f32;
        let total: f64 = planes().map(|x| f64::from(square_sum(isa, mean, x))).sum();
        let variance = (total / count) as f32;
        let scale = 1.0 / (variance + options.epsilon).sqrt();
        let moments = Moments { mean, scale };
        let line = Line::new(moments, gamma[channel], beta[channel]);
        for (x, start) in planes().zip(options.planes(channel)) {
            // SAFETY: `out` lives on, and the planes of a channel are its task's own.
            let out = unsafe { shared.unwritten_part(start, len) };
            line.apply(isa, options.activation, x, out);
        }
        Channel { moments, variance }
    };
    let mut channels = Vec::new();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let shared = Shared::unwritten(out);
        let all = (0..options.shape[1]).into_par_iter();
        channels = all.map(|index| channel(shared, index)).collect();
    };
    // SAFETY: the planes of the channels are the whole, and each is written.
    let out = unsafe { written(x.len(), write) };
    (flex_tensor(out, &options.shape), channels)
}

/// Per channel the gradients of shift and scale, as for a group norm whose group is the channel;
/// the input's is written over `grad` if asked for, which is spoilt in any case.
fn backward(
    x: &[f32],
    [gamma, beta]: [&[f32]; 2],
    channels: &[Channel],
    (grad, into_input): (&mut [f32], bool),
    options: &Options,
) -> Vec<[f32; 2]> {
    let (isa, len) = (Isa::detect(), options.plane());
    let count = (options.shape[0] * len) as f64;
    let shared = Shared::new(grad);
    let channel = |(channel, of): (usize, &Channel)| {
        let line = Line::new(of.moments, gamma[channel], beta[channel]);
        let mut totals = [0.0f64; 2];
        for start in options.planes(channel) {
            // SAFETY: `grad` is borrowed for the whole call, and the planes of a channel are its
            // task's own.
            let grad = unsafe { shared.part(start, len) };
            let x = &x[start..][..len];
            line.activation_gradient(isa, options.activation, x, grad);
            let sums = gradient_sums(isa, of.moments, x, grad);
            totals[0] += f64::from(sums[0]);
            totals[1] += f64::from(sums[1]);
        }
        if into_input {
            let means = totals.map(|total| (f64::from(gamma[channel]) * total / count) as f32);
            for start in options.planes(channel) {
                // SAFETY: as above.
                let grad = unsafe { shared.part(start, len) };
                let x = &x[start..][..len];
                input_gradient(isa, of.moments, gamma[channel], means, x, grad);
            }
        }
        totals.map(|total| total as f32)
    };
    channels.par_iter().enumerate().map(channel).collect()
}

vectorized! {
    fn plain_sum(x: &[f32]) -> f32 {
        sum([x], |[x]| x)
    }
}

vectorized! {
    fn square_sum(mean: f32, x: &[f32]) -> f32 {
        sum([x], |[x]| (x - mean) * (x - mean))
    }
}
