//! Functions that cost more to compute than to look up: a polynomial for each of sixteen intervals, whose
//! coefficients one instruction picks out of a register.

use crate::simd::Lanes;
use crate::vector::{MOST, Vector};

/// Intervals, the first of half the width.
const COUNT: usize = MOST;
/// Coefficients of a polynomial.
const TERMS: usize = 6;
/// Distance of the intervals' middles, of which the first is zero.
const STEP: f64 = 0.375;
/// A little before the last interval's end.
pub(crate) const FAR: f32 = (COUNT as f32 - 0.51) * STEP as f32;

/// `P(Z > a)` of a standard normal `Z`.
pub(crate) static BEYOND: Pieces = Pieces::of(false);
/// The slope of `x P(Z < x)` at `-a`: `P(Z > a)` less `a` times the density there.
pub(crate) static SLOPE: Pieces = Pieces::of(true);

/// A function of the distance from zero, constant beyond [`FAR`].
#[repr(align(64))]
pub(crate) struct Pieces([[f32; COUNT]; TERMS]);

impl Pieces {
    /// Of each lane, not negative; to an absolute error of `1.2e-7`. A NaN stays one.
    #[inline(always)]
    pub(crate) fn at<L: Lanes>(&self, a: Vector<L>) -> Vector<L> {
        /// Adding it rounds to an integer, which the lowest bits then are.
        const ROUND: f32 = 12_582_912.0;
        let of = |value| a.splat(value);
        let a = of(FAR).min(a);
        let place = a.mul_add(of(STEP.recip() as f32), of(ROUND));
        let from_middle = (place - ROUND).neg_mul_add(of(STEP as f32), a);
        let mut sum = place.choose(&self.0[TERMS - 1]);
        for terms in self.0[..TERMS - 1].iter().rev() {
            sum = sum.mul_add(from_middle, place.choose(terms));
        }
        sum
    }

    /// On each interval the polynomial through six values at Chebyshev's nodes, which is all but the best.
    const fn of(slope: bool) -> Self {
        const NODES: [f64; TERMS] = [
            -0.965_925_826_289_068_3,
            -0.707_106_781_186_547_5,
            -0.258_819_045_102_520_74,
            0.258_819_045_102_520_74,
            0.707_106_781_186_547_5,
            0.965_925_826_289_068_3,
        ];
        let mut pieces = [[0.0; COUNT]; TERMS];
        let mut piece = 0;
        while piece < COUNT {
            let (mut x, mut values) = ([0.0; TERMS], [0.0; TERMS]);
            let mut i = 0;
            while i < TERMS {
                x[i] = 0.5 * STEP * NODES[i];
                let a = piece as f64 * STEP + x[i];
                let [beyond, density] = tail(a);
                values[i] = if slope { beyond - a * density } else { beyond };
                i += 1;
            }
            let polynomial = through(x, values);
            let mut i = 0;
            while i < TERMS {
                pieces[i][piece] = polynomial[i] as f32;
                i += 1;
            }
            piece += 1;
        }
        Self(pieces)
    }
}

/// `P(Z > a)` and the density at `a`, to `1e-15`: sums of positive terms only,
/// `P(0 < Z < a) = density (a + a^3 / 3 + a^5 / (3 5) + ...)`; Abramowitz and Stegun 1964, 26.2.11.
const fn tail(a: f64) -> [f64; 2] {
    const ROOT_TAU: f64 = 2.506_628_274_631_000_7;
    let (mut odd, mut even) = (a, 1.0);
    let (mut odd_sum, mut even_sum) = (0.0, 0.0);
    let mut n = 1.0;
    while n < 200.0 {
        odd_sum += odd;
        even_sum += even;
        odd *= a * a / (2.0 * n + 1.0);
        even *= a * a / (2.0 * n);
        n += 1.0;
    }
    let density = 1.0 / (ROOT_TAU * even_sum);
    [0.5 - density * odd_sum, density]
}

/// Coefficients, the constant one first, of the polynomial through `values` at `x`, by Newton's divided
/// differences.
const fn through(x: [f64; TERMS], values: [f64; TERMS]) -> [f64; TERMS] {
    let mut differences = values;
    let mut order = 1;
    while order < TERMS {
        let mut i = TERMS - 1;
        while i >= order {
            differences[i] = (differences[i] - differences[i - 1]) / (x[i] - x[i - order]);
            i -= 1;
        }
        order += 1;
    }
    // sum = sum (t - x[i]) + differences[i], from the last on
    let mut sum = [0.0; TERMS];
    let mut i = TERMS;
    while i > 0 {
        i -= 1;
        let mut k = TERMS - 1;
        while k > 0 {
            sum[k] = sum[k - 1] - sum[k] * x[i];
            k -= 1;
        }
        sum[0] = differences[i] - sum[0] * x[i];
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::elementwise::{map, vectorized};
    use crate::simd::Isa;

    vectorized! {
        fn both<L>(machine, a: &[f32], beyond: &mut [MaybeUninit<f32>], slope: &mut [MaybeUninit<f32>]) {
            map(machine, [a], beyond, |[a]| BEYOND.at(a));
            map(machine, [a], slope, |[a]| SLOPE.at(a));
        }
    }

    #[test]
    fn pieces_are_the_function_on_every_machine() {
        let mut a: Vec<f32> = (0..80_000).map(|i| i as f32 * 1e-4).collect();
        a.push(f32::NAN);
        let last = a.len() - 1;
        for isa in Isa::available() {
            let [mut beyond, mut slope] = [0, 1].map(|_| vec![MaybeUninit::new(0.0); a.len()]);
            both(isa, &a, &mut beyond, &mut slope);
            // SAFETY: they were initialised to begin with.
            let read = |of: &[MaybeUninit<f32>], i: usize| unsafe { of[i].assume_init() };
            for (i, &a) in a[..last].iter().enumerate() {
                let [true_beyond, density] = tail(f64::from(a));
                let true_slope = true_beyond - f64::from(a) * density;
                let wrong = [
                    f64::from(read(&beyond, i)) - true_beyond,
                    f64::from(read(&slope, i)) - true_slope,
                ];
                assert!(
                    wrong.iter().all(|wrong| wrong.abs() < 1.2e-7),
                    "{isa:?} at {a}: wrong by {wrong:?}"
                );
            }
            assert!(read(&beyond, last).is_nan() && read(&slope, last).is_nan());
        }
    }

    /// Of a table of the normal distribution (Abramowitz and Stegun 1964, table 26.1).
    #[test]
    fn the_tail_is_the_normal_one() {
        for (a, beyond) in [
            (0.0, 0.5),
            (1.0, 0.158_655_253_931),
            (3.0, 0.001_349_898_032),
        ] {
            assert!((tail(a)[0] - beyond).abs() < 1e-12);
        }
        assert!((tail(1.0)[1] - 0.241_970_724_519).abs() < 1e-12);
    }
}
