//! A mixture of experts: more weights at the same work per token, how they are used, and the router
//! that collapses. (The part of this topic on images and text is yet to come.)

use crate::labs::training::{Ran, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};

const RECIPE: &str = include_str!("../../recipes/stories-experts.toml");

type Sets<'a> = &'a [(&'a str, &'a str)];

const FULL: Sets<'_> = &[
    ("data.count", "4000"),
    ("model.d_model", "96"),
    ("model.n_layers", "2"),
    ("model.seq_len", "64"),
    ("data.validation_windows", "200"),
    ("train.steps", "800"),
    ("train.validate_every", "200"),
    ("sample.count", "0"),
];

const SMALL: Sets<'_> = &[
    ("data.count", "300"),
    ("tokenizer.kind", "byte"),
    ("model.d_model", "32"),
    ("model.n_layers", "1"),
    ("model.seq_len", "32"),
    ("data.validation_windows", "20"),
    ("train.steps", "60"),
    ("train.validate_every", "30"),
    ("sample.count", "0"),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let folder = tempfile::tempdir().doing("making a folder")?;
    let common = if lab.full() { FULL } else { SMALL };
    let train = |name: &str, common: Sets<'_>, sets: Sets<'_>| {
        lab.say(name);
        let out = folder.path().join(name);
        let ran: Ran = recipe(lab, RECIPE, &[common, sets].concat(), &out)?;
        let records = crate::train::run::records(&out).doing("reading the run's log")?;
        let of = records
            .iter()
            .filter(|record| record.phase.name() == "validation");
        let curve = of.filter_map(|record| Some((record.step as f64, *record.values.get("loss")?)));
        let curve: Vec<(f64, f64)> = curve.collect();
        Ok::<_, LabError>((ran, curve))
    };
    // A token passes weights of the same number: two experts of 96, or one MLP of 192.
    let key = "model.experts";
    let eight = "{count=8, active=2, balance=0.01, z=0.001}";
    let (experts, experts_curve) = train("experts", common, &[(key, eight), ("model.d_ff", "96")])?;
    let one = "{count=1, active=1, balance=0.0, z=0.0}";
    let (dense, dense_curve) = train("dense", common, &[(key, one), ("model.d_ff", "192")])?;
    // One expert a token, nothing that keeps the load even, a rate at which the first to be better wins
    // everything, and a small model: in a larger one its blocks do not all give in.
    let free = "{count=8, active=1, balance=0.0, z=0.0}";
    let (collapsed, _) = train(
        "collapse",
        SMALL,
        &[
            (key, free),
            ("model.d_ff", "96"),
            ("optimizer.lr", "3e-2"),
            ("schedule.warmup", "0"),
        ],
    )?;

    let alarm = collapsed
        .said
        .iter()
        .find(|said| said.starts_with("router collapse"));
    let silent = !experts
        .said
        .iter()
        .any(|said| said.starts_with("router collapse"));
    let mut claims = vec![
        Claim::at_least(
            "experts in use, by the entropy of their load",
            experts.metric("validation_experts_used"),
            0.8,
        ),
        Claim::at_least(
            "no alarm while the load is kept even",
            u8::from(silent),
            1.0,
        ),
        Claim::at_most(
            "the same share where nothing keeps it even",
            collapsed.metric("validation_experts_used"),
            0.5,
        ),
        Claim::at_least(
            "the alarm names the router's collapse",
            u8::from(alarm.is_some()),
            1.0,
        ),
    ];
    if lab.full() {
        claims.push(Claim::at_least(
            "nats per token won over one MLP of equal work",
            dense.metric("validation_loss") - experts.metric("validation_loss"),
            0.01,
        ));
    }
    let chart = Chart::new("Equal work per token", "step", "nats per token")
        .line("one MLP", dense_curve)
        .line("two of eight experts", experts_curve);
    let used = Chart::new("Experts in use", "", "share of the experts")
        .bar(
            "even load asked for",
            experts.metric("validation_experts_used"),
        )
        .bar("not asked for", collapsed.metric("validation_experts_used"));
    let notes = alarm
        .map(|alarm| format!("The alarm: {alarm}."))
        .into_iter()
        .collect();
    Ok(Outcome {
        claims,
        plot: panels(&[chart, used]),
        notes,
    })
}
