//! Generated text: how close it comes to what people wrote, how varied it is, how much it repeats
//! itself, and how much of it is copied.
//!
//! [`Bleu`], [`Chrf`], [`Ter`] and [`Rouge`] compare strings with references and equal sacreBLEU
//! 2.6.0 (Post 2018, arXiv 1804.08771) and rouge-score 0.1.2; each has a `signature` that says
//! with which settings. In a corpus, `references[i]` are those of `hypotheses[i]`, one or more.
//! [`exact_match`] and [`token_f1`] judge short answers. The others work on sequences of token
//! ids (or of words or characters mapped to ids); their values depend on the tokenizer, which
//! belongs into the signature.

mod answers;
mod bleu;
mod chrf;
mod copies;
mod diversity;
mod porter;
mod rouge;
mod ter;
mod tokenize;

pub use answers::{exact_match, token_f1};
pub use bleu::{Bleu, BleuCounts, BleuScore, Smoothing, bleu};
pub use chrf::{Chrf, ChrfCounts};
pub use copies::NgramIndex;
pub use diversity::{distinct_n, repetition, self_bleu};
pub use porter::stem;
pub use rouge::{Rouge, RougeScore, RougeScores};
pub use ter::{Ter, TerCounts};
pub use tokenize::BleuTokenizer;

use crate::EvalError;
use crate::error::{at_least, same};
use std::collections::HashMap;
use std::hash::Hash;

/// How often each run of `n` items occurs.
fn ngrams<T: Eq + Hash>(items: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for gram in items.windows(n) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// The n-grams that two counts share.
fn shared<T: Eq + Hash>(left: &HashMap<&[T], usize>, right: &HashMap<&[T], usize>) -> usize {
    left.iter()
        .map(|(gram, &count)| count.min(right.get(gram).copied().unwrap_or(0)))
        .sum()
}

/// What `counts` gives for every segment of a corpus.
fn segments<C>(
    hypotheses: &[&str],
    references: &[Vec<&str>],
    counts: impl Fn(&str, &[&str]) -> Result<C, EvalError>,
) -> Result<Vec<C>, EvalError> {
    at_least("segments", 1, hypotheses.len())?;
    same(
        "hypotheses and references",
        hypotheses.len(),
        references.len(),
    )?;
    hypotheses
        .iter()
        .zip(references)
        .map(|(hypothesis, references)| counts(hypothesis, references))
        .collect()
}

/// A signature in sacreBLEU's form: the number of references of every segment (`var` where it
/// differs), the settings, the version of the definition and, in a field of its own, of Maquette.
fn signature(references: &[Vec<&str>], settings: &str, version: &str) -> String {
    let mut counts = references.iter().map(Vec::len);
    let first = counts.next().unwrap_or(0);
    let nrefs = match counts.all(|count| count == first) {
        true => first.to_string(),
        false => "var".to_owned(),
    };
    let own = env!("CARGO_PKG_VERSION");
    format!("nrefs:{nrefs}|{settings}|version:{version}|maquette:{own}")
}

/// The version of sacreBLEU whose definitions [`Bleu`], [`Chrf`] and [`Ter`] follow.
const SACREBLEU: &str = "2.6.0";

fn yes(setting: bool) -> &'static str {
    if setting { "yes" } else { "no" }
}
