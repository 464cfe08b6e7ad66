//! Inception Score: are images of clear classes, and of all of them?

use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, Uniform};
use serde::Serialize;

use crate::EvalError;
use crate::bootstrap::{Interval, around};
use crate::error::{at_least, same, within};

/// An Inception Score over parts of the images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct InceptionScore {
    /// The mean of the parts' scores: from 1 to the number of classes.
    pub mean: f64,
    /// Their standard deviation, over all of them.
    pub deviation: f64,
    /// How many parts there were.
    pub splits: usize,
}

/// The exponential of the mean KL divergence, in nats, of an image's class probabilities from the
/// mean probabilities of its part (Salimans et al. 2016, arXiv 1606.03498, section 4), of
/// `splits` consecutive parts of the images: shuffle them first if their order means something.
/// `logits` are those of any classifier; they are Inception-v3's where the score is to be compared
/// with published ones, which take 10 parts of 50,000 images.
///
/// # Shapes
/// - logits: `[images, n_classes]`, row by row
///
/// # Errors
/// Fewer images than parts, an incomplete row, or a logit that is not finite.
pub fn inception_score(
    logits: &[f32],
    n_classes: usize,
    splits: usize,
) -> Result<InceptionScore, EvalError> {
    let log_p = log_probabilities(logits, n_classes, splits)?;
    Ok(of_parts(&log_p.iter().collect::<Vec<_>>(), splits))
}

/// The mean [`inception_score`] with the interval in which scores of as many images lie: the images
/// are drawn anew from themselves, see [`around`].
///
/// # Errors
/// As [`inception_score`]; fewer than 100 resamples, or a level outside (0, 1).
pub fn inception_interval(
    logits: &[f32],
    n_classes: usize,
    splits: usize,
    (resamples, level): (usize, f64),
    rng: &mut Rng,
) -> Result<Interval, EvalError> {
    let log_p = log_probabilities(logits, n_classes, splits)?;
    let index = Uniform::new(0, log_p.len()).expect("there is at least one image");
    let mut drawn: Vec<&Vec<f64>> = log_p.iter().collect();
    let value = of_parts(&drawn, splits).mean;
    let scores: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.fill_with(|| &log_p[index.sample(rng)]);
            of_parts(&drawn, splits).mean
        })
        .collect();
    around(value, &scores, level)
}

/// Logarithms of the class probabilities of each image.
fn log_probabilities(
    logits: &[f32],
    n_classes: usize,
    splits: usize,
) -> Result<Vec<Vec<f64>>, EvalError> {
    at_least("classes", 1, n_classes)?;
    at_least("parts", 1, splits)?;
    same("logits of the last image", logits.len() % n_classes, 0)?;
    at_least("images", splits, logits.len() / n_classes)?;
    for &logit in logits {
        within("a logit", f64::from(logit), logit.is_finite(), "finite")?;
    }
    Ok(logits.chunks_exact(n_classes).map(log_softmax).collect())
}

fn of_parts(log_p: &[&Vec<f64>], splits: usize) -> InceptionScore {
    let n = log_p.len();
    let scores: Vec<f64> = (0..splits)
        .map(|part| score(&log_p[part * n / splits..(part + 1) * n / splits]))
        .collect();
    let mean = scores.iter().sum::<f64>() / splits as f64;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    InceptionScore {
        mean,
        deviation: (squares / splits as f64).sqrt(),
        splits,
    }
}

fn score(log_p: &[&Vec<f64>]) -> f64 {
    let n = log_p.len() as f64;
    let mut mean = vec![0.0; log_p[0].len()];
    for row in log_p {
        for (sum, log_p) in mean.iter_mut().zip(*row) {
            *sum += log_p.exp() / n;
        }
    }
    let divergence = |row: &&Vec<f64>| -> f64 {
        let terms = row.iter().zip(&mean);
        terms
            // A class that no image has adds nothing.
            .filter(|(_, mean)| **mean > 0.0)
            .map(|(log_p, mean)| log_p.exp() * (log_p - mean.ln()))
            .sum()
    };
    (log_p.iter().map(divergence).sum::<f64>() / n).exp()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|x| f64::from(*x) - f64::from(largest));
    let log_sum = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|x| x - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{fixture, near, numbers};

    #[test]
    fn by_hand() {
        // One certain image of each of three classes scores three, three of one class one.
        let sure = |class: usize| (0..3).map(move |i| if i == class { 90.0 } else { 0.0 });
        let all: Vec<f32> = (0..3).flat_map(sure).collect();
        near(inception_score(&all, 3, 1).unwrap().mean, 3.0);
        let one: Vec<f32> = [1, 1, 1].into_iter().flat_map(sure).collect();
        near(inception_score(&one, 3, 1).unwrap().mean, 1.0);
    }

    #[test]
    fn agrees_with_torch_fidelity() {
        for case in fixture("inception") {
            let logits = numbers(&case["logits"]);
            let classes = case["classes"].as_u64().unwrap() as usize;
            let splits = case["splits"].as_u64().unwrap() as usize;
            let got = inception_score(&logits, classes, splits).unwrap();
            near(got.mean, case["mean"].as_f64().unwrap());
            near(got.deviation, case["deviation"].as_f64().unwrap());
        }
    }

    #[test]
    fn equal_images_have_no_spread() {
        use maquette_rng::{Stream, rng};
        let random = &mut rng(1, Stream::Evaluate, 0);
        let one = inception_interval(&[3.0, 0.0].repeat(20), 2, 2, (100, 0.95), random).unwrap();
        for end in [one.value, one.low, one.high] {
            near(end, 1.0);
        }
        let two = [[9.0, 0.0], [0.0, 9.0]].concat().repeat(10);
        let two = inception_interval(&two, 2, 1, (100, 0.95), random).unwrap();
        assert!(two.low < two.value && two.value < two.high, "{two:?}");
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(inception_score(&[0.0, 1.0], 2, 2).is_err());
        assert!(inception_score(&[0.0, 1.0, 2.0], 2, 1).is_err());
        assert!(inception_score(&[0.0, f32::NAN], 2, 1).is_err());
        assert!(inception_score(&[], 2, 1).is_err());
    }
}
