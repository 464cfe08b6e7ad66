//! The ring of eight Gaussians under one budget: the plain game, and one remedy at a time.

use crate::labs::ring::{PLAIN, Sets, Tried, Variant, by_seed, mean, tried};
use crate::labs::{Claim, LabContext, LabError, Outcome, beside, number};

/// What every row shares, beside the recipe. A latent of many dimensions is what the papers took, and what
/// makes the plain game collapse: of two dimensions the plain game covers the ring.
const COMMON: Sets = &[
    ("model.d_latent", "48"),
    ("generator.schedule.kind", "cosine"),
    ("critic.schedule.kind", "cosine"),
    ("train.steps", "6000"),
    ("train.log_every", "100"),
];
const QUICK: Sets = &[
    ("model.width", "64"),
    ("train.steps", "3000"),
    ("train.ema", "0.995"),
];
const SEEDS: u64 = 5;

/// What is asked of a row.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    /// At most three modes, median of the seeds.
    Collapse,
    /// At least seven and a half modes, mean of the seeds.
    Cover,
    /// Nothing: it stands in the table.
    Shown,
}

/// Modes and share of high quality of VEEGAN's table 1, where it has the row.
type Published = Option<[f64; 2]>;

struct Row {
    variant: Variant,
    asked: Asked,
    published: Published,
    quick: bool,
}

const fn row(name: &'static str, asked: Asked, sets: Sets) -> Row {
    Row {
        variant: Variant::new(name, sets),
        asked,
        published: None,
        quick: false,
    }
}

impl Row {
    const fn published(mut self, modes: f64, quality: f64) -> Self {
        self.published = Some([modes, quality]);
        self
    }

    const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }
}

/// The critic of Metz et al. 2017, appendix A, arXiv 1611.02163: one hidden layer, its input a quarter. Its
/// loss is smooth enough to be descended in a few long steps, as unrolling asks, and what minibatch
/// discrimination or a second example adds is not drowned in it.
const SMALL: [(&str, &str); 2] = [
    ("model.critic.n_layers", "1"),
    ("model.critic.input_scale", "0.25"),
];
const MINIMAX: (&str, &str) = ("objective.loss", "minimax");

const R1: (&str, &str) = (
    "objective.gradient_penalty",
    r#"{ kind = "r1", weight = 0.2 }"#,
);

const ROWS: [Row; 22] = [
    row("plain: non-saturating", Asked::Collapse, &[])
        .published(1.0, 0.993)
        .quick(),
    row("plain: minimax", Asked::Collapse, &[MINIMAX]),
    row("R1 gradient penalty", Asked::Cover, &[R1]).quick(),
    row(
        "relativistic loss with R1",
        Asked::Cover,
        &[R1, ("objective.loss", "relativistic")],
    ),
    row(
        "WGAN-GP, critic three turns",
        Asked::Cover,
        &[
            ("objective.loss", "wasserstein"),
            (
                "objective.gradient_penalty",
                r#"{ kind = "wgan-gp", weight = 1 }"#,
            ),
            ("critic.turns", "3"),
        ],
    ),
    row(
        "instance noise that fades",
        Asked::Cover,
        &[("objective.instance_noise", "{ std = 0.3, until = 4000 }")],
    ),
    row(
        "packing of four",
        Asked::Cover,
        &[("model.critic.packing", "4")],
    ),
    row(
        "minibatch standard deviation",
        Asked::Cover,
        &[("model.critic.minibatch_deviation", "true")],
    ),
    row(
        "small critic, plain: non-saturating",
        Asked::Collapse,
        &SMALL,
    ),
    row(
        "small critic, plain: minimax",
        Asked::Collapse,
        &[SMALL[0], SMALL[1], MINIMAX],
    ),
    row(
        "small critic, minimax, unrolled five steps",
        Asked::Cover,
        &[
            SMALL[0],
            SMALL[1],
            MINIMAX,
            ("objective.unroll", "{ steps = 5, lr = 0.1 }"),
        ],
    )
    .published(7.6, 0.356),
    row(
        "small critic, packing of two (PacGAN)",
        Asked::Cover,
        &[SMALL[0], SMALL[1], ("model.critic.packing", "2")],
    )
    .quick(),
    row(
        "small critic, minibatch discrimination",
        Asked::Cover,
        &[
            SMALL[0],
            SMALL[1],
            (
                "model.critic.minibatch_discrimination",
                "{ kernels = 8, dims = 4 }",
            ),
        ],
    ),
    row(
        "minibatch discrimination",
        Asked::Shown,
        &[(
            "model.critic.minibatch_discrimination",
            "{ kernels = 1, dims = 2 }",
        )],
    ),
    row(
        "critic at three times the rate",
        Asked::Shown,
        &[("critic.optimizer.lr", "9e-3")],
    ),
    row(
        "least squares",
        Asked::Shown,
        &[("objective.loss", "least-squares")],
    ),
    row(
        "WGAN, weights clipped, critic three turns",
        Asked::Shown,
        &[
            ("objective.loss", "wasserstein"),
            ("critic.clip_weights", "0.1"),
            ("critic.turns", "3"),
        ],
    ),
    row(
        "spectral norm",
        Asked::Shown,
        &[("model.critic.spectral_norm", "true")],
    ),
    row(
        "batch norm in the generator",
        Asked::Shown,
        &[("model.generator.norm", "batch")],
    ),
    row(
        "one-sided label smoothing",
        Asked::Shown,
        &[("objective.label_smoothing", "0.1")],
    ),
    row(
        "feature matching",
        Asked::Shown,
        &[("objective.feature_matching", "true")],
    ),
    row(
        "a latent of two dimensions",
        Asked::Shown,
        &[("model.d_latent", "2")],
    ),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (common, seeds) = match lab.quick {
        true => ([COMMON, QUICK].concat(), 1),
        false => (COMMON.to_vec(), SEEDS),
    };
    let rows = ROWS.iter().filter(|row| row.quick || lab.full());
    let rows: Vec<(&Row, Tried)> = rows
        .map(|row| Ok((row, tried(lab, PLAIN, &common, row.variant, seeds)?)))
        .collect::<Result<_, LabError>>()?;
    // One seed and a smaller network: the quick form allows a mode for that.
    let (least, how_many) = if lab.quick { (7.0, 2.0) } else { (7.5, 6.0) };
    let mut claims: Vec<Claim> = rows
        .iter()
        .filter_map(|(row, tried)| claim(row, tried, least))
        .collect();
    let covering = rows
        .iter()
        .filter(|(row, tried)| row.asked == Asked::Cover && tried.mean_modes() >= least);
    claims.push(Claim::at_least(
        format!("remedies that cover {least} modes or more on average"),
        covering.count() as f64,
        how_many,
    ));
    let panel = |title: &str, of: fn(&Tried) -> Vec<f64>| {
        by_seed(lab, title, rows.iter().map(|(_, tried)| tried), of)
    };
    Ok(Outcome {
        claims,
        plot: beside(&[
            panel("Modes covered, of eight", Tried::modes),
            panel("Share of high quality", Tried::high_quality),
        ]),
        notes: vec![table(&rows)],
    })
}

fn claim(row: &Row, tried: &Tried, least: f64) -> Option<Claim> {
    let name = row.variant.name;
    let claim = match row.asked {
        Asked::Collapse => Claim::at_most(
            format!("{name}: modes of eight, median of the seeds"),
            median(tried.modes()),
            3.0,
        ),
        Asked::Cover => Claim::at_least(
            format!("{name}: modes of eight, mean of the seeds"),
            tried.mean_modes(),
            least,
        ),
        Asked::Shown => return None,
    };
    Some(match row.published {
        Some([modes, _]) => claim.published(
            modes,
            "VEEGAN, arXiv 1705.07761, table 1, quoted at second hand",
        ),
        None => claim,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Mean and standard deviation over the seeds.
fn spread(values: &[f64]) -> String {
    let middle = mean(values);
    let n = values.len() as f64;
    let variance = values.iter().map(|v| (v - middle).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    format!("{} ± {}", number(middle), number(variance.sqrt()))
}

fn table(rows: &[(&Row, Tried)]) -> String {
    let mut table = String::from(
        "| one change to the plain game | modes, by seed | modes | high quality | published: modes, high quality | seconds a run |\n\
         |---|---|---|---|---|---|",
    );
    for (row, tried) in rows {
        let published = row.published.map_or(String::new(), |[modes, quality]| {
            format!("{modes}, {quality}")
        });
        table += &format!(
            "\n| {} | {} | {} | {} | {published} | {:.0} |",
            row.variant.name,
            tried.listed_modes(),
            spread(&tried.modes()),
            spread(&tried.high_quality()),
            mean(&tried.seconds()),
        );
    }
    table
}
