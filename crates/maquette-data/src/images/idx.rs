//! The idx format of MNIST: a magic number, big-endian sizes, then bytes; gzipped or not.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{ImageSet, MAX_SET_BYTES, Split};
use crate::{DataError, Result};

/// Magic number of a file of images: unsigned bytes in three dimensions.
pub(crate) const IMAGES: u32 = 0x0000_0803;
/// Magic number of a file of labels: unsigned bytes in one dimension.
const LABELS: u32 = 0x0000_0801;

/// Opens a file, looking through gzip whatever the file's name is.
pub(super) fn reader(path: &Path) -> Result<Box<dyn Read>> {
    let mut magic = [0u8; 2];
    let mut file = File::open(path).map_err(DataError::io(path))?;
    let read = file.read(&mut magic).map_err(DataError::io(path))?;
    if read == 0 {
        return Err(DataError::Empty(path.to_owned()));
    }
    let file = BufReader::new(File::open(path).map_err(DataError::io(path))?);
    Ok(match magic {
        [0x1f, 0x8b] => Box::new(MultiGzDecoder::new(file)),
        _ => Box::new(file),
    })
}

/// Whether a file is a tar archive, gzipped or not: `ustar` stands at byte 257.
pub(super) fn looks_like_tar(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    reader(path)?
        .take(262)
        .read_to_end(&mut head)
        .map_err(|e| damaged(path, e))?;
    Ok(head.get(257..262) == Some(b"ustar"))
}

/// Damage met while decompressing is about the file's contents, not about the system.
pub(crate) fn damaged(path: &Path, e: std::io::Error) -> DataError {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match e.kind() {
        UnexpectedEof | InvalidData | InvalidInput => DataError::format(
            path,
            format!("damaged or truncated ({e}); fetch or copy it again"),
        ),
        _ => DataError::io(path)(e),
    }
}

/// The image file of `split` in a folder of MNIST's layout; `None` when it is no such folder.
pub(super) fn find(folder: &Path, split: Split) -> Result<Option<PathBuf>> {
    let stem = |split| match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let file = |split| {
        ["images-idx3-ubyte", "images.idx3-ubyte"]
            .iter()
            .flat_map(|name| {
                [
                    format!("{}-{name}.gz", stem(split)),
                    format!("{}-{name}", stem(split)),
                ]
            })
            .map(|name| folder.join(name))
            .find(|p| p.is_file())
    };
    match (
        file(split),
        file(Split::Train).or_else(|| file(Split::Test)),
    ) {
        (Some(path), _) => Ok(Some(path)),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(DataError::Missing(
            folder.join(format!("{}-images-idx3-ubyte.gz", stem(split))),
        )),
    }
}

/// Reads an image file and, when it lies beside it, its label file.
pub(super) fn open(path: &Path) -> Result<ImageSet> {
    let (sizes, pixels) = read(path, IMAGES)?;
    let [n, height, width] = sizes[..] else {
        unreachable!("the magic number of images announces three sizes")
    };
    if pixels.is_empty() {
        return Err(DataError::format(
            path,
            format!("holds no pixels ({n} images of {height} x {width})"),
        ));
    }
    let labels = labels_beside(path)
        .map(|labels_path| read_labels(&labels_path, path, n))
        .transpose()?;
    let classes = labels.iter().flatten().max().map_or(0, |&max| max + 1);
    Ok(ImageSet {
        channels: 1,
        height,
        width,
        pixels,
        labels,
        class_names: (0..classes).map(|c| c.to_string()).collect(),
    })
}

/// The label file that belongs to an image file by its name, if there is one.
pub(crate) fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let name = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
    [name, format!("{plain}.gz"), plain]
        .iter()
        .map(|name| images.with_file_name(name))
        .find(|p| p != images && p.is_file())
}

/// The labels in `path`, which must be as many as the images.
pub(crate) fn read_labels(path: &Path, images_path: &Path, images: usize) -> Result<Vec<u16>> {
    let (_, labels) = read(path, LABELS)?;
    if labels.len() != images {
        return Err(DataError::CountMismatch {
            images_path: images_path.to_owned(),
            labels_path: path.to_owned(),
            images,
            labels: labels.len(),
        });
    }
    Ok(labels.into_iter().map(u16::from).collect())
}

/// The sizes and the bytes of an idx file whose magic number must be `expected`.
fn read(path: &Path, expected: u32) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut reader = reader(path)?;
    let sizes = read_header(path, &mut reader, expected)?;
    let announced = sizes.iter().try_fold(1u64, |n, &s| n.checked_mul(s as u64));
    let Some(announced) = announced.filter(|n| *n <= MAX_SET_BYTES) else {
        return Err(DataError::TooLarge {
            path: path.to_owned(),
            limit: MAX_SET_BYTES,
        });
    };
    // The buffer grows with what is really there: a header alone makes nothing be allocated.
    let mut bytes = Vec::new();
    reader
        .take(announced + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| damaged(path, e))?;
    let found = bytes.len() as u64;
    if found < announced {
        return Err(DataError::Truncated {
            path: path.to_owned(),
            expected: announced,
            found,
        });
    }
    if found > announced {
        return Err(DataError::format(
            path,
            format!(
                "more data than the {announced} bytes its header announces; not a clean idx file"
            ),
        ));
    }
    Ok((sizes, bytes))
}

/// Reads the magic number and the sizes.
pub(crate) fn read_header(
    path: &Path,
    reader: &mut impl Read,
    expected: u32,
) -> Result<Vec<usize>> {
    let mut number = || {
        let mut b = [0u8; 4];
        reader.read_exact(&mut b).map_err(|e| damaged(path, e))?;
        Ok::<u32, DataError>(u32::from_be_bytes(b))
    };
    let magic = number()?;
    if magic != expected {
        let what = |m| match m {
            IMAGES => "idx images",
            LABELS => "idx labels",
            _ => "no idx file of bytes",
        };
        return Err(DataError::format(
            path,
            format!(
                "wrong magic number {magic:#010x} ({}), expected {expected:#010x} ({})",
                what(magic),
                what(expected)
            ),
        ));
    }
    (0..expected & 0xff)
        .map(|_| Ok(number()? as usize))
        .collect()
}
