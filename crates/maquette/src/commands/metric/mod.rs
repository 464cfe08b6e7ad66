//! `maquette metric`: metrics alone, on files.

mod images;
mod report;
mod sets;
mod text;

use crate::args::MetricCommand;
use crate::output::Output;

/// Measure what the sub-command names.
pub(crate) fn run(command: MetricCommand, output: Output) -> miette::Result<()> {
    let report = match command {
        MetricCommand::Texts(metric) => text::measure(metric)?,
        MetricCommand::Images(metric) => images::measure(metric, output)?,
    };
    report.print(output);
    Ok(())
}
