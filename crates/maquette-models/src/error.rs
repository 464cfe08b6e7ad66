//! What can go wrong with a model's configuration or its files.

use std::path::{Path, PathBuf};

/// An error of this crate: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration contradicts itself.
    #[error("{key}: {reason}")]
    Config {
        /// The key at fault.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file is malformed or lacks a key.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A weights file is truncated, or not what it should be.
    #[error("{path}: damaged or not a {format} file ({reason}); copy or save it again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What it should be.
        format: &'static str,
        /// The parser's reason.
        reason: String,
    },
    /// The names in a weights file are not the model's.
    #[error(
        "{path}: the weights are not this model's: missing {missing:?}, unexpected {unexpected:?}; \
         check that the configuration is the one the weights were saved with"
    )]
    Names {
        /// The file.
        path: PathBuf,
        /// Tensors the model has and the file lacks.
        missing: Vec<String>,
        /// Tensors the file has and the model lacks.
        unexpected: Vec<String>,
    },
    /// A tensor has another shape than the model's parameter.
    #[error("{path}: tensor `{name}` has shape {got:?}, the configuration asks for {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        got: Vec<usize>,
        /// The parameter's shape.
        expected: Vec<usize>,
    },
    /// A model or a number format that is not read here.
    #[error("{path}: {what} is not supported; supported: {supported}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
        /// What would have been read.
        supported: &'static str,
    },
}

impl ModelError {
    pub(crate) fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config {
            key,
            reason: reason.into(),
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json {
            path: path.to_owned(),
            source,
        }
    }
}

/// Fails with the key's name unless `holds`.
pub(crate) fn require(
    holds: bool,
    key: &'static str,
    reason: impl FnOnce() -> String,
) -> Result<(), ModelError> {
    if holds {
        Ok(())
    } else {
        Err(ModelError::config(key, reason()))
    }
}
