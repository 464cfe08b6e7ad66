//! Multi-head attention with grouped queries, rotary positions and a key-value cache.

use burn::{
    module::Module,
    nn::{Dropout, DropoutConfig, Linear, LinearConfig},
    tensor::{Device, Tensor, TensorData, activation::softmax},
};

use crate::rope::Rope;

/// Configuration of [`Attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of query heads; divides `d_model`.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads` (Ainslie et al. 2023).
    pub n_kv_heads: usize,
    /// Whether the projections add an offset.
    pub bias: bool,
    /// Dropout of the attention weights.
    pub dropout: f64,
}

impl AttentionConfig {
    /// An attention layer; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Attention {
        let d_head = self.d_model / self.n_heads;
        let d_qkv = (self.n_heads + 2 * self.n_kv_heads) * d_head;
        let linear = |d_in, d_out| {
            LinearConfig::new(d_in, d_out)
                .with_bias(self.bias)
                .init(device)
        };
        Attention {
            qkv: linear(self.d_model, d_qkv),
            proj: linear(self.d_model, self.d_model),
            dropout: DropoutConfig::new(self.dropout).init(),
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head,
        }
    }
}

/// Self-attention (Vaswani et al. 2017). Queries, keys and values come from one fused projection.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, (n_heads + 2 n_kv_heads) d_head]`: all queries, then all keys, then all values.
    pub qkv: Linear,
    /// `[d_model, d_model]`.
    pub proj: Linear,
    dropout: Dropout,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
}

/// What one call of [`Attention::forward`] attends with.
pub struct AttentionContext<'a> {
    /// Added to the scores, `[seq, past + seq]`; see [`causal_mask`]. `None` attends everywhere.
    pub mask: Option<&'a Tensor<2>>,
    /// Rotary positions, if the model has them.
    pub rope: Option<&'a Rope>,
    /// Number of positions before the first of this call.
    pub past: usize,
    /// Keys and values of the positions before, and the layer's index in it.
    pub cache: Option<(&'a mut KvCache, usize)>,
}

impl Attention {
    /// # Shapes
    /// - input, output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<3>, context: AttentionContext) -> Tensor<3> {
        let [batch, seq, d_model] = x.dims();
        // 1. Fused projection, split into heads: [batch, heads, seq, d_head].
        let qkv = self.qkv.forward(x);
        let heads = |first: usize, count: usize| {
            qkv.clone()
                .narrow(2, first * self.d_head, count * self.d_head)
                .reshape([batch, seq, count, self.d_head])
                .swap_dims(1, 2)
        };
        let mut q = heads(0, self.n_heads);
        let mut k = heads(self.n_heads, self.n_kv_heads);
        let mut v = heads(self.n_heads + self.n_kv_heads, self.n_kv_heads);
        // 2. Rotary positions, before keys are stored.
        if let Some(rope) = context.rope {
            q = rope.apply(q, context.past);
            k = rope.apply(k, context.past);
        }
        // 3. Everything seen so far.
        if let Some((cache, layer)) = context.cache {
            (k, v) = cache.extend(layer, k, v);
        }
        let mixed = self.attend(q, k, v, context.mask);
        self.proj
            .forward(mixed.swap_dims(1, 2).reshape([batch, seq, d_model]))
    }

    /// `softmax(q k^T / sqrt(d_head) + mask) v`.
    ///
    /// The queries of one group share their key head: they are laid end to end along the sequence,
    /// so that keys and values are never repeated in memory.
    fn attend(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        mask: Option<&Tensor<2>>,
    ) -> Tensor<4> {
        let [batch, _, seq, _] = q.dims();
        let [_, _, seen, _] = k.dims();
        let rows = self.n_heads / self.n_kv_heads * seq;
        let grouped = q.reshape([batch, self.n_kv_heads, rows, self.d_head]);
        let scale = (self.d_head as f64).sqrt().recip();
        let scores =
            (grouped * scale)
                .matmul(k.swap_dims(2, 3))
                .reshape([batch, self.n_heads, seq, seen]);
        let scores = match mask {
            Some(mask) => scores + mask.clone().unsqueeze::<4>(),
            None => scores,
        };
        let weights = self.dropout.forward(softmax(scores, 3));
        weights
            .reshape([batch, self.n_kv_heads, rows, seen])
            .matmul(v)
            .reshape([batch, self.n_heads, seq, self.d_head])
    }
}

/// What hides the future from `seq` queries that follow `past` positions: 0 where a query may look,
/// minus infinity where not.
///
/// # Shapes
/// - output: `[seq, past + seq]`
pub fn causal_mask(seq: usize, past: usize, device: &Device) -> Tensor<2> {
    let seen = past + seq;
    let hidden = |query: usize, key: usize| {
        if key > past + query {
            f32::NEG_INFINITY
        } else {
            0.0
        }
    };
    let values: Vec<f32> = (0..seq)
        .flat_map(|query| (0..seen).map(move |key| hidden(query, key)))
        .collect();
    Tensor::from_data(TensorData::new(values, [seq, seen]), device)
}

/// Keys and values of every layer for the positions already seen.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl KvCache {
    /// An empty cache, for a model of any depth.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of positions held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(k, _)| k.dims()[2])
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.layers.clear();
    }

    /// Appends the new positions of one layer and returns all of that layer's keys and values.
    fn extend(&mut self, layer: usize, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let entry = match self.layers.get(layer) {
            Some((old_k, old_v)) => (
                Tensor::cat(vec![old_k.clone(), k], 2),
                Tensor::cat(vec![old_v.clone(), v], 2),
            ),
            None => (k, v),
        };
        match self.layers.get_mut(layer) {
            Some(slot) => *slot = entry.clone(),
            None => self.layers.push(entry.clone()),
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_hides_exactly_the_future() {
        let mask = causal_mask(2, 1, &Device::flex())
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        assert_eq!(mask, [0.0, 0.0, f32::NEG_INFINITY, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn one_key_head_equals_repeated_key_heads() {
        let device = Device::flex();
        let config = |n_kv_heads| AttentionConfig {
            d_model: 8,
            n_heads: 4,
            n_kv_heads,
            bias: false,
            dropout: 0.0,
        };
        let values = |n, seed| {
            maquette_rng::normal(
                &mut maquette_rng::rng(seed, maquette_rng::Stream::Data, 0),
                n,
            )
        };
        let tensor = |values, shape: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values, shape), &device)
        };
        let q = tensor(values(2 * 4 * 3 * 2, 1), [2, 4, 3, 2]);
        let k = tensor(values(2 * 2 * 3 * 2, 2), [2, 2, 3, 2]);
        let v = tensor(values(2 * 2 * 3 * 2, 3), [2, 2, 3, 2]);
        let repeat = |x: Tensor<4>| {
            x.unsqueeze_dim::<5>(2)
                .expand([2, 2, 2, 3, 2])
                .reshape([2, 4, 3, 2])
        };
        let mask = causal_mask(3, 0, &device);
        let grouped = config(2)
            .init(&device)
            .attend(q.clone(), k.clone(), v.clone(), Some(&mask));
        let full = config(4)
            .init(&device)
            .attend(q, repeat(k), repeat(v), Some(&mask));
        let difference = (grouped - full).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-6, "{difference}");
    }
}
