//! Sets of images held in memory: opening, splitting, batching.

mod decode;
mod idx;
mod paired;
mod stack;

use std::path::Path;

use maquette_rng::{Rng, Stream, permutation, rand::Rng as _, rng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Augment, DataError, Normalization, Result};

pub(crate) use decode::{
    Classes, MAX_FILE_BYTES, common_root, decode_image, folder_files, is_image, number_classes,
    read_file, unify,
};
pub use paired::{Derived, ImagePairs};

pub(crate) use idx::{IMAGES as IDX_IMAGES, damaged, labels_beside, read_header, read_labels};

/// Decoded sets larger than this are refused: they belong to the streaming reader.
pub(crate) const MAX_SET_BYTES: u64 = 16 << 30;

/// Which part of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// What a model learns from.
    Train,
    /// What it is measured on.
    Test,
}

/// What to do with images of different sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sizes {
    /// All must agree; anything else is an error.
    #[default]
    Agree,
    /// Bring every image to this size (triangle filter).
    Resize {
        /// Target height.
        height: usize,
        /// Target width.
        width: usize,
    },
    /// Keep only images of exactly this size.
    Only {
        /// Wanted height.
        height: usize,
        /// Wanted width.
        width: usize,
    },
}

/// Images of one size, with labels or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// `[n, channels, height, width]`, one byte each.
    pub pixels: Vec<u8>,
    /// The class of each image.
    pub labels: Option<Vec<u16>>,
    /// The name of each class; empty without labels.
    pub class_names: Vec<String>,
}

/// Opens images: an idx file, a folder in the layout of MNIST, a folder of images whose
/// sub-folders are classes, a tar archive of such a folder, a folder that holds such an archive and no
/// image, or a single image; idx and tar may be gzipped.
///
/// A folder with `train` and `test` (or `val`) sub-folders keeps to the one asked for.
///
/// # Errors
/// Every way in which the files can be missing, damaged, contradictory or too large; a test part
/// asked for where there is none; images of different sizes.
pub fn open(path: impl AsRef<Path>, split: Split) -> Result<ImageSet> {
    open_with(path, split, Sizes::Agree)
}

/// [`open`], with a rule for images of different sizes.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: impl AsRef<Path>, split: Split, sizes: Sizes) -> Result<ImageSet> {
    let path = path.as_ref();
    if !path.exists() {
        return Err(DataError::Missing(path.to_owned()));
    }
    if path.is_dir() {
        if let Some(images) = idx::find(path, split)? {
            return sizes_agree(idx::open(&images)?, sizes, path);
        }
        return match decode::open_folder(&decode::split_folder(path, split)?, sizes) {
            Err(DataError::NoImages(folder)) => match decode::lone_archive(&folder)? {
                Some(archive) => decode::open_tar(&archive, sizes),
                None => Err(DataError::NoImages(folder)),
            },
            opened => opened,
        };
    }
    // A single file has one part only.
    if split == Split::Test {
        return Err(DataError::NoTestPart(path.to_owned()));
    }
    if is_image(path) {
        let image = decode_image(path.display().to_string(), &read_file(path)?, sizes)?;
        return unify(image.as_slice(), None, path);
    }
    if idx::looks_like_tar(path)? {
        return decode::open_tar(path, sizes);
    }
    sizes_agree(idx::open(path)?, sizes, path)
}

/// An idx set already has one size; resizing goes through the same filter as other images.
pub(crate) fn sizes_agree(set: ImageSet, sizes: Sizes, path: &Path) -> Result<ImageSet> {
    match sizes {
        Sizes::Agree => Ok(set),
        Sizes::Only { height, width } if (height, width) == (set.height, set.width) => Ok(set),
        Sizes::Only { .. } => Err(DataError::NoImages(path.to_owned())),
        Sizes::Resize { height, width } => set.resized(height, width),
    }
}

impl ImageSet {
    /// How many images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.image_bytes()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    fn image_bytes(&self) -> usize {
        (self.channels * self.height * self.width).max(1)
    }

    /// The pixels of image `i`, `[channels, height, width]`.
    ///
    /// # Panics
    /// When `i` is not below [`len`](Self::len).
    pub fn image(&self, i: usize) -> &[u8] {
        let bytes = self.image_bytes();
        &self.pixels[i * bytes..(i + 1) * bytes]
    }

    /// The images at `indices`, in that order.
    ///
    /// # Panics
    /// When an index is not below [`len`](Self::len).
    pub fn subset(&self, indices: &[usize]) -> ImageSet {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_bytes());
        for &i in indices {
            pixels.extend_from_slice(self.image(i));
        }
        ImageSet {
            pixels,
            labels: self.labels_at(indices),
            class_names: self.class_names.clone(),
            ..*self
        }
    }

    /// The images brought to another size (triangle filter).
    ///
    /// # Errors
    /// A side of 0, or one that is too long.
    pub fn resized(self, height: usize, width: usize) -> Result<ImageSet> {
        decode::resize_set(self, height, width)
    }

    /// The images in grey (1; by luminance, ITU-R BT.601) or colour (3; equal channels).
    pub fn in_channels(self, channels: usize) -> ImageSet {
        if self.channels == channels {
            return self;
        }
        let plane = self.height * self.width;
        let convert = |i: usize| -> Vec<u8> {
            let image = self.image(i);
            match channels {
                1 => {
                    let weight = [0.299, 0.587, 0.114];
                    let grey = |at: usize| {
                        let parts = (0..3).map(|c| weight[c] * f32::from(image[c * plane + at]));
                        parts.sum::<f32>().round() as u8
                    };
                    (0..plane).map(grey).collect()
                }
                _ => image.repeat(channels),
            }
        };
        ImageSet {
            channels,
            pixels: (0..self.len()).flat_map(convert).collect(),
            ..self
        }
    }

    /// The labels at `indices`; `None` when the set has none.
    pub fn labels_at(&self, indices: &[usize]) -> Option<Vec<u16>> {
        let labels = self.labels.as_ref()?;
        Some(indices.iter().map(|&i| labels[i]).collect())
    }

    /// Splits off a random validation part of `fraction` of the images: `(train, validation)`.
    ///
    /// # Errors
    /// When one part would be empty.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(ImageSet, ImageSet)> {
        let n = (self.len() as f64 * fraction).round() as usize;
        if !(0.0..1.0).contains(&fraction) || n == 0 || n >= self.len() {
            return Err(DataError::Config(format!(
                "a validation fraction of {fraction} of {} images leaves one part empty",
                self.len()
            )));
        }
        let mut order = permutation(&mut rng(seed, Stream::Split, 0), self.len());
        let mut train = order.split_off(n);
        order.sort_unstable();
        train.sort_unstable();
        Ok((self.subset(&train), self.subset(&order)))
    }

    /// The images at `indices` as model numbers; changed by `augment` first where it is given.
    ///
    /// # Shapes
    /// - output: `[indices.len(), channels, height, width]`
    ///
    /// # Panics
    /// When an index is not below [`len`](Self::len), or `normalization` has another number of
    /// channels (see [`Normalization::check`]).
    pub fn batch(
        &self,
        indices: &[usize],
        normalization: &Normalization,
        augment: Option<(&Augment, &mut Rng)>,
    ) -> Vec<f32> {
        let bytes = self.image_bytes();
        // One seed per image, so that the images can be worked on in parallel.
        let augment = augment.map(|(augment, rng)| {
            let seeds: Vec<u64> = indices.iter().map(|_| rng.next_u64()).collect();
            (augment, seeds)
        });
        let mut out = vec![0.0; indices.len() * bytes];
        out.par_chunks_exact_mut(bytes)
            .enumerate()
            .for_each(|(k, x)| {
                for (x, &p) in x.iter_mut().zip(self.image(indices[k])) {
                    *x = f32::from(p) / 255.0;
                }
                if let Some((augment, seeds)) = &augment {
                    let rng = &mut rng(seeds[k], Stream::Augment, 0);
                    augment.apply(x, self.height, self.width, rng);
                }
                normalization.apply(x, self.channels);
            });
        out
    }

    /// SHA-256 of everything in the set, in hexadecimal.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        for n in [self.channels, self.height, self.width, self.len()] {
            sha.update((n as u64).to_le_bytes());
        }
        sha.update(&self.pixels);
        for label in self.labels.iter().flatten() {
            sha.update(label.to_le_bytes());
        }
        for name in &self.class_names {
            sha.update((name.len() as u64).to_le_bytes());
            sha.update(name);
        }
        hex(&sha.finalize())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
