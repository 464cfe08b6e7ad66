//! Attention that never holds the whole matrix of scores (after Dao et al. 2022,
//! arXiv:2205.14135): blocks of queries attend one after the other, and the backward pass computes
//! the weights again from one number kept per query.
//!
//! Queries, keys and values are read where projections or a cache left them, and the heads' results
//! are written where the next projection wants them, so nothing is permuted in memory.

mod few;
mod fused;

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_flex::FlexTensor;

use self::fused::{Columns, Heads, Layout, Operands, Place, backward, forward};
use crate::dispatch::{contiguous, flex_tensor, is_flex_f32};
use crate::dropout::Dropout;

/// Below as many queries of more keys, rounding keys and values to bf16 costs more than it saves, and so
/// does copying them into tiles ([`few`]).
const FEW_QUERIES: usize = 8;

/// The constants of one [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`, and neighbouring query heads share one (Ainslie et
    /// al. 2023, arXiv:2305.13245).
    pub n_kv_heads: usize,
    /// Whether a position sees only itself and those before. The queries stand at the last
    /// positions of the keys.
    pub causal: bool,
    /// How many positions a causal one sees, itself included (sliding window, Beltagy et al. 2020,
    /// arXiv:2004.05150); all before it if absent.
    pub window: Option<usize>,
    /// What scores are multiplied by; `1 / sqrt(d_head)` if absent.
    pub scale: Option<f32>,
    /// Dropout of the weights.
    pub dropout: Option<Dropout>,
}

impl AttentionOptions {
    /// Every head sees everything before it, and nothing is dropped.
    pub fn causal(n_heads: usize, n_kv_heads: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads,
            causal: true,
            window: None,
            scale: None,
            dropout: None,
        }
    }

    /// Every head sees everything, and nothing is dropped.
    pub fn full(n_heads: usize, n_kv_heads: usize) -> Self {
        Self {
            causal: false,
            ..Self::causal(n_heads, n_kv_heads)
        }
    }

    /// The first position that the one at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        }
    }

    fn scale_of(&self, d_head: usize) -> f32 {
        self.scale.unwrap_or((d_head as f32).sqrt().recip())
    }

    /// # Panics
    /// If heads or window make no sense; `operator` says whose.
    fn check(&self, operator: &str) {
        let Self {
            n_heads,
            n_kv_heads,
            ..
        } = self;
        assert!(
            *n_kv_heads > 0 && *n_heads > 0 && n_heads.is_multiple_of(*n_kv_heads),
            "{operator}: {n_kv_heads} key heads do not divide {n_heads} query heads"
        );
        assert!(
            self.window.is_none_or(|window| window > 0 && self.causal),
            "{operator}: a sliding window is causal and at least 1 wide"
        );
    }
}

/// `softmax(scale q k^T) v` for every head (Vaswani et al. 2017, arXiv:1706.03762), of queries,
/// keys and values from one projection.
///
/// # Shapes
/// - `qkv`: `[batch, seq, (n_heads + 2 n_kv_heads) d_head]`: all queries, all keys, all values
/// - output: `[batch, seq, n_heads d_head]`
///
/// Products are taken in the precision of [`autocast`](crate::autocast).
///
/// # Panics
/// If the heads do not divide each other or the width of `qkv`, or a window is empty or not causal.
pub fn self_attention(qkv: Tensor<3>, options: AttentionOptions) -> Tensor<3> {
    let [batch, seq, width] = qkv.dims();
    options.check("self_attention");
    let AttentionOptions {
        n_heads,
        n_kv_heads,
        ..
    } = options;
    let slots = n_heads + 2 * n_kv_heads;
    assert!(
        width.is_multiple_of(slots),
        "self_attention: a width of {width} is not {slots} heads (queries, keys and values)"
    );
    let d_head = width / slots;
    if !is_flex_f32(&qkv) || batch * seq * width == 0 {
        let heads = |first: usize, count: usize| {
            let part = qkv.clone().narrow(2, first * d_head, count * d_head);
            part.reshape([batch, seq, count, d_head]).swap_dims(1, 2)
        };
        let k = heads(n_heads, n_kv_heads);
        let v = heads(n_heads + n_kv_heads, n_kv_heads);
        let mixed = composed(heads(0, n_heads), k, v, options).swap_dims(1, 2);
        return mixed.reshape([batch, seq, n_heads * d_head]);
    }
    let layout = Layout::new(batch, [seq, seq], d_head, options);
    Tensor::from_dispatch(Dispatch::fused_self_attention(qkv.into_dispatch(), layout))
}

/// `softmax(scale q k^T) v` for every head (Vaswani et al. 2017, arXiv:1706.03762).
///
/// Any strides do where the features of a head are neighbours, as after a projection is split into
/// heads, or in a cache; the output lies so that joining its heads again copies nothing.
///
/// # Shapes
/// - `q` and output: `[batch, n_heads, queries, d_head]`
/// - `k`, `v`: `[batch, n_kv_heads, keys, d_head]`, with `keys >= queries` if causal
///
/// Products are taken in the precision of [`autocast`](crate::autocast).
///
/// # Panics
/// If shapes and options disagree, or a window is empty or not causal.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: AttentionOptions) -> Tensor<4> {
    options.check("attention");
    let [batch, n_heads, queries, d_head] = q.dims();
    let [_, n_kv_heads, keys, _] = k.dims();
    assert_eq!(
        [n_heads, n_kv_heads],
        [options.n_heads, options.n_kv_heads],
        "attention: heads of the queries and keys against those of the options"
    );
    assert!(
        k.dims() == v.dims() && k.dims() == [batch, n_kv_heads, keys, d_head],
        "attention: queries {:?}, keys {:?}, values {:?}",
        q.dims(),
        k.dims(),
        v.dims()
    );
    assert!(
        keys >= queries || !options.causal,
        "attention: {queries} causal queries at the last positions of {keys} keys"
    );
    let fused = is_flex_f32(&q) && is_flex_f32(&k) && is_flex_f32(&v);
    if !fused || batch * queries * keys * d_head == 0 {
        return composed(q, k, v, options);
    }
    let layout = Layout::new(batch, [queries, keys], d_head, options);
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_attention(q, k, v, layout))
}

/// The same of Burn's operators.
fn composed(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: AttentionOptions) -> Tensor<4> {
    let [batch, n_heads, queries, d_head] = q.dims();
    let [_, n_kv_heads, keys, _] = k.dims();
    // The queries of a group are laid end to end, so that its key head is not repeated.
    let rows = n_heads / n_kv_heads * queries;
    let q = q.reshape([batch, n_kv_heads, rows, d_head]);
    let scores = (q * options.scale_of(d_head)).matmul(k.swap_dims(2, 3));
    let mut scores = scores.reshape([batch, n_heads, queries, keys]);
    let past = keys as i64 - queries as i64;
    if options.causal {
        let future = Tensor::<2, Bool>::tril_mask([queries, keys], past, &scores.device());
        scores = scores.mask_fill(future.unsqueeze::<4>(), f32::NEG_INFINITY);
    }
    if let Some(window) = options.window {
        let first = past + 1 - window as i64;
        let recent = Tensor::<2, Bool>::triu_mask([queries, keys], first, &scores.device());
        scores = scores.mask_fill(recent.unsqueeze::<4>(), f32::NEG_INFINITY);
    }
    let mut weights = softmax(scores, 3);
    if let Some(dropout) = options.dropout {
        let mut mask = vec![0.0; weights.shape().num_elements()];
        for (row, mask) in mask.chunks_exact_mut(keys).enumerate() {
            dropout.factors(row as u64, mask);
        }
        let mask = TensorData::new(mask, weights.dims());
        let mask = Tensor::<4>::from_data(mask, &weights.device());
        weights = weights.clone() * mask.cast(weights.dtype());
    }
    let weights = weights.reshape([batch, n_kv_heads, rows, keys]);
    weights.matmul(v).reshape([batch, n_heads, queries, d_head])
}

/// Attention as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedAttention: Backend {
    /// See [`self_attention`].
    fn fused_self_attention(qkv: FloatTensor<Self>, layout: Layout) -> FloatTensor<Self>;

    /// See [`attention`].
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self>;
}

impl FusedAttention for Flex {
    fn fused_self_attention(qkv: FlexTensor, layout: Layout) -> FlexTensor {
        forward(&joint(contiguous(qkv).storage(), &layout), &layout).0
    }

    fn fused_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, layout: Layout) -> FlexTensor {
        mix([q, k, v], &layout).0
    }
}

impl<C: CheckpointStrategy> FusedAttention for Autodiff<Flex, C> {
    fn fused_self_attention(qkv: FloatTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        match SelfAttentionBackward
            .prepare::<C>([qkv.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = prep.checkpoint(&qkv);
                let qkv = contiguous(qkv.into_primitive());
                let (out, totals) = forward(&joint(qkv.storage(), &layout), &layout);
                prep.finish((saved, totals.into(), layout), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(Flex::fused_self_attention(qkv.into_primitive(), layout))
            }
        }
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: Layout,
    ) -> FloatTensor<Self> {
        let nodes = [q.node(), k.node(), v.node()];
        match AttentionBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = [&q, &k, &v].map(|tensor| prep.checkpoint(tensor));
                let operands = [q, k, v].map(|tensor| tensor.into_primitive());
                let (out, totals) = mix(operands, &layout);
                prep.finish((saved, totals.into(), layout), out)
            }
            OpsKind::UnTracked(prep) => {
                let operands = [q, k, v].map(|tensor| tensor.into_primitive());
                prep.finish(mix(operands, &layout).0)
            }
        }
    }
}

/// Queries, keys and values of one projection.
fn joint<'a>(qkv: &'a [f32], layout: &Layout) -> Operands<'a> {
    let places = layout.joint();
    places.map(|place| Heads { values: qkv, place })
}

/// Attention of separate tensors, whose output is a view with the heads before the positions.
fn mix(operands: [FlexTensor; 3], layout: &Layout) -> (FlexTensor, Vec<f32>) {
    let operands = operands.map(in_place);
    let (out, totals) = forward(&operands.each_ref().map(heads), layout);
    let [batch, queries, ..] = layout.output();
    let out = out.reshape([batch, queries, layout.n_heads(), layout.d_head()].into());
    (out.transpose(1, 2), totals)
}

/// Where it lies if the features of each head are neighbours there, otherwise copied.
fn in_place(tensor: FlexTensor) -> FlexTensor {
    let [_, _, rows, d_head] = [0, 1, 2, 3].map(|axis| tensor.shape()[axis]);
    let strides = tensor.layout().strides();
    let forward = strides.iter().all(|stride| *stride >= 0);
    let neighbours = d_head == 1 || strides[3] == 1;
    if forward && neighbours && (rows == 1 || strides[2] >= d_head as isize) {
        tensor
    } else {
        contiguous(tensor)
    }
}

/// Of a tensor that [`in_place`] gave.
fn heads(tensor: &FlexTensor) -> Heads<'_> {
    let layout = tensor.layout();
    let [image, head, row] = [0, 1, 2].map(|axis| layout.strides()[axis].unsigned_abs());
    let d_head = layout.shape()[3];
    Heads {
        values: tensor.storage(),
        place: Place {
            start: layout.start_offset(),
            image,
            head,
            // Of a single row it may be anything.
            row: row.max(d_head),
        },
    }
}

#[derive(Debug)]
struct SelfAttentionBackward;

impl Backward<Flex, 1> for SelfAttentionBackward {
    type State = (NodeId, Arc<[f32]>, Layout);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (qkv, totals, layout) = ops.state;
        let qkv = contiguous(checkpointer.retrieve_node_output::<FlexTensor>(qkv));
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let values: &[f32] = qkv.storage();
        let mut out = vec![0.0; values.len()];
        let columns = Columns::of(&mut out);
        let into = layout.joint().map(|place| (columns, place));
        let grad = Heads {
            values: grad.storage(),
            place: layout.mixed(),
        };
        // SAFETY: `out` is ours, and queries, keys and values of a joint projection do not overlap.
        unsafe { backward(&joint(values, &layout), &totals, &grad, into, &layout) };
        grads.register::<Flex>(node.id, flex_tensor(out, &qkv.shape()));
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = ([NodeId; 3], Arc<[f32]>, Layout);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, totals, layout) = ops.state;
        let operands =
            saved.map(|id| in_place(checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let grad = in_place(grads.consume::<Flex>(&ops.node));
        // Each gradient with the heads after the positions, then seen the other way round.
        let shapes = operands.each_ref().map(|tensor| {
            let shape = tensor.shape();
            [shape[0], shape[2], shape[1], shape[3]]
        });
        let mut out = shapes.map(|shape| vec![0.0; shape.iter().product()]);
        let [dq, dk, dv] = &mut out;
        let columns = [dq, dk, dv].map(|values| Columns::of(values));
        let places = shapes.map(|[_, seq, n_heads, d_head]| Place::packed(seq, n_heads, d_head));
        let into = std::array::from_fn(|i| (columns[i], places[i]));
        let inputs = operands.each_ref().map(heads);
        // SAFETY: three gradients of their own.
        unsafe { backward(&inputs, &totals, &heads(&grad), into, &layout) };
        for ((node, values), shape) in ops.parents.into_iter().zip(out).zip(shapes) {
            if let Some(node) = node {
                let gradient = flex_tensor(values, &shape).transpose(1, 2);
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}
