//! Layers that three or more model families share.
//!
//! Burn's own layers are used where they are right. What stands here is what they lack: attention
//! with rotary positions, grouped queries and a cache; linear layers, dropout, norms and a
//! convolution that call our kernels; initialisation from a passed generator with parameter
//! identities that survive a restart; moving averages of parameters.

pub mod attention;
pub mod block;
pub mod conv;
pub mod dropout;
pub mod ema;
pub mod init;
pub mod linear;
pub mod lstm;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod positions;
pub mod rope;
pub mod spectral;
pub mod time;

pub use maquette_kernels::{
    ConvOptions, Gathering, Precision, Windows, activate, autocast, avg_pool2d,
    binary_cross_entropy, conv2d, cross_entropy, embedding, gated, gather, gaussian_kl,
    gaussian_sample, gelu, gelu_tanh, leaky_relu, linear as project, map, max_pool2d, optimizer,
    quant, relu, silu,
};

pub use attention::{Attention, AttentionConfig, AttentionMaps, CrossAttention, KvCache};
pub use block::{Block, BlockConfig, FeedForward};
pub use conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
pub use dropout::Dropout;
pub use ema::Ema;
pub use init::InitScheme;
pub use linear::{Linear, LinearConfig};
pub use lstm::{Lstm, LstmConfig, LstmState};
pub use maquette_kernels::Activation;
pub use mlp::{Mlp, MlpConfig, MlpKind};
pub use moe::{Load, Moe, MoeConfig, Routing};
pub use norm::{BatchNorm, Norm, NormConfig, NormKind};
pub use rope::{Rope, RopeScaling};
pub use spectral::PowerIteration;
pub use time::TimeEmbedding;
