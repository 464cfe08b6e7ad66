//! How a text is made: drawn token by token, the best of several, or searched.

use std::ops::ControlFlow;

use maquette_data::Tokenizer;
use maquette_models::LanguageModel;
use maquette_rng::Rng;
use serde::Serialize;

use super::{Continuation, GenerateOptions, Generated, complete_ids, decoder, score};
use crate::GenerateError;
use crate::search::{
    BeamOptions, ContrastiveOptions, EarlyStopping, beam_search, contrastive_search, reader,
};

/// How a text is made.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Strategy {
    /// Token by token.
    #[default]
    Draw,
    /// Several are drawn; the one whose tokens are the most probable on average is kept.
    BestOf {
        /// How many.
        count: usize,
    },
    /// [`beam_search`].
    Beams {
        /// How many texts at once.
        beams: usize,
        /// See [`BeamOptions::length_penalty`].
        length_penalty: f64,
        /// When the search ends.
        early_stopping: EarlyStopping,
    },
    /// [`contrastive_search`].
    Contrastive {
        /// How many tokens are compared.
        top_k: usize,
        /// How much sameness costs.
        penalty_alpha: f64,
    },
}

impl Strategy {
    /// Continues the tokens of a prompt; text is handed to `on_text` as it comes where it is drawn, and at
    /// the end where it is chosen among others.
    ///
    /// # Errors
    /// As [`complete_ids`]; a search with a form or without room in the context.
    pub fn complete<M: LanguageModel>(
        &self,
        model: &M,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
        rng: &mut Rng,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        let made = match self {
            Self::Draw => return complete_ids(model, tokenizer, prompt, options, rng, on_text),
            Self::BestOf { count } => {
                let silent = |_: &str| ControlFlow::Continue(());
                let options = GenerateOptions {
                    log_probs: options.log_probs.or(Some(0)),
                    ..options.clone()
                };
                best_of(*count, || {
                    complete_ids(model, tokenizer, prompt, &options, rng, silent)
                })?
            }
            _ => self.search(model, tokenizer, prompt, options)?,
        };
        let _ = on_text(&made.text);
        Ok(made)
    }

    fn search<M: LanguageModel>(
        &self,
        model: &M,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generated, GenerateError> {
        if options.form.is_some() {
            return Err(GenerateError::Form {
                form: "search",
                what: "beam and contrastive search keep to no form; draw the text instead".into(),
            });
        }
        let (context, max_tokens) = (model.longest(), options.max_tokens);
        let prompt = options.fit(prompt, context);
        let mut options = options.clone();
        options.end_tokens.extend(tokenizer.end_of_text());
        options.end_tokens.sort_unstable();
        options.end_tokens.dedup();
        let end_tokens = options.end_tokens.clone();
        let ids = match *self {
            Self::Beams {
                beams,
                length_penalty,
                early_stopping,
            } => {
                let asked = BeamOptions {
                    beams,
                    length_penalty,
                    early_stopping,
                    max_tokens,
                    end_tokens,
                };
                let found = beam_search(reader(model), prompt, context, &asked)?;
                found
                    .into_iter()
                    .next()
                    .map(|best| best.ids)
                    .unwrap_or_default()
            }
            Self::Contrastive {
                top_k,
                penalty_alpha,
            } => {
                let asked = ContrastiveOptions {
                    top_k,
                    penalty_alpha,
                    max_tokens,
                    end_tokens,
                };
                contrastive_search(reader(model), prompt, context, &asked)?
            }
            Self::Draw | Self::BestOf { .. } => Vec::new(),
        };
        // Stop strings and whole characters as for drawn text.
        let sampler = options.sampler(tokenizer, prompt)?;
        let mut text = Continuation::new(sampler, &options, decoder(tokenizer));
        for &id in &ids {
            text.sampler().take(id, 1.0)?;
            if text.write(id)?.stop.is_some() {
                break;
            }
        }
        let mut made = text.finish();
        if let Some(top) = options.log_probs {
            let all = [prompt, &made.ids].concat();
            made.log_probs = score(model, &all, top)?.split_off(prompt.len() - 1);
        }
        Ok(made)
    }
}

/// Of `count` texts the one whose tokens have the largest mean log-probability; a text that a limit cut
/// out of its form only where no other is there.
///
/// # Errors
/// No text asked for, or what `draw` reports.
pub fn best_of(
    count: usize,
    mut draw: impl FnMut() -> Result<Generated, GenerateError>,
) -> Result<Generated, GenerateError> {
    let mut best: Option<Generated> = None;
    let worth = |text: &Generated| (text.in_form, mean_log_prob(text));
    for _ in 0..count {
        let next = draw()?;
        if best.as_ref().is_none_or(|best| worth(&next) > worth(best)) {
            best = Some(next);
        }
    }
    best.ok_or(GenerateError::Option {
        option: "best_of",
        value: "0".to_owned(),
        allowed: "1 or more",
    })
}

/// Of the tokens that were drawn, the end token included.
fn mean_log_prob(text: &Generated) -> f64 {
    let sum: f64 = text.log_probs.iter().map(|p| f64::from(p.log_prob)).sum();
    sum / text.log_probs.len().max(1) as f64
}
