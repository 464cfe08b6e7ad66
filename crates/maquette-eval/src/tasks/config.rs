//! A task as its YAML file says it: the subset of lm-evaluation-harness 0.4 that needs no Python.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{TaskError, yaml};

/// What a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputType {
    /// How likely one continuation is.
    Loglikelihood,
    /// How likely a whole text is.
    LoglikelihoodRolling,
    /// Which of several continuations is the likeliest.
    MultipleChoice,
    /// What the model writes.
    GenerateUntil,
}

/// The keys of a task's file. Any other is an error that names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// The task's name.
    pub task: String,
    /// What tables call it; the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_alias: Option<String>,
    /// Groups it belongs to; only kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Value>,
    /// A JSONL file, a folder with one per split, or `json` with `dataset_kwargs.data_files`.
    pub dataset_path: String,
    /// A part of a data set on the hub; only kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_name: Option<String>,
    /// Where the splits are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_kwargs: Option<DatasetKwargs>,
    /// The split to learn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_split: Option<String>,
    /// The split that is asked where there is no test split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_split: Option<String>,
    /// The split that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_split: Option<String>,
    /// The split that examples are drawn from; the training or validation split when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewshot_split: Option<String>,
    /// How examples are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewshot_config: Option<FewshotConfig>,
    /// How many examples stand before a question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
    /// What is asked; multiple choice, a likelihood or a text.
    #[serde(default = "generate_until")]
    pub output_type: OutputType,
    /// What stands before all examples.
    #[serde(default)]
    pub description: String,
    /// The question: a field's name or a template.
    #[serde(default = "empty")]
    pub doc_to_text: Value,
    /// The answer: a field's name, a template, a number or a list.
    #[serde(default = "empty")]
    pub doc_to_target: Value,
    /// The choices: a field's name, a template or a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_to_choice: Option<Value>,
    /// Between question and answer.
    #[serde(default = "space")]
    pub target_delimiter: String,
    /// Between examples.
    #[serde(default = "blank_line")]
    pub fewshot_delimiter: String,
    /// How a text is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_kwargs: Option<GenerationKwargs>,
    /// What is measured; what the output type usually is measured by when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric_list: Option<Vec<MetricConfig>>,
    /// How an answer is read out of a written text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_list: Option<Vec<FilterConfig>>,
    /// How often a question is asked; only once is understood.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Ignored, as it is without a decontamination set.
    #[serde(default)]
    pub should_decontaminate: bool,
    /// Ignored likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_to_decontamination_query: Option<String>,
    /// Anything; `version` goes into the results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// Where splits are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetKwargs {
    /// One file for all splits, or files by split.
    pub data_files: DataFiles,
}

/// Files of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DataFiles {
    /// One file, whatever the split is called.
    One(String),
    /// A file for each split.
    Splits(BTreeMap<String, String>),
}

/// How examples are drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewshotConfig {
    /// At random, or the first ones.
    #[serde(default)]
    pub sampler: Sampler,
    /// As `fewshot_split`, before which it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// Which examples are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Others for each question, drawn by Python's generator.
    #[default]
    Default,
    /// The first ones of the split.
    FirstN,
}

/// How a text is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationKwargs {
    /// Where it stops; at the delimiter of examples when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
    /// The most tokens; 256 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_gen_toks: Option<usize>,
    /// Only greedy writing is understood.
    #[serde(default)]
    pub do_sample: bool,
    /// Likewise: must be 0.
    #[serde(default)]
    pub temperature: f64,
}

/// One string or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Until {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// A figure to compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricConfig {
    /// Which.
    pub metric: MetricName,
    /// How questions make one figure; must be the metric's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    /// Which way is better; only kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
    /// Exact match: not of case.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore_case: bool,
    /// Exact match: not of ASCII punctuation.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore_punctuation: bool,
    /// Exact match: not of digits.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore_numbers: bool,
    /// Exact match: not of what these patterns find.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regexes_to_ignore: Vec<String>,
}

/// The figures that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricName {
    /// Whether the likeliest choice is right, or the continuation the likeliest of all.
    Acc,
    /// As `acc`, by likelihood per character.
    AccNorm,
    /// As `acc`, by likelihood per byte.
    AccBytes,
    /// Whether the text is the answer; whether the right choice is the likeliest of all texts.
    ExactMatch,
    /// The exponential of the mean negative log-likelihood of continuations.
    Perplexity,
    /// Of whole texts, per word.
    WordPerplexity,
    /// Of whole texts, per byte.
    BytePerplexity,
    /// Of whole texts, in bits.
    BitsPerByte,
}

impl MetricName {
    /// As files spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::ExactMatch => "exact_match",
            Self::Perplexity => "perplexity",
            Self::WordPerplexity => "word_perplexity",
            Self::BytePerplexity => "byte_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }

    /// How questions make one figure.
    pub fn aggregation(self) -> &'static str {
        match self {
            Self::Acc | Self::AccNorm | Self::AccBytes | Self::ExactMatch => "mean",
            Self::Perplexity => "perplexity",
            Self::WordPerplexity | Self::BytePerplexity => "weighted_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }

    fn fits(self, output: OutputType) -> bool {
        use OutputType::{GenerateUntil, Loglikelihood, LoglikelihoodRolling, MultipleChoice};
        match self {
            Self::Acc => [Loglikelihood, MultipleChoice].contains(&output),
            Self::AccNorm | Self::AccBytes => output == MultipleChoice,
            Self::ExactMatch => [GenerateUntil, MultipleChoice].contains(&output),
            Self::Perplexity => output == Loglikelihood,
            _ => output == LoglikelihoodRolling,
        }
    }
}

/// A way to read an answer out of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterConfig {
    /// What figures by it are called after the comma.
    pub name: String,
    /// Its steps.
    pub filter: Vec<FilterStep>,
}

/// A step of a filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "function", rename_all = "snake_case", deny_unknown_fields)]
pub enum FilterStep {
    /// What a pattern finds.
    Regex {
        /// The pattern; of several groups, the first that holds anything.
        #[serde(default = "answer_pattern")]
        regex_pattern: String,
        /// Which of several finds; from the end if negative.
        #[serde(default)]
        group_select: i64,
        /// What stands for nothing found.
        #[serde(default = "invalid")]
        fallback: String,
    },
    /// Of repeated answers, the first.
    TakeFirst,
    /// In small letters.
    Lowercase,
    /// In capitals.
    Uppercase,
    /// Without white space around it.
    RemoveWhitespace,
}

fn generate_until() -> OutputType {
    OutputType::GenerateUntil
}

fn empty() -> Value {
    Value::String(String::new())
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

fn one() -> usize {
    1
}

fn answer_pattern() -> String {
    r"#### (\-?[0-9\.\,]+)".into()
}

fn invalid() -> String {
    "[invalid]".into()
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl TaskConfig {
    /// Reads a task's file.
    ///
    /// # Errors
    /// An unknown key, by name; a value that is not understood; keys that do not go together.
    pub fn parse(yaml: &str) -> Result<Self, TaskError> {
        let file = yaml::parse(yaml).map_err(TaskError::Config)?;
        let config: Self =
            serde_json::from_value(file).map_err(|e| TaskError::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// What is measured.
    pub fn metrics(&self) -> Vec<MetricConfig> {
        if let Some(list) = &self.metric_list {
            return list.clone();
        }
        let usual: &[MetricName] = match self.output_type {
            OutputType::Loglikelihood => &[MetricName::Perplexity, MetricName::Acc],
            OutputType::LoglikelihoodRolling => &[
                MetricName::WordPerplexity,
                MetricName::BytePerplexity,
                MetricName::BitsPerByte,
            ],
            OutputType::MultipleChoice => &[MetricName::Acc, MetricName::AccNorm],
            OutputType::GenerateUntil => &[MetricName::ExactMatch],
        };
        let plain = |metric: &MetricName| MetricConfig {
            metric: *metric,
            aggregation: None,
            higher_is_better: None,
            ignore_case: false,
            ignore_punctuation: false,
            ignore_numbers: false,
            regexes_to_ignore: Vec::new(),
        };
        usual.iter().map(plain).collect()
    }

    /// Where writing stops, and after how many tokens at the latest.
    pub fn until(&self) -> (Vec<String>, usize) {
        let given = self.generation_kwargs.as_ref();
        let until = match given.and_then(|kwargs| kwargs.until.clone()) {
            None => vec![self.fewshot_delimiter.clone()],
            Some(Until::One(one)) => vec![one],
            Some(Until::Many(many)) => many,
        };
        (
            until,
            given.and_then(|kwargs| kwargs.max_gen_toks).unwrap_or(256),
        )
    }

    fn check(&self) -> Result<(), TaskError> {
        let wrong = |what: String| Err(TaskError::Config(format!("task {}: {what}", self.task)));
        if self.repeats != 1 {
            return wrong("`repeats` other than 1 is not supported: answers are greedy".into());
        }
        if let Some(kwargs) = &self.generation_kwargs
            && (kwargs.do_sample || kwargs.temperature != 0.0)
        {
            return wrong(
                "only greedy writing is supported: `do_sample: false`, `temperature: 0`".into(),
            );
        }
        if self.output_type == OutputType::MultipleChoice && self.doc_to_choice.is_none() {
            return wrong("`output_type: multiple_choice` needs `doc_to_choice`".into());
        }
        if self.test_split.is_none() && self.validation_split.is_none() {
            return wrong("neither `test_split` nor `validation_split` says what is asked".into());
        }
        for MetricConfig {
            metric,
            aggregation,
            ..
        } in self.metrics()
        {
            let (name, own) = (metric.as_str(), metric.aggregation());
            if !metric.fits(self.output_type) {
                return wrong(format!("metric `{name}` is not one of this `output_type`"));
            }
            if let Some(other) = aggregation.filter(|other| other != own) {
                return wrong(format!(
                    "`{name}` is aggregated by `{own}`, not by `{other}`"
                ));
            }
        }
        Ok(())
    }
}
