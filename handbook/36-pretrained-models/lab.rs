//! A trained model in use: one interface to every form it is kept in, and dials that do what they say.

use std::ops::ControlFlow;
use std::path::Path;

use crate::data::{Tokenizer, stories, tokenizer::TokenizerConfig};
use crate::generate::gguf as tokens;
use crate::generate::sampling::{Decoding, distribution};
use crate::generate::text::{
    Feed, GenerateOptions, Generated, StopReason, Strategy, complete, encode_prompt, token_model,
};
use crate::labs::training::TextTraining;
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome};
use crate::models::gguf::{self, Mix};
use crate::models::{Gpt, GptConfig, hf, llama2c};
use crate::rng::{Stream, rng};
use crate::train::recipes::generate::{self, Ahead, GenerateJob, Made, TextAsk};
use crate::train::recipes::opening::Opening;
use crate::train::recipes::pictures::ImageRequest;

const PROMPT: &str = "Once upon a time";
const TEMPERATURES: [f64; 6] = [0.2, 0.5, 0.8, 1.0, 1.5, 2.0];

/// A model as it came.
struct Pretrained {
    name: &'static str,
    config: GptConfig,
    model: Gpt,
    tokenizer: Tokenizer,
}

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let mut notes = Vec::new();
    let published = lab.real("stories260k");
    if published.is_none() {
        notes.push(
            "The model is one that the lab trains in seconds; the full form uses a published one \
             (stories260K of llama2.c) where it is among the data."
                .into(),
        );
    }
    let pretrained = match published {
        Some(folder) => open(lab, &folder)?,
        None => train(lab)?,
    };
    let mut claims = one_interface(lab, &pretrained)?;
    let (dials, chart) = dials(lab, &pretrained)?;
    claims.extend(dials);
    Ok(Outcome {
        claims,
        plot: chart.svg(),
        notes,
    })
}

fn open(lab: &LabContext<'_>, folder: &Path) -> Result<Pretrained, LabError> {
    let weights = folder.join("stories260K.bin");
    let (config, model) = llama2c::load(&weights, &lab.device).doing("reading the model")?;
    let tokenizer = Tokenizer::load_llama2c(&folder.join("tok512.bin"));
    Ok(Pretrained {
        name: "stories260K",
        config,
        model,
        tokenizer: tokenizer.doing("reading the tokenizer")?,
    })
}

fn train(lab: &LabContext<'_>) -> Result<Pretrained, LabError> {
    let corpus = stories::generate(600, lab.seed);
    let bpe = TokenizerConfig {
        vocab_size: 400,
        ..TokenizerConfig::default()
    };
    let tokenizer = bpe.train(std::iter::once(Ok(corpus.clone())));
    let training = TextTraining {
        corpus: &corpus,
        tokenizer: tokenizer.doing("training a tokenizer")?,
        config: GptConfig {
            n_kv_heads: Some(2),
            seq_len: 128,
            ..GptConfig {
                d_model: 64,
                n_layers: 2,
                n_heads: 4,
                ..GptConfig::llama()
            }
        },
        steps: 250,
        batch: 8,
        rates: (3e-3, 3e-4),
    };
    let trained = training.run(lab)?;
    Ok(Pretrained {
        name: "a small Llama",
        config: trained.config,
        model: trained.model,
        tokenizer: trained.tokenizer,
    })
}

/// The same request to the library, to a folder and to a GGUF file as `maquette generate` makes it.
fn one_interface(
    lab: &LabContext<'_>,
    Pretrained {
        config,
        model,
        tokenizer,
        name,
    }: &Pretrained,
) -> Result<Vec<Claim>, LabError> {
    lab.say("asking the model in three forms");
    let place = tempfile::tempdir().map_err(|e| LabError::io(&std::env::temp_dir(), e))?;
    let folder = place.path().join("folder");
    hf::save(&folder, config, model).doing("saving a folder")?;
    tokenizer.save(&folder).doing("saving the tokenizer")?;
    let file = place.path().join("model.gguf");
    let metadata =
        tokens::metadata(tokenizer, config.vocab_size).doing("describing a tokenizer")?;
    let exact = Mix::ALL.iter().find(|(name, _)| *name == "f32");
    let mut claims = Vec::new();
    let options = |temperature| GenerateOptions {
        max_tokens: 40,
        decoding: Decoding {
            temperature,
            ..Decoding::default()
        },
        ..GenerateOptions::default()
    };
    if let (Some(metadata), Some((_, mix))) = (metadata, exact) {
        gguf::save(&file, config, model, *mix, metadata).doing("saving a GGUF file")?;
    }
    for (path, form) in [(&folder, "a Hugging Face folder"), (&file, "a GGUF file")] {
        if !path.exists() {
            continue;
        }
        let mut apart = 0;
        for (seed, temperature) in [(1, 0.0), (2, 0.8), (3, 1.2)] {
            let ours = write(model, tokenizer, &options(temperature), seed)?;
            let theirs = command(lab, path, options(temperature), seed)?;
            apart += differing(&ours.ids, &theirs);
        }
        claims.push(Claim::at_most(
            format!(
                "{name}: tokens of 120 that the command draws from {form} and the library does not"
            ),
            apart as f64,
            0.0,
        ));
    }
    Ok(claims)
}

fn differing(a: &[u32], b: &[u32]) -> usize {
    let pairs = a.iter().zip(b).filter(|(a, b)| a != b).count();
    pairs + a.len().abs_diff(b.len())
}

fn write(
    model: &Gpt,
    tokenizer: &Tokenizer,
    options: &GenerateOptions,
    seed: u64,
) -> Result<Generated, LabError> {
    let mut rng = rng(seed, Stream::Sample, 0);
    let go_on = |_: &str| ControlFlow::Continue(());
    complete(model, tokenizer, PROMPT, options, &mut rng, go_on).doing("writing")
}

/// What `maquette generate` does with what was typed.
fn command(
    lab: &LabContext<'_>,
    path: &Path,
    options: GenerateOptions,
    seed: u64,
) -> Result<Vec<u32>, LabError> {
    let made = generate::generate(GenerateJob {
        model: path.to_owned(),
        text: TextAsk {
            opening: Opening::Prompt(Some(PROMPT.to_owned())),
            options,
            attention: None,
            strategy: Strategy::Draw,
            ahead: Ahead::Nothing,
        },
        given: None,
        images: ImageRequest {
            count: 1,
            seed,
            labels: Vec::new(),
            steps: None,
            guidance: None,
            sampler: None,
            truncation: None,
        },
        latent: None,
        on_text: &mut |_| ControlFlow::Continue(()),
        out: None,
        device: lab.device.clone(),
        say: &mut |_| {},
    });
    Ok(match made.doing("generating")?.into_iter().next() {
        Some(Made::Text { ids, .. }) => ids,
        _ => Vec::new(),
    })
}

/// Temperature, the most tokens, stop strings, the seed.
fn dials(
    lab: &LabContext<'_>,
    Pretrained {
        model,
        tokenizer,
        name,
        ..
    }: &Pretrained,
) -> Result<(Vec<Claim>, Chart), LabError> {
    lab.say("turning the dials");
    let plain = GenerateOptions::default();
    let bits = entropies(model, tokenizer)?;
    let rises = bits.windows(2).map(|pair| pair[1].1 - pair[0].1);
    let least = rises.fold(f64::INFINITY, f64::min);
    let mut over = 0.0;
    for max_tokens in [1, 7, 30] {
        let asked = GenerateOptions {
            max_tokens,
            ..plain.clone()
        };
        let made = write(model, tokenizer, &asked, 5)?;
        let short = made.stop == StopReason::MaxTokens && made.ids.len() != max_tokens;
        over += f64::from(u8::from(short || made.ids.len() > max_tokens));
    }
    let (mut stops, mut shown) = (0.0, 0.0);
    for seed in 0..8 {
        let asked = GenerateOptions {
            max_tokens: 100,
            stop: vec![".".to_owned()],
            ..plain.clone()
        };
        let made = write(model, tokenizer, &asked, seed)?;
        stops += f64::from(u8::from(made.stop == StopReason::StopString));
        shown += f64::from(u8::from(made.text.contains('.')));
    }
    let text = |seed| write(model, tokenizer, &plain, seed).map(|made| made.ids);
    let claims = vec![
        Claim::at_least(
            format!("{name}: bits of the next token, least rise from one temperature to the next"),
            least,
            0.01,
        ),
        Claim::at_most(
            "requests of 3 whose text is not as long as --max-tokens says",
            over,
            0.0,
        ),
        Claim::at_least("texts of 8 that end at the stop string", stops, 4.0),
        Claim::at_most("texts of 8 that show the stop string", shown, 0.0),
        Claim::at_most(
            "tokens that differ between two texts of one seed",
            differing(&text(1)?, &text(1)?) as f64,
            0.0,
        ),
        Claim::at_least(
            "tokens that differ between texts of two seeds",
            differing(&text(1)?, &text(2)?) as f64,
            1.0,
        ),
    ];
    let chart = Chart::new(
        "What temperature does",
        "temperature",
        "entropy of the next token, bits",
    )
    .line(name, bits);
    Ok((claims, chart))
}

/// The mean entropy of the next token over a text of the model, at every temperature.
fn entropies(model: &Gpt, tokenizer: &Tokenizer) -> Result<Vec<(f64, f64)>, LabError> {
    let asked = GenerateOptions {
        max_tokens: 40,
        ..GenerateOptions::default()
    };
    let made = write(model, tokenizer, &asked, 0)?;
    let prompt = encode_prompt(tokenizer, PROMPT).doing("encoding the prompt")?;
    let mut reader = token_model(model);
    let mut rows = vec![(reader.forward)(Feed::Restart(&prompt)).doing("reading")?];
    for id in &made.ids {
        rows.push((reader.forward)(Feed::Append(*id)).doing("reading")?);
    }
    let mean = |temperature: f64| -> Result<f64, LabError> {
        let decoding = Decoding {
            temperature,
            ..Decoding::default()
        };
        let mut bits = 0.0;
        for logits in &rows {
            let p = distribution(logits, &[], &decoding).doing("a distribution")?;
            let possible = p.iter().filter(|p| **p > 0.0).map(|p| f64::from(*p));
            bits -= possible.map(|p| p * p.log2()).sum::<f64>();
        }
        Ok(bits / rows.len() as f64)
    };
    TEMPERATURES.iter().map(|t| Ok((*t, mean(*t)?))).collect()
}
