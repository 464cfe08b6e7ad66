//! Rows of a text encoder: `[CLS] text [SEP]`, or two segments and whether they belong together.

use maquette_rng::Rng;
use maquette_rng::rand::RngExt as _;
use serde::{Deserialize, Serialize};

use crate::Tokenizer;

/// What a model is to tell from two segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// Whether the second follows the first or comes from elsewhere (Devlin et al. 2018,
    /// arXiv:1810.04805, section 3.1).
    NextSentence,
    /// Whether two that follow each other stand in order (Lan et al. 2019, arXiv:1909.11942).
    SentenceOrder,
}

/// What one row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Special tokens included.
    pub tokens: Vec<u32>,
    /// 0 up to the first `[SEP]`, 1 after it.
    pub segments: Vec<u32>,
}

/// The tokens around segments.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    cls: u32,
    sep: u32,
}

impl Frame {
    /// Of a tokenizer that has `[CLS]` and `[SEP]`; `None` if it has not.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        Some(Self {
            cls: tokenizer.token_to_id("[CLS]")?,
            sep: tokenizer.token_to_id("[SEP]")?,
        })
    }

    /// Whether a token is one of those around segments.
    pub fn holds(&self, token: u32) -> bool {
        token == self.cls || token == self.sep
    }

    /// `[CLS] text [SEP]`.
    pub fn one(&self, text: &[u32]) -> Row {
        let tokens = [&[self.cls], text, &[self.sep]].concat();
        Row {
            segments: vec![0; tokens.len()],
            tokens,
        }
    }

    /// `[CLS] first [SEP] second [SEP]`.
    pub fn two(&self, first: &[u32], second: &[u32]) -> Row {
        let mut row = self.one(first);
        row.tokens.extend(second);
        row.tokens.push(self.sep);
        row.segments.resize(row.tokens.len(), 1);
        row
    }
}

impl Pairing {
    /// Cuts `text` in two at a place of its middle half and, in half of all cases, puts the end of
    /// `elsewhere` in place of the second segment, or swaps the two. Says which: 0 as they stood,
    /// 1 not.
    ///
    /// # Panics
    /// If `text` has fewer than four tokens, or `elsewhere` another number of them.
    pub fn draw(self, frame: &Frame, text: &[u32], elsewhere: &[u32], rng: &mut Rng) -> (Row, u32) {
        let n = text.len();
        assert!(n >= 4 && elsewhere.len() == n, "texts of {n} tokens each");
        let cut = rng.random_range(n / 4..=n - n / 4 - 1).max(1);
        let (first, second) = text.split_at(cut);
        let other = rng.random::<bool>();
        let row = match (other, self) {
            (false, _) => frame.two(first, second),
            (true, Self::NextSentence) => frame.two(first, &elsewhere[cut..]),
            (true, Self::SentenceOrder) => frame.two(second, first),
        };
        (row, u32::from(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn rows_are_framed_and_pairs_drawn_evenly() {
        let frame = Frame { cls: 90, sep: 91 };
        let row = frame.two(&[1, 2], &[3]);
        assert_eq!(row.tokens, [90, 1, 2, 91, 3, 91]);
        assert_eq!(row.segments, [0, 0, 0, 0, 1, 1]);
        let text: Vec<u32> = (0..8).collect();
        let elsewhere: Vec<u32> = (20..28).collect();
        let random = &mut rng(1, Stream::Noise, 0);
        for pairing in [Pairing::NextSentence, Pairing::SentenceOrder] {
            let mut others = 0;
            for _ in 0..400 {
                let (row, class) = pairing.draw(&frame, &text, &elsewhere, random);
                assert_eq!(row.tokens.len(), 11);
                let words: Vec<u32> = row.tokens.iter().copied().filter(|t| *t < 90).collect();
                let stood = words == text;
                assert_eq!(stood, class == 0, "{words:?}");
                let strange = words.iter().any(|t| *t >= 20);
                assert_eq!(strange, class == 1 && pairing == Pairing::NextSentence);
                others += class;
            }
            assert!((150..250).contains(&others), "{others}");
        }
    }
}
