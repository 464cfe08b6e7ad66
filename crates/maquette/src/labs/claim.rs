//! What a lab asserts: a number we got, the bound it must keep, and who published it first.

use serde::{Deserialize, Serialize};

/// How `got` must stand to `expected` for a claim to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// `got >= expected`.
    AtLeast,
    /// `got <= expected`.
    AtMost,
    /// `|got - expected| <= tolerance`.
    Within,
}

impl Relation {
    /// The sign that stands before the bound in a table.
    pub fn sign(self) -> &'static str {
        match self {
            Self::AtLeast => "≥",
            Self::AtMost => "≤",
            Self::Within => "=",
        }
    }
}

/// The number somebody else published for the same experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The published figure, in the claim's unit.
    pub value: f64,
    /// Where it was published.
    pub source: String,
}

/// One assertion of a lab. It can fail, and then the lab fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// What is asserted, with its unit.
    pub claim: String,
    /// What we measured.
    pub got: f64,
    /// The bound or the expected value.
    pub expected: f64,
    /// The accepted distance from `expected`; 0 for one-sided bounds.
    pub tolerance: f64,
    /// Whether it held.
    pub pass: bool,
    /// How `got` is compared with `expected`.
    pub relation: Relation,
    /// The published counterpart, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
}

impl Claim {
    /// `got` must be at least `bound`.
    pub fn at_least(claim: impl Into<String>, got: impl Into<f64>, bound: impl Into<f64>) -> Self {
        let (got, bound) = (got.into(), bound.into());
        Self::new(
            claim.into(),
            got,
            bound,
            0.0,
            got >= bound,
            Relation::AtLeast,
        )
    }

    /// `got` must be at most `bound`.
    pub fn at_most(claim: impl Into<String>, got: impl Into<f64>, bound: impl Into<f64>) -> Self {
        let (got, bound) = (got.into(), bound.into());
        Self::new(
            claim.into(),
            got,
            bound,
            0.0,
            got <= bound,
            Relation::AtMost,
        )
    }

    /// `got` must lie within `tolerance` of `expected`.
    pub fn within(
        claim: impl Into<String>,
        got: impl Into<f64>,
        expected: impl Into<f64>,
        tolerance: f64,
    ) -> Self {
        let (got, expected) = (got.into(), expected.into());
        let pass = (got - expected).abs() <= tolerance;
        Self::new(
            claim.into(),
            got,
            expected,
            tolerance,
            pass,
            Relation::Within,
        )
    }

    /// Attaches the number that `source` published.
    pub fn published(mut self, value: f64, source: impl Into<String>) -> Self {
        let source = source.into();
        self.published = Some(Published { value, source });
        self
    }

    // A comparison with NaN is false, so a claim about NaN never passes.
    fn new(
        claim: String,
        got: f64,
        expected: f64,
        tolerance: f64,
        pass: bool,
        relation: Relation,
    ) -> Self {
        Self {
            claim,
            got,
            expected,
            tolerance,
            pass,
            relation,
            published: None,
        }
    }

    /// The bound as a table shows it: `≥ 0.9`, `≤ 3`, `= 1 ± 0.01`.
    pub fn bound(&self) -> String {
        let expected = number(self.expected);
        match self.relation {
            Relation::Within => format!("= {expected} ± {}", number(self.tolerance)),
            one_sided => format!("{} {expected}", one_sided.sign()),
        }
    }
}

/// A number as the tables print it: four significant digits, powers of ten only where needed.
pub fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_relation_passes_and_fails() {
        assert!(Claim::at_least("a", 1.0, 1.0).pass);
        assert!(!Claim::at_least("a", 0.9, 1.0).pass);
        assert!(Claim::at_most("a", 1.0, 1.0).pass);
        assert!(!Claim::at_most("a", 1.1, 1.0).pass);
        assert!(Claim::within("a", 1.05, 1.0, 0.1).pass);
        assert!(!Claim::within("a", 1.2, 1.0, 0.1).pass);
    }

    #[test]
    fn a_claim_about_nan_fails() {
        assert!(!Claim::at_least("a", f64::NAN, 0.0).pass);
        assert!(!Claim::at_most("a", f64::NAN, 0.0).pass);
        assert!(!Claim::within("a", f64::NAN, 0.0, 1.0).pass);
    }

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!(number(105.5912), "105.6");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(1.0), "1");
        assert_eq!(number(0.012345), "0.01235");
        assert_eq!(number(3.2e-7), "3.20e-7");
        assert_eq!(number(12345.6), "12346");
    }
}
