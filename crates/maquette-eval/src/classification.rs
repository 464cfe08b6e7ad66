//! How often a classifier, or a generator read back by one, is right.

use crate::EvalError;
use crate::error::{at_least, same, within};
use crate::two_sample::mann_whitney_u;
use serde::Serialize;

/// Counts of what was predicted for what was true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confusion {
    n_classes: usize,
    /// `[truth, prediction]`, row by row.
    counts: Vec<usize>,
}

/// The figures of one class; each is 0 where its denominator is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassReport {
    /// Of those predicted as the class, the share that is.
    pub precision: f64,
    /// Of those of the class, the share predicted as it.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// How many are of the class.
    pub support: usize,
}

impl Confusion {
    /// Counts pairs of prediction and truth.
    ///
    /// # Errors
    /// No examples, lists of different lengths, or a class outside `n_classes`.
    pub fn new(predicted: &[usize], truth: &[usize], n_classes: usize) -> Result<Self, EvalError> {
        at_least("classified examples", 1, predicted.len())?;
        same("predictions and true classes", predicted.len(), truth.len())?;
        let mut counts = vec![0; n_classes * n_classes];
        for (&p, &t) in predicted.iter().zip(truth) {
            let largest = p.max(t);
            within(
                "a class",
                largest as f64,
                largest < n_classes,
                "below the number of classes",
            )?;
            counts[t * n_classes + p] += 1;
        }
        Ok(Self { n_classes, counts })
    }

    /// How many classes there are.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// How often `truth` was taken for `predicted`; 0 for classes there are not.
    pub fn count(&self, truth: usize, predicted: usize) -> usize {
        let inside = truth < self.n_classes && predicted < self.n_classes;
        if inside {
            self.counts[truth * self.n_classes + predicted]
        } else {
            0
        }
    }

    /// The share of right predictions.
    pub fn accuracy(&self) -> f64 {
        let right: usize = (0..self.n_classes).map(|c| self.count(c, c)).sum();
        right as f64 / self.counts.iter().sum::<usize>() as f64
    }

    /// Precision, recall and F1 of every class.
    pub fn per_class(&self) -> Vec<ClassReport> {
        let ratio = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        (0..self.n_classes)
            .map(|c| {
                let right = self.count(c, c);
                let support: usize = (0..self.n_classes).map(|p| self.count(c, p)).sum();
                let called: usize = (0..self.n_classes).map(|t| self.count(t, c)).sum();
                ClassReport {
                    precision: ratio(right, called),
                    recall: ratio(right, support),
                    f1: ratio(2 * right, support + called),
                    support,
                }
            })
            .collect()
    }

    /// The mean F1 over the classes, each counting the same.
    pub fn macro_f1(&self) -> f64 {
        let sum: f64 = self.per_class().iter().map(|c| c.f1).sum();
        sum / self.n_classes as f64
    }
}

/// The share of predictions that equal the truth.
///
/// # Errors
/// No examples, or lists of different lengths.
pub fn accuracy(predicted: &[usize], truth: &[usize]) -> Result<f64, EvalError> {
    at_least("classified examples", 1, predicted.len())?;
    same("predictions and true classes", predicted.len(), truth.len())?;
    let right = predicted.iter().zip(truth).filter(|(p, t)| p == t).count();
    Ok(right as f64 / predicted.len() as f64)
}

/// The area under the ROC curve of a score: how often one of `positive` is above one of `negative`,
/// equals counting half. 0.5 is chance.
///
/// # Errors
/// No scores on either side, or one that is not a number.
pub fn auroc(positive: &[f64], negative: &[f64]) -> Result<f64, EvalError> {
    at_least("scores of positives", 1, positive.len())?;
    at_least("scores of negatives", 1, negative.len())?;
    for &score in positive.iter().chain(negative) {
        within("a score", score, !score.is_nan(), "a number")?;
    }
    let mut negative = negative.to_vec();
    negative.sort_unstable_by(f64::total_cmp);
    let pairs = positive.len() * negative.len();
    Ok(mann_whitney_u(positive, &negative) / pairs as f64)
}

/// The class with the largest logit in each row of `logits`, the first of equals.
///
/// # Shapes
/// - logits: `[n, n_classes]`, row by row
///
/// # Errors
/// No classes, or a length that is no multiple of them.
pub fn predictions(logits: &[f32], n_classes: usize) -> Result<Vec<usize>, EvalError> {
    at_least("classes", 1, n_classes)?;
    same(
        "logits in the last row and classes",
        logits.len() % n_classes,
        0,
    )?;
    let best = |row: &[f32]| (1..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
    Ok(logits.chunks_exact(n_classes).map(best).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let truth = [0, 0, 0, 1, 1, 2];
        let predicted = [0, 0, 1, 1, 0, 1];
        let got = Confusion::new(&predicted, &truth, 3).unwrap();
        assert_eq!(
            (got.count(0, 0), got.count(0, 1), got.count(2, 1)),
            (2, 1, 1)
        );
        assert_eq!(got.accuracy(), 0.5);
        assert_eq!(accuracy(&predicted, &truth).unwrap(), 0.5);
        let classes = got.per_class();
        assert_eq!(classes[0].precision, 2.0 / 3.0);
        assert_eq!(classes[0].recall, 2.0 / 3.0);
        // Class 1: one of three called, one of two found: 2 / 5.
        assert_eq!(classes[1].f1, 0.4);
        assert_eq!(
            (classes[2].precision, classes[2].recall, classes[2].f1),
            (0.0, 0.0, 0.0)
        );
        assert_eq!(classes[2].support, 1);
        assert!((got.macro_f1() - (2.0 / 3.0 + 0.4) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn largest_logit_wins() {
        assert_eq!(
            predictions(&[0.0, 2.0, 1.0, 3.0, 3.0, 0.0], 3).unwrap(),
            [1, 0]
        );
        assert!(predictions(&[0.0; 5], 3).is_err());
        assert!(predictions(&[], 0).is_err());
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(Confusion::new(&[], &[], 2).is_err());
        assert!(Confusion::new(&[0], &[0, 1], 2).is_err());
        assert!(Confusion::new(&[2], &[0], 2).is_err());
        assert!(accuracy(&[], &[]).is_err());
    }

    #[test]
    fn areas_under_the_curve() {
        assert_eq!(auroc(&[2.0, 3.0], &[0.0, 1.0]).unwrap(), 1.0);
        assert_eq!(auroc(&[0.0], &[1.0, f64::INFINITY]).unwrap(), 0.0);
        // Of four pairs two are won, one is drawn.
        assert_eq!(auroc(&[1.0, 2.0], &[0.5, 2.0]).unwrap(), 0.625);
        assert!(auroc(&[], &[1.0]).is_err() && auroc(&[f64::NAN], &[1.0]).is_err());
    }
}
