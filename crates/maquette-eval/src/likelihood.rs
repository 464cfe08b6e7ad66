//! Likelihoods in the units people compare.

use crate::error::{at_least, same, within};
use crate::{Estimate, EvalError};
use serde::Serialize;
use std::f64::consts::LN_2;

/// Perplexity of a mean negative log-likelihood per token in nats: `exp(nats)`.
pub fn perplexity(nats_per_token: f64) -> f64 {
    nats_per_token.exp()
}

/// Bits per byte of text whose whole negative log-likelihood is `total_nats`. Unlike perplexity
/// it may be compared between tokenizers.
///
/// # Errors
/// No bytes.
pub fn bits_per_byte(total_nats: f64, bytes: usize) -> Result<f64, EvalError> {
    at_least("bytes", 1, bytes)?;
    Ok(total_nats / LN_2 / bytes as f64)
}

/// Bits per dimension of an example of `dims` numbers with the negative log-likelihood `nats`.
///
/// For a density model of 8-bit images scaled by `1 / levels` (usually 256) to the unit interval,
/// pass the number of `levels`: the change of scale adds `log2(levels)` bits per dimension
/// (Theis et al. 2016, arXiv 1511.01844). For a discrete likelihood pass `None`.
///
/// # Errors
/// No dimensions.
pub fn bits_per_dim(nats: f64, dims: usize, levels: Option<usize>) -> Result<f64, EvalError> {
    at_least("dimensions", 1, dims)?;
    let scale = levels.map_or(0.0, |levels| (levels as f64).log2());
    Ok(nats / LN_2 / dims as f64 + scale)
}

/// The evidence lower bound of a latent-variable model over a set, in nats per example, as a
/// loss: lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Elbo {
    /// Negative expected log-likelihood of the data given its latent.
    pub reconstruction: Estimate,
    /// Divergence of the latent's posterior from its prior.
    pub kl: Estimate,
    /// Their sum, the bound on the negative log-likelihood.
    pub total: Estimate,
}

/// Sums up a bound from the two terms of every example, in nats.
///
/// # Errors
/// No examples, or lists of different lengths.
pub fn elbo(reconstruction: &[f64], kl: &[f64]) -> Result<Elbo, EvalError> {
    same(
        "reconstruction and KL terms",
        reconstruction.len(),
        kl.len(),
    )?;
    let total: Vec<f64> = reconstruction.iter().zip(kl).map(|(r, k)| r + k).collect();
    Ok(Elbo {
        reconstruction: Estimate::of(reconstruction)?,
        kl: Estimate::of(kl)?,
        total: Estimate::of(&total)?,
    })
}

/// The importance-weighted bound on one example's log-likelihood from `k` log-weights
/// `ln p(x, z) - ln q(z | x)`: the log of their mean, in nats (Burda et al. 2016,
/// arXiv 1509.00519, eq. 8). Tightens as `k` grows; `k = 1` is the evidence lower bound.
///
/// # Errors
/// No weights.
pub fn importance_weighted(log_weights: &[f64]) -> Result<f64, EvalError> {
    at_least("importance weights", 1, log_weights.len())?;
    Ok(log_sum_exp(log_weights) - (log_weights.len() as f64).ln())
}

/// The effective sample size `(sum w)^2 / sum w^2` of importance weights given as logs, from 1 to
/// their number: far below it, an importance-weighted figure should not be trusted.
///
/// # Errors
/// No weights, or none above minus infinity.
pub fn effective_sample_size(log_weights: &[f64]) -> Result<f64, EvalError> {
    at_least("importance weights", 1, log_weights.len())?;
    let total = log_sum_exp(log_weights);
    within("the sum of log-weights", total, total.is_finite(), "finite")?;
    let doubled: Vec<f64> = log_weights.iter().map(|w| 2.0 * w).collect();
    Ok((2.0 * total - log_sum_exp(&doubled)).exp())
}

/// `ln sum exp(x)` without overflow.
fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_infinite() {
        return largest;
    }
    largest + values.iter().map(|v| (v - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "{got} is not {want}");
    }

    #[test]
    fn units_by_hand() {
        near(perplexity(65f64.ln()), 65.0);
        near(bits_per_byte(100.0 * LN_2, 50).unwrap(), 2.0);
        near(bits_per_dim(784.0 * LN_2, 784, None).unwrap(), 1.0);
        // A uniform density on the unit cube has 0 nats: 8 bits per dimension.
        near(bits_per_dim(0.0, 784, Some(256)).unwrap(), 8.0);
        assert!(bits_per_byte(1.0, 0).is_err());
        assert!(bits_per_dim(1.0, 0, None).is_err());
    }

    #[test]
    fn the_bound_adds_up() {
        let got = elbo(&[80.0, 90.0], &[20.0, 30.0]).unwrap();
        near(got.reconstruction.mean, 85.0);
        near(got.kl.mean, 25.0);
        near(got.total.mean, 110.0);
        // Totals 100 and 120: s^2 = 200, standard error 10.
        near(got.total.standard_error, 10.0);
        assert!(elbo(&[1.0], &[]).is_err());
    }

    #[test]
    fn importance_weights_by_hand() {
        // ln((1 + 3) / 2).
        near(importance_weighted(&[0.0, 3f64.ln()]).unwrap(), 2f64.ln());
        near(importance_weighted(&[-1000.0, -1000.0]).unwrap(), -1000.0);
        // (1 + 3)^2 / (1 + 9).
        near(effective_sample_size(&[0.0, 3f64.ln()]).unwrap(), 1.6);
        near(effective_sample_size(&[-700.0; 5]).unwrap(), 5.0);
        assert!(importance_weighted(&[]).is_err());
        assert!(effective_sample_size(&[f64::NEG_INFINITY]).is_err());
    }
}
