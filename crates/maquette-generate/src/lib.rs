//! Getting samples out of a trained model.
//!
//! Every algorithm is a free function over closures: it knows token ids, tensors and generators,
//! and nothing of files, recipes or HTTP. Text comes out of [`text::generate`], images out of
//! the samplers of [`diffusion`], and [`mod@image`] turns tensors into PNG files that say how they
//! were made.

pub mod animation;
pub mod constraint;
pub mod diffusion;
pub mod engine;
mod error;
pub mod fill;
pub mod gguf;
pub mod image;
pub mod latent;
pub mod likelihood;
pub mod sampling;
pub mod search;
pub mod template;
pub mod text;

pub use error::GenerateError;
