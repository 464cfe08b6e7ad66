//! Generative adversarial networks: what their recipes share, whatever they are trained on.

pub mod images;
pub mod points;
mod vitals;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_models::gan::{Critic, GanConfig, Generator, ObjectiveConfig, PlayerLoss, Turn};
use maquette_rng::{Rng, Stream, normal, rng};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::vitals::Vitals;
use super::{Family, weights};
use crate::adversarial::Seen;
use crate::diagnosis::Expected;
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    Batch, BoxError, Contest, LoopSpec, Loss, PlayerSpec, RecipeError, Source, TrainError,
};

/// Everything about one adversarial network on data of the section `D`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GanRecipe<D> {
    /// One line for listings.
    pub summary: String,
    /// `gan` of images, `gan-points` of points.
    pub family: Family,
    /// What is learnt from.
    pub data: D,
    /// Both networks. `image` is the data's.
    #[serde(default)]
    pub model: GanConfig,
    /// What the players minimise.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// The range of the real pixels; made ones are always on `[-1, 1]`.
    #[serde(default, skip_serializing_if = "Pixels::is_symmetric")]
    pub pixels: Pixels,
    /// How the generator learns.
    pub generator: PlayerSpec,
    /// How the critic learns.
    pub critic: PlayerSpec,
    /// The loop.
    pub train: LoopSpec,
    /// What is measured at the end.
    #[serde(default)]
    pub evaluate: GanEvaluation,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

/// On what interval real pixels are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pixels {
    /// `[-1, 1]`, as the generator's.
    #[default]
    Symmetric,
    /// `[0, 1]`: a mistake that is often made, to see what comes of it.
    Unit,
}

impl Pixels {
    fn is_symmetric(&self) -> bool {
        *self == Self::Symmetric
    }
}

/// `[evaluate]` of an adversarial network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GanEvaluation {
    /// Examples made to be measured.
    pub count: usize,
    /// Training steps of the judge that reads images, where the data has labels.
    pub judge_steps: u64,
}

impl Default for GanEvaluation {
    /// As many as VEEGAN counts modes in (Srivastava et al. 2017).
    fn default() -> Self {
        Self {
            count: 2500,
            judge_steps: 1200,
        }
    }
}

impl<D: DeserializeOwned> GanRecipe<D> {
    /// Reads a recipe and checks all but its data, of which examples of the shape `assumed` stand in until
    /// it is read.
    fn read(source: &Source, assumed: [usize; 3]) -> Result<Self, TrainError> {
        let mut recipe: Self = source.parse()?;
        if recipe.model.image == GanConfig::default().image {
            recipe.model.image = assumed;
        }
        check_players(source, &recipe.train, [&recipe.generator, &recipe.critic])?;
        source.check("model", recipe.model.validate())?;
        source.check("objective", recipe.objective.validate(&recipe.model))?;
        let pack = recipe.model.critic.pack();
        if !recipe.train.batch.is_multiple_of(pack) {
            let error = Invalid::new(
                "batch",
                format!(
                    "a batch of {} cannot be judged {pack} at a time",
                    recipe.train.batch
                ),
                format!("take a multiple of model.critic.packing = {pack}"),
            );
            return Err(source.locate("train", error).into());
        }
        if recipe.evaluate.count == 0 {
            let error = Invalid::new("count", "count must be at least 1", "2500 is usual");
            return Err(source.locate("evaluate", error).into());
        }
        Ok(recipe)
    }
}

/// Checks the loop of two players, and how the generator and the critic learn.
pub(super) fn check_players(
    source: &Source,
    train: &LoopSpec,
    [generator, critic]: [&PlayerSpec; 2],
) -> Result<(), RecipeError> {
    let at = |section: &'static str| move |invalid: Invalid| source.locate(section, invalid);
    train.validate().map_err(at("train"))?;
    train.validate_for_players().map_err(at("train"))?;
    let sections = ["generator", "generator.optimizer", "generator.schedule"];
    check_player(source, sections, generator)?;
    let sections = ["critic", "critic.optimizer", "critic.schedule"];
    check_player(source, sections, critic)
}

fn check_player(
    source: &Source,
    [section, optimizer, schedule]: [&'static str; 3],
    player: &PlayerSpec,
) -> Result<(), RecipeError> {
    let at = |section: &'static str| move |invalid: Invalid| source.locate(section, invalid);
    player.validate().map_err(at(section))?;
    player.optimizer.validate().map_err(at(optimizer))?;
    player.schedule.validate().map_err(at(schedule))
}

/// A batch of real examples.
struct Examples {
    /// `[batch, channels, height, width]`.
    real: Tensor<4>,
    /// One-hot, `[batch, n_classes]`, where the players know of classes.
    labels: Option<Tensor<2>>,
}

/// The game between both players over batches of real examples.
fn contest<'a, D>(
    recipe: &'a GanRecipe<D>,
    batches: impl FnMut(u64) -> Result<Batch<Examples>, BoxError> + 'a,
) -> Contest<'a, Generator, Critic, Examples> {
    let (d_latent, seed) = (recipe.model.d_latent, recipe.train.seed);
    let objective = recipe.objective.init();
    let critics = objective.clone();
    let mut vitals = Vitals::default();
    let images = recipe.model.image[1] * recipe.model.image[2] > 1;
    Contest::new(
        batches,
        move |seen: Players<'_>| {
            seen.critic.grow(seen.step);
            seen.critic.renew();
            play(seen, d_latent, seed, |turn, critic| {
                critics.critic(critic, turn)
            })
        },
        move |seen: Players<'_>| {
            let step = seen.step;
            play(seen, d_latent, seed, |turn, critic| {
                let signs = vitals.of(&turn.real, &turn.fake, step);
                let mut loss = objective.generator(critic, turn);
                loss.parts.extend(signs);
                loss
            })
        },
    )
    .diagnosed(Expected {
        range: images.then_some((-1.0, 1.0)),
        scores_have_a_boundary: recipe.objective.loss.boundary().is_some(),
    })
}

type Players<'a> = Seen<'a, Generator, Critic, Examples>;

/// A turn: examples of fresh noise, and the loss of the player whose turn it is.
fn play(
    seen: Players<'_>,
    d_latent: usize,
    seed: u64,
    loss: impl FnOnce(Turn<'_>, &Critic) -> PlayerLoss,
) -> Loss {
    let random = &mut rng(seed, Stream::Noise, seen.turn);
    let Examples { real, labels } = seen.batch;
    let z = noise(real.dims()[0], d_latent, random, &real.device());
    let turn = Turn {
        real: real.clone(),
        fake: seen.generator.forward_as(z, labels.clone()),
        labels: labels.clone(),
        step: seen.step,
        rng: random,
    };
    let PlayerLoss { total, parts } = loss(turn, seen.critic);
    Loss { total, parts }
}

/// Standard normal latents, `[count, d_latent]`.
fn noise(count: usize, d_latent: usize, random: &mut Rng, device: &Device) -> Tensor<2> {
    let values = normal(random, count * d_latent);
    Tensor::from_data(TensorData::new(values, [count, d_latent]), device)
}

fn save<D>(
    (generator, critic): &(Generator, Critic),
    recipe: &GanRecipe<D>,
    class_names: &[String],
    dir: &Path,
) -> Result<(), TrainError> {
    let config = json!({
        "architecture": "gan", "model": recipe.model, "class_names": class_names,
    });
    weights::save(generator, &config, dir)?;
    weights::save_critic(critic, dir)
}

fn load<D>(recipe: &GanRecipe<D>, dir: &Path, device: &Device) -> Result<Generator, TrainError> {
    let empty = recipe.model.init(device, &mut rng(0, Stream::Init, 0));
    weights::load(empty.generator, dir)
}
