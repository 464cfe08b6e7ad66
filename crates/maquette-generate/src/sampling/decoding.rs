//! The options of drawing a token, and their ranges.

use serde::{Deserialize, Serialize};

use super::{Dry, Mirostat, Order};
use crate::GenerateError;

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
    /// Make what would continue a repetition less likely; see [`Dry`].
    pub dry: Option<Dry>,
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
            dry: None,
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
        let dry = self.dry.unwrap_or(Dry::new(0.0));
        let rules: [(&'static str, f64, bool, &'static str); 14] = [
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
            (
                "dry.multiplier",
                dry.multiplier,
                finite(dry.multiplier, 0.0),
                "0 or more (0 is off)",
            ),
            ("dry.base", dry.base, finite(dry.base, 1.0), "1 or more"),
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
