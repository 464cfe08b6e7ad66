//! Text of language models: by the engine where a transformer's is drawn on the CPU, by tensors where it
//! is searched, looked into, another network's or on another device.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use maquette_data::Tokenizer;
use maquette_generate::engine::{Engine, EngineOptions, Speculation, Weights};
use maquette_generate::sampling::TokenLogProb;
use maquette_generate::text::{Draws, Generated, Strategy, score};
use maquette_models::{LanguageConfig, LanguageModel};
use maquette_rng::{Stream, rng};

use super::generate::{Ahead, GenerateJob, Made, SpeltLogProb, TextAsk, look};
use super::gpt::LanguageRecipe;
use super::opening::{Tokens, engine_weights, language_model};
use crate::{Source, TrainError};

/// The text of a run of a language model that is no transformer.
pub(super) fn of_run<C: LanguageConfig>(
    source: &Source,
    job: GenerateJob<'_>,
) -> Result<Vec<Made>, TrainError> {
    (job.say)("loading the model");
    let prompt = LanguageRecipe::<C>::parse(source)?.sample.prompt;
    let (_, model) = C::load(&job.model, &job.device).map_err(TrainError::other)?;
    let tokens = Tokens::of_folder(&job.model, model.vocab_size())?;
    by_tensors(&model, tokens, job, prompt)
}

/// The text of a transformer's run, folder or GGUF file.
pub(super) fn transformer(job: GenerateJob<'_>, prompt: String) -> Result<Vec<Made>, TrainError> {
    (job.say)("loading the model");
    let drawn = matches!(job.text.strategy, Strategy::Draw | Strategy::BestOf { .. });
    if drawn && job.text.attention.is_none() && job.device == Device::flex() {
        return by_engine(job, prompt);
    }
    let (model, tokens) = language_model(&job.model, &job.device)?;
    by_tensors(&model, tokens, job, prompt)
}

fn by_engine(job: GenerateJob<'_>, default_prompt: String) -> Result<Vec<Made>, TrainError> {
    let TextAsk {
        opening,
        mut options,
        strategy,
        ahead,
        ..
    } = job.text;
    let (weights, tokens) = engine_weights(&job.model)?;
    tokens.end(&mut options);
    let (start, prompt) = tokens.open(opening, default_prompt)?;
    let count = job.images.count;
    let best_of = match strategy {
        Strategy::BestOf { count } => count,
        _ => 1,
    };
    let (speculation, guesses) = match &ahead {
        Ahead::Nothing => (Speculation::Off, 0),
        Ahead::Lookup(guesses) => (Speculation::Lookup(*guesses), *guesses),
        Ahead::Draft(_, guesses) => (Speculation::Draft(*guesses), *guesses),
    };
    let sizes = EngineOptions {
        sequences: count.saturating_mul(best_of).clamp(1, MOST_AT_ONCE),
        guesses,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(weights, sizes);
    if let Ahead::Draft(path, _) = &ahead {
        let draft = Weights::open(path).map_err(TrainError::other)?;
        engine = engine.with_draft(draft).map_err(TrainError::other)?;
    }
    let seeds: Vec<u64> = (0..count as u64)
        .map(|i| job.images.seed.wrapping_add(i))
        .collect();
    let draws = Draws {
        tokenizer: &tokens.tokenizer,
        prompt: &start,
        options: &options,
        seeds: &seeds,
        best_of,
        speculation,
    };
    // Every text is shown after the prompt, on lines of its own.
    let mut begun = 0;
    let mut begin = |upto: usize, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>| {
        while begun < upto {
            let _ = on_text(if begun == 0 { "" } else { "\n" });
            let _ = on_text(&prompt);
            begun += 1;
        }
    };
    begin(count.min(1), &mut *job.on_text);
    let drawn = draws.by(&mut engine, |at, piece| {
        begin(at + 1, &mut *job.on_text);
        (job.on_text)(piece)
    });
    let drawn = drawn.map_err(TrainError::other)?;
    begin(count, &mut *job.on_text);
    let _ = (job.on_text)("\n");
    let of_prompt = &drawn.prompt;
    let made = drawn.texts.into_iter();
    Ok(made
        .map(|text| tokens.made(&prompt, text, of_prompt.clone()))
        .collect())
}

/// Most texts that the engine reads in one step.
const MOST_AT_ONCE: usize = 16;

fn by_tensors<M: LanguageModel>(
    model: &M,
    tokens: Tokens,
    job: GenerateJob<'_>,
    default_prompt: String,
) -> Result<Vec<Made>, TrainError> {
    if job.text.ahead != Ahead::Nothing {
        return Err(TrainError::other(
            "--draft and --lookup guess ahead where a transformer's text is drawn on the CPU; leave them out",
        ));
    }
    let mut options = job.text.options;
    tokens.end(&mut options);
    let (start, prompt) = tokens.open(job.text.opening, default_prompt)?;
    let start = options.fit(&start, model.longest());
    let tokenizer = &tokens.tokenizer;
    let of_prompt = |top| score(model, start, top).map_err(TrainError::other);
    let mut made = Vec::with_capacity(job.images.count);
    for i in 0..job.images.count {
        let seed = job.images.seed.wrapping_add(i as u64);
        let _ = (job.on_text)(&prompt);
        let random = &mut rng(seed, Stream::Sample, 0);
        let strategy = job.text.strategy;
        let written = strategy
            .complete(model, tokenizer, start, &options, random, &mut *job.on_text)
            .map_err(TrainError::other)?;
        let _ = (job.on_text)("\n");
        if let (0, Some(page)) = (i, &job.text.attention) {
            let all = [start, &written.ids].concat();
            let seen = &all[..all.len().min(model.longest())];
            look(page, &job.model, seen, tokenizer, |ids| {
                model.attention_maps(Tensor::from_data(ids, &job.device))
            })?;
        }
        let of_prompt = options.log_probs.map(of_prompt).transpose()?;
        made.push(tokens.made(&prompt, written, of_prompt.unwrap_or_default()));
    }
    Ok(made)
}

impl Tokens {
    fn made(&self, prompt: &str, written: Generated, of_prompt: Vec<TokenLogProb>) -> Made {
        Made::Text {
            prompt: prompt.to_owned(),
            text: written.text,
            ids: written.ids,
            stop: written.stop,
            in_form: written.in_form,
            log_probs: [written.log_probs, of_prompt].map(|all| spell(&self.tokenizer, all)),
        }
    }
}

/// What stands for the ids.
fn spell(tokenizer: &Tokenizer, log_probs: Vec<TokenLogProb>) -> Vec<SpeltLogProb> {
    let spelt = |id: u32| (id, tokenizer.decode(&[id]).unwrap_or_default());
    let one = |one: TokenLogProb| SpeltLogProb {
        token: spelt(one.id),
        log_prob: one.log_prob,
        top: one.top.into_iter().map(|(id, p)| (spelt(id), p)).collect(),
    };
    log_probs.into_iter().map(one).collect()
}
