//! `family = "gpt"`: a language model on text.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::stream::{TextStream, TextStreamConfig, TextStreamState};
use maquette_data::tokenizer::TokenizerConfig;
use maquette_data::{TokenSet, Tokenizer, Windows, stories, text};
use maquette_eval::likelihood;
use maquette_generate::text::{GenerateOptions, complete};
use maquette_models::gpt::{Gpt, GptConfig, GptLoss};
use maquette_models::{hf, nn::moe::Load};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};

use super::{EvaluateJob, Job, Outcome, validate};
use crate::files::write_atomic;
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    Batch, BoxError, Evaluation, LoopSpec, Loss, Metrics, OptimizerSpec, Plan, Run, ScheduleSpec,
    Source, Task, TrainError, fit,
};

/// Windows of held-out text that a streamed run is measured on, unless the recipe says otherwise.
const STREAMED_WINDOWS: usize = 1024;

/// Everything about one language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptRecipe {
    /// One line for listings.
    pub summary: String,
    /// `gpt`.
    pub family: super::Family,
    /// Where text comes from.
    pub data: TextData,
    /// How it becomes tokens; learnt from the training text.
    pub tokenizer: TokenizerConfig,
    /// The network. `vocab_size` is the tokenizer's.
    #[serde(default)]
    pub model: GptConfig,
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

/// Where text comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextSource {
    /// A text or JSONL file, or a folder of them; `--data` gives it.
    Path,
    /// Short stories from a grammar. No download.
    Stories,
}

/// `[data]` of a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextData {
    /// Where it comes from.
    pub source: TextSource,
    /// The path, for `source = "path"`; `--data` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How many stories, for `source = "stories"`.
    #[serde(default = "stories_count")]
    pub count: usize,
    /// The last share of the text is held out.
    #[serde(default = "tenth")]
    pub validation: f64,
    /// Read from disk while training, at constant memory.
    #[serde(default)]
    pub streaming: bool,
    /// Documents, each closed by the tokenizer's end-of-text token, do not look into each other
    /// where several stand in one window.
    #[serde(default)]
    pub packing: bool,
    /// Windows among which a streamed batch is drawn.
    #[serde(default = "buffer")]
    pub shuffle_buffer: usize,
    /// Windows of held-out text measured at a validation; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_windows: Option<usize>,
}

fn stories_count() -> usize {
    8000
}

fn tenth() -> f64 {
    0.1
}

fn buffer() -> usize {
    4096
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

impl GptRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        let invalid = |section: &str, invalid: Invalid| source.locate(section, invalid);
        let data = &recipe.data;
        if !(0.0 < data.validation && data.validation < 1.0) {
            let error = Invalid::new(
                "validation",
                "must lie between 0 and 1",
                "0.1 holds out a tenth",
            );
            return Err(invalid("data", error).into());
        }
        if data.packing && data.streaming {
            let help = "leave one of them out";
            let error = Invalid::new("packing", "does not go with streaming yet", help);
            return Err(invalid("data", error).into());
        }
        if data.shuffle_buffer == 0 || data.count == 0 {
            let error = Invalid::new(
                "shuffle_buffer",
                "shuffle_buffer and count must be at least 1",
                "try 4096",
            );
            return Err(invalid("data", error).into());
        }
        let sized = GptConfig {
            vocab_size: recipe.model.vocab_size.max(1),
            ..recipe.model.clone()
        };
        source.check("model", sized.validate())?;
        Ok(recipe)
    }
}

/// Text ready for a model.
struct Corpus {
    tokenizer: Arc<Tokenizer>,
    train: TrainText,
    validation: TokenSet,
    /// Bytes of the held-out text, for bits per byte.
    validation_bytes: usize,
    sha256: String,
}

/// Where training windows come from.
enum TrainText {
    /// Any window of text held in memory; a function of the step.
    Memory(TokenSet),
    /// Windows read from disk in the order of a shuffle buffer.
    Disk(Box<TextStream>),
}

impl TrainText {
    /// Goes on where `run` was, if text is streamed.
    fn resume(
        self,
        run: Option<&Run>,
        path: Option<&Path>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Result<Self, TrainError> {
        let (Self::Disk(_), Some(state), Some(path)) =
            (&self, run.and_then(Run::stream_state), path)
        else {
            return Ok(self);
        };
        let state: TextStreamState =
            serde_json::from_value(state.clone()).map_err(TrainError::other)?;
        let stream =
            TextStream::resume(path, tokenizer.clone(), state).map_err(TrainError::other)?;
        Ok(Self::Disk(Box::new(stream)))
    }

    /// The micro-batch `step` of the run.
    fn batch(&mut self, recipe: &GptRecipe, step: u64) -> Result<Batch<Windows>, BoxError> {
        let LoopSpec { batch, seed, .. } = recipe.train;
        match self {
            Self::Memory(tokens) => Ok(tokens
                .windows(batch, recipe.model.seq_len, seed, step)?
                .into()),
            Self::Disk(stream) => {
                let data = stream.next_batch()?;
                Ok(Batch {
                    data,
                    stream: Some(serde_json::to_value(stream.state())?),
                })
            }
        }
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = GptRecipe::parse(&job.source)?;
    job.remember_data(&mut recipe.data.path);
    job.say("reading the text");
    let path = text_path(&recipe, job.data_path(recipe.data.path.as_deref()))?;
    let corpus = Corpus::open(&recipe, path.as_deref())?;
    recipe.model.vocab_size = corpus.tokenizer.vocab_size();
    let (batch, seq_len, seed) = (recipe.train.batch, recipe.model.seq_len, recipe.train.seed);

    // 2. Model
    let device = job.device.clone().autodiff();
    let model = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));

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
    let packed = packing(&recipe, &tokenizer)?;
    let held_out = HeldOut {
        tokens: &validation,
        bytes: validation_bytes,
        recipe: &recipe,
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
    let batches = |step: u64| text.batch(&recipe, step);
    let loss = |model: &Gpt, windows: Windows, _| {
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
        .counting((batch * seq_len) as f64, "tokens")
        .validate(|model: &Gpt| held_out.measure(model))
        .sample(|model: &Gpt, step, folder: &Path| {
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
    hf::save(&dir, &recipe.model, &fitted.model).map_err(TrainError::other)?;
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
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = GptRecipe::parse(source)?;
    (job.say)("reading the text");
    let path = text_path(&recipe, job.data.as_deref().or(recipe.data.path.as_deref()))?;
    let corpus = Corpus::open(&recipe, path.as_deref())?;
    let (_, model) = hf::load(&job.run, &job.device).map_err(TrainError::other)?;
    (job.say)("measuring");
    let tokens = &corpus.validation;
    let held_out = HeldOut {
        tokens,
        bytes: corpus.validation_bytes,
        recipe: &recipe,
        device: &job.device,
        packed: packing(&recipe, &corpus.tokenizer)?,
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
            recipe.model.seq_len
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

/// The text on disk, if the recipe reads any. Streamed stories are written to a file first.
fn text_path(recipe: &GptRecipe, path: Option<&Path>) -> Result<Option<PathBuf>, TrainError> {
    let TextData {
        source,
        count,
        streaming,
        ..
    } = recipe.data;
    match source {
        TextSource::Path => Ok(Some(
            path.ok_or_else(super::sections::missing_path)?.to_owned(),
        )),
        TextSource::Stories if streaming => {
            let file = std::env::temp_dir().join(format!(
                "maquette-stories-{count}-{}.txt",
                recipe.train.seed
            ));
            write_atomic(
                &file,
                stories::generate(count, recipe.train.seed).as_bytes(),
            )?;
            Ok(Some(file))
        }
        TextSource::Stories => Ok(None),
    }
}

impl Corpus {
    /// Text, a tokenizer learnt from it, and what is held out.
    fn open(recipe: &GptRecipe, path: Option<&Path>) -> Result<Self, TrainError> {
        let data = &recipe.data;
        let whole = match path {
            Some(path) if data.streaming => return Self::stream(recipe, path),
            Some(path) => text::read(path).map_err(TrainError::other)?,
            None => stories::generate(data.count, recipe.train.seed),
        };
        let tokenizer = recipe
            .tokenizer
            .train(std::iter::once(Ok(whole.clone())))
            .map_err(TrainError::other)?;
        let tokens = match packing(recipe, &tokenizer)? {
            None => TokenSet::encode(&whole, &tokenizer).map_err(TrainError::other)?,
            Some(end) => documents(path, &whole, &tokenizer, end)?,
        };
        let (train, validation) = tokens.split(data.validation).map_err(TrainError::other)?;
        train
            .check(recipe.train.batch, recipe.model.seq_len)
            .map_err(TrainError::other)?;
        Self::new(
            tokenizer,
            TrainText::Memory(train),
            validation,
            tokens.hash(),
            recipe,
        )
    }

    /// A stream over files of any size. A learnt vocabulary comes from their first 32 MiB.
    fn stream(recipe: &GptRecipe, path: &Path) -> Result<Self, TrainError> {
        const PIECE: usize = 64 << 10;
        const PIECES: usize = 512;
        let files = text::files(path).map_err(TrainError::other)?;
        let head = text::pieces(&files, PIECE)
            .take(PIECES)
            .map(|piece| Ok(piece?.text));
        let tokenizer = Arc::new(recipe.tokenizer.train(head).map_err(TrainError::other)?);
        let config = TextStreamConfig {
            batch: recipe.train.batch,
            seq_len: recipe.model.seq_len,
            seed: recipe.train.seed,
            buffer: recipe.data.shuffle_buffer,
            holdout: recipe.data.validation,
            ..TextStreamConfig::default()
        };
        let mut stream =
            TextStream::open(path, tokenizer.clone(), config).map_err(TrainError::other)?;
        let windows = recipe.data.validation_windows.unwrap_or(STREAMED_WINDOWS);
        let validation = stream
            .holdout(windows * recipe.model.seq_len)
            .map_err(TrainError::other)?;
        let sha256 = stream.hash().to_owned();
        let tokenizer = Arc::unwrap_or_clone(tokenizer);
        Self::new(
            tokenizer,
            TrainText::Disk(Box::new(stream)),
            validation,
            sha256,
            recipe,
        )
    }

    fn new(
        tokenizer: Tokenizer,
        train: TrainText,
        validation: TokenSet,
        sha256: String,
        recipe: &GptRecipe,
    ) -> Result<Self, TrainError> {
        validation
            .check(1, recipe.model.seq_len)
            .map_err(TrainError::other)?;
        let validation_bytes = tokenizer
            .decode(&validation.tokens)
            .map_err(TrainError::other)?
            .len();
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            train,
            validation,
            validation_bytes,
            sha256,
        })
    }
}

/// The token that closes a document, where documents are packed.
fn packing(recipe: &GptRecipe, tokenizer: &Tokenizer) -> Result<Option<u32>, TrainError> {
    match (recipe.data.packing, tokenizer.end_of_text()) {
        (false, _) => Ok(None),
        (true, Some(end)) => Ok(Some(end)),
        (true, None) => Err(TrainError::other(
            "data.packing needs a token that closes a document; add \
             special_tokens = [\"<|endoftext|>\"] to [tokenizer]",
        )),
    }
}

/// The documents at `path` (files, JSONL lines) or the stories of `whole`, each closed by `end`.
fn documents(
    path: Option<&Path>,
    whole: &str,
    tokenizer: &Tokenizer,
    end: u32,
) -> Result<TokenSet, TrainError> {
    if let Some(path) = path {
        return TokenSet::open(path, tokenizer).map_err(TrainError::other);
    }
    let mut tokens = Vec::new();
    for story in whole.split("\n\n").filter(|story| !story.is_empty()) {
        tokens.extend(tokenizer.encode(story).map_err(TrainError::other)?);
        tokens.push(end);
    }
    Ok(TokenSet { tokens })
}

/// The loss of a batch; with `packed`, a window's documents, which that token closes, stay apart.
fn loss_of(model: &Gpt, windows: &Windows, packed: Option<u32>, device: &Device) -> GptLoss {
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

/// `[batch, seq_len]` inputs and targets.
fn tensors(windows: &Windows, device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let tensor = |ids: &[u32]| {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        Tensor::from_data(
            TensorData::new(ids, [windows.batch, windows.seq_len]),
            device,
        )
    };
    (tensor(&windows.inputs), tensor(&windows.targets))
}

/// Held-out text and what is needed to measure a model on it.
struct HeldOut<'a> {
    tokens: &'a TokenSet,
    bytes: usize,
    recipe: &'a GptRecipe,
    device: &'a Device,
    /// The token that closes a document, where documents are packed.
    packed: Option<u32>,
    /// What the last measurement found wrong with the routers.
    alarm: RefCell<Option<String>>,
}

impl HeldOut<'_> {
    /// Loss in nats per token over windows side by side, perplexity, bits per byte.
    fn measure(&self, model: &Gpt) -> Result<Metrics, BoxError> {
        const ROWS: usize = 32;
        let seq_len = self.recipe.model.seq_len;
        let limit = self
            .recipe
            .data
            .validation_windows
            .unwrap_or(usize::MAX)
            .saturating_mul(seq_len);
        let (mut nats, mut count) = (0.0, 0usize);
        let mut load = Load::default();
        for windows in self.tokens.coverage(ROWS, seq_len)? {
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
fn samples(
    model: &Gpt,
    step: u64,
    folder: &Path,
    recipe: &GptRecipe,
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
