//! A tiny random model measured beside lm-evaluation-harness and transformers: what
//! `fixtures/language/make.py` of `maquette-train` made.

use std::path::PathBuf;

use maquette::burn::tensor::Device;
use maquette::eval::rolling::Rolling;
use maquette::eval::tasks::Asking;
use maquette::train::language::{TaskData, TaskSource, Tasked, TasksJob, TextJob, measure, tasks};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../maquette-train/fixtures/language"
    ))
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn asked(names: &[&str], num_fewshot: usize, limit: Option<usize>) -> Tasked {
    let source = |name: &&str| TaskSource {
        name: (*name).to_owned(),
        yaml: std::fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap(),
        data: TaskData::Folder(folder()),
    };
    let asking = Asking {
        num_fewshot: Some(num_fewshot),
        limit,
        resamples: 2000,
        ..Asking::default()
    };
    tasks(TasksJob {
        model: folder().join("model"),
        tasks: names.iter().map(source).collect(),
        asking,
        out: None,
        device: Device::flex(),
        say: &mut |_| {},
    })
    .unwrap()
}

const ALL: [&str; 4] = ["choice", "word", "whole", "written"];

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-4 * want.abs().max(1.0)
}

#[test]
fn figures_and_errors_are_those_of_the_harness() {
    let expected = expected();
    for shots in [0, 2] {
        let done = asked(&ALL, shots, None);
        let expected = &expected[format!("shots{shots}")];
        for (task, figures) in expected["figures"].as_object().unwrap() {
            let row = &done.results["results"][task];
            for (name, want) in figures.as_object().unwrap() {
                let got = row[name].as_f64();
                let got = got.unwrap_or_else(|| panic!("{task}: no {name} in {row}"));
                let want = want.as_f64().unwrap();
                assert!(close(got, want), "{shots} {task} {name}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn prompts_and_answers_are_those_of_the_harness() {
    let expected = expected();
    for shots in [0, 2] {
        let done = asked(&ALL, shots, None);
        for (task, rows) in expected[format!("shots{shots}")]["samples"]
            .as_object()
            .unwrap()
        {
            for row in rows.as_array().unwrap() {
                let (prompt, answers, filter) = (&row[0], &row[1], &row[2]);
                let ours = done.samples[task].iter().find(|sample| {
                    sample["arguments"]["gen_args_0"]["arg_0"] == *prompt
                        && sample["filter"] == *filter
                });
                let ours =
                    ours.unwrap_or_else(|| panic!("{shots} {task}: nobody was asked {prompt}"));
                for (ours, theirs) in ours["resps"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .zip(answers.as_array().unwrap())
                {
                    same(&ours[0], &theirs[0]);
                }
            }
        }
    }
}

/// Two answers, whether numbers are written as such or as text.
fn same(ours: &Value, theirs: &Value) {
    let number = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    match (ours.as_array(), theirs.as_array()) {
        (Some(ours), Some(theirs)) => {
            same(&ours[0], &theirs[0]);
            let greedy = matches!(&theirs[1], Value::Bool(true)) || theirs[1] == "True";
            assert_eq!(ours[1], greedy);
        }
        _ => match (number(ours), number(theirs)) {
            (Some(ours), Some(theirs)) => assert!(close(ours, theirs), "{ours}, not {theirs}"),
            _ => assert_eq!(ours, theirs),
        },
    }
}

/// A row's answers do not depend on the tasks and rows beside it.
#[test]
fn answers_do_not_depend_on_their_company() {
    let together = asked(&ALL, 2, None);
    for task in ALL {
        let alone = asked(&[task], 2, Some(5));
        for (alone, together) in alone.samples[task]
            .iter()
            .zip(&together.samples[task])
            .take(5)
        {
            assert_eq!(alone, together);
        }
    }
}

#[test]
fn sliding_windows_give_the_loss_of_transformers() {
    let text = std::fs::read_to_string(folder().join("text.txt")).unwrap();
    for (rule, want) in expected()["strided_loss"].as_object().unwrap() {
        let (context, stride) = rule.split_once('/').unwrap();
        let done = measure(TextJob {
            model: folder().join("model"),
            text: text.clone(),
            rolling: Rolling::Strided,
            context: Some(context.parse().unwrap()),
            stride: Some(stride.parse().unwrap()),
            metrics: vec!["loss".into()],
            device: Device::flex(),
            say: &mut |_| {},
        })
        .unwrap();
        let (got, want) = (done.metrics["loss"], want.as_f64().unwrap());
        assert!((got - want).abs() < 1e-4, "{rule}: {got}, not {want}");
    }
}
