//! What counting neighbours knows of a text: the baseline of every model of words.

use std::collections::HashMap;

/// How often tokens stand alone and beside each other, smoothed as Witten and Bell do (1991, "The
/// zero-frequency problem", method C): a token that was seen with `t` different followers gives
/// the share `t / (t + count)` to how often they stand in the text as a whole.
#[derive(Debug, Clone)]
pub struct Bigrams {
    alone: Vec<f64>,
    /// By left token: how often it was followed, and by what.
    after: Vec<(f64, HashMap<u32, f64>)>,
}

impl Bigrams {
    /// Counts `tokens` of a vocabulary of `vocab_size`.
    ///
    /// # Panics
    /// If a token is outside the vocabulary.
    pub fn count(tokens: &[u32], vocab_size: usize) -> Self {
        let mut alone = vec![1.0; vocab_size];
        let mut after = vec![(0.0, HashMap::new()); vocab_size];
        for token in tokens {
            alone[*token as usize] += 1.0;
        }
        for pair in tokens.windows(2) {
            let (count, next) = &mut after[pair[0] as usize];
            *count += 1.0;
            *next.entry(pair[1]).or_default() += 1.0;
        }
        let total = (tokens.len() + vocab_size) as f64;
        alone.iter_mut().for_each(|count| *count /= total);
        Self { alone, after }
    }

    /// The probability of `token` where nothing is known.
    pub fn alone(&self, token: u32) -> f64 {
        self.alone[token as usize]
    }

    /// The probability of `token` after `left`.
    pub fn after(&self, left: u32, token: u32) -> f64 {
        let (count, next) = &self.after[left as usize];
        let different = next.len() as f64;
        if different == 0.0 {
            return self.alone(token);
        }
        let seen = next.get(&token).copied().unwrap_or(0.0);
        (seen + different * self.alone(token)) / (count + different)
    }

    /// The probability of every token between two neighbours, of which either may be unknown:
    /// `p(x | left) p(right | x)`, made to sum to one.
    pub fn between(&self, left: Option<u32>, right: Option<u32>) -> Vec<f64> {
        let tokens = 0..self.alone.len() as u32;
        let mut all: Vec<f64> = match left {
            Some(left) => tokens.map(|token| self.after(left, token)).collect(),
            None => self.alone.clone(),
        };
        if let Some(right) = right {
            for (token, p) in (0..).zip(&mut all) {
                *p *= self.after(token, right);
            }
            let sum: f64 = all.iter().sum();
            all.iter_mut().for_each(|p| *p /= sum);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_by_hand_and_they_sum_to_one() {
        let counted = Bigrams::count(&[0, 1, 0, 2, 0, 1], 4);
        assert!((counted.alone(0) - 4.0 / 10.0).abs() < 1e-12);
        // 0 was followed three times, by two different tokens.
        let expected = (2.0 + 2.0 * 3.0 / 10.0) / (3.0 + 2.0);
        assert!((counted.after(0, 1) - expected).abs() < 1e-12);
        // 3 never stood there.
        assert_eq!(counted.after(3, 1), counted.alone(1));
        for (left, right) in [
            (None, None),
            (Some(0), None),
            (None, Some(0)),
            (Some(0), Some(0)),
        ] {
            let all = counted.between(left, right);
            assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        // Between two zeros a one is likelier than a two, and both than a zero.
        let all = counted.between(Some(0), Some(0));
        assert!(all[1] > all[2] && all[2] > all[0], "{all:?}");
    }
}
