//! The vector instructions the kernels are written against, chosen once at run time.
//!
//! A kernel is one generic function over [`Lanes`]. It is compiled once per instruction set inside
//! a function carrying the matching `#[target_feature]`, into which everything here is inlined.

use std::sync::OnceLock;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// 512-bit vectors (F, DQ, BW and VL, as every machine since Skylake-X has), 32 registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256-bit vectors with fused multiply-add, 16 registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Plain arrays, left to the compiler; 128-bit NEON on ARM.
    Portable,
}

impl Isa {
    /// The widest instruction set of this machine.
    pub(crate) fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// Every instruction set this machine can run, widest first; never empty.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            // Everything the kernels' `#[target_feature]` lists name.
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                found.push(Self::Avx512);
            }
            if avx2 {
                found.push(Self::Avx2);
            }
        }
        found.push(Self::Portable);
        found
    }

    /// Whether this machine multiplies pairs of bf16 (AVX512-BF16: Zen 4, Cooper Lake and later).
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_bf16() -> bool {
        is_x86_feature_detected!("avx512bf16")
    }

    /// Numbers per vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
            Self::Portable => 4,
        }
    }
}

/// A vector of `f32`.
///
/// # Safety
/// Every method may execute instructions of its instruction set: the caller must be running on a
/// machine that has it. `load` and `store` touch `N` floats from the pointer on, unaligned.
pub(crate) trait Lanes {
    type V: Copy;
    /// Some lanes of a vector.
    type Mask: Copy;
    const N: usize;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `count` floats, fewer than `N`, and zeros after them.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V;
    /// The lanes from `first` to `end`, at most `N`.
    unsafe fn between(first: usize, end: usize) -> Self::Mask;
    /// Of a mask's lanes those at even places.
    unsafe fn even(lanes: Self::Mask) -> Self::Mask;
    /// Of the vector at `from` the lanes of the mask, which alone are read, and zeros.
    unsafe fn load_lanes(from: *const f32, lanes: Self::Mask) -> Self::V;
    /// The first `count` numbers, fewer than `N`.
    unsafe fn store_first(to: *mut f32, value: Self::V, count: usize);
    /// With zeros from place `count` on, which is below `N`.
    unsafe fn first(a: Self::V, count: usize) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`
    unsafe fn neg_mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` where either is a NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where either is a NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// The number whose exponent is the lowest eight bits of `a`, and nothing else: `2^(bits - 127)`.
    unsafe fn exponent(a: Self::V) -> Self::V;
    /// Of sixteen numbers those whose places are the lowest four bits of `places`.
    unsafe fn choose(places: Self::V, of: &[f32; 16]) -> Self::V;
    /// `yes` where `a > b`, else `no`, also where either is a NaN.
    unsafe fn greater(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `yes` where `a` is a NaN, else `no`.
    unsafe fn nan(a: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Of `a` and then `b`, the numbers at even places, and those at odd ones.
    unsafe fn unzip(a: Self::V, b: Self::V) -> [Self::V; 2];
    /// What [`Self::unzip`] takes apart: numbers of `a` and `b` in turn.
    unsafe fn zip(a: Self::V, b: Self::V) -> [Self::V; 2];
    /// Of each pair of bf16, the one in the upper half.
    unsafe fn upper(pairs: Self::V) -> Self::V;
    /// Of each pair of bf16, the one in the lower half.
    unsafe fn lower(pairs: Self::V) -> Self::V;
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    pub(crate) struct Avx512;

    // SAFETY (of each body): the trait's contract gives the instruction set and valid pointers;
    // the unaligned forms ask for nothing more.
    impl Lanes for Avx512 {
        type V = __m512;
        type Mask = __mmask16;
        const N: usize = 16;
        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, value: __m512) {
            unsafe { _mm512_storeu_ps(to, value) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps((1 << count) - 1, from) }
        }
        #[inline(always)]
        unsafe fn between(first: usize, end: usize) -> __mmask16 {
            let below = |lane: usize| (1u32 << lane) - 1;
            (below(end) & !below(first)) as __mmask16
        }
        #[inline(always)]
        unsafe fn even(lanes: __mmask16) -> __mmask16 {
            lanes & 0x5555
        }
        #[inline(always)]
        unsafe fn load_lanes(from: *const f32, lanes: __mmask16) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(lanes, from) }
        }
        #[inline(always)]
        unsafe fn store_first(to: *mut f32, value: __m512, count: usize) {
            unsafe { _mm512_mask_storeu_ps(to, (1 << count) - 1, value) }
        }
        #[inline(always)]
        unsafe fn first(a: __m512, count: usize) -> __m512 {
            unsafe { _mm512_maskz_mov_ps((1 << count) - 1, a) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fnmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn abs(a: __m512) -> __m512 {
            unsafe { _mm512_abs_ps(a) }
        }
        #[inline(always)]
        unsafe fn exponent(a: __m512) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))) }
        }
        #[inline(always)]
        unsafe fn choose(places: __m512, of: &[f32; 16]) -> __m512 {
            unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(places), Self::load(of.as_ptr())) }
        }
        #[inline(always)]
        unsafe fn greater(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), no, yes) }
        }
        #[inline(always)]
        unsafe fn nan(a: __m512, yes: __m512, no: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), no, yes) }
        }
        #[inline(always)]
        unsafe fn unzip(a: __m512, b: __m512) -> [__m512; 2] {
            unsafe {
                // Places of the sixteen even numbers of 32; the odd ones follow them.
                let even =
                    _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                [
                    _mm512_permutex2var_ps(a, even, b),
                    _mm512_permutex2var_ps(a, odd, b),
                ]
            }
        }
        #[inline(always)]
        unsafe fn zip(a: __m512, b: __m512) -> [__m512; 2] {
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
                [
                    _mm512_permutex2var_ps(a, low, b),
                    _mm512_permutex2var_ps(a, high, b),
                ]
            }
        }
        #[inline(always)]
        unsafe fn upper(pairs: __m512) -> __m512 {
            unsafe {
                let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
                _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), mask))
            }
        }
        #[inline(always)]
        unsafe fn lower(pairs: __m512) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))) }
        }
    }

    pub(crate) struct Avx2;

    /// All bits in the first `count` places of eight, none in the others.
    ///
    /// # Safety
    /// The machine has AVX2, and `count` is at most eight.
    #[inline(always)]
    unsafe fn first_mask(count: usize) -> __m256i {
        const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: eight numbers of sixteen, from the eighth or an earlier one on.
        unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast()) }
    }

    // SAFETY (of each body): as above.
    impl Lanes for Avx2 {
        type V = __m256;
        type Mask = __m256i;
        const N: usize = 8;
        #[inline(always)]
        unsafe fn splat(value: f32) -> __m256 {
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, value: __m256) {
            unsafe { _mm256_storeu_ps(to, value) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(from, first_mask(count)) }
        }
        #[inline(always)]
        unsafe fn between(first: usize, end: usize) -> __m256i {
            unsafe { _mm256_andnot_si256(first_mask(first), first_mask(end)) }
        }
        #[inline(always)]
        unsafe fn even(lanes: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(lanes, _mm256_setr_epi32(-1, 0, -1, 0, -1, 0, -1, 0)) }
        }
        #[inline(always)]
        unsafe fn load_lanes(from: *const f32, lanes: __m256i) -> __m256 {
            unsafe { _mm256_maskload_ps(from, lanes) }
        }
        #[inline(always)]
        unsafe fn store_first(to: *mut f32, value: __m256, count: usize) {
            unsafe { _mm256_maskstore_ps(to, first_mask(count), value) }
        }
        #[inline(always)]
        unsafe fn first(a: __m256, count: usize) -> __m256 {
            unsafe { _mm256_and_ps(a, _mm256_castsi256_ps(first_mask(count))) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn neg_mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fnmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn abs(a: __m256) -> __m256 {
            unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        }
        #[inline(always)]
        unsafe fn exponent(a: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))) }
        }
        #[inline(always)]
        unsafe fn choose(places: __m256, of: &[f32; 16]) -> __m256 {
            unsafe {
                let places = _mm256_castps_si256(places);
                let low = _mm256_permutevar8x32_ps(Self::load(of.as_ptr()), places);
                let high = _mm256_permutevar8x32_ps(Self::load(of.as_ptr().add(8)), places);
                // The fourth bit becomes the sign, which chooses between halves.
                let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places));
                _mm256_blendv_ps(low, high, half)
            }
        }
        #[inline(always)]
        unsafe fn greater(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) }
        }
        #[inline(always)]
        unsafe fn nan(a: __m256, yes: __m256, no: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)) }
        }
        #[inline(always)]
        unsafe fn unzip(a: __m256, b: __m256) -> [__m256; 2] {
            unsafe {
                // Within halves of the vectors first, then the middle quarters change places.
                let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
                let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
                [
                    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even)),
                    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn zip(a: __m256, b: __m256) -> [__m256; 2] {
            unsafe {
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                [
                    _mm256_permute2f128_ps::<0x20>(low, high),
                    _mm256_permute2f128_ps::<0x31>(low, high),
                ]
            }
        }
        #[inline(always)]
        unsafe fn upper(pairs: __m256) -> __m256 {
            unsafe {
                let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), mask))
            }
        }
        #[inline(always)]
        unsafe fn lower(pairs: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))) }
        }
    }
}

/// Four floats in an array.
pub(crate) struct Portable;

// SAFETY (of each body): arrays of four floats, read and written unaligned through pointers the
// caller vouches for; no special instruction is used.
impl Lanes for Portable {
    type V = [f32; 4];
    type Mask = [bool; 4];
    const N: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; 4]) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> [f32; 4] {
        let mut a = [0.0; 4];
        unsafe { from.copy_to_nonoverlapping(a.as_mut_ptr(), count) };
        a
    }
    #[inline(always)]
    unsafe fn between(first: usize, end: usize) -> [bool; 4] {
        std::array::from_fn(|lane| (first..end).contains(&lane))
    }
    #[inline(always)]
    unsafe fn even([first, _, third, _]: [bool; 4]) -> [bool; 4] {
        [first, false, third, false]
    }
    #[inline(always)]
    unsafe fn load_lanes(from: *const f32, lanes: [bool; 4]) -> [f32; 4] {
        std::array::from_fn(|lane| match lanes[lane] {
            // SAFETY: the caller's.
            true => unsafe { *from.wrapping_add(lane) },
            false => 0.0,
        })
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: [f32; 4], count: usize) {
        unsafe { to.copy_from_nonoverlapping(value.as_ptr(), count) }
    }
    #[inline(always)]
    unsafe fn first(mut a: [f32; 4], count: usize) -> [f32; 4] {
        a[count..].fill(0.0);
        a
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], mut c: [f32; 4]) -> [f32; 4] {
        for i in 0..4 {
            // Without a fused instruction `f32::mul_add` is a library call per number.
            c[i] = if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            };
        }
        c
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn neg_mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // SAFETY: no instruction of its own.
        unsafe { Self::mul_add(a.map(|a| -a), b, c) }
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: [f32; 4]) -> [f32; 4] {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn exponent(a: [f32; 4]) -> [f32; 4] {
        a.map(|a| f32::from_bits(a.to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn choose(places: [f32; 4], of: &[f32; 16]) -> [f32; 4] {
        places.map(|place| of[(place.to_bits() & 15) as usize])
    }
    #[inline(always)]
    unsafe fn greater(a: [f32; 4], b: [f32; 4], yes: [f32; 4], no: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if a[i] > b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    unsafe fn nan(a: [f32; 4], yes: [f32; 4], no: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| if a[i].is_nan() { yes[i] } else { no[i] })
    }
    #[inline(always)]
    unsafe fn unzip(a: [f32; 4], b: [f32; 4]) -> [[f32; 4]; 2] {
        [[a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]]]
    }
    #[inline(always)]
    unsafe fn zip(a: [f32; 4], b: [f32; 4]) -> [[f32; 4]; 2] {
        [[a[0], b[0], a[1], b[1]], [a[2], b[2], a[3], b[3]]]
    }
    #[inline(always)]
    unsafe fn upper(pairs: [f32; 4]) -> [f32; 4] {
        pairs.map(|pair| f32::from_bits(pair.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn lower(pairs: [f32; 4]) -> [f32; 4] {
        pairs.map(|pair| f32::from_bits(pair.to_bits() << 16))
    }
}

/// Asks for `bytes` that are read soon: many short streams are more than a processor foresees.
#[inline(always)]
pub(crate) fn prefetch(from: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        hint::<SECOND>(from.wrapping_add(64 * line));
    }
}

/// Where memory is read from front to back, asks for what follows lines of `from`: [`AHEAD`], so that it comes from
/// memory in time, and 2 KiB ahead, so that the first cache has it. See [`asks`].
#[inline(always)]
pub(crate) fn ask(from: *const u8, lines: std::ops::Range<usize>) {
    for line in lines {
        hint::<FIRST>(from.wrapping_add((2 << 10) + 64 * line));
        hint::<SECOND>(from.wrapping_add(AHEAD + 64 * line));
    }
}

/// Bytes that [`ask`] asks ahead.
pub(crate) const AHEAD: usize = 8 << 10;

/// Into the first cache, as `_MM_HINT_T0` says.
const FIRST: i32 = 3;
/// Into the second, as `_MM_HINT_T1` does.
const SECOND: i32 = 2;

/// Asks for a line of a cache.
#[inline(always)]
fn hint<const CACHE: i32>(line: *const u8) {
    // SAFETY: a hint, which may be given for any address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<CACHE>(line.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Whether this processor wants to be asked at all.
///
/// Measured: Intel's servers (Emerald Rapids) read a quarter to a third more per second when they are asked 8 KiB
/// ahead, and 3 to 10 % more than that when asked again 2 KiB ahead. On AMD's (Zen 4) a single stream with nothing
/// asked for was faster than four rows at once with the next ones asked for; asking along a single stream was not
/// tried there.
pub(crate) fn asks() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static INTEL: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *INTEL.get_or_init(|| {
            let vendor = std::arch::x86_64::__cpuid(0);
            let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
            vendor.as_flattened() == b"GenuineIntel"
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
