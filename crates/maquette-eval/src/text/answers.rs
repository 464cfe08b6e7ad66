//! Short answers, judged as SQuAD judges them.

use crate::EvalError;
use crate::error::at_least;
use regex::{Captures, Regex};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Whether the answer equals one of the references once both are lower-cased and rid of ASCII
/// punctuation, of the articles *a*, *an* and *the* and of extra spaces (Rajpurkar et al. 2016,
/// arXiv 1606.05250).
///
/// # Errors
/// No references.
pub fn exact_match(answer: &str, references: &[&str]) -> Result<bool, EvalError> {
    at_least("references", 1, references.len())?;
    let answer = normalized(answer);
    Ok(references.iter().any(|r| normalized(r) == answer))
}

/// The F1 of the words that the answer shares with a reference, both normalised as for
/// [`exact_match`], from 0 to 1: the best over the references. Where either has no words it is 1
/// if both have none, else 0 (Rajpurkar et al. 2018, arXiv 1806.03822).
///
/// # Errors
/// No references.
pub fn token_f1(answer: &str, references: &[&str]) -> Result<f64, EvalError> {
    at_least("references", 1, references.len())?;
    let answer = normalized(answer);
    let f1 = |reference: &&str| {
        let reference = normalized(reference);
        if answer.is_empty() || reference.is_empty() {
            return f64::from(u8::from(answer == reference));
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        for word in &reference {
            *left.entry(word).or_insert(0) += 1;
        }
        let mut hits = 0;
        for word in &answer {
            if let Some(count @ 1..) = left.get_mut(word.as_str()) {
                *count -= 1;
                hits += 1;
            }
        }
        2.0 * f64::from(hits) / (answer.len() + reference.len()) as f64
    };
    Ok(references.iter().map(f1).fold(0.0, f64::max))
}

fn normalized(text: &str) -> Vec<String> {
    static WORD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{L}\p{N}]+").expect("a constant pattern"));
    let mut text = text.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    let text = WORD.replace_all(&text, |word: &Captures<'_>| match &word[0] {
        "a" | "an" | "the" => " ".to_owned(),
        other => other.to_owned(),
    });
    super::tokenize::words(&text).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_hand() {
        assert!(exact_match("The  Cat!", &["dog", "a cat"]).unwrap());
        assert!(!exact_match("cats", &["cat"]).unwrap());
        // Shared: red, bowl; of 3 and 2 words.
        assert_eq!(token_f1("a red clay bowl", &["red bowl"]).unwrap(), 0.8);
        assert_eq!(token_f1("the", &["an"]).unwrap(), 1.0);
        assert_eq!(token_f1("", &["x"]).unwrap(), 0.0);
        assert!(exact_match("x", &[]).is_err());
        assert!(token_f1("x", &[]).is_err());
    }
}
