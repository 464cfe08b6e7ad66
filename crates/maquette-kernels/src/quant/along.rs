//! Super-blocks times one row of `x`, read along their rows (AVX512-VNNI).
//!
//! Turning sixteen rows, as [`super::weights`] does, costs more than all that follows when each level is used
//! once. Here the products of a row's levels stay in sixteen lanes, and only these are turned and added up,
//! block by block: the same integers, so the same numbers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::product::{Job, Rows, put};
use super::weights::{Head, Q4K, Q5K, Q6K, Weights, add_scaled, number};
use super::words::Words;
use super::x86::Vnni;
use crate::simd::{Avx512, Lanes};

/// A format read so.
pub(super) trait Along: Weights<Vnni> {
    /// What its rows share.
    type Shared: Shared;

    /// Sixteen integers that add up to the products of row `i`, of which `row` is the block.
    ///
    /// # Safety
    /// As [`Shared::of`].
    unsafe fn total(shared: &Self::Shared, row: *const u8, i: usize) -> __m512i;
}

/// Of a block what sixteen rows share: `x`, and what is taken from all rows at once.
pub(super) trait Shared {
    /// # Safety
    /// The machine has the instructions; the rows have a block, and the record is whole.
    unsafe fn of(from: *const u8, stride: usize, x: *const u32) -> Self;

    /// Adds what the totals of all rows come to.
    ///
    /// # Safety
    /// As [`Self::of`].
    unsafe fn add(&self, sum: __m512, totals: __m512i, x: *const u32) -> __m512;
}

/// The outputs of some groups of rows, of one row of `x`.
///
/// # Safety
/// As [`super::product::Kernel::run`].
#[inline(always)]
pub(super) unsafe fn run<F: Along>(job: &Job, groups: Range<usize>) {
    job.check::<Vnni, F>();
    for group in groups {
        // SAFETY: the caller's; block `b` of rows and record is there.
        unsafe {
            let rows = Rows::of::<Vnni>(job, group);
            let mut sum = Avx512::splat(0.0);
            for b in 0..job.columns.div_ceil(F::NUMBERS) {
                let (from, x) = (
                    rows.from.add(b * F::BYTES),
                    job.x.as_ptr().add(b * F::RECORD),
                );
                let shared = F::Shared::of(from, rows.stride, x);
                let mut fours = [_mm512_setzero_si512(); 4];
                for (four, sums) in fours.iter_mut().enumerate() {
                    let mut totals = [_mm512_setzero_si512(); 4];
                    for (i, total) in totals.iter_mut().enumerate() {
                        let i = 4 * four + i;
                        // Row by row: asked for at once, they would keep what is needed now waiting.
                        rows.prefetch_next::<Vnni, F>(b, i..i + 1);
                        *total = F::total(&shared, from.add(i * rows.stride), i);
                    }
                    *sums = added(totals);
                }
                sum = shared.add(sum, together(fours), x);
            }
            put::<Vnni, 1, 1>(job, group, 0, &[[sum]]);
        }
    }
}

/// Of four vectors the sums of each quarter, side by side.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn added([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let high = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(
            _mm512_unpacklo_epi64(low, high),
            _mm512_unpackhi_epi64(low, high),
        )
    }
}

/// Of four vectors the sums of their quarters, vector by vector.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn together([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let [low, high] = [halves(a, b), halves(c, d)];
        halves(low, high)
    }
}

/// Of two vectors the sums of quarters 0 and 1, and of 2 and 3.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn halves(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        _mm512_add_epi32(
            _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b),
        )
    }
}

/// The products of levels with `x`, times scales: sums of four products fit 16 bits for levels below 64.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn scaled(sum: __m512i, levels: __m512i, x: __m512i, scales: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), levels, x);
        _mm512_dpwssd_epi32(sum, dots, scales)
    }
}

/// Where `pick` is set, bits of `a`, elsewhere of `b`.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn select(pick: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_ternarylogic_epi32::<0b1100_1010>(pick, a, b) }
}

/// Eight words of `low`, then as many of `high`.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn split(low: i32, high: i32) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        _mm512_inserti64x4::<1>(
            _mm512_castsi256_si512(_mm256_set1_epi32(low)),
            _mm256_set1_epi32(high),
        )
    }
}

/// `x` in the order of levels: 32 numbers of one part, then of the part after the next.
pub(super) struct Parts {
    head: Head<Vnni>,
    /// Of parts 0 and 2, 1 and 3, 4 and 6, 5 and 7.
    x: [__m512i; 4],
    /// Scales of parts 0 to 3, and of 4 to 7, of each row.
    scales: [[i32; 16]; 2],
}

impl Parts {
    /// Of row `i`, whose levels are in that order.
    ///
    /// # Safety
    /// As [`added`].
    #[inline(always)]
    unsafe fn total(&self, levels: [__m512i; 4], i: usize) -> __m512i {
        // SAFETY: the caller's.
        unsafe {
            // Bytes 0 and 2, or 1 and 3, as words; nothing above them.
            const NONE: i32 = 0x8080_8000_u32.cast_signed();
            let pick = [split(NONE, NONE | 2), split(NONE | 1, NONE | 3)];
            let mut sum = _mm512_setzero_si512();
            for (k, levels) in levels.into_iter().enumerate() {
                let scales = _mm512_set1_epi32(self.scales[k / 2][i]);
                let scales = _mm512_shuffle_epi8(scales, pick[k % 2]);
                sum = scaled(sum, levels, self.x[k], scales);
            }
            sum
        }
    }
}

impl Shared for Parts {
    #[inline(always)]
    unsafe fn of(from: *const u8, stride: usize, x: *const u32) -> Self {
        // SAFETY: the caller's; a record has eight parts of eight words after five.
        unsafe {
            let head = Head::<Vnni>::of(from, stride);
            let mut vectors = [_mm512_setzero_si512(); 4];
            for (i, vector) in vectors.iter_mut().enumerate() {
                let part = x.add(5 + 8 * (i / 2 * 4 + i % 2));
                *vector = _mm512_inserti64x4::<1>(
                    _mm512_castsi256_si512(_mm256_loadu_si256(part.cast())),
                    _mm256_loadu_si256(part.add(16).cast()),
                );
            }
            let mut scales = [[0; 16]; 2];
            for (to, from) in scales.iter_mut().zip(head.scales) {
                _mm512_storeu_si512(to.as_mut_ptr().cast(), from);
            }
            Self {
                head,
                x: vectors,
                scales,
            }
        }
    }

    #[inline(always)]
    unsafe fn add(&self, sum: __m512, totals: __m512i, x: *const u32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { self.head.add(sum, totals, x) }
    }
}

impl Along for Q4K {
    type Shared = Parts;

    #[inline(always)]
    unsafe fn total(shared: &Parts, row: *const u8, i: usize) -> __m512i {
        // SAFETY: the caller's; a block is a head of 16 bytes and 128 bytes of levels.
        unsafe {
            let four = _mm512_set1_epi8(15);
            let [a, b] = [
                _mm512_loadu_si512(row.add(16).cast()),
                _mm512_loadu_si512(row.add(80).cast()),
            ];
            let levels = [
                _mm512_and_si512(a, four),
                _mm512_and_si512(_mm512_srli_epi32::<4>(a), four),
                _mm512_and_si512(b, four),
                _mm512_and_si512(_mm512_srli_epi32::<4>(b), four),
            ];
            shared.total(levels, i)
        }
    }
}

impl Along for Q5K {
    type Shared = Parts;

    #[inline(always)]
    unsafe fn total(shared: &Parts, row: *const u8, i: usize) -> __m512i {
        // SAFETY: the caller's; a block is a head of 16 bytes, 32 with a fifth bit for each part, and
        // 128 with four bits.
        unsafe {
            let [four, bit] = [_mm512_set1_epi8(15), _mm512_set1_epi8(16)];
            let fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(row.add(16).cast()));
            let [a, b] = [
                _mm512_loadu_si512(row.add(48).cast()),
                _mm512_loadu_si512(row.add(112).cast()),
            ];
            let levels = [
                // Bit `part` goes to where four stands; the other bits of a word that come with it are
                // not looked at.
                (a, split(4, 2)),
                (_mm512_srli_epi32::<4>(a), split(3, 1)),
                (b, split(0, 30)),
                (_mm512_srli_epi32::<4>(b), split(31, 29)),
            ];
            let mut joined = [four; 4];
            for (joined, (low, turn)) in joined.iter_mut().zip(levels) {
                let upper = _mm512_and_si512(_mm512_rolv_epi32(fifth, turn), bit);
                *joined = select(four, low, upper);
            }
            shared.total(joined, i)
        }
    }
}

/// `x` as it is, and the units of all rows.
pub(super) struct Sixteens {
    d: __m512,
    x: [__m512i; 4],
    /// Of 16 numbers each.
    starts: __m512i,
}

impl Shared for Sixteens {
    #[inline(always)]
    unsafe fn of(from: *const u8, stride: usize, x: *const u32) -> Self {
        // SAFETY: the caller's; a record is a scale, 16 starts and 64 words.
        unsafe {
            let mut vectors = [_mm512_setzero_si512(); 4];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = _mm512_loadu_si512(x.add(17 + 16 * i).cast());
            }
            Self {
                d: Vnni::halves(from.add(208), stride),
                x: vectors,
                starts: _mm512_loadu_si512(x.add(1).cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn add(&self, sum: __m512, totals: __m512i, x: *const u32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { add_scaled::<Vnni>(sum, totals, self.d, number::<Vnni>(x, 0)) }
    }
}

impl Along for Q6K {
    type Shared = Sixteens;

    #[inline(always)]
    unsafe fn total(shared: &Sixteens, row: *const u8, _: usize) -> __m512i {
        // SAFETY: the caller's; a block is 128 bytes with four bits, 64 with two more, 16 scales and a
        // half. Each 128 numbers have four quarters: the first two are the lower halves of 64 bytes, the
        // others the upper ones.
        unsafe {
            let [four, two] = [_mm512_set1_epi8(15), _mm512_set1_epi8(0x30)];
            let packed = _mm_loadu_si128(row.add(192).cast());
            let scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(packed));
            let mut sum = _mm512_mullo_epi32(_mm512_cvtepi8_epi32(packed), shared.starts);
            for half in 0..2 {
                let low = _mm512_loadu_si512(row.add(64 * half).cast());
                let upper = _mm256_loadu_si256(row.add(128 + 32 * half).cast());
                let upper = _mm512_broadcast_i64x4(upper);
                let quarters = [
                    (low, split(4, 2)),
                    (_mm512_srli_epi32::<4>(low), split(0, 30)),
                ];
                for (k, (low, turn)) in quarters.into_iter().enumerate() {
                    let upper = _mm512_and_si512(_mm512_rolv_epi32(upper, turn), two);
                    let levels = select(four, low, upper);
                    // Scale `4 v + lane / 4` as the lower half of a word, nothing above it.
                    let v = 2 * half + k;
                    let first = _mm512_set1_epi32(4 * v as i32);
                    let at = _mm512_add_epi32(
                        first,
                        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                    );
                    let scales = _mm512_maskz_permutexvar_epi16(0x5555_5555, at, scales);
                    sum = scaled(sum, levels, shared.x[v], scales);
                }
            }
            sum
        }
    }
}
