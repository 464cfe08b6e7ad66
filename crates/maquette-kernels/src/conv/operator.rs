//! Convolution and transposed convolution as operators: the same three functions, once each way.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::ops;
use burn_flex::FlexTensor;

use super::{ConvOptions, Geometry, channel_sums, forward, input_gradient, weight_gradient};
use crate::dispatch::{Optional, contiguous, flex_tensor, is_flex_f32};

/// 2-D convolution (cross-correlation) with zero padding.
///
/// `out[n, o, y, x] = bias[o] + sum_{c,i,j} weight[o, c, i, j] * x[n, c, y*s + i*d - p, x*s + j*d - p]`,
/// `c` over the channels of the group of `o`.
///
/// # Shapes
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_out, channels_in / groups, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - output: `[batch, channels_out, height', width']`, `height' = (height + 2 p - d (kernel_height - 1) - 1) / s + 1`
///   with stride `s`, padding `p` and dilation `d` of that axis
///
/// # Panics
/// If the channels of the arguments disagree, a stride, dilation or number of groups is zero, or
/// the kernel is larger than the padded image.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvOptions,
) -> Tensor<4> {
    let job = Job {
        geometry: Geometry::new(x.dims(), weight.dims(), options),
        transposed: false,
    };
    if job.is_fused("conv2d", &x, &weight, bias.as_ref()) {
        return job.apply(x, weight, bias);
    }
    let ConvOptions {
        stride,
        padding,
        dilation,
        groups,
    } = options;
    let options = ops::ConvOptions::new(stride, padding, dilation, groups);
    burn::tensor::module::conv2d(x, weight, bias, options)
}

/// Transposed 2-D convolution: the gradient of [`conv2d`] with respect to its input, as an operator
/// of its own (Dumoulin and Visin 2016, arXiv:1603.07285, chapter 4).
///
/// `out[n, c, y*s + i*d - p, x*s + j*d - p] += weight[o, c, i, j] * x[n, o, y, x]`, then `+ bias[c]`
///
/// # Shapes
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_in, channels_out / groups, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - output: `[batch, channels_out, height', width']`, `height' = (height - 1) s - 2 p + d (kernel_height - 1) + 1`
///   with stride `s`, padding `p` and dilation `d` of that axis
///
/// # Panics
/// If the channels of the arguments disagree, a stride, dilation or number of groups is zero, or
/// nothing is left of the output.
pub fn conv_transpose2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvOptions,
) -> Tensor<4> {
    let job = Job {
        geometry: transposed(x.dims(), weight.dims(), options),
        transposed: true,
    };
    if job.is_fused("conv_transpose2d", &x, &weight, bias.as_ref()) {
        return job.apply(x, weight, bias);
    }
    let ConvOptions {
        stride,
        padding,
        dilation,
        groups,
    } = options;
    let options = ops::ConvTransposeOptions::new(stride, padding, [0, 0], dilation, groups);
    burn::tensor::module::conv_transpose2d(x, weight, bias, options)
}

/// The sizes of the convolution whose input gradient a transposed convolution is.
fn transposed(x: [usize; 4], weight: [usize; 4], options: ConvOptions) -> Geometry {
    const NAME: &str = "conv_transpose2d";
    let [batch, channels_in, height, width] = x;
    let [weight_in, channels_out, kernel_height, kernel_width] = weight;
    assert_eq!(
        channels_in, weight_in,
        "{NAME}: the input has {channels_in} channels, the weight expects {weight_in}"
    );
    let reach = options.reach(NAME, [kernel_height, kernel_width]);
    let groups = options.groups;
    assert!(
        channels_in.is_multiple_of(groups),
        "{NAME}: {groups} groups do not divide {channels_in} input channels"
    );
    let [rows, cols] = [(0, height), (1, width)].map(|(axis, size)| {
        let whole = (size.max(1) - 1) * options.stride[axis] + reach[axis];
        let padding = options.padding[axis];
        assert!(
            whole > 2 * padding,
            "{NAME}: a padding of {padding} leaves nothing of {whole}"
        );
        whole - 2 * padding
    });
    Geometry::new([batch, channels_out * groups, rows, cols], weight, options)
}

/// One convolution, or the transposed one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    geometry: Geometry,
    transposed: bool,
}

impl Job {
    /// Whether the fused operator takes these arguments.
    fn is_fused(
        &self,
        name: &str,
        x: &Tensor<4>,
        weight: &Tensor<4>,
        bias: Option<&Tensor<1>>,
    ) -> bool {
        if let Some(bias) = bias {
            let [_, channels, ..] = self.output_shape();
            assert_eq!(
                bias.dims(),
                [channels],
                "{name}: one bias per output channel of the weight"
            );
        }
        is_flex_f32(x)
            && is_flex_f32(weight)
            && bias.is_none_or(is_flex_f32)
            && self.geometry.is_not_empty()
    }

    fn apply(self, x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
        let bias = match bias {
            Some(bias) => Optional::Given(bias.into_dispatch()),
            None => Optional::Absent,
        };
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        Tensor::from_dispatch(Dispatch::fused_conv(x, weight, bias, self))
    }

    fn input_shape(&self) -> [usize; 4] {
        match self.transposed {
            false => self.geometry.input_shape(),
            true => self.geometry.output_shape(),
        }
    }

    fn output_shape(&self) -> [usize; 4] {
        match self.transposed {
            false => self.geometry.output_shape(),
            true => self.geometry.input_shape(),
        }
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        match self.transposed {
            false => forward(&self.geometry, x, weight, bias),
            true => input_gradient(&self.geometry, weight, x, bias),
        }
    }

    fn input_gradient(&self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        match self.transposed {
            false => input_gradient(&self.geometry, weight, grad, None),
            true => forward(&self.geometry, grad, weight, None),
        }
    }

    fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        match self.transposed {
            false => weight_gradient(&self.geometry, x, grad),
            true => weight_gradient(&self.geometry, grad, x),
        }
    }
}

/// Both convolutions as Burn's dispatch sees them.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedConv: Backend {
    /// See [`conv2d`] and [`conv_transpose2d`].
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        job: Job,
    ) -> FloatTensor<Self>;
}

impl FusedConv for Flex {
    fn fused_conv(x: FlexTensor, weight: FlexTensor, bias: Optional<Self>, job: Job) -> FlexTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let bias = match bias {
            Optional::Given(bias) => Some(contiguous(bias)),
            Optional::Absent => None,
        };
        let bias = bias.as_ref().map(|bias| bias.storage());
        let out = job.forward(x.storage(), weight.storage(), bias);
        flex_tensor(out, &job.output_shape())
    }
}

impl<C: CheckpointStrategy> FusedConv for Autodiff<Flex, C> {
    fn fused_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        job: Job,
    ) -> FloatTensor<Self> {
        // Two arms, because the number of parents is part of the type.
        macro_rules! record {
            ($nodes:expr, $bias:expr) => {
                match ConvBackward.prepare::<C>($nodes).compute_bound().stateful() {
                    OpsKind::Tracked(mut prep) => {
                        let state = (prep.checkpoint(&x), prep.checkpoint(&weight), job);
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(state, Flex::fused_conv(x, weight, $bias, job))
                    }
                    OpsKind::UnTracked(prep) => {
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(Flex::fused_conv(x, weight, $bias, job))
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

#[derive(Debug)]
struct ConvBackward;

/// Parents are the input, the weight and, with three of them, the bias.
impl<const PARENTS: usize> Backward<Flex, PARENTS> for ConvBackward {
    type State = (NodeId, NodeId, Job);

    fn backward(
        self,
        ops: Ops<Self::State, PARENTS>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (x, weight, job) = ops.state;
        let [x, weight] =
            [x, weight].map(|id| contiguous(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let grad: &[f32] = grad.storage();
        for (parent, node) in ops.parents.into_iter().enumerate() {
            let Some(node) = node else { continue };
            let tensor = match parent {
                0 => {
                    let out = job.input_gradient(weight.storage(), grad);
                    flex_tensor(out, &job.input_shape())
                }
                1 => {
                    let out = job.weight_gradient(x.storage(), grad);
                    flex_tensor(out, &job.geometry.weight_shape())
                }
                _ => {
                    let [_, channels, rows, cols] = job.output_shape();
                    let sums = channel_sums(grad, channels, rows * cols);
                    flex_tensor(sums, &[channels])
                }
            };
            grads.register::<Flex>(node.id, tensor);
        }
    }
}
