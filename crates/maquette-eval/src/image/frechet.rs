//! Fréchet distance between normal distributions fitted to two sets of features.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, Side, get_global_parallelism};
use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, Uniform};

use super::matrix::{columns, inner};
use crate::EvalError;
use crate::bootstrap::{Interval, around};
use crate::error::{at_least, same};
use crate::points::Points;

/// Features that are centred at a time.
const BLOCK: usize = 1024;

/// Mean and covariance of features, all that [`frechet_distance`] needs to know of a set.
#[derive(Debug, Clone)]
pub struct Moments {
    mean: Vec<f64>,
    /// `[dims, rank]`, any matrix whose product with its own transpose is the covariance.
    factor: Mat<f64>,
}

impl Moments {
    /// The mean of the features and their covariance, normalised by `n - 1`.
    ///
    /// # Errors
    /// Fewer than two images, or an eigenvalue iteration that did not end.
    pub fn of(features: Points<'_>) -> Result<Self, EvalError> {
        let (n, dims) = (features.len(), features.dims());
        at_least("images", 2, n)?;
        let mut mean = vec![0.0; dims];
        for row in features.rows() {
            for (sum, x) in mean.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= n as f64);
        let degrees = (n - 1) as f64;
        // With few images the centred features themselves are a factor, and an exact one: a
        // root of the rank-deficient covariance would amplify its rounding errors to their root.
        let factor = if n <= dims {
            columns(features, 0..n, Some(&mean)) * faer::Scale(1.0 / degrees.sqrt())
        } else {
            root(covariance(features, &mean, degrees))?
        };
        Ok(Self { mean, factor })
    }

    /// How many numbers the features have.
    pub fn dims(&self) -> usize {
        self.mean.len()
    }
}

/// The lower triangle of the covariance.
fn covariance(features: Points<'_>, mean: &[f64], degrees: f64) -> Mat<f64> {
    let dims = features.dims();
    let mut covariance = Mat::zeros(dims, dims);
    for first in (0..features.len()).step_by(BLOCK) {
        let last = (first + BLOCK).min(features.len());
        let block = columns(features, first..last, Some(mean));
        matmul(
            &mut covariance,
            BlockStructure::TriangularLower,
            Accum::Add,
            &block,
            BlockStructure::Rectangular,
            block.transpose(),
            BlockStructure::Rectangular,
            1.0 / degrees,
            get_global_parallelism(),
        );
    }
    covariance
}

/// A factor of a symmetric, positive semi-definite matrix given by its lower triangle.
fn root(matrix: Mat<f64>) -> Result<Mat<f64>, EvalError> {
    if let Ok(cholesky) = matrix.llt(Side::Lower) {
        return Ok(cholesky.L().to_owned());
    }
    // Features that are constant, or sums of others, leave it singular.
    let eigen = matrix
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| EvalError::NoConvergence("the eigenvalues of the covariance"))?;
    let (vectors, values) = (eigen.U(), eigen.S());
    Ok(Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| {
        vectors[(i, j)] * values[j].max(0.0).sqrt()
    }))
}

/// Squared Fréchet distance of two normal distributions (Dowson and Landau 1982),
/// `|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))`: the FID of Heusel et al. 2017
/// (arXiv 1706.08500, eq. 6) when the features are Inception-v3's. 0 for equal sets.
///
/// It is biased upwards for few images (Chong and Forsyth 2020, arXiv 1911.07023): compare only
/// figures of as many images.
///
/// With `C1 = F1 F1^T` and `C2 = F2 F2^T`, the trace of the root is the sum of the singular
/// values of `F1^T F2`, so that no root of a matrix that is nearly singular is taken.
///
/// # Errors
/// Features of different widths, or a singular value iteration that did not end.
pub fn frechet_distance(a: &Moments, b: &Moments) -> Result<f64, EvalError> {
    same("numbers per feature vector", a.dims(), b.dims())?;
    let between: f64 = a
        .mean
        .iter()
        .zip(&b.mean)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let spread = a.factor.squared_norm_l2() + b.factor.squared_norm_l2();
    let overlap: f64 = inner(a.factor.as_ref(), b.factor.as_ref())
        .singular_values()
        .map_err(|_| EvalError::NoConvergence("the singular values of two covariances"))?
        .iter()
        .sum();
    Ok((between + spread - 2.0 * overlap).max(0.0))
}

/// [`frechet_distance`] of two sets with the interval in which figures of as many images lie: both
/// sets are drawn anew from themselves, see [`around`].
///
/// # Errors
/// As [`Moments::of`] and [`frechet_distance`]; fewer than 100 resamples, or a level outside (0, 1).
pub fn frechet_interval(
    a: Points<'_>,
    b: Points<'_>,
    resamples: usize,
    level: f64,
    rng: &mut Rng,
) -> Result<Interval, EvalError> {
    let value = frechet_distance(&Moments::of(a)?, &Moments::of(b)?)?;
    let distances: Result<Vec<f64>, EvalError> = (0..resamples)
        .map(|_| {
            let [a, b] =
                [a, b].map(|set| Moments::of(Points::new(&redrawn(set, rng), set.dims())?));
            frechet_distance(&a?, &b?)
        })
        .collect();
    around(value, &distances?, level)
}

/// As many points, drawn from these with replacement.
fn redrawn(points: Points<'_>, rng: &mut Rng) -> Vec<f32> {
    let index = Uniform::new(0, points.len()).expect("there is at least one point");
    let dims = points.dims();
    (0..points.len())
        .flat_map(|_| {
            let at = index.sample(rng) * dims;
            &points.values()[at..at + dims]
        })
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{features, fixture, near};

    fn of(values: &[f32], dims: usize) -> Moments {
        Moments::of(Points::new(values, dims).unwrap()).unwrap()
    }

    #[test]
    fn one_dimension_by_hand() {
        // Means 1 and 4, variances 2 and 8: 9 + (sqrt 8 - sqrt 2)^2 = 9 + 2.
        let got = frechet_distance(&of(&[0.0, 2.0], 1), &of(&[2.0, 6.0], 1)).unwrap();
        assert!((got - 11.0).abs() < 1e-12, "{got}");
    }

    #[test]
    fn agrees_with_torch_fidelity() {
        for case in fixture("frechet") {
            let (a, b) = features(&case);
            let got = frechet_distance(
                &Moments::of(a.points()).unwrap(),
                &Moments::of(b.points()).unwrap(),
            );
            let want = case["fid"].as_f64().unwrap();
            let got = got.unwrap();
            assert!(
                (got - want).abs() < 1e-6 * want.max(1.0),
                "{got} is not {want}"
            );
        }
    }

    #[test]
    fn a_set_is_at_no_distance_from_itself() {
        for case in fixture("frechet") {
            let (a, _) = features(&case);
            let a = Moments::of(a.points()).unwrap();
            near(frechet_distance(&a, &a).unwrap(), 0.0);
        }
    }

    #[test]
    fn the_interval_holds_figures_of_other_draws() {
        use maquette_rng::{Stream, normal, rng};
        let draw = |seed, shift| -> Vec<f32> {
            let x = normal(&mut rng(seed, Stream::Evaluate, 0), 300 * 4);
            x.into_iter().map(|x| x + shift).collect()
        };
        let distance = |seed| {
            let (a, b) = (draw(seed, 0.0), draw(seed + 1000, 0.4));
            frechet_distance(&of(&a, 4), &of(&b, 4)).unwrap()
        };
        let (a, b) = (draw(1, 0.0), draw(1001, 0.4));
        let (a, b) = (Points::new(&a, 4).unwrap(), Points::new(&b, 4).unwrap());
        let random = &mut rng(1, Stream::Evaluate, 1);
        let got = frechet_interval(a, b, 200, 0.95, random).unwrap();
        assert_eq!(got.value, distance(1));
        // As wide as the spread of fresh draws, within a third.
        let mut fresh: Vec<f64> = (2..202).map(distance).collect();
        fresh.sort_unstable_by(f64::total_cmp);
        let (width, want) = (got.high - got.low, fresh[194] - fresh[5]);
        assert!((width / want - 1.0).abs() < 0.33, "{width}, {want}");
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(Moments::of(Points::new(&[1.0, 2.0], 2).unwrap()).is_err());
        let (a, b) = (of(&[0.0, 1.0], 1), of(&[0.0, 1.0, 2.0, 5.0], 2));
        assert!(frechet_distance(&a, &b).is_err());
    }
}
