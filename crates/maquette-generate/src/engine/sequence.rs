//! One text: what it holds, what it still has to read, and how its next token is drawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maquette_kernels::paged::PAGE;

use super::cache::{PageId, Pool};
use super::speculative::{Guess, verify};
use super::{Finish, Request, RequestId, WhenFull};
use crate::GenerateError;
use crate::sampling::{Drawn, TokenLogProb, sample};

/// A text that waits or goes on.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) request: Request,
    cancelled: Arc<AtomicBool>,
    /// Where in the history the context begins; later than 0 once it slid.
    start: usize,
    /// Positions of the context whose keys and values are in `pages`.
    pub(super) read: usize,
    pub(super) pages: Vec<PageId>,
    /// Pages that the pool was told are full.
    published: usize,
    pub(super) guesses: Vec<Guess>,
    /// Log-probabilities of the prompt so far.
    pub(super) scores: Vec<TokenLogProb>,
}

/// What came of the logits of one text.
pub(super) struct Advance {
    pub(super) tokens: Vec<Drawn>,
    pub(super) finish: Option<Finish>,
}

impl Sequence {
    pub(super) fn new(id: RequestId, request: Request, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            id,
            cancelled,
            start: 0,
            read: 0,
            pages: Vec::new(),
            published: 0,
            guesses: Vec::new(),
            scores: Vec::new(),
            request,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What the model looks back on.
    pub(super) fn context(&self) -> &[u32] {
        &self.request.sampler.history()[self.start..]
    }

    /// Tokens of the context that are still to be read.
    pub(super) fn unread(&self) -> usize {
        self.context().len() - self.read
    }

    /// Tokens that may still be drawn.
    pub(super) fn left(&self) -> usize {
        self.request.max_tokens - self.request.sampler.drawn().len()
    }

    /// Of how many of the next `len` tokens logits are wanted: of those of a prompt that is scored
    /// all, of others those from the last of the text on.
    pub(super) fn wanted(&self, len: usize) -> usize {
        let sampler = &self.request.sampler;
        let prompt = sampler.history().len() - sampler.drawn().len();
        let scored = self.request.score_prompt && self.read + 1 < prompt && self.start == 0;
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
        logits: &[f32],
        rows: usize,
        seq_len: usize,
    ) -> Result<Advance, GenerateError> {
        let mut advance = Advance {
            tokens: Vec::new(),
            finish: None,
        };
        let vocab_size = logits.len() / rows.max(1);
        let first = self.read + self.guesses.len() - rows;
        let guesses = std::mem::take(&mut self.guesses);
        let guessed_from = self.context().len();
        for (row, logits) in logits.chunks_exact(vocab_size.max(1)).enumerate() {
            // The token that these logits are of.
            let next = first + row + 1;
            if next < guessed_from {
                let score = self.request.sampler.score(logits, self.context()[next]);
                self.scores.push(score);
                continue;
            }
            if self.left() == 0 {
                advance.finish = Some(Finish::MaxTokens);
                break;
            }
            let guess = guesses.get(next - guessed_from);
            let mut kept = false;
            let Request { sampler, rng, .. } = &mut self.request;
            let token = sampler.choose(logits, |probabilities| match guess {
                None => sample(probabilities, rng),
                Some(guess) => {
                    let id;
                    (id, kept) = verify(probabilities, guess, rng);
                    id
                }
            })?;
            let id = token.id;
            advance.tokens.push(token);
            if kept {
                self.read += 1;
            }
            advance.finish = self.finished(id, seq_len);
            if advance.finish.is_some() || !kept {
                break;
            }
        }
        Ok(advance)
    }

    /// Whether the text ends after a token.
    fn finished(&self, id: u32, seq_len: usize) -> Option<Finish> {
        if self.request.end_tokens.contains(&id) {
            return Some(Finish::EndToken);
        }
        if self.request.sampler.complete() {
            return Some(Finish::Complete);
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
            self.start = self.request.sampler.history().len() - (seq_len / 2).max(1);
        }
    }
}
