//! Hiding tokens of a text for a model to guess (Devlin et al. 2018, arXiv:1810.04805, section 3.1).

use maquette_rng::Rng;
use maquette_rng::rand::RngExt as _;
use serde::{Deserialize, Serialize};

use crate::Tokenizer;

/// How tokens are hidden.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Masking {
    /// Share of the words, or tokens, to be guessed.
    pub share: f64,
    /// Whether all tokens of a word are hidden together.
    pub whole_words: bool,
    /// Of the tokens to be guessed, the share that the mask token stands for.
    pub masked: f64,
    /// Of the tokens to be guessed, the share that a random token stands for; the rest stay.
    pub random: f64,
}

impl Default for Masking {
    fn default() -> Self {
        Self {
            share: 0.15,
            whole_words: true,
            masked: 0.8,
            random: 0.1,
        }
    }
}

/// A text with hidden tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// What the model sees.
    pub inputs: Vec<u32>,
    /// Where it has to guess, in order.
    pub places: Vec<usize>,
    /// What stood there.
    pub targets: Vec<u32>,
}

/// What a tokenizer says about hiding.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    mask: u32,
    size: u32,
    /// Whether a token goes on with the word before it.
    continues: Vec<bool>,
    /// Tokens with a meaning of their own, which are never hidden.
    special: Vec<bool>,
}

impl Vocabulary {
    /// Of a tokenizer that has a `[MASK]` or `<mask>`; `None` if it has not. Words begin as WordPiece
    /// (`##` goes on), byte-level BPE or SentencePiece (a space begins) write it; where nothing
    /// does, every token is a word.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mask = ["[MASK]", "<mask>"]
            .iter()
            .find_map(|token| tokenizer.token_to_id(token))?;
        let size = tokenizer.vocab_size() as u32;
        let spelled: Vec<String> = (0..size)
            .map(|id| tokenizer.id_to_token(id).unwrap_or_default())
            .collect();
        let begins = |text: &String| text.starts_with(['\u{120}', '\u{10a}', '\u{2581}']);
        let marked = spelled.iter().any(begins);
        let goes_on = |text: &String| match marked {
            true => !begins(text) && text.starts_with(char::is_alphanumeric),
            false => text.starts_with("##"),
        };
        let mut special = vec![false; size as usize];
        for (_, id) in tokenizer.special_tokens() {
            special[id as usize] = true;
        }
        Some(Self {
            mask,
            size,
            continues: spelled.iter().map(goes_on).collect(),
            special,
        })
    }

    /// The token that hides others.
    pub fn mask(&self) -> u32 {
        self.mask
    }
}

impl Masking {
    /// What is wrong with the shares, if anything is.
    pub fn fault(&self) -> Option<&'static str> {
        let shares = [self.share, self.masked, self.random];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
            Some("shares lie between 0 and 1")
        } else if self.share == 0.0 {
            Some("a share of 0 leaves nothing to guess")
        } else if self.masked + self.random > 1.0 {
            Some("masked and random together exceed 1")
        } else {
            None
        }
    }

    /// Hides tokens of `text`, at least one word if there is one. Special tokens stay.
    pub fn apply(&self, text: &[u32], vocabulary: &Vocabulary, rng: &mut Rng) -> Masked {
        let known = |table: &[bool], place: usize| {
            table.get(text[place] as usize).copied().unwrap_or(false)
        };
        // 1. Words, each hidden or not.
        let mut words: Vec<std::ops::Range<usize>> = Vec::new();
        for place in 0..text.len() {
            if known(&vocabulary.special, place) {
                continue;
            }
            let goes_on = self.whole_words && known(&vocabulary.continues, place);
            match words.last_mut() {
                Some(word) if goes_on && word.end == place => word.end += 1,
                _ => words.push(place..place + 1),
            }
        }
        let mut hidden: Vec<bool> = words
            .iter()
            .map(|_| rng.random::<f64>() < self.share)
            .collect();
        if !hidden.contains(&true) && !hidden.is_empty() {
            let one = rng.random_range(0..hidden.len());
            hidden[one] = true;
        }
        // 2. Each of their tokens masked, replaced or left.
        let mut masked = Masked {
            inputs: text.to_vec(),
            places: Vec::new(),
            targets: Vec::new(),
        };
        for (word, _) in words.into_iter().zip(hidden).filter(|(_, hidden)| *hidden) {
            for place in word {
                let token = text[place];
                masked.places.push(place);
                masked.targets.push(token);
                let draw = rng.random::<f64>();
                if draw < self.masked {
                    masked.inputs[place] = vocabulary.mask;
                } else if draw < self.masked + self.random {
                    masked.inputs[place] = rng.random_range(0..vocabulary.size);
                }
            }
        }
        masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    fn vocabulary() -> Vocabulary {
        // Odd tokens go on with the word before them.
        Vocabulary {
            mask: 1000,
            size: 1000,
            continues: (0..1000).map(|id| id % 2 == 1).collect(),
            special: (0..1000).map(|id| id >= 998).collect(),
        }
    }

    #[test]
    fn shares_are_those_of_the_paper() {
        let text: Vec<u32> = (0..60_000).map(|i| i % 1000).collect();
        let random = &mut rng(3, Stream::Noise, 0);
        let masked = Masking::default().apply(&text, &vocabulary(), random);
        let n = masked.places.len() as f64;
        assert!((n / 60_000.0 - 0.15).abs() < 0.01, "{n}");
        assert!(masked.targets.iter().all(|token| *token < 998));
        let seen = |place: &usize| masked.inputs[*place];
        let hidden = masked.places.iter().filter(|p| seen(p) == 1000).count() as f64;
        let kept = masked
            .places
            .iter()
            .filter(|p| seen(p) == text[**p])
            .count() as f64;
        assert!((hidden / n - 0.8).abs() < 0.02, "{}", hidden / n);
        assert!((kept / n - 0.1).abs() < 0.02, "{}", kept / n);
        // Nothing else changed, and targets are what stood there.
        for (place, (before, after)) in text.iter().zip(&masked.inputs).enumerate() {
            assert!(before == after || masked.places.binary_search(&place).is_ok());
        }
        let stood: Vec<u32> = masked.places.iter().map(|place| text[*place]).collect();
        assert_eq!(stood, masked.targets);
        // Whole words: 0 and 1 of a pair together.
        for pair in masked.places.chunks(2) {
            assert_eq!((pair[0] % 2, pair[1]), (0, pair[0] + 1));
        }
    }

    #[test]
    fn the_seed_decides_and_something_is_always_hidden() {
        let tokens: Vec<u32> = vec![2, 4, 6];
        let apply = |seed| {
            Masking::default().apply(&tokens, &vocabulary(), &mut rng(seed, Stream::Noise, 0))
        };
        assert_eq!(apply(1), apply(1));
        assert!((0..50).all(|seed| !apply(seed).places.is_empty()));
        assert!((1..50).any(|seed| apply(seed) != apply(0)));
        let random = &mut rng(0, Stream::Noise, 0);
        let nothing = Masking::default().apply(&[998, 999], &vocabulary(), random);
        assert!(nothing.places.is_empty());
    }

    #[test]
    fn faults_are_named() {
        let masking = Masking {
            masked: 0.9,
            random: 0.2,
            ..Masking::default()
        };
        assert!(masking.fault().unwrap().contains("exceed 1"));
        assert!(Masking::default().fault().is_none());
    }
}
