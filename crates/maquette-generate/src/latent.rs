//! Moving about in a latent space: interpolation, noise of a chosen kind, and the way back from a
//! picture.

use crate::GenerateError;
use burn::tensor::{Device, Tensor, TensorData};
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

/// How [`project`] looks for latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// Steps of Adam; 0 keeps the start.
    pub steps: usize,
    /// Its learning rate, in units of the latent.
    pub lr: f32,
    /// What a latent's squared length costs beside the squared error of all pixels: keeps it where the
    /// generator was trained.
    pub prior: f32,
}

impl Default for Projection {
    fn default() -> Self {
        Self {
            steps: 100,
            lr: 0.05,
            prior: 0.02,
        }
    }
}

/// Latents whose pictures come near to `images` (Zhu et al. 2016, arXiv 1609.03552, section 3.1): walks
/// down `sum (decode(z) - x)^2 + prior sum z^2` from `start`, with Adam. `decode` computes on `device`,
/// with autodiff.
///
/// # Shapes
/// - start: `[n, d_latent]`, row by row
/// - images: `[n, channels, height, width]`
/// - output: as `start`
///
/// # Errors
/// A start that is not of `n` rows, or a picture that is not of numbers.
pub fn project(
    decode: impl Fn(Tensor<2>) -> Tensor<4>,
    start: Vec<f32>,
    images: Tensor<4>,
    how: &Projection,
    device: &Device,
) -> Result<Vec<f32>, GenerateError> {
    let n = images.dims()[0];
    if n == 0 || start.is_empty() || !start.len().is_multiple_of(n) {
        let numbers = start.len();
        return Err(GenerateError::Latent(format!(
            "{numbers} numbers are no start for {n} images"
        )));
    }
    let shape = [n, start.len() / n];
    let (mut z, mut mean, mut square) = (
        start,
        vec![0.0; shape[0] * shape[1]],
        vec![0.0; shape[0] * shape[1]],
    );
    for step in 1..=how.steps as i32 {
        let code = Tensor::<2>::from_data(TensorData::new(z.clone(), shape), device).require_grad();
        let error = decode(code.clone()) - images.clone();
        let loss = (error.clone() * error).sum() + (code.clone() * code.clone()).sum() * how.prior;
        let gradient = code.grad(&loss.backward());
        let gradient =
            gradient.ok_or_else(|| GenerateError::Latent("the decoder has no gradient".into()))?;
        let gradient = gradient
            .try_into_vec_as::<f32>()
            .map_err(|error| GenerateError::Device(format!("{error:?}")))?;
        // Adam (Kingma & Ba 2015, algorithm 1).
        let (unbias_mean, unbias_square) = (1.0 - 0.9f32.powi(step), 1.0 - 0.999f32.powi(step));
        for (((z, m), v), g) in z.iter_mut().zip(&mut mean).zip(&mut square).zip(gradient) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *z -= how.lr * (*m / unbias_mean) / ((*v / unbias_square).sqrt() + 1e-8);
        }
    }
    Ok(z)
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

    #[test]
    fn a_linear_generator_is_inverted() {
        let device = Device::flex().autodiff();
        // Two latents make four pixels: x = A z.
        let a = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.5, -1.0]];
        let matrix = Tensor::<2>::from_floats(a, &device).transpose();
        let decode = |z: Tensor<2>| {
            let n = z.dims()[0];
            z.matmul(matrix.clone()).reshape([n, 1, 2, 2])
        };
        let truth = [[0.7f32, -0.4], [-1.2, 0.3]];
        let images = decode(Tensor::from_floats(truth, &device)).detach();
        let how = Projection {
            steps: 400,
            prior: 0.0,
            ..Projection::default()
        };
        let found = project(decode, vec![0.0; 4], images.clone(), &how, &device).unwrap();
        for (found, truth) in found.iter().zip(truth.as_flattened()) {
            assert!((found - truth).abs() < 1e-3, "{found} is not {truth}");
        }
        assert!(project(decode, vec![0.0; 3], images, &how, &device).is_err());
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
