//! Generators that are told what to draw, and three ways to tell the critic.

use crate::generate::image::Picture;
use crate::labs::training::{Ran, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, strips};
use crate::train::recipes::generate::draw;
use crate::train::recipes::pictures::ImageRequest;

const RECIPE: &str = include_str!("../../recipes/gan-glyphs.toml");

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let folder = tempfile::tempdir().doing("making a folder")?;
    let size: &[(&str, &str)] = match lab.quick {
        true => &[
            ("train.steps", "220"),
            ("train.batch", "32"),
            ("train.ema", "0.97"),
            ("model.width", "16"),
            ("data.glyphs.per_class", "100"),
            ("evaluate.count", "200"),
            ("evaluate.judge_steps", "100"),
        ],
        false => &[("train.steps", "2000")],
    };
    let mut told = Vec::new();
    for way in ["concat", "auxiliary", "projection"] {
        lab.say(&format!("training with labels by {way}"));
        let out = folder.path().join(way);
        let sets = [&[("model.conditioning", way)], size].concat();
        let ran = recipe(lab, RECIPE, &sets, &out)?;
        let request = ImageRequest {
            count: 20,
            seed: lab.seed,
            ..ImageRequest::default()
        };
        let drawn = draw(&out, &request, &lab.device).doing("drawing")?;
        told.push(Told { way, ran, drawn });
    }
    // The fonts of the generator and those that the judge learnt from are disjoint: it misreads some real
    // glyphs too, and a generator cannot do better than they.
    let (judge, chance) = (told[0].ran.metric("judge_accuracy"), 0.1);
    let best = told.iter().map(Told::read_back).fold(0.0, f64::max);
    let mut claims = vec![
        Claim::at_least(
            "real glyphs of the generator's fonts that a classifier of other fonts reads right",
            judge,
            if lab.quick { 0.8 } else { 0.85 },
        ),
        Claim::at_least(
            "asked-for glyphs that it reads back, the best of three ways, over real ones",
            best / judge,
            if lab.quick { 0.6 } else { 0.95 },
        ),
    ];
    // A quick training is too short for two of the ways.
    for told in told.iter().filter(|_| !lab.quick) {
        claims.push(Claim::at_least(
            format!("the same, labels by {}; chance is {chance}", told.way),
            told.read_back() / judge,
            0.75,
        ));
    }
    claims.push(Claim::at_most(
        "drawn glyphs that are training images, all three",
        told.iter()
            .map(|told| told.ran.metric("exact_copies"))
            .sum::<f64>(),
        0.0,
    ));
    let mut chart = Chart::new("Is it what was asked for?", "", "read back")
        .bar("chance", chance)
        .bar("real glyphs", judge);
    for told in &told {
        chart = chart.bar(told.way, told.read_back());
    }
    // Asked for 0 to 9, twice.
    let rows: Vec<(&str, Vec<Vec<Picture>>)> = told
        .into_iter()
        .map(|told| (told.way, told.drawn.chunks(10).map(<[_]>::to_vec).collect()))
        .collect();
    Ok(Outcome {
        claims,
        plot: beside(&[chart.svg(), strips(&rows)?]),
        notes: vec![],
    })
}

/// A generator whose critic is told labels in some way.
struct Told {
    way: &'static str,
    ran: Ran,
    drawn: Vec<Picture>,
}

impl Told {
    fn read_back(&self) -> f64 {
        self.ran.metric("readback")
    }
}
