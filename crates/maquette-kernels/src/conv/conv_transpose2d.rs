//! The transposed convolution operator.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn::tensor::ops::ConvTransposeOptions;
use burn_flex::FlexTensor;

use super::{Geometry, channel_sums, forward, input_gradient, weight_gradient};
use crate::dispatch::{Optional, contiguous, flex_tensor, is_flex_f32};

/// Transposed 2-D convolution: the gradient of [`conv2d`](crate::conv2d()) with respect to its
/// input, as an operator of its own (Dumoulin and Visin 2016, arXiv:1603.07285, chapter 4).
///
/// `out[n, c, y*s + i - p, x*s + j - p] += weight[o, c, i, j] * x[n, o, y, x]`, then `+ bias[c]`
///
/// # Shapes
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_in, channels_out, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - output: `[batch, channels_out, (height - 1) s - 2 p + kernel_height, (width - 1) s - 2 p + kernel_width]`
///   with stride `s` and padding `p` of that axis
///
/// # Panics
/// If the channels of the arguments disagree, a stride is zero, or nothing is left of the output.
pub fn conv_transpose2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    let geometry = geometry(x.dims(), weight.dims(), stride, padding);
    if let Some(bias) = &bias {
        let (given, expected) = (bias.dims()[0], geometry.channels_in);
        assert_eq!(
            given, expected,
            "conv_transpose2d: one bias per output channel of the weight"
        );
    }
    let fused = is_flex_f32(&x)
        && is_flex_f32(&weight)
        && bias.as_ref().is_none_or(is_flex_f32)
        && geometry.is_not_empty();
    if !fused {
        let options = ConvTransposeOptions::new(stride, padding, [0, 0], [1, 1], 1);
        return burn::tensor::module::conv_transpose2d(x, weight, bias, options);
    }
    let bias = match bias {
        Some(bias) => Optional::Given(bias.into_dispatch()),
        None => Optional::Absent,
    };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_conv_transpose2d(x, weight, bias, geometry))
}

/// The sizes of the convolution whose input gradient this is.
fn geometry(
    x: [usize; 4],
    weight: [usize; 4],
    stride: [usize; 2],
    padding: [usize; 2],
) -> Geometry {
    let [batch, channels_in, height, width] = x;
    let [weight_in, channels_out, kernel_height, kernel_width] = weight;
    assert_eq!(
        channels_in, weight_in,
        "conv_transpose2d: the input has {channels_in} channels, the weight expects {weight_in}"
    );
    assert!(
        stride[0] > 0 && stride[1] > 0,
        "conv_transpose2d: a stride must be at least 1"
    );
    let (input, kernel) = ([height, width], [kernel_height, kernel_width]);
    let [rows, cols] = [0, 1].map(|axis| {
        let whole = (input[axis].max(1) - 1) * stride[axis] + kernel[axis];
        assert!(
            whole > 2 * padding[axis],
            "conv_transpose2d: a padding of {} leaves nothing of {whole}",
            padding[axis]
        );
        whole - 2 * padding[axis]
    });
    Geometry::new([batch, channels_out, rows, cols], weight, stride, padding)
}

/// The transposed convolution as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedConvTranspose2d: Backend {
    /// See [`conv_transpose2d`].
    fn fused_conv_transpose2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;
}

impl FusedConvTranspose2d for Flex {
    fn fused_conv_transpose2d(
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
        let out = input_gradient(
            &geometry,
            weight.storage(),
            x.storage(),
            bias.as_ref().map(FlexTensor::storage),
        );
        flex_tensor(out, &geometry.input_shape())
    }
}

impl<C: CheckpointStrategy> FusedConvTranspose2d for Autodiff<Flex, C> {
    fn fused_conv_transpose2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Optional<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        // Two arms, because the number of parents is part of the type.
        macro_rules! record {
            ($nodes:expr, $bias:expr) => {
                match ConvTranspose2dBackward
                    .prepare::<C>($nodes)
                    .compute_bound()
                    .stateful()
                {
                    OpsKind::Tracked(mut prep) => {
                        let state = (prep.checkpoint(&x), prep.checkpoint(&weight), geometry);
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(
                            state,
                            Flex::fused_conv_transpose2d(x, weight, $bias, geometry),
                        )
                    }
                    OpsKind::UnTracked(prep) => {
                        let (x, weight) = (x.into_primitive(), weight.into_primitive());
                        prep.finish(Flex::fused_conv_transpose2d(x, weight, $bias, geometry))
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
struct ConvTranspose2dBackward;

/// Parents are the input, the weight and, with three of them, the bias.
impl<const PARENTS: usize> Backward<Flex, PARENTS> for ConvTranspose2dBackward {
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
                    let weight = contiguous(weight.clone());
                    let out = forward(&geometry, grad, weight.storage(), None);
                    flex_tensor(out, &geometry.output_shape())
                }
                1 => {
                    let x = contiguous(x.clone());
                    let out = weight_gradient(&geometry, grad, x.storage());
                    flex_tensor(out, &geometry.weight_shape())
                }
                _ => {
                    let plane = geometry.input[0] * geometry.input[1];
                    let sums = channel_sums(grad, geometry.channels_in, plane);
                    flex_tensor(sums, &[geometry.channels_in])
                }
            };
            grads.register::<Flex>(node.id, tensor);
        }
    }
}
