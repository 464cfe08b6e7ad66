//! A transformer that learns a function from examples in its context, without changing a weight.
//!
//! Garg et al. 2022, arXiv:2208.01066, "What can transformers learn in-context?": questions and
//! examples take turns, `x_1, (x_1, y_1), x_2, (x_2, y_2) ..`, and at every question the model says
//! what its `y` will be from the examples before it. That an example is one token with its `x` inside
//! is von Oswald et al. 2023, arXiv:2212.07677; where `y` stands alone, a block is spent on finding
//! the `x` beside it. The blocks are [`crate::gpt`]'s.

use burn::{
    module::{Module, Param},
    nn::Initializer,
    tensor::{Device, Tensor},
};
use maquette_nn::{
    Block, InitScheme, Linear, LinearConfig, Norm, NormConfig, NormKind,
    attention::AttentionContext,
    init::{Fill, Slot, initialise},
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, require};
use crate::gpt::GptConfig;

/// Configuration of an [`InContext`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InContextConfig {
    /// Width of `x`; 0 in a recipe means "the data's".
    pub d_x: usize,
    /// The most examples that are read, the one asked about included.
    pub examples: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of heads.
    pub n_heads: usize,
}

impl Default for InContextConfig {
    fn default() -> Self {
        Self {
            d_x: 0,
            examples: 11,
            d_model: 64,
            n_layers: 4,
            n_heads: 4,
        }
    }
}

impl InContextConfig {
    /// The transformer behind it, whose tokens are not used.
    fn backbone(&self) -> GptConfig {
        GptConfig {
            vocab_size: 1,
            seq_len: 2 * self.examples,
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            ..GptConfig::default()
        }
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        for (key, value) in [("d_x", self.d_x), ("examples", self.examples)] {
            require(value > 0, key, || "must be at least 1".into())?;
        }
        self.backbone().validate()
    }

    /// A model with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`InContextConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> InContext {
        if let Err(error) = self.validate() {
            panic!("invalid InContextConfig: {error}");
        }
        let norm = NormConfig {
            kind: NormKind::LayerNorm,
            d_model: self.d_model,
            eps: 1e-5,
            bias: true,
        };
        let backbone = self.backbone();
        let block = |layer| backbone.block(layer, &norm, device);
        let model = InContext {
            read_x: LinearConfig::new(self.d_x, self.d_model).init(device),
            read_example: LinearConfig::new(self.d_x + 1, self.d_model).init(device),
            positions: Initializer::Zeros.init([2 * self.examples, self.d_model], device),
            blocks: (0..self.n_layers).map(block).collect(),
            norm: norm.init(device),
            write_y: LinearConfig::new(self.d_model, 1).init(device),
        };
        initialise(model, rng, |slot| self.fill(&backbone, slot))
    }

    fn fill(&self, backbone: &GptConfig, slot: &Slot) -> Fill {
        match slot.path.split('.').next() {
            Some("positions") => Fill::Normal { std: 0.02 },
            Some("blocks") => backbone.fill(slot),
            _ => InitScheme::FanIn.fill(slot),
        }
    }
}

/// A transformer over questions and examples.
#[derive(Module, Debug)]
pub struct InContext {
    read_x: Linear,
    read_example: Linear,
    /// `[2 examples, d_model]`.
    positions: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: Norm,
    write_y: Linear,
}

impl InContext {
    /// What every `y` will be, from its `x` and the examples before it.
    ///
    /// # Shapes
    /// - x: `[batch, examples, d_x]`
    /// - y, output: `[batch, examples]`
    ///
    /// # Panics
    /// If there are more examples than the configuration allows.
    pub fn forward(&self, x: Tensor<3>, y: Tensor<2>) -> Tensor<2> {
        let [batch, examples, _] = x.dims();
        // 1. Questions and examples in turns.
        let example = Tensor::cat(vec![x.clone(), y.unsqueeze_dim(2)], 2);
        let example = self.read_example.forward(example).unsqueeze_dim::<4>(2);
        let question = self.read_x.forward(x).unsqueeze_dim::<4>(2);
        let d_model = question.dims()[3];
        let turns = Tensor::cat(vec![question, example], 2);
        let turns = turns.reshape([batch, 2 * examples, d_model]);
        let positions = self.positions.val().narrow(0, 0, 2 * examples);
        // 2. The transformer.
        let mut h = turns + positions.unsqueeze::<3>();
        for block in &self.blocks {
            let context = AttentionContext {
                causal: true,
                ..AttentionContext::default()
            };
            (h, _) = block.forward(h, context, None);
        }
        // 3. What stands at every question.
        let asked = h.reshape([batch, examples, 2, d_model]).narrow(2, 0, 1);
        let asked = self.norm.forward(asked.squeeze_dim::<3>(2));
        self.write_y.forward(asked).squeeze_dim(2)
    }

    /// Mean squared error over all examples, `[1]`.
    ///
    /// # Shapes
    /// As [`InContext::forward`].
    pub fn loss(&self, x: Tensor<3>, y: Tensor<2>) -> Tensor<1> {
        (self.forward(x, y.clone()) - y).square().mean()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use maquette_rng::{Stream, normal, rng};

    fn config() -> InContextConfig {
        InContextConfig {
            d_x: 3,
            examples: 5,
            d_model: 16,
            n_layers: 2,
            n_heads: 2,
        }
    }

    #[test]
    fn a_prediction_sees_its_x_and_the_examples_before() {
        let device = Device::flex();
        let model = config().init(&device, &mut rng(1, Stream::Init, 0));
        let x = TensorData::new(normal(&mut rng(1, Stream::Data, 0), 12), [1, 4, 3]);
        let x = Tensor::<3>::from_data(x, &device);
        let y = |third: f32| Tensor::<2>::from_floats([[1.0, -1.0, third, 2.0]], &device);
        let values = |y| {
            model
                .forward(x.clone(), y)
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
        };
        let (a, b) = (values(y(0.5)), values(y(3.0)));
        assert_eq!(a.len(), 4);
        assert_eq!(a[..3], b[..3]);
        assert_ne!(a[3], b[3]);
    }

    #[test]
    fn contradictions_name_their_key() {
        let config = InContextConfig {
            n_heads: 3,
            ..config()
        };
        let message = config.validate().unwrap_err().to_string();
        assert!(
            message.starts_with("n_heads: 3 heads do not divide"),
            "{message}"
        );
    }
}
