//! Rows of `x` as weights of a format are multiplied with them: in blocks of 8-bit integers that share
//! a scale, as ggml rounds them too, or as floats. See [`super::weights`] for what a record of the former
//! holds.

use super::weights::{AFFINE, SIGNED, SMALL};
use crate::elementwise::vectorized;
use crate::gemm::join;
use crate::simd::Isa;

/// How rows are prepared. Matrices that agree in this share the prepared rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Records {
    /// 32 bytes with a scale and a start for levels less this.
    Small(Start),
    /// 256 bytes with a scale, and sums of 32.
    Affine,
    /// 256 bytes with a scale, and starts of 16.
    Signed(Start),
    /// Numbers as they are, this many at a time.
    Single(usize),
    /// Pairs of bf16, a vector of them at a time.
    // Allowed, not expected: tests use it everywhere.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Pairs,
}

/// What sums of levels begin with, so that `shift` is taken off each level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) shift: i32,
    /// [`super::words::Words::start`].
    pub(super) of: fn([i32; 2]) -> u32,
}

impl PartialEq for Start {
    /// On one machine, the same shift is made the same way.
    fn eq(&self, other: &Self) -> bool {
        self.shift == other.shift
    }
}

impl Eq for Start {}

impl Records {
    /// Numbers and words of one record.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Small(_) => (32, SMALL),
            Self::Affine => (256, AFFINE),
            Self::Signed(_) => (256, SIGNED),
            Self::Single(numbers) => (numbers, numbers),
            Self::Pairs => (32, 16),
        }
    }

    /// Words of a row.
    pub(super) fn row(self, columns: usize) -> usize {
        let (numbers, words) = self.block();
        columns.div_ceil(numbers) * words
    }

    /// Writes one row's records: whole blocks of integers, or floats with zeros after the last.
    pub(super) fn write(self, isa: Isa, x: &[f32], records: &mut [u32]) {
        write(isa, self, x, records);
    }
}

vectorized! {
    /// [`Records::write`], compiled as a whole: a block alone is too short to pay for a call.
    fn write(kind: Records, x: &[f32], records: &mut [u32]) {
        match kind {
            Records::Small(start) => {
                for (x, record) in x.as_chunks().0.iter().zip(records.chunks_exact_mut(SMALL)) {
                    let (head, bytes) = record.split_at_mut(2);
                    head[0] = round::<32>(x, bytes).to_bits();
                    head[1] = start.of(bytes);
                }
            }
            Records::Affine => {
                for (x, record) in x.as_chunks().0.iter().zip(records.chunks_exact_mut(AFFINE)) {
                    let (head, bytes) = record.split_at_mut(5);
                    head[0] = round::<256>(x, bytes).to_bits();
                    for (pair, bytes) in head[1..].iter_mut().zip(bytes.as_chunks::<16>().0) {
                        let [even, odd] = [&bytes[..8], &bytes[8..]].map(|bytes| {
                            let [a, b] = sums(bytes);
                            (a + b).cast_unsigned()
                        });
                        *pair = even & 0xffff | odd << 16;
                    }
                }
            }
            Records::Signed(start) => {
                for (x, record) in x.as_chunks().0.iter().zip(records.chunks_exact_mut(SIGNED)) {
                    let (head, bytes) = record.split_at_mut(17);
                    head[0] = round::<256>(x, bytes).to_bits();
                    for (head, bytes) in head[1..].iter_mut().zip(bytes.as_chunks::<4>().0) {
                        *head = start.of(bytes);
                    }
                }
            }
            Records::Single(_) => {
                for (word, x) in records.iter_mut().zip(x) {
                    *word = x.to_bits();
                }
                records[x.len()..].fill(0);
            }
            Records::Pairs => {
                records.fill(0);
                for (word, x) in records.iter_mut().zip(x.chunks(2)) {
                    *word = join(x[0], x.get(1).copied().unwrap_or(0.0));
                }
            }
        }
    }
}

impl Start {
    fn of(self, words: &[u32]) -> u32 {
        (self.of)(sums(words).map(|sum| -self.shift * sum))
    }
}

/// Sums of bytes 0 and 1, and of bytes 2 and 3, of at most 128 words.
#[inline(always)]
fn sums(words: &[u32]) -> [i32; 2] {
    // As bytes without a sign, 128 more each, both halves of a word are added up at once.
    let halves = words.iter().map(|word| {
        let bytes = word ^ 0x8080_8080;
        (bytes & 0x00ff_00ff) + (bytes >> 8 & 0x00ff_00ff)
    });
    let (halves, more) = (halves.sum::<u32>(), 2 * 128 * words.len() as i32);
    [halves & 0xffff, halves >> 16].map(|half| half.cast_signed() - more)
}

/// Rounds numbers to bytes, 127 for the largest, and gives what they count. A number that is not finite makes
/// that NaN or infinite, and with it what is multiplied by it NaN.
#[inline(always)]
fn round<const N: usize>(x: &[f32; N], words: &mut [u32]) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes have the order of their bits, with NaNs above all.
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    let scale = f32::from_bits(x.iter().map(magnitude).fold(0, u32::max)) / 127.0;
    let per = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // Of a scale too small to be inverted nothing is left.
    let per = if per.is_finite() { per } else { 0.0 };
    // All bytes first: word by word it would not be vectorized as well.
    let mut bytes = [0; N];
    for (byte, x) in bytes.iter_mut().zip(x) {
        *byte = (x * per + ROUND).to_bits() as u8;
    }
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    scale
}
