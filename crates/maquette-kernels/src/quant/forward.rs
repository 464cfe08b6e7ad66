//! What a decoder does between its products, on slices.
//!
//! Each row's result depends on that row alone, whichever rows are computed with it.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::activation::Curve;
use crate::elementwise::{GRAIN, exp, max, multiply_by, sum, vectorized};
use crate::row_norm;
use crate::shared::Shared;
use crate::simd::Isa;

/// `x / sqrt(mean(x^2) + epsilon) * gamma`, row by row (Zhang and Sennrich 2019).
///
/// # Shapes
/// - `x`, `out`: `[n, d]`
/// - `gamma`: `[d]`
///
/// # Panics
/// If the lengths are others.
pub fn rms_norm(x: &[f32], gamma: &[f32], epsilon: f32, out: &mut [f32]) {
    row_norm::rows(x, gamma, None, epsilon, out);
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, row by row (Ba et al. 2016).
///
/// # Shapes
/// - `x`, `out`: `[n, d]`
/// - `gamma`, `beta`: `[d]`
///
/// # Panics
/// If the lengths are others.
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) {
    row_norm::rows(x, gamma, Some(beta), epsilon, out);
}

/// `x = curve(x)`.
pub fn activate(x: &mut [f32], curve: Curve) {
    each_part(x, |_, x| in_place(Isa::detect(), x, curve));
}

/// `gate = curve(gate) * x`, the gated linear unit (Shazeer 2020).
///
/// # Panics
/// If the lengths differ.
pub fn gate(gate: &mut [f32], x: &[f32], curve: Curve) {
    assert_eq!(gate.len(), x.len(), "one gate per number");
    let isa = Isa::detect();
    each_part(gate, |start, gate| {
        in_place(isa, gate, curve);
        multiply_by(isa, gate, &x[start..][..gate.len()]);
    });
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "numbers to be added");
    each_part(x, |start, x| {
        add_to(Isa::detect(), x, &y[start..][..x.len()])
    });
}

/// Parts of a slice with their starts, in parallel if there are several.
fn each_part(x: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() <= GRAIN {
        return work(0, x);
    }
    x.par_chunks_mut(GRAIN)
        .enumerate()
        .for_each(|(i, x)| work(i * GRAIN, x));
}

fn in_place(isa: Isa, x: &mut [f32], curve: Curve) {
    let mut part = [0.0; 256];
    for x in x.chunks_mut(part.len()) {
        let part = &mut part[..x.len()];
        part.copy_from_slice(x);
        // SAFETY: initialised floats may be overwritten as if they were not.
        let out = unsafe { &mut *(x as *mut [f32] as *mut [MaybeUninit<f32>]) };
        curve.forward(isa, part, out);
    }
}

vectorized! {
    fn add_to(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

/// Which numbers of a head a rotation turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `x[i]` and `x[i + turned / 2]`, as in Hugging Face's files.
    Halves,
    /// `x[2 i]` and `x[2 i + 1]`, as in llama.cpp's of architecture `llama`.
    Neighbours,
}

/// Turns pairs of each head by the angles of its row (Su et al. 2021).
///
/// # Shapes
/// - `x`: `[n, heads, d_head]`, with rows `stride` apart of which the first `heads * d_head` are turned
/// - `cos`, `sin`: `[n, turned / 2]`, `turned` at most `d_head`
///
/// # Panics
/// If the lengths are others.
pub fn rotary(
    x: &mut [f32],
    [stride, heads, d_head]: [usize; 3],
    cos: &[f32],
    sin: &[f32],
    pairs: Pairs,
) {
    let n = x.len() / stride;
    let half = cos.len() / n.max(1);
    assert!(
        x.len() == n * stride && heads * d_head <= stride && 2 * half <= d_head,
        "rotary: {n} rows of {stride} numbers, {heads} heads of {d_head}, {half} angles"
    );
    assert_eq!(
        [cos.len(), sin.len()],
        [n * half; 2],
        "rotary: angles of {n} rows"
    );
    if half == 0 {
        return;
    }
    let isa = Isa::detect();
    let rows = GRAIN.div_ceil(stride);
    let work = |task: usize, x: &mut [f32]| {
        for (row, x) in (task * rows..).zip(x.chunks_exact_mut(stride)) {
            let [cos, sin] = [cos, sin].map(|table| &table[row * half..][..half]);
            turn(
                isa,
                &mut x[..heads * d_head],
                d_head,
                cos,
                sin,
                pairs == Pairs::Halves,
            );
        }
    };
    match n > rows {
        false => work(0, x),
        true => x
            .par_chunks_mut(rows * stride)
            .enumerate()
            .for_each(|(task, x)| work(task, x)),
    }
}

vectorized! {
    fn turn(x: &mut [f32], d_head: usize, cos: &[f32], sin: &[f32], halves: bool) {
        for head in x.chunks_exact_mut(d_head) {
            if halves {
                let (low, high) = head.split_at_mut(cos.len());
                for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            } else {
                for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                    *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
                }
            }
        }
    }
}

/// Keys and values of one sequence in pages.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Pages of keys, `[positions, kv_heads, d_head]` each; the last ones may be unused.
    pub keys: &'a [&'a [f32]],
    /// Pages of values, of the same shape.
    pub values: &'a [&'a [f32]],
    /// Positions of a page.
    pub positions: usize,
    /// Heads of keys and of values.
    pub kv_heads: usize,
    /// Features of a head.
    pub d_head: usize,
}

/// How queries attend.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Heads of queries, a multiple of those of the keys.
    pub heads: usize,
    /// What products of queries and keys are multiplied by, `1 / sqrt(d_head)` for most.
    pub scale: f32,
    /// Only so many positions are seen, the query's own among them; all if none.
    pub window: Option<usize>,
}

/// Softmax attention of the queries of one sequence to its keys up to their own position.
///
/// # Shapes
/// - `queries`, `out`: `[n, heads, d_head]`, at positions `start..start + n`, whose keys are in the pages
///
/// # Panics
/// If the lengths are others, heads do not divide, or there are too few pages.
pub fn attend(how: Attend, queries: &[f32], start: usize, pages: Pages, out: &mut [f32]) {
    let width = how.heads * pages.d_head;
    let n = queries.len() / width;
    pages.check(start + n);
    assert!(
        how.heads.is_multiple_of(pages.kv_heads)
            && n * width == queries.len()
            && out.len() == queries.len(),
        "attend: {} numbers of {} heads of {}, keys of {}",
        queries.len(),
        how.heads,
        pages.d_head,
        pages.kv_heads
    );
    let isa = Isa::detect();
    let shared = Shared::new(out);
    let group = how.heads / pages.kv_heads;
    let work = |scores: &mut Vec<f32>, task: usize| {
        let (query, kv_head) = (task / pages.kv_heads, task % pages.kv_heads);
        let end = start + query + 1;
        let first = how.window.map_or(0, |window| end.saturating_sub(window));
        scores.resize(end - first, 0.0);
        for head in kv_head * group..(kv_head + 1) * group {
            let at = (query * how.heads + head) * pages.d_head;
            let q = &queries[at..][..pages.d_head];
            // SAFETY: `out` is borrowed meanwhile; each query's head is written by its task alone.
            let out = unsafe { shared.part(at, pages.d_head) };
            attend_one(isa, q, how.scale, [first, kv_head], pages, scores, out);
        }
    };
    let tasks = n * pages.kv_heads;
    match tasks * (start + n) * group * pages.d_head <= GRAIN {
        true => {
            let mut scores = Vec::new();
            (0..tasks).for_each(|task| work(&mut scores, task));
        }
        false => (0..tasks).into_par_iter().for_each_init(Vec::new, work),
    }
}

impl<'a> Pages<'a> {
    #[inline(always)]
    fn head(&self, pages: &[&'a [f32]], position: usize, kv_head: usize) -> &'a [f32] {
        let at = (position % self.positions * self.kv_heads + kv_head) * self.d_head;
        &pages[position / self.positions][at..][..self.d_head]
    }

    fn check(&self, positions: usize) {
        let page = self.positions * self.kv_heads * self.d_head;
        let needed = positions.div_ceil(self.positions);
        assert!(
            page > 0
                && self.keys.len().min(self.values.len()) >= needed
                && self
                    .keys
                    .iter()
                    .chain(self.values)
                    .all(|held| held.len() == page),
            "attend: {} pages of [{}, {}, {}] for {positions} positions",
            self.keys.len(),
            self.positions,
            self.kv_heads,
            self.d_head
        );
    }
}

vectorized! {
    fn attend_one(
        q: &[f32],
        scale: f32,
        from: [usize; 2],
        pages: Pages,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let [first, kv_head] = from;
        for (position, score) in (first..).zip(scores.iter_mut()) {
            let key = pages.head(pages.keys, position, kv_head);
            *score = scale * sum([q, key], |[q, k]| q * k);
        }
        let top = max(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - top);
        }
        let per = 1.0 / sum([&*scores], |[p]| p);
        out.fill(0.0);
        for (position, p) in (first..).zip(scores.iter()) {
            let p = p * per;
            for (out, v) in out.iter_mut().zip(pages.head(pages.values, position, kv_head)) {
                *out += p * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, salt: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + salt) % 1009) as f32 / 504.0 - 1.0;
        (0..count).map(number).collect()
    }

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    #[test]
    fn norms_by_hand() {
        let mut out = [0.0; 4];
        rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0, &mut out[..]);
        close(&out[..2], &[3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt()]);
        assert!(out[2].is_nan(), "zero by zero");
        layer_norm(
            &[1.0, 3.0, 0.0, 4.0],
            &[1.0, 2.0],
            &[5.0, 6.0],
            0.0,
            &mut out,
        );
        close(&out, &[4.0, 8.0, 4.0, 8.0]);
    }

    #[test]
    fn gates_by_hand() {
        let mut x = [-1.0, 2.0];
        activate(&mut x, Curve::Relu);
        close(&x, &[0.0, 2.0]);
        gate(&mut x, &[5.0, 7.0], Curve::Silu);
        close(&x, &[0.0, 14.0 / (1.0 + (-2f32).exp())]);
        add(&mut x, &[1.0, -1.0]);
        close(&x[..1], &[1.0]);
    }

    #[test]
    fn both_ways_of_pairing_turn_the_same_pairs() {
        // Two rows of one turned head of four and a half more that stays.
        let halves = [1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.0];
        let neighbours = [1.0, 3.0, 2.0, 4.0, 9.0, 9.0, 5.0, 7.0, 6.0, 8.0, 9.0, 9.0];
        let (cos, sin) = ([1.0, 0.0, 0.6, -1.0], [0.0, 1.0, 0.8, 0.0]);
        let [mut a, mut b] = [halves, neighbours];
        rotary(&mut a, [6, 1, 4], &cos, &sin, Pairs::Halves);
        rotary(&mut b, [6, 1, 4], &cos, &sin, Pairs::Neighbours);
        close(
            &a,
            &[
                1.0, -4.0, 3.0, 2.0, 9.0, 9.0, -2.6, -6.0, 8.2, -8.0, 9.0, 9.0,
            ],
        );
        close(
            &b,
            &[
                1.0, 3.0, -4.0, 2.0, 9.0, 9.0, -2.6, 8.2, -6.0, -8.0, 9.0, 9.0,
            ],
        );
    }

    /// Keys and values of 13 positions in pages of 4, the last one with room to spare.
    fn with_pages(kv_heads: usize, d_head: usize, test: impl FnOnce(Pages, &[f32], &[f32])) {
        let row = kv_heads * d_head;
        let [keys, values] = [1, 2].map(|salt| numbers(16 * row, salt));
        let [k, v]: [Vec<&[f32]>; 2] = [&keys, &values].map(|all| all.chunks(4 * row).collect());
        let pages = Pages {
            keys: &k,
            values: &v,
            positions: 4,
            kv_heads,
            d_head,
        };
        test(pages, &keys, &values);
    }

    #[test]
    fn attention_is_that_of_the_definition() {
        for (heads, kv_heads, d_head) in [(1, 1, 8), (6, 2, 16), (4, 4, 20), (8, 1, 64)] {
            for window in [None, Some(1), Some(5), Some(100)] {
                with_pages(kv_heads, d_head, |pages, keys, values| {
                    let how = Attend {
                        heads,
                        scale: 0.3,
                        window,
                    };
                    let (start, n) = (4, 9);
                    let queries = numbers(n * heads * d_head, 3);
                    let mut out = vec![f32::NAN; queries.len()];
                    attend(how, &queries, start, pages, &mut out);
                    let rows = queries.chunks(d_head).zip(out.chunks(d_head)).enumerate();
                    for (row, (q, out)) in rows {
                        let (position, head) = (start + row / heads, row % heads);
                        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
                        let at = |p: usize| (p * kv_heads + head / (heads / kv_heads)) * d_head;
                        let score = |p: usize| -> f64 {
                            let key = &keys[at(p)..][..d_head];
                            q.iter()
                                .zip(key)
                                .map(|(q, k)| 0.3 * f64::from(q * k))
                                .sum::<f64>()
                                .exp()
                        };
                        let total: f64 = (first..=position).map(score).sum();
                        for (d, out) in out.iter().enumerate() {
                            let mixed = |p: usize| score(p) * f64::from(values[at(p) + d]);
                            let expected = (first..=position).map(mixed).sum::<f64>() / total;
                            assert!(
                                (f64::from(*out) - expected).abs() < 1e-5,
                                "{row} {out} {expected}"
                            );
                        }
                    }
                });
            }
        }
    }

    #[test]
    fn a_query_attends_the_same_alone() {
        with_pages(2, 16, |pages, _, _| {
            let how = Attend {
                heads: 4,
                scale: 0.25,
                window: None,
            };
            let queries = numbers(9 * 64, 4);
            let mut together = vec![0.0; queries.len()];
            attend(how, &queries, 3, pages, &mut together);
            for (i, (query, expected)) in queries.chunks(64).zip(together.chunks(64)).enumerate() {
                let mut alone = vec![0.0; 64];
                attend(how, query, 3 + i, pages, &mut alone);
                assert_eq!(alone, expected);
            }
        });
    }

    #[test]
    #[should_panic(expected = "4 pages of [4, 1, 8] for 17 positions")]
    fn more_positions_than_pages_are_refused() {
        with_pages(1, 8, |pages, _, _| {
            let how = Attend {
                heads: 1,
                scale: 1.0,
                window: None,
            };
            attend(how, &[0.0; 8], 16, pages, &mut [0.0; 8]);
        });
    }
}
