//! Writing token by token against writing everything at once and refining it, where one answer is
//! right and where any of eight is.

use std::collections::BTreeMap;

use crate::data::pairs::{PairTask, Part, generate};
use crate::labs::training::{Ran, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, panels};

const PASSES: [u32; 4] = [1, 2, 4, 10];

/// A task, the recipe that writes token by token, and the one that refines.
type Entry = (&'static str, PairTask, &'static str, &'static str);

const TASKS: [Entry; 2] = [
    (
        "letters backwards: one answer is right",
        PairTask::Reverse,
        include_str!("../../recipes/reverse.toml"),
        include_str!("../../recipes/mask-predict-reverse.toml"),
    ),
    (
        "dates: any of eight answers is right",
        PairTask::DateForms,
        include_str!("../../recipes/date-forms.toml"),
        include_str!("../../recipes/mask-predict-forms.toml"),
    ),
];

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    // The quick form trains just enough for the loss to fall, on one task. The one that writes everything at
    // once stops while it still has to decide: after twice as many steps one pass is as good as ten.
    let steps = if lab.full() {
        ["3000", "1500"]
    } else {
        ["300"; 2]
    };
    let mut sets = vec![("data.held_out", if lab.full() { "500" } else { "20" })];
    if !lab.full() {
        sets.extend([
            ("schedule.warmup", "5"),
            ("optimizer.lr", "5e-3"),
            ("data.count", "1000"),
            ("model.d_model", "32"),
            ("model.n_layers", "1"),
        ]);
    }
    let tasks = if lab.full() { &TASKS[..] } else { &TASKS[1..] };
    let mut exact = BTreeMap::new();
    let (mut charts, mut claims) = (Vec::new(), Vec::new());
    for (name, task, by_token, at_once) in tasks.iter().copied() {
        lab.say(name);
        let folder = tempfile::tempdir().doing("making a folder")?;
        let train = |of: &'static str, steps, name| {
            let lengths = ["steps", "validate_every", "checkpoint_every"];
            let keys = lengths.map(|key| format!("train.{key}"));
            let lengths = keys.iter().map(|key| (key.as_str(), steps));
            let sets: Vec<(&str, &str)> = sets.iter().copied().chain(lengths).collect();
            recipe(lab, of, &sets, &folder.path().join(name))
        };
        let by_token = train(by_token, steps[0], "by-token")?;
        let at_once = train(at_once, steps[1], "at-once")?;
        let after = |ran: &Ran, passes| ran.metric(&format!("test_exact_after_{passes}"));
        let curve = PASSES.map(|passes| (f64::from(passes), after(&at_once, passes)));
        // Each token is a pass of the decoder, and so is the end.
        let answers = generate(task, Part::HeldOut, 500, lab.seed);
        let length: usize = answers.iter().map(|pair| pair.target.len() + 1).sum();
        let passes = length as f64 / answers.len() as f64;
        let share = by_token.metric("test_exact");
        charts.push(
            Chart::new(name, "passes of the decoder", "answers right")
                .line("mask-predict", curve)
                .line("token by token", [(1.0, share), (passes, share)]),
        );
        claims.push(Claim::at_least(
            format!("{name}: passes of the decoder token by token over mask-predict's 4"),
            passes / 4.0,
            2.0,
        ));
        for (writer, ran) in [("token by token", &by_token), ("mask-predict", &at_once)] {
            let loss = ran.metric("test_loss");
            let claim = format!("{name}: {writer}, held-out nats per token");
            claims.push(Claim::at_most(
                claim,
                loss,
                if lab.full() { 1.2 } else { 3.3 },
            ));
        }
        exact.insert(name, (share, curve));
    }
    if lab.full() {
        let [(one, ..), (many, ..)] = TASKS;
        let (by_token, curve) = exact[many];
        claims.extend([
            Claim::at_least(
                format!("{one}: mask-predict, right after 4 passes"),
                exact[one].1[2].1,
                0.9,
            ),
            Claim::at_least(format!("{many}: token by token, right"), by_token, 0.9),
            Claim::at_least(
                format!("{many}: mask-predict, right after 10 passes less after 1"),
                curve[3].1 - curve[0].1,
                0.2,
            ),
        ]);
    }
    Ok(Outcome {
        claims,
        plot: panels(&charts),
        notes: vec![],
    })
}
