//! Models and data named by where the hub has them.

use std::fs;

use crate::common::Bench;

#[test]
fn hub_paths_are_found_in_the_cache() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out run").succeeds();
    let cache = "hub/hub/models--some--model";
    bench.write(&format!("{cache}/refs/main"), "abc123");
    let snapshot = bench.path(cache).join("snapshots/abc123");
    fs::create_dir_all(&snapshot).unwrap();
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    ] {
        fs::copy(bench.path("run").join(file), snapshot.join(file)).unwrap();
    }
    let says = |model: &str| {
        let command = format!("generate {model} --prompt Once --max-tokens 5 --json");
        bench.run(&command).succeeds().json()["outputs"][0]["ids"].clone()
    };
    let expected = says("run");
    for model in ["hf://some/model", "hf://some/model@abc123"] {
        assert_eq!(says(model), expected, "{model}");
    }
    bench
        .run("tokenizer encode hf://some/model Once")
        .succeeds();
    bench.run("convert hf://some/model copy").succeeds();
    assert_eq!(says("copy"), expected);
    let data = "hub/hub/datasets--some--texts";
    bench.write(&format!("{data}/refs/main"), "def");
    bench.write(
        &format!("{data}/snapshots/def/a.txt"),
        "It was a day. ".repeat(200),
    );
    bench
        .run("train tiny.toml --out texts --set data.source=path --data hf://datasets/some/texts/a.txt")
        .succeeds();
    bench.run("generate hf://some/other --prompt a").fails(
        1,
        &[
            "hf://some/other",
            "HF_HUB_OFFLINE",
            "hf download",
            "models--some--other",
        ],
    );
    bench
        .run("generate hf://other --prompt a")
        .fails(1, &["hf://org/name"]);
}
