//! Pages on this machine's own address, for people: so far the arena, where they say which of two
//! models' pictures are better without being told whose they are.

pub mod arena;
mod votes;

pub use arena::{Arena, Contestant};
pub use votes::{Rating, ServeError};
