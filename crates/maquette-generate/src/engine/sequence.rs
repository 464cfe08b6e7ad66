//! One text: what it holds, what it still has to read, and how its next token is drawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maquette_kernels::paged::PAGE;
use maquette_rng::{Rng, Stream, rng};

use super::cache::{PageId, Pool};
use super::speculative::{Guess, verify};
use super::{Finish, Request, RequestId, Token, WhenFull};
use crate::GenerateError;
use crate::sampling::{Bound, bounded, sample};

/// A text that waits or goes on.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) request: Request,
    cancelled: Arc<AtomicBool>,
    /// Prompt and output.
    pub(super) history: Vec<u32>,
    /// Where in it the context begins; later than 0 once it slid.
    start: usize,
    prompt: usize,
    /// Positions of the context whose keys and values are in `pages`.
    pub(super) read: usize,
    pub(super) pages: Vec<PageId>,
    /// Pages that the pool was told are full.
    published: usize,
    pub(super) guesses: Vec<Guess>,
    pub(super) rng: Rng,
    bound: Bound,
    /// Log-probabilities of the prompt so far.
    pub(super) scores: Vec<f32>,
}

/// What came of the logits of one text.
pub(super) struct Drawn {
    pub(super) tokens: Vec<Token>,
    pub(super) finish: Option<Finish>,
}

impl Sequence {
    pub(super) fn new(id: RequestId, mut request: Request, cancelled: Arc<AtomicBool>) -> Self {
        let history = std::mem::take(&mut request.ids);
        Self {
            id,
            cancelled,
            start: 0,
            prompt: history.len(),
            read: 0,
            pages: Vec::new(),
            published: 0,
            guesses: Vec::new(),
            rng: rng(request.seed, Stream::Sample, 0),
            bound: Bound::of(&request.decoding),
            scores: Vec::new(),
            history,
            request,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What the model looks back on.
    pub(super) fn context(&self) -> &[u32] {
        &self.history[self.start..]
    }

    /// Tokens of the context that are still to be read.
    pub(super) fn unread(&self) -> usize {
        self.context().len() - self.read
    }

    /// Tokens that may still be drawn.
    pub(super) fn left(&self) -> usize {
        self.request.max_tokens - (self.history.len() - self.prompt)
    }

    /// Of how many of the next `len` tokens logits are wanted: of those of a prompt that is scored
    /// all, of others those from the last of the text on.
    pub(super) fn wanted(&self, len: usize) -> usize {
        let scored = self.request.score_prompt && self.read + 1 < self.prompt && self.start == 0;
        match scored {
            true => len,
            false => (self.read + len + 1).saturating_sub(self.context().len()),
        }
    }

    /// Lets go of all pages; the context is to be read again.
    pub(super) fn forget(&mut self, pool: &mut Pool) {
        // The last first: beginnings are worth keeping longest.
        for page in self.pages.drain(..).rev() {
            pool.release(page);
        }
        (self.read, self.published) = (0, 0);
        self.guesses.clear();
    }

    /// Takes pages that the pool knows of this context's beginning. At least one token stays unread.
    pub(super) fn reuse(&mut self, pool: &mut Pool) {
        if self.request.score_prompt && self.start == 0 && self.scores.is_empty() {
            return;
        }
        while self.read + PAGE < self.context().len() {
            let tokens = &self.context()[self.read..self.read + PAGE];
            let Some(page) = pool.find(self.pages.last().copied(), tokens) else {
                return;
            };
            self.pages.push(page);
            self.read += PAGE;
            self.published += 1;
        }
    }

    /// Tells the pool of pages that have become full.
    pub(super) fn publish(&mut self, pool: &mut Pool) {
        while (self.published + 1) * PAGE <= self.read {
            let page = self.pages[self.published];
            let before = self.published.checked_sub(1).map(|i| self.pages[i]);
            let tokens = &self.context()[self.published * PAGE..][..PAGE];
            pool.publish(page, before, tokens);
            self.published += 1;
        }
    }

    /// Whether this context goes on like that of `other` for a page that `other` has yet to fill.
    pub(super) fn awaits(&self, other: &Self) -> bool {
        let page = self.read..self.read + PAGE;
        let ours = self.context().get(page.clone());
        ours.is_some()
            && page.end < self.context().len()
            && other.read < page.end
            && other.pages.len() * PAGE >= self.read
            && other.context().get(..page.end) == self.context().get(..page.end)
    }

    /// Takes in the logits of the last `rows` tokens that were read, `[rows, vocab_size]`: scores the
    /// prompt, or draws tokens.
    pub(super) fn take_in(
        &mut self,
        logits: &mut [f32],
        rows: usize,
        seq_len: usize,
    ) -> Result<Drawn, GenerateError> {
        let mut drawn = Drawn {
            tokens: Vec::new(),
            finish: None,
        };
        let vocab_size = logits.len() / rows.max(1);
        let first = self.read + self.guesses.len() - rows;
        let guesses = std::mem::take(&mut self.guesses);
        let guessed_from = self.context().len();
        for (row, logits) in logits.chunks_exact_mut(vocab_size.max(1)).enumerate() {
            // The token that these logits are of.
            let next = first + row + 1;
            if next < guessed_from {
                let token = self.context()[next] as usize;
                self.scores.push(log_softmax_at(logits, token));
                continue;
            }
            if self.left() == 0 {
                drawn.finish = Some(Finish::MaxTokens);
                break;
            }
            let guess = guesses.get(next - guessed_from);
            let (token, kept) = self.draw(logits, guess)?;
            let id = token.id;
            self.history.push(id);
            drawn.tokens.push(token);
            if kept {
                self.read += 1;
            }
            drawn.finish = self.finished(id, seq_len);
            if drawn.finish.is_some() || !kept {
                break;
            }
        }
        Ok(drawn)
    }

    /// The next token, and whether it is the guess.
    fn draw(
        &mut self,
        logits: &mut [f32],
        guess: Option<&Guess>,
    ) -> Result<(Token, bool), GenerateError> {
        let mut token = Token {
            id: 0,
            log_probability: None,
            top: Vec::new(),
        };
        let scale = self.request.log_probabilities.map(|_| log_sum_exp(logits));
        if let (Some(count @ 1..), Some(scale)) = (self.request.log_probabilities, scale) {
            token.top = likeliest(logits, count, scale);
        }
        let before = self.request.constraint.is_some().then(|| logits.to_vec());
        if let Some(constraint) = &mut self.request.constraint {
            constraint(&self.history, logits)?;
        }
        let decoding = &self.request.decoding;
        let probabilities = bounded(logits, &self.history, decoding, self.bound)?;
        let kept;
        (token.id, kept) = match guess {
            None => (sample(&probabilities, &mut self.rng), false),
            Some(guess) => verify(&probabilities, guess, &mut self.rng),
        };
        let id = token.id as usize;
        self.bound.follow(probabilities[id]);
        let own = before.as_deref().unwrap_or(logits);
        token.log_probability = scale.map(|scale| own[id] - scale);
        Ok((token, kept))
    }

    /// Whether the text ends after a token.
    fn finished(&mut self, id: u32, seq_len: usize) -> Option<Finish> {
        if self.request.end_tokens.contains(&id) {
            return Some(Finish::EndToken);
        }
        if self.left() == 0 {
            return Some(Finish::MaxTokens);
        }
        let full = self.context().len() > seq_len;
        (full && self.request.when_full == WhenFull::Stop).then_some(Finish::ContextFull)
    }

    /// Slides a context that has become too long to its last half.
    pub(super) fn slide(&mut self, seq_len: usize, pool: &mut Pool) {
        if self.context().len() > seq_len {
            self.forget(pool);
            self.start = self.history.len() - (seq_len / 2).max(1);
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass: f64 = logits.iter().map(|l| f64::from(l - most).exp()).sum();
    most + mass.ln() as f32
}

fn log_softmax_at(logits: &[f32], id: usize) -> f32 {
    logits[id] - log_sum_exp(logits)
}

/// The `count` likeliest tokens with their log-probabilities; of equals the lower ids.
fn likeliest(logits: &[f32], count: usize, scale: f32) -> Vec<(u32, f32)> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| logits[id as usize];
    let better = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
    let count = count.min(order.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, better);
    }
    order.truncate(count);
    order.sort_unstable_by(better);
    order.iter().map(|&id| (id, logit(id) - scale)).collect()
}
