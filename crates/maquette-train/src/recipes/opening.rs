//! What a language model goes on from, and how its folder or file turns that into tokens.

use std::path::Path;

use burn::tensor::Device;
use maquette_data::Tokenizer;
use maquette_generate::engine::Weights;
use maquette_generate::gguf as of_file;
use maquette_generate::template::{Chat, ChatTemplate};
use maquette_generate::text::{GenerateOptions, encode_prompt};
use maquette_models::{Gpt, RawWeights, gguf, hf};

use super::gpt;
use crate::TrainError;

/// What a text goes on from.
pub enum Opening {
    /// This text; the recipe's when absent.
    Prompt(Option<String>),
    /// These messages, written with the model's chat template or this one.
    Chat(Chat, Option<String>),
}

impl Opening {
    /// The text, if it is one and not messages.
    pub(super) fn prompt(self) -> Option<String> {
        match self {
            Self::Prompt(prompt) => prompt,
            Self::Chat(..) => None,
        }
    }
}

/// How a model spells, ends a text and is spoken to.
pub(crate) struct Tokens {
    pub(crate) tokenizer: Tokenizer,
    /// The tokens that begin and end a text.
    pub(crate) defaults: hf::GenerationConfig,
    template: Option<ChatTemplate>,
}

impl Tokens {
    /// What a model's folder says about tokens.
    ///
    /// # Errors
    /// A damaged file, or more tokens than the `rows` of the model's embedding.
    pub(super) fn of_folder(dir: &Path, rows: usize) -> Result<Self, TrainError> {
        let tokens = Self {
            tokenizer: Tokenizer::load(dir).map_err(TrainError::other)?,
            defaults: hf::load_generation_config(dir).map_err(TrainError::other)?,
            template: ChatTemplate::load(dir).map_err(TrainError::other)?,
        };
        tokens.fitting(dir, rows)
    }

    /// What the file says about tokens.
    ///
    /// # Errors
    /// As [`Tokens::of_folder`], or none.
    fn of_gguf(path: &Path, file: &gguf::File, rows: usize) -> Result<Self, TrainError> {
        let tokenizer = of_file::tokenizer(file).map_err(TrainError::other)?;
        let tokenizer = tokenizer.ok_or_else(|| {
            TrainError::other(format!(
                "{} holds no tokenizer; convert the model again with --tokenizer",
                path.display()
            ))
        })?;
        let tokens = Self {
            tokenizer,
            defaults: of_file::generation_config(file),
            template: ChatTemplate::of_gguf(file).map_err(TrainError::other)?,
        };
        tokens.fitting(path, rows)
    }

    fn fitting(self, path: &Path, rows: usize) -> Result<Self, TrainError> {
        let known = self.tokenizer.vocab_size();
        match known > rows {
            true => Err(TrainError::other(format!(
                "{}: the tokenizer has {known} tokens, the model's embedding only {rows}; they do not \
                 belong together",
                path.display()
            ))),
            false => Ok(self),
        }
    }

    /// Ends texts where the model does.
    pub(super) fn end(&self, options: &mut GenerateOptions) {
        let ends = self.defaults.eos_token_id.iter();
        options.end_tokens.extend(ends.flat_map(hf::TokenIds::ids));
    }

    /// The tokens of an opening, and the text that a reader sees of it.
    pub(super) fn open(
        &self,
        opening: Opening,
        default_prompt: String,
    ) -> Result<(Vec<u32>, String), TrainError> {
        let (chat, source) = match opening {
            Opening::Prompt(prompt) => {
                let prompt = prompt.unwrap_or(default_prompt);
                let start = gpt::opening(&self.tokenizer, &prompt);
                let ids = encode_prompt(&self.tokenizer, &start).map_err(TrainError::other)?;
                return Ok((ids, prompt));
            }
            Opening::Chat(chat, source) => (chat, source),
        };
        let own = self.template.as_ref();
        let given = source.map(|source| {
            let tokens = own.map(ChatTemplate::tokens).cloned().unwrap_or_default();
            ChatTemplate::new(&source, tokens).map_err(TrainError::other)
        });
        let given = given.transpose()?;
        let template = given.as_ref().or(own).ok_or_else(|| {
            TrainError::other(
                "the model has no chat template (chat_template.jinja, or `chat_template` in \
                 tokenizer_config.json or the GGUF file); give one with --chat-template FILE, or use \
                 --prompt",
            )
        })?;
        let text = template.render(&chat).map_err(TrainError::other)?;
        let ids = self.tokenizer.encode(&text).map_err(TrainError::other)?;
        Ok((ids, String::new()))
    }
}

/// Whether this is a file by that name.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.is_file()
        && path
            .extension()
            .is_some_and(|extension| extension == "gguf")
}

/// A transformer with its tokens, from a folder or a GGUF file.
pub(crate) fn language_model(path: &Path, device: &Device) -> Result<(Gpt, Tokens), TrainError> {
    if !is_gguf(path) {
        let (_, model) = hf::load(path, device).map_err(TrainError::other)?;
        let tokens = Tokens::of_folder(path, model.vocab_size())?;
        return Ok((model, tokens));
    }
    let file = gguf::File::open(path).map_err(TrainError::other)?;
    let (_, model) = gguf::load(&file, device).map_err(TrainError::other)?;
    let tokens = Tokens::of_gguf(path, &file, model.vocab_size())?;
    Ok((model, tokens))
}

/// The same for the engine: weights stay where and as they lie in their file.
pub(super) fn engine_weights(path: &Path) -> Result<(Weights, Tokens), TrainError> {
    if !is_gguf(path) {
        let weights = Weights::open(path).map_err(TrainError::other)?;
        let tokens = Tokens::of_folder(path, weights.config().vocab_size)?;
        return Ok((weights, tokens));
    }
    let file = gguf::File::open(path).map_err(TrainError::other)?;
    let weights = RawWeights::gguf(&file).and_then(Weights::of_raw);
    let weights = weights.map_err(TrainError::other)?;
    let tokens = Tokens::of_gguf(path, &file, weights.config().vocab_size)?;
    Ok((weights, tokens))
}
