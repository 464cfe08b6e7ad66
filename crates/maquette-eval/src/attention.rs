//! What a head of attention does, read off its weights on one text.
//!
//! The scores are those by which Olsson et al. 2022, "In-context learning and induction heads", find
//! heads that copy: a head that looks at the token before, and one that looks at what came after the
//! last time the same token was there.

use crate::error::{EvalError, same};

/// One head's weights on a text of `n` tokens: row by row, `[n, n]`, each row summing to one.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    weights: &'a [f32],
    n: usize,
}

impl<'a> Head<'a> {
    /// A head's weights.
    ///
    /// # Errors
    /// [`EvalError::Sizes`] if they are not `n * n` numbers.
    pub fn new(weights: &'a [f32], n: usize) -> Result<Self, EvalError> {
        same(
            "the weights and the square of the tokens",
            weights.len(),
            n * n,
        )?;
        Ok(Self { weights, n })
    }

    /// How much `query` looks at `key`.
    pub fn weight(&self, query: usize, key: usize) -> f32 {
        self.weights[query * self.n + key]
    }

    /// How much a token looks at the one before it, mean over all but the first; 0 for one token.
    pub fn previous_token(&self) -> f64 {
        mean((1..self.n).map(|query| self.weight(query, query - 1)))
    }

    /// How much a token looks at what came after earlier occurrences of the same token, mean over
    /// the tokens that have any; 0 where none has.
    ///
    /// # Panics
    /// If there are not `n` tokens.
    pub fn induction(&self, tokens: &[u32]) -> f64 {
        assert_eq!(tokens.len(), self.n, "as many tokens as rows");
        let after = |query: usize| {
            let seen = (0..query.saturating_sub(1)).filter(|key| tokens[*key] == tokens[query]);
            seen.map(|key| self.weight(query, key + 1))
                .reduce(|a, b| a + b)
        };
        mean((0..self.n).filter_map(after))
    }
}

fn mean(values: impl Iterator<Item = f32>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| {
        (sum + f64::from(value), count + 1)
    });
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_by_hand() {
        // a b a b: the second a (2) looks at the first b (1), the second b (3) half at the second a.
        let weights = [
            1.0, 0.0, 0.0, 0.0, //
            0.6, 0.4, 0.0, 0.0, //
            0.1, 0.8, 0.1, 0.0, //
            0.2, 0.1, 0.5, 0.2,
        ];
        let head = Head::new(&weights, 4).unwrap();
        assert!((head.previous_token() - (0.6 + 0.8 + 0.5) / 3.0).abs() < 1e-6);
        assert!((head.induction(&[7, 9, 7, 9]) - (0.8 + 0.5) / 2.0).abs() < 1e-6);
        // Nothing comes again, or only at once: nothing to look for.
        assert_eq!(head.induction(&[1, 2, 3, 4]), 0.0);
        assert_eq!(head.induction(&[1, 1, 2, 3]), 0.0);
        assert!(Head::new(&weights, 3).is_err());
    }
}
