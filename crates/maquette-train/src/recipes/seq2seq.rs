//! `family = "seq2seq"`: an encoder-decoder that reads one short text and writes another.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::pairs::{self, Pair, PairTask, Part};
use maquette_data::spans::{SpanCorruption, sentinel};
use maquette_data::tokenizer::{TokenizerConfig, TokenizerKind};
use maquette_data::{TokenSet, Tokenizer, stories, text};
use maquette_eval::likelihood;
use maquette_generate::text::StopReason;
use maquette_models::encoder_decoder::padded;
use maquette_models::{EncoderDecoder, EncoderDecoderConfig, hf};
use maquette_rng::rand::RngExt as _;
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::generate::{GenerateJob, Made};
use super::{EvaluateJob, Job, Outcome, test_metrics, validate, weights};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    BoxError, Evaluation, LoopSpec, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit, hash,
};

/// Filling, the token before an answer, and the one after it, in the order of their ids.
const SPECIAL: [&str; 3] = ["<pad>", "<s>", "</s>"];
/// How many stories spans are hidden in, where no text is given.
const STORIES: usize = 4000;
/// Held-out pairs measured at once.
const ROWS: usize = 100;

/// Everything about one encoder-decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seq2seqRecipe {
    /// One line for listings.
    pub summary: String,
    /// `seq2seq`.
    pub family: super::Family,
    /// The pairs.
    pub data: Seq2seqData,
    /// The network. `vocab_size` is that of the characters in the pairs.
    #[serde(default)]
    pub model: EncoderDecoderConfig,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// The loop.
    pub train: LoopSpec,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

/// What an encoder-decoder learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Letters, to be written backwards.
    Reverse,
    /// A date as people write it, to be written as ISO 8601 does.
    Dates,
    /// A date as ISO 8601 writes it, to be written as people do, in any of eight ways.
    DateForms,
    /// The hidden spans of a text (Raffel et al. 2020), see [`SpanCorruption`].
    Spans,
}

/// `[data]` of an encoder-decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seq2seqData {
    /// What is asked: `reverse`, `dates`, `date-forms` or `spans`.
    pub task: Objective,
    /// The text in which spans are hidden; `--data` stands for it. Stories if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How spans are hidden.
    #[serde(default)]
    pub spans: SpanCorruption,
    /// Size of the byte-pair vocabulary of `spans`.
    #[serde(default = "vocab_size")]
    pub vocab_size: usize,
    /// How many pairs to learn from.
    #[serde(default = "count")]
    pub count: usize,
    /// How many others to be measured on.
    #[serde(default = "held_out")]
    pub held_out: usize,
}

fn count() -> usize {
    50_000
}

fn held_out() -> usize {
    1000
}

fn vocab_size() -> usize {
    1000
}

impl Seq2seqData {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(fault) = self.spans.fault() {
            return Err(Invalid::new(
                "spans",
                fault,
                "T5's are share 0.15, mean_length 3",
            ));
        }
        counts(self.count, self.held_out)
    }

    /// The pairs of a generator, if they come from one.
    fn pairs(&self) -> Option<PairData> {
        let task = match self.task {
            Objective::Reverse => PairTask::Reverse,
            Objective::Dates => PairTask::Dates,
            Objective::DateForms => PairTask::DateForms,
            Objective::Spans => return None,
        };
        Some(PairData {
            task,
            count: self.count,
            held_out: self.held_out,
        })
    }
}

/// Pairs out of a generator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairData {
    /// What is asked: `reverse`, `dates` or `date-forms`.
    pub task: PairTask,
    /// How many pairs to learn from.
    #[serde(default = "count")]
    pub count: usize,
    /// How many others to be measured on.
    #[serde(default = "held_out")]
    pub held_out: usize,
}

impl PairData {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        counts(self.count, self.held_out)
    }
}

fn counts(count: usize, held_out: usize) -> Result<(), Invalid> {
    if count == 0 || held_out == 0 {
        let what = "count and held_out must be at least 1";
        return Err(Invalid::new("count", what, "try 50000 and 1000"));
    }
    Ok(())
}

impl Seq2seqRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        let data = recipe.data.validate();
        data.map_err(|invalid| source.locate("data", invalid))?;
        let sized = EncoderDecoderConfig {
            vocab_size: recipe.model.vocab_size.max(1),
            ..recipe.model.clone()
        };
        source.check("model", sized.validate())?;
        Ok(recipe)
    }

    fn corpus(&self, path: Option<&Path>) -> Result<Corpus, TrainError> {
        match self.data.pairs() {
            Some(pairs) => Corpus::open(pairs, SPECIAL, self.model.seq_len, self.train.seed),
            None => Corpus::spans(self, path),
        }
    }
}

/// A pair in tokens.
#[derive(Clone)]
pub(super) struct Ids {
    pub(super) source: Vec<u32>,
    pub(super) target: Vec<u32>,
    /// Bytes of text that the target spells.
    pub(super) bytes: usize,
}

/// Pairs ready for a model.
pub(super) struct Corpus {
    /// What generated the pairs, if they were.
    task: Option<PairTask>,
    pub(super) tokenizer: Tokenizer,
    pub(super) train: Vec<Ids>,
    pub(super) held_out: Vec<Ids>,
    pub(super) sha256: String,
}

impl Corpus {
    /// Pairs with characters for tokens after the `special` ones, none longer than a model of
    /// `seq_len` reads with one of those.
    pub(super) fn open(
        data: PairData,
        special: [&str; 3],
        seq_len: usize,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let PairData {
            task,
            count,
            held_out,
        } = data;
        let train = pairs::generate(task, Part::Train, count, seed);
        let held_out = pairs::generate(task, Part::HeldOut, held_out, seed);
        let all = train.iter().chain(&held_out);
        let text: String = all
            .flat_map(|pair| [&*pair.source, &*pair.target])
            .collect();
        let config = TokenizerConfig {
            kind: TokenizerKind::Char,
            special_tokens: special.map(str::to_owned).to_vec(),
            ..TokenizerConfig::default()
        };
        let sha256 = hash::sha256(text.as_bytes());
        let tokenizer = config
            .train(std::iter::once(Ok(text)))
            .map_err(TrainError::other)?;
        let ids = |pairs: &[Pair]| -> Result<Vec<Ids>, TrainError> {
            let encode = |text: &str| tokenizer.encode(text).map_err(TrainError::other);
            let each = pairs.iter().map(|pair| {
                let ids = Ids {
                    source: encode(&pair.source)?,
                    target: encode(&pair.target)?,
                    bytes: pair.target.len(),
                };
                let n = ids.source.len().max(ids.target.len()) + 1;
                if n > seq_len {
                    return Err(TrainError::other(format!(
                        "model.seq_len = {seq_len} is too short for a text of {n} tokens"
                    )));
                }
                Ok(ids)
            });
            each.collect()
        };
        Ok(Self {
            train: ids(&train)?,
            held_out: ids(&held_out)?,
            task: Some(task),
            tokenizer,
            sha256,
        })
    }

    /// Windows of a text with hidden spans, in byte pairs. The last tenth of the text is held out.
    fn spans(recipe: &Seq2seqRecipe, path: Option<&Path>) -> Result<Self, TrainError> {
        let (data, seed, seq_len) = (&recipe.data, recipe.train.seed, recipe.model.seq_len);
        let whole = match path {
            Some(path) => text::read(path).map_err(TrainError::other)?,
            None => stories::generate(STORIES, seed),
        };
        let sentinels = (0..=data.spans.spans(seq_len)).map(sentinel);
        let config = TokenizerConfig {
            kind: TokenizerKind::Bpe,
            vocab_size: data.vocab_size,
            special_tokens: SPECIAL
                .map(str::to_owned)
                .into_iter()
                .chain(sentinels.clone())
                .collect(),
            ..TokenizerConfig::default()
        };
        let tokenizer = config
            .train(std::iter::once(Ok(whole.clone())))
            .map_err(TrainError::other)?;
        let sentinels: Vec<u32> = sentinels
            .filter_map(|name| tokenizer.token_to_id(&name))
            .collect();
        let tokens = TokenSet::encode(&whole, &tokenizer).map_err(TrainError::other)?;
        let (train, held_out) = tokens.split(0.1).map_err(TrainError::other)?;
        let corrupt = |set: &TokenSet, count: usize, part: u64| {
            let windows = set
                .windows(count, seq_len, seed, part)
                .map_err(TrainError::other)?;
            let random = &mut rng(seed, Stream::Noise, part);
            let each = windows.inputs.chunks(seq_len).map(|window| {
                let (source, target) = data.spans.apply(window, &sentinels, random);
                let hidden = tokenizer
                    .decode_visible(&target)
                    .map_err(TrainError::other)?;
                Ok(Ids {
                    bytes: hidden.len(),
                    source,
                    target,
                })
            });
            each.collect::<Result<Vec<_>, TrainError>>()
        };
        Ok(Self {
            train: corrupt(&train, data.count, 0)?,
            held_out: corrupt(&held_out, data.held_out, 1)?,
            sha256: tokens.hash(),
            task: None,
            tokenizer,
        })
    }

    /// Whether `answer` is right for `pair`.
    pub(super) fn accepts(&self, pair: &Ids, answer: &[u32]) -> Result<bool, TrainError> {
        let (false, Some(task)) = (answer == pair.target, self.task) else {
            return Ok(answer == pair.target);
        };
        let text = |ids| self.tokenizer.decode(ids).map_err(TrainError::other);
        let spelled = Pair {
            source: text(&pair.source)?,
            target: text(&pair.target)?,
        };
        Ok(spelled.accepts(task, &text(answer)?))
    }

    /// `count` pairs to learn from, drawn for `step`.
    pub(super) fn draw(&self, count: usize, seed: u64, step: u64) -> Vec<&Ids> {
        let random = &mut rng(seed, Stream::Shuffle, step);
        let n = self.train.len();
        let one = |_| &self.train[random.random_range(0..n)];
        (0..count).map(one).collect()
    }
}

/// The ids of the special tokens.
#[derive(Clone, Copy)]
struct Special {
    pad: u32,
    start: u32,
    end: u32,
}

impl Special {
    fn of(tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let id = |token: &str| {
            let missing = || TrainError::other(format!("the tokenizer has no {token}"));
            tokenizer.token_to_id(token).ok_or_else(missing)
        };
        let [pad, start, end] = SPECIAL;
        Ok(Self {
            pad: id(pad)?,
            start: id(start)?,
            end: id(end)?,
        })
    }
}

/// Pairs side by side, filled up to the longest.
struct Rows {
    sources: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    special: Special,
}

impl Rows {
    fn new<'a>(pairs: impl Iterator<Item = &'a Ids>, special: Special) -> Self {
        let (sources, targets) = pairs
            .map(|pair| (pair.source.clone(), pair.target.clone()))
            .unzip();
        Self {
            sources,
            targets,
            special,
        }
    }

    fn loss(&self, model: &EncoderDecoder, device: &Device) -> Tensor<1> {
        let (sources, mask) = padded(&self.sources, self.special.pad, device);
        let memory = model.encode(sources, Some(mask));
        let Special { start, end, .. } = self.special;
        let late = |target: &Vec<u32>| [&[start], &target[..]].concat();
        let inputs: Vec<Vec<u32>> = self.targets.iter().map(late).collect();
        let (inputs, _) = padded(&inputs, self.special.pad, device);
        let [_, width] = inputs.dims();
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, target) in self.targets.iter().enumerate() {
            places.extend((0..=target.len()).map(|at| (row * width + at) as i32));
            targets.extend(target.iter().chain([&end]).map(|id| *id as i32));
        }
        let numbers = |values: Vec<i32>| {
            let n = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [n]), device)
        };
        model.loss(&memory, inputs, numbers(places), numbers(targets))
    }

    /// The likeliest answers, token by token.
    fn answers(&self, model: &EncoderDecoder, device: &Device) -> Vec<Vec<u32>> {
        let (sources, mask) = padded(&self.sources, self.special.pad, device);
        let memory = model.encode(sources, Some(mask));
        let Special { start, end, .. } = self.special;
        model.greedy(&memory, start, end, model.seq_len())
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = Seq2seqRecipe::parse(&job.source)?;
    job.say("making the pairs");
    job.remember_data(&mut recipe.data.path);
    let path: Option<PathBuf> = job.data_path(recipe.data.path.as_deref()).map(Into::into);
    let corpus = recipe.corpus(path.as_deref())?;
    let special = Special::of(&corpus.tokenizer)?;
    recipe.model.vocab_size = corpus.tokenizer.vocab_size();
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);

    // 2. Model
    let device = job.device.clone().autodiff();
    let model = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));
    let run = job.open_run(&recipe, &corpus.sha256)?;

    // 3. Loop
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(corpus.train.len()),
        device: &device,
    };
    let batches = |step: u64| {
        let pairs = corpus.draw(batch, seed, step);
        Ok(Rows::new(pairs.into_iter(), special).into())
    };
    let loss = |model: &EncoderDecoder, rows: Rows, _| rows.loss(model, &device).into();
    let inner = job.device.clone();
    let task = Task::new(batches, loss)
        .counting(batch as f64, "pairs")
        .validate(|model: &EncoderDecoder| measure(model, &corpus, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, report
    let dir = run.dir().to_owned();
    if recipe.model.relative.is_some() {
        hf::save_t5(&dir, &recipe.model, &fitted.model).map_err(TrainError::other)?;
    } else {
        let config = json!({ "architecture": "encoder-decoder", "model": recipe.model });
        weights::save(&fitted.model, &config, &dir)?;
    }
    corpus
        .tokenizer
        .save(dir.join("tokenizer.json"))
        .map_err(TrainError::other)?;
    let metrics = test_metrics(&fitted.validation);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

fn load(recipe: &Seq2seqRecipe, dir: &Path, device: &Device) -> Result<EncoderDecoder, TrainError> {
    if recipe.model.relative.is_some() {
        let (_, model) = hf::load_t5(dir, device).map_err(TrainError::other)?;
        return Ok(model);
    }
    let empty = recipe.model.init(device, &mut rng(0, Stream::Init, 0));
    weights::load(empty, dir)
}

/// Measures a run's model on the held-out pairs.
///
/// # Errors
/// No weights.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = Seq2seqRecipe::parse(source)?;
    let path = job.data.as_deref().or(recipe.data.path.as_deref());
    let corpus = recipe.corpus(path)?;
    let model = load(&recipe, &job.run, &job.device)?;
    let metrics = measure(&model, &corpus, &job.device).map_err(TrainError::Other)?;
    let mut evaluation = Evaluation::default();
    for (name, value) in test_metrics(&metrics) {
        let how = format!(
            "{name}|n={}|decoding=greedy|split=held-out",
            corpus.held_out.len()
        );
        evaluation.put(&name, value, how);
    }
    Ok(evaluation)
}

/// Loss in nats per token, bits per byte of the answers, and the share that is right to the last
/// character.
fn measure(model: &EncoderDecoder, corpus: &Corpus, device: &Device) -> Result<Metrics, BoxError> {
    let special = Special::of(&corpus.tokenizer)?;
    let (mut nats, mut count, mut right, mut bytes) = (0.0, 0usize, 0usize, 0usize);
    for pairs in corpus.held_out.chunks(ROWS) {
        let rows = Rows::new(pairs.iter(), special);
        let tokens: usize = rows.targets.iter().map(|target| target.len() + 1).sum();
        nats += f64::from(rows.loss(model, device).into_scalar::<f32>()) * tokens as f64;
        count += tokens;
        bytes += pairs.iter().map(|pair| pair.bytes).sum::<usize>();
        let answers = rows.answers(model, device);
        for (pair, answer) in pairs.iter().zip(&answers) {
            right += usize::from(corpus.accepts(pair, answer)?);
        }
    }
    Ok(Metrics::from([
        ("loss".to_owned(), nats / count as f64),
        (
            "bits_per_byte".to_owned(),
            likelihood::bits_per_byte(nats, bytes)?,
        ),
        (
            "exact".to_owned(),
            right as f64 / corpus.held_out.len() as f64,
        ),
    ]))
}

/// The answer to the prompt.
pub(super) fn generate(source: &Source, job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    let recipe = Seq2seqRecipe::parse(source)?;
    (job.say)("loading the model");
    let model = load(&recipe, &job.model, &job.device)?;
    let tokenizer = Tokenizer::load(&job.model).map_err(TrainError::other)?;
    let prompt = job.text.opening.prompt();
    let prompt = prompt
        .filter(|prompt| !prompt.is_empty())
        .ok_or_else(|| TrainError::other("answer what? give the text to read with --prompt"))?;
    let source = tokenizer.encode(&prompt).map_err(TrainError::other)?;
    if source.len() > model.seq_len() {
        return Err(TrainError::other(format!(
            "the prompt has {} tokens, {} more than the model reads",
            source.len(),
            source.len() - model.seq_len()
        )));
    }
    let pair = Ids {
        source,
        target: Vec::new(),
        bytes: 0,
    };
    let rows = Rows::new(std::iter::once(&pair), Special::of(&tokenizer)?);
    let ids = rows.answers(&model, &job.device).remove(0);
    let text = tokenizer.decode(&ids).map_err(TrainError::other)?;
    let _ = (job.on_text)(&text);
    let _ = (job.on_text)("\n");
    Ok(vec![Made::Text {
        prompt,
        text,
        ids,
        stop: StopReason::EndToken,
        in_form: true,
        log_probs: Default::default(),
    }])
}
