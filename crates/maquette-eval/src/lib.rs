//! How good samples and models are: metrics as pure functions on points, pixels, ids, strings and
//! log-probabilities.
//!
//! A metric never loads a model or reads a file; what it needs is passed in, randomness included.
//! Each says in its documentation what it is, in which unit, and where its definition comes from;
//! [`Signature`] writes down the settings a figure depends on, so that figures measured
//! differently are never compared.

pub mod attention;
pub mod bigrams;
pub mod bootstrap;
pub mod classification;
pub mod divergence;
pub mod diversity;
mod error;
mod estimate;
pub mod image;
pub mod likelihood;
pub mod modes;
pub mod neighbours;
pub mod pixels;
mod points;
pub mod rating;
pub mod regression;
pub mod rolling;
mod signature;
pub mod tasks;
pub mod text;
pub mod two_sample;

pub use error::EvalError;
pub use estimate::Estimate;
pub use points::Points;
pub use signature::Signature;
