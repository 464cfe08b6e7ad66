//! JSON as Python's `json.dumps` writes it, which models have seen tools in.

use std::fmt::Write;

use serde_json::Value;

/// `value` with a space after commas and colons, or, with an indent, on lines of their own.
pub(super) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut text = String::new();
    write(&mut text, value, indent, 0);
    text
}

fn write(text: &mut String, value: &Value, indent: Option<usize>, depth: usize) {
    // A line of its own for what stands `depth` deep.
    let line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent {
            let _ = write!(text, "\n{}", " ".repeat(indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(all) if !all.is_empty() => {
            text.push('[');
            for (i, one) in all.iter().enumerate() {
                text.push_str(if i > 0 { comma } else { "" });
                line(text, depth + 1);
                write(text, one, indent, depth + 1);
            }
            line(text, depth);
            text.push(']');
        }
        Value::Object(all) if !all.is_empty() => {
            text.push('{');
            for (i, (key, one)) in all.iter().enumerate() {
                text.push_str(if i > 0 { comma } else { "" });
                line(text, depth + 1);
                let _ = write!(text, "{}: ", Value::from(key.as_str()));
                write(text, one, indent, depth + 1);
            }
            line(text, depth);
            text.push('}');
        }
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_python_writes_it() {
        let value = json!({"b": [1, 2.5, null], "a": {"é": "x\"y"}, "e": [], "o": {}});
        let plain = r#"{"b": [1, 2.5, null], "a": {"é": "x\"y"}, "e": [], "o": {}}"#;
        assert_eq!(dumps(&value, None), plain);
        let lines = "{\n  \"b\": [\n    1,\n    2.5,\n    null\n  ],\n  \"a\": {\n    \"é\": \"x\\\"y\"\n  },\n  \"e\": [],\n  \"o\": {}\n}";
        assert_eq!(dumps(&value, Some(2)), lines);
    }
}
