//! Maquette: generative AI you can train, measure and ship on your own machine.
//!
//! This crate is the whole library under one name, and the labs of the handbook. The binary of
//! the same name is a thin shell around it.

pub use burn;
pub use maquette_data as data;
pub use maquette_eval as eval;
pub use maquette_generate as generate;
pub use maquette_kernels as kernels;
pub use maquette_models as models;
pub use maquette_nn as nn;
pub use maquette_rng as rng;
pub use maquette_serve as serve;
pub use maquette_train as train;

pub mod labs;
