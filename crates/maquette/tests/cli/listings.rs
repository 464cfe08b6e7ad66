//! What is listed, and help.

use std::fs;

use crate::common::Bench;

#[test]
fn every_built_in_recipe_is_compiled_in_and_parses() {
    let bench = Bench::new();
    let rows = bench.run("list recipes --json").succeeds().json();
    let listed: Vec<String> = rows["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap().to_owned())
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes");
    let mut files: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| {
            e.unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    files.sort();
    assert_eq!(listed, files);
    for row in rows["rows"].as_array().unwrap() {
        assert!(!row["summary"].as_str().unwrap().is_empty());
        // Parsing comes before data: a recipe that needs a path says so, and nothing else.
        let init = match row["family"] == "finetune" {
            true => " --set init=nowhere",
            false => "",
        };
        let ran = bench.run(&format!(
            "train {} --dry-run --set train.steps=1 --data nowhere{init}",
            row["name"].as_str().unwrap()
        ));
        assert!(
            ran.code == 0 || ran.stderr.contains("nowhere"),
            "{}: {}",
            row["name"],
            ran.stderr
        );
    }
}

#[test]
fn doctor_list_help_and_completions() {
    let bench = Bench::new();
    let found = bench.run("doctor --json").succeeds().json();
    assert!(found["threads"].as_u64().unwrap() > 0);
    for what in ["recipes", "data", "models", "runs", "labs"] {
        bench.run(&format!("list {what}")).succeeds();
    }
    for command in [
        "train",
        "generate",
        "evaluate",
        "tokenizer",
        "convert",
        "lab",
        "list",
        "doctor",
        "completions",
    ] {
        let help = bench.run(&format!("{command} --help")).succeeds();
        let example = help.stdout.contains("Example") || command == "tokenizer";
        assert!(example, "{command} --help has no example");
    }
    assert!(
        bench
            .run("completions bash")
            .succeeds()
            .stdout
            .contains("maquette")
    );
    assert!(
        bench
            .run("lab list")
            .succeeds()
            .stdout
            .contains("kl-divergence")
    );
    bench.run("lab 61").fails(2, &["61", "lab list"]);
}
