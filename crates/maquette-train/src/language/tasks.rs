//! Few-shot tasks asked of a model.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use maquette_data::stories;
use maquette_eval::rolling::{Cut, Rolling, windows};
use maquette_eval::tasks::{
    Answer, Asking, DataFiles, Doc, Request, Scored, Task, TaskConfig, TaskError,
};
use maquette_generate::likelihood::Scorer;
use maquette_generate::sampling::Decoding;
use maquette_generate::text::{GenerateOptions, complete_ids};
use maquette_models::Gpt;
use maquette_rng::{Stream, rng};
use serde_json::{Map, Value, json};

use super::LanguageModel;
use crate::TrainError;
use crate::files::{create_folder, write_atomic};

/// A task's file and where its data are.
#[derive(Debug, Clone)]
pub struct TaskSource {
    /// What errors call it.
    pub name: String,
    /// The text of the file.
    pub yaml: String,
    /// The data.
    pub data: TaskData,
}

/// Where a task's data are.
#[derive(Debug, Clone)]
pub enum TaskData {
    /// Paths are relative to this folder.
    Folder(PathBuf),
    /// Rows made by code for a split.
    BuiltIn(fn(&str) -> Vec<Doc>),
}

/// Rows about stories of the built-in grammar that no recipe learns from: `beginning`, `endings`,
/// `answer`; and the right ending apart, `ending_but_word` and `word`.
pub fn story_rows(split: &str) -> Vec<Doc> {
    let seed = if split == "test" {
        1_000_001
    } else {
        1_000_002
    };
    let row = |cloze: stories::Cloze| {
        let right = &cloze.endings[cloze.answer];
        let (before, word) = right.rsplit_once(' ').unwrap_or(("", right));
        let row = json!({
            "beginning": cloze.beginning, "endings": cloze.endings, "answer": cloze.answer,
            "ending_but_word": before, "word": word,
        });
        row.as_object().cloned().unwrap_or_default()
    };
    stories::cloze(100, seed).into_iter().map(row).collect()
}

/// What is asked of a model.
pub struct TasksJob<'a> {
    /// A run folder, a Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    /// The tasks, in order.
    pub tasks: Vec<TaskSource>,
    /// How they are asked.
    pub asking: Asking,
    /// The folder for `results.json` and `samples_*.jsonl`; not written when absent.
    pub out: Option<PathBuf>,
    /// Where to compute, without autodiff.
    pub device: Device,
    /// Told what is being done.
    pub say: &'a mut dyn FnMut(&str),
}

/// What came of it.
#[derive(Debug)]
pub struct Tasked {
    /// `results.json`, in the layout of lm-evaluation-harness 0.4.
    pub results: Value,
    /// Lines of `samples_<task>.jsonl`, by task.
    pub samples: BTreeMap<String, Vec<Value>>,
}

/// Asks tasks of a model. Every request is read by itself, so that no figure depends on what is asked
/// beside it.
///
/// # Errors
/// Not a language model, a task that is not understood, data that do not fit it, or a request longer
/// than the model reads.
pub fn tasks(job: TasksJob<'_>) -> Result<Tasked, TrainError> {
    let began = Instant::now();
    // 1. The tasks first: a mistake there should not cost the loading of a model.
    let tasks = job
        .tasks
        .iter()
        .map(open)
        .collect::<Result<Vec<Task>, _>>()?;
    (job.say)("loading the model");
    let model = LanguageModel::open(&job.model, &job.device)?;
    // 2. Ask.
    let mut scored = Vec::with_capacity(tasks.len());
    let mut asker = Asker {
        scorer: Scorer::new(&model.model),
        model: &model,
    };
    for task in &tasks {
        let name = &task.config().task;
        let questions = task.questions(job.asking).map_err(TrainError::other)?;
        let mut answers = Vec::with_capacity(questions.len());
        for (i, question) in questions.iter().enumerate() {
            (job.say)(&format!(
                "{name}: question {} of {}",
                i + 1,
                questions.len()
            ));
            let answer = |request| {
                asker.answer(request).map_err(|error| {
                    TrainError::other(format!("task {name}, row {}: {error}", question.doc_id))
                })
            };
            answers.push(
                question
                    .requests
                    .iter()
                    .map(answer)
                    .collect::<Result<Vec<_>, _>>()?,
            );
        }
        scored.push(
            task.score(&questions, &answers, job.asking)
                .map_err(TrainError::other)?,
        );
    }
    // 3. Report.
    let done: Vec<(&Task, &Scored)> = tasks.iter().zip(&scored).collect();
    let mut results = report(&done, job.asking);
    results["config"] = json!({
        "model": "maquette", "model_args": { "pretrained": job.model }, "batch_size": 1,
        "limit": job.asking.limit, "bootstrap_iters": job.asking.resamples,
        "fewshot_seed": job.asking.fewshot_seed,
    });
    results["model_name"] = json!(job.model);
    results["max_length"] = json!(model.model.seq_len());
    results["tokenizer_hash"] = json!(model.tokenizer_name()?);
    results["total_evaluation_time_seconds"] = json!(began.elapsed().as_secs_f64().to_string());
    let names = tasks.iter().map(|task| task.config().task.clone());
    let samples = names
        .zip(scored.into_iter().map(|scored| scored.samples))
        .collect();
    let tasked = Tasked { results, samples };
    if let Some(out) = &job.out {
        tasked.write(out)?;
    }
    Ok(tasked)
}

impl Tasked {
    fn write(&self, folder: &Path) -> Result<(), TrainError> {
        create_folder(folder)?;
        write_atomic(
            &folder.join("results.json"),
            format!("{:#}\n", self.results).as_bytes(),
        )?;
        for (task, samples) in &self.samples {
            let lines: String = samples.iter().map(|sample| format!("{sample}\n")).collect();
            let plain = |c: char| {
                if c.is_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '_'
                }
            };
            let task: String = task.chars().map(plain).collect();
            write_atomic(
                &folder.join(format!("samples_{task}.jsonl")),
                lines.as_bytes(),
            )?;
        }
        Ok(())
    }
}

fn report(done: &[(&Task, &Scored)], asking: Asking) -> Value {
    let each = |value: &dyn Fn(&Task, &Scored) -> Value| -> Value {
        let rows = done
            .iter()
            .map(|(task, scored)| (task.config().task.clone(), value(task, scored)));
        Value::Object(rows.collect())
    };
    let better = |task: &Task| -> Value {
        let metrics = task.config().metrics();
        let row = |m: &maquette_eval::tasks::MetricConfig| {
            let usual = m.metric.aggregation() == "mean";
            (
                m.metric.as_str().to_owned(),
                json!(m.higher_is_better.unwrap_or(usual)),
            )
        };
        Value::Object(metrics.iter().map(row).collect())
    };
    let version = |task: &Task| {
        let metadata = task.config().metadata.as_ref();
        metadata
            .and_then(|metadata| metadata.get("version").cloned())
            .unwrap_or(Value::Null)
    };
    json!({
        "results": each(&|task, scored| json!(scored.result(task.config()))),
        "group_subtasks": each(&|_, _| json!([])),
        "configs": each(&|task, _| json!(task.config())),
        "versions": each(&|task, _| version(task)),
        "n-shot": each(&|task, _| json!(task.num_fewshot(asking))),
        "higher_is_better": each(&|task, _| better(task)),
        "n-samples": each(&|task, scored| json!({ "original": task.len(), "effective": scored.asked })),
    })
}

fn open(source: &TaskSource) -> Result<Task, TrainError> {
    let at = |error: TaskError| TrainError::other(format!("{}: {error}", source.name));
    let config = TaskConfig::parse(&source.yaml).map_err(at)?;
    let (path, kwargs) = (config.dataset_path.clone(), config.dataset_kwargs.clone());
    let load = |split: &str| -> Result<Vec<Doc>, Loading> {
        let folder = match &source.data {
            TaskData::BuiltIn(rows) => return Ok(rows(split)),
            TaskData::Folder(folder) => folder,
        };
        let file = match kwargs.as_ref().map(|kwargs| &kwargs.data_files) {
            Some(DataFiles::One(file)) => folder.join(file),
            Some(DataFiles::Splits(files)) => folder.join(files.get(split).ok_or_else(|| {
                Loading(format!(
                    "`data_files` names no file for the split `{split}`"
                ))
            })?),
            None => {
                let path = folder.join(&path);
                match path.is_dir() {
                    true => path.join(format!("{split}.jsonl")),
                    false => path,
                }
            }
        };
        let reason = |e: std::io::Error| Loading(format!("{}: {e}", file.display()));
        let lines = BufReader::new(File::open(&file).map_err(reason)?).lines();
        rows(
            lines.map(|line| line.map_err(reason)),
            &file.display().to_string(),
        )
    };
    Task::new(config, load)
        .map_err(|Loading(what)| TrainError::other(format!("{}: {what}", source.name)))
}

/// Why data cannot be loaded.
struct Loading(String);

impl From<TaskError> for Loading {
    fn from(error: TaskError) -> Self {
        Self(error.to_string())
    }
}

fn rows(
    lines: impl Iterator<Item = Result<String, Loading>>,
    name: &str,
) -> Result<Vec<Doc>, Loading> {
    let mut rows = Vec::new();
    for (i, line) in lines.enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Map<String, Value> = serde_json::from_str(&line)
            .map_err(|e| Loading(format!("{name}, line {}: not a JSON object: {e}", i + 1)))?;
        rows.push(row);
    }
    Ok(rows)
}

/// Answers requests as lm-evaluation-harness has a causal model of `transformers` answer them.
struct Asker<'a> {
    model: &'a LanguageModel,
    scorer: Scorer<'a, Gpt>,
}

impl Asker<'_> {
    fn answer(&mut self, request: &Request) -> Result<Answer, TrainError> {
        match request {
            Request::Loglikelihood {
                context,
                continuation,
            } => {
                let (context, target) = self.pair(context, continuation)?;
                let scores = self
                    .scorer
                    .score(&context, &target)
                    .map_err(TrainError::other)?;
                let nats = scores.iter().map(|score| score.log_prob).sum();
                Ok(Answer::Loglikelihood(
                    nats,
                    scores.iter().all(|score| score.greedy),
                ))
            }
            Request::Rolling { text } => self.rolling(text).map(Answer::Rolling),
            Request::Generate {
                context,
                until,
                max_tokens,
            } => self.write(context, until, *max_tokens).map(Answer::Text),
        }
    }

    fn begin(&self) -> Result<u32, TrainError> {
        self.model.begin.ok_or_else(|| {
            TrainError::other(
                "the tokenizer has no token that begins or ends a text, and there is nothing before \
                 the text to be scored; train with a special token such as <|endoftext|>",
            )
        })
    }

    /// Tokens; a text that begins with the token that begins texts gets no second one.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        let tokenizer = &self.model.tokenizer;
        let name = self.model.begin.and_then(|id| tokenizer.id_to_token(id));
        match name.is_some_and(|name| text.starts_with(&name)) {
            true => tokenizer.encode(text).map_err(TrainError::other),
            false => self.model.encode(text),
        }
    }

    /// Context and continuation as tokens. White space at the end of the context belongs to the
    /// continuation; both are cut where the tokens of the context alone end.
    fn pair(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>), TrainError> {
        let (mut before, target) = if context.is_empty() {
            let begin = self.begin()?;
            let mut target = self
                .model
                .tokenizer
                .encode(continuation)
                .map_err(TrainError::other)?;
            if target.first() == Some(&begin) {
                target.remove(0);
            }
            (vec![begin], target)
        } else {
            let trimmed = context.trim_end();
            let mut whole = self.encode(&format!("{context}{continuation}"))?;
            let before = self.encode(trimmed)?;
            let target = whole.split_off(before.len().min(whole.len()));
            (before, target)
        };
        let longest = self.scorer.seq_len();
        if target.is_empty() || target.len() > longest {
            return Err(TrainError::other(format!(
                "the continuation has {} tokens; it must have 1 to {longest}",
                target.len()
            )));
        }
        // What does not fit is cut from the front.
        let room = longest + 1 - target.len();
        before.drain(..before.len().saturating_sub(room));
        Ok((before, target))
    }

    fn rolling(&mut self, text: &str) -> Result<f64, TrainError> {
        let context = self.scorer.seq_len();
        let begin = Some(self.begin()?);
        let ids = self.encode(text)?;
        let cut = Cut {
            rolling: Rolling::Harness,
            context,
            stride: context,
            begin,
        };
        let mut nats = 0.0;
        for window in windows(&ids, cut).map_err(TrainError::other)? {
            let target = &ids[window.target.clone()];
            let scores = self
                .scorer
                .score(&window.context, target)
                .map_err(TrainError::other)?;
            nats += scores.iter().map(|score| score.log_prob).sum::<f64>();
        }
        Ok(nats)
    }

    fn write(
        &self,
        context: &str,
        until: &[String],
        max_tokens: usize,
    ) -> Result<String, TrainError> {
        let LanguageModel {
            model,
            tokenizer,
            begin,
            ends,
        } = self.model;
        let mut ids = self.encode(context)?;
        let room = model
            .seq_len()
            .checked_sub(max_tokens)
            .filter(|room| *room > 0);
        let room = room.ok_or_else(|| {
            TrainError::other(format!(
                "up to {max_tokens} tokens are to be written, which leaves no room for a question in \
                 the model's context of {}; give a smaller `max_gen_toks`",
                model.seq_len()
            ))
        })?;
        ids.drain(..ids.len().saturating_sub(room));
        if ids.is_empty() {
            ids.extend(begin);
        }
        let options = GenerateOptions {
            max_tokens,
            stop: until
                .iter()
                .filter(|stop| !stop.is_empty())
                .cloned()
                .collect(),
            end_tokens: ends.clone(),
            decoding: Decoding::greedy(),
            ..GenerateOptions::default()
        };
        let unused = &mut rng(0, Stream::Sample, 0);
        let go_on = |_: &str| std::ops::ControlFlow::Continue(());
        let made = complete_ids(model, tokenizer, &ids, &options, unused, go_on)
            .map_err(TrainError::other)?;
        // As the harness decodes: what was written by itself, cut before what stops it.
        let text = tokenizer
            .decode_visible(&made.ids)
            .map_err(TrainError::other)?;
        let cut = options.stop.iter().fold(text.as_str(), |text, stop| {
            text.split(stop.as_str()).next().unwrap_or_default()
        });
        Ok(cut.to_owned())
    }
}
