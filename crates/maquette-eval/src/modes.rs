//! Mode coverage: of 2-D samples from a mixture whose centres are known, and of images whose classes
//! a classifier reads.
//!
//! In the plane the definition is VEEGAN's (Srivastava et al. 2017, arXiv 1705.07761), as used by
//! PacGAN and most later work: a sample is of *high quality* when it lies within three standard
//! deviations of its nearest centre; a mode is *covered* when at least one high-quality sample
//! has it as its nearest centre. One sample in ten thousand is a low bar, so the bar can be set.

use crate::EvalError;
use crate::divergence::kl;
use crate::error::{at_least, within};
use serde::Serialize;

/// What counts as near a mode, and as covering it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModeRule {
    /// A sample is of high quality within so many standard deviations (Euclidean distance).
    pub n_sigma: f64,
    /// A mode is covered by at least so many high-quality samples ...
    pub least_count: usize,
    /// ... and at least this share of all samples.
    pub least_share: f64,
}

impl Default for ModeRule {
    /// VEEGAN's: 3 standard deviations, one sample.
    fn default() -> Self {
        Self {
            n_sigma: 3.0,
            least_count: 1,
            least_share: 0.0,
        }
    }
}

/// How well samples cover the modes of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Modes {
    /// Modes covered.
    pub covered: usize,
    /// Modes there are.
    pub total: usize,
    /// Share of samples of high quality. Perfect samples of a 2-D Gaussian mixture reach
    /// `1 - exp(-n_sigma^2 / 2)`, which is 0.989 for 3.
    pub high_quality: f64,
    /// High-quality samples per mode, in the order of the centres.
    pub counts: Vec<usize>,
    /// KL divergence of the high-quality samples' histogram over the modes from the uniform one,
    /// in nats: 0 when all modes are visited equally, `ln(total)` when only one is or none.
    pub imbalance: f64,
}

/// Measures the mode coverage of `points`, drawn by a model of a mixture of equal, isotropic
/// Gaussians of standard deviation `sigma` around `centres`.
///
/// A point with a coordinate that is not a number is not of high quality.
///
/// # Errors
/// No points, no centres, or a `sigma` that is not positive.
pub fn modes(
    points: &[[f32; 2]],
    centres: &[[f32; 2]],
    sigma: f64,
    rule: &ModeRule,
) -> Result<Modes, EvalError> {
    at_least("points", 1, points.len())?;
    at_least("centres", 1, centres.len())?;
    within("sigma", sigma, sigma > 0.0, "more than 0")?;

    let reach = (rule.n_sigma * sigma).powi(2);
    let mut counts = vec![0; centres.len()];
    for point in points {
        let (nearest, distance) = centres
            .iter()
            .map(|centre| square_distance(point, centre))
            .enumerate()
            .fold((0, f64::INFINITY), |best, (i, d)| match d < best.1 {
                true => (i, d),
                false => best,
            });
        if distance <= reach {
            counts[nearest] += 1;
        }
    }
    let n = points.len() as f64;
    let good: usize = counts.iter().sum();
    let covers =
        |&&count: &&usize| count >= rule.least_count.max(1) && count as f64 >= rule.least_share * n;
    Ok(Modes {
        covered: counts.iter().filter(covers).count(),
        total: centres.len(),
        high_quality: good as f64 / n,
        imbalance: imbalance(&counts, good),
        counts,
    })
}

fn square_distance(a: &[f32; 2], b: &[f32; 2]) -> f64 {
    let d = |i: usize| f64::from(a[i]) - f64::from(b[i]);
    d(0) * d(0) + d(1) * d(1)
}

fn imbalance(counts: &[usize], good: usize) -> f64 {
    let modes = counts.len() as f64;
    if good == 0 {
        return modes.ln();
    }
    let share = |&count: &usize| count as f64 / good as f64;
    let divergence: f64 = counts
        .iter()
        .map(share)
        .filter(|p| *p > 0.0)
        .map(|p| p * (p * modes).ln())
        .sum();
    divergence.max(0.0)
}

/// Which classes of a labelled set images are of, as a classifier reads them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassModes {
    /// Classes with at least one image.
    pub covered: usize,
    /// Classes there are.
    pub total: usize,
    /// Images of each class.
    pub counts: Vec<usize>,
    /// KL divergence of the classes' shares from those of the reference, in nats: 0 when every class
    /// is as frequent as there; infinite where a class is read that the reference lacks.
    pub kl: f64,
}

/// Counts modes as Stacked MNIST is judged (Metz et al. 2017, arXiv 1611.02163): `read` are the
/// classes of generated images, `reference` how many images of each class there are in the data.
///
/// # Errors
/// No images on either side, or a class that the reference does not list.
pub fn class_modes(read: &[usize], reference: &[usize]) -> Result<ClassModes, EvalError> {
    at_least("images", 1, read.len())?;
    let all: usize = reference.iter().sum();
    at_least("images of the reference", 1, all)?;
    let mut counts = vec![0usize; reference.len()];
    for &class in read {
        let known = class < counts.len();
        within("a class", class as f64, known, "one of the reference's")?;
        counts[class] += 1;
    }
    let shares = |counts: &[usize], n: usize| -> Vec<f64> {
        counts
            .iter()
            .map(|&count| count as f64 / n as f64)
            .collect()
    };
    Ok(ClassModes {
        covered: counts.iter().filter(|count| **count > 0).count(),
        total: counts.len(),
        kl: kl(&shares(&counts, read.len()), &shares(reference, all))?,
        counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, normal, rng};

    const CENTRES: [[f32; 2]; 3] = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]];

    #[test]
    fn classes_by_hand() {
        // Shares 3/4, 1/4, 0 against 1/2, 1/4, 1/4.
        let got = class_modes(&[0, 1, 0, 0], &[20, 10, 10]).unwrap();
        assert_eq!((got.covered, got.total), (2, 3));
        assert_eq!(got.counts, [3, 1, 0]);
        assert!((got.kl - 0.75 * 1.5f64.ln()).abs() < 1e-12);
        assert!(class_modes(&[3], &[1, 1, 1]).is_err());
        assert!(class_modes(&[], &[1]).is_err());
        assert!(class_modes(&[0], &[0]).is_err());
    }

    #[test]
    fn by_hand() {
        // Within 3 of the first centre: 2; of the second: 1, exactly at 3; the rest too far.
        let points = [
            [0.0, 0.0],
            [1.0, -2.0],
            [10.0, 3.0],
            [10.0, 3.1],
            [5.0, 5.0],
        ];
        let got = modes(&points, &CENTRES, 1.0, &ModeRule::default()).unwrap();
        assert_eq!((got.covered, got.total), (2, 3));
        assert_eq!(got.counts, [2, 1, 0]);
        assert_eq!(got.high_quality, 0.6);
        // 2/3 ln 2 + 1/3 ln 1 = 0.4621.
        assert!((got.imbalance - 2.0 / 3.0 * 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn the_bar_for_coverage_can_be_raised() {
        let points = [[0.0, 0.0], [0.0, 0.0], [10.0, 0.0], [0.0, 10.0]];
        let covered = |rule| modes(&points, &CENTRES, 1.0, &rule).unwrap().covered;
        let rule = ModeRule::default();
        assert_eq!(covered(rule), 3);
        assert_eq!(
            covered(ModeRule {
                least_count: 2,
                ..rule
            }),
            1
        );
        assert_eq!(
            covered(ModeRule {
                least_share: 0.25,
                ..rule
            }),
            3
        );
        assert_eq!(
            covered(ModeRule {
                least_share: 0.3,
                ..rule
            }),
            1
        );
    }

    #[test]
    fn nothing_good_covers_nothing() {
        let got = modes(&[[f32::NAN, 0.0]], &CENTRES, 1.0, &ModeRule::default()).unwrap();
        assert_eq!((got.covered, got.high_quality), (0, 0.0));
        assert!((got.imbalance - 3f64.ln()).abs() < 1e-12);
        assert!(modes(&[], &CENTRES, 1.0, &ModeRule::default()).is_err());
        assert!(modes(&[[0.0, 0.0]], &[], 1.0, &ModeRule::default()).is_err());
        assert!(modes(&[[0.0, 0.0]], &CENTRES, 0.0, &ModeRule::default()).is_err());
    }

    #[test]
    fn perfect_samples_reach_the_rayleigh_ceiling() {
        let noise = normal(&mut rng(1, Stream::Evaluate, 0), 2 * 50_000);
        let points: Vec<[f32; 2]> = noise.chunks(2).map(|p| [p[0], p[1]]).collect();
        let got = modes(&points, &[[0.0, 0.0]], 1.0, &ModeRule::default()).unwrap();
        assert!((got.high_quality - (1.0 - (-4.5f64).exp())).abs() < 0.002);
    }
}
