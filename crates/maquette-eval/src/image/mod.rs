//! Metrics of generated images, on features or class probabilities of any network.
//!
//! A figure means nothing without the network its features come from, the number of images and
//! how they were resized: put these into its [`Signature`](crate::Signature).

mod frechet;
mod inception;
mod kernel;
mod manifold;
mod matrix;
#[cfg(test)]
mod testing;

pub use frechet::{Moments, frechet_distance, frechet_interval};
pub use inception::{InceptionScore, inception_interval, inception_score};
pub use kernel::{KernelDistance, kernel_distance, polynomial_mmd};
pub use manifold::{Manifold, manifold};
