//! The convolution operator.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::ops::ConvOptions;
use burn_flex::FlexTensor;

use super::{Geometry, channel_sums, forward, input_gradient, weight_gradient};
use crate::dispatch::{Optional, flex_tensor, is_flex_f32};

/// 2-D convolution (cross-correlation) with zero padding.
///
/// `out[n, o, y, x] = bias[o] + sum_{c,i,j} weight[o, c, i, j] * x[n, c, y*s + i - p, x*s + j - p]`
///
/// # Shapes
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_out, channels_in, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - output: `[batch, channels_out, (height + 2 p - kernel_height) / s + 1, (width + 2 p - kernel_width) / s + 1]`
///   with stride `s` and padding `p` of that axis
///
/// # Panics
/// If the channels of the arguments disagree, a stride is zero, or the kernel is larger than the
/// padded image.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    let geometry = Geometry::new(x.dims(), weight.dims(), stride, padding);
    if let Some(bias) = &bias {
        let (given, expected) = (bias.dims()[0], geometry.channels_out);
        assert_eq!(
            given, expected,
            "conv2d: one bias per output channel of the weight"
        );
    }
    let fused = is_flex_f32(&x)
        && is_flex_f32(&weight)
        && bias.as_ref().is_none_or(is_flex_f32)
        && geometry.is_not_empty();
    if !fused {
        let options = ConvOptions::new(stride, padding, [1, 1], 1);
        return burn::tensor::module::conv2d(x, weight, bias, options);
    }
    let bias = match bias {
        Some(bias) => Optional::Given(bias.into_dispatch()),
        None => Optional::Absent,
    };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_conv2d(x, weight, bias, geometry))
}

/// The convolution as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedConv2d: Backend {
    /// See [`conv2d`].
    fn fused_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;
}

impl FusedConv2d for Flex {
    fn fused_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Optional<Self>,
        geometry: Geometry,
    ) -> FlexTensor {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let bias = match bias {
            Optional::Given(bias) => Some(bias.to_contiguous()),
            Optional::Absent => None,
        };
        let out = forward(
            &geometry,
            x.storage(),
            weight.storage(),
            bias.as_ref().map(FlexTensor::storage),
        );
        flex_tensor(out, &geometry.output_shape())
    }
}

impl<C: CheckpointStrategy> FusedConv2d for Autodiff<Flex, C> {
    fn fused_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        // Two arms, because the number of parents is part of the type.
        macro_rules! record {
            ($nodes:expr, $bias:expr) => {
                match Conv2dBackward
                    .prepare::<C>($nodes)
                    .compute_bound()
                    .stateful()
                {
                    OpsKind::Tracked(mut prep) => {
                        let state = (prep.checkpoint(&x), prep.checkpoint(&weight), geometry);
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(state, Flex::fused_conv2d(x, weight, $bias, geometry))
                    }
                    OpsKind::UnTracked(prep) => {
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(Flex::fused_conv2d(x, weight, $bias, geometry))
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
struct Conv2dBackward;

/// Parents are the input, the weight and, with three of them, the bias.
impl<const PARENTS: usize> Backward<Flex, PARENTS> for Conv2dBackward {
    type State = (NodeId, NodeId, Geometry);

    fn backward(
        self,
        ops: Ops<Self::State, PARENTS>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (x, weight, geometry) = ops.state;
        let x = checkpointer.retrieve_node_output::<FlexTensor>(x);
        let weight = checkpointer.retrieve_node_output::<FlexTensor>(weight);
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let grad = grad.storage();
        for (parent, node) in ops.parents.into_iter().enumerate() {
            let Some(node) = node else { continue };
            let tensor = match parent {
                0 => {
                    let weight = weight.to_contiguous();
                    let out = input_gradient(&geometry, weight.storage(), grad, None);
                    flex_tensor(out, &geometry.input_shape())
                }
                1 => {
                    let x = x.to_contiguous();
                    let out = weight_gradient(&geometry, x.storage(), grad);
                    flex_tensor(out, &geometry.weight_shape())
                }
                _ => {
                    let plane = geometry.output[0] * geometry.output[1];
                    let sums = channel_sums(grad, geometry.channels_out, plane);
                    flex_tensor(sums, &[geometry.channels_out])
                }
            };
            grads.register::<Flex>(node.id, tensor);
        }
    }
}
