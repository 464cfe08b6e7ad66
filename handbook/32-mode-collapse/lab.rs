//! A generator that makes a few of twenty-five kinds, named by the diagnosis, and what mends it; and the
//! thousand kinds of three digits.

use std::path::Path;
use std::time::Instant;

use crate::generate::image::Picture;
use crate::labs::ring::{Sets, Tried, Variant, by_seed, mean, tried};
use crate::labs::training::{Ran, recipe};
use crate::labs::{Claim, Doing, LabContext, LabError, Outcome, beside, number, strips};
use crate::train::diagnosis::Fault;
use crate::train::recipes::generate::draw;
use crate::train::recipes::pictures::ImageRequest;

const GRID: &str = include_str!("../../recipes/gan-grid25.toml");
const STACKED: &str = include_str!("../../recipes/stacked-mnist.toml");

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
    let mut claims: Vec<_> = claims.collect();
    let mut panels = vec![
        panel("Modes covered", Tried::modes),
        panel("Share of high quality", Tried::high_quality),
    ];
    let mut notes = notes(&rows);
    match lab.real("mnist") {
        Some(path) => {
            let games = stacked(lab, &path)?;
            claims.extend(claims_of_stacked(&games));
            panels.push(shown(&games)?);
            notes.push(table_of_stacked(&games));
        }
        None if lab.full() => notes.push(
            "Left out: three digits as colours. The full form plays them where `mnist` is among the data."
                .into(),
        ),
        None => {}
    }
    Ok(Outcome {
        claims,
        plot: beside(&panels),
        notes,
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

/// Games of three digits, the plain one first, then what is changed in it.
const GAMES: [(&str, Sets); 3] = [
    ("plain", &[]),
    ("packing of two", &[("model.critic.packing", "2")]),
    ("packing of four", &[("model.critic.packing", "4")]),
];
/// Pictures shown of each.
const SHOWN: usize = 14;

/// A game of three digits, and what came of it.
struct Stacked {
    name: &'static str,
    ran: Ran,
    seconds: f64,
    drawn: Vec<Picture>,
}

/// Plays three digits as colours, of which each thousandth part is a mode.
fn stacked(lab: &LabContext<'_>, path: &Path) -> Result<Vec<Stacked>, LabError> {
    let path = path.display().to_string();
    let folder = tempfile::tempdir().doing("making a folder")?;
    let play = |&(name, sets): &(&'static str, Sets)| {
        lab.say(&format!("three digits: {name}"));
        let out = folder.path().join(name);
        let start = Instant::now();
        let sets = [&[("data.path", &*path)], sets].concat();
        let ran = recipe(lab, STACKED, &sets, &out)?;
        let seconds = start.elapsed().as_secs_f64();
        let request = ImageRequest {
            count: SHOWN,
            seed: lab.seed,
            ..ImageRequest::default()
        };
        Ok(Stacked {
            name,
            ran,
            seconds,
            drawn: draw(&out, &request, &lab.device).doing("drawing")?,
        })
    };
    GAMES.iter().map(play).collect()
}

fn claims_of_stacked(games: &[Stacked]) -> Vec<Claim> {
    let modes = games.iter().map(|game| game.ran.metric("modes"));
    let [plain, best] = [games[0].ran.metric("modes"), modes.fold(0.0, f64::max)];
    vec![
        Claim::at_least(
            "three digits: modes of the best game over those of the plain one",
            best / plain,
            3.0,
        )
        .published(10.1, "PacGAN, arXiv 1712.04086: 1,000 over 99"),
        Claim::at_least("three digits: modes of 1,000, the best game", best, 700.0)
            .published(1000.0, "PacGAN, arXiv 1712.04086"),
    ]
}

fn shown(games: &[Stacked]) -> Result<String, LabError> {
    let strip = |game: &Stacked| (game.name, vec![game.drawn.clone()]);
    strips(&games.iter().map(strip).collect::<Vec<_>>())
}

fn table_of_stacked(games: &[Stacked]) -> String {
    let mut table = String::from(
        "Three digits as colours, 26,000 pictures a game:\n\n\
         | game | modes, of 1,000 | divergence from equal shares, in nats | seconds a run |\n|---|---|---|---|",
    );
    for game in games {
        table += &format!(
            "\n| {} | {:.0} | {} | {:.0} |",
            game.name,
            game.ran.metric("modes"),
            number(game.ran.metric("modes_kl")),
            game.seconds,
        );
    }
    table
}
