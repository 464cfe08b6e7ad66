//! The only source of randomness in Maquette.
//!
//! Every random number is a pure function of `(seed, stream, step)`: a ChaCha8 block counter
//! keyed by the run's seed, the purpose of the draw and the step it is drawn at. Nothing has to
//! be saved to resume a run, and drawing more for one purpose never shifts another.

use rand::{Rng as _, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

pub use rand;
pub use rand_distr;

/// The generator behind every draw.
pub type Rng = rand_chacha::ChaCha8Rng;

/// What a draw is for. Two streams never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stream {
    /// Parameter initialisation.
    Init = 1,
    /// Train / validation splits.
    Split = 2,
    /// The order in which examples are visited; `step` is the epoch.
    Shuffle = 3,
    /// Augmentation; `step` is the training step.
    Augment = 4,
    /// Noise inside an objective (diffusion noise and times, VAE noise).
    Noise = 5,
    /// Dropout, drawn by the backend from a per-step seed.
    Dropout = 6,
    /// Sampling from a trained model.
    Sample = 7,
    /// Built-in synthetic data.
    Data = 8,
    /// Evaluation.
    Evaluate = 9,
}

/// The generator for `(seed, stream, step)`.
pub fn rng(seed: u64, stream: Stream, step: u64) -> Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&step.to_le_bytes());
    let mut rng = Rng::from_seed(key);
    rng.set_stream(stream as u64);
    rng
}

/// One 64-bit seed for `(seed, stream, step)`, for a backend that keeps its own generator.
pub fn seed_for(seed: u64, stream: Stream, step: u64) -> u64 {
    rng(seed, stream, step).next_u64()
}

/// `n` independent standard normal numbers.
pub fn normal(rng: &mut Rng, n: usize) -> Vec<f32> {
    StandardNormal.sample_iter(rng).take(n).collect()
}

/// `n` independent numbers, uniform on `[0, 1)`.
pub fn uniform(rng: &mut Rng, n: usize) -> Vec<f32> {
    rand_distr::StandardUniform
        .sample_iter(rng)
        .take(n)
        .collect()
}

/// A uniformly random permutation of `0..n`.
pub fn permutation(rng: &mut Rng, n: usize) -> Vec<usize> {
    use rand::seq::SliceRandom;
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_key_same_numbers() {
        let draw = || normal(&mut rng(7, Stream::Noise, 3), 8);
        assert_eq!(draw(), draw());
    }

    #[test]
    fn seed_stream_and_step_each_change_the_numbers() {
        let first = |seed, stream, step| seed_for(seed, stream, step);
        let base = first(1, Stream::Noise, 1);
        assert_ne!(base, first(2, Stream::Noise, 1));
        assert_ne!(base, first(1, Stream::Sample, 1));
        assert_ne!(base, first(1, Stream::Noise, 2));
    }

    #[test]
    fn normal_has_unit_moments() {
        let x = normal(&mut rng(0, Stream::Noise, 0), 100_000);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((var - 1.0).abs() < 0.02, "variance {var}");
    }
}
