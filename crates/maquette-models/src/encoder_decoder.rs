//! An encoder-decoder transformer: one stack reads a text from both sides, the other writes the
//! answer from left to right and looks at what the first made of it.
//!
//! - The original: Vaswani et al. 2017, arXiv:1706.03762: sinusoids, a layer norm after each
//!   block's sum, ReLU, offsets everywhere, the head tied to the embedding.
//! - T5: Raffel et al. 2020, arXiv:1910.10683: learnt score offsets by distance, an RMS norm before
//!   each block and after each stack, unscaled scores, no offsets; from 1.1 on with gated GELU.

use burn::{
    module::{Initializer, Module, Param},
    nn::{Embedding, EmbeddingConfig},
    tensor::{Device, Int, Tensor, TensorData},
};
use maquette_nn::{
    Activation, AttentionConfig, AttentionMaps, Block, BlockConfig, Dropout, FeedForward,
    InitScheme, KvCache, Linear, LinearConfig, MlpConfig, MlpKind, Norm, NormConfig, NormKind,
    attention::{AttentionContext, CrossMemory, padding_bias},
    cross_entropy, embedding,
    init::{Fill, Slot, initialise},
    positions::{relative_buckets, sinusoids},
    project,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// Learnt score offsets by distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relative {
    /// Number of distances and ranges told apart, those of both sides together.
    pub buckets: usize,
    /// Distances beyond this are one.
    pub max_distance: usize,
}

/// Configuration of an [`EncoderDecoder`]. The default is a small one of the original layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderDecoderConfig {
    /// Number of tokens in the vocabulary, shared by both sides; 0 in a recipe means "the
    /// tokenizer's".
    pub vocab_size: usize,
    /// Longest text of either side.
    pub seq_len: usize,
    /// Width of the residual streams.
    pub d_model: usize,
    /// Number of blocks of the encoder.
    pub n_layers: usize,
    /// Number of blocks of the decoder; as many if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_decoder_layers: Option<usize>,
    /// Number of heads.
    pub n_heads: usize,
    /// Width of a head; `d_model / n_heads` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_head: Option<usize>,
    /// Width inside the MLP; 4 `d_model` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Score offsets by distance instead of sinusoids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative: Option<Relative>,
    /// Layer norm or RMS norm.
    pub norm: NormKind,
    /// Whether norms stand before each block and after each stack, instead of after each sum.
    pub pre_norm: bool,
    /// Added under the norm's square root.
    pub norm_eps: f64,
    /// What stands between the MLP's projections.
    pub mlp: MlpKind,
    /// Whether projections and layer norms add an offset.
    pub bias: bool,
    /// Whether scores are divided by the root of the head's width.
    pub scaled_scores: bool,
    /// Whether the head is the transposed embedding.
    pub tied_head: bool,
    /// Whether the features that a head reads are divided by the root of `d_model`.
    pub scaled_head: bool,
    /// Dropout of embeddings, attention weights and what blocks write.
    pub dropout: f64,
    /// How weights are drawn.
    pub init: InitScheme,
}

impl Default for EncoderDecoderConfig {
    fn default() -> Self {
        Self {
            vocab_size: 0,
            seq_len: 64,
            d_model: 128,
            n_layers: 2,
            n_decoder_layers: None,
            n_heads: 4,
            d_head: None,
            d_ff: None,
            relative: None,
            norm: NormKind::LayerNorm,
            pre_norm: false,
            norm_eps: 1e-5,
            mlp: MlpKind::Relu,
            bias: true,
            scaled_scores: true,
            tied_head: true,
            scaled_head: false,
            dropout: 0.0,
            init: InitScheme::Xavier,
        }
    }
}

impl EncoderDecoderConfig {
    /// T5 at the default size.
    pub fn t5() -> Self {
        Self {
            relative: Some(Relative {
                buckets: 32,
                max_distance: 128,
            }),
            norm: NormKind::RmsNorm,
            pre_norm: true,
            norm_eps: 1e-6,
            bias: false,
            scaled_scores: false,
            scaled_head: true,
            init: InitScheme::Scaled,
            ..Self::default()
        }
    }

    /// Number of blocks of the decoder.
    pub fn decoder_layers(&self) -> usize {
        self.n_decoder_layers.unwrap_or(self.n_layers)
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.d_head.unwrap_or(self.d_model / self.n_heads.max(1))
    }

    /// Width inside the MLP.
    pub fn mlp_width(&self) -> usize {
        self.d_ff.unwrap_or(4 * self.d_model)
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("seq_len", self.seq_len),
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_decoder_layers", self.decoder_layers()),
            ("n_heads", self.n_heads),
            ("d_head", self.d_head.unwrap_or(1)),
            ("d_ff", self.mlp_width()),
        ] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        let divides = self.d_head.is_some() || self.d_model.is_multiple_of(self.n_heads);
        require(divides, "n_heads", || {
            format!(
                "{} heads do not divide d_model = {}; or give d_head",
                self.n_heads, self.d_model
            )
        })?;
        if let Some(Relative {
            buckets,
            max_distance,
        }) = self.relative
        {
            require(
                buckets >= 4 && buckets.is_multiple_of(2),
                "relative",
                || format!("buckets must be even and at least 4, not {buckets}"),
            )?;
            require(max_distance > buckets / 2, "relative", || {
                format!("max_distance must exceed half of the {buckets} buckets")
            })?;
        }
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })?;
        let positive = self.norm_eps > 0.0 && self.norm_eps.is_finite();
        require(positive, "norm_eps", || "must be positive".into())
    }

    /// A model with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`EncoderDecoderConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> EncoderDecoder {
        if let Err(error) = self.validate() {
            panic!("invalid EncoderDecoderConfig: {error}");
        }
        initialise(self.build(device, false), rng, |slot| self.fill(slot))
    }

    /// A model of zeros, to be given weights.
    pub(crate) fn init_empty(&self, device: &Device) -> EncoderDecoder {
        let mut unused = maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
        initialise(self.build(device, false), &mut unused, |_| {
            Fill::Constant(0.0)
        })
    }

    /// Without weights; a decoder that sees both sides of its text is [`crate::mask_predict`]'s.
    pub(crate) fn build(&self, device: &Device, both_sides: bool) -> EncoderDecoder {
        let head = LinearConfig::new(self.d_model, self.vocab_size).with_bias(false);
        EncoderDecoder {
            tokens: EmbeddingConfig::new(self.vocab_size, self.d_model).init(device),
            waves: self
                .relative
                .is_none()
                .then(|| sinusoids(self.seq_len, self.d_model, device)),
            encoder: Stack {
                both_sides: true,
                ..self.stack(self.n_layers, false, device)
            },
            decoder: Stack {
                both_sides,
                ..self.stack(self.decoder_layers(), true, device)
            },
            head: (!self.tied_head).then(|| head.init(device)),
            dropout: Dropout::new(self.dropout),
            scaled_head: self.scaled_head,
            seq_len: self.seq_len,
        }
    }

    fn stack(&self, n_layers: usize, crosses: bool, device: &Device) -> Stack {
        let norm = NormConfig {
            kind: self.norm,
            d_model: self.d_model,
            eps: self.norm_eps,
            bias: self.bias,
        };
        let attention = AttentionConfig {
            d_head: self.head_width(),
            qkv_bias: self.bias,
            proj_bias: self.bias,
            scale: (!self.scaled_scores).then_some(1.0),
            dropout: self.dropout,
            ..AttentionConfig::new(self.d_model, self.n_heads)
        };
        let mlp = MlpConfig {
            kind: self.mlp,
            d_model: self.d_model,
            d_ff: self.mlp_width(),
            bias: self.bias,
        };
        let block = BlockConfig {
            attention,
            crosses,
            feed_forward: FeedForward::Dense(mlp),
            norm,
            pre_norm: self.pre_norm,
            dropout: self.dropout,
        };
        let table =
            |relative: Relative| Initializer::Zeros.init([relative.buckets, self.n_heads], device);
        Stack {
            blocks: (0..n_layers).map(|_| block.init(device)).collect(),
            norm: self.pre_norm.then(|| norm.init(device)),
            distances: self.relative.map(table),
            max_distance: self.relative.map_or(0, |relative| relative.max_distance),
            both_sides: false,
        }
    }

    pub(crate) fn fill(&self, slot: &Slot) -> Fill {
        if slot.path.ends_with("tokens.weight") {
            // The original multiplies its embeddings by the root of their width.
            let std = match self.relative {
                None => (self.d_model as f32).sqrt().recip(),
                Some(_) => 1.0,
            };
            Fill::Normal { std }
        } else if slot.path.ends_with("distances") {
            Fill::Normal { std: 0.02 }
        } else {
            self.init.fill(slot)
        }
    }
}

/// An encoder or a decoder.
#[derive(Module, Debug)]
struct Stack {
    blocks: Vec<Block>,
    norm: Option<Norm>,
    /// Score offsets, `[buckets, n_heads]`.
    distances: Option<Param<Tensor<2>>>,
    max_distance: usize,
    both_sides: bool,
}

impl Stack {
    /// What distances add to the scores of `seq` queries after `past` positions,
    /// `[1, n_heads, seq, past + seq]`.
    fn bias(&self, seq: usize, past: usize) -> Option<Tensor<4>> {
        let table = self.distances.as_ref()?.val();
        let [buckets, n_heads] = table.dims();
        let seen = past + seq;
        let places = relative_buckets(buckets, self.max_distance, self.both_sides, seq, past, seen);
        let places = TensorData::new(places, [seq * seen]);
        let places = Tensor::<1, Int>::from_data(places, &table.device());
        let bias = table.select(0, places).transpose();
        Some(bias.reshape([1, n_heads, seq, seen]))
    }
}

/// What the encoder made of a source, as the decoder's blocks want it.
#[derive(Debug, Clone)]
pub struct Memory {
    layers: Vec<CrossMemory>,
    /// What the encoder wrote, `[batch, source, d_model]`.
    pub(crate) features: Tensor<3>,
}

impl Memory {
    /// The memory of these rows, any of them as often as wanted.
    pub(crate) fn rows(&self, rows: Tensor<1, Int>) -> Self {
        let layers = self.layers.iter();
        Self {
            layers: layers.map(|layer| layer.rows(rows.clone())).collect(),
            features: self.features.clone().select(0, rows),
        }
    }
}

/// How a decoder reads answers.
#[derive(Default)]
struct Answer<'a> {
    /// What hides the positions that only fill a row up.
    padding: Option<Tensor<4>>,
    /// Keys and values of the tokens before.
    cache: Option<&'a mut KvCache>,
    /// Where attention weights go, if somebody wants to look at them.
    maps: Option<&'a mut AttentionMaps>,
}

/// What two parts add to the scores.
fn sum(a: Option<Tensor<4>>, b: Option<Tensor<4>>) -> Option<Tensor<4>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// An encoder-decoder transformer.
#[derive(Module, Debug)]
pub struct EncoderDecoder {
    tokens: Embedding,
    /// Sinusoids, `[seq_len, d_model]`.
    waves: Option<Tensor<2>>,
    encoder: Stack,
    decoder: Stack,
    head: Option<Linear>,
    dropout: Dropout,
    scaled_head: bool,
    seq_len: usize,
}

impl EncoderDecoder {
    /// Longest text of either side.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.weight.val().dims()[0]
    }

    /// Reads a source.
    ///
    /// # Shapes
    /// - tokens: `[batch, source]`, at most `seq_len` long
    /// - mask: `[batch, source]`, 1 for a token, 0 for what fills up; all tokens if absent
    ///
    /// # Panics
    /// If a source is longer than `seq_len`.
    pub fn encode(&self, tokens: Tensor<2, Int>, mask: Option<Tensor<2>>) -> Memory {
        let [_, seq] = tokens.dims();
        let mut x = self.embed(tokens, 0);
        let padding = mask.map(padding_bias);
        let bias = sum(self.encoder.bias(seq, 0), padding.clone());
        for block in &self.encoder.blocks {
            let context = AttentionContext {
                bias: bias.clone(),
                ..AttentionContext::default()
            };
            (x, _) = block.forward(x, context, None);
        }
        if let Some(norm) = &self.encoder.norm {
            x = self.dropout.forward(norm.forward(x));
        }
        let crosses = self.decoder.blocks.iter().filter_map(|b| b.cross.as_ref());
        Memory {
            layers: crosses
                .map(|cross| cross.remember(x.clone(), padding.clone()))
                .collect(),
            features: x,
        }
    }

    /// Logits of the answer's next token at every position. With a cache, of tokens that follow
    /// those in it: the same numbers as over the whole answer.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If the answer is longer than `seq_len`.
    pub fn decode(
        &self,
        tokens: Tensor<2, Int>,
        memory: &Memory,
        cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let answer = Answer {
            cache,
            ..Answer::default()
        };
        self.decode_with(tokens, memory, answer)
    }

    /// Where every decoder block and head looks while an answer is read: at the answer (`own`) and
    /// at the source (`cross`).
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, n_heads, seq, seq or source]` of each block
    pub fn attention_maps(&self, tokens: Tensor<2, Int>, memory: &Memory) -> AttentionMaps {
        let mut maps = AttentionMaps::default();
        let answer = Answer {
            maps: Some(&mut maps),
            ..Answer::default()
        };
        self.decode_with(tokens, memory, answer);
        maps
    }

    /// Logits of every token of texts that are known in part and seen from both sides.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - mask: `[batch, seq]`, 1 for a token, 0 for what fills up
    /// - output: `[batch, seq, vocab_size]`
    pub(crate) fn decode_around(
        &self,
        tokens: Tensor<2, Int>,
        mask: Tensor<2>,
        memory: &Memory,
    ) -> Tensor<3> {
        let answer = Answer {
            padding: Some(padding_bias(mask)),
            ..Answer::default()
        };
        self.decode_with(tokens, memory, answer)
    }

    fn decode_with(
        &self,
        tokens: Tensor<2, Int>,
        memory: &Memory,
        answer: Answer<'_>,
    ) -> Tensor<3> {
        let Answer {
            padding,
            mut cache,
            mut maps,
        } = answer;
        let [_, seq] = tokens.dims();
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let bias = sum(self.decoder.bias(seq, past), padding);
        let mut x = self.embed(tokens, past);
        for (layer, block) in self.decoder.blocks.iter().enumerate() {
            let context = AttentionContext {
                causal: !self.decoder.both_sides,
                bias: bias.clone(),
                past,
                cache: cache.as_deref_mut().map(|cache| (cache, layer)),
                maps: maps.as_deref_mut(),
                ..AttentionContext::default()
            };
            (x, _) = block.forward(x, context, Some(&memory.layers[layer]));
        }
        if let Some(norm) = &self.decoder.norm {
            x = self.dropout.forward(norm.forward(x));
        }
        if self.scaled_head {
            x = x.clone() / (x.dims()[2] as f64).sqrt();
        }
        match &self.head {
            Some(head) => head.forward(x),
            None => project(
                x,
                self.tokens.weight.val().transpose(),
                None,
                Activation::Identity,
            ),
        }
    }

    /// Mean negative log-likelihood of chosen tokens of the answers, in nats per token, `[1]`.
    ///
    /// # Shapes
    /// - inputs: `[batch, seq]`, the answers one token late
    /// - places, targets: `[n]`, a token's place in the flattened answers, and the token
    pub fn loss(
        &self,
        memory: &Memory,
        inputs: Tensor<2, Int>,
        places: Tensor<1, Int>,
        targets: Tensor<1, Int>,
    ) -> Tensor<1> {
        let logits = self.decode(inputs, memory, None);
        let [batch, seq, vocab] = logits.dims();
        let logits = logits.reshape([batch * seq, vocab]);
        cross_entropy(logits.select(0, places), targets)
    }

    /// The likeliest next tokens one by one, for each source until `end` or `max_tokens`.
    ///
    /// # Panics
    /// If `max_tokens` exceeds `seq_len`.
    pub fn greedy(
        &self,
        memory: &Memory,
        start: u32,
        end: u32,
        max_tokens: usize,
    ) -> Vec<Vec<u32>> {
        let batch = memory
            .layers
            .first()
            .map_or(0, |layer| layer.keys.dims()[0]);
        let device = self.tokens.weight.val().device();
        let mut cache = KvCache::new();
        let mut answers = vec![Vec::new(); batch];
        let mut open = vec![true; batch];
        let mut last = vec![i64::from(start); batch];
        for _ in 0..max_tokens {
            let tokens = TensorData::new(last.clone(), [batch, 1]);
            let tokens = Tensor::<2, Int>::from_data(tokens, &device);
            let logits = self.decode(tokens, memory, Some(&mut cache));
            let next = logits.argmax(2).into_data();
            for (row, id) in next.iter::<i64>().enumerate() {
                last[row] = id;
                open[row] &= id != i64::from(end);
                if open[row] {
                    answers[row].push(id as u32);
                }
            }
            if !open.contains(&true) {
                break;
            }
        }
        answers
    }

    fn embed(&self, tokens: Tensor<2, Int>, past: usize) -> Tensor<3> {
        let [_, seq] = tokens.dims();
        assert!(
            past + seq <= self.seq_len,
            "{past} + {seq} tokens exceed the longest text of {}",
            self.seq_len
        );
        let mut x = embedding(self.tokens.weight.val(), tokens);
        if let Some(waves) = &self.waves {
            let scale = (x.dims()[2] as f64).sqrt();
            x = x * scale + waves.clone().narrow(0, past, seq).unsqueeze::<3>();
        }
        self.dropout.forward(x)
    }
}

/// Texts as one table, filled up with `pad`, and 1 where a token is not filling.
///
/// # Shapes
/// - both: `[rows, longest]`, at least one wide
pub fn padded(rows: &[Vec<u32>], pad: u32, device: &Device) -> (Tensor<2, Int>, Tensor<2>) {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in rows {
        let filling = width - row.len();
        ids.extend(row.iter().map(|id| *id as i32));
        ids.extend(vec![pad as i32; filling]);
        mask.extend(vec![1f32; row.len()]);
        mask.extend(vec![0f32; filling]);
    }
    let shape = [rows.len(), width];
    (
        Tensor::from_data(TensorData::new(ids, shape), device),
        Tensor::from_data(TensorData::new(mask, shape), device),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    fn layouts() -> [EncoderDecoderConfig; 2] {
        let tiny = |base| EncoderDecoderConfig {
            vocab_size: 11,
            seq_len: 8,
            d_model: 16,
            ..base
        };
        let original = tiny(EncoderDecoderConfig::default());
        let t5 = EncoderDecoderConfig {
            mlp: MlpKind::Geglu,
            tied_head: false,
            ..tiny(EncoderDecoderConfig::t5())
        };
        [original, t5]
    }

    fn ids(rows: [&[i32]; 2]) -> Tensor<2, Int> {
        let width = rows[0].len();
        Tensor::from_data(TensorData::new(rows.concat(), [2, width]), &Device::flex())
    }

    #[test]
    fn cached_logits_equal_full_logits_and_padding_changes_nothing() {
        for config in layouts() {
            let model = config.init(&Device::flex(), &mut rng(5, Stream::Init, 0));
            let short = ids([&[3, 1, 4], &[1, 5, 9]]);
            let long = ids([&[3, 1, 4, 7], &[1, 5, 9, 7]]);
            let mask = [[1.0, 1.0, 1.0, 0.0]; 2];
            let mask = Tensor::<2>::from_floats(mask, &Device::flex());
            let answer = ids([&[0, 2, 6, 5, 3], &[0, 5, 8, 9, 7]]);
            let full = model.decode(answer.clone(), &model.encode(short, None), None);
            let memory = model.encode(long, Some(mask));
            let mut cache = KvCache::new();
            let mut part = |start, length| {
                let tokens = answer.clone().narrow(1, start, length);
                model.decode(tokens, &memory, Some(&mut cache))
            };
            let parts = Tensor::cat(vec![part(0, 2), part(2, 1), part(3, 2)], 1);
            let difference = (full.clone() - parts).abs().max().into_scalar::<f32>();
            assert!(difference < 1e-4, "{difference}");
            // A later token leaves earlier logits unchanged.
            let other = ids([&[0, 2, 6, 5, 9], &[0, 5, 8, 9, 9]]);
            let other = model.decode(other, &memory, None);
            let before = |x: &Tensor<3>| x.clone().narrow(1, 0, 4);
            let difference = (before(&full) - before(&other)).abs().max();
            assert!(difference.into_scalar::<f32>() < 1e-4);
            // Greedy answers follow the logits.
            let made = model.greedy(&memory, 0, 10, 4);
            let first = full.narrow(1, 0, 1).argmax(2).into_data();
            for (row, id) in first.iter::<i64>().enumerate() {
                assert_eq!(made[row].first().map_or(10, |id| i64::from(*id)), id);
            }
        }
    }

    #[test]
    fn everything_learns() {
        for config in layouts() {
            let device = Device::flex().autodiff();
            let model = config.init(&device, &mut rng(5, Stream::Init, 0));
            let on = |x: Tensor<2, Int>| Tensor::<2, Int>::from_data(x.into_data(), &device);
            let memory = model.encode(on(ids([&[3, 1, 4], &[1, 5, 9]])), None);
            let places = Tensor::<1, Int>::from_ints([0, 1, 3], &device);
            let targets = Tensor::<1, Int>::from_ints([4, 1, 9], &device);
            let loss = model.loss(&memory, on(ids([&[0, 4], &[0, 9]])), places, targets);
            let grads = loss.backward();
            struct Idle<'a>(&'a burn::tensor::Gradients, usize);
            impl burn::module::ModuleVisitor for Idle<'_> {
                fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                    let gradient = param.val().grad(self.0);
                    let size = gradient.map(|g| g.abs().max().into_scalar::<f32>());
                    self.1 += usize::from(size.is_none_or(|size| size == 0.0));
                }
            }
            let mut idle = Idle(&grads, 0);
            model.visit(&mut idle);
            assert_eq!(idle.1, 0);
        }
    }

    #[test]
    fn contradictions_name_their_key() {
        let mut config = layouts()[1].clone();
        config.relative = Some(Relative {
            buckets: 5,
            max_distance: 16,
        });
        let message = config.validate().unwrap_err().to_string();
        assert!(
            message.starts_with("relative: buckets must be even"),
            "{message}"
        );
    }
}
