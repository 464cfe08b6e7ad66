//! Metrics of images: of folders, data sets and runs, or of features from files.

use std::path::Path;

use maquette::eval::bootstrap::{Interval, wilson};
use maquette::eval::classification::predictions;
use maquette::eval::image::{
    Moments, frechet_distance, frechet_interval, inception_interval, inception_score,
    kernel_distance, manifold,
};
use maquette::eval::modes::class_modes;
use maquette::eval::neighbours::{copies, nearest};
use maquette::eval::two_sample::{median_distance, mmd, sliced_wasserstein};
use maquette::eval::{EvalError, Signature};
use maquette::rng::{Rng, Stream, rand::seq::SliceRandom, rng};

use super::super::device;
use super::report::Report;
use super::sets::{Reader, Set, image_set};
use crate::args::{ImageMetric, ImageSetArgs, ImageSplit, SetArgs, SourceArgs};
use crate::errors::{Usage, failed};
use crate::output::Output;

/// Features up to which a distance has an interval unless the user says otherwise.
const NARROW: usize = 512;
const RESAMPLES: usize = 100;
const LEVEL: f64 = 0.95;
/// Points among which the median distance is looked for.
const MEDIAN_OF: usize = 1000;
/// Images below which a share of neighbours says little.
const FEW: usize = 1000;

/// Measures what the sub-command names.
pub(super) fn measure(metric: ImageMetric, output: Output) -> miette::Result<Report> {
    match metric {
        ImageMetric::Fid { sets, resamples } => fid(&sets, resamples, output),
        ImageMetric::Kid {
            sets,
            subsets,
            subset_size,
        } => kid(&sets, (subsets, subset_size), output),
        ImageMetric::Is {
            generated,
            splits,
            resamples,
            source,
        } => inception(&generated, (splits, resamples), &source, output),
        ImageMetric::Pr { sets, neighbours } => neighbourhoods(&sets, neighbours, output),
        ImageMetric::Classes {
            generated,
            real,
            source,
        } => classes(&generated, real.as_deref(), &source, output),
        ImageMetric::Copies {
            generated,
            data,
            held_out,
            images,
        } => training_copies(&generated, &data, held_out.as_deref(), &images),
        ImageMetric::Points {
            sets,
            directions,
            bandwidth,
        } => points(&sets, directions, bandwidth, output),
    }
}

/// Two sets and the beginning of their signature.
struct Pair {
    generated: Set,
    real: Set,
    signature: Signature,
}

impl Pair {
    fn read(args: &SetArgs, metric: &str, output: Output) -> miette::Result<Self> {
        let mut reader = Reader::new(&args.source, output)?;
        let (generated, real) = reader.pair(&args.generated, &args.real)?;
        let signature = reader
            .signature(metric, real.dims(), generated.len())
            .with("real", real.len());
        let signature = match reader.split(&args.real) {
            Some(split) => signature.with("split", split),
            None => signature,
        };
        Ok(Self {
            generated,
            real,
            signature,
        })
    }

    fn fewest(&self) -> usize {
        self.generated.len().min(self.real.len())
    }
}

fn random(source: &SourceArgs) -> Rng {
    rng(source.images.seed, Stream::Evaluate, 0)
}

fn fid(args: &SetArgs, resamples: Option<usize>, output: Output) -> miette::Result<Report> {
    let mut report = Report::default();
    let pair = Pair::read(args, "fid", output)?;
    let (generated, real) = (pair.generated.points()?, pair.real.points()?);
    let dims = real.dims();
    let resamples = resamples.unwrap_or(if dims > NARROW { 0 } else { RESAMPLES });
    let signature = pair.signature.to_string();
    if resamples == 0 {
        let moments = |set| Moments::of(set).map_err(failed);
        let distance = frechet_distance(&moments(generated)?, &moments(real)?);
        report.add("fid", distance.map_err(failed)?, &signature);
    } else {
        let random = &mut random(&args.source);
        let interval = frechet_interval(generated, real, resamples, LEVEL, random);
        report.add_interval("fid", interval.map_err(failed)?, &signature);
    }
    // A covariance of few images is far from the true one, and the distance too large.
    if pair.fewest() < 10 * dims {
        report.warnings.push(format!(
            "{} images are few for {dims} features: the distance comes out too large; compare it only with \
             figures of as many images, or take `maquette metric kid`",
            pair.fewest()
        ));
    }
    Ok(report)
}

fn kid(args: &SetArgs, (subsets, size): (usize, usize), output: Output) -> miette::Result<Report> {
    let mut report = Report::default();
    let pair = Pair::read(args, "kid", output)?;
    let (generated, real) = (pair.generated.points()?, pair.real.points()?);
    let random = &mut random(&args.source);
    let distance = kernel_distance(generated, real, subsets, size, random);
    let distance = distance.map_err(|error| match error {
        EvalError::TooFew { .. } if size > pair.fewest() => miette::miette!(
            help = "take smaller subsets with --subset-size, and say so beside the figure",
            "{error}"
        ),
        error => failed(error),
    })?;
    let signature = pair
        .signature
        .with("subsets", subsets)
        .with("size", size)
        .with("seed", args.source.images.seed);
    report.add("kid", distance.mean, signature.as_str());
    report.add("kid_std", distance.deviation, signature.as_str());
    Ok(report)
}

fn inception(
    generated: &Path,
    (splits, resamples): (usize, usize),
    source: &SourceArgs,
    output: Output,
) -> miette::Result<Report> {
    let mut report = Report::default();
    let mut reader = Reader::new(source, output)?;
    let set = reader.set(generated, ImageSplit::Train)?;
    let (logits, classes) = set.logits();
    let random = &mut random(source);
    let mut images: Vec<&[f32]> = logits.chunks_exact(classes).collect();
    images.shuffle(random);
    let (n, logits) = (images.len(), images.concat());
    let score = inception_score(&logits, classes, splits).map_err(failed)?;
    let signature = reader
        .signature("is", set.dims(), n)
        .with("classes", classes)
        .with("splits", splits)
        .with("seed", source.images.seed);
    let signature = signature.as_str();
    match resamples {
        0 => report.add("is", score.mean, signature),
        _ => {
            let resampling = (resamples, LEVEL);
            let interval = inception_interval(&logits, classes, splits, resampling, random);
            report.add_interval("is", interval.map_err(failed)?, signature);
        }
    }
    report.add("is_std", score.deviation, signature);
    if n / splits < 10 * classes {
        report.warnings.push(format!(
            "{splits} parts of {} images are few for {classes} classes: the score comes out too high; compare it \
             only with figures of as many images and parts",
            n / splits
        ));
    }
    Ok(report)
}

fn neighbourhoods(args: &SetArgs, neighbours: usize, output: Output) -> miette::Result<Report> {
    let mut report = Report::default();
    let pair = Pair::read(args, "pr", output)?;
    let (generated, real) = (pair.generated.points()?, pair.real.points()?);
    let found = manifold(real, generated, neighbours).map_err(failed)?;
    let signature = pair.signature.clone().with("k", neighbours).to_string();
    for (name, value, n) in [
        ("precision", found.precision, generated.len()),
        ("recall", found.recall, real.len()),
        ("coverage", found.coverage, real.len()),
    ] {
        // A share of one set, the other held fixed.
        let hits = (value * n as f64).round() as usize;
        let (low, high) = wilson(hits, n, 1.96).map_err(failed)?;
        let level = LEVEL;
        report.add_interval(
            name,
            Interval {
                value,
                low,
                high,
                level,
            },
            &signature,
        );
    }
    report.add("density", found.density, &signature);
    if pair.fewest() < FEW {
        report.warnings.push(format!(
            "balls around {} images are wide: precision and recall come out high; compare them only with \
             figures of as many images",
            pair.fewest()
        ));
    }
    Ok(report)
}

fn classes(
    generated: &Path,
    real: Option<&Path>,
    source: &SourceArgs,
    output: Output,
) -> miette::Result<Report> {
    let mut report = Report::default();
    let mut reader = Reader::new(source, output)?;
    let images = reader.images(generated, ImageSplit::Train)?;
    let seen = reader.embed(&images)?;
    let n_classes = seen.n_classes;
    let (reference, named) = match real {
        None => (vec![1; n_classes], "uniform"),
        Some(path) => {
            let real = reader.images(path, source.images.split)?;
            let labels = real.labels.as_ref().ok_or_else(|| {
                Usage::new(
                    format!("{} has no labels", path.display()),
                    "put each class in a folder of its own, or leave it out for equal shares",
                )
            })?;
            if real.class_names != reader.class_names() {
                return Err(miette::miette!(
                    "{} has the classes {}, the classifier knows {}",
                    path.display(),
                    real.class_names.join(", "),
                    reader.class_names().join(", ")
                ));
            }
            let mut counts = vec![0; n_classes];
            labels
                .iter()
                .for_each(|&label| counts[usize::from(label)] += 1);
            (counts, "labels")
        }
    };
    let read = predictions(&seen.logits, n_classes).map_err(failed)?;
    let modes = class_modes(&read, &reference).map_err(failed)?;
    let signature = reader
        .signature("classes", seen.dims, images.len())
        .with("reference", named);
    report.add("classes", modes.covered as f64, signature.as_str());
    report.add("classes_kl", modes.kl, signature.as_str());
    for (class, count) in modes.counts.iter().enumerate() {
        let name = reader.class_names().get(class);
        let name = name.map_or_else(|| class.to_string(), String::clone);
        report.add(&format!("class_{name}"), *count as f64, signature.as_str());
    }
    Ok(report)
}

fn training_copies(
    generated: &Path,
    data: &Path,
    held_out: Option<&Path>,
    args: &ImageSetArgs,
) -> miette::Result<Report> {
    let mut report = Report::default();
    let device = device::parse(&args.device)?;
    let open = |path, split| image_set(path, split, args, &device);
    // All that was trained on is searched.
    let every = ImageSetArgs {
        images: None,
        device: args.device.clone(),
        ..*args
    };
    let train = image_set(data, ImageSplit::Train, &every, &device)?;
    let generated = open(generated, ImageSplit::Train)?;
    let held_out = match held_out {
        Some(path) => open(path, ImageSplit::Train)?,
        None => open(data, ImageSplit::Test).map_err(|error| {
            miette::miette!(
                help = "give unseen images of the same kind with --held-out",
                "{error}"
            )
        })?,
    };
    // As many unseen images, so that both have as many chances to come near.
    let n = generated.len().min(held_out.len());
    let held_out = held_out.subset(&(0..n).collect::<Vec<_>>());
    let pixels = train.channels * train.height * train.width;
    let distances = |set: &maquette::data::ImageSet| -> miette::Result<Vec<f64>> {
        if (set.channels, set.height, set.width) != (train.channels, train.height, train.width) {
            return Err(miette::miette!(
                help = "bring all to one size with --resize, for example --resize 32x32",
                "some images have {} channels and {} x {} pixels, the training images {} and {} x {}",
                set.channels,
                set.height,
                set.width,
                train.channels,
                train.height,
                train.width
            ));
        }
        let near = nearest(&set.pixels, &train.pixels, pixels, 1).map_err(failed)?;
        Ok(near.iter().map(|near| near[0].distance).collect())
    };
    let found = copies(&distances(&generated)?, &distances(&held_out)?).map_err(failed)?;
    let signature = Signature::new("copies")
        .with("distance", "pixel-l2")
        .with("n", generated.len())
        .with("train", train.len())
        .with("held-out", n)
        .with("seed", args.seed);
    for (name, value) in [
        ("exact_copies", found.exact as f64),
        ("closer_than_held_out", found.closer_than_held_out as f64),
        ("expected_by_chance", found.expected_by_chance),
        ("data_copying_score", found.data_copying_score),
        ("nearest", found.nearest_generated),
        ("nearest_held_out", found.nearest_held_out),
        ("median", found.median_generated),
        ("median_held_out", found.median_held_out),
    ] {
        report.add(name, value, signature.as_str());
    }
    Ok(report)
}

fn points(
    args: &SetArgs,
    directions: usize,
    bandwidth: Option<f64>,
    output: Output,
) -> miette::Result<Report> {
    let mut report = Report::default();
    let pair = Pair::read(args, "points", output)?;
    let (generated, real) = (pair.generated.points()?, pair.real.points()?);
    let random = &mut random(&args.source);
    let distance = sliced_wasserstein(generated, real, directions, random).map_err(failed)?;
    let median = || median_distance(generated, real, MEDIAN_OF).map_err(failed);
    let bandwidth = bandwidth.map_or_else(median, Ok)?;
    let signature = pair
        .signature
        .with("directions", directions)
        .with("bandwidth", bandwidth)
        .with("seed", args.source.images.seed);
    report.add("sliced_wasserstein", distance, signature.as_str());
    let discrepancy = mmd(generated, real, bandwidth).map_err(failed)?;
    report.add("mmd", discrepancy, signature.as_str());
    Ok(report)
}
