//! `family = "bert"`: a model that reads from both sides and guesses hidden words.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::masking::{Masked, Masking, Vocabulary};
use maquette_data::tokenizer::TokenizerConfig;
use maquette_data::{TokenSet, Tokenizer, stories, text};
use maquette_models::{Bert, BertConfig, BertHead, BertInput, hf};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};

use super::gpt::{TextData, TextSource};
use super::{EvaluateJob, Job, Outcome, test_metrics, validate};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    BoxError, Evaluation, LoopSpec, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit,
};

/// Rows of held-out text measured at once.
const ROWS: usize = 32;

/// Everything about one masked language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertRecipe {
    /// One line for listings.
    pub summary: String,
    /// `bert`.
    pub family: super::Family,
    /// Where text comes from.
    pub data: TextData,
    /// How it becomes tokens; learnt from the text. One of the special tokens is `[MASK]`.
    pub tokenizer: TokenizerConfig,
    /// What is hidden.
    #[serde(default)]
    pub masking: Masking,
    /// The network. `vocab_size` is the tokenizer's.
    #[serde(default)]
    pub model: BertConfig,
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

impl BertRecipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        validate(source, &recipe.optimizer, &recipe.schedule, &recipe.train)?;
        let invalid = |section: &str, invalid: Invalid| source.locate(section, invalid);
        let data = &recipe.data;
        if !(0.0 < data.validation && data.validation < 1.0) || data.streaming {
            let (key, what) = match data.streaming {
                true => (
                    "streaming",
                    "a masked language model reads its text into memory",
                ),
                false => ("validation", "must lie between 0 and 1"),
            };
            return Err(invalid("data", Invalid::new(key, what, "0.1 holds out a tenth")).into());
        }
        if let Some(fault) = recipe.masking.fault() {
            let error = Invalid::new(
                "share",
                fault,
                "BERT's are share 0.15, masked 0.8, random 0.1",
            );
            return Err(invalid("masking", error).into());
        }
        let special = &recipe.tokenizer.special_tokens;
        if !special.iter().any(|token| token == "[MASK]") {
            let what = "there is no token to hide others with";
            let help = "special_tokens = [\"[PAD]\", \"[UNK]\", \"[CLS]\", \"[SEP]\", \"[MASK]\"]";
            let error = Invalid::new("special_tokens", what, help);
            return Err(invalid("tokenizer", error).into());
        }
        if recipe.model.head != BertHead::MaskedLm {
            let error = Invalid::new("head", "this recipe trains `masked-lm`", "leave it out");
            return Err(invalid("model", error).into());
        }
        let sized = BertConfig {
            vocab_size: recipe.model.vocab_size.max(1),
            ..recipe.model.clone()
        };
        source.check("model", sized.validate())?;
        Ok(recipe)
    }
}

/// Text ready for a model.
struct Corpus {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    train: TokenSet,
    validation: TokenSet,
    sha256: String,
}

impl Corpus {
    fn open(recipe: &BertRecipe, path: Option<&Path>) -> Result<Self, TrainError> {
        let whole = match recipe.data.source {
            TextSource::Path => {
                let path = path.ok_or_else(super::sections::missing_path)?;
                text::read(path).map_err(TrainError::other)?
            }
            TextSource::Stories => stories::generate(recipe.data.count, recipe.train.seed),
        };
        let tokenizer = recipe
            .tokenizer
            .train(std::iter::once(Ok(whole.clone())))
            .map_err(TrainError::other)?;
        let vocabulary = Vocabulary::of(&tokenizer)
            .ok_or_else(|| TrainError::other("the tokenizer has no [MASK]"))?;
        let tokens = TokenSet::encode(&whole, &tokenizer).map_err(TrainError::other)?;
        let (train, validation) = tokens
            .split(recipe.data.validation)
            .map_err(TrainError::other)?;
        let (batch, seq_len) = (recipe.train.batch, recipe.model.seq_len);
        train.check(batch, seq_len).map_err(TrainError::other)?;
        validation.check(1, seq_len).map_err(TrainError::other)?;
        Ok(Self {
            tokenizer,
            vocabulary,
            train,
            validation,
            sha256: tokens.hash(),
        })
    }
}

/// Rows of text with hidden tokens.
struct Rows {
    masked: Masked,
    width: usize,
}

impl Rows {
    /// Hides tokens in each row of `width`.
    fn hide(rows: &[u32], width: usize, corpus: &Corpus, masking: &Masking, key: [u64; 2]) -> Self {
        let [seed, step] = key;
        let random = &mut rng(seed, Stream::Noise, step);
        let mut all = Masked {
            inputs: Vec::with_capacity(rows.len()),
            places: Vec::new(),
            targets: Vec::new(),
        };
        for row in rows.chunks(width) {
            let start = all.inputs.len();
            let masked = masking.apply(row, &corpus.vocabulary, random);
            all.inputs.extend(masked.inputs);
            all.places
                .extend(masked.places.iter().map(|place| start + place));
            all.targets.extend(masked.targets);
        }
        Self { masked: all, width }
    }

    /// What the model reads, where it guesses, and what stood there.
    fn tensors(&self, device: &Device) -> (BertInput, Tensor<1, Int>, Tensor<1, Int>) {
        let numbers = |values: Vec<i32>| {
            let n = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [n]), device)
        };
        let ids = |ids: &[u32]| numbers(ids.iter().map(|id| *id as i32).collect());
        let rows = self.masked.inputs.len() / self.width;
        let inputs = ids(&self.masked.inputs).reshape([rows, self.width]);
        let places = numbers(
            self.masked
                .places
                .iter()
                .map(|place| *place as i32)
                .collect(),
        );
        (BertInput::new(inputs), places, ids(&self.masked.targets))
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = BertRecipe::parse(&job.source)?;
    job.remember_data(&mut recipe.data.path);
    job.say("reading the text");
    let path: Option<PathBuf> = job.data_path(recipe.data.path.as_deref()).map(Into::into);
    let corpus = Corpus::open(&recipe, path.as_deref())?;
    recipe.model.vocab_size = corpus.tokenizer.vocab_size();
    let (batch, seq_len, seed) = (recipe.train.batch, recipe.model.seq_len, recipe.train.seed);

    // 2. Model
    let device = job.device.clone().autodiff();
    let model = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));
    let run = job.open_run(&recipe, &corpus.sha256)?;

    // 3. Loop
    let plan = Plan {
        optimizer: &recipe.optimizer,
        schedule: &recipe.schedule,
        train: &recipe.train,
        steps: recipe.train.total_steps(0),
        device: &device,
    };
    let batches = |step: u64| {
        let windows = corpus.train.windows(batch, seq_len, seed, step)?;
        let key = [seed, step];
        Ok(Rows::hide(&windows.inputs, seq_len, &corpus, &recipe.masking, key).into())
    };
    let loss = |model: &Bert, rows: Rows, _| {
        let (input, places, targets) = rows.tensors(&device);
        model.masked_loss(input, places, targets).into()
    };
    let inner = job.device.clone();
    let task = Task::new(batches, loss)
        .counting((batch * seq_len) as f64, "tokens")
        .validate(|model: &Bert| measure(model, &corpus, &recipe, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, report
    let dir = run.dir().to_owned();
    hf::save_bert(&dir, &recipe.model, &fitted.model).map_err(TrainError::other)?;
    corpus
        .tokenizer
        .save(dir.join("tokenizer.json"))
        .map_err(TrainError::other)?;
    let mut metrics = test_metrics(&fitted.validation);
    metrics.extend(baselines(&corpus, &recipe)?);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

/// Measures a run's model, and the two baselines, on the held-out part of its text.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = BertRecipe::parse(source)?;
    (job.say)("reading the text");
    let path = job.data.as_deref().or(recipe.data.path.as_deref());
    let corpus = Corpus::open(&recipe, path)?;
    let (_, model) = hf::load_bert(&job.run, &job.device).map_err(TrainError::other)?;
    (job.say)("measuring");
    let measured = measure(&model, &corpus, &recipe, &job.device).map_err(TrainError::Other)?;
    let mut metrics = test_metrics(&measured);
    metrics.extend(baselines(&corpus, &recipe)?);
    let mut evaluation = Evaluation::default();
    for (name, value) in metrics {
        let Masking {
            share, whole_words, ..
        } = recipe.masking;
        let how = format!(
            "{name}|share={share}|whole_words={whole_words}|seq_len={}|split=last-{}",
            recipe.model.seq_len, recipe.data.validation
        );
        evaluation.put(&name, value, how);
    }
    Ok(evaluation)
}

/// The held-out text, side by side in rows of the model's length, always with the same tokens
/// hidden.
fn held_out(corpus: &Corpus, recipe: &BertRecipe) -> Vec<Rows> {
    let width = recipe.model.seq_len;
    let tokens = &corpus.validation.tokens;
    let windows = recipe.data.validation_windows.unwrap_or(usize::MAX);
    let whole = (tokens.len() / width).min(windows) * width;
    let rows = tokens[..whole].chunks(ROWS * width).enumerate();
    rows.map(|(i, rows)| {
        let seed = maquette_rng::seed_for(recipe.train.seed, Stream::Evaluate, 0);
        Rows::hide(rows, width, corpus, &recipe.masking, [seed, i as u64])
    })
    .collect()
}

/// Loss in nats per hidden token, and how many are guessed.
fn measure(
    model: &Bert,
    corpus: &Corpus,
    recipe: &BertRecipe,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let (mut nats, mut right, mut count) = (0.0, 0usize, 0usize);
    for rows in held_out(corpus, recipe) {
        let (input, places, targets) = rows.tensors(device);
        let n = rows.masked.places.len();
        let logits = model.masked_logits(model.forward(input), places);
        let guesses = logits.clone().argmax(1).into_data();
        let targets_seen = &rows.masked.targets;
        let agree = guesses.iter::<i64>().zip(targets_seen);
        right += agree
            .filter(|(guess, target)| *guess == i64::from(**target))
            .count();
        let loss = maquette_models::nn::cross_entropy(logits, targets);
        nats += f64::from(loss.into_scalar::<f32>()) * n as f64;
        count += n;
    }
    Ok(Metrics::from([
        ("loss".to_owned(), nats / count as f64),
        ("accuracy".to_owned(), right as f64 / count as f64),
    ]))
}

/// What counting does with the same hidden tokens: `unigram` knows how often each token stands in
/// the training text; `bigram` also the token before the hidden one, which it sees even where that
/// is hidden too, with the unigram's guess counted `PRIOR` times beside what was seen.
fn baselines(corpus: &Corpus, recipe: &BertRecipe) -> Result<Metrics, TrainError> {
    const PRIOR: f64 = 2.0;
    let size = recipe.model.vocab_size;
    let train = &corpus.train.tokens;
    let mut single = vec![0u32; size];
    let mut pairs: HashMap<u32, HashMap<u32, u32>> = HashMap::new();
    for token in train {
        single[*token as usize] += 1;
    }
    for pair in train.windows(2) {
        *pairs
            .entry(pair[0])
            .or_default()
            .entry(pair[1])
            .or_default() += 1;
    }
    let alone =
        |token: u32| (f64::from(single[token as usize]) + 1.0) / (train.len() + size) as f64;
    // Of equals the smallest id.
    let best = |counts: &mut dyn Iterator<Item = (u32, u32)>| {
        counts.max_by_key(|(id, count)| (*count, std::cmp::Reverse(*id)))
    };
    let likeliest = best(&mut (0..).zip(single.iter().copied())).map(|(id, _)| id);
    let after: HashMap<u32, (f64, u32)> = pairs
        .iter()
        .filter_map(|(left, next)| {
            let total = next.values().map(|count| f64::from(*count)).sum();
            let (id, _) = best(&mut next.iter().map(|(id, count)| (*id, *count)))?;
            Some((*left, (total, id)))
        })
        .collect();
    let [mut nats, mut right] = [[0.0f64; 2]; 2];
    let mut count = 0usize;
    let width = recipe.model.seq_len;
    for (i, rows) in held_out(corpus, recipe).iter().enumerate() {
        let start = i * ROWS * width;
        for (place, target) in rows.masked.places.iter().zip(&rows.masked.targets) {
            let place = start + place;
            let left = place
                .checked_sub(1)
                .map(|left| corpus.validation.tokens[left]);
            let seen = left.and_then(|left| Some((pairs.get(&left)?, after.get(&left)?)));
            let p = alone(*target);
            let (pair, guess) = match seen {
                Some((next, (total, guess))) => {
                    let times = next.get(target).copied().map_or(0.0, f64::from);
                    ((times + PRIOR * p) / (total + PRIOR), Some(*guess))
                }
                None => (p, likeliest),
            };
            for (k, (p, guess)) in [(p, likeliest), (pair, guess)].into_iter().enumerate() {
                nats[k] -= p.ln();
                right[k] += f64::from(u8::from(guess == Some(*target)));
            }
            count += 1;
        }
    }
    let count = count.max(1) as f64;
    Ok(Metrics::from([
        ("unigram_loss".to_owned(), nats[0] / count),
        ("unigram_accuracy".to_owned(), right[0] / count),
        ("bigram_loss".to_owned(), nats[1] / count),
        ("bigram_accuracy".to_owned(), right[1] / count),
    ]))
}
