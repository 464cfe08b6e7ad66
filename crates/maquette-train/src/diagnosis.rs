//! Why a game of two players goes wrong, told while it does: signs that the loop measures anyway, the faults
//! they point to, and what usually helps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::Metrics;

/// Steps between two looks at the examples.
pub const EVERY: u64 = 10;
/// Looks that a judgement rests on.
const WINDOW: usize = 12;
/// Looks before the first judgement: early on, everything moves.
const WARM_UP: usize = 10;

/// A fault of the game.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The generator makes few kinds of examples.
    Collapse,
    /// The critic is so sure that nothing of it reaches the generator.
    VanishingGradient,
    /// One player wins all the time.
    Domination,
    /// The players chase each other round in circles.
    Oscillation,
    /// Real and made examples have different ranges.
    RangeMismatch,
}

impl Fault {
    /// Its name in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Collapse => "mode collapse",
            Self::VanishingGradient => "vanishing generator gradient",
            Self::Domination => "one player dominates",
            Self::Oscillation => "oscillation",
            Self::RangeMismatch => "data range mismatch",
        }
    }
}

/// A fault that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Steps done.
    pub step: u64,
    /// What it is.
    pub fault: Fault,
    /// The figures that show it.
    pub evidence: String,
    /// What usually helps.
    pub advice: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step,
            fault,
            evidence,
            advice,
        } = self;
        write!(f, "step {step}: {}: {evidence}; {advice}", fault.name())
    }
}

/// What is known of a game beforehand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// The range that the generator can make, where it is bounded.
    pub range: Option<(f64, f64)>,
    /// Whether a score says by itself what passes for real, so that accuracy means something.
    pub scores_have_a_boundary: bool,
}

/// What was seen of a game so far. Each fault is named once.
#[derive(Debug)]
pub struct Diagnosis {
    expected: Expected,
    seen: BTreeMap<&'static str, VecDeque<f64>>,
    looks: usize,
    /// The generator's largest gradient while the game was young.
    early_gradient: Option<f64>,
    found: BTreeSet<Fault>,
}

/// The metrics that are watched.
const WATCHED: [&str; 8] = [
    "critic_accuracy",
    "generator_grad_norm",
    "score_real",
    "score_fake",
    "diversity",
    "drift",
    "real_low",
    "real_high",
];

impl Diagnosis {
    /// Nothing seen yet.
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            seen: BTreeMap::new(),
            looks: 0,
            early_gradient: None,
            found: BTreeSet::new(),
        }
    }

    /// Faults that were named before, in an earlier sitting.
    pub fn knowing(mut self, findings: &[Finding]) -> Self {
        self.found
            .extend(findings.iter().map(|finding| finding.fault));
        self
    }

    /// Looks at the metrics after `step` steps of training.
    pub fn see(&mut self, step: u64, values: &Metrics) -> Vec<Finding> {
        // Only the steps at which examples were looked at.
        if !values.contains_key("diversity") {
            return Vec::new();
        }
        for name in WATCHED {
            if let Some(value) = values.get(name) {
                let window = self.seen.entry(name).or_default();
                window.push_back(*value);
                if window.len() > WINDOW {
                    window.pop_front();
                }
            }
        }
        self.looks += 1;
        if self.looks == WARM_UP {
            self.early_gradient = self.most("generator_grad_norm", f64::max);
        }
        let range = (self.looks >= 2).then(|| self.range_mismatch()).flatten();
        let settled = self.looks >= WARM_UP + WINDOW;
        let others = settled.then(|| {
            [
                self.vanishing_gradient(),
                self.domination(),
                self.collapse(),
                self.oscillation(),
            ]
        });
        let all = [range].into_iter().chain(others.into_iter().flatten());
        all.flatten()
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|(fault, evidence, advice)| self.name(step, fault, evidence, advice))
            .collect()
    }

    /// Looks at a validation in the last quarter of a run, where the truth is known: `mode_share` is the share
    /// of modes covered.
    pub fn see_validation(&mut self, step: u64, steps: u64, values: &Metrics) -> Vec<Finding> {
        let share = values.get("mode_share").copied();
        let Some(share) = share.filter(|share| 4 * step >= 3 * steps && *share <= 0.5) else {
            return Vec::new();
        };
        let evidence = format!("{:.0} % of the modes are covered", 100.0 * share);
        self.name(step, Fault::Collapse, evidence, AGAINST_COLLAPSE)
            .into_iter()
            .collect()
    }

    fn name(&mut self, step: u64, fault: Fault, evidence: String, advice: &str) -> Option<Finding> {
        self.found.insert(fault).then(|| Finding {
            step,
            fault,
            evidence,
            advice: advice.to_owned(),
        })
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut values: Vec<f64> = self.seen.get(name)?.iter().copied().collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The largest or the smallest of the last values.
    fn most(&self, name: &str, pick: fn(f64, f64) -> f64) -> Option<f64> {
        self.seen.get(name)?.iter().copied().reduce(pick)
    }

    /// The critic is right, and the generator's gradient is a hundredth of what it was.
    fn vanishing_gradient(&self) -> Option<Symptom> {
        let (early, now) = (self.early_gradient?, self.median("generator_grad_norm")?);
        let accuracy = self.median("critic_accuracy")?;
        (accuracy > 0.95 && now < 0.01 * early).then(|| {
            let evidence = format!(
                "the generator's gradient fell from {early:.2e} to {now:.2e} while the critic is right in {:.0} % \
                 of cases",
                100.0 * accuracy
            );
            let advice = "use objective.loss = \"non-saturating\", \"least-squares\" or \"wasserstein\" with \
                          objective.gradient_penalty, or slow the critic (critic.optimizer.lr)";
            (Fault::VanishingGradient, evidence, advice)
        })
    }

    /// The critic is never wrong and far from doubt, or wrong most of the time.
    fn domination(&self) -> Option<Symptom> {
        if !self.expected.scores_have_a_boundary {
            return None;
        }
        let looks = self.seen.get("critic_accuracy")?.len();
        let least = self.most("critic_accuracy", f64::min)?;
        let median = self.median("critic_accuracy")?;
        let margin = self.median("score_real")? - self.median("score_fake")?;
        if least >= 0.99 && margin > 6.0 {
            let evidence = format!(
                "the critic was right in at least {:.1} % of cases for {looks} looks, with {margin:.1} between its \
                 mean scores of real and made examples",
                100.0 * least
            );
            let advice = "lower critic.optimizer.lr or raise generator.turns; model.critic.spectral_norm, \
                          objective.gradient_penalty or objective.instance_noise hold the critic back";
            return Some((Fault::Domination, evidence, advice));
        }
        (median < 0.3).then(|| {
            let evidence = format!("the critic is right in {:.0} % of cases", 100.0 * median);
            let advice = "the generator fools it at will: raise critic.optimizer.lr or critic.turns, or widen it";
            (Fault::Domination, evidence, advice)
        })
    }

    /// Made examples differ far less from each other than real ones.
    fn collapse(&self) -> Option<Symptom> {
        let diversity = self.median("diversity")?;
        (diversity < 0.15).then(|| {
            let evidence = format!(
                "made examples are {:.1} % as diverse as real ones (mean squared distance)",
                100.0 * diversity
            );
            (Fault::Collapse, evidence, AGAINST_COLLAPSE)
        })
    }

    /// The mean of what is made keeps moving far without getting anywhere.
    fn oscillation(&self) -> Option<Symptom> {
        let drift = self.median("drift")?;
        (drift > 0.5).then(|| {
            let evidence = format!(
                "every {EVERY} steps the mean of the made examples moves by {drift:.2} deviations of the real ones"
            );
            let advice = "lower both learning rates or Adam's first beta (0.5 or 0), add \
                          objective.gradient_penalty (kind \"r1\"), and look at train.ema";
            (Fault::Oscillation, evidence, advice)
        })
    }

    /// Real numbers fill little of what the generator can make, or leave it.
    fn range_mismatch(&self) -> Option<Symptom> {
        let (low, high) = self.expected.range?;
        let real_low = self.most("real_low", f64::min)?;
        let real_high = self.most("real_high", f64::max)?;
        let slack = 0.1 * (high - low);
        let outside = real_low < low - slack || real_high > high + slack;
        let narrow = real_high - real_low < 0.6 * (high - low);
        (outside || narrow).then(|| {
            let evidence = format!(
                "real numbers lie on [{real_low:.2}, {real_high:.2}], the generator's on [{low}, {high}]"
            );
            let advice = "bring both to one range: pixels = \"symmetric\" for a generator that ends in tanh";
            (Fault::RangeMismatch, evidence, advice)
        })
    }
}

type Symptom = (Fault, String, &'static str);

const AGAINST_COLLAPSE: &str = "try objective.gradient_penalty (kind \"r1\" or \"wgan-gp\"), \
     model.critic.minibatch_discrimination, model.critic.packing = 2, objective.unroll or \
     model.critic.spectral_norm";

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(step: u64) -> Metrics {
        let wave = (step as f64 / 30.0).sin();
        [
            ("critic_accuracy", 0.7 + 0.1 * wave),
            ("generator_grad_norm", 1.0 + 0.3 * wave),
            ("score_real", 0.8),
            ("score_fake", -0.6),
            ("diversity", 0.9 + 0.1 * wave),
            ("drift", 0.05),
            ("real_low", -1.0),
            ("real_high", 1.0),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// What is named when `change` sets in after half of the run.
    fn named(change: &[(&str, f64)]) -> Vec<Fault> {
        let mut diagnosis = Diagnosis::new(Expected {
            range: Some((-1.0, 1.0)),
            scores_have_a_boundary: true,
        });
        let mut named = Vec::new();
        for step in (0..1000).step_by(EVERY as usize) {
            let mut values = healthy(step);
            if step >= 500 {
                values.extend(change.iter().map(|(name, value)| ((*name).into(), *value)));
            }
            named.extend(diagnosis.see(step, &values).into_iter().map(|f| f.fault));
        }
        named
    }

    #[test]
    fn each_fault_is_named_once_and_health_is_not() {
        assert_eq!(named(&[]), []);
        let sure = ("critic_accuracy", 1.0);
        assert_eq!(
            named(&[sure, ("generator_grad_norm", 1e-4)]),
            [Fault::VanishingGradient]
        );
        assert_eq!(
            named(&[sure, ("score_real", 9.0), ("score_fake", -9.0)]),
            [Fault::Domination]
        );
        assert_eq!(named(&[("critic_accuracy", 0.1)]), [Fault::Domination]);
        assert_eq!(named(&[("diversity", 0.02)]), [Fault::Collapse]);
        assert_eq!(named(&[("drift", 0.9)]), [Fault::Oscillation]);
        assert_eq!(named(&[("real_high", 255.0)]), [Fault::RangeMismatch]);
        assert_eq!(named(&[("real_low", 0.0)]), [Fault::RangeMismatch]);
        assert_eq!(named(&[("real_low", -0.8)]), []);
    }

    #[test]
    fn few_modes_at_the_end_are_a_collapse() {
        let mut diagnosis = Diagnosis::new(Expected::default());
        let at = |share: f64| Metrics::from([("mode_share".to_owned(), share)]);
        assert_eq!(diagnosis.see_validation(700, 1000, &at(0.25)), []);
        assert_eq!(diagnosis.see_validation(900, 1000, &at(0.9)), []);
        let found = diagnosis.see_validation(900, 1000, &at(0.25));
        assert_eq!(found[0].fault, Fault::Collapse);
        assert!(found[0].to_string().contains("25 % of the modes"));
    }

    #[test]
    fn what_was_named_before_is_not_named_again() {
        let known = Finding {
            step: 1,
            fault: Fault::Collapse,
            evidence: String::new(),
            advice: String::new(),
        };
        let mut diagnosis = Diagnosis::new(Expected::default()).knowing(&[known]);
        let values = Metrics::from([("mode_share".to_owned(), 0.1)]);
        assert_eq!(diagnosis.see_validation(9, 10, &values), []);
    }
}
