//! Dropout (Srivastava et al. 2014) whose mask is a function of a key and a position, so that the
//! backward pass computes it again instead of keeping it.

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::dispatch::{contiguous, flex_tensor, is_flex_f32, written};
use crate::elementwise::{GRAIN, vectorized};
use crate::simd::Isa;

/// Zeroes numbers with a probability and divides the others by that of keeping them, so that means
/// stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of a zero, below 1; taken to the next multiple of `2^-16`.
    pub probability: f64,
    /// The mask is a function of the key and the position alone. Draw a new one for every call.
    pub key: u64,
}

impl Dropout {
    /// How many of 65,536 draws are zeroed.
    fn threshold(self) -> u32 {
        assert!(
            (0.0..1.0).contains(&self.probability),
            "dropout: a probability of {} is not in [0, 1)",
            self.probability
        );
        ((self.probability * 65_536.0).round() as u32).min(65_535)
    }

    fn draws(self, row: u64) -> Draws {
        let threshold = self.threshold();
        let key = mix(self.key ^ mix(row));
        Draws {
            key: [key as u32, (key >> 32) as u32],
            threshold,
            factor: 65_536.0 / (65_536 - threshold) as f32,
        }
    }

    /// The factors of one row, zero or the inverse of the probability of keeping.
    pub(crate) fn factors(self, row: u64, out: &mut [f32]) {
        fill(Isa::detect(), self.draws(row), out);
    }
}

/// `dropout(x) + residual`; without a residual, `dropout(x)`.
///
/// # Shapes
/// - `x`, `residual`, output: any, the same
///
/// # Panics
/// If the shapes differ, or the probability is not in `[0, 1)`.
pub fn dropout<const D: usize>(
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    dropout: Dropout,
) -> Tensor<D> {
    if let Some(residual) = &residual {
        assert_eq!(
            x.dims(),
            residual.dims(),
            "dropout: shapes of input and residual"
        );
    }
    if dropout.threshold() == 0 {
        return match residual {
            Some(residual) => x + residual,
            None => x,
        };
    }
    if !is_flex_f32(&x) || !residual.as_ref().is_none_or(is_flex_f32) {
        let mut mask = vec![0.0; x.shape().num_elements()];
        for (row, mask) in mask.chunks_mut(GRAIN).enumerate() {
            dropout.factors(row as u64, mask);
        }
        let mask = Tensor::<D>::from_data(TensorData::new(mask, x.dims()), &x.device());
        let out = x.clone() * mask.cast(x.dtype());
        return match residual {
            Some(residual) => out + residual,
            None => out,
        };
    }
    let x = x.into_dispatch();
    Tensor::from_dispatch(match residual {
        Some(residual) => Dispatch::fused_dropout_add(x, residual.into_dispatch(), dropout),
        None => Dispatch::fused_dropout(x, dropout),
    })
}

/// Dropout as Burn's dispatch sees it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FusedDropout: Backend {
    /// See [`dropout`].
    fn fused_dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self>;
    /// See [`dropout`].
    fn fused_dropout_add(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        dropout: Dropout,
    ) -> FloatTensor<Self>;
}

impl FusedDropout for Flex {
    fn fused_dropout(x: FlexTensor, dropout: Dropout) -> FlexTensor {
        apply(x, None, dropout)
    }

    fn fused_dropout_add(x: FlexTensor, residual: FlexTensor, dropout: Dropout) -> FlexTensor {
        apply(x, Some(residual), dropout)
    }
}

impl<C: CheckpointStrategy> FusedDropout for Autodiff<Flex, C> {
    fn fused_dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        let prep = DropoutBackward.prepare::<C>([x.node()]).compute_bound();
        let out = apply(x.into_primitive(), None, dropout);
        match prep.stateful() {
            OpsKind::Tracked(prep) => prep.finish(dropout, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn fused_dropout_add(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        dropout: Dropout,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), residual.node()];
        let prep = DropoutBackward.prepare::<C>(nodes).compute_bound();
        let out = apply(x.into_primitive(), Some(residual.into_primitive()), dropout);
        match prep.stateful() {
            OpsKind::Tracked(prep) => prep.finish(dropout, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[derive(Debug)]
struct DropoutBackward;

/// Parents are the input and, with two of them, the residual.
impl<const PARENTS: usize> Backward<Flex, PARENTS> for DropoutBackward {
    type State = Dropout;

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let [x, residual] = std::array::from_fn(|_| parents.next().flatten());
        if let Some(node) = x {
            grads.register::<Flex>(node.id, apply(grad.clone(), None, ops.state));
        }
        if let Some(node) = residual {
            grads.register::<Flex>(node.id, grad);
        }
    }
}

/// The mask times `x`, plus `residual`.
fn apply(x: FlexTensor, residual: Option<FlexTensor>, dropout: Dropout) -> FlexTensor {
    let shape = x.shape();
    let (x, residual) = (contiguous(x), residual.map(contiguous));
    let (isa, values): (_, &[f32]) = (Isa::detect(), x.storage());
    let write = |out: &mut [MaybeUninit<f32>]| {
        let chunks = out.par_chunks_mut(GRAIN).zip(values.par_chunks(GRAIN));
        chunks.enumerate().for_each(|(row, (out, x))| {
            let draws = dropout.draws(row as u64);
            match &residual {
                Some(residual) => {
                    let residual = &residual.storage::<f32>()[row * GRAIN..][..x.len()];
                    drop_onto(isa, draws, x, residual, out);
                }
                None => drop_some(isa, draws, x, out),
            }
        });
    };
    // SAFETY: every chunk is written from its start to its end.
    flex_tensor(unsafe { written(values.len(), write) }, &shape)
}

/// The draws of one row: a counter hashed with two keys gives two draws of 16 bits.
///
/// A block cipher per number would cost more than moving it. This is a multiply-shift hash of 32 bits
/// (the constants of Wellons 2018, "Prospecting for hash functions", found by search for the least bias
/// between flipped inputs and outputs), with a second key between its rounds, so that two rows are
/// neither equal nor each other's permutation unless both keys are. The tests hold it to the statistics
/// of independent draws; nobody should take secrets from it.
#[derive(Clone, Copy)]
struct Draws {
    key: [u32; 2],
    /// Draws below it are zeroed.
    threshold: u32,
    /// Of the others.
    factor: f32,
}

/// Words hashed side by side.
const WORDS: usize = 16;

/// Draws of [`WORDS`] words.
const BLOCK: usize = 2 * WORDS;

impl Draws {
    #[inline(always)]
    fn word(&self, counter: u32) -> u32 {
        let x = counter ^ self.key[0];
        let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d) ^ self.key[1];
        let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
        x ^ x >> 16
    }

    /// The factors of block `index`: those of the words' lower halves, then of their upper ones.
    #[inline(always)]
    fn factors(&self, index: usize) -> [f32; BLOCK] {
        let one = |draw: u32| {
            if draw < self.threshold {
                0.0
            } else {
                self.factor
            }
        };
        let mut factors = [0.0; BLOCK];
        let (low, high) = factors.split_at_mut(WORDS);
        for (i, (low, high)) in low.iter_mut().zip(high).enumerate() {
            let word = self.word((index * WORDS + i) as u32);
            (*low, *high) = (one(word & 0xffff), one(word >> 16));
        }
        factors
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014), from the step after `x` on.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Defines a pass over blocks of [`BLOCK`] numbers with the factors of each.
macro_rules! pass {
    ($(#[$meta:meta])* $name:ident($($input:ident),*), $to:ty, |$out:ident, $factor:ident| $set:expr) => {
        vectorized! {
            $(#[$meta])*
            fn $name(draws: Draws, $($input: &[f32],)* out: &mut [$to]) {
                let len = out.len();
                $(let $input = &$input[..len];)*
                // Whole blocks are arrays, so that the compiler makes vectors of them.
                let (whole, rest) = out.as_chunks_mut::<BLOCK>();
                $(let $input = $input.as_chunks::<BLOCK>();)*
                for (index, out) in whole.iter_mut().enumerate() {
                    let factors = draws.factors(index);
                    $(let $input = &$input.0[index];)*
                    for i in 0..BLOCK {
                        let ($out, $factor) = (&mut out[i], factors[i]);
                        $(let $input = $input[i];)*
                        $set;
                    }
                }
                let factors = draws.factors(len / BLOCK);
                for (i, $out) in rest.iter_mut().enumerate() {
                    let $factor = factors[i];
                    $(let $input = $input.1[i];)*
                    $set;
                }
            }
        }
    };
}

pass!(fill(), f32, |out, factor| *out = factor);
pass!(drop_some(x), MaybeUninit<f32>, |out, factor| out
    .write(x * factor));
pass!(drop_onto(x, residual), MaybeUninit<f32>, |out, factor| out
    .write(x * factor + residual));

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(key: u64, row: u64) -> Draws {
        let probability = 0.5;
        Dropout { probability, key }.draws(row)
    }

    /// The statistic of Pearson's test that all of `cells` are equally frequent, as a number of standard
    /// deviations from its mean.
    fn unevenness(cells: &[u32]) -> f64 {
        let expected = f64::from(cells.iter().sum::<u32>()) / cells.len() as f64;
        let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
        let freedom = (cells.len() - 1) as f64;
        (cells.iter().map(square).sum::<f64>() - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn draws_are_uniform_and_pairs_of_them_independent() {
        /// Cells per draw, a power of two.
        const CELLS: usize = 64;
        let cell = |word: u32, half: usize| (word >> (16 * half + 10)) as usize % CELLS;
        // What is drawn beside what: two halves of a word; neighbours; one position of two rows, of two
        // keys a bit apart.
        type Pair = fn(u64, u32) -> [u32; 2];
        let pairs: [(&str, Pair, [usize; 2]); 5] = [
            ("halves", |row, i| [draws(1, row).word(i); 2], [0, 1]),
            (
                "neighbours",
                |row, i| [2 * i, 2 * i + 1].map(|i| draws(2, row).word(i)),
                [0, 0],
            ),
            (
                "rows",
                |row, i| [row, row + 1].map(|row| draws(3, row).word(i)),
                [1, 1],
            ),
            (
                "low bits of keys",
                |row, i| [8, 9].map(|key| draws(key, row).word(i)),
                [0, 0],
            ),
            (
                "high bits of keys",
                |row, i| [5, 5 | 1 << 63].map(|key| draws(key, row).word(i)),
                [1, 0],
            ),
        ];
        for (name, pair, halves) in pairs {
            let mut cells = vec![0; CELLS * CELLS];
            let mut single = [vec![0; CELLS], vec![0; CELLS]];
            for row in 0..64 {
                for i in 0..8_192 {
                    let words = pair(row, i);
                    let [a, b] = [0, 1].map(|which| cell(words[which], halves[which]));
                    cells[a * CELLS + b] += 1;
                    single[0][a] += 1;
                    single[1][b] += 1;
                }
            }
            for cells in [&cells, &single[0], &single[1]] {
                let off = unevenness(cells);
                assert!(off.abs() < 4.0, "{name}: {off} standard deviations");
            }
        }
    }

    #[test]
    fn a_flipped_bit_of_key_or_position_flips_half_of_the_word() {
        let mut flips = [0u32; 32];
        let mut count = 0;
        for row in 0..500 {
            let word = draws(77, row).word(row as u32);
            let changed = (0..64).map(|bit| draws(77 ^ 1 << bit, row).word(row as u32));
            let moved = (0..13).map(|bit| draws(77, row).word(row as u32 ^ 1 << bit));
            for other in changed.chain(moved) {
                count += 1;
                for (bit, flips) in flips.iter_mut().enumerate() {
                    *flips += (word ^ other) >> bit & 1;
                }
            }
        }
        for flips in flips {
            let off = (f64::from(flips) - f64::from(count) / 2.0) / (f64::from(count) / 4.0).sqrt();
            assert!(off.abs() < 4.5, "{off} standard deviations");
        }
    }

    #[test]
    fn runs_of_zeros_are_as_long_as_independent_draws_make_them() {
        // In order of position, as a row of activations sees them.
        let mut zeros = vec![0.0; 1 << 20];
        for (row, out) in zeros.chunks_mut(GRAIN).enumerate() {
            fill(Isa::detect(), draws(11, row as u64), out);
        }
        let mut runs = [0u32; 12];
        let mut run = 0;
        for factor in zeros {
            if factor == 0.0 {
                run += 1;
            } else {
                runs[run.min(11)] += 1;
                run = 0;
            }
        }
        let all: f64 = runs.iter().map(|count| f64::from(*count)).sum();
        for (len, count) in runs.iter().enumerate() {
            let expected = all * 0.5f64.powi(if len == 11 { 11 } else { len as i32 + 1 });
            let off = (f64::from(*count) - expected) / expected.sqrt();
            assert!(off.abs() < 4.0, "runs of {len}: {off} standard deviations");
        }
    }

    #[test]
    fn every_instruction_set_draws_the_same() {
        let x: Vec<f32> = (0..1000).map(|i| i as f32 / 7.0).collect();
        let on = |isa| {
            let draws = Dropout {
                probability: 0.2,
                key: 3,
            }
            .draws(1 << 33);
            let mut factors = vec![0.0; x.len()];
            fill(isa, draws, &mut factors);
            let mut out = vec![MaybeUninit::new(0.0); x.len()];
            drop_some(isa, draws, &x, &mut out);
            for ((out, factor), x) in out.iter().zip(&factors).zip(&x) {
                // SAFETY: they were initialised to begin with.
                assert_eq!(unsafe { out.assume_init() }, factor * x);
            }
            factors
        };
        for isa in Isa::available() {
            assert_eq!(on(isa), on(Isa::Portable), "{isa:?}");
        }
    }
}
