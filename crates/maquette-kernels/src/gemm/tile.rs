//! The innermost loop: a tile of the product that stays in registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Lanes, Portable};

/// Vectors of a whole tile.
pub(super) const VECTORS: usize = 3;

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
                    L::sum(L::load(to), *sum)
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

macro_rules! tiles {
    ($(#[$features:meta])? $name:ident, $lanes:ty, $multiply:ty, $rows:literal) => {
        $(#[cfg(target_arch = "x86_64")] #[$features])?
        pub(super) unsafe fn $name<const WIDTH: usize>(step: &Step) {
            // SAFETY: the caller's.
            unsafe { tile::<$lanes, $multiply, $rows, WIDTH>(step) }
        }
    };
}

tiles!(
    #[target_feature(enable = "avx512f")]
    avx512_f32,
    Avx512,
    Single,
    8
);
tiles!(
    #[target_feature(enable = "avx512f")]
    avx512_emulated,
    Avx512,
    Emulated,
    8
);
tiles!(
    #[target_feature(enable = "avx2,fma")]
    avx2_f32,
    Avx2,
    Single,
    4
);
tiles!(
    #[target_feature(enable = "avx2,fma")]
    avx2_emulated,
    Avx2,
    Emulated,
    4
);
tiles!(portable_f32, Portable, Single, 4);
tiles!(portable_emulated, Portable, Emulated, 4);
tiles!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    avx512_bf16,
    Avx512,
    Native,
    8
);
