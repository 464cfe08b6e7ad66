//! The one-dimensional transforms of Winograd's minimal filtering, and running code over them.
//!
//! Four outputs of a correlation with `r` taps read `n = 4 + r - 1` inputs `d`. They are
//! `y = A^T ((G g) * (B^T d))`, with `n` products instead of `4 r` (Winograd 1980; Lavin and Gray
//! 2016, arXiv:1509.09308). The matrices follow from `n - 1` points and infinity: with
//! `N(x) = prod (x - p)`, column `p` of `A^T` is `1, p, p^2, p^3`, row `p` of `G` is
//! `1, p, p^2 / N'(p)`, and row `p` of `B^T` holds the coefficients of `N(x) / (x - p)`.
//!
//! The points decide how much rounding is amplified; those here keep the root mean square error
//! within three times that of adding the products up one by one.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};

/// Outputs of a tile, per axis.
pub(super) const OUTPUTS: usize = 4;

/// Most inputs of a tile, per axis.
pub(super) const MAX_SIDE: usize = 6;

/// Most taps, per axis.
pub(super) const MAX_TAPS: usize = 3;

type Side<L> = [<L as Lanes>::V; MAX_SIDE];
type Outputs<L> = [<L as Lanes>::V; OUTPUTS];
type Weights<L> = [<L as Lanes>::V; MAX_TAPS];

/// The transforms for one number of taps. Entries past [`Self::SIDE`] and [`Self::TAPS`] are not
/// read, and written as zeros or copies.
///
/// # Safety
/// The machine has the instructions of `L`.
pub(super) trait Tiling {
    const TAPS: usize;
    const SIDE: usize = OUTPUTS + Self::TAPS - 1;
    /// `B^T d`
    unsafe fn input<L: Lanes>(d: Side<L>) -> Side<L>;
    /// `A^T m`
    unsafe fn output<L: Lanes>(m: Side<L>) -> Outputs<L>;
    /// `A y`, the adjoint of [`Self::output`].
    unsafe fn output_adjoint<L: Lanes>(y: Outputs<L>) -> Side<L>;
    /// `G g`
    unsafe fn weight<L: Lanes>(g: Weights<L>) -> Side<L>;
    /// `G^T u`, the adjoint of [`Self::weight`].
    unsafe fn weight_adjoint<L: Lanes>(u: Side<L>) -> Weights<L>;
}

/// Three taps, with the points `0, a, -a, b, -b` of `a = sqrt(1/2)` and `b = sqrt(2)`:
/// `N(x) = x^5 - 5/2 x^3 + x`.
pub(super) struct Three;

const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

// SAFETY (of each body): the trait's contract gives the instruction set; nothing touches memory.
impl Tiling for Three {
    const TAPS: usize = 3;

    #[inline(always)]
    unsafe fn input<L: Lanes>(d: Side<L>) -> Side<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let even = [times(-2.0, d[2], d[4]), times(-0.5, d[2], d[4])];
            let odd = [
                times(A, d[3], L::mul(L::splat(-B), d[1])),
                times(B, d[3], L::mul(L::splat(-A), d[1])),
            ];
            [
                times(-2.5, d[2], L::add(d[0], d[4])),
                L::add(even[0], odd[0]),
                L::sub(even[0], odd[0]),
                L::add(even[1], odd[1]),
                L::sub(even[1], odd[1]),
                times(-2.5, d[3], L::add(d[1], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<L: Lanes>(m: Side<L>) -> Outputs<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let even = [L::add(m[1], m[2]), L::add(m[3], m[4])];
            let odd = [L::sub(m[1], m[2]), L::sub(m[3], m[4])];
            [
                L::add(m[0], L::add(even[0], even[1])),
                times(A, odd[0], L::mul(L::splat(B), odd[1])),
                times(0.5, even[0], L::add(even[1], even[1])),
                times(0.5 * A, odd[0], times(2.0 * B, odd[1], m[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output_adjoint<L: Lanes>(y: Outputs<L>) -> Side<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let even = [times(0.5, y[2], y[0]), times(2.0, y[2], y[0])];
            let odd = [
                times(0.5 * A, y[3], L::mul(L::splat(A), y[1])),
                times(2.0 * B, y[3], L::mul(L::splat(B), y[1])),
            ];
            [
                y[0],
                L::add(even[0], odd[0]),
                L::sub(even[0], odd[0]),
                L::add(even[1], odd[1]),
                L::sub(even[1], odd[1]),
                y[3],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<L: Lanes>(g: Weights<L>) -> Side<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let scaled = |k: f32, x| L::mul(L::splat(k), x);
            // Divided by N'(a) = -3/2 and N'(b) = 6.
            let even = [
                scaled(-2.0 / 3.0, times(0.5, g[2], g[0])),
                scaled(1.0 / 6.0, times(2.0, g[2], g[0])),
            ];
            let odd = [scaled(A * -2.0 / 3.0, g[1]), scaled(B / 6.0, g[1])];
            [
                g[0],
                L::add(even[0], odd[0]),
                L::sub(even[0], odd[0]),
                L::add(even[1], odd[1]),
                L::sub(even[1], odd[1]),
                g[2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight_adjoint<L: Lanes>(u: Side<L>) -> Weights<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let even = [L::add(u[1], u[2]), L::add(u[3], u[4])];
            let odd = [L::sub(u[1], u[2]), L::sub(u[3], u[4])];
            [
                times(-2.0 / 3.0, even[0], times(1.0 / 6.0, even[1], u[0])),
                times(A * -2.0 / 3.0, odd[0], L::mul(L::splat(B / 6.0), odd[1])),
                times(-1.0 / 3.0, even[0], times(1.0 / 3.0, even[1], u[5])),
            ]
        }
    }
}

/// Two taps, with the points `0, -1, 1/2, 2`: `N(x) = x^4 - 3/2 x^3 - 3/2 x^2 + x`.
pub(super) struct Two;

// SAFETY (of each body): as above.
impl Tiling for Two {
    const TAPS: usize = 2;

    #[inline(always)]
    unsafe fn input<L: Lanes>(d: Side<L>) -> Side<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let last = L::add(d[1], d[4]);
            [
                times(-1.5, L::add(d[1], d[2]), L::add(d[0], d[3])),
                times(-2.5, d[2], L::add(d[1], d[3])),
                times(-2.0, d[1], L::sub(d[3], d[2])),
                times(0.5, L::sub(d[2], d[1]), d[3]),
                times(-1.5, L::add(d[2], d[3]), last),
                last,
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<L: Lanes>(m: Side<L>) -> Outputs<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            [
                L::add(L::add(m[0], m[1]), L::add(m[2], m[3])),
                times(
                    2.0,
                    m[3],
                    times(0.5, m[2], times(-1.0, m[1], L::splat(0.0))),
                ),
                times(4.0, m[3], times(0.25, m[2], m[1])),
                times(8.0, m[3], times(0.125, m[2], L::sub(m[4], m[1]))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output_adjoint<L: Lanes>(y: Outputs<L>) -> Side<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            [
                y[0],
                L::sub(L::add(y[0], y[2]), L::add(y[1], y[3])),
                times(0.125, y[3], times(0.25, y[2], times(0.5, y[1], y[0]))),
                times(8.0, y[3], times(4.0, y[2], times(2.0, y[1], y[0]))),
                y[3],
                y[3],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<L: Lanes>(g: Weights<L>) -> Side<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let scaled = |k: f32, x| L::mul(L::splat(k), x);
            [
                g[0],
                scaled(-1.0 / 4.5, L::sub(g[0], g[1])),
                scaled(-1.0 / 1.125, times(0.5, g[1], g[0])),
                scaled(1.0 / 9.0, times(2.0, g[1], g[0])),
                g[1],
                g[1],
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight_adjoint<L: Lanes>(u: Side<L>) -> Weights<L> {
        unsafe {
            let times = |k: f32, x, y| L::mul_add(L::splat(k), x, y);
            let one = times(-1.0 / 4.5, u[1], u[0]);
            let two = times(1.0 / 4.5, u[1], u[4]);
            [
                times(1.0 / 9.0, u[3], times(-1.0 / 1.125, u[2], one)),
                times(2.0 / 9.0, u[3], times(-0.5 / 1.125, u[2], two)),
                two,
            ]
        }
    }
}

/// Entry `i` of each of the first lines: a transform of the other axis reads across those of one.
#[inline(always)]
pub(super) fn entry<V: Copy, const ENTRIES: usize, const LINES: usize, const FIRST: usize>(
    lines: &[[V; ENTRIES]; LINES],
    i: usize,
) -> [V; FIRST] {
    std::array::from_fn(|j| lines[j][i])
}

/// Work compiled once per instruction set and tiling.
pub(super) trait Stage {
    /// # Safety
    /// The machine has the instructions of `L`, and what the stage says of itself holds.
    unsafe fn run<L: Lanes, T: Tiling>(&self);
}

/// Runs a stage for a number of taps, two or three.
///
/// # Safety
/// What the stage says of itself holds.
pub(super) unsafe fn run(isa: Isa, taps: usize, stage: &impl Stage) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<T: Tiling>(stage: &impl Stage) {
        // SAFETY: the caller's.
        unsafe { stage.run::<Avx512, T>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<T: Tiling>(stage: &impl Stage) {
        // SAFETY: the caller's.
        unsafe { stage.run::<Avx2, T>() }
    }
    // SAFETY: values of `Isa` other than `Portable` exist only where detection found the
    // instructions; the rest is the caller's.
    unsafe {
        match (isa, taps == Three::TAPS) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, true) => avx512::<Three>(stage),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, false) => avx512::<Two>(stage),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, true) => avx2::<Three>(stage),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, false) => avx2::<Two>(stage),
            (Isa::Portable, true) => stage.run::<Portable, Three>(),
            (Isa::Portable, false) => stage.run::<Portable, Two>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tile of one axis, and the two adjoints, by the definition.
    fn check<T: Tiling>() {
        let vector = |x: f32| [x; 4];
        let d: [f32; MAX_SIDE] = [0.3, -1.2, 0.7, 0.9, -0.4, 1.1];
        let g: [f32; MAX_TAPS] = [0.5, -0.8, 0.6];
        let y: [f32; OUTPUTS] = [0.2, -0.7, 1.3, 0.4];
        // SAFETY: portable code.
        let (v, u, z) = unsafe {
            (
                T::input::<Portable>(d.map(vector)),
                T::weight::<Portable>(g.map(vector)),
                T::output_adjoint::<Portable>(y.map(vector)),
            )
        };
        let product = |a: &Side<Portable>, b: &Side<Portable>| {
            std::array::from_fn(|i| std::array::from_fn(|j| a[i][j] * b[i][j]))
        };
        // SAFETY: portable code.
        let (out, dg) = unsafe {
            (
                T::output::<Portable>(product(&u, &v)),
                T::weight_adjoint::<Portable>(product(&z, &v)),
            )
        };
        for (i, out) in out.iter().enumerate() {
            let expected: f32 = (0..T::TAPS).map(|t| g[t] * d[i + t]).sum();
            assert!((out[0] - expected).abs() < 1e-5, "{} {expected}", out[0]);
        }
        for (t, dg) in dg.iter().enumerate().take(T::TAPS) {
            let expected: f32 = (0..OUTPUTS).map(|i| y[i] * d[i + t]).sum();
            assert!((dg[0] - expected).abs() < 1e-5, "{} {expected}", dg[0]);
        }
    }

    #[test]
    fn minimal_filtering_is_correlation() {
        check::<Two>();
        check::<Three>();
    }
}
