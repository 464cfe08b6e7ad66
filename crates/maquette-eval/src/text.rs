//! Generated text: how varied it is, how much it repeats itself, and how much of it is copied.
//!
//! All metrics work on sequences of token ids (or of words or characters mapped to ids); their
//! values depend on the tokenizer, which belongs into the signature.

use crate::EvalError;
use crate::error::at_least;
use std::collections::{HashMap, HashSet};

/// Distinct n-grams over all n-grams of the texts together, in (0, 1] (Li et al. 2016,
/// arXiv 1510.03055). It falls with the amount of text: compare equal amounts only.
///
/// # Errors
/// `n` of 0, or no text of `n` tokens.
pub fn distinct_n(texts: &[Vec<u32>], n: usize) -> Result<f64, EvalError> {
    at_least("tokens per n-gram", 1, n)?;
    let all = || texts.iter().flat_map(|text| text.windows(n));
    let count = all().count();
    at_least("n-grams", 1, count)?;
    Ok(all().collect::<HashSet<_>>().len() as f64 / count as f64)
}

/// The share of a text's n-grams that it has used before: `1 - distinct / all`, called seq-rep-n
/// by Welleck et al. 2020 (arXiv 1908.04319). 0 never repeats, near 1 goes in circles.
///
/// # Errors
/// `n` of 0, or a text of fewer than `n` tokens.
pub fn repetition(text: &[u32], n: usize) -> Result<f64, EvalError> {
    at_least("tokens per n-gram", 1, n)?;
    at_least("tokens in the text", n, text.len())?;
    let count = text.len() - n + 1;
    let distinct = text.windows(n).collect::<HashSet<_>>().len();
    Ok(1.0 - distinct as f64 / count as f64)
}

/// The n-grams of a training text, to find copies of it.
#[derive(Debug)]
pub struct NgramIndex<'a> {
    n: usize,
    train: &'a [u32],
    seen: HashSet<&'a [u32]>,
}

impl<'a> NgramIndex<'a> {
    /// Indexes the n-grams of `train`.
    ///
    /// # Errors
    /// `n` of 0, or fewer than `n` training tokens.
    pub fn new(train: &'a [u32], n: usize) -> Result<Self, EvalError> {
        at_least("tokens per n-gram", 1, n)?;
        at_least("training tokens", n, train.len())?;
        Ok(Self {
            n,
            train,
            seen: train.windows(n).collect(),
        })
    }

    /// The share of the text's n-grams that also stand in the training text, from 0 to 1: with a
    /// long `n` (Lee et al. 2022, arXiv 2107.06499, take 50 tokens) it is the copied share.
    ///
    /// # Errors
    /// A text of fewer than `n` tokens.
    pub fn overlap(&self, text: &[u32]) -> Result<f64, EvalError> {
        at_least("tokens in the text", self.n, text.len())?;
        let count = text.len() - self.n + 1;
        let copied = text
            .windows(self.n)
            .filter(|g| self.seen.contains(g))
            .count();
        Ok(copied as f64 / count as f64)
    }

    /// The length of the longest run of tokens that `text` has in common with the training text.
    pub fn longest_copy(&self, text: &[u32]) -> usize {
        // A common run of length l implies one of every shorter length: bisection over l.
        let common = |l: usize| {
            let wanted: HashSet<&[u32]> = text.windows(l).collect();
            self.train.windows(l).any(|run| wanted.contains(run))
        };
        let (mut known, mut too_long) = (0, text.len().min(self.train.len()) + 1);
        while too_long - known > 1 {
            let middle = usize::midpoint(known, too_long);
            if common(middle) {
                known = middle;
            } else {
                too_long = middle;
            }
        }
        known
    }
}

/// BLEU of `candidate` against `references` with n-grams up to `max_n`, from 0 to 1: geometric
/// mean of the clipped precisions times the brevity penalty (Papineni et al. 2002). An order
/// without a match counts as half a match (`exp` smoothing, method 3 of Chen & Cherry 2014,
/// halves again for every further such order), as in sacreBLEU's sentence score.
///
/// # Errors
/// `max_n` of 0, an empty candidate or no references.
pub fn bleu(candidate: &[u32], references: &[&[u32]], max_n: usize) -> Result<f64, EvalError> {
    at_least("tokens per n-gram", 1, max_n)?;
    at_least("references", 1, references.len())?;
    at_least("tokens in the text", 1, candidate.len())?;
    let mut log_sum = 0.0;
    let mut orders = 0usize;
    let mut smooth = 1.0;
    for n in 1..=max_n.min(candidate.len()) {
        let total = candidate.len() - n + 1;
        let matched = clipped_matches(candidate, references, n);
        let precision = if matched == 0 {
            smooth *= 2.0;
            1.0 / (smooth * total as f64)
        } else {
            matched as f64 / total as f64
        };
        log_sum += precision.ln();
        orders += 1;
    }
    // The reference whose length is closest, the shorter of equals.
    let length = candidate.len();
    let closest = references
        .iter()
        .map(|r| (r.len().abs_diff(length), r.len()))
        .min()
        .map_or(length, |(_, len)| len);
    let brevity = (1.0 - closest as f64 / length as f64).min(0.0);
    Ok((brevity + log_sum / orders as f64).exp())
}

/// Each n-gram of the candidate counts at most as often as in the reference that has it most.
fn clipped_matches(candidate: &[u32], references: &[&[u32]], n: usize) -> usize {
    let references: Vec<_> = references.iter().map(|r| counts(r, n)).collect();
    counts(candidate, n)
        .iter()
        .map(|(gram, &count)| {
            let allowed = references.iter().filter_map(|r| r.get(gram)).max();
            count.min(allowed.copied().unwrap_or(0))
        })
        .sum()
}

fn counts(text: &[u32], n: usize) -> HashMap<&[u32], usize> {
    let mut counts = HashMap::new();
    for gram in text.windows(n) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// The mean [`bleu`] of every text against all others: high when samples resemble each other
/// (Self-BLEU, Zhu et al. 2018, arXiv 1802.01886). Takes time quadratic in the number of texts.
///
/// # Errors
/// Fewer than two texts, an empty one, or `max_n` of 0.
pub fn self_bleu(texts: &[Vec<u32>], max_n: usize) -> Result<f64, EvalError> {
    at_least("texts", 2, texts.len())?;
    let mut sum = 0.0;
    for (i, text) in texts.iter().enumerate() {
        let others: Vec<&[u32]> = texts
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .map(|(_, other)| other.as_slice())
            .collect();
        sum += bleu(text, &others, max_n)?;
    }
    Ok(sum / texts.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    #[test]
    fn distinct_by_hand() {
        // ab ba ab | ab: 2 distinct of 4.
        assert_eq!(distinct_n(&[ids("abab"), ids("ab")], 2).unwrap(), 0.5);
        assert_eq!(distinct_n(&[ids("abc")], 1).unwrap(), 1.0);
        assert!(distinct_n(&[ids("a")], 2).is_err());
        assert!(distinct_n(&[ids("a")], 0).is_err());
    }

    #[test]
    fn repetition_by_hand() {
        // aa ab ba aa ab: 3 distinct of 5.
        assert!((repetition(&ids("aabaab"), 2).unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(repetition(&ids("abcd"), 2).unwrap(), 0.0);
        assert!(repetition(&ids("a"), 2).is_err());
    }

    #[test]
    fn copies_are_found() {
        let train = ids("the cat sat on the mat");
        let index = NgramIndex::new(&train, 3).unwrap();
        assert_eq!(index.overlap(&ids("cat")).unwrap(), 1.0);
        assert_eq!(index.overlap(&ids("xyz")).unwrap(), 0.0);
        // "sat", "at ", "t d", " do", "dog": the first two.
        assert_eq!(index.overlap(&ids("sat dog")).unwrap(), 0.4);
        assert_eq!(index.longest_copy(&ids("a cat sat in")), " cat sat ".len());
        assert_eq!(index.longest_copy(&ids("xyz")), 0);
        assert_eq!(index.longest_copy(&train), train.len());
        assert_eq!(index.longest_copy(&[]), 0);
        assert!(index.overlap(&ids("ab")).is_err());
        assert!(NgramIndex::new(&train, 0).is_err());
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

    #[test]
    fn self_bleu_tells_clones_from_strangers() {
        let clones = vec![ids("hello there"), ids("hello there"), ids("hello there")];
        assert!((self_bleu(&clones, 4).unwrap() - 1.0).abs() < 1e-12);
        let strangers = vec![ids("abcdefgh"), ids("ijklmnop")];
        assert!(self_bleu(&strangers, 4).unwrap() < 0.05);
        assert!(self_bleu(&clones[..1], 4).is_err());
    }

    proptest! {
        #[test]
        fn longest_copy_is_the_longest_common_run(
            a in prop::collection::vec(0u32..3, 1..25), b in prop::collection::vec(0u32..3, 0..25),
        ) {
            let mut want = 0;
            for i in 0..a.len() {
                for j in 0..b.len() {
                    let run = a[i..].iter().zip(&b[j..]).take_while(|(x, y)| x == y).count();
                    want = want.max(run);
                }
            }
            prop_assert_eq!(NgramIndex::new(&a, 1).unwrap().longest_copy(&b), want);
        }
    }
}
