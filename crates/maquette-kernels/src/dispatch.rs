//! What the operators share at the border between Burn's tensors and flat slices.

use std::cell::Cell;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, DispatchTensorKind, ExtensionType, TensorMetadata};
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::FlexTensor;

/// An optional tensor argument of an extension operator.
#[derive(ExtensionType)]
pub(crate) enum Optional<B: Backend> {
    /// The tensor is given.
    Given(FloatTensor<B>),
    /// The operator does without.
    Absent,
}

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every operator of this crate composed of Burn's own, as on a backend the kernels
/// do not know: what to measure the kernels against.
///
/// It holds for operators called by `f` on this thread, and for the backward pass of what they
/// return.
pub fn composed<R>(f: impl FnOnce() -> R) -> R {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            COMPOSED.set(self.0);
        }
    }
    let _reset = Reset(COMPOSED.replace(true));
    f()
}

/// Whether the fused kernels can take this tensor: `flex`, 32-bit floats, tracked or not, and not
/// within [`composed`].
pub(crate) fn is_flex_f32<const D: usize>(tensor: &Tensor<D>) -> bool {
    fn is_flex(kind: &DispatchTensorKind) -> bool {
        match kind {
            DispatchTensorKind::Flex(_) => true,
            DispatchTensorKind::Autodiff(inner) => is_flex(inner),
            #[allow(unreachable_patterns)] // other backends are features of the binary
            _ => false,
        }
    }
    if COMPOSED.get() {
        return false;
    }
    let tensor = tensor.clone().into_dispatch();
    tensor.dtype() == DType::F32 && is_flex(&tensor.kind)
}

/// Wraps `values` in row-major order.
pub(crate) fn flex_tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

/// Row-major, without a copy where it already is; uniquely owned if `tensor` was.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}
