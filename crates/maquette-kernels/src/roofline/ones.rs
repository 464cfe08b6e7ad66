//! Where a backward pass that is measured begins.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{flex_tensor, is_flex_f32, written};
use crate::elementwise::GRAIN;

/// Goes back through what made `out`, from a gradient of ones that all threads write.
///
/// Burn's own start is written by one thread, which takes longer than many a kernel; in training a gradient
/// comes from the operator that follows.
///
/// # Panics
/// If `out` wants no gradient.
pub fn backward<const D: usize>(out: Tensor<D>) {
    if !is_flex_f32(&out) {
        return drop(out.backward());
    }
    let start: Tensor<1> = Tensor::from_dispatch(Dispatch::fused_start(out.into_dispatch()));
    drop(start.backward());
}

/// A number of no meaning, whose gradient with respect to `out` is all ones, as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedStart: Backend {
    /// See [`backward`].
    fn fused_start(out: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl FusedStart for Flex {
    fn fused_start(_: FlexTensor) -> FlexTensor {
        flex_tensor(vec![0.0], &[1])
    }
}

impl<C: CheckpointStrategy> FusedStart for Autodiff<Flex, C> {
    fn fused_start(out: FloatTensor<Self>) -> FloatTensor<Self> {
        match StartBackward
            .prepare::<C>([out.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let out = out.into_primitive();
                prep.finish(out.shape().to_vec(), Flex::fused_start(out))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::fused_start(out.into_primitive())),
        }
    }
}

#[derive(Debug)]
struct StartBackward;

impl Backward<Flex, 1> for StartBackward {
    /// The shape of what the gradient is of.
    type State = Vec<usize>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let shape = ops.state;
        drop(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let write = |out: &mut [_]| {
            out.par_chunks_mut(GRAIN).for_each(|part| {
                part.fill(std::mem::MaybeUninit::new(1.0));
            });
        };
        // SAFETY: every chunk is filled.
        let ones = unsafe { written(shape.iter().product(), write) };
        grads.register::<Flex>(node.id, flex_tensor(ones, &shape));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn the_gradient_is_that_of_ones() {
        let device = Device::flex().autodiff();
        let x =
            Tensor::<2>::from_floats([[1.0, -2.0, 3.0], [0.5, 0.0, 4.0]], &device).require_grad();
        let out =
            Tensor::<1>::from_dispatch(Dispatch::fused_start(x.clone().square().into_dispatch()));
        let grad = x.grad(&out.backward()).map(|grad| grad.into_data());
        let expected = (x.detach() * 2.0).into_data();
        assert_eq!(grad, Some(expected));
    }
}
