//! `family = "finetune"`: a BERT that was trained already learns to class texts, to tag words, or to
//! find answers in a context (Devlin et al. 2018, arXiv:1810.04805, section 4).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::labelled::{self, Answered, Classified, Tagged};
use maquette_data::segments::{Frame, Row};
use maquette_data::{Tokenizer, stories, text};
use maquette_eval::bootstrap::bootstrap;
use maquette_eval::classification::Confusion;
use maquette_eval::text::{exact_match, token_f1};
use maquette_models::bert::{Bert, BertConfig, BertHead, BertInput};
use maquette_models::nn::attention::padding_bias;
use maquette_models::nn::cross_entropy;
use maquette_models::{BagOfWords, BagOfWordsConfig, hf};
use maquette_rng::rand::RngExt as _;
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{EvaluateJob, Job, Outcome, test_metrics, validate, weights};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    BoxError, Evaluation, LoopSpec, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit, hash,
};

/// Held-out examples measured at once.
const ROWS: usize = 64;
/// Answers of more tokens than this are not considered.
const LONGEST_ANSWER: usize = 30;
/// Of the intervals in the metrics.
const RESAMPLES: usize = 1000;

/// Everything about one fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneRecipe {
    /// One line for listings.
    pub summary: String,
    /// `finetune`.
    pub family: super::Family,
    /// The folder of the BERT to begin with: a run, or a published one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// What reads the examples.
    #[serde(default)]
    pub reader: ReaderKind,
    /// The examples.
    pub data: LabelledData,
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

/// What reads the examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReaderKind {
    /// The BERT of `init`, all of it trained on.
    #[default]
    Bert,
    /// A BERT of the same size that knows nothing yet.
    FreshBert,
    /// How often each token of the same vocabulary stands in a text; classes only.
    BagOfWords,
}

/// What is to be learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelledTask {
    /// The class of a text: `text`, `label`.
    Classify,
    /// The tag of every word: `tokens`, `tags`.
    Tag,
    /// The answer in a context: `question`, `context`, `answer`.
    Answer,
}

/// Where the examples come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelledSource {
    /// A JSONL file.
    Path,
    /// Classes: sentences in which two neighbouring words changed places, or not; of a text or, where
    /// there is no path, of stories.
    BigramShift,
    /// Tags: the hero and the friends of stories.
    Heroes,
    /// Answers: where people went.
    Whereabouts,
}

/// `[data]` of a fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelledData {
    /// What is to be learnt.
    pub task: LabelledTask,
    /// Where the examples come from.
    pub source: LabelledSource,
    /// The path; `--data` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How many examples are made, or how many stories they are made of.
    #[serde(default = "thousand")]
    pub count: usize,
    /// The last share of the examples is held out.
    #[serde(default = "fifth")]
    pub validation: f64,
}

fn thousand() -> usize {
    1000
}

fn fifth() -> f64 {
    0.2
}

impl FinetuneRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        let data = &recipe.data;
        let invalid = |key, what: &str, help: &str| {
            TrainError::from(source.locate("data", Invalid::new(key, what, help)))
        };
        if !(0.0 < data.validation && data.validation < 1.0) || data.count == 0 {
            let what = "validation must lie between 0 and 1, count be at least 1";
            return Err(invalid("validation", what, "0.2 holds out a fifth"));
        }
        let fits = match data.source {
            LabelledSource::Path => true,
            LabelledSource::BigramShift => data.task == LabelledTask::Classify,
            LabelledSource::Heroes => data.task == LabelledTask::Tag,
            LabelledSource::Whereabouts => data.task == LabelledTask::Answer,
        };
        if !fits {
            let help = "bigram-shift is to classify, heroes to tag, whereabouts to answer";
            return Err(invalid("source", "does not fit the task", help));
        }
        if recipe.reader == ReaderKind::BagOfWords && data.task != LabelledTask::Classify {
            let what = "a bag of words has classes only";
            return Err(invalid("task", what, "take task = \"classify\""));
        }
        Ok(recipe)
    }

    fn init(&self) -> Result<&Path, TrainError> {
        self.init.as_deref().ok_or_else(|| {
            TrainError::other(
                "which BERT to begin with? train one (maquette train bert-wikitext) and name its \
                 folder with --set init=\"runs/bert-...\"",
            )
        })
    }
}

/// What is to be found in one row.
#[derive(Debug, Clone, PartialEq)]
enum Target {
    Class(u32),
    /// A place in the row and a tag, for every word.
    Tags(Vec<(usize, u32)>),
    Answer {
        /// The first and last token of the answer.
        ends: [usize; 2],
        /// The first place of the context in the row.
        context: usize,
        /// The context, and where in it each of its tokens stands.
        text: String,
        bytes: Vec<std::ops::Range<usize>>,
        answer: String,
    },
}

/// One example in tokens.
struct Item {
    row: Row,
    target: Target,
}

/// Examples ready for a model.
struct Examples {
    tokenizer: Tokenizer,
    /// The names of classes or tags.
    names: Vec<String>,
    train: Vec<Item>,
    held_out: Vec<Item>,
    sha256: String,
}

impl Examples {
    fn open(
        recipe: &FinetuneRecipe,
        seq_len: usize,
        path: Option<&Path>,
    ) -> Result<Self, TrainError> {
        let tokenizer = Tokenizer::load(recipe.init()?).map_err(TrainError::other)?;
        let frame = Frame::of(&tokenizer)
            .ok_or_else(|| TrainError::other("the tokenizer of `init` has no [CLS] and [SEP]"))?;
        let encode = Encode {
            tokenizer: &tokenizer,
            frame,
            seq_len,
        };
        let (data, seed) = (&recipe.data, recipe.train.seed);
        let needed = || path.ok_or_else(super::sections::missing_path);
        let other = TrainError::other;
        let (items, names) = match data.task {
            LabelledTask::Classify => {
                let examples = match (data.source, path) {
                    (LabelledSource::Path, _) => labelled::read(needed()?).map_err(other)?,
                    (_, Some(path)) => {
                        labelled::bigram_shift(&text::read(path).map_err(other)?, seed)
                    }
                    (_, None) => labelled::bigram_shift(&stories::generate(data.count, seed), seed),
                };
                encode.classified(&examples)?
            }
            LabelledTask::Tag => {
                let examples = match data.source {
                    LabelledSource::Path => labelled::read(needed()?).map_err(other)?,
                    _ => labelled::heroes(data.count, seed),
                };
                encode.tagged(&examples)?
            }
            LabelledTask::Answer => {
                let examples = match data.source {
                    LabelledSource::Path => labelled::read(needed()?).map_err(other)?,
                    _ => labelled::whereabouts(data.count, seed),
                };
                (encode.answered(&examples)?, Vec::new())
            }
        };
        let cut = (items.len() as f64 * (1.0 - data.validation)) as usize;
        if cut == 0 || cut == items.len() {
            return Err(TrainError::other(format!(
                "{} examples are too few to hold out a share of {}",
                items.len(),
                data.validation
            )));
        }
        let mut all = Vec::new();
        for item in &items {
            all.extend(item.row.tokens.iter().flat_map(|token| token.to_le_bytes()));
            all.extend(format!("{:?}", item.target).into_bytes());
        }
        let mut train = items;
        let held_out = train.split_off(cut);
        Ok(Self {
            sha256: hash::sha256(&all),
            tokenizer,
            names,
            train,
            held_out,
        })
    }
}

/// Turns examples into rows.
struct Encode<'a> {
    tokenizer: &'a Tokenizer,
    frame: Frame,
    seq_len: usize,
}

impl Encode<'_> {
    fn ids(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        self.tokenizer.encode(text).map_err(TrainError::other)
    }

    /// What does not fit is cut off, as BERT does.
    fn classified(&self, examples: &[Classified]) -> Result<(Vec<Item>, Vec<String>), TrainError> {
        let names = ordered(examples.iter().map(|example| &example.label));
        let each = examples.iter().map(|example| {
            let mut ids = self.ids(&example.text)?;
            ids.truncate(self.seq_len - 2);
            Ok(Item {
                row: self.frame.one(&ids),
                target: Target::Class(number(&names, &example.label)),
            })
        });
        let items = each.collect::<Result<_, TrainError>>()?;
        Ok((items, names))
    }

    /// A word's tag is read off its first token.
    fn tagged(&self, examples: &[Tagged]) -> Result<(Vec<Item>, Vec<String>), TrainError> {
        let names = ordered(examples.iter().flat_map(|example| &example.tags));
        let each = examples.iter().map(|example| {
            let (mut ids, mut tags) = (Vec::new(), Vec::new());
            for (word, tag) in example.tokens.iter().zip(&example.tags) {
                let pieces = self.ids(word)?;
                if ids.len() + pieces.len() > self.seq_len - 2 {
                    break;
                }
                if !pieces.is_empty() {
                    // One for [CLS].
                    tags.push((1 + ids.len(), number(&names, tag)));
                }
                ids.extend(pieces);
            }
            Ok(Item {
                row: self.frame.one(&ids),
                target: Target::Tags(tags),
            })
        });
        let items = each.collect::<Result<_, TrainError>>()?;
        Ok((items, names))
    }

    fn answered(&self, examples: &[Answered]) -> Result<Vec<Item>, TrainError> {
        let each = examples.iter().map(|example| {
            let question = self.ids(&example.question)?;
            let pieces = self
                .tokenizer
                .pieces(&example.context)
                .map_err(TrainError::other)?;
            let context: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
            let bytes: Vec<_> = pieces.into_iter().map(|piece| piece.bytes).collect();
            let row = self.frame.two(&question, &context);
            let Some(span) = example.span() else {
                return Err(TrainError::other("an answer does not stand in its context"));
            };
            let over =
                |bytes: &std::ops::Range<usize>| bytes.start < span.end && span.start < bytes.end;
            let start = 2 + question.len();
            let ends = [bytes.iter().position(over), bytes.iter().rposition(over)];
            let ([Some(first), Some(last)], true) = (ends, row.tokens.len() <= self.seq_len) else {
                return Err(TrainError::other(format!(
                    "question and context have {} tokens, more than the model's {}; cut contexts \
                     to the passage that holds the answer {:?}",
                    row.tokens.len(),
                    self.seq_len,
                    example.answer
                )));
            };
            Ok(Item {
                row,
                target: Target::Answer {
                    ends: [start + first, start + last],
                    context: start,
                    text: example.context.clone(),
                    bytes,
                    answer: example.answer.clone(),
                },
            })
        });
        each.collect()
    }
}

/// The different names, in order.
fn ordered<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let different: BTreeSet<&String> = names.collect();
    different.into_iter().cloned().collect()
}

fn number(names: &[String], name: &String) -> u32 {
    names.binary_search(name).unwrap_or(0) as u32
}

/// What is trained.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Reader {
    Bert(Bert),
    Bag(BagOfWords),
}

/// Rows side by side, filled up to the longest.
struct Batch<'a> {
    items: Vec<&'a Item>,
    width: usize,
}

impl<'a> Batch<'a> {
    fn new(items: Vec<&'a Item>) -> Self {
        let width = items.iter().map(|item| item.row.tokens.len()).max();
        Self {
            width: width.unwrap_or(0),
            items,
        }
    }

    /// Ids `[rows, width]` of what `of` takes from a row, 0 where one is filled up.
    fn table(&self, of: impl Fn(&Row) -> Vec<u32>, device: &Device) -> Tensor<2, Int> {
        let rows = self.items.iter().flat_map(|item| {
            let mut ids = of(&item.row);
            ids.resize(self.width, 0);
            ids
        });
        numbers(rows, device).reshape([self.items.len(), self.width])
    }

    fn mask(&self, device: &Device) -> Tensor<2> {
        self.table(|row| vec![1; row.tokens.len()], device).float()
    }

    fn input(&self, device: &Device) -> BertInput {
        BertInput {
            tokens: self.table(|row| row.tokens.clone(), device),
            segments: Some(self.table(|row| row.segments.clone(), device)),
            mask: Some(self.mask(device)),
        }
    }

    /// Logits, one row for each thing to be guessed, and what is right. Answers have two rows: where
    /// they begin and where they end.
    fn guesses(&self, reader: &Reader, device: &Device) -> (Tensor<2>, Vec<u32>) {
        let mut right = Vec::new();
        let mut places = Vec::new();
        for (row, item) in self.items.iter().enumerate() {
            match &item.target {
                Target::Class(class) => right.push(*class),
                Target::Tags(tags) => {
                    places.extend(tags.iter().map(|(at, _)| (row * self.width + at) as u32));
                    right.extend(tags.iter().map(|(_, tag)| *tag));
                }
                Target::Answer { ends, .. } => right.extend(ends.map(|end| end as u32)),
            }
        }
        let model = match reader {
            Reader::Bag(bag) => {
                let texts: Vec<&[u32]> = self.items.iter().map(|i| &i.row.tokens[..]).collect();
                return (bag.forward(&texts), right);
            }
            Reader::Bert(model) => model,
        };
        let features = model.forward(self.input(device));
        let (rows, width) = (self.items.len(), self.width);
        let logits = match self.items[0].target {
            Target::Class(_) => model.text_logits(features),
            Target::Tags(_) => {
                let logits = model.token_logits(features);
                let [_, _, tags] = logits.dims();
                let places = numbers(places.into_iter(), device);
                logits.reshape([rows * width, tags]).select(0, places)
            }
            Target::Answer { .. } => {
                let logits = model.token_logits(features).swap_dims(1, 2);
                // Nothing ends in what fills a row up.
                let hidden = padding_bias(self.mask(device)).reshape([rows, 1, width]);
                (logits + hidden).reshape([rows * 2, width])
            }
        };
        (logits, right)
    }

    fn loss(&self, reader: &Reader, device: &Device) -> Tensor<1> {
        let (logits, right) = self.guesses(reader, device);
        cross_entropy(logits, numbers(right.into_iter(), device))
    }
}

/// `[n]` integers.
fn numbers(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

/// The configuration of `trunk` with the head that the recipe's task needs, for so many names.
fn with_head(recipe: &FinetuneRecipe, trunk: &BertConfig, names: usize) -> BertConfig {
    let head = match recipe.data.task {
        LabelledTask::Classify => BertHead::Classify(names),
        LabelledTask::Tag => BertHead::Tag(names),
        LabelledTask::Answer => BertHead::Answer,
    };
    BertConfig {
        pooler: trunk.pooler || recipe.data.task == LabelledTask::Classify,
        head,
        ..*trunk
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = FinetuneRecipe::parse(&job.source)?;
    job.remember_data(&mut recipe.data.path);
    if let Some(init) = &mut recipe.init {
        *init = std::path::absolute(&*init).unwrap_or_else(|_| init.clone());
    }
    job.say("reading the model and the examples");
    // Only what is loaded on a device with gradients learns there: moved to one later, it would stay as it is.
    let device = job.device.clone().autodiff();
    let (trunk, old) = hf::load_bert(recipe.init()?, &device).map_err(TrainError::other)?;
    let path: Option<PathBuf> = job.data_path(recipe.data.path.as_deref()).map(Into::into);
    let examples = Examples::open(&recipe, trunk.seq_len, path.as_deref())?;
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);

    // 2. Model: a fresh head on the old encoder, or what it is compared with
    let config = with_head(&recipe, &trunk, examples.names.len());
    let random = &mut rng(seed, Stream::Init, 0);
    let reader = match recipe.reader {
        ReaderKind::Bert => Reader::Bert(config.init(&device, random).onto(old)),
        ReaderKind::FreshBert => Reader::Bert(config.init(&device, random)),
        ReaderKind::BagOfWords => Reader::Bag(bag(&examples, &device)?),
    };
    let run = job.open_run(&recipe, &examples.sha256)?;

    // 3. Loop
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(examples.train.len()),
        device: &device,
    };
    let batches = |step: u64| {
        let random = &mut rng(seed, Stream::Shuffle, step);
        let n = examples.train.len();
        let drawn = (0..batch).map(|_| &examples.train[random.random_range(0..n)]);
        Ok(Batch::new(drawn.collect()).into())
    };
    let loss = |reader: &Reader, rows: Batch, _| rows.loss(reader, &device).into();
    let inner = job.device.clone();
    let task = Task::new(batches, loss)
        .counting(batch as f64, "examples")
        .validate(|reader: &Reader| measure(reader, &examples, seed, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, reader, task, &plan);
    };
    let fitted = fit(reader, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, report
    let dir = run.dir().to_owned();
    match &fitted.model {
        Reader::Bert(model) => {
            hf::save_bert(&dir, &config, model).map_err(TrainError::other)?;
            if !examples.names.is_empty() {
                hf::name_labels(&dir, &examples.names).map_err(TrainError::other)?;
            }
        }
        Reader::Bag(model) => {
            let about = json!({ "architecture": "bag-of-words", "labels": examples.names });
            weights::save(model, &about, &dir)?;
        }
    }
    examples.tokenizer.save(&dir).map_err(TrainError::other)?;
    let metrics = test_metrics(&fitted.validation);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

fn bag(examples: &Examples, device: &Device) -> Result<BagOfWords, TrainError> {
    let config = BagOfWordsConfig {
        vocab_size: examples.tokenizer.vocab_size(),
        n_classes: examples.names.len(),
    };
    config.init(device).map_err(TrainError::other)
}

/// Measures a run's model on the held-out examples.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = FinetuneRecipe::parse(source)?;
    let path = job.data.as_deref().or(recipe.data.path.as_deref());
    // A bag of words reads rows as long as those of the BERT whose vocabulary it has.
    let bert = match recipe.reader {
        ReaderKind::BagOfWords => recipe.init()?,
        ReaderKind::Bert | ReaderKind::FreshBert => &job.run,
    };
    let (trunk, model) = hf::load_bert(bert, &job.device).map_err(TrainError::other)?;
    let examples = Examples::open(&recipe, trunk.seq_len, path)?;
    let reader = match recipe.reader {
        ReaderKind::BagOfWords => {
            Reader::Bag(weights::load(bag(&examples, &job.device)?, &job.run)?)
        }
        ReaderKind::Bert | ReaderKind::FreshBert => Reader::Bert(model),
    };
    (job.say)("measuring");
    let metrics =
        measure(&reader, &examples, recipe.train.seed, &job.device).map_err(TrainError::Other)?;
    let mut evaluation = Evaluation::default();
    for (name, value) in test_metrics(&metrics) {
        let how = format!(
            "{name}|n={}|split=last-{}|interval=bootstrap-{RESAMPLES}-0.95",
            examples.held_out.len(),
            recipe.data.validation
        );
        evaluation.put(&name, value, how);
    }
    Ok(evaluation)
}

/// The loss in nats per guess and, with 95 % intervals: accuracy and the mean F1 of classes or tags;
/// exact match and F1 of answers.
fn measure(
    reader: &Reader,
    examples: &Examples,
    seed: u64,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let (mut nats, mut count) = (0.0, 0usize);
    let (mut guessed, mut truth) = (Vec::new(), Vec::new());
    // Exact match and F1 of each answer.
    let mut answers: Vec<(f64, f64)> = Vec::new();
    for items in examples.held_out.chunks(ROWS) {
        let batch = Batch::new(items.iter().collect());
        let (logits, right) = batch.guesses(reader, device);
        let loss = cross_entropy(logits.clone(), numbers(right.iter().copied(), device));
        nats += f64::from(loss.into_scalar::<f32>()) * right.len() as f64;
        count += right.len();
        let [_, width] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        for (row, item) in logits.chunks(2 * width).zip(&batch.items) {
            if let Target::Answer { .. } = item.target {
                answers.push(judge(row, width, &item.target)?);
            }
        }
        guessed.extend(maquette_eval::classification::predictions(&logits, width)?);
        truth.extend(right.iter().map(|right| *right as usize));
    }
    let mut metrics = Metrics::from([("loss".to_owned(), nats / count as f64)]);
    let mut put = |name: &str, interval: maquette_eval::bootstrap::Interval| {
        metrics.insert(name.to_owned(), interval.value);
        metrics.insert(format!("{name}_low"), interval.low);
        metrics.insert(format!("{name}_high"), interval.high);
    };
    let random = &mut rng(seed, Stream::Evaluate, 1);
    if !answers.is_empty() {
        let mean = |of: fn(&(f64, f64)) -> f64| {
            move |sample: &[(f64, f64)]| sample.iter().map(of).sum::<f64>() / sample.len() as f64
        };
        put(
            "exact_match",
            bootstrap(&answers, mean(|a| a.0), RESAMPLES, 0.95, random)?,
        );
        put(
            "f1",
            bootstrap(&answers, mean(|a| a.1), RESAMPLES, 0.95, random)?,
        );
        return Ok(metrics);
    }
    let pairs: Vec<(usize, usize)> = guessed.into_iter().zip(truth).collect();
    let right = |sample: &[(usize, usize)]| {
        sample.iter().filter(|(a, b)| a == b).count() as f64 / sample.len() as f64
    };
    put(
        "accuracy",
        bootstrap(&pairs, right, RESAMPLES, 0.95, random)?,
    );
    let n_classes = examples.names.len();
    let f1 = |sample: &[(usize, usize)]| {
        let (guessed, truth): (Vec<_>, Vec<_>) = sample.iter().copied().unzip();
        let Ok(confusion) = Confusion::new(&guessed, &truth, n_classes) else {
            return 0.0;
        };
        confusion.macro_f1()
    };
    put("macro_f1", bootstrap(&pairs, f1, RESAMPLES, 0.95, random)?);
    Ok(metrics)
}

/// Exact match and F1 of the likeliest answer: the beginning and end, in this order and not far from
/// each other, whose logits have the largest sum.
fn judge(row: &[f32], width: usize, target: &Target) -> Result<(f64, f64), BoxError> {
    let Target::Answer {
        context,
        text,
        bytes,
        answer,
        ..
    } = target
    else {
        return Ok((0.0, 0.0));
    };
    let (starts, ends) = row.split_at(width);
    let mut best = (f32::NEG_INFINITY, 0, 0);
    for first in 0..bytes.len() {
        for last in first..bytes.len().min(first + LONGEST_ANSWER) {
            let sum = starts[context + first] + ends[context + last];
            if sum > best.0 {
                best = (sum, first, last);
            }
        }
    }
    let (_, first, last) = best;
    let found = &text[bytes[first].start..bytes[last].end];
    let exact = exact_match(found, &[answer])?;
    Ok((f64::from(u8::from(exact)), token_f1(found, &[answer])?))
}
