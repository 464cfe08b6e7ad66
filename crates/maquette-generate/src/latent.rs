//! Moving about in a latent space: interpolation, and noise of a chosen kind.

use crate::GenerateError;
use maquette_rng::{Rng, normal};
use serde::{Deserialize, Serialize};

/// How to walk between two latent vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// A straight line, see [`lerp`].
    Linear,
    /// A great circle, see [`slerp`]: right for Gaussian latents, whose length hardly varies.
    #[default]
    Spherical,
}

/// `a + share * (b - a)`, element by element.
///
/// # Errors
/// Vectors of different lengths.
pub fn lerp(a: &[f32], b: &[f32], share: f32) -> Result<Vec<f32>, GenerateError> {
    check(a, b)?;
    Ok(blend(a, b, f64::from(1.0 - share), f64::from(share)))
}

/// Spherical interpolation (Shoemake 1985; for latents White 2016, arXiv 1609.04468): turns from
/// `a` to `b` at constant angular speed. Directions that are equal, opposite or undefined (a zero
/// vector) have no unique great circle, there it is [`lerp`].
///
/// # Errors
/// Vectors of different lengths.
pub fn slerp(a: &[f32], b: &[f32], share: f32) -> Result<Vec<f32>, GenerateError> {
    check(a, b)?;
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter()
            .zip(y)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    let cos = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let angle = cos.clamp(-1.0, 1.0).acos();
    let sin = angle.sin();
    if !sin.is_finite() || sin < 1e-6 {
        return lerp(a, b, share);
    }
    let share = f64::from(share);
    let weight = |part: f64| (part * angle).sin() / sin;
    Ok(blend(a, b, weight(1.0 - share), weight(share)))
}

/// `points` vectors from `a` to `b`, both ends included.
///
/// # Errors
/// Vectors of different lengths, or fewer than two points.
pub fn path(
    a: &[f32],
    b: &[f32],
    points: usize,
    how: Interpolation,
) -> Result<Vec<Vec<f32>>, GenerateError> {
    if points < 2 {
        return Err(GenerateError::Latent(format!(
            "a path has at least its two ends, but {points} points were asked for"
        )));
    }
    let step = match how {
        Interpolation::Linear => lerp,
        Interpolation::Spherical => slerp,
    };
    (0..points)
        .map(|i| step(a, b, i as f32 / (points - 1) as f32))
        .collect()
}

/// `n` standard normal numbers, each drawn again until it lies in `[-bound, bound]`: the
/// truncation trick (Brock et al. 2019, arXiv 1809.11096), which trades variety for quality.
///
/// # Errors
/// A bound below 0.01, where drawing again would hardly ever end, or not a number.
pub fn truncated_normal(n: usize, bound: f32, rng: &mut Rng) -> Result<Vec<f32>, GenerateError> {
    if bound.is_nan() || bound < 0.01 {
        return Err(GenerateError::Latent(format!(
            "a truncation bound of {bound} standard deviations is too small; use 0.01 or more"
        )));
    }
    let mut values = normal(rng, n);
    for value in &mut values {
        while value.abs() > bound {
            *value = normal(rng, 1)[0];
        }
    }
    Ok(values)
}

/// One vector of `dims` numbers, uniform on the sphere of radius `sqrt(dims)`, the length that
/// Gaussian latents of that size have on average (in the root mean square).
pub fn spherical(dims: usize, rng: &mut Rng) -> Vec<f32> {
    loop {
        let values = normal(rng, dims);
        let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        if square > 0.0 || dims == 0 {
            let scale = (dims as f64 / square).sqrt() as f32;
            return values.into_iter().map(|v| v * scale).collect();
        }
    }
}

fn blend(a: &[f32], b: &[f32], weight_a: f64, weight_b: f64) -> Vec<f32> {
    a.iter()
        .zip(b)
        .map(|(a, b)| (weight_a * f64::from(*a) + weight_b * f64::from(*b)) as f32)
        .collect()
}

fn check(a: &[f32], b: &[f32]) -> Result<(), GenerateError> {
    if a.len() == b.len() {
        return Ok(());
    }
    Err(GenerateError::Latent(format!(
        "cannot interpolate between latents of {} and {} numbers: they come from different models",
        a.len(),
        b.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};
    use proptest::prelude::*;

    #[test]
    fn lerp_by_hand() {
        assert_eq!(lerp(&[0.0, 2.0], &[4.0, 0.0], 0.25).unwrap(), [1.0, 1.5]);
    }

    #[test]
    fn slerp_by_hand() {
        // A third of a quarter turn is 30 degrees.
        let got = slerp(&[1.0, 0.0], &[0.0, 1.0], 1.0 / 3.0).unwrap();
        assert!((got[0] - 0.75f32.sqrt()).abs() < 1e-6 && (got[1] - 0.5).abs() < 1e-6);
        assert_eq!(slerp(&[1.0, 0.0], &[2.0, 0.0], 0.5).unwrap(), [1.5, 0.0]);
        assert_eq!(slerp(&[0.0, 0.0], &[2.0, 0.0], 0.5).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn a_path_has_its_ends() {
        let (a, b) = ([3.0, 1.0, 0.5], [-1.0, 2.0, 0.0]);
        for how in [Interpolation::Linear, Interpolation::Spherical] {
            let path = path(&a, &b, 5, how).unwrap();
            assert_eq!(path.len(), 5);
            for (got, want) in [(&path[0], &a), (&path[4], &b)] {
                assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6));
            }
        }
        assert!(path(&a, &b, 1, Interpolation::Linear).is_err());
        assert!(path(&a, &b[..2], 3, Interpolation::Linear).is_err());
    }

    #[test]
    fn truncated_normal_keeps_within_its_bound() {
        // Variance of a standard normal truncated to [-1, 1]: 1 - 2 pdf(1) / (2 cdf(1) - 1) =
        // 1 - 2 * 0.241971 / 0.682689 = 0.291125.
        let x = truncated_normal(200_000, 1.0, &mut rng(3, Stream::Sample, 0)).unwrap();
        assert!(x.iter().all(|v| v.abs() <= 1.0));
        let variance = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        assert!((variance - 0.291125).abs() < 0.003, "variance {variance}");
        assert!(truncated_normal(1, 0.0, &mut rng(3, Stream::Sample, 0)).is_err());
    }

    proptest! {
        #[test]
        fn slerp_of_unit_vectors_stays_on_the_sphere(
            seed in any::<u64>(), share in 0f32..=1.0, dims in 2usize..50,
        ) {
            let mut rng = rng(seed, Stream::Sample, 0);
            let (a, b) = (spherical(dims, &mut rng), spherical(dims, &mut rng));
            let got = slerp(&a, &b, share).unwrap();
            let square: f32 = got.iter().map(|v| v * v).sum();
            prop_assert!((square / dims as f32 - 1.0).abs() < 1e-3, "{square} for {dims}");
        }
    }
}
