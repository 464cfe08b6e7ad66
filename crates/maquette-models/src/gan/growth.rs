//! Progressive growing (Karras et al. 2018, arXiv:1710.10196): the players begin with small images, and
//! layers for twice the size are faded in once the smaller ones are learnt.
//!
//! Between the players images keep their full size: the generator repeats pixels and the critic takes their
//! means, so that losses, penalties and pictures need not know how far the players have grown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use burn::tensor::Tensor;
use maquette_nn::{Windows, avg_pool2d, conv::upsample};
use serde::{Deserialize, Serialize};

use super::layer::{Layer, Trace};
use super::stage::{Stage, StageTrace};
use super::{GanConfig, Network, halvings};
use crate::error::{ModelError, require};

/// Configuration of progressive growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowthConfig {
    /// Steps that each size is played at before the next is faded in, and steps that this takes.
    pub steps: u64,
}

impl GrowthConfig {
    /// Checks that the networks can grow.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming what cannot.
    pub fn validate(&self, gan: &GanConfig) -> Result<(), ModelError> {
        require(self.steps > 0, "growing.steps", || {
            "must be at least 1; leave `growing` out for players of full size".into()
        })?;
        let grows = matches!(gan.network, Network::Dcgan | Network::Resnet);
        require(grows, "growing", || {
            "needs network = \"dcgan\" or \"resnet\": an mlp has no sizes, and a style generator adds up \
             images of all sizes from the start"
                .into()
        })
    }

    /// Steps until images of this side are played at their full size.
    pub fn until_grown(&self, side: usize) -> u64 {
        let [_, levels] = halvings(side);
        self.steps.saturating_mul(2 * levels as u64)
    }

    /// Sizes passed at `step`, and of the next the share that is faded in.
    fn at(&self, step: u64) -> f32 {
        let turns = step as f64 / self.steps as f64;
        let passed = (turns / 2.0).floor();
        (passed + (turns - 2.0 * passed - 1.0).max(0.0)) as f32
    }
}

/// How far two players have grown. All copies of them share it; those that are loaded are fully grown.
#[derive(Debug, Clone)]
pub(super) struct Growth {
    config: Option<GrowthConfig>,
    /// Sizes above the smallest; none where the players have one size.
    levels: usize,
    /// Bits of a float: [`GrowthConfig::at`].
    grown: Arc<AtomicU32>,
}

impl Growth {
    pub(super) fn new(config: &GanConfig) -> Self {
        let [_, levels] = halvings(config.image[1]);
        Self {
            config: config.growing,
            levels: if config.growing.is_some() { levels } else { 0 },
            grown: Arc::new(AtomicU32::new(f32::MAX.to_bits())),
        }
    }

    /// Sizes that need a way in or out of their own, the smallest first.
    pub(super) fn smaller(&self) -> std::ops::Range<usize> {
        0..self.levels
    }

    /// To be as far as the schedule has it at `step`.
    pub(super) fn set(&self, step: u64) {
        if let Some(config) = &self.config {
            self.grown
                .store(config.at(step).to_bits(), Ordering::Relaxed);
        }
    }

    /// The size that is played at, counted from the smallest, and the share of the next.
    fn level(&self) -> (usize, f64) {
        let grown = f32::from_bits(self.grown.load(Ordering::Relaxed));
        let grown = f64::from(grown).min(self.levels as f64);
        (grown as usize, grown.fract())
    }

    /// A generator: the first stage makes the smallest size, each of the next doubles it, and those left
    /// make an image of the largest. `heads` make images of the smaller ones.
    ///
    /// # Shapes
    /// - output: of the full size
    pub(super) fn rise(&self, stages: &[Stage], heads: &[Layer], x: Tensor<4>) -> Tensor<4> {
        let (level, share) = self.level();
        let image = |level: usize, x: Tensor<4>| match heads.get(level) {
            Some(head) => head.forward(x),
            None => all(&stages[self.levels + 1..], x),
        };
        let x = all(&stages[..=level], x);
        let mut made = image(level, x.clone());
        let mut size = level;
        if share > 0.0 {
            let larger = image(level + 1, stages[level + 1].forward(x));
            made = upsample(made) * (1.0 - share) + larger * share;
            size += 1;
        }
        (size..self.levels).fold(made, |made, _| upsample(made))
    }

    /// A critic: each of the first stages halves the size. `doors` let images of the smaller sizes, the
    /// smallest first, in behind them.
    ///
    /// # Shapes
    /// - x: of the full size
    pub(super) fn fall(&self, stages: &[Stage], doors: &[Layer], x: Tensor<4>) -> Tensor<4> {
        let (level, share) = self.level();
        let enter = |level: usize| {
            let x = halved(x.clone(), self.levels - level);
            match doors.get(level) {
                Some(door) => door.forward(x),
                None => x,
            }
        };
        let first = self.levels - level;
        let mut h = enter(level);
        if share > 0.0 {
            h = h * (1.0 - share) + stages[first - 1].forward(enter(level + 1)) * share;
        }
        all(&stages[first..], h)
    }

    /// [`Growth::fall`] in plain operators, with what [`Growth::pullback`] needs of it.
    pub(super) fn traced_fall(
        &self,
        stages: &[Stage],
        doors: &[Layer],
        x: Tensor<4>,
    ) -> (Tensor<4>, GrowthTrace) {
        let (level, share) = self.level();
        let enter = |level: usize| {
            let x = halved(x.clone(), self.levels - level);
            match doors.get(level) {
                Some(door) => {
                    let (x, trace) = door.traced(x);
                    (x, Some(trace))
                }
                None => (x, None),
            }
        };
        let first = self.levels - level;
        let (mut h, door) = enter(level);
        let next = (share > 0.0).then(|| {
            let (x, door) = enter(level + 1);
            let (x, stage) = stages[first - 1].traced(x);
            h = h.clone() * (1.0 - share) + x * share;
            (door, stage)
        });
        let mut rest = Vec::with_capacity(stages.len());
        for stage in &stages[first..] {
            let (y, trace) = stage.traced(h);
            rest.push(trace);
            h = y;
        }
        let trace = GrowthTrace {
            at: (level, share),
            door,
            next,
            rest,
        };
        (h, trace)
    }

    /// From the gradient of a score with respect to the last stage's output, that with respect to the image.
    pub(super) fn pullback(
        &self,
        stages: &[Stage],
        doors: &[Layer],
        trace: GrowthTrace,
        mut grad: Tensor<4>,
    ) -> Tensor<4> {
        let (level, share) = trace.at;
        let first = self.levels - level;
        for (stage, trace) in stages[first..].iter().zip(trace.rest).rev() {
            grad = stage.pullback(trace, grad);
        }
        let leave = |level: usize, trace: Option<Trace>, grad: Tensor<4>| {
            let grad = match trace {
                Some(trace) => doors[level].pullback(trace, grad),
                None => grad,
            };
            (level..self.levels).fold(grad, |grad, _| upsample(grad) * 0.25)
        };
        let Some((door, stage)) = trace.next else {
            return leave(level, trace.door, grad);
        };
        let next = stages[first - 1].pullback(stage, grad.clone() * share);
        leave(level, trace.door, grad * (1.0 - share)) + leave(level + 1, door, next)
    }
}

/// What the pullback of a growing critic needs of its forward pass.
pub(super) struct GrowthTrace {
    at: (usize, f64),
    door: Option<Trace>,
    /// The door of the size that is faded in, and the stage behind it.
    next: Option<(Option<Trace>, StageTrace)>,
    rest: Vec<StageTrace>,
}

/// One stage after the other.
fn all(stages: &[Stage], x: Tensor<4>) -> Tensor<4> {
    stages.iter().fold(x, |x, stage| stage.forward(x))
}

/// Means over squares of `2^times` pixels a side.
fn halved(x: Tensor<4>, times: usize) -> Tensor<4> {
    (0..times).fold(x, |x, _| avg_pool2d(x, Windows::tiles(2)))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use maquette_rng::{Stream, normal, rng};

    use super::*;
    use crate::gan::{Gan, NormChoice};

    const GROWING: GrowthConfig = GrowthConfig { steps: 10 };

    fn config(network: Network) -> GanConfig {
        GanConfig {
            image: [1, 16, 16],
            network,
            width: 4,
            growing: Some(GROWING),
            ..GanConfig::default()
        }
    }

    fn numbers<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
        let values = normal(&mut rng(seed, Stream::Noise, 0), shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
    }

    fn gan(network: Network) -> Gan {
        let device = Device::flex().autodiff();
        config(network).init(&device, &mut rng(0, Stream::Init, 0))
    }

    fn apart<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    /// Each square of `2^times` pixels a side as its mean.
    fn coarse(x: Tensor<4>, times: usize) -> Tensor<4> {
        (0..times).fold(halved(x, times), |x, _| upsample(x))
    }

    #[test]
    fn each_size_is_held_and_the_next_faded_in() {
        let at = [0, 9, 10, 15, 19, 20, 29, 35, 40].map(|step| GROWING.at(step));
        assert_eq!(at, [0.0, 0.0, 0.0, 0.5, 0.9, 1.0, 1.0, 1.5, 2.0]);
        assert_eq!([28, 32].map(|side| GROWING.until_grown(side)), [40, 60]);
    }

    #[test]
    fn players_grow_from_small_images_to_whole_ones_without_a_jump() {
        for network in [Network::Dcgan, Network::Resnet] {
            let gan = gan(network);
            let (z, x) = (numbers([3, 2], 1), numbers([3, 1, 16, 16], 2));
            let whole = gan.generator.forward(z.clone());
            let score = gan.critic.judge(x.clone()).scores;
            for (step, times) in [(0, 2), (10, 2), (15, 1), (20, 1), (39, 0)] {
                gan.critic.grow(step);
                let made = gan.generator.forward(z.clone());
                assert_eq!(made.dims(), [3, 1, 16, 16]);
                let tiled = coarse(made.clone(), times);
                assert!(apart(made, tiled) < 1e-6, "{network:?} at {step}");
                let [fine, tiled] =
                    [x.clone(), coarse(x.clone(), times)].map(|x| gan.critic.judge(x).scores);
                assert!(apart(fine, tiled) < 1e-5, "{network:?} at {step}");
            }
            gan.critic.grow(GROWING.until_grown(16));
            assert_eq!(apart(gan.generator.forward(z), whole), 0.0);
            assert_eq!(apart(gan.critic.judge(x).scores, score), 0.0);
        }
    }

    #[test]
    fn a_growing_critic_s_input_gradient_is_that_of_its_score() {
        for network in [Network::Dcgan, Network::Resnet] {
            let gan = gan(network);
            for step in [0, 13, 20, 37, 40] {
                gan.critic.grow(step);
                let x = numbers([3, 1, 16, 16], 2).require_grad();
                let judged = gan.critic.judge(x.clone()).scores;
                let expected = x.grad(&judged.clone().sum().backward()).unwrap();
                let (scores, gradient) = gan.critic.input_gradient(x, None);
                assert!(apart(scores, judged) < 1e-5, "{network:?} at {step}");
                let expected: Tensor<2> = expected.flatten(1, 3);
                let apart = apart(gradient.inner(), expected.clone());
                let size: f32 = expected.abs().max().into_scalar();
                assert!(
                    size > 0.0 && apart < 1e-4 * size,
                    "{network:?} at {step}: {apart} of {size}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_grow_is_refused_by_name() {
        for network in [Network::Mlp, Network::Style] {
            let error = config(network).validate().unwrap_err().to_string();
            assert!(error.starts_with("growing: needs network"), "{error}");
        }
        let mut config = config(Network::Dcgan);
        config.critic.norm = NormChoice::Layer;
        config.validate().unwrap();
        config.growing = Some(GrowthConfig { steps: 0 });
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with("growing.steps: must be"), "{error}");
    }
}
