//! Image batches on their way from the host to a device.

use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_data::{Augment, ImageSet, Normalization};
use maquette_rng::Rng;

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
