//! Random changes that keep an image's meaning.

use maquette_rng::{Rng, normal, uniform};
use serde::{Deserialize, Serialize};

use crate::{DataError, Result};

/// What may happen to a training image, each time it is visited. The default does nothing.
///
/// Applied to pixels in `[0, 1]` before normalisation, in this order: flip; crop, rotation and
/// shift in one bilinear resampling (what lies outside repeats the edge); noise; cutout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Mirror left to right, half of the time.
    pub flip: bool,
    /// Largest move in pixels, along each axis.
    pub shift: u32,
    /// Largest rotation, in degrees, either way.
    pub rotate: f32,
    /// Largest fraction of each side cut away; what is left is enlarged to the full size.
    pub crop: f32,
    /// Standard deviation of Gaussian noise, in units of the full range.
    pub noise: f32,
    /// Side of a square set to black at a random place (DeVries and Taylor 2017), in pixels.
    pub cutout: u32,
}

impl Augment {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a value is negative, not finite, or a crop would leave nothing.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(DataError::Config(format!("augment: {what}")));
        if !(0.0..0.95).contains(&self.crop) {
            return bad(&format!("crop must be in 0..0.95, not {}", self.crop));
        }
        if !(0.0..=180.0).contains(&self.rotate) {
            return bad(&format!(
                "rotate must be in 0..=180 degrees, not {}",
                self.rotate
            ));
        }
        if !(self.noise >= 0.0 && self.noise.is_finite()) {
            return bad(&format!("noise must not be negative, not {}", self.noise));
        }
        Ok(())
    }

    /// Changes one image in place.
    ///
    /// # Shapes
    /// - `image`: `[channels, height, width]`, in `[0, 1]`
    pub fn apply(&self, image: &mut [f32], height: usize, width: usize, rng: &mut Rng) {
        // Every draw is made whether used or not: switching one change on does not move another.
        let u = uniform(rng, 9);
        if self.flip && u[0] < 0.5 {
            image.chunks_exact_mut(width).for_each(<[f32]>::reverse);
        }
        self.resample(image, height, width, &u);
        if self.noise > 0.0 {
            let noise = normal(rng, image.len());
            for (p, z) in image.iter_mut().zip(noise) {
                *p = (*p + self.noise * z).clamp(0.0, 1.0);
            }
        }
        if self.cutout > 0 {
            let side = self.cutout as usize;
            let centre = |u: f32, size: usize| ((u * size as f32) as usize).min(size - 1);
            let range = |c: usize, size: usize| {
                c.saturating_sub(side / 2)..(c + side.div_ceil(2)).min(size)
            };
            let (rows, cols) = (
                range(centre(u[6], height), height),
                range(centre(u[7], width), width),
            );
            for plane in image.chunks_exact_mut(height * width) {
                for y in rows.clone() {
                    plane[y * width..][cols.clone()].fill(0.0);
                }
            }
        }
    }

    /// Crop, rotation and shift together: each target pixel looks up where it came from.
    fn resample(&self, image: &mut [f32], height: usize, width: usize, u: &[f32]) {
        let symmetric = |u: f32| 2.0 * u - 1.0;
        let whole = |u: f32| {
            (symmetric(u) * (self.shift as f32 + 0.5))
                .round()
                .clamp(-(self.shift as f32), self.shift as f32)
        };
        let (dx, dy) = (whole(u[1]), whole(u[2]));
        let keep = 1.0 - self.crop * u[3];
        // The kept part may lie anywhere inside: its centre moves by up to half of what is cut.
        let (cx, cy) = (
            symmetric(u[4]) * (1.0 - keep) * width as f32 / 2.0,
            symmetric(u[5]) * (1.0 - keep) * height as f32 / 2.0,
        );
        let (sin, cos) = (self.rotate.to_radians() * symmetric(u[8])).sin_cos();
        if (dx, dy, keep, sin) == (0.0, 0.0, 1.0, 0.0) {
            return;
        }
        let (mx, my) = ((width as f32 - 1.0) / 2.0, (height as f32 - 1.0) / 2.0);
        for plane in image.chunks_exact_mut(height * width) {
            let source = plane.to_vec();
            for y in 0..height {
                for x in 0..width {
                    let (px, py) = (x as f32 - mx - dx, y as f32 - my - dy);
                    let sx = keep * (cos * px + sin * py) + mx + cx;
                    let sy = keep * (cos * py - sin * px) + my + cy;
                    plane[y * width + x] = bilinear(&source, height, width, sx, sy);
                }
            }
        }
    }
}

/// The value of `plane` at a point between pixels; the edge repeats outside.
fn bilinear(plane: &[f32], height: usize, width: usize, x: f32, y: f32) -> f32 {
    let x = x.clamp(0.0, width as f32 - 1.0);
    let y = y.clamp(0.0, height as f32 - 1.0);
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(width - 1), (y0 + 1).min(height - 1));
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let row = |y: usize| plane[y * width + x0] * (1.0 - fx) + plane[y * width + x1] * fx;
    row(y0) * (1.0 - fy) + row(y1) * fy
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    fn image() -> Vec<f32> {
        (0..64).map(|i| i as f32 / 64.0).collect()
    }

    fn augmented(augment: &Augment, step: u64) -> Vec<f32> {
        let mut x = image();
        augment.apply(&mut x, 8, 8, &mut rng(3, Stream::Augment, step));
        x
    }

    #[test]
    fn the_default_changes_nothing() {
        assert_eq!(augmented(&Augment::default(), 0), image());
    }

    #[test]
    fn same_generator_same_image() {
        let all = Augment {
            flip: true,
            shift: 2,
            rotate: 10.0,
            crop: 0.2,
            noise: 0.05,
            cutout: 2,
        };
        assert_eq!(augmented(&all, 4), augmented(&all, 4));
        assert_ne!(augmented(&all, 4), augmented(&all, 5));
        assert!(augmented(&all, 4).iter().all(|p| (0.0..=1.0).contains(p)));
    }

    #[test]
    fn flip_mirrors_about_half_of_the_time() {
        let flip = Augment {
            flip: true,
            ..Default::default()
        };
        let mirrored = (0..200).filter(|&s| augmented(&flip, s)[0] != 0.0).count();
        assert!((70..130).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn a_shift_moves_whole_pixels() {
        let shift = Augment {
            shift: 1,
            ..Default::default()
        };
        let at = |x: &[f32]| x[3 * 8 + 3];
        let moved: Vec<f32> = (0..100).map(|s| at(&augmented(&shift, s))).collect();
        for dy in -1i32..=1 {
            for dx in -1i32..=1 {
                let from = ((3 - dy) * 8 + 3 - dx) as f32 / 64.0;
                assert!(moved.iter().any(|m| (m - from).abs() < 1e-6), "{dx} {dy}");
            }
        }
        assert!(
            moved
                .iter()
                .all(|m| (m * 64.0 - (m * 64.0).round()).abs() < 1e-4)
        );
    }

    #[test]
    fn a_quarter_turn_turns() {
        let mut x = vec![0.0; 81];
        x[4] = 1.0;
        Augment {
            rotate: 90.0,
            ..Default::default()
        }
        .resample(&mut x, 9, 9, &[0.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0, 1.0]);
        assert!((x[4 * 9] - 1.0).abs() < 1e-5 || (x[4 * 9 + 8] - 1.0).abs() < 1e-5);
    }

    #[test]
    fn cutout_blackens_at_most_its_square() {
        let mut x = vec![1.0; 64];
        let cut = Augment {
            cutout: 4,
            ..Default::default()
        };
        cut.apply(&mut x, 8, 8, &mut rng(0, Stream::Augment, 0));
        let black = x.iter().filter(|p| **p == 0.0).count();
        assert!((4..=16).contains(&black), "{black}");
    }

    #[test]
    fn ranges_are_checked() {
        let check = |a: Augment| a.check();
        assert!(
            check(Augment {
                crop: 1.0,
                ..Default::default()
            })
            .is_err()
        );
        assert!(
            check(Augment {
                noise: f32::NAN,
                ..Default::default()
            })
            .is_err()
        );
        assert!(
            check(Augment {
                rotate: -1.0,
                ..Default::default()
            })
            .is_err()
        );
    }
}
