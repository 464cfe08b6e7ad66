//! JSON Schema as its standard words it, as far as the twenty schemas go: another hand than the one
//! that keeps texts to them. An unknown keyword is an error, so that nothing is passed over.

use regex::Regex;
use serde_json::{Map, Value};

/// What is wrong with `value` under `schema`, if anything is.
pub(crate) fn validate(schema: &Value, value: &Value) -> Result<(), String> {
    under(schema, schema, value)
}

fn under(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let keywords = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Bool(false) => return Err(format!("{value}: nothing is allowed here")),
        Value::Object(keywords) => keywords,
        _ => return Err(format!("{schema} is no schema")),
    };
    for (keyword, asked) in keywords {
        let holds = match keyword.as_str() {
            "$defs" => true,
            "$ref" => {
                let pointer = asked.as_str().and_then(|path| path.strip_prefix('#'));
                let target = pointer.and_then(|pointer| root.pointer(pointer));
                under(root, target.ok_or("a reference to nothing")?, value)?;
                true
            }
            "anyOf" => list(asked).any(|one| under(root, one, value).is_ok()),
            "type" => match asked {
                Value::Array(kinds) => kinds.iter().any(|kind| is(kind, value)),
                kind => is(kind, value),
            },
            "enum" => list(asked).any(|one| one == value),
            "const" => asked == value,
            _ => match value {
                Value::Object(fields) => object(root, keywords, keyword, fields)?,
                Value::Array(items) => array(root, keywords, keyword, items)?,
                Value::String(text) => string(keyword, asked, text)?,
                Value::Number(_) => number(keyword, asked, value.as_f64().unwrap()),
                Value::Null | Value::Bool(_) => true,
            },
        };
        if !holds {
            return Err(format!("{value} against {keyword}: {asked}"));
        }
    }
    Ok(())
}

fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        kind => panic!("no such type: {kind}"),
    }
}

/// Whether `keyword` is about arrays, strings or numbers, and so says nothing about other values.
fn of_others(keyword: &str) -> bool {
    let known = [
        "prefixItems",
        "items",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "properties",
        "required",
        "additionalProperties",
        "maxProperties",
    ];
    assert!(known.contains(&keyword), "unknown keyword {keyword}");
    true
}

fn object(
    root: &Value,
    keywords: &Map<String, Value>,
    keyword: &str,
    fields: &Map<String, Value>,
) -> Result<bool, String> {
    let asked = &keywords[keyword];
    Ok(match keyword {
        "properties" => {
            for (name, schema) in asked.as_object().unwrap() {
                fields
                    .get(name)
                    .map_or(Ok(()), |field| under(root, schema, field))?;
            }
            true
        }
        "additionalProperties" => {
            let named = keywords.get("properties").and_then(Value::as_object);
            let more = |name: &str| named.is_none_or(|named| !named.contains_key(name));
            for (_, field) in fields.iter().filter(|(name, _)| more(name)) {
                under(root, asked, field)?;
            }
            true
        }
        "required" => list(asked).all(|name| fields.contains_key(name.as_str().unwrap())),
        "maxProperties" => fields.len() as u64 <= asked.as_u64().unwrap(),
        _ => of_others(keyword),
    })
}

fn array(
    root: &Value,
    keywords: &Map<String, Value>,
    keyword: &str,
    items: &[Value],
) -> Result<bool, String> {
    let asked = &keywords[keyword];
    Ok(match keyword {
        "prefixItems" => {
            for (schema, item) in list(asked).zip(items) {
                under(root, schema, item)?;
            }
            true
        }
        "items" => {
            let before = keywords
                .get("prefixItems")
                .map_or(0, |first| list(first).count());
            for item in items.iter().skip(before) {
                under(root, asked, item)?;
            }
            true
        }
        "minItems" => items.len() as u64 >= asked.as_u64().unwrap(),
        "maxItems" => items.len() as u64 <= asked.as_u64().unwrap(),
        _ => of_others(keyword),
    })
}

fn string(keyword: &str, asked: &Value, text: &str) -> Result<bool, String> {
    let matches = |pattern: &str| Regex::new(pattern).unwrap().is_match(text);
    let length = text.chars().count() as u64;
    Ok(match keyword {
        "minLength" => length >= asked.as_u64().unwrap(),
        "maxLength" => length <= asked.as_u64().unwrap(),
        "pattern" => matches(asked.as_str().unwrap()),
        "format" => match asked.as_str().unwrap() {
            "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
            "uuid" => matches("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
            "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
            format => return Err(format!("unknown format {format}")),
        },
        _ => of_others(keyword),
    })
}

fn number(keyword: &str, asked: &Value, number: f64) -> bool {
    let asked = asked.as_f64();
    match keyword {
        "minimum" => number >= asked.unwrap(),
        "maximum" => number <= asked.unwrap(),
        "exclusiveMinimum" => number > asked.unwrap(),
        "exclusiveMaximum" => number < asked.unwrap(),
        "multipleOf" => number % asked.unwrap() == 0.0,
        _ => of_others(keyword),
    }
}

#[test]
fn wrong_values_are_told_apart() {
    let schema = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for (given, right, wrong) in [
        (r#"{"type": "integer", "maximum": 3}"#, "3", "4"),
        (r#"{"multipleOf": 5}"#, "15", "16"),
        (r#"{"format": "date"}"#, "\"2024-02-29\"", "\"2023-02-29\""),
        (
            r#"{"prefixItems": [true], "items": false}"#,
            "[1]",
            "[1, 2]",
        ),
        (
            r#"{"properties": {"a": {"type": "null"}}}"#,
            "{}",
            r#"{"a": 1}"#,
        ),
        (
            r#"{"properties": {"a": true}, "additionalProperties": false}"#,
            r#"{"a": 1}"#,
            r#"{"b": 1}"#,
        ),
        (
            r##"{"$defs": {"x": {"const": 1}}, "$ref": "#/$defs/x"}"##,
            "1",
            "2",
        ),
        (
            r#"{"anyOf": [{"const": 1}, {"minLength": 2}]}"#,
            "\"ab\"",
            "\"a\"",
        ),
    ] {
        assert_eq!(validate(&schema(given), &schema(right)), Ok(()), "{given}");
        assert!(validate(&schema(given), &schema(wrong)).is_err(), "{given}");
    }
}
