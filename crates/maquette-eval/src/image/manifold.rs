//! Fidelity apart from diversity: which samples lie among which, by nearest neighbours.

use faer::Mat;
use serde::Serialize;

use super::matrix::{columns, inner};
use crate::EvalError;
use crate::error::{at_least, same};
use crate::points::Points;

/// How generated samples lie among real ones, and these among them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Manifold {
    /// Share of generated samples within the ball of at least one real one.
    pub precision: f64,
    /// Share of real samples within the ball of at least one generated one.
    pub recall: f64,
    /// Mean number of real balls a generated sample lies in, over `k`; not bounded by 1.
    pub density: f64,
    /// Share of real balls with at least one generated sample in them.
    pub coverage: f64,
}

/// Rows of distances that are at hand at a time.
const BLOCK: usize = 512;

/// Precision and recall of Kynkäänniemi et al. 2019 (arXiv 1904.06991), density and coverage of
/// Naeem et al. 2020 (arXiv 2002.09797). The ball of a sample reaches to its `k`-th nearest
/// neighbour of its own set; the papers take 3 for the first two and 5 for the others.
///
/// # Errors
/// Features of different widths, no neighbours, or a set without `k` neighbours for each.
pub fn manifold(real: Points<'_>, generated: Points<'_>, k: usize) -> Result<Manifold, EvalError> {
    same("numbers per feature vector", real.dims(), generated.dims())?;
    at_least("neighbours", 1, k)?;
    at_least(
        "images of each side",
        k + 1,
        real.len().min(generated.len()),
    )?;
    let (real, generated) = (Set::new(real), Set::new(generated));
    let (real_radii, made_radii) = (real.radii(k), generated.radii(k));
    // Per generated sample, in how many balls of real ones it lies.
    let mut inside = vec![0usize; generated.len()];
    let (mut covered, mut recalled) = (0usize, 0usize);
    real.each_row_against(&generated, |i, distances| {
        let (mut any_made, mut any_real) = (false, false);
        for (j, &distance) in distances.iter().enumerate() {
            let in_real_ball = distance <= real_radii[i];
            inside[j] += usize::from(in_real_ball);
            any_made |= in_real_ball;
            any_real |= distance <= made_radii[j];
        }
        covered += usize::from(any_made);
        recalled += usize::from(any_real);
    });
    let (n, m) = (real.len() as f64, generated.len() as f64);
    Ok(Manifold {
        precision: inside.iter().filter(|count| **count > 0).count() as f64 / m,
        recall: recalled as f64 / n,
        density: inside.iter().sum::<usize>() as f64 / (k as f64 * m),
        coverage: covered as f64 / n,
    })
}

/// Features and their squared lengths.
struct Set {
    columns: Mat<f64>,
    squares: Vec<f64>,
}

impl Set {
    fn new(points: Points<'_>) -> Self {
        let columns = columns(points, 0..points.len(), None);
        let squares = columns.col_iter().map(|x| x.squared_norm_l2()).collect();
        Self { columns, squares }
    }

    fn len(&self) -> usize {
        self.squares.len()
    }

    /// Squared distances of each of these samples to all of `other`.
    fn each_row_against(&self, other: &Self, mut row: impl FnMut(usize, &[f64])) {
        for first in (0..self.len()).step_by(BLOCK) {
            let count = BLOCK.min(self.len() - first);
            let block = self.columns.subcols(first, count);
            let mut products = inner(other.columns.as_ref(), block);
            for column in 0..count {
                let distances = products.col_as_slice_mut(column);
                for (distance, square) in distances.iter_mut().zip(&other.squares) {
                    *distance = square + self.squares[first + column] - 2.0 * *distance;
                }
                row(first + column, distances);
            }
        }
    }

    /// Squared distance of each sample to its `k`-th nearest neighbour.
    fn radii(&self, k: usize) -> Vec<f64> {
        let mut radii = Vec::with_capacity(self.len());
        let mut others = Vec::with_capacity(self.len());
        self.each_row_against(self, |i, distances| {
            others.clear();
            others.extend_from_slice(&distances[..i]);
            others.extend_from_slice(&distances[i + 1..]);
            radii.push(*others.select_nth_unstable_by(k - 1, f64::total_cmp).1);
        });
        radii
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{features, fixture, near};

    #[test]
    fn by_hand() {
        // Real 0, 1, 10 with radii 1, 1, 9; generated 0.5, 30, 31 with radii 29.5, 1, 1. The first
        // generated lies in the balls of 0 and 1 (not of 10: 9.5 > 9), the others in none. Real
        // ones all lie within 29.5 of 0.5.
        let (real, made) = ([0.0, 1.0, 10.0], [0.5, 30.0, 31.0]);
        let of = |values| Points::new(values, 1).unwrap();
        let got = manifold(of(&real), of(&made), 1).unwrap();
        near(got.precision, 1.0 / 3.0);
        near(got.recall, 1.0);
        near(got.density, 2.0 / 3.0);
        near(got.coverage, 2.0 / 3.0);
    }

    #[test]
    fn agrees_with_torch_fidelity_and_prdc() {
        for case in fixture("manifold") {
            let (real, made) = features(&case);
            let at = |k| manifold(real.points(), made.points(), k).unwrap();
            let want = |name: &str| case[name].as_f64().unwrap();
            near(at(3).precision, want("precision"));
            near(at(3).recall, want("recall"));
            near(at(5).density, want("density"));
            near(at(5).coverage, want("coverage"));
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let few = [0.0, 1.0, 2.0];
        let few = Points::new(&few, 1).unwrap();
        assert!(manifold(few, few, 3).is_err());
        assert!(manifold(few, few, 0).is_err());
    }
}
