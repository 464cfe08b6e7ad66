//! Pairs of images: a source, and the target that it is to be translated to.

use std::path::{Path, PathBuf};

use maquette_rng::{Rng, Stream, normal, rand::Rng as _, rng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{ImageSet, Sizes, Split, decode};
use crate::{DataError, Result};

/// The folders of sources and of targets.
const SIDES: [&str; 2] = ["a", "b"];
/// Standard deviation of [`Derived::Noise`], in units of a pixel's byte.
const NOISE: f32 = 100.0;

/// What a source shows of its target, so that any images make pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Derived {
    /// Outlines: the length of Sobel's gradient of the brightness, a step from black to white being white.
    Edges,
    /// The brightness of a colour image (ITU-R BT.601).
    Grey,
    /// The image under noise of normal numbers, 100 of 255 levels strong.
    Noise,
    /// White where it is black.
    Inverted,
}

/// Sources and targets of one size. Where they pair up, image `i` of one belongs to image `i` of the other.
#[derive(Debug, Clone)]
pub struct ImagePairs {
    /// To be translated.
    pub sources: ImageSet,
    /// What translations are like.
    pub targets: ImageSet,
    /// The first file that has no partner of its name on the other side.
    single: Option<PathBuf>,
}

impl ImagePairs {
    /// A source for each of `targets`.
    ///
    /// # Errors
    /// Grey sources of grey images.
    pub fn derive(targets: ImageSet, what: Derived, random: &mut Rng) -> Result<Self> {
        if what == Derived::Grey && targets.channels == 1 {
            return Err(DataError::Config(
                "the images are grey already, and grey sources would be the targets themselves; derive edges, \
                 noise or inverted ones"
                    .into(),
            ));
        }
        let (height, width) = (targets.height, targets.width);
        let grey = || targets.clone().in_channels(1);
        let sources = match what {
            Derived::Grey => grey(),
            Derived::Edges => each(grey(), |_, image| edges(image, height, width)),
            Derived::Inverted => each(targets.clone(), |_, image| {
                image.iter().map(|p| 255 - p).collect()
            }),
            Derived::Noise => {
                // One seed per image, so that the images can be worked on in parallel.
                let seeds: Vec<u64> = (0..targets.len()).map(|_| random.next_u64()).collect();
                each(targets.clone(), |i, image| {
                    let noise = normal(&mut rng(seeds[i], Stream::Data, 0), image.len());
                    let pixels = image.iter().zip(noise);
                    // The cast clips.
                    pixels
                        .map(|(p, e)| (f32::from(*p) + NOISE * e).round() as u8)
                        .collect()
                })
            }
        };
        Ok(Self {
            sources,
            targets,
            single: None,
        })
    }

    /// The images of the folders `a` (sources) and `b` (targets) in `path`, or in its `train` and `test`
    /// sub-folders. Images of the same name belong together.
    ///
    /// # Errors
    /// As [`super::open`]; a folder that is missing; sides of different sizes.
    pub fn open(path: &Path, split: Split, sizes: Sizes) -> Result<Self> {
        if let Sizes::Only { .. } = sizes {
            return Err(DataError::Config(
                "images that are left out by their size would leave others without partner; resize them \
                 instead"
                    .into(),
            ));
        }
        if !path.exists() {
            return Err(DataError::Missing(path.to_owned()));
        }
        let root = decode::split_folder(path, split)?;
        let [a, b] = SIDES.map(|side| root.join(side));
        if let Some(missing) = [&a, &b].into_iter().find(|side| !side.is_dir()) {
            return Err(DataError::Format {
                path: missing.clone(),
                reason: "no such folder; pairs are two folders, `a` with the sources and `b` with the targets \
                         under the same file names"
                    .into(),
            });
        }
        let single = first_single(&a, &b)?;
        let open = |side| decode::open_folder(side, sizes);
        let (sources, targets) = (open(&a)?, open(&b)?);
        let size = |set: &ImageSet| format!("{}x{}", set.height, set.width);
        if size(&sources) != size(&targets) {
            return Err(DataError::Format {
                path: root,
                reason: format!(
                    "the sources are {} and the targets {} (height x width); bring both to one size",
                    size(&sources),
                    size(&targets)
                ),
            });
        }
        Ok(Self {
            sources,
            targets,
            single,
        })
    }

    /// Whether each source has its target.
    pub fn are_pairs(&self) -> bool {
        self.single.is_none()
    }

    /// That each source has its target.
    ///
    /// # Errors
    /// Naming the first file without partner.
    pub fn require_pairs(&self) -> Result<()> {
        match &self.single {
            None => Ok(()),
            Some(path) => Err(DataError::Format {
                path: path.clone(),
                reason: format!(
                    "has no partner of this name in the other folder ({} sources, {} targets); add or remove \
                     it, or learn without pairs",
                    self.sources.len(),
                    self.targets.len()
                ),
            }),
        }
    }

    /// Sources and targets of which none belong together: of pairs, a random half gives only its sources
    /// and the rest only its targets.
    ///
    /// # Errors
    /// Fewer than two pairs.
    pub fn apart(self, seed: u64) -> Result<[ImageSet; 2]> {
        if !self.are_pairs() {
            return Ok([self.sources, self.targets]);
        }
        // The same permutation, for as many.
        let (sources, _) = self.sources.split(0.5, seed)?;
        let (_, targets) = self.targets.split(0.5, seed)?;
        Ok([sources, targets])
    }

    /// Splits off a random part of `fraction`: `(rest, part)`.
    ///
    /// # Errors
    /// When one part would be empty.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        // Of as many images the same ones: pairs stay pairs.
        let (sources, held_sources) = self.sources.split(fraction, seed)?;
        let (targets, held_targets) = self.targets.split(fraction, seed)?;
        let part = |sources, targets| Self {
            sources,
            targets,
            single: self.single.clone(),
        };
        Ok((part(sources, targets), part(held_sources, held_targets)))
    }

    /// The first `count` of each side.
    pub fn first(&self, count: usize) -> Self {
        let first = |set: &ImageSet| set.subset(&(0..count.min(set.len())).collect::<Vec<_>>());
        Self {
            sources: first(&self.sources),
            targets: first(&self.targets),
            single: self.single.clone(),
        }
    }
}

/// The first file under `a` or `b` that the other has not.
fn first_single(a: &Path, b: &Path) -> Result<Option<PathBuf>> {
    let names = |side: &Path| -> Result<Vec<PathBuf>> {
        let files = decode::folder_files(side)?;
        let inside = |file: &PathBuf| file.strip_prefix(side).map(Path::to_path_buf);
        Ok(files.iter().filter_map(|file| inside(file).ok()).collect())
    };
    let (in_a, in_b) = (names(a)?, names(b)?);
    let at = in_a.iter().zip(&in_b).take_while(|(a, b)| a == b).count();
    Ok(match (in_a.get(at), in_b.get(at)) {
        (None, None) => None,
        // Names are in order: the smaller one is missing on the other side.
        (Some(left), Some(right)) if left < right => Some(a.join(left)),
        (Some(left), None) => Some(a.join(left)),
        (_, Some(right)) => Some(b.join(right)),
    })
}

/// Every image changed by `change`, which is given its number and its pixels.
fn each(set: ImageSet, change: impl Fn(usize, &[u8]) -> Vec<u8> + Sync) -> ImageSet {
    let pixels = (0..set.len())
        .into_par_iter()
        .flat_map_iter(|i| change(i, set.image(i)))
        .collect();
    ImageSet { pixels, ..set }
}

/// Sobel's gradient of one plane, the border repeated.
fn edges(image: &[u8], height: usize, width: usize) -> Vec<u8> {
    let at = |y: usize, x: usize| f32::from(image[y * width + x]);
    let mut out = Vec::with_capacity(image.len());
    for y in 0..height {
        for x in 0..width {
            let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let down = |c: usize| at(rows[2], columns[c]) - at(rows[0], columns[c]);
            let right = |r: usize| at(rows[r], columns[2]) - at(rows[r], columns[0]);
            let dy = down(0) + 2.0 * down(1) + down(2);
            let dx = right(0) + 2.0 * right(1) + right(2);
            out.push((dy.hypot(dx) / 4.0).round() as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::png;
    use super::*;

    fn set(channels: usize, size: usize, pixels: Vec<u8>) -> ImageSet {
        ImageSet {
            channels,
            height: size,
            width: size,
            pixels,
            labels: None,
            class_names: vec![],
        }
    }

    fn derive(set: &ImageSet, what: Derived) -> ImagePairs {
        ImagePairs::derive(set.clone(), what, &mut rng(0, Stream::Data, 0)).unwrap()
    }

    #[test]
    fn sources_by_hand() {
        // A step from black to white between the columns 1 and 2.
        let step = set(1, 4, [0, 0, 255, 255].repeat(4));
        let edges = derive(&step, Derived::Edges);
        assert_eq!(edges.sources.pixels, [0, 255, 255, 0].repeat(4));
        assert_eq!(edges.targets, step);
        assert_eq!(
            derive(&step, Derived::Inverted).sources.pixels,
            [255, 255, 0, 0].repeat(4)
        );
        let colour = set(3, 1, vec![10, 10, 10, 0, 255, 0]);
        assert_eq!(derive(&colour, Derived::Grey).sources.pixels, [10, 150]);
        assert_eq!(derive(&colour, Derived::Edges).sources.channels, 1);
        let error = ImagePairs::derive(step, Derived::Grey, &mut rng(0, Stream::Data, 0));
        assert!(error.unwrap_err().to_string().contains("grey already"));
    }

    #[test]
    fn noise_is_the_generator_s() {
        let flat = set(1, 100, vec![128; 10_000]);
        let noisy = derive(&flat, Derived::Noise).sources;
        assert_eq!(noisy, derive(&flat, Derived::Noise).sources);
        let mean = noisy.pixels.iter().map(|p| f64::from(*p)).sum::<f64>() / 1e4;
        assert!((mean - 128.0).abs() < 4.0, "{mean}");
    }

    #[test]
    fn halves_share_no_pair() {
        let numbers = set(1, 1, (0..100).collect());
        let [sources, targets] = derive(&numbers, Derived::Inverted).apart(3).unwrap();
        let sources: Vec<u8> = sources.pixels.iter().map(|p| 255 - p).collect();
        let mut all = [sources, targets.pixels].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<u8>>());
        let (rest, part) = derive(&numbers, Derived::Inverted).split(0.2, 3).unwrap();
        assert_eq!((rest.targets.len(), part.targets.len()), (80, 20));
        for part in [rest, part] {
            let pairs = part.sources.pixels.iter().zip(&part.targets.pixels);
            assert!(pairs.into_iter().all(|(a, b)| 255 - a == *b));
        }
    }

    #[test]
    fn folders_pair_up_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, png(8, 8, false, value)).unwrap();
        };
        let open = |split| ImagePairs::open(dir.path(), split, Sizes::Agree);
        write("a/2.png", 2);
        let error = open(Split::Train).unwrap_err().to_string();
        assert!(error.contains("b: no such folder; pairs are"), "{error}");
        write("a/1.png", 1);
        write("b/1.png", 101);
        write("b/2.png", 102);
        let pairs = open(Split::Train).unwrap();
        pairs.require_pairs().unwrap();
        let firsts = |set: &ImageSet| [set.image(0)[0], set.image(1)[0]];
        assert_eq!(firsts(&pairs.sources), [1, 2]);
        assert_eq!(firsts(&pairs.targets), [101, 102]);
        assert!(matches!(open(Split::Test), Err(DataError::NoTestPart(_))));
        // One more on either side is named; without pairs it does no harm.
        write("b/0.png", 100);
        let more = open(Split::Train).unwrap();
        let error = more.require_pairs().unwrap_err().to_string();
        assert!(error.contains("0.png: has no partner") && error.contains("2 sources, 3"));
        assert_eq!(more.apart(0).unwrap()[1].len(), 3);
        write("a/0.png", 100);
        write("a/3.png", 100);
        let error = open(Split::Train).unwrap().require_pairs().unwrap_err();
        assert!(error.to_string().contains("3.png: has no partner"));
    }
}
