//! Blocks of 32 numbers with one scale.
//!
//! They are multiplied in runs of sixteen or eight that follow each other. A vector holds pieces of
//! blocks some way apart, so that totals come out in the order of the blocks.

use std::arch::x86_64::*;

use super::super::weights::{Q4_0, Q8_0, SMALL, add_scaled, number};
use super::super::words::Words;
use super::super::x86::Vnni;
use super::{Along, ROWS, Read, Reading, Scaling, added, ask_part, halves};

/// Blocks of a run.
const LONG: usize = 16;
/// Of the runs at the end of a row.
const SHORT: usize = 8;

/// A format of small blocks.
pub(super) trait Small: Along {
    /// Writes `RUN` records in the order of their blocks' pieces, as half as many vectors.
    ///
    /// # Safety
    /// The machine has the instructions; the records are whole, and there is room.
    unsafe fn write<const RUN: usize>(record: *const u32, to: *mut __m512i);

    /// The totals of `RUN` blocks; if `ASK`, asks for what follows them.
    ///
    /// # Safety
    /// The machine has the instructions; the blocks and their vectors are there.
    unsafe fn totals<const RUN: usize, const ASK: bool>(
        block: *const u8,
        x: *const __m512i,
    ) -> __m512i;
}

/// Where runs of eight begin, the last at the end of the row: it may overlap with those before.
fn short_runs(blocks: usize) -> impl Iterator<Item = usize> {
    let first = blocks - blocks % LONG;
    (first..blocks)
        .step_by(SHORT)
        .map(move |at| at.min(blocks - SHORT))
}

/// In runs.
pub(in crate::quant) struct Runs;

impl<F: Small> Reading<F> for Runs {
    const FEWEST: usize = SHORT;
    const HEAD: usize = size_of::<u16>();

    #[inline(always)]
    unsafe fn prepare(x: *const u32, blocks: usize, to: &mut Vec<__m512i>) {
        to.clear();
        to.reserve(blocks.next_multiple_of(SHORT) / 2);
        let mut next = to.as_mut_ptr();
        // SAFETY: the caller's; there is room for all vectors, and all of them are written.
        unsafe {
            for run in 0..blocks / LONG {
                F::write::<LONG>(x.add(SMALL * LONG * run), next);
                next = next.add(LONG / 2);
            }
            for at in short_runs(blocks) {
                F::write::<SHORT>(x.add(SMALL * at), next);
                next = next.add(SHORT / 2);
            }
            to.set_len(next.offset_from_unsigned(to.as_ptr()));
        }
    }

    #[inline(always)]
    unsafe fn read<const ASK: bool>(
        from: *const u8,
        blocks: usize,
        x: &[__m512i],
        to: Read,
        before: &mut Scaling<F>,
    ) {
        // With each row its part, in fours.
        let part = blocks.div_ceil(4 * ROWS) * 4;
        for i in 0..ROWS {
            // SAFETY: the caller's.
            unsafe {
                row::<F, ASK>(i, from, blocks, x, to);
                for first in (i * part..(i + 1) * part).step_by(4) {
                    before.four(first);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, totals: __m512i, heads: *const u8, record: *const u32) -> __m512 {
        // SAFETY: the caller's; heads are halves, a record begins with scale and start.
        unsafe {
            let start = Vnni::splat(record.add(1).read());
            let totals = _mm512_add_epi32(totals, start);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(heads.cast()));
            add_scaled::<Vnni>(sum, totals, d, number::<Vnni>(record, 0))
        }
    }
}

impl Along for Q4_0 {
    type By = Runs;
}

impl Along for Q8_0 {
    type By = Runs;
}

/// [`Reading::read`] of one row.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn row<F: Small, const ASK: bool>(
    row: usize,
    from: *const u8,
    blocks: usize,
    x: &[__m512i],
    to: Read,
) {
    let mut x = x.as_ptr();
    // SAFETY: the caller's.
    unsafe {
        let (from, totals) = (
            from.add(row * blocks * F::BYTES),
            to.totals.add(row * blocks),
        );
        let heads = to.heads.cast::<u16>().add(row);
        for run in 0..blocks / LONG {
            let at = LONG * run;
            let block = from.add(at * F::BYTES);
            let sixteen = F::totals::<LONG, ASK>(block, x);
            _mm512_storeu_si512(totals.add(at).cast(), sixteen);
            keep::<F, LONG>(block, heads.add(at * ROWS));
            x = x.add(LONG / 2);
        }
        for at in short_runs(blocks) {
            let block = from.add(at * F::BYTES);
            let eight = _mm512_castsi512_si256(F::totals::<SHORT, ASK>(block, x));
            _mm256_storeu_si256(totals.add(at).cast(), eight);
            keep::<F, SHORT>(block, heads.add(at * ROWS));
            x = x.add(SHORT / 2);
        }
    }
}

/// The units of `RUN` blocks, with which they begin.
///
/// # Safety
/// The blocks are there, and there is room.
#[inline(always)]
unsafe fn keep<F: Small, const RUN: usize>(block: *const u8, to: *mut u16) {
    for i in 0..RUN {
        // SAFETY: the caller's.
        unsafe {
            let unit = block.add(i * F::BYTES).cast::<u16>().read_unaligned();
            to.add(i * ROWS).write_unaligned(unit);
        }
    }
}

/// Two pieces of 32 bytes.
///
/// # Safety
/// The machine has the instructions; the bytes are there.
#[inline(always)]
unsafe fn two(from: *const u8, apart: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        _mm512_inserti64x4::<1>(
            _mm512_castsi256_si512(_mm256_loadu_si256(from.cast())),
            _mm256_loadu_si256(from.add(apart).cast()),
        )
    }
}

/// Four pieces of 16 bytes.
///
/// # Safety
/// As [`two`].
#[inline(always)]
unsafe fn four(from: *const u8, apart: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let a = _mm512_castsi128_si512(_mm_loadu_si128(from.cast()));
        let b = _mm_loadu_si128(from.add(apart).cast());
        let c = _mm_loadu_si128(from.add(2 * apart).cast());
        let d = _mm_loadu_si128(from.add(3 * apart).cast());
        let ab = _mm512_inserti32x4::<1>(a, b);
        let abc = _mm512_inserti32x4::<2>(ab, c);
        _mm512_inserti32x4::<3>(abc, d)
    }
}

impl Small for Q8_0 {
    /// Of eight blocks, vector `j` has `j` and `j + 4`.
    #[inline(always)]
    unsafe fn write<const RUN: usize>(record: *const u32, to: *mut __m512i) {
        for i in 0..RUN / 2 {
            // SAFETY: the caller's; eight words of a record follow two.
            unsafe {
                let record = record.add((i / 4 * 8 + i % 4) * SMALL + 2);
                to.add(i).write(two(record.cast(), 4 * 4 * SMALL));
            }
        }
    }

    #[inline(always)]
    unsafe fn totals<const RUN: usize, const ASK: bool>(
        block: *const u8,
        x: *const __m512i,
    ) -> __m512i {
        // SAFETY: the caller's.
        unsafe {
            let first = eight_bytes::<ASK>(block, x);
            let second = match RUN {
                SHORT => first,
                _ => eight_bytes::<ASK>(block.add(8 * 34), x.add(4)),
            };
            halves(first, second)
        }
    }
}

/// Of eight blocks of [`Q8_0`] the sums of halves: of 0 to 3, and in the upper half of 4 to 7.
///
/// # Safety
/// As [`Small::totals`].
#[inline(always)]
unsafe fn eight_bytes<const ASK: bool>(block: *const u8, x: *const __m512i) -> __m512i {
    // SAFETY: the caller's. Written out, since a loop of four would not be unrolled.
    unsafe {
        ask_part::<ASK, 0>(block, 8 * 34);
        let a = two_blocks(block, x);
        ask_part::<ASK, 1>(block, 8 * 34);
        let b = two_blocks(block.add(34), x.add(1));
        ask_part::<ASK, 2>(block, 8 * 34);
        let c = two_blocks(block.add(2 * 34), x.add(2));
        ask_part::<ASK, 3>(block, 8 * 34);
        let d = two_blocks(block.add(3 * 34), x.add(3));
        added([a, b, c, d])
    }
}

/// The products of a block of [`Q8_0`] and of the fourth after it.
///
/// # Safety
/// As [`Small::totals`].
#[inline(always)]
unsafe fn two_blocks(block: *const u8, x: *const __m512i) -> __m512i {
    // SAFETY: the caller's; bytes follow a half.
    unsafe {
        let levels = two(block.add(2), 4 * 34);
        let levels = _mm512_xor_si512(levels, _mm512_set1_epi8(-128));
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), levels, x.read())
    }
}

impl Small for Q4_0 {
    /// Vector `j` has the first 16 numbers of every fourth block from `j` on, or of every other one of
    /// eight; then come as many vectors of the other numbers.
    #[inline(always)]
    unsafe fn write<const RUN: usize>(record: *const u32, to: *mut __m512i) {
        let apart = RUN / 4;
        for i in 0..2 * apart {
            // SAFETY: the caller's; eight words of a record follow two.
            unsafe {
                let words = record.add(i % apart * SMALL + 2 + 4 * (i / apart));
                to.add(i).write(four(words.cast(), apart * 4 * SMALL));
            }
        }
    }

    #[inline(always)]
    unsafe fn totals<const RUN: usize, const ASK: bool>(
        block: *const u8,
        x: *const __m512i,
    ) -> __m512i {
        // SAFETY: the caller's. Written out, since a loop of four would not be unrolled.
        unsafe {
            let bytes = RUN * 18;
            ask_part::<ASK, 0>(block, bytes);
            let a = four_blocks::<RUN>(block, x);
            ask_part::<ASK, 1>(block, bytes);
            let b = four_blocks::<RUN>(block.add(18), x.add(1));
            if RUN == SHORT {
                ask_part::<ASK, 2>(block, bytes);
                ask_part::<ASK, 3>(block, bytes);
                // Each quarter has two blocks, twice.
                return _mm512_maskz_compress_epi32(0x3333, summed([a, b, a, b]));
            }
            ask_part::<ASK, 2>(block, bytes);
            let c = four_blocks::<RUN>(block.add(2 * 18), x.add(2));
            ask_part::<ASK, 3>(block, bytes);
            let d = four_blocks::<RUN>(block.add(3 * 18), x.add(3));
            summed([a, b, c, d])
        }
    }
}

/// [`added`], of integers of which any two add up to 15 bits and a sign.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn summed([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let one = _mm512_set1_epi16(1);
        let ab = _mm512_madd_epi16(_mm512_packs_epi32(a, b), one);
        let cd = _mm512_madd_epi16(_mm512_packs_epi32(c, d), one);
        _mm512_madd_epi16(_mm512_packs_epi32(ab, cd), one)
    }
}

/// The products of every fourth block of [`Q4_0`] of a run, or every other one of a short run.
///
/// # Safety
/// As [`Small::totals`].
#[inline(always)]
unsafe fn four_blocks<const RUN: usize>(block: *const u8, x: *const __m512i) -> __m512i {
    let apart = RUN / 4;
    // SAFETY: the caller's; bytes follow a half.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let bytes = four(block.add(2), apart * 18);
        let low = _mm512_and_si512(bytes, mask);
        let high = _mm512_and_si512(_mm512_srli_epi32::<4>(bytes), mask);
        let sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, x.read());
        _mm512_dpbusd_epi32(sum, high, x.add(apart).read())
    }
}
