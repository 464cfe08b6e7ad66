//! Rotary position embedding (Su et al. 2021), in the layout of the Llama family.

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use maquette_kernels::rotary;
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// How a model's rotary frequencies were stretched to a longer context than it was first trained
/// on. Spelled as `rope_parameters` in a Hugging Face `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every position is divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// How much longer the context became.
        factor: f64,
    },
    /// The base grows with a text that is longer than `seq_len`; nothing changes within it, and
    /// nothing longer is read here.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
    },
    /// Long wavelengths are divided by `factor`, short ones kept, those between blended (Llama 3.1,
    /// arXiv:2407.21783).
    Llama3 {
        /// How much longer the context became.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings` over this are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings` over this are kept.
        high_freq_factor: f64,
        /// The context before.
        original_max_position_embeddings: usize,
    },
    /// A linear ramp over the features instead of over the wavelengths, and a temperature of the
    /// scores (YaRN, Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// How much longer the context became.
        factor: f64,
        /// The context before.
        original_max_position_embeddings: usize,
        /// Features that turn more often than this within the old context are kept.
        #[serde(default = "beta_fast")]
        beta_fast: f64,
        /// Features that turn less often than this are divided.
        #[serde(default = "beta_slow")]
        beta_slow: f64,
        /// Multiplies the rotated queries and keys; `0.1 ln(factor) + 1` if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attention_factor: Option<f64>,
        /// Whether the ramp begins and ends at whole features.
        #[serde(default = "truncate")]
        truncate: bool,
    },
}

fn beta_fast() -> f64 {
    32.0
}

fn beta_slow() -> f64 {
    1.0
}

fn truncate() -> bool {
    true
}

impl RopeScaling {
    /// What is wrong with the numbers, if anything is.
    pub fn fault(&self) -> Option<String> {
        let positive = |name: &str, value: f64| {
            let wrong = !(value > 0.0 && value.is_finite());
            wrong.then(|| format!("{name} must be positive, not {value}"))
        };
        let old = |context: usize| positive("original_max_position_embeddings", context as f64);
        match *self {
            Self::Linear { factor } | Self::Dynamic { factor } => positive("factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => positive("factor", factor)
                .or_else(|| positive("low_freq_factor", low_freq_factor))
                .or_else(|| old(original_max_position_embeddings))
                .or_else(|| {
                    let order = high_freq_factor > low_freq_factor;
                    (!order).then(|| "high_freq_factor must exceed low_freq_factor".into())
                }),
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => positive("factor", factor)
                .or_else(|| old(original_max_position_embeddings))
                .or_else(|| positive("beta_fast", beta_fast))
                .or_else(|| positive("beta_slow", beta_slow))
                .or_else(|| positive("attention_factor", attention_factor.unwrap_or(1.0))),
        }
    }

    /// Multiplies cosines and sines.
    fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn {
                factor,
                attention_factor,
                ..
            } => attention_factor.unwrap_or(if factor > 1.0 {
                0.1 * factor.ln() + 1.0
            } else {
                1.0
            }),
            _ => 1.0,
        }
    }

    /// The frequency of the pair `i`, in radians a position, where it was `frequency` before.
    fn stretch(&self, frequency: f64, i: usize, d_head: usize, theta: f64) -> f64 {
        match *self {
            Self::Linear { factor } => frequency / factor,
            Self::Dynamic { .. } => frequency,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                // The feature that turns `turns` times within the old context.
                let feature = |turns: f64| {
                    let wavelengths = original_max_position_embeddings as f64 / (turns * TAU);
                    d_head as f64 * wavelengths.ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (feature(beta_fast), feature(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let low = low.max(0.0);
                let mut high = high.min(d_head as f64 - 1.0);
                if low == high {
                    high += 0.001;
                }
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (1.0 - divided + divided / factor)
            }
        }
    }
}

/// The angle of each pair of features per position, and what cosines and sines are multiplied by.
pub fn frequencies(d_head: usize, theta: f64, scaling: Option<&RopeScaling>) -> (Vec<f64>, f64) {
    let frequency = |i: usize| {
        let plain = theta.powf(-2.0 * i as f64 / d_head as f64);
        scaling.map_or(plain, |scaling| scaling.stretch(plain, i, d_head, theta))
    };
    let gain = scaling.map_or(1.0, RopeScaling::attention_factor);
    ((0..d_head / 2).map(frequency).collect(), gain)
}

/// Rotates the pair `(x[i], x[i + d_head / 2])` by `position * theta^(-2 i / d_head)`.
///
/// The two halves of a head are paired, not neighbours: this is how Hugging Face stores the weights
/// of the Llama family, and why Burn's own `RotaryEncoding` (which pairs neighbours) does not fit.
#[derive(Module, Debug)]
pub struct Rope {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rope {
    /// Tables for `seq_len` positions and heads of `d_head` (even) features.
    pub fn new(seq_len: usize, d_head: usize, theta: f64, device: &Device) -> Self {
        Self::stretched(seq_len, d_head, theta, None, device)
    }

    /// The same with stretched frequencies.
    pub fn stretched(
        seq_len: usize,
        d_head: usize,
        theta: f64,
        scaling: Option<&RopeScaling>,
        device: &Device,
    ) -> Self {
        let half = d_head / 2;
        let (frequencies, gain) = frequencies(d_head, theta, scaling);
        let table = |f: fn(f64) -> f64| {
            let row = |position| {
                let angle = move |frequency: &f64| (gain * f(position as f64 * frequency)) as f32;
                frequencies.iter().map(angle)
            };
            let values: Vec<f32> = (0..seq_len).flat_map(row).collect();
            Tensor::from_data(TensorData::new(values, [seq_len, half]), device)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Rotates the first `heads` heads, queries or keys that stand at positions `start..start + seq`.
    ///
    /// # Shapes
    /// - input, output: `[batch, seq, heads and others, d_head]`
    pub fn apply(&self, x: Tensor<4>, heads: usize, start: usize) -> Tensor<4> {
        let [_, seq, _, _] = x.dims();
        let [cos, sin] = [&self.cos, &self.sin].map(|table| table.clone().narrow(0, start, seq));
        rotary(x, cos, sin, heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_pairs_by_the_position() {
        let device = Device::flex();
        let rope = Rope::new(4, 2, 10_000.0, &device);
        let x = Tensor::<1>::from_floats([1.0, 0.0], &device).reshape([1, 1, 1, 2]);
        let got = rope.apply(x, 1, 3).into_data().try_to_vec::<f32>().unwrap();
        assert!((got[0] - 3f32.cos()).abs() < 1e-6 && (got[1] - 3f32.sin()).abs() < 1e-6);
    }

    #[test]
    fn stretches_what_its_scheme_stretches() {
        // Frequencies 1, 0.1, 0.01, 0.001 and an old context of 2 pi 100 positions: 100, 10, 1 and
        // 0.1 turns within it.
        let (d_head, theta) = (8, 10_000f64);
        let plain = |i: i32| 0.1f64.powi(i);
        let close = |scaling: RopeScaling, expected: [f64; 4]| {
            for (i, expected) in expected.into_iter().enumerate() {
                let got = scaling.stretch(plain(i as i32), i, d_head, theta);
                assert!(
                    (got / expected - 1.0).abs() < 1e-3,
                    "{scaling:?} {i}: {got}"
                );
            }
        };
        let factor = 4.0;
        close(
            RopeScaling::Linear { factor },
            [0.25, 0.025, 0.0025, 0.000_25],
        );
        close(RopeScaling::Dynamic { factor }, [1.0, 0.1, 0.01, 0.001]);
        let llama3 = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 2.0,
            high_freq_factor: 18.0,
            original_max_position_embeddings: 628,
        };
        close(llama3, [1.0, 0.1 * (0.5 + 0.5 / 4.0), 0.0025, 0.000_25]);
        let yarn = RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: 628,
            beta_fast: 100.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: false,
        };
        close(yarn, [1.0, 0.1 * (0.5 + 0.5 / 4.0), 0.0025, 0.000_25]);
        assert!((yarn.attention_factor() - 1.138_629).abs() < 1e-6);
        assert!(yarn.fault().is_none());
        let fault = RopeScaling::Linear { factor: 0.0 }.fault().unwrap();
        assert!(fault.contains("factor must be positive"), "{fault}");
    }

    #[test]
    fn scores_depend_on_the_distance_only() {
        let device = Device::flex();
        let rope = Rope::new(32, 8, 10_000.0, &device);
        let vector = |seed| {
            let mut rng = maquette_rng::rng(seed, maquette_rng::Stream::Data, 0);
            let values = maquette_rng::normal(&mut rng, 8);
            Tensor::<4>::from_data(TensorData::new(values, [1, 1, 1, 8]), &device)
        };
        let score = |i, j| {
            let product = rope.apply(vector(1), 1, i) * rope.apply(vector(2), 1, j);
            product.sum().into_scalar::<f32>()
        };
        assert!((score(3, 1) - score(20, 18)).abs() < 1e-4);
        assert!((score(3, 1) - score(20, 17)).abs() > 1e-3);
    }
}
