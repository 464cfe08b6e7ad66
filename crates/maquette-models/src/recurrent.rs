//! Recurrent language models: a state of fixed size is carried from token to token.
//!
//! - The simple network: Elman 1990, "Finding structure in time".
//! - LSTM: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
//! - GRU: Cho et al. 2014, arXiv:1406.1078, in the form whose reset gate multiplies the product.
//! - Layers on top of each other with dropout between them: Zaremba et al. 2014, arXiv:1409.2329.
//!
//! Gates stand in PyTorch's order, so that its weights are ours transposed.

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig},
    tensor::{
        Device, Int, Tensor,
        activation::{sigmoid, tanh},
    },
};
use maquette_nn::{
    Activation, Dropout, InitScheme, Linear, LinearConfig, Lstm, LstmConfig, LstmState, embedding,
    init::{Fill, Slot, initialise},
    project,
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};
use crate::language::{LanguageConfig, LanguageModel};

/// How a state follows from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    /// One `tanh`.
    Rnn,
    /// Input, forget and output gate around a cell.
    Lstm,
    /// Reset and update gate.
    Gru,
}

/// Configuration of a [`Recurrent`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecurrentConfig {
    /// Number of tokens in the vocabulary; 0 in a recipe means "the tokenizer's".
    pub vocab_size: usize,
    /// Length of the texts it is trained on: gradients reach back no further.
    pub seq_len: usize,
    /// Which cell.
    pub cell: Cell,
    /// Width of embeddings and states.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Whether the head is the transposed embedding.
    pub tied_head: bool,
    /// Dropout of embeddings and of what a layer writes.
    pub dropout: f64,
}

impl Default for RecurrentConfig {
    fn default() -> Self {
        Self {
            vocab_size: 0,
            seq_len: 64,
            cell: Cell::Lstm,
            d_model: 128,
            n_layers: 2,
            tied_head: true,
            dropout: 0.0,
        }
    }
}

impl LanguageConfig for RecurrentConfig {
    type Model = Recurrent;
    const ARCHITECTURE: &'static str = "recurrent";

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
        require((0.0..1.0).contains(&self.dropout), "dropout", || {
            format!("{} is not in [0, 1)", self.dropout)
        })
    }

    fn init(&self, device: &Device, rng: &mut Rng) -> Recurrent {
        if let Err(error) = self.validate() {
            panic!("invalid RecurrentConfig: {error}");
        }
        initialise(self.build(device), rng, |slot| self.fill(slot))
    }
}

impl RecurrentConfig {
    fn build(&self, device: &Device) -> Recurrent {
        let head = LinearConfig::new(self.d_model, self.vocab_size).with_bias(false);
        Recurrent {
            tokens: EmbeddingConfig::new(self.vocab_size, self.d_model).init(device),
            layers: (0..self.n_layers).map(|_| self.layer(device)).collect(),
            head: (!self.tied_head).then(|| head.init(device)),
            dropout: Dropout::new(self.dropout),
        }
    }

    fn layer(&self, device: &Device) -> Layer {
        let d = self.d_model;
        let linear = |parts, bias| LinearConfig::new(d, parts * d).with_bias(bias).init(device);
        match self.cell {
            Cell::Rnn => Layer::Rnn(Rnn {
                input: linear(1, true),
                hidden: linear(1, false),
            }),
            Cell::Lstm => {
                let (d_input, d_hidden) = (d, d);
                Layer::Lstm(LstmConfig { d_input, d_hidden }.init(device))
            }
            Cell::Gru => Layer::Gru(Gru {
                input: linear(3, true),
                hidden: linear(3, true),
            }),
        }
    }

    fn fill(&self, slot: &Slot) -> Fill {
        match slot.path {
            "tokens.weight" => Fill::Normal {
                std: (self.d_model as f32).sqrt().recip(),
            },
            _ => InitScheme::FanIn.fill(slot),
        }
    }
}

/// One layer.
#[derive(Module, Debug)]
enum Layer {
    Rnn(Rnn),
    Lstm(Lstm),
    Gru(Gru),
}

/// What a layer carries on, `[batch, d_model]` each.
#[derive(Debug, Clone)]
struct State {
    /// What it wrote.
    hidden: Tensor<2>,
    /// The cell of an LSTM.
    cell: Option<Tensor<2>>,
}

impl Layer {
    /// Outputs over a whole sequence that starts from zeros.
    ///
    /// # Shapes
    /// - input, output: `[batch, seq, d_model]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Rnn(rnn) => unroll(rnn.input.forward(x), |x, h| rnn.step(x, h)),
            Self::Lstm(lstm) => lstm.forward(x),
            Self::Gru(gru) => unroll(gru.input.forward(x), |x, h| gru.step(x, h)),
        }
    }

    /// One time step.
    ///
    /// # Shapes
    /// - x: `[batch, d_model]`
    fn step(&self, x: Tensor<2>, state: Option<State>) -> State {
        let (hidden, cell) = match state {
            Some(State { hidden, cell }) => (Some(hidden), cell),
            None => (None, None),
        };
        let plain = |hidden| State { hidden, cell: None };
        match self {
            Self::Rnn(rnn) => plain(rnn.step(rnn.input.forward(x), hidden)),
            Self::Gru(gru) => plain(gru.step(gru.input.forward(x), hidden)),
            Self::Lstm(lstm) => {
                let state = hidden.zip(cell);
                let state = state.map(|(hidden, cell)| LstmState { hidden, cell });
                let LstmState { hidden, cell } = lstm.step(x, state);
                State {
                    hidden,
                    cell: Some(cell),
                }
            }
        }
    }
}

/// `step` from the first to the last time of `x`, `[batch, seq, _]`, whose product with the input
/// weight is already taken.
fn unroll(x: Tensor<3>, step: impl Fn(Tensor<2>, Option<Tensor<2>>) -> Tensor<2>) -> Tensor<3> {
    let [_, seq, _] = x.dims();
    let mut hidden: Option<Tensor<2>> = None;
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let next = step(x.clone().narrow(1, t, 1).squeeze_dim(1), hidden);
        outputs.push(next.clone().unsqueeze_dim(1));
        hidden = Some(next);
    }
    Tensor::cat(outputs, 1)
}

/// `h_t = tanh(input(x_t) + hidden(h_{t-1}))`.
#[derive(Module, Debug)]
struct Rnn {
    /// `[d_model, d_model]` and the offsets.
    input: Linear,
    /// `[d_model, d_model]`.
    hidden: Linear,
}

impl Rnn {
    fn step(&self, x: Tensor<2>, hidden: Option<Tensor<2>>) -> Tensor<2> {
        match hidden {
            Some(hidden) => tanh(x + self.hidden.forward(hidden)),
            None => tanh(x),
        }
    }
}

/// With `[r, z, n] = input(x_t)` and `[r', z', n'] = hidden(h_{t-1})`:
/// `n = tanh(n + sigmoid(r + r') n')`, `h_t = n + sigmoid(z + z') (h_{t-1} - n)`.
#[derive(Module, Debug)]
struct Gru {
    /// `[d_model, 3 d_model]` and the offsets: reset gate, update gate, new state.
    input: Linear,
    /// The same. Its offset of the new state stands inside the reset gate's product.
    hidden: Linear,
}

impl Gru {
    fn step(&self, x: Tensor<2>, hidden: Option<Tensor<2>>) -> Tensor<2> {
        let [batch, width] = x.dims();
        let d = width / 3;
        let hidden = hidden.unwrap_or_else(|| Tensor::zeros([batch, d], &x.device()));
        let h = self.hidden.forward(hidden.clone());
        let gates = sigmoid(x.clone().narrow(1, 0, 2 * d) + h.clone().narrow(1, 0, 2 * d));
        let (r, z) = (gates.clone().narrow(1, 0, d), gates.narrow(1, d, d));
        let n = tanh(x.narrow(1, 2 * d, d) + r * h.narrow(1, 2 * d, d));
        n.clone() + z * (hidden - n)
    }
}

/// A recurrent language model: embedding, layers, head.
#[derive(Module, Debug)]
pub struct Recurrent {
    tokens: Embedding,
    layers: Vec<Layer>,
    head: Option<Linear>,
    dropout: Dropout,
}

/// The state of every layer; of the same size however much was read.
#[derive(Debug, Clone, Default)]
pub struct RecurrentMemory(Vec<State>);

impl LanguageModel for Recurrent {
    type Memory = RecurrentMemory;

    fn vocab_size(&self) -> usize {
        self.tokens.weight.val().dims()[0]
    }

    fn longest(&self) -> usize {
        usize::MAX
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = embedding(self.tokens.weight.val(), tokens);
        let through = |x, layer: &Layer| self.dropout.forward(layer.forward(x));
        self.logits(self.layers.iter().fold(self.dropout.forward(x), through))
    }

    fn features_after(&self, tokens: Tensor<2, Int>, memory: &mut RecurrentMemory) -> Tensor<3> {
        let x = embedding(self.tokens.weight.val(), tokens);
        let [_, seq, _] = x.dims();
        let mut outputs = Vec::with_capacity(seq);
        for t in 0..seq {
            let mut x: Tensor<2> = x.clone().narrow(1, t, 1).squeeze_dim(1);
            let mut states = std::mem::take(&mut memory.0).into_iter();
            for layer in &self.layers {
                let state = layer.step(x, states.next());
                x = state.hidden.clone();
                memory.0.push(state);
            }
            outputs.push(x.unsqueeze_dim(1));
        }
        Tensor::cat(outputs, 1)
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

    fn select(memory: &mut RecurrentMemory, rows: Tensor<1, Int>) {
        let select = |x: &mut Tensor<2>| *x = x.clone().select(0, rows.clone());
        for State { hidden, cell } in &mut memory.0 {
            select(hidden);
            cell.as_mut().map(select);
        }
    }
}
