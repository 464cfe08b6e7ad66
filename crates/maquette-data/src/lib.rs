//! Data for Maquette: image sets, text, point clouds, tokenizers, and the order in which a run
//! visits them.
//!
//! Everything here lives on the host and returns plain vectors; the caller turns them into
//! tensors. Every order and every draw is a pure function of `(seed, step)`, so a run that is
//! killed and resumed sees exactly the batches it would have seen.
//!
//! ```
//! use maquette_data::{Normalization, Order, Split, glyphs::{GlyphConfig, glyphs}};
//!
//! let set = glyphs(Split::Train, 0, &GlyphConfig { per_class: 4, ..Default::default() })?;
//! let order = Order::new(set.len(), 16, 0)?;
//! let batch = set.batch(&order.indices(0), &Normalization::Symmetric, None);
//! assert_eq!(batch.len(), 16 * 28 * 28);
//! # Ok::<(), maquette_data::DataError>(())
//! ```

mod augment;
mod error;
mod features;
pub mod functions;
pub mod glyphs;
pub mod hub;
pub mod images;
pub mod labelled;
pub mod masking;
mod normalize;
mod order;
pub mod pairs;
pub mod points;
mod prefetch;
pub mod recall;
pub mod segments;
pub mod spans;
pub mod stories;
pub mod stream;
#[cfg(test)]
mod testing;

pub mod text;
pub mod tokenizer;

pub use augment::Augment;
pub use error::{DataError, Result};
pub use features::Features;
pub use images::{ImageSet, Split};
pub use normalize::Normalization;
pub use order::Order;
pub use prefetch::{Prefetch, prefetch};
pub use text::{TokenSet, Windows};
pub use tokenizer::Tokenizer;
