//! How probable a model holds a text that is there.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use maquette_models::Gpt;
use maquette_models::nn::KvCache;

use crate::GenerateError;
use crate::sampling::{TokenLogProb, token_log_prob};

/// Rows of logits held at once.
const CHUNK: usize = 64;

/// The log-probability of every token of `ids` but the first, given those before it, each with the `top`
/// most probable alternatives.
///
/// # Errors
/// More tokens than the context and the one that is only foretold, a token outside the vocabulary, or the device's.
pub fn score(model: &Gpt, ids: &[u32], top: usize) -> Result<Vec<TokenLogProb>, GenerateError> {
    let (context, vocab_size) = (model.seq_len(), model.vocab_size());
    if ids.len() > context + 1 {
        return Err(GenerateError::PromptTooLong {
            length: ids.len(),
            context,
        });
    }
    if let Some(&token) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(GenerateError::UnknownToken { token, vocab_size });
    }
    let mut cache = KvCache::new();
    let mut scores = Vec::with_capacity(ids.len().saturating_sub(1));
    let inputs = &ids[..ids.len().saturating_sub(1)];
    for (part, next) in inputs
        .chunks(CHUNK)
        .zip(ids[ids.len().min(1)..].chunks(CHUNK))
    {
        let tokens = part.iter().map(|&id| i64::from(id)).collect();
        let tokens = TensorData::new(tokens, [1, part.len()]);
        let tokens = Tensor::<2, Int>::from_data(tokens, &model.devices()[0]);
        let logits: Vec<f32> = model
            .forward_cached(tokens, &mut cache)
            .try_into_vec_as()
            .map_err(|e| GenerateError::Device(format!("{e:?}")))?;
        let rows = logits.chunks(vocab_size).zip(next);
        scores.extend(rows.map(|(logits, &id)| token_log_prob(logits, id, top)));
    }
    Ok(scores)
}
