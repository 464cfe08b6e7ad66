//! Words on x86-64: AVX2, and the byte products of VNNI in 256 and 512 bits.

use std::arch::x86_64::*;

use super::words::Words;
use crate::simd::{Avx2, Avx512};

/// 256 bits with `vpdpbusd` (AVX-VNNI).
pub(super) struct AvxVnni;

/// 512 bits with `vpdpbusd` (AVX512-VNNI).
pub(super) struct Vnni;

/// What 256-bit vectors share.
macro_rules! words_256 {
    () => {
        type V = __m256i;
        type Floats = Avx2;

        #[inline(always)]
        unsafe fn columns(from: *const u8, stride: usize) -> [__m256i; 4] {
            unsafe {
                let a = two_rows(from, stride, 0);
                let b = two_rows(from, stride, 1);
                let c = two_rows(from, stride, 2);
                let d = two_rows(from, stride, 3);
                let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                let (low2, high2) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                [
                    _mm256_unpacklo_epi64(low, low2),
                    _mm256_unpackhi_epi64(low, low2),
                    _mm256_unpacklo_epi64(high, high2),
                    _mm256_unpackhi_epi64(high, high2),
                ]
            }
        }
        #[inline(always)]
        unsafe fn halves(from: *const u8, stride: usize) -> __m256 {
            unsafe {
                let mut halves = [0i16; 8];
                for (i, half) in halves.iter_mut().enumerate() {
                    *half = from.add(i * stride).cast::<i16>().read_unaligned();
                }
                let [a, b, c, d, e, f, g, h] = halves;
                _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
            }
        }
        #[inline(always)]
        unsafe fn lower_halves(words: __m256i) -> __m256 {
            unsafe {
                let lower = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
                let packed = _mm256_packus_epi32(lower, lower);
                let packed = _mm256_permute4x64_epi64::<0b1000>(packed);
                _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
            }
        }
        #[inline(always)]
        unsafe fn splat(word: u32) -> __m256i {
            unsafe { _mm256_set1_epi32(word.cast_signed()) }
        }
        #[inline(always)]
        unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_or_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_xor_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn right<const BITS: u32>(words: __m256i) -> __m256i {
            unsafe { _mm256_srl_epi32(words, _mm_cvtsi32_si128(BITS as i32)) }
        }
        #[inline(always)]
        unsafe fn left<const BITS: u32>(words: __m256i) -> __m256i {
            unsafe { _mm256_sll_epi32(words, _mm_cvtsi32_si128(BITS as i32)) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn float(words: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(words) }
        }
        #[inline(always)]
        unsafe fn pair<const I: u32>(words: __m256i) -> __m256i {
            unsafe {
                _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(load(&PAIRS[I as usize])))
            }
        }
        #[inline(always)]
        unsafe fn dot_pairs(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_madd_epi16(a, b) }
        }
    };
}

// Closures are compiled without the instructions of the function they stand in, which costs a call for
// each where they are not inlined: what calls intrinsics here is a function that always is.

/// 16 bytes of rows `i` and `i + 4`.
///
/// # Safety
/// As [`Words::columns`].
#[inline(always)]
unsafe fn two_rows(from: *const u8, stride: usize, i: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm_loadu_si128(from.add(i * stride).cast());
        let high = _mm_loadu_si128(from.add((i + 4) * stride).cast());
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    }
}

/// 16 bytes of rows `i`, `i + 4`, `i + 8` and `i + 12`.
///
/// # Safety
/// As [`Words::columns`].
#[inline(always)]
unsafe fn four_rows(from: *const u8, stride: usize, i: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let low = two_rows(from, stride, i);
        let high = two_rows(from, stride, i + 8);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// # Safety
/// None: every x86-64 has the instruction.
#[inline(always)]
unsafe fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes of as many.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Positions of a byte shuffle that makes of each of four words what `word` says, a position in the word
/// or, above it, zero.
const fn shuffle(word: [u8; 4]) -> [u8; 16] {
    let mut at = [0; 16];
    let mut i = 0;
    while i < 16 {
        let byte = word[i % 4];
        at[i] = if byte < 4 {
            i as u8 / 4 * 4 + byte
        } else {
            128
        };
        i += 1;
    }
    at
}

/// 16-bit halves of bytes `2 i` and `2 i + 1`.
const PAIRS: [[u8; 16]; 2] = [shuffle([0, 9, 1, 9]), shuffle([2, 9, 3, 9])];

/// Byte `i` twice, in the lower bytes of both halves and in the upper ones.
const TWICE: [[[u8; 16]; 4]; 2] = [
    [
        shuffle([0, 9, 0, 9]),
        shuffle([1, 9, 1, 9]),
        shuffle([2, 9, 2, 9]),
        shuffle([3, 9, 3, 9]),
    ],
    [
        shuffle([9, 0, 9, 0]),
        shuffle([9, 1, 9, 1]),
        shuffle([9, 2, 9, 2]),
        shuffle([9, 3, 9, 3]),
    ],
];

// SAFETY (of each body, here and below): the trait's contract gives the instruction set and valid
// pointers; the unaligned forms ask for nothing more.
//
// Products of bytes are summed in pairs to 16 bits, and these in 16 bits, which holds them by the
// trait's contract; bytes over their whole range are two planes of four bits, 16 high + low.
impl Words for Avx2 {
    words_256!();
    type Byte = [__m256i; 2];
    type ByteSum = [__m256i; 2];
    const BYTE_SHIFT: i32 = 8;

    fn start(halves: [i32; 2]) -> u32 {
        halves[0].cast_unsigned() & 0xffff | halves[1].cast_unsigned() << 16
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn total(sum: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) }
    }
    #[inline(always)]
    unsafe fn scaled(sum: __m256i, scale: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(sum, scale) }
    }
    #[inline(always)]
    unsafe fn scale<const I: u32>(words: __m256i) -> __m256i {
        unsafe {
            _mm256_shuffle_epi8(
                words,
                _mm256_broadcastsi128_si256(load(&TWICE[0][I as usize])),
            )
        }
    }
    #[inline(always)]
    unsafe fn signed_scale<const I: u32>(words: __m256i) -> __m256i {
        unsafe {
            let upper = _mm256_shuffle_epi8(
                words,
                _mm256_broadcastsi128_si256(load(&TWICE[1][I as usize])),
            );
            _mm256_srai_epi16::<8>(upper)
        }
    }
    #[inline(always)]
    unsafe fn bytes(words: __m256i) -> [__m256i; 2] {
        unsafe {
            let low = _mm256_set1_epi8(15);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(words), low);
            [high, _mm256_and_si256(words, low)]
        }
    }
    #[inline(always)]
    unsafe fn start_bytes(start: __m256i) -> [__m256i; 2] {
        unsafe { [start, _mm256_setzero_si256()] }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: [__m256i; 2], w: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        unsafe { [Self::dot(sum[0], w[0], x), Self::dot(sum[1], w[1], x)] }
    }
    #[inline(always)]
    unsafe fn total_bytes(sum: [__m256i; 2]) -> __m256i {
        unsafe {
            let high = _mm256_madd_epi16(sum[0], _mm256_set1_epi16(16));
            _mm256_add_epi32(high, Self::total(sum[1]))
        }
    }
}

/// What instruction sets with products of four bytes share.
macro_rules! words_vnni {
    ($v:ty, $dot:ident, $multiply:ident, $right:ident) => {
        type Byte = $v;
        type ByteSum = $v;
        const BYTE_SHIFT: i32 = 128;

        fn start(halves: [i32; 2]) -> u32 {
            (halves[0] + halves[1]).cast_unsigned()
        }
        #[inline(always)]
        unsafe fn dot(sum: $v, w: $v, x: $v) -> $v {
            unsafe { $dot(sum, w, x) }
        }
        #[inline(always)]
        unsafe fn total(sum: $v) -> $v {
            sum
        }
        #[inline(always)]
        unsafe fn scaled(sum: $v, scale: $v) -> $v {
            unsafe { $multiply(sum, scale) }
        }
        #[inline(always)]
        unsafe fn scale<const I: u32>(words: $v) -> $v {
            unsafe {
                let low = Self::splat(255);
                match I {
                    0 => Self::and(words, low),
                    1 => Self::and(Self::right::<8>(words), low),
                    2 => Self::and(Self::right::<16>(words), low),
                    _ => Self::right::<24>(words),
                }
            }
        }
        #[inline(always)]
        unsafe fn signed_scale<const I: u32>(words: $v) -> $v {
            unsafe {
                $right::<24>(match I {
                    0 => Self::left::<24>(words),
                    1 => Self::left::<16>(words),
                    2 => Self::left::<8>(words),
                    _ => words,
                })
            }
        }
        #[inline(always)]
        unsafe fn bytes(words: $v) -> $v {
            words
        }
        #[inline(always)]
        unsafe fn start_bytes(start: $v) -> $v {
            start
        }
        #[inline(always)]
        unsafe fn dot_bytes(sum: $v, w: $v, x: $v) -> $v {
            unsafe { $dot(sum, w, x) }
        }
        #[inline(always)]
        unsafe fn total_bytes(sum: $v) -> $v {
            sum
        }
    };
}

impl Words for AvxVnni {
    words_256!();
    words_vnni!(
        __m256i,
        _mm256_dpbusd_avx_epi32,
        _mm256_mullo_epi32,
        _mm256_srai_epi32
    );
}

impl Words for Vnni {
    type V = __m512i;
    type Floats = Avx512;

    #[inline(always)]
    unsafe fn columns(from: *const u8, stride: usize) -> [__m512i; 4] {
        unsafe {
            let a = four_rows(from, stride, 0);
            let b = four_rows(from, stride, 1);
            let c = four_rows(from, stride, 2);
            let d = four_rows(from, stride, 3);
            let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (low2, high2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(low, low2),
                _mm512_unpackhi_epi64(low, low2),
                _mm512_unpacklo_epi64(high, high2),
                _mm512_unpackhi_epi64(high, high2),
            ]
        }
    }
    #[inline(always)]
    unsafe fn halves(from: *const u8, stride: usize) -> __m512 {
        unsafe {
            let mut halves = [0i16; 16];
            for (i, half) in halves.iter_mut().enumerate() {
                *half = from.add(i * stride).cast::<i16>().read_unaligned();
            }
            _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()))
        }
    }
    #[inline(always)]
    unsafe fn lower_halves(words: __m512i) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)) }
    }
    #[inline(always)]
    unsafe fn splat(word: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<BITS>(words) }
    }
    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<BITS>(words) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn float(words: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(words) }
    }
    #[inline(always)]
    unsafe fn pair<const I: u32>(words: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(load(&PAIRS[I as usize]))) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_madd_epi16(a, b) }
    }
    words_vnni!(
        __m512i,
        _mm512_dpbusd_epi32,
        _mm512_mullo_epi32,
        _mm512_srai_epi32
    );
}
