//! Parameter initialisation from a passed generator.
//!
//! Burn draws weights from a generator hidden in the device and gives every parameter a random
//! identity. Here both are functions of the arguments: the numbers come from the generator passed
//! in, in the order of the module's fields, and the identity is a hash of the parameter's path. So
//! an optimiser's state, which Burn keys by identity, finds its parameters again after a restart.

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Tensor, TensorData},
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

/// How the weights of a network are drawn. Gains start at one, offsets at zero (but see `FanIn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitScheme {
    /// Uniform on `+-1 / sqrt(fan_in)`, offsets too: PyTorch's default (LeCun et al. 1998).
    FanIn,
    /// Uniform on `+-sqrt(6 / (fan_in + fan_out))` (Glorot & Bengio 2010).
    Xavier,
    /// Normal of deviation `sqrt(2 / fan_in)` (He et al. 2015).
    He,
    /// Normal of deviation 0.02, divided by `sqrt(2 n_layers)` where a block writes into the
    /// residual stream (Radford et al. 2019).
    Scaled,
}

/// One parameter about to be filled.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    /// Field names from the root, joined by dots.
    pub path: &'a str,
    /// Shape of the parameter.
    pub shape: &'a [usize],
    /// Inputs that feed one output; for an offset, those of the weight beside it.
    pub fan_in: usize,
    /// Outputs that one input feeds.
    pub fan_out: usize,
}

/// What to fill a parameter with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// One number everywhere.
    Constant(f32),
    /// Independent normal numbers of mean zero.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Independent numbers, uniform on `+-bound`.
    Uniform {
        /// Half the width.
        bound: f32,
    },
    /// The sinusoids of positions, of a `[positions, features]` table; nothing is drawn.
    Sinusoids {
        /// Half the distance from crest to trough.
        amplitude: f32,
    },
}

impl InitScheme {
    /// The scheme's rule for a linear or convolutional layer, or a norm.
    pub fn fill(self, slot: &Slot) -> Fill {
        let name = slot.path.rsplit('.').next().unwrap_or_default();
        let (fan_in, fan_out) = (slot.fan_in as f32, slot.fan_out as f32);
        match (slot.shape.len(), self) {
            (1, _) if name == "weight" => Fill::Constant(1.0),
            (1, Self::FanIn) if slot.fan_in > 0 => Fill::Uniform {
                bound: fan_in.sqrt().recip(),
            },
            (1, _) => Fill::Constant(0.0),
            (_, Self::FanIn) => Fill::Uniform {
                bound: fan_in.sqrt().recip(),
            },
            (_, Self::Xavier) => Fill::Uniform {
                bound: (6.0 / (fan_in + fan_out)).sqrt(),
            },
            (_, Self::He) => Fill::Normal {
                std: (2.0 / fan_in).sqrt(),
            },
            (_, Self::Scaled) => Fill::Normal { std: 0.02 },
        }
    }
}

/// Fills every float parameter by `rule` and names it by its path.
///
/// Same generator, same module: same weights and identities, whatever was drawn elsewhere.
pub fn initialise<M: Module>(module: M, rng: &mut Rng, rule: impl Fn(&Slot) -> Fill) -> M {
    module.map(&mut Initialise {
        path: Vec::new(),
        beside: None,
        rng,
        rule,
    })
}

/// The identity of the parameter at a path: FNV-1a, 64 bit.
fn identity(path: &str) -> ParamId {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ParamId::from(hash)
}

struct Initialise<'a, F> {
    path: Vec<String>,
    /// Parent path and fans of the last weight matrix, for the offset that follows it.
    beside: Option<(Vec<String>, usize, usize)>,
    rng: &'a mut Rng,
    rule: F,
}

impl<F: Fn(&Slot) -> Fill> Initialise<'_, F> {
    /// Fan-in and fan-out: `[in, out]` for a matrix, `[out, in, kernel...]` for a convolution.
    fn fans(&mut self, shape: &[usize]) -> (usize, usize) {
        let parent = self.path[..self.path.len().saturating_sub(1)].to_vec();
        match shape {
            [d_in, d_out] => {
                self.beside = Some((parent, *d_in, *d_out));
                (*d_in, *d_out)
            }
            [d_out, d_in, kernel @ ..] if !kernel.is_empty() => {
                let area: usize = kernel.iter().product();
                self.beside = Some((parent, d_in * area, d_out * area));
                (d_in * area, d_out * area)
            }
            _ => match &self.beside {
                Some((beside, fan_in, fan_out)) if *beside == parent => (*fan_in, *fan_out),
                _ => (0, 0),
            },
        }
    }
}

impl<F: Fn(&Slot) -> Fill> ModuleMapper for Initialise<'_, F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let n = shape.num_elements();
        let (fan_in, fan_out) = self.fans(shape.as_slice());
        let path = self.path.join(".");
        let slot = Slot {
            path: &path,
            shape: shape.as_slice(),
            fan_in,
            fan_out,
        };
        let values = match (self.rule)(&slot) {
            Fill::Constant(value) => vec![value; n],
            Fill::Normal { std } => maquette_rng::normal(self.rng, n)
                .into_iter()
                .map(|z| z * std)
                .collect(),
            Fill::Uniform { bound } => maquette_rng::uniform(self.rng, n)
                .into_iter()
                .map(|u| (2.0 * u - 1.0) * bound)
                .collect(),
            Fill::Sinusoids { amplitude } => {
                let [positions, features] = slot.shape.try_into().expect("a table of positions");
                let waves = crate::positions::waves(positions, features);
                waves.into_iter().map(|wave| wave * amplitude).collect()
            }
        };
        let tensor = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
        param.transform_for_load(tensor, identity(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{nn::LinearConfig, tensor::Device};
    use maquette_rng::{Stream, rng};

    fn linear(seed: u64, scheme: InitScheme) -> burn::nn::Linear {
        let linear = LinearConfig::new(100, 50).init(&Device::flex().autodiff());
        initialise(linear, &mut rng(seed, Stream::Init, 0), |slot| {
            scheme.fill(slot)
        })
    }

    #[test]
    fn same_generator_same_weights_and_identities() {
        let (a, b) = (linear(1, InitScheme::He), linear(1, InitScheme::He));
        assert_eq!(a.weight.to_data(), b.weight.to_data());
        assert_eq!(a.weight.id, b.weight.id);
        assert_ne!(a.weight.id, a.bias.as_ref().unwrap().id);
        assert_ne!(
            a.weight.to_data(),
            linear(2, InitScheme::He).weight.to_data()
        );
    }

    #[test]
    fn weights_have_the_scheme_s_deviation() {
        let uniform = |bound: f32| bound / 3f32.sqrt();
        for (scheme, expected) in [
            (InitScheme::FanIn, uniform(0.1)),
            (InitScheme::Xavier, uniform(0.2)),
            (InitScheme::He, 0.02f32.sqrt()),
            (InitScheme::Scaled, 0.02),
        ] {
            let linear = linear(3, scheme);
            let values = linear.weight.to_data().try_to_vec::<f32>().unwrap();
            let std = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            assert!(
                (std / expected - 1.0).abs() < 0.05,
                "{scheme:?}: {std}, {expected}"
            );
            let bias = linear.bias.unwrap().to_data().try_to_vec::<f32>().unwrap();
            assert_eq!(bias.iter().any(|b| *b != 0.0), scheme == InitScheme::FanIn);
            assert!(bias.iter().all(|b| b.abs() <= 0.1));
        }
    }

    #[test]
    fn parameters_stay_trainable() {
        let linear = linear(1, InitScheme::Xavier);
        assert!(linear.weight.is_require_grad());
        assert!(!linear.valid().weight.is_require_grad());
    }
}
