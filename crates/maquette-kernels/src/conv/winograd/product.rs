//! The matrix products between the transforms, with operands where the transforms left them.

use super::transform::{Stage, Tiling};
use crate::simd::Lanes;

/// `c[i][j] = sum_k a[i][k] * b[k][j]`, or that added to `c`, for each of `count` triples of
/// matrices a fixed distance apart.
///
/// The columns of `b` and `c` are neighbours; all other distances are free.
pub(super) struct Products {
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) inner: usize,
    /// A multiple of sixteen.
    pub(super) cols: usize,
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_inner: usize,
    pub(super) a_next: usize,
    pub(super) b: *const f32,
    pub(super) b_inner: usize,
    pub(super) b_next: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    pub(super) c_next: usize,
    /// Whether `b` is packed in panels of [`PANEL`] columns, one after the other, each
    /// `[inner][columns of the panel]`; `b_inner` is then not read.
    pub(super) panels: bool,
    pub(super) add: bool,
}

/// Columns of a packed panel: four 512-bit vectors.
pub(super) const PANEL: usize = 64;

/// # Safety
/// Every element named by the sizes and distances is inside live memory, and no other thread
/// touches `c`.
impl Stage for Products {
    #[inline(always)]
    unsafe fn run<L: Lanes, T: Tiling>(&self) {
        for product in 0..self.count {
            // SAFETY: the matrices of this product.
            unsafe {
                let a = self.a.add(product * self.a_next);
                let b = self.b.add(product * self.b_next);
                let c = self.c.add(product * self.c_next);
                let mut col = 0;
                while col < self.cols {
                    let width = (self.cols - col).min(PANEL);
                    let (b, b_inner) = if self.panels {
                        (b.add(col * self.inner), width)
                    } else {
                        (b.add(col), self.b_inner)
                    };
                    self.panel::<L>(a, [b, c.add(col)], b_inner, width);
                    col += width;
                }
            }
        }
    }
}

impl Products {
    /// All rows of `width` columns.
    #[inline(always)]
    unsafe fn panel<L: Lanes>(
        &self,
        a: *const f32,
        [b, c]: [*const f32; 2],
        b_inner: usize,
        width: usize,
    ) {
        // As many sums as leave registers for the operands: 32 there, 16 elsewhere.
        let widest = if L::N == 16 { 4 } else { 2 };
        let mut col = 0;
        while col < width {
            let vectors = ((width - col) / L::N).min(widest);
            // SAFETY: `col + vectors * N <= width`.
            unsafe {
                let (b, c) = (b.add(col), c.add(col).cast_mut());
                match (vectors, L::N == 16) {
                    (4, _) => self.rows::<L, 4, 6>(a, b, b_inner, c),
                    (3, _) => self.rows::<L, 3, 8>(a, b, b_inner, c),
                    (2, true) => self.rows::<L, 2, 12>(a, b, b_inner, c),
                    (2, false) => self.rows::<L, 2, 6>(a, b, b_inner, c),
                    _ => self.rows::<L, 1, 12>(a, b, b_inner, c),
                }
            }
            col += vectors * L::N;
        }
    }

    #[inline(always)]
    unsafe fn rows<L: Lanes, const VECTORS: usize, const ROWS: usize>(
        &self,
        a: *const f32,
        b: *const f32,
        b_inner: usize,
        c: *mut f32,
    ) {
        let mut row = 0;
        while row < self.rows {
            // SAFETY: never more rows than are left.
            unsafe {
                let (a, c) = (a.add(row * self.a_row), c.add(row * self.c_row));
                row += match self.rows - row {
                    left if left >= ROWS => self.tile::<L, VECTORS, ROWS>(a, b, b_inner, c),
                    left if left >= 4 => self.tile::<L, VECTORS, 4>(a, b, b_inner, c),
                    left if left >= 2 => self.tile::<L, VECTORS, 2>(a, b, b_inner, c),
                    _ => self.tile::<L, VECTORS, 1>(a, b, b_inner, c),
                };
            }
        }
    }

    /// `ROWS` rows of `VECTORS` vectors, all sums in registers. Returns the rows.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const VECTORS: usize, const ROWS: usize>(
        &self,
        a: *const f32,
        b: *const f32,
        b_inner: usize,
        c: *mut f32,
    ) -> usize {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
            if self.add {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(c.add(row * self.c_row + i * L::N));
                    }
                }
            }
            let (mut a, mut b) = (a, b);
            for _ in 0..self.inner {
                let mut columns = [L::splat(0.0); VECTORS];
                for (i, column) in columns.iter_mut().enumerate() {
                    *column = L::load(b.add(i * L::N));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = L::splat(*a.add(row * self.a_row));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = L::mul_add(x, column, *sum);
                    }
                }
                a = a.add(self.a_inner);
                b = b.add(b_inner);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (i, sum) in sums.iter().enumerate() {
                    L::store(c.add(row * self.c_row + i * L::N), *sum);
                }
            }
        }
        ROWS
    }
}
