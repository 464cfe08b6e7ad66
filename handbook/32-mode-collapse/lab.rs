//! A generator that makes a few of twenty-five kinds, named by the diagnosis, and what mends it.

use crate::labs::ring::{Sets, Tried, Variant, by_seed, mean, tried};
use crate::labs::{Claim, LabContext, LabError, Outcome, beside, number};
use crate::train::diagnosis::Fault;

const GRID: &str = include_str!("../../recipes/gan-grid25.toml");

/// The recipe without its loss and its penalty.
const BARE: Sets = &[
    ("objective.loss", "non-saturating"),
    ("objective.gradient_penalty.weight", "0"),
    ("train.log_every", "100"),
];
/// As the papers on collapse take it.
const WIDE: Sets = &[("model.d_latent", "48")];
/// The grid takes minutes; the ring collapses in seconds.
const QUICK: Sets = &[
    ("data.source", "ring8"),
    ("generator.optimizer.lr", "3e-3"),
    ("critic.optimizer.lr", "3e-3"),
    ("critic.turns", "1"),
    ("model.width", "64"),
    ("train.steps", "3000"),
    ("train.validate_every", "500"),
    ("train.ema", "0.995"),
];
const SEEDS: u64 = 3;

/// One row: a game, and what is changed in it.
struct Row {
    variant: Variant,
    wide: bool,
    asked: Asked,
}

#[derive(Clone, Copy, PartialEq)]
enum Asked {
    /// At most half of the modes, and a collapse named in every run.
    Collapse,
    /// Half as many modes again as the collapsed game has.
    Better,
    /// 24 modes, and no collapse named.
    Cover,
    /// Nothing: it stands in the table.
    Shown,
}

const fn row(name: &'static str, wide: bool, asked: Asked, sets: Sets) -> Row {
    Row {
        variant: Variant::new(name, sets),
        wide,
        asked,
    }
}

const WGAN_GP: Sets = &[
    ("objective.loss", "wasserstein"),
    ("objective.gradient_penalty.weight", "0.1"),
];

const PACKING: Sets = &[("model.critic.packing", "2"), ("critic.turns", "1")];

const ROWS: [Row; 8] = [
    row("latent of 48: plain", true, Asked::Collapse, &[]),
    row("latent of 48: WGAN-GP", true, Asked::Better, WGAN_GP),
    row(
        "latent of 48: packing of two, one turn",
        true,
        Asked::Better,
        PACKING,
    ),
    row("latent of 2: plain", false, Asked::Shown, &[]),
    row("latent of 2: WGAN-GP", false, Asked::Cover, WGAN_GP),
    row(
        "latent of 2: noise that fades, one turn",
        false,
        Asked::Cover,
        &[
            ("objective.instance_noise", "{ std = 0.5, until = 4500 }"),
            ("critic.turns", "1"),
        ],
    ),
    row(
        "latent of 2: R1 penalty, one turn",
        false,
        Asked::Shown,
        &[
            (
                "objective.gradient_penalty",
                r#"{ kind = "r1", weight = 0.1 }"#,
            ),
            ("critic.turns", "1"),
        ],
    ),
    row(
        "latent of 2: packing of two, one turn",
        false,
        Asked::Shown,
        PACKING,
    ),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (quick, seeds): (Sets, u64) = match lab.quick {
        true => (QUICK, 1),
        false => (&[], SEEDS),
    };
    let rows = ROWS
        .iter()
        .filter(|row| lab.full() || row.wide && row.variant.sets != WGAN_GP)
        .map(|row| {
            let wide = if row.wide { WIDE } else { &[] };
            let common = [BARE, wide, quick].concat();
            Ok((row, tried(lab, GRID, &common, row.variant, seeds)?))
        })
        .collect::<Result<Vec<(&Row, Tried)>, LabError>>()?;
    let plain = &rows[0].1;
    let total = if lab.quick { 8.0 } else { 25.0 };
    let claims = rows
        .iter()
        .flat_map(|(row, tried)| claims(row, tried, (plain, total)));
    let panel = |title: &str, of: fn(&Tried) -> Vec<f64>| {
        by_seed(lab, title, rows.iter().map(|(_, tried)| tried), of)
    };
    Ok(Outcome {
        claims: claims.collect(),
        plot: beside(&[
            panel("Modes covered", Tried::modes),
            panel("Share of high quality", Tried::high_quality),
        ]),
        notes: notes(&rows),
    })
}

fn claims(row: &Row, tried: &Tried, (plain, total): (&Tried, f64)) -> Vec<Claim> {
    let name = row.variant.name;
    let modes = format!("{name}: modes of {total}, mean of the seeds");
    let runs = format!("{name}: share of runs in which a mode collapse is named");
    let source = "VEEGAN, arXiv 1705.07761, table 1, quoted at second hand";
    match row.asked {
        Asked::Collapse => vec![
            Claim::at_most(modes, tried.mean_modes(), total / 2.0)
                .published(if total > 8.0 { 3.3 } else { 1.0 }, source),
            Claim::at_least(runs, named(tried), 1.0),
        ],
        Asked::Better => vec![Claim::at_least(
            format!("{name}: modes over those of the plain game"),
            tried.mean_modes() / plain.mean_modes(),
            1.5,
        )],
        Asked::Cover => vec![
            Claim::at_least(modes, tried.mean_modes(), total - 1.0).published(24.6, source),
            Claim::at_most(runs, named(tried), 0.0),
        ],
        Asked::Shown => Vec::new(),
    }
}

/// The share of runs in which a collapse was named.
fn named(tried: &Tried) -> f64 {
    let runs = tried.runs.iter();
    let collapsed = runs.filter(|run| {
        run.findings
            .iter()
            .any(|found| found.fault == Fault::Collapse)
    });
    collapsed.count() as f64 / tried.runs.len() as f64
}

fn notes(rows: &[(&Row, Tried)]) -> Vec<String> {
    let mut table = String::from(
        "| game | modes, by seed | high quality | collapse named | seconds a run |\n|---|---|---|---|---|",
    );
    for (_, tried) in rows {
        table += &format!(
            "\n| {} | {} | {} | {} | {:.0} |",
            tried.variant.name,
            tried.listed_modes(),
            number(mean(&tried.high_quality())),
            number(named(tried)),
            mean(&tried.seconds()),
        );
    }
    let said = rows[0].1.runs[0]
        .findings
        .iter()
        .find(|found| found.fault == Fault::Collapse);
    let said = said.map(|found| format!("What the plain run said: \"{found}\"."));
    std::iter::once(table).chain(said).collect()
}
