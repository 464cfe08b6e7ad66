//! What the operators share at the border between Burn's tensors and flat slices.

use std::cell::Cell;
use std::mem::MaybeUninit;

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

/// The numbers of an integer tensor, whatever type the device keeps them in. One beyond `i64` becomes
/// the largest of those.
pub(crate) fn integers(tensor: FlexTensor) -> Vec<i64> {
    let tensor = contiguous(tensor);
    macro_rules! read {
        ($type:ty) => {{
            let numbers = tensor.storage::<$type>().iter();
            numbers
                .map(|number| i64::try_from(*number).unwrap_or(i64::MAX))
                .collect()
        }};
    }
    match tensor.dtype() {
        DType::I64 => read!(i64),
        DType::I32 => read!(i32),
        DType::I16 => read!(i16),
        DType::I8 => read!(i8),
        DType::U64 => read!(u64),
        DType::U32 => read!(u32),
        DType::U16 => read!(u16),
        DType::U8 => read!(u8),
        other => panic!("expected integers, not {other:?}"),
    }
}

/// Row-major, without a copy where it already is; uniquely owned if `tensor` was.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// `len` numbers that `write` computes.
///
/// Memory is not zeroed first: for an operator that only moves numbers, that would be a third pass
/// over them.
///
/// # Safety
/// `write` writes every one of them.
pub(crate) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len`, and by the contract all are initialised.
    unsafe { values.set_len(len) };
    values
}
