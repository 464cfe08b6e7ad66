//! `maquette generate`: text or images from a trained model, or an image made again.

use std::ops::ControlFlow;
use std::path::PathBuf;

use maquette::generate::diffusion::Sampler;
use maquette::generate::fill::Candidate;
use maquette::generate::sampling::{Decoding, Mirostat, Xtc};
use maquette::generate::text::GenerateOptions;
use maquette::train::recipes::generate::{self, GenerateJob, Made, TextAsk};
use maquette::train::recipes::pictures::ImageRequest;
use serde_json::{Value, json};

use super::device;
use super::progress::Status;
use crate::args::GenerateArgs;
use crate::errors::{Usage, failed, report};
use crate::output::Output;

/// Generate, or replay.
pub(crate) fn run(args: GenerateArgs, output: Output) -> miette::Result<()> {
    let device = device::parse(&args.device)?;
    if let Some(image) = &args.replay {
        let out = args.out.unwrap_or_else(|| PathBuf::from("replayed.png"));
        let path = generate::replay(image, args.model.as_deref(), &out, &device).map_err(report)?;
        output.line(path.display());
        output.object(&json!({ "outputs": [{ "path": path }] }));
        return Ok(());
    }
    let Some(model) = args.model.clone() else {
        return Err(Usage::new(
            "generate with what?",
            "name a run folder, or --replay IMAGE",
        )
        .into());
    };
    let text = TextAsk {
        prompt: prompt(args.prompt.clone())?,
        options: options(&args),
        attention: args.attention.clone(),
    };
    let images = images(&args)?;
    let status = Status::new(output.quiet);
    let job = GenerateJob {
        model,
        text,
        images,
        // Text that goes to a file is not shown as it comes.
        on_text: &mut |piece| {
            if args.out.is_none() {
                status.clear();
                output.piece(piece);
            }
            ControlFlow::Continue(())
        },
        out: args.out.clone(),
        device,
        say: &mut |what| status.say(what),
    };
    let made = generate::generate(job);
    status.clear();
    let made = made.map_err(report)?;
    show(&made, &args, output)
}

fn show(made: &[Made], args: &GenerateArgs, output: Output) -> miette::Result<()> {
    let mut outputs: Vec<Value> = Vec::new();
    let mut texts = String::new();
    for one in made {
        outputs.push(match one {
            Made::Text { prompt, text, ids } => {
                texts.push_str(&format!("{prompt}{text}\n"));
                json!({ "text": text, "ids": ids })
            }
            Made::Filled(filled) => {
                for gap in &filled.gaps {
                    for one in gap {
                        output.line(format!("{:<16} {:.4}", one.token, one.probability));
                    }
                    output.line("");
                }
                output.line(&filled.text);
                let candidate = |one: &Candidate| {
                    json!({ "id": one.id, "token": one.token, "probability": one.probability })
                };
                let gaps = filled.gaps.iter();
                let gaps = gaps.map(|gap| gap.iter().map(candidate).collect::<Vec<_>>());
                let gaps: Vec<_> = gaps.collect();
                json!({ "text": filled.text, "ids": filled.ids, "gaps": gaps })
            }
            Made::Image { path, seed } => {
                output.line(path.display());
                json!({ "path": path, "seed": seed })
            }
        });
    }
    match &args.out {
        Some(path) if !texts.is_empty() => {
            std::fs::write(path, &texts).map_err(|error| {
                failed(std::io::Error::other(format!(
                    "cannot write {}: {error}",
                    path.display()
                )))
            })?;
        }
        _ => {}
    }
    let mut object = json!({ "outputs": outputs });
    if !texts.is_empty() {
        object["decoding"] = json!(options(args).decoding);
    }
    output.object(&object);
    Ok(())
}

fn prompt(text: Option<String>) -> miette::Result<Option<String>> {
    match text.as_deref() {
        Some("-") => Ok(Some(
            std::io::read_to_string(std::io::stdin()).map_err(failed)?,
        )),
        _ => Ok(text),
    }
}

fn options(args: &GenerateArgs) -> GenerateOptions {
    GenerateOptions {
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        end_tokens: Vec::new(),
        decoding: Decoding {
            temperature: args.temperature,
            top_k: (args.top_k > 0).then_some(args.top_k),
            top_p: (args.top_p < 1.0).then_some(args.top_p),
            min_p: (args.min_p > 0.0).then_some(args.min_p),
            typical_p: (args.typical_p < 1.0).then_some(args.typical_p),
            top_n_sigma: args.top_n_sigma,
            xtc: (args.xtc_probability > 0.0).then_some(Xtc {
                probability: args.xtc_probability,
                threshold: args.xtc_threshold,
            }),
            mirostat: args.mirostat_tau.map(|tau| Mirostat {
                tau,
                eta: args.mirostat_eta,
            }),
            repetition_penalty: args.repetition_penalty,
            presence_penalty: args.presence_penalty,
            frequency_penalty: args.frequency_penalty,
            penalty_window: args.penalty_window,
            order: args.samplers.unwrap_or_default(),
        },
    }
}

fn images(args: &GenerateArgs) -> Result<ImageRequest, Usage> {
    let sampler = args.sampler.as_deref().map(|name| match name {
        "ddpm" => Ok(Sampler::Ddpm),
        "ddim" => Ok(Sampler::Ddim { eta: 0.0 }),
        "heun" => Ok(Sampler::Heun),
        "dpm-solver-pp" => Ok(Sampler::DpmSolverPp),
        _ => Err(Usage::new(
            format!("--sampler {name}: no such sampler"),
            "there are ddpm, ddim, heun and dpm-solver-pp",
        )),
    });
    let labels = args.label.as_deref().map(|text| {
        text.split(',')
            .map(|label| label.trim().to_owned())
            .collect()
    });
    Ok(ImageRequest {
        count: args.count,
        seed: args.seed,
        labels: labels.unwrap_or_default(),
        steps: args.steps,
        guidance: args.guidance,
        sampler: sampler.transpose()?,
    })
}
