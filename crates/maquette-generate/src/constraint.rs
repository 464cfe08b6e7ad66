//! Text that must have a form: a JSON schema, a regular expression, a grammar, a choice.
//!
//! The `llguidance` crate says which tokens may come next; [`TokenSampler`](crate::sampling::TokenSampler)
//! draws among them. What is drawn in the end is in the form, whatever the model.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use maquette_data::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::GenerateError;

/// The form that a text must have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// JSON that a schema describes, on one line and with at most six digits after a point unless its
    /// `x-guidance` says otherwise.
    JsonSchema(Value),
    /// A regular expression matches the whole text (syntax of the `regex` crate, without look-around).
    Regex(String),
    /// A grammar in llguidance's dialect of Lark; its rule `start` is the text.
    Grammar(String),
    /// One of these texts.
    Choices(Vec<String>),
}

impl Form {
    /// What it is called on the command line.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Grammar(_) => "grammar",
            Self::Choices(_) => "list of choices",
        }
    }

    fn compile(&self) -> Result<TopLevelGrammar, String> {
        match self {
            Self::JsonSchema(schema) => bounded(schema).map(TopLevelGrammar::from_json_schema),
            Self::Regex(pattern) => Ok(TopLevelGrammar::from_regex(pattern)),
            Self::Grammar(lark) if lark.len() > LONGEST => {
                Err(format!("it has {} bytes, more than {LONGEST}", lark.len()))
            }
            Self::Grammar(lark) => Ok(TopLevelGrammar::from_lark(lark.clone())),
            Self::Choices(choices) if choices.iter().any(String::is_empty) => {
                Err("a choice is empty".to_owned())
            }
            Self::Choices(choices) if choices.is_empty() => Err("no choice is given".to_owned()),
            Self::Choices(choices) => {
                // A JSON string is a Lark string.
                let quoted: Vec<String> = choices.iter().map(|c| json!(c).to_string()).collect();
                let lark = format!("start: {}", quoted.join(" | "));
                Ok(TopLevelGrammar::from_lark(lark))
            }
        }
    }
}

/// Longest grammar in bytes: the library follows one rule to the next by recursion.
const LONGEST: usize = 1 << 16;

/// The schema with what has no end bounded: white space to one space after a comma or colon, numbers to
/// six digits after the point. A model that likes spaces or zeros could otherwise go on with them for
/// ever. A schema with `x-guidance`, the library's own settings, is taken as it is.
fn bounded(schema: &Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        other => return Err(format!("a schema is an object or `true`, not `{other}`")),
    };
    if schema.get("x-guidance").is_none() {
        bound_numbers(&mut schema);
        schema["x-guidance"] = json!({
            "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
        });
    }
    Ok(schema)
}

/// Gives numbers without a grid a fine one.
fn bound_numbers(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(bound_numbers),
        Value::Object(keywords) => {
            let number = |kind: &Value| kind == "number";
            let kind = keywords.get("type");
            let any = kind.is_some_and(|kind| {
                number(kind) || kind.as_array().is_some_and(|all| all.iter().any(number))
            });
            if any && !keywords.contains_key("multipleOf") {
                keywords.insert("multipleOf".into(), json!(1e-6));
            }
            let inner = keywords.iter_mut();
            // What stands there are values, not schemas.
            let schemas =
                inner.filter(|(key, _)| !["enum", "const", "default"].contains(&key.as_str()));
            schemas.for_each(|(_, schema)| bound_numbers(schema));
        }
        _ => {}
    }
}

/// A tokenizer's vocabulary, prepared for constraints; costs a moment, so once for a model.
#[derive(Clone)]
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
    /// Tokens that end a text.
    end_tokens: Arc<[u32]>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vocabulary")
    }
}

impl Vocabulary {
    /// Prepares the vocabulary of `tokenizer`; its end-of-text token and `end_tokens` may be drawn
    /// where the form is complete.
    ///
    /// # Errors
    /// [`GenerateError::Tokenizer`] when the bytes of its tokens depend on their neighbours.
    pub fn new(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<Self, GenerateError> {
        let tokenizer_error = |e: String| GenerateError::Tokenizer(e);
        let bytes = tokenizer
            .token_bytes()
            .map_err(|e| tokenizer_error(e.to_string()))?;
        // A special token may stand in a grammar under its name; the library marks it by a byte
        // that is in no text, so that no token of text may begin with that byte.
        let marker = TokTrie::SPECIAL_TOKEN_MARKER;
        let mut words: Vec<Vec<u8>> = bytes
            .into_iter()
            .map(|word| {
                word.filter(|w| w.first() != Some(&marker))
                    .unwrap_or_default()
            })
            .collect();
        let special = tokenizer.special_tokens();
        for (name, id) in &special {
            words[*id as usize] = [&[marker][..], name.as_bytes()].concat();
        }
        let mut ends: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        let known = end_tokens.iter().filter(|id| (**id as usize) < words.len());
        ends.extend(known);
        ends.dedup();
        if ends.is_empty() {
            // The library needs one; a token that the model cannot draw.
            ends.push(words.len() as u32);
            words.push([&[marker][..], b"<end>"].concat());
        }
        let info = TokRxInfo::new(words.len() as u32, ends[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&env).map_err(|e| tokenizer_error(e.to_string()))?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Self {
            factory: Arc::new(factory),
            end_tokens: ends.into(),
        })
    }

    /// A constraint at the beginning of a text.
    ///
    /// # Errors
    /// [`GenerateError::Form`] when the form is not understood: what, and where.
    pub fn constraint(&self, form: &Form) -> Result<Constraint, GenerateError> {
        let failed = |what: String| GenerateError::Form {
            form: form.name(),
            what,
        };
        let grammar = form.compile().map_err(failed)?;
        let parser = self.factory.create_parser(grammar);
        let parser = parser.map_err(|e| failed(format!("{e:#}")))?;
        Ok(Constraint {
            matcher: Matcher::new(Ok(parser)),
            end_tokens: self.end_tokens.clone(),
            ended: false,
        })
    }
}

/// How far a text has come towards its form: one text's state.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    end_tokens: Arc<[u32]>,
    ended: bool,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint")
            .field("complete", &self.complete())
            .finish_non_exhaustive()
    }
}

impl Constraint {
    /// Sets the logits of all tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// [`GenerateError::Form`] when no token may come next.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GenerateError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| {
            // The library's name for this stands in its message only.
            match e.to_string() {
                what if what.contains("NoExtensionBias") => failed(NO_TOKEN),
                what => failed(what),
            }
        })?;
        let mut any = false;
        for (id, logit) in logits.iter_mut().enumerate() {
            match id < allowed.len() && allowed.is_allowed(id as u32) {
                true => any = true,
                false => *logit = f32::NEG_INFINITY,
            }
        }
        match any {
            true => Ok(()),
            false => Err(failed(NO_TOKEN)),
        }
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// [`GenerateError::Form`] when it may not come next.
    pub fn take(&mut self, id: u32) -> Result<(), GenerateError> {
        if self.end_tokens.contains(&id) && self.may_end() {
            self.ended = true;
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(failed)
    }

    /// Whether the text is in the form and nothing may follow.
    pub fn complete(&self) -> bool {
        self.ended || self.matcher.stop_reason() == StopReason::NoExtension
    }

    /// Whether the text is in the form.
    pub fn may_end(&mut self) -> bool {
        self.complete() || self.matcher.is_accepting().unwrap_or(false)
    }
}

/// What a vocabulary without some characters comes to.
const NO_TOKEN: &str =
    "no token of the vocabulary may come next: it lacks characters that the form needs";

fn failed(what: impl fmt::Display) -> GenerateError {
    GenerateError::Form {
        form: "constraint",
        what: what.to_string(),
    }
}

#[cfg(test)]
mod tests;
