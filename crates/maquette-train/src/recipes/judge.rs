//! The judge: a classifier trained on the spot that reads back what a generator was asked to draw.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use maquette_data::{Augment, ImageSet, Normalization, Order};
use maquette_eval::classification::{Confusion, predictions};
use maquette_models::classifier::{Classifier, ClassifierConfig};
use maquette_rng::{Stream, rng};

use super::images::{self, Batch};
use super::sections::{ImageSource, Images};
use crate::spec::{OptimizerSpec, ScheduleKind, ScheduleSpec};
use crate::{TrainError, optimizer, schedule};

const BATCH: usize = 128;
/// The judge must not depend on the seed of the model it judges.
const SEED: u64 = 20_26;

/// A classifier with its own accuracy on images it never saw.
pub struct Judge {
    model: Classifier,
    device: Device,
    n_classes: usize,
    /// On held-out images.
    pub accuracy: f64,
    /// What it was trained on, for signatures.
    pub name: String,
}

impl Judge {
    /// Trains a judge for the classes of `images`.
    ///
    /// Where the images are rendered from fonts it learns from the held-out fonts, so that judge and
    /// generator share nothing but the alphabet, and is tested on the generator's; elsewhere it learns
    /// from the training part and is tested on the other.
    ///
    /// # Errors
    /// Images without labels.
    pub fn train(
        images: &Images,
        source: ImageSource,
        steps: u64,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let (learn, test, part) = match source {
            ImageSource::Glyphs => (&images.test, &*images.train, "held-out-fonts"),
            ImageSource::Path => (&*images.train, &images.test, "train"),
        };
        let n_classes = learn.class_names.len();
        if learn.labels.is_none() || n_classes == 0 {
            return Err(TrainError::other(
                "a judge needs labelled images; this data has no labels",
            ));
        }
        let model = learn_to_read(learn, n_classes, steps, device)?;
        let mut judge = Self {
            model,
            device: device.clone(),
            n_classes,
            accuracy: 0.0,
            name: format!("cnn-{part}-{steps}-steps"),
        };
        judge.accuracy = judge.readback(test)?.accuracy();
        Ok(judge)
    }

    /// Compares what it reads in `images` with their labels.
    ///
    /// # Errors
    /// Images without labels.
    pub fn readback(&self, images: &ImageSet) -> Result<Confusion, TrainError> {
        let truth: Vec<usize> = images
            .labels
            .iter()
            .flatten()
            .map(|&label| label.into())
            .collect();
        let mut read = Vec::with_capacity(images.len());
        for indices in images::chunks(images.len(), 256) {
            let batch = Batch::new(images, &indices, &Normalization::MinMax, None);
            let logits = self.model.forward(batch.tensor(&self.device));
            let logits = logits
                .try_into_vec_as::<f32>()
                .map_err(|error| TrainError::other(format!("{error:?}")))?;
            read.extend(predictions(&logits, self.n_classes).map_err(TrainError::other)?);
        }
        Confusion::new(&read, &truth, self.n_classes).map_err(TrainError::other)
    }
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
