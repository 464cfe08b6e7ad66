//! Metrics of images, on features or logits from files.

use std::path::Path;

use maquette::data::Features;
use maquette::eval::image::{
    Moments, frechet_distance, inception_score, kernel_distance, manifold,
};
use maquette::eval::{Points, Signature};
use maquette::rng::{Stream, rand::seq::SliceRandom, rng};

use super::report::Report;
use crate::args::{FeatureArgs, ImageMetric, SourceArgs};
use crate::errors::failed;

/// Measures what the sub-command names.
pub(super) fn measure(metric: ImageMetric) -> miette::Result<Report> {
    let mut report = Report::default();
    match metric {
        ImageMetric::Fid { sets } => {
            let sets = Sets::read(&sets)?;
            let (generated, real) = sets.points()?;
            let moments = |set| Moments::of(set).map_err(failed);
            let distance = frechet_distance(&moments(generated)?, &moments(real)?);
            let signature = sets.signature("fid");
            report.add("fid", distance.map_err(failed)?, signature.as_str());
            sets.warn_of_bias(&mut report);
        }
        ImageMetric::Kid {
            sets,
            subsets,
            subset_size,
            seed,
        } => {
            let sets = Sets::read(&sets)?;
            let (generated, real) = sets.points()?;
            let random = &mut rng(seed, Stream::Evaluate, 0);
            let distance = kernel_distance(generated, real, subsets, subset_size, random);
            let distance = distance.map_err(failed)?;
            let signature = sets
                .signature("kid")
                .with("subsets", subsets)
                .with("size", subset_size)
                .with("seed", seed);
            report.add("kid", distance.mean, signature.as_str());
            report.add("kid_std", distance.deviation, signature.as_str());
        }
        ImageMetric::Is {
            logits,
            splits,
            seed,
            source,
        } => {
            let logits = read(&logits, &source)?;
            let mut images: Vec<&[f32]> = logits.values.chunks_exact(logits.dims).collect();
            images.shuffle(&mut rng(seed, Stream::Evaluate, 0));
            let score = inception_score(&images.concat(), logits.dims, splits).map_err(failed)?;
            let signature = Signature::new("is")
                .with("features", &source.features)
                .with("n", images.len())
                .with("classes", logits.dims)
                .with("splits", splits)
                .with("seed", seed);
            report.add("is", score.mean, signature.as_str());
            report.add("is_std", score.deviation, signature.as_str());
        }
        ImageMetric::Pr { sets, neighbours } => {
            let sets = Sets::read(&sets)?;
            let (generated, real) = sets.points()?;
            let found = manifold(real, generated, neighbours).map_err(failed)?;
            let signature = sets.signature("pr").with("k", neighbours);
            for (name, value) in [
                ("precision", found.precision),
                ("recall", found.recall),
                ("density", found.density),
                ("coverage", found.coverage),
            ] {
                report.add(name, value, signature.as_str());
            }
        }
    }
    Ok(report)
}

fn read(path: &Path, source: &SourceArgs) -> miette::Result<Features> {
    Features::read(path, source.tensor.as_deref()).map_err(failed)
}

/// Features of generated and of real images.
struct Sets {
    generated: Features,
    real: Features,
    features: String,
}

impl Sets {
    fn read(args: &FeatureArgs) -> miette::Result<Self> {
        let (generated, real) = (&args.generated, &args.real);
        let sets = Self {
            generated: read(generated, &args.source)?,
            real: read(real, &args.source)?,
            features: args.source.features.clone(),
        };
        let (a, b) = (sets.generated.dims, sets.real.dims);
        if a != b {
            return Err(miette::miette!(
                help = "both files must come from the same layer of the same network",
                "{} has {a} numbers per image, {} has {b}",
                generated.display(),
                real.display()
            ));
        }
        Ok(sets)
    }

    fn points(&self) -> miette::Result<(Points<'_>, Points<'_>)> {
        let of = |set| {
            let Features { values, dims }: &Features = set;
            Points::new(values, *dims).map_err(failed)
        };
        Ok((of(&self.generated)?, of(&self.real)?))
    }

    fn counts(&self) -> (usize, usize) {
        let of = |set: &Features| set.values.len() / set.dims;
        (of(&self.generated), of(&self.real))
    }

    fn signature(&self, metric: &str) -> Signature {
        let (n, m) = self.counts();
        Signature::new(metric)
            .with("features", &self.features)
            .with("dims", self.real.dims)
            .with("n", n)
            .with("real", m)
    }

    /// A covariance of few images is far from the true one, and the distance too large.
    fn warn_of_bias(&self, report: &mut Report) {
        let (n, m) = self.counts();
        let (few, dims) = (n.min(m), self.real.dims);
        if few < 10 * dims {
            report.warnings.push(format!(
                "{few} images are few for {dims} features: the distance comes out too large; compare \
                 it only with figures of as many images, or take `maquette metric kid`"
            ));
        }
    }
}
