//! One text in the making: all that stands between a model's logits and the characters of a text.

use std::fmt;

use maquette_rng::Rng;

use super::stream::{Characters, StopFilter};
use super::{GenerateOptions, Generated, StopReason};
use crate::GenerateError;
use crate::sampling::{Drawn, TokenLogProb, TokenSampler};

/// A text that grows token by token: whoever has the model's logits calls [`Continuation::step`]
/// until it says why the text ended. Many of them can grow side by side; each is a value.
#[derive(Clone)]
pub struct Continuation<D> {
    sampler: TokenSampler,
    characters: Characters<D>,
    filter: StopFilter,
    max_tokens: usize,
    end_tokens: Vec<u32>,
    text: String,
    log_probs: Vec<TokenLogProb>,
    stop: Option<StopReason>,
}

impl<D> fmt::Debug for Continuation<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Continuation")
            .field("text", &self.text)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

/// What one token brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The token, to be read by the model if the text goes on.
    pub id: u32,
    /// Text that is certain now, in whole characters; may be empty.
    pub piece: String,
    /// Why the text ended, if it did.
    pub stop: Option<StopReason>,
}

impl<D: Fn(&[u32]) -> Result<String, GenerateError>> Continuation<D> {
    /// A text after the sampler's prompt that stops as `options` say. `decode` turns ids into text,
    /// with U+FFFD where bytes make no whole character.
    pub fn new(sampler: TokenSampler, options: &GenerateOptions, decode: D) -> Self {
        Self {
            characters: Characters::after(sampler.history(), decode),
            filter: StopFilter::new(&options.stop),
            max_tokens: options.max_tokens,
            end_tokens: options.end_tokens.clone(),
            text: String::new(),
            log_probs: Vec::new(),
            stop: None,
            sampler,
        }
    }

    /// The most tokens to draw.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// What the text goes on from.
    pub fn prompt(&self) -> &[u32] {
        let seen = self.sampler.history();
        &seen[..seen.len() - self.sampler.drawn().len()]
    }

    /// How the next token is chosen.
    pub fn sampler(&mut self) -> &mut TokenSampler {
        &mut self.sampler
    }

    /// Draws the next token.
    ///
    /// # Errors
    /// As [`TokenSampler::draw`], and what `decode` reports.
    pub fn step(&mut self, logits: &[f32], rng: &mut Rng) -> Result<Progress, GenerateError> {
        let Drawn { id, log_prob, .. } = self.sampler.draw(logits, rng)?;
        self.log_probs.extend(log_prob);
        self.write(id)
    }

    /// Goes on by a token that was drawn elsewhere, by a sampler like this text's.
    ///
    /// # Errors
    /// As [`TokenSampler::take`], and what `decode` reports.
    pub fn follow(&mut self, drawn: Drawn) -> Result<Progress, GenerateError> {
        self.sampler.take(drawn.id, drawn.probability)?;
        self.log_probs.extend(drawn.log_prob);
        self.write(drawn.id)
    }

    /// Writes a token that the sampler has taken already, as when several are drawn at once.
    ///
    /// # Errors
    /// What `decode` reports.
    pub fn write(&mut self, id: u32) -> Result<Progress, GenerateError> {
        let (mut piece, mut stop) = match self.end_tokens.contains(&id) {
            true => (String::new(), Some(StopReason::EndToken)),
            false => {
                let (piece, stopped) = self.filter.push(&self.characters.push(id)?);
                let full = self.sampler.drawn().len() >= self.max_tokens;
                let stop = match (stopped, self.sampler.complete(), full) {
                    (true, _, _) => Some(StopReason::StopString),
                    (_, true, _) => Some(StopReason::Complete),
                    (_, _, true) => Some(StopReason::MaxTokens),
                    _ => None,
                };
                (piece, stop)
            }
        };
        // What waited for more bytes or might have become a stop string is text after all.
        if stop.is_some_and(|reason| reason != StopReason::StopString) {
            let (rest, stopped) = self.filter.push(&self.characters.rest()?);
            piece.push_str(&rest);
            match stopped {
                true => stop = Some(StopReason::StopString),
                false => piece.push_str(&self.filter.rest()),
            }
        }
        self.text.push_str(&piece);
        self.stop = stop;
        Ok(Progress { id, piece, stop })
    }

    /// Ends the text because nobody wants more of it.
    pub fn cancel(&mut self) {
        self.stop = Some(StopReason::Cancelled);
    }

    /// The text as far as it came.
    pub fn finish(mut self) -> Generated {
        let cut = matches!(
            self.stop,
            Some(StopReason::StopString | StopReason::Cancelled)
        );
        let in_form = self.sampler.may_end() && !(cut && self.sampler.constrained());
        Generated {
            ids: self.sampler.drawn().to_vec(),
            text: self.text,
            stop: self.stop.unwrap_or(StopReason::MaxTokens),
            in_form,
            log_probs: self.log_probs,
        }
    }
}
