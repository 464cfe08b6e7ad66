//! How sure a figure is.

use crate::EvalError;
use crate::error::{at_least, same, within};
use maquette_rng::Rng;
use maquette_rng::rand_distr::{Distribution, Uniform};
use serde::Serialize;

/// A figure and the interval it lies in with probability `level`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The figure on the whole sample.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The probability, for example 0.95.
    pub level: f64,
}

/// Percentile bootstrap interval of any statistic (Efron 1979): the statistic on `resamples`
/// samples drawn with replacement from `data`, and the middle `level` of those values.
///
/// # Errors
/// No data, fewer than 100 resamples, or a level outside (0, 1).
pub fn bootstrap<T: Copy>(
    data: &[T],
    statistic: impl Fn(&[T]) -> f64,
    resamples: usize,
    level: f64,
    rng: &mut Rng,
) -> Result<Interval, EvalError> {
    at_least("observations", 1, data.len())?;
    at_least("resamples", 100, resamples)?;
    within(
        "the level",
        level,
        level > 0.0 && level < 1.0,
        "between 0 and 1",
    )?;
    let index = Uniform::new(0, data.len()).expect("there is at least one observation");
    let mut sample = data.to_vec();
    let mut values: Vec<f64> = (0..resamples)
        .map(|_| {
            sample.fill_with(|| data[index.sample(rng)]);
            statistic(&sample)
        })
        .collect();
    Ok(percentiles(statistic(data), &mut values, level))
}

/// Two systems compared on the same segments.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// The baseline's score and its interval.
    pub baseline: Interval,
    /// The system's.
    pub system: Interval,
    /// The system's score less the baseline's.
    pub difference: Interval,
    /// How likely so large a difference, of either sign, is between equally good systems.
    pub p_value: f64,
}

/// Paired bootstrap resampling (Koehn 2004, W04-3250): both systems scored on the same
/// `resamples` draws of segments with replacement. The p-value is sacreBLEU's: the share of
/// resamples whose absolute difference exceeds the mean of these by more than the absolute
/// difference on all segments, one counted extra; but systems without a difference have 1.
///
/// `baseline[i]` and `system[i]` are what `score` needs to know of segment `i`: for corpus
/// metrics the counts, for example `&BleuCounts`.
///
/// # Errors
/// No segments, lists of different lengths, fewer than 100 resamples, or a level outside (0, 1).
pub fn paired<T: Copy>(
    baseline: &[T],
    system: &[T],
    score: impl Fn(&[T]) -> f64,
    resamples: usize,
    level: f64,
    rng: &mut Rng,
) -> Result<Comparison, EvalError> {
    at_least("segments", 1, baseline.len())?;
    same("segments of two systems", baseline.len(), system.len())?;
    at_least("resamples", 100, resamples)?;
    within(
        "the level",
        level,
        level > 0.0 && level < 1.0,
        "between 0 and 1",
    )?;
    let n = baseline.len();
    let index = Uniform::new(0, n).expect("there is at least one segment");
    let draws = (0..resamples).map(|_| (0..n).map(|_| index.sample(rng)).collect());
    Ok(compare(baseline, system, score, draws, level))
}

/// Two systems on given draws of segments.
fn compare<T: Copy>(
    baseline: &[T],
    system: &[T],
    score: impl Fn(&[T]) -> f64,
    draws: impl Iterator<Item = Vec<usize>>,
    level: f64,
) -> Comparison {
    let on =
        |system: &[T], draw: &[usize]| score(&draw.iter().map(|&i| system[i]).collect::<Vec<_>>());
    let (mut a, mut b): (Vec<f64>, Vec<f64>) = draws
        .map(|draw| (on(baseline, &draw), on(system, &draw)))
        .unzip();
    let mut gaps: Vec<f64> = b.iter().zip(&a).map(|(b, a)| b - a).collect();
    let (baseline, system) = (score(baseline), score(system));
    let n = gaps.len() as f64;
    let mean = gaps.iter().map(|gap| gap.abs()).sum::<f64>() / n;
    let seen = (system - baseline).abs();
    let beyond = gaps.iter().filter(|gap| gap.abs() - mean > seen).count();
    let p_value = match seen {
        0.0 => 1.0,
        _ => (beyond as f64 + 1.0) / (n + 1.0),
    };
    Comparison {
        baseline: percentiles(baseline, &mut a, level),
        system: percentiles(system, &mut b, level),
        difference: percentiles(system - baseline, &mut gaps, level),
        p_value,
    }
}

/// The middle `level` of `resampled` figures, moved so that their mean is `value`: how far figures
/// of as many observations lie apart. For statistics that are biased for few observations, such as a
/// Fréchet distance, where resamples are biased once more and do not lie around the figure itself.
///
/// # Errors
/// Fewer than 100 resampled figures, or a level outside (0, 1).
pub fn around(value: f64, resampled: &[f64], level: f64) -> Result<Interval, EvalError> {
    at_least("resamples", 100, resampled.len())?;
    within(
        "the level",
        level,
        level > 0.0 && level < 1.0,
        "between 0 and 1",
    )?;
    let mean = resampled.iter().sum::<f64>() / resampled.len() as f64;
    let mut moved: Vec<f64> = resampled.iter().map(|x| x - mean + value).collect();
    Ok(percentiles(value, &mut moved, level))
}

/// The middle `level` of resampled values.
pub(crate) fn percentiles(value: f64, values: &mut [f64], level: f64) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - level) / 2.0;
    Interval {
        value,
        low: quantile(values, tail),
        high: quantile(values, 1.0 - tail),
        level,
    }
}

/// Wilson's score interval for a rate of `successes` in `n` trials (Wilson 1927): sound for rates
/// near 0 and 1, where the usual plus-minus leaves the range. `z` is the normal quantile, 1.96
/// for 95 %.
///
/// # Errors
/// No trials, more successes than trials, or a `z` that is not positive.
pub fn wilson(successes: usize, n: usize, z: f64) -> Result<(f64, f64), EvalError> {
    at_least("trials", 1, n)?;
    within(
        "successes",
        successes as f64,
        successes <= n,
        "at most the trials",
    )?;
    within("z", z, z > 0.0, "more than 0")?;
    let (n, p) = (n as f64, successes as f64 / n as f64);
    let scale = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / scale;
    let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    Ok(((centre - half).max(0.0), (centre + half).min(1.0)))
}

/// The quantile of ascending values, linear between neighbours (type 7 of Hyndman & Fan 1996).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = at.ceil() as usize;
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, normal, rng};

    fn mean(x: &[f64]) -> f64 {
        x.iter().sum::<f64>() / x.len() as f64
    }

    #[test]
    fn a_biased_statistic_keeps_its_place() {
        let resampled: Vec<f64> = (0..=1000).map(|i| 5.0 + f64::from(i) / 1000.0).collect();
        let got = around(2.0, &resampled, 0.9).unwrap();
        assert!((got.low - 1.55).abs() < 1e-9 && (got.high - 2.45).abs() < 1e-9);
        assert_eq!(got.value, 2.0);
        assert!(around(2.0, &resampled[..99], 0.9).is_err());
    }

    #[test]
    fn quantiles_by_hand() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), 4.0);
    }

    #[test]
    fn the_interval_of_a_mean_is_the_known_one() {
        let x: Vec<f64> = normal(&mut rng(1, Stream::Evaluate, 0), 400)
            .into_iter()
            .map(f64::from)
            .collect();
        let rng = &mut rng(2, Stream::Evaluate, 0);
        let got = bootstrap(&x, mean, 4000, 0.95, rng).unwrap();
        // Plus-minus 1.96 / sqrt(400) = 0.098 around the mean.
        assert!((got.high - got.value - 0.098).abs() < 0.012, "{got:?}");
        assert!((got.value - got.low - 0.098).abs() < 0.012, "{got:?}");
    }

    #[test]
    fn it_covers_as_often_as_it_says() {
        // 300 experiments with 90 % intervals: 270 expected, standard deviation 5; a bootstrap
        // on 40 values is a little narrow.
        let covered = (0..300)
            .filter(|&i| {
                let x: Vec<f64> = normal(&mut rng(3, Stream::Evaluate, i), 40)
                    .into_iter()
                    .map(f64::from)
                    .collect();
                let rng = &mut rng(4, Stream::Evaluate, i);
                let got = bootstrap(&x, mean, 400, 0.9, rng).unwrap();
                got.low <= 0.0 && 0.0 <= got.high
            })
            .count();
        assert!((245..=290).contains(&covered), "{covered} of 300");
    }

    #[test]
    fn same_seed_same_interval() {
        let run = || {
            let rng = &mut rng(5, Stream::Evaluate, 0);
            bootstrap(&[1.0, 2.0, 3.0, 10.0], mean, 200, 0.9, rng).unwrap()
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn comparisons_are_sacrebleus() {
        use crate::text::{Bleu, BleuScore, Chrf, Ter};
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../fixtures/text_metrics.json")).unwrap();
        let want = &fixture["paired"];
        let at = |name: &str| want[name].as_u64().unwrap() as usize;
        let cases: Vec<(String, Vec<String>)> =
            serde_json::from_value(fixture["cases"].clone()).unwrap();
        let cases = &cases[at("first")..at("last")];
        let draws: Vec<String> = serde_json::from_value(want["picks"].clone()).unwrap();
        let draws = || {
            draws
                .iter()
                .map(|draw| draw.bytes().map(|b| usize::from(b - b'a')).collect())
        };
        let check = |name: &str, got: Comparison| {
            let near = |got: f64, key: &str| {
                let want = want[name][key].as_f64().unwrap();
                assert!(
                    (got - want).abs() < 1e-6,
                    "{name} {key}: {got} is not {want}"
                );
            };
            near(got.baseline.value, "baseline");
            near(got.system.value, "system");
            near(got.p_value, "p_value");
        };
        // The baseline says what the last reference says.
        macro_rules! check {
            ($name:literal, $metric:expr, $score:expr) => {{
                let metric = $metric;
                let counts = |hypothesis: fn(&(String, Vec<String>)) -> &String| -> Vec<_> {
                    cases
                        .iter()
                        .map(|case| metric.counts(hypothesis(case), &[&case.1[0]]).unwrap())
                        .collect()
                };
                let baseline = counts(|case| case.1.last().unwrap());
                let system = counts(|case| &case.0);
                let baseline: Vec<_> = baseline.iter().collect();
                let system: Vec<_> = system.iter().collect();
                let score = |counts: &[&_]| $score(metric.score(counts.iter().copied()));
                check($name, compare(&baseline, &system, score, draws(), 0.95));
            }};
        }
        check!("bleu", Bleu::default(), |total: BleuScore| total.score);
        check!("chrf", Chrf::default(), f64::from);
        check!("ter", Ter::default(), f64::from);
    }

    #[test]
    fn a_better_system_is_told_from_an_equal_one() {
        let noise: Vec<f64> = normal(&mut rng(6, Stream::Evaluate, 0), 200)
            .into_iter()
            .map(f64::from)
            .collect();
        let better: Vec<f64> = noise.iter().map(|x| x + 0.5 + 0.1 * x * x).collect();
        let go = |a: &[f64], b: &[f64]| {
            paired(a, b, mean, 500, 0.95, &mut rng(7, Stream::Evaluate, 0)).unwrap()
        };
        let got = go(&noise, &better);
        assert!(got.p_value < 0.01 && got.difference.low > 0.4, "{got:?}");
        assert_eq!(got, go(&noise, &better));
        let got = go(&noise, &noise);
        assert_eq!((got.p_value, got.difference.high), (1.0, 0.0));
        let rng = &mut rng(8, Stream::Evaluate, 0);
        assert!(paired(&noise, &better[1..], mean, 500, 0.95, rng).is_err());
        assert!(paired(&noise, &better, mean, 50, 0.95, rng).is_err());
    }

    #[test]
    fn wilson_by_hand() {
        // 8 of 10 with z = 1.96: 0.4902 to 0.9433 (Newcombe 1998 gives these for the method).
        let (low, high) = wilson(8, 10, 1.959964).unwrap();
        assert!(
            (low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4,
            "{low} {high}"
        );
        let (low, high) = wilson(0, 10, 1.96).unwrap();
        assert!(low == 0.0 && high > 0.2);
        assert!(wilson(3, 2, 1.96).is_err());
        assert!(wilson(0, 0, 1.96).is_err());
    }

    #[test]
    fn bad_input_is_refused() {
        let rng = &mut rng(5, Stream::Evaluate, 0);
        assert!(bootstrap(&[], mean, 200, 0.9, rng).is_err());
        assert!(bootstrap(&[1.0], mean, 10, 0.9, rng).is_err());
        assert!(bootstrap(&[1.0], mean, 200, 1.0, rng).is_err());
    }
}
