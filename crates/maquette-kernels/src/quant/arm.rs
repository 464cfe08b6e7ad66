//! Words on ARM: 128 bits with products of four bytes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::words::Words;
use crate::simd::Portable;

/// 128 bits with `sdot` (ARMv8.2's dot products).
pub(super) struct Dot;

/// Floats of half the size as floats.
///
/// # Safety
/// None: every 64-bit ARM has the instruction, for which Rust has no function yet.
#[inline(always)]
unsafe fn widened(halves: uint16x4_t) -> [f32; 4] {
    let floats: float32x4_t;
    // SAFETY: registers alone.
    unsafe {
        asm!(
            "fcvtl {to:v}.4s, {from:v}.4h",
            to = lateout(vreg) floats,
            from = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    array(floats)
}

#[inline(always)]
fn array(floats: float32x4_t) -> [f32; 4] {
    // SAFETY: the same sixteen bytes, in the same order.
    unsafe { std::mem::transmute(floats) }
}

// SAFETY (of each body): the trait's contract gives the instruction set and valid pointers; no load asks for
// more than that.
impl Words for Dot {
    type V = uint32x4_t;
    type Floats = Portable;
    /// Less 128: the product is of signed bytes, and nothing is left to be taken off.
    type Byte = uint32x4_t;
    type ByteSum = uint32x4_t;
    const BYTE_SHIFT: i32 = 0;

    #[inline(always)]
    unsafe fn columns(from: *const u8, stride: usize) -> [uint32x4_t; 4] {
        unsafe {
            let a = vreinterpretq_u32_u8(vld1q_u8(from));
            let b = vreinterpretq_u32_u8(vld1q_u8(from.add(stride)));
            let c = vreinterpretq_u32_u8(vld1q_u8(from.add(2 * stride)));
            let d = vreinterpretq_u32_u8(vld1q_u8(from.add(3 * stride)));
            let even = vreinterpretq_u64_u32(vtrn1q_u32(a, b));
            let odd = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
            let even2 = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
            let odd2 = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
            [
                vreinterpretq_u32_u64(vtrn1q_u64(even, even2)),
                vreinterpretq_u32_u64(vtrn1q_u64(odd, odd2)),
                vreinterpretq_u32_u64(vtrn2q_u64(even, even2)),
                vreinterpretq_u32_u64(vtrn2q_u64(odd, odd2)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn halves(from: *const u8, stride: usize) -> [f32; 4] {
        unsafe {
            let mut halves = [0u16; 4];
            for (i, half) in halves.iter_mut().enumerate() {
                *half = from.add(i * stride).cast::<u16>().read_unaligned();
            }
            widened(vld1_u16(halves.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn lower_halves(words: uint32x4_t) -> [f32; 4] {
        unsafe { widened(vmovn_u32(words)) }
    }
    #[inline(always)]
    unsafe fn splat(word: u32) -> uint32x4_t {
        unsafe { vdupq_n_u32(word) }
    }
    #[inline(always)]
    unsafe fn and(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vorrq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { veorq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn right<const BITS: u32>(words: uint32x4_t) -> uint32x4_t {
        unsafe { vshlq_u32(words, vdupq_n_s32(-(BITS as i32))) }
    }
    #[inline(always)]
    unsafe fn left<const BITS: u32>(words: uint32x4_t) -> uint32x4_t {
        unsafe { vshlq_u32(words, vdupq_n_s32(BITS as i32)) }
    }
    #[inline(always)]
    unsafe fn add(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vaddq_u32(a, b) }
    }
    #[inline(always)]
    unsafe fn float(words: uint32x4_t) -> [f32; 4] {
        array(unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(words)) })
    }
    fn start(halves: [i32; 2]) -> u32 {
        (halves[0] + halves[1]).cast_unsigned()
    }
    /// Bytes of `w` are below 128, and so the same signed.
    #[inline(always)]
    unsafe fn dot(sum: uint32x4_t, w: uint32x4_t, x: uint32x4_t) -> uint32x4_t {
        let mut sum = sum;
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
    #[inline(always)]
    unsafe fn total(sum: uint32x4_t) -> uint32x4_t {
        sum
    }
    #[inline(always)]
    unsafe fn scaled(sum: uint32x4_t, scale: uint32x4_t) -> uint32x4_t {
        unsafe { vmulq_u32(sum, scale) }
    }
    #[inline(always)]
    unsafe fn scale<const I: u32>(words: uint32x4_t) -> uint32x4_t {
        unsafe {
            let upper = vshlq_u32(words, vdupq_n_s32(-(8 * I as i32)));
            vandq_u32(upper, vdupq_n_u32(255))
        }
    }
    #[inline(always)]
    unsafe fn signed_scale<const I: u32>(words: uint32x4_t) -> uint32x4_t {
        unsafe {
            let upper = vshlq_u32(words, vdupq_n_s32(24 - 8 * I as i32));
            vreinterpretq_u32_s32(vshrq_n_s32::<24>(vreinterpretq_s32_u32(upper)))
        }
    }
    #[inline(always)]
    unsafe fn pair<const I: u32>(words: uint32x4_t) -> uint32x4_t {
        unsafe {
            let two = vshlq_u32(words, vdupq_n_s32(-(16 * I as i32)));
            let first = vandq_u32(two, vdupq_n_u32(0xff));
            let second = vandq_u32(vshlq_n_u32::<8>(two), vdupq_n_u32(0xff_0000));
            vorrq_u32(first, second)
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe {
            let (a, b) = (vreinterpretq_s16_u32(a), vreinterpretq_s16_u32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vreinterpretq_u32_s32(vpaddq_s32(low, vmull_high_s16(a, b)))
        }
    }
    #[inline(always)]
    unsafe fn bytes(words: uint32x4_t) -> uint32x4_t {
        unsafe { veorq_u32(words, vdupq_n_u32(0x8080_8080)) }
    }
    #[inline(always)]
    unsafe fn start_bytes(start: uint32x4_t) -> uint32x4_t {
        start
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: uint32x4_t, w: uint32x4_t, x: uint32x4_t) -> uint32x4_t {
        unsafe { Self::dot(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn total_bytes(sum: uint32x4_t) -> uint32x4_t {
        sum
    }
}
