//! Point clouds in the plane, made from a seed.
//!
//! `ring8` and `grid25` are the mixtures of the mode-collapse literature (VEEGAN, Srivastava et
//! al. 2017, arXiv 1705.07761): a sample is of high quality within three standard deviations of
//! a centre.

use std::f32::consts::{PI, TAU};

use maquette_rng::{Rng, Stream, normal, rand::Rng as _, rng, uniform};

/// Radius of the ring on which the centres of [`ring8`] lie.
pub const RING8_RADIUS: f32 = 2.0;
/// Standard deviation of each mode of [`ring8`], along each axis.
pub const RING8_SIGMA: f32 = 0.02;
/// Distance between neighbouring centres of [`grid25`].
pub const GRID25_SPACING: f32 = 2.0;
/// Standard deviation of each mode of [`grid25`], along each axis.
pub const GRID25_SIGMA: f32 = 0.05;
/// Standard deviation of the noise on [`moons`] and [`swiss_roll`].
const CURVE_SIGMA: f32 = 0.05;

/// Points in the plane and the class of each.
#[derive(Debug, Clone, PartialEq)]
pub struct PointSet {
    /// `[n, 2]`.
    pub points: Vec<[f32; 2]>,
    /// The mode (`ring8`, `grid25`), the moon, or the turn of the roll.
    pub labels: Vec<u16>,
}

impl PointSet {
    /// The largest coordinate, either way; 0 for no points.
    pub fn reach(&self) -> f32 {
        let coordinates = self.points.iter().flatten();
        coordinates.fold(0.0, |most, x| x.abs().max(most))
    }

    /// How many points.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether there is no point.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The points at `indices`, flat: `[indices.len(), 2]`.
    ///
    /// # Panics
    /// When an index is not below [`len`](Self::len).
    pub fn batch(&self, indices: &[usize]) -> Vec<f32> {
        indices.iter().flat_map(|&i| self.points[i]).collect()
    }
}

/// The eight centres of [`ring8`].
pub fn ring8_centres() -> Vec<[f32; 2]> {
    (0..8)
        .map(|k| {
            let (sin, cos) = (TAU * k as f32 / 8.0).sin_cos();
            [RING8_RADIUS * cos, RING8_RADIUS * sin]
        })
        .collect()
}

/// The twenty-five centres of [`grid25`]: `{-4, -2, 0, 2, 4}` squared.
pub fn grid25_centres() -> Vec<[f32; 2]> {
    (0..25)
        .map(|k| [k % 5, k / 5].map(|i| (i as f32 - 2.0) * GRID25_SPACING))
        .collect()
}

/// `n` points around eight centres on a ring of radius 2, standard deviation 0.02.
pub fn ring8(n: usize, seed: u64) -> PointSet {
    mixture(n, seed, &ring8_centres(), RING8_SIGMA)
}

/// `n` points around twenty-five centres on a square grid of spacing 2, standard deviation 0.05.
pub fn grid25(n: usize, seed: u64) -> PointSet {
    mixture(n, seed, &grid25_centres(), GRID25_SIGMA)
}

fn mixture(n: usize, seed: u64, centres: &[[f32; 2]], sigma: f32) -> PointSet {
    let rng = &mut rng(seed, Stream::Data, 0);
    let labels: Vec<u16> = (0..n)
        .map(|_| (rng.next_u64() % centres.len() as u64) as u16)
        .collect();
    let points = labels.iter().map(|&l| centres[usize::from(l)]).collect();
    PointSet {
        points: jittered(points, sigma, rng),
        labels,
    }
}

/// Two interleaved half circles of radius 1, as scikit-learn's `make_moons`, noise 0.05.
pub fn moons(n: usize, seed: u64) -> PointSet {
    let rng = &mut rng(seed, Stream::Data, 0);
    let labels: Vec<u16> = (0..n).map(|_| (rng.next_u64() % 2) as u16).collect();
    let points = labels
        .iter()
        .zip(uniform(rng, n))
        .map(|(moon, u)| {
            let (sin, cos) = (PI * u).sin_cos();
            if *moon == 0 {
                [cos, sin]
            } else {
                [1.0 - cos, 0.5 - sin]
            }
        })
        .collect();
    PointSet {
        points: jittered(points, CURVE_SIGMA, rng),
        labels,
    }
}

/// A spiral of one and a half turns with outer radius about 2, noise 0.05: the two-dimensional
/// section of scikit-learn's `make_swiss_roll`, scaled. The label is the half turn, 0 to 2.
pub fn swiss_roll(n: usize, seed: u64) -> PointSet {
    let rng = &mut rng(seed, Stream::Data, 0);
    let (points, labels) = uniform(rng, n)
        .into_iter()
        .map(|u| {
            let t = 1.5 * PI * (1.0 + 2.0 * u);
            let radius = t * 2.0 / (4.5 * PI);
            let (sin, cos) = t.sin_cos();
            ([radius * cos, radius * sin], ((3.0 * u) as u16).min(2))
        })
        .unzip();
    PointSet {
        points: jittered(points, CURVE_SIGMA, rng),
        labels,
    }
}

fn jittered(mut points: Vec<[f32; 2]>, sigma: f32, rng: &mut Rng) -> Vec<[f32; 2]> {
    let noise = normal(rng, 2 * points.len());
    for (p, z) in points.iter_mut().zip(noise.chunks_exact(2)) {
        p[0] += sigma * z[0];
        p[1] += sigma * z[1];
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_points() {
        for make in [ring8, grid25, moons, swiss_roll] {
            assert_eq!(make(100, 5), make(100, 5));
            assert_ne!(make(100, 5), make(100, 6));
            assert_eq!(make(100, 5).len(), 100);
        }
    }

    #[test]
    fn mixtures_have_their_modes_and_spread() {
        let cases = [
            (ring8(20_000, 0), ring8_centres(), RING8_SIGMA),
            (grid25(20_000, 0), grid25_centres(), GRID25_SIGMA),
        ];
        for (set, centres, sigma) in cases {
            let mut seen = vec![0usize; centres.len()];
            let mut square = 0.0;
            for (p, &l) in set.points.iter().zip(&set.labels) {
                let c = centres[usize::from(l)];
                seen[usize::from(l)] += 1;
                square += (p[0] - c[0]).powi(2) + (p[1] - c[1]).powi(2);
            }
            let mean = 20_000 / centres.len();
            assert!(seen.iter().all(|n| n.abs_diff(mean) < mean / 4), "{seen:?}");
            let measured = (square / 40_000.0).sqrt();
            assert!((measured / sigma - 1.0).abs() < 0.02, "{measured}");
        }
    }

    #[test]
    fn the_ring_is_a_ring_and_the_grid_a_grid() {
        assert!(
            ring8_centres()
                .iter()
                .all(|c| (c[0].hypot(c[1]) - 2.0).abs() < 1e-6)
        );
        assert_eq!(grid25_centres()[0], [-4.0, -4.0]);
        assert_eq!(grid25_centres()[24], [4.0, 4.0]);
    }

    #[test]
    fn the_roll_stays_within_its_radius() {
        let far = swiss_roll(5000, 1)
            .points
            .iter()
            .map(|p| p[0].hypot(p[1]))
            .fold(0.0, f32::max);
        assert!((1.8..2.3).contains(&far), "{far}");
    }
}
