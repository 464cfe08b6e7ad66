//! Our side of a suite, in a process of its own so that its memory is its own.
//!
//! It speaks what `bench/peers/train.py` speaks: once warm it says who it is; then for every line
//! on stdin, a number of steps, it takes them and says how long they took.

use std::io::{BufRead, Write};
use std::time::Instant;

use miette::IntoDiagnostic;
use serde_json::json;

use super::suites::{self, Step};
use crate::args::{BenchWorkerArgs, Precision};

/// Steps that are not counted: start-up, first allocations.
const WARM_UP: u64 = 3;

/// Answers until stdin ends.
pub(crate) fn run(args: &BenchWorkerArgs) -> miette::Result<()> {
    let precision = match args.precision {
        Precision::F32 => maquette::kernels::Precision::F32,
        Precision::Bf16 => maquette::kernels::Precision::Bf16,
    };
    let _precision = maquette::kernels::autocast(precision);
    let suite = suites::prepare(args.suite, args.loss);
    let mut taken = 0;
    let mut step: Step = suite.step;
    let mut steps = |n: u64| {
        let began = Instant::now();
        let mut loss = f64::NAN;
        for index in taken..taken + n {
            loss = match args.composed {
                true => maquette::kernels::composed(|| step(index)),
                false => step(index),
            };
        }
        taken += n;
        (began.elapsed().as_secs_f64(), loss)
    };

    steps(WARM_UP);
    reset_peak();
    let name = if args.composed {
        "plain Burn"
    } else {
        "maquette"
    };
    say(&json!({
        "name": name, "parameters": suite.parameters, "items": suite.items, "unit": suite.unit,
    }))?;
    for line in std::io::stdin().lock().lines() {
        let n = line.into_diagnostic()?.trim().parse().into_diagnostic()?;
        let (seconds, loss) = steps(n);
        say(&json!({ "seconds": seconds, "loss": loss, "peak_mb": peak_mb() }))?;
    }
    Ok(())
}

fn say(line: &serde_json::Value) -> miette::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").into_diagnostic()?;
    out.flush().into_diagnostic()
}

/// Forgets the highest resident size so far, where the system can (Linux).
pub(super) fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The highest resident size since then, in units of 10^6 bytes; none where the system does not say.
pub(super) fn peak_mb() -> Option<f64> {
    resident_peak("self")
}

/// The same of another process.
pub(super) fn resident_peak(process: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
