//! Metrics of generated images: against their reference implementations, and against faults made on
//! purpose.

use std::sync::Arc;

use serde_json::Value;

use crate::data::{ImageSet, Split};
use crate::eval::image::{
    Manifold, Moments, frechet_distance, inception_score, kernel_distance, manifold, polynomial_mmd,
};
use crate::eval::neighbours::nearest;
use crate::eval::rating::{Vote, bradley_terry};
use crate::eval::{EvalError, Points};
use crate::generate::image::Picture;
use crate::labs::training::glyph_set;
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, heat, strips};
use crate::rng::{Stream, normal, rng};
use crate::train::feature_net::Embedding;
use crate::train::recipes::judge::Judge;
use crate::train::recipes::sections::{ImageSource, Images};

/// What torch-fidelity 0.4 and prdc 0.2 say of features in this file.
const REFERENCE: &str = include_str!("../../crates/maquette-eval/fixtures/image_metrics.json");
/// Standard deviations of the noise, in units of a pixel's byte.
const NOISE: [f32; 4] = [64.0, 96.0, 128.0, 160.0];
/// Different images of the collapsed generator.
const REPEATED: usize = 20;
/// Images of the small sample.
const FEW: usize = 100;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let apart = references().doing("measuring the reference features")?;
    let per_class = if lab.quick { 80 } else { 400 };
    lab.say("training the network whose features are compared");
    let images = Images {
        train: Arc::new(glyph_set(Split::Train, lab.seed, 10, per_class)?),
        test: glyph_set(Split::Test, lab.seed, 10, per_class)?,
        examples: 10 * per_class,
        stream: None,
    };
    let steps = if lab.quick { 90 } else { 600 };
    let judge = Judge::train(&images, ImageSource::Glyphs, steps, &lab.device).doing("training")?;
    lab.say("measuring good and bad generators");
    let bench = Bench {
        judge: &judge,
        real: &images.train,
        seen: see(&judge, &images.train)?,
        seed: lab.seed,
    };
    let fresh = glyph_set(Split::Train, lab.seed + 1, 10, per_class)?;
    let good = bench.measure(&fresh)?;
    let mut noisy = Vec::new();
    for sigma in NOISE {
        let set = noised(&fresh, sigma, lab.seed);
        noisy.push((bench.measure(&set)?, set));
    }
    let half = half_of_the_classes(&glyph_set(Split::Train, lab.seed + 2, 10, 2 * per_class)?);
    let repeats: Vec<usize> = (0..fresh.len()).map(|i| i % REPEATED).collect();
    let collapsed = fresh.subset(&repeats);
    let (few, half_seen) = (
        bench.measure(&fresh.subset(&(0..FEW).collect::<Vec<_>>()))?,
        bench.measure(&half)?,
    );
    let (collapsed_seen, copied) = (bench.measure(&collapsed)?, bench.measure(&images.train)?);

    // From fresh draws on, each with the next.
    let steps = |of: fn(&Measured) -> f64| {
        let all = std::iter::once(&good).chain(noisy.iter().map(|(m, _)| m));
        let all: Vec<f64> = all.map(of).collect();
        all.windows(2)
            .map(|pair| (pair[0], pair[1]))
            .collect::<Vec<_>>()
    };
    let fid = steps(|m| m.fid).into_iter().map(|(less, more)| more / less);
    let kid = steps(|m| m.kid).into_iter().map(|(less, more)| more - less);
    let least = f64::min;
    let claims = vec![
        Claim::at_most(
            "FID, six sets of features: largest relative difference from torch-fidelity 0.4",
            apart.fid,
            1e-6,
        ),
        Claim::at_most(
            "KID, three pairs: largest difference from torch-fidelity",
            apart.kid,
            1e-6,
        ),
        Claim::at_most(
            "Inception Score, three sets: largest difference from torch-fidelity",
            apart.is,
            1e-6,
        ),
        Claim::at_most(
            "precision, recall, density, coverage: largest difference from torch-fidelity and prdc",
            apart.pr,
            1e-6,
        ),
        Claim::at_least(
            "stronger noise, four times: smallest factor by which FID grows",
            fid.fold(f64::INFINITY, least),
            1.1,
        ),
        Claim::at_least(
            "the same: smallest amount by which KID grows",
            kid.fold(f64::INFINITY, least),
            0.05,
        ),
        Claim::at_least(
            "strongest noise: precision lost against fresh draws",
            good.near.precision - noisy[3].0.near.precision,
            0.3,
        ),
        Claim::at_most(
            "twenty images over and over: coverage over that of fresh draws",
            collapsed_seen.near.coverage / good.near.coverage,
            0.5,
        ),
        Claim::at_least(
            "their precision, which does not mind",
            collapsed_seen.near.precision,
            0.8,
        ),
        Claim::at_most(
            "five of ten classes: Inception Score over that of fresh draws",
            half_seen.is / good.is,
            0.75,
        ),
        Claim::at_most(
            "the training images themselves: FID, which takes them for perfect",
            copied.fid,
            1e-6,
        ),
        Claim::within(
            "share of them that the nearest-neighbour check finds out",
            copied.exact,
            1.0,
            0.0,
        ),
        Claim::at_most("share of fresh draws that it suspects", good.exact, 0.02),
        Claim::at_least(
            format!("FID of {FEW} fresh draws over that of all: the bias of few"),
            few.fid / good.fid,
            1.5,
        ),
        Claim::at_most(
            "KID of as few, in spreads of its subsets",
            (few.kid / few.kid_spread).abs(),
            2.0,
        ),
        Claim::at_most(
            "Bradley-Terry scores of 273 games: largest difference from the textbook's",
            baseball()?,
            0.005,
        )
        .published(
            0.0,
            "Agresti 2002, Categorical Data Analysis, table 10.11, to two decimals",
        ),
    ];
    let level = |i: usize| {
        NOISE
            .get(i.wrapping_sub(1))
            .map_or(0.0, |sigma| f64::from(*sigma))
    };
    let curve = |of: fn(&Measured) -> f64| {
        let all = std::iter::once(&good).chain(noisy.iter().map(|(m, _)| m));
        all.map(of)
            .enumerate()
            .map(|(i, y)| (level(i), y))
            .collect::<Vec<_>>()
    };
    let chart = Chart::new(
        "Noise on glyphs",
        "standard deviation, in 255ths",
        "distance",
    )
    .line("FID", curve(|m| m.fid))
    // Of fresh draws it is about 0, also below.
    .line("KID", curve(|m| m.kid).into_iter().skip(1))
    .log_y();
    let conditions = [
        ("fresh draws", &good),
        ("noise 64", &noisy[0].0),
        ("noise 128", &noisy[2].0),
        ("five classes", &half_seen),
        ("20 images", &collapsed_seen),
        ("the data", &copied),
    ];
    let rows: Vec<&str> = conditions.iter().map(|(name, _)| *name).collect();
    let shares = |m: &Measured| {
        let Manifold {
            precision,
            recall,
            coverage,
            ..
        } = m.near;
        vec![precision, recall, coverage, m.is / 10.0, 1.0 - m.exact]
    };
    let shown = heat(
        "What each metric sees",
        (
            &rows,
            &["precision", "recall", "coverage", "IS / 10", "no copies"],
        ),
        &conditions.map(|(_, m)| shares(m)),
    );
    let first = |set: &ImageSet| pictures(set, 10);
    let samples = [
        ("fresh draws", vec![first(&fresh)?]),
        (
            "noise 64, 128",
            vec![first(&noisy[0].1)?, first(&noisy[2].1)?],
        ),
        ("five classes", vec![first(&half)?]),
    ];
    Ok(Outcome {
        claims,
        plot: beside(&[chart.svg(), shown, strips(&samples)?]),
        notes: vec![format!(
            "Features: {}, {} numbers per image, {:.1} % right on the training fonts; {} real images.",
            judge.name(),
            bench.seen.dims,
            100.0 * judge.accuracy,
            images.train.len()
        )],
    })
}

pub(super) fn noised(set: &ImageSet, sigma: f32, seed: u64) -> ImageSet {
    let noise = normal(&mut rng(seed, Stream::Noise, 0), set.pixels.len());
    let pixels = set.pixels.iter().zip(noise);
    ImageSet {
        pixels: pixels
            .map(|(p, e)| (f32::from(*p) + sigma * e).round() as u8)
            .collect(),
        ..set.clone()
    }
}

fn half_of_the_classes(set: &ImageSet) -> ImageSet {
    let labels = set.labels.iter().flatten().enumerate();
    let kept: Vec<usize> = labels
        .filter(|(_, label)| **label < 5)
        .map(|(i, _)| i)
        .collect();
    set.subset(&kept)
}

fn pictures(set: &ImageSet, count: usize) -> Result<Vec<Picture>, LabError> {
    let picture = |i| Picture::new(set.width, set.height, 1, set.image(i).to_vec());
    (0..count)
        .map(|i| picture(i).doing("drawing samples"))
        .collect()
}

pub(super) fn see(judge: &Judge<'_>, set: &ImageSet) -> Result<Embedding, LabError> {
    judge
        .net()
        .embed(set, &mut |_| {})
        .doing("looking at images")
}

/// The real images, and the network by which generated ones are compared with them.
pub(super) struct Bench<'a> {
    pub(super) judge: &'a Judge<'a>,
    pub(super) real: &'a ImageSet,
    pub(super) seen: Embedding,
    pub(super) seed: u64,
}

/// What the metrics say of one generator.
pub(super) struct Measured {
    pub(super) fid: f64,
    pub(super) kid: f64,
    pub(super) kid_spread: f64,
    pub(super) is: f64,
    pub(super) near: Manifold,
    /// Share of exact copies of real images.
    pub(super) exact: f64,
}

impl Bench<'_> {
    pub(super) fn measure(&self, set: &ImageSet) -> Result<Measured, LabError> {
        let seen = see(self.judge, set)?;
        let numbers = || -> Result<Measured, EvalError> {
            let (made, real) = (seen.points()?, self.seen.points()?);
            let random = &mut rng(self.seed, Stream::Evaluate, 0);
            let kid = kernel_distance(made, real, 50, made.len() / 2, random)?;
            let pixels = self.real.height * self.real.width;
            let found = nearest(&set.pixels, &self.real.pixels, pixels, 1)?;
            let exact = found.iter().filter(|near| near[0].distance == 0.0).count();
            Ok(Measured {
                fid: frechet_distance(&Moments::of(made)?, &Moments::of(real)?)?,
                kid: kid.mean,
                kid_spread: kid.deviation,
                is: inception_score(&seen.logits, seen.n_classes, 1)?.mean,
                near: manifold(real, made, 3)?,
                exact: exact as f64 / set.len() as f64,
            })
        };
        numbers().doing("measuring")
    }
}

/// How far our figures are from the reference implementations'.
#[derive(Default)]
struct Apart {
    fid: f64,
    kid: f64,
    is: f64,
    pr: f64,
}

fn references() -> Result<Apart, EvalError> {
    let all: Value = serde_json::from_str(REFERENCE).unwrap_or_default();
    let cases = |metric: &str| all[metric].as_array().into_iter().flatten();
    // Numbers stand in the file in units of a sixty-fourth.
    let numbers = |case: &Value, name: &str| -> Vec<f32> {
        let values = case[name].as_array().into_iter().flatten();
        values
            .map(|x| x.as_f64().unwrap_or(f64::NAN) as f32 / 64.0)
            .collect()
    };
    let want = |case: &Value, name: &str| case[name].as_f64().unwrap_or(f64::NAN);
    let count = |case: &Value, name: &str| case[name].as_u64().unwrap_or(0) as usize;
    // Not a number, which a missing value is, must not pass for no difference.
    let widen = |so_far: &mut f64, got: f64, want: f64, scale: f64| {
        let apart = (got - want).abs() / scale;
        *so_far = if apart.is_nan() {
            f64::INFINITY
        } else {
            so_far.max(apart)
        };
    };
    let mut apart = Apart::default();
    for case in cases("frechet") {
        let (a, b, dims) = (numbers(case, "a"), numbers(case, "b"), count(case, "dims"));
        let moments = |x| Moments::of(Points::new(x, dims)?);
        let got = frechet_distance(&moments(&a)?, &moments(&b)?)?;
        let fid = want(case, "fid");
        widen(&mut apart.fid, got, fid, fid.max(1.0));
    }
    for case in cases("kernel") {
        let (a, b, dims) = (numbers(case, "a"), numbers(case, "b"), count(case, "dims"));
        let got = polynomial_mmd(Points::new(&a, dims)?, Points::new(&b, dims)?)?;
        widen(&mut apart.kid, got, want(case, "kid"), 1.0);
    }
    for case in cases("inception") {
        let got = inception_score(
            &numbers(case, "logits"),
            count(case, "classes"),
            count(case, "splits"),
        )?;
        widen(&mut apart.is, got.mean, want(case, "mean"), 1.0);
        widen(&mut apart.is, got.deviation, want(case, "deviation"), 1.0);
    }
    for case in cases("manifold") {
        let (a, b, dims) = (numbers(case, "a"), numbers(case, "b"), count(case, "dims"));
        let (real, made) = (Points::new(&a, dims)?, Points::new(&b, dims)?);
        let (three, five) = (manifold(real, made, 3)?, manifold(real, made, 5)?);
        for (got, name) in [
            (three.precision, "precision"),
            (three.recall, "recall"),
            (five.density, "density"),
            (five.coverage, "coverage"),
        ] {
            widen(&mut apart.pr, got, want(case, name), 1.0);
        }
    }
    Ok(apart)
}

/// The American League's East in 1987, game by game, and its published scores over the last.
fn baseball() -> Result<f64, LabError> {
    let wins = [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ];
    let published = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0];
    let mut votes = Vec::new();
    for (a, row) in wins.iter().enumerate() {
        for (b, count) in row.iter().enumerate() {
            votes.extend(std::iter::repeat_n(Vote { a, b, share: 1.0 }, *count));
        }
    }
    let scores = bradley_terry(7, &votes, 0.0).doing("rating")?;
    let apart = scores
        .iter()
        .zip(published)
        .map(|(got, want): (&f64, f64)| (got - scores[6] - want).abs());
    Ok(apart.fold(0.0, f64::max))
}
