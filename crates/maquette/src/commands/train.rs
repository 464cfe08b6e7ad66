//! `maquette train`: resolve what was typed into a job, then run it.

use std::sync::atomic::{AtomicBool, Ordering};

use maquette::data::hub::Want;
use maquette::train::recipes::{self, Estimate, Job, Outcome};
use maquette::train::{Place, RunResult, Source, run};
use serde_json::json;

use super::progress::{TrainingLine, clock, listed, thousands};
use super::{device, hub, recipes as recipe_files};
use crate::args::TrainArgs;
use crate::errors::{Usage, failed, report};
use crate::output::Output;

/// Set by Ctrl-C; the loop saves a checkpoint and returns.
static STOP: AtomicBool = AtomicBool::new(false);

/// Train, resume, or say what training would take.
pub(crate) fn run(args: TrainArgs, output: Output) -> miette::Result<()> {
    let device = device::parse(&args.device)?;
    let sets = recipe_files::sets(
        &args.sets,
        &[("train.steps", args.steps), ("train.seed", args.seed)],
    )?;
    let (source, place) = match (&args.resume, &args.recipe) {
        (Some(dir), _) => {
            let text = run::recipe(dir).map_err(report)?;
            (
                Source::new("recipe.toml", &text, &sets),
                Place::Resume(dir.clone()),
            )
        }
        (None, Some(name)) => {
            let recipe = recipe_files::find(name)?;
            let place = match args.out {
                Some(dir) => Place::Out(dir),
                None => Place::New {
                    root: "runs".into(),
                    name: recipe.name.clone(),
                },
            };
            (Source::new(&recipe.name, &recipe.text, &sets), place)
        }
        (None, None) => {
            return Err(Usage::new(
                "train what?",
                "name a recipe (`maquette list recipes`) or --resume RUN",
            )
            .into());
        }
    };
    let data = args.data.map(|path| hub::local(&path, Want::Data, output));
    let data = data.transpose()?;
    let handler = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        eprintln!("\nstopping after this step; once more to stop at once");
    });
    handler.map_err(failed)?;

    let line = TrainingLine::new(output.quiet);
    let outcome = recipes::train(Job {
        source,
        place,
        data,
        device,
        device_name: args.device,
        dry_run: args.dry_run,
        stop: &STOP,
        on_event: &mut |event| line.event(&event),
    });
    line.clear();
    match outcome.map_err(report)? {
        Outcome::Trained(result) => trained(&result, output),
        Outcome::Estimated(estimate) => estimated(&estimate, output),
    }
    Ok(())
}

fn trained(result: &RunResult, output: Output) {
    output.line(format_args!("{}", listed(&result.metrics)));
    output.line(format_args!(
        "{} steps in {:.0} s",
        result.steps, result.seconds
    ));
    output.line(format_args!(
        "report: {}",
        result.run.join("report.html").display()
    ));
    output.object(&json!(result));
}

fn estimated(estimate: &Estimate, output: Output) {
    output.line(&estimate.recipe);
    output.line(format_args!(
        "# parameters  {}",
        thousands(estimate.parameters)
    ));
    output.line(format_args!("# memory      {:.0} MiB", estimate.memory_mib));
    output.line(format_args!(
        "# time        {} for training ({:.1} ms a step, measured over {} steps), evaluation not counted",
        clock(estimate.training()),
        estimate.seconds_per_step * 1000.0,
        estimate.measured_steps,
    ));
    output.object(&json!({
        "recipe": estimate.recipe,
        "parameters": estimate.parameters,
        "memory_mib": estimate.memory_mib,
        "seconds_per_step": estimate.seconds_per_step,
        "seconds": estimate.training().as_secs_f64(),
    }));
}
