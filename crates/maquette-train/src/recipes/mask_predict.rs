//! `family = "mask-predict"`: an encoder-decoder that writes an answer at once and then refines it.

use burn::tensor::Device;
use maquette_data::Tokenizer;
use maquette_generate::text::StopReason;
use maquette_models::{
    EncoderDecoderConfig, MaskPredict, MaskedAnswers, Refinement, SpecialTokens,
};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::generate::{GenerateJob, Made};
use super::seq2seq::{Corpus, Ids, PairData};
use super::{EvaluateJob, Job, Outcome, test_metrics, validate, weights};
use crate::spec::PublishedNumbers;
use crate::{
    BoxError, Evaluation, LoopSpec, Loss, Metrics, OptimizerSpec, Plan, ScheduleSpec, Source, Task,
    TrainError, fit,
};

/// Filling, a hidden token, and what stands before a source, in the order of their ids.
const SPECIAL: [&str; 3] = ["<pad>", "<mask>", "<length>"];
/// Held-out pairs measured at once.
const ROWS: usize = 100;
/// Passes of the decoder that answers are measured after, beside the recipe's own.
const PASSES: [usize; 4] = [1, 2, 4, 10];

/// Everything about one mask-predict model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskPredictRecipe {
    /// One line for listings.
    pub summary: String,
    /// `mask-predict`.
    pub family: super::Family,
    /// The pairs.
    pub data: PairData,
    /// The network. `vocab_size` is that of the characters in the pairs.
    #[serde(default)]
    pub model: EncoderDecoderConfig,
    /// How an answer is refined.
    #[serde(default)]
    pub decoding: Refinement,
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

impl MaskPredictRecipe {
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
        source.check("decoding", recipe.decoding.validate())?;
        Ok(recipe)
    }

    fn corpus(&self) -> Result<Corpus, TrainError> {
        Corpus::open(self.data, SPECIAL, self.model.seq_len, self.train.seed)
    }

    /// The network with fresh weights, for the tokens of `tokenizer`.
    fn init(&self, tokenizer: &Tokenizer, device: &Device) -> Result<MaskPredict, TrainError> {
        let id = |token: &str| {
            let missing = || TrainError::other(format!("the tokenizer has no {token}"));
            tokenizer.token_to_id(token).ok_or_else(missing)
        };
        let special = SpecialTokens {
            pad: id(SPECIAL[0])?,
            mask: id(SPECIAL[1])?,
            length: id(SPECIAL[2])?,
        };
        let random = &mut rng(self.train.seed, Stream::Init, 0);
        Ok(self.model.init_mask_predict(special, device, random))
    }
}

fn sources(pairs: &[Ids]) -> Vec<Vec<u32>> {
    pairs.iter().map(|pair| pair.source.clone()).collect()
}

fn targets(pairs: &[Ids]) -> Vec<Vec<u32>> {
    pairs.iter().map(|pair| pair.target.clone()).collect()
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = MaskPredictRecipe::parse(&job.source)?;
    job.say("making the pairs");
    let corpus = recipe.corpus()?;
    recipe.model.vocab_size = corpus.tokenizer.vocab_size();
    let (batch, seed) = (recipe.train.batch, recipe.train.seed);

    // 2. Model
    let device = job.device.clone().autodiff();
    let model = recipe.init(&corpus.tokenizer, &device)?;
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
        let pairs: Vec<Ids> = corpus
            .draw(batch, seed, step)
            .into_iter()
            .cloned()
            .collect();
        let random = &mut rng(seed, Stream::Noise, step);
        Ok(MaskedAnswers::draw(sources(&pairs), targets(&pairs), random).into())
    };
    let loss = |model: &MaskPredict, batch: MaskedAnswers, _| {
        let loss = model.loss(&batch, &device);
        Loss {
            total: loss.total,
            parts: vec![("tokens", loss.tokens), ("lengths", loss.lengths)],
        }
    };
    let inner = job.device.clone();
    let task = Task::new(batches, loss)
        .counting(batch as f64, "pairs")
        .validate(|model: &MaskPredict| measure(model, &recipe, &corpus, &inner));
    let Some(mut run) = run else {
        return job.estimate(&recipe, model, task, &plan);
    };
    let fitted = fit(model, task, &plan, &mut run, &mut job.control())?;

    // 4. Save, report
    let dir = run.dir().to_owned();
    let config = json!({ "architecture": "mask-predict", "model": recipe.model });
    weights::save(&fitted.model, &config, &dir)?;
    let saved = corpus.tokenizer.save(dir.join("tokenizer.json"));
    saved.map_err(TrainError::other)?;
    let metrics = test_metrics(&fitted.validation);
    Ok(Outcome::Trained(run.finish(&fitted, metrics)?))
}

/// Measures a run's model on the held-out pairs.
///
/// # Errors
/// No weights.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = MaskPredictRecipe::parse(source)?;
    let corpus = recipe.corpus()?;
    let model = weights::load(recipe.init(&corpus.tokenizer, &job.device)?, &job.run)?;
    let metrics = measure(&model, &recipe, &corpus, &job.device).map_err(TrainError::Other)?;
    let mut evaluation = Evaluation::default();
    for (name, value) in test_metrics(&metrics) {
        let Refinement {
            iterations,
            length_beam,
        } = recipe.decoding;
        let how = format!(
            "{name}|n={}|passes={iterations}|length_beam={length_beam}|split=held-out",
            corpus.held_out.len(),
        );
        evaluation.put(&name, value, how);
    }
    Ok(evaluation)
}

/// The loss of hidden tokens in nats per token, and the share of answers that are right to the last
/// character: `exact` as the recipe refines them, `exact_after_N` after N passes.
fn measure(
    model: &MaskPredict,
    recipe: &MaskPredictRecipe,
    corpus: &Corpus,
    device: &Device,
) -> Result<Metrics, BoxError> {
    let (mut nats, mut batches) = (0.0, 0u64);
    let mut right = [0usize; PASSES.len() + 1];
    for pairs in corpus.held_out.chunks(ROWS) {
        let random = &mut rng(recipe.train.seed, Stream::Evaluate, batches);
        let masked = MaskedAnswers::draw(sources(pairs), targets(pairs), random);
        nats += f64::from(model.loss(&masked, device).tokens.into_scalar::<f32>());
        batches += 1;
        let passes = PASSES.into_iter().chain([recipe.decoding.iterations]);
        for (iterations, right) in passes.zip(&mut right) {
            let how = Refinement {
                iterations,
                ..recipe.decoding
            };
            for (pair, answer) in pairs
                .iter()
                .zip(model.answers(&sources(pairs), &how, device))
            {
                *right += usize::from(corpus.accepts(pair, &answer)?);
            }
        }
    }
    let share = |right: usize| right as f64 / corpus.held_out.len() as f64;
    let [after @ .., exact] = right;
    let mut metrics = Metrics::from([
        ("loss".to_owned(), nats / batches as f64),
        ("exact".to_owned(), share(exact)),
    ]);
    let named = |(passes, right)| (format!("exact_after_{passes}"), share(right));
    metrics.extend(PASSES.into_iter().zip(after).map(named));
    Ok(metrics)
}

/// The answer to the prompt.
pub(super) fn generate(source: &Source, job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    let recipe = MaskPredictRecipe::parse(source)?;
    (job.say)("loading the model");
    let tokenizer = Tokenizer::load(&job.model).map_err(TrainError::other)?;
    let model = weights::load(recipe.init(&tokenizer, &job.device)?, &job.model)?;
    let prompt = job.text.opening.prompt();
    let prompt = prompt.filter(|prompt| !prompt.is_empty());
    let prompt = prompt
        .ok_or_else(|| TrainError::other("answer what? give the text to read with --prompt"))?;
    let source = tokenizer.encode(&prompt).map_err(TrainError::other)?;
    if source.len() > model.longest_source() {
        return Err(TrainError::other(format!(
            "the prompt has {} tokens, {} more than the model reads",
            source.len(),
            source.len() - model.longest_source()
        )));
    }
    let ids = model
        .answers(&[source], &recipe.decoding, &job.device)
        .remove(0);
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
