//! Image batches on their way from the host, or from the disk, to a device.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::stream::{ImageStream, ImageStreamState};
use maquette_data::{Augment, ImageSet, Normalization, Order, Prefetch, prefetch};
use maquette_rng::{Rng, Stream, rng};

use super::sections::{ImageData, Images};
use crate::{BoxError, LoopSpec, Run, TrainError};

/// A batch of images prepared on the host, by a background thread if need be.
pub struct Batch {
    values: Vec<f32>,
    shape: [usize; 4],
    labels: Vec<u16>,
}

impl Batch {
    /// The images at `indices`, normalised; labels are zero where the set has none.
    pub fn new(
        set: &ImageSet,
        indices: &[usize],
        normalization: &Normalization,
        augment: Option<(&Augment, &mut Rng)>,
    ) -> Self {
        let [channels, height, width] = shape(set);
        Self {
            values: set.batch(indices, normalization, augment),
            shape: [indices.len(), channels, height, width],
            labels: set
                .labels_at(indices)
                .unwrap_or_else(|| vec![0; indices.len()]),
        }
    }

    /// How many images.
    pub fn size(&self) -> usize {
        self.shape[0]
    }

    /// The class of each image.
    pub fn classes(&self) -> Vec<usize> {
        self.labels.iter().map(|&label| label.into()).collect()
    }

    /// The labels, `[batch]`.
    pub fn labels(&self, device: &Device) -> Tensor<1, Int> {
        label_tensor(&self.classes(), device)
    }

    /// The images, `[batch, channels, height, width]`.
    pub fn tensor(self, device: &Device) -> Tensor<4> {
        Tensor::from_data(TensorData::new(self.values, self.shape), device)
    }
}

/// Where training batches come from.
pub struct Feed {
    source: Source,
    normalization: Normalization,
    augment: Option<Augment>,
    seed: u64,
}

enum Source {
    /// Images in memory, batched ahead by a background thread; a function of the step.
    Memory(Prefetch<Batch>),
    /// Images read from disk in the order of a shuffle buffer.
    Disk(Box<ImageStream>),
}

impl Feed {
    /// Batches of the training part of `images`, from where `run` is to go on: the loop takes `per_step`
    /// of them in a step.
    ///
    /// # Errors
    /// A batch larger than the set; a saved place in a stream that does not fit.
    pub fn new(
        data: &ImageData,
        images: &mut Images,
        train: &LoopSpec,
        normalization: Normalization,
        run: Option<&Run>,
        per_step: u64,
    ) -> Result<Self, TrainError> {
        let (seed, augment) = (train.seed, data.augment.clone());
        let source = match images.stream.take() {
            Some((path, stream)) => Source::Disk(continued(stream, &path, run)?),
            None => {
                let order =
                    Order::new(images.train.len(), train.batch, seed).map_err(TrainError::other)?;
                let start = run.map_or(0, Run::start_step) * per_step;
                let (set, augment, normalization) =
                    (images.train.clone(), augment.clone(), normalization.clone());
                Source::Memory(prefetch(start, 4, move |step| {
                    let random = &mut rng(seed, Stream::Augment, step);
                    let augment = augment.as_ref().map(|augment| (augment, random));
                    Batch::new(&set, &order.indices(step), &normalization, augment)
                }))
            }
        };
        Ok(Self {
            source,
            normalization,
            augment,
            seed,
        })
    }

    /// The micro-batch `step` of the run.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub fn batch(&mut self, step: u64) -> Result<crate::Batch<Batch>, BoxError> {
        match &mut self.source {
            Source::Memory(ahead) => {
                let batch = ahead.next().ok_or("the background reader stopped")?;
                Ok(batch.into())
            }
            Source::Disk(stream) => {
                let set = stream.next_batch()?;
                let random = &mut rng(self.seed, Stream::Augment, step);
                let augment = self.augment.as_ref().map(|augment| (augment, random));
                let all: Vec<usize> = (0..set.len()).collect();
                let data = Batch::new(&set, &all, &self.normalization, augment);
                Ok(crate::Batch {
                    data,
                    stream: Some(serde_json::to_value(stream.state())?),
                })
            }
        }
    }
}

/// The stream, at the place where `run` left it.
fn continued(
    stream: Box<ImageStream>,
    path: &Path,
    run: Option<&Run>,
) -> Result<Box<ImageStream>, TrainError> {
    let Some(state) = run.and_then(Run::stream_state) else {
        return Ok(stream);
    };
    let state: ImageStreamState =
        serde_json::from_value(state.clone()).map_err(TrainError::other)?;
    ImageStream::resume(path, state)
        .map(Box::new)
        .map_err(TrainError::other)
}

/// Classes as a tensor, `[batch]`.
pub fn label_tensor(classes: &[usize], device: &Device) -> Tensor<1, Int> {
    let classes: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
    let shape = [classes.len()];
    Tensor::from_data(TensorData::new(classes, shape), device)
}

/// Channels, height, width.
pub fn shape(set: &ImageSet) -> [usize; 3] {
    [set.channels, set.height, set.width]
}

/// `0..n` in pieces of at most `size`.
pub fn chunks(n: usize, size: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..n)
        .step_by(size)
        .map(move |start| (start..(start + size).min(n)).collect())
}
