//! Between planes of channels and cells of channels, sixteen at a time.

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
        _ => {
            for j in 0..cols {
                // SAFETY: the caller's bounds.
                unsafe {
                    let to = to(j);
                    for i in 0..rows {
                        *to.add(i) = *from.add(i * stride + j);
                    }
                    for i in rows..if fill { WIDTH } else { rows } {
                        *to.add(i) = 0.0;
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::WIDTH;
    use std::arch::x86_64::*;

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
