//! `[pairs]`: which image is to become which, and whether the players are told.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use maquette_data::images::{Derived, ImagePairs};
use maquette_data::{DataError, ImageSet, Normalization, Order, Prefetch, Split, prefetch};
use maquette_rng::{Stream, rng, seed_for};
use serde::{Deserialize, Serialize};

use crate::recipes::images::Batch;
use crate::recipes::sections::{ImageData, ImageSource, Images, missing_path};
use crate::spec::Invalid;
use crate::{BoxError, LoopSpec, TrainError};

/// Where the draws of sources begin among those of the data.
const SOURCES: u64 = 1 << 62;

/// `[pairs]` of a translation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSpec {
    /// What sources show of the images of `[data]`, which are the targets. Left out, the data is two folders:
    /// `a` with the sources and `b` with the targets, under the same file names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Derived>,
    /// Whether each source is shown with its target. Where not, half of the training images give only
    /// sources and the rest only targets; two folders of different names are taken as they are.
    #[serde(default = "yes")]
    pub paired: bool,
}

fn yes() -> bool {
    true
}

/// What is learnt from, and what is never seen.
pub(super) struct Pairs {
    /// Sources and targets; image `i` of one belongs to image `i` of the other where they are `paired`.
    pub(super) train: [ImageSet; 2],
    pub(super) test: ImagePairs,
    /// Whether the players are shown which belongs to which.
    pub(super) paired: bool,
}

impl Pairs {
    /// Reads or makes the pairs.
    pub(super) fn open(
        data: &ImageData,
        spec: &PairSpec,
        given: Option<&Path>,
        train: &LoopSpec,
    ) -> Result<Self, TrainError> {
        let parts = match spec.from {
            Some(what) => derived(data.open(given, train)?, what, train.seed),
            None => folders(data, given, spec.paired, train.seed),
        };
        let (all, test) = parts.map_err(TrainError::other)?;
        let all = all.first(data.limit.unwrap_or(usize::MAX));
        let pairs = Self {
            train: match spec.paired {
                true => [all.sources, all.targets],
                false => all.apart(train.seed).map_err(TrainError::other)?,
            },
            test,
            paired: spec.paired,
        };
        pairs.orders(train)?;
        Ok(pairs)
    }

    /// SHA-256 over all parts.
    pub(super) fn hash(&self) -> String {
        let [sources, targets] = &self.train;
        let parts = [sources, targets, &self.test.sources, &self.test.targets];
        crate::hash::sha256(parts.map(ImageSet::hash).concat().as_bytes())
    }

    /// The orders in which sources and targets are visited: one and the same for pairs.
    fn orders(&self, train: &LoopSpec) -> Result<[Order; 2], TrainError> {
        let seed = match self.paired {
            true => train.seed,
            // With the same order, two halves would meet two and two, over and over.
            false => seed_for(train.seed, Stream::Shuffle, u64::MAX),
        };
        let order = |set: &ImageSet, seed| {
            Order::new(set.len(), train.batch, seed).map_err(TrainError::other)
        };
        Ok([
            order(&self.train[0], train.seed)?,
            order(&self.train[1], seed)?,
        ])
    }

    /// Batches from turn `start` of the critic on.
    pub(super) fn feed(
        &self,
        data: &ImageData,
        train: &LoopSpec,
        start: u64,
    ) -> Result<Feed, TrainError> {
        let orders = self.orders(train)?;
        let sets = self.train.clone();
        let (augment, seed) = (data.augment.clone(), train.seed);
        Ok(Feed(prefetch(start, 4, move |turn| {
            [0, 1].map(|side| {
                // The same draws on both sides, so that pairs stay pairs.
                let random = &mut rng(seed, Stream::Augment, turn);
                let augment = augment.as_ref().map(|augment| (augment, random));
                let indices = orders[side].indices(turn);
                Batch::new(&sets[side], &indices, &Normalization::Symmetric, augment)
            })
        })))
    }
}

/// Batches of sources and targets, made ahead by a background thread; a function of the turn.
pub(super) struct Feed(Prefetch<[Batch; 2]>);

impl Feed {
    /// The next batch: sources and targets, `[batch, channels, height, width]`.
    pub(super) fn next(&mut self, device: &Device) -> Result<[Tensor<4>; 2], BoxError> {
        let both = self.0.next().ok_or("the background reader stopped")?;
        Ok(both.map(|batch| batch.tensor(device)))
    }
}

/// Checks both sections together.
///
/// # Errors
/// The section and its key.
pub(super) fn check(data: &ImageData, pairs: &PairSpec) -> Result<(), (&'static str, Invalid)> {
    data.validate().map_err(|invalid| ("data", invalid))?;
    if data.streaming {
        let help = "leave it out, or take fewer images with data.limit";
        let invalid = Invalid::new("streaming", "pairs are held in memory", help);
        return Err(("data", invalid));
    }
    if pairs.from.is_none() && data.source == ImageSource::Glyphs {
        let invalid = Invalid::new(
            "from",
            "glyphs are targets alone",
            "say what their sources show: from = \"edges\", \"noise\" or \"inverted\"",
        );
        return Err(("pairs", invalid));
    }
    Ok(())
}

type Parts = Result<(ImagePairs, ImagePairs), DataError>;

/// Sources made of images, to learn from and to measure on.
fn derived(images: Images, what: Derived, seed: u64) -> Parts {
    let derive = |set, part| {
        let random = &mut rng(seed, Stream::Data, SOURCES + part);
        ImagePairs::derive(set, what, random)
    };
    Ok((
        derive(Arc::unwrap_or_clone(images.train), 0)?,
        derive(images.test, 1)?,
    ))
}

/// The folders of sources and targets, to learn from and to measure on.
fn folders(data: &ImageData, given: Option<&Path>, paired: bool, seed: u64) -> Parts {
    let path = given.or(data.path.as_deref());
    let path = path.ok_or_else(|| DataError::Config(missing_path().to_string()))?;
    let open = |split| {
        let pairs = ImagePairs::open(path, split, data.sizes)?;
        if paired {
            pairs.require_pairs()?;
        }
        Ok(pairs)
    };
    let train = open(Split::Train)?;
    match open(Split::Test) {
        Ok(test) => Ok((train, test)),
        Err(DataError::NoTestPart(_)) => train.split(data.validation, seed),
        Err(error) => Err(error),
    }
}
