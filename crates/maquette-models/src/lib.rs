//! Generative models: one family, one chapter, each with its configuration, network and loss.
//!
//! Configurations are plain serde structures that stand in recipes as tables. `validate` reports
//! what is wrong with one; `init` draws its weights from a passed generator.

pub mod bag_of_words;
pub mod bert;
pub mod causal_conv;
pub mod classifier;
pub mod diffusion;
pub mod encoder_decoder;
pub mod error;
pub mod features;
pub mod gan;
pub mod gguf;
pub mod gpt;
pub mod hf;
pub mod in_context;
pub mod language;
pub mod llama2c;
pub mod mask_predict;
pub mod perceptron;
pub mod raw;
pub mod recurrent;
pub mod store;
pub mod vae;

pub use bag_of_words::{BagOfWords, BagOfWordsConfig};
pub use bert::{Bert, BertConfig, BertHead, BertInput};
pub use causal_conv::{CausalConv, CausalConvConfig};
pub use classifier::{Classifier, ClassifierConfig};
pub use diffusion::{
    Diffusion, DiffusionConfig, NoiseSchedule, Prediction, Target,
    mlp::{DenoiserMlp, DenoiserMlpConfig},
    unet::{UNet, UNetConfig},
};
pub use encoder_decoder::{EncoderDecoder, EncoderDecoderConfig};
pub use error::ModelError;
pub use gan::{Gan, GanConfig};
pub use gpt::{Gpt, GptConfig};
pub use in_context::{InContext, InContextConfig};
pub use language::{LanguageConfig, LanguageLoss, LanguageModel};
pub use maquette_nn as nn;
pub use mask_predict::{MaskPredict, MaskedAnswers, Refinement, SpecialTokens};
pub use raw::{RawTensor, RawWeights};
pub use recurrent::{Cell, Recurrent, RecurrentConfig};
pub use vae::{Vae, VaeConfig, VaeLoss};
