//! Quantised weights times one row of `x`, read along their rows (AVX512-VNNI).
//!
//! Turning sixteen rows, as [`super::weights`] does, costs more than all that follows when each level is used
//! once, and memory is read fastest from front to back. So rows are read one after the other: the products
//! of a block stay in their lanes, sixteen blocks are added up to as many integers by a tree of additions,
//! and only these are turned and scaled, block by block. They are the integers that turned rows come to, scaled in
//! the same order, so the numbers are the same.

mod small;
mod supers;

use std::arch::x86_64::*;
use std::ops::Range;

use super::product::{Job, Rows, put};
use super::weights::Weights;
use super::words::Words;
use super::x86::Vnni;
use crate::simd::{Avx512, Lanes};

/// Rows of a group.
const ROWS: usize = 16;

/// A format read so.
pub(super) trait Along: Scale {
    /// Blocks a row must have.
    const FEWEST: usize;

    /// A row of `x`, of so many records, in the order and form in which [`Self::totals`] uses it.
    ///
    /// # Safety
    /// The machine has the instructions; the records are whole.
    unsafe fn prepare(x: *const u32, blocks: usize) -> Vec<__m512i>;

    /// Writes the integers that the products of each block come to, of sixteen rows of so many blocks that
    /// follow each other.
    ///
    /// # Safety
    /// The machine has the instructions; the blocks are there, `x` is prepared for as many, and there is
    /// room for all totals.
    unsafe fn totals(from: *const u8, blocks: usize, x: &[__m512i], to: *mut i32);
}

/// What is left to do with totals.
pub(super) trait Scale: Weights<Vnni> {
    /// Adds what those of a block of each row come to.
    ///
    /// # Safety
    /// The machine has the instructions; the rows have a block, and the record is whole.
    unsafe fn add(
        sum: __m512,
        totals: __m512i,
        from: *const u8,
        stride: usize,
        record: *const u32,
    ) -> __m512;
}

/// The outputs of some groups of rows, of one row of `x`.
///
/// # Safety
/// As [`super::product::Kernel::run`]; rows have [`Along::FEWEST`] blocks.
#[inline(always)]
pub(super) unsafe fn run<F: Along>(job: &Job, groups: Range<usize>) {
    job.check::<Vnni, F>();
    let blocks = job.columns.div_ceil(F::NUMBERS);
    // They are turned four blocks at a time.
    let mut totals: Vec<i32> = Vec::with_capacity(ROWS * blocks + 4);
    // SAFETY: the caller's; block `b` of rows and record is there.
    unsafe {
        let x = F::prepare(job.x.as_ptr(), blocks);
        for group in groups {
            let rows = Rows::of::<Vnni>(job, group);
            F::totals(rows.from, blocks, &x, totals.as_mut_ptr());
            let mut sum = Avx512::splat(0.0);
            for first in (0..blocks).step_by(4) {
                let four = totals.as_ptr().add(first).cast();
                let four = Vnni::columns(four, size_of::<i32>() * blocks);
                for (b, totals) in (first..blocks).zip(four) {
                    let from = rows.from.add(b * F::BYTES);
                    let record = job.x.as_ptr().add(b * F::RECORD);
                    sum = F::add(sum, totals, from, rows.stride, record);
                }
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
