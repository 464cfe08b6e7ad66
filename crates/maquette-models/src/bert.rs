//! BERT: a transformer encoder that reads a text from both sides (Devlin et al. 2018,
//! arXiv:1810.04805), with the heads it is trained and used with.
//!
//! Sentence embeddings (Reimers & Gurevych 2019, arXiv:1908.10084) are the mean of its last
//! features over the tokens of a text, scaled to length one; MiniLM (Wang et al. 2020,
//! arXiv:2002.10957) is a small BERT trained for that.

use burn::{
    module::{Module, Param},
    nn::{Embedding, EmbeddingConfig, Initializer},
    tensor::{Device, Int, Tensor, activation::tanh},
};
use maquette_nn::{
    Activation, AttentionConfig, AttentionMaps, Block, BlockConfig, Dropout, FeedForward,
    InitScheme, Linear, LinearConfig, MlpConfig, MlpKind, Norm, NormConfig, NormKind,
    attention::{AttentionContext, padding_bias},
    cross_entropy, embedding,
    init::{Fill, Slot, initialise},
    project,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};

/// What stands on the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BertHead {
    /// Nothing: features and sentence embeddings.
    Features,
    /// The hidden tokens of a masked text.
    MaskedLm,
    /// The same, and whether the second segment follows the first.
    Pretraining,
    /// One of so many classes for the whole text.
    Classify(usize),
    /// One of so many tags for every token.
    Tag(usize),
    /// Where in the text the answer begins and ends.
    Answer,
}

/// Configuration of a [`Bert`]. The default is a hundredth of BERT-base, for two cores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BertConfig {
    /// Number of tokens in the vocabulary; 0 in a recipe means "the tokenizer's".
    pub vocab_size: usize,
    /// Longest text.
    pub seq_len: usize,
    /// Number of segments told apart.
    pub n_segments: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of heads.
    pub n_heads: usize,
    /// Width inside the MLP; 4 `d_model` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Between the projections of the MLP, and in the head of masked tokens.
    pub mlp: MlpKind,
    /// Added under the norm's square root.
    pub norm_eps: f64,
    /// Dropout of embeddings, attention weights and what blocks write.
    pub dropout: f64,
    /// Whether the first token's features pass a layer of their own, as classes and the next
    /// sentence need.
    pub pooler: bool,
    /// What stands on the encoder.
    pub head: BertHead,
    /// How weights are drawn. Embeddings are always normal with deviation 0.02.
    pub init: InitScheme,
    /// Whether the positions' embeddings start as sinusoids (of that deviation) and are learnt from
    /// there. One matrix then looks one place to the left from everywhere, where random ones make
    /// every place learn by itself where its neighbours are: little text is enough to begin with.
    pub sinusoids: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 0,
            seq_len: 128,
            n_segments: 2,
            d_model: 128,
            n_layers: 4,
            n_heads: 4,
            d_ff: None,
            mlp: MlpKind::GeluExact,
            norm_eps: 1e-12,
            dropout: 0.0,
            pooler: false,
            head: BertHead::MaskedLm,
            init: InitScheme::Scaled,
            sinusoids: false,
        }
    }
}

impl BertConfig {
    /// Width inside the MLP.
    pub fn mlp_width(&self) -> usize {
        self.d_ff.unwrap_or(4 * self.d_model)
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        let labels = match self.head {
            BertHead::Classify(labels) | BertHead::Tag(labels) => labels,
            _ => 1,
        };
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("seq_len", self.seq_len),
            ("n_segments", self.n_segments),
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("d_ff", self.mlp_width()),
            ("head", labels),
        ] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        require(self.d_model.is_multiple_of(self.n_heads), "n_heads", || {
            format!(
                "{} heads do not divide d_model = {}",
                self.n_heads, self.d_model
            )
        })?;
        require(!self.mlp.is_gated(), "mlp", || {
            "BERT's has no gate; gelu, gelu-exact and relu have none".into()
        })?;
        let pooled = matches!(self.head, BertHead::Classify(_) | BertHead::Pretraining);
        require(self.pooler || !pooled, "pooler", || {
            "this head reads what the pooler writes; set it to true".into()
        })?;
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })?;
        let positive = self.norm_eps > 0.0 && self.norm_eps.is_finite();
        require(positive, "norm_eps", || "must be positive".into())
    }

    /// A model with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`BertConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> Bert {
        if let Err(error) = self.validate() {
            panic!("invalid BertConfig: {error}");
        }
        initialise(self.build(device), rng, |slot| self.fill(slot))
    }

    /// A model of zeros, to be given weights.
    pub(crate) fn init_empty(&self, device: &Device) -> Bert {
        let mut unused = maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
        initialise(self.build(device), &mut unused, |_| Fill::Constant(0.0))
    }

    fn build(&self, device: &Device) -> Bert {
        let d = self.d_model;
        let embedding = |n| EmbeddingConfig::new(n, d).init(device);
        let norm = NormConfig {
            kind: NormKind::LayerNorm,
            d_model: d,
            eps: self.norm_eps,
            bias: true,
        };
        let linear = |d_out| LinearConfig::new(d, d_out).init(device);
        let attention = AttentionConfig {
            dropout: self.dropout,
            ..AttentionConfig::new(d, self.n_heads)
        };
        let mlp = MlpConfig {
            kind: self.mlp,
            d_model: d,
            d_ff: self.mlp_width(),
            bias: true,
        };
        let block = BlockConfig {
            attention,
            crosses: false,
            feed_forward: FeedForward::Dense(mlp),
            norm,
            pre_norm: false,
            dropout: self.dropout,
        };
        let masked = matches!(self.head, BertHead::MaskedLm | BertHead::Pretraining);
        Bert {
            tokens: embedding(self.vocab_size),
            positions: embedding(self.seq_len),
            segments: embedding(self.n_segments),
            norm: norm.init(device),
            dropout: Dropout::new(self.dropout),
            blocks: (0..self.n_layers).map(|_| block.init(device)).collect(),
            pooler: self.pooler.then(|| linear(d)),
            masked: masked.then(|| MaskedHead {
                transform: linear(d),
                norm: norm.init(device),
                bias: Initializer::Zeros.init([self.vocab_size], device),
                mlp: self.mlp,
            }),
            output: match self.head {
                BertHead::Features | BertHead::MaskedLm => None,
                BertHead::Classify(labels) | BertHead::Tag(labels) => Some(linear(labels)),
                BertHead::Pretraining | BertHead::Answer => Some(linear(2)),
            },
            seq_len: self.seq_len,
        }
    }

    fn fill(&self, slot: &Slot) -> Fill {
        const STD: f32 = 0.02;
        match slot.path {
            "positions.weight" if self.sinusoids => Fill::Sinusoids {
                amplitude: STD * std::f32::consts::SQRT_2,
            },
            "tokens.weight" | "positions.weight" | "segments.weight" => Fill::Normal { std: STD },
            _ => self.init.fill(slot),
        }
    }
}

/// Reads hidden tokens off features; its matrix is the embedding.
#[derive(Module, Debug)]
struct MaskedHead {
    transform: Linear,
    norm: Norm,
    bias: Param<Tensor<1>>,
    #[module(skip)]
    mlp: MlpKind,
}

/// What a [`Bert`] reads.
#[derive(Debug, Clone)]
pub struct BertInput {
    /// `[batch, seq]`, `seq` at most `seq_len`.
    pub tokens: Tensor<2, Int>,
    /// The segment of each token, `[batch, seq]`; the first of all if absent.
    pub segments: Option<Tensor<2, Int>>,
    /// 1 for a token, 0 for what only fills a row up, `[batch, seq]`; all tokens if absent.
    pub mask: Option<Tensor<2>>,
}

impl BertInput {
    /// Rows that are all tokens of the first segment.
    pub fn new(tokens: Tensor<2, Int>) -> Self {
        Self {
            tokens,
            segments: None,
            mask: None,
        }
    }

    /// With a mask.
    pub fn with_mask(self, mask: Tensor<2>) -> Self {
        Self {
            mask: Some(mask),
            ..self
        }
    }
}

/// A transformer encoder and at most one head.
#[derive(Module, Debug)]
pub struct Bert {
    tokens: Embedding,
    positions: Embedding,
    segments: Embedding,
    norm: Norm,
    dropout: Dropout,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
    masked: Option<MaskedHead>,
    /// Of the next sentence, classes, tags, or an answer's ends.
    output: Option<Linear>,
    seq_len: usize,
}

impl Bert {
    /// This model's head on another's encoder: its embeddings, its blocks and, where both have one,
    /// its pooler.
    pub fn onto(self, trunk: Bert) -> Self {
        Self {
            pooler: match (&self.pooler, trunk.pooler.is_some()) {
                (Some(_), true) => trunk.pooler,
                _ => self.pooler,
            },
            masked: self.masked,
            output: self.output,
            ..trunk
        }
    }

    /// Longest text.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.weight.val().dims()[0]
    }

    /// Features of every token.
    ///
    /// # Shapes
    /// - output: `[batch, seq, d_model]`
    ///
    /// # Panics
    /// If a row is longer than `seq_len`.
    pub fn forward(&self, input: BertInput) -> Tensor<3> {
        self.features(input, None)
    }

    /// Who looks at whom in every block and head.
    ///
    /// # Shapes
    /// - `own` of the output: `[batch, n_heads, seq, seq]` of each block
    ///
    /// # Panics
    /// If a row is longer than `seq_len`.
    pub fn attention_maps(&self, input: BertInput) -> AttentionMaps {
        let mut maps = AttentionMaps::default();
        self.features(input, Some(&mut maps));
        maps
    }

    fn features(&self, input: BertInput, mut maps: Option<&mut AttentionMaps>) -> Tensor<3> {
        let BertInput {
            tokens,
            segments,
            mask,
        } = input;
        let [_, seq] = tokens.dims();
        let seq_len = self.seq_len;
        assert!(
            seq <= seq_len,
            "{seq} tokens exceed the longest text of {seq_len}"
        );
        let segments = match segments {
            Some(segments) => embedding(self.segments.weight.val(), segments),
            None => self.segments.weight.val().narrow(0, 0, 1).unsqueeze::<3>(),
        };
        let positions = self.positions.weight.val().narrow(0, 0, seq);
        let x = embedding(self.tokens.weight.val(), tokens) + positions.unsqueeze::<3>() + segments;
        let mut x = self.dropout.forward(self.norm.forward(x));
        let bias = mask.map(padding_bias);
        for block in &self.blocks {
            let context = AttentionContext {
                bias: bias.clone(),
                maps: maps.as_deref_mut(),
                ..AttentionContext::default()
            };
            (x, _) = block.forward(x, context, None);
        }
        x
    }

    /// Sentence embeddings: the mean of a text's features, scaled to length one, so that a product
    /// of two is their cosine.
    ///
    /// # Shapes
    /// - output: `[batch, d_model]`
    pub fn embed(&self, input: BertInput) -> Tensor<2> {
        let mask = input.mask.clone();
        let mean = mean_pool(self.forward(input), mask);
        let length = mean.clone().square().sum_dim(1).sqrt();
        mean / length.clamp_min(1e-12)
    }

    /// Logits of the hidden tokens at chosen places, which stand at `batch * seq + position`.
    ///
    /// # Shapes
    /// - features: `[batch, seq, d_model]`
    /// - places: `[n]`
    /// - output: `[n, vocab_size]`
    ///
    /// # Panics
    /// If the model has no head for it.
    pub fn masked_logits(&self, features: Tensor<3>, places: Tensor<1, Int>) -> Tensor<2> {
        let Some(head) = &self.masked else {
            panic!("this BERT has no head of masked tokens");
        };
        let [batch, seq, d_model] = features.dims();
        let picked = features.reshape([batch * seq, d_model]).select(0, places);
        let hidden = head.mlp.activate(head.transform.forward(picked));
        let table = self.tokens.weight.val().transpose();
        project(
            head.norm.forward(hidden),
            table,
            Some(head.bias.val()),
            Activation::Identity,
        )
    }

    /// Mean negative log-likelihood of hidden tokens, in nats per hidden token, `[1]`.
    ///
    /// # Shapes
    /// - places, targets: `[n]`, see [`Bert::masked_logits`]
    ///
    /// # Panics
    /// If the model has no head for it.
    pub fn masked_loss(
        &self,
        input: BertInput,
        places: Tensor<1, Int>,
        targets: Tensor<1, Int>,
    ) -> Tensor<1> {
        cross_entropy(self.masked_logits(self.forward(input), places), targets)
    }

    /// Logits of a text's class, or of whether its second segment follows the first (class 0) or
    /// not (class 1).
    ///
    /// # Shapes
    /// - features: `[batch, seq, d_model]`
    /// - output: `[batch, n_classes]`
    ///
    /// # Panics
    /// If the model has no such head.
    pub fn text_logits(&self, features: Tensor<3>) -> Tensor<2> {
        let Some(pooler) = &self.pooler else {
            panic!("this BERT has no pooler");
        };
        let [batch, _, d_model] = features.dims();
        let first = features.narrow(1, 0, 1).reshape([batch, d_model]);
        let pooled = self.dropout.forward(tanh(pooler.forward(first)));
        self.output().forward(pooled)
    }

    /// Logits of every token: of its tag, or of an answer's beginning and end there.
    ///
    /// # Shapes
    /// - features: `[batch, seq, d_model]`
    /// - output: `[batch, seq, n_tags]`
    ///
    /// # Panics
    /// If the model has no such head.
    pub fn token_logits(&self, features: Tensor<3>) -> Tensor<3> {
        self.output().forward(self.dropout.forward(features))
    }

    fn output(&self) -> &Linear {
        match &self.output {
            Some(output) => output,
            None => panic!("this BERT has no head of classes, tags or answers"),
        }
    }
}

/// The mean over a text's tokens.
///
/// # Shapes
/// - features: `[batch, seq, d_model]`
/// - mask: `[batch, seq]`, 1 for a token
/// - output: `[batch, d_model]`
pub fn mean_pool(features: Tensor<3>, mask: Option<Tensor<2>>) -> Tensor<2> {
    let [batch, seq, d_model] = features.dims();
    let mask = mask.unwrap_or_else(|| Tensor::ones([batch, seq], &features.device()));
    let count = mask.clone().sum_dim(1).clamp_min(1.0);
    let sum = (features * mask.unsqueeze_dim::<3>(2)).sum_dim(1);
    sum.reshape([batch, d_model]) / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    fn model(head: BertHead) -> Bert {
        let config = BertConfig {
            vocab_size: 11,
            seq_len: 8,
            d_model: 16,
            n_layers: 2,
            pooler: true,
            head,
            init: InitScheme::He,
            ..BertConfig::default()
        };
        config.init(&Device::flex(), &mut rng(5, Stream::Init, 0))
    }

    #[test]
    fn positions_may_start_as_sinusoids_of_the_embeddings_deviation() {
        let device = Device::flex();
        let config = BertConfig {
            vocab_size: 11,
            seq_len: 8,
            d_model: 16,
            sinusoids: true,
            ..BertConfig::default()
        };
        let model = config.init(&device, &mut rng(5, Stream::Init, 0));
        let waves = maquette_nn::positions::sinusoids(8, 16, &device);
        let apart = model.positions.weight.val() - waves * (0.02 * std::f32::consts::SQRT_2);
        assert!(apart.clone().abs().max().into_scalar::<f32>() < 1e-7);
        let square = model.positions.weight.val().square().mean();
        assert!((square.into_scalar::<f32>().sqrt() - 0.02).abs() < 1e-6);
    }

    #[test]
    fn padding_changes_nothing() {
        let device = Device::flex();
        let model = model(BertHead::Features);
        let short = Tensor::<2, Int>::from_ints([[3, 1, 4]], &device);
        let long = Tensor::<2, Int>::from_ints([[3, 1, 4, 9, 9]], &device);
        let mask = Tensor::<2>::from_floats([[1.0, 1.0, 1.0, 0.0, 0.0]], &device);
        let a = model.embed(BertInput::new(short));
        let b = model.embed(BertInput::new(long).with_mask(mask));
        let difference = (a.clone() - b).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-6, "{difference}");
        let length = a.square().sum().into_scalar::<f32>();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }

    #[test]
    fn a_fresh_model_guesses() {
        let device = Device::flex();
        let config = BertConfig {
            vocab_size: 11,
            ..BertConfig::default()
        };
        let model = config.init(&device, &mut rng(5, Stream::Init, 0));
        let tokens = Tensor::<2, Int>::from_ints([[3, 1, 4], [1, 5, 9]], &device);
        let places = Tensor::<1, Int>::from_ints([1, 5], &device);
        let targets = Tensor::<1, Int>::from_ints([7, 2], &device);
        let loss = model.masked_loss(BertInput::new(tokens), places, targets);
        let loss = loss.into_scalar::<f32>();
        assert!((loss - 11f32.ln()).abs() < 0.5, "{loss}");
    }

    #[test]
    fn a_new_head_stands_on_the_old_encoder() {
        let tokens = Tensor::<2, Int>::from_ints([[3, 1, 4]], &Device::flex());
        let features = |model: &Bert| model.forward(BertInput::new(tokens.clone())).into_data();
        let old = model(BertHead::Features);
        let fresh = BertConfig {
            vocab_size: 11,
            seq_len: 8,
            d_model: 16,
            n_layers: 2,
            pooler: true,
            head: BertHead::Classify(3),
            init: InitScheme::Xavier,
            ..BertConfig::default()
        };
        let fresh = fresh.init(&Device::flex(), &mut rng(9, Stream::Init, 0));
        assert_ne!(features(&fresh), features(&old));
        let tuned = fresh.onto(old.clone());
        assert_eq!(features(&tuned), features(&old));
        let logits = tuned.text_logits(tuned.forward(BertInput::new(tokens.clone())));
        assert_eq!(logits.dims(), [1, 3]);
    }

    #[test]
    fn heads_have_their_shapes() {
        let device = Device::flex();
        let tokens = Tensor::<2, Int>::from_ints([[3, 1, 4], [1, 5, 9]], &device);
        let features = |model: &Bert| model.forward(BertInput::new(tokens.clone()));
        let classes = model(BertHead::Classify(3));
        assert_eq!(classes.text_logits(features(&classes)).dims(), [2, 3]);
        let answer = model(BertHead::Answer);
        assert_eq!(answer.token_logits(features(&answer)).dims(), [2, 3, 2]);
    }

    #[test]
    fn contradictions_name_their_key() {
        let config = BertConfig {
            vocab_size: 5,
            head: BertHead::Classify(2),
            ..BertConfig::default()
        };
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with("pooler: this head reads"), "{message}");
    }
}
