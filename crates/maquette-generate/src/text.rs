//! Text, token by token: the loop around a language model, and the way from ids to a stream of
//! whole characters that stops where it was told to.

mod stream;

use crate::GenerateError;
use crate::sampling::{Bound, Decoding, bounded, sample};
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use maquette_data::Tokenizer;
use maquette_models::Gpt;
use maquette_models::nn::KvCache;
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::ops::ControlFlow;
use stream::{Characters, StopFilter};

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
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            stop: Vec::new(),
            end_tokens: Vec::new(),
            decoding: Decoding::default(),
        }
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
    /// The callback asked to stop.
    Cancelled,
}

/// A finished piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Every token drawn, also those whose text a stop string cut off.
    pub ids: Vec<u32>,
    /// The text, without prompt, stop string and end token.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
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

/// A [`Gpt`] as a [`TokenModel`] that reads every token once and keeps its keys and values.
pub fn gpt(model: &Gpt) -> TokenModel<impl FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>> {
    let mut cache = KvCache::new();
    let forward = move |feed: Feed<'_>| {
        let ids = match feed {
            Feed::Restart(ids) => {
                cache.clear();
                ids.to_vec()
            }
            Feed::Append(id) => vec![id],
        };
        let n = ids.len();
        let tokens = TensorData::new(ids.iter().map(|&id| i64::from(id)).collect(), [1, n]);
        let tokens = Tensor::<2, Int>::from_data(tokens, &model.devices()[0]);
        let logits = model.forward_cached(tokens, &mut cache);
        logits
            .narrow(1, n - 1, 1)
            .try_into_vec_as()
            .map_err(|e| GenerateError::Device(format!("{e:?}")))
    };
    TokenModel {
        forward,
        seq_len: model.seq_len(),
        vocab_size: model.vocab_size(),
    }
}

/// Continues `prompt` with a [`Gpt`] and the tokenizer it was trained with: [`generate`] with
/// everything filled in. What the tokenizer's template puts before a text is put there; its
/// end-of-text token ends the text, whether or not it is
/// among the options, and stands for an empty prompt.
///
/// # Errors
/// As [`generate`]; an empty prompt when the tokenizer has no end-of-text token.
pub fn complete(
    model: &Gpt,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerateOptions,
    rng: &mut Rng,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let end = tokenizer.end_of_text();
    let mut ids = tokenizer
        .encode_with_template(prompt)
        .map_err(|e| GenerateError::Encode(e.to_string()))?;
    if ids.is_empty() {
        ids.extend(end);
    }
    let mut options = options.clone();
    options.end_tokens.extend(end);
    let decode = |ids: &[u32]| tokenizer.decode_visible(ids);
    generate(&mut gpt(model), &ids, &options, decode, rng, on_text)
}

/// Generates token ids until `max_tokens`, or until `on_token` breaks; returns all of them.
///
/// When the context is full, the model starts again on the last half of it. A prompt longer than
/// the context is cut to its end. The repetition penalty of `decoding` counts prompt and output.
///
/// # Errors
/// An empty prompt, options out of range, or what `forward` reports.
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
    decoding.check()?;
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let vocab_size = model.vocab_size;
    if let Some(&token) = prompt.iter().find(|id| **id as usize >= vocab_size) {
        return Err(GenerateError::UnknownToken { token, vocab_size });
    }
    if max_tokens == 0 {
        return Ok(Vec::new());
    }
    let seq_len = model.seq_len.max(1);
    let mut window = prompt[prompt.len().saturating_sub(seq_len)..].to_vec();
    let mut history = prompt.to_vec();
    let mut bound = Bound::of(decoding);
    let mut logits = (model.forward)(Feed::Restart(&window))?;
    loop {
        let probabilities = bounded(&logits, &history, decoding, bound)?;
        let id = sample(&probabilities, rng);
        bound.follow(probabilities[id as usize]);
        history.push(id);
        if on_token(id)?.is_break() || history.len() == prompt.len() + max_tokens {
            return Ok(history.split_off(prompt.len()));
        }
        window.push(id);
        logits = if window.len() > seq_len {
            window.drain(..window.len() - (seq_len / 2).max(1));
            (model.forward)(Feed::Restart(&window))?
        } else {
            (model.forward)(Feed::Append(id))?
        };
    }
}

/// Generates text after `prompt` and hands it to `on_text` as it comes, in whole characters;
/// `on_text` may break off. The pieces together are the text that is returned.
///
/// `decode` turns ids into text, with U+FFFD where bytes make no whole character.
///
/// # Errors
/// As [`generate_ids`], or what `decode` reports.
pub fn generate<F, E: Display>(
    model: &mut TokenModel<F>,
    prompt: &[u32],
    options: &GenerateOptions,
    decode: impl Fn(&[u32]) -> Result<String, E>,
    rng: &mut Rng,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError>
where
    F: FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>,
{
    let decode = |ids: &[u32]| decode(ids).map_err(|e| GenerateError::Decode(e.to_string()));
    let mut characters = Characters::after(prompt, decode);
    let mut filter = StopFilter::new(&options.stop);
    let mut text = String::new();
    let mut stop = StopReason::MaxTokens;
    let mut emit = |piece: &str| {
        text.push_str(piece);
        match piece {
            "" => ControlFlow::Continue(()),
            piece => on_text(piece),
        }
    };
    let on_token = |id: u32| {
        if options.end_tokens.contains(&id) {
            stop = StopReason::EndToken;
            return Ok(ControlFlow::Break(()));
        }
        let (piece, stopped) = filter.push(&characters.push(id)?);
        let cancelled = emit(&piece).is_break();
        if stopped {
            stop = StopReason::StopString;
        } else if cancelled {
            stop = StopReason::Cancelled;
        }
        Ok(match stopped || cancelled {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    };
    let ids = generate_ids(
        model,
        prompt,
        options.max_tokens,
        &options.decoding,
        rng,
        on_token,
    )?;
    // What waited for more bytes or might have become a stop string is text after all.
    if matches!(stop, StopReason::MaxTokens | StopReason::EndToken) {
        let (piece, stopped) = filter.push(&characters.rest()?);
        let _ = emit(&piece);
        if stopped {
            stop = StopReason::StopString;
        } else {
            let _ = emit(&filter.rest());
        }
    }
    Ok(Generated { ids, text, stop })
}

#[cfg(test)]
mod tests;
