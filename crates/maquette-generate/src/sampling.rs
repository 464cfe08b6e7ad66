//! From logits to one token: which tokens stay, with which probability, and the draw.
//!
//! [`distribution`] is the whole rule as a pure function, so that the probability of every token
//! that [`sample`] may return is known exactly.

mod order;

pub use order::{Order, Step};

use crate::GenerateError;
use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, StandardUniform};
use serde::{Deserialize, Serialize};

/// How the next token is chosen. The default draws from the model's own distribution.
///
/// The steps are taken in [`Decoding::order`], each on what the step before left.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Logits are divided by it; 0 always takes the most probable token.
    pub temperature: f64,
    /// Keep the `k` most probable tokens (Fan et al. 2018, arXiv 1805.04833).
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens whose mass reaches `p`, in (0, 1]
    /// (Holtzman et al. 2020, arXiv 1904.09751).
    pub top_p: Option<f64>,
    /// Keep tokens at least `min_p` times as probable as the most probable one, in [0, 1]
    /// (Nguyen et al. 2024, arXiv 2407.01082).
    pub min_p: Option<f64>,
    /// Keep the smallest set of tokens whose mass reaches `p`, those first whose surprise is nearest
    /// to the entropy, in (0, 1] (Meister et al. 2022, arXiv 2202.00666).
    pub typical_p: Option<f64>,
    /// Keep tokens whose logit is at most `n` standard deviations of the logits below the largest
    /// (Tang et al. 2024, arXiv 2411.07641).
    pub top_n_sigma: Option<f64>,
    /// Exclude the top choices; see [`Xtc`].
    pub xtc: Option<Xtc>,
    /// Hold the surprise of the text at a target; takes the place of all steps that keep or exclude
    /// tokens. See [`Mirostat`].
    pub mirostat: Option<Mirostat>,
    /// Divide positive and multiply negative logits of tokens already seen, prompt included; 1 is
    /// off (Keskar et al. 2019, arXiv 1909.05858).
    pub repetition_penalty: f64,
    /// Taken from the logit of a token once if it was seen; 0 is off.
    pub presence_penalty: f64,
    /// Taken from the logit of a token as often as it was seen; 0 is off.
    pub frequency_penalty: f64,
    /// How many of the last tokens count as seen; all if absent.
    pub penalty_window: Option<usize>,
    /// The order of the steps; llama.cpp's by default.
    pub order: Order,
}

/// Now and then all but the least probable of the tokens that are likely enough are left out, so that
/// the text leaves its beaten track: "exclude top choices" (P. E. Weidmann 2024,
/// text-generation-webui, pull 6335).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// How often, from 0 to 1.
    pub probability: f64,
    /// How probable a token must be to count, from 0 to 1.
    pub threshold: f64,
}

/// Mirostat 2 (Basu et al. 2021, arXiv 2007.14966): tokens that surprise more than a bound are left
/// out, and the bound follows the text so that its surprise stays at `tau` bits per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirostat {
    /// The target, in bits per token; 5 is usual.
    pub tau: f64,
    /// How fast the bound follows; 0.1 is usual.
    pub eta: f64,
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            top_n_sigma: None,
            xtc: None,
            mirostat: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            order: Order::default(),
        }
    }
}

impl Decoding {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`GenerateError::Option`] names the first option that is out of range.
    pub fn check(&self) -> Result<(), GenerateError> {
        let finite = |x: f64, least: f64| x.is_finite() && x >= least;
        let share = |p: f64| p > 0.0 && p <= 1.0;
        let unit = |p: f64| (0.0..=1.0).contains(&p);
        let (positive, from_0_to_1) = ("more than 0 and at most 1", "from 0 to 1");
        let xtc = self.xtc.unwrap_or(Xtc {
            probability: 0.0,
            threshold: 0.0,
        });
        let mirostat = self.mirostat.unwrap_or(Mirostat { tau: 1.0, eta: 1.0 });
        let rules: [(&'static str, f64, bool, &'static str); 12] = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature, 0.0),
                "0 or more",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
                "more than 0 (1 is off)",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                self.presence_penalty.is_finite(),
                "a number",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                self.frequency_penalty.is_finite(),
                "a number",
            ),
            ("top_k", 0.0, self.top_k != Some(0), "1 or more"),
            (
                "top_p",
                self.top_p.unwrap_or(1.0),
                self.top_p.is_none_or(share),
                positive,
            ),
            (
                "min_p",
                self.min_p.unwrap_or(0.0),
                self.min_p.is_none_or(unit),
                from_0_to_1,
            ),
            (
                "typical_p",
                self.typical_p.unwrap_or(1.0),
                self.typical_p.is_none_or(share),
                positive,
            ),
            (
                "top_n_sigma",
                self.top_n_sigma.unwrap_or(0.0),
                self.top_n_sigma.is_none_or(|n| finite(n, 0.0)),
                "0 or more",
            ),
            (
                "xtc.probability",
                xtc.probability,
                unit(xtc.probability),
                from_0_to_1,
            ),
            (
                "xtc.threshold",
                xtc.threshold,
                unit(xtc.threshold),
                from_0_to_1,
            ),
            (
                "mirostat",
                mirostat.tau.min(mirostat.eta),
                mirostat.tau.is_finite() && mirostat.tau > 0.0 && finite(mirostat.eta, 0.0),
                "a positive tau and an eta of 0 or more",
            ),
        ];
        match rules.into_iter().find(|(_, _, holds, _)| !holds) {
            None => Ok(()),
            Some((option, value, _, allowed)) => Err(GenerateError::Option {
                option,
                value: value.to_string(),
                allowed,
            }),
        }
    }
}

/// The exact probability of every token under `decoding`: non-negative, with sum 1. Of [`Mirostat`] it
/// is the first token's; see [`Bound`] for those after it.
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
    bounded(logits, history, decoding, Bound::of(decoding))
}

/// The most that the next token may surprise, in bits; moved by every token that is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound(Option<(Mirostat, f64)>);

impl Bound {
    /// Before the first token: twice the target, or no bound without [`Mirostat`].
    pub fn of(decoding: &Decoding) -> Self {
        Self(decoding.mirostat.map(|rule| (rule, 2.0 * rule.tau)))
    }

    /// After a token of this probability was drawn.
    pub fn follow(&mut self, probability: f32) {
        if let Some((rule, bound)) = &mut self.0 {
            let surprise = -f64::from(probability).log2();
            *bound -= rule.eta * (surprise - rule.tau);
        }
    }
}

/// As [`distribution`], with the bound that the text so far has led to.
///
/// # Errors
/// As there.
pub fn bounded(
    logits: &[f32],
    history: &[u32],
    decoding: &Decoding,
    bound: Bound,
) -> Result<Vec<f32>, GenerateError> {
    decoding.check()?;
    if let Some(token) = logits.iter().position(|l| l.is_nan()) {
        return Err(GenerateError::NotANumber { token });
    }
    let vocab_size = logits.len();
    if let Some(&token) = history.iter().find(|id| **id as usize >= vocab_size) {
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
    let steps: Vec<Step> = decoding.order.steps().collect();
    let sampler = Sampler {
        decoding,
        history,
        vocab_size,
        bound,
    };
    sampler.finish(candidates, &steps, 1.0, &mut probabilities);
    Ok(probabilities.iter().map(|p| *p as f32).collect())
}

/// A token that may still be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    id: usize,
    logit: f64,
}

fn better(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Softmax of the candidates' logits.
fn softmax(candidates: &[Candidate]) -> Vec<f64> {
    let logits = candidates.iter().map(|c| c.logit);
    let best = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let mass: Vec<f64> = logits.map(|logit| (logit - best).exp()).collect();
    let total: f64 = mass.iter().sum();
    mass.iter().map(|mass| mass / total).collect()
}

struct Sampler<'a> {
    decoding: &'a Decoding,
    history: &'a [u32],
    vocab_size: usize,
    bound: Bound,
}

impl Sampler<'_> {
    /// Takes the steps and adds what is left, times `share`, to the probabilities.
    fn finish(
        &self,
        mut candidates: Vec<Candidate>,
        steps: &[Step],
        share: f64,
        probabilities: &mut [f64],
    ) {
        let cuts = self.decoding.mirostat.is_none();
        for (taken, step) in steps.iter().enumerate() {
            match step {
                Step::Penalties => self.penalise(&mut candidates),
                Step::Temperature => self.heat(&mut candidates),
                Step::TopNSigma if cuts => self.top_n_sigma(&mut candidates),
                Step::TopK if cuts => self.top_k(&mut candidates),
                Step::TypicalP if cuts => self.typical(&mut candidates),
                Step::TopP if cuts => self.top_p(&mut candidates),
                Step::MinP if cuts => self.min_p(&mut candidates),
                Step::Xtc if cuts => {
                    // Both ways to go on, each with how often it is gone.
                    let Some(rule) = self.decoding.xtc else {
                        continue;
                    };
                    let Some(rest) = without_top_choices(&candidates, rule.threshold) else {
                        continue;
                    };
                    let after = &steps[taken + 1..];
                    self.finish(rest, after, share * rule.probability, probabilities);
                    let share = share * (1.0 - rule.probability);
                    return self.finish(candidates, after, share, probabilities);
                }
                _ => {}
            }
        }
        if let Some((_, bound)) = self.bound.0 {
            surprise_at_most(&mut candidates, bound);
        }
        for (candidate, p) in candidates.iter().zip(softmax(&candidates)) {
            probabilities[candidate.id] += share * p;
        }
    }

    fn penalise(&self, candidates: &mut [Candidate]) {
        let Decoding {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            penalty_window,
            ..
        } = *self.decoding;
        let window = penalty_window.unwrap_or(self.history.len());
        let seen = &self.history[self.history.len().saturating_sub(window)..];
        if seen.is_empty() {
            return;
        }
        let mut counts = vec![0u32; self.vocab_size];
        for &token in seen {
            counts[token as usize] += 1;
        }
        for candidate in candidates {
            let count = f64::from(counts[candidate.id]);
            if count > 0.0 {
                let logit = &mut candidate.logit;
                *logit = match *logit > 0.0 {
                    true => *logit / repetition_penalty,
                    false => *logit * repetition_penalty,
                };
                *logit -= presence_penalty + frequency_penalty * count;
            }
        }
    }

    fn heat(&self, candidates: &mut Vec<Candidate>) {
        match self.decoding.temperature {
            0.0 => {
                let best = candidates.iter().copied().min_by(better);
                candidates.clear();
                candidates.extend(best);
            }
            temperature => {
                // Relative to the best, so that a tiny temperature stays finite.
                let logits = candidates.iter().map(|c| c.logit);
                let best = logits.fold(f64::NEG_INFINITY, f64::max);
                for candidate in candidates {
                    candidate.logit = (candidate.logit - best) / temperature;
                }
            }
        }
    }

    fn top_k(&self, candidates: &mut Vec<Candidate>) {
        let Some(keep) = self.decoding.top_k.filter(|k| *k < candidates.len()) else {
            return;
        };
        candidates.select_nth_unstable_by(keep - 1, better);
        candidates.truncate(keep);
    }

    fn top_p(&self, candidates: &mut Vec<Candidate>) {
        let Some(p) = self.decoding.top_p else { return };
        candidates.sort_unstable_by(better);
        let keep = nucleus(&softmax(candidates), p);
        candidates.truncate(keep);
    }

    fn min_p(&self, candidates: &mut Vec<Candidate>) {
        let Some(p) = self.decoding.min_p else { return };
        let logits = candidates.iter().map(|c| c.logit);
        let best = logits.fold(f64::NEG_INFINITY, f64::max);
        candidates.retain(|c| (c.logit - best).exp() >= p);
    }

    fn typical(&self, candidates: &mut Vec<Candidate>) {
        let Some(p) = self.decoding.typical_p else {
            return;
        };
        let mass = softmax(candidates);
        let surprise = |mass: f64| {
            if mass > 0.0 {
                -mass.ln()
            } else {
                f64::INFINITY
            }
        };
        let entropy: f64 = mass
            .iter()
            .filter(|m| **m > 0.0)
            .map(|m| m * surprise(*m))
            .sum();
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        let unusual = |i: usize| (surprise(mass[i]) - entropy).abs();
        order.sort_unstable_by(|&a, &b| {
            let ids = candidates[a].id.cmp(&candidates[b].id);
            unusual(a).total_cmp(&unusual(b)).then(ids)
        });
        let sorted: Vec<f64> = order.iter().map(|&i| mass[i]).collect();
        order.truncate(nucleus(&sorted, p));
        *candidates = order.iter().map(|&i| candidates[i]).collect();
    }

    fn top_n_sigma(&self, candidates: &mut Vec<Candidate>) {
        let Some(n) = self.decoding.top_n_sigma else {
            return;
        };
        let count = candidates.len() as f64;
        let logits = || candidates.iter().map(|c| c.logit);
        let best = logits().fold(f64::NEG_INFINITY, f64::max);
        let mean = logits().sum::<f64>() / count;
        let variance = logits().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count;
        let least = best - n * variance.sqrt();
        candidates.retain(|c| c.logit >= least);
    }
}

/// The candidates without those of at least this probability but the least of them; none if fewer
/// than two are as probable.
fn without_top_choices(candidates: &[Candidate], threshold: f64) -> Option<Vec<Candidate>> {
    let mut sorted = candidates.to_vec();
    sorted.sort_unstable_by(better);
    let likely = softmax(&sorted).iter().filter(|p| **p >= threshold).count();
    (likely >= 2).then(|| sorted.split_off(likely - 1))
}

/// Keeps tokens whose surprise is at most the bound, the most probable one in any case.
fn surprise_at_most(candidates: &mut Vec<Candidate>, bound: f64) {
    candidates.sort_unstable_by(better);
    let mass = softmax(candidates);
    let keep = mass.iter().take_while(|mass| -mass.log2() <= bound).count();
    candidates.truncate(keep.max(1));
}

/// How many of the masses, in their order, are needed to reach the share `p` of their sum.
fn nucleus(mass: &[f64], p: f64) -> usize {
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
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};
    use proptest::prelude::*;

    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-6, "{got:?} is not {want:?}");
        }
    }

    /// Logits whose softmax is exactly these probabilities.
    fn logits(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    const P: [f32; 4] = [0.1, 0.4, 0.2, 0.3];

    fn with(change: impl FnOnce(&mut Decoding)) -> Decoding {
        let mut decoding = Decoding::default();
        change(&mut decoding);
        decoding
    }

    #[test]
    fn default_is_softmax() {
        close(
            &distribution(&logits(&P), &[], &Decoding::default()).unwrap(),
            &P,
        );
    }

    #[test]
    fn temperature_half_squares_the_probabilities() {
        // 0.01, 0.16, 0.04, 0.09 over their sum 0.30.
        let got = distribution(&logits(&P), &[], &with(|d| d.temperature = 0.5)).unwrap();
        close(&got, &[0.01 / 0.30, 0.16 / 0.30, 0.04 / 0.30, 0.09 / 0.30]);
    }

    #[test]
    fn zero_temperature_is_greedy_and_takes_the_lowest_id_of_equals() {
        let got = distribution(&[1.0, 3.0, 3.0], &[], &Decoding::greedy()).unwrap();
        close(&got, &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_the_k_best() {
        let got = distribution(&logits(&P), &[], &with(|d| d.top_k = Some(2))).unwrap();
        close(&got, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        // 0.4 + 0.3 reaches 0.65; 0.4 alone does not.
        let got = distribution(&logits(&P), &[], &with(|d| d.top_p = Some(0.65))).unwrap();
        close(&got, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        let tiny = distribution(&logits(&P), &[], &with(|d| d.top_p = Some(1e-9))).unwrap();
        close(&tiny, &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_works_on_what_top_k_left() {
        // Of {0.4, 0.3} = {4/7, 3/7}, the first alone reaches 0.5.
        let both = with(|d| (d.top_k, d.top_p) = (Some(2), Some(0.5)));
        close(
            &distribution(&logits(&P), &[], &both).unwrap(),
            &[0.0, 1.0, 0.0, 0.0],
        );
    }

    #[test]
    fn temperature_comes_after_the_cuts_unless_the_order_says_otherwise() {
        // At temperature 2 the masses are as the square roots: 0.4 and 0.3 hold less than 0.6.
        let mut hot = with(|d| (d.temperature, d.top_p) = (2.0, Some(0.65)));
        let kept = |d: &Decoding| {
            let p = distribution(&logits(&P), &[], d).unwrap();
            p.iter().filter(|p| **p > 0.0).count()
        };
        assert_eq!(kept(&hot), 2);
        hot.order = "penalties;temperature;top-k;top-p;min-p".parse().unwrap();
        assert_eq!(kept(&hot), 3);
    }

    #[test]
    fn typical_prefers_what_surprises_as_expected() {
        // Entropy 1.28 nats; surprises 2.30, 0.92, 1.61, 1.20: the last is nearest, then 0.2.
        let got = distribution(&logits(&P), &[], &with(|d| d.typical_p = Some(0.45))).unwrap();
        close(&got, &[0.0, 0.0, 0.4, 0.6]);
    }

    #[test]
    fn top_n_sigma_measures_in_deviations_of_the_logits() {
        // Deviation sqrt(2): what is within one of the best, 3, stays.
        let sigma = |n| with(|d| d.top_n_sigma = Some(n));
        let got = distribution(&[-1.0, 0.0, 1.0, 2.0, 3.0], &[], &sigma(1.0)).unwrap();
        let rest = 1.0 / (1.0 + 1f32.exp());
        close(&got, &[0.0, 0.0, 0.0, rest, 1.0 - rest]);
        let one = distribution(&[-1.0, 0.0, 1.0, 2.0, 3.0], &[], &sigma(0.0)).unwrap();
        close(&one, &[0.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn top_choices_are_excluded_as_often_as_asked() {
        // Of 0.4, 0.3 and 0.2 (at least 0.15) the first two go: 0.1 and 0.2 are left.
        let xtc = |probability| {
            let rule = Xtc {
                probability,
                threshold: 0.15,
            };
            distribution(&logits(&P), &[], &with(|d| d.xtc = Some(rule))).unwrap()
        };
        close(&xtc(1.0), &[1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0]);
        let mixed = [0.05 + 0.5 / 3.0, 0.2, 0.1 + 1.0 / 3.0, 0.15];
        close(&xtc(0.5), &mixed);
    }

    #[test]
    fn penalties_count_what_was_seen_in_the_window() {
        let penalty = with(|d| (d.presence_penalty, d.frequency_penalty) = (0.5, 0.25));
        let got = distribution(&[0.0, 0.0, 0.0], &[0, 1, 0], &penalty).unwrap();
        // 0 was seen twice, 1 once: logits -1, -0.75, 0.
        let sum = (-1f32).exp() + (-0.75f32).exp() + 1.0;
        close(
            &got,
            &[(-1f32).exp() / sum, (-0.75f32).exp() / sum, 1.0 / sum],
        );
        let last = Decoding {
            penalty_window: Some(1),
            ..penalty
        };
        let got = distribution(&[0.0, 0.0, 0.0], &[1, 2, 0], &last).unwrap();
        assert!(got[0] < got[1] && got[1] == got[2]);
    }

    #[test]
    fn mirostat_holds_the_surprise() {
        let logits: Vec<f32> = (0..500).map(|i| -(i as f32 + 1.0).ln() * 1.1).collect();
        let decoding = with(|d| d.mirostat = Some(Mirostat { tau: 3.0, eta: 0.1 }));
        let mut bound = Bound::of(&decoding);
        let mut random = rng(3, Stream::Sample, 0);
        let mut bits = 0.0;
        let (settle, count) = (200, 4000);
        for i in 0..settle + count {
            let p = bounded(&logits, &[], &decoding, bound).unwrap();
            let drawn = p[sample(&p, &mut random) as usize];
            bound.follow(drawn);
            bits += if i >= settle {
                -f64::from(drawn).log2()
            } else {
                0.0
            };
        }
        let mean = bits / f64::from(count);
        assert!((mean - 3.0).abs() < 0.05, "{mean} bits");
    }

    #[test]
    fn min_p_is_relative_to_the_best() {
        // The floor is 0.6 * 0.4 = 0.24: 0.3 stays, 0.2 goes.
        let got = distribution(&logits(&P), &[], &with(|d| d.min_p = Some(0.6))).unwrap();
        close(&got, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    }

    #[test]
    fn repetition_penalty_counts_each_token_once() {
        // Logits 2, -1, 0 with tokens 0 and 1 seen: 1, -2, 0.
        let penalty = with(|d| d.repetition_penalty = 2.0);
        let got = distribution(&[2.0, -1.0, 0.0], &[0, 1, 0, 0], &penalty).unwrap();
        let sum = 1f32.exp() + (-2f32).exp() + 1.0;
        close(&got, &[1f32.exp() / sum, (-2f32).exp() / sum, 1.0 / sum]);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for (logits, want) in [
            ([f32::MAX, -f32::MAX, 0.0], [1.0, 0.0, 0.0]),
            (
                [f32::NEG_INFINITY, f32::NEG_INFINITY, -1e30],
                [0.0, 0.0, 1.0],
            ),
            ([f32::INFINITY, 3.0, 2.0], [1.0, 0.0, 0.0]),
            ([f32::INFINITY, f32::INFINITY, 2.0], [0.5, 0.5, 0.0]),
        ] {
            for temperature in [1e-300, 1e-3, 1.0, 1e3] {
                let d = with(|d| d.temperature = temperature);
                close(&distribution(&logits, &[], &d).unwrap(), &want);
            }
        }
    }

    #[test]
    fn bad_input_is_named() {
        let message = |logits: &[f32], history: &[u32], d: &Decoding| {
            distribution(logits, history, d).unwrap_err().to_string()
        };
        let d = Decoding::default();
        assert!(message(&[0.0, f32::NAN], &[], &d).contains("token 1"));
        assert!(message(&[f32::NEG_INFINITY], &[], &d).contains("no token"));
        assert!(message(&[], &[], &d).contains("no token"));
        assert!(message(&[0.0], &[7], &d).contains("token 7"));
        assert!(message(&[0.0], &[], &with(|d| d.top_k = Some(0))).contains("top_k"));
        assert!(message(&[0.0], &[], &with(|d| d.top_p = Some(0.0))).contains("top_p"));
        assert!(message(&[0.0], &[], &with(|d| d.min_p = Some(2.0))).contains("min_p"));
        assert!(message(&[0.0], &[], &with(|d| d.temperature = -1.0)).contains("temperature"));
        assert!(message(&[0.0], &[], &with(|d| d.temperature = f64::NAN)).contains("temperature"));
        assert!(message(&[0.0], &[], &with(|d| d.repetition_penalty = 0.0)).contains("repetition"));
        assert!(message(&[0.0], &[], &with(|d| d.typical_p = Some(0.0))).contains("typical_p"));
        assert!(
            message(&[0.0], &[], &with(|d| d.top_n_sigma = Some(-1.0))).contains("top_n_sigma")
        );
    }

    #[test]
    fn frequencies_match_the_analytic_distribution() {
        // Pearson's chi-square against the exact probabilities. With 7 degrees of freedom a
        // correct sampler exceeds 29.9 once in 10,000 seeds; the seed is pinned.
        let logits: Vec<f32> = (0..10).map(|i| (i as f32 * 1.7).sin() * 2.0).collect();
        let decoding = Decoding {
            temperature: 0.8,
            top_k: Some(8),
            top_p: Some(0.999),
            min_p: Some(0.01),
            repetition_penalty: 1.2,
            typical_p: Some(0.99),
            xtc: Some(Xtc {
                probability: 0.3,
                threshold: 0.1,
            }),
            ..Decoding::default()
        };
        let p = distribution(&logits, &[1, 2], &decoding).unwrap();
        let n = 200_000;
        let mut counts = [0u32; 10];
        let mut rng = rng(11, Stream::Sample, 0);
        for _ in 0..n {
            counts[sample(&p, &mut rng) as usize] += 1;
        }
        let mut chi = 0.0;
        for (count, p) in counts.iter().zip(&p) {
            if *p == 0.0 {
                assert_eq!(*count, 0, "a forbidden token was drawn");
            } else {
                let expected = f64::from(*p) * f64::from(n);
                chi += (f64::from(*count) - expected).powi(2) / expected;
            }
        }
        assert!(chi < 29.9, "chi-square {chi}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_distribution_sums_to_one_and_never_forbids_the_best(
            logits in prop::collection::vec(-1e4f32..1e4, 1..60),
            temperature in prop_oneof![Just(0.0), 1e-6f64..5.0],
            top_k in prop::option::of(1usize..70),
            top_p in prop::option::of(1e-6f64..=1.0),
            min_p in prop::option::of(0.0f64..=1.0),
        ) {
            let d = Decoding { temperature, top_k, top_p, min_p, ..Decoding::default() };
            let p = distribution(&logits, &[], &d).unwrap();
            let sum: f64 = p.iter().map(|&p| f64::from(p)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "sum {sum}");
            let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
            prop_assert!(p.iter().all(|&q| q >= 0.0 && q <= p[best]));
            prop_assert!(p[best] > 0.0);
            if let Some(k) = top_k {
                prop_assert!(p.iter().filter(|&&q| q > 0.0).count() <= k);
            }
        }

        #[test]
        fn a_draw_is_possible_and_repeatable(
            logits in prop::collection::vec(-50f32..50.0, 1..40),
            seed in any::<u64>(),
        ) {
            let p = distribution(&logits, &[], &Decoding::default()).unwrap();
            let draw = || sample(&p, &mut rng(seed, Stream::Sample, 0));
            prop_assert!(p[draw() as usize] > 0.0);
            prop_assert_eq!(draw(), draw());
        }
    }
}
