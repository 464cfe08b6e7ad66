//! Networks that others trained, by whose features images are compared: what the metrics call
//! FID, KID and Inception Score depends on one of them.
//!
//! They are read, never trained: filters by name, in the ecosystem's own names, and a forward pass.

mod inception;
mod squeezenet;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use maquette_nn::{ConvOptions, Windows, avg_pool2d, conv2d, max_pool2d, relu};

use crate::ModelError;

pub use inception::Inception;
pub use squeezenet::SqueezeNet;

/// What a network says of images.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `[batch, d_features]`, the last layer before the classes, averaged over the image.
    pub features: Tensor<2>,
    /// `[batch, n_classes]`.
    pub logits: Tensor<2>,
}

/// Convolutions by name, each with what is added to its channels.
#[derive(Debug, Clone, Default)]
struct Filters(BTreeMap<String, (Tensor<4>, Tensor<1>)>);

impl Filters {
    fn insert(&mut self, name: &str, weight: Tensor<4>, bias: Tensor<1>) {
        self.0.insert(name.to_owned(), (weight, bias));
    }

    /// The convolution `name`, then `max(0, x)`.
    fn apply(&self, name: &str, x: Tensor<4>, stride: usize, padding: [usize; 2]) -> Tensor<4> {
        let (weight, bias) = &self.0[name];
        let options = ConvOptions::new([stride; 2], padding);
        relu(conv2d(x, weight.clone(), Some(bias.clone()), options))
    }
}

/// The largest of each 3x3 window, two apart.
fn halve(x: Tensor<4>) -> Tensor<4> {
    let windows = Windows {
        side: 3,
        stride: 2,
        padding: 0,
    };
    max_pool2d(x, windows)
}

/// The mean of each 3x3 window around a pixel; what lies beyond the border does not count.
fn blur(x: Tensor<4>) -> Tensor<4> {
    let windows = Windows {
        side: 3,
        stride: 1,
        padding: 1,
    };
    let [_, _, height, width] = x.dims();
    let inside = Tensor::ones([1, 1, height, width], &x.device());
    avg_pool2d(x, windows) / avg_pool2d(inside, windows)
}

/// The mean of each channel, `[batch, channels]`.
fn average(x: Tensor<4>) -> Tensor<2> {
    x.mean_dims(&[2, 3]).flatten(1, 3)
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(burn::tensor::TensorData::new(values, shape), device)
}

fn corrupt(path: &Path, format: &'static str, reason: impl Into<String>) -> ModelError {
    ModelError::Corrupt {
        path: path.to_owned(),
        format,
        reason: reason.into(),
    }
}
