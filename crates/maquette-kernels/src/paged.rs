//! Attention to keys and values that lie in pages (Kwon et al. 2023, arXiv:2309.06180).
//!
//! A page of one layer holds, for every key head, its keys `[d_head, PAGE]` and then its values
//! `[PAGE, d_head]`: so both products run along vectors without a sum across them. The softmax is
//! taken page by page (Milakov and Gimelshein 2018, arXiv:1805.02867).

use crate::elementwise::update;
use crate::shared::Shared;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Lanes, Portable};
use crate::team;
use crate::vector::Machine;

/// Positions of a page.
pub const PAGE: usize = 32;

/// Queries that attend together; those of all heads of a group at neighbouring positions.
const ROWS: usize = 16;

/// Multiplications worth a task of their own.
const TASK: usize = 1 << 15;

/// Numbers of one layer of a page.
pub fn page_len(n_kv_heads: usize, d_head: usize) -> usize {
    2 * PAGE * n_kv_heads * d_head
}

/// Puts the keys and values of one position in its place of a page.
///
/// # Shapes
/// - page: [`page_len`]
/// - keys, values: `[n_kv_heads, d_head]`
///
/// # Panics
/// If the lengths disagree, or `place` is not below [`PAGE`].
pub fn store(page: &mut [f32], place: usize, keys: &[f32], values: &[f32], d_head: usize) {
    assert!(
        place < PAGE && keys.len() == values.len() && page.len() == 2 * PAGE * keys.len(),
        "store: a position of a page"
    );
    let heads = page.chunks_exact_mut(2 * PAGE * d_head);
    let rows = keys.chunks_exact(d_head).zip(values.chunks_exact(d_head));
    for (head, (keys, new)) in heads.zip(rows) {
        let (columns, values) = head.split_at_mut(PAGE * d_head);
        for (column, key) in columns.chunks_exact_mut(PAGE).zip(keys) {
            column[place] = *key;
        }
        values[place * d_head..][..d_head].copy_from_slice(new);
    }
}

/// The constants of one [`paged_attention`].
#[derive(Clone, Copy, Debug)]
pub struct PagedAttention<'a> {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// How many positions one sees, itself included; all before it if absent.
    pub window: Option<usize>,
    /// What each head takes from a score per position of distance (ALiBi); nothing if absent.
    pub slopes: Option<&'a [f32]>,
}

/// Queries at neighbouring positions of one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The row of the first.
    pub row: usize,
    /// How many.
    pub len: usize,
    /// The position of the first.
    pub position: usize,
}

/// `softmax(q k^T / sqrt(d_head)) v` of every row, over its own text up to its own position.
/// `pages(run, i)` are the keys and values of this layer at the positions from `i` [`PAGE`] on; those
/// of the rows themselves are there already.
///
/// # Shapes
/// - q, out: `[rows, n_heads, d_head]`
///
/// # Panics
/// If a run is outside the rows, or a page has another length than [`page_len`].
pub fn paged_attention<'p>(
    q: &[f32],
    out: &mut [f32],
    runs: &[Run],
    heads: &PagedAttention<'_>,
    pages: impl Fn(usize, usize) -> &'p [f32] + Sync,
) {
    let PagedAttention {
        n_heads,
        n_kv_heads,
        d_head,
        ..
    } = *heads;
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads) && q.len() == out.len(),
        "attention: {n_heads} query and {n_kv_heads} key heads"
    );
    let width = n_heads * d_head;
    assert!(
        runs.iter()
            .all(|run| (run.row + run.len) * width <= q.len()),
        "attention: a run outside the queries"
    );
    assert!(
        heads.slopes.is_none_or(|slopes| slopes.len() == n_heads),
        "attention: a slope per head"
    );
    let group = n_heads / n_kv_heads;
    // Positions, and heads of a group, of a tile.
    let positions = (ROWS / group).max(1);
    let parts = group.div_ceil(ROWS);
    let tiles = |run: &Run| run.len.div_ceil(positions) * n_kv_heads * parts;
    let total: usize = runs.iter().map(tiles).sum();
    let work: usize = runs
        .iter()
        .map(|run| run.len * (run.position + run.len))
        .sum();
    let (isa, shared) = (Isa::detect(), Shared::new(out));
    let tile = |mut index: usize| {
        let mut at = 0;
        while index >= tiles(&runs[at]) {
            index -= tiles(&runs[at]);
            at += 1;
        }
        let run = runs[at];
        let (first, index) = (index / (n_kv_heads * parts), index % (n_kv_heads * parts));
        let (kv_head, part) = (index / parts, index % parts);
        let tile = Tile {
            heads,
            kv_head,
            from: part * ROWS,
            group: (group - part * ROWS).min(ROWS),
            row: run.row + first * positions,
            position: run.position + first * positions,
            positions: positions.min(run.len - first * positions),
        };
        let page = |i: usize| pages(at, i);
        // SAFETY: the instructions were detected; every tile has rows and heads of its own, inside
        // `q` and `out` as checked above.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => attend_avx512(&tile, q, shared, page),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => attend_avx2(&tile, q, shared, page),
                Isa::Portable => attend::<Portable>(&tile, q, shared, page),
            }
        }
    };
    let grain = (total * TASK / (work * width).max(1)).max(1);
    team::each(total.div_ceil(grain), |task| {
        (task * grain..total.min((task + 1) * grain)).for_each(tile);
    });
}

/// Some heads of a group at neighbouring positions: at most [`ROWS`] queries.
struct Tile<'a> {
    heads: &'a PagedAttention<'a>,
    kv_head: usize,
    /// The first head of the group, and how many.
    from: usize,
    group: usize,
    /// The row and the position of the first, and how many.
    row: usize,
    position: usize,
    positions: usize,
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn attend_avx512<'p>(
    tile: &Tile,
    q: &[f32],
    out: Shared,
    page: impl Fn(usize) -> &'p [f32],
) {
    // SAFETY: the caller's.
    unsafe { attend::<Avx512>(tile, q, out, page) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn attend_avx2<'p>(tile: &Tile, q: &[f32], out: Shared, page: impl Fn(usize) -> &'p [f32]) {
    // SAFETY: the caller's.
    unsafe { attend::<Avx2>(tile, q, out, page) }
}

/// # Safety
/// The machine has the instructions of `L`; the tile's rows and heads are inside `q` and `out`, and
/// nobody else uses those of `out` meanwhile.
#[inline(always)]
unsafe fn attend<'p, L: Lanes>(
    tile: &Tile,
    q: &[f32],
    out: Shared,
    page: impl Fn(usize) -> &'p [f32],
) {
    let heads = tile.heads;
    let d_head = heads.d_head;
    let rows = tile.positions * tile.group;
    let group = heads.n_heads / heads.n_kv_heads;
    let head = |row: usize| tile.kv_head * group + tile.from + row % tile.group;
    let position = |row: usize| tile.position + row / tile.group;
    let start = |row: usize| ((tile.row + row / tile.group) * heads.n_heads + head(row)) * d_head;
    let scale = 1.0 / (d_head as f32).sqrt();
    let mut queries = [q.as_ptr(); ROWS];
    let mut mixed = [std::ptr::null_mut(); ROWS];
    let mut scores = [[0.0f32; PAGE]; ROWS];
    let mut weights = [std::ptr::null(); ROWS];
    for row in 0..rows {
        queries[row] = q[start(row)..][..d_head].as_ptr();
        mixed[row] = out.at(start(row));
        // SAFETY: a row of this tile alone.
        unsafe { out.part(start(row), d_head) }.fill(0.0);
    }
    let [mut top, mut mass] = [[f32::NEG_INFINITY; ROWS], [0.0f32; ROWS]];
    let last = tile.position + tile.positions - 1;
    let first_seen = |position: usize| match heads.window {
        Some(window) => (position + 1).saturating_sub(window),
        None => 0,
    };
    for index in first_seen(tile.position) / PAGE..=last / PAGE {
        let page = &page(index)[tile.kv_head * 2 * PAGE * d_head..][..2 * PAGE * d_head];
        let (keys, values) = page.split_at(PAGE * d_head);
        // 1. Scores of all positions of the page, seen or not.
        let places: [*mut f32; ROWS] = std::array::from_fn(|row| scores[row].as_mut_ptr());
        // SAFETY: `d_head` numbers a query, `[d_head, PAGE]` keys, `PAGE` scores.
        unsafe { product::<L, false>(&queries[..rows], keys, &places[..rows], d_head, PAGE) };
        // 2. Weights relative to the largest score so far.
        for row in 0..rows {
            let (at, scores) = (position(row), &mut scores[row]);
            let slope = heads.slopes.map_or(0.0, |slopes| slopes[head(row)]);
            let (from, to) = (first_seen(at), at);
            let mut most = f32::NEG_INFINITY;
            for (seen, score) in (index * PAGE..).zip(scores.iter_mut()) {
                *score = *score * scale - slope * (at as f32 - seen as f32);
                let hidden = seen < from || seen > to;
                *score = if hidden { f32::NEG_INFINITY } else { *score };
                most = if *score > most { *score } else { most };
            }
            let most = if most > top[row] { most } else { top[row] };
            let kept = match top[row] == f32::NEG_INFINITY {
                true => 0.0,
                false => (top[row] - most).exp(),
            };
            // SAFETY: the caller's.
            let machine = unsafe { Machine::<L>::assume() };
            let [sum] = update(machine, scores, [], |[score]| {
                let weight = (score - most).exp();
                let weight =
                    score.greater(score.splat(f32::NEG_INFINITY), weight, score.splat(0.0));
                let weight = score.nan(score, weight);
                (weight, [weight])
            });
            top[row] = most;
            mass[row] = mass[row] * kept + sum;
            // SAFETY: a row of this tile alone.
            for number in unsafe { out.part(start(row), d_head) } {
                *number *= kept;
            }
        }
        // 3. What they weigh; nothing beyond the last position is touched.
        for (weights, scores) in weights.iter_mut().zip(&scores) {
            *weights = scores.as_ptr();
        }
        let seen = (last + 1 - index * PAGE).min(PAGE);
        // SAFETY: `PAGE` weights a row, `[PAGE, d_head]` values, `d_head` numbers of the output.
        unsafe { product::<L, true>(&weights[..rows], values, &mixed[..rows], seen, d_head) };
    }
    for (row, mass) in mass[..rows].iter().enumerate() {
        let per = 1.0 / mass;
        // SAFETY: a row of this tile alone.
        for number in unsafe { out.part(start(row), d_head) } {
            *number *= per;
        }
    }
}

/// `out[r][c] = sum over k of a[r][k] b[k][c]`, or that added; the sum runs from the first `k` to the
/// last whatever the number of rows.
///
/// # Safety
/// The machine has the instructions of `L`; `a` points to rows of `depth`, `out` to rows of `columns`
/// numbers that nobody else uses, and `b` holds `depth` rows of `columns`.
#[inline(always)]
unsafe fn product<L: Lanes, const ADD: bool>(
    a: &[*const f32],
    b: &[f32],
    out: &[*mut f32],
    depth: usize,
    columns: usize,
) {
    assert!(b.len() >= depth * columns && a.len() == out.len());
    let b = b.as_ptr();
    let (fours, rest) = a.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks::<4>();
    let mut column = 0;
    // SAFETY (of the whole): columns below `columns` of rows below `depth`; the rest is the caller's.
    unsafe {
        while column + 2 * L::N <= columns {
            for (a, out) in fours.iter().zip(out_fours) {
                tile::<L, 4, 2, ADD>(a, b.add(column), columns, *out, column, depth);
            }
            column += 2 * L::N;
        }
        let paired = column;
        while column + L::N <= columns {
            for (a, out) in fours.iter().zip(out_fours) {
                tile::<L, 4, 1, ADD>(a, b.add(column), columns, *out, column, depth);
            }
            column += L::N;
        }
        let vectors = column;
        for (a, out) in rest.iter().zip(out_rest) {
            let mut column = 0;
            while column + 4 * L::N <= vectors {
                tile::<L, 1, 4, ADD>(&[*a], b.add(column), columns, [*out], column, depth);
                column += 4 * L::N;
            }
            while column < vectors {
                tile::<L, 1, 1, ADD>(&[*a], b.add(column), columns, [*out], column, depth);
                column += L::N;
            }
        }
        debug_assert!(paired <= vectors);
        for (a, out) in a.iter().zip(out) {
            for column in vectors..columns {
                let mut total = if ADD { *out.add(column) } else { 0.0 };
                for k in 0..depth {
                    total += *a.add(k) * *b.add(k * columns + column);
                }
                *out.add(column) = total;
            }
        }
    }
}

/// # Safety
/// As [`product`]'s, for `C` vectors of `R` rows from `column` on; `b` points to the first of them.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const C: usize, const ADD: bool>(
    a: &[*const f32; R],
    mut b: *const f32,
    stride: usize,
    out: [*mut f32; R],
    column: usize,
    depth: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; R];
        if ADD {
            for (sums, out) in sums.iter_mut().zip(out) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(out.add(column + c * L::N));
                }
            }
        }
        for k in 0..depth {
            let row: [L::V; C] = std::array::from_fn(|c| L::load(b.add(c * L::N)));
            for (sums, a) in sums.iter_mut().zip(a) {
                let factor = L::splat(*a.add(k));
                for (sum, b) in sums.iter_mut().zip(row) {
                    *sum = L::mul_add(factor, b, *sum);
                }
            }
            b = b.add(stride);
        }
        for (sums, out) in sums.iter().zip(out) {
            for (c, sum) in sums.iter().enumerate() {
                L::store(out.add(column + c * L::N), *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Text {
        keys: Vec<f32>,
        values: Vec<f32>,
        pages: Vec<Vec<f32>>,
    }

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
        (0..len).map(number).collect()
    }

    fn text(len: usize, seed: usize, heads: &PagedAttention) -> Text {
        let width = heads.n_kv_heads * heads.d_head;
        let (keys, values) = (numbers(len * width, seed), numbers(len * width, seed + 1));
        // What no position has been stored to is never looked at.
        let empty = vec![f32::NAN; page_len(heads.n_kv_heads, heads.d_head)];
        let mut pages = vec![empty; len.div_ceil(PAGE)];
        for at in 0..len {
            let row = at * width..(at + 1) * width;
            let page = &mut pages[at / PAGE];
            store(
                page,
                at % PAGE,
                &keys[row.clone()],
                &values[row],
                heads.d_head,
            );
        }
        Text {
            keys,
            values,
            pages,
        }
    }

    /// The definition, in double precision.
    fn expected(q: &[f32], text: &Text, position: usize, heads: &PagedAttention) -> Vec<f64> {
        let (d, n_kv) = (heads.d_head, heads.n_kv_heads);
        let from = heads
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for head in 0..heads.n_heads {
            let kv_head = head / (heads.n_heads / n_kv);
            let at = |values: &[f32], seen: usize, i: usize| {
                f64::from(values[(seen * n_kv + kv_head) * d + i])
            };
            let score = |seen: usize| {
                let dot: f64 = (0..d)
                    .map(|i| f64::from(q[head * d + i]) * at(&text.keys, seen, i))
                    .sum();
                let slope = heads.slopes.map_or(0.0, |slopes| f64::from(slopes[head]));
                dot / (d as f64).sqrt() - slope * (position - seen) as f64
            };
            let weights: Vec<f64> = (from..=position).map(|seen| score(seen).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                let mixed = weights.iter().enumerate();
                mixed
                    .map(|(w, weight)| weight * at(&text.values, from + w, i))
                    .sum::<f64>()
                    / total
            }));
        }
        out
    }

    #[test]
    fn attends_as_defined_alone_and_together() {
        let slopes = [0.5, 0.25, 0.125, 0.0625, 0.5, 0.1];
        let shapes = [(6, 6, 8), (6, 2, 10), (6, 1, 64), (3, 3, 70)];
        for (n_heads, n_kv_heads, d_head) in shapes {
            for (window, slopes) in [
                (None, None),
                (Some(5), None),
                (Some(40), Some(&slopes[..n_heads])),
            ] {
                let heads = PagedAttention {
                    n_heads,
                    n_kv_heads,
                    d_head,
                    window,
                    slopes,
                };
                let width = n_heads * d_head;
                let texts = [text(75, 1, &heads), text(3, 5, &heads)];
                let runs = [
                    Run {
                        row: 0,
                        len: 45,
                        position: 30,
                    },
                    Run {
                        row: 45,
                        len: 1,
                        position: 2,
                    },
                ];
                let q = numbers(46 * width, 9);
                let mut out = vec![0.0; q.len()];
                let pages = |run: usize, i: usize| texts[run].pages[i].as_slice();
                paged_attention(&q, &mut out, &runs, &heads, pages);
                for (run, text) in runs.iter().zip(&texts) {
                    for i in 0..run.len {
                        let row = (run.row + i) * width..(run.row + i + 1) * width;
                        let expected = expected(&q[row.clone()], text, run.position + i, &heads);
                        for (got, expected) in out[row.clone()].iter().zip(expected) {
                            assert!(
                                (f64::from(*got) - expected).abs() < 1e-5,
                                "{got} {expected}"
                            );
                        }
                        // To the last bit as if it were the only one.
                        let mut alone = vec![0.0; width];
                        let one = Run {
                            row: 0,
                            len: 1,
                            position: run.position + i,
                        };
                        let pages = |_: usize, i: usize| text.pages[i].as_slice();
                        paged_attention(&q[row.clone()], &mut alone, &[one], &heads, pages);
                        assert_eq!(alone, out[row]);
                    }
                }
            }
        }
    }
}
