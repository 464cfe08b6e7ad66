//! Weights that stay in their file's number format, and what multiplies them.
//!
//! A [`QuantMatrix`] is a matrix of a GGUF file where it lies, mapped into memory or owned. Products
//! read its blocks once and never widen the whole. [`forward`] has what a decoder does between
//! products, on slices.

#[cfg(target_arch = "x86_64")]
mod along;
#[cfg(target_arch = "aarch64")]
mod arm;
mod bytes;
mod dots;
mod format;
pub mod forward;
mod matrix;
mod product;
mod records;
mod weights;
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use bytes::Bytes;
pub use format::Format;
pub use matrix::{MatrixError, QuantMatrix, multiply_many};
