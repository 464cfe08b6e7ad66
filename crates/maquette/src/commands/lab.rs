//! `maquette lab`: run the handbook's experiments and say which claims hold.

use std::path::Path;
use std::process::{Command, Stdio};

use maquette::labs::{self, LabContext, LabError, LabResult, TOPICS, Topic};
use miette::IntoDiagnostic;
use serde_json::json;

use super::device;
use super::progress::Status;
use crate::args::LabArgs;
use crate::errors::{Usage, failed};
use crate::output::Output;

/// Run one lab, all of them, or list the sixty topics.
pub(crate) fn run(args: &LabArgs, output: Output) -> miette::Result<()> {
    match args.lab.as_str() {
        "list" => {
            list(output);
            Ok(())
        }
        "all" => {
            let topics: Vec<_> = TOPICS
                .iter()
                .filter(|topic| wanted(topic, args.quick))
                .collect();
            let results = topics
                .iter()
                .map(|topic| apart(topic, args, output))
                .collect::<miette::Result<Vec<_>>>()?;
            let failed: Vec<_> = results
                .iter()
                .filter(|result| !result.pass)
                .map(|result| result.lab)
                .collect();
            output.line(format_args!(
                "{} of {} labs pass",
                results.len() - failed.len(),
                results.len()
            ));
            output.object(&json!({ "labs": results, "pass": failed.is_empty() }));
            match failed.is_empty() {
                true => Ok(()),
                false => Err(miette::miette!("a claim does not hold in lab {failed:?}")),
            }
        }
        name => {
            let topic =
                labs::find(name).ok_or_else(|| unknown(&LabError::Unknown(name.to_owned())))?;
            if topic.lab.is_none() {
                return Err(miette::miette!(
                    "lab {} ({}) is not there yet; `maquette lab list` shows which are",
                    topic.number,
                    topic.title
                ));
            }
            let result = one(topic, args, output)?;
            output.object(&json!(result));
            match result.pass {
                true => Ok(()),
                false => Err(miette::miette!(
                    "a claim of lab {} does not hold",
                    topic.number
                )),
            }
        }
    }
}

fn wanted(topic: &Topic, quick: bool) -> bool {
    topic.lab.as_ref().is_some_and(|lab| lab.ci || !quick)
}

fn unknown(error: &LabError) -> miette::Report {
    Usage::new(
        error.to_string(),
        "give a number from 1 to 60, a name, `list` or `all`",
    )
    .into()
}

/// Runs one lab of many in a process of its own, so that what it measures of its memory is its own.
fn apart(topic: &Topic, args: &LabArgs, output: Output) -> miette::Result<LabResult> {
    let mut child = Command::new(std::env::current_exe().into_diagnostic()?);
    child.args(["lab", topic.slug, "--json", "--device", &args.device]);
    child.args(["--seed", &args.seed.to_string()]);
    child.args(["--threads", &rayon::current_num_threads().to_string()]);
    for (flag, given) in [
        ("--quick", args.quick),
        ("--record", args.record),
        ("--quiet", output.quiet),
    ] {
        child.args(given.then_some(flag));
    }
    for (flag, path) in [("--data", &args.data), ("--out", &args.out)] {
        child.args(
            path.iter()
                .flat_map(|path| [flag.as_ref(), path.as_os_str()]),
        );
    }
    let done = child.stderr(Stdio::inherit()).output().into_diagnostic()?;
    let text = String::from_utf8_lossy(&done.stdout);
    let last = text.lines().last().unwrap_or_default();
    let result = serde_json::from_str(last)
        .map_err(|_| miette::miette!("lab {} did not finish: {}", topic.number, done.status))?;
    print(topic, &result, output);
    Ok(result)
}

fn one(topic: &Topic, args: &LabArgs, output: Output) -> miette::Result<LabResult> {
    // Looked for before the work: a full form may take an hour.
    let handbook = match args.record {
        true => Some(labs::handbook().ok_or_else(|| {
            Usage::new(
                "--record: there is no handbook/ here or above",
                "run it inside the repository",
            )
        })?),
        false => None,
    };
    let status = Status::new(output.quiet);
    let label = format!("lab {} {}", topic.number, topic.slug);
    status.say(&label);
    let progress = |what: &str| status.say(&format!("{label}: {what}"));
    let context = LabContext {
        seed: args.seed,
        quick: args.quick,
        data: labs::data_root(args.data.as_deref()),
        device: device::parse(&args.device)?,
        progress: &progress,
    };
    let outcome = labs::run(topic, &context).map_err(failed);
    status.clear();
    let (result, plot) = outcome?;
    print(topic, &result, output);
    if let Some(handbook) = handbook {
        labs::record(topic, &result, &plot, &handbook).map_err(failed)?;
        output.line(format_args!(
            "recorded in {}",
            handbook.join(topic.folder()).display()
        ));
    } else {
        let folder = args
            .out
            .as_deref()
            .unwrap_or(Path::new("labs"))
            .join(topic.folder());
        result.write(&plot, &folder).map_err(failed)?;
        output.line(format_args!(
            "plot in {}",
            folder.join("plot.svg").display()
        ));
    }
    Ok(result)
}

fn print(topic: &Topic, result: &LabResult, output: Output) {
    output.line(format_args!("lab {}: {}", topic.number, topic.title));
    let width = result
        .claims
        .iter()
        .map(|claim| claim.claim.chars().count())
        .max()
        .unwrap_or(0);
    output.line(format_args!(
        "      {:width$}  {:>12}  {:>12}  {:>10}",
        "claim", "got", "expected", "tolerance"
    ));
    for claim in &result.claims {
        output.line(format_args!(
            "{} {:width$}  {:>12}  {:>12}  {:>10}",
            if claim.pass { "ok   " } else { "FAIL " },
            claim.claim,
            labs::number(claim.got),
            format!("{} {}", claim.relation.sign(), labs::number(claim.expected)),
            labs::number(claim.tolerance),
        ));
    }
    for note in &result.notes {
        output.line(format_args!("note  {note}"));
    }
    output.line(format_args!(
        "{} in {} s, seed {}",
        if result.pass { "pass" } else { "FAIL" },
        result.seconds,
        result.seed
    ));
}

fn list(output: Output) {
    for topic in &TOPICS {
        let quick = if topic.lab.as_ref().is_some_and(|lab| lab.ci) {
            "ci"
        } else {
            ""
        };
        output.line(format_args!(
            "{:>2}  {:8} {:2}  {:26} {}",
            topic.number,
            topic.state(),
            quick,
            topic.slug,
            topic.title
        ));
    }
    let rows: Vec<_> = TOPICS
        .iter()
        .map(|topic| json!({"lab": topic.number, "name": topic.slug, "title": topic.title, "state": topic.state(), "ci": topic.lab.as_ref().is_some_and(|lab| lab.ci)}))
        .collect();
    output.object(&json!({ "labs": rows }));
}
