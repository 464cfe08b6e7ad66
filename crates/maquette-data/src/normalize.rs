//! From bytes to the numbers a model sees, and back.

use serde::{Deserialize, Serialize};

use crate::{DataError, ImageSet, Result};

/// How a pixel `p` in `0..=255` becomes a number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalization {
    /// `p / 255`, in `[0, 1]`.
    #[default]
    MinMax,
    /// `2 p / 255 - 1`, in `[-1, 1]`.
    Symmetric,
    /// `(p / 255 - mean) / std`, per channel.
    Standardize {
        /// Mean per channel, of pixels in `[0, 1]`.
        mean: Vec<f32>,
        /// Standard deviation per channel, of pixels in `[0, 1]`.
        std: Vec<f32>,
    },
}

impl Normalization {
    /// The mean and standard deviation of each channel of `set`.
    pub fn standardize(set: &ImageSet) -> Self {
        let plane = set.height * set.width;
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        for c in 0..set.channels {
            let pixels =
                || (0..set.len()).flat_map(move |i| &set.image(i)[c * plane..(c + 1) * plane]);
            let n = (set.len() * plane).max(1) as f64;
            // Integer sums are exact, whatever the size of the set.
            let sum: u64 = pixels().map(|&p| u64::from(p)).sum();
            let squares: u64 = pixels().map(|&p| u64::from(p) * u64::from(p)).sum();
            let m = sum as f64 / n / 255.0;
            let variance = squares as f64 / n / (255.0 * 255.0) - m * m;
            mean.push(m as f32);
            // A constant channel has nothing to scale.
            std.push(if variance > 1e-12 {
                variance.sqrt() as f32
            } else {
                1.0
            });
        }
        Self::Standardize { mean, std }
    }

    /// Checks that the numbers fit images of `channels` channels.
    ///
    /// # Errors
    /// When the lengths differ from `channels` or a deviation is not positive.
    pub fn check(&self, channels: usize) -> Result<()> {
        let Self::Standardize { mean, std } = self else {
            return Ok(());
        };
        if mean.len() != channels || std.len() != channels {
            return Err(DataError::Config(format!(
                "standardize has {} means and {} deviations, the images have {channels} channels",
                mean.len(),
                std.len()
            )));
        }
        match std.iter().all(|s| *s > 0.0 && s.is_finite()) {
            true => Ok(()),
            false => Err(DataError::Config(format!(
                "standardize needs positive deviations, not {std:?}"
            ))),
        }
    }

    /// Scale and offset of channel `c`: `value = scale * unit + offset` for `unit` in `[0, 1]`.
    fn line(&self, c: usize) -> (f32, f32) {
        match self {
            Self::MinMax => (1.0, 0.0),
            Self::Symmetric => (2.0, -1.0),
            Self::Standardize { mean, std } => (1.0 / std[c], -mean[c] / std[c]),
        }
    }

    /// Turns units in `[0, 1]`, laid out `[channels, plane]`, into model numbers in place.
    pub(crate) fn apply(&self, units: &mut [f32], channels: usize) {
        let plane = units.len() / channels;
        for (c, units) in units.chunks_exact_mut(plane).enumerate() {
            let (scale, offset) = self.line(c);
            for u in units {
                *u = scale * *u + offset;
            }
        }
    }

    /// Turns model numbers back into pixels, clamped and rounded.
    ///
    /// # Shapes
    /// - `values`: `[n, channels, height, width]`, with `plane = height * width`
    pub fn to_pixels(&self, values: &[f32], channels: usize, plane: usize) -> Vec<u8> {
        let pixel = |(i, v): (usize, &f32)| {
            let (scale, offset) = self.line(i / plane % channels);
            (((v - offset) / scale).clamp(0.0, 1.0) * 255.0).round() as u8
        };
        values.iter().enumerate().map(pixel).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ImageSet {
        ImageSet {
            channels: 2,
            height: 1,
            width: 2,
            pixels: vec![0, 255, 10, 10, 255, 0, 10, 10],
            labels: None,
            class_names: vec![],
        }
    }

    #[test]
    fn standardize_measures_each_channel() {
        let n = Normalization::standardize(&set());
        let Normalization::Standardize { mean, std } = &n else {
            panic!("not standardize")
        };
        assert_eq!((mean[0], std[0]), (0.5, 0.5));
        assert!((mean[1] - 10.0 / 255.0).abs() < 1e-6);
        assert_eq!(std[1], 1.0);
        assert_eq!(&set().batch(&[0], &n, None)[..2], [-1.0, 1.0]);
    }

    #[test]
    fn pixels_survive_the_round_trip() {
        let set = ImageSet {
            channels: 1,
            height: 16,
            width: 16,
            pixels: (0..=255).collect(),
            labels: None,
            class_names: vec![],
        };
        let all = [
            Normalization::MinMax,
            Normalization::Symmetric,
            Normalization::standardize(&set),
        ];
        for n in all {
            assert_eq!(n.to_pixels(&set.batch(&[0], &n, None), 1, 256), set.pixels);
        }
    }

    #[test]
    fn a_wrong_channel_count_is_an_error() {
        assert!(Normalization::standardize(&set()).check(3).is_err());
        let flat = Normalization::Standardize {
            mean: vec![0.0],
            std: vec![0.0],
        };
        assert!(flat.check(1).is_err());
    }
}
