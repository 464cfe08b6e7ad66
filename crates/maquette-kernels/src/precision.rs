//! In which precision matrix products are taken.

use std::cell::Cell;
use std::marker::PhantomData;

/// The precision of matrix products. Sums, weights and everything that is not a product of
/// matrices are 32-bit floats in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// Factors rounded to bf16 (an 8-bit mantissa) as they are read (Kalamkar et al. 2019,
    /// arXiv:1905.12322).
    Bf16,
}

impl Precision {
    /// Neighbours along the reduction in one packed element.
    pub(crate) fn pair(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// What the calling thread asked for with [`autocast`].
    pub(crate) fn current() -> Self {
        CURRENT.get()
    }
}

thread_local! {
    static CURRENT: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// Takes the matrix products of operators called on this thread in `precision`, until the guard is
/// dropped. An operator's backward pass uses the precision of its forward pass, wherever it runs.
///
/// ```
/// use maquette_kernels::{Precision, autocast};
/// let guard = autocast(Precision::Bf16);
/// // ... forward pass ...
/// drop(guard);
/// ```
#[must_use = "the precision lasts as long as the guard"]
pub fn autocast(precision: Precision) -> Autocast {
    Autocast {
        before: CURRENT.replace(precision),
        thread: PhantomData,
    }
}

/// Restores the precision that was in force before [`autocast`].
#[derive(Debug)]
pub struct Autocast {
    before: Precision,
    /// Not to be sent to another thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Autocast {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_nest() {
        let outer = autocast(Precision::Bf16);
        {
            let _inner = autocast(Precision::F32);
            assert_eq!(Precision::current(), Precision::F32);
        }
        assert_eq!(Precision::current(), Precision::Bf16);
        let elsewhere = std::thread::spawn(Precision::current).join();
        assert_eq!(elsewhere.ok(), Some(Precision::F32));
        drop(outer);
        assert_eq!(Precision::current(), Precision::F32);
    }
}
