//! The same glyphs with pairs, without pairs, and without a word of what is wanted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::data::glyphs::{GlyphConfig, glyphs};
use crate::data::images::{Derived, ImagePairs};
use crate::data::{ImageSet, Split};
use crate::eval::pixels::mean_absolute_error;
use crate::generate::image::{Picture, encode_png, pictures as as_pictures};
use crate::labs::training::{Ran, all, autoencoder, numbers, pictures, recipe};
use crate::labs::{Chart, Claim, Doing, LabContext, LabError, Outcome, beside, strips};
use crate::models::vae::VaeNetwork;
use crate::models::{Vae, VaeConfig};
use crate::rng::{Stream, permutation, rng};
use crate::train::recipes::judge::Judge;
use crate::train::recipes::pictures::as_set;
use crate::train::recipes::sections::{ImageSource, Images};
use crate::train::recipes::translate::{open, translated};

/// Both translators; what differs is set.
const RECIPE: &str = r#"
summary = "Translations of glyphs"
family = "translate"
[data]
source = "glyphs"
[pairs]
from = "edges"
[generator.optimizer]
kind = "adam"
lr = 1e-3
betas = [0.5, 0.999]
[critic.optimizer]
kind = "adam"
lr = 5e-4
betas = [0.5, 0.999]
[train]
batch = 16
log_every = 1000
[evaluate]
judge_steps = 0
"#;

/// Groups that codes are put into, as many as there are classes.
const GROUPS: usize = 10;
/// Pictures in a row of the plot.
const SHOWN: usize = 10;

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let (size, per_class, held_out) = if lab.quick {
        (16, 60, 20)
    } else {
        (28, 200, 50)
    };
    let draw = |split, per_class| {
        let config = GlyphConfig {
            size,
            per_class,
            ..GlyphConfig::default()
        };
        glyphs(split, lab.seed, &config).doing("drawing glyphs")
    };
    let train = outlines(draw(Split::Train, per_class)?, lab.seed)?;
    let test = outlines(draw(Split::Test, held_out)?, lab.seed)?;

    // 1. Outlines are to be filled, with pairs and without.
    let place = tempfile::tempdir().doing("making a folder")?;
    let data = format!("{{source=\"glyphs\",glyphs={{size={size},per_class={per_class}}}}}");
    let learn = Learn {
        lab,
        folder: place.path(),
    };
    let edges = "from=\"edges\",";
    let (told, _) = learn.run("outlines-with-pairs", [&data, edges], true, ["120", "1000"])?;
    let (untold, _) = learn.run(
        "outlines-without-pairs",
        [&data, edges],
        false,
        ["120", "500"],
    )?;

    // 2. Black on white becomes white on black: heaps of two kinds.
    let inverted = "from=\"inverted\",";
    let (turner, turned_apart) = learn.run(
        "black-to-white-without-pairs",
        [&data, inverted],
        false,
        ["150", "400"],
    )?;

    // 3. Pictures of both kinds become their negatives: both heaps are the same.
    let negatives = place.path().join("negatives");
    write_negatives(&train.targets, &negatives, lab)?;
    let data = format!("{{source=\"path\",path={negatives:?}}}");
    let (turned, turned_with) =
        learn.run("negatives-with-pairs", [&data, ""], true, ["80", "300"])?;
    let (kept, kept_without) =
        learn.run("negatives-without-pairs", [&data, ""], false, ["60", "300"])?;

    // 4. One heap of outlines and glyphs, of which nothing is said.
    lab.say("learning one heap of images");
    let heap = ImageSet {
        pixels: [&*train.sources.pixels, &*train.targets.pixels].concat(),
        labels: None,
        ..train.targets.clone()
    };
    let config = VaeConfig {
        image: [1, size, size],
        network: VaeNetwork::Mlp { hidden: vec![256] },
        d_latent: 16,
        ..VaeConfig::default()
    };
    let steps = if lab.quick { 150 } else { 1500 };
    let heap = autoencoder(lab, &heap, &config, steps)?.model;
    let given_back = give_back(&heap, &test.sources, lab)?;
    lab.say("grouping without labels, reading with them");
    let purity = purity(&heap, &test.targets, lab)?;
    let images = Images {
        examples: train.targets.len(),
        train: Arc::new(train.targets.clone()),
        test: test.targets.clone(),
        stream: None,
    };
    let steps = if lab.quick { 80 } else { 600 };
    let judge = Judge::train(&images, ImageSource::Path, steps, &lab.device);
    let judge = judge.doing("training the judge")?;

    let make = |model| translated(model, &test.sources, &lab.device).doing("translating");
    let (told, untold) = (make(&told)?, make(&untold)?);
    let far = |made: &ImageSet, truth: &ImageSet| {
        mean_absolute_error(&made.pixels, &truth.pixels).doing("comparing")
    };
    let untouched = far(&test.sources, &test.targets)?;
    let [with, without, neither] =
        [&told, &untold, &given_back].map(|made| far(made, &test.targets));
    let (with, without, neither) = (
        with? / untouched,
        without? / untouched,
        neither? / untouched,
    );
    let read = |set: &ImageSet| {
        let read = judge.readback(set).doing("reading")?;
        Ok::<f64, LabError>(read.accuracy() / judge.accuracy)
    };
    let (read_told, read_untold) = (read(&told)?, read(&untold)?);
    let random = &mut rng(lab.seed, Stream::Data, 0);
    let black = ImagePairs::derive(test.targets.clone(), Derived::Inverted, random);
    let black = black.doing("inverting")?.sources;
    let turned_back = translated(&turner, &black, &lab.device).doing("translating")?;
    let read_turned = read(&turned_back)?;

    let claims = vec![
        Claim::at_most(
            "outlines filled, with pairs: distance to the truth over that of the outline",
            with,
            0.5,
        ),
        Claim::at_least(
            "what pairs are worth: distance without over with",
            without / with,
            1.5,
        ),
        Claim::at_least(
            "classes a judge reads in filled outlines, over the truth's, with pairs",
            read_told,
            0.9,
        ),
        Claim::at_least(
            "the same, less that without pairs",
            read_told - read_untold,
            0.1,
        ),
        Claim::at_most(
            "black on white to white on black, without pairs: distance to the truth",
            turned_apart.metric("test_l1"),
            0.15,
        ),
        Claim::at_least(
            "classes a judge reads there, over the truth's",
            read_turned,
            0.8,
        ),
        Claim::at_most(
            "negatives of both kinds, with pairs: distance to the truth",
            turned_with.metric("test_l1"),
            0.1,
        ),
        Claim::at_least(
            "the same without pairs, which say nothing of it",
            kept_without.metric("test_l1"),
            0.5,
        ),
        Claim::at_most(
            "and yet there and back it comes to where it began: distance",
            kept_without.metric("test_cycle_l1"),
            0.1,
        ),
        Claim::at_least(
            "one heap: distance of what it makes of an outline, over that of the outline",
            neither,
            0.8,
        ),
        Claim::at_most(
            "which is nearer to the outline: distance to that over distance to the truth",
            far(&given_back, &test.sources)? / far(&given_back, &test.targets)?,
            1.0,
        ),
        Claim::at_least(
            "classes in ten groups of codes, without labels: share of the most frequent",
            purity,
            0.25,
        ),
        Claim::at_least(
            "classes read with labels, less that share",
            judge.accuracy - purity,
            0.1,
        ),
    ];
    let first: Vec<usize> = (0..SHOWN).collect();
    let row = |set: &ImageSet| drawn(&set.subset(&first));
    let samples = strips(&[
        ("outlines", vec![row(&test.sources)?]),
        ("with pairs", vec![row(&told)?]),
        ("without pairs", vec![row(&untold)?]),
        ("one heap", vec![row(&given_back)?]),
        ("the truth", vec![row(&test.targets)?]),
    ])?;
    let negatives = ImagePairs::open(&negatives, Split::Test, Default::default());
    let negatives = negatives.doing("reading pictures")?;
    let turn = |model| translated(model, &negatives.sources, &lab.device).doing("translating");
    let turns = strips(&[
        ("pictures", vec![row(&negatives.sources)?]),
        ("with pairs", vec![row(&turn(&turned)?)?]),
        ("without pairs", vec![row(&turn(&kept)?)?]),
        ("the truth", vec![row(&negatives.targets)?]),
    ])?;
    let chart = Chart::new(
        "Outlines: distance to the truth",
        "",
        "of the outline's own",
    )
    .bar("with pairs", with)
    .bar("without", without)
    .bar("one heap", neither);
    Ok(Outcome {
        claims,
        plot: beside(&[chart.svg(), samples, turns]),
        notes: vec![format!(
            "{} glyphs of {size}x{size}; without pairs half of them are seen as outlines only, the others only \
             filled. The judge reads {:.1} % of the true glyphs in fonts that nobody learnt from.",
            train.targets.len(),
            100.0 * judge.accuracy
        )],
    })
}

/// Trains translators by the library's recipe.
struct Learn<'a> {
    lab: &'a LabContext<'a>,
    folder: &'a Path,
}

impl Learn<'_> {
    fn run(
        &self,
        name: &str,
        [data, from]: [&str; 2],
        paired: bool,
        steps: [&str; 2],
    ) -> Result<(crate::models::gan::Translator, Ran), LabError> {
        let lab = self.lab;
        lab.say(&format!("learning {}", name.replace('-', " ")));
        let pairs = format!("{{{from}paired={paired}}}");
        let mut sets = vec![
            ("data", data),
            ("pairs", &*pairs),
            ("train.steps", steps[usize::from(lab.full())]),
        ];
        if !paired {
            // CycleGAN's losses.
            sets.extend([
                ("objective.loss", "least-squares"),
                ("objective.adversarial", "2"),
            ]);
        }
        if !paired && from.is_empty() {
            sets.push(("objective.identity", "5"));
        }
        if lab.quick {
            sets.extend([
                ("model.generator.width", "8"),
                ("model.critic.width", "16"),
                ("model.critic.n_layers", "1"),
            ]);
        }
        let out = self.folder.join(name);
        let ran = recipe(lab, RECIPE, &sets, &out)?;
        let model = open(&out, &lab.device).doing("opening the run")?;
        Ok((model.there, ran))
    }
}

fn outlines(targets: ImageSet, seed: u64) -> Result<ImagePairs, LabError> {
    let random = &mut rng(seed, Stream::Data, 0);
    ImagePairs::derive(targets, Derived::Edges, random).doing("drawing outlines")
}

/// Writes the folders `a` and `b`: glyphs, every other one black on white, and their negatives. Both folders
/// hold as many black as white ones, and so the same kind of pictures.
fn write_negatives(set: &ImageSet, folder: &Path, lab: &LabContext<'_>) -> Result<(), LabError> {
    let count = if lab.quick { 160 } else { 600 };
    let order = permutation(&mut rng(lab.seed, Stream::Split, 1), set.len());
    for (i, &at) in order.iter().take(count).enumerate() {
        let part = if i % 8 == 0 { "test" } else { "train" };
        let image = set.image(at).to_vec();
        let negative: Vec<u8> = image.iter().map(|p| 255 - p).collect();
        let sides = if (i / 8) % 2 == 0 {
            [image, negative]
        } else {
            [negative, image]
        };
        for (side, pixels) in ["a", "b"].into_iter().zip(sides) {
            let folder = folder.join(part).join(side);
            fs::create_dir_all(&folder).doing("making a folder")?;
            let picture = Picture::new(set.width, set.height, 1, pixels).doing("drawing")?;
            let png = encode_png(&picture, &[]).doing("drawing")?;
            fs::write(folder.join(format!("{i:04}.png")), png).doing("writing pictures")?;
        }
    }
    Ok(())
}

/// Images as the autoencoder gives them back.
fn give_back(model: &Vae, set: &ImageSet, lab: &LabContext<'_>) -> Result<ImageSet, LabError> {
    let x = pictures(set, &all(set), &lab.device);
    let made = as_pictures(model.decode(model.encode(x).mean()), 0.0, 1.0);
    Ok(as_set(&made.doing("drawing")?, None, &[]))
}

/// Puts images into groups by their codes (k-means, best of five starts) and counts those of the class that
/// is the most frequent of their group, as a share.
fn purity(model: &Vae, set: &ImageSet, lab: &LabContext<'_>) -> Result<f64, LabError> {
    let codes: Tensor<2> = model.encode(pictures(set, &all(set), &lab.device)).mean();
    let [n, dims] = codes.dims();
    let codes = numbers(codes)?;
    let code = |i: usize| &codes[i * dims..(i + 1) * dims];
    let apart =
        |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
    let mut best: Option<(f32, Vec<usize>)> = None;
    for start in 0..5 {
        let order = permutation(&mut rng(lab.seed, Stream::Evaluate, start), n);
        let mut centres: Vec<Vec<f32>> =
            order[..GROUPS].iter().map(|&i| code(i).to_vec()).collect();
        let mut groups = vec![0; n];
        let mut spread = 0.0;
        for _ in 0..30 {
            spread = 0.0;
            for (i, group) in groups.iter_mut().enumerate() {
                let distances = centres.iter().map(|centre| apart(code(i), centre));
                let nearest = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
                let (at, distance) = nearest.unwrap_or_default();
                (*group, spread) = (at, spread + distance);
            }
            for (at, centre) in centres.iter_mut().enumerate() {
                let members: Vec<usize> = (0..n).filter(|&i| groups[i] == at).collect();
                for (d, x) in centre
                    .iter_mut()
                    .enumerate()
                    .filter(|_| !members.is_empty())
                {
                    let sum: f32 = members.iter().map(|&i| code(i)[d]).sum();
                    *x = sum / members.len() as f32;
                }
            }
        }
        if best.as_ref().is_none_or(|(least, _)| spread < *least) {
            best = Some((spread, groups));
        }
    }
    let groups = best.map(|(_, groups)| groups).unwrap_or_default();
    let labels = set.labels.clone().unwrap_or_default();
    let mut counts = [[0usize; GROUPS]; GROUPS];
    for (group, label) in groups.iter().zip(&labels) {
        counts[*group][usize::from(*label)] += 1;
    }
    let most: usize = counts.iter().filter_map(|group| group.iter().max()).sum();
    Ok(most as f64 / n as f64)
}

/// Images as pictures of the plot.
fn drawn(set: &ImageSet) -> Result<Vec<Picture>, LabError> {
    let picture = |i| Picture::new(set.width, set.height, 1, set.image(i).to_vec());
    (0..set.len())
        .map(|i| picture(i).doing("drawing samples"))
        .collect()
}
