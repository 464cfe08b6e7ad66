//! Guessing tokens ahead, and keeping of the guesses what leaves the text's distribution as it is.

use std::collections::BTreeMap;

use maquette_kernels::paged::PAGE;
use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, StandardUniform};

use super::cache::{PageId, Pool};
use super::forward::{Batch, Forward};
use super::sequence::Sequence;
use super::{EngineOptions, RequestId, Weights};
use crate::sampling::sample;

/// A token guessed, and the distribution it was drawn from; certain if absent.
#[derive(Debug)]
pub(super) struct Guess {
    pub(super) id: u32,
    pub(super) from: Option<Vec<f32>>,
}

/// The token to take where the model's distribution is `p` and `guess` was drawn from `q`, and whether
/// it is the guess.
///
/// The guess is kept with probability `min(1, p/q)`; otherwise the token comes from what `p` has more
/// than `q`, `max(0, p - q)` made to sum to one. Then token `x` is taken with probability
/// `min(q, p) + (1 - sum min(q, p)) max(0, p - q) / sum max(0, p - q) = p` (Leviathan et al. 2023,
/// arXiv:2211.17192, appendix A.1), since both sums are the same.
pub(super) fn verify(p: &[f32], guess: &Guess, rng: &mut Rng) -> (u32, bool) {
    let id = guess.id as usize;
    let q = guess.from.as_ref().map_or(1.0, |q| q[id]);
    let draw: f32 = StandardUniform.sample(rng);
    if draw * q < p[id] {
        return (guess.id, true);
    }
    let mut rest = p.to_vec();
    match &guess.from {
        None => rest[id] = 0.0,
        Some(q) => {
            for (p, q) in rest.iter_mut().zip(q) {
                *p = (*p - q).max(0.0);
            }
        }
    }
    // Rounding may leave nothing where both are the same; then the guess was as good as any.
    let total: f32 = rest.iter().sum();
    if total <= 0.0 {
        return (sample(p, rng), false);
    }
    rest.iter_mut().for_each(|p| *p /= total);
    (sample(&rest, rng), false)
}

/// What followed where `text` last had its last two tokens, at most `most` tokens; where it never had
/// both, what followed its last token.
pub(super) fn lookup(text: &[u32], most: usize) -> Vec<Guess> {
    let found = [2, 1].into_iter().find_map(|length| {
        let end = text.len().checked_sub(length)?;
        let last = &text[end..];
        let at = (0..end).rev().find(|&at| &text[at..at + length] == last)?;
        Some(at + length)
    });
    let followed = found.map_or(&[][..], |at| &text[at..]);
    let guess = |&id: &u32| Guess { id, from: None };
    followed.iter().take(most).map(guess).collect()
}

/// A small model with the large one's vocabulary, and what it has read of each text.
#[derive(Debug)]
pub(super) struct Draft {
    weights: Weights,
    pool: Pool,
    forward: Forward,
    batch: Batch,
    texts: BTreeMap<RequestId, Text>,
}

#[derive(Debug, Default)]
struct Text {
    pages: Vec<PageId>,
    read: usize,
}

impl Draft {
    pub(super) fn new(weights: Weights, options: &EngineOptions, positions: usize) -> Self {
        Self {
            pool: Pool::new(weights.config(), positions),
            forward: Forward::new(&weights, options.batch, options.sequences),
            weights,
            batch: Batch::default(),
            texts: BTreeMap::new(),
        }
    }

    /// Guesses at most so many tokens for each of the texts, all texts together token by token.
    pub(super) fn guess(&mut self, texts: &mut [(&mut Sequence, usize)]) {
        let rounds = texts.iter().map(|(_, count)| *count).max().unwrap_or(0);
        for round in 0..rounds {
            let mut asked: Vec<&mut Sequence> = texts
                .iter_mut()
                .filter(|(text, count)| round < *count && text.guesses.len() == round)
                .map(|(text, _)| &mut **text)
                .collect();
            // Of long texts parts are read until each lacks its last token only.
            while !asked.is_empty() && !self.read(&mut asked) {}
        }
    }

    /// Reads on in the texts; whether all were read to their end and have their next guess.
    fn read(&mut self, texts: &mut Vec<&mut Sequence>) -> bool {
        self.batch.clear();
        let mut room = self.forward.rows;
        let mut read = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let so_far = self.texts.entry(text.id).or_default();
            let guessed = text.guesses.iter().map(|guess| guess.id);
            let all: Vec<u32> = text.context().iter().copied().chain(guessed).collect();
            so_far.read = so_far.read.min(all.len() - 1);
            let len = (all.len() - so_far.read).min(room);
            let pages = (so_far.read + len).div_ceil(PAGE);
            let fits = all.len() <= self.weights.config().seq_len
                && pages.saturating_sub(so_far.pages.len()) <= self.pool.available();
            if !fits || len == 0 {
                continue;
            }
            while so_far.pages.len() < pages {
                so_far.pages.extend(self.pool.take());
            }
            let ends = so_far.read + len == all.len();
            let tokens = &all[so_far.read..so_far.read + len];
            self.batch
                .push(tokens, so_far.read, &so_far.pages, usize::from(ends));
            so_far.read += len;
            room -= len;
            read.push((i, ends));
        }
        if read.is_empty() {
            // No room for any: these texts go without.
            return true;
        }
        let vocab_size = self.weights.config().vocab_size;
        let logits = self
            .forward
            .read(&self.weights, &mut self.pool, &self.batch);
        let mut logits = logits.chunks_exact(vocab_size);
        for (i, ends) in &read {
            let Some(logits) = ends.then(|| logits.next()).flatten() else {
                continue;
            };
            let guess = texts[*i].next_guess(logits);
            texts[*i].guesses.extend(guess);
        }
        let mut at = 0;
        texts.retain(|_| {
            at += 1;
            !read.contains(&(at - 1, true))
        });
        texts.is_empty() || read.iter().all(|(_, ends)| *ends)
    }

    /// After a step: what was guessed wrongly was not read. Texts that ended let go of their pages.
    pub(super) fn settle(&mut self, running: &[Sequence]) {
        let pool = &mut self.pool;
        self.texts.retain(|id, so_far| {
            let text = running.iter().find(|text| text.id == *id);
            // A text that slid or was set aside begins again.
            let kept = text.map_or(0, |text| text.read.min(so_far.read));
            if kept == 0 {
                so_far
                    .pages
                    .drain(..)
                    .rev()
                    .for_each(|page| pool.release(page));
            }
            so_far.read = kept;
            text.is_some()
        });
    }
}

impl Sequence {
    /// A token after the guesses so far, drawn from a draft's `logits` as the text's own are; none where
    /// the text would end before it, or the draft's logits are no numbers.
    fn next_guess(&mut self, logits: &[f32]) -> Option<Guess> {
        let mut ahead = self.request.sampler.clone();
        for guess in &self.guesses {
            let probability = guess.from.as_ref().map_or(1.0, |q| q[guess.id as usize]);
            ahead.take(guess.id, probability).ok()?;
        }
        if ahead.complete() {
            return None;
        }
        let q = ahead.distribution(logits).ok()?;
        let id = sample(&q, &mut self.request.rng);
        Some(Guess { id, from: Some(q) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    /// Drawn through guesses, tokens come as often as the model says.
    #[test]
    fn guesses_do_not_change_the_distribution() {
        let p = [0.5, 0.2, 0.2, 0.1, 0.0];
        let qs: [[f32; 5]; 3] = [
            [0.1, 0.1, 0.3, 0.3, 0.2],
            [0.5, 0.2, 0.2, 0.1, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0],
        ];
        let n = 40_000;
        for (stream, q) in qs.iter().enumerate() {
            for certain in [false, true] {
                let mut rng = rng(stream as u64, Stream::Sample, 0);
                let mut counts = [0.0f64; 5];
                for _ in 0..n {
                    let id = sample(q, &mut rng);
                    let from = (!certain).then(|| q.to_vec());
                    let (id, _) = verify(&p, &Guess { id, from }, &mut rng);
                    counts[id as usize] += 1.0;
                }
                assert_eq!(counts[4], 0.0);
                let chi: f64 = counts[..4]
                    .iter()
                    .zip(p)
                    .map(|(count, p)| {
                        let expected = f64::from(p) * f64::from(n);
                        (count - expected).powi(2) / expected
                    })
                    .sum();
                // The 99.9th percentile with three degrees of freedom.
                assert!(chi < 16.27, "{q:?} {certain}: {chi}");
            }
        }
    }

    #[test]
    fn looks_up_what_followed() {
        let ids = |text: &[u32], most| -> Vec<u32> {
            lookup(text, most).iter().map(|guess| guess.id).collect()
        };
        assert_eq!(ids(&[1, 2, 3, 4, 1, 2], 2), [3, 4]);
        assert_eq!(ids(&[1, 2, 3, 1, 2, 5, 1, 2], 8), [5, 1, 2]);
        assert_eq!(ids(&[7, 9, 2, 7], 1), [9]);
        assert!(ids(&[1, 2, 3], 4).is_empty());
        assert!(ids(&[], 4).is_empty());
    }
}
