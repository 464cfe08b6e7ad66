//! Batches of images out of folders, tar archives and idx files of any size.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ShuffleBuffer;
use crate::images::{self, Classes, Sizes, hex};
use crate::{DataError, ImageSet, Result};

/// Bytes before the pixels of an idx file of images.
const IDX_HEADER: u64 = 16;

/// How an image stream shuffles and what it makes of sizes and colours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageStreamConfig {
    /// Images of a batch.
    pub batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Images in the shuffle buffer (their numbers only).
    pub buffer: usize,
    /// What to do with images of different sizes; `only` is not for streams.
    pub sizes: Sizes,
    /// 1 for grey or 3 for colour; idx files are always grey.
    pub channels: usize,
}

impl Default for ImageStreamConfig {
    fn default() -> Self {
        Self {
            batch: 64,
            seed: 0,
            buffer: 4096,
            sizes: Sizes::Agree,
            channels: 3,
        }
    }
}

/// Reads images one batch at a time, for ever. Holds their names, never their pixels.
#[derive(Debug)]
pub struct ImageStream {
    config: ImageStreamConfig,
    source: Source,
    /// Class of each image, and the names of the classes.
    labels: Option<Vec<u16>>,
    class_names: Vec<String>,
    /// Height and width of the first batch.
    size: Option<(usize, usize)>,
    shuffle: ShuffleBuffer,
    fingerprint: String,
}

/// Where an image stream stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageStreamState {
    config: ImageStreamConfig,
    data: String,
    shuffle: ShuffleBuffer,
}

#[derive(Debug)]
enum Source {
    Files(Vec<PathBuf>),
    Tar {
        path: PathBuf,
        entries: Vec<Entry>,
    },
    Idx {
        path: PathBuf,
        images: usize,
        height: usize,
        width: usize,
    },
}

/// A file inside a tar archive.
#[derive(Debug)]
struct Entry {
    name: PathBuf,
    offset: u64,
    bytes: u64,
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Tar { entries, .. } => entries.len(),
            Self::Idx { images, .. } => *images,
        }
    }
}

impl ImageStream {
    /// Opens a folder of images, an uncompressed tar archive of them, or an uncompressed idx
    /// file.
    ///
    /// # Errors
    /// When nothing is there, the file is compressed (it cannot be read at random), the batch is
    /// larger than the set, or the configuration is out of range.
    pub fn open(path: impl AsRef<Path>, config: ImageStreamConfig) -> Result<Self> {
        let path = path.as_ref();
        if ![1, 3].contains(&config.channels) || matches!(config.sizes, Sizes::Only { .. }) {
            return Err(DataError::Config(
                "an image stream needs channels = 1 or 3, and sizes that agree or are resized"
                    .into(),
            ));
        }
        let (source, (labels, class_names)) = open_source(path)?;
        let n = source.len();
        if config.batch == 0 || config.batch > n {
            return Err(DataError::BatchTooLarge {
                batch: config.batch,
                len: n,
            });
        }
        Ok(Self {
            shuffle: ShuffleBuffer::new(n as u64, config.buffer, config.seed)?,
            fingerprint: fingerprint(&source)?,
            config,
            source,
            labels,
            class_names,
            size: None,
        })
    }

    /// Opens the same images again and goes to a saved position.
    ///
    /// # Errors
    /// When the images are not those of the saved position.
    pub fn resume(path: impl AsRef<Path>, state: ImageStreamState) -> Result<Self> {
        let mut stream = Self::open(path, state.config)?;
        if stream.fingerprint != state.data {
            return Err(DataError::Resume("the images have changed".into()));
        }
        let (buffer, seed) = (stream.config.buffer, stream.config.seed);
        state.shuffle.check(stream.shuffle.records, buffer, seed)?;
        stream.shuffle = state.shuffle;
        Ok(stream)
    }

    /// Where the stream stands: what follows the batches given out so far.
    pub fn state(&self) -> ImageStreamState {
        ImageStreamState {
            config: self.config.clone(),
            data: self.fingerprint.clone(),
            shuffle: self.shuffle.clone(),
        }
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Whether there is no image; never so once opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// SHA-256 of the names and sizes of the images (for an idx file: of the file's size), in
    /// hexadecimal; their pixels are not read.
    pub fn hash(&self) -> &str {
        &self.fingerprint
    }

    /// The next batch.
    ///
    /// # Errors
    /// When an image cannot be read or decoded, or has another size than the first.
    pub fn next_batch(&mut self) -> Result<ImageSet> {
        let ids: Vec<usize> = (0..self.config.batch)
            .map(|_| self.shuffle.draw().1 as usize)
            .collect();
        let mut set = match &self.source {
            Source::Idx {
                path,
                height,
                width,
                ..
            } => self.read_idx(path, *height, *width, &ids)?,
            Source::Files(files) => {
                let file = |&id: &usize| {
                    let path = &files[id];
                    Ok((path.display().to_string(), images::read_file(path)?))
                };
                self.decode(
                    ids.par_iter().map(file).collect::<Result<_>>()?,
                    Path::new(""),
                )?
            }
            Source::Tar { path, entries } => {
                let mut archive = File::open(path).map_err(DataError::io(path))?;
                let entry = |id: &usize| {
                    let entry = &entries[*id];
                    let name = format!("{}: {}", path.display(), entry.name.display());
                    Ok((
                        name,
                        read_at(path, &mut archive, entry.offset, entry.bytes)?,
                    ))
                };
                self.decode(ids.iter().map(entry).collect::<Result<_>>()?, path)?
            }
        };
        let first = *self.size.get_or_insert((set.height, set.width));
        if first != (set.height, set.width) {
            let text = |(h, w): (usize, usize)| format!("{h} x {w}");
            return Err(DataError::MixedSizes {
                first: "the first batch".into(),
                first_size: text(first),
                second: "a later one".into(),
                second_size: text((set.height, set.width)),
            });
        }
        set.labels = self
            .labels
            .as_ref()
            .map(|labels| ids.iter().map(|&i| labels[i]).collect());
        set.class_names = self.class_names.clone();
        Ok(set)
    }

    fn decode(&self, files: Vec<(String, Vec<u8>)>, source: &Path) -> Result<ImageSet> {
        let decoded = files
            .into_par_iter()
            .map(|(name, bytes)| images::decode_image(name, &bytes, self.config.sizes))
            .collect::<Result<Vec<_>>>()?;
        let decoded: Vec<_> = decoded.into_iter().flatten().collect();
        images::unify(&decoded, Some(self.config.channels), source)
    }

    fn read_idx(
        &self,
        path: &Path,
        height: usize,
        width: usize,
        ids: &[usize],
    ) -> Result<ImageSet> {
        let plane = (height * width) as u64;
        let mut file = File::open(path).map_err(DataError::io(path))?;
        let mut pixels = Vec::new();
        for &id in ids {
            pixels.extend(read_at(
                path,
                &mut file,
                IDX_HEADER + id as u64 * plane,
                plane,
            )?);
        }
        let set = ImageSet {
            channels: 1,
            height,
            width,
            pixels,
            labels: None,
            class_names: vec![],
        };
        images::sizes_agree(set, self.config.sizes, path)
    }
}

/// Reads `bytes` bytes at `offset`; their number is known to lie within the file.
fn read_at(path: &Path, file: &mut File, offset: u64, bytes: u64) -> Result<Vec<u8>> {
    let io = |e| DataError::io(path)(e);
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut data = Vec::new();
    file.take(bytes).read_to_end(&mut data).map_err(io)?;
    let found = data.len() as u64;
    match found == bytes {
        true => Ok(data),
        false => Err(DataError::Truncated {
            path: path.to_owned(),
            expected: bytes,
            found,
        }),
    }
}

fn open_source(path: &Path) -> Result<(Source, Classes)> {
    if !path.exists() {
        return Err(DataError::Missing(path.to_owned()));
    }
    if path.is_dir() {
        let files = images::folder_files(path)?;
        let classes = images::number_classes(files.iter().map(PathBuf::as_path), path)?;
        return Ok((Source::Files(files), classes));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(DataError::io(path))?;
    file.take(262)
        .read_to_end(&mut head)
        .map_err(DataError::io(path))?;
    if head.is_empty() {
        return Err(DataError::Empty(path.to_owned()));
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        return Err(DataError::format(
            path,
            "compressed files cannot be streamed in random order; unpack it first",
        ));
    }
    match head.get(257..262) == Some(b"ustar") {
        true => open_tar(path),
        false => open_idx(path),
    }
}

/// Lists the images of an archive without reading them.
fn open_tar(path: &Path) -> Result<(Source, Classes)> {
    let io = |e| images::damaged(path, e);
    let file = BufReader::new(File::open(path).map_err(DataError::io(path))?);
    let mut archive = tar::Archive::new(file);
    let mut entries = Vec::new();
    for entry in archive.entries_with_seek().map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.path().map_err(io)?.into_owned();
        if entry.header().entry_type().is_file() && images::is_image(&name) {
            if entry.size() > images::MAX_FILE_BYTES {
                return Err(DataError::TooLarge {
                    path: path.to_owned(),
                    limit: images::MAX_FILE_BYTES,
                });
            }
            entries.push(Entry {
                name,
                offset: entry.raw_file_position(),
                bytes: entry.size(),
            });
        }
    }
    if entries.is_empty() {
        return Err(DataError::NoImages(path.to_owned()));
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let root = images::common_root(entries.iter().map(|e| e.name.as_path()));
    let classes = images::number_classes(entries.iter().map(|e| e.name.as_path()), &root)?;
    Ok((
        Source::Tar {
            path: path.to_owned(),
            entries,
        },
        classes,
    ))
}

/// Checks an idx file's header against the size of the file.
fn open_idx(path: &Path) -> Result<(Source, Classes)> {
    let mut file = BufReader::new(File::open(path).map_err(DataError::io(path))?);
    let sizes = images::read_header(path, &mut file, images::IDX_IMAGES)?;
    let [images, height, width] = sizes[..] else {
        unreachable!("the magic number of images announces three sizes")
    };
    let found = file_bytes(path)? - IDX_HEADER;
    let expected = [images, height, width]
        .iter()
        .try_fold(1u64, |n, &s| n.checked_mul(s as u64));
    if expected != Some(found) || found == 0 {
        let expected = expected.unwrap_or(u64::MAX);
        return Err(DataError::Truncated {
            path: path.to_owned(),
            expected,
            found,
        });
    }
    let labels = images::labels_beside(path)
        .map(|l| images::read_labels(&l, path, images))
        .transpose()?;
    let classes = labels.iter().flatten().max().map_or(0, |max| max + 1);
    let names = (0..classes).map(|c| c.to_string()).collect();
    Ok((
        Source::Idx {
            path: path.to_owned(),
            images,
            height,
            width,
        },
        (labels, names),
    ))
}

fn file_bytes(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(DataError::io(path))?.len())
}

fn fingerprint(source: &Source) -> Result<String> {
    let mut sha = Sha256::new();
    match source {
        Source::Files(files) => {
            for path in files {
                sha.update(path.file_name().unwrap_or_default().as_encoded_bytes());
                sha.update(file_bytes(path)?.to_le_bytes());
            }
        }
        Source::Tar { entries, .. } => {
            for entry in entries {
                sha.update(entry.name.as_os_str().as_encoded_bytes());
                sha.update(entry.bytes.to_le_bytes());
            }
        }
        Source::Idx { path, .. } => sha.update(file_bytes(path)?.to_le_bytes()),
    }
    Ok(hex(&sha.finalize()))
}
