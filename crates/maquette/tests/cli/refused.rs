//! Recipes, data, runs and folders that cannot be used, and what is said then.

use std::fs;

use serde_json::Value;

use crate::common::{Bench, TINY_GPT, newest_checkpoint};

#[test]
fn recipes_that_cannot_be_used() {
    let bench = Bench::new();
    bench
        .run("train no-such-recipe")
        .fails(2, &["no recipe called `no-such-recipe`", "glyphs"]);
    bench.write("typo.toml", TINY_GPT.replace("lr =", "learning_rate ="));
    bench.run("train typo.toml").fails(
        2,
        &["unknown key `learning_rate`", "allowed: kind, lr", "typo:"],
    );
    bench.write("value.toml", TINY_GPT.replace("\"adamw\"", "\"adamwish\""));
    bench
        .run("train value.toml")
        .fails(2, &["adamwish", "muon"]);
    bench
        .run("train tiny.toml --set train.batsch=3")
        .fails(2, &["batsch", "--set"]);
    bench
        .run("train tiny.toml --set train.batch=many")
        .fails(2, &["train.batch=many"]);
    bench
        .run("train tiny.toml --set train.batch")
        .fails(2, &["no `=`"]);
    bench
        .run("train tiny.toml --device abacus")
        .fails(2, &["abacus", "cpu"]);
    assert_eq!(bench.run("train").code, 2);
    assert_eq!(bench.run("frobnicate").code, 2);
}

#[test]
fn text_that_cannot_be_used() {
    let bench = Bench::new();
    let path = |text: &str| {
        TINY_GPT
            .replace("source = \"stories\"", text)
            .replace("count = 60\n", "")
    };
    bench.write("file.toml", path("source = \"path\""));
    bench.run("train file.toml").fails(1, &["--data"]);
    bench
        .run("train file.toml --data nowhere.txt")
        .fails(1, &["nowhere.txt"]);
    bench.write("latin1.txt", b"caf\xe9 au lait, again and again");
    bench
        .run("train file.toml --data latin1.txt")
        .fails(1, &["latin1.txt", "UTF-8", "3"]);
    bench.write("short.txt", "too short");
    bench
        .run("train file.toml --data short.txt")
        .fails(1, &["16"]);
    bench.write("enough.txt", "some words, and some more words. ".repeat(20));
    bench
        .run("train file.toml --data enough.txt --set train.batch=100000")
        .fails(1, &["100000"]);
    assert!(!bench.path("runs").exists(), "nothing is left behind");
}

fn idx(magic: u32, dims: &[u32], bytes: usize) -> Vec<u8> {
    let mut file = magic.to_be_bytes().to_vec();
    dims.iter().for_each(|dim| file.extend(dim.to_be_bytes()));
    file.extend((0..bytes).map(|i| i as u8 % 2));
    file
}

#[test]
fn images_that_cannot_be_used() {
    let bench = Bench::new();
    let vae = "train vae-mnist --set train.steps=1 --data";
    bench.run(&format!("{vae} nowhere")).fails(1, &["nowhere"]);
    fs::create_dir(bench.path("empty")).unwrap();
    bench.run(&format!("{vae} empty")).fails(1, &["empty"]);
    bench.write("broken/a/1.png", b"\x89PNG\r\n\x1a\nnot really");
    bench.run(&format!("{vae} broken")).fails(1, &["1.png"]);

    let set = |name: &str, images: Vec<u8>, labels: Vec<u8>| {
        bench.write(&format!("{name}/train-images-idx3-ubyte"), images);
        bench.write(&format!("{name}/train-labels-idx1-ubyte"), labels);
    };
    let labels = idx(0x801, &[10], 10);
    set("truncated", idx(0x803, &[10, 28, 28], 100), labels.clone());
    bench
        .run(&format!("{vae} truncated"))
        .fails(1, &["train-images-idx3-ubyte"]);
    set("magic", idx(0x1234, &[10, 28, 28], 7840), labels.clone());
    bench
        .run(&format!("{vae} magic"))
        .fails(1, &["train-images-idx3-ubyte"]);
    set("zero", Vec::new(), labels.clone());
    bench
        .run(&format!("{vae} zero"))
        .fails(1, &["train-images-idx3-ubyte"]);
    set("counts", idx(0x803, &[9, 28, 28], 9 * 784), labels.clone());
    bench.run(&format!("{vae} counts")).fails(1, &["9", "10"]);
    set("small", idx(0x803, &[10, 28, 28], 7840), labels);
    bench.run(&format!("{vae} small")).fails(1, &["128"]);
}

#[test]
fn runs_that_cannot_go_on() {
    let bench = Bench::new();
    bench
        .run("train --resume nowhere")
        .fails(1, &["nowhere", "not a run"]);
    bench.run("train tiny.toml --out run -q").succeeds();
    bench
        .run("train tiny.toml --out run")
        .fails(1, &["not empty"]);
    bench
        .run("train --resume run --set optimizer.lr=0.5")
        .fails(1, &["optimizer.lr", "0.5"]);

    let other = fs::File::create(bench.path("run/.lock")).unwrap();
    other.lock().unwrap();
    bench
        .run("train --resume run")
        .fails(1, &["another process", "run"]);
    drop(other);

    let checkpoint = newest_checkpoint(&bench.path("run"));
    let file = fs::read_dir(&checkpoint)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("model"))
        .unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    bench
        .run("train --resume run")
        .fails(1, &["damaged", "checkpoint"]);
}

#[test]
fn data_that_changed_under_a_run() {
    let bench = Bench::new();
    bench.write(
        "file.toml",
        TINY_GPT
            .replace("source = \"stories\"", "source = \"path\"")
            .replace("count = 60\n", ""),
    );
    bench.write(
        "text.txt",
        "a text of some length, long enough to train on. ".repeat(20),
    );
    bench
        .run("train file.toml --data text.txt --out run -q")
        .succeeds();
    bench.write(
        "text.txt",
        "a text of same length, long enough to train on. ".repeat(20),
    );
    bench
        .run("train --resume run")
        .fails(1, &["data has changed"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_keeps_the_last_checkpoint() {
    // /dev/full cannot hold a folder; a file-size limit makes every larger write fail the same way.
    let bench = Bench::new();
    let script = format!(
        "ulimit -f 8; exec {} train tiny.toml --out run -q --set model.d_model=64",
        assert_cmd::cargo::cargo_bin("maquette").display()
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &format!("trap '' XFSZ; {script}")])
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("could not") && stderr.contains("checkpoint"),
        "{stderr}"
    );
    let finished = fs::read_dir(bench.path("run/checkpoints")).map_or(0, |all| {
        all.flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("step-"))
            .count()
    });
    assert_eq!(finished, 0, "a half-written checkpoint counts as none");
}

#[test]
fn a_model_folder_with_a_missing_or_misshapen_tensor() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out run -q").succeeds();
    let path = bench.path("run/model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(whole[8..8 + header].to_vec()).unwrap();

    let renamed = text.replacen("wte.weight", "wtf.weight", 1);
    fs::write(
        &path,
        [&whole[..8], renamed.as_bytes(), &whole[8 + header..]].concat(),
    )
    .unwrap();
    bench
        .run("generate run --max-tokens 2")
        .fails(1, &["wte.weight"]);

    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    bench
        .run("generate run --max-tokens 2")
        .fails(1, &["model.safetensors"]);

    fs::write(&path, &whole).unwrap();
    let config = fs::read_to_string(bench.path("run/config.json")).unwrap();
    fs::write(
        bench.path("run/config.json"),
        config.replace("\"n_positions\": 16", "\"n_positions\": 32"),
    )
    .unwrap();
    bench
        .run("generate run --max-tokens 2")
        .fails(1, &["wpe.weight", "32", "16"]);
}

/// A safetensors file out of its header and this many bytes of data.
fn safetensors(header: &str, bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + bytes, 0);
    file
}

#[test]
fn weights_whose_offsets_make_no_sense() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out run").succeeds();
    let tensor = |name: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{from},{to}]}}"#)
    };
    let overlap = format!("{{{},{}}}", tensor("a", 0, 8), tensor("b", 4, 12));
    let beyond = format!("{{{}}}", tensor("a", 0, u64::MAX));
    let other_size = format!("{{{}}}", tensor("a", 0, 12));
    let huge = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#;
    for header in [&overlap, &beyond, &other_size, huge] {
        bench.write("run/model.safetensors", safetensors(header, 12));
        let ran = bench.run("generate run --prompt a --max-tokens 2");
        ran.fails(1, &["model.safetensors", "safetensors"]);
    }
    // A header that announces more than there is.
    let mut file = safetensors(&overlap, 12);
    file[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    bench.write("run/model.safetensors", file);
    bench
        .run("generate run --prompt a --max-tokens 2")
        .fails(1, &["model.safetensors"]);
}

#[test]
fn a_folder_whose_files_contradict_each_other() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out run").succeeds();
    let path = bench.path("run/config.json");
    let whole = fs::read_to_string(&path).unwrap();
    let config: Value = serde_json::from_str(&whole).unwrap();
    let refused = |key: &str, value: Value, words: &[&str]| {
        let mut config = config.clone();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        bench
            .run("generate run --prompt a --max-tokens 2")
            .fails(1, words);
    };
    // The architecture by its name, and those that are known.
    refused(
        "model_type",
        "falcon".into(),
        &[
            "falcon", "gpt2", "llama", "mistral", "mixtral", "qwen2", "qwen3",
        ],
    );
    refused(
        "n_embd",
        32.into(),
        &["model.safetensors", "wte.weight", "16]", "32]"],
    );
    refused("n_layer", 3.into(), &["model.safetensors", "h.1."]);
    refused("vocab_size", 7.into(), &["model.safetensors", "7"]);
    refused(
        "n_positions",
        serde_json::json!(9_000_000_000_000_000u64),
        &["seq_len", "9000000000000000"],
    );
    fs::write(&path, whole).unwrap();
    // A tokenizer of another model.
    let other = "tokenizer train tiny.toml --kind bpe --vocab-size 300 --out run/tokenizer.json";
    bench.run(other).succeeds();
    let ran = bench.run("generate run --prompt a --max-tokens 2");
    ran.fails(1, &["the tokenizer has", "the model's embedding only"]);
    bench.write("text.txt", "a text");
    bench
        .run("evaluate run --data text.txt --stride 1")
        .fails(1, &["the tokenizer has", "the model's embedding only"]);
}
