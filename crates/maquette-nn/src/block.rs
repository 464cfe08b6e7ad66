//! The transformer block that decoders, encoders and pairs of both are stacks of.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use crate::attention::{Attention, AttentionConfig, AttentionContext, CrossAttention, CrossMemory};
use crate::dropout::Dropout;
use crate::mlp::{Mlp, MlpConfig};
use crate::moe::{Moe, MoeConfig, Routing};
use crate::norm::{Norm, NormConfig};

/// What a token passes after attention.
#[derive(Debug, Clone, Copy)]
pub enum FeedForward {
    /// One MLP.
    Dense(MlpConfig),
    /// A few of many.
    Experts(MoeConfig),
}

/// Configuration of a [`Block`].
#[derive(Debug, Clone, Copy)]
pub struct BlockConfig {
    /// Attention to the own text.
    pub attention: AttentionConfig,
    /// Whether a second attention looks at another text.
    pub crosses: bool,
    /// What comes after attention.
    pub feed_forward: FeedForward,
    /// The norm at each part.
    pub norm: NormConfig,
    /// Whether norms stand before the parts (Xiong et al. 2020, arXiv:2002.04745) instead of after
    /// the sums.
    pub pre_norm: bool,
    /// Dropout of what a part writes.
    pub dropout: f64,
}

impl BlockConfig {
    /// A block; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Block {
        let norm = || self.norm.init(device);
        let (mlp, moe) = match self.feed_forward {
            FeedForward::Dense(mlp) => (Some(mlp.init(device)), None),
            FeedForward::Experts(moe) => (None, Some(moe.init(device))),
        };
        Block {
            attention: self.attention.init(device),
            attention_norm: norm(),
            cross: self.crosses.then(|| self.attention.init_cross(device)),
            cross_norm: self.crosses.then(norm),
            mlp,
            moe,
            mlp_norm: norm(),
            dropout: Dropout::new(self.dropout),
            pre_norm: self.pre_norm,
        }
    }
}

/// One transformer block (Vaswani et al. 2017, section 3.1): attention to the own text, in a decoder
/// with an encoder to the other, then the MLP or experts; each normalised and added to its input.
#[derive(Module, Debug)]
pub struct Block {
    /// To the own text.
    pub attention: Attention,
    /// Of the part before.
    pub attention_norm: Norm,
    /// To the other text.
    pub cross: Option<CrossAttention>,
    /// Of the part before.
    pub cross_norm: Option<Norm>,
    /// Where there are no experts.
    pub mlp: Option<Mlp>,
    /// Where there are.
    pub moe: Option<Moe>,
    /// Of either.
    pub mlp_norm: Norm,
    dropout: Dropout,
    pre_norm: bool,
}

impl Block {
    /// The block's output, and how its experts were used if it has any. `memory` is the other text.
    ///
    /// # Shapes
    /// - input, output: `[batch, seq, d_model]`
    pub fn forward(
        &self,
        x: Tensor<3>,
        mut context: AttentionContext,
        memory: Option<&CrossMemory>,
    ) -> (Tensor<3>, Option<Routing>) {
        let mut maps = context.maps.take();
        let mut x = self.around(&self.attention_norm, x, |x| {
            let context = AttentionContext {
                maps: maps.as_deref_mut(),
                ..context
            };
            self.attention.forward(x, context)
        });
        if let (Some(cross), Some(norm), Some(memory)) = (&self.cross, &self.cross_norm, memory) {
            x = self.around(norm, x, |x| cross.forward(x, memory, maps));
        }
        let mut routing = None;
        let x = self.around(&self.mlp_norm, x, |x| match (&self.mlp, &self.moe) {
            (Some(mlp), _) => mlp.forward(x),
            (None, Some(moe)) => {
                let (made, how) = moe.forward(x);
                routing = Some(how);
                made
            }
            (None, None) => unreachable!("`init` builds one of the two"),
        });
        (x, routing)
    }

    /// A part added to its input, with the norm before the part or after the sum.
    fn around(
        &self,
        norm: &Norm,
        x: Tensor<3>,
        part: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        if self.pre_norm {
            let made = part(norm.forward(x.clone()));
            self.dropout.forward_onto(made, x)
        } else {
            let made = part(x.clone());
            norm.forward(self.dropout.forward_onto(made, x))
        }
    }
}
