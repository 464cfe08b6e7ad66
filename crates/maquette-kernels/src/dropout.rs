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

    /// The factors of one row, zero or the inverse of the probability of keeping.
    pub(crate) fn factors(self, row: u64, out: &mut [f32]) {
        let key = [self.key as u32, (self.key >> 32) as u32];
        fill(Isa::detect(), key, row, self.threshold(), out);
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
    let values: &[f32] = x.storage();
    let write = |out: &mut [MaybeUninit<f32>]| {
        let chunks = out.par_chunks_mut(GRAIN).zip(values.par_chunks(GRAIN));
        chunks.enumerate().for_each_init(
            || vec![0.0; GRAIN],
            |mask, (row, (out, x))| {
                let mask = &mut mask[..x.len()];
                dropout.factors(row as u64, mask);
                match &residual {
                    Some(residual) => {
                        let residual = &residual.storage::<f32>()[row * GRAIN..][..x.len()];
                        multiply_add(Isa::detect(), x, mask, residual, out);
                    }
                    None => multiply(Isa::detect(), x, mask, out),
                }
            },
        );
    };
    // SAFETY: every chunk is written from its start to its end.
    flex_tensor(unsafe { written(values.len(), write) }, &shape)
}

vectorized! {
    fn multiply(x: &[f32], mask: &[f32], out: &mut [MaybeUninit<f32>]) {
        for ((out, x), mask) in out.iter_mut().zip(x).zip(mask) {
            out.write(x * mask);
        }
    }
}

vectorized! {
    fn multiply_add(x: &[f32], mask: &[f32], residual: &[f32], out: &mut [MaybeUninit<f32>]) {
        for (((out, x), mask), residual) in out.iter_mut().zip(x).zip(mask).zip(residual) {
            out.write(x * mask + residual);
        }
    }
}

/// Blocks of the generator computed side by side: one per 32-bit lane.
const BLOCKS: usize = 16;

/// Draws of [`BLOCKS`] blocks: four words of two draws each.
const DRAWS: usize = 8 * BLOCKS;

vectorized! {
    /// The factors of one row: zero where a draw of 16 bits is below `threshold`.
    fn fill(key: [u32; 2], row: u64, threshold: u32, out: &mut [f32]) {
        let factor = 65_536.0 / (65_536 - threshold) as f32;
        let one = |draw: u32| if draw < threshold { 0.0 } else { factor };
        for (index, out) in out.chunks_mut(DRAWS).enumerate() {
            let words = philox(key, row, (index * BLOCKS) as u32);
            let mut factors = [[[0.0; BLOCKS]; 2]; 4];
            for (factors, words) in factors.iter_mut().zip(&words) {
                let [low, high] = factors;
                for (i, word) in words.iter().enumerate() {
                    low[i] = one(word & 0xffff);
                    high[i] = one(word >> 16);
                }
            }
            out.copy_from_slice(&factors.as_flattened().as_flattened()[..out.len()]);
        }
    }
}

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of
/// [`BLOCKS`] counters from `first` on, the four words of each one vector apart.
#[inline(always)]
fn philox(key: [u32; 2], row: u64, first: u32) -> [[u32; BLOCKS]; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let mut x = [[0; BLOCKS]; 4];
    for (i, lane) in x[0].iter_mut().enumerate() {
        *lane = first.wrapping_add(i as u32);
    }
    x[1] = [row as u32; BLOCKS];
    x[2] = [(row >> 32) as u32; BLOCKS];
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        for i in 0..BLOCKS {
            let product = |which: usize, x: u32| u64::from(MULTIPLIERS[which]) * u64::from(x);
            let (a, b) = (product(0, x[0][i]), product(1, x[2][i]));
            x[0][i] = (b >> 32) as u32 ^ x[1][i] ^ k0;
            x[1][i] = b as u32;
            x[2][i] = (a >> 32) as u32 ^ x[3][i] ^ k1;
            x[3][i] = a as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_what_the_authors_publish() {
        // Random123's known answers of philox4x32-10.
        let words = |key, row, first| philox(key, row, first).map(|word| word[0]);
        assert_eq!(
            words([0, 0], 0, 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
    }

    #[test]
    fn every_instruction_set_draws_the_same() {
        let on = |isa| {
            let mut out = vec![0.0; 1000];
            fill(isa, [1, 2], 3, 13_107, &mut out);
            out
        };
        for isa in Isa::available() {
            assert_eq!(on(isa), on(Isa::Portable), "{isa:?}");
        }
    }
}
