//! Plain loops compiled once per instruction set, and the scalar functions they need.
//!
//! Loops here are written so that the compiler turns them into vectors: sums run in
//! [`PARTS`] interleaved parts, functions have no branches. The order of additions is therefore
//! the same on every machine.

/// Interleaved parts of a sum: one 512-bit vector.
pub(crate) const PARTS: usize = 16;

/// Numbers of one parallel task of an element-wise pass: 64 KiB, a few microseconds of work.
pub(crate) const GRAIN: usize = 1 << 14;

/// Defines a function that takes the instruction set first and is compiled for each of them.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
            match isa {
                // SAFETY: these values of `Isa` exist only where the instructions were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                $crate::simd::Isa::Portable => body($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;

/// Sums a term of the numbers at each index of some slices, in [`PARTS`] interleaved parts.
///
/// Blocks are arrays, so that the compiler sees their bounds and makes vectors of them.
///
/// # Panics
/// If a slice is shorter than the first.
#[inline(always)]
pub(crate) fn sum<const N: usize>(slices: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let len = slices[0].len();
    let slices = slices.map(|slice| &slice[..len]);
    let blocks = slices.map(|slice| slice.as_chunks::<PARTS>().0);
    let mut parts = [0.0; PARTS];
    for block in 0..len / PARTS {
        let block = blocks.map(|blocks| &blocks[block]);
        for (i, part) in parts.iter_mut().enumerate() {
            *part += term(block.map(|block| block[i]));
        }
    }
    let mut total = 0.0;
    for part in parts {
        total += part;
    }
    for i in len - len % PARTS..len {
        total += term(slices.map(|slice| slice[i]));
    }
    total
}

vectorized! {
    pub(crate) fn multiply_by(values: &mut [f32], factors: &[f32]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

/// The largest number; minus infinity of none. NaNs are passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut parts = [f32::NEG_INFINITY; PARTS];
    let chunks = values.chunks_exact(PARTS);
    let rest = chunks
        .remainder()
        .iter()
        .fold(f32::NEG_INFINITY, |top, value| larger(top, *value));
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part = larger(*part, *value);
        }
    }
    parts.into_iter().fold(rest, larger)
}

/// `e^x` to about one unit in the last place, without branches: `2^n * 2^f` with a polynomial for
/// the fraction. Below -87 it is about 1e-38, above 88 about 1e38; a NaN stays one.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // `max` and `min` would swallow a NaN; the comparison keeps it.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, so that the product with n is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units_in_the_last_place() {
        for i in -8_700..=8_800 {
            let x = i as f32 / 100.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours / exact - 1.0).abs() < 3e-7,
                "exp({x}) = {ours}, not {exact}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn sums_every_number_once() {
        for len in [0usize, 1, 15, 16, 17, 100] {
            let numbers: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected = (len * len.saturating_sub(1) / 2) as f32;
            assert_eq!(sum([&numbers], |[x]| x), expected);
            let both = sum([&numbers, &numbers], |[x, y]| x + y);
            assert_eq!(both, 2.0 * expected);
        }
    }
}
