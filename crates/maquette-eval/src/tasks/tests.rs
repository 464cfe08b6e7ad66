use serde_json::json;

use super::*;

const CHOICE: &str = r#"
task: sums
dataset_path: sums.jsonl
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{q}} ="
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
metadata: {version: 1.0}
"#;

fn docs(n: usize) -> Vec<Doc> {
    let doc = |i: usize| json!({ "q": format!("{i}+1"), "options": [(i + 1).to_string(), "no", "none"], "answer": i % 2 });
    (0..n)
        .map(|i| doc(i).as_object().unwrap().clone())
        .collect()
}

fn task(yaml: &str) -> Task {
    let config = TaskConfig::parse(yaml).unwrap();
    Task::new(config, |split| -> Result<_, TaskError> {
        Ok(docs(if split == "train" { 30 } else { 4 }))
    })
    .unwrap()
}

fn asking(num_fewshot: usize) -> Asking {
    Asking {
        num_fewshot: Some(num_fewshot),
        ..Asking::default()
    }
}

#[test]
fn choices_are_asked_one_by_one_behind_examples() {
    let questions = task(CHOICE).questions(asking(0)).unwrap();
    assert_eq!(questions.len(), 4);
    let request = |context: &str, continuation: &str| Request::Loglikelihood {
        context: context.into(),
        continuation: continuation.into(),
    };
    assert_eq!(
        questions[1].requests[..2],
        [request("1+1 =", " 2"), request("1+1 =", " no")]
    );
    // random.Random(1234).sample(range(30), 2) is [24, 14]; the next [3, 0].
    let questions = task(CHOICE).questions(asking(2)).unwrap();
    let first = "24+1 = 25\n\n14+1 = 15\n\n0+1 =";
    assert_eq!(questions[0].requests[0], request(first, " 1"));
    let second = "3+1 = no\n\n0+1 = 1\n\n1+1 =";
    assert_eq!(questions[1].requests[0], request(second, " 2"));
    // With fewer rows the others stay what they are.
    let fewer = Asking {
        limit: Some(2),
        ..asking(2)
    };
    assert_eq!(task(CHOICE).questions(fewer).unwrap(), questions[..2]);
}

#[test]
fn a_question_is_no_example_of_itself() {
    let yaml = CHOICE.replace("training_split: train", "fewshot_split: test");
    for question in task(&yaml).questions(asking(3)).unwrap() {
        let Request::Loglikelihood { context, .. } = &question.requests[0] else {
            panic!("{question:?}");
        };
        let own = format!("{}+1 =", question.doc_id);
        assert_eq!(context.matches(&own).count(), 1, "{context}");
    }
    let error = task(&yaml).questions(asking(4)).unwrap_err();
    assert!(
        error.to_string().contains("4 examples asked for"),
        "{error}"
    );
    let first = yaml.replace(
        "metric_list",
        "fewshot_config: {sampler: first_n}\nmetric_list",
    );
    let questions = task(&first).questions(asking(1)).unwrap();
    let Request::Loglikelihood { context, .. } = &questions[0].requests[0] else {
        panic!("{questions:?}");
    };
    assert_eq!(context, "1+1 = no\n\n0+1 =");
}

#[test]
fn choices_are_scored_by_likelihood_and_by_likelihood_per_character() {
    let task = task(CHOICE);
    let questions = task.questions(asking(0)).unwrap();
    let likely = |nats: [f64; 3]| nats.map(|nats| Answer::Loglikelihood(nats, false)).to_vec();
    // Right are 0, 1, 0, 1. Per character of "1", "no", "none": -2, -1.5, -1.
    let answers = vec![likely([-2.0, -3.0, -4.0]); 4];
    let scored = task.score(&questions, &answers, asking(0)).unwrap();
    assert_eq!(scored.figures["acc,none"].0, 0.5);
    assert_eq!(scored.figures["acc_norm,none"].0, 0.0);
    assert_eq!(scored.samples.len(), 4);
    assert_eq!(scored.samples[1]["acc"], 0.0);
    assert_eq!(scored.samples[1]["resps"][0], json!([[-2.0, false]]));
    let row = scored.result(task.config()).0;
    assert_eq!(row["alias"], "sums");
    // s^2 = 4 * 1/4 / 3; error = sqrt(1/3) / 2.
    assert!((row["acc_stderr,none"].as_f64().unwrap() - (1f64 / 12.0).sqrt()).abs() < 1e-12);
}

#[test]
fn texts_are_filtered_and_compared() {
    let yaml = r#"
task: written
dataset_path: x.jsonl
validation_split: val
doc_to_text: "{{q}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["\n"], max_gen_toks: 8, do_sample: false, temperature: 0.0}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "= (\\d+)"}, {function: take_first}]
  - name: plain
    filter: [{function: take_first}]
metric_list: [{metric: exact_match, ignore_case: true}]
"#;
    let task = task(yaml);
    let questions = task.questions(asking(0)).unwrap();
    let until = vec!["\n".to_owned()];
    let request = Request::Generate {
        context: "0+1".into(),
        until,
        max_tokens: 8,
    };
    assert_eq!(questions[0].requests, [request]);
    let answers: Vec<Vec<Answer>> = ["0+1 = 1", "= 2", "3", "no"]
        .map(|text| vec![Answer::Text(text.into())])
        .into();
    let scored = task.score(&questions, &answers, asking(0)).unwrap();
    assert_eq!(scored.figures["exact_match,strict"].0, 0.5);
    assert_eq!(scored.figures["exact_match,plain"].0, 0.25);
    assert_eq!(scored.samples.len(), 8);
}

#[test]
fn likelihoods_of_continuations_and_texts() {
    let yaml = "task: t\ndataset_path: x\ntest_split: test\noutput_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: ' {{options[0]}}'\n";
    let one = task(yaml);
    let questions = one.questions(asking(0)).unwrap();
    let answers = vec![vec![Answer::Loglikelihood(-1.0, true)]; 4];
    let scored = one.score(&questions, &answers, asking(0)).unwrap();
    assert_eq!(scored.figures["acc,none"].0, 1.0);
    assert!((scored.figures["perplexity,none"].0 - 1f64.exp()).abs() < 1e-12);
    let whole = task(&yaml.replace("loglikelihood", "loglikelihood_rolling"));
    let questions = whole.questions(asking(0)).unwrap();
    assert_eq!(
        questions[0].requests,
        [Request::Rolling { text: " 1".into() }]
    );
    let answers = vec![vec![Answer::Rolling(-std::f64::consts::LN_2)]; 4];
    let scored = whole.score(&questions, &answers, asking(0)).unwrap();
    assert!((scored.figures["bits_per_byte,none"].0 - 0.5).abs() < 1e-12);
    assert_eq!(scored.figures["bits_per_byte,none"].1, None);
    // Two words as Python splits, the empty one before the space among them.
    assert!((scored.figures["word_perplexity,none"].0 - 2f64.sqrt()).abs() < 1e-12);
}

#[test]
fn files_that_are_not_understood_say_why() {
    let error = |yaml: &str| TaskConfig::parse(yaml).unwrap_err().to_string();
    let with = |line: &str| error(&format!("{CHOICE}{line}\n"));
    assert!(with("process_docs: !function utils.process").contains("process_docs"));
    assert!(with("gen_prefix: x").contains("gen_prefix"));
    assert!(with("repeats: 2").contains("repeats"));
    assert!(error(&CHOICE.replace("test_split: test", "")).contains("test_split"));
    assert!(error(&CHOICE.replace("metric: acc\n", "metric: bleurt\n")).contains("bleurt"));
    assert!(error(&CHOICE.replace("metric: acc\n", "metric: perplexity\n")).contains("perplexity"));
    assert!(error(&CHOICE.replace("aggregation: mean", "aggregation: max")).contains("max"));
    assert!(error("task: [").len() > 3);
    let task = task(&CHOICE.replace("doc_to_target: answer", "doc_to_target: '{{answer + 7}}'"));
    let error = task.questions(asking(0)).unwrap_err().to_string();
    assert!(error.contains("none of the 3 choices"), "{error}");
}
