//! Multi-head attention with grouped queries, rotary positions and a key-value cache.

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData, activation::softmax},
};
use maquette_kernels::{AttentionOptions, self_attention};

use crate::dropout::Dropout;
use crate::linear::{Linear, LinearConfig};
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
            dropout: Dropout::new(self.dropout),
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
#[derive(Debug, Default)]
pub struct AttentionContext<'a> {
    /// Whether a position sees only itself and those before.
    pub causal: bool,
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
        // 1. Fused projection; rotary positions before keys are stored.
        let mut qkv = self.qkv.forward(x);
        if let Some(rope) = context.rope {
            qkv = self.rotate(qkv, rope, context.past);
        }
        // 2. Everything seen so far.
        let keys = self.n_heads;
        let values = keys + self.n_kv_heads;
        let mut seen = None;
        if let Some((cache, layer)) = context.cache {
            let k = self.heads(&qkv, keys, self.n_kv_heads);
            let v = self.heads(&qkv, values, self.n_kv_heads);
            seen = Some(cache.extend(layer, k, v));
        }
        // 3. Mix. The fused kernel knows no past.
        let mixed = if context.past > 0 {
            let (k, v) = seen.unwrap_or_else(|| {
                let part = |first| self.heads(&qkv, first, self.n_kv_heads);
                (part(keys), part(values))
            });
            let [batch, seq, _] = qkv.dims();
            // A single query sees everything, so decoding needs no mask.
            let mask =
                (context.causal && seq > 1).then(|| causal_mask(seq, context.past, &qkv.device()));
            self.attend(self.heads(&qkv, 0, self.n_heads), k, v, mask)
                .swap_dims(1, 2)
                .reshape([batch, seq, self.n_heads * self.d_head])
        } else {
            let options = AttentionOptions {
                n_heads: self.n_heads,
                n_kv_heads: self.n_kv_heads,
                causal: context.causal,
                window: None,
                dropout: self.dropout.draw(&qkv.device()),
            };
            self_attention(qkv, options)
        };
        self.proj.forward(mixed)
    }

    /// `count` heads of a fused projection from the `first` on, `[batch, count, seq, d_head]`.
    fn heads(&self, qkv: &Tensor<3>, first: usize, count: usize) -> Tensor<4> {
        let [batch, seq, _] = qkv.dims();
        qkv.clone()
            .narrow(2, first * self.d_head, count * self.d_head)
            .reshape([batch, seq, count, self.d_head])
            .swap_dims(1, 2)
    }

    /// Rotates the queries and keys of a fused projection.
    fn rotate(&self, qkv: Tensor<3>, rope: &Rope, past: usize) -> Tensor<3> {
        let [batch, seq, width] = qkv.dims();
        let turning = self.n_heads + self.n_kv_heads;
        let heads = qkv.reshape([batch, seq, turning + self.n_kv_heads, self.d_head]);
        let turned = rope.apply(heads.clone().narrow(2, 0, turning), past);
        let values = heads.narrow(2, turning, self.n_kv_heads);
        Tensor::cat(vec![turned, values], 2).reshape([batch, seq, width])
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
        mask: Option<Tensor<2>>,
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
            Some(mask) => scores + mask.unsqueeze::<4>(),
            None => scores,
        };
        softmax(scores, 3)
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
fn causal_mask(seq: usize, past: usize, device: &Device) -> Tensor<2> {
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
    fn fused_and_cached_attention_agree() {
        let device = Device::flex();
        let config = AttentionConfig {
            d_model: 16,
            n_heads: 4,
            n_kv_heads: 2,
            bias: true,
            dropout: 0.0,
        };
        let mut rng = maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
        let scheme = crate::InitScheme::He;
        let layer =
            crate::init::initialise(config.init(&device), &mut rng, |slot| scheme.fill(slot));
        let values = maquette_rng::normal(&mut rng, 2 * 5 * 16);
        let x = Tensor::<3>::from_data(TensorData::new(values, [2, 5, 16]), &device);
        let rope = Rope::new(5, 4, 100.0, &device);
        let context = |past| AttentionContext {
            causal: true,
            rope: Some(&rope),
            past,
            cache: None,
        };
        let whole = layer.forward(x.clone(), context(0));
        let mut cache = KvCache::new();
        let mut part = |start, length| {
            let cache = Some((&mut cache, 0));
            let context = AttentionContext {
                cache,
                ..context(start)
            };
            layer.forward(x.clone().narrow(1, start, length), context)
        };
        let parts = vec![part(0, 2), part(2, 3)];
        let difference = (whole - Tensor::cat(parts, 1)).abs().max();
        assert!(difference.into_scalar::<f32>() < 1e-5);
    }
}
