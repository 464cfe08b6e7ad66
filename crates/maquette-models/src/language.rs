//! What language models have in common, whatever the network: tokens in, logits of the next one out.
//!
//! A GPT's folder is Hugging Face's ([`crate::hf`]). The other networks have a layout of our own:
//! `config.json` is `{"architecture": NAME, "model": {the recipe's table}}`, and
//! `model.safetensors` holds the parameters under the names of their fields.

use std::{fmt::Debug, fs, io::Write, path::Path};

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use maquette_nn::{AttentionMaps, Routing, cross_entropy};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::ModelError;
use crate::hf::{CONFIG, WEIGHTS};
use crate::store;

/// The configuration of a language model, as it stands in recipes.
pub trait LanguageConfig: Clone + Default + Serialize + DeserializeOwned {
    /// What it configures.
    type Model: LanguageModel;

    /// Its name in a `config.json`.
    const ARCHITECTURE: &'static str;

    /// Number of tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// The same for a vocabulary of `vocab_size` tokens.
    fn with_vocab_size(self, vocab_size: usize) -> Self;

    /// Length of the texts it is trained on.
    fn seq_len(&self) -> usize;

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    fn validate(&self) -> Result<(), ModelError>;

    /// A model with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`LanguageConfig::validate`] fails.
    fn init(&self, device: &Device, rng: &mut Rng) -> Self::Model;

    /// Writes `config.json` and `model.safetensors` into `dir`.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    fn save(&self, model: &Self::Model, dir: &Path) -> Result<(), ModelError> {
        let path = dir.join(CONFIG);
        let folder = Folder {
            architecture: Self::ARCHITECTURE.to_owned(),
            model: self,
        };
        let config = serde_json::to_string_pretty(&folder).map_err(ModelError::json(&path))? + "\n";
        store::replace(&path, |file| file.write_all(config.as_bytes()))?;
        store::save(model, &dir.join(WEIGHTS), &store::Metadata::default())
    }

    /// Loads what [`LanguageConfig::save`] wrote.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::Unsupported`] (another architecture),
    /// [`ModelError::Config`], [`ModelError::Corrupt`], [`ModelError::Names`] or
    /// [`ModelError::Shape`].
    fn load(dir: &Path, device: &Device) -> Result<(Self, Self::Model), ModelError> {
        let path = dir.join(CONFIG);
        let bytes = fs::read(&path).map_err(ModelError::io(&path))?;
        let Folder::<serde_json::Value> {
            architecture,
            model,
        } = serde_json::from_slice(&bytes).map_err(ModelError::json(&path))?;
        if architecture != Self::ARCHITECTURE {
            return Err(ModelError::Unsupported {
                path,
                what: format!("architecture {architecture}"),
                supported: Self::ARCHITECTURE,
            });
        }
        let config: Self = serde_json::from_value(model).map_err(ModelError::json(&path))?;
        config.validate()?;
        let rng = &mut maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
        let model = store::load(config.init(device, rng), &dir.join(WEIGHTS))?;
        Ok((config, model))
    }
}

#[derive(Serialize, Deserialize)]
struct Folder<C> {
    architecture: String,
    model: C,
}

/// A network that reads a text from left to right and says what comes next.
pub trait LanguageModel: Module {
    /// What is kept of the tokens read so far; the default is nothing.
    type Memory: Clone + Debug + Default;

    /// Number of tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// The most tokens that may be read in a row; `usize::MAX` where memory does not grow with the
    /// text.
    fn longest(&self) -> usize;

    /// Logits of the next token at every position.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, seq, vocab_size]`
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3>;

    /// Features of tokens that follow those in `memory`, which then holds them too.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    fn features_after(&self, tokens: Tensor<2, Int>, memory: &mut Self::Memory) -> Tensor<3>;

    /// Logits of the next token, read from features.
    ///
    /// # Shapes
    /// - features: `[batch, seq, d_model]`
    /// - output: `[batch, seq, vocab_size]`
    fn logits(&self, features: Tensor<3>) -> Tensor<3>;

    /// Logits of tokens that follow those in `memory`, which then holds them too: the same numbers
    /// as [`LanguageModel::forward`] over the whole text.
    ///
    /// # Shapes
    /// As [`LanguageModel::forward`].
    fn forward_after(&self, tokens: Tensor<2, Int>, memory: &mut Self::Memory) -> Tensor<3> {
        self.logits(self.features_after(tokens, memory))
    }

    /// Keeps the rows of a batch in memory at `rows`, in that order and as often as they stand there,
    /// `[kept]`.
    fn select(memory: &mut Self::Memory, rows: Tensor<1, Int>);

    /// What is minimised in training.
    ///
    /// # Shapes
    /// - inputs, targets: `[batch, seq]`, targets one token ahead
    fn training_loss(&self, inputs: Tensor<2, Int>, targets: Tensor<2, Int>) -> LanguageLoss {
        LanguageLoss::of(self.forward(inputs), targets)
    }

    /// [`LanguageModel::training_loss`] of texts that stand one after another in one row, without a
    /// look from one into another: the same as of each text on its own, each weighted by its length.
    ///
    /// # Shapes
    /// - inputs, targets: `[1, sum of lengths]`
    ///
    /// # Panics
    /// If the lengths do not sum to the row's.
    fn packed_loss(
        &self,
        inputs: Tensor<2, Int>,
        targets: Tensor<2, Int>,
        lengths: &[usize],
    ) -> LanguageLoss {
        let texts = inputs.split_with_sizes(lengths.to_vec(), 1);
        let logits = texts.into_iter().map(|text| self.forward(text));
        LanguageLoss::of(Tensor::cat(logits.collect(), 1), targets)
    }

    /// Who looks at whom in every block and head; `None` where there is no attention.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - `own` of the output: `[batch, n_heads, seq, seq]` of each block
    fn attention_maps(&self, _tokens: Tensor<2, Int>) -> Option<AttentionMaps> {
        None
    }
}

/// A training loss and what it is the sum of.
#[derive(Debug)]
pub struct LanguageLoss {
    /// What is minimised, `[1]`.
    pub total: Tensor<1>,
    /// Mean negative log-likelihood, in nats per token, `[1]`.
    pub text: Tensor<1>,
    /// How each block's experts were used; empty where there are none.
    pub routing: Vec<Routing>,
}

impl LanguageLoss {
    /// The loss of a model without experts.
    ///
    /// # Shapes
    /// - logits: `[batch, seq, vocab_size]`
    /// - targets: `[batch, seq]`
    pub fn of(logits: Tensor<3>, targets: Tensor<2, Int>) -> Self {
        let [batch, seq, vocab] = logits.dims();
        let text = cross_entropy(
            logits.reshape([batch * seq, vocab]),
            targets.reshape([batch * seq]),
        );
        Self {
            total: text.clone(),
            text,
            routing: Vec::new(),
        }
    }

    /// The mean over the blocks of what `of` reads off a routing, `[1]`; `None` without experts.
    fn mean(&self, of: impl Fn(&Routing) -> Tensor<1>) -> Option<Tensor<1>> {
        let sum = self.routing.iter().map(of).reduce(|a, b| a + b)?;
        Some(sum / self.routing.len() as f64)
    }

    /// The load-balance loss, mean over the blocks; even load gives the number of active experts.
    pub fn balance(&self) -> Option<Tensor<1>> {
        self.mean(|routing| routing.balance.clone())
    }

    /// The z-loss of the routers, mean over the blocks.
    pub fn z(&self) -> Option<Tensor<1>> {
        self.mean(|routing| routing.z.clone())
    }
}
