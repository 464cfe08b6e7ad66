//! How varied texts are, and how much they repeat themselves.

use super::bleu;
use crate::EvalError;
use crate::error::at_least;
use std::collections::HashSet;

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
    fn self_bleu_tells_clones_from_strangers() {
        let clones = vec![ids("hello there"), ids("hello there"), ids("hello there")];
        assert!((self_bleu(&clones, 4).unwrap() - 1.0).abs() < 1e-12);
        let strangers = vec![ids("abcdefgh"), ids("ijklmnop")];
        assert!(self_bleu(&strangers, 4).unwrap() < 0.05);
        assert!(self_bleu(&clones[..1], 4).is_err());
    }
}
