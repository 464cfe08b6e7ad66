//! Each quantised format as vectors: how blocks of several rows are unpacked, and their products with
//! prepared rows of `x`. Formats that are floats are in [`super::dots`].
//!
//! A block of `x` is a *record* of words: its scale, sums of its bytes, and the bytes. With `x = a p` and
//! `w = d q` (or `d s q - e m`), `p` and `q` small integers, a block adds `d a sum(q p)` (or `d a sum(s q p) -
//! e a sum(m p)`) to a product; the sums are exact, and only the last step is rounded.

// Loops count lanes of tiles, which index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::words::{Float, Words};
use crate::simd::Lanes;

/// A number format multiplied in words of `W`.
pub(super) trait Weights<W: Words> {
    /// One block of each of [`Lanes::N`] rows.
    type Block;
    /// Numbers of a block.
    const NUMBERS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Words of a record.
    const RECORD: usize;

    /// Writes a block of each row, rows `stride` bytes apart, where it is read next: clearing and moving
    /// a large one takes as long as unpacking it.
    ///
    /// # Safety
    /// The machine has the instructions of `W`; each row has a block; `to` may be written.
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Self::Block);

    /// Adds the products of blocks of `G` times as many rows with `N` records, each of one row of `x`.
    ///
    /// # Safety
    /// As above; the records are whole.
    unsafe fn multiply<const G: usize, const N: usize>(
        blocks: [&Self::Block; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    );
}

/// Word `at` of a record for all rows.
///
/// # Safety
/// The machine has the instructions of `W`; the record has such a word.
#[inline(always)]
unsafe fn word<W: Words>(x: *const u32, at: usize) -> W::V {
    // SAFETY: the caller's.
    unsafe { W::splat(x.add(at).read()) }
}

/// Float `at` of a record for all rows.
///
/// # Safety
/// As [`word`].
#[inline(always)]
pub(super) unsafe fn number<W: Words>(x: *const u32, at: usize) -> Float<W> {
    // SAFETY: the caller's.
    unsafe { W::Floats::splat(f32::from_bits(x.add(at).read())) }
}

/// `sum + d a total`
///
/// # Safety
/// The machine has the instructions of `W`.
#[inline(always)]
pub(super) unsafe fn add_scaled<W: Words>(
    sum: Float<W>,
    total: W::V,
    d: Float<W>,
    a: Float<W>,
) -> Float<W> {
    // SAFETY: the caller's.
    unsafe { W::Floats::mul_add(W::float(total), W::Floats::mul(d, a), sum) }
}

/// Four-bit integers of bytes, 0 to 15: those in the lower halves, then those in the upper.
///
/// # Safety
/// As [`Weights::unpack`], of the words' bytes.
#[inline(always)]
unsafe fn nibbles<W: Words>(from: *const u8, stride: usize) -> [[W::V; 4]; 2] {
    // SAFETY: the caller's.
    unsafe {
        let four = W::splat(0x0f0f_0f0f);
        let columns = W::columns(from, stride);
        let mut levels = [columns; 2];
        for j in 0..4 {
            levels[0][j] = W::and(columns[j], four);
            levels[1][j] = W::and(W::right::<4>(columns[j]), four);
        }
        levels
    }
}

/// Scale, start and bytes of 32 numbers.
pub(super) const SMALL: usize = 2 + 8;

/// 4 bits, a scale per 32. Levels are used from 0 to 15; what makes them -8 to 7 is in the start.
pub(super) struct Q4_0;

impl<W: Words> Weights<W> for Q4_0 {
    type Block = ([W::V; 8], Float<W>);
    const NUMBERS: usize = 32;
    const BYTES: usize = 18;
    const RECORD: usize = SMALL;

    #[inline(always)]
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Self::Block) {
        // SAFETY: the caller's; a block is a half and 16 bytes.
        unsafe {
            let [[a, b, c, d], [e, f, g, h]] = nibbles::<W>(from.add(2), stride);
            to.write(([a, b, c, d, e, f, g, h], W::halves(from, stride)));
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize, const N: usize>(
        blocks: [&Self::Block; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut dots = [[W::splat(0); N]; G];
            for n in 0..N {
                let start = word::<W>(x[n], 1);
                for g in 0..G {
                    dots[g][n] = start;
                }
            }
            for j in 0..8 {
                for n in 0..N {
                    let x = word::<W>(x[n], 2 + j);
                    for g in 0..G {
                        dots[g][n] = W::dot(dots[g][n], blocks[g].0[j], x);
                    }
                }
            }
            for n in 0..N {
                let a = number::<W>(x[n], 0);
                for g in 0..G {
                    sums[g][n] = add_scaled::<W>(sums[g][n], W::total(dots[g][n]), blocks[g].1, a);
                }
            }
        }
    }
}

/// 8 bits, a scale per 32; 128 is added to each, to be taken off by the start.
pub(super) struct Q8_0;

impl<W: Words> Weights<W> for Q8_0 {
    type Block = ([W::Byte; 8], Float<W>);
    const NUMBERS: usize = 32;
    const BYTES: usize = 34;
    const RECORD: usize = SMALL;

    #[inline(always)]
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Self::Block) {
        // SAFETY: the caller's; a block is a half and 32 bytes.
        unsafe {
            let sign = W::splat(0x8080_8080);
            let halves = [
                W::columns(from.add(2), stride),
                W::columns(from.add(18), stride),
            ];
            let mut levels = [W::bytes(sign); 8];
            for j in 0..8 {
                levels[j] = W::bytes(W::xor(halves[j / 4][j % 4], sign));
            }
            to.write((levels, W::halves(from, stride)));
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize, const N: usize>(
        blocks: [&Self::Block; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut dots = [[W::start_bytes(W::splat(0)); N]; G];
            for n in 0..N {
                let start = W::start_bytes(word::<W>(x[n], 1));
                for g in 0..G {
                    dots[g][n] = start;
                }
            }
            for j in 0..8 {
                for n in 0..N {
                    let x = word::<W>(x[n], 2 + j);
                    for g in 0..G {
                        dots[g][n] = W::dot_bytes(dots[g][n], blocks[g].0[j], x);
                    }
                }
            }
            for n in 0..N {
                let a = number::<W>(x[n], 0);
                for g in 0..G {
                    let total = W::total_bytes(dots[g][n]);
                    sums[g][n] = add_scaled::<W>(sums[g][n], total, blocks[g].1, a);
                }
            }
        }
    }
}

/// Scale, sums of pairs of 32, and bytes of 256 numbers.
pub(super) const AFFINE: usize = 1 + 4 + 64;

/// What stands before the levels of a super-block with scales and offsets per 32.
pub(super) struct Head<W: Words> {
    /// Of four parts each, a byte each.
    pub(super) scales: [W::V; 2],
    /// Of two parts each.
    offsets: [W::V; 4],
    d: Float<W>,
    e: Float<W>,
}

impl<W: Words> Head<W> {
    /// From 16 bytes: two halves, then scales and offsets of six bits as in `format.rs`, here of all rows at
    /// once.
    ///
    /// # Safety
    /// As [`Weights::unpack`].
    #[inline(always)]
    pub(super) unsafe fn of(from: *const u8, stride: usize) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let [units, a, b, c] = W::columns(from, stride);
            let six = W::splat(0x3f3f_3f3f);
            let four = W::splat(0x0f0f_0f0f);
            let two = W::splat(0x0303_0303);
            let [upper_a, upper_b] = [
                W::left::<4>(W::and(W::right::<6>(a), two)),
                W::left::<4>(W::and(W::right::<6>(b), two)),
            ];
            let m = W::and(b, six);
            let n = W::or(W::and(W::right::<4>(c), four), upper_b);
            Self {
                scales: [W::and(a, six), W::or(W::and(c, four), upper_a)],
                offsets: [
                    W::pair::<0>(m),
                    W::pair::<1>(m),
                    W::pair::<0>(n),
                    W::pair::<1>(n),
                ],
                d: W::lower_halves(units),
                e: W::lower_halves(W::right::<16>(units)),
            }
        }
    }

    /// Adds the products with a record, of which `total` is what levels and scales come to.
    ///
    /// # Safety
    /// As [`Weights::multiply`].
    #[inline(always)]
    pub(super) unsafe fn add(&self, sum: Float<W>, total: W::V, x: *const u32) -> Float<W> {
        // SAFETY: the caller's.
        unsafe {
            let a = number::<W>(x, 0);
            let minus = W::Floats::sub(W::Floats::splat(0.0), a);
            let mut offset = W::splat(0);
            for pair in 0..4 {
                let x = word::<W>(x, 1 + pair);
                offset = W::add(offset, W::dot_pairs(self.offsets[pair], x));
            }
            let sum = add_scaled::<W>(sum, total, self.d, a);
            add_scaled::<W>(sum, offset, self.e, minus)
        }
    }
}

/// A super-block with scales and offsets per 32.
pub(super) struct Affine<W: Words> {
    /// Of each part of 32 numbers.
    levels: [[W::V; 8]; 8],
    scales: [W::V; 8],
    head: Head<W>,
}

impl<W: Words> Affine<W> {
    /// Writes all but the levels.
    ///
    /// # Safety
    /// As [`Weights::unpack`].
    #[inline(always)]
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Self) {
        // SAFETY: the caller's.
        unsafe {
            let head = Head::<W>::of(from, stride);
            let [s, t] = head.scales;
            (*to).scales = [
                W::scale::<0>(s),
                W::scale::<1>(s),
                W::scale::<2>(s),
                W::scale::<3>(s),
                W::scale::<0>(t),
                W::scale::<1>(t),
                W::scale::<2>(t),
                W::scale::<3>(t),
            ];
            (&raw mut (*to).head).write(head);
        }
    }

    /// Levels of at most `255 / 2 / CHUNK` may be summed over `CHUNK` words before they are scaled.
    ///
    /// # Safety
    /// As [`Weights::multiply`].
    #[inline(always)]
    unsafe fn multiply<const G: usize, const N: usize, const CHUNK: usize>(
        blocks: [&Self; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    ) {
        // SAFETY: the caller's.
        unsafe {
            let zero = W::splat(0);
            let mut totals = [[zero; N]; G];
            for part in 0..8 {
                for first in (0..8).step_by(CHUNK) {
                    let mut dots = [[zero; N]; G];
                    for j in first..first + CHUNK {
                        for n in 0..N {
                            let x = word::<W>(x[n], 5 + 8 * part + j);
                            for g in 0..G {
                                dots[g][n] = W::dot(dots[g][n], blocks[g].levels[part][j], x);
                            }
                        }
                    }
                    for n in 0..N {
                        for g in 0..G {
                            let scaled = W::scaled(dots[g][n], blocks[g].scales[part]);
                            totals[g][n] = W::add(totals[g][n], scaled);
                        }
                    }
                }
            }
            for n in 0..N {
                for g in 0..G {
                    sums[g][n] = blocks[g].head.add(sums[g][n], totals[g][n], x[n]);
                }
            }
        }
    }
}

/// 4 bits, a scale and an offset per 32.
pub(super) struct Q4K;

impl<W: Words> Weights<W> for Q4K {
    type Block = Affine<W>;
    const NUMBERS: usize = 256;
    const BYTES: usize = 144;
    const RECORD: usize = AFFINE;

    #[inline(always)]
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Affine<W>) {
        // SAFETY: the caller's; a block is a head of 16 bytes and four times 32 for two parts each.
        unsafe {
            let levels = &raw mut (*to).levels;
            for two in 0..4 {
                for half in 0..2 {
                    let at = from.add(16 + 32 * two + 16 * half);
                    let [low, high] = nibbles::<W>(at, stride);
                    for j in 0..4 {
                        (*levels)[2 * two][4 * half + j] = low[j];
                        (*levels)[2 * two + 1][4 * half + j] = high[j];
                    }
                }
            }
            Affine::unpack(from, stride, to);
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize, const N: usize>(
        blocks: [&Affine<W>; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    ) {
        // SAFETY: the caller's.
        unsafe { Affine::multiply::<G, N, 8>(blocks, x, sums) }
    }
}

/// 5 bits, a scale and an offset per 32.
pub(super) struct Q5K;

impl<W: Words> Weights<W> for Q5K {
    type Block = Affine<W>;
    const NUMBERS: usize = 256;
    const BYTES: usize = 176;
    const RECORD: usize = AFFINE;

    #[inline(always)]
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Affine<W>) {
        // SAFETY: the caller's; a block is a head of 16 bytes, 32 with a fifth bit for each part, and
        // four times 32 for two parts each.
        unsafe {
            let bit = W::splat(0x1010_1010);
            let levels = &raw mut (*to).levels;
            for half in 0..2 {
                let fifth = W::columns(from.add(16 + 16 * half), stride);
                for two in 0..4 {
                    let at = from.add(48 + 32 * two + 16 * half);
                    let [low, high] = nibbles::<W>(at, stride);
                    for j in 0..4 {
                        // Bit `part` to where four stands.
                        let [even, odd] = match two {
                            0 => [W::left::<4>(fifth[j]), W::left::<3>(fifth[j])],
                            1 => [W::left::<2>(fifth[j]), W::left::<1>(fifth[j])],
                            2 => [fifth[j], W::right::<1>(fifth[j])],
                            _ => [W::right::<2>(fifth[j]), W::right::<3>(fifth[j])],
                        };
                        (*levels)[2 * two][4 * half + j] = W::or(low[j], W::and(even, bit));
                        (*levels)[2 * two + 1][4 * half + j] = W::or(high[j], W::and(odd, bit));
                    }
                }
            }
            Affine::unpack(from, stride, to);
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize, const N: usize>(
        blocks: [&Affine<W>; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    ) {
        // SAFETY: the caller's.
        unsafe { Affine::multiply::<G, N, 4>(blocks, x, sums) }
    }
}

/// Scale, starts of 16, and bytes of 256 numbers.
pub(super) const SIGNED: usize = 1 + 16 + 64;

/// 6 bits, a scale per 16. Levels are used from 0 to 63; what makes them -32 to 31 is in the starts.
pub(super) struct Q6K;

/// Its super-block.
pub(super) struct Signed<W: Words> {
    /// Of each part of 16 numbers.
    levels: [[W::V; 4]; 16],
    scales: [W::V; 16],
    d: Float<W>,
}

impl<W: Words> Weights<W> for Q6K {
    type Block = Signed<W>;
    const NUMBERS: usize = 256;
    const BYTES: usize = 210;
    const RECORD: usize = SIGNED;

    #[inline(always)]
    unsafe fn unpack(from: *const u8, stride: usize, to: *mut Signed<W>) {
        // SAFETY: the caller's; a block is 128 bytes with four bits, 64 with two more, 16 scales and
        // a half. Each 128 numbers have four quarters, of which the first and the third share bytes,
        // as do the second and the fourth; a byte with two bits more is shared by all four.
        unsafe {
            let two = W::splat(0x3030_3030);
            let levels = &raw mut (*to).levels;
            for half in 0..2 {
                for at in 0..2 {
                    let upper = W::columns(from.add(128 + 32 * half + 16 * at), stride);
                    let first = from.add(64 * half + 16 * at);
                    let [a, c] = nibbles::<W>(first, stride);
                    let [b, d] = nibbles::<W>(first.add(32), stride);
                    for j in 0..4 {
                        let quarters = [
                            (a[j], W::left::<4>(upper[j])),
                            (b[j], W::left::<2>(upper[j])),
                            (c[j], upper[j]),
                            (d[j], W::right::<2>(upper[j])),
                        ];
                        for (quarter, (low, upper)) in quarters.into_iter().enumerate() {
                            (*levels)[8 * half + 2 * quarter + at][j] =
                                W::or(low, W::and(upper, two));
                        }
                    }
                }
            }
            let packed = W::columns(from.add(192), stride);
            let scales = &raw mut (*to).scales;
            for i in 0..4 {
                (*scales)[4 * i] = W::signed_scale::<0>(packed[i]);
                (*scales)[4 * i + 1] = W::signed_scale::<1>(packed[i]);
                (*scales)[4 * i + 2] = W::signed_scale::<2>(packed[i]);
                (*scales)[4 * i + 3] = W::signed_scale::<3>(packed[i]);
            }
            (*to).d = W::halves(from.add(208), stride);
        }
    }

    #[inline(always)]
    unsafe fn multiply<const G: usize, const N: usize>(
        blocks: [&Signed<W>; G],
        x: [*const u32; N],
        sums: &mut [[Float<W>; N]; G],
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut totals = [[W::splat(0); N]; G];
            for part in 0..16 {
                let mut dots = [[W::splat(0); N]; G];
                for n in 0..N {
                    let start = word::<W>(x[n], 1 + part);
                    for g in 0..G {
                        dots[g][n] = start;
                    }
                }
                for j in 0..4 {
                    for n in 0..N {
                        let x = word::<W>(x[n], 17 + 4 * part + j);
                        for g in 0..G {
                            dots[g][n] = W::dot(dots[g][n], blocks[g].levels[part][j], x);
                        }
                    }
                }
                for n in 0..N {
                    for g in 0..G {
                        let scaled = W::scaled(dots[g][n], blocks[g].scales[part]);
                        totals[g][n] = W::add(totals[g][n], scaled);
                    }
                }
            }
            for n in 0..N {
                let a = number::<W>(x[n], 0);
                for g in 0..G {
                    sums[g][n] = add_scaled::<W>(sums[g][n], totals[g][n], blocks[g].d, a);
                }
            }
        }
    }
}
