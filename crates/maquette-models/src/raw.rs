//! A decoder's weights as they lie on disk: mapped into memory, or moved into large pages, and not widened,
//! for an engine that multiplies with them as they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use maquette_nn::{
    Gathering, gather,
    quant::{Bytes, Format},
};

use crate::{
    error::ModelError,
    gguf,
    gpt::{Gpt, GptConfig},
    hf, store,
};

/// A matrix, or a vector as a matrix of one row.
#[derive(Debug, Clone)]
pub struct RawTensor {
    /// How its numbers are stored.
    pub format: Format,
    /// Outputs of a projection, tokens of an embedding.
    pub rows: usize,
    /// Numbers of a row.
    pub columns: usize,
    /// The rows, one after the other.
    pub bytes: Bytes,
}

impl RawTensor {
    /// Its numbers, widened to 32 bits.
    pub fn numbers(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.rows * self.columns];
        self.format.decode(&self.bytes, &mut numbers);
        numbers
    }

    /// Rows and columns exchanged; of formats without blocks only.
    fn turned(self) -> Self {
        let (block, size) = self.format.block();
        assert_eq!(block, 1, "blocks lie along rows");
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for column in 0..self.columns {
            for row in 0..self.rows {
                let at = (row * self.columns + column) * size;
                bytes.extend_from_slice(&self.bytes[at..at + size]);
            }
        }
        Self {
            rows: self.columns,
            columns: self.rows,
            bytes: bytes.into(),
            ..self
        }
    }
}

/// The weights of a decoder by the names of our parameters (`blocks.0.attention.qkv.weight`).
///
/// A parameter may lie in several parts, whose rows follow each other: queries, keys and values of
/// the Llama family. Matrices are `[d_out, d_in]`, whatever the file has.
#[derive(Debug)]
pub struct RawWeights {
    /// The model's configuration.
    pub config: GptConfig,
    /// Whether rotated features stand side by side, instead of half a head apart.
    pub neighbours: bool,
    path: PathBuf,
    parts: BTreeMap<String, Vec<RawTensor>>,
}

impl RawWeights {
    /// Maps the folder, or the `.gguf` file, at `path`.
    ///
    /// # Errors
    /// Those of [`RawWeights::gguf`] and [`RawWeights::folder`].
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        match path.is_dir() {
            true => Self::folder(path),
            false => Self::gguf(&gguf::File::open(path)?),
        }
    }

    /// The weights in a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], [`ModelError::Corrupt`], [`ModelError::Config`],
    /// [`ModelError::Names`] or [`ModelError::Shape`].
    pub fn gguf(file: &gguf::File) -> Result<Self, ModelError> {
        let (config, family) = gguf::config(file)?;
        // The experts of a block lie in one tensor; how many, the configuration was checked for.
        let experts = config.experts.map_or(1, |experts| experts.count);
        let n_tensors = file.tensors().count() * experts;
        let mut parts = BTreeMap::new();
        let mut unexpected: BTreeSet<&str> = file.tensors().map(|(name, ..)| name).collect();
        unexpected.remove(gguf::ROPE_FACTORS);
        for part in hf::parts(&config, family, n_tensors, file.path())? {
            let place = gguf::place(&part.theirs, family);
            let found = place.and_then(|place| {
                unexpected.remove(place.name.as_str());
                file.raw(&place)
            });
            let tensor = found.ok_or_else(|| missing(file.path(), &part.theirs))?;
            let shape = match part.shape[..] {
                // A GGUF file has every projection `[d_out, d_in]`.
                [d_in, d_out] if part.turned => vec![d_out, d_in],
                _ => part.shape,
            };
            let tensor = shaped(tensor, &shape, &part.theirs, file.path())?;
            parts.entry(part.ours).or_insert_with(Vec::new).push(tensor);
        }
        if !unexpected.is_empty() {
            return Err(ModelError::Names {
                path: file.path().to_owned(),
                missing: vec![],
                unexpected: unexpected.into_iter().map(str::to_owned).collect(),
            });
        }
        Ok(Self {
            neighbours: gguf::pairs_are_neighbours(file)?,
            config,
            path: file.path().to_owned(),
            parts,
        })
    }

    /// The weights in a Hugging Face folder; a run folder is one.
    ///
    /// # Errors
    /// As [`hf::load`].
    pub fn folder(dir: &Path) -> Result<Self, ModelError> {
        let (config, family) = hf::read_folder_config(dir)?;
        let (path, mut theirs) = hf::map_weights(dir)?;
        if config.tied_head {
            theirs.remove("lm_head.weight");
        }
        let mut parts = BTreeMap::new();
        for part in hf::parts(&config, family, theirs.len(), &path)? {
            let tensor = theirs.remove(&part.theirs);
            let (tensor, shape) = tensor.ok_or_else(|| missing(&path, &part.theirs))?;
            if shape != part.shape {
                return Err(misshapen(&path, &part.theirs, shape, &part.shape));
            }
            let tensor = if part.turned { tensor.turned() } else { tensor };
            parts.entry(part.ours).or_insert_with(Vec::new).push(tensor);
        }
        if !theirs.is_empty() {
            return Err(ModelError::Names {
                path,
                missing: vec![],
                unexpected: theirs.into_keys().collect(),
            });
        }
        Ok(Self {
            config,
            neighbours: false,
            path,
            parts,
        })
    }

    /// A copy of the weights of a model in memory.
    pub fn of(config: &GptConfig, model: &Gpt) -> Self {
        let mut parts = BTreeMap::new();
        for (name, data) in store::tensors(model) {
            let shape = data.shape().to_vec();
            let columns = shape[shape.len() - 1];
            let tensor = RawTensor {
                format: Format::F32,
                rows: shape[..shape.len() - 1].iter().product(),
                columns,
                bytes: Bytes::from(data.bytes().to_vec()),
            };
            let embedding = ["tokens.weight", "positions.weight"].contains(&name.as_str());
            let tensor = match shape.len() {
                2 if !embedding => tensor.turned(),
                _ => tensor,
            };
            parts.insert(name, vec![tensor]);
        }
        Self {
            config: config.clone(),
            neighbours: false,
            path: PathBuf::from("(a model in memory)"),
            parts,
        }
    }

    /// Moves all of them into memory of large pages, from which they are read faster than from a mapped file,
    /// while they are used; they stay where they are if the system has no room.
    pub fn gather(&mut self) -> Gathering {
        let tensors = self.parts.values_mut().flatten();
        gather(tensors.map(|tensor| &mut tensor.bytes).collect()).unwrap_or_default()
    }

    /// Bytes of all of them.
    pub fn size(&self) -> usize {
        let tensors = self.parts.values().flatten();
        tensors.map(|tensor| tensor.bytes.len()).sum()
    }

    /// The file they came from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The parts of one of our parameters; none if the model does not have it.
    pub fn take(&mut self, ours: &str) -> Vec<RawTensor> {
        self.parts.remove(ours).unwrap_or_default()
    }
}

/// Checks a tensor of a GGUF file, whose rank is of no matter, against the shape asked for.
fn shaped(
    tensor: (RawTensor, Vec<usize>),
    shape: &[usize],
    name: &str,
    path: &Path,
) -> Result<RawTensor, ModelError> {
    let (tensor, got) = tensor;
    match got == shape {
        true => Ok(tensor),
        false => Err(misshapen(path, name, got, shape)),
    }
}

fn missing(path: &Path, name: &str) -> ModelError {
    ModelError::Names {
        path: path.to_owned(),
        missing: vec![name.to_owned()],
        unexpected: vec![],
    }
}

fn misshapen(path: &Path, name: &str, got: Vec<usize>, expected: &[usize]) -> ModelError {
    ModelError::Shape {
        path: path.to_owned(),
        name: name.to_owned(),
        got,
        expected: expected.to_vec(),
    }
}
