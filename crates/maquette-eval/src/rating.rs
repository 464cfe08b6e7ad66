//! Ratings from comparisons of two: which of several is the best, by votes of people.
//!
//! The model of Bradley & Terry (1952): `i` is preferred to `j` with probability
//! `1 / (1 + exp(s_j - s_i))`. A tie counts as half a win for each side.

use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, Uniform};
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::bootstrap::Interval;
use crate::error::{at_least, within};

/// One comparison of two contestants, by their places in a list.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// One side.
    pub a: usize,
    /// The other side.
    pub b: usize,
    /// 1 when `a` was preferred, 0 when `b` was, one half for a tie.
    pub share: f64,
}

/// Passes over all scores; convergence is geometric, and this is far beyond it.
const PASSES: usize = 10_000;
/// The largest change of a score that counts as none.
const TOLERANCE: f64 = 1e-10;

/// The scores that make the votes most probable, in logits, with mean 0: a lead of 1.1 means
/// three wins in four. By the minorisation of Hunter 2004 (Annals of Statistics 32:1, eq. 3).
///
/// `prior` adds that many ties with a contestant of score 0 to each. Without it, scores exist only
/// where every contestant can be reached from every other through wins (Ford 1957); with half a tie,
/// one who won all of few votes is not infinitely good.
///
/// # Errors
/// Fewer than two contestants, a vote on one and itself or on nobody, a share outside
/// `[0, 1]`, a negative prior, or scores that do not exist.
pub fn bradley_terry(n: usize, votes: &[Vote], prior: f64) -> Result<Vec<f64>, EvalError> {
    at_least("contestants", 2, n)?;
    within("the prior", prior, prior >= 0.0, "0 or more")?;
    let mut wins = vec![0.0; n * n];
    for one in votes {
        let known = one.a < n && one.b < n && one.a != one.b;
        within(
            "a contestant",
            one.a.max(one.b) as f64,
            known,
            "one of two in the list",
        )?;
        let share = (0.0..=1.0).contains(&one.share);
        within("a share", one.share, share, "from 0 to 1")?;
        wins[one.a * n + one.b] += one.share;
        wins[one.b * n + one.a] += 1.0 - one.share;
    }
    if prior == 0.0 && !connected(&wins, n) {
        return Err(EvalError::NoConvergence(
            "scores of contestants of whom some never lost to, or never beat, the others",
        ));
    }
    let mut strength = vec![1.0f64; n];
    for _ in 0..PASSES {
        let mut change = 0.0f64;
        for i in 0..n {
            // Wins over the sum of chances; the prior's ties are half a win against a strength of 1.
            let won = (0..n).map(|j| wins[i * n + j]).sum::<f64>() + 0.5 * prior;
            let chances = (0..n)
                .filter(|j| *j != i)
                .map(|j| (wins[i * n + j] + wins[j * n + i]) / (strength[i] + strength[j]));
            let chances = chances.sum::<f64>() + prior / (strength[i] + 1.0);
            if chances > 0.0 {
                let new = won / chances;
                change = change.max((new / strength[i]).ln().abs());
                strength[i] = new;
            }
        }
        if change < TOLERANCE {
            break;
        }
    }
    let scores: Vec<f64> = strength.iter().map(|s| s.ln()).collect();
    let mean = scores.iter().sum::<f64>() / n as f64;
    Ok(scores.iter().map(|s| s - mean).collect())
}

/// [`bradley_terry`] with bootstrap intervals: the scores of `resamples` draws of the votes with
/// replacement, and the middle `level` of those.
///
/// # Errors
/// As [`bradley_terry`]; no votes, fewer than 100 resamples, a level outside (0, 1). With a prior
/// of 0 a draw may have no scores.
pub fn bradley_terry_intervals(
    n: usize,
    votes: &[Vote],
    prior: f64,
    (resamples, level): (usize, f64),
    rng: &mut Rng,
) -> Result<Vec<Interval>, EvalError> {
    at_least("votes", 1, votes.len())?;
    at_least("resamples", 100, resamples)?;
    within(
        "the level",
        level,
        level > 0.0 && level < 1.0,
        "between 0 and 1",
    )?;
    let scores = bradley_terry(n, votes, prior)?;
    let index = Uniform::new(0, votes.len()).expect("there is at least one comparison");
    let mut drawn = votes.to_vec();
    let mut all = vec![Vec::with_capacity(resamples); n];
    for _ in 0..resamples {
        drawn.fill_with(|| votes[index.sample(rng)]);
        let scores = bradley_terry(n, &drawn, prior)?;
        all.iter_mut()
            .zip(scores)
            .for_each(|(all, score)| all.push(score));
    }
    let intervals = scores.into_iter().zip(&mut all);
    Ok(intervals
        .map(|(score, all)| crate::bootstrap::percentiles(score, all, level))
        .collect())
}

/// Whether everybody can be reached from everybody through wins.
fn connected(wins: &[f64], n: usize) -> bool {
    let reaches_all = |won: &dyn Fn(usize, usize) -> bool| {
        let (mut seen, mut open) = (vec![false; n], vec![0]);
        seen[0] = true;
        while let Some(i) = open.pop() {
            for (j, seen) in seen.iter_mut().enumerate() {
                if !*seen && won(i, j) {
                    *seen = true;
                    open.push(j);
                }
            }
        }
        seen.into_iter().all(|seen| seen)
    };
    reaches_all(&|i, j| wins[i * n + j] > 0.0) && reaches_all(&|i, j| wins[j * n + i] > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    /// `wins[i][j]` times `i` was preferred to `j`.
    fn cast<const N: usize>(wins: [[usize; N]; N]) -> Vec<Vote> {
        let mut all = Vec::new();
        for (a, row) in wins.iter().enumerate() {
            for (b, count) in row.iter().enumerate() {
                all.extend(std::iter::repeat_n(Vote { a, b, share: 1.0 }, *count));
            }
        }
        all
    }

    /// Games of the American League's East in 1987 (Agresti, Categorical Data Analysis, 2nd edition,
    /// table 10.10; scores over Baltimore's: table 10.11).
    #[test]
    fn baseball_has_its_published_scores() {
        let games = cast([
            [0, 7, 9, 7, 7, 9, 11],
            [6, 0, 7, 5, 11, 9, 9],
            [4, 6, 0, 7, 7, 8, 12],
            [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12],
            [4, 4, 5, 6, 6, 0, 6],
            [2, 4, 1, 3, 1, 7, 0],
        ]);
        let scores = bradley_terry(7, &games, 0.0).unwrap();
        let published = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0];
        for (got, want) in scores.iter().zip(published) {
            let got = got - scores[6];
            assert!((got - want).abs() < 0.005, "{got} is not {want}");
        }
    }

    #[test]
    fn two_by_hand() {
        // Three wins in four: a lead of ln 3. A tie is half a win each.
        let mut games = cast([[0, 3], [1, 0]]);
        let scores = bradley_terry(2, &games, 0.0).unwrap();
        assert!((scores[0] - scores[1] - 3f64.ln()).abs() < 1e-9);
        games.push(Vote {
            a: 1,
            b: 0,
            share: 0.5,
        });
        let scores = bradley_terry(2, &games, 0.0).unwrap();
        assert!((scores[0] - scores[1] - (3.5f64 / 1.5).ln()).abs() < 1e-9);
    }

    #[test]
    fn who_always_wins_is_finite_only_with_a_prior() {
        let games = cast([[0, 5, 0], [0, 0, 0], [0, 0, 0]]);
        assert!(bradley_terry(3, &games, 0.0).is_err());
        let scores = bradley_terry(3, &games, 1.0).unwrap();
        assert!(scores[0] > scores[2] && scores[2] > scores[1], "{scores:?}");
        assert!(scores.iter().all(|score| score.is_finite()));
        // Who was never compared stands where the prior puts him.
        assert!(scores[2].abs() < 1e-6);
    }

    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_say() {
        let truth: [f64; 3] = [0.6, 0.0, -0.6];
        let (mut held, mut all) = (0, 0);
        for seed in 0..40 {
            let random = &mut rng(seed, Stream::Evaluate, 0);
            let unit = Uniform::new(0.0, 1.0).unwrap();
            let mut games = Vec::new();
            for _ in 0..60 {
                for (a, b) in [(0, 1), (1, 2), (0, 2)] {
                    let p = 1.0 / (1.0 + (truth[b] - truth[a]).exp());
                    let share = f64::from(u8::from(unit.sample(random) < p));
                    games.push(Vote { a, b, share });
                }
            }
            let got = bradley_terry_intervals(3, &games, 0.0, (200, 0.9), random).unwrap();
            for (interval, truth) in got.iter().zip(truth) {
                held += usize::from(interval.low <= truth && truth <= interval.high);
                all += 1;
            }
        }
        let share = f64::from(held as u32) / f64::from(all as u32);
        assert!((0.82..=0.97).contains(&share), "{share}");
    }

    #[test]
    fn bad_input_is_refused() {
        let one = |a, b, share| [Vote { a, b, share }];
        assert!(bradley_terry(1, &[], 1.0).is_err());
        assert!(bradley_terry(2, &one(0, 0, 1.0), 1.0).is_err());
        assert!(bradley_terry(2, &one(0, 2, 1.0), 1.0).is_err());
        assert!(bradley_terry(2, &one(0, 1, 1.5), 1.0).is_err());
        assert!(bradley_terry(2, &one(0, 1, 1.0), -1.0).is_err());
        let random = &mut rng(0, Stream::Evaluate, 0);
        assert!(bradley_terry_intervals(2, &[], 1.0, (200, 0.9), random).is_err());
        assert!(bradley_terry_intervals(2, &one(0, 1, 1.0), 1.0, (9, 0.9), random).is_err());
    }
}
