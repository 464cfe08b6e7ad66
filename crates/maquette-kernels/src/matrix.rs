//! Matrix products between strided parts of flat slices.

use burn_flex::FlexTensor;

/// A matrix somewhere in memory: element `(i, j)` is at `i * strides[0] + j * strides[1]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) data: *mut f32,
    pub(crate) size: [usize; 2],
    pub(crate) strides: [usize; 2],
}

// SAFETY: a pointer to plain numbers; whoever reads or writes through it vouches for the access.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// `size` numbers of `values` from `start` on, rows `stride` apart, to read.
    ///
    /// # Panics
    /// If it does not fit.
    pub(crate) fn of(values: &[f32], start: usize, size: [usize; 2], stride: usize) -> Self {
        Self::check(values.len(), start, size, stride);
        // The pointer is only written through where `multiply`'s contract is kept.
        Self {
            data: values[start..].as_ptr().cast_mut(),
            size,
            strides: [stride, 1],
        }
    }

    /// As [`Self::of`], to write.
    pub(crate) fn of_mut(
        values: &mut [f32],
        start: usize,
        size: [usize; 2],
        stride: usize,
    ) -> Self {
        Self::check(values.len(), start, size, stride);
        Self {
            data: values[start..].as_mut_ptr(),
            size,
            strides: [stride, 1],
        }
    }

    /// As [`Self::of_mut`], of memory other threads may be using elsewhere.
    ///
    /// # Safety
    /// `data` points to `len` floats.
    pub(crate) unsafe fn of_raw(
        data: *mut f32,
        len: usize,
        start: usize,
        size: [usize; 2],
        stride: usize,
    ) -> Self {
        Self::check(len, start, size, stride);
        // SAFETY: `start` is inside the memory, as just checked.
        Self {
            data: unsafe { data.add(start) },
            size,
            strides: [stride, 1],
        }
    }

    /// Two-dimensional `tensor` where it lies, to read.
    ///
    /// # Panics
    /// If it is empty or reversed.
    pub(crate) fn of_tensor(tensor: &FlexTensor) -> Self {
        let (values, layout) = (tensor.storage::<f32>(), tensor.layout());
        let strides = layout.strides();
        let [rows, cols] = [0, 1].map(|i| layout.shape()[i]);
        let [row, col] = [0, 1].map(|i| usize::try_from(strides[i]).expect("a reversed matrix"));
        assert!(rows > 0 && cols > 0, "not a matrix");
        let last = layout.start_offset() + (rows - 1) * row + (cols - 1) * col;
        assert!(last < values.len(), "matrix out of bounds");
        Self {
            data: values[layout.start_offset()..].as_ptr().cast_mut(),
            size: [rows, cols],
            strides: [row, col],
        }
    }

    fn check(len: usize, start: usize, [rows, cols]: [usize; 2], stride: usize) {
        assert!(rows > 0 && cols > 0 && cols <= stride, "not a matrix");
        assert!(
            start + (rows - 1) * stride + cols <= len,
            "matrix out of bounds"
        );
    }

    /// `size` elements from `first` on.
    ///
    /// # Panics
    /// If it does not fit.
    pub(crate) fn part(self, first: [usize; 2], size: [usize; 2]) -> Self {
        assert!(
            (0..2).all(|i| first[i] + size[i] <= self.size[i] && size[i] > 0),
            "part out of bounds"
        );
        // SAFETY: the first element is inside the matrix, as just checked.
        let data = unsafe {
            self.data
                .add(first[0] * self.strides[0] + first[1] * self.strides[1])
        };
        Self { data, size, ..self }
    }

    /// Puts `values` in place of a row.
    ///
    /// # Safety
    /// It was made for writing, its memory is alive, and nobody else uses the row meanwhile.
    ///
    /// # Panics
    /// If there is no such row, it is of another length, or its elements are not neighbours.
    pub(crate) unsafe fn write_row(self, row: usize, values: &[f32]) {
        let row = self.part([row, 0], [1, self.size[1]]);
        assert!(
            row.strides[1] == 1 && row.size[1] == values.len(),
            "a row of {} numbers",
            row.size[1]
        );
        // SAFETY: a row of this length is inside, as just checked; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(row.data, values.len()) }.copy_from_slice(values);
    }

    /// Rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        let ([rows, cols], [row, col]) = (self.size, self.strides);
        Self {
            data: self.data,
            size: [cols, rows],
            strides: [col, row],
        }
    }
}

/// What becomes of the numbers a product is written over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// `out = scale * a b`, or that added to `out`, on the calling thread.
///
/// # Safety
/// The slices the matrices were made of are still alive; `out` was made for writing, and nothing
/// else reads or writes its elements meanwhile.
///
/// # Panics
/// If the sizes do not match.
pub(crate) unsafe fn multiply(out: Matrix, into: Into, scale: f32, a: Matrix, b: Matrix) {
    let ([m, n], [_, k]) = (out.size, a.size);
    assert!(
        a.size == [m, k] && b.size == [k, n],
        "sizes of a product do not match"
    );
    let [out_row, out_col] = out.strides.map(|stride| stride as isize);
    let [a_row, a_col] = a.strides.map(|stride| stride as isize);
    let [b_row, b_col] = b.strides.map(|stride| stride as isize);
    // SAFETY: every element of each matrix is inside its slice by `Matrix::check`; the rest is the
    // caller's contract.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data,
            out_col,
            out_row,
            into == Into::Add,
            a.data,
            a_col,
            a_row,
            b.data,
            b_col,
            b_row,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
