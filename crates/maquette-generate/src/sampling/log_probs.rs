//! Log-probabilities of tokens under the model itself, before any step of decoding.

use serde::Serialize;

use super::candidates::{Candidate, better};

/// How probable the model held a token, and what it held more or as probable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogProb {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub log_prob: f32,
    /// The most probable tokens and theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// Log-softmax of `logits`; minus infinity stays.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass: f64 = logits.iter().map(|l| f64::from(l - best).exp()).sum();
    let total = f64::from(best) + mass.ln();
    logits
        .iter()
        .map(|l| (f64::from(*l) - total) as f32)
        .collect()
}

/// The log-probability of `id` and of the `top` most probable tokens.
///
/// # Panics
/// When `id` has no logit.
pub fn token_log_prob(logits: &[f32], id: u32, top: usize) -> TokenLogProb {
    let log_probs = log_softmax(logits);
    let mut best: Vec<Candidate> = Vec::new();
    if top > 0 {
        let all = log_probs.iter().enumerate();
        best = all
            .map(|(id, &log_prob)| Candidate {
                id,
                logit: f64::from(log_prob),
            })
            .collect();
        super::cuts::top_k(&mut best, top);
        best.sort_unstable_by(better);
    }
    TokenLogProb {
        id,
        log_prob: log_probs[id as usize],
        top: best.iter().map(|c| (c.id as u32, c.logit as f32)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [
            0.1f32.ln() + 3.0,
            0.4f32.ln() + 3.0,
            0.2f32.ln() + 3.0,
            0.3f32.ln() + 3.0,
        ];
        let got = token_log_prob(&logits, 2, 2);
        assert!((got.log_prob - 0.2f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = got.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3]);
        assert!((got.top[1].1 - 0.3f32.ln()).abs() < 1e-6);
        let huge = token_log_prob(&[f32::MAX, -f32::MAX], 0, 0);
        assert_eq!((huge.log_prob, huge.top.len()), (0.0, 0));
    }
}
