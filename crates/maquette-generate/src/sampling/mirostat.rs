//! Mirostat: a bound on surprise that follows the text.

use serde::{Deserialize, Serialize};

use super::Decoding;

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

/// The most that the next token may surprise, in bits; moved by every token that is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bound(Option<(Mirostat, f64)>);

impl Bound {
    /// Before the first token: twice the target, or no bound without [`Mirostat`].
    pub(super) fn of(decoding: &Decoding) -> Self {
        Self(decoding.mirostat.map(|rule| (rule, 2.0 * rule.tau)))
    }

    /// After a token of this probability was drawn.
    pub(super) fn follow(&mut self, probability: f32) {
        if let Some((rule, bound)) = &mut self.0 {
            let surprise = -f64::from(probability).log2();
            *bound -= rule.eta * (surprise - rule.tau);
        }
    }

    /// In bits, if there is one.
    pub(super) fn bits(self) -> Option<f64> {
        self.0.map(|(_, bound)| bound)
    }
}
