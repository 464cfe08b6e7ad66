//! Repetition, presence and frequency: what was seen becomes less likely.

use std::collections::HashMap;

use super::Decoding;
use super::candidates::Candidate;

/// Lowers the logits of tokens in `history`.
pub(super) fn penalise(candidates: &mut [Candidate], history: &[u32], decoding: &Decoding) {
    let Decoding {
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        penalty_window,
        ..
    } = *decoding;
    if (repetition_penalty, presence_penalty, frequency_penalty) == (1.0, 0.0, 0.0) {
        return;
    }
    let window = penalty_window.unwrap_or(history.len());
    let mut counts: HashMap<usize, u32> = HashMap::new();
    for &token in &history[history.len().saturating_sub(window)..] {
        *counts.entry(token as usize).or_default() += 1;
    }
    for candidate in candidates {
        if let Some(&count) = counts.get(&candidate.id) {
            let logit = &mut candidate.logit;
            *logit = match *logit > 0.0 {
                true => *logit / repetition_penalty,
                false => *logit * repetition_penalty,
            };
            *logit -= presence_penalty + frequency_penalty * f64::from(count);
        }
    }
}
