//! Products of a few queries with many keys, and of their weights with the values: keys and values are read
//! once from front to back, where a general product would first copy them into tiles.

use crate::elementwise::vectorized;
use crate::simd::Lanes;
use crate::vector::{MOST, Machine, Vector};

/// Queries whose weights are used at once.
const QUERIES: usize = 4;

/// Vectors of features at a time.
const FEATURES: usize = 4;

/// Rows of one length, apart by another.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// From the first on.
    pub(super) values: &'a [f32],
    pub(super) len: usize,
    pub(super) apart: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(self, index: usize) -> &'a [f32] {
        &self.values[index * self.apart..][..self.len]
    }
}

vectorized! {
    /// `scores[i][j] = queries[i] keys[j]`, of as many queries as there are rows of scores.
    ///
    /// # Panics
    /// If a row is outside the values.
    pub(super) fn scores<L>(
        machine,
        queries: Rows,
        keys: Rows,
        count: usize,
        scores: &mut [f32],
    ) {
        let wide = FEATURES * L::N;
        for first in (0..count).step_by(L::N) {
            let lanes = L::N.min(count - first);
            for (query, scores) in scores.chunks_exact_mut(count).enumerate() {
                let query = queries.row(query);
                let mut sums = [machine.splat(0.0); MOST];
                for at in (0..query.len()).step_by(wide) {
                    let mut features = [machine.splat(0.0); FEATURES];
                    for (i, feature) in features.iter_mut().enumerate() {
                        *feature = machine.of(query, at + i * L::N);
                    }
                    for (lane, sum) in sums.iter_mut().enumerate().take(lanes) {
                        let key = &keys.row(first + lane)[at..];
                        for (i, feature) in features.iter().enumerate() {
                            *sum = feature.mul_add(machine.of(key, i * L::N), *sum);
                        }
                    }
                }
                Vector::across(sums, |a, b| a + b).put(&mut scores[first..]);
            }
        }
    }
}

vectorized! {
    /// `mixed[i] = sum over j of weights[i][j] values[j]`, of rows of `count` weights.
    ///
    /// # Panics
    /// If a row is outside the values, or there are fewer weights than rows to mix.
    pub(super) fn mix<L>(
        machine,
        weights: &[f32],
        values: Rows,
        count: usize,
        mixed: &mut [f32],
    ) {
        let at_once = QUERIES * values.len;
        let mut mixed = mixed.chunks_exact_mut(at_once);
        let mut weights = weights.chunks_exact(count);
        for mixed in mixed.by_ref() {
            mix_rows::<L, QUERIES>(machine, &mut weights, values, mixed);
        }
        for mixed in mixed.into_remainder().chunks_exact_mut(values.len) {
            mix_rows::<L, 1>(machine, &mut weights, values, mixed);
        }
    }
}

/// Of `Q` rows of weights.
#[inline(always)]
fn mix_rows<'a, L: Lanes, const Q: usize>(
    machine: Machine<L>,
    weights: &mut impl Iterator<Item = &'a [f32]>,
    values: Rows,
    mixed: &mut [f32],
) {
    let mut rows: [&[f32]; Q] = [&[]; Q];
    for row in &mut rows {
        *row = weights.next().expect("a row of weights");
    }
    for at in (0..values.len).step_by(FEATURES * L::N) {
        let mut sums = [[machine.splat(0.0); FEATURES]; Q];
        for j in 0..rows[0].len() {
            let value = &values.row(j)[at..];
            let mut features = [machine.splat(0.0); FEATURES];
            for (i, feature) in features.iter_mut().enumerate() {
                *feature = machine.of(value, i * L::N);
            }
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let weight = machine.splat(row[j]);
                for (sum, feature) in sums.iter_mut().zip(features) {
                    *sum = feature.mul_add(weight, *sum);
                }
            }
        }
        for (sums, mixed) in sums.into_iter().zip(mixed.chunks_exact_mut(values.len)) {
            for (mixed, sum) in mixed[at..].chunks_mut(L::N).zip(sums) {
                sum.put(mixed);
            }
        }
    }
}
