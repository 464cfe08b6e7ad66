//! `maquette evaluate`: measure a run's model again, or any language model on a text or by tasks.

use std::path::{Path, PathBuf};

use maquette::data::hub::Want;
use maquette::eval::rolling::Rolling;
use maquette::eval::tasks::Asking;
use maquette::train::Evaluation;
use maquette::train::language::{self, TaskData, TaskSource, Tasked, TasksJob, TextJob};
use maquette::train::recipes::{self, EvaluateJob};
use serde_json::{Map, Value, json};

use super::progress::Status;
use super::{device, hub};
use crate::args::{EvaluateArgs, Windows};
use crate::errors::{Usage, failed, report};
use crate::output::Output;

/// The tasks that come along, over stories of the built-in grammar: name, what is asked, file.
pub(super) const TASKS: [(&str, &str, &str); 2] = [
    (
        "story-ending",
        "which of four sentences ends a story; multiple choice",
        include_str!("../../../../tasks/story-ending.yaml"),
    ),
    (
        "story-word",
        "the last word of a story; log-likelihood",
        include_str!("../../../../tasks/story-word.yaml"),
    ),
];

/// Print the metrics, each with the signature that says how it was measured.
pub(crate) fn run(mut args: EvaluateArgs, output: Output) -> miette::Result<()> {
    args.model = hub::local(&args.model, Want::Model, output)?;
    if let Some(data) = &mut args.data {
        *data = hub::local(data, Want::Data, output)?;
    }
    if !args.tasks.is_empty() {
        return tasks(args, output);
    }
    let status = Status::new(output.quiet);
    let device = device::parse(&args.device)?;
    let say = &mut |what: &str| status.say(what);
    let evaluation = if is_text(&args) {
        let Some(data) = &args.data else {
            return Err(Usage::new(
                format!("measure {} on which text?", args.model.display()),
                "give it with --data FILE, or --data - and the text on stdin",
            )
            .into());
        };
        let spelt = args.metrics.iter().map(|name| name.replace('-', "_"));
        language::measure(TextJob {
            text: text(data)?,
            model: args.model,
            rolling: args.windows.map_or(Rolling::Strided, Rolling::from),
            context: args.context,
            stride: args.stride,
            metrics: spelt.collect(),
            device,
            say,
        })
    } else {
        recipes::evaluate(EvaluateJob {
            run: args.model,
            data: args.data,
            metrics: args.metrics,
            device,
            say,
        })
    };
    status.clear();
    show(&evaluation.map_err(report)?, output);
    Ok(())
}

/// Whether a text is to be measured, and not a run by its recipe.
fn is_text(args: &EvaluateArgs) -> bool {
    let asked = args.windows.is_some() || args.context.is_some() || args.stride.is_some();
    let piped = args.data.as_deref() == Some(Path::new("-"));
    let Ok(recipe) = std::fs::read_to_string(args.model.join("recipe.toml")) else {
        return true;
    };
    asked || piped || (args.data.is_some() && is_language_model_on_built_in_data(&recipe))
}

/// Whose own data no path replaces: what is given is another text.
fn is_language_model_on_built_in_data(recipe: &str) -> bool {
    let recipe: toml::Table = recipe.parse().unwrap_or_default();
    let source = recipe.get("data").and_then(|data| data.get("source"));
    recipe.get("family").and_then(toml::Value::as_str) == Some("gpt")
        && source.and_then(toml::Value::as_str) != Some("path")
}

fn text(path: &Path) -> miette::Result<String> {
    match path == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()).map_err(failed),
        false => maquette::data::text::read(path).map_err(failed),
    }
}

fn show(evaluation: &Evaluation, output: Output) {
    for (name, value) in &evaluation.metrics {
        output.line(format_args!("{name:28} {value:.4}"));
    }
    for (name, signature) in &evaluation.signatures {
        output.line(format_args!("# {name}: {signature}"));
    }
    output.object(&json!({ "metrics": evaluation.metrics, "signature": evaluation.signatures }));
}

fn tasks(args: EvaluateArgs, output: Output) -> miette::Result<()> {
    let status = Status::new(output.quiet);
    let sources = args.tasks.iter().map(|name| source(name));
    let done = language::tasks(TasksJob {
        tasks: sources.collect::<miette::Result<_>>()?,
        model: args.model,
        asking: Asking {
            num_fewshot: args.num_fewshot,
            limit: args.limit.map(|limit| limit as usize),
            fewshot_seed: args.fewshot_seed,
            resamples: args.bootstrap_iters,
        },
        out: args.out.clone(),
        device: device::parse(&args.device)?,
        say: &mut |what| status.say(what),
    });
    status.clear();
    let Tasked { results, .. } = done.map_err(report)?;
    let (mut metrics, mut signatures) = (Map::new(), Map::new());
    for (task, row) in results["results"].as_object().into_iter().flatten() {
        for (key, value) in row.as_object().into_iter().flatten() {
            let Some((metric, filter)) = key.split_once(',') else {
                continue;
            };
            if metric.ends_with("_stderr") {
                continue;
            }
            let error = row[format!("{metric}_stderr,{filter}")].as_f64();
            let error = error.map_or(String::new(), |error| format!(" ± {error:.4}"));
            let name = format!("{task}/{key}");
            output.line(format_args!(
                "{name:40} {:.4}{error}",
                value.as_f64().unwrap_or(f64::NAN)
            ));
            let shots = &results["n-shot"][task];
            let signature = format!(
                "{metric}|task={task}|filter={filter}|n={}|shots={shots}|seed={}|tokenizer={}",
                row["sample_len"],
                args.fewshot_seed,
                results["tokenizer_hash"].as_str().unwrap_or_default()
            );
            metrics.insert(name.clone(), value.clone());
            signatures.insert(name, Value::String(signature));
        }
    }
    if let Some(out) = &args.out {
        output.line(format_args!("written to {}", out.display()));
    }
    output.object(
        &json!({ "metrics": metrics, "signature": signatures, "results": results["results"] }),
    );
    Ok(())
}

/// A task by its built-in name or its file.
fn source(name: &str) -> miette::Result<TaskSource> {
    if let Some((_, _, yaml)) = TASKS.iter().find(|(known, ..)| *known == name) {
        return Ok(TaskSource {
            name: name.to_owned(),
            yaml: (*yaml).to_owned(),
            data: TaskData::BuiltIn(language::story_rows),
        });
    }
    let path = PathBuf::from(name);
    let yaml = std::fs::read_to_string(&path).map_err(|error| {
        let known: Vec<&str> = TASKS.iter().map(|(known, ..)| *known).collect();
        Usage::new(
            format!("--tasks {name}: {error}"),
            format!(
                "give the path of a task's YAML file, or one of {}",
                known.join(", ")
            ),
        )
    })?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok(TaskSource {
        name: name.to_owned(),
        yaml,
        data: TaskData::Folder(folder),
    })
}

impl From<Windows> for Rolling {
    fn from(windows: Windows) -> Self {
        match windows {
            Windows::Strided => Self::Strided,
            Windows::Harness => Self::Harness,
            Windows::Halves => Self::Halves,
        }
    }
}
