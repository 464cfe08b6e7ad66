//! Contrastive search: among the probable tokens the one whose features are new.

use super::{Extend, Read, check_prompt};
use crate::GenerateError;
use crate::sampling::log_softmax;

/// How the next token is searched.
#[derive(Debug, Clone, PartialEq)]
pub struct ContrastiveOptions {
    /// How many of the most probable tokens are compared.
    pub top_k: usize,
    /// How much sameness costs, from 0 (greedy) to 1.
    pub penalty_alpha: f64,
    /// The most tokens after the prompt.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub end_tokens: Vec<u32>,
}

/// Contrastive search (Su et al. 2022, arXiv 2202.06417, eq. 5): the next token is the one of the
/// `top_k` most probable with the largest `(1 - alpha) p - alpha s`, where `s` is the largest cosine
/// between its features and those of any token before. Returns the tokens after `prompt`, with the one
/// that ended the text.
///
/// # Errors
/// An option out of range, an empty prompt, no room for `max_tokens` in the `context`, or what `read`
/// reports.
pub fn contrastive_search(
    mut read: impl FnMut(Extend<'_>) -> Result<Read, GenerateError>,
    prompt: &[u32],
    context: usize,
    options: &ContrastiveOptions,
) -> Result<Vec<u32>, GenerateError> {
    options.check()?;
    check_prompt(prompt, options.max_tokens.saturating_add(1), context)?;
    let said = read(Extend {
        parents: &[],
        tokens: prompt,
    })?;
    let mut seen: Vec<Vec<f32>> = said.features.iter().map(|f| unit(f)).collect();
    let (mut row, mut logits) = (0, said.logits.into_iter().next().unwrap_or_default());
    let mut ids = Vec::new();
    while ids.len() < options.max_tokens {
        // 1. The most probable tokens, each read after the same text.
        let likely = most_probable(&logits, options.top_k)?;
        let tokens: Vec<u32> = likely.iter().map(|(token, _)| *token).collect();
        let said = read(Extend {
            parents: &vec![row; tokens.len()],
            tokens: &tokens,
        })?;
        // 2. Confidence against the degeneration penalty.
        let features: Vec<Vec<f32>> = said.features.iter().map(|f| unit(f)).collect();
        let score = |i: usize| {
            let same = seen.iter().map(|past| dot(&features[i], past));
            let same = same.fold(f64::NEG_INFINITY, f64::max);
            (1.0 - options.penalty_alpha) * likely[i].1 - options.penalty_alpha * same
        };
        let better = |a: &usize, b: &usize| score(*a).total_cmp(&score(*b)).then(b.cmp(a));
        row = (0..tokens.len()).max_by(better).unwrap_or(0);
        // 3. On with it.
        ids.push(tokens[row]);
        if options.end_tokens.contains(&tokens[row]) {
            break;
        }
        seen.push(features[row].clone());
        logits.clone_from(&said.logits[row]);
    }
    Ok(ids)
}

impl ContrastiveOptions {
    fn check(&self) -> Result<(), GenerateError> {
        let alpha = self.penalty_alpha;
        let (option, value, allowed) = match self.top_k {
            0 => ("top_k", 0.0, "1 or more"),
            _ if !(0.0..=1.0).contains(&alpha) => ("penalty_alpha", alpha, "from 0 to 1"),
            _ => return Ok(()),
        };
        Err(GenerateError::Option {
            option,
            value: value.to_string(),
            allowed,
        })
    }
}

/// The `k` most probable tokens and their probabilities, best first.
fn most_probable(logits: &[f32], k: usize) -> Result<Vec<(u32, f64)>, GenerateError> {
    if let Some(token) = logits.iter().position(|l| l.is_nan()) {
        return Err(GenerateError::NotANumber { token });
    }
    let probabilities = log_softmax(logits).into_iter().map(|p| f64::from(p).exp());
    let mut all: Vec<(u32, f64)> = (0..).zip(probabilities).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(k);
    Ok(all)
}

/// The features over their length, so that products are cosines.
fn unit(features: &[f32]) -> Vec<f32> {
    let length = dot(features, features).sqrt().max(f64::MIN_POSITIVE);
    let scaled = |f: &f32| (f64::from(*f) / length) as f32;
    features.iter().map(scaled).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::testing::tree;

    fn options(top_k: usize, penalty_alpha: f64) -> ContrastiveOptions {
        ContrastiveOptions {
            top_k,
            penalty_alpha,
            max_tokens: 5,
            end_tokens: vec![],
        }
    }

    fn search(options: &ContrastiveOptions) -> Vec<u32> {
        contrastive_search(tree(), &[0, 3], 20, options).unwrap()
    }

    /// The definition, without a cache: every candidate's text is read from its beginning.
    fn literally(k: usize, alpha: f64) -> Vec<u32> {
        let said = |text: &[u32]| {
            let prompt = Extend {
                parents: &[],
                tokens: text,
            };
            tree()(prompt).unwrap()
        };
        let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        let mut text = vec![0, 3];
        for _ in 0..5 {
            let now = said(&text);
            let logits: Vec<f64> = now.logits[0].iter().map(|l| f64::from(*l).exp()).collect();
            let total: f64 = logits.iter().sum();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let mut best = (f64::NEG_INFINITY, 0);
            for &token in &order[..k] {
                let longer = said(&[text.as_slice(), &[token as u32]].concat());
                let (new, past) = longer.features.split_last().unwrap();
                let same = past.iter().map(|p| cosine(new, p)).fold(-2.0, f64::max);
                let score = (1.0 - alpha) * logits[token] / total - alpha * same;
                if score > best.0 {
                    best = (score, token as u32);
                }
            }
            text.push(best.1);
        }
        text.split_off(2)
    }

    #[test]
    fn the_definition_is_kept() {
        for (k, alpha) in [(1, 0.6), (3, 0.0), (3, 0.4), (5, 0.6), (5, 1.0)] {
            assert_eq!(
                search(&options(k, alpha)),
                literally(k, alpha),
                "{k}, {alpha}"
            );
        }
        // Without a penalty it is greedy, whatever the number of candidates.
        assert_eq!(search(&options(4, 0.0)), search(&options(1, 0.5)));
    }

    #[test]
    fn bad_requests_are_named() {
        let message = |options: ContrastiveOptions| {
            let found = contrastive_search(tree(), &[0], 20, &options);
            found.unwrap_err().to_string()
        };
        assert!(message(options(0, 0.5)).contains("top_k"));
        assert!(message(options(3, 1.5)).contains("penalty_alpha"));
    }
}
