//! Maquette: kernels.
