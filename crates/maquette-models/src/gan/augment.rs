//! Differentiable augmentation: the critic sees every image changed at random, and the generator learns
//! through the changes (Zhao et al. 2020, arXiv:2006.10738). So few images last longer before the critic
//! knows them by heart, and the changes do not end up in what is made.

use burn::tensor::{Tensor, TensorData};
use maquette_rng::{Rng, uniform};
use serde::{Deserialize, Serialize};

use super::GanConfig;
use crate::error::{ModelError, require};

/// Configuration of differentiable augmentation. The paper's strongest is `colour = true`,
/// `translation = 0.125`, `cutout = 0.5`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffAugment {
    /// Brightness by up to half the range of `[0, 1]`, saturation by a factor of 0 to 2, contrast of 0.5
    /// to 1.5.
    pub colour: bool,
    /// Shifted either way by up to this share of the side, zeros moving in.
    pub translation: f64,
    /// A square of this share of the side is set to zero; 0 is none.
    pub cutout: f64,
}

impl DiffAugment {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self, gan: &GanConfig) -> Result<(), ModelError> {
        for (key, share) in [
            ("augment.translation", self.translation),
            ("augment.cutout", self.cutout),
        ] {
            require((0.0..=1.0).contains(&share), key, || {
                "is a share of the side and lies between 0 and 1".into()
            })?;
        }
        let [_, height, width] = gan.image;
        require(height * width > 1, "augment", || {
            "is for images, and these are points; leave it out".into()
        })
    }

    /// The images changed, each in its own way.
    ///
    /// # Shapes
    /// - x, output: `[batch, channels, height, width]`
    pub(super) fn of(&self, x: Tensor<4>, rng: &mut Rng) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let device = x.device();
        let mut draw = |low: f32, high: f32| -> Vec<f32> {
            let shares = uniform(rng, batch);
            shares.iter().map(|u| low + (high - low) * u).collect()
        };
        let mut x = x;
        if self.colour {
            let mut each = |low, high| {
                Tensor::<4>::from_data(TensorData::new(draw(low, high), [batch, 1, 1, 1]), &device)
            };
            x = x + each(-0.5, 0.5);
            if channels > 1 {
                let grey = x.clone().mean_dim(1);
                x = (x - grey.clone()) * each(0.0, 2.0) + grey;
            }
            let mean = x.clone().mean_dim(3).mean_dim(2).mean_dim(1);
            x = (x - mean.clone()) * each(0.5, 1.5) + mean;
        }
        if self.translation > 0.0 {
            let reach = (self.translation * height as f64) as f32 + 0.5;
            let rows = shifts(&draw(-reach, reach), height);
            let rows = TensorData::new(rows, [batch, 1, height, height]);
            let reach = (self.translation * width as f64) as f32 + 0.5;
            let columns = shifts(&draw(-reach, reach), width);
            let columns = TensorData::new(columns, [batch, 1, width, width]);
            x = Tensor::from_data(rows, &device)
                .matmul(x)
                .matmul(Tensor::<4>::from_data(columns, &device).transpose());
        }
        if self.cutout > 0.0 {
            let mut keep = vec![1.0f32; batch * height * width];
            let middles = [draw(0.0, height as f32), draw(0.0, width as f32)];
            let half = [height, width].map(|side| self.cutout as f32 * side as f32 / 2.0);
            for (i, keep) in keep.chunks_exact_mut(height * width).enumerate() {
                for (at, keep) in keep.iter_mut().enumerate() {
                    let place = [at / width, at % width].map(|p| p as f32 + 0.5);
                    let inside =
                        (0..2).all(|axis| (place[axis] - middles[axis][i]).abs() < half[axis]);
                    *keep = if inside { 0.0 } else { 1.0 };
                }
            }
            let keep = TensorData::new(keep, [batch, 1, height, width]);
            x = x * Tensor::from_data(keep, &device);
        }
        x
    }
}

/// For each shift the matrix that moves `side` rows by it, rounded, and lets zeros in.
fn shifts(by: &[f32], side: usize) -> Vec<f32> {
    let mut matrices = vec![0.0; by.len() * side * side];
    for (matrix, by) in matrices.chunks_exact_mut(side * side).zip(by) {
        let by = by.round() as isize;
        for to in 0..side {
            if let Some(from) = to.checked_add_signed(-by).filter(|&from| from < side) {
                matrix[to * side + from] = 1.0;
            }
        }
    }
    matrices
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use maquette_rng::{Stream, rng};

    #[test]
    fn rows_move_and_zeros_move_in() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[1.0], [2.0], [3.0]], &device);
        let moved = |by: f32| {
            let matrix = TensorData::new(shifts(&[by], 3), [3, 3]);
            let moved = Tensor::<2>::from_data(matrix, &device).matmul(x.clone());
            moved.into_data().try_to_vec::<f32>().unwrap()
        };
        assert_eq!(moved(1.0), [0.0, 1.0, 2.0]);
        assert_eq!(moved(-2.0), [3.0, 0.0, 0.0]);
        assert_eq!(moved(0.4), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_quarter_of_an_image_is_cut_out_at_most() {
        let device = Device::flex().autodiff();
        let x = Tensor::<4>::ones([32, 3, 8, 8], &device).require_grad();
        let cut = DiffAugment {
            cutout: 0.5,
            ..DiffAugment::default()
        };
        let y = cut.of(x.clone(), &mut rng(0, Stream::Noise, 0));
        let kept = y.clone().mean_dim(3).mean_dim(2);
        assert!(kept.clone().min().into_scalar::<f32>() >= 0.75);
        assert!(kept.max().into_scalar::<f32>() < 1.0);
        let grad = x.grad(&y.clone().sum().backward()).unwrap();
        assert_eq!(grad.into_data(), y.inner().into_data());
    }

    #[test]
    fn every_change_at_once_keeps_the_shape() {
        let device = Device::flex();
        let all = DiffAugment {
            colour: true,
            translation: 0.125,
            cutout: 0.5,
        };
        let x = Tensor::<4>::ones([4, 3, 6, 8], &device);
        let y = all.of(x, &mut rng(0, Stream::Noise, 0));
        assert_eq!(y.dims(), [4, 3, 6, 8]);
        assert!(y.abs().max().into_scalar::<f32>().is_finite());
    }
}
