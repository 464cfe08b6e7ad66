//! Image-to-image translation: a generator that is given an image instead of noise.
//!
//! With pairs it is pix2pix (Isola et al. 2017, arXiv:1611.07004): one generator from sources to targets,
//! and a critic that sees source and target side by side. Without pairs it is CycleGAN (Zhu et al. 2017,
//! arXiv:1703.10593): two generators, there and back, and two critics that see one image each. Generators
//! are small U-Nets, critics judge patches. What they minimise is in [`TranslationObjective`].

mod history;
mod objective;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use maquette_nn::{
    Dropout, InitScheme,
    init::{Fill, initialise},
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use super::layer::{Layer, LayerConfig};
use super::{Activation, NormChoice};
use crate::error::{ModelError, require};

use history::History;
pub use objective::{TranslationObjective, TranslationObjectiveConfig, TranslationTurn};

/// Made images that a critic remembers where there are no pairs, as in CycleGAN.
const HISTORY: usize = 50;
/// An image is halved while its sides are even and none is this short already.
const SHORT: usize = 7;
/// Channels stop doubling at this many times the width, as in pix2pix.
const WIDEST: usize = 8;

/// Configuration of [`Translators`] and [`PatchCritics`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranslationConfig {
    /// Channels, height and width of a source; the data's.
    pub source: [usize; 3],
    /// The same of a target, which is as large; the data's.
    pub target: [usize; 3],
    /// The generators.
    pub generator: TranslatorConfig,
    /// The critics.
    pub critic: PatchCriticConfig,
}

impl Default for TranslationConfig {
    fn default() -> Self {
        Self {
            source: [1, 28, 28],
            target: [1, 28, 28],
            generator: TranslatorConfig::default(),
            critic: PatchCriticConfig::default(),
        }
    }
}

/// Configuration of a [`Translator`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranslatorConfig {
    /// Channels at full size; each halving doubles them, up to eight times as many.
    pub width: usize,
    /// Of all layers but the first and the last.
    pub norm: NormChoice,
    /// Share of the decoder's numbers dropped in training, at less than full size. pix2pix drops half, when
    /// it draws as well; here drawing drops none, so that a source has one translation.
    pub dropout: f64,
}

impl Default for TranslatorConfig {
    fn default() -> Self {
        Self {
            width: 16,
            norm: NormChoice::Instance,
            dropout: 0.0,
        }
    }
}

/// Configuration of a [`PatchCritic`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PatchCriticConfig {
    /// Channels after the first layer; each further one doubles them, up to eight times as many.
    pub width: usize,
    /// Layers that halve the image. They decide how much of it a score sees: squares of 8, 18 or 38
    /// pixels after one, two or three.
    pub n_layers: usize,
    /// Of all layers but the first and the last.
    pub norm: NormChoice,
    /// Made images that each critic is shown again later, so that it does not forget what generators did
    /// (Shrivastava et al. 2017, section 2.3, arXiv:1612.07828). Only without pairs, where 50 is the
    /// default; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<usize>,
}

impl Default for PatchCriticConfig {
    fn default() -> Self {
        Self {
            width: 32,
            n_layers: 2,
            norm: NormChoice::Instance,
            history: None,
        }
    }
}

impl TranslationConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self, paired: bool) -> Result<(), ModelError> {
        let positive = |key, value| require(value > 0, key, || "must be at least 1".into());
        positive("generator.width", self.generator.width)?;
        positive("critic.width", self.critic.width)?;
        positive("critic.n_layers", self.critic.n_layers)?;
        require(
            (0.0..1.0).contains(&self.generator.dropout),
            "generator.dropout",
            || "must be at least 0 and below 1; pix2pix has 0.5".into(),
        )?;
        require(
            !paired || self.critic.history.is_none(),
            "critic.history",
            || {
                "is for critics of single images; a paired critic sees each made image beside its source: leave \
                 it out"
                    .into()
            },
        )?;
        let ([_, height, width], [_, target_height, target_width]) = (self.source, self.target);
        require(
            [height, width] == [target_height, target_width],
            "target",
            || {
                format!(
                    "targets of {target_height}x{target_width} pixels have sources of {height}x{width}; both must \
                     be of one size"
                )
            },
        )?;
        require(self.halvings() > 0, "source", || {
            format!(
                "a U-Net halves its images and cannot halve {height}x{width}; take images with even sides above \
                 {SHORT}"
            )
        })?;
        let scale = 1usize
            .checked_shl(self.critic.n_layers as u32)
            .unwrap_or(usize::MAX);
        let fits = height.is_multiple_of(scale) && width.is_multiple_of(scale);
        require(fits, "critic.n_layers", || {
            format!(
                "{} halvings do not fit {height}x{width}",
                self.critic.n_layers
            )
        })
    }

    /// How often the generators halve an image: both sides of what they translate must be multiples of two
    /// to this power.
    pub fn halvings(&self) -> usize {
        let [_, mut height, mut width] = self.source;
        let mut count = 0;
        while height.min(width) > SHORT && height.is_multiple_of(2) && width.is_multiple_of(2) {
            (height, width) = (height / 2, width / 2);
            count += 1;
        }
        count
    }

    /// Both players, with weights drawn from `rng`.
    ///
    /// # Panics
    /// If [`TranslationConfig::validate`] fails.
    pub fn init(
        &self,
        paired: bool,
        device: &Device,
        rng: &mut Rng,
    ) -> (Translators, PatchCritics) {
        if let Err(error) = self.validate(paired) {
            panic!("invalid TranslationConfig: {error}");
        }
        let ([sources, ..], [targets, ..]) = (self.source, self.target);
        let translator = |channels| Translator::new(self, channels, device);
        let critic = |channels, history: usize| {
            let [_, height, width] = self.source;
            let history =
                (history > 0).then(|| History::new([history, channels, height, width], device));
            PatchCritic::new(&self.critic, channels, history, device)
        };
        let history = self.critic.history.unwrap_or(HISTORY);
        let translators = Translators {
            there: translator([sources, targets]),
            back: (!paired).then(|| translator([targets, sources])),
        };
        let critics = match paired {
            true => PatchCritics {
                targets: critic(sources + targets, 0),
                sources: None,
            },
            false => PatchCritics {
                targets: critic(targets, history),
                sources: Some(critic(sources, history)),
            },
        };
        initialise((translators, critics), rng, |slot| {
            match slot.path.rsplit('.').next() {
                Some(History::FIELD) => Fill::Constant(0.0),
                _ => InitScheme::He.fill(slot),
            }
        })
    }
}

/// The generators.
#[derive(Module, Debug)]
pub struct Translators {
    /// From sources to targets.
    pub there: Translator,
    /// From targets to sources, where there are no pairs.
    pub back: Option<Translator>,
}

/// The critics.
#[derive(Module, Debug)]
pub struct PatchCritics {
    /// Judges targets; with pairs, each behind its source in the channels.
    pub targets: PatchCritic,
    /// Judges sources, where there are no pairs.
    pub sources: Option<PatchCritic>,
}

/// A U-Net: the image is halved again and again and built up again, and each size of the way up is shown
/// the layer of the same size on the way down (Ronneberger et al. 2015, arXiv:1505.04597; Isola et al. 2017,
/// section 3.2.1).
#[derive(Module, Debug)]
pub struct Translator {
    stem: Layer,
    down: Vec<Layer>,
    middle: Layer,
    up: Vec<Layer>,
    head: Layer,
    dropout: Dropout,
}

impl Translator {
    fn new(config: &TranslationConfig, [c_in, c_out]: [usize; 2], device: &Device) -> Self {
        let TranslatorConfig {
            width,
            norm,
            dropout,
        } = config.generator;
        let levels = config.halvings();
        let channels = |level: usize| width * (1 << level).min(WIDEST);
        let plain = LayerConfig {
            activation: Some(Activation::Relu),
            ..LayerConfig::default()
        };
        let hidden = LayerConfig { norm, ..plain };
        Self {
            stem: plain.same([c_in, width], 3, device),
            down: (0..levels)
                .map(|level| hidden.halve([channels(level), channels(level + 1)], device))
                .collect(),
            middle: hidden.same([channels(levels); 2], 3, device),
            up: (0..levels)
                .rev()
                .map(|level| {
                    let below = channels(level + 1);
                    // All but the deepest see what was remembered on the way down.
                    let seen = if level + 1 == levels {
                        below
                    } else {
                        2 * below
                    };
                    hidden.double([seen, channels(level)], device)
                })
                .collect(),
            head: LayerConfig::default().same([2 * width, c_out], 3, device),
            dropout: Dropout::new(dropout),
        }
    }

    /// # Shapes
    /// - x: `[batch, c_in, height, width]`, on `[-1, 1]`, sides multiples of two to the power of
    ///   [`TranslationConfig::halvings`]
    /// - output: `[batch, c_out, height, width]`, on `[-1, 1]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.stem.forward(x);
        let mut skips = Vec::with_capacity(self.down.len());
        for down in &self.down {
            skips.push(x.clone());
            x = down.forward(x);
        }
        x = self.middle.forward(x);
        for (i, (up, skip)) in self.up.iter().zip(skips.into_iter().rev()).enumerate() {
            x = up.forward(x);
            // At full size dropped numbers would be holes in the image.
            if i + 1 < self.up.len() {
                x = self.dropout.forward(x);
            }
            x = Tensor::cat(vec![x, skip], 1);
        }
        self.head.forward(x).tanh()
    }
}

/// Scores each patch of an image for itself (Isola et al. 2017, section 3.2.2). A high score means real.
#[derive(Module, Debug)]
pub struct PatchCritic {
    layers: Vec<Layer>,
    history: Option<History>,
}

impl PatchCritic {
    fn new(
        config: &PatchCriticConfig,
        channels: usize,
        history: Option<History>,
        device: &Device,
    ) -> Self {
        let wide = |layer: usize| config.width * (1 << layer).min(WIDEST);
        let plain = LayerConfig {
            activation: Some(Activation::LeakyRelu),
            ..LayerConfig::default()
        };
        let hidden = LayerConfig {
            norm: config.norm,
            ..plain
        };
        let mut layers = vec![plain.halve([channels, wide(0)], device)];
        for layer in 1..config.n_layers {
            layers.push(hidden.halve([wide(layer - 1), wide(layer)], device));
        }
        let last = wide(config.n_layers - 1);
        layers.push(LayerConfig::default().same([last, 1], 3, device));
        Self { layers, history }
    }

    /// # Shapes
    /// - x: `[batch, channels, height, width]`
    /// - output: `[batch * patches]`, image by image
    pub fn forward(&self, x: Tensor<4>) -> Tensor<1> {
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x));
        x.flatten(0, 3)
    }

    /// Made images as the critic is to see them: some of them exchanged for earlier ones. `seen` is how
    /// many it saw before.
    fn recall(&self, made: Tensor<4>, seen: u64, rng: &mut Rng) -> Tensor<4> {
        match &self.history {
            Some(history) => history.exchange(made, seen, rng),
            None => made,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use maquette_rng::{Stream, rng, uniform};

    pub(super) fn images(seed: u64, shape: [usize; 4], device: &Device) -> Tensor<4> {
        let values = uniform(&mut rng(seed, Stream::Data, 0), shape.iter().product());
        let values: Vec<f32> = values.into_iter().map(|u| 2.0 * u - 1.0).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    pub(super) fn config(source: [usize; 3], target: [usize; 3]) -> TranslationConfig {
        TranslationConfig {
            source,
            target,
            generator: TranslatorConfig {
                width: 4,
                ..TranslatorConfig::default()
            },
            critic: PatchCriticConfig {
                width: 4,
                ..PatchCriticConfig::default()
            },
        }
    }

    #[test]
    fn sizes_are_halved_to_seven_or_four() {
        for (height, width, halvings) in [(28, 28, 2), (32, 32, 3), (16, 24, 2), (64, 64, 4)] {
            assert_eq!(
                config([1, height, width], [3, height, width]).halvings(),
                halvings,
                "{height}x{width}"
            );
        }
    }

    #[test]
    fn shapes_with_and_without_pairs() {
        let device = Device::flex();
        let config = config([1, 28, 28], [3, 28, 28]);
        for paired in [true, false] {
            let (translators, critics) = config.init(paired, &device, &mut rng(0, Stream::Init, 0));
            let source = images(1, [2, 1, 28, 28], &device);
            let made = translators.there.forward(source.clone());
            assert_eq!(made.dims(), [2, 3, 28, 28]);
            let top = made.clone().abs().max().into_scalar::<f32>();
            assert!(top <= 1.0, "{top}");
            let judged = match paired {
                true => Tensor::cat(vec![source, made.clone()], 1),
                false => made.clone(),
            };
            assert_eq!(critics.targets.forward(judged).dims(), [2 * 7 * 7]);
            assert_eq!(translators.back.is_some(), !paired);
            if let (Some(back), Some(critic)) = (&translators.back, &critics.sources) {
                let again = back.forward(made);
                assert_eq!(again.dims(), [2, 1, 28, 28]);
                assert_eq!(critic.forward(again).dims(), [2 * 7 * 7]);
            }
            // Larger ones than it was made for, whose sides can be halved as often.
            let large = images(2, [1, 1, 32, 40], &device);
            assert_eq!(translators.there.forward(large).dims(), [1, 3, 32, 40]);
        }
    }

    #[test]
    fn an_image_is_translated_the_same_alone_and_among_others() {
        let device = Device::flex();
        let config = config([1, 16, 16], [1, 16, 16]);
        let (translators, _) = config.init(true, &device, &mut rng(0, Stream::Init, 0));
        let both = images(3, [2, 1, 16, 16], &device);
        let together = translators.there.forward(both.clone()).narrow(0, 1, 1);
        let alone = translators.there.forward(both.narrow(0, 1, 1));
        let gap = (together - alone).abs().max().into_scalar::<f32>();
        assert!(gap < 1e-5, "{gap}");
    }

    #[test]
    fn contradictions_name_their_key() {
        let wrong = |change: fn(&mut TranslationConfig), paired| {
            let mut config = config([1, 28, 28], [1, 28, 28]);
            change(&mut config);
            config.validate(paired).unwrap_err().to_string()
        };
        for (message, words) in [
            (
                wrong(|c| c.source = [1, 27, 28], true),
                "target: targets of 28x28",
            ),
            (
                wrong(|c| (c.source, c.target) = ([1, 27, 27], [1, 27, 27]), true),
                "source: a U-Net",
            ),
            (wrong(|c| c.critic.n_layers = 3, true), "critic.n_layers: 3"),
            (
                wrong(|c| c.critic.history = Some(9), true),
                "critic.history: is for",
            ),
            (
                wrong(|c| c.generator.dropout = 1.0, false),
                "generator.dropout:",
            ),
        ] {
            assert!(message.starts_with(words), "{message}");
        }
    }
}
