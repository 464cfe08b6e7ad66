//! A language model of dilated causal convolutions: a position sees a fixed number of tokens before
//! it, through a tree of layers whose taps lie ever further apart.
//!
//! - Dilation that doubles from layer to layer, residual blocks: Bai et al. 2018, arXiv:1803.01271,
//!   "An empirical evaluation of generic convolutional and recurrent networks for sequence
//!   modeling"; gates and the pattern that begins again: van den Oord et al. 2016,
//!   arXiv:1609.03499 (WaveNet); gated linear units in text: Dauphin et al. 2017, arXiv:1612.08083,
//!   here with the curve of Shazeer 2020, arXiv:2002.05202.
//! - Where those normalise weights, a norm stands before each block here, as in the transformer.
//!
//! A causal convolution is a linear layer over the last inputs that its taps reach, so that is how
//! it is computed.

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig},
    tensor::{Device, Int, Tensor},
};
use maquette_nn::{
    Activation, Dropout, InitScheme, Linear, LinearConfig, Norm, NormConfig, NormKind, embedding,
    gated,
    init::{Fill, Slot, initialise},
    project,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};
use crate::language::{LanguageConfig, LanguageModel};

/// Configuration of a [`CausalConv`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CausalConvConfig {
    /// Number of tokens in the vocabulary; 0 in a recipe means "the tokenizer's".
    pub vocab_size: usize,
    /// Length of the texts it is trained on. It reads longer ones.
    pub seq_len: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Inputs that a tap each reads.
    pub kernel: usize,
    /// Distance of the taps in the last block before the pattern 1, 2, 4 ... begins again.
    pub max_dilation: usize,
    /// Layer norm or RMS norm.
    pub norm: NormKind,
    /// Whether the head is the transposed embedding.
    pub tied_head: bool,
    /// Dropout of embeddings and of what blocks write.
    pub dropout: f64,
    /// How weights are drawn. Embeddings are always normal with deviation 0.02.
    pub init: InitScheme,
}

impl Default for CausalConvConfig {
    fn default() -> Self {
        Self {
            vocab_size: 0,
            seq_len: 64,
            d_model: 128,
            n_layers: 5,
            kernel: 3,
            max_dilation: 16,
            norm: NormKind::RmsNorm,
            tied_head: true,
            dropout: 0.0,
            init: InitScheme::Scaled,
        }
    }
}

impl CausalConvConfig {
    /// Distance of the taps of a block.
    fn dilation(&self, layer: usize) -> usize {
        let pattern = self.max_dilation.ilog2() as usize + 1;
        1 << (layer % pattern)
    }

    /// How many tokens a position sees, its own included.
    pub fn receptive_field(&self) -> usize {
        let reach = |layer| (self.kernel - 1) * self.dilation(layer);
        1 + (0..self.n_layers).map(reach).sum::<usize>()
    }

    fn build(&self, device: &Device) -> CausalConv {
        let (d, taps) = (self.d_model, self.kernel * self.d_model);
        let norm = NormConfig {
            kind: self.norm,
            d_model: d,
            eps: 1e-5,
            bias: true,
        };
        let block = |layer| Block {
            norm: norm.init(device),
            gate: LinearConfig::new(taps, d).init(device),
            up: LinearConfig::new(taps, d).init(device),
            down: LinearConfig::new(d, d).init(device),
            dropout: Dropout::new(self.dropout),
            kernel: self.kernel,
            dilation: self.dilation(layer),
        };
        let head = LinearConfig::new(d, self.vocab_size).with_bias(false);
        CausalConv {
            tokens: EmbeddingConfig::new(self.vocab_size, d).init(device),
            blocks: (0..self.n_layers).map(block).collect(),
            norm: norm.init(device),
            head: (!self.tied_head).then(|| head.init(device)),
            dropout: Dropout::new(self.dropout),
        }
    }

    fn fill(&self, slot: &Slot) -> Fill {
        if slot.path == "tokens.weight" {
            Fill::Normal { std: 0.02 }
        } else if slot.path.ends_with("down.weight") && self.init == InitScheme::Scaled {
            Fill::Normal {
                std: 0.02 / (self.n_layers as f32).sqrt(),
            }
        } else {
            self.init.fill(slot)
        }
    }
}

impl LanguageConfig for CausalConvConfig {
    type Model = CausalConv;
    const ARCHITECTURE: &'static str = "causal-conv";

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
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("seq_len", self.seq_len),
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
        ] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        let kernel = self.kernel;
        require((2..=64).contains(&kernel), "kernel", || {
            format!("must be 2 to 64, not {kernel}")
        })?;
        let furthest = self.max_dilation;
        let power = furthest.is_power_of_two() && furthest <= 1 << 16;
        require(power, "max_dilation", || {
            format!("must be a power of two up to 65536, not {furthest}")
        })?;
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })
    }

    fn init(&self, device: &Device, rng: &mut Rng) -> CausalConv {
        if let Err(error) = self.validate() {
            panic!("invalid CausalConvConfig: {error}");
        }
        initialise(self.build(device), rng, |slot| self.fill(slot))
    }
}

/// One gated convolution behind a norm, added to its input.
#[derive(Module, Debug)]
struct Block {
    norm: Norm,
    /// `[kernel d_model, d_model]`: of all taps, the furthest first.
    gate: Linear,
    /// The same.
    up: Linear,
    /// `[d_model, d_model]`.
    down: Linear,
    dropout: Dropout,
    kernel: usize,
    dilation: usize,
}

impl Block {
    /// # Shapes
    /// - x, output: `[batch, seq, d_model]`
    /// - past: `[batch, (kernel - 1) dilation, d_model]`, the normalised inputs before; becomes the
    ///   last ones
    fn forward(&self, x: Tensor<3>, past: &mut Option<Tensor<3>>) -> Tensor<3> {
        let [batch, seq, d] = x.dims();
        let reach = (self.kernel - 1) * self.dilation;
        let before = past
            .take()
            .unwrap_or_else(|| Tensor::zeros([batch, reach, d], &x.device()));
        let inputs = Tensor::cat(vec![before, self.norm.forward(x.clone())], 1);
        let tap = |i: usize| inputs.clone().narrow(1, i * self.dilation, seq);
        let taps = Tensor::cat((0..self.kernel).map(tap).collect(), 2);
        *past = Some(inputs.narrow(1, seq, reach));
        let hidden = gated(
            self.gate.forward(taps.clone()),
            self.up.forward(taps),
            Activation::Silu,
        );
        self.dropout.forward_onto(self.down.forward(hidden), x)
    }
}

/// A causal convolutional language model.
#[derive(Module, Debug)]
pub struct CausalConv {
    tokens: Embedding,
    blocks: Vec<Block>,
    norm: Norm,
    head: Option<Linear>,
    dropout: Dropout,
}

/// The last inputs of every block, as far as its taps reach back.
#[derive(Debug, Clone, Default)]
pub struct CausalConvMemory(Vec<Option<Tensor<3>>>);

impl LanguageModel for CausalConv {
    type Memory = CausalConvMemory;

    fn vocab_size(&self) -> usize {
        self.tokens.weight.val().dims()[0]
    }

    fn longest(&self) -> usize {
        usize::MAX
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.forward_after(tokens, &mut CausalConvMemory::default())
    }

    fn features_after(&self, tokens: Tensor<2, Int>, memory: &mut CausalConvMemory) -> Tensor<3> {
        memory.0.resize(self.blocks.len(), None);
        let x = embedding(self.tokens.weight.val(), tokens);
        let mut x = self.dropout.forward(x);
        for (block, past) in self.blocks.iter().zip(&mut memory.0) {
            x = block.forward(x, past);
        }
        self.norm.forward(x)
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

    fn select(memory: &mut CausalConvMemory, rows: Tensor<1, Int>) {
        for past in memory.0.iter_mut().flatten() {
            *past = past.clone().select(0, rows.clone());
        }
    }
}
