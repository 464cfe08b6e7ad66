//! Maquette: generate.
