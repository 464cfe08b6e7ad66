//! BLEU: words and their order, counted by n-grams.

use super::{BleuTokenizer, SACREBLEU, ngrams, segments, shared, signature, yes};
use crate::EvalError;
use crate::error::at_least;
use serde::Serialize;
use std::collections::HashMap;
use std::hash::Hash;

/// What an order of n-grams without a match counts (Chen & Cherry 2014, W14-3346).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Smoothing {
    /// Method 3, NIST's: half a match for the first such order, half of that for the next, and so
    /// on. The default.
    #[default]
    Exp,
    /// Method 1: this much of a match; sacreBLEU takes 0.1.
    Floor(f64),
    /// Method 2: this many matches and n-grams more for every order above 1; sacreBLEU takes 1.
    AddK(f64),
    /// Nothing: the score is 0.
    None,
}

/// BLEU with its settings (Papineni et al. 2002), as sacreBLEU 2.6.0 computes it, in percent:
/// the geometric mean of the clipped precisions of 1- to `max_order`-grams times a penalty for
/// being shorter than the reference of closest length.
#[derive(Debug, Clone, PartialEq)]
pub struct Bleu {
    /// How lines are cut into words.
    pub tokenizer: BleuTokenizer,
    /// What an order without a match counts.
    pub smoothing: Smoothing,
    /// Whether case is ignored.
    pub lowercase: bool,
    /// Whether orders longer than the text are left out of the mean: for single sentences.
    pub effective_order: bool,
    /// The longest n-grams.
    pub max_order: usize,
}

impl Default for Bleu {
    /// sacreBLEU's settings for a corpus: 13a, `exp` smoothing, case kept, four orders.
    fn default() -> Self {
        Self {
            tokenizer: BleuTokenizer::default(),
            smoothing: Smoothing::default(),
            lowercase: false,
            effective_order: false,
            max_order: 4,
        }
    }
}

/// What BLEU needs to know of a segment; those of a corpus add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BleuCounts {
    hypothesis: usize,
    reference: usize,
    /// Clipped matches and n-grams of each order.
    orders: Vec<(usize, usize)>,
}

/// A BLEU score and its parts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BleuScore {
    /// BLEU, from 0 to 100.
    pub score: f64,
    /// The smoothed precision of each order, from 0 to 100.
    pub precisions: Vec<f64>,
    /// The factor for being shorter than the references, from 0 to 1.
    pub brevity_penalty: f64,
    /// Words of the hypotheses.
    pub hypothesis_length: usize,
    /// Words of the references of closest length.
    pub reference_length: usize,
}

impl Bleu {
    /// The default for single sentences: [`effective_order`](Self::effective_order) is on.
    pub fn for_sentences() -> Self {
        Self {
            effective_order: true,
            ..Self::default()
        }
    }

    /// The score of a corpus.
    ///
    /// # Errors
    /// No segments, lists of different lengths, a segment without references, `max_order` of 0.
    pub fn corpus(
        &self,
        hypotheses: &[&str],
        references: &[Vec<&str>],
    ) -> Result<BleuScore, EvalError> {
        let counts = segments(hypotheses, references, |h, r| self.counts(h, r))?;
        Ok(self.score(&counts))
    }

    /// The score of one sentence; see [`Self::for_sentences`].
    ///
    /// # Errors
    /// No references, or `max_order` of 0.
    pub fn sentence(&self, hypothesis: &str, references: &[&str]) -> Result<BleuScore, EvalError> {
        Ok(self.score([&self.counts(hypothesis, references)?]))
    }

    /// The counts of one segment, for [`Self::score`] and for resampling.
    ///
    /// # Errors
    /// No references, or `max_order` of 0.
    pub fn counts(&self, hypothesis: &str, references: &[&str]) -> Result<BleuCounts, EvalError> {
        let tokenize = |line: &str| match self.lowercase {
            true => self.tokenizer.tokenize(&line.to_lowercase()),
            false => self.tokenizer.tokenize(line),
        };
        let references: Vec<_> = references.iter().map(|line| tokenize(line)).collect();
        let references: Vec<_> = references.iter().map(Vec::as_slice).collect();
        BleuCounts::of(&tokenize(hypothesis), &references, self.max_order)
    }

    /// The score of segments together.
    pub fn score<'a>(&self, counts: impl IntoIterator<Item = &'a BleuCounts>) -> BleuScore {
        let mut all = BleuCounts {
            hypothesis: 0,
            reference: 0,
            orders: vec![(0, 0); self.max_order],
        };
        for counts in counts {
            all.hypothesis += counts.hypothesis;
            all.reference += counts.reference;
            for (sum, order) in all.orders.iter_mut().zip(&counts.orders) {
                *sum = (sum.0 + order.0, sum.1 + order.1);
            }
        }
        all.score(self.smoothing, self.effective_order)
    }

    /// The settings in sacreBLEU's form:
    /// `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0|maquette:0.1.0`.
    pub fn signature(&self, references: &[Vec<&str>]) -> String {
        let case = if self.lowercase { "lc" } else { "mixed" };
        let smooth = match self.smoothing {
            Smoothing::Exp => "exp".to_owned(),
            Smoothing::Floor(value) => format!("floor[{value:.2}]"),
            Smoothing::AddK(value) => format!("add-k[{value:.2}]"),
            Smoothing::None => "none".to_owned(),
        };
        let (eff, tok) = (yes(self.effective_order), self.tokenizer.name());
        let settings = format!("case:{case}|eff:{eff}|tok:{tok}|smooth:{smooth}");
        signature(references, &settings, SACREBLEU)
    }
}

impl BleuCounts {
    fn of<T: Eq + Hash>(
        hypothesis: &[T],
        references: &[&[T]],
        max_order: usize,
    ) -> Result<Self, EvalError> {
        at_least("tokens per n-gram", 1, max_order)?;
        at_least("references", 1, references.len())?;
        let length = hypothesis.len();
        // The reference whose length is closest, the shorter of equals.
        let closest = references
            .iter()
            .map(|r| (r.len().abs_diff(length), r.len()))
            .min()
            .map_or(length, |(_, length)| length);
        let orders = (1..=max_order).map(|n| {
            // Each n-gram counts at most as often as in the reference that has it most.
            let mut allowed: HashMap<&[T], usize> = HashMap::new();
            for reference in references {
                for (gram, count) in ngrams(reference, n) {
                    let most = allowed.entry(gram).or_insert(0);
                    *most = count.max(*most);
                }
            }
            let matched = shared(&ngrams(hypothesis, n), &allowed);
            (matched, (length + 1).saturating_sub(n))
        });
        Ok(Self {
            hypothesis: length,
            reference: closest,
            orders: orders.collect(),
        })
    }

    fn score(&self, smoothing: Smoothing, effective_order: bool) -> BleuScore {
        let (hypothesis, reference) = (self.hypothesis as f64, self.reference as f64);
        let brevity_penalty = match self.hypothesis {
            length if length >= self.reference => 1.0,
            0 => 0.0,
            _ => (1.0 - reference / hypothesis).exp(),
        };
        let mut precisions = vec![0.0; self.orders.len()];
        let mut score = 0.0;
        // Smoothing makes no score out of no match at all.
        if self.orders.iter().any(|&(matched, _)| matched > 0) {
            let mut used = self.orders.len();
            let mut without = 1.0;
            for (i, &(matched, total)) in self.orders.iter().enumerate() {
                let extra = match smoothing {
                    Smoothing::AddK(k) if i > 0 => k,
                    _ => 0.0,
                };
                let (matched, total) = (matched as f64 + extra, total as f64 + extra);
                if total == 0.0 {
                    break;
                }
                if effective_order {
                    used = i + 1;
                }
                let matched = match smoothing {
                    _ if matched > 0.0 => matched,
                    Smoothing::Exp => {
                        without *= 2.0;
                        1.0 / without
                    }
                    Smoothing::Floor(value) => value,
                    Smoothing::AddK(_) | Smoothing::None => 0.0,
                };
                precisions[i] = 100.0 * matched / total;
            }
            let logs: f64 = precisions[..used].iter().map(|p| p.ln()).sum();
            score = brevity_penalty * (logs / used as f64).exp();
        }
        BleuScore {
            score,
            precisions,
            brevity_penalty,
            hypothesis_length: self.hypothesis,
            reference_length: self.reference,
        }
    }
}

/// BLEU of ids against `references` with n-grams up to `max_n`, from 0 to 1: the sentence score
/// of [`Bleu`] with `exp` smoothing and effective order.
///
/// # Errors
/// `max_n` of 0, an empty candidate or no references.
pub fn bleu(candidate: &[u32], references: &[&[u32]], max_n: usize) -> Result<f64, EvalError> {
    at_least("tokens in the text", 1, candidate.len())?;
    let counts = BleuCounts::of(candidate, references, max_n)?;
    Ok(counts.score(Smoothing::Exp, true).score / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    #[test]
    fn bleu_by_hand() {
        let score = |c: &str, r: &[&str], n| {
            let references: Vec<Vec<u32>> = r.iter().map(|r| ids(r)).collect();
            let references: Vec<&[u32]> = references.iter().map(Vec::as_slice).collect();
            bleu(&ids(c), &references, n).unwrap()
        };
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        near(score("abcd", &["abcd"], 4), 1.0);
        // Unigrams 3/4, bigrams 2/3.
        near(
            score("abcx", &["abcd"], 2),
            (3.0 / 4.0 * 2.0 / 3.0f64).sqrt(),
        );
        // Clipping: a counts twice at most; 2/4.
        near(score("aaaa", &["aabb"], 1), 0.5);
        // Brevity: two of four characters, exp(1 - 4/2).
        near(score("ab", &["abcd"], 1), (-1f64).exp());
        // No bigram matches: 1 / (2 * 1).
        near(score("ab", &["ba"], 2), 0.5f64.sqrt());
        assert!(bleu(&[], &[&[1]], 4).is_err());
        assert!(bleu(&[1], &[], 4).is_err());
    }
}
