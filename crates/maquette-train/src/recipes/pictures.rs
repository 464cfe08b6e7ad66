//! Images asked of a run: PNG files that carry everything needed to make them again.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use maquette_data::ImageSet;
use maquette_generate::diffusion::Sampler;
use maquette_generate::image::{Picture, RECIPE_KEY, encode_png, grid, pictures};
use serde::{Deserialize, Serialize};

use crate::files::{create_folder, write_atomic};
use crate::{TrainError, hash};

/// Images are made in batches of this many. A replay makes the batch that its image was in: the
/// same sums in the same order, and so the same bytes.
const BATCH: usize = 64;

/// Pixels are repeated so that the grid of small images can be seen.
const GRID_SCALE: usize = 3;

/// What is asked of an image model. What is absent is the recipe's `[sample]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// How many.
    pub count: usize,
    /// The seed; image `i` draws from its own stream.
    pub seed: u64,
    /// Names or numbers of the classes to draw, in turn; every class when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Denoising steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Classifier-free guidance scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// The walk from noise to data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// Standard deviations beyond which numbers of a latent are drawn again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncation: Option<f32>,
}

/// What the text chunk of a PNG holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Version of the program.
    pub maquette: String,
    /// The run folder.
    pub run: PathBuf,
    /// SHA-256 of `model.safetensors`.
    pub model_sha256: String,
    /// The run's recipe, TOML.
    pub recipe: String,
    /// What was asked.
    pub request: ImageRequest,
    /// Which of the images this is; none for the grid of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<usize>,
}

impl Stamp {
    /// The stamp of images of `run`.
    ///
    /// # Errors
    /// No recipe or no weights in the folder.
    pub fn of_run(run: &Path, request: &ImageRequest) -> Result<Self, TrainError> {
        Ok(Self {
            maquette: env!("CARGO_PKG_VERSION").to_owned(),
            run: std::path::absolute(run).unwrap_or_else(|_| run.to_owned()),
            model_sha256: hash::sha256_file(&run.join("model.safetensors"))?,
            recipe: crate::run::recipe(run)?,
            request: request.clone(),
            image: None,
        })
    }

    /// The stamp inside a PNG.
    ///
    /// # Errors
    /// A file that is no PNG, or carries no stamp of ours.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let text = maquette_generate::image::read_recipe(path).map_err(TrainError::other)?;
        serde_json::from_str(&text).map_err(|error| TrainError::Malformed {
            path: path.to_owned(),
            what: "picture with a recipe",
            reason: error.to_string(),
        })
    }

    fn png(&self, picture: &Picture, image: Option<usize>) -> Result<Vec<u8>, TrainError> {
        let stamp = Self {
            image,
            ..self.clone()
        };
        let text = serde_json::to_string(&stamp).map_err(TrainError::other)?;
        encode_png(picture, &[(RECIPE_KEY, &text)]).map_err(TrainError::other)
    }
}

/// Makes images `range` of a request: `[range.len(), channels, height, width]`.
pub type Draw<'a> = dyn FnMut(&ImageRequest, Range<usize>) -> Result<Tensor<4>, TrainError> + 'a;

/// Makes all images of a request, batch by batch.
///
/// # Errors
/// What `draw` reports.
pub fn draw_all(
    request: &ImageRequest,
    range: (f32, f32),
    draw: &mut Draw<'_>,
) -> Result<Vec<Picture>, TrainError> {
    let mut all = Vec::with_capacity(request.count);
    for start in (0..request.count).step_by(BATCH) {
        let images = draw(request, start..(start + BATCH).min(request.count))?;
        all.extend(pictures(images, range.0, range.1).map_err(TrainError::other)?);
    }
    Ok(all)
}

/// Writes `0000.png`, `0001.png`, ... and `grid.png` into `folder`; returns the single images' paths.
///
/// # Errors
/// The folder cannot be written.
pub fn save(folder: &Path, all: &[Picture], stamp: &Stamp) -> Result<Vec<PathBuf>, TrainError> {
    create_folder(folder)?;
    let mut paths = Vec::with_capacity(all.len());
    for (i, picture) in all.iter().enumerate() {
        let path = folder.join(format!("{i:04}.png"));
        write_atomic(&path, &stamp.png(picture, Some(i))?)?;
        paths.push(path);
    }
    if !all.is_empty() {
        write_atomic(&folder.join("grid.png"), &stamp.png(&sheet(all)?, None)?)?;
    }
    Ok(paths)
}

/// Writes all images side by side, without a stamp: for a look during training.
///
/// # Errors
/// No images, or a folder that cannot be written.
pub fn save_sheet(path: &Path, all: &[Picture]) -> Result<(), TrainError> {
    write_atomic(
        path,
        &encode_png(&sheet(all)?, &[]).map_err(TrainError::other)?,
    )
}

/// All images side by side, enlarged.
///
/// # Errors
/// No images.
pub fn sheet(all: &[Picture]) -> Result<Picture, TrainError> {
    let columns = (all.len() as f64).sqrt().ceil() as usize;
    let columns = if all.len() > 8 {
        columns.max(8)
    } else {
        all.len()
    };
    enlarged(&grid(all, columns, 1, 48).map_err(TrainError::other)?)
}

/// A picture large enough to be looked at.
pub(super) fn enlarged(picture: &Picture) -> Result<Picture, TrainError> {
    picture.upscaled(GRID_SCALE).map_err(TrainError::other)
}

/// The PNG bytes that `stamp` stands for, made again.
///
/// # Errors
/// What `draw` reports; an image number beyond the request.
pub fn replay(
    stamp: &Stamp,
    range: (f32, f32),
    draw: &mut Draw<'_>,
) -> Result<Vec<u8>, TrainError> {
    let Some(image) = stamp.image else {
        let all = draw_all(&stamp.request, range, draw)?;
        return stamp.png(&sheet(&all)?, None);
    };
    let count = stamp.request.count;
    if image >= count {
        return Err(TrainError::other(format!(
            "the picture says it is number {image} of {count}: its metadata were edited"
        )));
    }
    let start = image / BATCH * BATCH;
    let batch = draw(&stamp.request, start..(start + BATCH).min(count))?;
    let batch = pictures(batch, range.0, range.1).map_err(TrainError::other)?;
    stamp.png(&batch[image - start], Some(image))
}

/// The class of each of the images `range`: the request's labels in turn, or every class in turn.
///
/// # Errors
/// A label that is neither a class's name nor its number.
pub fn labels(
    request: &ImageRequest,
    range: Range<usize>,
    names: &[String],
) -> Result<Vec<u16>, TrainError> {
    let wanted = request
        .labels
        .iter()
        .map(|label| class_of(label, names))
        .collect::<Result<Vec<_>, _>>()?;
    let classes: Vec<u16> = if wanted.is_empty() {
        (0..names.len() as u16).collect()
    } else {
        wanted
    };
    Ok(range.map(|i| classes[i % classes.len()]).collect())
}

fn class_of(label: &str, names: &[String]) -> Result<u16, TrainError> {
    let named = names.iter().position(|name| name == label);
    let numbered = label
        .parse::<usize>()
        .ok()
        .filter(|&number| number < names.len());
    named.or(numbered).map(|class| class as u16).ok_or_else(|| {
        TrainError::other(format!(
            "there is no class `{label}`; this model knows {}",
            names.join(", ")
        ))
    })
}

/// Pictures as a set, for metrics.
pub fn as_set(all: &[Picture], labels: Option<Vec<u16>>, class_names: &[String]) -> ImageSet {
    let (channels, height, width) = all
        .first()
        .map_or((1, 0, 0), |p| (p.channels(), p.height(), p.width()));
    let mut pixels = Vec::with_capacity(all.len() * channels * height * width);
    for picture in all {
        for channel in 0..channels {
            pixels.extend(picture.pixels().iter().skip(channel).step_by(channels));
        }
    }
    ImageSet {
        channels,
        height,
        width,
        pixels,
        labels,
        class_names: class_names.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names_or_numbers_in_turn() {
        let names = ["A".to_owned(), "B".to_owned(), "C".to_owned()];
        let ask = |labels: &[&str]| ImageRequest {
            count: 4,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..ImageRequest::default()
        };
        assert_eq!(
            labels(&ask(&["C", "0"]), 0..4, &names).unwrap(),
            [2, 0, 2, 0]
        );
        assert_eq!(labels(&ask(&[]), 2..4, &names).unwrap(), [2, 0]);
        let error = labels(&ask(&["Z"]), 0..1, &names).unwrap_err().to_string();
        assert!(error.contains("A, B, C"), "{error}");
    }

    #[test]
    fn a_set_of_colour_pictures_is_channels_first() {
        let picture = Picture::new(2, 1, 3, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(as_set(&[picture], None, &[]).pixels, [1, 4, 2, 5, 3, 6]);
    }
}
