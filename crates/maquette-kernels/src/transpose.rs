//! Between planes of channels and cells of channels, sixteen at a time.

use std::ops::Range;

use crate::simd::Isa;

/// Channels of a cell come in multiples of this; a cell is filled up with zeros.
pub(crate) const WIDTH: usize = 16;

/// Writes column `j` of `rows` rows at `from`, `stride` apart, to `to(j)`, for `cols` columns.
/// With `fill`, sixteen numbers are written each time, zeros after the last row.
///
/// # Safety
/// `rows` and `cols` are at most sixteen; `cols` floats are readable at each row, and `rows` (or
/// sixteen) writable at each `to(j)`, by nobody else.
#[inline(always)]
pub(crate) unsafe fn transpose(
    isa: Isa,
    from: *const f32,
    stride: usize,
    [rows, cols]: [usize; 2],
    fill: bool,
    to: impl Fn(usize) -> *mut f32,
) {
    debug_assert!(rows <= WIDTH && cols <= WIDTH);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            let count = if fill { WIDTH } else { rows };
            // SAFETY: the instructions were detected; the caller's bounds.
            unsafe { x86::transpose(from, stride, [rows, cols], count, to) };
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            // Whole squares of eight, then what is left below and beside them.
            let [row, col] = [rows, cols].map(|size| size / 8 * 8);
            for i in (0..row).step_by(8) {
                for j in (0..col).step_by(8) {
                    // SAFETY: the instructions were detected; the square is inside the caller's bounds.
                    unsafe { x86::square(from.add(i * stride + j), stride, |k| to(j + k).add(i)) };
                }
            }
            // SAFETY: the caller's bounds.
            unsafe {
                plain(from, stride, [0..row, col..cols], &to);
                plain(from, stride, [row..rows, 0..cols], &to);
                clear(if fill { rows..WIDTH } else { 0..0 }, cols, to);
            }
        }
        Isa::Portable => {
            // SAFETY: the caller's bounds.
            unsafe {
                plain(from, stride, [0..rows, 0..cols], &to);
                clear(if fill { rows..WIDTH } else { 0..0 }, cols, to);
            }
        }
    }
}

/// # Safety
/// The numbers of these rows and columns are readable, and writable at `to`.
#[inline(always)]
unsafe fn plain(
    from: *const f32,
    stride: usize,
    [rows, cols]: [Range<usize>; 2],
    to: &impl Fn(usize) -> *mut f32,
) {
    for j in cols {
        // SAFETY: the caller's.
        unsafe {
            let to = to(j);
            for i in rows.clone() {
                *to.add(i) = *from.add(i * stride + j);
            }
        }
    }
}

/// # Safety
/// These rows of each of `cols` are writable at `to`.
#[inline(always)]
unsafe fn clear(rows: Range<usize>, cols: usize, to: impl Fn(usize) -> *mut f32) {
    for j in 0..cols {
        for i in rows.clone() {
            // SAFETY: the caller's.
            unsafe { *to(j).add(i) = 0.0 };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::WIDTH;
    use std::arch::x86_64::*;

    /// Eight rows of eight.
    ///
    /// # Safety
    /// The machine has AVX2; eight floats are readable at each of eight rows and writable at each `to`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn square(from: *const f32, stride: usize, to: impl Fn(usize) -> *mut f32) {
        let mut r = [_mm256_setzero_ps(); 8];
        for (i, r) in r.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *r = unsafe { _mm256_loadu_ps(from.add(i * stride)) };
        }
        // Exchange ever larger squares: numbers, pairs, halves.
        let mut s = r;
        for i in 0..4 {
            s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..2 {
            for j in 0..2 {
                let (a, b) = (s[4 * i + j], s[4 * i + j + 2]);
                r[4 * i + 2 * j] = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
                r[4 * i + 2 * j + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            }
        }
        for i in 0..4 {
            // SAFETY: the caller's.
            unsafe {
                _mm256_storeu_ps(to(i), _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]));
                _mm256_storeu_ps(to(i + 4), _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]));
            }
        }
    }

    fn mask(count: usize) -> __mmask16 {
        ((1u32 << count) - 1) as __mmask16
    }

    /// # Safety
    /// The machine has AVX-512; `cols` floats are readable at each of `rows` rows, and `count`
    /// writable at `to` of each column.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(
        from: *const f32,
        stride: usize,
        [rows, cols]: [usize; 2],
        count: usize,
        to: impl Fn(usize) -> *mut f32,
    ) {
        let keep = mask(cols);
        let mut r = [_mm512_setzero_ps(); WIDTH];
        for (i, r) in r.iter_mut().enumerate().take(rows) {
            // SAFETY: only the columns of the mask are touched.
            *r = unsafe { _mm512_maskz_loadu_ps(keep, from.add(i * stride)) };
        }
        // Exchange ever larger squares: numbers, pairs, quarters, halves.
        let mut s = r;
        for i in 0..8 {
            s[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            s[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            let pair = |i: usize| _mm512_castps_pd(s[i]);
            let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            let high = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            r[4 * i] = low(pair(4 * i), pair(4 * i + 2));
            r[4 * i + 1] = high(pair(4 * i), pair(4 * i + 2));
            r[4 * i + 2] = low(pair(4 * i + 1), pair(4 * i + 3));
            r[4 * i + 3] = high(pair(4 * i + 1), pair(4 * i + 3));
        }
        for i in 0..4 {
            s[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
            s[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
            s[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
            s[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
        }
        for i in 0..8 {
            r[i] = _mm512_shuffle_f32x4(s[i], s[i + 8], 0x88);
            r[i + 8] = _mm512_shuffle_f32x4(s[i], s[i + 8], 0xdd);
        }
        let keep = mask(count);
        for (j, r) in r.into_iter().enumerate().take(cols) {
            // SAFETY: only the numbers of the mask are written.
            unsafe { _mm512_mask_storeu_ps(to(j), keep, r) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_transposes() {
        for isa in Isa::available() {
            for [rows, cols] in [[16, 16], [1, 16], [16, 1], [5, 13], [13, 7]] {
                let from: Vec<f32> = (0..rows * 20).map(|i| i as f32).collect();
                for fill in [true, false] {
                    let mut to = vec![-1.0; cols * 18];
                    let start = to.as_mut_ptr();
                    // SAFETY: rows of twenty and columns of eighteen numbers.
                    unsafe {
                        transpose(isa, from.as_ptr(), 20, [rows, cols], fill, |j| {
                            start.add(18 * j)
                        });
                    }
                    for (j, column) in to.chunks(18).enumerate() {
                        for (i, found) in column.iter().enumerate() {
                            let expected = match i {
                                _ if i < rows => (20 * i + j) as f32,
                                _ if i < WIDTH && fill => 0.0,
                                _ => -1.0,
                            };
                            assert_eq!(*found, expected, "{isa:?} {rows} {cols} {i} {j}");
                        }
                    }
                }
            }
        }
    }
}
