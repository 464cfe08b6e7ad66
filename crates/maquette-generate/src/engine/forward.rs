//! One pass of a decoder over a mixed batch: parts of prompts and single tokens of texts that go on.
//!
//! All memory is allocated beforehand. A row's numbers depend on its own text alone, to the last bit,
//! whatever else is in the batch and however its prompt was cut.

use maquette_kernels::paged::{PAGE, PagedAttention, Run, paged_attention, store};
use maquette_kernels::quant::{forward, multiply_many};
use maquette_kernels::team;

use super::cache::{PageId, Pool};
use super::weights::{Block, Linear, Mlp, Weights};

/// Tokens to be read: each run of them belongs to one text.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) runs: Vec<Run>,
    /// The pages of each run's text.
    pub(super) pages: Vec<Vec<PageId>>,
    /// Rows, in order, of which logits are wanted.
    pub(super) wanted: Vec<usize>,
}

impl Batch {
    /// Empties it and keeps its memory; `runs` page lists stay for reuse.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.runs.clear();
        self.wanted.clear();
    }

    /// Adds tokens of a text from `position` on; logits are wanted of the last `wanted` of them.
    pub(super) fn push(
        &mut self,
        tokens: &[u32],
        position: usize,
        pages: &[PageId],
        wanted: usize,
    ) {
        let (row, len) = (self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.wanted.extend(row + len - wanted.min(len)..row + len);
        if self.pages.len() == self.runs.len() {
            self.pages.push(Vec::new());
        }
        let held = &mut self.pages[self.runs.len()];
        held.clear();
        held.extend_from_slice(pages);
        self.runs.push(Run { row, len, position });
    }
}

/// The memory of a pass.
#[derive(Debug)]
pub(super) struct Forward {
    /// The most rows at once, and the most of which logits are wanted.
    pub(super) rows: usize,
    pub(super) wanted: usize,
    /// The residual stream, and what is read from it: `[rows, d_model]`.
    x: Vec<f32>,
    h: Vec<f32>,
    /// `[rows, heads, d_head]`
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    /// `[rows, d_ff]`
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `[rows, d_head / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// `[wanted, vocab_size]`
    logits: Vec<f32>,
    experts: Experts,
}

/// Where tokens go among experts.
#[derive(Debug)]
struct Experts {
    /// `[rows, count]`
    scores: Vec<f32>,
    /// Weight of each expert for each row, 0 where it is not asked.
    weights: Vec<f32>,
    order: Vec<usize>,
    /// Rows of one expert, what it reads and what it makes.
    rows: Vec<usize>,
    input: Vec<f32>,
    output: Vec<f32>,
}

impl Forward {
    /// Memory for `rows` rows at once, and logits of `wanted` of them.
    pub(super) fn new(weights: &Weights, rows: usize, wanted: usize) -> Self {
        let config = weights.config();
        let (d_head, d_model) = (config.head_width(), config.d_model);
        let half = weights.rope.as_ref().map_or(0, |_| d_head / 2);
        let numbers = |width: usize| vec![0.0; rows * width];
        let experts = config.experts.map_or(0, |experts| experts.count);
        let expert_width = if experts > 0 { d_model } else { 0 };
        Self {
            rows,
            wanted,
            x: numbers(d_model),
            h: numbers(d_model),
            q: numbers(config.n_heads * d_head),
            k: numbers(config.kv_heads() * d_head),
            v: numbers(config.kv_heads() * d_head),
            mixed: numbers(config.n_heads * d_head),
            gate: numbers(config.mlp_width()),
            up: numbers(config.mlp_width()),
            cos: numbers(half),
            sin: numbers(half),
            logits: vec![0.0; wanted * config.vocab_size],
            experts: Experts {
                scores: numbers(experts),
                weights: numbers(experts),
                order: Vec::with_capacity(experts),
                rows: Vec::with_capacity(rows),
                input: numbers(expert_width),
                output: numbers(expert_width),
            },
        }
    }

    /// Reads the tokens of `batch`, keeps their keys and values in their pages, and gives the logits
    /// of the wanted rows, `[wanted, vocab_size]`.
    pub(super) fn read(&mut self, weights: &Weights, pool: &mut Pool, batch: &Batch) -> &[f32] {
        team::together(|| self.pass(weights, pool, batch))
    }

    /// As [`Self::read`], on one thread where not said otherwise.
    fn pass(&mut self, weights: &Weights, pool: &mut Pool, batch: &Batch) -> &[f32] {
        let d_model = weights.config.d_model;
        let mut n = batch.tokens.len();
        assert!(
            n <= self.rows && batch.wanted.len() <= self.wanted,
            "{n} rows in memory for {}",
            self.rows
        );
        self.embed(weights, batch);
        self.angles(weights, batch);
        for (layer, block) in weights.blocks.iter().enumerate() {
            // 1. Attention.
            self.project(block, n);
            self.turn(weights, block, n);
            self.remember(pool, batch, layer, weights);
            self.attend(weights, pool, batch, layer);
            // 2. Past the last attention only wanted rows matter.
            if layer + 1 == weights.blocks.len() {
                n = self.keep_wanted(weights, batch);
                if n == 0 {
                    return &[];
                }
            }
            let h = &mut self.h[..n * d_model];
            block
                .proj
                .apply(&self.mixed[..n * block.proj.matrix.columns()], h);
            forward::add(&mut self.x[..n * d_model], h);
            // 3. MLP or experts.
            block.mlp_norm.apply(&self.x[..n * d_model], h);
            self.mlp(weights, block, n);
        }
        self.norm_and_head(weights, n);
        &self.logits[..n * weights.config.vocab_size]
    }

    /// Numbers of the last logits.
    pub(super) fn logits(&self, range: std::ops::Range<usize>) -> &[f32] {
        &self.logits[range]
    }

    fn embed(&mut self, weights: &Weights, batch: &Batch) {
        let d_model = weights.config.d_model;
        for (row, &token) in self.x.chunks_exact_mut(d_model).zip(&batch.tokens) {
            weights.tokens.row(token as usize, row);
        }
        let Some(table) = &weights.positions else {
            return;
        };
        for run in &batch.runs {
            for i in 0..run.len {
                let row = &mut self.x[(run.row + i) * d_model..][..d_model];
                let position = &table.rows[(run.position + i) * d_model..][..d_model];
                row.iter_mut().for_each(|x| *x *= table.scale);
                forward::add(row, position);
            }
        }
    }

    fn angles(&mut self, weights: &Weights, batch: &Batch) {
        let Some(rope) = &weights.rope else { return };
        let half = weights.config.head_width() / 2;
        for run in &batch.runs {
            for i in 0..run.len {
                let at = (run.row + i) * half..(run.row + i + 1) * half;
                let (cos, sin) = (&mut self.cos[at.clone()], &mut self.sin[at]);
                rope.angles(run.position + i, cos, sin);
            }
        }
    }

    fn project(&mut self, block: &Block, n: usize) {
        let d_model = block.qkv[0].matrix.columns();
        let h = &mut self.h[..n * d_model];
        block.attention_norm.apply(&self.x[..n * d_model], h);
        let [q, k, v] = &block.qkv;
        let width = |linear: &Linear| n * linear.matrix.rows();
        let outs = [
            &mut self.q[..width(q)],
            &mut self.k[..width(k)],
            &mut self.v[..width(v)],
        ];
        Linear::apply_all([q, k, v], h, outs);
    }

    /// Normalises and rotates queries and keys.
    fn turn(&mut self, weights: &Weights, block: &Block, n: usize) {
        let config = &weights.config;
        let d_head = config.head_width();
        let [q_width, k_width] = [config.n_heads, config.kv_heads()].map(|heads| heads * d_head);
        if let Some([q_norm, k_norm]) = &block.qk_norm {
            q_norm.apply(&self.q[..n * q_width], &mut self.mixed[..n * q_width]);
            std::mem::swap(&mut self.q, &mut self.mixed);
            // Keys are no wider than queries.
            k_norm.apply(&self.k[..n * k_width], &mut self.mixed[..n * k_width]);
            self.k[..n * k_width].copy_from_slice(&self.mixed[..n * k_width]);
        }
        let Some(rope) = &weights.rope else { return };
        let [cos, sin] = [&self.cos, &self.sin].map(|table| &table[..n * (d_head / 2)]);
        for (x, width) in [(&mut self.q, q_width), (&mut self.k, k_width)] {
            let shape = [width, width / d_head, d_head];
            forward::rotary(&mut x[..n * width], shape, cos, sin, rope.pairs);
        }
    }

    /// Puts the new keys and values in their pages.
    fn remember(&self, pool: &mut Pool, batch: &Batch, layer: usize, weights: &Weights) {
        let d_head = weights.config.head_width();
        let width = weights.config.kv_heads() * d_head;
        for (run, pages) in batch.runs.iter().zip(&batch.pages) {
            for i in 0..run.len {
                let position = run.position + i;
                let row = (run.row + i) * width..(run.row + i + 1) * width;
                let page = pool.layer_mut(pages[position / PAGE], layer);
                let (k, v) = (&self.k[row.clone()], &self.v[row]);
                store(page, position % PAGE, k, v, d_head);
            }
        }
    }

    fn attend(&mut self, weights: &Weights, pool: &Pool, batch: &Batch, layer: usize) {
        let config = &weights.config;
        let heads = PagedAttention {
            n_heads: config.n_heads,
            n_kv_heads: config.kv_heads(),
            d_head: config.head_width(),
            window: config.window_of(layer),
            slopes: weights.slopes.as_deref(),
        };
        let size = batch.tokens.len() * config.n_heads * config.head_width();
        let (q, mixed) = (&self.q[..size], &mut self.mixed[..size]);
        paged_attention(q, mixed, &batch.runs, &heads, |run, i| {
            pool.layer(batch.pages[run][i], layer)
        });
    }

    /// Moves the wanted rows to the front; how many there are.
    fn keep_wanted(&mut self, weights: &Weights, batch: &Batch) -> usize {
        let d_model = weights.config.d_model;
        let width = weights.config.n_heads * weights.config.head_width();
        for (to, &from) in batch.wanted.iter().enumerate() {
            let rows = |width: usize| (from * width..(from + 1) * width, to * width);
            let (from, to) = rows(d_model);
            self.x.copy_within(from, to);
            let (from, to) = rows(width);
            self.mixed.copy_within(from, to);
        }
        batch.wanted.len()
    }

    /// Adds what the MLP, or the experts, make of `h` to `x`.
    fn mlp(&mut self, weights: &Weights, block: &Block, n: usize) {
        let size = n * weights.config.d_model;
        let kind = weights.config.mlp.activation();
        let Some(router) = &block.router else {
            let Self { h, gate, up, .. } = self;
            // The output takes the place of the input.
            block.mlps[0].apply(kind, Io::Same(&mut h[..size]), [gate, up], n);
            return forward::add(&mut self.x[..size], &self.h[..size]);
        };
        let count = block.mlps.len();
        let experts = &mut self.experts;
        router.apply(&self.h[..size], &mut experts.scores[..n * count]);
        let active = weights.config.experts.map_or(1, |experts| experts.active);
        experts.route(n, count, active);
        for (expert, mlp) in block.mlps.iter().enumerate() {
            let m = experts.gather(&self.h[..size], n, count, expert);
            if m == 0 {
                continue;
            }
            let Experts {
                rows,
                input,
                output,
                weights,
                ..
            } = experts;
            let d_model = size / n.max(1);
            let io = Io::Apart(&input[..m * d_model], &mut output[..m * d_model]);
            mlp.apply(kind, io, [&mut self.gate, &mut self.up], m);
            for (&row, made) in rows.iter().zip(output.chunks_exact(d_model)) {
                let weight = weights[row * count + expert];
                let x = &mut self.x[row * d_model..][..d_model];
                for (x, made) in x.iter_mut().zip(made) {
                    *x += weight * made;
                }
            }
        }
    }

    fn norm_and_head(&mut self, weights: &Weights, n: usize) {
        let size = n * weights.config.d_model;
        weights.norm.apply(&self.x[..size], &mut self.h[..size]);
        let head = weights.head.as_ref().unwrap_or(&weights.tokens);
        let logits = &mut self.logits[..n * head.rows()];
        head.multiply(&self.h[..size], logits);
    }
}

impl Linear {
    fn apply(&self, x: &[f32], out: &mut [f32]) {
        Self::apply_all([self], x, [out]);
    }

    /// Several projections of the same rows.
    fn apply_all<const N: usize>(all: [&Self; N], x: &[f32], mut outs: [&mut [f32]; N]) {
        multiply_many(&all.map(|linear| &linear.matrix), x, &mut outs);
        for (linear, out) in all.iter().zip(outs) {
            if let Some(offset) = &linear.offset {
                for row in out.chunks_exact_mut(offset.len()) {
                    forward::add(row, offset);
                }
            }
        }
    }
}

/// Where an MLP reads and writes.
enum Io<'a> {
    Same(&'a mut [f32]),
    Apart(&'a [f32], &'a mut [f32]),
}

impl Mlp {
    /// The MLP of `n` rows, with room for `[rows, d_ff]` twice.
    fn apply(
        &self,
        activation: maquette_kernels::Activation,
        io: Io<'_>,
        [gate, up]: [&mut Vec<f32>; 2],
        n: usize,
    ) {
        let size = n * self.width();
        let (gate, up) = (&mut gate[..size], &mut up[..size]);
        let input: &[f32] = match &io {
            Io::Same(x) => x,
            Io::Apart(x, _) => x,
        };
        let hidden = match &self.gate {
            Some(linear) => {
                Linear::apply_all([linear, &self.up], input, [&mut *gate, &mut *up]);
                forward::gate(gate, up, activation);
                gate
            }
            None => {
                self.up.apply(input, up);
                forward::activate(up, activation);
                up
            }
        };
        let (Io::Same(out) | Io::Apart(_, out)) = io;
        self.down.apply(hidden, out);
    }
}

impl Experts {
    /// Turns scores into weights: the `active` largest probabilities of each row, made to sum to one.
    fn route(&mut self, n: usize, count: usize, active: usize) {
        let rows = self.scores[..n * count].chunks_exact(count);
        for (scores, weights) in rows.zip(self.weights.chunks_exact_mut(count)) {
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            self.order.clear();
            self.order.extend(0..count);
            // Of equals the first, as in training.
            let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
            self.order.sort_unstable_by(better);
            weights.fill(0.0);
            let mut total = 0.0;
            for &expert in &self.order[..active] {
                weights[expert] = (scores[expert] - most).exp();
                total += weights[expert];
            }
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
    }

    /// Collects the rows that go to an expert; how many there are.
    fn gather(&mut self, h: &[f32], n: usize, count: usize, expert: usize) -> usize {
        let d_model = h.len() / n.max(1);
        self.rows.clear();
        for row in 0..n {
            if self.weights[row * count + expert] > 0.0 {
                let to = self.rows.len() * d_model;
                self.input[to..to + d_model].copy_from_slice(&h[row * d_model..][..d_model]);
                self.rows.push(row);
            }
        }
        self.rows.len()
    }
}
