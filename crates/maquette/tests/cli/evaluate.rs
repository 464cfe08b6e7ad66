//! `maquette evaluate` of language models: texts and few-shot tasks.

use std::fs;

use serde_json::{Value, json};

use crate::common::Bench;

fn trained(bench: &Bench) {
    bench
        .run(
            "train tiny.toml --out run --set tokenizer.kind=bpe --set tokenizer.vocab_size=300 \
             --set tokenizer.special_tokens=[\"<|endoftext|>\"] --set model.positions=rotary \
             --set model.norm=rms-norm --set model.mlp=swiglu --set model.bias=false --set model.seq_len=64",
        )
        .succeeds();
}

#[test]
fn a_text_is_measured_by_run_folder_and_gguf() {
    let bench = Bench::new();
    trained(&bench);
    bench.write("text.txt", "Once upon a time there was a cat. ".repeat(20));
    let measure = |model: &str, rest: &str| {
        let command = format!("evaluate {model} --data text.txt --json {rest}");
        bench.run(&command).succeeds().json()
    };
    let run = measure("run", "--stride 16");
    let metrics = &run["metrics"];
    let value = |name: &str| metrics[name].as_f64().unwrap();
    assert!((value("perplexity") - value("loss").exp()).abs() < 1e-6);
    assert!((value("bits_per_byte") - value("byte_perplexity").log2()).abs() < 1e-6);
    let signature = run["signature"]["perplexity"].as_str().unwrap();
    for part in [
        "windows=strided",
        "context=64",
        "stride=16",
        "begin=none",
        "tokenizer=",
    ] {
        assert!(signature.contains(part), "{signature}");
    }
    bench
        .run("convert run model.gguf --quantize f32")
        .succeeds();
    let gguf = measure("model.gguf", "--stride 16");
    let difference = gguf["metrics"]["loss"].as_f64().unwrap() - value("loss");
    assert!(difference.abs() < 1e-4, "{difference}");
    // Trained on built-in stories, whose place a text does not take: it is measured.
    let plain = measure("run", "--quiet");
    assert!(plain["metrics"]["word_perplexity"].is_number(), "{plain}");
    // The rules differ, and so do the figures.
    for windows in ["harness", "halves"] {
        let other = measure(
            "run",
            &format!("--windows {windows} --metrics bits-per-byte,perplexity"),
        );
        assert_eq!(other["metrics"].as_object().unwrap().len(), 2);
        assert_ne!(other["metrics"]["perplexity"], metrics["perplexity"]);
    }
    bench
        .run("evaluate run --data text.txt --context 65")
        .fails(
            1,
            &["a window of 65 tokens, but the model reads 64 at most"],
        );
    bench
        .run("evaluate run --data text.txt --stride 65")
        .fails(1, &["stride"]);
    bench
        .run("evaluate model.gguf")
        .fails(2, &["on which text", "--data"]);
    bench
        .run("evaluate model.gguf --data text.txt --metrics fid")
        .fails(1, &["no metric `fid`", "bits_per_byte"]);
}

const SUMS: &str = "task: sums
dataset_path: sums.jsonl
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: '{{q}} ='
doc_to_choice: '{{options}}'
doc_to_target: answer
";

const WRITTEN: &str = "task: written
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
fewshot_split: test
doc_to_text: '{{q}} ='
doc_to_target: '{{options[answer]}}'
generation_kwargs: {until: ['.'], max_gen_toks: 8}
";

#[test]
fn tasks_are_asked_and_written_down() {
    let bench = Bench::new();
    trained(&bench);
    let rows: String = (0..6)
        .map(|i| format!("{}\n", json!({ "q": format!("{i}+1"), "options": [" no", (i + 1).to_string()], "answer": 1 })))
        .collect();
    bench.write("tasks/sums.jsonl", rows);
    bench.write("tasks/sums.yaml", SUMS);
    bench.write("tasks/written.yaml", WRITTEN);
    let ask = |rest: &str| {
        let command =
            format!("evaluate run --tasks tasks/sums.yaml,tasks/written.yaml,story-ending {rest}");
        bench.run(&command).succeeds().json()
    };
    let all = ask("--num-fewshot 1 --limit 4 --out all --json");
    assert_eq!(all["metrics"].as_object().unwrap().len(), 5);
    let written: Value =
        serde_json::from_slice(&fs::read(bench.path("all/results.json")).unwrap()).unwrap();
    assert_eq!(written["results"], all["results"]);
    assert_eq!(
        written["n-samples"]["sums"],
        json!({ "original": 6, "effective": 4 })
    );
    assert_eq!(written["n-shot"]["sums"], 1);
    assert_eq!(written["configs"]["sums"]["output_type"], "multiple_choice");
    let samples = |folder: &str, task: &str| {
        let text =
            fs::read_to_string(bench.path(&format!("{folder}/samples_{task}.jsonl"))).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect::<Vec<Value>>()
    };
    let sums = samples("all", "sums");
    assert_eq!(sums.len(), 4);
    let context = sums[0]["arguments"]["gen_args_0"]["arg_0"]
        .as_str()
        .unwrap();
    assert!(context.ends_with("\n\n0+1 ="), "{context}");
    assert_eq!(samples("all", "written")[0]["filter"], "none");
    // No figure depends on how many are asked.
    ask("--num-fewshot 1 --limit 2 --out few --json");
    for task in ["sums", "written", "story-ending"] {
        assert_eq!(samples("few", task), samples("all", task)[..2], "{task}");
    }
}

#[test]
fn tasks_that_cannot_be_asked() {
    let bench = Bench::new();
    trained(&bench);
    bench.write("sums.yaml", SUMS);
    bench
        .run("evaluate run --tasks nothing")
        .fails(2, &["nothing", "story-ending"]);
    bench
        .run("evaluate run --tasks sums.yaml")
        .fails(1, &["sums.jsonl", "No such file"]);
    bench.write("sums.jsonl", "{\"q\": 1}\nno json\n");
    bench
        .run("evaluate run --tasks sums.yaml")
        .fails(1, &["sums.jsonl", "line 2"]);
    bench.write("sums.jsonl", "{\"q\": \"1\"}\n");
    bench
        .run("evaluate run --tasks sums.yaml")
        .fails(1, &["sums", "options"]);
    bench.write("sums.yaml", format!("{SUMS}process_docs: !function x.y\n"));
    bench
        .run("evaluate run --tasks sums.yaml")
        .fails(1, &["sums.yaml", "process_docs"]);
    bench.write("w.yaml", WRITTEN.replace("8}", "64}"));
    bench.write(
        "sums.jsonl",
        "{\"q\": \"1\", \"options\": [\"a\"], \"answer\": 0}\n",
    );
    bench
        .run("evaluate run --tasks w.yaml")
        .fails(1, &["64 tokens", "context of 64", "max_gen_toks"]);
    bench
        .run("evaluate run --num-fewshot 2")
        .fails(2, &["--tasks"]);
}
