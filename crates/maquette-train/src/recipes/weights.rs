//! A model on disk as every family but the GPT keeps it: `config.json` and `model.safetensors`.

use std::path::Path;

use burn::module::Module;
use maquette_models::store;
use serde_json::Value;

use crate::TrainError;
use crate::files::write_atomic;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Writes `config` and the weights of `model` into `dir`.
pub(super) fn save<M: Module>(model: &M, config: &Value, dir: &Path) -> Result<(), TrainError> {
    write_atomic(&dir.join(CONFIG), format!("{config:#}\n").as_bytes())?;
    store::save(model, &dir.join(WEIGHTS), &store::Metadata::default()).map_err(TrainError::other)
}

/// `empty` with the weights of the run `dir`.
pub(super) fn load<M: Module>(empty: M, dir: &Path) -> Result<M, TrainError> {
    store::load(empty, &dir.join(WEIGHTS)).map_err(TrainError::other)
}
