//! Operators written by hand for the CPU, where composing Burn's own costs too much time.
//!
//! Each is a plain function on tensors. On Burn's `flex` backend with 32-bit floats, with or
//! without autodiff, it runs a fused kernel with a handwritten backward pass; everywhere else the
//! same function composes Burn's operators. Callers need not know which.
//!
//! Results are deterministic: what is summed in which order depends on the shapes alone, never on
//! the number of threads.

// The kernels read and write through pointers the compiler cannot bound. Each block carries its
// proof, and nothing unsafe leaves this crate.
#![allow(unsafe_code)]

mod activation;
mod attention;
mod batch_norm;
mod bernoulli;
mod conv;
mod cross_entropy;
mod dispatch;
mod dropout;
mod elementwise;
mod embedding;
mod gated;
mod gaussian;
mod gemm;
mod group_norm;
mod linear;
mod lstm;
mod map;
mod matrix;
pub mod optimizer;
pub mod paged;
mod pieces;
mod planes;
mod pool;
mod precision;
pub mod quant;
pub mod roofline;
mod rotary;
mod row_norm;
mod shared;
mod simd;
pub mod team;
mod transpose;
mod vector;

pub use activation::{Activation, activate, gelu, gelu_tanh, leaky_relu, relu, silu};
pub use attention::{AttentionOptions, attention, self_attention};
pub use batch_norm::{BatchNormOutput, batch_norm};
pub use bernoulli::binary_cross_entropy;
pub use conv::{ConvOptions, conv_transpose2d, conv2d};
pub use cross_entropy::{CrossEntropyOptions, cross_entropy, cross_entropy_with};
pub use dispatch::composed;
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use gated::gated;
pub use gaussian::{gaussian_kl, gaussian_sample};
pub use group_norm::{GroupNormOptions, group_norm};
pub use linear::linear;
pub use lstm::lstm;
pub use map::{Gathering, gather, map};
pub use pool::{Windows, avg_pool2d, max_pool2d, upsample_nearest2d};
pub use precision::{Autocast, Precision, autocast};
pub use rotary::rotary;
pub use row_norm::{layer_norm, rms_norm};
