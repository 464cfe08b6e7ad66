//! Has the model learnt the data, or a copy of it? Nearest training neighbours in pixels.
//!
//! What is near depends on the data, so distances of generated images to the training set are set
//! against those of *held-out* images to it, which are as near as new images naturally are:
//!
//! - an *exact copy* has distance 0 to a training image;
//! - a *copy* is closer to the training set than every held-out image is. A model that makes new
//!   images as fresh as held-out ones yields `n / (m + 1)` of them by chance, for `n` generated
//!   and `m` held-out images;
//! - the *data-copying score* compares the two distributions as a whole: the Mann-Whitney z-score
//!   of Meehan et al. 2020 (arXiv 2004.05675), here over the whole space as one cell. A model as
//!   fresh as the held-out set scores within a few units of 0; far below means data-copying, far
//!   above that samples lie farther from the data than real images do.
//!
//! [`relative_distance`] is the per-sample measure of Carlini et al. 2023 (arXiv 2301.13188).

use crate::EvalError;
use crate::error::{at_least, same, within};
use crate::two_sample::mann_whitney_u;
use rayon::prelude::*;
use serde::Serialize;

/// A training image near a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its place in the training set.
    pub index: usize,
    /// Euclidean distance over all pixels, each scaled to `[0, 1]`.
    pub distance: f64,
}

/// Samples one thread compares with a training image while that is in its cache.
const BLOCK: usize = 32;

/// The `k` nearest training images of each sample, nearest first, equals in the order of the
/// training set; exact, since the bytes are compared as integers.
///
/// # Shapes
/// - samples: `[n, pixels]`, train: `[m, pixels]`, both row by row
///
/// # Errors
/// No pixels, incomplete images, or fewer than `k` training images.
pub fn nearest(
    samples: &[u8],
    train: &[u8],
    pixels: usize,
    k: usize,
) -> Result<Vec<Vec<Neighbour>>, EvalError> {
    at_least("pixels per image", 1, pixels)?;
    // The sum of squares of so many byte differences still fits 31 bits.
    let fits = pixels <= i32::MAX as usize / (255 * 255);
    within("pixels per image", pixels as f64, fits, "at most 33,025")?;
    same("pixels in the last sample", samples.len() % pixels, 0)?;
    same("pixels in the last training image", train.len() % pixels, 0)?;
    at_least("neighbours to look for", 1, k)?;
    at_least("training images", k, train.len() / pixels)?;

    Ok(samples
        .par_chunks(BLOCK * pixels)
        .flat_map_iter(|block| nearest_of_block(block, train, pixels, k))
        .collect())
}

fn nearest_of_block(block: &[u8], train: &[u8], pixels: usize, k: usize) -> Vec<Vec<Neighbour>> {
    // 16 bits hold every difference, and compilers have fast multiply-adds for them.
    let samples: Vec<i16> = block.iter().map(|&byte| byte.into()).collect();
    let mut image = vec![0i16; pixels];
    // (squared distance, index), ascending: the k best so far.
    let mut best: Vec<Vec<(i32, usize)>> = vec![Vec::with_capacity(k + 1); block.len() / pixels];
    for (index, bytes) in train.chunks_exact(pixels).enumerate() {
        for (wide, &byte) in image.iter_mut().zip(bytes) {
            *wide = byte.into();
        }
        for (sample, best) in samples.chunks_exact(pixels).zip(&mut best) {
            let distance = square_distance(sample, &image);
            if best.len() < k || best.last().is_some_and(|worst| distance < worst.0) {
                let at = best.partition_point(|b| b.0 <= distance);
                best.insert(at, (distance, index));
                best.truncate(k);
            }
        }
    }
    let neighbour = |(square, index): (i32, usize)| Neighbour {
        index,
        distance: f64::from(square).sqrt() / 255.0,
    };
    best.into_iter()
        .map(|best| best.into_iter().map(neighbour).collect())
        .collect()
}

fn square_distance(a: &[i16], b: &[i16]) -> i32 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| i32::from(a - b) * i32::from(a - b))
        .sum()
}

/// How near a sample's nearest training image is, compared with its other neighbours: the
/// distance over half the mean distance of all `neighbours` given (Carlini et al. use 50). Far
/// below 1 the sample is a copy even where the data is sparse; `None` when all distances are 0.
pub fn relative_distance(neighbours: &[Neighbour]) -> Option<f64> {
    let mean = neighbours.iter().map(|n| n.distance).sum::<f64>() / neighbours.len() as f64;
    (mean > 0.0).then(|| neighbours[0].distance / (0.5 * mean))
}

/// Generated images compared with held-out ones by their distance to the training set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Copies {
    /// Generated images at distance 0.
    pub exact: usize,
    /// Generated images closer to the training set than every held-out image.
    pub closer_than_held_out: usize,
    /// How many of those chance alone would give, if generated images were like held-out ones.
    pub expected_by_chance: f64,
    /// Mann-Whitney z-score: negative when generated images are closer than held-out ones.
    pub data_copying_score: f64,
    /// The smallest distance of a generated image.
    pub nearest_generated: f64,
    /// The smallest distance of a held-out image, the limit for a copy.
    pub nearest_held_out: f64,
    /// The median distance of the generated images.
    pub median_generated: f64,
    /// The median distance of the held-out images.
    pub median_held_out: f64,
}

/// Compares the distances of generated and of held-out images to their nearest training image.
/// See the module's head for the definitions.
///
/// # Errors
/// No distances on either side, or one that is not a number.
pub fn copies(generated: &[f64], held_out: &[f64]) -> Result<Copies, EvalError> {
    at_least("generated images", 1, generated.len())?;
    at_least("held-out images", 1, held_out.len())?;
    for &d in generated.iter().chain(held_out) {
        within("a distance", d, d >= 0.0, "0 or more")?;
    }
    let sorted = |distances: &[f64]| {
        let mut sorted = distances.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    };
    let (new, held) = (sorted(generated), sorted(held_out));
    let (n, m) = (new.len() as f64, held.len() as f64);
    Ok(Copies {
        exact: new.partition_point(|d| *d == 0.0),
        closer_than_held_out: new.partition_point(|d| *d < held[0]),
        expected_by_chance: n / (m + 1.0),
        data_copying_score: mann_whitney(&new, &held),
        nearest_generated: new[0],
        nearest_held_out: held[0],
        median_generated: median(&new),
        median_held_out: median(&held),
    })
}

/// The z-score of the Mann-Whitney U of `a` against ascending `b`: negative when `a` tends to be
/// smaller.
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len() as f64, b.len() as f64);
    (mann_whitney_u(a, b) - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[half],
        _ => 0.5 * (sorted[half - 1] + sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::rand::Rng as _;
    use maquette_rng::{Stream, rng};

    fn random_bytes(n: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; n];
        rng(seed, Stream::Evaluate, 0).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn by_hand() {
        let train = [0, 0, 255, 0, 0, 51];
        let got = nearest(&[0, 0, 255, 255], &train, 2, 2).unwrap();
        let n = |index, distance| Neighbour { index, distance };
        assert_eq!(got[0], [n(0, 0.0), n(2, 0.2)]);
        assert_eq!(got[1][0], n(1, 1.0));
    }

    #[test]
    fn agrees_with_brute_force() {
        let (n, m, pixels, k) = (70, 90, 50, 3);
        let (samples, train) = (random_bytes(n * pixels, 1), random_bytes(m * pixels, 2));
        let got = nearest(&samples, &train, pixels, k).unwrap();
        assert_eq!(got.len(), n);
        for (sample, got) in samples.chunks(pixels).zip(&got) {
            let mut all: Vec<(f64, usize)> = train
                .chunks(pixels)
                .enumerate()
                .map(|(i, image)| {
                    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
                    let sum: f64 = sample.iter().zip(image).map(square).sum();
                    (sum.sqrt() / 255.0, i)
                })
                .collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (got, want) in got.iter().zip(&all) {
                assert_eq!(got.index, want.1);
                assert!((got.distance - want.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(nearest(&[0], &[0], 0, 1).is_err());
        assert!(nearest(&[0], &[0, 0], 2, 1).is_err());
        assert!(nearest(&[0, 0], &[0], 2, 1).is_err());
        assert!(nearest(&[0, 0], &[0, 0], 2, 2).is_err());
        assert!(nearest(&[0, 0], &[0, 0], 2, 0).is_err());
        assert!(copies(&[], &[1.0]).is_err());
        assert!(copies(&[1.0], &[f64::NAN]).is_err());
    }

    #[test]
    fn copies_by_hand() {
        let got = copies(&[0.0, 1.0, 3.0, 6.0], &[2.0, 4.0, 5.0]).unwrap();
        assert_eq!((got.exact, got.closer_than_held_out), (1, 2));
        assert_eq!(got.expected_by_chance, 1.0);
        assert_eq!((got.nearest_generated, got.nearest_held_out), (0.0, 2.0));
        assert_eq!((got.median_generated, got.median_held_out), (2.0, 4.0));
        // U = 0 + 0 + 1 + 3 = 4, mean 6, variance 4 * 3 * 8 / 12 = 8.
        assert!((got.data_copying_score - (4.0 - 6.0) / 8f64.sqrt()).abs() < 1e-12);
        // All equal: every pair counts half.
        assert_eq!(
            copies(&[1.0; 3], &[1.0; 5]).unwrap().data_copying_score,
            0.0
        );
    }

    #[test]
    fn the_score_tells_copying_from_honesty() {
        let draw = |seed| -> Vec<f64> {
            maquette_rng::uniform(&mut rng(seed, Stream::Evaluate, 1), 1000)
                .into_iter()
                .map(f64::from)
                .collect()
        };
        let honest = copies(&draw(1), &draw(2)).unwrap().data_copying_score;
        assert!(honest.abs() < 3.0, "{honest}");
        let shrunk: Vec<f64> = draw(1).iter().map(|d| 0.7 * d).collect();
        assert!(copies(&shrunk, &draw(2)).unwrap().data_copying_score < -5.0);
    }

    #[test]
    fn relative_distance_by_hand() {
        let n = |distance| Neighbour { index: 0, distance };
        assert_eq!(relative_distance(&[n(1.0), n(2.0), n(3.0)]), Some(1.0));
        assert_eq!(relative_distance(&[n(0.0), n(4.0)]), Some(0.0));
        assert_eq!(relative_distance(&[n(0.0)]), None);
    }

    /// Run by hand for the time: `cargo test --release -p maquette-eval -- --ignored`.
    #[test]
    #[ignore = "a measurement: cargo test --release -p maquette-eval -- --ignored --nocapture"]
    fn a_thousand_against_mnist() {
        let (samples, train) = (random_bytes(1000 * 784, 1), random_bytes(60_000 * 784, 2));
        let start = std::time::Instant::now();
        nearest(&samples, &train, 784, 1).unwrap();
        eprintln!("1,000 x 60,000 x 784 in {:.2?}", start.elapsed());
    }
}
