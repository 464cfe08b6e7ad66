//! `maquette evaluate`: measure a run's model again.

use maquette::train::recipes::{self, EvaluateJob};
use serde_json::json;

use super::device;
use super::progress::Status;
use crate::args::EvaluateArgs;
use crate::errors::report;
use crate::output::Output;

/// Print the metrics, each with the signature that says how it was measured.
pub(crate) fn run(args: EvaluateArgs, output: Output) -> miette::Result<()> {
    let status = Status::new(output.quiet);
    let evaluation = recipes::evaluate(EvaluateJob {
        run: args.run,
        data: args.data,
        metrics: args.metrics,
        device: device::parse(&args.device)?,
        say: &mut |what| status.say(what),
    });
    status.clear();
    let evaluation = evaluation.map_err(report)?;
    for (name, value) in &evaluation.metrics {
        output.line(format_args!("{name:28} {value:.4}"));
    }
    for (name, signature) in &evaluation.signatures {
        output.line(format_args!("# {name}: {signature}"));
    }
    output.object(&json!({ "metrics": evaluation.metrics, "signature": evaluation.signatures }));
    Ok(())
}
