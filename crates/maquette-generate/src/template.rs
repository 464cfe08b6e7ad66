//! Chat templates: from messages to the text that a model was trained to answer.
//!
//! A template is Jinja as `transformers` runs it: blocks trimmed, loop controls, Python's methods on
//! strings and lists, `raise_exception`, `strftime_now`, and `tojson` as Python's `json.dumps` writes.

mod python_json;

use std::collections::BTreeMap;
use std::path::Path;

use maquette_models::gguf::{self, Value as Stored};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json, json};

use crate::GenerateError;

/// More steps than any template for people needs; a hostile one ends here.
const FUEL: u64 = 20_000_000;

/// What is said so far, and how it is shown to the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// Objects with a `role`, most with a `content`.
    pub messages: Vec<Json>,
    /// What the model may call, if anything: a list of JSON schemas of functions.
    pub tools: Option<Json>,
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables for the template.
    pub variables: Map<String, Json>,
}

impl Chat {
    /// A chat that awaits an answer.
    pub fn new(messages: Vec<Json>) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: true,
            variables: Map::new(),
        }
    }

    /// Reads a list of messages, or an object with `messages`, maybe `tools`, and variables.
    ///
    /// # Errors
    /// [`GenerateError::Template`] when it is not JSON, or not of this form: what, and where.
    pub fn from_json(text: &str) -> Result<Self, GenerateError> {
        let failed = |what: String| GenerateError::Template(what);
        let file: Json = serde_json::from_str(text)
            .map_err(|e| failed(format!("the messages are not JSON: {e}")))?;
        let (messages, tools, mut variables) = match file {
            Json::Array(messages) => (messages, None, Map::new()),
            Json::Object(mut all) => match all.remove("messages") {
                Some(Json::Array(messages)) => (messages, all.remove("tools"), all),
                _ => {
                    return Err(failed(
                        "an object with messages needs the list `messages`".into(),
                    ));
                }
            },
            _ => {
                return Err(failed(
                    "messages are a list, or an object that has one".into(),
                ));
            }
        };
        for (at, message) in messages.iter().enumerate() {
            if !message["role"].is_string() {
                let what = "each is an object with a text `role` and a `content`";
                return Err(failed(format!("message {}: {what}", at + 1)));
            }
        }
        let add_generation_prompt = match variables.remove("add_generation_prompt") {
            Some(Json::Bool(add)) => add,
            _ => true,
        };
        Ok(Self {
            messages,
            tools,
            add_generation_prompt,
            variables,
        })
    }

    /// Puts a system message before all others, in place of one that is there.
    pub fn with_system(mut self, content: &str) -> Self {
        self.messages.retain(|message| message["role"] != "system");
        let system = json!({ "role": "system", "content": content });
        self.messages.insert(0, system);
        self
    }

    /// Adds a message of the user.
    pub fn with_user(mut self, content: &str) -> Self {
        self.messages
            .push(json!({ "role": "user", "content": content }));
        self
    }
}

/// A model's template and the special tokens that it may name.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatTemplate {
    source: String,
    /// The template for chats with tools, where it is another one.
    with_tools: Option<String>,
    /// `bos_token`, `eos_token` and the like.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A template from its text; `tokens` are variables such as `bos_token`.
    ///
    /// # Errors
    /// [`GenerateError::Template`] with the line where it is not Jinja.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, GenerateError> {
        let template = Self {
            source: without_generation_marks(source),
            with_tools: None,
            tokens,
        };
        environment(&template.source)?;
        Ok(template)
    }

    /// The template of a Hugging Face folder: `chat_template.jinja`, `chat_template.json`, or
    /// `chat_template` in `tokenizer_config.json`; none if it has none.
    ///
    /// # Errors
    /// [`GenerateError::Template`] when one of these is damaged.
    pub fn load(folder: &Path) -> Result<Option<Self>, GenerateError> {
        let failed = |name: &str, what: String| {
            GenerateError::Template(format!("{}: {what}", folder.join(name).display()))
        };
        let read = |name: &str| match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(name, e.to_string())),
        };
        let parsed = |name: &str| -> Result<Json, GenerateError> {
            let text = read(name)?.unwrap_or_else(|| "null".to_owned());
            serde_json::from_str(&text).map_err(|e| failed(name, e.to_string()))
        };
        let config = parsed("tokenizer_config.json")?;
        let mut tokens = BTreeMap::new();
        for name in [
            "bos_token",
            "eos_token",
            "unk_token",
            "pad_token",
            "sep_token",
            "cls_token",
        ] {
            let token = &config[name];
            let text = token.as_str().or_else(|| token["content"].as_str());
            tokens.extend(text.map(|text| (name.to_owned(), text.to_owned())));
        }
        if let Some(source) = read("chat_template.jinja")? {
            return Self::new(&source, tokens).map(Some);
        }
        let stored = match parsed("chat_template.json")?["chat_template"].take() {
            Json::Null => config["chat_template"].clone(),
            stored => stored,
        };
        let named = |name: &str| {
            let all = stored.as_array()?.iter();
            let template = all.clone().find(|one| one["name"] == name)?["template"].as_str();
            template.map(str::to_owned)
        };
        let source = match stored.as_str() {
            Some(source) => source.to_owned(),
            None => match named("default") {
                Some(source) => source,
                None => return Ok(None),
            },
        };
        let mut template = Self::new(&source, tokens)?;
        if let Some(source) = named("tool_use") {
            template.with_tools = Some(Self::new(&source, BTreeMap::new())?.source);
        }
        Ok(Some(template))
    }

    /// Writes `chat_template.jinja` into a folder.
    ///
    /// # Errors
    /// [`GenerateError::Template`] when it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), GenerateError> {
        let path = folder.join("chat_template.jinja");
        let failed = |e| GenerateError::Template(format!("{}: {e}", path.display()));
        std::fs::write(&path, &self.source).map_err(failed)
    }

    /// The template of a GGUF file; none if it has none.
    ///
    /// # Errors
    /// [`GenerateError::Template`] when it is not Jinja.
    pub fn of_gguf(file: &gguf::File) -> Result<Option<Self>, GenerateError> {
        let find = |key: &str| file.metadata().get(&format!("tokenizer.{key}"));
        let Some(source) = find("chat_template").and_then(Stored::as_str) else {
            return Ok(None);
        };
        let token = |name: &str| {
            let id = find(&format!("ggml.{name}_token_id"))?.as_u64()?;
            let tokens = find("ggml.tokens")?.as_array()?;
            tokens.get(usize::try_from(id).ok()?)?.as_str()
        };
        let tokens = ["bos", "eos"].into_iter().filter_map(|name| {
            let text = token(name)?.to_owned();
            Some((format!("{name}_token"), text))
        });
        Self::new(source, tokens.collect()).map(Some)
    }

    /// The special tokens that the template may name, as `bos_token`.
    pub fn tokens(&self) -> &BTreeMap<String, String> {
        &self.tokens
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// [`GenerateError::Template`]: the line at fault, or what the template says against the messages.
    pub fn render(&self, chat: &Chat) -> Result<String, GenerateError> {
        let source = match (&self.with_tools, &chat.tools) {
            (Some(with_tools), Some(_)) => with_tools,
            _ => &self.source,
        };
        let mut variables = chat.variables.clone();
        for (name, text) in &self.tokens {
            variables.entry(name.clone()).or_insert(json!(text));
        }
        variables.insert("messages".into(), json!(chat.messages));
        variables.insert("tools".into(), json!(chat.tools));
        variables.insert("documents".into(), Json::Null);
        let add = json!(chat.add_generation_prompt);
        variables.insert("add_generation_prompt".into(), add);
        let environment = environment(source)?;
        let template = environment.get_template(NAME).map_err(explained)?;
        template.render(Serde(&variables)).map_err(explained)
    }
}

/// What the template is called in messages.
const NAME: &str = "chat_template";

/// Jinja as `transformers` sets it up, with the template in it.
fn environment(source: &str) -> Result<Environment<'static>, GenerateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(explained)?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |what: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, what))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = jiff::Zoned::now();
        let text = jiff::fmt::strtime::format(&format, &now);
        text.map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
    });
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        let indent: Option<usize> = options.get("indent")?;
        for ignored in ["ensure_ascii", "separators", "sort_keys"] {
            let _: Option<Value> = options.get(ignored)?;
        }
        options.assert_all_used()?;
        let json = serde_json::to_value(&value);
        let json = json.map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
        Ok::<_, Error>(Value::from_safe_string(python_json::dumps(&json, indent)))
    });
    environment
        .add_template_owned(NAME, source.to_owned())
        .map_err(explained)?;
    Ok(environment)
}

/// Without `{% generation %}` and its end, with which `transformers` marks what is to be learnt.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(length) = rest[at + 2..].find("%}").map(|inside| inside + 2) else {
            break;
        };
        let block = &rest[at + 2..at + length];
        let name = block.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let end = at + length + 2;
        match name {
            // A statement without effect trims as the mark would have.
            "generation" | "endgeneration" => {
                let (open, close) = (block.starts_with('-'), block.ends_with('-'));
                let dash = |there: bool| if there { "-" } else { "" };
                text.push_str(&rest[..at]);
                text.push_str(&format!("{{%{} set _ = 0 {}%}}", dash(open), dash(close)));
            }
            _ => text.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    text.push_str(rest);
    text
}

/// Jinja's complaint with its line, and what the template itself says.
fn explained(error: Error) -> GenerateError {
    let what = error
        .detail()
        .map_or_else(|| error.to_string(), str::to_owned);
    GenerateError::Template(match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    })
}

#[cfg(test)]
mod tests;
