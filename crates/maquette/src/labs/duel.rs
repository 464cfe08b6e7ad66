//! Two players in a lab's own hands: the library's adversarial loop on any stream of examples.

use std::cell::RefCell;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor};

use super::training::{noise, scratch};
use super::{Doing, LabError};
use crate::models::gan::{
    AdversarialLoss, Critic, Gan, GanConfig, Generator, ObjectiveConfig, PenaltyConfig, Turn,
};
use crate::rng::{Stream, rng};
use crate::train::adversarial::Seen;
use crate::train::spec::OptimizerKind;
use crate::train::{
    Batch, BoxError, Contest, Control, LoopSpec, Loss, Match, OptimizerSpec, PlayerSpec,
    TrainError, adversarial,
};

/// The sections of a recipe for two players.
#[derive(Clone)]
pub(crate) struct Duel {
    pub(crate) gan: GanConfig,
    pub(crate) objective: ObjectiveConfig,
    pub(crate) generator: PlayerSpec,
    pub(crate) critic: PlayerSpec,
    pub(crate) train: LoopSpec,
}

/// Both players before a step, with gradients.
pub(crate) struct Moment {
    pub(crate) step: u64,
    pub(crate) generator: Generator,
    pub(crate) critic: Critic,
}

/// What came of a duel.
pub(crate) struct Played {
    /// Both players at the steps asked for.
    pub(crate) moments: Vec<Moment>,
    /// The share of examples that the critic judged right, step by step.
    pub(crate) accuracy: Vec<f64>,
    /// The generator, without gradients.
    pub(crate) generator: Generator,
}

impl Duel {
    /// Both players by Adam at the same constant rate, the non-saturating loss.
    pub(crate) fn new(gan: GanConfig, lr: f64, (steps, batch): (u64, usize), seed: u64) -> Self {
        let adam = OptimizerSpec {
            betas: Some([0.5, 0.999]),
            ..OptimizerSpec::new(OptimizerKind::Adam, lr)
        };
        Self {
            gan,
            objective: ObjectiveConfig {
                loss: AdversarialLoss::NonSaturating,
                ..ObjectiveConfig::default()
            },
            generator: PlayerSpec::new(adam.clone()),
            critic: PlayerSpec::new(adam),
            train: LoopSpec {
                log_every: steps,
                ..LoopSpec::new(steps, batch, seed)
            },
        }
    }

    pub(crate) fn with_penalty(mut self, penalty: PenaltyConfig) -> Self {
        self.objective.gradient_penalty = Some(penalty);
        self
    }

    /// Two players whose weights are drawn from the seed.
    pub(crate) fn players(&self, device: &Device) -> Gan {
        let random = &mut rng(self.train.seed, Stream::Init, 0);
        self.gan.init(device, random)
    }

    /// Plays to the end; keeps the players of `kept` steps. `batch` gives real examples,
    /// `[batch, channels, height, width]`, on `device`, which differentiates.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] among others; an experiment may expect it.
    pub(crate) fn play(
        &self,
        players: Gan,
        mut batch: impl FnMut(u64) -> Tensor<4>,
        kept: &[u64],
        device: &Device,
    ) -> Result<Played, TrainError> {
        let objective = self.objective.init();
        let critics = RefCell::new(Vec::new());
        let generators = RefCell::new(Vec::new());
        let accuracy = RefCell::new(Vec::new());
        let contest = Contest::new(
            |turn| Ok::<_, BoxError>(Batch::from(batch(turn))),
            |seen: Players<'_>| {
                seen.critic.renew();
                if kept.contains(&seen.step) {
                    critics.borrow_mut().push((seen.step, seen.critic.clone()));
                }
                let loss = self.turn(&seen, |turn| objective.critic(seen.critic, turn));
                let right = loss
                    .parts
                    .iter()
                    .find(|(name, _)| *name == "critic_accuracy");
                let right = right.map(|(_, share)| share.clone().into_scalar::<f32>());
                accuracy.borrow_mut().extend(right.map(f64::from));
                loss
            },
            |seen: Players<'_>| {
                if kept.contains(&seen.step) {
                    generators.borrow_mut().push(seen.generator.clone());
                }
                self.turn(&seen, |turn| objective.generator(seen.critic, turn))
            },
        );
        let (_folder, mut run) = scratch()?;
        let plan = Match {
            generator: &self.generator,
            critic: &self.critic,
            train: &self.train,
            steps: self.train.steps.unwrap_or(0),
            device,
        };
        let mut control = Control {
            stop: &AtomicBool::new(false),
            on_event: &mut |_| {},
        };
        let players = (players.generator, players.critic);
        let fitted = adversarial(players, contest, &plan, &mut run, &mut control)?;
        let pairs = critics
            .into_inner()
            .into_iter()
            .zip(generators.into_inner());
        Ok(Played {
            moments: pairs
                .map(|((step, critic), generator)| Moment {
                    step,
                    generator,
                    critic,
                })
                .collect(),
            accuracy: accuracy.into_inner(),
            generator: fitted.model.0,
        })
    }

    fn turn(
        &self,
        seen: &Players<'_>,
        loss: impl FnOnce(Turn<'_>) -> crate::models::gan::PlayerLoss,
    ) -> Loss {
        let seed = self.train.seed;
        let real = seen.batch.clone();
        let z = noise(
            real.dims()[0],
            self.gan.d_latent,
            (seed, seen.turn),
            &real.device(),
        );
        let turn = Turn {
            real,
            fake: seen.generator.forward(z),
            labels: None,
            step: seen.step,
            rng: &mut rng(seed, Stream::Augment, seen.turn),
        };
        let judged = loss(turn);
        Loss {
            total: judged.total,
            parts: judged.parts,
        }
    }
}

type Players<'a> = Seen<'a, Generator, Critic, Tensor<4>>;

/// `count` examples of a generator without gradients.
pub(crate) fn draw(
    generator: &Generator,
    d_latent: usize,
    count: usize,
    (seed, device): (u64, &Device),
) -> Result<Vec<f32>, LabError> {
    let made = generator.forward(noise(count, d_latent, (seed, u64::MAX), device));
    made.into_data()
        .try_to_vec::<f32>()
        .doing("reading made examples")
}
