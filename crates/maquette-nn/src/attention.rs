//! Multi-head attention with grouped queries, rotary positions and a key-value cache.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData, activation::softmax},
};
use maquette_kernels::{AttentionOptions, attention, self_attention};

use crate::dropout::Dropout;
use crate::linear::{Linear, LinearConfig};
use crate::norm::{Norm, NormConfig, NormKind};
use crate::rope::Rope;

/// Configuration of [`Attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads` (Ainslie et al. 2023).
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Whether queries, keys and values add an offset.
    pub qkv_bias: bool,
    /// Whether the projection of what was mixed adds an offset.
    pub proj_bias: bool,
    /// RMS norms of every query and key, with this number under the root (Henry et al. 2020).
    pub qk_norm: Option<f64>,
    /// How many positions a causal one sees, itself included (Beltagy et al. 2020); all before it
    /// if absent.
    pub window: Option<usize>,
    /// What scores are multiplied by; `1 / sqrt(d_head)` if absent.
    pub scale: Option<f64>,
    /// Dropout of the attention weights.
    pub dropout: f64,
}

impl AttentionConfig {
    /// Heads that share `d_model`, each with its keys and values, and offsets everywhere.
    pub fn new(d_model: usize, n_heads: usize) -> Self {
        Self {
            d_model,
            n_heads,
            n_kv_heads: n_heads,
            d_head: d_model / n_heads,
            qkv_bias: true,
            proj_bias: true,
            qk_norm: None,
            window: None,
            scale: None,
            dropout: 0.0,
        }
    }

    /// An attention layer; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Attention {
        let linear =
            |d_in, d_out, bias| LinearConfig::new(d_in, d_out).with_bias(bias).init(device);
        let norm = || {
            self.qk_norm.map(|eps| {
                let config = NormConfig {
                    kind: NormKind::RmsNorm,
                    d_model: self.d_head,
                    eps,
                    bias: false,
                };
                config.init(device)
            })
        };
        let slots = self.n_heads + 2 * self.n_kv_heads;
        Attention {
            qkv: linear(self.d_model, slots * self.d_head, self.qkv_bias),
            q_norm: norm(),
            k_norm: norm(),
            proj: linear(self.n_heads * self.d_head, self.d_model, self.proj_bias),
            dropout: Dropout::new(self.dropout),
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            window: self.window,
            scale: self.scale,
        }
    }
}

/// Self-attention (Vaswani et al. 2017). Queries, keys and values come from one fused projection.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, (n_heads + 2 n_kv_heads) d_head]`: all queries, then all keys, then all values.
    pub qkv: Linear,
    /// Of every query, `[d_head]`.
    pub q_norm: Option<Norm>,
    /// Of every key, `[d_head]`.
    pub k_norm: Option<Norm>,
    /// `[n_heads d_head, d_model]`.
    pub proj: Linear,
    dropout: Dropout,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    #[module(skip)]
    window: Option<usize>,
    #[module(skip)]
    scale: Option<f64>,
}

/// What one call of [`Attention::forward`] attends with.
#[derive(Debug, Default)]
pub struct AttentionContext<'a> {
    /// Whether a position sees only itself and those before.
    pub causal: bool,
    /// Rotary positions, if the model has them.
    pub rope: Option<&'a Rope>,
    /// Added to the scores: positions, or minus infinity where nothing may be seen;
    /// `[batch or 1, n_heads or 1, seq or 1, past + seq]`.
    pub bias: Option<Tensor<4>>,
    /// Number of positions before the first of this call.
    pub past: usize,
    /// Keys and values of the positions before, and the layer's index in it.
    pub cache: Option<(&'a mut KvCache, usize)>,
    /// The lengths of the texts that stand one after another in the only row, if there are several:
    /// each is read on its own, from position 0. Goes without a cache and without maps.
    pub documents: Option<&'a [usize]>,
    /// Where the weights go, if somebody wants to look at them; scores are then laid out in memory.
    pub maps: Option<&'a mut AttentionMaps>,
}

/// Who looked at whom: the attention weights of each block that was asked.
#[derive(Debug, Clone, Default)]
pub struct AttentionMaps {
    /// To the own text, `[batch, n_heads, seq, past + seq]` of each block; rows sum to one.
    pub own: Vec<Tensor<4>>,
    /// To the other text, `[batch, n_heads, seq, seen]` of each block that has one.
    pub cross: Vec<Tensor<4>>,
}

impl Attention {
    /// # Shapes
    /// - input, output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<3>, context: AttentionContext) -> Tensor<3> {
        let qkv = self.qkv.forward(x);
        let mixed = match context.documents {
            None => self.mix(qkv, context),
            Some(lengths) => {
                let mut start = 0;
                let parts = lengths.iter().map(|&n| {
                    let bias = context.bias.clone();
                    let alone = AttentionContext {
                        causal: context.causal,
                        rope: context.rope,
                        bias: bias.map(|bias| bias.narrow(2, 0, n).narrow(3, 0, n)),
                        ..AttentionContext::default()
                    };
                    start += n;
                    self.mix(qkv.clone().narrow(1, start - n, n), alone)
                });
                Tensor::cat(parts.collect(), 1)
            }
        };
        self.proj.forward(mixed)
    }

    /// What the heads make of a fused projection, before they are put together.
    fn mix(&self, mut qkv: Tensor<3>, context: AttentionContext) -> Tensor<3> {
        // 1. Norms and rotary positions before keys are stored.
        if context.rope.is_some() || self.q_norm.is_some() {
            qkv = self.turn(qkv, context.rope, context.past);
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
        // 3. Mix.
        let seen = seen.filter(|_| context.past > 0);
        let composed = context.bias.is_some() || context.maps.is_some();
        if seen.is_none() && context.past == 0 && !composed {
            return self_attention(qkv.clone(), self.options(&qkv, context.causal));
        }
        let part = |first| self.heads(&qkv, first, self.n_kv_heads);
        let (k, v) = seen.unwrap_or_else(|| (part(keys), part(values)));
        let q = self.heads(&qkv, 0, self.n_heads);
        let mixed = match composed {
            false => attention(q, k, v, self.options(&qkv, context.causal)),
            true => self.attend(q, (k, v), context.bias, context.causal, context.maps),
        };
        merge_heads(mixed)
    }

    /// The layer with one head silenced: its rows of `proj` are zero.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn without_head(mut self, head: usize) -> Self {
        let n_heads = self.n_heads;
        assert!(head < n_heads, "there is no head {head} among {n_heads}");
        let rows = head * self.d_head..(head + 1) * self.d_head;
        self.proj.weight = self.proj.weight.map(|weight| {
            let [_, d_model] = weight.dims();
            let zeros = Tensor::zeros([rows.len(), d_model], &weight.device());
            weight.slice_assign([rows.clone(), 0..d_model], zeros)
        });
        self
    }

    /// `count` heads of a fused projection from the `first` on, `[batch, count, seq, d_head]`.
    fn heads(&self, qkv: &Tensor<3>, first: usize, count: usize) -> Tensor<4> {
        let part = qkv
            .clone()
            .narrow(2, first * self.d_head, count * self.d_head);
        split_heads(part, count)
    }

    /// What the kernels are told.
    fn options(&self, x: &Tensor<3>, causal: bool) -> AttentionOptions {
        AttentionOptions {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            causal,
            window: self.window.filter(|_| causal),
            scale: self.scale.map(|scale| scale as f32),
            dropout: self.dropout.draw(&x.device()),
        }
    }

    /// Mixes where scores get a `bias` or are looked at, of which the kernels know nothing.
    fn attend(
        &self,
        q: Tensor<4>,
        (mut k, mut v): (Tensor<4>, Tensor<4>),
        mut bias: Option<Tensor<4>>,
        causal: bool,
        maps: Option<&mut AttentionMaps>,
    ) -> Tensor<4> {
        let ([_, _, seq, _], [_, _, total, _]) = (q.dims(), k.dims());
        if causal {
            let past = total - seq;
            // What is before the first query's window, no query sees; a map shows it all the same.
            let from = match self.window {
                Some(window) if maps.is_none() => (past + 1).saturating_sub(window),
                _ => 0,
            };
            if from > 0 {
                k = k.narrow(2, from, total - from);
                v = v.narrow(2, from, total - from);
                bias = bias.map(|bias| bias.narrow(3, from, total - from));
            }
            // A single query sees everything else, so decoding needs no mask.
            if seq > 1 || maps.is_some() {
                let mask = causal_mask(seq, past - from, self.window, &q.device());
                bias = Some(plus(bias, mask.unsqueeze::<4>()));
            }
        }
        let scale = self.scale.unwrap_or((self.d_head as f64).sqrt().recip());
        let maps = maps.map(|maps| &mut maps.own);
        attend(q * scale, (k, v), bias, &self.dropout, maps)
    }

    /// Normalises and rotates the queries and keys of a fused projection.
    fn turn(&self, qkv: Tensor<3>, rope: Option<&Rope>, past: usize) -> Tensor<3> {
        let [batch, seq, width] = qkv.dims();
        let turning = self.n_heads + self.n_kv_heads;
        let mut heads = qkv.reshape([batch, seq, turning + self.n_kv_heads, self.d_head]);
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            let part = |first, count| heads.clone().narrow(2, first, count);
            let q = q_norm.forward(part(0, self.n_heads));
            let k = k_norm.forward(part(self.n_heads, self.n_kv_heads));
            heads = Tensor::cat(vec![q, k, part(turning, self.n_kv_heads)], 2);
        }
        if let Some(rope) = rope {
            heads = rope.apply(heads, turning, past);
        }
        heads.reshape([batch, seq, width])
    }
}

/// Attention of one text to another (Vaswani et al. 2017, section 3.2.3).
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// `[d_model, n_heads d_head]`.
    pub q: Linear,
    /// `[d_model, 2 n_heads d_head]`: all keys, then all values.
    pub kv: Linear,
    /// `[n_heads d_head, d_model]`.
    pub proj: Linear,
    dropout: Dropout,
    n_heads: usize,
    d_head: usize,
    #[module(skip)]
    scale: Option<f64>,
}

impl AttentionConfig {
    /// The same between two texts; of `n_kv_heads`, `qk_norm` and `window` it knows nothing.
    pub fn init_cross(&self, device: &Device) -> CrossAttention {
        let linear =
            |d_in, d_out, bias| LinearConfig::new(d_in, d_out).with_bias(bias).init(device);
        let width = self.n_heads * self.d_head;
        CrossAttention {
            q: linear(self.d_model, width, self.qkv_bias),
            kv: linear(self.d_model, 2 * width, self.qkv_bias),
            proj: linear(width, self.d_model, self.proj_bias),
            dropout: Dropout::new(self.dropout),
            n_heads: self.n_heads,
            d_head: self.d_head,
            scale: self.scale,
        }
    }
}

/// What one block remembers of a text that another attends to.
#[derive(Debug, Clone)]
pub struct CrossMemory {
    /// `[batch, n_heads, seen, d_head]`.
    pub keys: Tensor<4>,
    /// `[batch, n_heads, seen, d_head]`.
    pub values: Tensor<4>,
    /// Added to the scores, `[batch or 1, n_heads or 1, seq or 1, seen]`.
    pub bias: Option<Tensor<4>>,
}

impl CrossMemory {
    /// These rows of it, any of them as often as wanted; a bias must have a row for each text.
    ///
    /// # Shapes
    /// - rows: `[n]`
    pub fn rows(&self, rows: Tensor<1, Int>) -> Self {
        let of = |x: &Tensor<4>| x.clone().select(0, rows.clone());
        Self {
            keys: of(&self.keys),
            values: of(&self.values),
            bias: self.bias.as_ref().map(of),
        }
    }
}

impl CrossAttention {
    /// Keys and values of the text attended to, computed once for all that attend to it.
    ///
    /// # Shapes
    /// - text: `[batch, seen, d_model]`
    /// - bias: see [`CrossMemory`]
    pub fn remember(&self, text: Tensor<3>, bias: Option<Tensor<4>>) -> CrossMemory {
        let kv = self.kv.forward(text);
        let width = self.n_heads * self.d_head;
        let part = |first| split_heads(kv.clone().narrow(2, first, width), self.n_heads);
        CrossMemory {
            keys: part(0),
            values: part(width),
            bias,
        }
    }

    /// Attends; the weights go to `maps` if somebody wants to look at them.
    ///
    /// # Shapes
    /// - input, output: `[batch, seq, d_model]`
    pub fn forward(
        &self,
        x: Tensor<3>,
        memory: &CrossMemory,
        maps: Option<&mut AttentionMaps>,
    ) -> Tensor<3> {
        let q = split_heads(self.q.forward(x), self.n_heads);
        let CrossMemory { keys, values, bias } = memory.clone();
        let mixed = if bias.is_none() && maps.is_none() {
            let options = AttentionOptions {
                scale: self.scale.map(|scale| scale as f32),
                dropout: self.dropout.draw(&q.device()),
                ..AttentionOptions::full(self.n_heads, self.n_heads)
            };
            attention(q, keys, values, options)
        } else {
            let scale = self.scale.unwrap_or((self.d_head as f64).sqrt().recip());
            let maps = maps.map(|maps| &mut maps.cross);
            attend(q * scale, (keys, values), bias, &self.dropout, maps)
        };
        self.proj.forward(merge_heads(mixed))
    }
}

/// `[batch, seq, heads d_head]` as `[batch, heads, seq, d_head]`.
fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, seq, width] = x.dims();
    x.reshape([batch, seq, heads, width / heads])
        .swap_dims(1, 2)
}

/// The inverse of [`split_heads`].
fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, seq, d_head] = x.dims();
    x.swap_dims(1, 2).reshape([batch, seq, heads * d_head])
}

/// `softmax(q k^T + bias) v`, where the queries are already scaled. The weights go to `maps`, if
/// there is one.
///
/// The queries of one group share their key head: they are laid end to end along the sequence, so
/// that keys and values are never repeated in memory.
fn attend(
    q: Tensor<4>,
    (k, v): (Tensor<4>, Tensor<4>),
    bias: Option<Tensor<4>>,
    dropout: &Dropout,
    maps: Option<&mut Vec<Tensor<4>>>,
) -> Tensor<4> {
    let [batch, n_heads, seq, d_head] = q.dims();
    let [_, n_kv_heads, seen, _] = k.dims();
    let rows = n_heads / n_kv_heads * seq;
    let scores = q
        .reshape([batch, n_kv_heads, rows, d_head])
        .matmul(k.swap_dims(2, 3))
        .reshape([batch, n_heads, seq, seen]);
    let weights = softmax(plus(bias, scores), 3);
    if let Some(maps) = maps {
        maps.push(weights.clone());
    }
    dropout
        .forward(weights)
        .reshape([batch, n_kv_heads, rows, seen])
        .matmul(v)
        .reshape([batch, n_heads, seq, d_head])
}

/// The sum of a bias, if there is one, and scores or another bias.
fn plus(bias: Option<Tensor<4>>, x: Tensor<4>) -> Tensor<4> {
    match bias {
        Some(bias) => x + bias,
        None => x,
    }
}

/// What hides the future, and what lies before a window, from `seq` queries that follow `past`
/// positions: 0 where a query may look, minus infinity where not.
///
/// # Shapes
/// - output: `[seq, past + seq]`
fn causal_mask(seq: usize, past: usize, window: Option<usize>, device: &Device) -> Tensor<2> {
    let seen = past + seq;
    let hidden = |query: usize, key: usize| {
        let position = past + query;
        if key > position || window.is_some_and(|window| key + window <= position) {
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

/// What hides the positions that only fill a row up, to be added to scores.
///
/// # Shapes
/// - mask: `[batch, seq]`, 1 for a token, 0 for what fills up
/// - output: `[batch, 1, 1, seq]`
pub fn padding_bias(mask: Tensor<2>) -> Tensor<4> {
    let [batch, seq] = mask.dims();
    // Far below any score, but finite: a row of nothing but filling stays a number.
    ((mask - 1.0) * 1e30).reshape([batch, 1, 1, seq])
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

    /// Keeps the rows of the batch at `rows`, in that order and as often as they stand there, `[kept]`.
    pub fn select(&mut self, rows: Tensor<1, Int>) {
        for (k, v) in &mut self.layers {
            *k = k.clone().select(0, rows.clone());
            *v = v.clone().select(0, rows.clone());
        }
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
        let mask = |window| {
            let mask = causal_mask(2, 1, window, &Device::flex()).into_data();
            mask.try_to_vec::<f32>().unwrap()
        };
        let hidden = f32::NEG_INFINITY;
        assert_eq!(mask(None), [0.0, 0.0, hidden, 0.0, 0.0, 0.0]);
        assert_eq!(mask(Some(2)), [0.0, 0.0, hidden, hidden, 0.0, 0.0]);
    }

    #[test]
    fn fused_and_cached_attention_agree() {
        let device = Device::flex();
        let plain = AttentionConfig {
            n_kv_heads: 2,
            ..AttentionConfig::new(16, 4)
        };
        let windowed = AttentionConfig {
            d_head: 6,
            qk_norm: Some(1e-6),
            window: Some(3),
            ..plain
        };
        for config in [plain, windowed] {
            let mut rng = maquette_rng::rng(0, maquette_rng::Stream::Init, 0);
            let scheme = crate::InitScheme::He;
            let layer =
                crate::init::initialise(config.init(&device), &mut rng, |slot| scheme.fill(slot));
            let values = maquette_rng::normal(&mut rng, 2 * 7 * 16);
            let x = Tensor::<3>::from_data(TensorData::new(values, [2, 7, 16]), &device);
            let rope = Rope::new(7, config.d_head, 100.0, &device);
            let context = |past| AttentionContext {
                causal: true,
                rope: Some(&rope),
                past,
                ..AttentionContext::default()
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
            let parts = vec![part(0, 2), part(2, 3), part(5, 1), part(6, 1)];
            let difference = (whole.clone() - Tensor::cat(parts, 1)).abs().max();
            assert!(difference.into_scalar::<f32>() < 1e-5);
            // A bias of nothing takes the other way to the same numbers.
            let composed = AttentionContext {
                bias: Some(Tensor::zeros([1, 1, 1, 7], &device)),
                ..context(0)
            };
            let difference = (whole - layer.forward(x.clone(), composed)).abs().max();
            assert!(difference.into_scalar::<f32>() < 1e-5);
        }
    }
}
