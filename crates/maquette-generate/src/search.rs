//! Text that is searched for instead of drawn: the most probable one, or the least repetitive among
//! the probable.
//!
//! The algorithms know a model as a closure over rows of a batch: see [`Extend`].

mod beam;
mod contrastive;

pub use beam::{BeamOptions, EarlyStopping, Hypothesis, beam_search};
pub use contrastive::{ContrastiveOptions, contrastive_search};

use burn::tensor::{Tensor, TensorData};
use maquette_models::LanguageModel;

use crate::GenerateError;
use crate::text::{numbers, tokens};

/// What a model reads next: row `i` of the new batch is row `parents[i]` of the last one with
/// `tokens[i]` after it. The first call has no parents, and all tokens are one row: the prompt.
#[derive(Debug, Clone, Copy)]
pub struct Extend<'a> {
    /// Rows of the last batch; empty at the beginning.
    pub parents: &'a [usize],
    /// One token a row; the prompt at the beginning.
    pub tokens: &'a [u32],
}

/// What a model says of what it read.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// Logits of the next token, a row for every row of the batch, `[rows][vocab_size]`.
    pub logits: Vec<Vec<f32>>,
    /// Features of every token that was read, `[tokens][d_model]`.
    pub features: Vec<Vec<f32>>,
}

/// A network that reads every token once.
pub fn reader<M: LanguageModel>(
    model: &M,
) -> impl FnMut(Extend<'_>) -> Result<Read, GenerateError> {
    let mut memory = M::Memory::default();
    move |next: Extend<'_>| {
        let shape = match next.parents.is_empty() {
            true => {
                memory = M::Memory::default();
                [1, next.tokens.len()]
            }
            false => {
                let rows: Vec<i64> = next.parents.iter().map(|&row| row as i64).collect();
                let rows = TensorData::new(rows, [next.parents.len()]);
                M::select(&mut memory, Tensor::from_data(rows, &model.devices()[0]));
                [next.tokens.len(), 1]
            }
        };
        let tokens = tokens(model, next.tokens, shape);
        let features = model.features_after(tokens, &mut memory);
        let last = features.clone().narrow(1, shape[1] - 1, 1);
        Ok(Read {
            logits: rows(model.logits(last))?,
            features: rows(features)?,
        })
    }
}

/// A tensor's innermost rows.
fn rows(tensor: Tensor<3>) -> Result<Vec<Vec<f32>>, GenerateError> {
    let width = tensor.dims()[2];
    let values = numbers(tensor)?;
    Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
}

/// What every search asks of its prompt: tokens, and room for those to come. The last one is never
/// read.
fn check_prompt(prompt: &[u32], max_tokens: usize, context: usize) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    match prompt.len().saturating_add(max_tokens) - 1 > context {
        true => Err(GenerateError::NoRoom {
            prompt: prompt.len(),
            max_tokens,
            context,
        }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod testing {
    use super::{Extend, Read};
    use crate::GenerateError;
    use maquette_rng::{Stream, normal, rng};

    /// How many tokens the tree's vocabulary has.
    pub(super) const TREE: usize = 5;

    /// A model whose logits are noise that the text so far decides.
    pub(super) fn tree() -> impl FnMut(Extend<'_>) -> Result<Read, GenerateError> {
        let mut texts: Vec<Vec<u32>> = Vec::new();
        move |next: Extend<'_>| {
            texts = match next.parents.is_empty() {
                true => vec![next.tokens.to_vec()],
                false => {
                    let rows = next.parents.iter().zip(next.tokens);
                    rows.map(|(&row, &token)| [texts[row].as_slice(), &[token]].concat())
                        .collect()
                }
            };
            let key = |text: &[u32]| text.iter().fold(1, |key, &id| key * 31 + u64::from(id));
            let noise = |text: &[u32], step| normal(&mut rng(key(text), Stream::Noise, step), TREE);
            let features = match next.parents.is_empty() {
                true => (1..=texts[0].len())
                    .map(|n| noise(&texts[0][..n], 1))
                    .collect(),
                false => texts.iter().map(|text| noise(text, 1)).collect(),
            };
            Ok(Read {
                logits: texts.iter().map(|text| noise(text, 0)).collect(),
                features,
            })
        }
    }
}
