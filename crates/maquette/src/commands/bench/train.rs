//! `maquette bench train`: ours and the peers' training steps, in turn.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::side::{Block, Settings, Side, SideError};
use crate::args::{BenchTrainArgs, GanLoss, Peer, SuiteName, spelled};
use crate::commands::progress::Status;
use crate::errors::{Usage, failed};
use crate::output::Output;
use clap::ValueEnum;

const SCRIPT: &str = include_str!("../../../../../bench/peers/train.py");
const REQUIREMENTS: &str = include_str!("../../../../../bench/peers/requirements.txt");

/// Measure every suite; a peer that is not there is said once and left out.
pub(crate) fn run(args: &BenchTrainArgs, threads: usize, output: Output) -> miette::Result<()> {
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        return Err(Usage::new(
            format!("--seconds {}: not a length", args.seconds),
            "write for example --seconds 1",
        )
        .into());
    }
    let folder = tempfile::tempdir().map_err(failed)?;
    let script = folder.path().join("train.py");
    std::fs::write(&script, SCRIPT).map_err(failed)?;
    let suites = match args.suites.as_slice() {
        [] => SuiteName::value_variants(),
        named => named,
    };
    let status = Status::new(output.quiet);
    let mut peers = args.peers.clone();
    let mut results = Vec::new();
    output.line(heading());
    for case in suites.iter().flat_map(|suite| Case::of(*suite, args)) {
        let comparison = Comparison {
            case,
            args,
            threads,
            script: &script,
            status: &status,
        };
        let result = comparison.measure(&mut peers).map_err(failed)?;
        status.clear();
        output.line(result.line());
        results.push(result);
    }
    let costs = in_plain_steps(&results);
    if !costs.is_empty() {
        let costs: Vec<_> = costs
            .iter()
            .map(|(loss, cost)| format!("{loss} {cost:.2}"))
            .collect();
        output.line(format!(
            "steps of dcgan32 in plain ones: {}",
            costs.join(", ")
        ));
    }
    output.object(&json!({
        "results": results.iter().map(SuiteResult::json).collect::<Vec<_>>(),
        "in_plain_steps": costs.into_iter().collect::<BTreeMap<_, _>>(),
        "threads": threads,
    }));
    Ok(())
}

/// A suite, and what its players minimise where it has two.
struct Case {
    suite: SuiteName,
    loss: Option<GanLoss>,
}

impl Case {
    fn of(suite: SuiteName, args: &BenchTrainArgs) -> Vec<Self> {
        let case = |loss| Self { suite, loss };
        match suite {
            SuiteName::Dcgan32 => args.losses.iter().map(|loss| case(Some(*loss))).collect(),
            _ => vec![case(None)],
        }
    }

    /// Of the table: the plain loss is not named.
    fn name(&self) -> String {
        match self.loss {
            None | Some(GanLoss::NonSaturating) => self.suite.name(),
            Some(loss) => format!("{} {}", self.suite.name(), spelled(&loss)),
        }
    }
}

/// What a step of ours costs under each other loss, in steps of the plain one; nothing without that.
fn in_plain_steps(results: &[SuiteResult]) -> Vec<(&str, f64)> {
    let seconds = |result: &SuiteResult| quantile(result.sides[0].times(), 0.5);
    let Some(plain) = results.iter().find(|result| result.suite == "dcgan32") else {
        return Vec::new();
    };
    let others = results
        .iter()
        .filter_map(|result| Some((result.suite.strip_prefix("dcgan32 ")?, seconds(result))));
    others
        .map(|(loss, of_it)| (loss, of_it / seconds(plain)))
        .collect()
}

fn heading() -> String {
    format!(
        "{:24} {:4} {:>12} {:>12} {:>6} {:>11} {:>8} {:>8}  {:24} {:>11}",
        "suite",
        "type",
        "ours/s",
        "peer/s",
        "ratio",
        "quartiles",
        "our MB",
        "peer MB",
        "peer",
        "burn/s",
    )
}

/// One suite with all its sides.
struct Comparison<'a> {
    case: Case,
    args: &'a BenchTrainArgs,
    threads: usize,
    script: &'a Path,
    status: &'a Status,
}

impl Comparison<'_> {
    /// Starts our side and the `peers`, then has every side take a block per round. Peers that are missing
    /// leave the list.
    fn measure(self, peers: &mut Vec<Peer>) -> Result<SuiteResult, SideError> {
        let name = self.case.name();
        let precision = self.args.precision.name();
        let loss = self.case.loss.map(|loss| spelled(&loss));
        let settings = Settings {
            suite: &self.case.suite.name(),
            loss: loss.as_deref(),
            precision: &precision,
            threads: self.threads,
        };
        self.status.say(&format!("{name}: starting"));
        let mut sides = vec![(None, Side::ours(settings, false)?)];
        for peer in peers.clone() {
            self.status
                .say(&format!("{name}: starting {}", spelled(&peer)));
            match peer.start(settings, &self.args.python, self.script) {
                Ok(side) => sides.push((Some(peer), side)),
                Err(SideError::Missing(what)) => {
                    peers.retain(|kept| *kept == Peer::Burn);
                    eprintln!(
                        "no peer ({what}); install it with\n  {}",
                        install(self.args)
                    );
                }
                Err(error) => return Err(error),
            }
        }
        let ready = sides[0].1.ready.clone();
        for (_, side) in &sides {
            if side.ready.parameters != ready.parameters {
                return Err(SideError::Missing(format!(
                    "{name}: {} has {} parameters, ours {}: not the same model",
                    side.ready.name, side.ready.parameters, ready.parameters
                )));
            }
        }

        // One step says how many make a block.
        let mut taken = Vec::new();
        for (peer, side) in &mut sides {
            let step = side.block(1)?.seconds;
            let steps = (self.args.seconds / step).round().max(1.0) as u64;
            taken.push(Taken {
                peer: *peer,
                name: side.ready.name.clone(),
                steps,
                blocks: Vec::new(),
            });
        }
        for round in 1..=self.args.rounds {
            self.status
                .say(&format!("{name}: round {round} of {}", self.args.rounds));
            for ((_, side), taken) in sides.iter_mut().zip(&mut taken) {
                taken.blocks.push(side.block(taken.steps)?);
            }
        }
        Ok(SuiteResult {
            suite: name,
            precision,
            unit: ready.unit,
            items: ready.items,
            parameters: ready.parameters,
            sides: taken,
        })
    }
}

fn install(args: &BenchTrainArgs) -> String {
    let packages = REQUIREMENTS.split_whitespace().collect::<Vec<_>>();
    format!(
        "{} -m pip install {} --index-url https://download.pytorch.org/whl/cpu",
        args.python.display(),
        packages.join(" ")
    )
}

/// The blocks of one side.
struct Taken {
    /// None for ours.
    peer: Option<Peer>,
    name: String,
    steps: u64,
    blocks: Vec<Block>,
}

impl Taken {
    /// Seconds per step of each block.
    fn times(&self) -> Vec<f64> {
        let per_step = |block: &Block| block.seconds / self.steps as f64;
        self.blocks.iter().map(per_step).collect()
    }

    fn peak_mb(&self) -> Option<f64> {
        self.blocks
            .iter()
            .filter_map(|block| block.peak_mb)
            .reduce(f64::max)
    }
}

/// What one suite came to. The first side is ours.
struct SuiteResult {
    suite: String,
    precision: String,
    unit: String,
    items: usize,
    parameters: usize,
    sides: Vec<Taken>,
}

impl SuiteResult {
    /// Items per second at the median time.
    fn rate(&self, side: &Taken) -> f64 {
        self.items as f64 / quantile(side.times(), 0.5)
    }

    /// Quartiles over the rounds of this side's time divided by ours.
    fn ratios(&self, side: &Taken) -> [f64; 3] {
        let ours = self.sides[0].times();
        let ratios: Vec<_> = side
            .times()
            .iter()
            .zip(ours)
            .map(|(peer, ours)| peer / ours)
            .collect();
        [0.25, 0.5, 0.75].map(|share| quantile(ratios.clone(), share))
    }

    fn side(&self, peer: Peer) -> Option<&Taken> {
        self.sides.iter().find(|side| side.peer == Some(peer))
    }

    /// The faster of PyTorch's ways: the one with the smaller ratio.
    fn pytorch(&self) -> Option<&Taken> {
        let ways = [self.side(Peer::Eager), self.side(Peer::Compile)];
        let faster = |a: &&Taken, b: &&Taken| self.ratios(a)[1].total_cmp(&self.ratios(b)[1]);
        ways.into_iter().flatten().min_by(faster)
    }

    fn line(&self) -> String {
        let ours = &self.sides[0];
        let peer = self.pytorch();
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let [low, ratio, high] = match peer {
            Some(peer) => self.ratios(peer).map(|ratio| format!("{ratio:.2}")),
            None => std::array::from_fn(|_| "-".into()),
        };
        let megabytes =
            |side: Option<&Taken>| text(side.and_then(Taken::peak_mb).map(|mb| format!("{mb:.0}")));
        let rate = |side: Option<&Taken>| text(side.map(|side| format!("{:.1}", self.rate(side))));
        format!(
            "{:24} {:4} {:>12} {:>12} {:>6} {:>11} {:>8} {:>8}  {:24} {:>11}",
            self.suite,
            self.precision,
            rate(Some(ours)),
            rate(peer),
            ratio,
            format!("{low}-{high}"),
            megabytes(Some(ours)),
            megabytes(peer),
            text(peer.map(|peer| peer.name.clone())),
            rate(self.side(Peer::Burn)),
        )
    }

    fn json(&self) -> Value {
        let ours = &self.sides[0];
        let peer = self.pytorch();
        let ratios = peer.map(|peer| self.ratios(peer));
        let sides: Vec<_> = self
            .sides
            .iter()
            .map(|side| {
                json!({
                    "name": side.name,
                    "rate": self.rate(side),
                    "seconds_per_step": quantile(side.times(), 0.5),
                    "ratio": self.ratios(side)[1],
                    "peak_mb": side.peak_mb(),
                    "steps": side.steps,
                    "loss": side.blocks.last().map(|block| block.loss),
                })
            })
            .collect();
        json!({
            "suite": self.suite,
            "precision": self.precision,
            "unit": self.unit,
            "ours": self.rate(ours),
            "peer": peer.map(|peer| self.rate(peer)),
            "peer_name": peer.map(|peer| &peer.name),
            "ratio": ratios.map(|ratios| ratios[1]),
            "ratio_quartiles": ratios.map(|ratios| [ratios[0], ratios[2]]),
            "peak_mb": ours.peak_mb(),
            "peer_peak_mb": peer.and_then(Taken::peak_mb),
            "plain_burn": self.side(Peer::Burn).map(|side| self.rate(side)),
            "parameters": self.parameters,
            "sides": sides,
        })
    }
}

/// The value below which `share` of the values lie, interpolated; NaN of none.
pub(super) fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let (low, high) = (
        values[place.floor() as usize],
        values[place.ceil() as usize],
    );
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(peer: Option<Peer>, seconds: &[f64]) -> Taken {
        let block = |seconds: &f64| Block {
            seconds: *seconds,
            loss: 0.0,
            peak_mb: Some(100.0 * seconds),
        };
        Taken {
            peer,
            name: "side".into(),
            steps: 2,
            blocks: seconds.iter().map(block).collect(),
        }
    }

    #[test]
    fn the_ratio_is_the_median_over_rounds_against_the_faster_peer() {
        let result = SuiteResult {
            suite: "s".into(),
            precision: "f32".into(),
            unit: "tokens/s".into(),
            items: 10,
            parameters: 1,
            sides: vec![
                taken(None, &[1.0, 2.0, 1.0]),
                // The second round was slow for everyone: the ratio does not see it.
                taken(Some(Peer::Eager), &[1.5, 3.0, 1.4]),
                taken(Some(Peer::Compile), &[9.0, 9.0, 9.0]),
                taken(Some(Peer::Burn), &[0.1, 0.1, 0.1]),
            ],
        };
        let json = result.json();
        assert_eq!(json["ratio"], 1.5);
        assert_eq!(json["ours"], 20.0);
        assert_eq!(json["peer_peak_mb"], 300.0);
        assert_eq!(json["plain_burn"], 200.0);
        assert!(quantile(vec![], 0.5).is_nan());
    }
}
