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
use crate::elementwise::{sigmoid, sum, vectorized};
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

    /// Numbers normalised together, which are neighbours in memory.
    fn group_len(&self) -> usize {
        self.channels_per_group() * self.plane()
    }

    /// The part of `values`, one per channel or per image and channel, that belongs to a task,
    /// which is one group of one image.
    fn of_task<'a>(&self, values: &'a [f32], task: usize) -> &'a [f32] {
        let first = task * self.channels_per_group() % values.len();
        &values[first..][..self.channels_per_group()]
    }
}

/// Mean and inverse standard deviation of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) mean: f32,
    pub(crate) scale: f32,
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
        let inputs = Inputs {
            x: x.storage(),
            gamma: gamma.storage(),
            beta: beta.storage(),
        };
        let sums = backward(&inputs, &moments, grad.storage_mut(), &geometry);
        let [dgamma, dbeta] = [
            (1, inputs.gamma, gamma.shape()),
            (0, inputs.beta, beta.shape()),
        ]
        .map(|(which, values, shape)| {
            flex_tensor(parameter_gradient(&sums, which, values), &shape)
        });
        let gradients = [grad, dgamma, dbeta];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

struct Inputs<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
}

fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    geometry: &Geometry,
) -> (FlexTensor, Vec<Moments>) {
    let [x, gamma, beta] = [x, gamma, beta].map(contiguous);
    let (x, gamma, beta): (&[f32], &[f32], &[f32]) = (x.storage(), gamma.storage(), beta.storage());
    let (isa, plane, len) = (Isa::detect(), geometry.plane(), geometry.group_len());
    let task = |(task, (out, x)): (usize, (&mut [MaybeUninit<f32>], &[f32]))| {
        let moments = moments(isa, x, geometry.options.epsilon);
        let (gamma, beta) = (geometry.of_task(gamma, task), geometry.of_task(beta, task));
        let channels = out.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
        for ((out, x), (gamma, beta)) in channels.zip(gamma.iter().zip(beta)) {
            let line = Line::new(moments, *gamma, *beta);
            line.apply(isa, geometry.options.activation, x, out);
        }
        moments
    };
    let mut moments = Vec::new();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let tasks = out.par_chunks_mut(len).zip(x.par_chunks(len)).enumerate();
        moments = tasks.map(task).collect();
    };
    // SAFETY: the groups are the whole, and every channel of each is written.
    let out = unsafe { written(x.len(), write) };
    (flex_tensor(out, &geometry.shape), moments)
}

/// `z = slope * x + offset`: normalisation, scale and shift of one channel in one.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    slope: f32,
    offset: f32,
}

impl Line {
    pub(crate) fn new(moments: Moments, gamma: f32, beta: f32) -> Self {
        let slope = moments.scale * gamma;
        Self {
            slope,
            offset: beta - moments.mean * slope,
        }
    }

    /// `out = activation(z)`
    pub(crate) fn apply(
        self,
        isa: Isa,
        activation: Activation,
        x: &[f32],
        out: &mut [MaybeUninit<f32>],
    ) {
        match activation {
            Activation::Identity => apply(isa, self, x, out),
            Activation::Relu => apply_relu(isa, self, x, out),
            Activation::LeakyRelu(slope) => apply_leaky_relu(isa, self, slope, x, out),
            Activation::Silu => apply_silu(isa, self, x, out),
        }
    }

    /// Multiplies `grad` by the activation's derivative at `z`.
    pub(crate) fn activation_gradient(
        self,
        isa: Isa,
        activation: Activation,
        x: &[f32],
        grad: &mut [f32],
    ) {
        match activation {
            Activation::Identity => {}
            Activation::Relu => leaky_relu_gradient(isa, self, 0.0, x, grad),
            Activation::LeakyRelu(slope) => leaky_relu_gradient(isa, self, slope, x, grad),
            Activation::Silu => silu_gradient(isa, self, x, grad),
        }
    }
}

vectorized! {
    fn moments(x: &[f32], epsilon: f32) -> Moments {
        let count = x.len() as f32;
        let mean = sum([x], |[x]| x) / count;
        let variance = sum([x], |[x]| (x - mean) * (x - mean)) / count;
        Moments { mean, scale: 1.0 / (variance + epsilon).sqrt() }
    }
}

vectorized! {
    fn apply(line: Line, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, x) in out.iter_mut().zip(x) {
            out.write(line.slope * x + line.offset);
        }
    }
}

vectorized! {
    fn apply_relu(line: Line, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, x) in out.iter_mut().zip(x) {
            let z = line.slope * x + line.offset;
            // A NaN stays one.
            out.write(if z < 0.0 { 0.0 } else { z });
        }
    }
}

vectorized! {
    fn apply_leaky_relu(line: Line, slope: f32, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, x) in out.iter_mut().zip(x) {
            let z = line.slope * x + line.offset;
            out.write(z * if z > 0.0 { 1.0 } else { slope });
        }
    }
}

vectorized! {
    fn apply_silu(line: Line, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (out, x) in out.iter_mut().zip(x) {
            let z = line.slope * x + line.offset;
            out.write(z * sigmoid(z));
        }
    }
}

/// With `h = (x - mean) * scale` and `g` the gradient before the activation,
/// `dbeta = sum g`, `dgamma = sum g h` and
/// `dx = scale * (gamma g - mean(gamma g) - h mean(gamma g h))`, means over the group.
/// Per image and channel, the gradients of shift and scale; the input's is written over `grad`.
fn backward(
    inputs: &Inputs,
    moments: &[Moments],
    grad: &mut [f32],
    geometry: &Geometry,
) -> Vec<[f32; 2]> {
    let (isa, plane, len) = (Isa::detect(), geometry.plane(), geometry.group_len());
    let per_group = geometry.channels_per_group();
    let mut sums = vec![[0.0; 2]; geometry.shape[0] * geometry.shape[1]];
    grad.par_chunks_mut(len)
        .zip(inputs.x.par_chunks(len))
        .zip(sums.par_chunks_mut(per_group))
        .zip(moments)
        .enumerate()
        .for_each(|(task, (((grad, x), sums), moments))| {
            let gamma = geometry.of_task(inputs.gamma, task);
            let beta = geometry.of_task(inputs.beta, task);
            let mut means = [0.0; 2];
            for (channel, sums) in sums.iter_mut().enumerate() {
                let range = channel * plane..(channel + 1) * plane;
                let (grad, x) = (&mut grad[range.clone()], &x[range]);
                let line = Line::new(*moments, gamma[channel], beta[channel]);
                line.activation_gradient(isa, geometry.options.activation, x, grad);
                *sums = gradient_sums(isa, *moments, x, grad);
                means[0] += gamma[channel] * sums[0] / len as f32;
                means[1] += gamma[channel] * sums[1] / len as f32;
            }
            let channels = grad.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
            for ((grad, x), gamma) in channels.zip(gamma) {
                input_gradient(isa, *moments, *gamma, means, x, grad);
            }
        });
    sums
}

/// One component of [`backward`]'s sums, over the batch if `values` is one per channel.
fn parameter_gradient(sums: &[[f32; 2]], which: usize, values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for sums in sums.chunks_exact(values.len()) {
        out.iter_mut()
            .zip(sums)
            .for_each(|(out, sum)| *out += sum[which]);
    }
    out
}

vectorized! {
    fn leaky_relu_gradient(line: Line, slope: f32, x: &[f32], grad: &mut [f32]) {
        for (grad, x) in grad.iter_mut().zip(x) {
            let z = line.slope * x + line.offset;
            *grad *= if z > 0.0 { 1.0 } else { slope };
        }
    }
}

vectorized! {
    fn silu_gradient(line: Line, x: &[f32], grad: &mut [f32]) {
        for (grad, x) in grad.iter_mut().zip(x) {
            let z = line.slope * x + line.offset;
            let s = sigmoid(z);
            *grad *= s + z * s * (1.0 - s);
        }
    }
}

vectorized! {
    pub(crate) fn gradient_sums(moments: Moments, x: &[f32], grad: &[f32]) -> [f32; 2] {
        let x = &x[..grad.len()];
        let plain = sum([grad], |[grad]| grad);
        let weighted = sum([grad, x], |[grad, x]| grad * (x - moments.mean));
        [plain, weighted * moments.scale]
    }
}

vectorized! {
    /// Turns the gradient before scale and shift into the input's, in place.
    pub(crate) fn input_gradient(moments: Moments, gamma: f32, means: [f32; 2], x: &[f32], grad: &mut [f32]) {
        let Moments { mean, scale } = moments;
        for (grad, x) in grad.iter_mut().zip(x) {
            let normalised = (x - mean) * scale;
            *grad = scale * (gamma * *grad - means[0] - normalised * means[1]);
        }
    }
}
