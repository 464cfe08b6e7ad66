//! Hiding spans of a text for an encoder-decoder to write (Raffel et al. 2020, arXiv:1910.10683,
//! section 3.1.4).

use maquette_rng::Rng;
use maquette_rng::rand::RngExt as _;
use serde::{Deserialize, Serialize};

/// How spans are hidden.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpanCorruption {
    /// Share of the tokens to be hidden.
    pub share: f64,
    /// Mean length of a span.
    pub mean_length: f64,
}

impl Default for SpanCorruption {
    fn default() -> Self {
        Self {
            share: 0.15,
            mean_length: 3.0,
        }
    }
}

/// The token that stands for the `i`-th span, as T5 spells it.
pub fn sentinel(i: usize) -> String {
    format!("<extra_id_{i}>")
}

impl SpanCorruption {
    /// What is wrong with the numbers, if anything is.
    pub fn fault(&self) -> Option<&'static str> {
        if !(self.share > 0.0 && self.share < 1.0) {
            Some("the share of hidden tokens lies between 0 and 1")
        } else if !(self.mean_length >= 1.0 && self.mean_length.is_finite()) {
            Some("the mean length of a span is at least 1")
        } else {
            None
        }
    }

    /// How many spans are hidden in `n` tokens.
    pub fn spans(&self, n: usize) -> usize {
        let (hidden, shown) = self.sizes(n);
        let spans = (hidden as f64 / self.mean_length).round() as usize;
        spans.clamp(1, hidden.min(shown).max(1))
    }

    /// How many of `n` tokens are hidden and shown.
    fn sizes(&self, n: usize) -> (usize, usize) {
        let hidden = (n as f64 * self.share).round() as usize;
        let hidden = hidden.clamp(1, n.saturating_sub(1).max(1));
        (hidden, n - hidden.min(n))
    }

    /// The text with a sentinel for each span, and the spans, each after its sentinel, with one more
    /// sentinel at the end. Spans and what is between them are cut at random; the text begins with
    /// what is shown.
    ///
    /// # Panics
    /// If `text` has fewer than two tokens, or there are not more sentinels than spans.
    pub fn apply(&self, text: &[u32], sentinels: &[u32], rng: &mut Rng) -> (Vec<u32>, Vec<u32>) {
        let n = text.len();
        let count = self.spans(n);
        assert!(
            n >= 2 && sentinels.len() > count,
            "{count} spans of {n} tokens"
        );
        let (hidden, shown) = self.sizes(n);
        let (hidden, shown) = (cut(hidden, count, rng), cut(shown, count, rng));
        let (mut source, mut target) = (Vec::new(), Vec::new());
        let mut rest = text;
        for ((shown, hidden), sentinel) in shown.into_iter().zip(hidden).zip(sentinels) {
            let (seen, after) = rest.split_at(shown);
            let (span, after) = after.split_at(hidden);
            source.extend(seen);
            source.push(*sentinel);
            target.push(*sentinel);
            target.extend(span);
            rest = after;
        }
        source.extend(rest);
        target.push(sentinels[count]);
        (source, target)
    }
}

/// `total` in `parts` parts of at least one, all ways alike.
fn cut(total: usize, parts: usize, rng: &mut Rng) -> Vec<usize> {
    // Places between the units, of which `parts - 1` become cuts.
    let mut left = parts - 1;
    let mut sizes = vec![1];
    for place in 1..total {
        if rng.random_range(0..total - place) < left {
            left -= 1;
            sizes.push(0);
        }
        *sizes.last_mut().expect("begins with one part") += 1;
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn spans_put_back_give_the_text() {
        let corruption = SpanCorruption::default();
        let sentinels: Vec<u32> = (900..930).collect();
        let random = &mut rng(1, Stream::Noise, 0);
        let mut lengths = std::collections::BTreeSet::new();
        for n in [2usize, 5, 20, 64, 100] {
            let text: Vec<u32> = (0..n as u32).collect();
            let (source, target) = corruption.apply(&text, &sentinels, random);
            let spans: Vec<&[u32]> = target.split(|token| *token >= 900).skip(1).collect();
            assert_eq!(spans.len(), corruption.spans(n) + 1);
            assert!(spans[corruption.spans(n)].is_empty());
            let back: Vec<u32> = source
                .iter()
                .flat_map(|token| match token.checked_sub(900) {
                    Some(i) => spans[i as usize].to_vec(),
                    None => vec![*token],
                })
                .collect();
            assert_eq!(back, text);
            let hidden: usize = spans.iter().map(|span| span.len()).sum();
            assert_eq!(hidden, ((n as f64 * 0.15).round() as usize).max(1));
            lengths.extend(spans.iter().map(|span| span.len()));
        }
        assert!(lengths.len() > 3, "spans differ: {lengths:?}");
    }

    #[test]
    fn parts_are_whole_and_faults_are_named() {
        let random = &mut rng(1, Stream::Noise, 0);
        for (total, parts) in [(1, 1), (7, 7), (9, 4), (30, 2)] {
            let sizes = cut(total, parts, random);
            assert_eq!((sizes.iter().sum::<usize>(), sizes.len()), (total, parts));
            assert!(sizes.iter().all(|size| *size > 0));
        }
        let fault = |share, mean_length| SpanCorruption { share, mean_length }.fault();
        assert!(fault(0.0, 3.0).is_some() && fault(0.15, 0.5).is_some());
        assert!(fault(0.15, 3.0).is_none());
    }
}
