//! Few-shot tasks in the YAML of lm-evaluation-harness 0.4 (Gao et al., doi 10.5281/zenodo.10256836):
//! questions and answers by templates over the rows of a data set, and figures with its definitions.
//!
//! [`TaskConfig`] is the file, [`Task`] the file with its data. [`Task::questions`] says what a model is
//! asked, somebody answers, and [`Task::score`] turns the answers into figures. What the subset does
//! not have (Python functions, sampling, chat) is an error that names it.

mod config;
mod metric;
mod python;
mod template;
mod yaml;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

pub use config::{
    DataFiles, DatasetKwargs, FewshotConfig, FilterConfig, FilterStep, GenerationKwargs,
    MetricConfig, MetricName, OutputType, Sampler, TaskConfig, Until,
};
pub use template::Doc;

use crate::rolling::words;
use metric::{ExactMatch, Filter, Share, aggregate};
use python::PythonRandom;
use template::Templates;

/// The seed that lm-evaluation-harness draws examples by unless it is told otherwise.
pub const FEWSHOT_SEED: u32 = 1234;
/// How many resamples lm-evaluation-harness draws.
pub const RESAMPLES: usize = 100_000;

/// Why a task cannot be asked or scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The file is not understood.
    #[error("{0}")]
    Config(String),
    /// A template does not fit the data.
    #[error("template {0}")]
    Template(String),
    /// The data do not fit the task.
    #[error("{0}")]
    Data(String),
}

/// A task with its data.
pub struct Task {
    config: TaskConfig,
    /// The rows that are asked.
    docs: Vec<Doc>,
    /// The rows that examples are drawn from.
    examples: Vec<Doc>,
    /// Whether these are the same rows.
    same: bool,
    templates: Templates,
}

/// The right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Choices by their place.
    Choices(Vec<usize>),
    /// One text.
    Text(String),
    /// Any of these texts.
    Texts(Vec<String>),
}

impl Target {
    fn texts(&self) -> &[String] {
        match self {
            Self::Choices(_) => &[],
            Self::Text(text) => std::slice::from_ref(text),
            Self::Texts(texts) => texts,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Choices(places) if places.len() == 1 => json!(places[0]),
            Self::Choices(places) => json!(places),
            Self::Text(text) => json!(text),
            Self::Texts(texts) => json!(texts),
        }
    }
}

/// One thing that a model is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How likely a text is after another.
    Loglikelihood {
        /// What is there.
        context: String,
        /// What may follow.
        continuation: String,
    },
    /// How likely a whole text is.
    Rolling {
        /// The text.
        text: String,
    },
    /// What follows, greedily.
    Generate {
        /// What is there.
        context: String,
        /// Where it stops.
        until: Vec<String>,
        /// The most tokens.
        max_tokens: usize,
    },
}

/// An answer to a [`Request`].
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Request::Loglikelihood`]: the log-likelihood in nats, and whether greedy decoding says the
    /// same.
    Loglikelihood(f64, bool),
    /// To [`Request::Rolling`]: the log-likelihood in nats.
    Rolling(f64),
    /// To [`Request::Generate`]: the text.
    Text(String),
}

impl Answer {
    fn to_json(&self) -> Value {
        match self {
            Self::Loglikelihood(nats, greedy) => json!([nats, greedy]),
            Self::Rolling(nats) => json!(nats),
            Self::Text(text) => json!(text),
        }
    }
}

/// A row as it is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The row's place in its split.
    pub doc_id: usize,
    /// What is asked: one request, or one for each choice.
    pub requests: Vec<Request>,
    target: Target,
    choices: Vec<String>,
}

/// How questions are made and scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    /// Examples before a question; the task's own number when absent.
    pub num_fewshot: Option<usize>,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// The seed that examples are drawn by.
    pub fewshot_seed: u32,
    /// Resamples of bootstrapped standard errors; 0 leaves all standard errors out.
    pub resamples: usize,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            num_fewshot: None,
            limit: None,
            fewshot_seed: FEWSHOT_SEED,
            resamples: RESAMPLES,
        }
    }
}

/// A task's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Value and standard error by `metric,filter`.
    pub figures: BTreeMap<String, (f64, Option<f64>)>,
    /// A line of `samples_*.jsonl` for every row and filter.
    pub samples: Vec<Value>,
    /// How many rows were asked.
    pub asked: usize,
}

impl Task {
    /// A task over its data: `load` gives the rows of a split by its name.
    ///
    /// # Errors
    /// What `load` reports, or a split without rows.
    pub fn new<E: From<TaskError>>(
        config: TaskConfig,
        mut load: impl FnMut(&str) -> Result<Vec<Doc>, E>,
    ) -> Result<Self, E> {
        let asked = config
            .test_split
            .clone()
            .or(config.validation_split.clone());
        let asked = asked.unwrap_or_default();
        let empty = |split: &str| {
            TaskError::Data(format!("task {}: split `{split}` has no rows", config.task))
        };
        let docs = load(&asked)?;
        if docs.is_empty() {
            return Err(empty(&asked).into());
        }
        let own = config
            .fewshot_config
            .as_ref()
            .and_then(|fewshot| fewshot.split.clone());
        let usual = [
            &config.fewshot_split,
            &config.training_split,
            &config.validation_split,
        ];
        let split = own.or_else(|| usual.into_iter().flatten().next().cloned());
        let (examples, same) = match split {
            Some(split) if split == asked => (docs.clone(), true),
            Some(split) => (load(&split)?, false),
            None => (Vec::new(), false),
        };
        Ok(Self {
            config,
            docs,
            examples,
            same,
            templates: Templates::new(),
        })
    }

    /// The file.
    pub fn config(&self) -> &TaskConfig {
        &self.config
    }

    /// How many rows there are to be asked.
    pub fn len(&self) -> usize {
        self.docs.len()
    }

    /// Never: a task has rows.
    pub fn is_empty(&self) -> bool {
        self.docs.is_empty()
    }

    /// How many examples stand before a question.
    pub fn num_fewshot(&self, asking: Asking) -> usize {
        match self.config.num_fewshot {
            // A task that says 0 means it.
            Some(0) => 0,
            own => asking.num_fewshot.or(own).unwrap_or(0),
        }
    }

    /// Every row as it is asked.
    ///
    /// # Errors
    /// A template that does not fit, or too few rows for the examples.
    pub fn questions(&self, asking: Asking) -> Result<Vec<Question>, TaskError> {
        let n = self.num_fewshot(asking);
        let mut random = PythonRandom::new(asking.fewshot_seed);
        let rows = self
            .docs
            .iter()
            .enumerate()
            .take(asking.limit.unwrap_or(usize::MAX));
        rows.map(|(doc_id, doc)| {
            let examples = self.draw(n, doc, &mut random)?;
            self.asked(doc_id, doc, examples)
                .map_err(|error| match error {
                    TaskError::Template(what) => self.wrong(&format!("row {doc_id}: {what}")),
                    other => other,
                })
        })
        .collect()
    }

    /// A row as it is asked behind `examples`.
    fn asked(&self, doc_id: usize, doc: &Doc, examples: Vec<&Doc>) -> Result<Question, TaskError> {
        let mut context = match self.config.description.as_str() {
            "" => String::new(),
            description => self.templates.text(description, doc)?,
        };
        for example in examples {
            context.push_str(&self.example(example)?);
        }
        context.push_str(&self.question(doc)?);
        self.ask(doc_id, doc, context)
    }

    /// The examples before the question on `doc`.
    fn draw(&self, n: usize, doc: &Doc, random: &mut PythonRandom) -> Result<Vec<&Doc>, TaskError> {
        if n == 0 {
            return Ok(Vec::new());
        }
        let few = |there: usize| {
            TaskError::Data(format!(
                "task {}: {n} examples asked for, but there are {there}; name a `fewshot_split`, or ask for fewer",
                self.config.task
            ))
        };
        let others = || -> Vec<&Doc> {
            let other = |row: &&Doc| !self.same || *row != doc;
            self.examples.iter().filter(other).collect()
        };
        let sampler = self
            .config
            .fewshot_config
            .as_ref()
            .map(|fewshot| fewshot.sampler);
        if sampler == Some(Sampler::FirstN) {
            let others = others();
            return others
                .get(..n)
                .map(<[_]>::to_vec)
                .ok_or_else(|| few(others.len()));
        }
        // One more is drawn where the question itself may be among them.
        let draws = n + usize::from(self.same);
        if draws > self.examples.len() {
            return Err(few(self.examples.len()));
        }
        let drawn = random.sample(self.examples.len(), draws).into_iter();
        let mut drawn: Vec<&Doc> = drawn.map(|at| &self.examples[at]).collect();
        if self.same {
            drawn.retain(|row| *row != doc);
        }
        drawn.truncate(n);
        if drawn.len() < n {
            // The question stands there several times.
            let pool = others();
            if n > pool.len() {
                return Err(few(pool.len()));
            }
            drawn = random
                .sample(pool.len(), n)
                .into_iter()
                .map(|at| pool[at])
                .collect();
        }
        Ok(drawn)
    }

    fn question(&self, doc: &Doc) -> Result<String, TaskError> {
        let Value::String(template) = &self.config.doc_to_text else {
            return Err(self.wrong(
                "`doc_to_text` must be a field or a template: several inputs are not supported",
            ));
        };
        let text = self.templates.text(template, doc)?;
        let number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        match number && self.config.doc_to_choice.is_some() {
            true => Err(self.wrong(
                "`doc_to_text` gives the place of a choice: several inputs are not supported",
            )),
            false => Ok(text),
        }
    }

    /// A question with its answer.
    fn example(&self, doc: &Doc) -> Result<String, TaskError> {
        let mut text = self.question(doc)?;
        let choices = self.choices(doc)?;
        let answer = match self.target(doc, &choices)? {
            Target::Choices(places) => places.first().and_then(|at| choices.get(*at)).cloned(),
            Target::Text(answer) => Some(answer),
            Target::Texts(answers) => answers.first().cloned(),
        };
        let answer = answer.ok_or_else(|| self.wrong("an example has no answer"))?;
        if !answer.is_empty() {
            text += &self.config.target_delimiter;
            text += &answer;
            text += &self.config.fewshot_delimiter;
        }
        Ok(text)
    }

    fn choices(&self, doc: &Doc) -> Result<Vec<String>, TaskError> {
        let value = match &self.config.doc_to_choice {
            None => return Ok(Vec::new()),
            Some(Value::String(template)) => self.templates.value(template, doc)?,
            Some(Value::Object(choices)) => choices.values().cloned().collect(),
            Some(list) => list.clone(),
        };
        // A template that writes a list out gives it as text.
        let value = match &value {
            Value::String(text) => literal(text).unwrap_or(value),
            _ => value,
        };
        let choices = value
            .as_array()
            .map(|list| list.iter().map(plain).collect());
        choices.ok_or_else(|| self.wrong("`doc_to_choice` gives no list"))
    }

    fn target(&self, doc: &Doc, choices: &[String]) -> Result<Target, TaskError> {
        let value = match &self.config.doc_to_target {
            Value::String(template) => self.templates.value(template, doc)?,
            other => other.clone(),
        };
        let value = match &value {
            Value::String(text) if text.starts_with('[') => literal(text).unwrap_or(value),
            _ => value,
        };
        if self.config.doc_to_choice.is_none() {
            return Ok(match value.as_array() {
                Some(list) => Target::Texts(list.iter().map(plain).collect()),
                None => Target::Text(plain(&value)),
            });
        }
        let place = |value: &Value| -> Result<usize, TaskError> {
            let text = plain(value);
            let by_name = choices.iter().position(|choice| *choice == text);
            // A number is a place, a text may also be one.
            let at = match value {
                Value::String(_) => by_name.or_else(|| text.parse().ok()),
                _ => text.parse().ok(),
            };
            at.filter(|at| *at < choices.len()).ok_or_else(|| {
                self.wrong(&format!(
                    "the answer `{text}` is none of the {} choices",
                    choices.len()
                ))
            })
        };
        Ok(Target::Choices(match value.as_array() {
            Some(list) => list.iter().map(place).collect::<Result<_, _>>()?,
            None => vec![place(&value)?],
        }))
    }

    fn ask(&self, doc_id: usize, doc: &Doc, context: String) -> Result<Question, TaskError> {
        let choices = self.choices(doc)?;
        let target = self.target(doc, &choices)?;
        let answer = || match &target {
            Target::Choices(places) => Ok(choices[places[0]].clone()),
            target => target
                .texts()
                .first()
                .cloned()
                .ok_or_else(|| self.wrong("a row has no answer")),
        };
        let requests = match self.config.output_type {
            OutputType::Loglikelihood => {
                vec![Request::Loglikelihood {
                    context,
                    continuation: answer()?,
                }]
            }
            OutputType::LoglikelihoodRolling => vec![Request::Rolling { text: answer()? }],
            OutputType::MultipleChoice => {
                let request = |choice: &String| Request::Loglikelihood {
                    context: context.clone(),
                    continuation: format!("{}{choice}", self.config.target_delimiter),
                };
                choices.iter().map(request).collect()
            }
            OutputType::GenerateUntil => {
                let (until, max_tokens) = self.config.until();
                vec![Request::Generate {
                    context,
                    until,
                    max_tokens,
                }]
            }
        };
        let target = match (self.config.output_type, target) {
            // What a text is compared with is the choice itself.
            (OutputType::GenerateUntil, Target::Choices(places)) => {
                Target::Texts(places.iter().map(|at| choices[*at].clone()).collect())
            }
            (_, target) => target,
        };
        Ok(Question {
            doc_id,
            requests,
            target,
            choices,
        })
    }

    fn wrong(&self, what: &str) -> TaskError {
        TaskError::Data(format!("task {}: {what}", self.config.task))
    }

    /// The figures of `answers`, one for every request of every question.
    ///
    /// # Errors
    /// A pattern that is none, or answers that do not fit the questions.
    pub fn score(
        &self,
        questions: &[Question],
        answers: &[Vec<Answer>],
        asking: Asking,
    ) -> Result<Scored, TaskError> {
        let metrics = self.config.metrics();
        let exact = metrics
            .iter()
            .map(ExactMatch::new)
            .collect::<Result<Vec<_>, _>>()?;
        let none = [FilterConfig {
            name: "none".into(),
            filter: Vec::new(),
        }];
        let filters = self.config.filter_list.as_deref().unwrap_or(&none);
        let (mut figures, mut samples) = (BTreeMap::new(), Vec::new());
        for FilterConfig { name, filter } in filters {
            let filter = Filter::new(filter)?;
            let mut shares = vec![Vec::with_capacity(questions.len()); metrics.len()];
            for (question, answers) in questions.iter().zip(answers) {
                let filtered: Vec<Answer> = answers
                    .iter()
                    .map(|answer| filtered(answer, &filter))
                    .collect();
                let mut sample = self.sample(question, answers, &filtered, name);
                for ((metric, exact), shares) in metrics.iter().zip(&exact).zip(&mut shares) {
                    let share = share(metric.metric, exact, question, &filtered)
                        .ok_or_else(|| self.wrong("the answers do not fit the questions"))?;
                    shares.push(share);
                    sample[metric.metric.as_str()] = match share.weight {
                        1.0 => json!(share.value),
                        weight => json!([share.value, weight]),
                    };
                }
                samples.push(sample);
            }
            for (metric, shares) in metrics.iter().zip(&shares) {
                let figure = aggregate(metric.metric, shares, asking.resamples);
                figures.insert(format!("{},{name}", metric.metric.as_str()), figure);
            }
        }
        Ok(Scored {
            figures,
            samples,
            asked: questions.len(),
        })
    }

    fn sample(
        &self,
        question: &Question,
        answers: &[Answer],
        filtered: &[Answer],
        filter: &str,
    ) -> Value {
        let arguments = question.requests.iter().enumerate().map(|(i, request)| {
            let arguments = match request {
                Request::Loglikelihood {
                    context,
                    continuation,
                } => {
                    json!({ "arg_0": context, "arg_1": continuation })
                }
                Request::Rolling { text } => json!({ "arg_0": text }),
                Request::Generate {
                    context,
                    until,
                    max_tokens,
                } => json!({
                    "arg_0": context,
                    "arg_1": { "until": until, "max_gen_toks": max_tokens, "do_sample": false },
                }),
            };
            (format!("gen_args_{i}"), arguments)
        });
        let metrics: Vec<&str> = self
            .config
            .metrics()
            .iter()
            .map(|m| m.metric.as_str())
            .collect();
        json!({
            "doc_id": question.doc_id,
            "doc": self.docs[question.doc_id],
            "target": question.target.to_json(),
            "arguments": arguments.collect::<serde_json::Map<_, _>>(),
            "resps": answers.iter().map(|answer| json!([answer.to_json()])).collect::<Vec<_>>(),
            "filtered_resps": filtered.iter().map(Answer::to_json).collect::<Vec<_>>(),
            "filter": filter,
            "metrics": metrics,
        })
    }
}

fn filtered(answer: &Answer, filter: &Filter) -> Answer {
    match answer {
        Answer::Text(text) => Answer::Text(filter.apply(text)),
        other => other.clone(),
    }
}

/// What one question gives to a figure; none if the answers are of another kind.
fn share(
    metric: MetricName,
    exact: &ExactMatch,
    question: &Question,
    answers: &[Answer],
) -> Option<Share> {
    let flag = |holds: bool| Share::from(f64::from(u8::from(holds)));
    match answers {
        [Answer::Rolling(nats)] => {
            let Target::Text(text) = &question.target else {
                return None;
            };
            let weight = match metric {
                MetricName::WordPerplexity => words(text),
                _ => text.len(),
            };
            Some(Share {
                value: *nats,
                weight: weight as f64,
            })
        }
        [Answer::Text(text)] => Some(flag(exact.holds(text, &question.target))),
        [Answer::Loglikelihood(nats, greedy)] if question.choices.is_empty() => {
            Some(match metric {
                MetricName::Perplexity => Share::from(*nats),
                _ => flag(*greedy),
            })
        }
        _ => {
            let Target::Choices(right) = &question.target else {
                return None;
            };
            let likelihoods: Option<Vec<(f64, bool)>> = answers
                .iter()
                .map(|answer| match answer {
                    Answer::Loglikelihood(nats, greedy) => Some((*nats, *greedy)),
                    _ => None,
                })
                .collect();
            let likelihoods = likelihoods.filter(|all| all.len() == question.choices.len())?;
            let best = |length: &dyn Fn(&str) -> usize| {
                let mut best = (0, f64::NEG_INFINITY);
                for (i, ((nats, _), choice)) in
                    likelihoods.iter().zip(&question.choices).enumerate()
                {
                    let value = nats / length(choice) as f64;
                    // The first of equals; a value that is no number never wins.
                    if value > best.1 {
                        best = (i, value);
                    }
                }
                best.0
            };
            Some(flag(match metric {
                MetricName::AccNorm => right.contains(&best(&|choice| choice.chars().count())),
                MetricName::AccBytes => right.contains(&best(&str::len)),
                MetricName::ExactMatch => right.iter().any(|at| likelihoods[*at].1),
                _ => right.contains(&best(&|_| 1)),
            }))
        }
    }
}

/// A value as text: a string itself, anything else as it is written.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A list that a template wrote out, as JSON or as Python writes simple ones.
fn literal(text: &str) -> Option<Value> {
    let list = |text: &str| serde_json::from_str(text).ok().filter(Value::is_array);
    list(text).or_else(|| match text.contains('"') {
        true => None,
        false => list(&text.replace('\'', "\"")),
    })
}

/// A task's part of `results.json`, in the layout of lm-evaluation-harness: figures under
/// `metric,filter`, their standard errors under `metric_stderr,filter`, `"N/A"` where there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskResult(pub serde_json::Map<String, Value>);

impl Scored {
    /// The figures as `results.json` has them.
    pub fn result(&self, config: &TaskConfig) -> TaskResult {
        let alias = config.task_alias.as_ref().unwrap_or(&config.task);
        let mut row = serde_json::Map::new();
        row.insert("name".into(), json!(config.task));
        row.insert("alias".into(), json!(alias));
        row.insert("sample_len".into(), json!(self.asked));
        for (key, (value, error)) in &self.figures {
            let (metric, filter) = key.split_once(',').unwrap_or((key, "none"));
            row.insert(key.clone(), json!(value));
            let error = error.map_or(json!("N/A"), |error| json!(error));
            row.insert(format!("{metric}_stderr,{filter}"), error);
        }
        TaskResult(row)
    }
}

#[cfg(test)]
mod tests;
