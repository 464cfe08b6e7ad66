//! GGUF, the one-file format of llama.cpp: typed metadata, then tensors whose numbers may be
//! quantised in blocks. Versions 2 and 3, little-endian.
//!
//! [`File`] is the container, [`Format`] the number formats; [`load`] and [`save`] make a decoder of
//! a file and a file of a decoder.

mod model;
mod names;
mod rope;

pub use maquette_nn::quant::Format;
pub use model::{Mix, load, save, save_random};
pub(crate) use model::{config, pairs_are_neighbours};
pub(crate) use names::{Place, place};
pub(crate) use rope::FACTORS as ROPE_FACTORS;

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use maquette_nn::quant::Bytes;

use crate::{error::ModelError, raw::RawTensor, store};

/// The first four bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Where tensors begin, unless the file says otherwise: at multiples of this.
const ALIGNMENT: usize = 32;

/// The largest alignment believed.
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // each is the type of its name
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    /// Values of one type, none of them arrays.
    Array(Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// A whole number that is not negative, whatever its width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            _ => self.as_u64().map(|x| x as f64),
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Values in a row.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(x) => out.extend(x.to_le_bytes()),
            Self::I8(x) => out.extend(x.to_le_bytes()),
            Self::U16(x) => out.extend(x.to_le_bytes()),
            Self::I16(x) => out.extend(x.to_le_bytes()),
            Self::U32(x) => out.extend(x.to_le_bytes()),
            Self::I32(x) => out.extend(x.to_le_bytes()),
            Self::F32(x) => out.extend(x.to_le_bytes()),
            Self::Bool(x) => out.push((*x).into()),
            Self::String(text) => write_text(out, text),
            Self::Array(values) => {
                out.extend(values.first().map_or(4, Self::kind).to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.write(out));
            }
            Self::U64(x) => out.extend(x.to_le_bytes()),
            Self::I64(x) => out.extend(x.to_le_bytes()),
            Self::F64(x) => out.extend(x.to_le_bytes()),
        }
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Named values.
pub type Metadata = BTreeMap<String, Value>;

/// Where a tensor lies in a file, and how.
#[derive(Debug, Clone)]
struct Entry {
    format: Format,
    /// Rows first, as everywhere here; the file has them the other way round.
    shape: Vec<usize>,
    /// In [`File::bytes`].
    range: std::ops::Range<usize>,
}

/// An opened file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    tensors: BTreeMap<String, Entry>,
}

impl File {
    /// Maps a file into memory and checks that every tensor lies inside it.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Corrupt`], or [`ModelError::Unsupported`] (another version,
    /// big-endian numbers, a number format that [`Format`] lacks).
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let bytes = maquette_nn::map(path).map_err(ModelError::io(path))?;
        let mut reader = Reader {
            bytes: &bytes,
            at: 0,
        };
        let header = reader.header();
        let (metadata, tensors) = header.map_err(|fault| fault.of(path))?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
            tensors,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names, shapes (rows first) and formats of the tensors.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], Format)> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice(), entry.format))
    }

    /// The numbers of a tensor, widened to 32 bits; none if there is no such tensor.
    pub fn tensor(&self, name: &str) -> Option<TensorData> {
        let entry = self.tensors.get(name)?;
        let mut numbers = vec![0.0; entry.shape.iter().product()];
        let bytes = &self.bytes[entry.range.clone()];
        entry.format.decode(bytes, &mut numbers);
        Some(TensorData::new(numbers, entry.shape.clone()))
    }

    /// A tensor where it lies, with its shape, or one of the experts stacked in it.
    pub(crate) fn raw(&self, place: &Place) -> Option<(RawTensor, Vec<usize>)> {
        let entry = self.tensors.get(&place.name)?;
        let (mut range, mut shape) = (entry.range.clone(), entry.shape.clone());
        if let Some(expert) = place.expert {
            let [count, ..] = shape[..] else { return None };
            let each = range.len() / count;
            range = range.start + expert * each..range.start + (expert + 1) * each;
            shape.remove(0);
            if expert >= count || shape.is_empty() {
                return None;
            }
        }
        let tensor = RawTensor {
            format: entry.format,
            rows: shape[..shape.len() - 1].iter().product(),
            columns: shape[shape.len() - 1],
            bytes: self.bytes.slice(range)?,
        };
        Some((tensor, shape))
    }
}

/// A tensor to be written.
pub(crate) struct Head {
    pub(crate) name: String,
    /// Rows first.
    pub(crate) shape: Vec<usize>,
    pub(crate) format: Format,
}

impl Head {
    fn bytes(&self) -> usize {
        let numbers: usize = self.shape.iter().product();
        let (length, bytes) = self.format.block();
        numbers / length * bytes
    }
}

/// Writes a file of version 3; `fill` writes the blocks of each tensor in turn, and nothing else.
/// Equal contents give equal bytes.
///
/// # Errors
/// [`ModelError::Io`]; the old file, if any, is then untouched.
pub(crate) fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[Head],
    mut fill: impl FnMut(&Head, &mut dyn Write) -> io::Result<()>,
) -> Result<(), ModelError> {
    let mut head = MAGIC.to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_text(&mut head, key);
        head.extend(value.kind().to_le_bytes());
        value.write(&mut head);
    }
    let mut offset = 0;
    for tensor in tensors {
        write_text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        let sizes = tensor.shape.iter().rev();
        head.extend(sizes.flat_map(|size| (*size as u64).to_le_bytes()));
        head.extend(tensor.format.id().to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    store::replace(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&head)?;
        for tensor in tensors {
            fill(tensor, &mut file)?;
            let filling = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
            file.write_all(&[0; ALIGNMENT][..filling])?;
        }
        file.flush()
    })
}

/// What is wrong with a file.
enum Fault {
    Corrupt(String),
    Unsupported(String, &'static str),
}

impl Fault {
    fn of(self, path: &Path) -> ModelError {
        let path = path.to_owned();
        match self {
            Self::Corrupt(reason) => ModelError::Corrupt {
                path,
                format: "GGUF",
                reason,
            },
            Self::Unsupported(what, supported) => ModelError::Unsupported {
                path,
                what,
                supported,
            },
        }
    }
}

/// Reads from the start on and believes no length that the rest of the file cannot hold.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<(Metadata, BTreeMap<String, Entry>), Fault> {
        if self.take(4)? != MAGIC {
            return Err(Fault::Corrupt("it does not begin with GGUF".into()));
        }
        let version = self.u32()?;
        if ![2, 3].contains(&version) {
            let what = match version.swap_bytes() {
                2 | 3 => "a big-endian GGUF".to_owned(),
                _ => format!("version {version} of GGUF"),
            };
            return Err(Fault::Unsupported(what, "versions 2 and 3, little-endian"));
        }
        let (n_tensors, n_values) = (self.u64()?, self.u64()?);
        let mut metadata = Metadata::new();
        for _ in 0..n_values {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind, true)?;
            metadata.insert(key, value);
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..n_tensors {
            let name = self.text()?;
            let entry = self.entry(&name)?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(Fault::Corrupt(format!("two tensors are named `{name}`")));
            }
        }
        // Offsets count from where the tensors begin.
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT as u64,
            Some(value) => value
                .as_u64()
                .filter(|alignment| (1..=LARGEST_ALIGNMENT).contains(alignment))
                .ok_or_else(|| Fault::Corrupt("general.alignment is absurd".into()))?,
        };
        let start = self.at.next_multiple_of(alignment as usize);
        for (name, entry) in &mut tensors {
            let range = &mut entry.range;
            let [from, to] = [range.start, range.end].map(|at| at.checked_add(start));
            match (from, to) {
                (Some(from), Some(to)) if to <= self.bytes.len() => *range = from..to,
                _ => {
                    return Err(Fault::Corrupt(format!(
                        "tensor `{name}` reaches beyond the file's {} bytes",
                        self.bytes.len()
                    )));
                }
            }
        }
        Ok((metadata, tensors))
    }

    fn entry(&mut self, name: &str) -> Result<Entry, Fault> {
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(Fault::Corrupt(format!("tensor `{name}` of rank {rank}")));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = usize::try_from(self.u64()?).ok().filter(|size| *size > 0);
            shape
                .push(size.ok_or_else(|| Fault::Corrupt(format!("a size of `{name}` is absurd")))?);
        }
        let columns = shape[0];
        shape.reverse();
        let id = self.u32()?;
        let format = Format::of_id(id).ok_or_else(|| {
            Fault::Unsupported(
                format!("tensor `{name}` of number format {id}"),
                "F32, F16, BF16, Q4_0, Q8_0, Q4_K, Q5_K and Q6_K",
            )
        })?;
        let rows = shape[..shape.len() - 1]
            .iter()
            .try_fold(1usize, |rows, size| rows.checked_mul(*size));
        let bytes = format
            .row_bytes(columns)
            .and_then(|row| row.checked_mul(rows?));
        let bytes = bytes.ok_or_else(|| {
            Fault::Corrupt(format!(
                "tensor `{name}` of shape {shape:?} is not of whole blocks of {}",
                format.name()
            ))
        })?;
        let from = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let to = from
            .checked_add(bytes)
            .ok_or_else(|| Fault::Corrupt(format!("the offset of `{name}` is absurd")))?;
        Ok(Entry {
            format,
            shape,
            range: from..to,
        })
    }

    fn value(&mut self, kind: u32, arrays: bool) -> Result<Value, Fault> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.text()?),
            9 if arrays => {
                let kind = self.u32()?;
                let count = self.u64()?;
                // Every value takes a byte at least.
                if count > (self.bytes.len() - self.at) as u64 {
                    return Err(Fault::Corrupt(format!("an array of {count} values")));
                }
                let values = (0..count).map(|_| self.value(kind, false));
                Value::Array(values.collect::<Result<_, _>>()?)
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(Fault::Corrupt(format!("a value of type {other}"))),
        })
    }

    fn text(&mut self) -> Result<String, Fault> {
        let length = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let bytes = self.take(length)?;
        // Tokens of broken vocabularies are not always UTF-8; llama.cpp lets them pass.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, length: usize) -> Result<&[u8], Fault> {
        let rest = &self.bytes[self.at..];
        let part = rest.get(..length).ok_or_else(|| {
            Fault::Corrupt(format!(
                "it ends at byte {}, in the middle of its header",
                self.bytes.len()
            ))
        })?;
        self.at += length;
        Ok(part)
    }
}
