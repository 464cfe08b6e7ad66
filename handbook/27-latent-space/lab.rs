//! Walking through a latent space, and a direction in it that means something.

use burn::tensor::Tensor;

use crate::data::glyphs::{GlyphConfig, glyphs};
use crate::data::{ImageSet, Split};
use crate::eval::neighbours;
use crate::generate::image::Picture;
use crate::generate::latent::{Interpolation, Projection, path, project};
use crate::labs::training::{all, autoencoder, matrix, numbers, pictures, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, strips};
use crate::models::vae::VaeNetwork;
use crate::models::{Vae, VaeConfig};
use crate::rng::{Stream, normal, rng};
use crate::train::recipes::gan::images::latent;
use crate::train::recipes::of_run;
use crate::train::recipes::pictures::ImageRequest;

const RECIPE: &str = include_str!("../../recipes/gan-glyphs.toml");

const D_LATENT: usize = 16;
const POINTS: usize = 16;
const PAIRS: usize = 40;
/// Classes below this one give the attribute vector, the others receive it.
const GIVING: u16 = 5;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    // The same glyphs, once small and once large: the attribute, with its truth.
    let small = sized(Split::Train, lab.seed, 0.5, 150)?;
    let large = sized(Split::Train, lab.seed, 0.75, 150)?;
    let together = ImageSet {
        pixels: [small.pixels.as_slice(), &large.pixels].concat(),
        labels: small
            .labels
            .clone()
            .zip(large.labels.clone())
            .map(|(a, b)| [a, b].concat()),
        ..small.clone()
    };
    let config = VaeConfig {
        network: VaeNetwork::Mlp { hidden: vec![256] },
        d_latent: D_LATENT,
        ..VaeConfig::default()
    };
    lab.say("training an autoencoder on glyphs of two sizes");
    let model = autoencoder(lab, &together, &config, 700)?.model;

    lab.say("walking");
    let codes = means(lab, &model, &small)?;
    // Images `i` and `i + 3` are of different classes: the classes take turns.
    let pairs: Vec<_> = (0..PAIRS)
        .map(|pair| pair * 10 + pair % 7)
        .map(|i| [codes[i].clone(), codes[i + 3].clone()])
        .collect();
    let walk = walk(&pairs, |codes| decode(lab, &model, codes), &small)?;
    let played = adversarial(lab)?;
    lab.say("the attribute vector");
    let moved = attribute(lab, &model, (&small, &large))?;

    let claims = vec![
        Claim::at_most(
            "arc paths: largest of 15 steps over the distance of the ends, mean of 40 paths",
            walk.arc,
            0.35,
        ),
        Claim::at_most("straight paths: the same", walk.line, 0.35),
        Claim::at_most(
            "distance to the nearest real glyph, middle of the path over the average of the end images",
            walk.middle,
            0.95,
        ),
        Claim::at_most(
            "adversarial generator, arc paths: largest of 15 steps over the distance of the ends",
            played.walk.arc,
            0.35,
        ),
        Claim::at_most(
            "the same: middle of the path to the nearest real glyph, over that of the ends themselves",
            played.walk.middle_over_ends,
            1.2,
        ),
        Claim::at_most(
            "its own pictures projected back: distance left, over that to the nearest of 64 draws",
            played.left,
            0.5,
        ),
        Claim::at_least(
            "size vector from 0-4: share of unseen 5-9 that come closer to the truly larger glyph",
            moved.closer,
            0.8,
        ),
        Claim::at_most(
            "their distance to the larger glyph over that without the vector",
            moved.distance,
            0.9,
        ),
        Claim::within(
            "their brightness gained over that of the true change",
            moved.brightness,
            1.0,
            0.4,
        ),
    ];
    let steps = walk
        .steps
        .iter()
        .enumerate()
        .map(|(i, s)| (i as f64 + 1.0, *s));
    let chart = Chart::new(
        "Steps along the paths, mean of 40",
        "step",
        "distance over that of the ends",
    )
    .line("arc in latent space", steps)
    .line(
        "even steps of a blend",
        (1..POINTS).map(|i| (i as f64, 1.0 / (POINTS - 1) as f64)),
    );
    let rows = [
        ("three paths", walk.pictures),
        (
            "three paths of an adversarial generator",
            played.walk.pictures,
        ),
        ("small, small + vector, truly large", moved.pictures),
    ];
    let plot = beside(&[chart.svg(), strips(&rows)?]);
    Ok(Outcome {
        claims,
        plot,
        notes: vec![],
    })
}

fn sized(split: Split, seed: u64, scale: f32, per_class: usize) -> Result<ImageSet, LabError> {
    let config = GlyphConfig {
        scale,
        per_class,
        jitter: 0.0,
        ..GlyphConfig::default()
    };
    glyphs(split, seed, &config).doing("drawing glyphs")
}

fn means(lab: &LabContext<'_>, model: &Vae, set: &ImageSet) -> Result<Vec<Vec<f32>>, LabError> {
    let codes = numbers(model.encode(pictures(set, &all(set), &lab.device)).mean())?;
    Ok(codes.chunks(D_LATENT).map(<[f32]>::to_vec).collect())
}

/// Images of codes, row by row, in `[0, 1]`.
fn decode(
    lab: &LabContext<'_>,
    model: &Vae,
    codes: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>, LabError> {
    let z: Tensor<2> = matrix(codes.concat(), codes.len(), &lab.device);
    let images = numbers(model.decode(z))?;
    let pixels = images.len() / codes.len();
    Ok(images.chunks(pixels).map(<[f32]>::to_vec).collect())
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

struct Walk {
    arc: f64,
    line: f64,
    middle: f64,
    /// The same over that of the ends.
    middle_over_ends: f64,
    /// Mean length of each step over the distance of the ends.
    steps: Vec<f64>,
    pictures: Vec<Vec<Picture>>,
}

/// Paths between pairs of codes, and how far their pictures are from those of `set`.
fn walk(
    pairs: &[[Vec<f32>; 2]],
    decode: impl Fn(&[Vec<f32>]) -> Result<Vec<Vec<f32>>, LabError>,
    set: &ImageSet,
) -> Result<Walk, LabError> {
    let mut walk = Walk {
        arc: 0.0,
        line: 0.0,
        middle: 0.0,
        middle_over_ends: 0.0,
        steps: vec![0.0; POINTS - 1],
        pictures: vec![],
    };
    let share = 1.0 / pairs.len() as f64;
    let (mut middles, mut blends, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for (pair, [a, b]) in pairs.iter().enumerate() {
        for how in [Interpolation::Spherical, Interpolation::Linear] {
            let images = decode(&path(a, b, POINTS, how).doing("interpolating")?)?;
            let ends = distance(&images[0], &images[POINTS - 1]);
            let steps: Vec<f64> = images
                .windows(2)
                .map(|w| distance(&w[0], &w[1]) / ends)
                .collect();
            let largest = steps.iter().copied().fold(0.0, f64::max);
            match how {
                Interpolation::Linear => walk.line += share * largest,
                Interpolation::Spherical => {
                    walk.arc += share * largest;
                    walk.steps
                        .iter_mut()
                        .zip(&steps)
                        .for_each(|(sum, s)| *sum += share * s);
                    middles.push(images[POINTS / 2].clone());
                    blends.push(
                        images[0]
                            .iter()
                            .zip(&images[POINTS - 1])
                            .map(|(a, b)| 0.5 * (a + b))
                            .collect(),
                    );
                    both.extend([images[0].clone(), images[POINTS - 1].clone()]);
                    if pair < 3 {
                        walk.pictures.push(pictures_of(&images, set)?);
                    }
                }
            }
        }
    }
    let middle = to_real(&middles, set)?;
    walk.middle = middle / to_real(&blends, set)?;
    walk.middle_over_ends = middle / to_real(&both, set)?;
    Ok(walk)
}

/// What a generator that was never shown a code can do with them.
struct Played {
    walk: Walk,
    left: f64,
}

/// A small adversarial network without labels: its paths, and the way back into its latent space.
fn adversarial(lab: &LabContext<'_>) -> Result<Played, LabError> {
    const STARTS: u64 = 64;
    let (folder, recipe_text) = (
        tempfile::tempdir().doing("making a folder")?,
        RECIPE.replace("conditioning = \"projection\"\n", ""),
    );
    let out = folder.path().join("run");
    let sets: &[(&str, &str)] = &[
        ("train.steps", if lab.quick { "250" } else { "1500" }),
        ("train.batch", "32"),
        ("train.ema", if lab.quick { "0.97" } else { "0.995" }),
        ("model.width", "16"),
        ("data.glyphs.per_class", "100"),
        ("evaluate.count", "16"),
        ("evaluate.judge_steps", "1"),
    ];
    lab.say("training an adversarial network");
    recipe(lab, &recipe_text, sets, &out)?;
    let source = of_run(&out).doing("reading the run")?;
    let space = latent(&source, &out, &ImageRequest::default(), &lab.device);
    let space = space.doing("reading the run")?;
    let set = glyphs(
        Split::Train,
        lab.seed,
        &GlyphConfig {
            per_class: 100,
            ..GlyphConfig::default()
        },
    )
    .doing("drawing glyphs")?;

    lab.say("walking its latent space");
    let draw = |i: u64| normal(&mut rng(lab.seed, Stream::Sample, i), space.d_latent);
    let tensor = |codes: &[Vec<f32>]| matrix(codes.concat(), codes.len(), &space.device);
    let decode = |codes: &[Vec<f32>]| {
        let images = numbers((space.decode)(tensor(codes)) * 0.5 + 0.5)?;
        let pixels = images.len() / codes.len();
        Ok(images
            .chunks(pixels)
            .map(<[f32]>::to_vec)
            .collect::<Vec<_>>())
    };
    let pairs: Vec<_> = (0..PAIRS as u64)
        .map(|i| [draw(2 * i), draw(2 * i + 1)])
        .collect();
    let walk = walk(&pairs, decode, &set)?;

    lab.say("projecting its own pictures back");
    let truth: Vec<Vec<f32>> = (1000..1008).map(draw).collect();
    let wanted = decode(&truth)?;
    let starts: Vec<Vec<f32>> = (2000..2000 + STARTS).map(draw).collect();
    let drawn = decode(&starts)?;
    let (mut chosen, mut before) = (Vec::new(), 0.0);
    for image in &wanted {
        let far = |i: &usize| distance(&drawn[*i], image);
        let nearest = (0..starts.len()).min_by(|a, b| far(a).total_cmp(&far(b)));
        let nearest = nearest.unwrap_or(0);
        before += far(&nearest);
        chosen.push(starts[nearest].clone());
    }
    let images = (space.decode)(tensor(&truth)).detach();
    let found = project(
        &space.decode,
        chosen.concat(),
        images,
        &Projection::default(),
        &space.device,
    )
    .doing("projecting")?;
    let found: Vec<Vec<f32>> = found.chunks(space.d_latent).map(<[f32]>::to_vec).collect();
    let after = decode(&found)?;
    let after: f64 = after.iter().zip(&wanted).map(|(a, b)| distance(a, b)).sum();
    Ok(Played {
        walk,
        left: after / before,
    })
}

fn to_real(images: &[Vec<f32>], set: &ImageSet) -> Result<f64, LabError> {
    let bytes: Vec<u8> = images
        .concat()
        .iter()
        .map(|v| (v * 255.0).round() as u8)
        .collect();
    let found = neighbours::nearest(&bytes, &set.pixels, set.height * set.width, 1)
        .doing("looking for neighbours")?;
    Ok(found.iter().map(|n| n[0].distance).sum::<f64>() / found.len() as f64)
}

fn pictures_of(images: &[Vec<f32>], set: &ImageSet) -> Result<Vec<Picture>, LabError> {
    let picture = |image: &Vec<f32>| {
        let bytes = image.iter().map(|v| (v * 255.0).round() as u8).collect();
        Picture::new(set.width, set.height, 1, bytes).doing("drawing samples")
    };
    images.iter().map(picture).collect()
}

struct Moved {
    closer: f64,
    distance: f64,
    brightness: f64,
    pictures: Vec<Vec<Picture>>,
}

/// The mean difference of the codes of one half of the classes, added to the other half.
fn attribute(
    lab: &LabContext<'_>,
    model: &Vae,
    (small, large): (&ImageSet, &ImageSet),
) -> Result<Moved, LabError> {
    let (from, to) = (means(lab, model, small)?, means(lab, model, large)?);
    let class = |i: usize| (i % 10) as u16;
    let giving: Vec<usize> = (0..from.len()).filter(|i| class(*i) < GIVING).collect();
    let mut vector = vec![0.0f32; D_LATENT];
    for &i in &giving {
        for (v, (a, b)) in vector.iter_mut().zip(from[i].iter().zip(&to[i])) {
            *v += (b - a) / giving.len() as f32;
        }
    }
    let receiving: Vec<usize> = (0..from.len()).filter(|i| class(*i) >= GIVING).collect();
    let plain: Vec<Vec<f32>> = receiving.iter().map(|&i| from[i].clone()).collect();
    let shifted: Vec<Vec<f32>> = plain
        .iter()
        .map(|code| code.iter().zip(&vector).map(|(c, v)| c + v).collect())
        .collect();
    let (before, after) = (decode(lab, model, &plain)?, decode(lab, model, &shifted)?);
    let truth: Vec<Vec<f32>> = receiving
        .iter()
        .map(|&i| {
            large
                .image(i)
                .iter()
                .map(|p| f32::from(*p) / 255.0)
                .collect()
        })
        .collect();
    let original = |at: usize| {
        small
            .image(receiving[at])
            .iter()
            .map(|p| f64::from(*p) / 255.0)
            .sum::<f64>()
    };
    let light = |image: &[f32]| image.iter().map(|v| f64::from(*v)).sum::<f64>();

    let mut moved = Moved {
        closer: 0.0,
        distance: 0.0,
        brightness: 0.0,
        pictures: vec![],
    };
    let (mut without, mut gained, mut due) = (0.0, 0.0, 0.0);
    for i in 0..receiving.len() {
        let (was, is) = (
            distance(&before[i], &truth[i]),
            distance(&after[i], &truth[i]),
        );
        moved.closer += f64::from(u8::from(is < was)) / receiving.len() as f64;
        moved.distance += is;
        without += was;
        gained += light(&after[i]) - light(&before[i]);
        due += light(&truth[i]) - original(i);
    }
    moved.distance /= without;
    moved.brightness = gained / due;
    for row in [&before, &after, &truth] {
        moved.pictures.push(pictures_of(&row[..POINTS], small)?);
    }
    Ok(moved)
}
