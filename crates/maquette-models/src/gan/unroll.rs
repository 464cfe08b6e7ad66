//! Unrolled GANs: the generator plays against the critic as it will be some updates ahead (Metz et al.
//! 2017, arXiv:1611.02163).
//!
//! The critic's updates are gradient descent written as forward operators: its own backward pass through
//! linear layers, products and masks. So the generator's gradient goes through them, second derivatives
//! included, and is exact.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::layer::Layer;
use super::{AdversarialLoss, Critic, GanConfig, Network, NormChoice};
use crate::error::{ModelError, require};

/// Configuration of unrolling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnrollConfig {
    /// The critic's updates that the generator looks ahead.
    pub steps: usize,
    /// The learning rate of these updates, which are plain gradient descent.
    pub lr: f64,
}

impl UnrollConfig {
    /// Checks that the critic's updates can be written out.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming what cannot.
    pub fn validate(&self, gan: &GanConfig) -> Result<(), ModelError> {
        require(self.steps > 0, "unroll.steps", || {
            "must be at least 1; leave `unroll` out for none".into()
        })?;
        let usable = self.lr.is_finite() && self.lr > 0.0;
        require(usable, "unroll.lr", || "must be above 0".into())?;
        let critic = &gan.critic;
        let plain = gan.network == Network::Mlp
            && critic.norm == NormChoice::None
            && !critic.spectral_norm
            && !critic.mixes_examples()
            && critic.activation.is_piecewise_linear();
        require(plain, "unroll", || {
            "is exact only for an mlp critic of relu or leaky-relu layers with nothing around them; \
             leave out norms and minibatch features, or leave out `unroll`"
                .into()
        })
    }

    /// The scores of `[real, fake]` by the critic after its updates, differentiable with respect to both.
    ///
    /// # Shapes
    /// - real, fake: `[batch, channels, height, width]`
    /// - outputs: `[batch / packing]`
    ///
    /// # Panics
    /// If [`UnrollConfig::validate`] fails.
    pub(super) fn scores(
        &self,
        critic: &Critic,
        loss: AdversarialLoss,
        smoothing: f64,
        examples: [Tensor<4>; 2],
    ) -> [Tensor<1>; 2] {
        let layers = critic
            .plain_layers()
            .expect("validate() admits plain linear layers alone");
        let [real, fake] = examples.map(|x| critic.packed(x).flatten::<2>(1, 3));
        let mut ahead = Ahead {
            weights: layers
                .iter()
                .map(|(_, w, b)| (w.clone(), b.clone()))
                .collect(),
            layers: layers.into_iter().map(|(layer, ..)| layer).collect(),
        };
        for _ in 0..self.steps {
            let passes = [&real, &fake].map(|x| ahead.forward(x.clone()));
            let slopes = loss.critic_slopes(passes[0].scores(), passes[1].scores(), smoothing);
            ahead.descend(passes, slopes, self.lr);
        }
        [real, fake].map(|x| ahead.forward(x).scores())
    }
}

/// The critic as it will be: the layers' activations with weights of its own.
struct Ahead<'a> {
    layers: Vec<&'a Layer>,
    weights: Vec<(Tensor<2>, Tensor<1>)>,
}

/// A forward pass: the input of every layer and the slope of its activation, and the output.
struct Pass {
    layers: Vec<(Tensor<2>, Tensor<2>)>,
    output: Tensor<2>,
}

impl Pass {
    fn scores(&self) -> Tensor<1> {
        self.output.clone().flatten(0, 1)
    }
}

impl Ahead<'_> {
    fn forward(&self, x: Tensor<2>) -> Pass {
        let mut output = x;
        let mut passed = Vec::with_capacity(self.layers.len());
        for (layer, (weight, bias)) in self.layers.iter().zip(&self.weights) {
            let h = output.clone().matmul(weight.clone()) + bias.clone().unsqueeze();
            let slope = layer.slope(h.clone());
            passed.push((output, slope.clone()));
            output = h * slope;
        }
        Pass {
            layers: passed,
            output,
        }
    }

    /// One step of gradient descent, given the loss's slope at each score.
    fn descend(&mut self, passes: [Pass; 2], slopes: [Tensor<1>; 2], lr: f64) {
        let old = self.weights.clone();
        for (pass, slope) in passes.into_iter().zip(slopes) {
            let mut grad: Tensor<2> = slope.unsqueeze_dim(1);
            for (i, (input, slope)) in pass.layers.into_iter().enumerate().rev() {
                let delta = grad * slope;
                let (weight, bias) = &mut self.weights[i];
                *weight = weight.clone() - input.transpose().matmul(delta.clone()) * lr;
                *bias = bias.clone() - delta.clone().sum_dim(0).flatten::<1>(0, 1) * lr;
                grad = delta.matmul(old[i].0.clone().transpose());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, TensorData};
    use maquette_rng::{Stream, normal, rng};

    use super::*;

    const LOSSES: [AdversarialLoss; 3] = [
        AdversarialLoss::NonSaturating,
        AdversarialLoss::LeastSquares,
        AdversarialLoss::Relativistic,
    ];

    fn critic() -> Critic {
        let config = GanConfig {
            width: 10,
            n_layers: 2,
            ..GanConfig::default()
        };
        let device = Device::flex().autodiff();
        config.init(&device, &mut rng(2, Stream::Init, 0)).critic
    }

    fn points(seed: u64) -> Tensor<4> {
        let values = normal(&mut rng(seed, Stream::Data, 0), 16);
        let shape = [8, 2, 1, 1];
        Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
    }

    #[test]
    fn unrolled_updates_are_the_critic_s_own() {
        let unroll = UnrollConfig { steps: 3, lr: 0.02 };
        for loss in LOSSES {
            let mut own = critic();
            let mut sgd = burn::optim::SgdConfig::new().init();
            for _ in 0..unroll.steps {
                let [real, fake] = [points(0), points(1)].map(|x| own.judge(x).scores);
                let grads = loss.critic(real, fake, 0.0).backward();
                let grads = GradientsParams::from_grads(grads, &own);
                own = sgd.step(unroll.lr, own, grads);
            }
            let expected = own.judge(points(1)).scores;
            let frozen = critic().no_grad();
            let [_, got] = unroll.scores(&frozen, loss, 0.0, [points(0), points(1)]);
            let size = expected.clone().abs().max().into_scalar::<f32>();
            let gap = (got - expected).abs().max().into_scalar::<f32>();
            assert!(gap < 1e-5 * size.max(1.0), "{loss:?}: {gap} of {size}");
        }
    }

    #[test]
    fn the_generator_s_gradient_equals_finite_differences() {
        let unroll = UnrollConfig { steps: 3, lr: 0.02 };
        let frozen = critic().no_grad();
        for loss in LOSSES {
            let value = |fake: Tensor<4>| {
                let [real, fake] = unroll.scores(&frozen, loss, 0.0, [points(0), fake]);
                loss.generator(real, fake)
            };
            let fake = points(1).require_grad();
            let grads = value(fake.clone()).backward();
            let grad = fake.grad(&grads).unwrap();
            let direction = points(9).inner();
            let slope = (grad * direction.clone()).sum().into_scalar::<f32>();
            let at = |step: f32| {
                let moved = points(1) + Tensor::from_inner(direction.clone()) * step;
                value(moved).into_scalar::<f32>()
            };
            let numeric = (at(5e-4) - at(-5e-4)) / 1e-3;
            let gap = (numeric - slope).abs() / slope.abs();
            assert!(gap < 5e-3, "{loss:?}: {numeric} against {slope}");
        }
    }

    #[test]
    fn what_cannot_be_unrolled_is_refused() {
        let mut config = GanConfig::default();
        config.critic.spectral_norm = true;
        let unroll = UnrollConfig { steps: 5, lr: 0.1 };
        let message = unroll.validate(&config).unwrap_err().to_string();
        assert!(message.starts_with("unroll: is exact only"), "{message}");
    }
}
