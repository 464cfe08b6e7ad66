//! Recipe sections that several families share: where images and text come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use maquette_data::glyphs::{GlyphConfig, glyphs};
use maquette_data::images::{self, Sizes};
use maquette_data::stream::{ImageStream, ImageStreamConfig};
use maquette_data::{Augment, DataError, ImageSet, Order, Split};
use serde::{Deserialize, Serialize};

use crate::spec::Invalid;
use crate::{LoopSpec, TrainError};

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
    /// So many grey images, drawn at random, are the channels of one: `stack = 3` makes 1,000 modes of ten
    /// digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<usize>,
    /// What to do with images of different sizes: `agree`, `{ resize = { height = 32, width = 32 } }` or
    /// `{ only = { height = 32, width = 32 } }`.
    #[serde(default, skip_serializing_if = "agree")]
    pub sizes: Sizes,
    /// Use only so many training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The share of the training images held out, where the data has no test part of its own.
    #[serde(default = "tenth")]
    pub validation: f64,
    /// Read training images from disk as they are needed, at constant memory. The path must hold a
    /// `test` part of its own, and no file may be compressed as a whole.
    #[serde(default)]
    pub streaming: bool,
    /// Images among which a streamed batch is drawn.
    #[serde(default = "buffer")]
    pub shuffle_buffer: usize,
    /// Random changes to training images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<Augment>,
}

fn tenth() -> f64 {
    0.1
}

fn agree(sizes: &Sizes) -> bool {
    *sizes == Sizes::Agree
}

fn buffer() -> usize {
    4096
}

/// Images to learn from and images to measure on.
pub struct Images {
    /// To learn from; of a stream, the first images that it gives.
    pub train: Arc<ImageSet>,
    /// Never learnt from.
    pub test: ImageSet,
    /// How many images there are to learn from.
    pub examples: usize,
    /// The stream that gives them, and its path, when they are not held in memory.
    pub stream: Option<(PathBuf, Box<ImageStream>)>,
}

impl Images {
    /// SHA-256 over both parts.
    pub fn hash(&self) -> String {
        let train = match &self.stream {
            Some((_, stream)) => stream.hash().to_owned(),
            None => self.train.hash(),
        };
        crate::hash::sha256(format!("{train}{}", self.test.hash()).as_bytes())
    }

    fn in_memory(train: ImageSet, test: ImageSet) -> Self {
        Self {
            examples: train.len(),
            train: Arc::new(train),
            test,
            stream: None,
        }
    }
}

impl ImageData {
    /// Opens the images for a loop, from the path that `--data` gave, else from the recipe's own.
    ///
    /// # Errors
    /// No path where one is needed; files that are missing or damaged.
    pub fn open(&self, given: Option<&Path>, train: &LoopSpec) -> Result<Images, TrainError> {
        let path = given.or(self.path.as_deref());
        let mut images = match (self.source, self.streaming) {
            (ImageSource::Glyphs, _) => {
                let config = self.glyphs.clone().unwrap_or_default();
                let part = |split| glyphs(split, train.seed, &config).map_err(TrainError::other);
                Images::in_memory(part(Split::Train)?, part(Split::Test)?)
            }
            (ImageSource::Path, false) => {
                self.open_path(path.ok_or_else(missing_path)?, train.seed)?
            }
            (ImageSource::Path, true) => self.open_stream(path.ok_or_else(missing_path)?, train)?,
        };
        if let Some(depth) = self.stack {
            let stacked = |set: &ImageSet| set.stacked(depth, train.seed);
            images.train = Arc::new(stacked(&images.train).map_err(TrainError::other)?);
            images.test = stacked(&images.test).map_err(TrainError::other)?;
        }
        if let Some(limit) = self
            .limit
            .filter(|&limit| limit < images.examples && !self.streaming)
        {
            let first: Vec<usize> = (0..limit).collect();
            images.train = Arc::new(images.train.subset(&first));
            images.examples = limit;
        }
        Order::new(images.examples, train.batch, train.seed).map_err(TrainError::other)?;
        Ok(images)
    }

    fn open_path(&self, path: &Path, seed: u64) -> Result<Images, TrainError> {
        let open = |split| images::open_with(path, split, self.sizes);
        let train = open(Split::Train).map_err(TrainError::other)?;
        match open(Split::Test) {
            Ok(test) => Ok(Images::in_memory(train, test)),
            Err(DataError::NoTestPart(_) | DataError::Missing(_)) => {
                let (train, test) = train
                    .split(self.validation, seed)
                    .map_err(TrainError::other)?;
                Ok(Images::in_memory(train, test))
            }
            Err(error) => Err(TrainError::other(error)),
        }
    }

    fn open_stream(&self, path: &Path, train: &LoopSpec) -> Result<Images, TrainError> {
        let test = images::open_with(path, Split::Test, self.sizes).map_err(TrainError::other)?;
        let config = ImageStreamConfig {
            batch: train.batch,
            seed: train.seed,
            buffer: self.shuffle_buffer,
            sizes: self.sizes,
            channels: test.channels,
        };
        let folder = path.join("train");
        let path = if folder.is_dir() { &*folder } else { path };
        let open = || ImageStream::open(path, config.clone()).map_err(TrainError::other);
        let first = open()?.next_batch().map_err(TrainError::other)?;
        let stream = open()?;
        if first.class_names != test.class_names {
            return Err(TrainError::other(format!(
                "the test part has other classes ({}) than {} ({})",
                test.class_names.join(", "),
                path.display(),
                first.class_names.join(", "),
            )));
        }
        Ok(Images {
            train: Arc::new(first),
            test,
            examples: stream.len(),
            stream: Some((path.to_owned(), Box::new(stream))),
        })
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
        if self.source == ImageSource::Glyphs && self.sizes != Sizes::Agree {
            return Err(Invalid::new(
                "sizes",
                "only for source = \"path\"",
                "the size of glyphs is data.glyphs.size",
            ));
        }
        if self.shuffle_buffer == 0 {
            return Err(Invalid::new(
                "shuffle_buffer",
                "must be at least 1",
                "4096 is usual",
            ));
        }
        if self.streaming && self.stack.is_some() {
            return Err(Invalid::new(
                "stack",
                "streamed images are not stacked",
                "leave streaming or stack out",
            ));
        }
        if self.streaming && self.source != ImageSource::Path {
            return Err(Invalid::new(
                "streaming",
                "only images from a path are streamed",
                "leave it out, or set source = \"path\"",
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
