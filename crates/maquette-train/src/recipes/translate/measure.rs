//! How near translations are to what they should be.

use std::sync::Arc;

use burn::tensor::Device;
use maquette_data::images::ImagePairs;
use maquette_data::{ImageSet, Normalization};
use maquette_eval::pixels::{mean_absolute_error, peak_signal_to_noise};
use maquette_generate::image::Picture;
use maquette_models::gan::{Translator, Translators};

use super::{Pairs, TranslateRecipe};
use crate::recipes::images::{Batch, chunks};
use crate::recipes::judge::Judge;
use crate::recipes::pictures::as_set;
use crate::recipes::sections::{ImageSource, Images};
use crate::{Evaluation, TrainError};

/// Images that are translated at a time.
const BATCH: usize = 64;

/// What `translator` makes of each of `sources`, whose labels it keeps.
///
/// # Errors
/// Numbers that are not finite cannot be read back from the device.
pub fn translated(
    translator: &Translator,
    sources: &ImageSet,
    device: &Device,
) -> Result<ImageSet, TrainError> {
    let mut all = Vec::with_capacity(sources.len());
    for indices in chunks(sources.len(), BATCH) {
        let batch = Batch::new(sources, &indices, &Normalization::Symmetric, None);
        let made = translator.forward(batch.tensor(device));
        let made = maquette_generate::image::pictures(made, -1.0, 1.0);
        all.extend(made.map_err(TrainError::other)?);
    }
    Ok(as_set(&all, sources.labels.clone(), &sources.class_names))
}

/// Images as pictures, one by one.
pub(super) fn pictures(set: &ImageSet) -> Result<Vec<Picture>, TrainError> {
    let plane = set.height * set.width;
    let picture = |i: usize| {
        let image = set.image(i);
        let pixel = |at: usize| (0..set.channels).map(move |channel| image[channel * plane + at]);
        let pixels = (0..plane).flat_map(pixel).collect();
        Picture::new(set.width, set.height, set.channels, pixels).map_err(TrainError::other)
    };
    (0..set.len()).map(picture).collect()
}

/// Distance in pixels: of translations to the truth, where it is known, and of sources to themselves there
/// and back, where there is a way back.
pub(super) fn nearness(
    model: &Translators,
    held_out: &ImagePairs,
    device: &Device,
) -> Result<Evaluation, TrainError> {
    let made = translated(&model.there, &held_out.sources, device)?;
    nearness_of(&made, model, held_out, device)
}

fn nearness_of(
    made: &ImageSet,
    model: &Translators,
    held_out: &ImagePairs,
    device: &Device,
) -> Result<Evaluation, TrainError> {
    let mut evaluation = Evaluation::default();
    let how = format!("n={}|range=0..1", made.len());
    let (sources, truth) = (&held_out.sources, &held_out.targets);
    if held_out.are_pairs() {
        let l1 = mean_absolute_error(&made.pixels, &truth.pixels).map_err(TrainError::other)?;
        evaluation.put("l1", l1, format!("l1|{how}"));
        let psnr = peak_signal_to_noise(&made.pixels, &truth.pixels).map_err(TrainError::other)?;
        // Without any difference there is no ratio.
        if psnr.is_finite() {
            evaluation.put("psnr", psnr, format!("psnr|dB|pooled|{how}"));
        }
        let untouched = sources.clone().in_channels(truth.channels);
        let l1 =
            mean_absolute_error(&untouched.pixels, &truth.pixels).map_err(TrainError::other)?;
        evaluation.put("source_l1", l1, format!("l1|source-as-it-is|{how}"));
    }
    if let Some(back) = &model.back {
        let again = translated(back, made, device)?;
        let l1 = mean_absolute_error(&again.pixels, &sources.pixels).map_err(TrainError::other)?;
        evaluation.put("cycle_l1", l1, format!("l1|there-and-back|{how}"));
    }
    Ok(evaluation)
}

/// Everything, on held-out images: nearness; and where images have labels, which neither player ever sees,
/// how many a judge reads back, and how the translations compare with targets in its features.
///
/// Here the judge learns from the training part, also where that is rendered from fonts: the images that it
/// reads are the held-out ones, which a judge of those would know by heart.
pub(super) fn all(
    model: &Translators,
    recipe: &TranslateRecipe,
    data: &Pairs,
    device: &Device,
    say: &mut dyn FnMut(&str),
) -> Result<Evaluation, TrainError> {
    let held_out = data.test.first(recipe.evaluate.images);
    say(&format!(
        "translating {} held-out images",
        held_out.sources.len()
    ));
    let made = translated(&model.there, &held_out.sources, device)?;
    let mut evaluation = Evaluation::default();
    let near = nearness_of(&made, model, &held_out, device)?;
    for (name, value) in near.metrics {
        let signature = format!("{}|split=test", near.signatures[&name]);
        evaluation.put(&format!("test_{name}"), value, signature);
    }
    let (sources, targets) = (held_out.sources, held_out.targets);
    let steps = recipe.evaluate.judge_steps;
    let named = targets.labels.is_some() && targets.class_names == sources.class_names;
    if steps == 0 || !named {
        return Ok(evaluation);
    }
    say("training the judge");
    let images = Images {
        examples: data.train[1].len(),
        train: Arc::new(data.train[1].clone()),
        test: targets,
        stream: None,
    };
    let judge = Judge::train(&images, ImageSource::Path, steps, device)?;
    say("comparing with real images");
    let how = format!("n={}|translated=test", made.len());
    judge.measure(&made, &how, &mut evaluation)?;
    let untouched = sources.in_channels(made.channels);
    let read = judge.readback(&untouched)?.accuracy();
    let signature = format!("readback|judge={}|source-as-it-is", judge.name());
    evaluation.put("source_readback", read, signature);
    Ok(evaluation)
}
