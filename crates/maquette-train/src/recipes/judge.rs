//! The judge: a classifier trained on the spot that reads back what a generator was asked to draw, and
//! by whose features drawn images are compared with real ones.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use maquette_data::{Augment, ImageSet, Normalization, Order};
use maquette_eval::bootstrap::wilson;
use maquette_eval::classification::{Confusion, predictions};
use maquette_eval::image::{frechet_interval, inception_interval, kernel_distance, manifold};
use maquette_eval::modes::class_modes;
use maquette_eval::neighbours::{copies, nearest};
use maquette_models::classifier::{Classifier, ClassifierConfig};
use maquette_rng::{Stream, rng, seed_for};

use super::images::{self, Batch};
use super::sections::{ImageSource, Images};
use crate::feature_net::{Embedding, FeatureNet};
use crate::spec::{OptimizerSpec, ScheduleKind, ScheduleSpec};
use crate::{Evaluation, TrainError, optimizer, schedule};

const BATCH: usize = 128;
/// The judge must not depend on the seed of the model it judges.
const SEED: u64 = 20_26;
/// Neighbours that span the ball around an image, as in the paper on precision and recall.
const NEIGHBOURS: usize = 3;
/// Fewer images than this are not worth a distance.
const FEWEST: usize = 2 * (NEIGHBOURS + 1);
const RESAMPLES: usize = 100;
const SUBSETS: usize = 100;

/// A classifier with its own accuracy on images it never saw.
pub struct Judge<'a> {
    net: FeatureNet,
    /// On held-out images.
    pub accuracy: f64,
    /// The images a good generator's are like, and which part of the data they are.
    real: (&'a ImageSet, &'static str),
}

impl<'a> Judge<'a> {
    /// Trains a judge for the classes of `images`.
    ///
    /// Where the images are rendered from fonts it learns from the held-out fonts, so that judge and
    /// generator share nothing but the alphabet, and is tested on the generator's; elsewhere it learns
    /// from the training part and is tested on the other.
    ///
    /// # Errors
    /// Images without labels.
    pub fn train(
        images: &'a Images,
        source: ImageSource,
        steps: u64,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let (learn, real, part) = match source {
            ImageSource::Glyphs => (&images.test, (&*images.train, "train"), "held-out-fonts"),
            ImageSource::Path => (&*images.train, (&images.test, "test"), "train"),
        };
        let n_classes = learn.class_names.len();
        if learn.labels.is_none() || n_classes == 0 {
            return Err(TrainError::other(
                "a judge needs labelled images; this data has no labels",
            ));
        }
        let model = learn_to_read(learn, n_classes, steps, device)?;
        let mut judge = Self {
            net: FeatureNet::of_classifier(
                model,
                images::shape(learn),
                learn.class_names.clone(),
                format!("cnn-{part}-{steps}-steps"),
                device,
            ),
            accuracy: 0.0,
            real,
        };
        judge.accuracy = judge.readback(real.0)?.accuracy();
        Ok(judge)
    }

    /// What it was trained on, for signatures.
    pub fn name(&self) -> &str {
        self.net.name()
    }

    /// The network, whose features compare images.
    pub fn net(&self) -> &FeatureNet {
        &self.net
    }

    /// Compares what it reads in `images` with their labels.
    ///
    /// # Errors
    /// Images without labels.
    pub fn readback(&self, images: &ImageSet) -> Result<Confusion, TrainError> {
        let seen = self.net.embed(images, &mut |_| {})?;
        confusion(&seen, images)
    }

    /// Compares drawn images with real ones of the same data, in the space of its features: Inception
    /// Score by its classes, distance and kernel distance, precision, recall, density, coverage, classes
    /// drawn; and where labels were asked for, how many it reads back. `how` says how they were drawn,
    /// `n=` first.
    ///
    /// # Errors
    /// Images it cannot read, features that are not finite.
    pub fn measure(
        &self,
        drawn: &ImageSet,
        how: &str,
        evaluation: &mut Evaluation,
    ) -> Result<(), TrainError> {
        let (real, part) = self.real;
        let (a, b) = (
            self.net.embed(drawn, &mut |_| {})?,
            self.net.embed(real, &mut |_| {})?,
        );
        evaluation.put(
            "judge_accuracy",
            self.accuracy,
            format!("judge_accuracy|judge={}", self.name()),
        );
        if drawn.labels.is_some() {
            let rate = confusion(&a, drawn)?.accuracy();
            let right = (rate * drawn.len() as f64).round() as usize;
            let (low, high) = wilson(right, drawn.len(), 1.96).map_err(TrainError::other)?;
            let signature = format!(
                "readback|judge={}|{how}|95%={low:.4}..{high:.4}",
                self.name()
            );
            evaluation.put("readback", rate, signature);
        }
        let signature = |metric: &str| {
            format!(
                "{metric}|features={}|dims={}|real={}|split={part}|resize={}|{how}",
                self.name(),
                a.dims,
                real.len(),
                self.net.resize()
            )
        };
        let read = predictions(&a.logits, a.n_classes).map_err(TrainError::other)?;
        let mut reference = vec![0; a.n_classes];
        let labels = real.labels.iter().flatten();
        labels.for_each(|&label| reference[usize::from(label)] += 1);
        let modes = class_modes(&read, &reference).map_err(TrainError::other)?;
        evaluation.put(
            "classes_drawn",
            modes.covered as f64,
            signature("classes_drawn"),
        );
        evaluation.put("classes_kl", modes.kl, signature("classes_kl|nats"));
        if drawn.len().min(real.len()) < FEWEST {
            return Ok(());
        }
        distances(&a, &b, &signature, evaluation).map_err(TrainError::other)
    }
}

impl Judge<'_> {
    /// Which stacks of classes occur among drawn images of several channels, each of which it reads by
    /// itself: how many of all there are, and the divergence of their histogram from that of `data`.
    ///
    /// # Errors
    /// Images it cannot read.
    pub fn count_stacks(
        &self,
        drawn: &ImageSet,
        data: &Images,
        how: &str,
        evaluation: &mut Evaluation,
    ) -> Result<(), TrainError> {
        let seen = self.net.embed(&drawn.unstacked(), &mut |_| {})?;
        let read = predictions(&seen.logits, seen.n_classes).map_err(TrainError::other)?;
        let mode = |parts: &[usize]| {
            let parts = parts.iter().rev();
            parts.fold(0, |mode, part| mode * seen.n_classes + part)
        };
        let modes: Vec<usize> = read.chunks(drawn.channels).map(mode).collect();
        let mut reference = vec![0; data.train.class_names.len()];
        let labels = data.train.labels.iter().flatten();
        labels.for_each(|&label| reference[usize::from(label)] += 1);
        let found = class_modes(&modes, &reference).map_err(TrainError::other)?;
        let signature = |metric: &str| {
            format!(
                "{metric}|judge={}|of={}|real={}|split=train|{how}",
                self.name(),
                found.total,
                data.train.len()
            )
        };
        evaluation.put(
            "judge_accuracy",
            self.accuracy,
            format!("judge_accuracy|judge={}", self.name()),
        );
        evaluation.put("modes", found.covered as f64, signature("modes"));
        evaluation.put("modes_kl", found.kl, signature("modes_kl|nats"));
        Ok(())
    }
}

/// Every metric that compares two sets of features.
fn distances(
    drawn: &Embedding,
    real: &Embedding,
    signature: &dyn Fn(&str) -> String,
    evaluation: &mut Evaluation,
) -> Result<(), maquette_eval::EvalError> {
    let random = &mut rng(SEED, Stream::Evaluate, 1);
    let resampled = (RESAMPLES, 0.95);
    let score = inception_interval(&drawn.logits, drawn.n_classes, 1, resampled, random)?;
    let how = signature(&format!("inception_score|splits=1|resamples={RESAMPLES}"));
    evaluation.put("inception_score", score.value, &how);
    evaluation.put("inception_score_95_low", score.low, &how);
    evaluation.put("inception_score_95_high", score.high, &how);
    let (drawn, real) = (drawn.points()?, real.points()?);
    let random = &mut rng(SEED, Stream::Evaluate, 0);
    let fid = frechet_interval(drawn, real, RESAMPLES, 0.95, random)?;
    let how = signature(&format!("fid|resamples={RESAMPLES}"));
    evaluation.put("fid", fid.value, &how);
    evaluation.put("fid_95_low", fid.low, &how);
    evaluation.put("fid_95_high", fid.high, &how);
    let size = (drawn.len().min(real.len()) / 2).min(1000);
    let kid = kernel_distance(drawn, real, SUBSETS, size, random)?;
    let how = signature(&format!("kid|subsets={SUBSETS}|size={size}"));
    evaluation.put("kid", kid.mean, &how);
    evaluation.put("kid_std", kid.deviation, &how);
    let found = manifold(real, drawn, NEIGHBOURS)?;
    for (name, value) in [
        ("precision", found.precision),
        ("recall", found.recall),
        ("density", found.density),
        ("coverage", found.coverage),
    ] {
        evaluation.put(name, value, signature(&format!("{name}|k={NEIGHBOURS}")));
    }
    Ok(())
}

fn confusion(seen: &Embedding, images: &ImageSet) -> Result<Confusion, TrainError> {
    let read = predictions(&seen.logits, seen.n_classes).map_err(TrainError::other)?;
    let truth = images.labels.iter().flatten();
    let truth: Vec<usize> = truth.map(|&label| label.into()).collect();
    Confusion::new(&read, &truth, seen.n_classes).map_err(TrainError::other)
}

/// Distance of drawn images to their nearest training image, held against that of unseen images. `how`
/// says how they were drawn.
///
/// # Errors
/// Images of another size than the data's.
pub fn copies_of_training(
    drawn: &ImageSet,
    data: &Images,
    how: &str,
    evaluation: &mut Evaluation,
) -> Result<(), TrainError> {
    let [channels, height, width] = images::shape(drawn);
    let distances = |set: &ImageSet| -> Result<Vec<f64>, TrainError> {
        let near = nearest(
            &set.pixels,
            &data.train.pixels,
            channels * height * width,
            1,
        )
        .map_err(TrainError::other)?;
        Ok(near
            .iter()
            .map(|neighbours| neighbours[0].distance)
            .collect())
    };
    let unseen: Vec<usize> = (0..drawn.len().min(data.test.len())).collect();
    let found = copies(&distances(drawn)?, &distances(&data.test.subset(&unseen))?)
        .map_err(TrainError::other)?;
    let signature = |metric: &str| {
        format!(
            "{metric}|pixel-l2|train={}|held-out={}|{how}",
            data.train.len(),
            unseen.len()
        )
    };
    evaluation.put(
        "exact_copies",
        found.exact as f64,
        signature("exact_copies"),
    );
    evaluation.put(
        "nearest_training_distance",
        found.nearest_generated,
        signature("nearest_training_distance"),
    );
    evaluation.put(
        "median_training_distance",
        found.median_generated,
        signature("median_training_distance"),
    );
    evaluation.put(
        "median_training_distance_held_out",
        found.median_held_out,
        signature("median_training_distance_held_out"),
    );
    Ok(())
}
fn learn_to_read(
    images: &ImageSet,
    n_classes: usize,
    steps: u64,
    device: &Device,
) -> Result<Classifier, TrainError> {
    let device = device.clone().autodiff();
    let config = ClassifierConfig {
        n_classes,
        image: images::shape(images),
        ..ClassifierConfig::default()
    };
    let mut model = config.init(&device, &mut rng(SEED, Stream::Init, 0));
    let spec = OptimizerSpec {
        weight_decay: 0.01,
        ..OptimizerSpec::adamw(2e-3)
    };
    let rate = ScheduleSpec {
        kind: ScheduleKind::Cosine,
        warmup: steps / 20,
        ..ScheduleSpec::default()
    };
    let augment = Augment {
        shift: 2,
        rotate: 8.0,
        ..Augment::default()
    };
    let mut optimizer = optimizer::build(&spec, &model);
    let order =
        Order::new(images.len(), BATCH.min(images.len()), SEED).map_err(TrainError::other)?;
    for step in 0..steps {
        // Dropout is drawn by the back end, whose generator is where others left it.
        device.seed(seed_for(SEED, Stream::Dropout, step));
        let indices = order.indices(step);
        let random = &mut rng(SEED, Stream::Augment, step);
        let batch = Batch::new(
            images,
            &indices,
            &Normalization::MinMax,
            Some((&augment, random)),
        );
        let labels = batch.labels(&device);
        let loss = model.loss(batch.tensor(&device), labels);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(schedule::lr(&rate, spec.lr, steps, step), model, grads);
    }
    Ok(model.valid())
}
