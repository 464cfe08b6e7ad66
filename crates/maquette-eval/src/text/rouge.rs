//! ROUGE: what of a reference a summary recalls.

use super::{ngrams, segments, shared, signature, stem, yes};
use crate::EvalError;
use crate::error::at_least;
use serde::Serialize;
use std::collections::HashMap;

/// ROUGE (Lin 2004, W04-1013) with its settings, as rouge-score 0.1.2 computes it. Words are runs
/// of ASCII letters and digits, lower-cased: text of other scripts has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rouge {
    /// Whether words of more than three letters are reduced to their [`stem`].
    pub stemmer: bool,
}

/// Precision, recall and their harmonic mean, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RougeScore {
    /// The shared part of the hypothesis.
    pub precision: f64,
    /// The shared part of the reference.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub f1: f64,
}

/// The four usual scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RougeScores {
    /// Words.
    pub rouge1: RougeScore,
    /// Pairs of words.
    pub rouge2: RougeScore,
    /// The longest common subsequence of the whole texts.
    pub rouge_l: RougeScore,
    /// The union of the longest common subsequences of each pair of lines.
    pub rouge_lsum: RougeScore,
}

impl Rouge {
    /// All four scores; each is that of the reference with the highest F.
    ///
    /// # Errors
    /// No references.
    pub fn sentence(
        &self,
        hypothesis: &str,
        references: &[&str],
    ) -> Result<RougeScores, EvalError> {
        Ok(RougeScores {
            rouge1: self.n(hypothesis, references, 1)?,
            rouge2: self.n(hypothesis, references, 2)?,
            rouge_l: self.l(hypothesis, references)?,
            rouge_lsum: self.lsum(hypothesis, references)?,
        })
    }

    /// The mean over the segments of a corpus.
    ///
    /// # Errors
    /// No segments, lists of different lengths, or a segment without references.
    pub fn corpus(
        &self,
        hypotheses: &[&str],
        references: &[Vec<&str>],
    ) -> Result<RougeScores, EvalError> {
        let scores = segments(hypotheses, references, |h, r| self.sentence(h, r))?;
        let mean = |of: fn(&RougeScores) -> RougeScore| {
            let mean = |part: fn(&RougeScore) -> f64| {
                scores.iter().map(|s| part(&of(s))).sum::<f64>() / scores.len() as f64
            };
            RougeScore {
                precision: mean(|s| s.precision),
                recall: mean(|s| s.recall),
                f1: mean(|s| s.f1),
            }
        };
        Ok(RougeScores {
            rouge1: mean(|s| s.rouge1),
            rouge2: mean(|s| s.rouge2),
            rouge_l: mean(|s| s.rouge_l),
            rouge_lsum: mean(|s| s.rouge_lsum),
        })
    }

    /// ROUGE-N.
    ///
    /// # Errors
    /// `n` of 0, or no references.
    pub fn n(
        &self,
        hypothesis: &str,
        references: &[&str],
        n: usize,
    ) -> Result<RougeScore, EvalError> {
        at_least("words per n-gram", 1, n)?;
        let own = self.words(hypothesis);
        best(references, |reference| {
            let other = self.words(reference);
            let count = |words: &[String]| (words.len() + 1).saturating_sub(n);
            let hits = shared(&ngrams(&own, n), &ngrams(&other, n));
            score(hits, count(&own), count(&other))
        })
    }

    /// ROUGE-L.
    ///
    /// # Errors
    /// No references.
    pub fn l(&self, hypothesis: &str, references: &[&str]) -> Result<RougeScore, EvalError> {
        let own = self.words(hypothesis);
        best(references, |reference| {
            let other = self.words(reference);
            let table = common_lengths(&other, &own);
            score(table[other.len()][own.len()], own.len(), other.len())
        })
    }

    /// ROUGE-Lsum: sentences stand on lines of their own.
    ///
    /// # Errors
    /// No references.
    pub fn lsum(&self, hypothesis: &str, references: &[&str]) -> Result<RougeScore, EvalError> {
        let lines = |text: &str| -> Vec<_> { text.split('\n').map(|l| self.words(l)).collect() };
        let own = lines(hypothesis);
        best(references, |reference| union_score(&own, &lines(reference)))
    }

    /// The settings in the form of sacreBLEU's signatures; the version is rouge-score's.
    pub fn signature(&self, references: &[Vec<&str>]) -> String {
        let settings = format!("stem:{}|split:newline", yes(self.stemmer));
        signature(references, &settings, "0.1.2")
    }

    fn words(&self, text: &str) -> Vec<String> {
        text.to_lowercase()
            .split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'))
            .filter(|word| !word.is_empty())
            .map(|word| match self.stemmer && word.len() > 3 {
                true => stem(word),
                false => word.to_owned(),
            })
            .filter(|word| !word.is_empty())
            .collect()
    }
}

/// The score of the reference with the highest F, the first of equals.
fn best(references: &[&str], score: impl Fn(&str) -> RougeScore) -> Result<RougeScore, EvalError> {
    at_least("references", 1, references.len())?;
    Ok(references
        .iter()
        .map(|reference| score(reference))
        .reduce(|best, next| if next.f1 > best.f1 { next } else { best })
        .unwrap_or_default())
}

fn score(hits: usize, hypothesis: usize, reference: usize) -> RougeScore {
    let precision = hits as f64 / hypothesis.max(1) as f64;
    let recall = hits as f64 / reference.max(1) as f64;
    let f1 = match hits {
        0 => 0.0,
        _ => 2.0 * precision * recall / (precision + recall),
    };
    RougeScore {
        precision,
        recall,
        f1,
    }
}

/// The lengths of the longest common subsequences of all beginnings.
fn common_lengths(left: &[String], right: &[String]) -> Vec<Vec<usize>> {
    let mut table = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, a) in left.iter().enumerate() {
        for (j, b) in right.iter().enumerate() {
            table[i + 1][j + 1] = match a == b {
                true => table[i][j] + 1,
                false => table[i][j + 1].max(table[i + 1][j]),
            };
        }
    }
    table
}

/// Summary-level LCS (Lin 2004, section 3.2): the words of each line of the reference that lie in
/// a longest common subsequence with any line of the hypothesis; no word counts more often than
/// it stands in either text.
fn union_score(own: &[Vec<String>], other: &[Vec<String>]) -> RougeScore {
    let tally = |lines: &[Vec<String>]| {
        let mut tally: HashMap<String, usize> = HashMap::new();
        for word in lines.iter().flatten() {
            *tally.entry(word.clone()).or_insert(0) += 1;
        }
        tally
    };
    let (mut own_left, mut other_left) = (tally(own), tally(other));
    let mut hits = 0;
    for line in other {
        let mut common = vec![false; line.len()];
        for candidate in own {
            mark_common(line, candidate, &mut common);
        }
        for (word, _) in line.iter().zip(common).filter(|(_, common)| *common) {
            if let (Some(a @ 1..), Some(b @ 1..)) =
                (own_left.get_mut(word), other_left.get_mut(word))
            {
                *a -= 1;
                *b -= 1;
                hits += 1;
            }
        }
    }
    let count = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
    score(hits, count(own), count(other))
}

/// Marks the words of `left` that lie in one longest common subsequence with `right`: of several
/// the one that the original implementation reads out of its table.
fn mark_common(left: &[String], right: &[String], marks: &mut [bool]) {
    let table = common_lengths(left, right);
    let (mut i, mut j) = (left.len(), right.len());
    while i > 0 && j > 0 {
        if left[i - 1] == right[j - 1] {
            marks[i - 1] = true;
            (i, j) = (i - 1, j - 1);
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_by_hand() {
        let got = Rouge::default()
            .sentence("the bowl is red", &["The red bowl is here!"])
            .unwrap();
        // All four words of five; "bowl is" of three pairs and four; "the bowl is".
        assert_eq!((got.rouge1.precision, got.rouge1.recall), (1.0, 0.8));
        assert_eq!((got.rouge2.precision, got.rouge2.recall), (1.0 / 3.0, 0.25));
        assert_eq!((got.rouge_l.precision, got.rouge_l.recall), (0.75, 0.6));
        assert_eq!(got.rouge_l, got.rouge_lsum);
        assert!(Rouge::default().sentence("a", &[]).is_err());
        assert!(Rouge::default().n("a", &["a"], 0).is_err());
    }
}
