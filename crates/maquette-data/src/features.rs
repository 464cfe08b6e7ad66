//! Features of images that another program, or an earlier run, computed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use npyz::{DType, NpyFile, Order, TypeChar};
use safetensors::{Dtype, SafeTensors};

use crate::error::DataError;

/// One row of numbers per image.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Row after row.
    pub values: Vec<f32>,
    /// Numbers per row.
    pub dims: usize,
}

impl Features {
    /// Reads a `.npy` file or a tensor of a `.safetensors` file: `[images, numbers]` of 32- or 64-bit
    /// floats; further axes of a row are one after the other. `tensor` names one where the file has
    /// several.
    ///
    /// # Errors
    /// No such file, another format, no such tensor, other numbers, fewer bytes than announced.
    pub fn read(path: &Path, tensor: Option<&str>) -> Result<Self, DataError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => DataError::Missing(path.to_owned()),
                _ => DataError::Io {
                    path: path.to_owned(),
                    source,
                },
            })?;
        if bytes.is_empty() {
            return Err(DataError::Empty(path.to_owned()));
        }
        let features = match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => of_npy(&bytes),
            Some("safetensors") => of_safetensors(&bytes, tensor),
            _ => Err("features are read from .npy and .safetensors files".into()),
        };
        features.map_err(|reason| DataError::Format {
            path: path.to_owned(),
            reason,
        })
    }
}

fn of_npy(bytes: &[u8]) -> Result<Features, String> {
    let mut data = bytes;
    let header = npyz::NpyHeader::from_reader(&mut data)
        .map_err(|error| format!("not a .npy file: {error}"))?;
    if header.order() != Order::C {
        return Err(
            "its columns are stored one by one; save it with numpy.ascontiguousarray".into(),
        );
    }
    let width = match header.dtype() {
        DType::Plain(kind) if kind.type_char() == TypeChar::Float => kind.size_field(),
        other => return Err(format!("holds {}, not floats", other.descr())),
    };
    let shape = header.shape().to_vec();
    let dims = row_length(&shape, width, data.len())?;
    let reader = NpyFile::with_header(header, data);
    let values = match width {
        4 => reader.into_vec::<f32>(),
        8 => reader
            .into_vec::<f64>()
            .map(|values| values.into_iter().map(|x| x as f32).collect()),
        _ => {
            return Err(format!(
                "holds {}-bit floats; save them as float32",
                8 * width
            ));
        }
    };
    let values = values.map_err(|error| error.to_string())?;
    Ok(Features { values, dims })
}

fn of_safetensors(bytes: &[u8], name: Option<&str>) -> Result<Features, String> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("not a .safetensors file: {error}"))?;
    let mut names = file.names();
    names.sort_unstable();
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => {
            return Err(format!(
                "holds several tensors: {}; name one",
                names.join(", ")
            ));
        }
    };
    let tensor = file
        .tensor(name)
        .map_err(|_| format!("no tensor `{name}`; it has {}", names.join(", ")))?;
    let shape: Vec<u64> = tensor.shape().iter().map(|n| *n as u64).collect();
    let data = tensor.data();
    let (dims, values) = match tensor.dtype() {
        Dtype::F32 => {
            let floats = data.as_chunks().0.iter();
            let values = floats.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            (row_length(&shape, 4, data.len())?, values)
        }
        Dtype::F64 => {
            let floats = data.as_chunks().0.iter();
            let values = floats.map(|bytes| f64::from_le_bytes(*bytes) as f32);
            (row_length(&shape, 8, data.len())?, values.collect())
        }
        other => return Err(format!("`{name}` holds {other:?}; save it as float32")),
    };
    Ok(Features { values, dims })
}

/// Numbers per row, if as many bytes are there as the shape announces.
fn row_length(shape: &[u64], width: u64, found: usize) -> Result<usize, String> {
    let [_, row @ ..] = shape else {
        return Err("holds a single number, not rows".into());
    };
    if row.is_empty() {
        return Err(format!(
            "has shape {shape:?}; one row per image was expected"
        ));
    }
    let product = |sizes: &[u64]| sizes.iter().try_fold(1u64, |all, n| all.checked_mul(*n));
    let bytes = product(shape).and_then(|numbers| numbers.checked_mul(width));
    match (bytes, product(row)) {
        (Some(bytes), Some(row)) if bytes == found as u64 && bytes > 0 => Ok(row as usize),
        _ => Err(format!(
            "announces shape {shape:?} of {width} bytes each, but holds {found} bytes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        let padded = format!("{header:<117}\n");
        bytes.extend((padded.len() as u16).to_le_bytes());
        bytes.extend(padded.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    const TWO_BY_TWO: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }";

    #[test]
    fn rows_of_npy() {
        let bytes = npy(TWO_BY_TWO, &floats(&[1.0, 2.0, 3.0, 4.0]));
        let got = of_npy(&bytes).unwrap();
        assert_eq!((got.dims, got.values), (2, vec![1.0, 2.0, 3.0, 4.0]));
        // Pooled features often keep two axes of length one.
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2, 1, 1), }";
        let data: Vec<u8> = [0.5f64, -1.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let got = of_npy(&npy(header, &data)).unwrap();
        assert_eq!((got.dims, got.values), (2, vec![0.5, -1.0]));
    }

    #[test]
    fn what_is_no_table_of_floats_is_refused() {
        let says = |bytes: &[u8], what: &str| {
            let error = of_npy(bytes).unwrap_err();
            assert!(error.contains(what), "{error}");
        };
        says(b"PK\x03\x04", "not a .npy");
        says(&npy(TWO_BY_TWO, &floats(&[1.0])), "but holds 4 bytes");
        let huge = TWO_BY_TWO.replace("2, 2", "4611686018427387904, 8");
        says(&npy(&huge, &floats(&[1.0])), "but holds 4 bytes");
        says(
            &npy(&TWO_BY_TWO.replace("<f4", "<i4"), &[0; 16]),
            "not floats",
        );
        says(
            &npy(&TWO_BY_TWO.replace("False", "True"), &[0; 16]),
            "ascontiguousarray",
        );
        says(
            &npy(&TWO_BY_TWO.replace("(2, 2)", "(4,)"), &[0; 16]),
            "one row per image",
        );
    }

    #[test]
    fn rows_of_safetensors() {
        let data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![3, 2], &data).unwrap();
        let one = safetensors::serialize([("pool", &view)], None).unwrap();
        let got = of_safetensors(&one, None).unwrap();
        assert_eq!((got.dims, got.values.len()), (2, 6));
        let two = safetensors::serialize([("a", &view), ("b", &view)], None).unwrap();
        assert!(
            of_safetensors(&two, None)
                .unwrap_err()
                .contains("a, b; name one")
        );
        assert!(of_safetensors(&two, Some("b")).is_ok());
        assert!(
            of_safetensors(&two, Some("c"))
                .unwrap_err()
                .contains("no tensor `c`")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..160) {
            let _ = of_npy(&bytes);
            let _ = of_safetensors(&bytes, None);
            let mut whole = npy(TWO_BY_TWO, &floats(&[1.0, 2.0, 3.0, 4.0]));
            if let Some(byte) = bytes.pop() {
                let at = at % whole.len();
                whole[at] = byte;
            }
            let _ = of_npy(&whole);
        }
    }
}
