//! From logits to one token: which tokens stay, with which probability, and the draw.
//!
//! [`distribution`] is the whole rule as a pure function, so that the probability of every token
//! that [`sample`] may return is known exactly. What one text remembers from token to token is a
//! value, [`TokenSampler`].

mod candidates;
mod cuts;
mod decoding;
mod dry;
mod log_probs;
mod mirostat;
mod order;
mod penalties;
mod sampler;

pub use decoding::{Decoding, Xtc};
pub use dry::{Breakers, Dry};
pub use log_probs::{TokenLogProb, log_softmax, token_log_prob};
use mirostat::Bound;
pub use mirostat::Mirostat;
pub use order::{Order, Step};
pub use sampler::{Bias, Drawn, TokenSampler};

use crate::GenerateError;
use candidates::{Candidate, best, better, softmax};
use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, StandardUniform};

/// The exact probability of every token under `decoding`: non-negative, with sum 1. Of [`Mirostat`] it
/// is the first token's and [`Dry`] breaks nowhere; [`TokenSampler::distribution`] knows both.
///
/// `logits` holds one number per token of the vocabulary; minus infinity forbids a token.
/// `history` holds the ids that count as already seen. Equal logits are ordered by id, so greedy
/// decoding takes the lowest.
///
/// # Errors
/// An option out of range, a logit that is not a number, a history outside the vocabulary, or no
/// token with a logit above minus infinity.
pub fn distribution(
    logits: &[f32],
    history: &[u32],
    decoding: &Decoding,
) -> Result<Vec<f32>, GenerateError> {
    decoding.check()?;
    let past = Past {
        decoding,
        history,
        bound: Bound::of(decoding),
        breakers: &Breakers::default(),
    };
    past.distribution(logits)
}

/// What the next token depends on besides its logits.
struct Past<'a> {
    decoding: &'a Decoding,
    history: &'a [u32],
    bound: Bound,
    breakers: &'a Breakers,
}

impl Past<'_> {
    fn distribution(&self, logits: &[f32]) -> Result<Vec<f32>, GenerateError> {
        if let Some(token) = logits.iter().position(|l| l.is_nan()) {
            return Err(GenerateError::NotANumber { token });
        }
        let vocab_size = logits.len();
        if let Some(&token) = self.history.iter().find(|id| **id as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        // Positive infinity becomes the largest finite number, so that differences stay defined.
        let candidates = logits.iter().enumerate().map(|(id, &logit)| Candidate {
            id,
            logit: f64::from(logit.min(f32::MAX)),
        });
        let candidates: Vec<_> = candidates.filter(|c| c.logit > f64::NEG_INFINITY).collect();
        if candidates.is_empty() {
            return Err(GenerateError::NothingPossible { vocab_size });
        }
        let mut probabilities = vec![0.0; vocab_size];
        let steps: Vec<Step> = self.decoding.order.steps().collect();
        self.finish(candidates, &steps, 1.0, &mut probabilities);
        Ok(probabilities.iter().map(|p| *p as f32).collect())
    }

    /// Takes the steps and adds what is left, times `share`, to the probabilities.
    fn finish(
        &self,
        mut candidates: Vec<Candidate>,
        steps: &[Step],
        share: f64,
        probabilities: &mut [f64],
    ) {
        for (taken, step) in steps.iter().enumerate() {
            if *step != Step::Xtc {
                self.take(*step, &mut candidates);
                continue;
            }
            let rule = self.decoding.xtc.filter(|_| self.cuts());
            let Some(rule) = rule else { continue };
            // Both ways to go on, each with how often it is gone.
            if let Some(rest) = cuts::without_top_choices(&candidates, rule.threshold) {
                let after = &steps[taken + 1..];
                self.finish(rest, after, share * rule.probability, probabilities);
                let share = share * (1.0 - rule.probability);
                return self.finish(candidates, after, share, probabilities);
            }
        }
        if let Some(bits) = self.bound.bits() {
            cuts::surprise_at_most(&mut candidates, bits);
        }
        for (candidate, p) in candidates.iter().zip(softmax(&candidates)) {
            probabilities[candidate.id] += share * p;
        }
    }

    /// Whether steps that keep or exclude tokens are taken.
    fn cuts(&self) -> bool {
        self.decoding.mirostat.is_none()
    }

    fn take(&self, step: Step, candidates: &mut Vec<Candidate>) {
        let decoding = self.decoding;
        match step {
            Step::Penalties => penalties::penalise(candidates, self.history, decoding),
            Step::Dry => {
                if let Some(dry) = decoding.dry {
                    dry.penalise(candidates, self.history, self.breakers);
                }
            }
            Step::Temperature => heat(candidates, decoding.temperature),
            _ if !self.cuts() => {}
            Step::TopNSigma => with(decoding.top_n_sigma, |n| cuts::top_n_sigma(candidates, n)),
            Step::TopK => with(decoding.top_k, |k| cuts::top_k(candidates, k)),
            Step::TypicalP => with(decoding.typical_p, |p| cuts::typical(candidates, p)),
            Step::TopP => with(decoding.top_p, |p| cuts::top_p(candidates, p)),
            Step::MinP => with(decoding.min_p, |p| cuts::min_p(candidates, p)),
            // Goes on in two ways: see `finish`.
            Step::Xtc => {}
        }
    }
}

fn with<T>(option: Option<T>, step: impl FnOnce(T)) {
    if let Some(option) = option {
        step(option);
    }
}

/// Divides by the temperature; 0 leaves only the best.
fn heat(candidates: &mut Vec<Candidate>, temperature: f64) {
    if temperature == 0.0 {
        let best = candidates.iter().copied().min_by(better);
        candidates.clear();
        candidates.extend(best);
        return;
    }
    // Relative to the best, so that a tiny temperature stays finite.
    let best = best(candidates);
    for candidate in candidates {
        candidate.logit = (candidate.logit - best) / temperature;
    }
}

/// Draws one token from `probabilities` by inverting their cumulative sum, with one uniform
/// number.
///
/// # Panics
/// When `probabilities` has no positive entry; [`distribution`] never returns such a vector.
pub fn sample(probabilities: &[f32], rng: &mut Rng) -> u32 {
    let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
    let uniform: f64 = StandardUniform.sample(rng);
    let target = uniform * total;
    let mut reached = 0.0;
    let mut last = None;
    for (id, &p) in probabilities.iter().enumerate() {
        if p > 0.0 {
            reached += f64::from(p);
            last = Some(id as u32);
            if reached > target {
                break;
            }
        }
    }
    // Rounding can leave the whole sum a hair below the target: then it is the last token.
    last.expect("the caller passes at least one positive probability")
}

#[cfg(test)]
mod tests;
