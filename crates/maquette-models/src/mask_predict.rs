//! An encoder-decoder that writes all tokens of an answer at once, then again and again those it
//! is least sure of.
//!
//! Ghazvininejad et al. 2019, arXiv:1904.09324, "Mask-Predict": the decoder sees both sides, learns
//! to guess any masked part of an answer, and the encoder guesses the answer's length at a token
//! put before the source. Blocks and positions are [`crate::encoder_decoder`]'s.

use burn::{
    module::Module,
    tensor::{
        Device, Int, Tensor, TensorData,
        activation::{log_softmax, softmax},
    },
};
use maquette_nn::{
    InitScheme, Linear, LinearConfig, cross_entropy,
    init::{Fill, Slot, initialise},
};
use maquette_rng::Rng;
use maquette_rng::rand::{RngExt as _, seq::SliceRandom as _};
use serde::{Deserialize, Serialize};

use crate::encoder_decoder::{EncoderDecoder, EncoderDecoderConfig, Memory, padded};
use crate::error::{ModelError, require};

/// The tokens that are no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Fills rows up.
    pub pad: u32,
    /// Stands for a token to be guessed.
    pub mask: u32,
    /// Stands before a source; the length is guessed there.
    pub length: u32,
}

/// How an answer is refined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refinement {
    /// Passes of the decoder; one writes everything at once.
    pub iterations: usize,
    /// How many of the likeliest lengths are tried; the answer with the highest mean
    /// log-probability of its tokens is taken.
    pub length_beam: usize,
}

impl Default for Refinement {
    fn default() -> Self {
        Self {
            iterations: 4,
            length_beam: 3,
        }
    }
}

impl Refinement {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        let message = || "must be at least 1".to_owned();
        require(self.iterations > 0, "iterations", message)?;
        require(self.length_beam > 0, "length_beam", message)
    }
}

impl EncoderDecoderConfig {
    /// A [`MaskPredict`] of this size, with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`EncoderDecoderConfig::validate`] fails.
    pub fn init_mask_predict(
        &self,
        special: SpecialTokens,
        device: &Device,
        rng: &mut Rng,
    ) -> MaskPredict {
        if let Err(error) = self.validate() {
            panic!("invalid EncoderDecoderConfig: {error}");
        }
        let model = MaskPredict {
            network: self.build(device, true),
            // Lengths from 0 on; the longest leaves the source room for its first token.
            length: LinearConfig::new(self.d_model, self.seq_len).init(device),
            special,
        };
        let fill = |slot: &Slot| -> Fill {
            match slot.path.strip_prefix("length.") {
                Some(_) => InitScheme::Xavier.fill(slot),
                None => self.fill(slot),
            }
        };
        initialise(model, rng, fill)
    }
}

/// A conditional masked language model.
#[derive(Module, Debug)]
pub struct MaskPredict {
    network: EncoderDecoder,
    /// `[d_model, seq_len]`: one logit per length.
    length: Linear,
    #[module(skip)]
    special: SpecialTokens,
}

/// Sources and answers of a training step, the answers masked in part.
#[derive(Debug, Clone)]
pub struct MaskedAnswers {
    sources: Vec<Vec<u32>>,
    answers: Vec<Vec<u32>>,
    /// Whether a token of an answer is hidden.
    hidden: Vec<Vec<bool>>,
}

impl MaskedAnswers {
    /// Hides of each answer a number of tokens, drawn from 1 to its length.
    pub fn draw(sources: Vec<Vec<u32>>, answers: Vec<Vec<u32>>, rng: &mut Rng) -> Self {
        let hide = |answer: &Vec<u32>| {
            let n = answer.len();
            let count = if n == 0 { 0 } else { rng.random_range(1..=n) };
            let mut hidden: Vec<bool> = (0..n).map(|at| at < count).collect();
            hidden.shuffle(rng);
            hidden
        };
        let hidden = answers.iter().map(hide).collect();
        Self {
            sources,
            answers,
            hidden,
        }
    }
}

/// What is minimised, and its two parts.
#[derive(Debug)]
pub struct MaskPredictLoss {
    /// The sum, `[1]`.
    pub total: Tensor<1>,
    /// Mean negative log-likelihood of the hidden tokens, in nats per token, `[1]`.
    pub tokens: Tensor<1>,
    /// The same of the lengths, in nats per answer, `[1]`.
    pub lengths: Tensor<1>,
}

/// An answer in the making.
struct Draft {
    tokens: Vec<u32>,
    /// Log-probability of each token when it was last guessed.
    scores: Vec<f32>,
}

impl Draft {
    /// Mean log-probability.
    fn score(&self) -> f32 {
        self.scores.iter().sum::<f32>() / self.scores.len().max(1) as f32
    }

    /// The places of the `count` tokens that are least sure.
    fn weakest(&self, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.tokens.len()).collect();
        places.sort_by(|a, b| self.scores[*a].total_cmp(&self.scores[*b]));
        places.truncate(count);
        places
    }
}

impl MaskPredict {
    /// Longest source that is read.
    pub fn longest_source(&self) -> usize {
        self.network.seq_len() - 1
    }

    /// The training loss: hidden tokens, and lengths.
    ///
    /// # Panics
    /// If a source is longer than [`MaskPredict::longest_source`], or an answer longer by one.
    pub fn loss(&self, batch: &MaskedAnswers, device: &Device) -> MaskPredictLoss {
        let memory = self.encode(&batch.sources, device);
        let masked = |(answer, hidden): (&Vec<u32>, &Vec<bool>)| -> Vec<u32> {
            let seen = |(id, hidden): (&u32, &bool)| if *hidden { self.special.mask } else { *id };
            answer.iter().zip(hidden).map(seen).collect()
        };
        let inputs: Vec<Vec<u32>> = batch
            .answers
            .iter()
            .zip(&batch.hidden)
            .map(masked)
            .collect();
        let logits = self.logits(&inputs, &memory, device);
        let [rows, width, vocab] = logits.dims();
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, (answer, hidden)) in batch.answers.iter().zip(&batch.hidden).enumerate() {
            for (at, id) in answer.iter().enumerate().filter(|(at, _)| hidden[*at]) {
                places.push((row * width + at) as i32);
                targets.push(*id as i32);
            }
        }
        let logits = logits.reshape([rows * width, vocab]);
        let tokens = cross_entropy(
            logits.select(0, numbers(places, device)),
            numbers(targets, device),
        );
        let lengths = batch.answers.iter().map(|answer| answer.len() as i32);
        let lengths = cross_entropy(
            self.length_logits(&memory),
            numbers(lengths.collect(), device),
        );
        MaskPredictLoss {
            total: tokens.clone() + lengths.clone(),
            tokens,
            lengths,
        }
    }

    /// Answers to `sources`.
    pub fn answers(
        &self,
        sources: &[Vec<u32>],
        how: &Refinement,
        device: &Device,
    ) -> Vec<Vec<u32>> {
        // 1. The likeliest lengths; a row for each.
        let memory = self.encode(sources, device);
        let likely = log_softmax(self.length_logits(&memory), 1).into_data();
        let likely: Vec<f32> = likely.iter::<f32>().collect();
        let beam = how.length_beam.min(self.network.seq_len());
        let mut drafts = Vec::new();
        for row in likely.chunks(self.network.seq_len()) {
            let mut lengths: Vec<usize> = (0..row.len()).collect();
            lengths.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            drafts.extend(lengths[..beam].iter().map(|length| Draft {
                tokens: vec![self.special.mask; *length],
                scores: vec![0.0; *length],
            }));
        }
        let rows = (0..drafts.len()).map(|draft| (draft / beam) as i32);
        let memory = memory.rows(numbers(rows.collect(), device));

        // 2. Guess everything, then again the least sure, ever fewer of them.
        for pass in 0..how.iterations {
            let hidden: Vec<Vec<usize>> = drafts
                .iter()
                .map(|draft| {
                    let left = draft.tokens.len() * (how.iterations - pass);
                    draft.weakest(left / how.iterations)
                })
                .collect();
            self.guess(&mut drafts, &hidden, &memory, device);
        }

        // 3. Of each source, the length whose answer is surest.
        let mut drafts = drafts.into_iter();
        let best = |_| {
            let of_source = drafts.by_ref().take(beam);
            of_source.max_by(|a, b| a.score().total_cmp(&b.score()))
        };
        let answers = sources.iter().map(best);
        answers
            .map(|draft| draft.map_or_else(Vec::new, |draft| draft.tokens))
            .collect()
    }

    /// One pass: the hidden tokens of every draft anew.
    fn guess(&self, drafts: &mut [Draft], hidden: &[Vec<usize>], memory: &Memory, device: &Device) {
        for (draft, hidden) in drafts.iter_mut().zip(hidden) {
            hidden
                .iter()
                .for_each(|at| draft.tokens[*at] = self.special.mask);
        }
        let tokens: Vec<Vec<u32>> = drafts.iter().map(|draft| draft.tokens.clone()).collect();
        let logits = self.logits(&tokens, memory, device);
        let [_, width, _] = logits.dims();
        let (surest, ids) = softmax(logits, 2).max_dim_with_indices(2);
        let surest: Vec<f32> = surest.into_data().iter::<f32>().collect();
        let ids: Vec<i64> = ids.into_data().iter::<i64>().collect();
        for (row, (draft, hidden)) in drafts.iter_mut().zip(hidden).enumerate() {
            for at in hidden {
                draft.tokens[*at] = ids[row * width + at] as u32;
                draft.scores[*at] = surest[row * width + at].ln();
            }
        }
    }

    fn encode(&self, sources: &[Vec<u32>], device: &Device) -> Memory {
        let with_length = |source: &Vec<u32>| [&[self.special.length], &source[..]].concat();
        let rows: Vec<Vec<u32>> = sources.iter().map(with_length).collect();
        let (tokens, mask) = padded(&rows, self.special.pad, device);
        self.network.encode(tokens, Some(mask))
    }

    fn logits(&self, answers: &[Vec<u32>], memory: &Memory, device: &Device) -> Tensor<3> {
        let (tokens, mask) = padded(answers, self.special.pad, device);
        let logits = self.network.decode_around(tokens, mask, memory);
        // What is no text is never an answer.
        let vocab = logits.dims()[2];
        let SpecialTokens { pad, mask, length } = self.special;
        let never = |id: usize| [pad, mask, length].contains(&(id as u32));
        let bias = (0..vocab).map(|id| if never(id) { -1e9 } else { 0.0 });
        let bias = TensorData::new(bias.collect::<Vec<f32>>(), [1, 1, vocab]);
        logits + Tensor::from_data(bias, device)
    }

    /// `[batch, seq_len]`.
    fn length_logits(&self, memory: &Memory) -> Tensor<2> {
        let first = memory.features.clone().narrow(1, 0, 1).squeeze_dim(1);
        self.length.forward(first)
    }
}

fn numbers(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};
    use std::slice::from_ref;

    const SPECIAL: SpecialTokens = SpecialTokens {
        pad: 0,
        mask: 1,
        length: 2,
    };

    fn model(base: EncoderDecoderConfig, device: &Device) -> MaskPredict {
        let config = EncoderDecoderConfig {
            vocab_size: 9,
            seq_len: 7,
            d_model: 16,
            ..base
        };
        config.init_mask_predict(SPECIAL, device, &mut rng(3, Stream::Init, 0))
    }

    fn layouts() -> [EncoderDecoderConfig; 2] {
        [EncoderDecoderConfig::default(), EncoderDecoderConfig::t5()]
    }

    #[test]
    fn hides_one_to_all_tokens() {
        let rng = &mut rng(1, Stream::Noise, 0);
        let answers = vec![vec![5; 4]; 200];
        let batch = MaskedAnswers::draw(vec![vec![3]; 200], answers, rng);
        let count = |hidden: &Vec<bool>| hidden.iter().filter(|hidden| **hidden).count();
        let mut of = [0; 5];
        batch
            .hidden
            .iter()
            .for_each(|hidden| of[count(hidden)] += 1);
        assert!(of[0] == 0 && of[1..].iter().all(|n| *n > 30), "{of:?}");
    }

    #[test]
    fn filling_changes_nothing_and_both_sides_are_seen() {
        let device = Device::flex();
        for config in layouts() {
            let model = model(config, &device);
            let logits = |sources: &[Vec<u32>], answers: &[Vec<u32>]| {
                let memory = model.encode(sources, &device);
                model.logits(answers, &memory, &device).narrow(0, 0, 1)
            };
            let (source, answer) = (vec![3, 4, 5], vec![1, 6, 1]);
            let alone = logits(from_ref(&source), from_ref(&answer));
            let beside = logits(&[source.clone(), vec![3; 6]], &[answer, vec![4; 6]]);
            let far = |a: Tensor<3>, b: Tensor<3>| (a - b).abs().max().into_scalar::<f32>();
            assert!(far(alone.clone(), beside.narrow(1, 0, 3)) < 1e-4);
            let other = logits(from_ref(&source), &[vec![1, 6, 8]]);
            assert!(far(alone.narrow(1, 0, 1), other.narrow(1, 0, 1)) > 1e-4);
        }
    }

    #[test]
    fn answers_hold_text_alone_and_more_passes_keep_the_surest() {
        let device = Device::flex();
        let model = model(EncoderDecoderConfig::default(), &device);
        let sources = [vec![3, 4], vec![8, 7, 6, 5]];
        for iterations in [1, 3, 10] {
            let how = Refinement {
                iterations,
                length_beam: 2,
            };
            let answers = model.answers(&sources, &how, &device);
            assert_eq!(answers.len(), 2);
            assert!(answers.iter().flatten().all(|id| *id > 2), "{answers:?}");
        }
        let draft = Draft {
            tokens: vec![5, 6, 7],
            scores: vec![-0.1, -3.0, -0.5],
        };
        assert_eq!(draft.weakest(2), [1, 2]);
    }
}
