//! `glyphs`: grey pictures of digits and letters, rendered from fonts that ship as crates.
//!
//! White on black like MNIST. Each picture is one character of one font face, at a random size
//! and place, slightly turned and sheared. Training and test faces come from different font
//! families, so a test picture is never a known one moved a little.

use std::collections::HashSet;

use fontdue::{Font, FontSettings};
use maquette_rng::{Rng, Stream, rand::Rng as _, rng, uniform};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{DataError, ImageSet, Result, Split};

/// Digits, then capitals, then small letters: what [`GlyphConfig::classes`] takes from the front.
pub const ALPHABET: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Height in pixels, per em, at which outlines are drawn before they are warped.
const DRAWN: f32 = 64.0;
/// Samples per pixel along each axis.
const SAMPLES: usize = 3;

/// What to render.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GlyphConfig {
    /// The first `classes` characters of [`ALPHABET`], 10 to 62; ignored where `alphabet` is set.
    pub classes: usize,
    /// The characters themselves, one class each.
    pub alphabet: Option<String>,
    /// Pictures per class.
    pub per_class: usize,
    /// Height and width in pixels.
    pub size: usize,
    /// Height of a capital, as a fraction of the picture.
    pub scale: f32,
    /// Largest change of size, either way, as a fraction.
    pub jitter: f32,
    /// Largest move along each axis, as a fraction of the picture.
    pub shift: f32,
    /// Largest turn, in degrees, either way.
    pub rotate: f32,
    /// Largest shear, either way: sideways move per unit of height.
    pub shear: f32,
}

impl Default for GlyphConfig {
    fn default() -> Self {
        Self {
            classes: 10,
            alphabet: None,
            per_class: 500,
            size: 28,
            scale: 0.66,
            jitter: 0.12,
            shift: 0.06,
            rotate: 8.0,
            shear: 0.1,
        }
    }
}

impl GlyphConfig {
    /// The classes, in order.
    ///
    /// # Errors
    /// When `classes` is not within 10 to 62, or `alphabet` is empty, repeats a character or has
    /// one that is no digit or basic Latin letter.
    pub fn characters(&self) -> Result<Vec<char>> {
        let Some(alphabet) = &self.alphabet else {
            return match (10..=62).contains(&self.classes) {
                true => Ok(ALPHABET.chars().take(self.classes).collect()),
                false => Err(DataError::Config(format!(
                    "glyphs: classes must be 10 to 62, not {}; name other characters in `alphabet`",
                    self.classes
                ))),
            };
        };
        let chars: Vec<char> = alphabet.chars().collect();
        if let Some(c) = chars.iter().find(|c| !ALPHABET.contains(**c)) {
            return Err(DataError::Config(format!(
                "glyphs: {c:?} in `alphabet` is no digit or basic Latin letter"
            )));
        }
        let distinct: HashSet<&char> = chars.iter().collect();
        if chars.is_empty() || distinct.len() != chars.len() {
            return Err(DataError::Config(format!(
                "glyphs: `alphabet` must name each of its characters once, not {alphabet:?}"
            )));
        }
        Ok(chars)
    }

    fn check(&self) -> Result<()> {
        let in_range = (8..=512).contains(&self.size)
            && (0.1..=0.95).contains(&self.scale)
            && (0.0..=0.5).contains(&self.jitter)
            && (0.0..=0.5).contains(&self.shift)
            && (0.0..=180.0).contains(&self.rotate)
            && (0.0..=1.0).contains(&self.shear)
            && self.per_class > 0;
        match in_range {
            true => Ok(()),
            false => Err(DataError::Config(format!(
                "glyphs: needs per_class above 0, size 8..=512, scale 0.1..=0.95, jitter 0..=0.5, \
                 shift 0..=0.5, rotate 0..=180, shear 0..=1; got {self:?}"
            ))),
        }
    }
}

/// `per_class` pictures of each class, classes taking turns: image `i` is of class
/// `i % classes`. A pure function of `(split, seed, config)`.
///
/// # Errors
/// When the configuration is out of range.
pub fn glyphs(split: Split, seed: u64, config: &GlyphConfig) -> Result<ImageSet> {
    config.check()?;
    let chars = config.characters()?;
    let faces = faces(split)
        .into_par_iter()
        .map(|data| Face::new(data, &chars))
        .collect::<Result<Vec<Face>>>()?;
    let n = chars.len() * config.per_class;
    let size = config.size;
    let salt = match split {
        Split::Train => 0,
        Split::Test => 1 << 63,
    };
    let mut pixels = vec![0u8; n * size * size];
    pixels
        .par_chunks_exact_mut(size * size)
        .enumerate()
        .for_each(|(i, picture)| {
            let rng = &mut rng(seed, Stream::Data, salt | i as u64);
            let face = &faces[(rng.next_u64() % faces.len() as u64) as usize];
            face.draw(i % chars.len(), config, rng, picture);
        });
    Ok(ImageSet {
        channels: 1,
        height: size,
        width: size,
        pixels,
        labels: Some((0..n).map(|i| (i % chars.len()) as u16).collect()),
        class_names: chars.iter().map(char::to_string).collect(),
    })
}

/// The font files of a split. A superfamily (all of DejaVu, and Hack which descends from it) is on
/// one side only.
fn faces(split: Split) -> Vec<&'static [u8]> {
    use dejavu::{sans, sans_condensed, sans_mono};
    match split {
        Split::Train => vec![
            sans::regular(),
            sans::bold(),
            sans::oblique(),
            sans::bold_oblique(),
            sans::extra_light(),
            sans_condensed::regular(),
            sans_condensed::bold(),
            sans_condensed::oblique(),
            sans_mono::regular(),
            sans_mono::bold(),
            sans_mono::oblique(),
            sans_mono::bold_oblique(),
            epaint_default_fonts::HACK_REGULAR,
        ],
        Split::Test => vec![
            notosans::REGULAR_TTF,
            notosans::BOLD_TTF,
            notosans::ITALIC_TTF,
            notosans::BOLD_ITALIC_TTF,
            epaint_default_fonts::UBUNTU_LIGHT,
        ],
    }
}

/// One font face, every class drawn once, large.
struct Face {
    drawn: Vec<Drawn>,
    /// Height of a capital, in drawn pixels.
    capital: f32,
}

/// The coverage of one character, 0 to 255.
struct Drawn {
    width: usize,
    height: usize,
    coverage: Vec<u8>,
}

impl Face {
    fn new(data: &'static [u8], chars: &[char]) -> Result<Self> {
        let settings = FontSettings {
            scale: DRAWN,
            load_substitutions: false,
            ..Default::default()
        };
        let font = Font::from_bytes(data, settings).map_err(|e| {
            DataError::Config(format!("glyphs: a built-in font does not open: {e}"))
        })?;
        let drawn = chars
            .iter()
            .map(|&c| {
                let (metrics, coverage) = font.rasterize(c, DRAWN);
                Drawn {
                    width: metrics.width,
                    height: metrics.height,
                    coverage,
                }
            })
            .collect();
        Ok(Self {
            drawn,
            capital: font.metrics('H', DRAWN).height as f32,
        })
    }

    /// Renders class `class` into `picture`: each target pixel averages what it covers of the
    /// large drawing, seen through the inverse of the random affine map.
    fn draw(&self, class: usize, config: &GlyphConfig, rng: &mut Rng, picture: &mut [u8]) {
        let drawn = &self.drawn[class];
        let u: Vec<f32> = uniform(rng, 5).into_iter().map(|u| 2.0 * u - 1.0).collect();
        let size = config.size as f32;
        let mut zoom = config.scale * size * (1.0 + config.jitter * u[0]) / self.capital;
        // Wide and deep characters (W, Q, g) still have to fit.
        let longest = drawn.width.max(drawn.height).max(1) as f32;
        zoom = zoom.min(0.92 * size / longest);
        let (sin, cos) = (config.rotate * u[1]).to_radians().sin_cos();
        let shear = config.shear * u[2];
        let (dx, dy) = (config.shift * u[3] * size, config.shift * u[4] * size);
        let step = 1.0 / SAMPLES as f32;
        let (cx, cy) = (drawn.width as f32 / 2.0, drawn.height as f32 / 2.0);
        for (k, pixel) in picture.iter_mut().enumerate() {
            let (row, column) = ((k / config.size) as f32, (k % config.size) as f32);
            let mut sum = 0.0;
            for s in 0..SAMPLES * SAMPLES {
                let x = column + ((s % SAMPLES) as f32 + 0.5) * step - size / 2.0 - dx;
                let y = row + ((s / SAMPLES) as f32 + 0.5) * step - size / 2.0 - dy;
                let (x, y) = (cos * x + sin * y, cos * y - sin * x);
                sum += drawn.at((x + shear * y) / zoom + cx, y / zoom + cy);
            }
            *pixel = (sum / (SAMPLES * SAMPLES) as f32).round() as u8;
        }
    }
}

impl Drawn {
    /// Bilinear coverage at a point in pixels; nothing outside.
    fn at(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x - 0.5, y - 0.5);
        if x <= -1.0 || y <= -1.0 || x >= self.width as f32 || y >= self.height as f32 {
            return 0.0;
        }
        let (x0, y0) = (x.floor(), y.floor());
        let (fx, fy) = (x - x0, y - y0);
        let pixel = |x: f32, y: f32| {
            let inside =
                x >= 0.0 && y >= 0.0 && (x as usize) < self.width && (y as usize) < self.height;
            match inside {
                true => f32::from(self.coverage[y as usize * self.width + x as usize]),
                false => 0.0,
            }
        };
        let row = |y: f32| pixel(x0, y) * (1.0 - fx) + pixel(x0 + 1.0, y) * fx;
        row(y0) * (1.0 - fy) + row(y0 + 1.0) * fy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(split: Split, seed: u64) -> ImageSet {
        glyphs(
            split,
            seed,
            &GlyphConfig {
                per_class: 3,
                ..Default::default()
            },
        )
        .unwrap()
    }

    #[test]
    fn same_seed_same_pictures_other_split_other_pictures() {
        assert_eq!(small(Split::Train, 1), small(Split::Train, 1));
        assert_ne!(small(Split::Train, 1).pixels, small(Split::Train, 2).pixels);
        assert_ne!(small(Split::Train, 1).pixels, small(Split::Test, 1).pixels);
    }

    #[test]
    fn every_face_has_every_character() {
        let chars: Vec<char> = ALPHABET.chars().collect();
        for split in [Split::Train, Split::Test] {
            let faces = faces(split);
            assert!(faces.len() >= 5, "{split:?} has {} faces", faces.len());
            for data in faces {
                let font = Font::from_bytes(data, FontSettings::default()).unwrap();
                let face = Face::new(data, &chars).unwrap();
                let name = font.name().unwrap_or("?").to_owned();
                assert!(chars.iter().all(|c| font.has_glyph(*c)), "{name}");
                assert!(
                    (30.0..60.0).contains(&face.capital),
                    "{name}: {}",
                    face.capital
                );
            }
        }
    }

    #[test]
    fn no_family_is_on_both_sides() {
        // A face's name begins with its superfamily: "DejaVu Sans Mono Bold", "Noto Sans Italic".
        let families = |split| -> HashSet<String> {
            faces(split)
                .iter()
                .map(|data| Font::from_bytes(*data, FontSettings::default()).unwrap())
                .map(|font| {
                    font.name()
                        .unwrap()
                        .split([' ', '-'])
                        .next()
                        .unwrap()
                        .into()
                })
                .collect()
        };
        let (train, test) = (families(Split::Train), families(Split::Test));
        assert_eq!(train, ["DejaVu", "Hack"].map(String::from).into());
        assert_eq!(test, ["Noto", "Ubuntu"].map(String::from).into());
    }

    #[test]
    fn pictures_are_white_on_black_and_never_empty() {
        let set = glyphs(
            Split::Train,
            0,
            &GlyphConfig {
                classes: 62,
                per_class: 20,
                ..Default::default()
            },
        )
        .unwrap();
        for i in 0..set.len() {
            let image = set.image(i);
            let ink = image.iter().map(|p| f32::from(*p)).sum::<f32>() / 255.0 / 784.0;
            assert!(
                (0.01..0.5).contains(&ink),
                "{}: {ink}",
                set.class_names[i % 62]
            );
            let border = (0..28).flat_map(|k| {
                [
                    image[k],
                    image[27 * 28 + k],
                    image[k * 28],
                    image[k * 28 + 27],
                ]
            });
            assert!(border.filter(|p| *p > 200).count() < 12);
        }
    }

    #[test]
    fn an_alphabet_names_its_classes() {
        let config = GlyphConfig {
            alphabet: Some("XYZ".into()),
            per_class: 2,
            ..Default::default()
        };
        let set = glyphs(Split::Test, 0, &config).unwrap();
        assert_eq!(set.class_names, ["X", "Y", "Z"]);
        assert_eq!(set.labels.unwrap(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn settings_out_of_range_are_errors() {
        let wrong = |config: GlyphConfig| glyphs(Split::Train, 0, &config).unwrap_err().to_string();
        assert!(
            wrong(GlyphConfig {
                classes: 63,
                ..Default::default()
            })
            .contains("10 to 62")
        );
        assert!(
            wrong(GlyphConfig {
                alphabet: Some("AA".into()),
                ..Default::default()
            })
            .contains("once")
        );
        assert!(
            wrong(GlyphConfig {
                alphabet: Some("é".into()),
                ..Default::default()
            })
            .contains("Latin")
        );
        assert!(
            wrong(GlyphConfig {
                size: 4,
                ..Default::default()
            })
            .contains("size")
        );
    }
}
