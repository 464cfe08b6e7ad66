//! Generative adversarial networks: a generator makes examples of noise, a critic tells them from real
//! ones, and each learns from the other (Goodfellow et al. 2014, arXiv:1406.2661).
//!
//! Examples are images, `[batch, channels, height, width]`; points of the plane are images of two
//! channels and one pixel, so that every loss and every remedy serves both. Three things stand apart: the
//! networks ([`Gan`]), what the players want of the critic's scores ([`AdversarialLoss`]), and the
//! [`Objective`], which holds no weights and adds the remedies.

mod augment;
mod condition;
mod critic;
mod generator;
mod growth;
mod layer;
mod loss;
mod minibatch;
mod objective;
mod penalty;
mod stage;
mod style;
mod translation;
mod unroll;

use burn::{module::Module, tensor::Device};
use maquette_nn::{
    InitScheme,
    init::{Fill, Slot, initialise},
};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};

use self::growth::Growth;
use crate::error::{ModelError, require};

pub use augment::DiffAugment;
pub use condition::{Conditioning, one_hot};
pub use critic::{Critic, Judgement};
pub use generator::Generator;
pub use growth::GrowthConfig;
pub use layer::{Activation, NormChoice};
pub use loss::AdversarialLoss;
pub use minibatch::MinibatchConfig;
pub use objective::{InstanceNoise, Objective, ObjectiveConfig, PlayerLoss, Turn};
pub use penalty::{PenaltyConfig, PenaltyKind};
pub use translation::{
    PatchCritic, PatchCriticConfig, PatchCritics, TranslationConfig, TranslationObjective,
    TranslationObjectiveConfig, TranslationTurn, Translator, TranslatorConfig, Translators,
};
pub use unroll::UnrollConfig;

/// The networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Linear layers.
    #[default]
    Mlp,
    /// Convolutions that halve and double the size (Radford et al. 2016, arXiv:1511.06434).
    Dcgan,
    /// Residual blocks, those of SNGAN (Miyato et al. 2018, arXiv:1802.05957).
    Resnet,
    /// A generator whose noise is a style, in the manner of StyleGAN2 (Karras et al. 2020,
    /// arXiv:1912.04958), against the residual critic.
    Style,
}

/// Configuration of a [`Gan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GanConfig {
    /// Channels, height and width; the data's.
    pub image: [usize; 3],
    /// Numbers of noise that the generator starts from.
    pub d_latent: usize,
    /// What both players are built of.
    pub network: Network,
    /// Width of the hidden layers; of convolutions, channels next to the image.
    pub width: usize,
    /// Hidden layers of an mlp; convolutions have as many as the image's size asks for.
    pub n_layers: usize,
    /// How the critic is told the label, if both players are to know of labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditioning: Option<Conditioning>,
    /// Classes; the data's, where `conditioning` is set, else 0.
    pub n_classes: usize,
    /// The players begin with small images and grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growing: Option<GrowthConfig>,
    /// The generator's own.
    pub generator: GeneratorConfig,
    /// The critic's own.
    pub critic: CriticConfig,
}

/// What is the generator's alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// Between the layers.
    pub activation: Activation,
    /// Of the hidden layers.
    pub norm: NormChoice,
}

/// What is the critic's alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriticConfig {
    /// Width of its hidden layers, or channels next to the image; the generator's where it is left out. A
    /// critic too small to see all that there is lets its generator collapse (Metz et al. 2017, section
    /// 3.3.1, arXiv:1611.02163).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Hidden layers of its mlp; the generator's number where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_layers: Option<usize>,
    /// What the examples are multiplied by before the first layer: a quarter brings a ring of radius 2 to
    /// the size that weights are made for (Metz et al. 2017, appendix A). 1 where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_scale: Option<f64>,
    /// Between the layers.
    pub activation: Activation,
    /// Of the hidden layers.
    pub norm: NormChoice,
    /// Divide every weight by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).
    pub spectral_norm: bool,
    /// Show each example's closeness to the rest of its batch (Salimans et al. 2016, section 3.2,
    /// arXiv:1606.03498).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minibatch_discrimination: Option<MinibatchConfig>,
    /// Show the mean standard deviation of the features over the batch (Karras et al. 2018, section 3,
    /// arXiv:1710.10196).
    pub minibatch_deviation: bool,
    /// Examples judged together (Lin et al. 2018, PacGAN, arXiv:1712.04086); 1 judges each alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<usize>,
}

impl CriticConfig {
    /// Examples judged together.
    pub fn pack(&self) -> usize {
        self.packing.unwrap_or(1)
    }

    /// What the examples are multiplied by.
    fn scale(&self) -> f64 {
        self.input_scale.unwrap_or(1.0)
    }

    /// Whether a score depends on the other examples of its batch, as no penalty per example allows.
    pub fn mixes_examples(&self) -> bool {
        self.norm == NormChoice::Batch
            || self.minibatch_deviation
            || self.minibatch_discrimination.is_some()
    }
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            activation: Activation::Relu,
            norm: NormChoice::None,
        }
    }
}

impl Default for GanConfig {
    fn default() -> Self {
        Self {
            image: [2, 1, 1],
            d_latent: 2,
            network: Network::Mlp,
            width: 128,
            n_layers: 3,
            conditioning: None,
            n_classes: 0,
            growing: None,
            generator: GeneratorConfig::default(),
            critic: CriticConfig::default(),
        }
    }
}

impl GanConfig {
    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first key at fault.
    pub fn validate(&self) -> Result<(), ModelError> {
        let positive = |key, value| require(value > 0, key, || "must be at least 1".into());
        positive("d_latent", self.d_latent)?;
        positive("width", self.width)?;
        positive("n_layers", self.n_layers)?;
        positive("image", self.image.iter().product())?;
        positive("critic.packing", self.critic.pack())?;
        positive("critic.width", self.critic_width())?;
        positive("critic.n_layers", self.critic_layers())?;
        let scale = self.critic.scale();
        require(
            scale.is_finite() && scale > 0.0,
            "critic.input_scale",
            || "must be above 0; leave it out for 1".into(),
        )?;
        let [_, height, width] = self.image;
        if self.network != Network::Mlp {
            let [_, levels] = halvings(height);
            require(height == width && levels > 0, "image", || {
                format!(
                    "convolutional players need square images of an even side above 4, and these are \
                     {height}x{width}; resize the data, or take network = \"mlp\""
                )
            })?;
        }
        if let Some(growing) = &self.growing {
            growing.validate(self)?;
        }
        let known = self.n_classes == 0 || self.conditioning.is_some();
        require(known, "n_classes", || {
            "classes mean nothing without `conditioning`; set it to concat, auxiliary or projection"
                .into()
        })?;
        let packed = self.critic.pack() > 1;
        let alone = !packed || matches!(self.conditioning, None | Some(Conditioning::Concat));
        require(alone, "conditioning", || {
            "several examples judged together have several labels; use \"concat\", or leave \
             critic.packing out"
                .into()
        })?;
        if let Some(minibatch) = &self.critic.minibatch_discrimination {
            positive("critic.minibatch_discrimination.kernels", minibatch.kernels)?;
            positive("critic.minibatch_discrimination.dims", minibatch.dims)?;
        }
        for (key, norm) in [
            ("generator.norm", self.generator.norm),
            ("critic.norm", self.critic.norm),
        ] {
            let flat = self.network == Network::Mlp && norm == NormChoice::Instance;
            require(!flat, key, || {
                "instance norm looks at the places of an image, and linear layers have none; \
                 use batch, layer or none"
                    .into()
            })?;
        }
        Ok(())
    }

    /// Two players whose weights are drawn from `rng`.
    ///
    /// # Panics
    /// If [`GanConfig::validate`] fails.
    pub fn init(&self, device: &Device, rng: &mut Rng) -> Gan {
        if let Err(error) = self.validate() {
            panic!("invalid GanConfig: {error}");
        }
        let growth = Growth::new(self);
        let gan = Gan {
            generator: Generator::new(self, growth.clone(), device),
            critic: Critic::new(self, growth, device),
        };
        initialise(gan, rng, |slot| self.fill(slot))
    }

    /// How the critic is told labels, where there are any.
    fn conditioning(&self) -> Option<Conditioning> {
        self.conditioning.filter(|_| self.n_classes > 0)
    }

    /// Numbers that the generator sees: noise, and the label.
    fn generator_inputs(&self) -> usize {
        self.d_latent + self.n_classes
    }

    /// Width of the critic's hidden layers.
    fn critic_width(&self) -> usize {
        self.critic.width.unwrap_or(self.width)
    }

    /// Hidden layers of the critic's mlp.
    fn critic_layers(&self) -> usize {
        self.critic.n_layers.unwrap_or(self.n_layers)
    }

    /// Channels that the critic sees.
    fn critic_channels(&self) -> usize {
        let told = match self.conditioning() {
            Some(Conditioning::Concat) => self.n_classes,
            _ => 0,
        };
        self.critic.pack() * (self.image[0] + told)
    }

    fn fill(&self, slot: &Slot) -> Fill {
        match slot.path.rsplit('.').next().unwrap_or_default() {
            "gamma" | "running_var" => Fill::Constant(1.0),
            "beta" | "running_mean" => Fill::Constant(0.0),
            // The start of a power iteration; the projections of minibatch discrimination.
            "u" | "start" => Fill::Normal { std: 1.0 },
            "projection" => Fill::Normal { std: 0.1 },
            // As the paper on DCGAN has it, section 4.
            _ if self.network == Network::Dcgan && slot.shape.len() > 1 => {
                Fill::Normal { std: 0.02 }
            }
            _ => InitScheme::He.fill(slot),
        }
    }
}

/// The side of the smallest image of a convolutional player, and how often it is doubled to `side`: by
/// halving as long as it is even and above 4.
fn halvings(side: usize) -> [usize; 2] {
    let (mut small, mut levels) = (side, 0);
    while small > 4 && small.is_multiple_of(2) {
        small /= 2;
        levels += 1;
    }
    [small, levels]
}

/// Both players.
#[derive(Module, Debug)]
pub struct Gan {
    /// Makes examples.
    pub generator: Generator,
    /// Judges them.
    pub critic: Critic,
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Tensor, TensorData};
    use maquette_rng::{Stream, normal, rng};

    fn config(change: impl Fn(&mut GanConfig)) -> GanConfig {
        let mut config = GanConfig {
            width: 16,
            ..GanConfig::default()
        };
        change(&mut config);
        config
    }

    fn noise(shape: [usize; 2], device: &Device) -> Tensor<2> {
        let values = normal(&mut rng(0, Stream::Noise, 0), shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    #[test]
    fn every_choice_gives_both_players_finite_gradients() {
        let device = Device::flex().autodiff();
        let choices: [fn(&mut GanConfig); 11] = [
            |_| (),
            |c| c.critic.width = Some(4),
            |c| c.critic.n_layers = Some(1),
            |c| c.critic.input_scale = Some(0.25),
            |c| (c.generator.norm, c.critic.norm) = (NormChoice::Batch, NormChoice::Layer),
            |c| (c.generator.norm, c.critic.norm) = (NormChoice::Layer, NormChoice::Batch),
            |c| c.critic.spectral_norm = true,
            |c| c.critic.minibatch_discrimination = Some(MinibatchConfig::default()),
            |c| c.critic.minibatch_deviation = true,
            |c| c.critic.packing = Some(2),
            |c| {
                (c.generator.activation, c.critic.activation) = (Activation::Tanh, Activation::Silu)
            },
        ];
        for (i, choice) in choices.into_iter().enumerate() {
            let config = config(choice);
            let gan = config.init(&device, &mut rng(0, Stream::Init, 0));
            let made = gan.generator.forward(noise([8, 2], &device));
            assert_eq!(made.dims(), [8, 2, 1, 1]);
            let judged = gan.critic.judge(made);
            assert_eq!(judged.scores.dims(), [8 / config.critic.pack()]);
            let grads = judged.scores.square().mean().backward();
            let gradient = gan.generator.first_weight().grad(&grads).unwrap();
            let norm = gradient.abs().sum().into_scalar::<f32>();
            assert!(norm.is_finite() && norm > 0.0, "choice {i}: {norm}");
        }
    }

    #[test]
    fn every_network_gives_both_players_finite_gradients() {
        let device = Device::flex().autodiff();
        let conditions = [
            None,
            Some(Conditioning::Concat),
            Some(Conditioning::Auxiliary),
            Some(Conditioning::Projection),
        ];
        for network in [
            Network::Mlp,
            Network::Dcgan,
            Network::Resnet,
            Network::Style,
        ] {
            for conditioning in conditions {
                let config = config(|c| {
                    c.network = network;
                    c.width = 6;
                    c.image = [3, 12, 12];
                    c.conditioning = conditioning;
                    c.n_classes = if conditioning.is_some() { 4 } else { 0 };
                    c.critic.spectral_norm = true;
                    c.critic.width = Some(4);
                });
                let gan = config.init(&device, &mut rng(0, Stream::Init, 0));
                gan.critic.renew();
                let labels = conditioning.map(|_| {
                    let labels = Tensor::<1, burn::tensor::Int>::from_ints([0, 3, 1, 2], &device);
                    one_hot(labels, 4)
                });
                let made = gan
                    .generator
                    .forward_as(noise([4, 2], &device), labels.clone());
                assert_eq!(made.dims(), [4, 3, 12, 12]);
                let judged = gan.critic.judge_as(made, labels);
                assert_eq!(judged.scores.dims(), [4]);
                let named = judged.classes.map(|classes| classes.dims());
                let auxiliary = conditioning == Some(Conditioning::Auxiliary);
                assert_eq!(named, auxiliary.then_some([4, 4]));
                let grads = judged.scores.square().mean().backward();
                let gradient = gan.generator.first_weight().grad(&grads).unwrap();
                let norm = gradient.abs().sum().into_scalar::<f32>();
                assert!(norm.is_finite() && norm > 0.0, "{network:?}: {norm}");
            }
        }
    }

    #[test]
    fn sizes_are_halved_while_they_are_even_and_above_four() {
        let sizes = [28, 32, 64, 6, 7, 4];
        let expected = [[7, 2], [4, 3], [4, 4], [3, 1], [7, 0], [4, 0]];
        assert_eq!(sizes.map(halvings), expected);
        let odd = config(|c| (c.network, c.image) = (Network::Dcgan, [1, 7, 7]));
        let error = odd.validate().unwrap_err().to_string();
        assert!(error.contains("7x7"), "{error}");
    }

    #[test]
    fn same_generator_same_players() {
        let device = Device::flex();
        let scores = || {
            let gan = config(|c| c.critic.spectral_norm = true)
                .init(&device, &mut rng(3, Stream::Init, 0));
            let made = gan.generator.forward(noise([4, 2], &device));
            gan.critic.judge(made).scores.into_data()
        };
        assert_eq!(scores(), scores());
    }

    #[test]
    fn contradictions_name_their_key() {
        let error = config(|c| c.critic.norm = NormChoice::Instance)
            .validate()
            .unwrap_err();
        assert!(error.to_string().starts_with("critic.norm: instance norm"));
        let error = config(|c| c.critic.input_scale = Some(0.0)).validate();
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("critic.input_scale: must be"), "{error}");
        assert!(serde_json::from_str::<GanConfig>(r#"{"depth": 3}"#).is_err());
    }
}
