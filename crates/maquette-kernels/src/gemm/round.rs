//! Rounding to bf16, a pair of neighbours along the reduction at a time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_permutexvar_epi16, _mm512_storeu_si512,
};

use crate::elementwise::vectorized;
use crate::simd::Isa;

/// To the nearest bf16, ties to even; the result is in the upper half.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding would carry a NaN's low bits into infinity or beyond.
    if value.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    }
}

/// Two neighbours along the reduction, the first in the lower half.
#[inline(always)]
pub(crate) fn join(first: f32, second: f32) -> u32 {
    round(first) >> 16 | round(second) & 0xffff_0000
}

/// The bits of the float of the nearest bf16.
#[inline(always)]
pub(super) fn rounded(value: f32) -> u32 {
    round(value) & 0xffff_0000
}

vectorized! {
    /// Rounds floats, given as their bits, in place.
    pub(super) fn round_each(bits: &mut [u32]) {
        for bits in bits {
            *bits = rounded(f32::from_bits(*bits));
        }
    }
}

/// Joins neighbours of two rows.
pub(crate) fn zip_rows(isa: Isa, first: &[f32], second: &[f32], to: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && Isa::has_bf16() {
        // SAFETY: the instructions were detected.
        return unsafe { zip_rows_native(first, second, to) };
    }
    zip_rows_plain(isa, first, second, to);
}

/// Joins neighbours of one row, the last one with zero if it is alone.
pub(super) fn round_row(isa: Isa, from: &[f32], to: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && Isa::has_bf16() {
        // SAFETY: the instructions were detected.
        return unsafe { round_row_native(from, to) };
    }
    round_row_plain(isa, from, to);
}

vectorized! {
    fn zip_rows_plain(first: &[f32], second: &[f32], to: &mut [u32]) {
        for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
            *to = join(*first, *second);
        }
    }
}

vectorized! {
    fn round_row_plain(from: &[f32], to: &mut [u32]) {
        let pairs = from.chunks_exact(2);
        if let [single] = pairs.remainder() {
            to[to.len() - 1] = join(*single, 0.0);
        }
        for (to, pair) in to.iter_mut().zip(pairs) {
            *to = join(pair[0], pair[1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn zip_rows_native(first: &[f32], second: &[f32], to: &mut [u32]) {
    // Where each half of a pair stands after the conversion: the first row below, the second above.
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: 64 bytes are read from an array of 64, and from 16 numbers of chunks of 16.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let (whole, rest) = to.as_chunks_mut::<16>();
    let (first, first_rest) = first.as_chunks::<16>();
    let (second, second_rest) = second.as_chunks::<16>();
    for ((to, first), second) in whole.iter_mut().zip(first).zip(second) {
        // SAFETY: chunks of 16 numbers, 64 bytes each; both vector types are 512 bits.
        unsafe {
            let first = _mm512_loadu_ps(first.as_ptr());
            let second = _mm512_loadu_ps(second.as_ptr());
            let halves =
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let pairs = _mm512_permutexvar_epi16(order, halves);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    for ((to, first), second) in rest.iter_mut().zip(first_rest).zip(second_rest) {
        *to = join(*first, *second);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round_row_native(from: &[f32], to: &mut [u32]) {
    let (from, from_rest) = from.as_chunks::<32>();
    let (whole, rest) = to.split_at_mut(16 * from.len());
    for (to, from) in whole.as_chunks_mut::<16>().0.iter_mut().zip(from) {
        // SAFETY: 32 numbers are read and 16 pairs written; both vector types are 512 bits.
        unsafe {
            let low = _mm512_loadu_ps(from.as_ptr());
            let high = _mm512_loadu_ps(from.as_ptr().add(16));
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    for (to, pair) in rest.iter_mut().zip(from_rest.chunks(2)) {
        *to = join(pair[0], pair.get(1).copied().unwrap_or(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even() {
        let rounded = |value: f32| f32::from_bits(rounded(value));
        assert_eq!(rounded(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(-1.0 - 1.1 / 256.0), -1.0 - 2.0 / 256.0);
        assert_eq!(rounded(f32::MAX), f32::INFINITY);
        assert_eq!(rounded(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(rounded(f32::from_bits(0x7f80_0001)).is_nan());
        assert_eq!(join(1.0, -2.0), 0xc000_3f80);
    }

    #[test]
    fn every_instruction_set_rounds_the_same() {
        let numbers: Vec<f32> = (0..999)
            .map(|i| (i as f32 - 500.0) * 1.017 * 2f32.powi(i % 200 - 100))
            .chain([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0])
            .collect();
        let other: Vec<f32> = numbers.iter().rev().copied().collect();
        for len in [1, 2, 15, 16, 31, 33, 64, 1003] {
            let on = |isa| {
                let mut zipped = vec![0; len];
                zip_rows(isa, &numbers[..len], &other[..len], &mut zipped);
                let mut rounded = vec![0; len.div_ceil(2)];
                round_row(isa, &other[..len], &mut rounded);
                [zipped, rounded]
            };
            for isa in Isa::available() {
                assert_eq!(on(isa), on(Isa::Portable), "{isa:?} {len}");
            }
        }
    }
}
