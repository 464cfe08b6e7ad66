//! How much of a text is copied from the training text.

use crate::EvalError;
use crate::error::at_least;
use std::collections::HashSet;

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
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
