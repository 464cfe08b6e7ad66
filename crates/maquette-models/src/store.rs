//! Weights on disk: safetensors, one tensor per parameter, named by its path in the module.
//!
//! The same weights and metadata always give the same bytes. Files are replaced as a whole: the new
//! one is written beside the old, flushed, and renamed over it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::Path,
};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, Tensor, TensorData},
};
use safetensors::{Dtype, SafeTensors};

use maquette_nn::quant::Format;

use crate::{error::ModelError, raw::RawTensor};

/// Named 32-bit float tensors, as they stand in a file.
pub type Tensors = BTreeMap<String, TensorData>;

/// Free text that travels in the header.
pub type Metadata = BTreeMap<String, String>;

/// Saves every float parameter of `module`.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written; the old file, if any, is then untouched.
pub fn save<M: Module>(module: &M, path: &Path, metadata: &Metadata) -> Result<(), ModelError> {
    write(path, &tensors(module), metadata)
}

/// Gives `module` the weights in a file, which must hold exactly its parameters.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Corrupt`], [`ModelError::Unsupported`] (a tensor that is not of
/// floats), [`ModelError::Names`] or [`ModelError::Shape`].
pub fn load<M: Module>(module: M, path: &Path) -> Result<M, ModelError> {
    let (tensors, _) = read(path)?;
    assign(module, tensors, path)
}

/// Every float parameter of `module`, by path.
pub fn tensors<M: Module>(module: &M) -> Tensors {
    let mut collect = Collect {
        path: Vec::new(),
        tensors: Tensors::new(),
    };
    module.visit(&mut collect);
    collect.tensors
}

/// Gives `module` exactly these weights; `path` is for the error.
///
/// # Errors
/// [`ModelError::Names`] or [`ModelError::Shape`].
pub fn assign<M: Module>(module: M, tensors: Tensors, path: &Path) -> Result<M, ModelError> {
    let mut shapes = Shapes {
        path: Vec::new(),
        shapes: BTreeMap::new(),
    };
    module.visit(&mut shapes);
    check(&shapes.shapes, &tensors, path)?;
    Ok(module.map(&mut Assign {
        path: Vec::new(),
        tensors,
    }))
}

/// Compares names and shapes of a file with those asked for.
pub(crate) fn check(
    expected: &BTreeMap<String, Vec<usize>>,
    tensors: &Tensors,
    path: &Path,
) -> Result<(), ModelError> {
    let missing: Vec<_> = expected
        .keys()
        .filter(|k| !tensors.contains_key(*k))
        .cloned()
        .collect();
    let unexpected: Vec<_> = tensors
        .keys()
        .filter(|k| !expected.contains_key(*k))
        .cloned()
        .collect();
    if !missing.is_empty() || !unexpected.is_empty() {
        return Err(ModelError::Names {
            path: path.to_owned(),
            missing,
            unexpected,
        });
    }
    for (name, shape) in expected {
        let got: &[usize] = tensors[name].shape().as_slice();
        if got != shape.as_slice() {
            return Err(ModelError::Shape {
                path: path.to_owned(),
                name: name.clone(),
                got: got.to_vec(),
                expected: shape.clone(),
            });
        }
    }
    Ok(())
}

/// Writes a safetensors file: names in order, header padded to eight bytes.
///
/// # Errors
/// [`ModelError::Io`]; the old file, if any, is then untouched.
pub fn write(path: &Path, tensors: &Tensors, metadata: &Metadata) -> Result<(), ModelError> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, data) in tensors {
        let start = end;
        end += data.bytes().len();
        let shape: &[usize] = data.shape().as_slice();
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors
            .values()
            .try_for_each(|data| file.write_all(data.bytes()))
    })
}

/// Writes a whole file beside `path`, flushes it to the disk and renames it over `path`.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), ModelError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = File::create(&partial).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    });
    written.map_err(|source| {
        // The half-written file is of no use; that it may not go either changes nothing.
        let _ = fs::remove_file(&partial);
        ModelError::io(path)(source)
    })
}

/// Reads a safetensors file. Half-precision numbers are widened to 32 bits.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Corrupt`] or [`ModelError::Unsupported`].
pub fn read(path: &Path) -> Result<(Tensors, Metadata), ModelError> {
    read_as(path, |name| Some(name.to_owned()))
}

/// As [`read`], with every tensor under the name that `rename` gives it, and without those it gives
/// none, whatever they hold.
pub(crate) fn read_as(
    path: &Path,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<(Tensors, Metadata), ModelError> {
    let bytes = fs::read(path).map_err(ModelError::io(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(corrupt(path))?;
    let metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let file = SafeTensors::deserialize(&bytes).map_err(corrupt(path))?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let Some(renamed) = rename(name) else {
            continue;
        };
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => return Err(not_floats(path, name, other)),
        };
        let bytes = burn::tensor::Bytes::from_bytes_vec(view.data().to_vec());
        let data = TensorData::from_bytes(bytes, view.shape().to_vec(), dtype);
        tensors.insert(renamed, data.convert::<f32>());
    }
    Ok((tensors, metadata))
}

/// Named tensors where they lie in a mapped file, with their shapes.
pub(crate) type Mapped = BTreeMap<String, (RawTensor, Vec<usize>)>;

/// As [`read_as`], without reading: only 64-bit numbers are copied, as 32-bit ones.
pub(crate) fn map_as(
    path: &Path,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<Mapped, ModelError> {
    let bytes = maquette_nn::map(path).map_err(ModelError::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(corrupt(path))?;
    let mut tensors = Mapped::new();
    for (name, view) in file.iter() {
        let Some(renamed) = rename(name) else {
            continue;
        };
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        let data = bytes.slice(start..start + view.data().len());
        let mut data = data.expect("a view of these bytes");
        let format = match view.dtype() {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::Bf16,
            Dtype::F64 => {
                let numbers = data.as_chunks::<8>().0.iter();
                let narrow = |number: &[u8; 8]| (f64::from_le_bytes(*number) as f32).to_le_bytes();
                data = numbers.flat_map(narrow).collect::<Vec<u8>>().into();
                Format::F32
            }
            other => return Err(not_floats(path, name, other)),
        };
        let shape = view.shape().to_vec();
        let columns = shape.last().copied().unwrap_or(1);
        let tensor = RawTensor {
            format,
            rows: shape[..shape.len().saturating_sub(1)].iter().product(),
            columns,
            bytes: data,
        };
        tensors.insert(renamed, (tensor, shape));
    }
    Ok(tensors)
}

fn corrupt(path: &Path) -> impl Fn(safetensors::SafeTensorError) -> ModelError {
    move |reason| ModelError::Corrupt {
        path: path.to_owned(),
        format: "safetensors",
        reason: reason.to_string(),
    }
}

fn not_floats(path: &Path, name: &str, dtype: Dtype) -> ModelError {
    ModelError::Unsupported {
        path: path.to_owned(),
        what: format!("tensor `{name}` of type {dtype:?}"),
        supported: "F64, F32, F16, BF16",
    }
}

struct Collect {
    path: Vec<String>,
    tensors: Tensors,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data().convert::<f32>();
        self.tensors.insert(self.path.join("."), data);
    }
}

struct Shapes {
    path: Vec<String>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.shapes
            .insert(self.path.join("."), param.lazy_shape().as_slice().to_vec());
    }
}

struct Assign {
    path: Vec<String>,
    tensors: Tensors,
}

impl ModuleMapper for Assign {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.tensors.remove(&self.path.join(".")) {
            Some(data) => {
                let id = param.id;
                let tensor = Tensor::from_data(data, &param.lazy_device());
                param.transform_for_load(tensor, id)
            }
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DenoiserMlp, DenoiserMlpConfig};
    use burn::tensor::Device;
    use maquette_rng::{Stream, rng};

    fn model(width: usize, seed: u64) -> DenoiserMlp {
        let config = DenoiserMlpConfig {
            d_model: width,
            ..DenoiserMlpConfig::default()
        };
        config.init(&Device::flex().autodiff(), &mut rng(seed, Stream::Init, 0))
    }

    #[test]
    fn round_trip_keeps_weights_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let metadata = Metadata::from([("format".into(), "pt".into()), ("x".into(), "1".into())]);
        save(&model(8, 1), &a, &metadata).unwrap();
        let loaded = load(model(8, 2), &a).unwrap();
        assert_eq!(tensors(&loaded), tensors(&model(8, 1)));
        assert_eq!(read(&a).unwrap().1, metadata);
        save(&loaded, &b, &metadata).unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        // The weights are still the optimiser's.
        struct Trainable;
        impl ModuleVisitor for Trainable {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                assert!(param.is_require_grad());
            }
        }
        loaded.visit(&mut Trainable);
    }

    #[test]
    fn another_model_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wide");
        save(&model(16, 1), &path, &Metadata::new()).unwrap();
        let message = load(model(8, 1), &path).unwrap_err().to_string();
        assert!(
            message.contains("blocks.0.inner.bias") && message.contains("[16]"),
            "{message}"
        );
        let (mut tensors, _) = read(&path).unwrap();
        let tensor = tensors.remove("output.bias").unwrap();
        tensors.insert("stray".into(), tensor);
        let message = assign(model(16, 1), tensors, &path)
            .unwrap_err()
            .to_string();
        assert!(message.contains(r#"missing ["output.bias"]"#), "{message}");
        assert!(message.contains(r#"unexpected ["stray"]"#), "{message}");
    }

    #[test]
    fn damaged_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged");
        save(&model(8, 1), &path, &Metadata::new()).unwrap();
        let whole = fs::read(&path).unwrap();
        for end in [0, 4, 8, 100, whole.len() - 1] {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(
                matches!(read(&path), Err(ModelError::Corrupt { .. })),
                "cut at {end}"
            );
        }
        let mut lying = whole.clone();
        lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, &lying).unwrap();
        assert!(matches!(read(&path), Err(ModelError::Corrupt { .. })));
        let nowhere = dir.path().join("missing");
        assert!(matches!(read(&nowhere), Err(ModelError::Io { .. })));
    }

    proptest::proptest! {
        /// Whatever bytes a file holds, reading it ends in weights or an error.
        #[test]
        fn no_file_panics(at in 0usize..600, byte: u8, cut in 0usize..600) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("any");
            let config = DenoiserMlpConfig { d_model: 2, n_layers: 0, ..DenoiserMlpConfig::default() };
            let small = || config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
            save(&small(), &path, &Metadata::new()).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut % 3);
            fs::write(&path, &bytes).unwrap();
            let _ = load(small(), &path);
        }
    }
}
