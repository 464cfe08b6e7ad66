//! What translators and their critics minimise.

use burn::tensor::Tensor;
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use super::{PatchCritic, PatchCritics, TranslationConfig, Translators};
use crate::error::{ModelError, require};
use crate::gan::{AdversarialLoss, PlayerLoss};

/// Configuration of a [`TranslationObjective`]. What is absent is the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranslationObjectiveConfig {
    /// What both players want of the critic's scores. pix2pix: non-saturating; CycleGAN: least-squares,
    /// which is halved here, as in its own paper, but not there.
    pub loss: AdversarialLoss,
    /// Weight of that loss in the generator's; 0 leaves it to the other terms.
    pub adversarial: f64,
    /// With pairs: weight of the mean distance of a translation to the target. Default 100 (Isola et al.
    /// 2017, eq. 4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l1: Option<f64>,
    /// Without pairs: weight of the mean distance of an image to its translation there and back, in both
    /// directions. Default 10 (Zhu et al. 2017, eq. 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycle: Option<f64>,
    /// Without pairs: weight of the mean distance of a target to its translation as if it were a source, in
    /// both directions; 5 in the paper, where tones are to be kept (the same, section 5.2). Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<f64>,
}

impl Default for TranslationObjectiveConfig {
    fn default() -> Self {
        Self {
            loss: AdversarialLoss::default(),
            adversarial: 1.0,
            l1: None,
            cycle: None,
            identity: None,
        }
    }
}

impl TranslationObjectiveConfig {
    /// Checks ranges, and that no term needs what the data does not have.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self, paired: bool, model: &TranslationConfig) -> Result<(), ModelError> {
        for (key, weight) in [
            ("adversarial", Some(self.adversarial)),
            ("l1", self.l1),
            ("cycle", self.cycle),
            ("identity", self.identity),
        ] {
            let usable = weight.is_none_or(|weight| weight.is_finite() && weight >= 0.0);
            require(usable, key, || "must be 0 or more".into())?;
        }
        require(paired || self.l1.is_none(), "l1", || {
            "compares a translation with its target, and without pairs no source has one: use cycle"
                .into()
        })?;
        for (key, weight) in [("cycle", self.cycle), ("identity", self.identity)] {
            require(!paired || weight.is_none(), key, || {
                "is for images without pairs; where there are pairs, l1 compares with the target"
                    .into()
            })?;
        }
        let alike = model.source[0] == model.target[0];
        require(
            alike || self.identity.unwrap_or(0.0) == 0.0,
            "identity",
            || {
                format!(
                    "sources have {} channels and targets {}: one cannot be taken for the other",
                    model.source[0], model.target[0]
                )
            },
        )
    }

    /// The objective.
    pub fn init(&self) -> TranslationObjective {
        TranslationObjective {
            loss: self.loss,
            adversarial: self.adversarial,
            l1: self.l1.unwrap_or(100.0),
            cycle: self.cycle.unwrap_or(10.0),
            identity: self.identity.unwrap_or(0.0),
        }
    }
}

/// What both players minimise. It holds no weights.
#[derive(Debug, Clone, Copy)]
pub struct TranslationObjective {
    loss: AdversarialLoss,
    adversarial: f64,
    l1: f64,
    cycle: f64,
    identity: f64,
}

/// One turn of a player.
pub struct TranslationTurn<'a> {
    /// `[batch, channels, height, width]`, on `[-1, 1]`.
    pub sources: Tensor<4>,
    /// The same of the targets; those of the sources, where there are pairs.
    pub targets: Tensor<4>,
    /// Images made for the critic in earlier turns of its.
    pub seen: u64,
    /// What the turn draws from.
    pub rng: &'a mut Rng,
}

impl TranslationObjective {
    /// What the critics minimise.
    pub fn critic(
        &self,
        translators: &Translators,
        critics: &PatchCritics,
        turn: TranslationTurn<'_>,
    ) -> PlayerLoss {
        let TranslationTurn {
            sources,
            targets,
            seen,
            rng,
        } = turn;
        let made = translators.there.forward(sources.clone()).detach();
        let (Some(back), Some(critic)) = (&translators.back, &critics.sources) else {
            let pair = |target| Tensor::cat(vec![sources.clone(), target], 1);
            let judged = self.tell(&critics.targets, pair(targets), pair(made));
            return judged.named(["score_real", "score_fake", "critic_accuracy"]);
        };
        let made_back = back.forward(targets.clone()).detach();
        let made = critics.targets.recall(made, seen, rng);
        let made_back = critic.recall(made_back, seen, rng);
        let there = self.tell(&critics.targets, targets, made);
        let back = self.tell(critic, sources, made_back);
        let mut judged = there.named(["score_real", "score_fake", "critic_accuracy"]);
        let back = back.named(["score_real_back", "score_fake_back", "critic_accuracy_back"]);
        judged.total = judged.total + back.total;
        judged.parts.extend(back.parts);
        judged
    }

    /// What the generators minimise.
    pub fn generator(
        &self,
        translators: &Translators,
        critics: &PatchCritics,
        turn: TranslationTurn<'_>,
    ) -> PlayerLoss {
        let TranslationTurn {
            sources, targets, ..
        } = turn;
        let there = &translators.there;
        let made = there.forward(sources.clone());
        let (Some(back), Some(critic)) = (&translators.back, &critics.sources) else {
            let pair = |target| Tensor::cat(vec![sources.clone(), target], 1);
            let fooled = self.fool(&critics.targets, pair(targets.clone()), pair(made.clone()));
            let l1 = distance(made, targets);
            return PlayerLoss {
                total: fooled.clone() * self.adversarial + l1.clone() * self.l1,
                parts: vec![("fooling", fooled.detach()), ("l1", l1.detach())],
            };
        };
        let made_back = back.forward(targets.clone());
        let fooled = self.fool(&critics.targets, targets.clone(), made.clone())
            + self.fool(critic, sources.clone(), made_back.clone());
        let cycle = distance(back.forward(made), sources.clone())
            + distance(there.forward(made_back), targets.clone());
        let mut played = PlayerLoss {
            total: fooled.clone() * self.adversarial + cycle.clone() * self.cycle,
            parts: vec![("fooling", fooled.detach()), ("cycle", cycle.detach())],
        };
        if self.identity > 0.0 {
            let identity = distance(there.forward(targets.clone()), targets)
                + distance(back.forward(sources.clone()), sources);
            played.total = played.total + identity.clone() * self.identity;
            played.parts.push(("identity", identity.detach()));
        }
        played
    }

    fn tell(&self, critic: &PatchCritic, real: Tensor<4>, made: Tensor<4>) -> Told {
        let (real, made) = (critic.forward(real), critic.forward(made));
        Told {
            numbers: [
                real.clone().detach().mean(),
                made.clone().detach().mean(),
                self.loss.accuracy(real.clone(), made.clone()),
            ],
            total: self.loss.critic(real, made, 0.0),
        }
    }

    fn fool(&self, critic: &PatchCritic, real: Tensor<4>, made: Tensor<4>) -> Tensor<1> {
        let made = critic.forward(made);
        let real = match self.loss.compares() {
            true => critic.forward(real).detach(),
            false => made.clone().detach(),
        };
        self.loss.generator(real, made)
    }
}

/// A critic's loss, mean score of real and of made patches, and accuracy.
struct Told {
    total: Tensor<1>,
    numbers: [Tensor<1>; 3],
}

impl Told {
    fn named(self, names: [&'static str; 3]) -> PlayerLoss {
        PlayerLoss {
            total: self.total,
            parts: names.into_iter().zip(self.numbers).collect(),
        }
    }
}

/// Mean absolute difference.
fn distance(a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
    (a - b).abs().mean()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, images};
    use super::*;
    use burn::module::{Module, ModuleVisitor, Param};
    use burn::tensor::{Device, Gradients};
    use maquette_rng::{Stream, rng};

    const SHAPE: [usize; 4] = [2, 1, 16, 16];

    fn turn<'a>(random: &'a mut Rng, device: &Device) -> TranslationTurn<'a> {
        TranslationTurn {
            sources: images(1, SHAPE, device),
            targets: images(2, SHAPE, device),
            seen: 0,
            rng: random,
        }
    }

    fn players(paired: bool, device: &Device) -> (Translators, PatchCritics) {
        let config = config([1, 16, 16], [1, 16, 16]);
        config.init(paired, device, &mut rng(0, Stream::Init, 0))
    }

    fn number(x: Tensor<1>) -> f64 {
        f64::from(x.into_scalar::<f32>())
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
    }

    /// Names of parameters that no gradient reaches.
    struct Untouched<'a> {
        grads: &'a Gradients,
        count: usize,
        seen: usize,
    }

    impl ModuleVisitor for Untouched<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            self.seen += 1;
            let touched = param.val().grad(self.grads).is_some_and(|grad| {
                let norm = grad.abs().sum().into_scalar::<f32>();
                norm.is_finite() && norm > 0.0
            });
            self.count += usize::from(!touched);
        }
    }

    fn untouched<M: Module>(module: &M, grads: &Gradients) -> (usize, usize) {
        let mut visitor = Untouched {
            grads,
            count: 0,
            seen: 0,
        };
        module.visit(&mut visitor);
        (visitor.count, visitor.seen)
    }

    #[test]
    fn gradients_reach_every_weight_of_the_player_whose_turn_it_is() {
        let device = Device::flex().autodiff();
        let objective = TranslationObjectiveConfig::default().init();
        for paired in [true, false] {
            let (translators, critics) = players(paired, &device);
            let random = &mut rng(0, Stream::Noise, 0);
            let loss = objective.generator(&translators, &critics, turn(random, &device));
            let (missed, all) = untouched(&translators, &loss.total.backward());
            assert!(missed == 0 && all > 10, "{missed} of {all}, {paired}");
            let loss = objective.critic(&translators, &critics, turn(random, &device));
            let grads = loss.total.backward();
            let (missed, all) = untouched(&critics, &grads);
            assert!(missed == 0 && all > 5, "{missed} of {all}, {paired}");
            let (missed, all) = untouched(&translators, &grads);
            assert_eq!(missed, all, "the generator stands still");
        }
    }

    #[test]
    fn paired_losses_by_hand() {
        let device = Device::flex();
        let (translators, critics) = players(true, &device);
        let random = &mut rng(0, Stream::Noise, 0);
        let TranslationTurn {
            sources, targets, ..
        } = turn(random, &device);
        let made = translators.there.forward(sources.clone());
        let scores = |target: &Tensor<4>| -> Vec<f64> {
            let pair = Tensor::cat(vec![sources.clone(), target.clone()], 1);
            let scores = critics.targets.forward(pair).into_data();
            scores.iter::<f64>().collect()
        };
        let (real, fake) = (scores(&targets), scores(&made));
        let mean = |values: &[f64], f: fn(f64) -> f64| {
            values.iter().map(|x| f(*x)).sum::<f64>() / values.len() as f64
        };
        let l1: Vec<f64> = (made - targets).into_data().iter::<f64>().collect();
        let config = TranslationObjectiveConfig {
            adversarial: 0.5,
            l1: Some(3.0),
            ..TranslationObjectiveConfig::default()
        };
        let loss = config
            .init()
            .generator(&translators, &critics, turn(random, &device));
        let softplus = |x: f64| x.exp().ln_1p();
        close(
            number(loss.total),
            0.5 * mean(&fake, |x| (-x).exp().ln_1p()) + 3.0 * mean(&l1, f64::abs),
        );
        let loss = config
            .init()
            .critic(&translators, &critics, turn(random, &device));
        close(
            number(loss.total),
            mean(&real, |x| (-x).exp().ln_1p()) + mean(&fake, softplus),
        );
    }

    #[test]
    fn unpaired_losses_by_hand() {
        let device = Device::flex();
        let (translators, critics) = players(false, &device);
        let random = &mut rng(0, Stream::Noise, 0);
        let TranslationTurn {
            sources, targets, ..
        } = turn(random, &device);
        let (there, back) = (&translators.there, translators.back.as_ref().unwrap());
        let critic = critics.sources.as_ref().unwrap();
        let (made, made_back) = (
            there.forward(sources.clone()),
            back.forward(targets.clone()),
        );
        let gap = |a: Tensor<4>, b: &Tensor<4>| number((a - b.clone()).abs().mean());
        let half_square =
            |scores: Tensor<1>, target: f64| number((scores - target).square().mean()) / 2.0;
        let fooled = half_square(critics.targets.forward(made.clone()), 1.0)
            + half_square(critic.forward(made_back.clone()), 1.0);
        let cycle = gap(back.forward(made.clone()), &sources)
            + gap(there.forward(made_back.clone()), &targets);
        let identity = gap(there.forward(targets.clone()), &targets)
            + gap(back.forward(sources.clone()), &sources);
        let config = TranslationObjectiveConfig {
            loss: AdversarialLoss::LeastSquares,
            adversarial: 2.0,
            cycle: Some(7.0),
            identity: Some(3.0),
            ..TranslationObjectiveConfig::default()
        };
        let loss = config
            .init()
            .generator(&translators, &critics, turn(random, &device));
        close(
            number(loss.total),
            2.0 * fooled + 7.0 * cycle + 3.0 * identity,
        );
        // With an empty memory the critics see what was made.
        let told = half_square(critics.targets.forward(targets), 1.0)
            + half_square(critics.targets.forward(made), 0.0)
            + half_square(critic.forward(sources), 1.0)
            + half_square(critic.forward(made_back), 0.0);
        let loss = config
            .init()
            .critic(&translators, &critics, turn(random, &device));
        close(number(loss.total), told);
    }

    #[test]
    fn terms_that_the_data_cannot_bear_are_refused() {
        let model = config([1, 16, 16], [3, 16, 16]);
        let with = |change: fn(&mut TranslationObjectiveConfig), paired| {
            let mut config = TranslationObjectiveConfig::default();
            change(&mut config);
            config.validate(paired, &model).unwrap_err().to_string()
        };
        for (message, words) in [
            (with(|c| c.l1 = Some(100.0), false), "l1: compares"),
            (with(|c| c.cycle = Some(10.0), true), "cycle: is for images"),
            (
                with(|c| c.identity = Some(5.0), false),
                "identity: sources have 1 channels and targets 3",
            ),
            (with(|c| c.adversarial = -1.0, true), "adversarial: must"),
        ] {
            assert!(message.starts_with(words), "{message}");
        }
    }
}
