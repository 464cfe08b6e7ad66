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
use crate::simd::{Avx512, Lanes, prefetch_lines};

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
                    *sums = total_of_four::<F>(&shared, &rows, b, 4 * four);
                }
                sum = shared.add(sum, together(fours), x);
            }
            put::<Vnni, 1, 1>(job, group, 0, &[[sum]]);
        }
    }
}

/// Sums of quarters of the products of rows `i` to `i + 3`, side by side.
///
/// # Safety
/// As [`Shared::of`].
#[inline(always)]
unsafe fn total_of_four<F: Along>(shared: &F::Shared, rows: &Rows, b: usize, i: usize) -> __m512i {
    let lines = (4 * F::BYTES).div_ceil(64);
    let next = rows
        .from
        .wrapping_add(16 * rows.stride + (16 * b + i) * F::BYTES);
    // SAFETY: the caller's.
    unsafe {
        let from = rows.from.add(b * F::BYTES + i * rows.stride);
        // Written out, since a loop of four would not be unrolled. What is asked for at once would keep
        // what is needed now waiting.
        prefetch_lines(next, 0..lines / 4);
        let first = F::total(shared, from, i);
        prefetch_lines(next, lines / 4..lines / 2);
        let second = F::total(shared, from.add(rows.stride), i + 1);
        prefetch_lines(next, lines / 2..3 * lines / 4);
        let third = F::total(shared, from.add(2 * rows.stride), i + 2);
        prefetch_lines(next, 3 * lines / 4..lines);
        let fourth = F::total(shared, from.add(3 * rows.stride), i + 3);
        added([first, second, third, fourth])
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

/// The products of two vectors of levels with `x`, four of them and `start` added up, times scales: in each
/// quarter four words for the first vector, then four for the second. Sums of four products fit 16 bits for
/// levels below 64.
///
/// # Safety
/// As [`added`].
#[inline(always)]
unsafe fn scaled(
    sum: __m512i,
    levels: [__m512i; 2],
    x: &[__m512i],
    start: &[__m512i],
    scales: __m512i,
) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let first = _mm512_dpbusd_epi32(start[0], levels[0], x[0]);
        let second = _mm512_dpbusd_epi32(start[1], levels[1], x[1]);
        _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(first, second), scales)
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
            // Bytes 0 and 1 four times, in the upper half 2 and 3, as words.
            let [a, b, c, d] = [0x8000_8000, 0x8001_8001, 0x8002_8002, 0x8003_8003_u32];
            let [a, b, c, d] = [a, b, c, d].map(u32::cast_signed);
            let pick = _mm512_setr_epi32(a, a, b, b, a, a, b, b, c, c, d, d, c, c, d, d);
            let none = [_mm512_setzero_si512(); 2];
            let mut sum = none[0];
            for half in 0..2 {
                let scales = _mm512_set1_epi32(self.scales[half][i]);
                let scales = _mm512_shuffle_epi8(scales, pick);
                let [from, to] = [2 * half, 2 * half + 2];
                let two = [levels[from], levels[from + 1]];
                sum = scaled(sum, two, &self.x[from..to], &none, scales);
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
    /// What makes levels -32 to 31.
    starts: [__m512i; 4],
}

impl Shared for Sixteens {
    #[inline(always)]
    unsafe fn of(from: *const u8, stride: usize, x: *const u32) -> Self {
        // SAFETY: the caller's; a record is a scale, 16 starts and 64 words.
        unsafe {
            let mut vectors = [_mm512_setzero_si512(); 4];
            let mut starts = vectors;
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = _mm512_loadu_si512(x.add(17 + 16 * i).cast());
                let plus = _mm512_dpbusd_epi32(starts[i], _mm512_set1_epi8(32), *vector);
                starts[i] = _mm512_sub_epi32(starts[i], plus);
            }
            Self {
                d: Vnni::halves(from.add(208), stride),
                x: vectors,
                starts,
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
            let scales = _mm256_cvtepi8_epi16(_mm_loadu_si128(row.add(192).cast()));
            let scales = _mm512_castsi256_si512(scales);
            // In each quarter that of the first vector four times, then that of the second.
            let pick = _mm512_setr_epi32(
                0x0000_0000,
                0x0000_0000,
                0x0004_0004,
                0x0004_0004,
                0x0001_0001,
                0x0001_0001,
                0x0005_0005,
                0x0005_0005,
                0x0002_0002,
                0x0002_0002,
                0x0006_0006,
                0x0006_0006,
                0x0003_0003,
                0x0003_0003,
                0x0007_0007,
                0x0007_0007,
            );
            let mut sum = _mm512_setzero_si512();
            for half in 0..2 {
                let low = _mm512_loadu_si512(row.add(64 * half).cast());
                let upper = _mm256_loadu_si256(row.add(128 + 32 * half).cast());
                let upper = _mm512_broadcast_i64x4(upper);
                let quarters = [
                    (low, split(4, 2)),
                    (_mm512_srli_epi32::<4>(low), split(0, 30)),
                ];
                let mut levels = [low; 2];
                for (levels, (low, turn)) in levels.iter_mut().zip(quarters) {
                    let upper = _mm512_and_si512(_mm512_rolv_epi32(upper, turn), two);
                    *levels = select(four, low, upper);
                }
                let pick = _mm512_add_epi16(pick, _mm512_set1_epi16(8 * half as i16));
                let scales = _mm512_permutexvar_epi16(pick, scales);
                let [from, to] = [2 * half, 2 * half + 2];
                let (x, starts) = (&shared.x[from..to], &shared.starts[from..to]);
                sum = scaled(sum, levels, x, starts, scales);
            }
            sum
        }
    }
}
