//! Text, token by token: the loop around a language model, and the way from ids to a stream of
//! whole characters that stops where it was told to.

mod continuation;
mod draws;
mod score;
mod strategy;
mod stream;

pub use continuation::{Continuation, Progress};
pub use draws::{Drawn, Draws};
pub use score::score;
pub use strategy::{Strategy, best_of};

use crate::GenerateError;
use crate::constraint::{Form, Vocabulary};
use crate::sampling::{Bias, Breakers, Decoding, TokenLogProb, TokenSampler};
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use maquette_data::Tokenizer;
use maquette_models::LanguageModel;
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// How much text to make and where to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Stop before any of these strings; they are not part of the text.
    pub stop: Vec<String>,
    /// Stop at any of these tokens; they are not part of the text.
    pub end_tokens: Vec<u32>,
    /// How each token is chosen.
    pub decoding: Decoding,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<Bias>,
    /// What no repetition reaches across, for [`Dry`](crate::sampling::Dry).
    pub dry_breakers: Vec<String>,
    /// The form that the text must have.
    pub form: Option<Form>,
    /// Tell the log-probability of every token, and of as many alternatives.
    pub log_probs: Option<usize>,
    /// Keep the end of a prompt that is longer than the context, instead of refusing it.
    pub truncate: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            stop: Vec::new(),
            end_tokens: Vec::new(),
            decoding: Decoding::default(),
            logit_bias: Vec::new(),
            dry_breakers: Breakers::USUAL.map(str::to_owned).to_vec(),
            form: None,
            log_probs: None,
            truncate: false,
        }
    }
}

impl GenerateOptions {
    /// The prompt, or where it may be cut its end that fits into `context`.
    pub fn fit<'a>(&self, prompt: &'a [u32], context: usize) -> &'a [u32] {
        match self.truncate {
            true => &prompt[prompt.len().saturating_sub(context)..],
            false => prompt,
        }
    }

    /// A sampler for one text after `prompt`.
    ///
    /// # Errors
    /// An option out of range, an empty prompt, or a form that is not understood.
    pub fn sampler(
        &self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
    ) -> Result<TokenSampler, GenerateError> {
        let breakers = match self.decoding.dry {
            Some(_) => Breakers::new(&self.dry_breakers, tokenizer)?,
            None => Breakers::default(),
        };
        let constraint = match &self.form {
            Some(form) => Some(Vocabulary::new(tokenizer, &self.end_tokens)?.constraint(form)?),
            None => None,
        };
        let sampler = TokenSampler::new(self.decoding, prompt)?
            .bias(self.logit_bias.clone())
            .breakers(breakers)
            .constraint(constraint)
            .log_probs(self.log_probs);
        Ok(sampler)
    }
}

/// Why the text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// `max_tokens` were generated.
    MaxTokens,
    /// A stop string appeared.
    StopString,
    /// The model drew an end token.
    EndToken,
    /// The text has the form that was asked for, and nothing may follow.
    Complete,
    /// The callback asked to stop.
    Cancelled,
}

/// A finished piece of text.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Every token drawn, also those whose text a stop string cut off.
    pub ids: Vec<u32>,
    /// The text, without prompt, stop string and end token.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Whether the text has the form that was asked for; `true` where none was. Only
    /// [`StopReason::MaxTokens`], a stop string or cancelling can cut it before.
    pub in_form: bool,
    /// The log-probabilities of `ids`, if they were asked for.
    pub log_probs: Vec<TokenLogProb>,
}

/// What a language model is asked to read before it gives the logits of the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed<'a> {
    /// Forget everything and read these tokens; never empty, never longer than `seq_len`.
    Restart(&'a [u32]),
    /// Read one more token after what was read so far.
    Append(u32),
}

/// A language model as the loop sees it: a closure and the number of tokens it can look back on.
#[derive(Debug)]
pub struct TokenModel<F> {
    /// Reads tokens and gives one logit per token of the vocabulary for what comes next.
    pub forward: F,
    /// The longest context the model can read.
    pub seq_len: usize,
    /// How many tokens there are, and logits to expect.
    pub vocab_size: usize,
}

/// Tokens as a model reads them, `[rows, seq]`.
pub(crate) fn tokens<M: Module>(model: &M, ids: &[u32], shape: [usize; 2]) -> Tensor<2, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    Tensor::from_data(TensorData::new(ids, shape), &model.devices()[0])
}

/// The numbers of a tensor, row after row.
pub(crate) fn numbers(tensor: Tensor<3>) -> Result<Vec<f32>, GenerateError> {
    tensor
        .try_into_vec_as()
        .map_err(|e| GenerateError::Device(format!("{e:?}")))
}

/// A network as a [`TokenModel`] that reads every token once and keeps what its memory is: keys and
/// values, a state, or the last inputs.
pub fn token_model<M: LanguageModel>(
    model: &M,
) -> TokenModel<impl FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>> {
    let mut memory = M::Memory::default();
    let forward = move |feed: Feed<'_>| {
        let ids = match feed {
            Feed::Restart(ids) => {
                memory = M::Memory::default();
                ids.to_vec()
            }
            Feed::Append(id) => vec![id],
        };
        let n = ids.len();
        let logits = model.forward_after(tokens(model, &ids, [1, n]), &mut memory);
        numbers(logits.narrow(1, n - 1, 1))
    };
    TokenModel {
        forward,
        seq_len: model.longest(),
        vocab_size: model.vocab_size(),
    }
}

/// The tokens to go on from: `prompt` with what the tokenizer's template puts before a text, or, where
/// that is nothing, its end-of-text token.
///
/// # Errors
/// [`GenerateError::Encode`].
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, GenerateError> {
    let mut ids = tokenizer
        .encode_with_template(prompt)
        .map_err(|e| GenerateError::Encode(e.to_string()))?;
    if ids.is_empty() {
        ids.extend(tokenizer.end_of_text());
    }
    Ok(ids)
}

/// Continues `prompt` with a network and the tokenizer it was trained with: [`complete_ids`] after
/// [`encode_prompt`].
///
/// # Errors
/// As [`generate`]; an empty prompt when the tokenizer has no end-of-text token.
pub fn complete<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerateOptions,
    rng: &mut Rng,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let ids = encode_prompt(tokenizer, prompt)?;
    complete_ids(model, tokenizer, &ids, options, rng, on_text)
}

/// Continues the tokens of a prompt. The tokenizer's end-of-text token ends the text, whether or not
/// it is among the options.
///
/// # Errors
/// As [`generate`].
pub fn complete_ids<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    rng: &mut Rng,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let mut options = options.clone();
    options.end_tokens.extend(tokenizer.end_of_text());
    let prompt = options.fit(prompt, model.longest());
    let sampler = options.sampler(tokenizer, prompt)?;
    let text = Continuation::new(sampler, &options, decoder(tokenizer));
    generate(&mut token_model(model), text, rng, on_text)
}

/// What a reader sees of ids.
fn decoder(tokenizer: &Tokenizer) -> impl Fn(&[u32]) -> Result<String, GenerateError> {
    move |ids| {
        let text = tokenizer.decode_visible(ids);
        text.map_err(|e| GenerateError::Decode(e.to_string()))
    }
}

/// Reads `prompt` and then every token that `next` gives for the logits, until it gives none.
///
/// When the context is full, the model starts again on the last half of it.
///
/// # Errors
/// An empty prompt, one that is longer than the context, a token outside the vocabulary, or what
/// `forward` and `next` report.
fn drive<F>(
    model: &mut TokenModel<F>,
    prompt: &[u32],
    mut next: impl FnMut(&[f32]) -> Result<Option<u32>, GenerateError>,
) -> Result<(), GenerateError>
where
    F: FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>,
{
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let vocab_size = model.vocab_size;
    if let Some(&token) = prompt.iter().find(|id| **id as usize >= vocab_size) {
        return Err(GenerateError::UnknownToken { token, vocab_size });
    }
    let seq_len = model.seq_len.max(1);
    if prompt.len() > seq_len {
        return Err(GenerateError::PromptTooLong {
            length: prompt.len(),
            context: seq_len,
        });
    }
    let mut window = prompt.to_vec();
    let mut logits = (model.forward)(Feed::Restart(&window))?;
    while let Some(id) = next(&logits)? {
        window.push(id);
        logits = if window.len() > seq_len {
            window.drain(..window.len() - (seq_len / 2).max(1));
            (model.forward)(Feed::Restart(&window))?
        } else {
            (model.forward)(Feed::Append(id))?
        };
    }
    Ok(())
}

/// Generates token ids until `max_tokens`, or until `on_token` breaks; returns all of them.
///
/// When the context is full, the model starts again on the last half of it. The penalties of
/// `decoding` count prompt and output.
///
/// # Errors
/// An empty prompt or one that is longer than the context, options out of range, or what `forward`
/// reports.
pub fn generate_ids<F>(
    model: &mut TokenModel<F>,
    prompt: &[u32],
    max_tokens: usize,
    decoding: &Decoding,
    rng: &mut Rng,
    mut on_token: impl FnMut(u32) -> Result<ControlFlow<()>, GenerateError>,
) -> Result<Vec<u32>, GenerateError>
where
    F: FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>,
{
    let mut sampler = TokenSampler::new(*decoding, prompt)?;
    if max_tokens == 0 {
        return Ok(Vec::new());
    }
    drive(model, prompt, |logits| {
        let id = sampler.draw(logits, rng)?.id;
        let done = on_token(id)?.is_break() || sampler.drawn().len() == max_tokens;
        Ok((!done).then_some(id))
    })?;
    Ok(sampler.drawn().to_vec())
}

/// Draws `text` to its end and hands it to `on_text` as it comes, in whole characters; `on_text` may
/// break off. The pieces together are the text that is returned.
///
/// # Errors
/// As [`generate_ids`]; what the text's `decode` or its constraint reports.
pub fn generate<F, D>(
    model: &mut TokenModel<F>,
    mut text: Continuation<D>,
    rng: &mut Rng,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError>
where
    F: FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>,
    D: Fn(&[u32]) -> Result<String, GenerateError>,
{
    if text.max_tokens() == 0 {
        return Ok(text.finish());
    }
    let prompt = text.prompt().to_vec();
    drive(model, &prompt, |logits| {
        let Progress {
            id,
            piece,
            mut stop,
        } = text.step(logits, rng)?;
        if !piece.is_empty() && on_text(&piece).is_break() && stop.is_none() {
            text.cancel();
            stop = Some(StopReason::Cancelled);
        }
        Ok(stop.is_none().then_some(id))
    })?;
    Ok(text.finish())
}

#[cfg(test)]
mod tests;
