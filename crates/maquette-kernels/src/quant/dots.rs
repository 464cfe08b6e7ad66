//! Weights that are floats, as dot products along their rows: memory is read from front to back, which is
//! all that matters to a single row of `x`.
//!
//! Of every row, vectors at even places have a sum and those at odd places another, each from the first to
//! the last: one need not wait for the other. The two are added, then their lanes as [`Vector::across`]
//! does, however many rows of `x` there are: so a row's result does not depend on what else is computed.

use half::f16;

use super::product::{Job, Tasks};
use super::records::Records;
use crate::simd::{Lanes, Portable, ask, asks, prefetch};
use crate::vector::{MOST, Vector};

/// Rows of weights at a time: enough sums that none waits for its last addition.
pub(super) const ROWS: usize = 4;

/// Sums of each of them.
const CHAINS: usize = 2;

/// Vectors of a row at a time.
const UNROLLED: usize = 8;

/// A float format read in vectors of `L`.
pub(super) trait Numbers<L: Lanes> {
    /// Numbers as they are multiplied.
    type V: Copy;
    /// How many.
    const COUNT: usize;
    /// Bytes of one.
    const BYTES: usize;
    /// How `x` is prepared.
    const RECORDS: Records = Records::Single(Self::COUNT);

    /// # Safety
    /// The machine has the instructions; [`Self::COUNT`] numbers are readable.
    unsafe fn load(from: *const u8) -> Self::V;

    /// Adds the products with as many numbers of `x`.
    ///
    /// # Safety
    /// As above; `x` holds [`Lanes::N`] words.
    unsafe fn add(sum: L::V, numbers: Self::V, x: *const u32) -> L::V;
}

/// 32-bit floats.
pub(super) struct F32;

impl<L: Lanes> Numbers<L> for F32 {
    type V = L::V;
    const COUNT: usize = L::N;
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> L::V {
        // SAFETY: the caller's.
        unsafe { L::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add(sum: L::V, numbers: L::V, x: *const u32) -> L::V {
        // SAFETY: the caller's.
        unsafe { L::mul_add(numbers, L::load(x.cast()), sum) }
    }
}

/// 16-bit floats.
pub(super) struct F16;

/// The upper halves of 32-bit floats.
pub(super) struct Bf16;

/// Formats of 16 bits that are widened by `$load`, from a pointer to as many as there are lanes.
macro_rules! widened {
    ($format:ty, $lanes:ty, $from:ident, $load:block) => {
        impl Numbers<$lanes> for $format {
            type V = <$lanes as Lanes>::V;
            const COUNT: usize = <$lanes as Lanes>::N;
            const BYTES: usize = 2;

            #[inline(always)]
            unsafe fn load($from: *const u8) -> Self::V {
                // SAFETY: the caller's.
                unsafe { $load }
            }

            #[inline(always)]
            unsafe fn add(sum: Self::V, numbers: Self::V, x: *const u32) -> Self::V {
                // SAFETY: the caller's.
                unsafe { <F32 as Numbers<$lanes>>::add(sum, numbers, x) }
            }
        }
    };
}

widened!(F16, Portable, from, {
    let bits = from.cast::<[u16; 4]>().read_unaligned();
    bits.map(|bits| f16::from_bits(bits).to_f32())
});
widened!(Bf16, Portable, from, {
    let bits = from.cast::<[u16; 4]>().read_unaligned();
    bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
});

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Pairs;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Bf16, F16, F32, Lanes, Numbers, Records};
    use crate::simd::{Avx2, Avx512};

    widened!(F16, Avx2, from, {
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
    });
    widened!(F16, Avx512, from, {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    });
    widened!(Bf16, Avx2, from, {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    });
    widened!(Bf16, Avx512, from, {
        let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
    });

    /// bf16 multiplied in pairs with `x` rounded to it (AVX512-BF16).
    pub(in super::super) struct Pairs;

    impl Numbers<Avx512> for Pairs {
        type V = __m512bh;
        const COUNT: usize = 32;
        const BYTES: usize = 2;
        const RECORDS: Records = Records::Pairs;

        #[inline(always)]
        unsafe fn load(from: *const u8) -> __m512bh {
            // SAFETY: the caller's; the same bits by another name.
            unsafe { std::mem::transmute(_mm512_loadu_si512(from.cast())) }
        }

        #[inline(always)]
        unsafe fn add(sum: __m512, numbers: __m512bh, x: *const u32) -> __m512 {
            // SAFETY: the caller's.
            unsafe { _mm512_dpbf16_ps(sum, numbers, Self::load(x.cast())) }
        }
    }
}

/// The outputs of groups of [`ROWS`] rows.
///
/// # Safety
/// As [`super::product::Kernel::run`].
#[inline(always)]
pub(super) unsafe fn run<L: Lanes, F: Numbers<L>>(job: &Job, tasks: Tasks) {
    let row = job.columns.div_ceil(F::COUNT) * L::N;
    assert!(
        job.x.len() == job.n * row,
        "rows prepared for another format"
    );
    // Rows of `x` of a tile, so that one reduction gives all its sums: they are read from the first cache
    // while the weights pass by.
    let most = L::N / ROWS;
    for groups in tasks {
        for first in (0..job.n).step_by(most) {
            for group in groups.clone() {
                // SAFETY: the caller's.
                unsafe {
                    match (job.n - first).min(most) {
                        1 => one_by_one::<L, F>(job, group, first),
                        2 => tile::<L, F, 2>(job, group, first),
                        _ => tile::<L, F, 4>(job, group, first),
                    }
                }
            }
        }
    }
}

/// One group of rows of weights with row `first` of `x`: each from its first number to its last, as one
/// stream of memory.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn one_by_one<L: Lanes, F: Numbers<L>>(job: &Job, group: usize, first: usize) {
    let (stride, start) = (job.stride(), group * ROWS);
    let whole = job.columns / F::COUNT;
    let [x] = job.records::<1>(first);
    let count = ROWS.min(job.rows - start);
    let asks = asks();
    // SAFETY: as in `tile`.
    unsafe {
        let mut sums = [[L::splat(0.0); 1]; ROWS];
        for (i, [sum]) in sums.iter_mut().enumerate().take(count) {
            let row = job.weights[(start + i) * stride..][..stride].as_ptr();
            let mut chains = [L::splat(0.0); CHAINS];
            let unrolled = whole / UNROLLED * UNROLLED;
            for first in (0..unrolled).step_by(UNROLLED) {
                if asks {
                    let now = row.wrapping_add(first * F::COUNT * F::BYTES);
                    ask(now, 0..(UNROLLED * F::COUNT * F::BYTES).div_ceil(64));
                }
                for i in 0..UNROLLED {
                    let numbers = F::load(row.add((first + i) * F::COUNT * F::BYTES));
                    let sum = &mut chains[i % CHAINS];
                    *sum = F::add(*sum, numbers, x.add((first + i) * L::N));
                }
            }
            for v in unrolled..job.columns.div_ceil(F::COUNT) {
                let sum = &mut chains[v % CHAINS];
                *sum = F::add(*sum, vector::<L, F>(job, row, v), x.add(v * L::N));
            }
            *sum = L::add(chains[0], chains[1]);
        }
        write::<L, 1>(job, start, first, &sums);
    }
}

/// Vector `v` of a row, filled up with zeros if it is the last.
///
/// # Safety
/// As [`run`], of a row of the job that has such numbers.
#[inline(always)]
unsafe fn vector<L: Lanes, F: Numbers<L>>(job: &Job, row: *const u8, v: usize) -> F::V {
    let left = (job.columns - v * F::COUNT).min(F::COUNT);
    let mut padded = [0u8; 64];
    // SAFETY: the caller's; no vector has more bytes.
    unsafe {
        let from = row.add(v * F::COUNT * F::BYTES);
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), left * F::BYTES);
        F::load(padded.as_ptr())
    }
}

/// Adds up the lanes of sums of [`ROWS`] rows of weights from `start` on with `N` of `x` from `first` on.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn write<L: Lanes, const N: usize>(
    job: &Job,
    start: usize,
    first: usize,
    sums: &[[L::V; N]; ROWS],
) {
    // SAFETY: the caller's.
    let mut vectors = [Vector::<L>(unsafe { L::splat(0.0) }); MOST];
    for (i, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            vectors[n * ROWS + i] = Vector(*sum);
        }
    }
    let totals = Vector::across(vectors, |a, b| a + b).lanes();
    let count = ROWS.min(job.rows - start);
    let totals = totals.chunks_exact(ROWS).enumerate();
    for (n, totals) in totals.take(N.min(job.n - first)) {
        // SAFETY: the caller's: this task's rows of `out`.
        let out = unsafe { job.out.part((first + n) * job.rows + start, count) };
        out.copy_from_slice(&totals[..count]);
    }
}

/// One group of rows of weights with at most `N` rows of `x` from `first` on.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn tile<L: Lanes, F: Numbers<L>, const N: usize>(job: &Job, group: usize, first: usize) {
    let (stride, start) = (job.stride(), group * ROWS);
    let whole = job.columns / F::COUNT;
    let x: [*const u32; N] = job.records(first);
    // Rows beyond the last are that row again.
    let mut rows = [job.weights.as_ptr(); ROWS];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = job.weights[(start + i).min(job.rows - 1) * stride..][..stride].as_ptr();
    }
    // SAFETY: each row has `whole` vectors and a rest, each record as many vectors and one more if there
    // is a rest; what is left is the caller's.
    unsafe {
        let mut totals = [[L::splat(0.0); N]; ROWS];
        for chain in 0..CHAINS {
            let mut sums = [[L::splat(0.0); N]; ROWS];
            for v in (chain..whole).step_by(CHAINS) {
                let at = v * F::COUNT * F::BYTES;
                // As much of the next group as is used of this one.
                let next = rows[0].wrapping_add(ROWS * (stride + at));
                prefetch(next, ROWS * F::COUNT * F::BYTES);
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let numbers = F::load(row.add(at));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = F::add(*sum, numbers, x.add(v * L::N));
                    }
                }
            }
            if whole * F::COUNT < job.columns && whole % CHAINS == chain {
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let numbers = vector::<L, F>(job, row, whole);
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = F::add(*sum, numbers, x.add(whole * L::N));
                    }
                }
            }
            for (totals, sums) in totals.iter_mut().zip(sums) {
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = match chain {
                        0 => sum,
                        _ => L::add(*total, sum),
                    };
                }
            }
        }
        write::<L, N>(job, start, first, &totals);
    }
}
