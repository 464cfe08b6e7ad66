//! Beam search: several texts at once, of which the most probable go on.

use serde::{Deserialize, Serialize};

use super::{Extend, Read, check_prompt};
use crate::GenerateError;
use crate::sampling::log_softmax;

/// When a search ends that has as many finished texts as beams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EarlyStopping {
    /// When no open text could beat the worst finished one if it ended now.
    #[default]
    Estimate,
    /// At once.
    AtOnce,
    /// When no open text could beat the worst finished one at any length.
    Never,
}

/// How beams are searched, with the defaults of `transformers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BeamOptions {
    /// How many texts at once.
    pub beams: usize,
    /// A text's score is its log-probability over its length to this power: above 0 long texts gain.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// The most tokens after the prompt.
    pub max_tokens: usize,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
}

impl Default for BeamOptions {
    fn default() -> Self {
        Self {
            beams: 4,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Estimate,
            max_tokens: 256,
            end_tokens: Vec::new(),
        }
    }
}

/// A text that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens after the prompt, with the token that ended it.
    pub ids: Vec<u32>,
    /// Its log-probability over its length to the power of the length penalty.
    pub score: f64,
    /// Its log-probability.
    pub log_prob: f64,
}

/// A text that goes on.
#[derive(Debug, Clone, Default)]
struct Beam {
    ids: Vec<u32>,
    log_prob: f64,
}

/// A token after one of the open texts, and the log-probability of both.
#[derive(Debug, Clone, Copy)]
struct Step {
    parent: usize,
    token: u32,
    log_prob: f64,
}

/// The texts that beam search finds after `prompt`, best first, at most as many as beams.
///
/// As `transformers` does: of every step's best continuations, twice as many as beams or more where
/// several tokens can end a text, those that end and are among the first `beams` are finished, and the
/// first `beams` of the others go on. At `max_tokens` what is open counts as finished.
///
/// # Errors
/// An option out of range, an empty prompt, no room for `max_tokens` in the `context`, or what `read`
/// reports.
pub fn beam_search(
    mut read: impl FnMut(Extend<'_>) -> Result<Read, GenerateError>,
    prompt: &[u32],
    context: usize,
    options: &BeamOptions,
) -> Result<Vec<Hypothesis>, GenerateError> {
    options.check()?;
    check_prompt(prompt, options.max_tokens, context)?;
    let beams = options.beams;
    let width = beams.saturating_mul((1 + options.end_tokens.len()).max(2));
    let mut finished: Vec<Hypothesis> = Vec::new();
    let mut open = vec![Beam::default()];
    let (mut parents, mut tokens) = (Vec::new(), prompt.to_vec());
    for length in 1..=options.max_tokens {
        // 1. The best continuations of all open texts.
        let said = read(Extend {
            parents: &parents,
            tokens: &tokens,
        })?;
        let best = continuations(&open, &said.logits, width)?;
        // 2. What ends is finished if it is among the best; the best of the rest go on.
        let last = length == options.max_tokens;
        let ends = |step: &&Step| last || options.end_tokens.contains(&step.token);
        let grown = |step: &Step| Beam {
            ids: [open[step.parent].ids.as_slice(), &[step.token]].concat(),
            log_prob: step.log_prob,
        };
        let ended = best.iter().take(beams).filter(ends).map(grown);
        finished.extend(ended.map(|beam| Hypothesis::of(beam, options.length_penalty)));
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(beams);
        let next: Vec<&Step> = best.iter().filter(|step| !ends(step)).take(beams).collect();
        parents = next.iter().map(|step| step.parent).collect();
        tokens = next.iter().map(|step| step.token).collect();
        open = next.into_iter().map(grown).collect();
        // 3. Whether more steps can change what is found.
        if !options.may_improve(&finished, &open, length) {
            break;
        }
    }
    Ok(finished)
}

impl Hypothesis {
    fn of(beam: Beam, length_penalty: f64) -> Self {
        let Beam { ids, log_prob } = beam;
        Self {
            score: log_prob / (ids.len() as f64).powf(length_penalty),
            ids,
            log_prob,
        }
    }
}

impl BeamOptions {
    fn check(&self) -> Result<(), GenerateError> {
        let out_of_range = |option, value: f64, allowed| {
            let value = value.to_string();
            Err(GenerateError::Option {
                option,
                value,
                allowed,
            })
        };
        match (self.beams, self.length_penalty) {
            (0, _) => out_of_range("beams", 0.0, "1 or more"),
            (_, penalty) if !penalty.is_finite() => {
                out_of_range("length_penalty", penalty, "a number")
            }
            _ => Ok(()),
        }
    }

    /// Whether an open text of `length` tokens might still come among the finished ones.
    fn may_improve(&self, finished: &[Hypothesis], open: &[Beam], length: usize) -> bool {
        let Some(best) = open.first() else {
            return false;
        };
        let Some(worst) = finished.last().filter(|_| finished.len() == self.beams) else {
            return true;
        };
        let length = match self.early_stopping {
            EarlyStopping::AtOnce => return false,
            EarlyStopping::Never if self.length_penalty > 0.0 => self.max_tokens,
            _ => length,
        };
        best.log_prob / (length as f64).powf(self.length_penalty) > worst.score
    }
}

/// The `width` most probable tokens after any of the open texts, best first.
fn continuations(
    open: &[Beam],
    logits: &[Vec<f32>],
    width: usize,
) -> Result<Vec<Step>, GenerateError> {
    let mut steps = Vec::new();
    for (parent, (beam, logits)) in open.iter().zip(logits).enumerate() {
        if let Some(token) = logits.iter().position(|l| l.is_nan()) {
            return Err(GenerateError::NotANumber { token });
        }
        let log_probs = log_softmax(logits);
        let possible = (0u32..).zip(log_probs).filter(|(_, p)| p.is_finite());
        steps.extend(possible.map(|(token, log_prob)| Step {
            parent,
            token,
            log_prob: beam.log_prob + f64::from(log_prob),
        }));
    }
    if steps.is_empty() {
        let vocab_size = logits.first().map_or(0, Vec::len);
        return Err(GenerateError::NothingPossible { vocab_size });
    }
    let better = |a: &Step, b: &Step| {
        let places = (a.parent, a.token).cmp(&(b.parent, b.token));
        b.log_prob.total_cmp(&a.log_prob).then(places)
    };
    if width < steps.len() {
        steps.select_nth_unstable_by(width - 1, better);
        steps.truncate(width);
    }
    steps.sort_unstable_by(better);
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::testing::{TREE, tree};

    fn search(options: &BeamOptions) -> Vec<Hypothesis> {
        beam_search(tree(), &[0], 10, options).unwrap()
    }

    #[test]
    fn enough_beams_find_the_most_probable_text_of_all() {
        // Of all texts of three tokens, by going through them.
        let mut all: Vec<(f64, Vec<u32>)> = Vec::new();
        for text in 0..TREE.pow(3) {
            let ids: Vec<u32> = (0..3).map(|i| (text / TREE.pow(i) % TREE) as u32).collect();
            let mut read = tree();
            let mut said = read(Extend {
                parents: &[],
                tokens: &[0],
            });
            let mut log_prob = 0.0;
            for &id in &ids {
                log_prob += f64::from(log_softmax(&said.unwrap().logits[0])[id as usize]);
                said = read(Extend {
                    parents: &[0],
                    tokens: &[id],
                });
            }
            all.push((log_prob, ids));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let options = BeamOptions {
            beams: TREE.pow(2),
            max_tokens: 3,
            ..BeamOptions::default()
        };
        let found = search(&options);
        for (found, (log_prob, ids)) in found.iter().zip(&all) {
            assert_eq!(&found.ids, ids);
            assert!((found.log_prob - log_prob).abs() < 1e-5);
        }
        // One beam is greedy, and finds less.
        let greedy = search(&BeamOptions {
            beams: 1,
            ..options
        });
        assert_eq!(greedy.len(), 1);
        assert!(greedy[0].log_prob <= found[0].log_prob);
    }

    #[test]
    fn a_length_penalty_changes_which_text_wins() {
        let ends = |length_penalty| BeamOptions {
            beams: 3,
            length_penalty,
            max_tokens: 6,
            end_tokens: vec![1],
            ..BeamOptions::default()
        };
        let lengths = |penalty| search(&ends(penalty))[0].ids.len();
        assert!(lengths(-2.0) < lengths(3.0));
        let by_score = search(&ends(1.0));
        assert!(
            by_score
                .windows(2)
                .all(|pair| pair[0].score >= pair[1].score)
        );
    }

    #[test]
    fn bad_requests_are_named() {
        let message = |prompt: &[u32], options: BeamOptions| {
            beam_search(tree(), prompt, 10, &options)
                .unwrap_err()
                .to_string()
        };
        let plain = BeamOptions {
            max_tokens: 3,
            ..BeamOptions::default()
        };
        let none = BeamOptions {
            beams: 0,
            ..plain.clone()
        };
        assert!(message(&[0], none).contains("beams"));
        assert!(message(&[], plain.clone()).contains("no token"));
        assert!(message(&[0; 9], plain).contains("context of 10"));
    }
}
