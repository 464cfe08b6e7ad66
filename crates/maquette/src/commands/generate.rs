//! `maquette generate`: text or images from a trained model, or an image made again.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use maquette::data::hub::Want;
use maquette::generate::animation::Animation;
use maquette::generate::constraint::Form;
use maquette::generate::diffusion::Sampler;
use maquette::generate::fill::Candidate;
use maquette::generate::latent::{Interpolation, Projection};
use maquette::generate::sampling::{Decoding, Dry, Mirostat, Xtc};
use maquette::generate::search;
use maquette::generate::template::Chat;
use maquette::generate::text::{GenerateOptions, Strategy};
use maquette::train::recipes::generate::{self, Ahead, GenerateJob, Made, SpeltLogProb, TextAsk};
use maquette::train::recipes::latent::{LatentAsk, Walk};
use maquette::train::recipes::opening::Opening;
use maquette::train::recipes::pictures::ImageRequest;
use serde_json::{Value, json};

use super::progress::Status;
use super::{device, hub};
use crate::args::{
    AheadArgs, ChatArgs, EarlyStopping, FormArgs, GenerateArgs, ImageArgs, LatentArgs, Moving,
    SamplingArgs, SearchArgs, Way,
};
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
    let Some(model) = &args.model else {
        return Err(Usage::new(
            "generate with what?",
            "name a run folder, or --replay IMAGE",
        )
        .into());
    };
    let model = hub::local(model, Want::Model, output)?;
    let text = TextAsk {
        opening: opening(&args)?,
        options: options(&args)?,
        attention: args.text.attention.clone(),
        strategy: strategy(&args),
        ahead: ahead(&args.ahead, output)?,
    };
    let asked = (text.options.clone(), text.strategy);
    let images = images(&args.images, args.count, args.seed)?;
    let status = Status::new(output.quiet);
    let job = GenerateJob {
        model,
        text,
        images,
        given: args.images.images.clone(),
        latent: latent(&args.latent),
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
    show(&made, &args, &asked, output)
}

fn show(
    made: &[Made],
    args: &GenerateArgs,
    (options, strategy): &(GenerateOptions, Strategy),
    output: Output,
) -> miette::Result<()> {
    let mut outputs: Vec<Value> = Vec::new();
    let mut texts = String::new();
    for one in made {
        outputs.push(match one {
            Made::Text { prompt, text, .. } => {
                texts.push_str(&format!("{prompt}{text}\n"));
                text_object(one, options)
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
        object["strategy"] = json!(strategy);
        object["decoding"] = json!(options.decoding);
    }
    output.object(&object);
    Ok(())
}

/// What `--json` says of one text.
fn text_object(made: &Made, options: &GenerateOptions) -> Value {
    let Made::Text {
        text,
        ids,
        stop,
        in_form,
        log_probs: [of_text, of_prompt],
        ..
    } = made
    else {
        return Value::Null;
    };
    let mut object = json!({ "text": text, "ids": ids, "stop": stop });
    if options.form.is_some() {
        object["in_form"] = json!(in_form);
        if !in_form {
            eprintln!(
                "the text was cut before it had its form; give it more room with --max-tokens (it had {})",
                options.max_tokens
            );
        }
    }
    if options.log_probs.is_some() {
        object["logprobs"] = of_text.iter().map(log_prob_object).collect();
        object["prompt_logprobs"] = of_prompt.iter().map(log_prob_object).collect();
    }
    object
}

/// The names are those of OpenAI's interface.
fn log_prob_object(one: &SpeltLogProb) -> Value {
    let object = |(id, token): &(u32, String), log_prob: f32| json!({ "id": id, "token": token, "logprob": log_prob });
    let mut all = object(&one.token, one.log_prob);
    let top = one
        .top
        .iter()
        .map(|(token, log_prob)| object(token, *log_prob));
    all["top_logprobs"] = top.collect();
    all
}

fn opening(args: &GenerateArgs) -> miette::Result<Opening> {
    let prompt = match args.prompt.as_deref() {
        Some("-") => Some(std::io::read_to_string(std::io::stdin()).map_err(failed)?),
        _ => args.prompt.clone(),
    };
    let ChatArgs {
        messages,
        system,
        chat_template,
        ..
    } = &args.chat;
    if !args.chat.asked() {
        return Ok(Opening::Prompt(prompt));
    }
    let mut chat = match messages {
        Some(path) => Chat::from_json(&read(path)?).map_err(failed)?,
        None => Chat::new(Vec::new()),
    };
    if let Some(system) = system {
        chat = chat.with_system(system);
    }
    if let Some(prompt) = prompt {
        chat = chat.with_user(&prompt);
    }
    if chat.messages.is_empty() {
        let help = "say it with --prompt, or give the messages with --messages FILE";
        return Err(Usage::new("--chat without a message", help).into());
    }
    let template = chat_template.as_deref().map(read).transpose()?;
    Ok(Opening::Chat(chat, template))
}

/// A file that was named on the command line.
fn read(path: &Path) -> miette::Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        failed(std::io::Error::other(format!(
            "cannot read {}: {error}",
            path.display()
        )))
    })
}

fn ahead(args: &AheadArgs, output: Output) -> miette::Result<Ahead> {
    Ok(match &args.draft {
        Some(draft) => Ahead::Draft(hub::local(draft, Want::Model, output)?, args.guesses),
        None if args.lookup => Ahead::Lookup(args.guesses),
        None => Ahead::Nothing,
    })
}

fn strategy(args: &GenerateArgs) -> Strategy {
    let SearchArgs {
        best_of,
        beams,
        length_penalty,
        early_stopping,
        penalty_alpha,
    } = args.search;
    match (best_of, beams, penalty_alpha) {
        (Some(count), ..) => Strategy::BestOf { count },
        (_, Some(beams), _) => Strategy::Beams {
            beams,
            length_penalty,
            early_stopping: match early_stopping {
                EarlyStopping::Estimate => search::EarlyStopping::Estimate,
                EarlyStopping::AtOnce => search::EarlyStopping::AtOnce,
                EarlyStopping::Never => search::EarlyStopping::Never,
            },
        },
        (.., Some(penalty_alpha)) => Strategy::Contrastive {
            top_k: match args.sampling.top_k {
                0 => 4,
                top_k => top_k,
            },
            penalty_alpha,
        },
        _ => Strategy::Draw,
    }
}

fn form(args: &FormArgs) -> miette::Result<Option<Form>> {
    if let Some(schema) = &args.json_schema {
        let (name, text) = match schema.trim_start().starts_with('{') {
            true => ("--json-schema", schema.clone()),
            false => (schema.as_str(), read(Path::new(schema))?),
        };
        let schema = serde_json::from_str(&text).map_err(|error| {
            failed(std::io::Error::other(format!(
                "{name}: not a JSON schema: {error}"
            )))
        })?;
        return Ok(Some(Form::JsonSchema(schema)));
    }
    if let Some(path) = &args.grammar {
        return Ok(Some(Form::Grammar(read(path)?)));
    }
    let choices = (!args.choices.is_empty()).then(|| Form::Choices(args.choices.clone()));
    Ok(args.regex.clone().map(Form::Regex).or(choices))
}

fn options(args: &GenerateArgs) -> miette::Result<GenerateOptions> {
    let defaults = GenerateOptions::default();
    let breakers = &args.sampling.dry_sequence_breaker;
    Ok(GenerateOptions {
        max_tokens: args.text.max_tokens,
        stop: args.text.stop.clone(),
        decoding: decoding(&args.sampling),
        logit_bias: args.sampling.logit_bias.clone(),
        dry_breakers: match breakers.is_empty() {
            true => defaults.dry_breakers,
            false => breakers.clone(),
        },
        form: form(&args.form)?,
        log_probs: args.text.logprobs,
        truncate: args.text.truncate,
        ..GenerateOptions::default()
    })
}

fn decoding(args: &SamplingArgs) -> Decoding {
    Decoding {
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
        dry: (args.dry_multiplier > 0.0).then_some(Dry {
            multiplier: args.dry_multiplier,
            base: args.dry_base,
            allowed_length: args.dry_allowed_length,
            window: args.dry_window,
        }),
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        penalty_window: args.penalty_window,
        order: args.samplers.unwrap_or_default(),
    }
}

fn images(args: &ImageArgs, count: usize, seed: u64) -> Result<ImageRequest, Usage> {
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
        count,
        seed,
        labels: labels.unwrap_or_default(),
        steps: args.steps,
        guidance: args.guidance,
        sampler: sampler.transpose()?,
        truncation: args.truncation,
    })
}

fn latent(args: &LatentArgs) -> Option<LatentAsk> {
    let what = match (args.interpolate.as_deref(), &args.traverse, &args.latent) {
        (Some([from, to]), ..) => Walk::Between {
            from: from.clone(),
            to: to.clone(),
            how: match args.path {
                Way::Line => Interpolation::Linear,
                Way::Arc => Interpolation::Spherical,
            },
        },
        (_, Some(at), _) => Walk::Axes {
            at: at.clone(),
            axes: args.axes.clone(),
            reach: args.reach,
        },
        (.., Some(code)) => Walk::Code(code.clone()),
        _ => return None,
    };
    Some(LatentAsk {
        what,
        points: args.points,
        animation: match args.animation {
            Moving::Gif => Animation::Gif,
            Moving::Apng => Animation::Apng,
        },
        projection: Projection {
            steps: args.project_steps,
            ..Projection::default()
        },
    })
}
