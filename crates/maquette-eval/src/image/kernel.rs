//! Kernel distance: a polynomial maximum mean discrepancy of features.

use faer::{Mat, MatRef};
use maquette_rng::Rng;
use maquette_rng::rand::seq::index;
use serde::Serialize;

use super::matrix::{columns, inner};
use crate::EvalError;
use crate::error::{at_least, same};
use crate::points::Points;

/// A kernel distance over random subsets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct KernelDistance {
    /// The mean of the subsets' distances, unbiased.
    pub mean: f64,
    /// Their standard deviation, over all of them.
    pub deviation: f64,
    /// How many subsets were drawn.
    pub subsets: usize,
    /// How many images of each side one has.
    pub size: usize,
}

/// The kernel distance of Bińkowski et al. 2018 (arXiv 1801.01401, KID when the features are
/// Inception-v3's): the mean of [`polynomial_mmd`] over `subsets` draws of `size` features from
/// either side without replacement. About 0, also below, for samples of one distribution, however
/// few. The usual setting is 100 subsets of 1,000.
///
/// # Errors
/// No subsets, features of different widths, subsets of fewer than two, or larger than a side.
pub fn kernel_distance(
    a: Points<'_>,
    b: Points<'_>,
    subsets: usize,
    size: usize,
    rng: &mut Rng,
) -> Result<KernelDistance, EvalError> {
    at_least("subsets", 1, subsets)?;
    at_least("images in a subset", 2, size)?;
    at_least("images of each side", size, a.len().min(b.len()))?;
    same("numbers per feature vector", a.dims(), b.dims())?;
    let distances: Vec<f64> = (0..subsets)
        .map(|_| {
            let mut pick = |from: Points<'_>| {
                columns(from, index::sample(rng, from.len(), size).into_iter(), None)
            };
            let (a, b) = (pick(a), pick(b));
            unbiased(a.as_ref(), b.as_ref())
        })
        .collect();
    let n = subsets as f64;
    let mean = distances.iter().sum::<f64>() / n;
    let squares: f64 = distances.iter().map(|d| (d - mean).powi(2)).sum();
    Ok(KernelDistance {
        mean,
        deviation: (squares / n).sqrt(),
        subsets,
        size,
    })
}

/// Squared maximum mean discrepancy with the kernel `(x . y / dims + 1)^3`, unbiased (Gretton et
/// al. 2012, eq. 3).
///
/// # Errors
/// Features of different widths, or fewer than two on a side.
pub fn polynomial_mmd(a: Points<'_>, b: Points<'_>) -> Result<f64, EvalError> {
    same("numbers per feature vector", a.dims(), b.dims())?;
    at_least("images of each side", 2, a.len().min(b.len()))?;
    let (a, b) = (columns(a, 0..a.len(), None), columns(b, 0..b.len(), None));
    Ok(unbiased(a.as_ref(), b.as_ref()))
}

fn unbiased(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    let (n, m) = (a.ncols() as f64, b.ncols() as f64);
    let within = |x: MatRef<'_, f64>| {
        let products = inner(x, x);
        let of_itself: f64 = (0..x.ncols())
            .map(|i| kernel(products[(i, i)], x.nrows()))
            .sum();
        total(&products, x.nrows()) - of_itself
    };
    within(a) / (n * (n - 1.0)) + within(b) / (m * (m - 1.0))
        - 2.0 * total(&inner(a, b), a.nrows()) / (n * m)
}

fn total(products: &Mat<f64>, dims: usize) -> f64 {
    let columns = products.col_iter();
    columns
        .map(|column| {
            column
                .iter()
                .map(|product| kernel(*product, dims))
                .sum::<f64>()
        })
        .sum()
}

fn kernel(product: f64, dims: usize) -> f64 {
    (product / dims as f64 + 1.0).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{features, fixture, near};
    use maquette_rng::{Stream, rng};

    #[test]
    fn by_hand() {
        // a = {0, 1}, b = {1, 2}: (0 + 1)^3 = 1 within a, (2 + 1)^3 = 27 within b, and between
        // them 1, 1, 8 and 27, of which the mean is 37 / 4.
        let (a, b) = ([0.0, 1.0], [1.0, 2.0]);
        let of = |values| Points::new(values, 1).unwrap();
        let got = polynomial_mmd(of(&a), of(&b)).unwrap();
        assert!((got - (1.0 + 27.0 - 37.0 / 2.0)).abs() < 1e-12, "{got}");
    }

    #[test]
    fn agrees_with_torch_fidelity() {
        for case in fixture("kernel") {
            let (a, b) = features(&case);
            near(
                polynomial_mmd(a.points(), b.points()).unwrap(),
                case["kid"].as_f64().unwrap(),
            );
        }
    }

    #[test]
    fn subsets_vary_around_the_whole() {
        let case = &fixture("kernel")[0];
        let (a, b) = features(case);
        let (a, b) = (a.points(), b.points());
        let whole = polynomial_mmd(a, b).unwrap();
        let rng = &mut rng(1, Stream::Evaluate, 0);
        let got = kernel_distance(a, b, 200, a.len() / 2, rng).unwrap();
        let error = got.deviation / (got.subsets as f64).sqrt();
        assert!(
            (got.mean - whole).abs() < 4.0 * error,
            "{got:?} against {whole}"
        );
        assert!(got.deviation > 0.0);
        // A subset of everything is everything.
        let all = kernel_distance(a, b, 2, a.len().min(b.len()), rng).unwrap();
        assert!(a.len() != b.len() || (all.mean - whole).abs() < 1e-9);
    }

    #[test]
    fn bad_input_is_refused() {
        let (few, plane) = ([0.0, 1.0], [0.0, 1.0, 2.0, 3.0]);
        let few = Points::new(&few, 1).unwrap();
        let plane = Points::new(&plane, 2).unwrap();
        let rng = &mut rng(1, Stream::Evaluate, 0);
        assert!(polynomial_mmd(few, plane).is_err());
        assert!(kernel_distance(few, few, 1, 3, rng).is_err());
        assert!(kernel_distance(few, few, 0, 2, rng).is_err());
        assert!(kernel_distance(few, few, 1, 1, rng).is_err());
    }
}
