//! A decoder-only transformer that is GPT-2 or one of the Llama family by its configuration.
//!
//! - GPT-2: Radford et al. 2019, "Language models are unsupervised multitask learners": learned
//!   positions, layer norm before each block, GELU, offsets everywhere, the head tied to the
//!   embedding.
//! - Llama: Touvron et al. 2023, arXiv:2302.13971: rotary positions, RMS norm, SwiGLU, no offsets,
//!   optionally grouped queries; from 3.1 on with stretched rotary frequencies.
//! - Mistral: Jiang et al. 2023, arXiv:2310.06825: Llama with a sliding window.
//! - Qwen2, Qwen3: arXiv:2407.10671, arXiv:2505.09388: Llama with offsets of queries, keys and
//!   values; with norms of queries and keys and heads of any width.
//! - Mixtral: Jiang et al. 2024, arXiv:2401.04088: Llama with experts instead of the MLP.
//! - Our own models may take sinusoids (Vaswani et al. 2017) or ALiBi (Press et al. 2021) instead.

use std::path::Path;

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig},
    tensor::{Device, Int, Tensor},
};
use maquette_nn::{
    Activation, AttentionConfig, AttentionMaps, Block, BlockConfig, Dropout, FeedForward,
    InitScheme, KvCache, Linear, LinearConfig, MlpConfig, MlpKind, MoeConfig, Norm, NormConfig,
    NormKind, Rope, RopeScaling, Routing,
    attention::AttentionContext,
    embedding,
    init::{Fill, Slot, initialise},
    positions::{alibi, sinusoids},
    project,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};
use crate::hf;
use crate::language::{LanguageConfig, LanguageLoss, LanguageModel};

/// How a token knows its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A learnt vector per position, added to the embedding.
    Learned,
    /// Rotation of queries and keys.
    Rotary,
    /// Sines and cosines, added to the embedding times `sqrt(d_model)`.
    Sinusoidal,
    /// Scores that fall with the distance, at a rate of each head.
    Alibi,
}

/// Experts in place of the MLP of every block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experts {
    /// How many there are, each as wide as the MLP would be.
    pub count: usize,
    /// How many a token passes.
    pub active: usize,
    /// Weight of the load-balance loss (mean over the blocks) in the training loss.
    pub balance: f64,
    /// Weight of the z-loss of the routers (mean over the blocks) in the training loss.
    pub z: f64,
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            count: 8,
            active: 2,
            balance: 0.01,
            z: 0.001,
        }
    }
}

/// Configuration of a [`Gpt`]. The default is nanoGPT's small setting of the GPT-2 family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GptConfig {
    /// Number of tokens in the vocabulary; 0 in a recipe means "the tokenizer's".
    pub vocab_size: usize,
    /// Longest context.
    pub seq_len: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; as many as query heads if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Width of a head; `d_model / n_heads` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_head: Option<usize>,
    /// Width inside the MLP; 4 `d_model`, or 8/3 `d_model` rounded up to a multiple of 32 with a
    /// gate if absent, so that both have about as many weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Learned, rotary, sinusoidal or ALiBi.
    pub positions: Positions,
    /// Layer norm or RMS norm.
    pub norm: NormKind,
    /// Added under the norm's square root.
    pub norm_eps: f64,
    /// GELU, SwiGLU or another.
    pub mlp: MlpKind,
    /// Experts in place of the MLP; `mlp` and `d_ff` then say what one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Whether projections and layer norms add an offset.
    pub bias: bool,
    /// The same of queries, keys and values; as `bias` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_bias: Option<bool>,
    /// The same of what attention writes; as `bias` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proj_bias: Option<bool>,
    /// The same of the MLP; as `bias` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_bias: Option<bool>,
    /// Whether every query and every key passes an RMS norm.
    pub qk_norm: bool,
    /// How many positions one sees, itself included; all before it if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// The first block that `window` holds for.
    pub window_from: usize,
    /// Whether the head is the transposed embedding.
    pub tied_head: bool,
    /// Dropout of embeddings, attention weights and what blocks write.
    pub dropout: f64,
    /// Longest rotary wavelength, in positions over `2 pi`.
    pub rope_theta: f64,
    /// How rotary frequencies were stretched to a longer context, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// How weights are drawn. Embeddings are always normal, with deviation 0.02, or one over the root
    /// of `d_model` where they stand beside sinusoids and are no head.
    pub init: InitScheme,
}

impl Default for GptConfig {
    fn default() -> Self {
        Self {
            vocab_size: 0,
            seq_len: 64,
            d_model: 128,
            n_layers: 4,
            n_heads: 4,
            n_kv_heads: None,
            d_head: None,
            d_ff: None,
            positions: Positions::Learned,
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            mlp: MlpKind::Gelu,
            experts: None,
            bias: true,
            qkv_bias: None,
            proj_bias: None,
            mlp_bias: None,
            qk_norm: false,
            window: None,
            window_from: 0,
            tied_head: true,
            dropout: 0.0,
            rope_theta: 10_000.0,
            rope_scaling: None,
            init: InitScheme::Scaled,
        }
    }
}

/// The longest context that tables of positions are made for.
const LONGEST: usize = 1 << 21;

impl GptConfig {
    /// The Llama family at the default size: rotary positions, RMS norm, SwiGLU, no offsets.
    pub fn llama() -> Self {
        Self {
            positions: Positions::Rotary,
            norm: NormKind::RmsNorm,
            mlp: MlpKind::Swiglu,
            bias: false,
            tied_head: false,
            ..Self::default()
        }
    }

    /// Number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.d_head.unwrap_or(self.d_model / self.n_heads.max(1))
    }

    /// Width inside the MLP.
    pub fn mlp_width(&self) -> usize {
        self.d_ff.unwrap_or_else(|| match self.mlp.is_gated() {
            false => 4 * self.d_model,
            true => (8 * self.d_model).div_ceil(3).next_multiple_of(32),
        })
    }

    /// Whether queries, keys and values add an offset.
    pub fn qkv_bias(&self) -> bool {
        self.qkv_bias.unwrap_or(self.bias)
    }

    /// Whether what attention writes adds an offset.
    pub fn proj_bias(&self) -> bool {
        self.proj_bias.unwrap_or(self.bias)
    }

    /// Whether the projections of the MLP add an offset.
    pub fn mlp_bias(&self) -> bool {
        self.mlp_bias.unwrap_or(self.bias)
    }

    /// How many positions one sees in a block; all before it if absent.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| layer >= self.window_from)
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
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.kv_heads()),
            ("d_head", self.d_head.unwrap_or(1)),
            ("d_ff", self.mlp_width()),
            ("window", self.window.unwrap_or(1)),
        ] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        let seq_len = self.seq_len;
        require(seq_len <= LONGEST, "seq_len", || {
            format!("a context of {seq_len} is out of reason; at most {LONGEST}")
        })?;
        let (d_model, n_heads) = (self.d_model, self.n_heads);
        let divides = self.d_head.is_some() || d_model.is_multiple_of(n_heads);
        require(divides, "n_heads", || {
            format!("{n_heads} heads do not divide d_model = {d_model}; or give d_head")
        })?;
        require(
            n_heads.is_multiple_of(self.kv_heads()),
            "n_kv_heads",
            || {
                format!(
                    "{} key heads do not divide n_heads = {n_heads}",
                    self.kv_heads()
                )
            },
        )?;
        let rotary = self.positions == Positions::Rotary;
        let d_head = self.head_width();
        require(!rotary || d_head.is_multiple_of(2), "n_heads", || {
            format!("rotary positions need an even head width, not {d_head}")
        })?;
        if let Some(scaling) = &self.rope_scaling {
            require(rotary, "rope_scaling", || {
                "stretches rotary positions, and there are none".into()
            })?;
            let fault = scaling.fault();
            require(fault.is_none(), "rope_scaling", || {
                fault.clone().unwrap_or_default()
            })?;
        }
        if let Some(experts) = &self.experts {
            let fits = 0 < experts.active && experts.active <= experts.count;
            require(fits, "experts", || {
                format!(
                    "a token cannot pass {} of {} experts",
                    experts.active, experts.count
                )
            })?;
            let weights = experts.balance >= 0.0 && experts.z >= 0.0;
            require(weights, "experts", || {
                "balance and z must not be negative".into()
            })?;
        }
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })?;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        require(positive(self.norm_eps), "norm_eps", || {
            "must be positive".into()
        })?;
        require(positive(self.rope_theta), "rope_theta", || {
            "must be positive".into()
        })
    }

    /// A model with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`GptConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> Gpt {
        if let Err(error) = self.validate() {
            panic!("invalid GptConfig: {error}");
        }
        initialise(self.build(device), rng, |slot| self.fill(slot))
    }

    /// A model of zeros, to be given weights.
    pub(crate) fn init_empty(&self, device: &Device) -> Gpt {
        let mut unused = maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
        initialise(self.build(device), &mut unused, |_| Fill::Constant(0.0))
    }

    fn build(&self, device: &Device) -> Gpt {
        let embedding = |n| EmbeddingConfig::new(n, self.d_model).init(device);
        let norm = NormConfig {
            kind: self.norm,
            d_model: self.d_model,
            eps: self.norm_eps,
            bias: self.bias,
        };
        let rope = || {
            let (theta, scaling) = (self.rope_theta, self.rope_scaling.as_ref());
            Rope::stretched(self.seq_len, self.head_width(), theta, scaling, device)
        };
        let head = LinearConfig::new(self.d_model, self.vocab_size).with_bias(false);
        let has = |positions| self.positions == positions;
        Gpt {
            tokens: embedding(self.vocab_size),
            positions: has(Positions::Learned).then(|| embedding(self.seq_len)),
            dropout: Dropout::new(self.dropout),
            blocks: (0..self.n_layers)
                .map(|layer| self.block(layer, &norm, device))
                .collect(),
            norm: norm.init(device),
            head: (!self.tied_head).then(|| head.init(device)),
            rope: has(Positions::Rotary).then(rope),
            waves: has(Positions::Sinusoidal)
                .then(|| sinusoids(self.seq_len, self.d_model, device)),
            alibi_heads: has(Positions::Alibi).then_some(self.n_heads),
            router_losses: self.experts.map(|experts| (experts.balance, experts.z)),
            seq_len: self.seq_len,
        }
    }

    pub(crate) fn block(&self, layer: usize, norm: &NormConfig, device: &Device) -> Block {
        let attention = AttentionConfig {
            d_model: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.kv_heads(),
            d_head: self.head_width(),
            qkv_bias: self.qkv_bias(),
            proj_bias: self.proj_bias(),
            qk_norm: self.qk_norm.then_some(self.norm_eps),
            window: self.window_of(layer),
            scale: None,
            dropout: self.dropout,
        };
        let mlp = MlpConfig {
            kind: self.mlp,
            d_model: self.d_model,
            d_ff: self.mlp_width(),
            bias: self.mlp_bias(),
        };
        let feed_forward = match self.experts {
            None => FeedForward::Dense(mlp),
            Some(experts) => FeedForward::Experts(MoeConfig {
                expert: mlp,
                n_experts: experts.count,
                n_active: experts.active,
            }),
        };
        let block = BlockConfig {
            attention,
            crosses: false,
            feed_forward,
            norm: *norm,
            pre_norm: true,
            dropout: self.dropout,
        };
        block.init(device)
    }

    pub(crate) fn fill(&self, slot: &Slot) -> Fill {
        let embedding = ["tokens.weight", "positions.weight"].contains(&slot.path);
        let residual = ["proj.weight", "down.weight"]
            .iter()
            .any(|name| slot.path.ends_with(name));
        let beside_waves = self.positions == Positions::Sinusoidal && !self.tied_head;
        if embedding && beside_waves {
            // Times the root of their width, they stand beside waves of amplitude one.
            Fill::Normal {
                std: (self.d_model as f32).sqrt().recip(),
            }
        } else if embedding {
            Fill::Normal { std: 0.02 }
        } else if residual && self.init == InitScheme::Scaled {
            Fill::Normal {
                std: 0.02 / (2.0 * self.n_layers as f32).sqrt(),
            }
        } else {
            self.init.fill(slot)
        }
    }
}

impl LanguageConfig for GptConfig {
    type Model = Gpt;
    const ARCHITECTURE: &'static str = "gpt";

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn with_vocab_size(self, vocab_size: usize) -> Self {
        Self { vocab_size, ..self }
    }

    fn seq_len(&self) -> usize {
        self.seq_len
    }

    fn validate(&self) -> Result<(), ModelError> {
        self.validate()
    }

    fn init(&self, device: &Device, rng: &mut Rng) -> Gpt {
        self.init(device, rng)
    }

    fn save(&self, model: &Gpt, dir: &Path) -> Result<(), ModelError> {
        hf::save(dir, self, model)
    }

    fn load(dir: &Path, device: &Device) -> Result<(Self, Gpt), ModelError> {
        hf::load(dir, device)
    }
}

/// A decoder-only transformer.
#[derive(Module, Debug)]
pub struct Gpt {
    pub(crate) tokens: Embedding,
    pub(crate) positions: Option<Embedding>,
    dropout: Dropout,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Norm,
    pub(crate) head: Option<Linear>,
    rope: Option<Rope>,
    /// Sinusoids, `[seq_len, d_model]`.
    waves: Option<Tensor<2>>,
    /// Heads of ALiBi, where positions are its.
    #[module(skip)]
    alibi_heads: Option<usize>,
    /// Weights of the load-balance and the z-loss, where there are experts.
    #[module(skip)]
    router_losses: Option<(f64, f64)>,
    seq_len: usize,
}

/// How a [`Gpt`] reads a row.
#[derive(Default)]
struct Reading<'a> {
    /// Keys and values of the tokens before.
    cache: Option<&'a mut KvCache>,
    /// Where attention weights go, if somebody wants to look at them.
    maps: Option<&'a mut AttentionMaps>,
    /// The lengths of several texts in one row.
    documents: Option<&'a [usize]>,
}

impl Gpt {
    /// Longest context.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.weight.val().dims()[0]
    }

    /// Logits of the next token at every position.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, `seq` at most `seq_len`
    /// - output: `[batch, seq, vocab_size]`
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.logits(self.hidden(tokens, Reading::default()).0)
    }

    /// Who looks at whom in every block and head.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, `seq` at most `seq_len`
    /// - `own` of the output: `[batch, n_heads, seq, seq]` of each block
    pub fn attention_maps(&self, tokens: Tensor<2, Int>) -> AttentionMaps {
        let mut maps = AttentionMaps::default();
        let reading = Reading {
            maps: Some(&mut maps),
            ..Reading::default()
        };
        self.hidden(tokens, reading);
        maps
    }

    /// The model with one head silenced: what it mixes is no longer written.
    ///
    /// # Panics
    /// If there is no such block or head.
    pub fn without_head(mut self, layer: usize, head: usize) -> Self {
        let attention = self.blocks[layer].attention.clone();
        self.blocks[layer].attention = attention.without_head(head);
        self
    }

    /// Mean negative log-likelihood of `targets`, in nats per token.
    ///
    /// # Shapes
    /// - inputs, targets: `[batch, seq]`, targets one token ahead
    /// - output: `[1]`
    pub fn loss(&self, inputs: Tensor<2, Int>, targets: Tensor<2, Int>) -> Tensor<1> {
        LanguageLoss::of(self.forward(inputs), targets).text
    }

    /// Features after the last norm, `[batch, seq, d_model]`, and how experts were used.
    fn hidden(&self, tokens: Tensor<2, Int>, reading: Reading<'_>) -> (Tensor<3>, Vec<Routing>) {
        let Reading {
            mut cache,
            mut maps,
            documents,
        } = reading;
        let [_, seq] = tokens.dims();
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let whole = [seq];
        // Every text begins at the first position after what is cached.
        let lengths = documents.unwrap_or(&whole);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        assert!(
            past + longest <= self.seq_len,
            "{past} + {longest} tokens exceed the context of {}; start again from the last ones",
            self.seq_len
        );
        let places = |table: Tensor<2>| {
            let each = lengths.iter().map(|n| table.clone().narrow(0, past, *n));
            Tensor::cat(each.collect(), 0).unsqueeze::<3>()
        };
        let mut x = embedding(self.tokens.weight.val(), tokens);
        if let Some(positions) = &self.positions {
            x = x + places(positions.weight.val());
        }
        if let Some(waves) = &self.waves {
            let scale = (x.dims()[2] as f64).sqrt();
            x = x * scale + places(waves.clone());
        }
        x = self.dropout.forward(x);
        let bias = self
            .alibi_heads
            .map(|n_heads| alibi(n_heads, longest, past, &x.device()));
        let mut routings = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let context = AttentionContext {
                causal: true,
                rope: self.rope.as_ref(),
                bias: bias.clone(),
                past,
                cache: cache.as_deref_mut().map(|cache| (cache, layer)),
                documents,
                maps: maps.as_deref_mut(),
            };
            let (next, routing) = block.forward(x, context, None);
            x = next;
            routings.extend(routing);
        }
        (self.norm.forward(x), routings)
    }

    fn loss_of(
        &self,
        inputs: Tensor<2, Int>,
        targets: Tensor<2, Int>,
        reading: Reading<'_>,
    ) -> LanguageLoss {
        let (hidden, routing) = self.hidden(inputs, reading);
        let mut loss = LanguageLoss {
            routing,
            ..LanguageLoss::of(self.logits(hidden), targets)
        };
        if let (Some((balance, z)), Some(of_balance), Some(of_z)) =
            (self.router_losses, loss.balance(), loss.z())
        {
            loss.total = loss.total + of_balance * balance + of_z * z;
        }
        loss
    }
}

impl LanguageModel for Gpt {
    type Memory = KvCache;

    fn vocab_size(&self) -> usize {
        self.vocab_size()
    }

    fn longest(&self) -> usize {
        self.seq_len
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.forward(tokens)
    }

    /// # Panics
    /// If `memory.len() + seq` is more than `seq_len`.
    fn features_after(&self, tokens: Tensor<2, Int>, memory: &mut KvCache) -> Tensor<3> {
        let reading = Reading {
            cache: Some(memory),
            ..Reading::default()
        };
        self.hidden(tokens, reading).0
    }

    fn logits(&self, features: Tensor<3>) -> Tensor<3> {
        match &self.head {
            Some(head) => head.forward(features),
            None => project(
                features,
                self.tokens.weight.val().transpose(),
                None,
                Activation::Identity,
            ),
        }
    }

    fn select(memory: &mut KvCache, rows: Tensor<1, Int>) {
        memory.select(rows);
    }

    /// [`Gpt::loss`], and with experts what keeps their load even.
    fn training_loss(&self, inputs: Tensor<2, Int>, targets: Tensor<2, Int>) -> LanguageLoss {
        self.loss_of(inputs, targets, Reading::default())
    }

    /// Of all texts at once, at no cost for filling rows up.
    ///
    /// # Panics
    /// If a text is longer than `seq_len`.
    fn packed_loss(
        &self,
        inputs: Tensor<2, Int>,
        targets: Tensor<2, Int>,
        lengths: &[usize],
    ) -> LanguageLoss {
        let [batch, seq] = inputs.dims();
        let sum: usize = lengths.iter().sum();
        assert_eq!((batch, seq), (1, sum), "one row of {sum} tokens");
        let reading = Reading {
            documents: Some(lengths),
            ..Reading::default()
        };
        self.loss_of(inputs, targets, reading)
    }

    fn attention_maps(&self, tokens: Tensor<2, Int>) -> Option<AttentionMaps> {
        Some(self.attention_maps(tokens))
    }
}

#[cfg(test)]
mod tests;
