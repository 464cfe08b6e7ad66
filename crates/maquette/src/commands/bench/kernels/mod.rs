//! `maquette bench kernels`: each kernel alone, against what the machine could do at most.
//!
//! A kernel that computes is held against the rate of multiply-adds in registers, one that moves
//! memory against the rate of a copy or of an update in place, whichever is higher; all measured in
//! the same run. One file per family.

mod pictures;
mod text;
mod training;

use std::time::Instant;

use maquette::burn::tensor::{Device, Distribution, Tensor};
use maquette::kernels::{composed, roofline};
use serde_json::{Value, json};

use crate::args::{BenchKernelsArgs, Family};
use crate::commands::progress::Status;
use crate::output::Output;

/// One kernel at one size.
pub(super) struct Case {
    /// What it is.
    pub(super) name: String,
    /// What it must do at least.
    pub(super) work: Work,
    /// Does it once.
    pub(super) run: Box<dyn FnMut()>,
}

/// The work that bounds a kernel from below.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Multiplications and additions.
    Flops(usize),
    /// Floats read and written: each input and output once per pass.
    Floats(usize),
}

impl Case {
    pub(super) fn new(name: String, work: Work, run: impl FnMut() + 'static) -> Self {
        Self {
            name,
            work,
            run: Box::new(run),
        }
    }
}

/// What the machine could do at most, per second.
#[derive(Default)]
struct Ceilings {
    flops: f64,
    copy: f64,
    update: f64,
}

impl Ceilings {
    /// Raises each to what is seen now.
    fn measure(&mut self) {
        self.flops = self.flops.max(roofline::peak_flops());
        self.copy = self.copy.max(roofline::copy_bandwidth());
        self.update = self.update.max(roofline::update_bandwidth());
    }
}

/// Measure the families that were named, or all.
pub(crate) fn run(args: &BenchKernelsArgs, output: Output) -> miette::Result<()> {
    use clap::ValueEnum;
    let status = Status::new(output.quiet);
    status.say("measuring the machine");
    let mut ceilings = Ceilings::default();
    ceilings.measure();
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
        for mut case in cases {
            status.say(&case.name);
            timed.push((time(&mut case, args.rounds), case));
        }
        // Again, so that a neighbour's load during the first measure lowers no ceiling.
        ceilings.measure();
    }
    status.clear();
    output.line(format_args!(
        "peak {:.0} GFLOP/s in f32, copy {:.1} GB/s, update in place {:.1} GB/s",
        ceilings.flops / 1e9,
        ceilings.copy / 1e9,
        ceilings.update / 1e9
    ));
    output.line(format_args!(
        "{:52} {:>9} {:>9} {:>15} {:>6}",
        "kernel", "ms", "burn ms", "rate", "share"
    ));
    let mut results = Vec::new();
    for ([ours, plain], case) in timed {
        let (amount, ceiling, unit) = match case.work {
            Work::Flops(n) => (n as f64, ceilings.flops, "GFLOP/s"),
            Work::Floats(n) => {
                let bytes = (n * size_of::<f32>()) as f64;
                (bytes, ceilings.copy.max(ceilings.update), "GB/s")
            }
        };
        let (rate, share) = (amount / ours / 1e9, amount / ours / ceiling);
        output.line(format_args!(
            "{:52} {:>9.3} {:>9.3} {:>7.1} {unit:7} {:>5.0}%",
            case.name,
            ours * 1e3,
            plain * 1e3,
            rate,
            100.0 * share
        ));
        results.push(json!({
            "suite": case.name, "precision": "f32", "unit": unit, "ours": rate,
            "peer": amount / plain / 1e9, "peer_name": "plain Burn", "ratio": plain / ours,
            "share": share, "peak_mb": Value::Null, "peer_peak_mb": Value::Null,
        }));
    }
    output.object(&json!({
        "results": results, "peak_gflops": ceilings.flops / 1e9,
        "copy_gb_per_second": ceilings.copy / 1e9,
        "update_gb_per_second": ceilings.update / 1e9,
    }));
    Ok(())
}

/// The fastest of some runs with the kernels and without, taken in turn, in seconds.
fn time(case: &mut Case, rounds: u32) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..=rounds {
        for (side, best) in best.iter_mut().enumerate() {
            let began = Instant::now();
            match side {
                0 => (case.run)(),
                _ => composed(&mut case.run),
            }
            *best = best.min(began.elapsed().as_secs_f64());
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
    drop(out.backward());
}
