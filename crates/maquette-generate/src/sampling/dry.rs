//! "Don't repeat yourself": a token that would continue a repetition costs more, the longer the
//! repetition is.

use std::collections::HashMap;

use maquette_data::Tokenizer;
use serde::{Deserialize, Serialize};

use super::candidates::Candidate;
use crate::GenerateError;

/// The DRY penalty (P. E. Weidmann 2024, text-generation-webui, pull 5677; sequence breakers as in
/// llama.cpp). Where the last `n` tokens stood before, `n` at least `allowed_length`, the logit of the
/// token that followed them loses `multiplier * base^(n - allowed_length)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dry {
    /// The penalty of a repetition of `allowed_length`; 0.8 is usual.
    pub multiplier: f64,
    /// What one more repeated token multiplies it with.
    #[serde(default = "base")]
    pub base: f64,
    /// Repetitions shorter than this are free.
    #[serde(default = "allowed_length")]
    pub allowed_length: usize,
    /// How many of the last tokens are looked at; all if absent.
    #[serde(default)]
    pub window: Option<usize>,
}

fn base() -> f64 {
    1.75
}

fn allowed_length() -> usize {
    2
}

impl Dry {
    /// A multiplier with the usual base of 1.75 and allowed length of 2, over the whole text.
    pub fn new(multiplier: f64) -> Self {
        Self {
            multiplier,
            base: base(),
            allowed_length: allowed_length(),
            window: None,
        }
    }

    /// Lowers the logits of tokens that would continue a repetition of `history`.
    pub(super) fn penalise(
        &self,
        candidates: &mut [Candidate],
        history: &[u32],
        breakers: &Breakers,
    ) {
        let window = self.window.unwrap_or(history.len());
        let seen = &history[history.len().saturating_sub(window)..];
        let repeats = self.repeats(seen, breakers);
        if repeats.is_empty() {
            return;
        }
        // Beyond this power the penalty would leave the range of f32.
        let most = f64::from(f32::MAX).ln() / self.base.ln();
        for candidate in candidates {
            let id = candidate.id as u32;
            if let Some(length) = repeats.get(&id).filter(|_| !breakers.single(id)) {
                let mut power = (length - self.allowed_length) as f64;
                if self.base > 1.000_001 {
                    power = power.min(most.floor());
                }
                candidate.logit -= self.multiplier * self.base.powf(power);
            }
        }
    }

    /// For every token that would continue a repetition, the length of the longest.
    fn repeats(&self, seen: &[u32], breakers: &Breakers) -> HashMap<u32, usize> {
        let mut longest: HashMap<u32, usize> = HashMap::new();
        let limit = breakers.since(seen);
        if limit < self.allowed_length || seen.len() <= self.allowed_length {
            return longest;
        }
        let backwards: Vec<u32> = seen.iter().rev().copied().collect();
        // From the end, `at` tokens back, the text matches its own end over `length` tokens.
        for (at, length) in common_prefixes(&backwards).into_iter().enumerate().skip(1) {
            let length = length.min(limit);
            if length >= self.allowed_length {
                let follows = longest.entry(backwards[at - 1]).or_default();
                *follows = length.max(*follows);
            }
        }
        longest
    }
}

/// For every position, how long the text from there is the same as from the beginning: Gusfield's
/// Z function, in linear time.
fn common_prefixes(text: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; text.len()];
    let (mut from, mut to) = (0, 0);
    for at in 1..text.len() {
        let mut length = match at < to {
            true => lengths[at - from].min(to - at),
            false => 0,
        };
        while at + length < text.len() && text[at + length] == text[length] {
            length += 1;
        }
        lengths[at] = length;
        if at + length > to {
            (from, to) = (at, at + length);
        }
    }
    lengths
}

/// Token sequences that no repetition reaches across: the first token, and for each the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breakers(HashMap<u32, Vec<Vec<u32>>>);

impl Breakers {
    /// The usual ones: line ends, colons, double quotes and asterisks.
    pub const USUAL: [&str; 4] = ["\n", ":", "\"", "*"];
    /// Longer sequences are cut to this many tokens after the first.
    const LONGEST: usize = 20;

    /// Every token in which one of `texts` stands, and every way a token can end in its beginning,
    /// with the tokens of its rest.
    ///
    /// # Errors
    /// When the tokenizer's tokens have no bytes of their own.
    pub fn new(texts: &[impl AsRef<str>], tokenizer: &Tokenizer) -> Result<Self, GenerateError> {
        let failed = |e: maquette_data::DataError| GenerateError::Tokenizer(e.to_string());
        let words = tokenizer.token_bytes().map_err(failed)?;
        let mut all: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        let texts = texts.iter().map(AsRef::as_ref);
        for text in texts.filter(|text| !text.is_empty()) {
            for (id, word) in (0..).zip(&words) {
                let Some(word) = word else { continue };
                let tails = &mut *all.entry(id).or_default();
                if word.windows(text.len()).any(|part| part == text.as_bytes()) {
                    tails.push(Vec::new());
                    continue;
                }
                for length in 1..text.len().min(word.len() + 1) {
                    if !text.is_char_boundary(length) || !word.ends_with(&text.as_bytes()[..length])
                    {
                        continue;
                    }
                    let Ok(mut tail) = tokenizer.encode(&text[length..]) else {
                        continue;
                    };
                    tail.truncate(Self::LONGEST);
                    tails.push(tail);
                }
            }
        }
        all.retain(|_, tails| !tails.is_empty());
        Ok(Self(all))
    }

    /// Whether this token alone breaks.
    fn single(&self, id: u32) -> bool {
        let tails = self.0.get(&id);
        tails.is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    /// How many tokens came after the last sequence that breaks; all if there is none.
    fn since(&self, seen: &[u32]) -> usize {
        if self.0.is_empty() {
            return seen.len();
        }
        for (at, id) in seen.iter().enumerate().rev() {
            let after = &seen[at + 1..];
            let tails = self.0.get(id).into_iter().flatten();
            let matching = tails.filter(|tail| after.starts_with(tail));
            if let Some(length) = matching.map(Vec::len).max() {
                return after.len() - length;
            }
        }
        seen.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition read literally, in cubic time.
    fn literally(rule: &Dry, seen: &[u32]) -> HashMap<u32, usize> {
        let mut longest = HashMap::new();
        for end in 1..seen.len() {
            let same = (0..end).take_while(|k| seen[end - 1 - k] == seen[seen.len() - 1 - k]);
            let length = same.count();
            if length >= rule.allowed_length {
                let kept: &mut usize = longest.entry(seen[end]).or_default();
                *kept = length.max(*kept);
            }
        }
        longest
    }

    #[test]
    fn the_longest_repetition_counts() {
        use maquette_rng::{Stream, rand_distr::Distribution, rand_distr::Uniform, rng};
        let few = Uniform::new(0u32, 3).unwrap();
        for case in 0..200 {
            let mut random = rng(5, Stream::Sample, case);
            let seen: Vec<u32> = (0..40).map(|_| few.sample(&mut random)).collect();
            let rule = Dry::new(1.0);
            let got = rule.repeats(&seen, &Breakers::default());
            assert_eq!(got, literally(&rule, &seen), "{seen:?}");
        }
    }

    #[test]
    fn each_more_token_multiplies_the_penalty() {
        // `7 8 9` came before and 5 followed; of `8 9`, 6.
        let seen = [7, 8, 9, 5, 1, 8, 9, 6, 7, 8, 9];
        let rule = Dry::new(0.8);
        let mut candidates: Vec<Candidate> =
            (0..10).map(|id| Candidate { id, logit: 0.0 }).collect();
        rule.penalise(&mut candidates, &seen, &Breakers::default());
        let mut want = [0.0; 10];
        (want[5], want[6]) = (-0.8 * 1.75, -0.8);
        let got: Vec<f64> = candidates.iter().map(|c| c.logit).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn breakers_stop_a_repetition_and_are_free() {
        let tokenizer = Tokenizer::byte(&[]);
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        let lines = Breakers::new(&["\n"], &tokenizer).unwrap();
        let rule = Dry::new(1.0);
        let letter = |c: char| c as u32;
        // Without breakers `:ab` is repeated; with one at the line's end only what follows it is.
        let seen = ids("x\nabc x\nab");
        let free = rule.repeats(&seen, &Breakers::default());
        assert_eq!(free[&letter('c')], 4);
        assert_eq!(rule.repeats(&seen, &lines)[&letter('c')], 2);
        assert!(rule.repeats(&ids("x\nabc x\na"), &lines).is_empty());
        // Several tokens may make a breaker.
        let words = Breakers::new(&["end"], &tokenizer).unwrap();
        assert_eq!(words.since(&ids("the end of")), 3);
        assert_eq!(words.since(&ids("no en")), 5);
        assert!(lines.single(letter('\n')) && !words.single(letter('e')));
    }
}
