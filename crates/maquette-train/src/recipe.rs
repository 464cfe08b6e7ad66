//! Reading a recipe: TOML text to a typed value, with errors that point at the line.

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::spec::Invalid;

/// Recipes are pages, not data: anything longer is a mistake.
const MAX_BYTES: usize = 1 << 20;

/// What is wrong with a recipe, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct RecipeError {
    /// The recipe's name or path, or `--set`.
    pub name: String,
    /// The text in which `span` points: the recipe, or the one `key=value` of a `--set`.
    pub text: String,
    /// The bytes of `text` at fault.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what to do.
    pub help: Option<String>,
}

impl RecipeError {
    /// Line and column of the fault, both counted from 1.
    pub fn position(&self) -> Option<(usize, usize)> {
        let before = self.text.get(..self.span.as_ref()?.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        Some((line, column))
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some((line, column)) = self.position() {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

/// A recipe's text with the `--set` overrides of the command line.
#[derive(Debug, Clone)]
pub struct Source {
    name: String,
    text: String,
    sets: Vec<(String, String)>,
}

/// Parses `text` as `T` with `sets` applied. See [`Source::parse`].
///
/// # Errors
/// [`RecipeError`] pointing at the line or at the `--set`.
pub fn parse<T: DeserializeOwned>(
    name: &str,
    text: &str,
    sets: &[(String, String)],
) -> Result<T, RecipeError> {
    Source::new(name, text, sets).parse()
}

/// The resolved recipe: `recipe` as TOML, every default written out.
///
/// # Errors
/// A message when a value has no TOML form (an integer above 2^63).
pub fn resolved<T: Serialize>(recipe: &T) -> Result<String, RecipeError> {
    toml::to_string_pretty(recipe).map_err(|error| RecipeError {
        name: "recipe".into(),
        text: String::new(),
        span: None,
        message: error.to_string(),
        help: None,
    })
}

impl Source {
    /// A recipe called `name` (for messages) with the text `text` and overrides `key.path=value`.
    pub fn new(name: &str, text: &str, sets: &[(String, String)]) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            sets: sets.to_vec(),
        }
    }

    /// One top-level string of the text, such as `family` or `summary`, before the rest is typed.
    ///
    /// # Errors
    /// The text is not TOML, or has no such string.
    pub fn top(&self, key: &str) -> Result<String, RecipeError> {
        let table = self.table()?;
        match table.get(key) {
            Some(toml::Value::String(value)) => Ok(value.clone()),
            Some(_) => Err(self.at(key, format!("`{key}` must be a string"), None)),
            None => Err(self.at(
                key,
                format!("`{key}` is missing"),
                Some(format!("add a line `{key} = \"...\"` at the top")),
            )),
        }
    }

    /// The recipe as `T`: first the text alone, then with all overrides, so that an error names the line or
    /// the `--set` that caused it.
    ///
    /// # Errors
    /// Unknown keys and values (with what is allowed), wrong types, missing keys.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, RecipeError> {
        if self.text.len() > MAX_BYTES {
            return Err(self.at("", "the recipe is longer than 1 MiB".into(), None));
        }
        let recipe: T = toml::from_str(&self.text).map_err(|error| self.in_text(&error))?;
        if self.sets.is_empty() {
            return Ok(recipe);
        }
        let mut table = self.table()?;
        let mut steps = Vec::with_capacity(self.sets.len());
        for (key, value) in &self.sets {
            set(&mut table, key, value).map_err(|message| RecipeError {
                name: "--set".into(),
                text: format!("{key}={value}"),
                span: Some(0..key.len()),
                message,
                help: Some("write --set section.key=value".into()),
            })?;
            steps.push(table.clone());
        }
        T::deserialize(table).map_err(|error| {
            // Whoever brought this error in is to blame; what one override lacks a later one may give.
            let same = |table: &toml::Table| {
                let tried = T::deserialize(table.clone());
                tried.is_err_and(|earlier| earlier.message() == error.message())
            };
            let blamed = steps.iter().position(same).unwrap_or(steps.len() - 1);
            let (key, value) = &self.sets[blamed];
            let span = match error.message().starts_with("unknown field") {
                true => 0..key.len(),
                false => 0..key.len() + 1 + value.len(),
            };
            RecipeError {
                name: "--set".into(),
                text: format!("{key}={value}"),
                span: Some(span),
                message: headline(error.message()),
                help: allowed(error.message()),
            }
        })
    }

    /// Gives a value of `section` that cannot be used its line (or its `--set`).
    pub fn locate(&self, section: &str, invalid: Invalid) -> RecipeError {
        let path = match section.is_empty() {
            true => invalid.key.to_owned(),
            false => format!("{section}.{}", invalid.key),
        };
        self.at(&path, invalid.message, Some(invalid.help))
    }

    /// What the library itself says of a whole section.
    ///
    /// # Errors
    /// The section's, at its place.
    pub fn check<E: std::fmt::Display>(
        &self,
        section: &str,
        checked: Result<(), E>,
    ) -> Result<(), RecipeError> {
        checked.map_err(|error| self.at(section, error.to_string(), None))
    }

    /// An error at the value of `path` (`section.key`), in the text or in an override.
    pub fn at(&self, path: &str, message: String, help: Option<String>) -> RecipeError {
        let covers = |key: &str| key == path || path.starts_with(&format!("{key}."));
        if let Some((key, value)) = self.sets.iter().rev().find(|(key, _)| covers(key)) {
            return RecipeError {
                name: "--set".into(),
                text: format!("{key}={value}"),
                span: Some(0..key.len() + 1 + value.len()),
                message,
                help,
            };
        }
        RecipeError {
            name: self.name.clone(),
            text: self.text.clone(),
            span: span_of(&self.text, path),
            message,
            help,
        }
    }

    fn table(&self) -> Result<toml::Table, RecipeError> {
        self.text.parse().map_err(|error| self.in_text(&error))
    }

    fn in_text(&self, error: &toml::de::Error) -> RecipeError {
        RecipeError {
            name: self.name.clone(),
            text: self.text.clone(),
            span: error.span(),
            message: headline(error.message()),
            help: allowed(error.message()),
        }
    }
}

/// Puts `value` at `path`, creating tables on the way.
fn set(table: &mut toml::Table, path: &str, value: &str) -> Result<(), String> {
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(format!("`{path}` is not a key"));
    }
    let last = keys.pop().unwrap_or_default();
    let mut at = table;
    for key in keys {
        at = match at.entry(key).or_insert_with(|| toml::Table::new().into()) {
            toml::Value::Table(inner) => inner,
            _ => return Err(format!("`{key}` in `{path}` is a value, not a section")),
        };
    }
    at.insert(last.into(), typed(value));
    Ok(())
}

/// A TOML value, or the bare text when it is none.
fn typed(value: &str) -> toml::Value {
    format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()))
}

/// The bytes of the value at `path`; of the innermost section that exists when it does not.
fn span_of(text: &str, path: &str) -> Option<Range<usize>> {
    let root = DeTable::parse(text).ok()?;
    let mut span = None;
    let mut at = root.get_ref();
    for key in path.split('.') {
        let Some((name, value)) = at.iter().find(|(name, _)| name.get_ref() == key) else {
            break;
        };
        span = match value.get_ref() {
            DeValue::Table(_) => Some(name.span()),
            _ => Some(value.span()),
        };
        match value.get_ref() {
            DeValue::Table(inner) => at = inner,
            _ => return span,
        }
    }
    span
}

/// The message without the list of what is expected, which goes to the help.
fn headline(message: &str) -> String {
    match message.split_once(", expected ") {
        Some((head, _)) if head.starts_with("unknown ") => head
            .replacen("unknown field", "unknown key", 1)
            .replacen("unknown variant", "unknown value", 1),
        _ => message.to_owned(),
    }
}

/// "did you mean" and the full list, from serde's "unknown .. `x`, expected one of `a`, `b`".
fn allowed(message: &str) -> Option<String> {
    let (head, list) = message
        .split_once(", expected ")
        .filter(|(head, _)| head.starts_with("unknown "))?;
    let given = head.split('`').nth(1)?;
    let known: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
    let list = format!("allowed: {}", known.join(", "));
    Some(match nearest(given, &known) {
        Some(near) => format!("did you mean `{near}`? {list}"),
        None => list,
    })
}

/// The known word closest to `given`, when it is close enough to be a slip.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|word| (edits(given, word), *word))
        .min()
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .map(|(_, word)| word)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// What differs between two resolved recipes, as `key: old -> new`.
pub(crate) fn changes(old: &str, new: &str) -> Vec<String> {
    let flat = |text: &str| {
        let mut keys = std::collections::BTreeMap::new();
        flatten(
            "",
            &toml::Value::Table(text.parse().unwrap_or_default()),
            &mut keys,
        );
        keys
    };
    let (old, new) = (flat(old), flat(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let missing = String::from("(not set)");
    keys.into_iter()
        .map(|key| {
            (
                key,
                old.get(key).unwrap_or(&missing),
                new.get(key).unwrap_or(&missing),
            )
        })
        .filter(|(_, old, new)| old != new)
        .map(|(key, old, new)| format!("{key}: {old} -> {new}"))
        .collect()
}

fn flatten(path: &str, value: &toml::Value, out: &mut std::collections::BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                flatten(&path, value, out);
            }
        }
        value => {
            out.insert(path.into(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::spec::{LoopSpec, OptimizerSpec, ScheduleSpec};

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        family: String,
        summary: String,
        optimizer: OptimizerSpec,
        #[serde(default)]
        schedule: ScheduleSpec,
        train: LoopSpec,
    }

    const TEXT: &str = "family = \"gpt\"\nsummary = \"a test\"\n\n[optimizer]\nkind = \"adamw\"\nlr = 0.001\n\n[train]\nsteps = 10\nbatch = 4\n";

    fn sets(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    fn fails(text: &str, pairs: &[(&str, &str)]) -> RecipeError {
        parse::<Recipe>("test.toml", text, &sets(pairs)).unwrap_err()
    }

    #[test]
    fn overrides_may_need_each_other() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Pair {
            first: u64,
            second: u64,
        }
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Whole {
            pair: Option<Pair>,
        }
        let read = |pairs: &[(&str, &str)]| parse::<Whole>("test.toml", "", &sets(pairs));
        let whole = read(&[("pair.first", "1"), ("pair.second", "2")]).unwrap();
        let pair = Pair {
            first: 1,
            second: 2,
        };
        assert_eq!(whole.pair, Some(pair));
        let error = read(&[("pair.first", "1")]).unwrap_err();
        assert!(error.message.contains("missing field `second`"));
        let error = read(&[
            ("pair.first", "1"),
            ("pair.third", "2"),
            ("pair.second", "3"),
        ]);
        assert_eq!(error.unwrap_err().text, "pair.third=2");
    }

    #[test]
    fn overrides_are_toml_values_or_bare_words() {
        let pairs = sets(&[
            ("optimizer.lr", "3e-4"),
            ("optimizer.kind", "muon"),
            ("optimizer.betas", "[0.9, 0.95]"),
            ("schedule.kind", "cosine"),
        ]);
        let recipe: Recipe = parse("t", TEXT, &pairs).unwrap();
        assert_eq!(recipe.optimizer.lr, 3e-4);
        assert_eq!(recipe.optimizer.kind, crate::spec::OptimizerKind::Muon);
        assert_eq!(recipe.optimizer.betas, Some([0.9, 0.95]));
    }

    #[test]
    fn an_unknown_key_points_at_its_line_and_suggests() {
        let error = fails(&TEXT.replace("steps", "stepz"), &[]);
        assert_eq!(error.position(), Some((9, 1)));
        assert_eq!(error.message, "unknown key `stepz`");
        assert!(
            error
                .help
                .as_ref()
                .unwrap()
                .starts_with("did you mean `steps`?")
        );
        assert!(error.to_string().starts_with("test.toml:9:1: unknown key"));
    }

    #[test]
    fn an_unknown_value_points_at_the_value() {
        let error = fails(&TEXT.replace("\"adamw\"", "\"adamx\""), &[]);
        assert_eq!(error.position(), Some((5, 8)));
        assert!(error.message.contains("unknown value `adamx`"));
        assert!(error.help.unwrap().contains("sgd"));
    }

    #[test]
    fn a_bad_override_is_named() {
        let error = fails(TEXT, &[("train.steps", "5"), ("train.stepz", "5")]);
        assert_eq!(
            (error.name.as_str(), error.text.as_str()),
            ("--set", "train.stepz=5")
        );
        assert!(error.help.unwrap().contains("did you mean `steps`?"));
        let error = fails(TEXT, &[("train.steps", "many")]);
        assert!(error.message.contains("invalid type"), "{error}");
        assert!(
            fails(TEXT, &[("family.x", "1")])
                .message
                .contains("is a value")
        );
        assert!(
            fails(TEXT, &[("train..steps", "1")])
                .message
                .contains("not a key")
        );
    }

    #[test]
    fn text_that_is_not_toml_missing_keys_and_wrong_types_have_lines() {
        assert_eq!(fails("family = \n", &[]).position().unwrap().0, 1);
        assert!(
            fails(&TEXT.replace("lr = 0.001\n", ""), &[])
                .message
                .contains("missing field `lr`")
        );
        assert_eq!(
            fails(&TEXT.replace("0.001", "\"fast\""), &[]).position(),
            Some((6, 6))
        );
        assert!(
            fails(&"#".repeat(MAX_BYTES + 1), &[])
                .message
                .contains("1 MiB")
        );
    }

    #[test]
    fn a_value_that_cannot_be_used_gets_its_line() {
        let text = TEXT.replace("steps = 10", "steps = 0");
        let source = Source::new("test.toml", &text, &[]);
        let recipe: Recipe = source.parse().unwrap();
        let error = source.locate("train", recipe.train.validate().unwrap_err());
        assert_eq!(error.position(), Some((9, 9)));
        let source = Source::new("test.toml", TEXT, &sets(&[("train.batch", "0")]));
        let recipe: Recipe = source.parse().unwrap();
        let error = source.locate("train", recipe.train.validate().unwrap_err());
        assert_eq!(error.text, "train.batch=0");
    }

    #[test]
    fn the_resolved_recipe_parses_to_itself() {
        let recipe: Recipe = parse("t", TEXT, &[]).unwrap();
        let text = resolved(&recipe).unwrap();
        assert!(text.contains("keep_checkpoints = 3"));
        assert_eq!(parse::<Recipe>("t", &text, &[]).unwrap(), recipe);
        assert_eq!(Source::new("t", &text, &[]).top("family").unwrap(), "gpt");
        assert!(Source::new("t", "a = 1", &[]).top("family").is_err());
    }

    #[test]
    fn changes_name_keys_and_both_values() {
        let new = TEXT
            .replace("lr = 0.001", "lr = 0.01")
            .replace("batch = 4\n", "");
        assert_eq!(
            changes(TEXT, &new),
            ["optimizer.lr: 0.001 -> 0.01", "train.batch: 4 -> (not set)"]
        );
    }

    #[test]
    fn edit_distance() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(nearest("lernrate", &["steps", "batch"]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_and_no_override_panics(text in ".{0,200}", key in ".{0,20}", value in ".{0,20}") {
            let pairs = [(key, value)];
            let _ = parse::<Recipe>("t", &text, &pairs);
            if let Err(error) = parse::<Recipe>("t", TEXT, &pairs) {
                let _ = error.to_string();
            }
            let _ = Source::new("t", &text, &pairs).at("train.steps", String::new(), None).position();
        }
    }
}
