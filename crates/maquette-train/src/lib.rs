//! Maquette: train.
