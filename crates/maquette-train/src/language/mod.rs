//! Measuring any language model: its likelihood of a text, and few-shot tasks.
//!
//! A model is a run folder, a Hugging Face folder or a GGUF file. The definitions are
//! `maquette_eval`'s, the reading of passages `maquette_generate`'s; here they meet.

mod tasks;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use maquette_data::Tokenizer;
use maquette_eval::rolling::{Cut, Rolling, TextLikelihood, windows};
use maquette_generate::likelihood::Scorer;
use maquette_models::Gpt;
use serde_json::Value;

use crate::recipes::opening::{Tokens, language_model};
use crate::{Evaluation, TrainError};

pub use tasks::{TaskData, TaskSource, Tasked, TasksJob, story_rows, tasks};

/// A model with all that measuring it takes.
struct LanguageModel {
    model: Gpt,
    tokenizer: Tokenizer,
    /// The token that begins texts or, where there is none, ends them.
    begin: Option<u32>,
    /// Tokens that end a text.
    ends: Vec<u32>,
}

impl LanguageModel {
    fn open(path: &Path, device: &Device) -> Result<Self, TrainError> {
        let (model, tokens) = language_model(path, device)?;
        let Tokens {
            tokenizer,
            defaults,
            ..
        } = tokens;
        let ends = defaults
            .eos_token_id
            .map_or(Vec::new(), |ids| ids.ids().to_vec());
        let named =
            |key: &str| named_token(path, key).and_then(|name| tokenizer.token_to_id(&name));
        let begin = named("bos_token")
            .or_else(|| named("eos_token"))
            .or(defaults.bos_token_id)
            .or(ends.first().copied())
            .or_else(|| tokenizer.end_of_text());
        Ok(Self {
            model,
            tokenizer,
            begin,
            ends,
        })
    }

    /// The tokens of a text, with what the tokenizer's template puts around it.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        self.tokenizer
            .encode_with_template(text)
            .map_err(TrainError::other)
    }

    /// What signatures call the tokenizer: the beginning of its hash.
    fn tokenizer_name(&self) -> Result<String, TrainError> {
        let hash = self.tokenizer.hash().map_err(TrainError::other)?;
        Ok(hash[..12].to_owned())
    }
}

/// A special token by its role, as `tokenizer_config.json` names it.
fn named_token(folder: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("tokenizer_config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let token = &config[key];
    let name = token.as_str().or_else(|| token["content"].as_str());
    name.map(str::to_owned)
}

/// How likely a model finds a text.
pub struct TextJob<'a> {
    /// A run folder, a Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    /// The text.
    pub text: String,
    /// How it is cut into windows.
    pub rolling: Rolling,
    /// Tokens in a window; the model's longest context when absent.
    pub context: Option<usize>,
    /// Tokens from window to window; half a window when absent.
    pub stride: Option<usize>,
    /// Only these metrics; all when empty.
    pub metrics: Vec<String>,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// Told what is being done.
    pub say: &'a mut dyn FnMut(&str),
}

/// Measures a model on a text: nats per token (`loss`), perplexity per token, word and byte, bits per
/// byte.
///
/// # Errors
/// Not a language model, a text or window that is too short, a context longer than the model's, or an
/// unknown metric.
pub fn measure(job: TextJob<'_>) -> Result<Evaluation, TrainError> {
    (job.say)("loading the model");
    let model = LanguageModel::open(&job.model, &job.device)?;
    let longest = model.model.seq_len();
    let context = job.context.unwrap_or(longest);
    if context > longest {
        return Err(TrainError::other(format!(
            "a window of {context} tokens, but the model reads {longest} at most"
        )));
    }
    let template = model.encode("")?.first().copied();
    let cut = Cut {
        rolling: job.rolling,
        context,
        stride: job.stride.unwrap_or((context / 2).max(1)),
        begin: match job.rolling {
            Rolling::Strided => None,
            Rolling::Harness => model.begin,
            Rolling::Halves => template,
        },
    };
    let ids = model.encode(&job.text)?;
    let windows = windows(&ids, cut).map_err(TrainError::other)?;
    let mut scorer = Scorer::new(&model.model);
    let (mut nats, mut scored) = (0.0, 0);
    for (i, window) in windows.iter().enumerate() {
        (job.say)(&format!("window {} of {}", i + 1, windows.len()));
        let target = &ids[window.target.clone()];
        let scores = scorer
            .score(&window.context, target)
            .map_err(TrainError::other)?;
        nats -= scores.iter().map(|score| score.log_prob).sum::<f64>();
        scored += scores.len();
    }
    let likelihood = TextLikelihood::new(&job.text, ids.len(), nats, scored);
    let metrics = likelihood
        .and_then(|l| l.metrics())
        .map_err(TrainError::other)?;
    let tokenizer = model.tokenizer_name()?;
    let mut evaluation = Evaluation::default();
    for (name, value) in metrics {
        let signature = cut.signature(name, &tokenizer, scored);
        evaluation.put(name, value, signature.to_string());
    }
    evaluation.keep(&job.metrics)
}
