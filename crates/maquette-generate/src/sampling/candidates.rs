//! Tokens that may still be drawn, and their probabilities.

use std::cmp::Ordering;

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: usize,
    pub(super) logit: f64,
}

/// The more probable first; of equals the lower id.
pub(super) fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The largest logit.
pub(super) fn best(candidates: &[Candidate]) -> f64 {
    let logits = candidates.iter().map(|c| c.logit);
    logits.fold(f64::NEG_INFINITY, f64::max)
}

/// Softmax of the candidates' logits.
pub(super) fn softmax(candidates: &[Candidate]) -> Vec<f64> {
    let best = best(candidates);
    let mass: Vec<f64> = candidates.iter().map(|c| (c.logit - best).exp()).collect();
    let total: f64 = mass.iter().sum();
    mass.iter().map(|mass| mass / total).collect()
}

/// How many of the masses, in their order, are needed to reach the share `p` of their sum.
pub(super) fn nucleus(mass: &[f64], p: f64) -> usize {
    let target = p * mass.iter().sum::<f64>();
    let mut reached = 0.0;
    for (i, m) in mass.iter().enumerate() {
        reached += m;
        if reached >= target {
            return i + 1;
        }
    }
    mass.len()
}
