//! How different samples are from each other, whatever they are like.

use crate::EvalError;
use crate::error::{at_least, same};
use rayon::prelude::*;
use serde::Serialize;

/// Distances between the samples of one set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Diversity {
    /// Mean Euclidean distance of two different samples.
    pub mean: f64,
    /// The smallest such distance.
    pub smallest: f64,
    /// Mean distance of a sample to the one nearest to it.
    pub mean_nearest: f64,
    /// How many samples have an exact double.
    pub duplicated: usize,
}

/// Euclidean distances between all pairs of samples: pixels, points or features, in whose units
/// the figures are. A set that has collapsed has a small mean, one with repeated samples a small
/// mean nearest distance. Takes time quadratic in the number of samples.
///
/// # Shapes
/// - samples: `[n, dims]`, row by row
///
/// # Errors
/// Fewer than two samples, or incomplete ones.
pub fn diversity(samples: &[f32], dims: usize) -> Result<Diversity, EvalError> {
    at_least("dimensions", 1, dims)?;
    same("numbers in the last sample", samples.len() % dims, 0)?;
    let rows: Vec<&[f32]> = samples.chunks_exact(dims).collect();
    let n = rows.len();
    at_least("samples", 2, n)?;
    // Per sample: the sum of its distances to all others, and the smallest.
    let each: Vec<(f64, f64)> = rows
        .par_iter()
        .enumerate()
        .map(|(i, a)| {
            let others = rows.iter().enumerate().filter(|(j, _)| *j != i);
            others
                .map(|(_, b)| distance(a, b))
                .fold((0.0, f64::INFINITY), |(sum, least), d| {
                    (sum + d, least.min(d))
                })
        })
        .collect();
    Ok(Diversity {
        mean: each.iter().map(|e| e.0).sum::<f64>() / (n * (n - 1)) as f64,
        smallest: each.iter().map(|e| e.1).fold(f64::INFINITY, f64::min),
        mean_nearest: each.iter().map(|e| e.1).sum::<f64>() / n as f64,
        duplicated: each.iter().filter(|e| e.1 == 0.0).count(),
    })
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    f64::from(square).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // A 3-4-5 triangle and a double of its right angle: 3 3 4 4 5 0.
        let got = diversity(&[0.0, 0.0, 3.0, 0.0, 0.0, 4.0, 0.0, 0.0], 2).unwrap();
        assert!((got.mean - 19.0 / 6.0).abs() < 1e-12);
        assert_eq!(got.smallest, 0.0);
        assert_eq!(got.mean_nearest, 7.0 / 4.0);
        assert_eq!(got.duplicated, 2);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(diversity(&[1.0, 2.0], 2).is_err());
        assert!(diversity(&[1.0, 2.0, 3.0], 2).is_err());
        assert!(diversity(&[], 0).is_err());
    }
}
