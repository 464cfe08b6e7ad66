//! What the two players minimise: a loss of the critic's scores, and the remedies around it.

use burn::tensor::{Tensor, TensorData};
use maquette_rng::{Rng, normal};
use serde::{Deserialize, Serialize};

use maquette_nn::cross_entropy;

use super::{
    AdversarialLoss, Critic, DiffAugment, GanConfig, Judgement, PenaltyConfig, UnrollConfig,
};
use crate::error::{ModelError, require};

/// Configuration of an [`Objective`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// What the players want.
    pub loss: AdversarialLoss,
    /// The critic's target for real examples is 1 less this: one-sided label smoothing (Salimans et al.
    /// 2016, section 3.4, arXiv:1606.03498).
    pub label_smoothing: f64,
    /// Noise added to all that the critic sees (Sønderby et al. 2017, arXiv:1610.04490; Arjovsky and
    /// Bottou 2017, arXiv:1701.04862).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_noise: Option<InstanceNoise>,
    /// The generator matches the critic's mean features of real examples, instead of fooling it (Salimans
    /// et al. 2016, section 3.1).
    pub feature_matching: bool,
    /// A penalty on the critic's gradient with respect to its input, exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_penalty: Option<PenaltyConfig>,
    /// The generator plays against the critic some updates ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unroll: Option<UnrollConfig>,
    /// Random changes to all images that the critic sees, through which the generator learns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augment: Option<DiffAugment>,
}

/// Noise on the critic's input, which fades.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceNoise {
    /// Standard deviation at the first step, in units of the data.
    pub std: f64,
    /// The step at which none is left, falling in a straight line; it stays when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl InstanceNoise {
    /// The standard deviation at `step`.
    pub fn at(&self, step: u64) -> f64 {
        match self.until {
            Some(until) => self.std * (1.0 - step as f64 / until.max(1) as f64).max(0.0),
            None => self.std,
        }
    }
}

impl ObjectiveConfig {
    /// Checks ranges, and that each remedy fits the loss and the networks.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self, gan: &GanConfig) -> Result<(), ModelError> {
        let smoothing = self.label_smoothing;
        require((0.0..0.5).contains(&smoothing), "label_smoothing", || {
            "must be at least 0 and below 0.5; 0.1 is usual".into()
        })?;
        let fits = smoothing == 0.0 || self.loss.has_targets();
        require(fits, "label_smoothing", || {
            "this loss has no target to smooth; use minimax, non-saturating or least-squares".into()
        })?;
        if let Some(noise) = &self.instance_noise {
            let usable = noise.std.is_finite() && noise.std >= 0.0;
            require(usable, "instance_noise.std", || "must be 0 or more".into())?;
        }
        if let Some(penalty) = &self.gradient_penalty {
            penalty.validate(gan)?;
        }
        if let Some(augment) = &self.augment {
            augment.validate(gan)?;
        }
        if let Some(unroll) = &self.unroll {
            unroll.validate(gan)?;
            let fools = !self.feature_matching;
            require(fools, "unroll", || {
                "has no meaning with feature_matching, where the critic's scores do not count"
                    .into()
            })?;
        }
        Ok(())
    }

    /// The objective.
    pub fn init(&self) -> Objective {
        Objective {
            config: self.clone(),
        }
    }
}

/// What both players minimise. It holds no weights.
#[derive(Debug, Clone)]
pub struct Objective {
    config: ObjectiveConfig,
}

/// One turn of a player: what the critic is shown, and when.
pub struct Turn<'a> {
    /// `[batch, channels, height, width]`.
    pub real: Tensor<4>,
    /// `[batch, channels, height, width]`; with its graph where the generator is to learn.
    pub fake: Tensor<4>,
    /// The classes of both, one-hot, `[batch, n_classes]`, where the players know of classes.
    pub labels: Option<Tensor<2>>,
    /// Steps done.
    pub step: u64,
    /// What the turn draws from.
    pub rng: &'a mut Rng,
}

/// A player's loss, one number, with the numbers worth logging.
pub struct PlayerLoss {
    /// What the player minimises.
    pub total: Tensor<1>,
    /// By name.
    pub parts: Vec<(&'static str, Tensor<1>)>,
}

impl Objective {
    /// What the critic minimises. The caller detaches the made examples.
    pub fn critic(&self, critic: &Critic, turn: Turn<'_>) -> PlayerLoss {
        let penalty = self.config.gradient_penalty;
        let penalty = penalty.map(|penalty| {
            let examples = [turn.real.clone(), turn.fake.clone()];
            penalty.weight * penalty.of(critic, examples, turn.labels.clone(), turn.rng)
        });
        let labels = turn.labels.clone();
        let judged = self.shown(turn).map(|x| critic.judge_as(x, labels.clone()));
        let named = judged.each_ref().map(|judged| misnamed(judged, &labels));
        let [real, fake] = judged.map(|judged| judged.scores);
        let loss = self.config.loss;
        let mut judged = PlayerLoss {
            parts: vec![
                ("score_real", real.clone().detach().mean()),
                ("score_fake", fake.clone().detach().mean()),
                ("critic_accuracy", loss.accuracy(real.clone(), fake.clone())),
            ],
            total: loss.critic(real, fake, self.config.label_smoothing),
        };
        if let Some(penalty) = penalty {
            judged
                .parts
                .push(("gradient_penalty", penalty.clone().detach()));
            judged.total = judged.total + penalty;
        }
        for (misnamed, name) in named
            .into_iter()
            .zip(["class_loss_real", "class_loss_fake"])
        {
            if let Some(misnamed) = misnamed {
                judged.parts.push((name, misnamed.clone().detach()));
                judged.total = judged.total + misnamed;
            }
        }
        judged
    }

    /// What the generator minimises.
    pub fn generator(&self, critic: &Critic, turn: Turn<'_>) -> PlayerLoss {
        let loss = self.config.loss;
        let matching = self.config.feature_matching;
        let labels = turn.labels.clone();
        let [real, fake] = self.shown(turn);
        if let Some(unroll) = &self.config.unroll {
            let smoothing = self.config.label_smoothing;
            let [real, fake] = unroll.scores(critic, loss, smoothing, [real, fake]);
            return PlayerLoss {
                total: loss.answered(real, fake),
                parts: Vec::new(),
            };
        }
        let fake = critic.judge_as(fake, labels.clone());
        let misnamed = misnamed(&fake, &labels);
        let judged_real = || critic.judge_as(real, labels);
        let total = if matching {
            let gap = judged_real().features.detach().mean_dim(0) - fake.features.mean_dim(0);
            gap.square().sum()
        } else if loss.compares() {
            loss.generator(judged_real().scores.detach(), fake.scores)
        } else {
            loss.generator(fake.scores.clone().detach(), fake.scores)
        };
        PlayerLoss {
            total: match misnamed {
                Some(misnamed) => total + misnamed,
                None => total,
            },
            parts: Vec::new(),
        }
    }

    /// What the critic sees of a turn: real and made examples, changed and with their noise.
    fn shown(&self, turn: Turn<'_>) -> [Tensor<4>; 2] {
        let noise = self.config.instance_noise.map(|noise| noise.at(turn.step));
        let augment = self.config.augment;
        [turn.real, turn.fake].map(|x| {
            let x = match augment {
                Some(augment) => augment.of(x, turn.rng),
                None => x,
            };
            match noise {
                Some(std) if std > 0.0 => {
                    let (shape, device) = (x.shape(), x.device());
                    let noise = normal(turn.rng, shape.num_elements());
                    x + Tensor::from_data(TensorData::new(noise, shape), &device) * std
                }
                _ => x,
            }
        })
    }
}

/// How badly the critic names the classes of examples, nats each, where it names them.
fn misnamed(judged: &Judgement, labels: &Option<Tensor<2>>) -> Option<Tensor<1>> {
    let (logits, labels) = (judged.classes.clone()?, labels.clone()?);
    let targets = labels.argmax(1).flatten::<1>(0, 1);
    Some(cross_entropy(logits, targets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_noise_fades() {
        let noise = InstanceNoise {
            std: 0.2,
            until: Some(100),
        };
        assert_eq!(
            [0, 50, 100, 200].map(|step| noise.at(step)),
            [0.2, 0.1, 0.0, 0.0]
        );
    }

    #[test]
    fn smoothing_without_targets_is_refused() {
        let config = ObjectiveConfig {
            loss: AdversarialLoss::Hinge,
            label_smoothing: 0.1,
            ..ObjectiveConfig::default()
        };
        let error = config.validate(&GanConfig::default()).unwrap_err();
        assert!(error.to_string().starts_with("label_smoothing: this loss"));
    }
}
