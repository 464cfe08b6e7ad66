//! What `maquette metric` prints.

use maquette::eval::bootstrap::{Comparison, Interval};
use serde_json::{Map, Value, json};

use crate::output::Output;

/// What is printed.
#[derive(Default)]
pub(super) struct Report {
    /// Name, value and signature.
    metrics: Vec<(String, f64, String)>,
    pub(super) intervals: std::collections::BTreeMap<String, Interval>,
    pub(super) comparisons: std::collections::BTreeMap<String, Comparison>,
    pub(super) segments: std::collections::BTreeMap<String, Vec<f64>>,
    /// How the figures must not be read.
    pub(super) warnings: Vec<String>,
}

impl Report {
    /// Adds a figure.
    pub(super) fn add(&mut self, name: &str, value: f64, signature: &str) {
        let row = (name.to_owned(), value, signature.to_owned());
        self.metrics.push(row);
    }

    /// Adds a figure with its interval.
    pub(super) fn add_interval(&mut self, name: &str, interval: Interval, signature: &str) {
        self.add(name, interval.value, signature);
        self.intervals.insert(name.to_owned(), interval);
    }

    /// Prints all of it.
    pub(super) fn print(&self, output: Output) {
        for (name, values) in &self.segments {
            for (line, value) in values.iter().enumerate() {
                output.line(format_args!("{}\t{name}\t{value:.4}", line + 1));
            }
        }
        for (name, value, _) in &self.metrics {
            let interval = self.intervals.get(name).map_or(String::new(), |interval| {
                format!("  95 %: {:.4} to {:.4}", interval.low, interval.high)
            });
            output.line(format_args!("{name:12} {value:10.4}{interval}"));
            if let Some(Comparison {
                baseline,
                difference,
                p_value,
                ..
            }) = self.comparisons.get(name)
            {
                output.line(format_args!(
                    "{:12} {:10.4}  95 %: {:.4} to {:.4}\n{:12} {:+10.4}  95 %: {:+.4} to {:+.4}  p = {p_value:.4}",
                    "  baseline",
                    baseline.value,
                    baseline.low,
                    baseline.high,
                    "  difference",
                    difference.value,
                    difference.low,
                    difference.high,
                ));
            }
        }
        for (name, _, signature) in &self.metrics {
            output.line(format_args!("# {name}: {signature}"));
        }
        for warning in &self.warnings {
            output.line(format_args!("# warning: {warning}"));
        }
        let metrics: Map<String, Value> = self
            .metrics
            .iter()
            .map(|m| (m.0.clone(), m.1.into()))
            .collect();
        let signatures: Map<String, Value> = self
            .metrics
            .iter()
            .map(|m| (m.0.clone(), m.2.clone().into()))
            .collect();
        let mut object = json!({ "metrics": metrics, "signature": signatures });
        if !self.intervals.is_empty() {
            object["intervals"] = json!(self.intervals);
        }
        if !self.comparisons.is_empty() {
            object["comparisons"] = json!(self.comparisons);
        }
        if !self.warnings.is_empty() {
            object["warnings"] = json!(self.warnings);
        }
        if !self.segments.is_empty() {
            object["segments"] = json!(self.segments);
        }
        output.object(&object);
    }
}
