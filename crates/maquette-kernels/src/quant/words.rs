//! The vectors that weights are multiplied in: words of four bytes, one of each row.
//!
//! Blocks of as many rows as a vector has words are turned, in registers, so that a vector holds the
//! same four bytes of every row. A number of `x` is then multiplied with all rows at once, and each
//! row's sum stays in its own lane: nothing is added across lanes, and a row's result does not depend
//! on what else is computed.

use half::f16;

use crate::simd::{Lanes, Portable};

/// Vectors of [`Lanes::N`] words, and the products of bytes in them.
///
/// A *sum* is whatever holds the products of a word until they are [`Words::total`]led.
///
/// # Safety
/// Every method may execute instructions of its instruction set: the caller must be running on a
/// machine that has it. Loads touch what they say from the pointer on, unaligned.
pub(super) trait Words {
    type V: Copy;
    /// As many floats as words.
    type Floats: Lanes;
    /// A vector of bytes over their whole range, in the form that is multiplied.
    type Byte: Copy;
    /// Their sums.
    type ByteSum: Copy;
    /// What is taken off bytes by [`Words::start_bytes`]: 128, as many for each plane, or none where
    /// [`Words::bytes`] takes it off.
    const BYTE_SHIFT: i32;

    /// Sixteen bytes of each row, rows `stride` apart, as four vectors of words.
    unsafe fn columns(from: *const u8, stride: usize) -> [Self::V; 4];
    /// The 16-bit float at the start of each row.
    unsafe fn halves(from: *const u8, stride: usize) -> Float<Self>;
    /// The 16-bit float in the lower half of each word.
    unsafe fn lower_halves(words: Self::V) -> Float<Self>;
    unsafe fn splat(word: u32) -> Self::V;
    unsafe fn and(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn xor(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn right<const BITS: u32>(words: Self::V) -> Self::V;
    unsafe fn left<const BITS: u32>(words: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Signed words as floats.
    unsafe fn float(words: Self::V) -> Float<Self>;

    /// A sum to start from, of what bytes 0 and 1, and bytes 2 and 3 of all words are to start from.
    fn start(halves: [i32; 2]) -> u32;
    /// Adds the products of bytes `w` below 128 and signed bytes `x`. A sum holds 2^15 for each half
    /// of a word in the end, whatever lies between; two neighbouring products may not exceed it.
    unsafe fn dot(sum: Self::V, w: Self::V, x: Self::V) -> Self::V;
    /// Sums as words.
    unsafe fn total(sum: Self::V) -> Self::V;
    /// Totals times [`Words::scale`]s.
    unsafe fn scaled(sum: Self::V, scale: Self::V) -> Self::V;
    /// Byte `I` of each word, unsigned, as a factor of [`Words::scaled`].
    unsafe fn scale<const I: u32>(words: Self::V) -> Self::V;
    /// The same, signed.
    unsafe fn signed_scale<const I: u32>(words: Self::V) -> Self::V;
    /// Bytes `2 I` and `2 I + 1` of each word, unsigned, as its 16-bit halves.
    unsafe fn pair<const I: u32>(words: Self::V) -> Self::V;
    /// The sums of products of signed 16-bit halves.
    unsafe fn dot_pairs(a: Self::V, b: Self::V) -> Self::V;

    /// Prepares bytes of any value.
    unsafe fn bytes(words: Self::V) -> Self::Byte;
    /// Begins with a [`Words::start`] for bytes less [`Words::BYTE_SHIFT`].
    unsafe fn start_bytes(start: Self::V) -> Self::ByteSum;
    /// As [`Words::dot`].
    unsafe fn dot_bytes(sum: Self::ByteSum, w: Self::Byte, x: Self::V) -> Self::ByteSum;
    /// As [`Words::total`].
    unsafe fn total_bytes(sum: Self::ByteSum) -> Self::V;
}

/// A vector of floats beside the words of `W`.
pub(super) type Float<W> = <<W as Words>::Floats as Lanes>::V;

type Four = [u32; 4];

fn each(a: Four, b: Four, f: impl Fn(u32, u32) -> u32) -> Four {
    std::array::from_fn(|i| f(a[i], b[i]))
}

fn half(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

// SAFETY (of each body): arrays, and pointers the caller vouches for; no special instruction is used.
impl Words for Portable {
    type V = Four;
    type Floats = Self;
    type Byte = Four;
    type ByteSum = Four;
    const BYTE_SHIFT: i32 = 128;

    #[inline(always)]
    unsafe fn columns(from: *const u8, stride: usize) -> [Four; 4] {
        let rows: [[[u8; 4]; 4]; 4] =
            std::array::from_fn(|i| unsafe { from.add(i * stride).cast::<[[u8; 4]; 4]>().read() });
        std::array::from_fn(|j| std::array::from_fn(|i| u32::from_le_bytes(rows[i][j])))
    }
    #[inline(always)]
    unsafe fn halves(from: *const u8, stride: usize) -> [f32; 4] {
        std::array::from_fn(|i| {
            let bytes = unsafe { from.add(i * stride).cast::<[u8; 2]>().read() };
            f16::from_le_bytes(bytes).to_f32()
        })
    }
    #[inline(always)]
    unsafe fn lower_halves(words: Four) -> [f32; 4] {
        words.map(half)
    }
    #[inline(always)]
    unsafe fn splat(word: u32) -> Four {
        [word; 4]
    }
    #[inline(always)]
    unsafe fn and(a: Four, b: Four) -> Four {
        each(a, b, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(a: Four, b: Four) -> Four {
        each(a, b, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn xor(a: Four, b: Four) -> Four {
        each(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: Four) -> Four {
        words.map(|word| word >> BITS)
    }
    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: Four) -> Four {
        words.map(|word| word << BITS)
    }
    #[inline(always)]
    unsafe fn add(a: Four, b: Four) -> Four {
        each(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn float(words: Four) -> [f32; 4] {
        words.map(|word| word.cast_signed() as f32)
    }
    fn start(halves: [i32; 2]) -> u32 {
        (halves[0] + halves[1]).cast_unsigned()
    }
    #[inline(always)]
    unsafe fn dot(sum: Four, w: Four, x: Four) -> Four {
        std::array::from_fn(|i| {
            let pairs = w[i].to_le_bytes().into_iter().zip(x[i].to_le_bytes());
            let products = pairs.map(|(w, x)| i32::from(w) * i32::from(x.cast_signed()));
            sum[i].wrapping_add(products.sum::<i32>().cast_unsigned())
        })
    }
    #[inline(always)]
    unsafe fn total(sum: Four) -> Four {
        sum
    }
    #[inline(always)]
    unsafe fn scaled(sum: Four, scale: Four) -> Four {
        each(sum, scale, u32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn scale<const I: u32>(words: Four) -> Four {
        words.map(|word| word >> (8 * I) & 255)
    }
    #[inline(always)]
    unsafe fn signed_scale<const I: u32>(words: Four) -> Four {
        words.map(|word| ((word >> (8 * I)) as i8 as i32).cast_unsigned())
    }
    #[inline(always)]
    unsafe fn pair<const I: u32>(words: Four) -> Four {
        words.map(|word| word >> (16 * I) & 255 | (word >> (16 * I + 8) & 255) << 16)
    }
    #[inline(always)]
    unsafe fn dot_pairs(a: Four, b: Four) -> Four {
        let halves = |word: u32| [word as i16, (word >> 16) as i16].map(i32::from);
        each(a, b, |a, b| {
            let (a, b) = (halves(a), halves(b));
            (a[0] * b[0] + a[1] * b[1]).cast_unsigned()
        })
    }
    #[inline(always)]
    unsafe fn bytes(words: Four) -> Four {
        words
    }
    #[inline(always)]
    unsafe fn start_bytes(start: Four) -> Four {
        start
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Four, w: Four, x: Four) -> Four {
        unsafe { Self::dot(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn total_bytes(sum: Four) -> Four {
        sum
    }
}
