//! `maquette bench kernels`: each kernel alone, against what the machine could do at most.
//!
//! A kernel that computes is held against the rate of multiply-adds in registers, in its precision; one
//! that moves memory against the rate of a copy, measured just before and just after it. Arrays that the last
//! cache holds, or that change in place, can be faster than a copy of large ones. One file per family.

mod pictures;
mod text;
mod training;

use std::time::Instant;

use maquette::burn::tensor::{Device, Distribution, Tensor};
use maquette::kernels::{Precision, autocast, composed, roofline};
use serde_json::{Value, json};

use crate::args::{BenchKernelsArgs, Family};
use crate::commands::progress::Status;
use crate::errors::Usage;
use crate::output::Output;

/// One kernel at one size.
pub(super) struct Case {
    /// What it is.
    pub(super) name: String,
    /// What it must do at least.
    pub(super) work: Work,
    /// Of its products.
    pub(super) precision: Precision,
    /// Does it once.
    pub(super) run: Box<dyn FnMut()>,
    /// Whether Burn has operators for it.
    pub(super) composed: bool,
}

/// The work that bounds a kernel from below.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Multiplications and additions.
    Flops(usize),
    /// Floats read and written: each input and output once per pass.
    Floats(usize),
    /// Multiplications and additions, and floats: the longer of both bounds it.
    Both(usize, usize),
}

impl Case {
    pub(super) fn new(name: String, work: Work, run: impl FnMut() + 'static) -> Self {
        Self {
            name,
            work,
            precision: Precision::F32,
            run: Box::new(run),
            composed: true,
        }
    }

    /// The same where Burn has nothing to measure it against.
    pub(super) fn alone(self) -> Self {
        Self {
            composed: false,
            ..self
        }
    }

    /// The same with products of bf16.
    pub(super) fn in_bf16(mut self) -> Self {
        self.precision = Precision::Bf16;
        let mut run = self.run;
        self.run = Box::new(move || {
            let _guard = autocast(Precision::Bf16);
            run();
        });
        self
    }
}

/// What the machine could do at most, per second, at some moment: memory that others use as well can be
/// twice as fast a minute later.
#[derive(Clone, Copy)]
struct Ceilings {
    flops: f64,
    /// Without instructions that multiply bf16 there is none.
    bf16: Option<f64>,
    copy: f64,
}

impl Ceilings {
    fn now() -> Self {
        Self {
            flops: roofline::peak_flops(),
            bf16: roofline::peak_bf16_flops(),
            copy: roofline::copy_bandwidth(),
        }
    }

    /// Each of one or the other, as `pick` says.
    fn with(self, other: Self, pick: fn(f64, f64) -> f64) -> Self {
        Self {
            flops: pick(self.flops, other.flops),
            bf16: self.bf16.zip(other.bf16).map(|(a, b)| pick(a, b)),
            copy: pick(self.copy, other.copy),
        }
    }

    /// What the work of a case comes to, the most of it per second, and its unit.
    fn of(&self, case: &Case) -> Option<(f64, f64, &'static str)> {
        let bytes = |floats: usize| (floats * size_of::<f32>()) as f64;
        let peak = match case.precision {
            Precision::F32 => self.flops,
            Precision::Bf16 => self.bf16?,
        };
        let computing = |flops: usize| (flops as f64, peak, "GFLOP");
        let moving = |floats: usize| (bytes(floats), self.copy, "GB");
        Some(match case.work {
            Work::Flops(flops) => computing(flops),
            Work::Floats(floats) => moving(floats),
            Work::Both(flops, floats) if flops as f64 / peak > bytes(floats) / self.copy => {
                computing(flops)
            }
            Work::Both(_, floats) => moving(floats),
        })
    }
}

/// Measure the families that were named, or all.
pub(crate) fn run(args: &BenchKernelsArgs, output: Output) -> miette::Result<()> {
    use clap::ValueEnum;
    let status = Status::new(output.quiet);
    status.say("measuring the machine");
    let first = Ceilings::now();
    let (mut before, mut least, mut most) = (first, first, first);
    let families = match args.families.as_slice() {
        [] => Family::value_variants(),
        named => named,
    };
    let mut timed = Vec::new();
    for family in families {
        let cases = match family {
            Family::Text => text::cases(),
            Family::Pictures => pictures::cases(),
            Family::Training => training::cases(),
        };
        let wanted = |case: &Case| {
            let named = |only: &String| case.name.contains(only.as_str());
            args.only.as_ref().is_none_or(named) && first.of(case).is_some()
        };
        for mut case in cases.into_iter().filter(wanted) {
            status.say(&case.name);
            let times = time(&mut case, args.rounds);
            let after = Ceilings::now();
            // The faster, so that a neighbour's load during one of them lowers no ceiling.
            timed.push((times, case, before.with(after, f64::max)));
            (least, most) = (least.with(after, f64::min), most.with(after, f64::max));
            before = after;
        }
    }
    status.clear();
    if let Some(only) = args.only.as_ref().filter(|_| timed.is_empty()) {
        return Err(Usage::new(
            format!("no kernel measured here has `{only}` in its name"),
            "without --only they are listed",
        )
        .into());
    }
    let update = roofline::update_bandwidth() / 1e9;
    let range =
        |of: fn(&Ceilings) -> f64| format!("{:.0}-{:.0}", of(&least) / 1e9, of(&most) / 1e9);
    output.line(format_args!(
        "peak {} GFLOP/s in f32, copy {} GB/s, update in place {update:.1} GB/s",
        range(|seen| seen.flops),
        range(|seen| seen.copy)
    ));
    match most.bf16 {
        Some(peak) => output.line(format_args!("peak {:.0} GFLOP/s in bf16", peak / 1e9)),
        None => output.line(format_args!(
            "bf16 is left out: this processor has no instruction that multiplies it (AVX512-BF16)"
        )),
    }
    output.line(format_args!(
        "{:58} {:>9} {:>9} {:>13} {:>7} {:>6} {:>6}",
        "kernel", "ms", "burn ms", "work", "/s", "most", "share"
    ));
    let mut results = Vec::new();
    for ([ours, plain], case, ceilings) in timed {
        let Some((amount, ceiling, unit)) = ceilings.of(&case) else {
            continue;
        };
        let (rate, share) = (amount / ours / 1e9, amount / ours / ceiling);
        output.line(format_args!(
            "{:58} {:>9.3} {:>9} {:>7.3} {unit:5} {:>7.1} {:>6.1} {:>5.0}%",
            case.name,
            ours * 1e3,
            if case.composed {
                format!("{:.3}", plain * 1e3)
            } else {
                "-".into()
            },
            amount / 1e9,
            rate,
            ceiling / 1e9,
            100.0 * share
        ));
        let precision = match case.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        results.push(json!({
            "suite": case.name, "precision": precision, "unit": format!("{unit}/s"), "ours": rate,
            "peer": case.composed.then(|| amount / plain / 1e9), "peer_name": "plain Burn",
            "ratio": case.composed.then(|| plain / ours),
            "work": amount, "most": ceiling / 1e9, "share": share, "peak_mb": Value::Null, "peer_peak_mb": Value::Null,
        }));
    }
    output.object(&json!({
        "results": results, "peak_gflops": most.flops / 1e9,
        "peak_bf16_gflops": most.bf16.map(|peak| peak / 1e9),
        "copy_gb_per_second": [least.copy / 1e9, most.copy / 1e9],
        "update_gb_per_second": update,
    }));
    Ok(())
}

/// Seconds that a measure takes at least: a small kernel runs some times in a row, as a step runs many,
/// for what its threads do between two of them is not its own time.
const MEASURE: f64 = 2e-3;

/// The fastest of some measures with the kernels and without, taken in turn, in seconds of a run; infinity
/// without if Burn has nothing like it.
fn time(case: &mut Case, rounds: u32) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..=rounds {
        let sides = if case.composed { 2 } else { 1 };
        for (side, best) in best.iter_mut().enumerate().take(sides) {
            let (began, mut runs) = (Instant::now(), 0.0);
            let mut seconds = 0.0;
            while seconds < MEASURE {
                match side {
                    0 => (case.run)(),
                    _ => composed(&mut case.run),
                }
                runs += 1.0;
                seconds = began.elapsed().as_secs_f64();
            }
            *best = best.min(seconds / runs);
        }
    }
    best
}

/// Numbers on -1..1 that want a gradient.
fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    plain(shape).autodiff().require_grad()
}

/// Numbers on -1..1.
fn plain<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::random(shape, uniform, &Device::flex())
}

/// Backward, after the forward pass that made `out`. The gradient it starts from is made first, as
/// large as the output: the floats of a case count writing it.
fn train<const D: usize>(out: Tensor<D>) {
    roofline::backward(out);
}
