//! Memory that tasks write disjoint parts of.

use std::mem::MaybeUninit;

/// A slice of which each task writes its own floats, whichever they are.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: only a pointer; each use of it says why no two threads touch the same floats.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self {
            data: values.as_mut_ptr(),
            len: values.len(),
        }
    }

    /// Of memory that is written before it is read.
    pub(crate) fn unwritten(values: &mut [MaybeUninit<f32>]) -> Self {
        Self {
            data: values.as_mut_ptr().cast(),
            len: values.len(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The float at `index` and all after it.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn at(&self, index: usize) -> *mut f32 {
        assert!(index < self.len, "outside of the shared memory");
        // SAFETY: inside the memory.
        unsafe { self.data.add(index) }
    }

    /// `len` floats from `start` on.
    ///
    /// # Safety
    /// The memory is alive for `'a`, and nobody else uses these floats meanwhile.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) unsafe fn part<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start + len <= self.len, "outside of the shared memory");
        // SAFETY: inside the memory; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// `len` floats from `start` on, which need not have been written.
    ///
    /// # Safety
    /// As [`Self::part`].
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) unsafe fn unwritten_part<'a>(
        self,
        start: usize,
        len: usize,
    ) -> &'a mut [MaybeUninit<f32>] {
        assert!(start + len <= self.len, "outside of the shared memory");
        // SAFETY: inside the memory; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start).cast(), len) }
    }
}
