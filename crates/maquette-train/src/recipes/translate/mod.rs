//! `family = "translate"`: images to images, with pairs (pix2pix) or without (CycleGAN).

mod measure;
mod pairs;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use maquette_data::{ImageSet, Split, images as sets};
use maquette_generate::image::{Picture, encode_png, grid};
use maquette_models::gan::{
    PatchCritics, PlayerLoss, TranslationConfig, TranslationObjectiveConfig, TranslationTurn,
    Translators,
};
use maquette_rng::{Stream, rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gan::check_players;
use super::generate::{GenerateJob, Made};
use super::images;
use super::pictures::enlarged;
use super::sections::ImageData;
use super::{EvaluateJob, Family, Job, Outcome, of_run, weights};
use crate::adversarial::{self, Match, Seen, adversarial};
use crate::files::{create_folder, write_atomic};
use crate::spec::{Invalid, PublishedNumbers};
use crate::{
    Contest, Evaluation, LoopSpec, Loss, PlayerSpec, RecipeError, Source, TrainError, hash,
};

pub use measure::translated;
pub use pairs::PairSpec;
use pairs::Pairs;

/// The key of the text that says how a picture was made. It is not a recipe: images of the user's may have
/// taken part.
const KEY: &str = "maquette-translation";
/// Held-out pairs measured during training.
const VALIDATED: usize = 200;
/// Pictures in a row of a sheet.
const SHOWN: usize = 16;

/// Everything about one translation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranslateRecipe {
    /// One line for listings.
    pub summary: String,
    /// `translate`.
    pub family: Family,
    /// Where images come from.
    pub data: ImageData,
    /// Which is to become which.
    pub pairs: PairSpec,
    /// Both players. `source` and `target` are the data's.
    #[serde(default)]
    pub model: TranslationConfig,
    /// What they minimise.
    #[serde(default)]
    pub objective: TranslationObjectiveConfig,
    /// How the generator learns; without pairs, both.
    pub generator: PlayerSpec,
    /// How the critic learns; without pairs, both.
    pub critic: PlayerSpec,
    /// The loop.
    pub train: LoopSpec,
    /// What is measured at the end.
    #[serde(default)]
    pub evaluate: TranslateEvaluation,
    /// Published numbers to stand beside ours.
    #[serde(default, skip_serializing_if = "PublishedNumbers::is_empty")]
    pub published: PublishedNumbers,
}

/// `[evaluate]` of a translation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranslateEvaluation {
    /// Held-out images that are translated and measured, at most.
    pub images: usize,
    /// Training steps of the judge that reads translations, where the data has labels; 0 leaves it out.
    pub judge_steps: u64,
}

impl Default for TranslateEvaluation {
    fn default() -> Self {
        Self {
            images: 1000,
            judge_steps: 600,
        }
    }
}

impl TranslateRecipe {
    /// Reads a recipe and checks all that does not depend on the images' shapes.
    ///
    /// # Errors
    /// Pointing at the line or the `--set` at fault.
    pub fn parse(source: &Source) -> Result<Self, TrainError> {
        let recipe: Self = source.parse()?;
        check_players(source, &recipe.train, [&recipe.generator, &recipe.critic])?;
        pairs::check(&recipe.data, &recipe.pairs)
            .map_err(|(section, invalid)| source.locate(section, invalid))?;
        if recipe.evaluate.images == 0 {
            let error = Invalid::new("images", "`images` must be at least 1", "1000 is usual");
            return Err(source.locate("evaluate", error).into());
        }
        Ok(recipe)
    }

    /// The recipe of a run, whose images' shapes stand in it.
    fn of_run(source: &Source) -> Result<Self, TrainError> {
        let recipe = Self::parse(source)?;
        recipe.check(source)?;
        Ok(recipe)
    }

    /// Checks what depends on the images' shapes.
    fn check(&self, source: &Source) -> Result<(), RecipeError> {
        let paired = self.pairs.paired;
        source.check("model", self.model.validate(paired))?;
        source.check("objective", self.objective.validate(paired, &self.model))
    }

    fn init(&self, device: &Device) -> (Translators, PatchCritics) {
        let random = &mut rng(self.train.seed, Stream::Init, 0);
        self.model.init(self.pairs.paired, device, random)
    }
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = TranslateRecipe::parse(&job.source)?;
    job.remember_data(&mut recipe.data.path);
    job.say("reading the images");
    let data = Pairs::open(
        &recipe.data,
        &recipe.pairs,
        job.data.as_deref(),
        &recipe.train,
    )?;
    recipe.model.source = images::shape(&data.train[0]);
    recipe.model.target = images::shape(&data.train[1]);
    recipe.check(&job.source)?;

    // 2. Players
    let device = job.device.clone().autodiff();
    let players = recipe.init(&device);
    let run = job.open_run(&recipe, &data.hash())?;

    // 3. Loop
    let start = run.as_ref().map_or(0, |run| run.start_step()) * recipe.critic.turns;
    let mut feed = data.feed(&recipe.data, &recipe.train, start)?;
    let inner = job.device.clone();
    let objective = recipe.objective.init();
    let (some, few) = (data.test.first(VALIDATED), data.test.first(SHOWN));
    let contest = Contest::new(
        |_| Ok(feed.next(&device)?.into()),
        |seen: Players<'_>| {
            play(&seen, &recipe, |turn| {
                objective.critic(seen.generator, seen.critic, turn)
            })
        },
        |seen: Players<'_>| {
            play(&seen, &recipe, |turn| {
                objective.generator(seen.generator, seen.critic, turn)
            })
        },
    )
    .counting("images")
    .validate(|model| Ok(measure::nearness(model, &some, &inner)?.metrics))
    .sample(|model, _, folder: &Path| {
        let made = translated(&model.there, &few.sources, &inner)?;
        let truth = few.are_pairs().then_some(&few.targets);
        let sheet = sheet(&few.sources, &made, truth)?;
        let png = encode_png(&sheet, &[]).map_err(TrainError::other)?;
        Ok(write_atomic(&folder.join("source-made-truth.png"), &png)?)
    });
    let [examples, targets] = data.train.each_ref().map(ImageSet::len);
    let plan = Match {
        generator: &recipe.generator,
        critic: &recipe.critic,
        train: &recipe.train,
        steps: recipe.train.total_steps(examples.min(targets)),
        device: &device,
    };
    let Some(mut run) = run else {
        let measured = adversarial::measure(players, contest, &plan)?;
        return job.estimated(&recipe, measured, plan.steps);
    };
    let fitted = adversarial(players, contest, &plan, &mut run, &mut job.control())?;

    // 4. Save, measure, report
    save(&fitted.model, &recipe, run.dir())?;
    let device = job.device.clone();
    let say = &mut |what: &str| job.say(what);
    let evaluation = measure::all(&fitted.model.0, &recipe, &data, &device, say)?;
    Ok(Outcome::Trained(run.finish(&fitted, evaluation)?))
}

type Players<'a> = Seen<'a, Translators, PatchCritics, [Tensor<4>; 2]>;

/// A turn of the player whose loss this is.
fn play(
    seen: &Players<'_>,
    recipe: &TranslateRecipe,
    loss: impl FnOnce(TranslationTurn<'_>) -> PlayerLoss,
) -> Loss {
    let [sources, targets] = seen.batch.clone();
    let generator_turns = seen.step * recipe.generator.turns;
    let PlayerLoss { total, parts } = loss(TranslationTurn {
        sources,
        targets,
        seen: (seen.turn - generator_turns) * recipe.train.batch as u64,
        rng: &mut rng(recipe.train.seed, Stream::Noise, seen.turn),
    });
    Loss { total, parts }
}

fn save(
    (translators, critics): &(Translators, PatchCritics),
    recipe: &TranslateRecipe,
    dir: &Path,
) -> Result<(), TrainError> {
    let config = json!({
        "architecture": "translation", "paired": recipe.pairs.paired, "model": recipe.model,
    });
    weights::save(translators, &config, dir)?;
    weights::save_critic(critics, dir)
}

fn load(recipe: &TranslateRecipe, dir: &Path, device: &Device) -> Result<Translators, TrainError> {
    weights::load(recipe.init(device).0, dir)
}

/// The generators of the run `dir`.
///
/// # Errors
/// Not a run of this family, or no weights in it.
pub fn open(dir: &Path, device: &Device) -> Result<Translators, TrainError> {
    load(&TranslateRecipe::of_run(&of_run(dir)?)?, dir, device)
}

/// Measures a run's generators again.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = TranslateRecipe::of_run(source)?;
    (job.say)("reading the images");
    let data = Pairs::open(
        &recipe.data,
        &recipe.pairs,
        job.data.as_deref(),
        &recipe.train,
    )?;
    let model = load(&recipe, &job.run, &job.device)?;
    measure::all(&model, &recipe, &data, &job.device, job.say)
}

/// Translates the pictures that are given, else the first held-out ones: `0000.png`, ... and `grid.png`,
/// which shows sources, translations and, where there is one, the truth below each other.
///
/// # Errors
/// No weights, pictures of a size that cannot be halved as often as the model halves, a request for
/// anything but translations.
pub fn generate(source: &Source, job: GenerateJob<'_>) -> Result<Vec<Made>, TrainError> {
    let recipe = TranslateRecipe::of_run(source)?;
    let request = &job.images;
    if job.latent.is_some() || !request.labels.is_empty() || request.truncation.is_some() {
        return Err(TrainError::other(
            "a translation is decided by its source: this model has neither labels nor a latent space; give pictures \
             with --images",
        ));
    }
    (job.say)("loading the model");
    let model = load(&recipe, &job.model, &job.device)?;
    let (sources, truth) = match &job.given {
        Some(path) => (given(path, &recipe.model)?, None),
        None => {
            let test = Pairs::open(&recipe.data, &recipe.pairs, None, &recipe.train)?.test;
            let test = test.first(request.count);
            let truth = test.are_pairs().then_some(test.targets);
            (test.sources, truth)
        }
    };
    (job.say)(&format!("translating {} pictures", sources.len()));
    let made = translated(&model.there, &sources, &job.device)?;
    let folder = job
        .out
        .unwrap_or_else(|| job.model.join("samples").join("translated"));
    create_folder(&folder)?;
    let text = json!({
        "run": std::path::absolute(&job.model).unwrap_or_else(|_| job.model.clone()),
        "model_sha256": hash::sha256_file(&job.model.join("model.safetensors"))?,
        "sources": job.given,
    })
    .to_string();
    let write = |name: &str, picture: &Picture| -> Result<_, TrainError> {
        let png = encode_png(picture, &[(KEY, &text)]).map_err(TrainError::other)?;
        let path = folder.join(name);
        write_atomic(&path, &png)?;
        Ok(path)
    };
    let seed = request.seed;
    let mut all = Vec::with_capacity(made.len());
    for (i, picture) in measure::pictures(&made)?.iter().enumerate() {
        let path = write(&format!("{i:04}.png"), picture)?;
        all.push(Made::Image { path, seed });
    }
    write("grid.png", &sheet(&sources, &made, truth.as_ref())?)?;
    Ok(all)
}

/// Pictures to translate, in the channels of the model's sources.
fn given(path: &Path, model: &TranslationConfig) -> Result<ImageSet, TrainError> {
    let set = sets::open(path, Split::Train).map_err(TrainError::other)?;
    let side = 1 << model.halvings();
    if !set.height.is_multiple_of(side) || !set.width.is_multiple_of(side) {
        return Err(TrainError::other(format!(
            "{}: the pictures are {}x{} (height x width), and this model halves them {} times; bring both sides to a \
             multiple of {side}",
            path.display(),
            set.height,
            set.width,
            model.halvings()
        )));
    }
    Ok(set.in_channels(model.source[0]))
}

/// The first sources, their translations and the truth, a row each.
fn sheet(
    sources: &ImageSet,
    made: &ImageSet,
    truth: Option<&ImageSet>,
) -> Result<Picture, TrainError> {
    let rows: Vec<&ImageSet> = [sources, made].into_iter().chain(truth).collect();
    let channels = rows.iter().map(|set| set.channels).max().unwrap_or(1);
    let columns = sources.len().min(SHOWN);
    let first: Vec<usize> = (0..columns).collect();
    let mut all = Vec::new();
    for row in rows {
        let row = row.subset(&first).in_channels(channels);
        all.extend(measure::pictures(&row)?);
    }
    enlarged(&grid(&all, columns, 1, 48).map_err(TrainError::other)?)
}
