//! From answers to figures, with the standard errors of lm-evaluation-harness.

use rayon::prelude::*;
use regex::Regex;

use super::config::{FilterStep, MetricConfig, MetricName};
use super::python::PythonRandom;
use super::{Target, TaskError};
use crate::Estimate;

/// What one question gives to a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) value: f64,
    /// What it is weighed by: words or bytes; 1 elsewhere.
    pub(super) weight: f64,
}

impl From<f64> for Share {
    fn from(value: f64) -> Self {
        Self { value, weight: 1.0 }
    }
}

/// The figure over all questions, and its standard error where there is a way to know it.
pub(super) fn aggregate(
    metric: MetricName,
    shares: &[Share],
    resamples: usize,
) -> (f64, Option<f64>) {
    let values: Vec<f64> = shares.iter().map(|share| share.value).collect();
    let several = values.len() > 1 && resamples > 0;
    match metric.aggregation() {
        "mean" => {
            let error = Estimate::of(&values).map(|estimate| estimate.standard_error);
            (mean(&values), error.ok().filter(|_| several))
        }
        "perplexity" => {
            let perplexity = |values: &[f64]| (-mean(values)).exp();
            let error = several.then(|| bootstrap(perplexity, &values, resamples));
            (perplexity(&values), error)
        }
        rule => {
            let weight: f64 = shares.iter().map(|share| share.weight).sum();
            let nats = -values.iter().sum::<f64>() / weight;
            match rule {
                "bits_per_byte" => (nats / std::f64::consts::LN_2, None),
                _ => (nats.exp(), None),
            }
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The deviation of a statistic over samples drawn with replacement, a thousand from each seed.
fn bootstrap(statistic: impl Fn(&[f64]) -> f64 + Sync, values: &[f64], resamples: usize) -> f64 {
    let chunk = resamples.min(1000);
    let seeds = (resamples / chunk) as u32;
    let of_seed = |seed| {
        let mut random = PythonRandom::new(seed);
        let mut sample = vec![0.0; values.len()];
        let one = |_| {
            random.resample(values, &mut sample);
            statistic(&sample)
        };
        (0..chunk).map(one).collect::<Vec<f64>>()
    };
    let all: Vec<f64> = (0..seeds).into_par_iter().flat_map_iter(of_seed).collect();
    let mean = mean(&all);
    let squares: f64 = all.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (all.len() - 1) as f64).sqrt()
}

/// Reads an answer out of a text.
#[derive(Debug)]
pub(super) struct Filter(Vec<(FilterStep, Option<Regex>)>);

impl Filter {
    pub(super) fn new(steps: &[FilterStep]) -> Result<Self, TaskError> {
        let step = |step: &FilterStep| {
            let regex = match step {
                FilterStep::Regex { regex_pattern, .. } => Some(pattern(regex_pattern)?),
                _ => None,
            };
            Ok((step.clone(), regex))
        };
        Ok(Self(
            steps.iter().map(step).collect::<Result<_, TaskError>>()?,
        ))
    }

    pub(super) fn apply(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, step| match step {
                (
                    FilterStep::Regex {
                        group_select,
                        fallback,
                        ..
                    },
                    Some(regex),
                ) => find(regex, &text, *group_select).unwrap_or_else(|| fallback.clone()),
                (FilterStep::Lowercase, _) => text.to_lowercase(),
                (FilterStep::Uppercase, _) => text.to_uppercase(),
                (FilterStep::RemoveWhitespace, _) => text.trim().to_owned(),
                (FilterStep::TakeFirst | FilterStep::Regex { .. }, _) => text,
            })
    }
}

/// Of all that a pattern finds, the one at a place: its only group, or the first that holds
/// anything, or all of it.
fn find(regex: &Regex, text: &str, place: i64) -> Option<String> {
    let finds: Vec<_> = regex.captures_iter(text).collect();
    let place = match place < 0 {
        true => finds.len() as i64 + place,
        false => place,
    };
    let found = finds.get(usize::try_from(place).ok()?)?;
    let groups = || found.iter().skip(1).flatten().map(|group| group.as_str());
    let part = match found.len() {
        1 => found[0].to_owned(),
        2 => groups().next().unwrap_or_default().to_owned(),
        _ => groups().find(|group| !group.is_empty())?.to_owned(),
    };
    Some(part.trim().to_owned())
}

fn pattern(pattern: &str) -> Result<Regex, TaskError> {
    Regex::new(pattern).map_err(|e| {
        TaskError::Config(format!(
            "the pattern `{pattern}` is not one of Rust's regex: {e}"
        ))
    })
}

/// Exact match as `evaluate` computes it.
#[derive(Debug)]
pub(super) struct ExactMatch {
    ignored: Vec<Regex>,
    config: MetricConfig,
}

impl ExactMatch {
    pub(super) fn new(config: &MetricConfig) -> Result<Self, TaskError> {
        let ignored = config.regexes_to_ignore.iter().map(|regex| pattern(regex));
        Ok(Self {
            ignored: ignored.collect::<Result<_, _>>()?,
            config: config.clone(),
        })
    }

    pub(super) fn holds(&self, answer: &str, target: &Target) -> bool {
        let answer = self.plain(answer);
        target.texts().iter().any(|text| self.plain(text) == answer)
    }

    fn plain(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for regex in &self.ignored {
            text = regex.replace_all(&text, "").into_owned();
        }
        if self.config.ignore_case {
            text = text.to_lowercase();
        }
        let drop = |c: char| {
            self.config.ignore_punctuation && c.is_ascii_punctuation()
                || self.config.ignore_numbers && c.is_ascii_digit()
        };
        text.retain(|c| !drop(c));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(yaml: &str) -> Filter {
        let steps = crate::tasks::yaml::parse(yaml).unwrap();
        let steps: Vec<FilterStep> = serde_json::from_value(steps).unwrap();
        Filter::new(&steps).unwrap()
    }

    #[test]
    fn filters_read_answers() {
        let strict = filter(
            "[{function: regex, regex_pattern: '#### (\\-?[0-9\\.\\,]+)'}, {function: take_first}]",
        );
        assert_eq!(strict.apply("so it is\n#### 1,234"), "1,234");
        assert_eq!(strict.apply("so it is 5"), "[invalid]");
        let last = filter(
            "[{function: regex, group_select: -1, regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)', fallback: none}]",
        );
        assert_eq!(last.apply("3 apples and 4 cost $12.50 and 7"), "7");
        assert_eq!(last.apply("many"), "none");
        assert_eq!(
            filter("[{function: remove_whitespace}, {function: lowercase}]").apply(" Yes\n"),
            "yes"
        );
    }

    #[test]
    fn exact_match_ignores_what_it_is_told_to() {
        let config =
            "{metric: exact_match, ignore_case: true, regexes_to_ignore: [',', '\\$', '\\.$']}";
        let config = crate::tasks::yaml::parse(config).unwrap();
        let config: MetricConfig = serde_json::from_value(config).unwrap();
        let exact = ExactMatch::new(&config).unwrap();
        let holds = |a: &str, b: &str| exact.holds(a, &Target::Text(b.into()));
        assert!(holds("$1,234.", "1234") && holds("Yes", "yES") && !holds("1234", "1235"));
    }

    #[test]
    fn figures_by_hand() {
        let shares = [1.0, 0.0, 1.0, 1.0].map(Share::from);
        let (value, error) = aggregate(MetricName::Acc, &shares, 1000);
        // s^2 = 4 * 3/16 / 3 = 1/4; error = 1/2 / 2.
        assert_eq!((value, error), (0.75, Some(0.25)));
        assert_eq!(aggregate(MetricName::Acc, &shares[..1], 1000), (1.0, None));
        let shares = [(-4.0, 2.0), (-2.0, 4.0)].map(|(value, weight)| Share { value, weight });
        let (value, error) = aggregate(MetricName::WordPerplexity, &shares, 1000);
        assert!((value - 1f64.exp()).abs() < 1e-12 && error.is_none());
    }

    /// `bootstrap_stderr(perplexity, [-1.0, -2.0, -0.5, -3.0, -1.25], 2000)` of lm-evaluation-harness 0.4.13.
    #[test]
    fn the_bootstrap_is_the_harnesss() {
        let shares = [-1.0, -2.0, -0.5, -3.0, -1.25].map(Share::from);
        let (_, error) = aggregate(MetricName::Perplexity, &shares, 2000);
        assert!((error.unwrap() - BOOTSTRAP).abs() < 1e-12, "{error:?}");
    }

    const BOOTSTRAP: f64 = 2.1651408214780266;
}
