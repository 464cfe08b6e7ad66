//! YAML as a JSON value: what files of tasks are written in, less anchors and tags.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deeper nesting is refused.
const DEPTH: usize = 32;

/// A sequence or mapping that is still open.
enum Open {
    List(Vec<Value>),
    /// The entries so far, and the key that waits for its value.
    Table(Map<String, Value>, Option<String>),
}

/// The value of the first document.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| e.to_string())?;
        let line = span.start.line();
        let at = |what: &str| format!("line {line}: {what}");
        let tagged = matches!(
            &event,
            Event::Scalar(_, _, _, Some(_))
                | Event::SequenceStart(_, Some(_))
                | Event::MappingStart(_, Some(_))
        );
        let value = match event {
            Event::Alias(_) => return Err(at("aliases are not supported")),
            Event::Scalar(text, style, ..) => match (tagged, keyed(&open)) {
                (true, Some(key)) => {
                    return Err(at(&format!(
                        "`{key}` has a tag: what needs Python is not supported"
                    )));
                }
                (true, None) => return Err(at("tags are not supported")),
                _ => scalar(&text, style),
            },
            _ if tagged => return Err(at("tags are not supported")),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEPTH => {
                return Err(at("nested too deeply"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Table(table, _)) => Value::Object(table),
                None => return Err(at("an end without a beginning")),
            },
            _ => continue,
        };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Table(table, key)) => match (key.take(), value) {
                (None, Value::String(name)) if table.contains_key(&name) => {
                    return Err(at(&format!("`{name}` stands there twice")));
                }
                (None, Value::String(name)) => *key = Some(name),
                (None, other) => *key = Some(other.to_string()),
                (Some(name), value) => {
                    table.insert(name, value);
                }
            },
        }
    }
    Err("there is nothing in it".into())
}

/// The key whose value comes next.
fn keyed(open: &[Open]) -> Option<&str> {
    match open.last() {
        Some(Open::Table(_, key)) => key.as_deref(),
        _ => None,
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => {
            let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
            let number = number.then(|| serde_json::from_str(text).ok()).flatten();
            number
                .filter(Value::is_number)
                .unwrap_or_else(|| Value::String(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_as_json() {
        let text = "# a task\na: 1\nb: [x, 2.5, -3, null, \"4\", True]\nc:\n  - d: |\n      two\n      lines\n    e: {f: '{{g}}'}\n";
        let want = json!({
            "a": 1, "b": ["x", 2.5, -3, null, "4", true],
            "c": [{ "d": "two\nlines\n", "e": { "f": "{{g}}" } }],
        });
        assert_eq!(parse(text).unwrap(), want);
    }

    #[test]
    fn what_is_not_supported_is_an_error() {
        for (text, part) in [
            ("", "nothing"),
            ("a: [", "line"),
            ("a: &x 1\nb: *x", "aliases"),
            ("process_docs: !function u.f", "`process_docs`"),
            ("a: 1\na: 2", "twice"),
            (&"[".repeat(40), "deep"),
            (&"- ".repeat(100_000), "deep"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
