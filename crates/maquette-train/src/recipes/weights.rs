//! A model on disk as every family but the GPT keeps it: `config.json` and `model.safetensors`.

use std::path::Path;

use burn::module::Module;
use maquette_models::store;
use serde::Deserialize;
use serde_json::Value;

use crate::TrainError;
use crate::files::{read_text, write_atomic};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const CRITIC: &str = "critic.safetensors";

/// Writes `config` and the weights of `model` into `dir`.
pub(super) fn save<M: Module>(model: &M, config: &Value, dir: &Path) -> Result<(), TrainError> {
    write_atomic(&dir.join(CONFIG), format!("{config:#}\n").as_bytes())?;
    store::save(model, &dir.join(WEIGHTS), &store::Metadata::default()).map_err(TrainError::other)
}

/// Writes the weights of a critic into `dir`, beside those of its generator.
pub(super) fn save_critic<M: Module>(model: &M, dir: &Path) -> Result<(), TrainError> {
    store::save(model, &dir.join(CRITIC), &store::Metadata::default()).map_err(TrainError::other)
}

/// `empty` with the weights of the run `dir`.
pub(super) fn load<M: Module>(empty: M, dir: &Path) -> Result<M, TrainError> {
    store::load(empty, &dir.join(WEIGHTS)).map_err(TrainError::other)
}

/// The names of the classes that the model of the run `dir` knows.
pub(super) fn class_names(dir: &Path) -> Result<Vec<String>, TrainError> {
    #[derive(Deserialize)]
    struct Config {
        class_names: Vec<String>,
    }
    let path = dir.join(CONFIG);
    let config: Config =
        serde_json::from_str(&read_text(&path)?).map_err(|error| TrainError::Malformed {
            path,
            what: "configuration",
            reason: error.to_string(),
        })?;
    Ok(config.class_names)
}
