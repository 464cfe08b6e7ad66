//! chrF: characters and, in chrF++, words, counted by n-grams.

use super::tokenize::{is_space, words};
use super::{SACREBLEU, ngrams, segments, shared, signature, yes};
use crate::EvalError;
use crate::error::at_least;
use std::hash::Hash;

/// chrF (Popović 2015, W15-3049) and chrF++ (Popović 2017, W17-4770) with their settings, as
/// sacreBLEU 2.6.0 computes them: an F-score of n-grams, from 0 to 100.
#[derive(Debug, Clone, PartialEq)]
pub struct Chrf {
    /// The longest n-grams of characters; 6.
    pub char_order: usize,
    /// The longest n-grams of words: 0 is chrF, 2 is chrF++.
    pub word_order: usize,
    /// How many times more recall weighs than precision; 2.
    pub beta: u32,
    /// Whether case is ignored.
    pub lowercase: bool,
    /// Whether white space counts as characters.
    pub whitespace: bool,
    /// Whether every order has a part in the mean (as in chrF++.py, Moses and NLTK), or only
    /// those that both sides have.
    pub eps_smoothing: bool,
}

impl Default for Chrf {
    /// sacreBLEU's settings of chrF.
    fn default() -> Self {
        Self {
            char_order: 6,
            word_order: 0,
            beta: 2,
            lowercase: false,
            whitespace: false,
            eps_smoothing: false,
        }
    }
}

/// What chrF needs to know of a segment; those of a corpus add up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChrfCounts(Vec<[usize; 3]>);

impl Chrf {
    /// chrF++: 2-grams of words too.
    pub fn plus_plus() -> Self {
        Self {
            word_order: 2,
            ..Self::default()
        }
    }

    /// The score of a corpus.
    ///
    /// # Errors
    /// No segments, lists of different lengths, a segment without references, no orders.
    pub fn corpus(&self, hypotheses: &[&str], references: &[Vec<&str>]) -> Result<f64, EvalError> {
        let counts = segments(hypotheses, references, |h, r| self.counts(h, r))?;
        Ok(self.score(&counts))
    }

    /// The score of one sentence.
    ///
    /// # Errors
    /// No references, or no orders.
    pub fn sentence(&self, hypothesis: &str, references: &[&str]) -> Result<f64, EvalError> {
        Ok(self.score([&self.counts(hypothesis, references)?]))
    }

    /// The counts of one segment against the reference that it scores best with, for
    /// [`Self::score`] and for resampling.
    ///
    /// # Errors
    /// No references, or no orders.
    pub fn counts(&self, hypothesis: &str, references: &[&str]) -> Result<ChrfCounts, EvalError> {
        at_least("orders of n-grams", 1, self.char_order + self.word_order)?;
        at_least("references", 1, references.len())?;
        let own = self.items(hypothesis);
        let mut best = (f64::NEG_INFINITY, Vec::new());
        for reference in references {
            let other = self.items(reference);
            let mut counts: Vec<_> = (1..=self.char_order)
                .map(|n| matches(&own.0, &other.0, n))
                .collect();
            counts.extend((1..=self.word_order).map(|n| matches(&own.1, &other.1, n)));
            let score = self.f_score(&counts);
            if score > best.0 {
                best = (score, counts);
            }
        }
        Ok(ChrfCounts(best.1))
    }

    /// The score of segments together.
    pub fn score<'a>(&self, counts: impl IntoIterator<Item = &'a ChrfCounts>) -> f64 {
        let mut all = vec![[0; 3]; self.char_order + self.word_order];
        for counts in counts {
            for (sum, order) in all.iter_mut().zip(&counts.0) {
                *sum = std::array::from_fn(|i| sum[i] + order[i]);
            }
        }
        self.f_score(&all)
    }

    /// The settings in sacreBLEU's form:
    /// `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0|maquette:0.1.0`.
    pub fn signature(&self, references: &[Vec<&str>]) -> String {
        let case = if self.lowercase { "lc" } else { "mixed" };
        let (eff, space) = (yes(!self.eps_smoothing), yes(self.whitespace));
        let (nc, nw) = (self.char_order, self.word_order);
        let settings = format!("case:{case}|eff:{eff}|nc:{nc}|nw:{nw}|space:{space}");
        signature(references, &settings, SACREBLEU)
    }

    /// The characters and the words of a line.
    fn items(&self, line: &str) -> (Vec<char>, Vec<String>) {
        let lower;
        let line = match self.lowercase {
            true => {
                lower = line.to_lowercase();
                &lower
            }
            false => line,
        };
        let counted = |c: &char| self.whitespace || !is_space(*c);
        let mut split = Vec::new();
        for word in words(line).filter(|_| self.word_order > 0) {
            split_word(word, &mut split);
        }
        (line.chars().filter(counted).collect(), split)
    }

    fn f_score(&self, orders: &[[usize; 3]]) -> f64 {
        const EPSILON: f64 = 1e-16;
        let factor = f64::from(self.beta).powi(2);
        let f = |precision: f64, recall: f64| match factor * precision + recall {
            0.0 => 0.0,
            sum => (1.0 + factor) * precision * recall / sum,
        };
        let rate = |matched, all| match all {
            0 => EPSILON,
            _ => matched as f64 / all as f64,
        };
        if self.eps_smoothing {
            let sum: f64 = orders
                .iter()
                .map(|&[own, other, matched]| f(rate(matched, own), rate(matched, other)))
                .sum();
            return 100.0 * sum / orders.len() as f64;
        }
        let both = || orders.iter().filter(|o| o[0] > 0 && o[1] > 0);
        let used = both().count().max(1) as f64;
        let precision: f64 = both().map(|o| rate(o[2], o[0])).sum();
        let recall: f64 = both().map(|o| rate(o[2], o[1])).sum();
        100.0 * f(precision / used, recall / used)
    }
}

/// The n-grams of the hypothesis (0 where the reference has none), of the reference, of both.
fn matches<T: Eq + Hash>(own: &[T], other: &[T], n: usize) -> [usize; 3] {
    let count = |items: &[T]| (items.len() + 1).saturating_sub(n);
    let hypothesis = if count(other) > 0 { count(own) } else { 0 };
    [
        hypothesis,
        count(other),
        shared(&ngrams(own, n), &ngrams(other, n)),
    ]
}

/// Cuts one mark of ASCII punctuation off a word of several characters: the last if it is one,
/// else the first.
fn split_word(word: &str, into: &mut Vec<String>) {
    let marked = |c: Option<char>| c.is_some_and(|c| c.is_ascii_punctuation());
    let mut chars = word.chars();
    let cut = match (chars.next(), chars.next_back()) {
        // ASCII marks are one byte long.
        (_, last) if marked(last) => word.len() - 1,
        (first, Some(_)) if marked(first) => 1,
        _ => word.len(),
    };
    let (head, tail) = word.split_at(cut);
    into.push(head.to_owned());
    if !tail.is_empty() {
        into.push(tail.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_by_hand() {
        let unigrams = Chrf {
            char_order: 1,
            ..Chrf::default()
        };
        // Precision 2/4, recall 2/3: 5 * 1/3 / (4/2 + 2/3).
        let got = unigrams.sentence("a bxy", &["a bc"]).unwrap();
        assert!((got - 62.5).abs() < 1e-12, "{got}");
        assert!(unigrams.sentence("a", &[]).is_err());
        assert!(unigrams.corpus(&["a"], &[]).is_err());
    }

    #[test]
    fn one_mark_is_cut_off() {
        let split = |word| {
            let mut words = Vec::new();
            split_word(word, &mut words);
            words
        };
        assert_eq!(split("(hi)"), ["(hi", ")"]);
        assert_eq!(split("(hi"), ["(", "hi"]);
        assert_eq!(split("("), ["("]);
        assert_eq!(split("hi"), ["hi"]);
    }
}
