//! Group normalisation with its activation in the same pass (Wu and He 2018, arXiv:1803.08494).

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

use crate::activation::Activation;
use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::planes::{Moments, Plane, Planes};
use crate::shared::Shared;
use crate::simd::Isa;

/// The constants of one [`group_norm`].
#[derive(Clone, Copy, Debug)]
pub struct GroupNormOptions {
    /// Groups of neighbouring channels normalised together; must divide the channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Applied last.
    pub activation: Activation,
}

/// Normalises each group of channels of each image to mean zero and variance one, scales and
/// shifts each channel, and applies the activation.
///
/// A scale and shift per image are what a network conditioned on time or class multiplies and adds
/// after the norm (FiLM, Perez et al. 2018, arXiv:1709.07871): give the products here instead.
///
/// # Shapes
/// - `x` and output: `[batch, channels, height, width]`
/// - `gamma` (scale) and `beta` (shift): `[1, channels]`, or `[batch, channels]` for one per image
///
/// # Panics
/// If the groups do not divide the channels, or the shape of `gamma` or `beta` is neither.
pub fn group_norm(
    x: Tensor<4>,
    gamma: Tensor<2>,
    beta: Tensor<2>,
    options: GroupNormOptions,
) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let groups = options.groups;
    assert!(
        groups > 0 && channels.is_multiple_of(groups),
        "group_norm: {groups} groups do not divide {channels} channels"
    );
    for (name, dims) in [("scale", gamma.dims()), ("shift", beta.dims())] {
        assert!(
            dims == [1, channels] || dims == [batch, channels],
            "group_norm: the {name} is {dims:?}, not [1 or {batch}, {channels}]"
        );
    }
    let numbers = batch * channels * height * width;
    if numbers == 0 || !(is_flex_f32(&x) && is_flex_f32(&gamma) && is_flex_f32(&beta)) {
        return composed(x, gamma, beta, options);
    }
    let (x, gamma, beta) = (
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    );
    let geometry = Geometry {
        shape: [batch, channels, height, width],
        options,
    };
    Tensor::from_dispatch(Dispatch::fused_group_norm(x, gamma, beta, geometry))
}

/// The same of Burn's operators.
fn composed(
    x: Tensor<4>,
    gamma: Tensor<2>,
    beta: Tensor<2>,
    options: GroupNormOptions,
) -> Tensor<4> {
    let shape = x.dims();
    let [batch, channels, height, width] = shape;
    let len = channels / options.groups * height * width;
    let x = x.reshape([batch, options.groups, len]);
    let x = x.clone() - x.mean_dim(2);
    let variance = x.clone().square().mean_dim(2);
    let x = (x / (variance + options.epsilon).sqrt()).reshape(shape);
    let per_channel = |values: Tensor<2>| {
        let [images, channels] = values.dims();
        values.reshape([images, channels, 1, 1])
    };
    let x = x * per_channel(gamma) + per_channel(beta);
    options.activation.composed(x)
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    shape: [usize; 4],
    options: GroupNormOptions,
}

impl Geometry {
    /// Numbers of one channel of one image.
    fn plane(&self) -> usize {
        self.shape[2] * self.shape[3]
    }

    fn channels_per_group(&self) -> usize {
        self.shape[1] / self.options.groups
    }

    fn planes(&self) -> Planes {
        Planes {
            len: self.plane(),
            together: self.channels_per_group(),
            epsilon: self.options.epsilon,
            activation: self.options.activation,
        }
    }

    /// Groups of all images: each is a task.
    fn tasks(&self) -> usize {
        self.shape[0] * self.options.groups
    }

    /// The channels of a task. Scales and shifts are one per channel, or per image and channel.
    fn of_task<'a>(
        &self,
        gamma: &'a [f32],
        beta: &'a [f32],
        task: usize,
    ) -> impl Iterator<Item = Plane> + Clone + use<'a> {
        let (len, each) = (self.plane(), self.channels_per_group());
        (task * each..(task + 1) * each).map(move |channel| Plane {
            start: channel * len,
            gamma: gamma[channel % gamma.len()],
            beta: beta[channel % beta.len()],
        })
    }
}

/// Group normalisation as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedGroupNorm: Backend {
    /// See [`group_norm`].
    fn fused_group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;
}

impl FusedGroupNorm for Flex {
    fn fused_group_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        geometry: Geometry,
    ) -> FlexTensor {
        forward(x, gamma, beta, &geometry).0
    }
}

impl<C: CheckpointStrategy> FusedGroupNorm for Autodiff<Flex, C> {
    fn fused_group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        match GroupNormBackward
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
                let (out, moments) = forward(x, gamma, beta.into_primitive(), &geometry);
                prep.finish((saved, moments.into(), geometry), out)
            }
            OpsKind::UnTracked(prep) => {
                let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
                prep.finish(forward(x, gamma, beta.into_primitive(), &geometry).0)
            }
        }
    }
}

#[derive(Debug)]
struct GroupNormBackward;

impl Backward<Flex, 3> for GroupNormBackward {
    type State = ([NodeId; 3], Arc<[Moments]>, Geometry);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, moments, geometry) = ops.state;
        let [x, gamma, beta] =
            saved.map(|id| contiguous(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let mut grad = contiguous(grads.consume::<Flex>(&ops.node));
        let parameters: [&[f32]; 2] = [gamma.storage(), beta.storage()];
        let into = (grad.storage_mut(), ops.parents[0].is_some());
        let sums = backward(x.storage(), parameters, &moments, into, &geometry);
        let [dgamma, dbeta] = [(1, gamma), (0, beta)].map(|(which, of)| {
            let len = of.shape().num_elements();
            flex_tensor(parameter_gradient(&sums, which, len), &of.shape())
        });
        let gradients = [grad, dgamma, dbeta];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    geometry: &Geometry,
) -> (FlexTensor, Vec<Moments>) {
    let [x, gamma, beta] = [x, gamma, beta].map(contiguous);
    let (x, gamma, beta): (&[f32], &[f32], &[f32]) = (x.storage(), gamma.storage(), beta.storage());
    let (isa, planes) = (Isa::detect(), geometry.planes());
    let mut moments = Vec::new();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let out = Shared::unwritten(out);
        let task = |task| {
            // SAFETY: `out` lives on, and the channels of a task are its own.
            unsafe { planes.forward(isa, geometry.of_task(gamma, beta, task), x, out) }
        };
        let tasks = (0..geometry.tasks()).into_par_iter();
        moments = tasks.map(task).collect();
    };
    // SAFETY: the groups are the whole, and every channel of each is written.
    let out = unsafe { written(x.len(), write) };
    (flex_tensor(out, &geometry.shape), moments)
}

/// Per image and channel, the gradients of shift and scale; the input's is written over `grad` if asked
/// for.
fn backward(
    x: &[f32],
    [gamma, beta]: [&[f32]; 2],
    moments: &[Moments],
    (grad, into_input): (&mut [f32], bool),
    geometry: &Geometry,
) -> Vec<[f32; 2]> {
    let (isa, planes) = (Isa::detect(), geometry.planes());
    let mut all = vec![[0.0; 2]; geometry.shape[0] * geometry.shape[1]];
    let grad = Shared::new(grad);
    all.par_chunks_mut(planes.together)
        .zip(moments)
        .enumerate()
        .for_each(|(task, (all, moments))| {
            let channels = geometry.of_task(gamma, beta, task);
            // SAFETY: `grad` is borrowed for the whole call, and the channels of a task are its own.
            unsafe {
                planes.backward(isa, channels, *moments, x, (grad, into_input), |i, sums| {
                    all[i] = sums;
                });
            }
        });
    all
}

/// One component of [`backward`]'s sums, over the batch if there is but one of `len` per channel.
fn parameter_gradient(sums: &[[f32; 2]], which: usize, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    for sums in sums.chunks_exact(len) {
        out.iter_mut()
            .zip(sums)
            .for_each(|(out, sum)| *out += sum[which]);
    }
    out
}
