//! Maquette: models.
