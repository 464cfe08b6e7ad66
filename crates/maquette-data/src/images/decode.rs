//! Folders and tar archives of PNG, JPEG and GIF images.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use image::{DynamicImage, ImageReader, Limits, imageops::FilterType};
use rayon::prelude::*;

use super::{ImageSet, MAX_SET_BYTES, Sizes, Split, idx};
use crate::{DataError, Result};

/// A single image file larger than this is refused.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;
/// Neither side of an image may be longer.
const MAX_SIDE: u32 = 16_384;

/// One decoded image and where it came from.
pub(crate) struct Decoded {
    name: String,
    image: DynamicImage,
}

/// The class of each image, and the names of the classes.
pub(crate) type Classes = (Option<Vec<u16>>, Vec<String>);

/// Whether a name looks like an image's; hidden files are not.
pub(crate) fn is_image(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or(".");
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    !name.starts_with('.')
        && ["png", "jpg", "jpeg", "gif"].contains(&extension.to_ascii_lowercase().as_str())
}

/// Decodes one image and applies the rule about sizes; `None` when the rule drops it.
pub(crate) fn decode_image(name: String, bytes: &[u8], sizes: Sizes) -> Result<Option<Decoded>> {
    let broken = |reason: String| DataError::BrokenImage {
        name: name.clone(),
        reason,
    };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| broken(e.to_string()))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| broken(e.to_string()))?;
    let image = match sizes {
        Sizes::Agree => image,
        Sizes::Only { height, width } => {
            if (image.height() as usize, image.width() as usize) != (height, width) {
                return Ok(None);
            }
            image
        }
        Sizes::Resize { height, width } => {
            check_size(height, width)?;
            image.resize_exact(width as u32, height as u32, FilterType::Triangle)
        }
    };
    Ok(Some(Decoded { name, image }))
}

fn check_size(height: usize, width: usize) -> Result<()> {
    let range = 1..=MAX_SIDE as usize;
    if range.contains(&height) && range.contains(&width) {
        return Ok(());
    }
    Err(DataError::Config(format!(
        "cannot resize to {height} x {width}: each side must be between 1 and {MAX_SIDE}"
    )))
}

/// The part of a folder that `split` means: its `train`, `test` or `val` sub-folder if it has
/// them, and otherwise all of it for training.
pub(super) fn split_folder(path: &Path, split: Split) -> Result<PathBuf> {
    let test = ["test", "val", "valid"].map(|name| path.join(name));
    let test = test.into_iter().find(|p| p.is_dir());
    let train = Some(path.join("train")).filter(|p| p.is_dir());
    match (split, train, test) {
        (Split::Train, Some(train), _) => Ok(train),
        (Split::Train, None, _) => Ok(path.to_owned()),
        (Split::Test, Some(_), Some(test)) => Ok(test),
        (Split::Test, _, _) => Err(DataError::NoTestPart(path.to_owned())),
    }
}

/// Every image file under `root`, sorted; links are not followed, so nothing outside is read.
pub(crate) fn folder_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(root).to_owned();
            DataError::io(&path)(e.into())
        })?;
        if entry.file_type().is_file() && is_image(entry.path()) {
            files.push(entry.into_path());
        }
    }
    match files.is_empty() {
        true => Err(DataError::NoImages(root.to_owned())),
        false => Ok(files),
    }
}

/// The class of an image: the first folder of its path below `root`.
fn class_of(path: &Path, root: &Path) -> Option<String> {
    let mut parts = path.strip_prefix(root).ok()?.components();
    let first = parts.find_map(|c| match c {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    })?;
    parts.next().map(|_| first)
}

pub(super) fn open_folder(root: &Path, sizes: Sizes) -> Result<ImageSet> {
    let files = folder_files(root)?;
    let total = AtomicU64::new(0);
    let decode = |path: &PathBuf| {
        let decoded = decode_image(path.display().to_string(), &read_file(path)?, sizes)?;
        let bytes = decoded
            .as_ref()
            .map_or(0, |d| d.image.as_bytes().len() as u64);
        match total.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_SET_BYTES {
            true => Err(DataError::TooLarge {
                path: root.to_owned(),
                limit: MAX_SET_BYTES,
            }),
            false => Ok(decoded.map(|d| (path.clone(), d))),
        }
    };
    let decoded: Vec<_> = files.par_iter().map(decode).collect::<Result<_>>()?;
    classified(decoded.into_iter().flatten().collect(), root, root)
}

/// Unifies images whose classes are the folders below `root`.
fn classified(images: Vec<(PathBuf, Decoded)>, root: &Path, source: &Path) -> Result<ImageSet> {
    let (paths, images): (Vec<PathBuf>, Vec<Decoded>) = images.into_iter().unzip();
    let mut set = unify(&images, None, source)?;
    (set.labels, set.class_names) = number_classes(paths.iter().map(PathBuf::as_path), root)?;
    Ok(set)
}

/// Reads one file, never more than the limit.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(DataError::io(path))?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(DataError::TooLarge {
            path: path.to_owned(),
            limit: MAX_FILE_BYTES,
        }),
        false => Ok(bytes),
    }
}

/// The tar archive in a folder, if there is just one.
pub(super) fn lone_archive(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found = None;
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        if path.is_file() && idx::looks_like_tar(&path).unwrap_or(false) {
            if found.is_some() {
                return Ok(None);
            }
            found = Some(path);
        }
    }
    Ok(found)
}

pub(super) fn open_tar(path: &Path, sizes: Sizes) -> Result<ImageSet> {
    let mut archive = tar::Archive::new(idx::reader(path)?);
    let mut decoded = Vec::new();
    let mut total = 0u64;
    let too_large = |limit| DataError::TooLarge {
        path: path.to_owned(),
        limit,
    };
    for entry in archive.entries().map_err(|e| idx::damaged(path, e))? {
        let entry = entry.map_err(|e| idx::damaged(path, e))?;
        let inner = entry
            .path()
            .map_err(|e| idx::damaged(path, e))?
            .into_owned();
        if !entry.header().entry_type().is_file() || !is_image(&inner) {
            continue;
        }
        let mut bytes = Vec::new();
        let announced = entry.size();
        entry
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| idx::damaged(path, e))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(too_large(MAX_FILE_BYTES));
        }
        if (bytes.len() as u64) < announced {
            return Err(DataError::Truncated {
                path: path.to_owned(),
                expected: announced,
                found: bytes.len() as u64,
            });
        }
        let name = format!("{}: {}", path.display(), inner.display());
        if let Some(image) = decode_image(name, &bytes, sizes)? {
            total += image.image.as_bytes().len() as u64;
            if total > MAX_SET_BYTES {
                return Err(too_large(MAX_SET_BYTES));
            }
            decoded.push((inner, image));
        }
    }
    decoded.sort_by(|a, b| a.0.cmp(&b.0));
    // Archives usually hold one folder that holds everything: classes begin below it.
    let root = common_root(decoded.iter().map(|(inner, _)| inner.as_path()));
    classified(decoded, &root, path)
}

/// The deepest folder that all paths share.
pub(crate) fn common_root<'a>(mut paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    let mut root = paths
        .next()
        .and_then(Path::parent)
        .unwrap_or(Path::new(""))
        .to_owned();
    for path in paths {
        while !path.starts_with(&root) {
            root.pop();
        }
    }
    root
}

/// Brings decoded images into one set: one size; grey if all are grey and otherwise colour,
/// unless `channels` says which.
pub(crate) fn unify(
    images: &[Decoded],
    channels: Option<usize>,
    source: &Path,
) -> Result<ImageSet> {
    let Some(first) = images.first() else {
        return Err(DataError::NoImages(source.to_owned()));
    };
    let size = |d: &Decoded| (d.image.height() as usize, d.image.width() as usize);
    let (height, width) = size(first);
    if let Some(other) = images.iter().find(|d| size(d) != (height, width)) {
        let text = |(h, w): (usize, usize)| format!("{h} x {w}");
        return Err(DataError::MixedSizes {
            first: first.name.clone(),
            first_size: text((height, width)),
            second: other.name.clone(),
            second_size: text(size(other)),
        });
    }
    let channels = channels.unwrap_or(match images.iter().any(|d| d.image.color().has_color()) {
        true => 3,
        false => 1,
    });
    let mut pixels = Vec::with_capacity(channels * height * width * images.len());
    for decoded in images {
        push_planes(&mut pixels, &decoded.image, channels);
    }
    Ok(ImageSet {
        channels,
        height,
        width,
        pixels,
        labels: None,
        class_names: Vec::new(),
    })
}

/// Numbers the classes, the folders below `root`, in the order of their names. An image beside
/// class folders has no class: that is an error rather than a guess.
pub(crate) fn number_classes<'a>(
    paths: impl Iterator<Item = &'a Path> + Clone,
    root: &Path,
) -> Result<Classes> {
    let names: BTreeSet<String> = paths.clone().filter_map(|p| class_of(p, root)).collect();
    if names.is_empty() {
        return Ok((None, Vec::new()));
    }
    if names.len() > usize::from(u16::MAX) {
        return Err(DataError::Config(format!(
            "{} class folders are more than the {} that labels can hold",
            names.len(),
            u16::MAX
        )));
    }
    let names: Vec<String> = names.into_iter().collect();
    let label = |p: &Path| match class_of(p, root).map(|c| names.binary_search(&c)) {
        Some(Ok(label)) => Ok(label as u16),
        _ => Err(DataError::Config(format!(
            "{} lies beside the class folders; move it into one, or give a folder without sub-folders",
            p.display()
        ))),
    };
    let labels = paths.map(label).collect::<Result<_>>()?;
    Ok((Some(labels), names))
}

/// Appends `image` as `[channels, height, width]`. What is transparent lies on black.
fn push_planes(pixels: &mut Vec<u8>, image: &DynamicImage, channels: usize) {
    let over_black =
        |value: u8, alpha: u8| ((u16::from(value) * u16::from(alpha) + 127) / 255) as u8;
    if channels == 1 {
        let grey = image.to_luma_alpha8();
        pixels.extend(grey.pixels().map(|p| over_black(p[0], p[1])));
    } else {
        let colour = image.to_rgba8();
        for c in 0..3 {
            pixels.extend(colour.pixels().map(|p| over_black(p[c], p[3])));
        }
    }
}

/// Resizes every image of a set.
pub(super) fn resize_set(set: ImageSet, height: usize, width: usize) -> Result<ImageSet> {
    check_size(height, width)?;
    let plane = set.height * set.width;
    let pixels = set
        .pixels
        .par_chunks_exact(plane)
        .flat_map_iter(|plane| {
            let grey =
                image::GrayImage::from_raw(set.width as u32, set.height as u32, plane.to_vec())
                    .expect("a plane has height x width bytes");
            image::imageops::resize(&grey, width as u32, height as u32, FilterType::Triangle)
                .into_raw()
        })
        .collect();
    Ok(ImageSet {
        height,
        width,
        pixels,
        ..set
    })
}
