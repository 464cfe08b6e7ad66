//! Maquette: nn.
