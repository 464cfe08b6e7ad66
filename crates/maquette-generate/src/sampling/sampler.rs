//! What one text remembers from token to token.

use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use super::{Bound, Breakers, Decoding, Past, TokenLogProb, sample, token_log_prob};
use crate::GenerateError;
use crate::constraint::Constraint;

/// Added to the logit of one token before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bias {
    /// The token.
    pub token: u32,
    /// What is added; minus infinity forbids the token.
    pub add: f32,
}

/// The choice of one text's tokens: its options, and all that they depend on besides the logits. A
/// value: a clone goes on on its own, as when text is drafted that may be taken back.
#[derive(Debug, Clone)]
pub struct TokenSampler {
    decoding: Decoding,
    history: Vec<u32>,
    prompt: usize,
    bound: Bound,
    bias: Vec<Bias>,
    breakers: Breakers,
    constraint: Option<Constraint>,
    top: Option<usize>,
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The token.
    pub id: u32,
    /// With which probability, under all options.
    pub probability: f32,
    /// How probable the model held it, if [`TokenSampler::log_probs`] asked for that.
    pub log_prob: Option<TokenLogProb>,
}

impl TokenSampler {
    /// Draws tokens after `prompt`, which counts as seen.
    ///
    /// # Errors
    /// An option out of range, or an empty prompt.
    pub fn new(decoding: Decoding, prompt: &[u32]) -> Result<Self, GenerateError> {
        decoding.check()?;
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        Ok(Self {
            decoding,
            history: prompt.to_vec(),
            prompt: prompt.len(),
            bound: Bound::of(&decoding),
            bias: Vec::new(),
            breakers: Breakers::default(),
            constraint: None,
            top: None,
        })
    }

    /// Adds to the logits of some tokens first.
    pub fn bias(mut self, bias: Vec<Bias>) -> Self {
        self.bias = bias;
        self
    }

    /// No repetition reaches across these, for [`Dry`](super::Dry).
    pub fn breakers(mut self, breakers: Breakers) -> Self {
        self.breakers = breakers;
        self
    }

    /// Draws only what the constraint allows.
    pub fn constraint(mut self, constraint: Option<Constraint>) -> Self {
        self.constraint = constraint;
        self
    }

    /// Tells with every token its log-probability and those of the `top` most probable ones.
    pub fn log_probs(mut self, top: Option<usize>) -> Self {
        self.top = top;
        self
    }

    /// The prompt and what was drawn after it.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// What was drawn.
    pub fn drawn(&self) -> &[u32] {
        &self.history[self.prompt..]
    }

    /// Whether the text must have a form.
    pub fn constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Whether a constraint is fulfilled and allows nothing more.
    pub fn complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(Constraint::complete)
    }

    /// Whether the text may end here: always, without a constraint.
    pub fn may_end(&mut self) -> bool {
        self.constraint.as_mut().is_none_or(Constraint::may_end)
    }

    /// The exact probability of every token that may come next; see [`distribution`](super::distribution).
    ///
    /// # Errors
    /// As there; a bias for a token that is not in the vocabulary, or a constraint that the
    /// vocabulary cannot fulfil.
    pub fn distribution(&mut self, logits: &[f32]) -> Result<Vec<f32>, GenerateError> {
        let mut changed = Vec::new();
        let mut logits = logits;
        if !self.bias.is_empty() || self.constraint.is_some() {
            changed.extend_from_slice(logits);
            let vocab_size = changed.len();
            for &Bias { token, add } in &self.bias {
                let logit = changed.get_mut(token as usize);
                *logit.ok_or(GenerateError::UnknownToken { token, vocab_size })? += add;
            }
            if let Some(constraint) = &mut self.constraint {
                constraint.mask(&mut changed)?;
            }
            logits = &changed;
        }
        let past = Past {
            decoding: &self.decoding,
            history: &self.history,
            bound: self.bound,
            breakers: &self.breakers,
        };
        past.distribution(logits)
    }

    /// Draws the next token from its distribution and takes it into the text.
    ///
    /// # Errors
    /// As [`TokenSampler::distribution`].
    pub fn draw(&mut self, logits: &[f32], rng: &mut Rng) -> Result<Drawn, GenerateError> {
        self.choose(logits, |probabilities| sample(probabilities, rng))
    }

    /// As [`TokenSampler::draw`], where `choose` draws from the probabilities.
    ///
    /// # Errors
    /// As there.
    pub fn choose(
        &mut self,
        logits: &[f32],
        choose: impl FnOnce(&[f32]) -> u32,
    ) -> Result<Drawn, GenerateError> {
        let probabilities = self.distribution(logits)?;
        let id = choose(&probabilities);
        let probability = probabilities[id as usize];
        self.take(id, probability)?;
        Ok(Drawn {
            id,
            probability,
            log_prob: self.top.map(|top| token_log_prob(logits, id, top)),
        })
    }

    /// How probable the model held a token, with as many others as [`TokenSampler::log_probs`] asked
    /// for.
    pub fn score(&self, logits: &[f32], id: u32) -> TokenLogProb {
        token_log_prob(logits, id, self.top.unwrap_or(0))
    }

    /// Takes a token into the text that was drawn with this probability.
    ///
    /// # Errors
    /// When a constraint does not allow the token.
    pub fn take(&mut self, id: u32, probability: f32) -> Result<(), GenerateError> {
        if let Some(constraint) = &mut self.constraint {
            constraint.take(id)?;
        }
        self.bound.follow(probability);
        self.history.push(id);
        Ok(())
    }
}
