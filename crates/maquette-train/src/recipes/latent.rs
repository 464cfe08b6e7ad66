//! Pictures of a latent space: walks between codes, along axes, sums of codes, and the codes of given
//! images.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use maquette_data::Split;
use maquette_data::images::{Sizes, open_with};
use maquette_generate::animation::Animation;
use maquette_generate::image::{Picture, encode_png, grid, pictures};
use maquette_generate::latent::{Interpolation, Projection, path, project};
use maquette_rng::{Stream, normal, rng};

use super::pictures::enlarged;
use crate::files::{create_folder, write_atomic};
use crate::{TrainError, hash};

/// The key of the text that says how a picture was made. It is not a recipe: images may have taken
/// part.
const KEY: &str = "maquette-latent";
/// How long a picture of a walk is shown.
const EACH: Duration = Duration::from_millis(80);
/// Draws among which the start of a projection is chosen, where there is no encoder.
const STARTS: usize = 256;

/// A network from vectors of standard normal numbers to images.
pub struct LatentModel {
    /// Numbers of a code.
    pub d_latent: usize,
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Brightness of an image, black and white.
    pub range: (f32, f32),
    /// Where it computes, with autodiff.
    pub device: Device,
    /// `[n, d_latent]` to `[n, channels, height, width]`.
    pub decode: Box<dyn Fn(Tensor<2>) -> Tensor<4>>,
    /// The way back, where one was learnt.
    pub encode: Option<Box<dyn Fn(Tensor<4>) -> Tensor<2>>>,
}

/// What is asked of a latent space.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentAsk {
    /// Which pictures.
    pub what: Walk,
    /// Pictures along a walk, its ends included.
    pub points: usize,
    /// The format of moving pictures.
    pub animation: Animation,
    /// How the codes of images are found.
    pub projection: Projection,
}

/// Pictures of a latent space.
#[derive(Debug, Clone, PartialEq)]
pub enum Walk {
    /// From one code to another.
    Between {
        /// Where it begins.
        from: Code,
        /// Where it ends.
        to: Code,
        /// Along a line or an arc.
        how: Interpolation,
    },
    /// From minus to plus `reach` along each of some axes, all else kept.
    Axes {
        /// The code whose numbers are changed.
        at: Code,
        /// Which of them; the first eight when empty.
        axes: Vec<usize>,
        /// How far.
        reach: f32,
    },
    /// The picture of one code, after those it is made of.
    Code(Code),
}

/// A sum of codes, as it is typed: `7`, `me.png`, `large/ - small/ + 7`. A number is the draw that
/// `generate` numbers so, a picture its projection, a folder the mean of those of its pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Code(Vec<(f32, Term)>);

#[derive(Debug, Clone, PartialEq)]
enum Term {
    Draw(u64),
    Images(PathBuf),
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        let (mut rest, mut sign) = (text, 1.0);
        loop {
            let next = [" + ", " - "]
                .iter()
                .filter_map(|sign| rest.find(sign))
                .min();
            let word = rest[..next.unwrap_or(rest.len())].trim();
            if word.is_empty() {
                return Err(format!(
                    "`{text}` is no code: write a number, a picture or a folder, and between two of them ` + ` \
                     or ` - `"
                ));
            }
            let term = match word.parse() {
                Ok(number) => Term::Draw(number),
                Err(_) => Term::Images(word.into()),
            };
            terms.push((sign, term));
            let Some(at) = next else {
                return Ok(Self(terms));
            };
            sign = if &rest[at..at + 3] == " + " {
                1.0
            } else {
                -1.0
            };
            rest = &rest[at + 3..];
        }
    }
}

/// Makes the pictures that `ask` wants of the run `run`: writes `latent.png`, and of a walk between two
/// codes the moving picture `walk.gif` or `walk.png`, into `folder`.
///
/// # Errors
/// Images that cannot be read, an axis that the space lacks, fewer than two points, a full disk.
pub fn make(
    model: &LatentModel,
    ask: &LatentAsk,
    (run, seed): (&Path, u64),
    folder: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, TrainError> {
    let mut space = Space {
        model,
        projection: &ask.projection,
        seed,
        say,
        given: Vec::new(),
    };
    let (all, columns) = match &ask.what {
        Walk::Between { from, to, how } => {
            let (from, to) = (space.at(from)?, space.at(to)?);
            let codes = path(&from, &to, ask.points, *how).map_err(TrainError::other)?;
            (space.pictures(&codes)?, ask.points.min(16))
        }
        Walk::Axes { at, axes, reach } => {
            let codes = along(&space.at(at)?, axes, *reach, ask.points)?;
            (space.pictures(&codes)?, ask.points)
        }
        Walk::Code(code) => {
            let code = space.at(code)?;
            let made = space.pictures(&[code])?;
            // Images beside their projections, then what was asked for.
            let all = [std::mem::take(&mut space.given), made].concat();
            let columns = all.len().min(8);
            (all, columns)
        }
    };
    create_folder(folder)?;
    let text = serde_json::json!({
        "run": std::path::absolute(run).unwrap_or_else(|_| run.to_owned()),
        "model_sha256": hash::sha256_file(&run.join("model.safetensors"))?,
        "seed": seed,
        "asked": format!("{:?}", ask.what),
    });
    let sheet = enlarged(&grid(&all, columns, 1, 48).map_err(TrainError::other)?)?;
    let png = encode_png(&sheet, &[(KEY, &text.to_string())]).map_err(TrainError::other)?;
    let mut paths = vec![folder.join("latent.png")];
    write_atomic(&paths[0], &png)?;
    if let Walk::Between { .. } = ask.what {
        // There and back, so that it has no end.
        let back = all[1..all.len() - 1].iter().rev();
        let frames: Result<Vec<Picture>, TrainError> =
            all.iter().chain(back).map(enlarged).collect();
        let moving = ask
            .animation
            .encode(&frames?, EACH)
            .map_err(TrainError::other)?;
        paths.push(folder.join(format!("walk.{}", ask.animation.extension())));
        write_atomic(&paths[1], &moving)?;
    }
    Ok(paths)
}

/// Codes along each axis in turn.
fn along(
    at: &[f32],
    axes: &[usize],
    reach: f32,
    points: usize,
) -> Result<Vec<Vec<f32>>, TrainError> {
    if points < 2 {
        return Err(TrainError::other(
            "a walk has at least its two ends: give --points 2 or more",
        ));
    }
    let first: Vec<usize> = (0..at.len().min(8)).collect();
    let axes = if axes.is_empty() { &first } else { axes };
    if let Some(axis) = axes.iter().find(|axis| **axis >= at.len()) {
        return Err(TrainError::other(format!(
            "there is no axis {axis}: this latent space has the axes 0 to {}",
            at.len() - 1
        )));
    }
    let mut codes = Vec::with_capacity(axes.len() * points);
    for &axis in axes {
        for i in 0..points {
            let mut code = at.to_vec();
            code[axis] = reach * (2.0 * i as f32 / (points - 1) as f32 - 1.0);
            codes.push(code);
        }
    }
    Ok(codes)
}

/// A latent space at work.
struct Space<'a> {
    model: &'a LatentModel,
    projection: &'a Projection,
    seed: u64,
    say: &'a mut dyn FnMut(&str),
    /// The first image of each term, and its projection.
    given: Vec<Picture>,
}

impl Space<'_> {
    fn at(&mut self, code: &Code) -> Result<Vec<f32>, TrainError> {
        let mut sum = vec![0.0; self.model.d_latent];
        for (sign, term) in &code.0 {
            let term = match term {
                Term::Draw(i) => self.draw(*i),
                Term::Images(path) => self.projected(path)?,
            };
            sum.iter_mut()
                .zip(term)
                .for_each(|(sum, x)| *sum += sign * x);
        }
        Ok(sum)
    }

    fn draw(&self, i: u64) -> Vec<f32> {
        normal(&mut rng(self.seed, Stream::Sample, i), self.model.d_latent)
    }

    /// The mean code of the images at `path`.
    fn projected(&mut self, path: &Path) -> Result<Vec<f32>, TrainError> {
        let [channels, height, width] = self.model.image;
        let sizes = Sizes::Resize { height, width };
        let set = open_with(path, Split::Train, sizes).map_err(TrainError::other)?;
        let set = set.in_channels(channels);
        (self.say)(&format!("looking for the codes of {} images", set.len()));
        let (low, high) = self.model.range;
        let values = set
            .pixels
            .iter()
            .map(|p| low + (high - low) * f32::from(*p) / 255.0);
        let shape = [set.len(), channels, height, width];
        let values = TensorData::new(values.collect::<Vec<f32>>(), shape);
        let images = Tensor::<4>::from_data(values, &self.model.device);
        let start = match &self.model.encode {
            Some(encode) => numbers(encode(images.clone()))?,
            None => self.nearest_draws(&images)?,
        };
        let (decode, device) = (&self.model.decode, &self.model.device);
        let found = project(decode, start, images.clone(), self.projection, device);
        let found = found.map_err(TrainError::other)?;
        let codes: Vec<Vec<f32>> = found
            .chunks(self.model.d_latent)
            .map(<[f32]>::to_vec)
            .collect();
        let error = self.decode(&codes) - images.clone();
        let error = (error.clone() * error).mean().into_scalar::<f32>().sqrt() / (high - low);
        (self.say)(&format!(
            "{}: {error:.4} of the brightness from the projection, root mean square",
            path.display()
        ));
        let image = pictures(images.narrow(0, 0, 1), low, high).map_err(TrainError::other)?;
        self.given.extend(image);
        let image = self.pictures(&codes[..1])?;
        self.given.extend(image);
        let mut mean = vec![0.0; self.model.d_latent];
        for code in &codes {
            let share = 1.0 / codes.len() as f32;
            mean.iter_mut()
                .zip(code)
                .for_each(|(mean, x)| *mean += share * x);
        }
        Ok(mean)
    }

    /// For each image the draw whose picture is the nearest.
    fn nearest_draws(&self, images: &Tensor<4>) -> Result<Vec<f32>, TrainError> {
        let draws: Vec<Vec<f32>> = (0..STARTS as u64).map(|i| self.draw(i)).collect();
        let made: Tensor<2> = self.decode(&draws).flatten(1, 3);
        let images: Tensor<2> = images.clone().flatten(1, 3);
        // |x - y|^2 without |x|^2, which is the same for all draws.
        let square = (made.clone() * made.clone()).sum_dim(1).transpose();
        let distance = square - images.matmul(made.transpose()) * 2.0;
        let nearest = distance.argmin(1).try_into_vec_as::<i64>();
        let nearest = nearest.map_err(|error| TrainError::other(format!("{error:?}")))?;
        Ok(nearest
            .iter()
            .flat_map(|&i| draws[i as usize].clone())
            .collect())
    }

    fn decode(&self, codes: &[Vec<f32>]) -> Tensor<4> {
        let data = TensorData::new(codes.concat(), [codes.len(), self.model.d_latent]);
        (self.model.decode)(Tensor::from_data(data, &self.model.device))
    }

    fn pictures(&self, codes: &[Vec<f32>]) -> Result<Vec<Picture>, TrainError> {
        let (low, high) = self.model.range;
        pictures(self.decode(codes), low, high).map_err(TrainError::other)
    }
}

fn numbers(tensor: Tensor<2>) -> Result<Vec<f32>, TrainError> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| TrainError::other(format!("{error:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_as_typed() {
        let images = |path: &str| Term::Images(path.into());
        let code: Code = "large/ - my-small/ + 7".parse().unwrap();
        let terms = vec![
            (1.0, images("large/")),
            (-1.0, images("my-small/")),
            (1.0, Term::Draw(7)),
        ];
        assert_eq!(code, Code(terms));
        assert_eq!("a b.png".parse(), Ok(Code(vec![(1.0, images("a b.png"))])));
        for wrong in ["", " + 3", "3 -  - 4"] {
            assert!(wrong.parse::<Code>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn axes_are_walked_from_end_to_end() {
        let codes = along(&[1.0, 2.0, 3.0], &[2, 0], 4.0, 3).unwrap();
        assert_eq!(codes[0], [1.0, 2.0, -4.0]);
        assert_eq!(codes[1], [1.0, 2.0, 0.0]);
        assert_eq!(codes[5], [4.0, 2.0, 3.0]);
        assert_eq!(along(&[0.0; 3], &[], 1.0, 2).unwrap().len(), 6);
        assert!(along(&[0.0; 3], &[3], 1.0, 2).is_err());
        assert!(along(&[0.0; 3], &[], 1.0, 1).is_err());
    }
}
