//! Memory that tasks write disjoint parts of.

/// A slice of which each task writes its own floats, whichever they are.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: only a pointer; each use of it says why no two threads touch the same floats.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self {
            data: values.as_mut_ptr(),
            len: values.len(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The float at `index` and all after it.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn at(&self, index: usize) -> *mut f32 {
        assert!(index < self.len, "outside of the shared memory");
        // SAFETY: inside the memory.
        unsafe { self.data.add(index) }
    }
}
