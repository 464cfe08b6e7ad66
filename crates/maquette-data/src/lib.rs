//! Maquette: data.
