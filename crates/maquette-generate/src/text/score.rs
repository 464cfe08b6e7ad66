//! How probable a model holds a text that is there.

use maquette_models::LanguageModel;

use crate::GenerateError;
use crate::likelihood::Scorer;
use crate::sampling::{TokenLogProb, token_log_prob};

/// The log-probability of every token of `ids` but the first, given those before it, each with the `top`
/// most probable alternatives.
///
/// # Errors
/// More tokens than the context and the one that is only foretold, a token outside the vocabulary, or the device's.
pub fn score<M: LanguageModel>(
    model: &M,
    ids: &[u32],
    top: usize,
) -> Result<Vec<TokenLogProb>, GenerateError> {
    let context = model.longest();
    if ids.len().saturating_sub(1) > context {
        return Err(GenerateError::PromptTooLong {
            length: ids.len(),
            context,
        });
    }
    let (first, rest) = ids.split_at(ids.len().min(1));
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    Scorer::new(model).each(first, rest, |logits, id| {
        Ok(token_log_prob(logits, id, top))
    })
}
