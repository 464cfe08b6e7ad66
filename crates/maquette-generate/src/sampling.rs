//! From logits to one token: which tokens stay, with which probability, and the draw.
//!
//! [`distribution`] is the whole rule as a pure function, so that the probability of every token
//! that [`sample`] may return is known exactly.

use crate::GenerateError;
use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, StandardUniform};
use serde::{Deserialize, Serialize};

/// How the next token is chosen. The default draws from the model's own distribution.
///
/// The steps are taken in this order, each on what the step before left:
/// repetition penalty, temperature, top-k, top-p, min-p, renormalise.
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
    /// Divide positive and multiply negative logits of tokens already seen, prompt included; 1 is
    /// off (Keskar et al. 2019, arXiv 1909.05858).
    pub repetition_penalty: f64,
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
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
        let wrong = |option, value: String, allowed| {
            Err(GenerateError::Option {
                option,
                value,
                allowed,
            })
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", self.temperature.to_string(), "0 or more");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return wrong(
                "repetition_penalty",
                self.repetition_penalty.to_string(),
                "more than 0 (1 is off)",
            );
        }
        match (self.top_k, self.top_p, self.min_p) {
            (Some(0), _, _) => wrong("top_k", "0".into(), "1 or more"),
            (_, Some(p), _) if !(p > 0.0 && p <= 1.0) => {
                wrong("top_p", p.to_string(), "more than 0 and at most 1")
            }
            (_, _, Some(p)) if !(0.0..=1.0).contains(&p) => {
                wrong("min_p", p.to_string(), "from 0 to 1")
            }
            _ => Ok(()),
        }
    }
}

/// The exact probability of every token under `decoding`: non-negative, with sum 1.
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
    let scores = penalised(logits, history, decoding.repetition_penalty)?;

    // The candidates, most probable first.
    let mut ids: Vec<usize> = (0..scores.len())
        .filter(|&i| scores[i] > f64::NEG_INFINITY)
        .collect();
    let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if ids.is_empty() {
        return Err(GenerateError::NothingPossible {
            vocab_size: logits.len(),
        });
    }
    let keep = match decoding {
        Decoding {
            temperature: 0.0, ..
        } => 1,
        _ => decoding.top_k.unwrap_or(ids.len()).min(ids.len()),
    };
    if keep < ids.len() {
        ids.select_nth_unstable_by(keep - 1, better);
        ids.truncate(keep);
    }
    // Only top-p needs the order, and sorting a whole vocabulary is the dearest step here.
    if decoding.top_p.is_some() {
        ids.sort_unstable_by(better);
    }

    let best = ids
        .iter()
        .map(|&i| scores[i])
        .fold(f64::NEG_INFINITY, f64::max);
    let mut mass: Vec<f64> = ids
        .iter()
        .map(|&i| match decoding.temperature {
            0.0 => 1.0,
            t => ((scores[i] - best) / t).exp(),
        })
        .collect();
    if let Some(p) = decoding.top_p {
        let reach = nucleus(&mass, p);
        ids.truncate(reach);
        mass.truncate(reach);
    }
    // The most probable token has mass 1 here, so min-p compares with it directly.
    let least = decoding.min_p.unwrap_or(0.0);
    let total: f64 = mass.iter().filter(|&&m| m >= least).sum();

    let mut probabilities = vec![0.0; logits.len()];
    for (&id, &m) in ids.iter().zip(&mass) {
        if m >= least {
            probabilities[id] = (m / total) as f32;
        }
    }
    Ok(probabilities)
}

/// Logits in double precision with the repetition penalty applied once per seen token.
///
/// Positive infinity becomes the largest finite number, so that differences stay defined.
fn penalised(logits: &[f32], history: &[u32], penalty: f64) -> Result<Vec<f64>, GenerateError> {
    if let Some(token) = logits.iter().position(|l| l.is_nan()) {
        return Err(GenerateError::NotANumber { token });
    }
    let mut scores: Vec<f64> = logits.iter().map(|&l| f64::from(l.min(f32::MAX))).collect();
    let mut seen = vec![false; logits.len()];
    for &token in history {
        let Some(first) = seen.get_mut(token as usize) else {
            return Err(GenerateError::UnknownToken {
                token,
                vocab_size: logits.len(),
            });
        };
        if !std::mem::replace(first, true) {
            let score = &mut scores[token as usize];
            *score = if *score > 0.0 {
                *score / penalty
            } else {
                *score * penalty
            };
        }
    }
    Ok(scores)
}

/// How many of the descending masses are needed to reach the share `p` of their sum.
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
            let d = Decoding { temperature, top_k, top_p, min_p, repetition_penalty: 1.0 };
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
