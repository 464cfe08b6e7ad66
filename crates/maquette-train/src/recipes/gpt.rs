//! `family = "gpt"`, `"recurrent"` or `"causal-conv"`: a language model on text. The networks differ
//! in their `[model]` alone.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use maquette_data::tokenizer::TokenizerConfig;
use maquette_data::{TokenSet, Tokenizer, Windows};
use maquette_eval::likelihood;
use maquette_generate::text::{GenerateOptions, complete};
use maquette_models::{
    CausalConvConfig, GptConfig, LanguageConfig, LanguageLoss, LanguageModel, RecurrentConfig, hf,
    nn::moe::Load,
};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};

use super::text::{Corpus, Reading, TextData, tensors};
use super::{EvaluateJob, Job, Outcome, validate};
use crate::files::write_atomic;
use crate::spec::PublishedNumbers;
use crate::{
    BoxError, Evaluation, LoopSpec, Loss, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit,
};

/// A recipe of a transformer.
pub type GptRecipe = LanguageRecipe<GptConfig>;
/// A recipe of a recurrent network.
pub type RecurrentRecipe = LanguageRecipe<RecurrentConfig>;
/// A recipe of a causal convolution.
pub type CausalConvRecipe = LanguageRecipe<CausalConvConfig>;

/// Everything about one language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "C: LanguageConfig")]
pub struct LanguageRecipe<C> {
    /// One line for listings.
    pub summary: String,
    /// `gpt`, `recurrent` or `causal-conv`.
    pub family: super::Family,
    /// Where text comes from.
    pub data: TextData,
    /// How it becomes tokens; learnt from the training text.
    pub tokenizer: TokenizerConfig,
    /// The network. `vocab_size` is the tokenizer's.
    #[serde(default)]
    pub model: C,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// The loop.
    pub train: LoopSpec,
    /// The texts written beside checkpoints.
    #[serde(default)]
    pub sample: TextSample,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

/// `[sample]` of a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextSample {
    /// What to go on from; a line end when empty.
    pub prompt: String,
    /// How many texts.
    pub count: usize,
    /// How long, and how each token is drawn.
    pub options: GenerateOptions,
}

impl Default for TextSample {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            count: 3,
            options: GenerateOptions::default(),
        }
    }
}

impl<C: LanguageConfig> LanguageRecipe<C> {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        let data = recipe.data.validate();
        data.map_err(|invalid| source.locate("data", invalid))?;
        let known = recipe.model.vocab_size().max(1);
        let sized = recipe.model.clone().with_vocab_size(known);
        source.check("model", sized.validate())?;
        Ok(recipe)
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            data: &self.data,
            tokenizer: &self.tokenizer,
            batch: self.train.batch,
            seq_len: self.model.seq_len(),
            seed: self.train.seed,
        }
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train<C: LanguageConfig>(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = LanguageRecipe::<C>::parse(&job.source)?;
    job.remember_data(&mut recipe.data.path);
    job.say("reading the text");
    let given = job.data_path(recipe.data.path.as_deref());
    let path = recipe.reading().path(given)?;
    let corpus = Corpus::open(recipe.reading(), path.as_deref())?;
    recipe.model = recipe.model.with_vocab_size(corpus.tokenizer.vocab_size());
    let recipe = recipe;
    let reading = recipe.reading();

    // 2. Model
    let device = job.device.clone().autodiff();
    let model = recipe
        .model
        .init(&device, &mut rng(reading.seed, Stream::Init, 0));

    // 3. Run folder, and the place in the stream when it is resumed
    let run = job.open_run(&recipe, &corpus.sha256)?;
    let Corpus {
        tokenizer,
        train: text,
        validation,
        validation_bytes,
        ..
    } = corpus;
    let mut text = text.resume(run.as_ref(), path.as_deref(), &tokenizer)?;
    let packed = reading.packing(&tokenizer)?;
    let held_out = HeldOut {
        tokens: &validation,
        bytes: validation_bytes,
        reading,
        device: &job.device.clone(),
        packed,
        alarm: RefCell::default(),
    };

    // 4. Loop
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(0),
        device: &device,
    };
    let batches = |step: u64| text.batch(reading, step);
    let loss = |model: &C::Model, windows: Windows, _| {
        let loss = loss_of(model, &windows, packed, &device);
        let mut parts = Vec::new();
        if let (Some(balance), Some(z)) = (loss.balance(), loss.z()) {
            parts = vec![("text", loss.text), ("balance", balance), ("router_z", z)];
        }
        Loss {
            total: loss.total,
            parts,
        }
    };
    let task = Task::new(batches, loss)
        .counting((reading.batch * reading.seq_len) as f64, "tokens")
        .validate(|model: &C::Model| held_out.measure(model))
        .sample(|model: &C::Model, step, folder: &Path| {
            samples(model, step, folder, &recipe, &tokenizer)
        });
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;
    if let Some(alarm) = held_out.alarm.take() {
        job.say(&alarm);
    }

    // 5. Save, measure, report
    let dir = run.dir().to_owned();
    let saved = recipe.model.save(&fitted.model, &dir);
    saved.map_err(TrainError::other)?;
    save_generation_config(&dir, &tokenizer, &recipe.sample.options)?;
    tokenizer
        .save(dir.join("tokenizer.json"))
        .map_err(TrainError::other)?;
    let metrics = prefixed(&fitted.validation);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

/// Measures a run's model on the held-out part of its text.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate<C: LanguageConfig>(
    source: &Source,
    job: EvaluateJob<'_>,
) -> Result<Evaluation, TrainError> {
    let recipe = LanguageRecipe::<C>::parse(source)?;
    let reading = recipe.reading();
    (job.say)("reading the text");
    let path = reading.path(job.data.as_deref().or(recipe.data.path.as_deref()))?;
    let corpus = Corpus::open(reading, path.as_deref())?;
    let (_, model) = C::load(&job.run, &job.device).map_err(TrainError::other)?;
    (job.say)("measuring");
    let tokens = &corpus.validation;
    let held_out = HeldOut {
        tokens,
        bytes: corpus.validation_bytes,
        reading,
        device: &job.device,
        packed: reading.packing(&corpus.tokenizer)?,
        alarm: RefCell::default(),
    };
    let metrics = held_out.measure(&model).map_err(TrainError::Other)?;
    if let Some(alarm) = held_out.alarm.take() {
        (job.say)(&alarm);
    }
    let mut evaluation = Evaluation::default();
    for (name, value) in prefixed(&metrics) {
        let how = format!(
            "tokens={}|windows=side-by-side|seq_len={}",
            tokens.len(),
            reading.seq_len
        );
        evaluation.put(
            &name,
            value,
            format!("{name}|{how}|split=last-{}", recipe.data.validation),
        );
    }
    Ok(evaluation)
}

fn prefixed(metrics: &Metrics) -> Metrics {
    metrics
        .iter()
        .map(|(name, value)| (format!("validation_{name}"), *value))
        .collect()
}

/// The loss of a batch; with `packed`, a window's documents, which that token closes, stay apart.
fn loss_of<M: LanguageModel>(
    model: &M,
    windows: &Windows,
    packed: Option<u32>,
    device: &Device,
) -> LanguageLoss {
    let (inputs, targets) = tensors(windows, device);
    let Some(end) = packed else {
        return model.training_loss(inputs, targets);
    };
    let rows = windows.inputs.chunks(windows.seq_len);
    let lengths = rows.flat_map(|row| row.split_inclusive(|token| *token == end).map(<[u32]>::len));
    let lengths: Vec<usize> = lengths.collect();
    let all = [1, windows.inputs.len()];
    model.packed_loss(inputs.reshape(all), targets.reshape(all), &lengths)
}

/// Held-out text and what is needed to measure a model on it.
struct HeldOut<'a> {
    tokens: &'a TokenSet,
    bytes: usize,
    reading: Reading<'a>,
    device: &'a Device,
    /// The token that closes a document, where documents are packed.
    packed: Option<u32>,
    /// What the last measurement found wrong with the routers.
    alarm: RefCell<Option<String>>,
}

impl HeldOut<'_> {
    /// Loss in nats per token over windows side by side, perplexity, bits per byte.
    fn measure<M: LanguageModel>(&self, model: &M) -> Result<Metrics, BoxError> {
        // As many windows at once as a step has: whoever chose a batch chose what fits.
        let Reading {
            data,
            seq_len,
            batch,
            ..
        } = self.reading;
        let limit = data
            .validation_windows
            .unwrap_or(usize::MAX)
            .saturating_mul(seq_len);
        let (mut nats, mut count) = (0.0, 0usize);
        let mut load = Load::default();
        for windows in self.tokens.coverage(batch, seq_len)? {
            if count >= limit {
                break;
            }
            let tokens = windows.inputs.len();
            let loss = loss_of(model, &windows, self.packed, self.device);
            nats += f64::from(loss.text.into_scalar::<f32>()) * tokens as f64;
            count += tokens;
            load.add(&loss.routing, tokens);
        }
        let loss = nats / count as f64;
        let bytes = self.bytes as f64 * count as f64 / self.tokens.len() as f64;
        let mut metrics = Metrics::from([
            ("loss".to_owned(), loss),
            ("perplexity".to_owned(), likelihood::perplexity(loss)),
            (
                "bits_per_byte".to_owned(),
                likelihood::bits_per_byte(nats, bytes.round() as usize)?,
            ),
        ]);
        // 1 when all experts are used alike; how many get next to nothing, in all blocks.
        if let Some(used) = load.used() {
            metrics.insert("experts_used".to_owned(), used);
            metrics.insert("experts_idle".to_owned(), load.idle() as f64);
        }
        self.alarm.replace(load.collapse());
        Ok(metrics)
    }
}

/// Writes `sample-N.txt`.
fn samples<C: LanguageConfig>(
    model: &C::Model,
    step: u64,
    folder: &Path,
    recipe: &LanguageRecipe<C>,
    tokenizer: &Tokenizer,
) -> Result<(), BoxError> {
    let prompt = &opening(tokenizer, &recipe.sample.prompt);
    let random = &mut rng(recipe.train.seed, Stream::Sample, step);
    // A long prompt is no reason to end a training: the model goes on from as much as it reads.
    let options = &GenerateOptions {
        truncate: true,
        ..recipe.sample.options.clone()
    };
    for i in 0..recipe.sample.count {
        let made = complete(model, tokenizer, prompt, options, random, |_| {
            ControlFlow::Continue(())
        })?;
        write_atomic(
            &folder.join(format!("sample-{i}.txt")),
            format!("{prompt}{}\n", made.text).as_bytes(),
        )?;
    }
    Ok(())
}

/// What to go on from: the prompt, or, where there is none, what usually stands before a text.
pub(super) fn opening(tokenizer: &Tokenizer, prompt: &str) -> String {
    if !prompt.is_empty() || tokenizer.end_of_text().is_some() {
        return prompt.to_owned();
    }
    let known = |text: &String| tokenizer.encode(text).is_ok_and(|ids| !ids.is_empty());
    let first = || tokenizer.decode(&[0]).ok().filter(known);
    Some("\n".to_owned())
        .filter(known)
        .or_else(first)
        .unwrap_or_default()
}

/// How the recipe draws tokens, in the form `transformers` reads.
fn save_generation_config(
    dir: &Path,
    tokenizer: &Tokenizer,
    options: &GenerateOptions,
) -> Result<(), TrainError> {
    let decoding = &options.decoding;
    let config = hf::GenerationConfig {
        eos_token_id: tokenizer.end_of_text().map(hf::TokenIds::One),
        do_sample: Some(decoding.temperature > 0.0),
        temperature: Some(decoding.temperature as f32).filter(|t| *t > 0.0),
        top_k: decoding.top_k,
        top_p: decoding.top_p.map(|p| p as f32),
        min_p: decoding.min_p.map(|p| p as f32),
        repetition_penalty: Some(decoding.repetition_penalty as f32),
        ..hf::GenerationConfig::default()
    };
    hf::save_generation_config(dir, &config).map_err(TrainError::other)
}
