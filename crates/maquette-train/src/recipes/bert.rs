//! `family = "bert"`: a model that reads from both sides and guesses hidden words.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::masking::{Masked, Masking, Vocabulary};
use maquette_data::segments::{Frame, Pairing, Row};
use maquette_data::tokenizer::TokenizerConfig;
use maquette_data::{TokenSet, Tokenizer, Windows, stories, text};
use maquette_eval::{bigrams::Bigrams, likelihood};
use maquette_models::nn::cross_entropy;
use maquette_models::{Bert, BertConfig, BertHead, BertInput, hf};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};

use super::text::{TextData, TextSource};
use super::{EvaluateJob, Job, Outcome, test_metrics, validate};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    BoxError, Evaluation, LoopSpec, Loss, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit,
};

/// Rows of held-out text measured at once.
const ROWS: usize = 32;
/// The shortest row that has room for two segments.
const MIN_LENGTH: usize = 8;

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
    /// Another share to hide while training; more guesses a row (Wettig et al. 2022,
    /// arXiv:2202.08005). The held-out text is always hidden as `masking` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_share: Option<f64>,
    /// What the head of `pretraining` tells from two segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairing: Option<Pairing>,
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
        let training = recipe.training_masking();
        if let Some(fault) = recipe.masking.fault().or(training.fault()) {
            let error = Invalid::new(
                "share",
                fault,
                "BERT's are share 0.15, masked 0.8, random 0.1",
            );
            return Err(invalid("masking", error).into());
        }
        let special = &recipe.tokenizer.special_tokens;
        for needed in ["[CLS]", "[SEP]", "[MASK]"] {
            if !special.iter().any(|token| token == needed) {
                let what = format!("{needed} is not among them");
                let help =
                    "special_tokens = [\"[PAD]\", \"[UNK]\", \"[CLS]\", \"[SEP]\", \"[MASK]\"]";
                let error = Invalid::new("special_tokens", what, help);
                return Err(invalid("tokenizer", error).into());
            }
        }
        let head = match recipe.pairing {
            None => BertHead::MaskedLm,
            Some(_) => BertHead::Pretraining,
        };
        if recipe.model.head != head {
            let help = "masked-lm without `pairing`, pretraining with it";
            let error = Invalid::new("head", "does not fit the recipe's `pairing`", help);
            return Err(invalid("model", error).into());
        }
        if recipe.model.seq_len < MIN_LENGTH {
            let what = format!("must be at least {MIN_LENGTH}");
            let error = Invalid::new("seq_len", what, "BERT's is 512; 64 trains fast");
            return Err(invalid("model", error).into());
        }
        let sized = BertConfig {
            vocab_size: recipe.model.vocab_size.max(1),
            ..recipe.model.clone()
        };
        source.check("model", sized.validate())?;
        Ok(recipe)
    }

    /// How much text a row of the model holds beside `[CLS]` and `[SEP]`.
    fn room(&self) -> usize {
        self.model.seq_len - if self.pairing.is_some() { 3 } else { 2 }
    }

    /// What is hidden while training.
    fn training_masking(&self) -> Masking {
        Masking {
            share: self.training_share.unwrap_or(self.masking.share),
            ..self.masking.clone()
        }
    }
}

/// Text ready for a model.
struct Corpus {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    frame: Frame,
    /// Bytes of text that each token stands for.
    bytes: Vec<usize>,
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
        let lacks = || TrainError::other("the tokenizer lacks [CLS], [SEP] or [MASK]");
        let vocabulary = Vocabulary::of(&tokenizer).ok_or_else(lacks)?;
        let frame = Frame::of(&tokenizer).ok_or_else(lacks)?;
        let tokens = TokenSet::encode(&whole, &tokenizer).map_err(TrainError::other)?;
        let (train, validation) = tokens
            .split(recipe.data.validation)
            .map_err(TrainError::other)?;
        let (batch, room) = (recipe.train.batch, recipe.room());
        train.check(2 * batch, room).map_err(TrainError::other)?;
        validation.check(2, room).map_err(TrainError::other)?;
        let ids = 0..tokenizer.vocab_size() as u32;
        let bytes = ids.map(|id| {
            let spelled = tokenizer.id_to_token(id).unwrap_or_default();
            spelled.strip_prefix("##").unwrap_or(&spelled).len()
        });
        Ok(Self {
            bytes: bytes.collect(),
            tokenizer,
            vocabulary,
            frame,
            train,
            validation,
            sha256: tokens.hash(),
        })
    }
}

/// Rows with hidden tokens.
#[derive(Default)]
struct Rows {
    inputs: Vec<u32>,
    segments: Vec<u32>,
    /// Where a token is hidden, in the rows laid end to end, and what stood there.
    places: Vec<usize>,
    targets: Vec<u32>,
    /// Of each row, where there are two segments: whether the second belongs elsewhere.
    classes: Vec<u32>,
}

impl Rows {
    /// Frames `texts` and hides tokens. `elsewhere` has a text of another place for each.
    fn hide<'a>(
        texts: impl Iterator<Item = (&'a [u32], &'a [u32])>,
        corpus: &Corpus,
        (masking, pairing): (&Masking, Option<Pairing>),
        random: &mut maquette_rng::Rng,
    ) -> Self {
        let mut rows = Self::default();
        for (text, elsewhere) in texts {
            let Row { tokens, segments } = match pairing {
                None => corpus.frame.one(text),
                Some(pairing) => {
                    let (row, class) = pairing.draw(&corpus.frame, text, elsewhere, random);
                    rows.classes.push(class);
                    row
                }
            };
            let start = rows.inputs.len();
            let Masked {
                inputs,
                places,
                targets,
            } = masking.apply(&tokens, &corpus.vocabulary, random);
            rows.inputs.extend(inputs);
            rows.segments.extend(segments);
            rows.places.extend(places.iter().map(|place| start + place));
            rows.targets.extend(targets);
        }
        rows
    }

    /// Random rows of the training text, a function of the step.
    fn draw(corpus: &Corpus, recipe: &BertRecipe, step: u64) -> Result<Self, BoxError> {
        let (batch, seed, room) = (recipe.train.batch, recipe.train.seed, recipe.room());
        let Windows { inputs, .. } = corpus.train.windows(2 * batch, room, seed, step)?;
        let (texts, elsewhere) = inputs.split_at(batch * room);
        let texts = texts.chunks(room).zip(elsewhere.chunks(room));
        let random = &mut rng(seed, Stream::Noise, step);
        let how = (&recipe.training_masking(), recipe.pairing);
        Ok(Self::hide(texts, corpus, how, random))
    }

    /// What the model reads.
    fn input(&self, width: usize, device: &Device) -> BertInput {
        let rows = self.inputs.len() / width;
        let table = |ids: &[u32]| numbers(ids.iter().copied(), device).reshape([rows, width]);
        BertInput {
            tokens: table(&self.inputs),
            segments: Some(table(&self.segments)),
            mask: None,
        }
    }

    /// The loss of the hidden tokens and, with two segments, of whether they belong together; both
    /// in nats per guess.
    fn losses(&self, model: &Bert, device: &Device) -> (Tensor<1>, Option<Tensor<1>>) {
        let features = model.forward(self.input(model.seq_len(), device));
        let places = numbers(self.places.iter().map(|place| *place as u32), device);
        let logits = model.masked_logits(features.clone(), places);
        let targets = numbers(self.targets.iter().copied(), device);
        let next = (!self.classes.is_empty()).then(|| {
            let classes = numbers(self.classes.iter().copied(), device);
            cross_entropy(model.text_logits(features), classes)
        });
        (cross_entropy(logits, targets), next)
    }
}

/// `[n]` integers.
fn numbers(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
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
    let batches = |step: u64| Ok(Rows::draw(&corpus, &recipe, step)?.into());
    let loss = |model: &Bert, rows: Rows, _| match rows.losses(model, &device) {
        (masked, None) => masked.into(),
        (masked, Some(next)) => Loss {
            total: masked.clone() + next.clone(),
            parts: vec![("masked", masked), ("next", next)],
        },
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
    corpus.tokenizer.save(&dir).map_err(TrainError::other)?;
    job.say("counting, for comparison");
    let mut metrics = test_metrics(&fitted.validation);
    metrics.extend(baselines(&corpus, &recipe));
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

/// Measures a run's model, and what counting does, on the held-out part of its text.
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
    metrics.extend(baselines(&corpus, &recipe));
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
    let texts: Vec<&[u32]> = corpus
        .validation
        .tokens
        .chunks_exact(recipe.room())
        .collect();
    let most = recipe.data.validation_windows.unwrap_or(usize::MAX);
    let n = texts.len().min(most);
    let seed = maquette_rng::seed_for(recipe.train.seed, Stream::Evaluate, 0);
    let pairs: Vec<_> = (0..n)
        .map(|i| (texts[i], texts[(i + texts.len() / 2) % texts.len()]))
        .collect();
    let batches = pairs.chunks(ROWS).zip(0..);
    let how = (&recipe.masking, recipe.pairing);
    batches
        .map(|(pairs, i)| {
            let random = &mut rng(seed, Stream::Noise, i);
            Rows::hide(pairs.iter().copied(), corpus, how, random)
        })
        .collect()
}

/// Loss in nats per hidden token, how many are guessed, bits per byte of the hidden text, and how
/// many second segments are told from others.
fn measure(
    model: &Bert,
    corpus: &Corpus,
    recipe: &BertRecipe,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let agree = |guesses: Tensor<2>, targets: &[u32]| {
        let guesses = guesses.argmax(1).into_data();
        let both = guesses.iter::<i64>().zip(targets);
        both.filter(|(guess, target)| *guess == i64::from(**target))
            .count()
    };
    let (mut nats, mut right, mut count, mut bytes) = (0.0, 0usize, 0usize, 0usize);
    let (mut together, mut rows_seen) = (0usize, 0usize);
    for rows in held_out(corpus, recipe) {
        let features = model.forward(rows.input(model.seq_len(), device));
        let places = numbers(rows.places.iter().map(|place| *place as u32), device);
        let logits = model.masked_logits(features.clone(), places);
        right += agree(logits.clone(), &rows.targets);
        let targets = numbers(rows.targets.iter().copied(), device);
        let loss = cross_entropy(logits, targets).into_scalar::<f32>();
        nats += f64::from(loss) * rows.targets.len() as f64;
        count += rows.targets.len();
        bytes += rows
            .targets
            .iter()
            .map(|token| corpus.bytes[*token as usize])
            .sum::<usize>();
        if recipe.pairing.is_some() {
            together += agree(model.text_logits(features), &rows.classes);
            rows_seen += rows.classes.len();
        }
    }
    let mut metrics = Metrics::from([
        ("loss".to_owned(), nats / count as f64),
        ("accuracy".to_owned(), right as f64 / count as f64),
        (
            "bits_per_byte".to_owned(),
            likelihood::bits_per_byte(nats, bytes)?,
        ),
    ]);
    if rows_seen > 0 {
        let share = together as f64 / rows_seen as f64;
        metrics.insert("pair_accuracy".to_owned(), share);
    }
    Ok(metrics)
}

/// What counting does with the same hidden tokens: `unigram` knows how often each stands in the
/// training text; `bigram` also the token to the left, which it is shown even where it is hidden;
/// `neighbours` the tokens on both sides as the model sees them.
fn baselines(corpus: &Corpus, recipe: &BertRecipe) -> Metrics {
    let counted = Bigrams::count(&corpus.train.tokens, recipe.model.vocab_size);
    let mut sums = [
        ("unigram", 0.0, 0usize),
        ("bigram", 0.0, 0),
        ("neighbours", 0.0, 0),
    ];
    let mut count = 0usize;
    for rows in held_out(corpus, recipe) {
        let mut stood = rows.inputs.clone();
        for (place, target) in rows.places.iter().zip(&rows.targets) {
            stood[*place] = *target;
        }
        let hides = |token: u32| token == corpus.vocabulary.mask() || corpus.frame.holds(token);
        let seen = |place: usize| Some(rows.inputs[place]).filter(|token| !hides(*token));
        for (place, target) in rows.places.iter().zip(&rows.targets) {
            // A row begins with [CLS] and ends with [SEP], so both neighbours exist.
            let known = [
                (None, None),
                (Some(stood[place - 1]), None),
                (seen(place - 1), seen(place + 1)),
            ];
            for ((_, nats, right), (left, right_of)) in sums.iter_mut().zip(known) {
                let all = counted.between(left, right_of);
                *nats -= all[*target as usize].ln();
                // Of equals the first.
                let best = (0..)
                    .zip(&all)
                    .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                *right += usize::from(best.is_some_and(|(id, _): (u32, _)| id == *target));
            }
            count += 1;
        }
    }
    let n = count.max(1) as f64;
    let named = sums.into_iter().flat_map(|(name, nats, right)| {
        [
            (format!("{name}_loss"), nats / n),
            (format!("{name}_accuracy"), right as f64 / n),
        ]
    });
    named.collect()
}
