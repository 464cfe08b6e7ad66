//! The likelihood of a text longer than a model can read: how it is cut into windows, and the units
//! that people compare.

use std::ops::Range;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::at_least;
use crate::likelihood::{bits_per_byte, perplexity};
use crate::{EvalError, Signature};

/// How a text is cut into windows. Figures by different rules differ and may not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rolling {
    /// Windows that begin `stride` tokens apart, each scoring what none before it did: every token but
    /// the first few has at least `context - stride` before it. The text's first token has none and
    /// is not scored. As `transformers`' page on perplexity, but that each token counts once.
    Strided,
    /// lm-evaluation-harness 0.4: a token that begins texts, then windows of `context` scored tokens
    /// side by side; the last reaches back as far as it can.
    Harness,
    /// llama.cpp's `llama-perplexity`: pieces of `context` tokens side by side, the first of each
    /// replaced by the token that begins texts where the model has one; their second half is scored.
    Halves,
}

/// A part of a text to be scored, and what is read before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What is read, never empty.
    pub context: Vec<u32>,
    /// The place of what is scored, right behind.
    pub target: Range<usize>,
}

/// What windows are made of.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The rule.
    pub rolling: Rolling,
    /// Tokens in a window, at most what the model can read.
    pub context: usize,
    /// Tokens from one window's begin to the next, of [`Rolling::Strided`].
    pub stride: usize,
    /// The token that begins texts; needed by [`Rolling::Harness`].
    pub begin: Option<u32>,
}

/// The windows of a text.
///
/// # Errors
/// Too short a text or context, or a stride that is not from 1 to below `context`.
pub fn windows(ids: &[u32], cut: Cut) -> Result<Vec<Window>, EvalError> {
    let Cut {
        context,
        stride,
        begin,
        ..
    } = cut;
    at_least("tokens in a window", 2, context)?;
    let lead = usize::from(cut.rolling != Rolling::Harness || begin.is_none());
    at_least("tokens of text", 1 + lead, ids.len())?;
    match cut.rolling {
        Rolling::Strided => {
            at_least("the stride, in tokens", 1, stride)?;
            // The first token that a window scores needs one before it.
            at_least("tokens in a window for this stride", stride + 1, context)?;
            Ok(strided(ids, context, stride))
        }
        Rolling::Harness => Ok(side_by_side(ids, context, begin)),
        Rolling::Halves => {
            at_least("tokens of text for one piece", context, ids.len())?;
            Ok(halves(ids, context, begin))
        }
    }
}

fn strided(ids: &[u32], context: usize, stride: usize) -> Vec<Window> {
    let (mut from, mut scored, mut windows) = (0, 1, Vec::new());
    while scored < ids.len() {
        let to = (from + context).min(ids.len());
        if to > scored {
            windows.push(Window {
                context: ids[from..scored].to_vec(),
                target: scored..to,
            });
            scored = to;
        }
        from += stride;
    }
    windows
}

fn side_by_side(ids: &[u32], context: usize, begin: Option<u32>) -> Vec<Window> {
    // Without a token to begin with, the text's own first is not scored.
    let mut scored = usize::from(begin.is_none());
    let mut windows = Vec::new();
    while scored < ids.len() {
        let to = (scored + context).min(ids.len());
        // The window reads as much as it can, the last of its targets excepted.
        let from = (to - 1).saturating_sub(context);
        let first = begin.filter(|_| scored == 0);
        let before = &ids[from.min(scored)..scored];
        let context = first.iter().chain(before).copied().collect();
        windows.push(Window {
            context,
            target: scored..to,
        });
        scored = to;
    }
    windows
}

fn halves(ids: &[u32], context: usize, begin: Option<u32>) -> Vec<Window> {
    let pieces = ids.chunks_exact(context).enumerate();
    let window = |(at, piece): (usize, &[u32])| {
        let half = context / 2 + 1;
        let mut read = piece[..half].to_vec();
        read[0] = begin.unwrap_or(read[0]);
        Window {
            context: read,
            target: at * context + half..(at + 1) * context,
        }
    };
    pieces
        .map(window)
        .filter(|window| !window.target.is_empty())
        .collect()
}

/// Sums over a text's scored tokens, and what they are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextLikelihood {
    /// The negative log-likelihood, in nats.
    pub nats: f64,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Words of the text, as lm-evaluation-harness counts them: pieces between white space. Of a text
    /// that is not scored as a whole, the share of its tokens that are.
    pub words: f64,
    /// Bytes of the text; likewise.
    pub bytes: f64,
}

impl TextLikelihood {
    /// Of `text`, which is `n_tokens` long, `tokens` were scored.
    ///
    /// # Errors
    /// Nothing was scored.
    pub fn new(text: &str, n_tokens: usize, nats: f64, tokens: usize) -> Result<Self, EvalError> {
        at_least("scored tokens", 1, tokens)?;
        let share = tokens as f64 / n_tokens as f64;
        Ok(Self {
            nats,
            tokens,
            words: words(text) as f64 * share,
            bytes: text.len() as f64 * share,
        })
    }

    /// Nats per token, `loss`; perplexity per token, word and byte; bits per byte.
    ///
    /// # Errors
    /// No bytes.
    pub fn metrics(&self) -> Result<Vec<(&'static str, f64)>, EvalError> {
        let per = |n: f64| self.nats / n;
        Ok(vec![
            ("loss", per(self.tokens as f64)),
            ("perplexity", perplexity(per(self.tokens as f64))),
            ("word_perplexity", perplexity(per(self.words))),
            ("byte_perplexity", perplexity(per(self.bytes))),
            ("bits_per_byte", bits_per_byte(self.nats, 1)? / self.bytes),
        ])
    }
}

/// How many words lm-evaluation-harness counts: pieces between runs of what Python takes for white
/// space, empty ones at the ends among them.
pub(crate) fn words(text: &str) -> usize {
    let space = Regex::new(r"[\s\x1c-\x1f]+").expect("a valid pattern");
    space.split(text).count()
}

impl Cut {
    /// The signature of `metric` by this rule: `perplexity|windows=strided|context=256|...`.
    pub fn signature(&self, metric: &str, tokenizer: &str, scored: usize) -> Signature {
        let rule = match self.rolling {
            Rolling::Strided => "strided",
            Rolling::Harness => "harness",
            Rolling::Halves => "halves",
        };
        let mut signature = Signature::new(metric)
            .with("windows", rule)
            .with("context", self.context);
        if self.rolling == Rolling::Strided {
            signature = signature.with("stride", self.stride);
        }
        let begin = self.begin.map_or("none".to_owned(), |id| id.to_string());
        signature
            .with("begin", begin)
            .with("tokens", scored)
            .with("tokenizer", tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(rolling: Rolling, context: usize, stride: usize, begin: Option<u32>) -> Vec<Window> {
        let ids: Vec<u32> = (0..10).collect();
        windows(
            &ids,
            Cut {
                rolling,
                context,
                stride,
                begin,
            },
        )
        .unwrap()
    }

    fn window(context: impl IntoIterator<Item = u32>, target: Range<usize>) -> Window {
        Window {
            context: context.into_iter().collect(),
            target,
        }
    }

    #[test]
    fn strides_score_every_token_but_the_first_once() {
        assert_eq!(
            cut(Rolling::Strided, 4, 2, None),
            [
                window([0], 1..4),
                window([2, 3], 4..6),
                window([4, 5], 6..8),
                window([6, 7], 8..10),
            ]
        );
        assert_eq!(cut(Rolling::Strided, 20, 7, None), [window([0], 1..10)]);
    }

    /// `utils.make_disjoint_window` of `utils.get_rolling_token_windows(range(10), 99, 4, 1)` of
    /// lm-evaluation-harness 0.4.13.
    #[test]
    fn the_harness_begins_with_a_token_and_reaches_back_at_the_end() {
        assert_eq!(
            cut(Rolling::Harness, 4, 1, Some(99)),
            [
                window([99], 0..4),
                window([3], 4..8),
                window([5, 6, 7], 8..10),
            ]
        );
        assert_eq!(cut(Rolling::Harness, 4, 1, None)[0], window([0], 1..5));
        assert_eq!(
            cut(Rolling::Harness, 20, 1, Some(99)),
            [window([99], 0..10)]
        );
    }

    #[test]
    fn halves_are_llama_cpps() {
        assert_eq!(
            cut(Rolling::Halves, 4, 1, Some(99)),
            [window([99, 1, 2], 3..4), window([99, 5, 6], 7..8)]
        );
        assert_eq!(
            cut(Rolling::Halves, 5, 1, None)[1],
            window([5, 6, 7], 8..10)
        );
    }

    #[test]
    fn units_by_hand() {
        let nats = 8.0 * std::f64::consts::LN_2;
        let got = TextLikelihood::new("ab cd \n", 4, nats, 2).unwrap();
        // Three words as Python splits, the empty one at the end among them; half of them scored.
        assert_eq!((got.words, got.bytes), (1.5, 3.5));
        let metrics = got.metrics().unwrap();
        assert!((metrics[1].1 - 16.0).abs() < 1e-9, "{metrics:?}");
        assert!((metrics[4].1 - 8.0 / 3.5).abs() < 1e-9, "{metrics:?}");
    }

    #[test]
    fn cuts_that_make_no_sense_are_errors() {
        let ids: Vec<u32> = (0..10).collect();
        let of = |rolling, context, stride| {
            windows(
                &ids,
                Cut {
                    rolling,
                    context,
                    stride,
                    begin: None,
                },
            )
            .is_err()
        };
        assert!(of(Rolling::Strided, 4, 0) && of(Rolling::Strided, 4, 4));
        assert!(of(Rolling::Harness, 1, 1) && of(Rolling::Halves, 11, 1));
    }
}
