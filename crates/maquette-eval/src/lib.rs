//! Maquette: eval.
