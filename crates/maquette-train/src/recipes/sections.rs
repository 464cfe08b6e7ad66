//! Recipe sections that several families share: where images and text come from.

use std::path::{Path, PathBuf};

use maquette_data::glyphs::{GlyphConfig, glyphs};
use maquette_data::{Augment, DataError, ImageSet, Split, images};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::spec::Invalid;

/// Where images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// A path: idx files, a folder or an archive of images. `--data` gives it.
    Path,
    /// Characters rendered from fonts; train and test fonts are disjoint. No download.
    Glyphs,
}

/// `[data]` of the image families.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageData {
    /// Where they come from.
    pub source: ImageSource,
    /// The path, for `source = "path"`; `--data` stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What to render, for `source = "glyphs"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glyphs: Option<GlyphConfig>,
    /// Use only so many training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The share of the training images held out, where the data has no test part of its own.
    #[serde(default = "tenth")]
    pub validation: f64,
    /// Random changes to training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<Augment>,
}

fn tenth() -> f64 {
    0.1
}

/// Images to learn from and images to measure on.
pub struct Images {
    /// To learn from.
    pub train: ImageSet,
    /// Never learnt from.
    pub test: ImageSet,
}

impl Images {
    /// SHA-256 over both parts.
    pub fn hash(&self) -> String {
        crate::hash::sha256(format!("{}{}", self.train.hash(), self.test.hash()).as_bytes())
    }
}

impl ImageData {
    /// Opens the images; `path` is what `--data` gave, else the recipe's own.
    ///
    /// # Errors
    /// No path where one is needed; files that are missing or damaged.
    pub fn open(&self, path: Option<&Path>, seed: u64) -> Result<Images, TrainError> {
        let images = match self.source {
            ImageSource::Glyphs => {
                let config = self.glyphs.clone().unwrap_or_default();
                let part = |split| glyphs(split, seed, &config).map_err(TrainError::other);
                Images {
                    train: part(Split::Train)?,
                    test: part(Split::Test)?,
                }
            }
            ImageSource::Path => self.open_path(path.ok_or_else(missing_path)?, seed)?,
        };
        let Some(limit) = self.limit.filter(|&limit| limit < images.train.len()) else {
            return Ok(images);
        };
        let first: Vec<usize> = (0..limit).collect();
        Ok(Images {
            train: images.train.subset(&first),
            ..images
        })
    }

    fn open_path(&self, path: &Path, seed: u64) -> Result<Images, TrainError> {
        let train = images::open(path, Split::Train).map_err(TrainError::other)?;
        match images::open(path, Split::Test) {
            Ok(test) => Ok(Images { train, test }),
            Err(DataError::NoTestPart(_) | DataError::Missing(_)) => {
                let (train, test) = train
                    .split(self.validation, seed)
                    .map_err(TrainError::other)?;
                Ok(Images { train, test })
            }
            Err(error) => Err(TrainError::other(error)),
        }
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// The first offending key.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(0.0 < self.validation && self.validation < 1.0) {
            return Err(Invalid::new(
                "validation",
                "must lie between 0 and 1",
                "0.1 holds out a tenth",
            ));
        }
        if self.glyphs.is_some() && self.source != ImageSource::Glyphs {
            return Err(Invalid::new(
                "glyphs",
                "only for source = \"glyphs\"",
                "remove it, or change the source",
            ));
        }
        if self.limit == Some(0) {
            return Err(Invalid::new(
                "limit",
                "must be at least 1",
                "leave it out to use everything",
            ));
        }
        if let Some(augment) = &self.augment {
            augment.check().map_err(|error| {
                Invalid::new("augment", error.to_string(), "see the ranges of each key")
            })?;
        }
        Ok(())
    }
}

/// The error of a recipe that needs a path and got none.
pub(crate) fn missing_path() -> TrainError {
    TrainError::other(
        "this recipe needs data: give its file or folder with --data PATH \
         (`maquette list data` says what each data set is and where its files come from)",
    )
}
