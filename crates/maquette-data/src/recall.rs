//! Texts that ask for memory: a needle in a haystack, one token that matters at a chosen distance
//! before the question; and repeats, where every token matters. Seeded, no download.

use std::ops::RangeInclusive;

use maquette_rng::Rng;
use maquette_rng::rand::RngExt as _;

/// How many tokens there are of each sort. Values come first, then hay, then the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Haystack {
    /// What a needle may be.
    pub values: usize,
    /// What the hay is made of.
    pub hay: usize,
}

/// Texts that end in the question, and what its answers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needles {
    /// `[texts, length]`, row by row.
    pub tokens: Vec<u32>,
    /// The needle of each text.
    pub answers: Vec<u32>,
}

impl Haystack {
    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.values + self.hay + 1
    }

    /// `texts` of `length` tokens, the question included, with the needle at a distance from it that
    /// is drawn from `distances`.
    ///
    /// # Panics
    /// If a distance is zero or does not fit the length.
    pub fn draw(
        &self,
        texts: usize,
        length: usize,
        distances: RangeInclusive<usize>,
        rng: &mut Rng,
    ) -> Needles {
        assert!(
            0 < *distances.start() && *distances.end() < length,
            "a needle {distances:?} before the end of {length} tokens"
        );
        let (values, hay) = (self.values as u32, self.hay as u32);
        let mut needles = Needles {
            tokens: Vec::with_capacity(texts * length),
            answers: Vec::with_capacity(texts),
        };
        for _ in 0..texts {
            let at = length - 1 - rng.random_range(distances.clone());
            let answer = rng.random_range(0..values);
            let mut text: Vec<u32> = (0..length - 1)
                .map(|_| values + rng.random_range(0..hay))
                .collect();
            text[at] = answer;
            needles.tokens.extend(text);
            needles.tokens.push(values + hay);
            needles.answers.push(answer);
        }
        needles
    }
}

/// Random tokens that come again: what follows is certain for who remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeats {
    /// Number of tokens in the vocabulary.
    pub symbols: usize,
    /// After how many tokens a text begins again, drawn for each.
    pub distances: RangeInclusive<usize>,
}

impl Repeats {
    /// `texts` of `length` tokens, row by row; from the place of their distance on they are certain.
    ///
    /// # Panics
    /// If there is no distance or no token.
    pub fn draw(&self, texts: usize, length: usize, rng: &mut Rng) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(texts * length);
        for _ in 0..texts {
            let first = tokens.len();
            let distance = rng.random_range(self.distances.clone());
            for place in 0..length {
                let token = match place.checked_sub(distance) {
                    Some(before) => tokens[first + before],
                    None => rng.random_range(0..self.symbols as u32),
                };
                tokens.push(token);
            }
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn the_needle_lies_where_it_was_asked_for() {
        let haystack = Haystack { values: 4, hay: 3 };
        let draw = || haystack.draw(50, 9, 2..=5, &mut rng(1, Stream::Data, 0));
        let Needles { tokens, answers } = draw();
        let mut seen = [false; 9];
        for (row, answer) in tokens.chunks(9).zip(&answers) {
            assert_eq!(row[8] as usize + 1, haystack.vocab_size());
            let places: Vec<usize> = (0..8).filter(|at| row[*at] < 4).collect();
            assert_eq!((places.len(), row[places[0]]), (1, *answer));
            seen[8 - places[0]] = true;
        }
        assert_eq!(
            seen,
            [false, false, true, true, true, true, false, false, false]
        );
        assert_eq!(draw().tokens, tokens);
    }

    #[test]
    fn repeats_come_after_their_distance() {
        let repeats = Repeats {
            symbols: 8,
            distances: 4..=6,
        };
        let tokens = repeats.draw(30, 12, &mut rng(1, Stream::Data, 0));
        assert!(tokens.iter().all(|token| *token < 8) && tokens.len() == 360);
        let mut seen = [false; 3];
        for row in tokens.chunks(12) {
            let distance = (4..=6).find(|d| row[*d..] == row[..12 - d]);
            seen[distance.unwrap() - 4] = true;
        }
        assert_eq!(seen, [true; 3]);
    }
}
