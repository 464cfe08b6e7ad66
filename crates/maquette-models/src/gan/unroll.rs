//! Unrolled GANs: the generator plays against the critic as it will be some updates ahead (Metz et al.
//! 2017, arXiv:1611.02163).
//!
//! The critic's updates are gradient descent written as forward operators: its own backward pass through
//! linear layers, products and masks. So the generator's gradient goes through them, second derivatives
//! included, and is exact.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::layer::{Layer, PlainDense};
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
            && gan.conditioning.is_none()
            && critic.norm == NormChoice::None
            && !critic.mixes_examples()
            && critic.activation.is_piecewise_linear();
        require(plain, "unroll", || {
            "is exact only for an mlp critic of relu or leaky-relu layers, spectrally normalised or not; \
             leave out other norms, labels and minibatch features, or leave out `unroll`"
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
        // Real and made examples in one batch: half as many products, twice as large.
        let examples = examples.map(|x| critic.seen(x, None).flatten::<2>(1, 3));
        let [real, fake] = [0, 1].map(|i| examples[i].dims()[0]);
        assert_eq!(real, fake, "unrolling: as many made examples as real ones");
        let examples = Tensor::cat(examples.into(), 0);
        let (layers, weights) = layers.into_iter().unzip();
        let mut ahead = Ahead { layers, weights };
        for _ in 0..self.steps {
            let pass = ahead.forward(examples.clone());
            let [real, fake] = pass.scores();
            let slopes = loss.critic_slopes(real, fake, smoothing);
            ahead.descend(pass, Tensor::cat(slopes.into(), 0), self.lr);
        }
        ahead.forward(examples).scores()
    }
}

/// The critic as it will be: the layers' activations with weights of its own.
struct Ahead<'a> {
    layers: Vec<&'a Layer>,
    weights: Vec<PlainDense>,
}

/// A forward pass: the input of every layer and the slope of its activation, and the output.
struct Pass {
    layers: Vec<(Tensor<2>, Tensor<2>)>,
    output: Tensor<2>,
}

impl Pass {
    /// Those of real and of made examples.
    fn scores(&self) -> [Tensor<1>; 2] {
        let scores: Tensor<1> = self.output.clone().flatten(0, 1);
        let half = scores.dims()[0] / 2;
        [0, half].map(|start| scores.clone().narrow(0, start, half))
    }
}

/// A weight as it multiplies, and what its gradient needs of that.
struct Effective {
    weight: Tensor<2>,
    /// `sigma`, `[1, 1]`, and its gradient with respect to the weight, of a spectrally normalised one.
    scaled: Option<(Tensor<2>, Tensor<2>)>,
}

impl Effective {
    fn of(dense: &PlainDense) -> Self {
        let weight = dense.weight.clone();
        let Some(left) = &dense.left else {
            return Self {
                weight,
                scaled: None,
            };
        };
        // sigma = |u W|, and both it and its gradient move with the weight.
        let along = left.clone().matmul(weight.clone());
        let sigma = along.clone().square().sum_dim(1).sqrt() + 1e-12;
        let slope = left.clone().transpose().matmul(along / sigma.clone());
        Self {
            weight: weight / sigma.clone(),
            scaled: Some((sigma, slope)),
        }
    }

    /// From the gradient with respect to the weight that multiplies, that with respect to the one that is
    /// learnt.
    fn pullback(&self, grad: Tensor<2>) -> Tensor<2> {
        match &self.scaled {
            None => grad,
            Some((sigma, slope)) => {
                let along = (grad.clone() * self.weight.clone()).sum().reshape([1, 1]);
                (grad - slope.clone() * along) / sigma.clone()
            }
        }
    }
}

impl Ahead<'_> {
    fn forward(&self, x: Tensor<2>) -> Pass {
        let mut output = x;
        let mut passed = Vec::with_capacity(self.layers.len());
        for (layer, dense) in self.layers.iter().zip(&self.weights) {
            let weight = Effective::of(dense).weight;
            let h = output.clone().matmul(weight) + dense.bias.clone().unsqueeze();
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
    fn descend(&mut self, pass: Pass, slope: Tensor<1>, lr: f64) {
        let mut grad: Tensor<2> = slope.unsqueeze_dim(1);
        for (dense, layer) in self.weights.iter_mut().zip(pass.layers).rev() {
            let (input, slope) = layer;
            let old = Effective::of(dense);
            let delta = grad * slope;
            let moved = old.pullback(input.transpose().matmul(delta.clone()));
            dense.weight = dense.weight.clone() - moved * lr;
            dense.bias = dense.bias.clone() - delta.clone().sum_dim(0).flatten::<1>(0, 1) * lr;
            grad = delta.matmul(old.weight.transpose());
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

    fn critic(spectral_norm: bool) -> Critic {
        let mut config = GanConfig {
            width: 10,
            n_layers: 2,
            ..GanConfig::default()
        };
        config.critic.spectral_norm = spectral_norm;
        config.critic.input_scale = Some(0.5);
        let device = Device::flex().autodiff();
        config.init(&device, &mut rng(2, Stream::Init, 0)).critic
    }

    fn points(seed: u64) -> Tensor<4> {
        let values = normal(&mut rng(seed, Stream::Data, 0), 16);
        let shape = [8, 2, 1, 1];
        Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
    }

    const GAMES: [(AdversarialLoss, bool); 6] = {
        let [a, b, c] = LOSSES;
        [
            (a, false),
            (b, false),
            (c, false),
            (a, true),
            (b, true),
            (c, true),
        ]
    };

    #[test]
    fn unrolled_updates_are_the_critic_s_own() {
        let unroll = UnrollConfig { steps: 3, lr: 0.02 };
        for (loss, spectral) in GAMES {
            let mut own = critic(spectral);
            let mut sgd = burn::optim::SgdConfig::new().init();
            for _ in 0..unroll.steps {
                let [real, fake] = [points(0), points(1)].map(|x| own.judge(x).scores);
                let grads = loss.critic(real, fake, 0.0).backward();
                let grads = GradientsParams::from_grads(grads, &own);
                own = sgd.step(unroll.lr, own, grads);
            }
            let expected = own.judge(points(1)).scores;
            let frozen = critic(spectral).no_grad();
            let [_, got] = unroll.scores(&frozen, loss, 0.0, [points(0), points(1)]);
            let size = expected.clone().abs().max().into_scalar::<f32>();
            let gap = (got - expected).abs().max().into_scalar::<f32>();
            assert!(
                gap < 1e-5 * size.max(1.0),
                "{loss:?}, spectral {spectral}: {gap} of {size}"
            );
        }
    }

    #[test]
    fn the_generator_s_gradient_equals_finite_differences() {
        let unroll = UnrollConfig { steps: 3, lr: 0.02 };
        for (loss, spectral) in GAMES {
            let frozen = critic(spectral).no_grad();
            let value = |fake: Tensor<4>| {
                let [real, fake] = unroll.scores(&frozen, loss, 0.0, [points(0), fake]);
                loss.answered(real, fake)
            };
            let mut gaps = Vec::new();
            for seed in 1..30 {
                let fake = points(seed).require_grad();
                let grads = value(fake.clone()).backward();
                let grad = fake.grad(&grads).unwrap();
                // Along the gradient itself, the slope is its length.
                let slope = grad.clone().square().sum().sqrt();
                let direction = grad / slope.clone().reshape([1; 4]);
                let slope = slope.into_scalar::<f32>();
                let at = |step: f32| {
                    let move_by = Tensor::from_inner(direction.clone()) * step;
                    value(points(seed) + move_by).into_scalar::<f32>()
                };
                let (step, here) = (2e-3, at(0.0));
                let (back, ahead) = ((here - at(-step)) / step, (at(step) - here) / step);
                // Where an activation's corner lies within the step, both sides disagree.
                if (ahead - back).abs() > 1e-2 * slope {
                    continue;
                }
                let numeric = (back + ahead) / 2.0;
                gaps.push((numeric - slope).abs() / slope);
            }
            // Two corners may still cancel in one place; a wrong gradient would be wrong everywhere.
            gaps.sort_by(f32::total_cmp);
            let (n, middle) = (gaps.len(), gaps[gaps.len() / 2]);
            assert!(
                n >= 5,
                "{loss:?}, spectral {spectral}: corners in all but {n}"
            );
            assert!(middle < 2e-3, "{loss:?}, spectral {spectral}: {gaps:?}");
            assert!(
                gaps[n * 4 / 5] < 5e-3,
                "{loss:?}, spectral {spectral}: {gaps:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_unrolled_is_refused() {
        let mut config = GanConfig::default();
        config.critic.minibatch_deviation = true;
        let unroll = UnrollConfig { steps: 5, lr: 0.1 };
        let message = unroll.validate(&config).unwrap_err().to_string();
        assert!(message.starts_with("unroll: is exact only"), "{message}");
    }
}
