//! The report of a run: one HTML file that needs nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use crate::TrainError;
use crate::diagnosis::Finding;
use crate::files::write_atomic;
use crate::hash::sha256_file;
use crate::plot::{Frame, Series, lines};
use crate::run::{self, Phase, Record, RunResult};
use crate::spec::{Better, Published, PublishedNumbers};

const TEMPLATE: &str = include_str!("../templates/report.html");
/// Samples shown, and the bytes of one that are embedded: a report is a page, not an archive.
const MAX_SAMPLES: usize = 8;
const MAX_SAMPLE_BYTES: u64 = 2 << 20;
const MAX_SAMPLE_CHARS: usize = 4000;
/// Curves that say nothing about the model.
const NOT_PLOTTED: &str = "_per_second";

/// Writes `report.html` into the run folder `dir` and returns its path.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Malformed`].
pub fn write(dir: &Path) -> Result<PathBuf, TrainError> {
    let path = dir.join("report.html");
    write_atomic(&path, render(dir)?.as_bytes())?;
    Ok(path)
}

/// The report of the run in `dir`. An unfinished run has no results in it yet.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Malformed`].
pub fn render(dir: &Path) -> Result<String, TrainError> {
    let recipe = run::recipe(dir)?;
    let result = match dir.join("result.json").exists() {
        true => Some(run::result(dir)?),
        false => None,
    };
    let table: toml::Table = recipe.parse().unwrap_or_default();
    let top = |key: &str| {
        table
            .get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let name = dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let page = context! {
        name,
        family => top("family"),
        summary => top("summary"),
        rows => Value::from(Serde(result.as_ref().map(|result| rows(result, &published(&table))))),
        steps => result.as_ref().map(|result| result.steps),
        duration => result.as_ref().map(|result| duration(result.seconds)),
        plots => plots(&run::records(dir)?).into_iter().map(Value::from_safe_string).collect::<Vec<_>>(),
        samples => Value::from(Serde(samples(dir)?)),
        findings => Value::from(Serde(told(run::findings(dir)?))),
        recipe,
        environment => Value::from(Serde(run::environment(dir)?)),
        files => Value::from(Serde(files(dir)?)),
    };
    let mut jinja = Environment::new();
    jinja.set_auto_escape_callback(|_| AutoEscape::Html);
    jinja.render_str(TEMPLATE, page).map_err(TrainError::other)
}

/// A fault of an adversarial game, as the page tells it.
#[derive(Debug, Serialize)]
struct Told {
    step: u64,
    fault: &'static str,
    evidence: String,
    advice: String,
}

fn told(findings: Vec<Finding>) -> Vec<Told> {
    let told = |found: Finding| Told {
        step: found.step,
        fault: found.fault.name(),
        evidence: found.evidence,
        advice: found.advice,
    };
    findings.into_iter().map(told).collect()
}

/// A line of the results table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    ours: String,
    published: Option<String>,
    source: Option<String>,
    reached: Option<bool>,
    signature: Option<String>,
}

fn rows(result: &RunResult, published: &PublishedNumbers) -> Vec<Row> {
    result
        .metrics
        .iter()
        .map(|(name, ours)| {
            let theirs = published.get(name);
            let reached = |theirs: &Published| match theirs.better {
                Better::Lower => *ours <= theirs.value,
                Better::Higher => *ours >= theirs.value,
            };
            Row {
                name: name.replace('_', " "),
                ours: figure(*ours),
                published: theirs.map(|theirs| figure(theirs.value)),
                source: theirs.map(|theirs| theirs.source.clone()),
                reached: theirs.map(reached),
                signature: result.signatures.get(name).cloned(),
            }
        })
        .collect()
}

fn published(recipe: &toml::Table) -> PublishedNumbers {
    recipe
        .get("published")
        .cloned()
        .and_then(|table| table.try_into().ok())
        .unwrap_or_default()
}

/// One plot per metric; training and validation share it.
fn plots(records: &[Record]) -> Vec<String> {
    let names: BTreeSet<&String> = records
        .iter()
        .flat_map(|record| record.values.keys())
        .collect();
    let curve = |name: &str, phase: Phase| {
        let points = records.iter().filter(|record| record.phase == phase);
        let points =
            points.filter_map(|record| Some((record.step as f64, *record.values.get(name)?)));
        Series::new(phase.name(), points)
    };
    let mut names: Vec<&String> = names
        .into_iter()
        .filter(|name| !name.ends_with(NOT_PLOTTED))
        .collect();
    // The loss first, then the other curves in the order of their names.
    names.sort_by_key(|name| (name.as_str() != "loss", name.as_str()));
    names
        .into_iter()
        .map(|name| {
            let curves: Vec<Series> = [Phase::Train, Phase::Validation]
                .into_iter()
                .map(|phase| curve(name, phase))
                .filter(|series| !series.points.is_empty())
                .collect();
            lines(
                &Frame::new(name.replace('_', " "), "step", "").sized(560, 300),
                &curves,
            )
        })
        .collect()
}

/// A sample of the newest set.
#[derive(Debug, Serialize)]
struct Sample {
    name: String,
    image: Option<String>,
    text: Option<String>,
}

/// The samples taken last. Sets are named by step, so the last in text order is the newest.
fn samples(dir: &Path) -> Result<Vec<Sample>, TrainError> {
    let sorted = |folder: &Path| {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths
    };
    let Some(newest) = sorted(&dir.join("samples"))
        .into_iter()
        .rfind(|path| path.is_dir())
    else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for path in sorted(&newest) {
        let small =
            fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= MAX_SAMPLE_BYTES);
        let extension = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        let kinds = ["png", "svg", "txt"];
        if !small || !kinds.contains(&extension.as_str()) || found.len() == MAX_SAMPLES {
            continue;
        }
        let bytes = fs::read(&path).map_err(TrainError::io("read", &path))?;
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let embedded = |kind: &str| Some(format!("data:image/{kind};base64,{}", base64(&bytes)));
        found.push(match extension.as_str() {
            "png" => Sample {
                name,
                image: embedded("png"),
                text: None,
            },
            "svg" => Sample {
                name,
                image: embedded("svg+xml"),
                text: None,
            },
            _ => {
                let text = String::from_utf8_lossy(&bytes)
                    .chars()
                    .take(MAX_SAMPLE_CHARS)
                    .collect();
                Sample {
                    name,
                    image: None,
                    text: Some(text),
                }
            }
        });
    }
    Ok(found)
}

/// The model's files with their SHA-256.
fn files(dir: &Path) -> Result<BTreeMap<String, String>, TrainError> {
    const MODEL: [&str; 4] = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    let mut hashes = BTreeMap::new();
    for name in MODEL {
        if dir.join(name).is_file() {
            hashes.insert(name.into(), sha256_file(&dir.join(name))?);
        }
    }
    Ok(hashes)
}

fn figure(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-3..1e6).contains(&size) => format!("{value:.3e}"),
        size if size >= 1000.0 || value.fract() == 0.0 => format!("{value:.1}").replace(".0", ""),
        _ => format!("{value:.4}"),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// Bytes as base64 text (RFC 4648, section 4), for pictures inside a page.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            out.push(match place <= chunk.len() {
                true => ALPHABET[(word >> (18 - 6 * place) & 63) as usize] as char,
                false => '=',
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_test_vectors() {
        // RFC 4648, section 10.
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn figures_and_durations_are_for_people() {
        assert_eq!(figure(105.97321), "105.9732");
        assert_eq!(figure(8.0), "8");
        assert_eq!(figure(0.00012), "1.200e-4");
        assert_eq!(duration(3671.0), "1 h 1 min");
        assert_eq!(duration(12.3), "12 s");
    }

    #[test]
    fn published_numbers_say_whether_they_are_reached() {
        let recipe: toml::Table =
            "[published.loss]\nvalue = 1.88\nsource = \"nanoGPT\"\n[published.accuracy]\nvalue = 0.985\nsource = \"x\"\nbetter = \"higher\"\n"
                .parse()
                .unwrap();
        let result = RunResult {
            run: "run".into(),
            steps: 1,
            seconds: 1.0,
            metrics: BTreeMap::from([
                ("loss".into(), 1.9),
                ("accuracy".into(), 0.99),
                ("kl".into(), 3.0),
            ]),
            signatures: BTreeMap::new(),
        };
        let rows = rows(&result, &published(&recipe));
        let reached: Vec<Option<bool>> = rows.iter().map(|row| row.reached).collect();
        assert_eq!(reached, [Some(true), None, Some(false)]);
    }
}
