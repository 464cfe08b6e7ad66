//! Metrics of texts, line by line.

use std::path::Path;

use maquette::eval::bootstrap;
use maquette::eval::text::{
    Bleu, BleuTokenizer, Chrf, Rouge, Smoothing, Ter, distinct_n, exact_match, self_bleu, token_f1,
};
use maquette::eval::{EvalError, Signature};
use maquette::rng::{Stream, rng};

use super::report::Report;
use crate::args::{BleuSmoothing, BleuTokenization, SegmentArgs, TextMetric};
use crate::errors::{Usage, failed};

/// The probability of every interval.
const LEVEL: f64 = 0.95;

/// Measures what the sub-command names.
pub(super) fn measure(metric: TextMetric) -> miette::Result<Report> {
    let mut report = Report::default();
    match metric {
        TextMetric::Bleu {
            segments,
            tokenize,
            smooth,
            smooth_value,
            lowercase,
        } => {
            let bleu = Bleu {
                tokenizer: tokenizer(tokenize),
                smoothing: smoothing(smooth, smooth_value)?,
                lowercase,
                ..Bleu::default()
            };
            let single = Bleu {
                effective_order: true,
                ..bleu.clone()
            };
            let corpus = Corpus::read(segments)?;
            corpus.measure(
                &mut report,
                "bleu",
                bleu.signature(&corpus.borrowed()),
                |hypothesis, references| bleu.counts(hypothesis, references),
                |counts| match counts {
                    // As sacreBLEU scores sentences: without the orders they are too short for.
                    [one] => single.score([*one]).score,
                    all => bleu.score(all.iter().copied()).score,
                },
            )?;
        }
        TextMetric::Chrf {
            segments,
            word_order,
            lowercase,
        } => {
            let chrf = Chrf {
                word_order,
                lowercase,
                ..Chrf::default()
            };
            let corpus = Corpus::read(segments)?;
            let name = if word_order == 2 { "chrf++" } else { "chrf" };
            corpus.measure(
                &mut report,
                name,
                chrf.signature(&corpus.borrowed()),
                |hypothesis, references| chrf.counts(hypothesis, references),
                |counts| chrf.score(counts.iter().copied()),
            )?;
        }
        TextMetric::Ter {
            segments,
            normalized,
            no_punct,
            asian_support,
            case_sensitive,
        } => {
            let ter = Ter {
                normalized,
                no_punct,
                asian_support,
                case_sensitive,
            };
            let corpus = Corpus::read(segments)?;
            corpus.measure(
                &mut report,
                "ter",
                ter.signature(&corpus.borrowed()),
                |hypothesis, references| ter.counts(hypothesis, references),
                |counts| ter.score(counts.iter().copied()),
            )?;
        }
        TextMetric::Rouge { segments, stem } => {
            let rouge = Rouge { stemmer: stem };
            let mut corpus = Corpus::read(segments)?;
            corpus.break_lines();
            type Score = fn(&Rouge, &str, &[&str]) -> Result<f64, EvalError>;
            let scores: [(&str, Score); 4] = [
                ("rouge1", |rouge, h, r| Ok(rouge.n(h, r, 1)?.f1)),
                ("rouge2", |rouge, h, r| Ok(rouge.n(h, r, 2)?.f1)),
                ("rougeL", |rouge, h, r| Ok(rouge.l(h, r)?.f1)),
                ("rougeLsum", |rouge, h, r| Ok(rouge.lsum(h, r)?.f1)),
            ];
            for (name, score) in scores {
                let signature = rouge.signature(&corpus.borrowed());
                corpus.measure(
                    &mut report,
                    name,
                    signature,
                    |h, r| score(&rouge, h, r),
                    mean,
                )?;
            }
        }
        TextMetric::Answers { segments } => {
            let corpus = Corpus::read(segments)?;
            let signature = |name| {
                let signature = Signature::new(name).with("normalisation", "squad");
                signature.as_str().to_owned()
            };
            let exact = |h: &str, r: &[&str]| Ok(f64::from(exact_match(h, r)?));
            corpus.measure(
                &mut report,
                "exact_match",
                signature("exact_match"),
                exact,
                mean,
            )?;
            corpus.measure(&mut report, "f1", signature("f1"), token_f1, mean)?;
        }
        TextMetric::Diversity { texts, max_n } => {
            let lines = lines(&texts)?;
            let ids = words_as_ids(&lines);
            for n in 1..=max_n.min(3) {
                let value = distinct_n(&ids, n).map_err(failed)?;
                let signature = Signature::new("distinct")
                    .with("n", n)
                    .with("words", "space");
                report.add(&format!("distinct_{n}"), value, signature.as_str());
            }
            let value = 100.0 * self_bleu(&ids, max_n).map_err(failed)?;
            let signature = Signature::new("self_bleu")
                .with("max_n", max_n)
                .with("words", "space");
            report.add("self_bleu", value, signature.as_str());
        }
    }
    Ok(report)
}

fn tokenizer(tokenize: BleuTokenization) -> BleuTokenizer {
    match tokenize {
        BleuTokenization::V13a => BleuTokenizer::V13a,
        BleuTokenization::Intl => BleuTokenizer::International,
        BleuTokenization::Char => BleuTokenizer::Character,
        BleuTokenization::None => BleuTokenizer::None,
    }
}

fn smoothing(smooth: BleuSmoothing, value: Option<f64>) -> miette::Result<Smoothing> {
    match (smooth, value) {
        (BleuSmoothing::Exp, None) => Ok(Smoothing::Exp),
        (BleuSmoothing::None, None) => Ok(Smoothing::None),
        (BleuSmoothing::Floor, value) => Ok(Smoothing::Floor(value.unwrap_or(0.1))),
        (BleuSmoothing::AddK, value) => Ok(Smoothing::AddK(value.unwrap_or(1.0))),
        (BleuSmoothing::Exp | BleuSmoothing::None, Some(_)) => Err(Usage::new(
            "--smooth-value has no meaning with this --smooth",
            "it belongs to --smooth floor (default 0.1) and --smooth add-k (default 1)",
        )
        .into()),
    }
}

fn mean(values: &[&f64]) -> f64 {
    values.iter().copied().sum::<f64>() / values.len() as f64
}

/// Each distinct word, separated by white space, as a number.
fn words_as_ids(lines: &[String]) -> Vec<Vec<u32>> {
    let mut known = std::collections::HashMap::new();
    let ids = |line: &String| {
        line.split_whitespace()
            .map(|word| {
                let next = known.len() as u32;
                *known.entry(word.to_owned()).or_insert(next)
            })
            .collect()
    };
    lines.iter().map(ids).collect()
}

/// A text file line by line.
fn lines(path: &Path) -> miette::Result<Vec<String>> {
    let bytes = std::fs::read(path)
        .map_err(|error| miette::miette!("cannot read {}: {error}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        miette::miette!("{} is not UTF-8 text, from byte {at} on", path.display())
    })?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Segments with their references, and those of another system.
struct Corpus {
    hypotheses: Vec<String>,
    /// Those of each segment.
    references: Vec<Vec<String>>,
    baseline: Option<Vec<String>>,
    settings: SegmentArgs,
}

impl Corpus {
    /// Reads the files and checks that they belong together.
    fn read(settings: SegmentArgs) -> miette::Result<Self> {
        let hypotheses = lines(&settings.hypotheses)?;
        let parallel = |path: &Path| -> miette::Result<Vec<String>> {
            let other = lines(path)?;
            if other.len() == hypotheses.len() {
                return Ok(other);
            }
            Err(Usage::new(
                format!(
                    "{} has {} lines and {} has {}",
                    settings.hypotheses.display(),
                    hypotheses.len(),
                    path.display(),
                    other.len()
                ),
                "line N of every file belongs to segment N; an empty line is an empty segment",
            )
            .into())
        };
        let files = settings.references.iter().map(|path| parallel(path));
        let files: Vec<Vec<String>> = files.collect::<miette::Result<_>>()?;
        let references = (0..hypotheses.len())
            .map(|line| files.iter().map(|file| file[line].clone()).collect())
            .collect();
        let baseline = match &settings.baseline {
            Some(path) => Some(parallel(path)?),
            None => None,
        };
        Ok(Self {
            hypotheses,
            references,
            baseline,
            settings,
        })
    }

    fn borrowed(&self) -> Vec<Vec<&str>> {
        let references = self.references.iter();
        references
            .map(|of| of.iter().map(String::as_str).collect())
            .collect()
    }

    /// `\n`, written out, becomes a line break: one segment is one line of a file, but a summary
    /// has several sentences.
    fn break_lines(&mut self) {
        let texts = self.hypotheses.iter_mut();
        let texts = texts.chain(self.references.iter_mut().flatten());
        for text in texts.chain(self.baseline.iter_mut().flatten()) {
            *text = text.replace("\\n", "\n");
        }
    }

    /// One metric: of the corpus with its interval, of each segment, and against the baseline.
    fn measure<C>(
        &self,
        report: &mut Report,
        name: &str,
        signature: String,
        counts: impl Fn(&str, &[&str]) -> Result<C, EvalError>,
        score: impl Fn(&[&C]) -> f64,
    ) -> miette::Result<()> {
        let references = self.borrowed();
        let of = |texts: &[String]| -> miette::Result<Vec<C>> {
            let segments = texts.iter().zip(&references);
            segments
                .map(|(text, references)| counts(text, references).map_err(failed))
                .collect()
        };
        let all = of(&self.hypotheses)?;
        let system: Vec<&C> = all.iter().collect();
        if system.is_empty() {
            return Err(Usage::new(
                format!("{} has no lines", self.settings.hypotheses.display()),
                "give a text file with one segment per line",
            )
            .into());
        }
        report.add(name, score(&system), &signature);
        if self.settings.segments {
            let each = system.iter().map(|counts| score(&[*counts])).collect();
            report.segments.insert(name.to_owned(), each);
        }
        let (resamples, mut rng) = (
            self.settings.resamples,
            rng(self.settings.seed, Stream::Evaluate, 0),
        );
        if let Some(baseline) = &self.baseline {
            let other = of(baseline)?;
            let other: Vec<&C> = other.iter().collect();
            let comparison = bootstrap::paired(&other, &system, score, resamples, LEVEL, &mut rng);
            let comparison = comparison.map_err(failed)?;
            report.intervals.insert(name.to_owned(), comparison.system);
            report.comparisons.insert(name.to_owned(), comparison);
        } else if resamples > 0 && system.len() > 1 {
            let interval = bootstrap::bootstrap(&system, score, resamples, LEVEL, &mut rng);
            let interval = interval.map_err(failed)?;
            report.intervals.insert(name.to_owned(), interval);
        }
        Ok(())
    }
}
