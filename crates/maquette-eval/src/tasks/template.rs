//! Templates of questions and answers: Jinja as Python renders it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Rendered};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use regex::Regex;
use serde_json::{Map, Value};

use super::TaskError;

/// A row of a data set.
pub type Doc = Map<String, Value>;

/// Renders fields of a task for its rows.
pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new() -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        env.set_syntax(syntax.expect("the usual delimiters"));
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(|out, state, value| match value.kind() {
            // As Python spells them.
            minijinja::value::ValueKind::Bool => {
                out.write_str(if value.is_true() { "True" } else { "False" })?;
                Ok(())
            }
            minijinja::value::ValueKind::None => Ok(out.write_str("None")?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        env.add_filter("regex_replace", regex_replace);
        // A template of a file should not run for ever.
        env.set_fuel(Some(1_000_000));
        Self(env)
    }

    /// A field that holds text: the row's own of that name, or a template.
    pub(super) fn text(&self, template: &str, doc: &Doc) -> Result<String, TaskError> {
        match doc.get(template) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Ok(other.to_string()),
            None => self
                .0
                .render_str(template, Serde(doc))
                .map_err(failed(template)),
        }
    }

    /// A field that may hold anything: the row's own of that name, the value of a template that is
    /// one expression, or the text of another template.
    pub(super) fn value(&self, template: &str, doc: &Doc) -> Result<Value, TaskError> {
        if let Some(value) = doc.get(template) {
            return Ok(value.clone());
        }
        if let Some(expression) = expression(template) {
            let compiled = self
                .0
                .compile_expression(expression)
                .map_err(failed(template))?;
            let value: Rendered = compiled.eval(Serde(doc)).map_err(failed(template))?;
            if value.is_undefined() {
                return Err(TaskError::Template(format!(
                    "`{template}`: there is no such field"
                )));
            }
            if !matches!(value.kind(), minijinja::value::ValueKind::String) {
                return serde_json::to_value(&value)
                    .map_err(|e| TaskError::Template(format!("`{template}`: {e}")));
            }
        }
        Ok(Value::String(self.text(template, doc)?))
    }
}

/// What stands in a template that is `{{ ... }}` and nothing else.
fn expression(template: &str) -> Option<&str> {
    let inner = template.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then_some(inner)
}

fn failed(template: &str) -> impl Fn(Error) -> TaskError {
    move |error| TaskError::Template(format!("`{template}`: {error:#}"))
}

fn regex_replace(text: &str, pattern: &str, with: &str) -> Result<String, Error> {
    let pattern =
        Regex::new(pattern).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
    Ok(pattern.replace_all(text, with).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn doc() -> Doc {
        let doc =
            json!({ "q": "2+2", "options": ["3", "4"], "answer": 1, "yes": true, "none": null });
        doc.as_object().unwrap().clone()
    }

    #[test]
    fn fields_and_templates() {
        let templates = Templates::new();
        let text = |template| templates.text(template, &doc()).unwrap();
        assert_eq!(text("q"), "2+2");
        assert_eq!(text("Question: {{q}}\nAnswer:"), "Question: 2+2\nAnswer:");
        assert_eq!(
            text("{{ q.replace('+', ' plus ').upper() }}\n"),
            "2 PLUS 2\n"
        );
        assert_eq!(text("{{ q | regex_replace('[0-9]', 'n') }}"), "n+n");
        assert_eq!(text("{{ yes }} {{ none }} <{{ answer }}>"), "True None <1>");
        let value = |template| templates.value(template, &doc()).unwrap();
        assert_eq!(value("options"), json!(["3", "4"]));
        assert_eq!(value("{{ [q, options[0]] }}"), json!(["2+2", "3"]));
        assert_eq!(value("{{ answer }}"), json!(1));
        assert_eq!(value("{{ ' ' ~ options[answer] }}"), json!(" 4"));
    }

    #[test]
    fn mistakes_are_errors() {
        let templates = Templates::new();
        for template in ["{{ nothing }}", "{{ q", "{% for %}", "{{ q | shout }}"] {
            let error = templates.text(template, &doc()).unwrap_err().to_string();
            assert!(error.contains(template), "{error}");
            assert!(templates.value(template, &doc()).is_err());
        }
        let endless =
            "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
        assert!(templates.text(endless, &doc()).is_err());
    }
}
