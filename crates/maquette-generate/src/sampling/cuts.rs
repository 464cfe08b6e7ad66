//! Steps that keep some candidates and leave out the rest.

use super::candidates::{Candidate, best, better, nucleus, softmax};

/// The `keep` most probable.
pub(super) fn top_k(candidates: &mut Vec<Candidate>, keep: usize) {
    if keep < candidates.len() {
        candidates.select_nth_unstable_by(keep - 1, better);
        candidates.truncate(keep);
    }
}

/// The fewest whose mass reaches `p`.
pub(super) fn top_p(candidates: &mut Vec<Candidate>, p: f64) {
    candidates.sort_unstable_by(better);
    let keep = nucleus(&softmax(candidates), p);
    candidates.truncate(keep);
}

/// Those at least `p` times as probable as the best.
pub(super) fn min_p(candidates: &mut Vec<Candidate>, p: f64) {
    let best = best(candidates);
    candidates.retain(|c| (c.logit - best).exp() >= p);
}

/// The fewest whose mass reaches `p`, those first whose surprise is nearest to the entropy.
pub(super) fn typical(candidates: &mut Vec<Candidate>, p: f64) {
    let mass = softmax(candidates);
    let surprise = |mass: f64| match mass > 0.0 {
        true => -mass.ln(),
        false => f64::INFINITY,
    };
    let possible = mass.iter().filter(|m| **m > 0.0);
    let entropy: f64 = possible.map(|m| m * surprise(*m)).sum();
    let unusual = |i: usize| (surprise(mass[i]) - entropy).abs();
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by(|&a, &b| {
        let ids = candidates[a].id.cmp(&candidates[b].id);
        unusual(a).total_cmp(&unusual(b)).then(ids)
    });
    let sorted: Vec<f64> = order.iter().map(|&i| mass[i]).collect();
    order.truncate(nucleus(&sorted, p));
    *candidates = order.iter().map(|&i| candidates[i]).collect();
}

/// Those whose logit is at most `n` standard deviations of the logits below the best.
pub(super) fn top_n_sigma(candidates: &mut Vec<Candidate>, n: f64) {
    let count = candidates.len() as f64;
    let logits = || candidates.iter().map(|c| c.logit);
    let mean = logits().sum::<f64>() / count;
    let variance = logits().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count;
    let least = best(candidates) - n * variance.sqrt();
    candidates.retain(|c| c.logit >= least);
}

/// The candidates without those of at least this probability but the least of them; none if fewer
/// than two are as probable.
pub(super) fn without_top_choices(
    candidates: &[Candidate],
    threshold: f64,
) -> Option<Vec<Candidate>> {
    let mut sorted = candidates.to_vec();
    sorted.sort_unstable_by(better);
    let likely = softmax(&sorted).iter().filter(|p| **p >= threshold).count();
    (likely >= 2).then(|| sorted.split_off(likely - 1))
}

/// Those whose surprise is at most `bound` bits, the most probable one in any case.
pub(super) fn surprise_at_most(candidates: &mut Vec<Candidate>, bound: f64) {
    candidates.sort_unstable_by(better);
    let mass = softmax(candidates);
    let keep = mass.iter().take_while(|mass| -mass.log2() <= bound).count();
    candidates.truncate(keep.max(1));
}
