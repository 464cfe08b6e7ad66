//! The innermost loop: a tile of the product that stays in registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Lanes, Portable};

/// `depth` steps of the reduction for one tile; see [`Step`].
pub(super) type Tile = unsafe fn(&Step);

/// One tile: `out[i][j] = sum over steps of left[i][step] * right[step][j]`.
pub(super) struct Step {
    pub(super) left: *const u32,
    /// Elements between rows and between steps of `left`.
    pub(super) strides: [usize; 2],
    pub(super) right: *const u32,
    pub(super) right_step: usize,
    pub(super) depth: usize,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    pub(super) add: bool,
}

/// The innermost multiplication.
pub(crate) trait Multiply<L: Lanes> {
    /// # Safety
    /// The machine has the instructions.
    unsafe fn multiply_add(a: L::V, b: L::V, c: L::V) -> L::V;
}

/// 32-bit floats.
pub(crate) struct Single;

impl<L: Lanes> Multiply<L> for Single {
    #[inline(always)]
    unsafe fn multiply_add(a: L::V, b: L::V, c: L::V) -> L::V {
        // SAFETY: the caller's.
        unsafe { L::mul_add(a, b, c) }
    }
}

/// Pairs of bf16 without an instruction for them, in the order of the one there is: second
/// product first.
pub(crate) struct Emulated;

impl<L: Lanes> Multiply<L> for Emulated {
    #[inline(always)]
    unsafe fn multiply_add(a: L::V, b: L::V, c: L::V) -> L::V {
        // SAFETY: the caller's.
        unsafe {
            let c = L::mul_add(L::upper(a), L::upper(b), c);
            L::mul_add(L::lower(a), L::lower(b), c)
        }
    }
}

/// # Safety
/// The machine has the instructions; `left` holds `HEIGHT` rows and `right` `WIDTH` vectors of
/// `depth` steps; `out` has `HEIGHT` rows of `WIDTH` vectors, initialised if `add`.
#[inline(always)]
unsafe fn tile<L: Lanes, M: Multiply<L>, const HEIGHT: usize, const WIDTH: usize>(step: &Step) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[L::splat(0.0); WIDTH]; HEIGHT];
        let (mut left, mut right) = (step.left.cast::<f32>(), step.right.cast::<f32>());
        let [row, next] = step.strides;
        for _ in 0..step.depth {
            let b: [L::V; WIDTH] = std::array::from_fn(|j| L::load(right.add(j * L::N)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = L::splat(left.add(i * row).read());
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = M::multiply_add(a, b, *sum);
                }
            }
            left = left.add(next);
            right = right.add(step.right_step);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let to = step.out.add(i * step.out_row + j * L::N);
                let sum = if step.add {
                    L::add(L::load(to), *sum)
                } else {
                    *sum
                };
                L::store(to, sum);
            }
        }
    }
}

/// Pairs of bf16 by `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Native;

#[cfg(target_arch = "x86_64")]
impl Multiply<Avx512> for Native {
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the types differ in name only; the instruction is the caller's to have.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) const AVX512: &[Tile] = &[avx512::<1>, avx512::<2>, avx512::<3>];
#[cfg(target_arch = "x86_64")]
pub(super) const AVX512_BF16: &[Tile] = &[avx512_bf16::<1>, avx512_bf16::<2>, avx512_bf16::<3>];
#[cfg(target_arch = "x86_64")]
pub(super) const AVX2: &[Tile] = &[avx2::<1>, avx2::<2>];
pub(super) const PORTABLE: &[Tile] = &[portable::<1>, portable::<2>, portable::<3>];

/// # Safety
/// As [`tile`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn avx512<const WIDTH: usize>(step: &Step) {
    // SAFETY: the caller's.
    unsafe { tile::<Avx512, Single, 8, WIDTH>(step) }
}

/// # Safety
/// As [`tile`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn avx512_bf16<const WIDTH: usize>(step: &Step) {
    // SAFETY: the caller's.
    unsafe { tile::<Avx512, Native, 8, WIDTH>(step) }
}

/// # Safety
/// As [`tile`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2<const WIDTH: usize>(step: &Step) {
    // SAFETY: the caller's.
    unsafe { tile::<Avx2, Single, 6, WIDTH>(step) }
}

/// # Safety
/// As [`tile`].
pub(super) unsafe fn portable<const WIDTH: usize>(step: &Step) {
    // SAFETY: the caller's.
    unsafe { tile::<Portable, Single, 4, WIDTH>(step) }
}
