//! `family = "gan"`: adversarial networks on images.

use std::ops::Range;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Normalization;
use maquette_generate::latent::truncated_normal;
use maquette_models::gan::{Generator, one_hot};
use maquette_rng::{Stream, normal, rng};

use super::{Examples, GanRecipe, Pixels, contest, load, save};
use crate::adversarial::{self, Match, adversarial};
use crate::recipes::judge::{Judge, copies_of_training};
use crate::recipes::latent::LatentModel;
use crate::recipes::pictures::{
    Draw, ImageRequest, Stamp, as_set, draw_all, labels, save as save_pictures, save_sheet,
};
use crate::recipes::sections::{ImageData, Images};
use crate::recipes::{EvaluateJob, Job, Outcome, images, weights};
use crate::spec::Invalid;
use crate::{Evaluation, Source, TrainError};

/// Everything about one adversarial network of images.
pub type GanImagesRecipe = GanRecipe<ImageData>;

/// What a generator's pixels lie on.
const RANGE: (f32, f32) = (-1.0, 1.0);
/// Images of a sample sheet.
const SHOWN: usize = 64;
/// Images that are compared with every training image.
const MAX_COMPARED: usize = 2500;
/// Draws whose styles' mean is the centre of a truncation.
const CENTRE: usize = 1024;

/// Reads and checks a recipe.
///
/// # Errors
/// Pointing at the line or the `--set` at fault.
pub fn parse(source: &Source) -> Result<GanImagesRecipe, TrainError> {
    let recipe = GanImagesRecipe::read(source, [1, 32, 32])?;
    recipe
        .data
        .validate()
        .map_err(|invalid| source.locate("data", invalid))?;
    if recipe.evaluate.judge_steps == 0 {
        let error = Invalid::new(
            "judge_steps",
            "a judge must learn for at least one step",
            "1200 is usual",
        );
        return Err(source.locate("evaluate", error).into());
    }
    Ok(recipe)
}

/// Trains the recipe of `job`.
///
/// # Errors
/// See [`TrainError`].
pub fn train(mut job: Job<'_>) -> Result<Outcome, TrainError> {
    // 1. Recipe and data
    let mut recipe = parse(&job.source)?;
    let mut data = job.open_images(&mut recipe.data, &recipe.train)?;
    fit_to(&mut recipe, &data)?;
    let class_names = known_classes(&recipe, &data.train.class_names);
    let sha256 = data.hash();
    let seed = recipe.train.seed;

    let steps = recipe.train.total_steps(data.examples);
    check_growth(&job.source, &recipe, steps)?;

    // 2. Players
    let device = job.device.clone().autodiff();
    let gan = recipe.model.init(&device, &mut rng(seed, Stream::Init, 0));
    let run = job.open_run(&recipe, &sha256)?;

    // 3. Loop
    let normalization = match recipe.pixels {
        Pixels::Symmetric => Normalization::Symmetric,
        Pixels::Unit => Normalization::MinMax,
    };
    let mut feed = images::Feed::new(
        &recipe.data,
        &mut data,
        &recipe.train,
        normalization,
        run.as_ref(),
        recipe.critic.turns,
    )?;
    let n_classes = recipe.model.n_classes;
    let batches = |turn: u64| {
        let crate::Batch { data, stream } = feed.batch(turn)?;
        let labels = (n_classes > 0).then(|| one_hot(data.labels(&device), n_classes));
        let real = data.tensor(&device);
        let data = Examples { real, labels };
        Ok(crate::Batch { data, stream })
    };
    let plan = Match {
        generator: &recipe.generator,
        critic: &recipe.critic,
        train: &recipe.train,
        steps,
        device: &device,
    };
    let painter = Painter {
        recipe: &recipe,
        class_names: &class_names,
        device: &job.device.clone(),
    };
    let contest = contest(&recipe, batches)
        .counting("images")
        .sample(|model, _, folder: &Path| {
            let request = ImageRequest {
                count: SHOWN,
                seed,
                ..ImageRequest::default()
            };
            let all = draw_all(&request, RANGE, &mut |request, range| {
                painter.draw(model, request, range)
            })?;
            Ok(save_sheet(&folder.join("sheet.png"), &all)?)
        });
    let players = (gan.generator, gan.critic);
    let Some(mut run) = run else {
        let measured = adversarial::measure(players, contest, &plan)?;
        return job.estimated(&recipe, measured, plan.steps);
    };
    let fitted = adversarial(players, contest, &plan, &mut run, &mut job.control())?;

    // 4. Save, measure, report
    let dir = run.dir().to_owned();
    save(&fitted.model, &recipe, &class_names, &dir)?;
    let generator = &fitted.model.0;
    let evaluation = measure(generator, &painter, &data, Some(&dir), &mut |what| {
        job.say(what)
    })?;
    Ok(Outcome::Trained(run.finish(&fitted, evaluation)?))
}

/// Sets what the data decides, and refuses labels that are asked for where there are none.
fn fit_to(recipe: &mut GanImagesRecipe, data: &Images) -> Result<(), TrainError> {
    let classes = data.train.class_names.len();
    let asked = recipe.model.n_classes;
    recipe.model.image = images::shape(&data.train);
    if recipe.model.conditioning.is_some() {
        if classes == 0 {
            return Err(TrainError::other(
                "the recipe sets model.conditioning, and these images have no labels; take labelled data \
                 (a folder per class, or idx files with labels), or leave conditioning out",
            ));
        }
        if asked != 0 && asked != classes {
            return Err(TrainError::other(format!(
                "the recipe says model.n_classes = {asked}, and the data has {classes} ({}); leave n_classes out",
                data.train.class_names.join(", ")
            )));
        }
        recipe.model.n_classes = classes;
    }
    recipe.model.validate().map_err(TrainError::other)?;
    let objective = recipe.objective.validate(&recipe.model);
    objective.map_err(TrainError::other)
}

/// Refuses a run that would end before its players are grown: what is saved is loaded as if they were.
fn check_growth(source: &Source, recipe: &GanImagesRecipe, steps: u64) -> Result<(), TrainError> {
    let Some(growing) = &recipe.model.growing else {
        return Ok(());
    };
    let side = recipe.model.image[1];
    let needed = growing.until_grown(side);
    if steps > needed {
        return Ok(());
    }
    let error = Invalid::new(
        "steps",
        format!(
            "players of images of {side}x{side} are grown after {needed} steps, and the run has {steps}"
        ),
        match steps.saturating_sub(1) / (needed / growing.steps) {
            0 => format!("train for more than {needed} steps, or leave growing out"),
            most => format!("lower it to {most} or less, or train for more steps"),
        },
    );
    Err(source.locate("model.growing", error).into())
}

fn known_classes(recipe: &GanImagesRecipe, names: &[String]) -> Vec<String> {
    match recipe.model.conditioning {
        Some(_) => names.to_vec(),
        None => Vec::new(),
    }
}

/// Measures a run's model again.
///
/// # Errors
/// No weights, or no data.
pub fn evaluate(source: &Source, job: EvaluateJob<'_>) -> Result<Evaluation, TrainError> {
    let recipe = parse(source)?;
    (job.say)("reading the images");
    let data = recipe.data.open(job.data.as_deref(), &recipe.train)?;
    let model = load(&recipe, &job.run, &job.device)?;
    let painter = Painter {
        recipe: &recipe,
        class_names: &weights::class_names(&job.run)?,
        device: &job.device,
    };
    measure(&model, &painter, &data, None, job.say)
}

/// The function that draws images of a run, and their range.
///
/// # Errors
/// No weights.
pub fn drawing(
    source: &Source,
    dir: &Path,
    device: &Device,
) -> Result<((f32, f32), Box<Draw<'static>>), TrainError> {
    let recipe = parse(source)?;
    let model = load(&recipe, dir, device)?;
    let class_names = weights::class_names(dir)?;
    let device = device.clone();
    let draw = move |request: &ImageRequest, range: Range<usize>| {
        Painter {
            recipe: &recipe,
            class_names: &class_names,
            device: &device,
        }
        .draw(&model, request, range)
    };
    Ok((RANGE, Box::new(draw)))
}

/// The latent space of a run; of the first class that is asked for, where the model knows classes.
///
/// # Errors
/// No weights.
pub fn latent(
    source: &Source,
    dir: &Path,
    request: &ImageRequest,
    device: &Device,
) -> Result<LatentModel, TrainError> {
    let recipe = parse(source)?;
    let device = device.clone().autodiff();
    let model = load(&recipe, dir, &device)?;
    let class_names = weights::class_names(dir)?;
    let painter = Painter {
        recipe: &recipe,
        class_names: &class_names,
        device: &device,
    };
    let label = painter.labels(request, 0..1)?;
    Ok(LatentModel {
        d_latent: recipe.model.d_latent,
        image: recipe.model.image,
        range: RANGE,
        device,
        decode: Box::new(move |z| {
            let batch = z.dims()[0];
            let labels = label.clone().map(|label| label.repeat_dim(0, batch));
            model.forward_as(z, labels)
        }),
        encode: None,
    })
}

/// Draws images as a request says.
struct Painter<'a> {
    recipe: &'a GanImagesRecipe,
    /// Empty where the model knows no classes.
    class_names: &'a [String],
    device: &'a Device,
}

impl Painter<'_> {
    /// Images `range` of a request, `[range.len(), channels, height, width]`: each of its own noise.
    fn draw(
        &self,
        model: &Generator,
        request: &ImageRequest,
        range: Range<usize>,
    ) -> Result<Tensor<4>, TrainError> {
        let d_latent = self.recipe.model.d_latent;
        let labels = self.labels(request, range.clone())?;
        let drawn = |bound: Option<f32>| -> Result<Tensor<2>, TrainError> {
            let mut latents = Vec::with_capacity(range.len() * d_latent);
            for i in range.clone() {
                let random = &mut rng(request.seed, Stream::Sample, i as u64);
                latents.extend(match bound {
                    Some(bound) => {
                        truncated_normal(d_latent, bound, random).map_err(TrainError::other)?
                    }
                    None => normal(random, d_latent),
                });
            }
            let shape = [range.len(), d_latent];
            Ok(Tensor::from_data(
                TensorData::new(latents, shape),
                self.device,
            ))
        };
        let Some(truncation) = request.truncation else {
            return Ok(model.forward_as(drawn(None)?, labels));
        };
        // Where noise is a style, the style is pulled to the mean style; elsewhere the noise is cut.
        let centre = normal(&mut rng(0, Stream::Sample, 0), CENTRE * d_latent);
        let centre = TensorData::new(centre, [CENTRE, d_latent]);
        let centre = Tensor::from_data(centre, self.device);
        let psi = f64::from(truncation);
        match model.truncated(drawn(None)?, labels.clone(), psi, centre) {
            Some(images) => Ok(images),
            None => Ok(model.forward_as(drawn(Some(truncation))?, labels)),
        }
    }

    /// The classes of images `range`, one-hot.
    fn labels(
        &self,
        request: &ImageRequest,
        range: Range<usize>,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        if self.class_names.is_empty() {
            return match request.labels.is_empty() {
                true => Ok(None),
                false => Err(TrainError::other(
                    "this model knows no labels: its recipe has no model.conditioning",
                )),
            };
        }
        let classes = labels(request, range, self.class_names)?;
        let classes: Vec<usize> = classes.into_iter().map(usize::from).collect();
        let classes = images::label_tensor(&classes, self.device);
        Ok(Some(one_hot(classes, self.class_names.len())))
    }
}

/// Drawn images beside real ones as a judge sees them, and how near they are to the training images.
/// Writes the samples into `dir`, if given.
fn measure(
    model: &Generator,
    painter: &Painter<'_>,
    data: &Images,
    dir: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> Result<Evaluation, TrainError> {
    let recipe = painter.recipe;
    let n = recipe.evaluate.count;
    say(&format!("drawing {n} images to measure"));
    let request = ImageRequest {
        count: n,
        seed: recipe.train.seed,
        ..ImageRequest::default()
    };
    let all = draw_all(&request, RANGE, &mut |request, range| {
        painter.draw(model, request, range)
    })?;
    if let Some(dir) = dir {
        let shown = SHOWN.min(n);
        save_pictures(
            &dir.join("samples").join("final"),
            &all[..shown],
            &Stamp::of_run(dir, &request)?,
        )?;
    }
    let how = format!("n={n}|seed={}", request.seed);
    let mut evaluation = Evaluation::default();
    let names = painter.class_names;
    let classes = (!names.is_empty())
        .then(|| labels(&request, 0..n, names))
        .transpose()?;
    let drawn = as_set(&all, classes, names);
    if data.train.labels.is_some() {
        say("training the judge");
        let steps = recipe.evaluate.judge_steps;
        let source = recipe.data.source;
        if recipe.data.stack.is_some() {
            let single = single(data);
            let judge = Judge::train(&single, source, steps, painter.device)?;
            say("counting modes");
            judge.count_stacks(&drawn, data, &how, &mut evaluation)?;
        } else {
            let judge = Judge::train(data, source, steps, painter.device)?;
            say("comparing with real images");
            judge.measure(&drawn, &how, &mut evaluation)?;
        }
    }
    say("looking for copies of training images");
    let some: Vec<usize> = (0..n.min(MAX_COMPARED)).collect();
    let how = format!("n={}|seed={}", some.len(), request.seed);
    copies_of_training(&drawn.subset(&some), data, &how, &mut evaluation)?;
    Ok(evaluation)
}

/// The parts of stacked images.
fn single(data: &Images) -> Images {
    let train = data.train.unstacked();
    Images {
        examples: train.len(),
        train: train.into(),
        test: data.test.unstacked(),
        stream: None,
    }
}
