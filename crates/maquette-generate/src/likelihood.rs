//! How likely a language model finds a text that is there already.
//!
//! Every passage is read by itself, from its first token on and in steps of a fixed size, so that its
//! figure is the same whatever is measured before, after or beside it.

use maquette_models::LanguageModel;

use crate::GenerateError;
use crate::text::{numbers, tokens};

/// Tokens that are read at once: their logits are held together.
const STEP: usize = 128;

/// What a model thought of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// The logarithm of its probability, in nats.
    pub log_prob: f64,
    /// Whether no token was likelier.
    pub greedy: bool,
}

/// Reads passages with a network.
#[derive(Debug)]
pub struct Scorer<'a, M: LanguageModel> {
    model: &'a M,
    /// The context read last: several continuations of one are common.
    read: Option<Context<M::Memory>>,
}

#[derive(Debug)]
struct Context<T> {
    ids: Vec<u32>,
    memory: T,
    /// Logits of the token that follows.
    logits: Vec<f32>,
}

impl<'a, M: LanguageModel> Scorer<'a, M> {
    /// A reader with `model`.
    pub fn new(model: &'a M) -> Self {
        Self { model, read: None }
    }

    /// The longest passage: tokens of context and target together, less the last, which is only
    /// foretold.
    pub fn seq_len(&self) -> usize {
        self.model.longest()
    }

    /// What the model thinks of each token of `target` after `context` and the tokens before it.
    ///
    /// # Errors
    /// No context, a token that the model does not know, or a passage longer than it can read.
    pub fn score(
        &mut self,
        context: &[u32],
        target: &[u32],
    ) -> Result<Vec<TokenScore>, GenerateError> {
        self.each(context, target, score)
    }

    /// What `of` makes of the logits before each token of `target`, and of that token.
    ///
    /// # Errors
    /// As [`Scorer::score`], or what `of` reports.
    pub(crate) fn each<T>(
        &mut self,
        context: &[u32],
        target: &[u32],
        of: impl Fn(&[f32], u32) -> Result<T, GenerateError>,
    ) -> Result<Vec<T>, GenerateError> {
        let vocab_size = self.model.vocab_size();
        let mut both = context.iter().chain(target);
        if let Some(&token) = both.find(|id| **id as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        if context.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let Some((first, rest)) = target.split_first() else {
            return Ok(Vec::new());
        };
        let (tokens, seq_len) = (context.len() + rest.len(), self.seq_len());
        if tokens > seq_len {
            return Err(GenerateError::PassageTooLong { tokens, seq_len });
        }
        let known = self.read.take().filter(|read| read.ids == context);
        let read = match known {
            Some(read) => read,
            None => self.read(context)?,
        };
        let mut all = vec![of(&read.logits, *first)?];
        let mut memory = read.memory.clone();
        self.read = Some(read);
        for (at, part) in target[..rest.len()].chunks(STEP).enumerate() {
            let logits = self.forward(part, &mut memory)?;
            let next = &rest[at * STEP..];
            for (row, id) in logits.chunks_exact(vocab_size).zip(next) {
                all.push(of(row, *id)?);
            }
        }
        Ok(all)
    }

    fn read(&self, ids: &[u32]) -> Result<Context<M::Memory>, GenerateError> {
        let mut memory = M::Memory::default();
        let mut logits = Vec::new();
        for part in ids.chunks(STEP) {
            logits = self.forward(part, &mut memory)?;
        }
        let last = logits.len() - self.model.vocab_size();
        Ok(Context {
            ids: ids.to_vec(),
            memory,
            logits: logits.split_off(last),
        })
    }

    /// Logits of what follows each of `ids`, one row of the vocabulary after the other.
    fn forward(&self, ids: &[u32], memory: &mut M::Memory) -> Result<Vec<f32>, GenerateError> {
        let tokens = tokens(self.model, ids, [1, ids.len()]);
        numbers(self.model.forward_after(tokens, memory))
    }
}

/// The log-softmax of `logits` at `id`.
fn score(logits: &[f32], id: u32) -> Result<TokenScore, GenerateError> {
    if let Some(token) = logits.iter().position(|x| x.is_nan()) {
        return Err(GenerateError::NotANumber { token });
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Short sums in 32 bits, added up in 64.
    let part = |part: &[f32]| f64::from(part.iter().map(|x| (x - largest).exp()).sum::<f32>());
    let total: f64 = logits.chunks(64).map(part).sum();
    let own = logits[id as usize];
    let first = logits.iter().position(|x| *x == largest);
    Ok(TokenScore {
        log_prob: f64::from(own - largest) - total.ln(),
        greedy: first == Some(id as usize),
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use maquette_models::nn::InitScheme;
    use maquette_models::{Gpt, GptConfig};
    use maquette_rng::{Stream, rng};

    use super::*;

    fn model() -> Gpt {
        let config = GptConfig {
            vocab_size: 13,
            seq_len: 300,
            d_model: 16,
            n_heads: 2,
            n_layers: 2,
            init: InitScheme::He,
            ..GptConfig::llama()
        };
        config.init(&Device::flex(), &mut rng(0, Stream::Init, 0))
    }

    fn passage(n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| i * i % 13).collect()
    }

    #[test]
    fn scores_are_the_log_softmax_of_the_whole_pass() {
        let model = model();
        let ids = passage(290);
        let tokens: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let tokens = Tensor::from_data(TensorData::new(tokens, [1, ids.len()]), &Device::flex());
        let whole: Vec<f32> = model.forward(tokens).try_into_vec_as().unwrap();
        for cut in [1, 5, 128, 200, 289] {
            let (context, target) = ids.split_at(cut);
            let scores = Scorer::new(&model).score(context, target).unwrap();
            assert_eq!(scores.len(), target.len());
            for (i, got) in scores.iter().enumerate() {
                let at = cut + i - 1;
                let want = score(&whole[at * 13..][..13], ids[at + 1]).unwrap();
                assert!((got.log_prob - want.log_prob).abs() < 1e-4, "{cut} {i}");
            }
        }
    }

    #[test]
    fn a_figure_does_not_depend_on_its_company() {
        let model = model();
        let ids = passage(60);
        let alone = Scorer::new(&model).score(&ids[..40], &ids[40..]).unwrap();
        let mut scorer = Scorer::new(&model);
        scorer.score(&ids[..40], &[3, 4]).unwrap();
        assert_eq!(scorer.score(&ids[..40], &ids[40..]).unwrap(), alone);
        scorer.score(&ids[..7], &ids[7..]).unwrap();
        assert_eq!(scorer.score(&ids[..40], &ids[40..]).unwrap(), alone);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let model = model();
        let mut scorer = Scorer::new(&model);
        assert!(scorer.score(&[], &[1]).is_err());
        assert!(scorer.score(&[1], &[13]).is_err());
        assert_eq!(scorer.score(&[1], &[]).unwrap(), []);
        assert!(scorer.score(&passage(200), &passage(101)).is_ok());
        let error = scorer.score(&passage(200), &passage(102)).unwrap_err();
        assert!(
            error.to_string().contains("301 tokens, 1 more than"),
            "{error}"
        );
    }
}
