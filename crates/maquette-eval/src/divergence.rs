//! How far one distribution is from another, in nats.
//!
//! `kl(p, q)` is the *forward* divergence of a model `q` from data `p`; `kl(q, p)`, the
//! *reverse*, forgives a model that drops modes and punishes one that invents them.

use crate::error::{at_least, same, within};
use crate::{Estimate, EvalError};

/// Kullback-Leibler divergence `sum p ln(p / q)` of two categorical distributions, in nats;
/// infinite when `q` forbids what `p` allows.
///
/// # Errors
/// Different or no categories, or entries that are no probabilities with sum 1 (within 1e-6).
pub fn kl(p: &[f64], q: &[f64]) -> Result<f64, EvalError> {
    categorical(p, q)?;
    Ok(relative_entropy(p, q))
}

/// Jensen-Shannon divergence in nats: the mean divergence of both from their mixture, from 0 to
/// ln 2 (Lin 1991).
///
/// # Errors
/// As [`kl`].
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> Result<f64, EvalError> {
    categorical(p, q)?;
    let middle: Vec<f64> = p.iter().zip(q).map(|(p, q)| 0.5 * (p + q)).collect();
    Ok(0.5 * (relative_entropy(p, &middle) + relative_entropy(q, &middle)))
}

/// Total variation distance, half the sum of absolute differences, from 0 to 1.
///
/// # Errors
/// As [`kl`].
pub fn total_variation(p: &[f64], q: &[f64]) -> Result<f64, EvalError> {
    categorical(p, q)?;
    Ok(0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>())
}

/// Entropy of a categorical distribution in nats.
///
/// # Errors
/// As [`kl`].
pub fn entropy(p: &[f64]) -> Result<f64, EvalError> {
    categorical(p, p)?;
    Ok(-p
        .iter()
        .filter(|p| **p > 0.0)
        .map(|p| p * p.ln())
        .sum::<f64>())
}

/// A Gaussian with independent coordinates.
#[derive(Debug, Clone, Copy)]
pub struct Gaussian<'a> {
    /// The mean of each coordinate.
    pub mean: &'a [f64],
    /// The variance of each coordinate, more than 0.
    pub variance: &'a [f64],
}

/// KL divergence of the Gaussian `q` from the Gaussian `p` in nats:
/// `1/2 sum ln(vq / vp) + (vp + (mp - mq)^2) / vq - 1`
/// (Kingma & Welling 2014, arXiv 1312.6114, appendix B, is the case of a standard `q`).
///
/// # Errors
/// Different or no coordinates, or a variance that is not positive.
pub fn gaussian_kl(p: Gaussian<'_>, q: Gaussian<'_>) -> Result<f64, EvalError> {
    at_least("coordinates", 1, p.mean.len())?;
    same("means of the two Gaussians", p.mean.len(), q.mean.len())?;
    same("means and variances", p.mean.len(), p.variance.len())?;
    same("means and variances", q.mean.len(), q.variance.len())?;
    for &v in p.variance.iter().chain(q.variance) {
        within("a variance", v, v > 0.0 && v.is_finite(), "more than 0")?;
    }
    let sum: f64 = (0..p.mean.len())
        .map(|i| {
            let (vp, vq) = (p.variance[i], q.variance[i]);
            let apart = p.mean[i] - q.mean[i];
            (vq / vp).ln() + (vp + apart * apart) / vq - 1.0
        })
        .sum();
    Ok(0.5 * sum)
}

/// How to estimate `KL(p || q)` from samples of `p`, with `r = q(x) / p(x)`
/// (Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KlEstimator {
    /// `-ln r`: unbiased, large variance, may come out negative.
    K1,
    /// `(ln r)^2 / 2`: biased, small variance, never negative.
    K2,
    /// `r - 1 - ln r`: unbiased, small variance, never negative.
    K3,
}

/// Monte-Carlo estimate of `KL(p || q)` in nats from the log-densities of samples drawn from `p`.
///
/// # Errors
/// No samples, or lists of different lengths.
pub fn estimate_kl(
    log_p: &[f64],
    log_q: &[f64],
    estimator: KlEstimator,
) -> Result<Estimate, EvalError> {
    same("log-densities of p and of q", log_p.len(), log_q.len())?;
    let terms: Vec<f64> = log_p
        .iter()
        .zip(log_q)
        .map(|(p, q)| {
            let log_r = q - p;
            match estimator {
                KlEstimator::K1 => -log_r,
                KlEstimator::K2 => 0.5 * log_r * log_r,
                KlEstimator::K3 => log_r.exp_m1() - log_r,
            }
        })
        .collect();
    Estimate::of(&terms)
}

fn categorical(p: &[f64], q: &[f64]) -> Result<(), EvalError> {
    at_least("categories", 1, p.len())?;
    same("categories of the two distributions", p.len(), q.len())?;
    for side in [p, q] {
        for &v in side {
            within("a probability", v, (0.0..=1.0).contains(&v), "from 0 to 1")?;
        }
        let sum: f64 = side.iter().sum();
        within("a sum of probabilities", sum, (sum - 1.0).abs() < 1e-6, "1")?;
    }
    Ok(())
}

fn relative_entropy(p: &[f64], q: &[f64]) -> f64 {
    p.iter()
        .zip(q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| p * (p / q).ln())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, normal, rng};
    use proptest::prelude::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "{got} is not {want}");
    }

    #[test]
    fn categorical_by_hand() {
        let (p, q) = ([0.5, 0.5], [0.25, 0.75]);
        // 0.5 ln 2 + 0.5 ln(2/3), and 0.25 ln(1/2) + 0.75 ln(3/2).
        near(kl(&p, &q).unwrap(), 0.5 * (4f64 / 3.0).ln());
        near(kl(&q, &p).unwrap(), 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln());
        near(total_variation(&p, &q).unwrap(), 0.25);
        near(entropy(&p).unwrap(), 2f64.ln());
        let (a, b) = ([1.0, 0.0], [0.0, 1.0]);
        near(jensen_shannon(&a, &b).unwrap(), 2f64.ln());
        assert_eq!(kl(&a, &b).unwrap(), f64::INFINITY);
        near(kl(&a, &p).unwrap(), 2f64.ln());
    }

    #[test]
    fn gaussians_by_hand() {
        // KL(N(1, 1) || N(0, 1)) = 1/2; KL(N(0, 4) || N(0, 1)) = (-ln 4 + 4 - 1) / 2.
        let one = |mean, variance| Gaussian { mean, variance };
        near(
            gaussian_kl(one(&[1.0], &[1.0]), one(&[0.0], &[1.0])).unwrap(),
            0.5,
        );
        near(
            gaussian_kl(one(&[0.0], &[4.0]), one(&[0.0], &[1.0])).unwrap(),
            (3.0 - 4f64.ln()) / 2.0,
        );
        near(
            gaussian_kl(one(&[1.0, 0.0], &[1.0, 4.0]), one(&[0.0, 0.0], &[1.0, 1.0])).unwrap(),
            0.5 + (3.0 - 4f64.ln()) / 2.0,
        );
        assert!(gaussian_kl(one(&[0.0], &[0.0]), one(&[0.0], &[1.0])).is_err());
        assert!(gaussian_kl(one(&[0.0], &[1.0]), one(&[0.0, 1.0], &[1.0, 1.0])).is_err());
    }

    #[test]
    fn estimators_by_hand() {
        // One sample with r = 1/2.
        let estimate = |e| estimate_kl(&[0.0], &[0.5f64.ln()], e).unwrap().mean;
        near(estimate(KlEstimator::K1), 2f64.ln());
        near(estimate(KlEstimator::K2), 2f64.ln().powi(2) / 2.0);
        near(estimate(KlEstimator::K3), -0.5 + 2f64.ln());
        assert!(estimate_kl(&[], &[], KlEstimator::K1).is_err());
        assert!(estimate_kl(&[0.0], &[], KlEstimator::K1).is_err());
    }

    #[test]
    fn estimators_find_the_closed_form() {
        // p = N(0, 1), q = N(0.5, 1): KL = 0.125 nats.
        let x = normal(&mut rng(2, Stream::Evaluate, 0), 200_000);
        let log_density = |x: f64, mean: f64| -0.5 * (x - mean).powi(2);
        let p: Vec<f64> = x.iter().map(|x| log_density(f64::from(*x), 0.0)).collect();
        let q: Vec<f64> = x.iter().map(|x| log_density(f64::from(*x), 0.5)).collect();
        let k1 = estimate_kl(&p, &q, KlEstimator::K1).unwrap();
        let k2 = estimate_kl(&p, &q, KlEstimator::K2).unwrap();
        let k3 = estimate_kl(&p, &q, KlEstimator::K3).unwrap();
        assert!((k1.mean - 0.125).abs() < 4.0 * k1.standard_error);
        assert!((k3.mean - 0.125).abs() < 4.0 * k3.standard_error);
        // E[(ln r)^2] / 2 = (0.25 + 0.125^2) / 2: the bias of k2.
        assert!((k2.mean - (0.25 + 0.015625) / 2.0).abs() < 4.0 * k2.standard_error);
        assert!(k3.standard_error < k1.standard_error / 2.0);
    }

    #[test]
    fn bad_distributions_are_refused() {
        assert!(kl(&[], &[]).is_err());
        assert!(kl(&[1.0], &[0.5, 0.5]).is_err());
        assert!(kl(&[0.5, 0.4], &[0.5, 0.5]).is_err());
        assert!(kl(&[1.5, -0.5], &[0.5, 0.5]).is_err());
        assert!(kl(&[f64::NAN, 0.5], &[0.5, 0.5]).is_err());
    }

    proptest! {
        #[test]
        fn divergences_are_not_negative_and_vanish_on_equals(
            raw in prop::collection::vec((0.01f64..1.0, 0.01f64..1.0), 1..20),
        ) {
            let norm = |v: Vec<f64>| { let s: f64 = v.iter().sum(); v.iter().map(|x| x / s).collect::<Vec<_>>() };
            let p = norm(raw.iter().map(|r| r.0).collect());
            let q = norm(raw.iter().map(|r| r.1).collect());
            let js = jensen_shannon(&p, &q).unwrap();
            prop_assert!(kl(&p, &q).unwrap() > -1e-12);
            prop_assert!((-1e-12..=2f64.ln() + 1e-12).contains(&js));
            prop_assert!((js - jensen_shannon(&q, &p).unwrap()).abs() < 1e-12);
            prop_assert!(kl(&p, &p).unwrap().abs() < 1e-12);
            // Pinsker: KL >= 2 TV^2.
            let tv = total_variation(&p, &q).unwrap();
            prop_assert!(kl(&p, &q).unwrap() >= 2.0 * tv * tv - 1e-12);
        }
    }
}
