//! Exact penalties on the critic's gradient with respect to its input.
//!
//! The gradient is written as forward operators ([`Critic::input_gradient`]), so that the penalty's own
//! gradient with respect to the critic's weights is exact.

use burn::tensor::{Tensor, TensorData};
use maquette_rng::{Rng, uniform};
use serde::{Deserialize, Serialize};

use super::{Critic, GanConfig};
use crate::error::{ModelError, require};

/// What is penalised, `g` the gradient of a score with respect to its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PenaltyKind {
    /// `(|g| - 1)^2` between real and made examples (Gulrajani et al. 2017, eq. 3, arXiv:1704.00028).
    WganGp,
    /// `max(0, |g| - 1)^2` there (Petzka et al. 2018, arXiv:1709.08894).
    WganLp,
    /// `|g|^2 / 2` at real examples (Mescheder et al. 2018, eq. 9, arXiv:1801.04406).
    R1,
    /// `|g|^2 / 2` at made ones (the same, eq. 10).
    R2,
}

/// Configuration of a gradient penalty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PenaltyConfig {
    /// What is penalised.
    pub kind: PenaltyKind,
    /// Its factor: 10 is usual for `wgan-gp`; `gamma` of the others.
    pub weight: f64,
}

impl PenaltyConfig {
    /// Checks that the critic's gradient can be written out exactly.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming what cannot.
    pub fn validate(&self, gan: &GanConfig) -> Result<(), ModelError> {
        let usable = self.weight.is_finite() && self.weight >= 0.0;
        require(usable, "gradient_penalty.weight", || {
            "must be 0 or more".into()
        })?;
        let activation = gan.critic.activation;
        require(activation.is_piecewise_linear(), "gradient_penalty", || {
            format!(
                "is exact only for piecewise linear critics, and model.critic.activation is \
                     {activation:?}; use relu or leaky-relu there, or leave the penalty out"
            )
        })?;
        require(!gan.critic.mixes_examples(), "gradient_penalty", || {
            "is of each example alone, and this critic's scores depend on the rest of the \
                 batch; use model.critic.norm = \"layer\" or \"none\" and leave minibatch features out"
                    .into()
        })
    }

    /// The mean penalty over the batch, without its weight. The examples count as constants.
    ///
    /// # Shapes
    /// - real, fake: `[batch, channels, height, width]`
    /// - labels: of both, one-hot, `[batch, n_classes]`
    /// - output: `[1]`
    pub fn of(
        &self,
        critic: &Critic,
        [real, fake]: [Tensor<4>; 2],
        labels: Option<Tensor<2>>,
        rng: &mut Rng,
    ) -> Tensor<1> {
        let at = match self.kind {
            PenaltyKind::R1 => real,
            PenaltyKind::R2 => fake,
            PenaltyKind::WganGp | PenaltyKind::WganLp => {
                // One share per example; one per pack where several are judged together.
                let (batch, pack) = (real.dims()[0], critic.pack());
                let shares = uniform(rng, batch / pack);
                let shares: Vec<_> = shares.iter().flat_map(|s| vec![*s; pack]).collect();
                let shares = TensorData::new(shares, [batch, 1, 1, 1]);
                let shares = Tensor::<4>::from_data(shares, &real.device());
                fake.clone() + shares * (real - fake)
            }
        };
        self.at(critic, at, labels)
    }

    /// The mean penalty at given points.
    fn at(&self, critic: &Critic, at: Tensor<4>, labels: Option<Tensor<2>>) -> Tensor<1> {
        let (_, gradient) = critic.input_gradient(at, labels);
        let square = gradient.square().sum_dim(1);
        match self.kind {
            PenaltyKind::R1 | PenaltyKind::R2 => square.mean() * 0.5,
            // The root has no slope at zero; so small a number moves none.
            PenaltyKind::WganGp => ((square + 1e-12).sqrt() - 1.0).square().mean(),
            PenaltyKind::WganLp => {
                let excess = (square + 1e-12).sqrt() - 1.0;
                excess.clamp_min(0.0).square().mean()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
    use burn::tensor::Device;
    use maquette_nn::InitScheme;
    use maquette_nn::init::{Fill, initialise};
    use maquette_rng::{Stream, normal, rng};

    use super::*;
    use crate::gan::{
        Activation, Conditioning, CriticConfig, Gan, MinibatchConfig, Network, NormChoice,
    };

    fn gan(seed: u64, change: impl Fn(&mut GanConfig)) -> (Gan, GanConfig) {
        let mut config = GanConfig {
            width: 12,
            n_layers: 2,
            ..GanConfig::default()
        };
        change(&mut config);
        let device = Device::flex().autodiff();
        let mut gan = config.init(&device, &mut rng(seed, Stream::Init, 0));
        // Weights that keep the size of what they multiply, and offsets that keep most activations away
        // from their corners: differences of 32-bit floats then mean something.
        gan.critic = initialise(
            gan.critic,
            &mut rng(seed, Stream::Init, 1),
            |slot| match slot.path.rsplit('.').next() {
                Some("u" | "bias") => Fill::Normal { std: 1.0 },
                _ => InitScheme::He.fill(slot),
            },
        );
        (gan, config)
    }

    fn batch(seed: u64, config: &GanConfig) -> Tensor<4> {
        let [channels, height, width] = config.image;
        let shape = [6, channels, height, width];
        let values = normal(&mut rng(seed, Stream::Data, 0), shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
    }

    fn labels(config: &GanConfig) -> Option<Tensor<2>> {
        let n = config.n_classes;
        let classes = burn::tensor::Tensor::<1, burn::tensor::Int>::from_ints(
            [0, 1, 2, 0, 1, 2],
            &Device::flex().autodiff(),
        );
        (n > 0).then(|| crate::gan::one_hot(classes, n))
    }

    /// Adds `step` times a fixed direction to every trained parameter.
    struct Along {
        step: f32,
        seed: u64,
    }

    impl Along {
        fn direction(seed: &mut u64, n: usize) -> Vec<f32> {
            *seed += 1;
            normal(&mut rng(*seed, Stream::Noise, 0), n)
        }
    }

    impl ModuleMapper for Along {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !param.is_require_grad() {
                return param;
            }
            let shape = param.lazy_shape();
            let direction = Self::direction(&mut self.seed, shape.num_elements());
            let step = self.step;
            param.map(|weight| {
                let move_by = TensorData::new(direction, shape);
                let move_by = Tensor::from_data(move_by, &weight.device()) * step;
                (weight + move_by).detach().require_grad()
            })
        }
    }

    /// The slope of the loss along that direction, from the gradients.
    struct Slope<'a> {
        grads: &'a burn::tensor::Gradients,
        seed: u64,
        slope: f64,
        /// Squared length of the gradient: what the square of the slope is on average.
        square: f64,
    }

    impl ModuleVisitor for Slope<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let shape = param.lazy_shape();
            let direction = Along::direction(&mut self.seed, shape.num_elements());
            // An offset before a layer without activation moves no gradient.
            let Some(grad) = param.val().grad(self.grads) else {
                return;
            };
            let grad = grad.into_data().try_to_vec::<f32>().unwrap();
            self.square += grad.iter().map(|g| f64::from(g * g)).sum::<f64>();
            let products = grad.iter().zip(&direction);
            self.slope += products.map(|(g, d)| f64::from(g * d)).sum::<f64>();
        }
    }

    /// The largest gap between the penalty's slope and central differences over critics and directions,
    /// in lengths of the gradient.
    fn worst_gap(kind: PenaltyKind, change: impl Fn(&mut GanConfig)) -> f64 {
        let (mut worst, mut compared) = (0.0f64, 0);
        for seed in 0..30 {
            let (gan, config) = gan(seed, &change);
            let penalty = PenaltyConfig { kind, weight: 1.0 };
            penalty.validate(&config).unwrap();
            let value = |critic: &Critic| {
                let random = &mut rng(0, Stream::Noise, 1);
                let examples = [batch(1, &config), batch(2, &config)];
                penalty.of(critic, examples, labels(&config), random)
            };
            let grads = value(&gan.critic).backward();
            let seed = 100 * seed;
            let mut slope = Slope {
                grads: &grads,
                seed,
                slope: 0.0,
                square: 0.0,
            };
            gan.critic.visit(&mut slope);
            let numeric = |step: f32| {
                let at = |step: f32| {
                    let moved = gan.critic.clone().map(&mut Along { step, seed });
                    f64::from(value(&moved).into_scalar::<f32>())
                };
                (at(step) - at(-step)) / (2.0 * f64::from(step))
            };
            // Where an activation's corner lies within the step, the penalty jumps: differences of two
            // lengths then disagree, and say nothing of the slope.
            let (long, short) = (numeric(2e-4), numeric(1e-4));
            let length = slope.square.sqrt();
            if (long - short).abs() > 5e-4 * length {
                continue;
            }
            compared += 1;
            worst = worst.max((long - slope.slope).abs() / length);
        }
        println!("{kind:?}: {compared} compared, worst {worst:.1e}");
        assert!(compared >= 5, "corners in all but {compared}: {kind:?}");
        worst
    }

    #[test]
    fn parameter_gradient_equals_finite_differences() {
        let mlp = |change: fn(&mut CriticConfig)| {
            move |config: &mut GanConfig| change(&mut config.critic)
        };
        let image = |network, change: fn(&mut GanConfig)| {
            move |config: &mut GanConfig| {
                (config.network, config.width, config.image) = (network, 2, [1, 8, 8]);
                change(config);
            }
        };
        type Change = Box<dyn Fn(&mut GanConfig)>;
        let critics: [(&str, Change); 10] = [
            ("leaky", Box::new(mlp(|_| ()))),
            ("relu", Box::new(mlp(|c| c.activation = Activation::Relu))),
            ("layer norm", Box::new(mlp(|c| c.norm = NormChoice::Layer))),
            ("packed", Box::new(mlp(|c| c.packing = Some(2)))),
            ("scaled", Box::new(mlp(|c| c.input_scale = Some(0.25)))),
            ("convolutions", Box::new(image(Network::Dcgan, |_| ()))),
            (
                "instance norm",
                Box::new(image(Network::Dcgan, |c| {
                    (c.image, c.critic.norm) = ([1, 16, 16], NormChoice::Instance);
                })),
            ),
            ("residual", Box::new(image(Network::Resnet, |_| ()))),
            (
                "spectral norm",
                Box::new(image(Network::Resnet, |c| c.critic.spectral_norm = true)),
            ),
            (
                "labels as channels",
                Box::new(image(Network::Dcgan, |c| {
                    (c.conditioning, c.n_classes) = (Some(Conditioning::Concat), 3);
                })),
            ),
        ];
        for kind in [PenaltyKind::WganGp, PenaltyKind::R1, PenaltyKind::R2] {
            for (name, change) in &critics {
                let gap = worst_gap(kind, change);
                assert!(gap < 1e-3, "{kind:?}, {name}: {gap}");
            }
        }
    }

    /// A critic's step of WGAN-GP as PyTorch takes it, `fixtures/wgan_gp.py`.
    #[derive(serde::Deserialize)]
    struct Trace {
        start: Vec<Vec<f32>>,
        real: Vec<f32>,
        fake: Vec<f32>,
        shares: Vec<f32>,
        penalty: f32,
        penalty_grads: Vec<Vec<f32>>,
        loss: f32,
        grads: Vec<Vec<f32>>,
        after: Vec<Vec<f32>>,
    }

    /// Puts numbers into every parameter, in order.
    struct Put(std::vec::IntoIter<Vec<f32>>);

    impl ModuleMapper for Put {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let values = TensorData::new(self.0.next().unwrap(), param.lazy_shape());
            param.map(|old| Tensor::from_data(values, &old.device()).require_grad())
        }
    }

    /// The largest distance of what `of` finds in each parameter from `expected`.
    struct Compare<'a> {
        grads: Option<&'a burn::tensor::Gradients>,
        expected: std::slice::Iter<'a, Vec<f32>>,
        worst: f32,
    }

    impl ModuleVisitor for Compare<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let expected = self.expected.next().unwrap();
            let got = match self.grads {
                // The head's offset moves no gradient.
                Some(grads) => match param.val().grad(grads) {
                    Some(grad) => grad.into_data(),
                    None => TensorData::zeros::<f32, _>([expected.len()]),
                },
                None => param.val().into_data(),
            };
            for (got, expected) in got.try_to_vec::<f32>().unwrap().iter().zip(expected) {
                self.worst = self.worst.max((got - expected).abs());
            }
        }
    }

    #[test]
    fn a_step_of_wgan_gp_is_pytorch_s() {
        let trace = include_str!("../../fixtures/wgan_gp.json");
        let trace: Trace = serde_json::from_str(trace).unwrap();
        let config = GanConfig {
            image: [1, 16, 16],
            network: Network::Dcgan,
            width: 2,
            ..GanConfig::default()
        };
        let device = Device::flex().autodiff();
        let critic = config.init(&device, &mut rng(0, Stream::Init, 0)).critic;
        let critic = critic.map(&mut Put(trace.start.clone().into_iter()));
        let tensor = |values: &[f32], shape: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &device)
        };
        let [real, fake] = [&trace.real, &trace.fake].map(|x| tensor(x, [4, 1, 16, 16]));
        let shares = tensor(&trace.shares, [4, 1, 1, 1]);
        let penalty = PenaltyConfig {
            kind: PenaltyKind::WganGp,
            weight: 10.0,
        };
        let between = fake.clone() + shares * (real.clone() - fake.clone());
        let apart = |grads: Option<&_>, expected: &[Vec<f32>], critic: &Critic| {
            let mut compare = Compare {
                grads,
                expected: expected.iter(),
                worst: 0.0,
            };
            critic.visit(&mut compare);
            compare.worst
        };
        let value = || penalty.at(&critic, between.clone(), None);
        assert!((value().into_scalar::<f32>() - trace.penalty).abs() < 1e-5);
        let grads = value().backward();
        let gap = apart(Some(&grads), &trace.penalty_grads, &critic);
        assert!(gap < 1e-5, "gradients of the penalty: {gap}");

        let loss = super::super::AdversarialLoss::Wasserstein.critic(
            critic.judge(real).scores,
            critic.judge(fake).scores,
            0.0,
        ) + value() * penalty.weight;
        assert!((loss.clone().into_scalar::<f32>() - trace.loss).abs() < 1e-4);
        let grads = loss.backward();
        let gap = apart(Some(&grads), &trace.grads, &critic);
        assert!(
            gap < 1e-4,
            "gradients of the loss, ten times the penalty: {gap}"
        );
        let adam = burn::optim::AdamConfig::new()
            .with_beta_1(0.5)
            .with_beta_2(0.9)
            .with_epsilon(1e-8);
        let grads = burn::optim::GradientsParams::from_grads(grads, &critic);
        let critic = adam.init().step(1e-3, critic, grads);
        let gap = apart(None, &trace.after, &critic);
        assert!(gap < 1e-5, "weights after the step: {gap}");
    }

    #[test]
    fn input_gradient_equals_burn_s_own() {
        let conditions = [
            None,
            Some(Conditioning::Concat),
            Some(Conditioning::Projection),
        ];
        for network in [Network::Mlp, Network::Dcgan, Network::Resnet] {
            for conditioning in conditions {
                for spectral_norm in [false, true] {
                    let (gan, config) = gan(5, |config| {
                        (config.network, config.width) = (network, 4);
                        config.image = [2, 8, 8];
                        config.conditioning = conditioning;
                        config.n_classes = if conditioning.is_some() { 3 } else { 0 };
                        config.critic.spectral_norm = spectral_norm;
                    });
                    let x = batch(3, &config).require_grad();
                    let (scores, gradient) = gan.critic.input_gradient(x.clone(), labels(&config));
                    let judged = gan.critic.judge_as(x.clone(), labels(&config)).scores;
                    let gap = (scores - judged.clone()).abs().max();
                    assert!(gap.into_scalar::<f32>() < 1e-4, "{network:?}");
                    let grads = judged.sum().backward();
                    let own = x.grad(&grads).unwrap().flatten::<2>(1, 3);
                    let gap = (gradient.inner() - own).abs().max().into_scalar::<f32>();
                    assert!(gap < 1e-4, "{network:?}, {conditioning:?}: {gap}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_exact_is_refused_by_name() {
        let penalty = PenaltyConfig {
            kind: PenaltyKind::WganGp,
            weight: 10.0,
        };
        let refused = |change: fn(&mut CriticConfig)| {
            let mut config = GanConfig::default();
            change(&mut config.critic);
            penalty.validate(&config).unwrap_err().to_string()
        };
        let message = refused(|critic| critic.activation = Activation::Silu);
        assert!(
            message.contains("model.critic.activation is Silu"),
            "{message}"
        );
        for change in [
            (|critic| critic.norm = NormChoice::Batch) as fn(&mut CriticConfig),
            |critic| critic.minibatch_deviation = true,
            |critic| critic.minibatch_discrimination = Some(MinibatchConfig::default()),
        ] {
            let message = refused(change);
            assert!(message.contains("rest of the batch"), "{message}");
        }
    }
}
