//! The binary as a user meets it: exit codes, JSON, errors that teach, on tiny budgets.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use maquette::generate::image::{Picture, encode_png};
use serde_json::Value;
use tempfile::TempDir;

/// A tiny language model: a second or so on any machine.
const TINY_GPT: &str = r#"
summary = "test"
family = "gpt"
[data]
source = "stories"
count = 60
[tokenizer]
kind = "char"
[model]
n_layers = 1
n_heads = 2
d_model = 16
seq_len = 16
[optimizer]
kind = "adamw"
lr = 1e-2
[train]
steps = 12
batch = 4
checkpoint_every = 4
[sample]
count = 1
[sample.options]
max_tokens = 8
"#;

struct Bench {
    dir: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The JSON object on the last line of stdout.
    fn json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{error}: {line}\n{}", self.stderr))
    }

    /// It failed with this code and said all of this.
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        let flat = self.stderr.replace('\n', " ").replace("│", " ");
        let flat = flat.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "no `{word}` in: {}", self.stderr);
        }
    }

    fn succeeds(self) -> Self {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("tiny.toml"), TINY_GPT).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn run(&self, arguments: &str) -> Ran {
        let output = Command::cargo_bin("maquette")
            .unwrap()
            .current_dir(self.dir.path())
            .env_remove("MAQUETTE_DATA")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Leaves of a finished run of 12 steps what a kill after step 4 would have.
    fn cut_after_the_first_checkpoint(&self, run: &str) {
        let run = self.path(run);
        for file in ["model.safetensors", "result.json", "report.html"] {
            fs::remove_file(run.join(file)).unwrap();
        }
        for step in [8, 12] {
            fs::remove_dir_all(run.join(format!("checkpoints/step-{step:08}"))).unwrap();
        }
    }

    fn weights(&self, run: &str) -> Vec<u8> {
        fs::read(self.path(run).join("model.safetensors")).unwrap()
    }
}

fn newest_checkpoint(run: &Path) -> PathBuf {
    let mut all: Vec<_> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    all.sort();
    all.pop().unwrap()
}

#[test]
fn train_evaluate_generate() {
    let bench = Bench::new();
    let trained = bench
        .run("train tiny.toml --out run --json")
        .succeeds()
        .json();
    assert_eq!(trained["run"], "run");
    assert_eq!(trained["steps"], 12);
    let loss = trained["metrics"]["validation_loss"].as_f64().unwrap();
    for file in [
        "recipe.toml",
        "metrics.jsonl",
        "report.html",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    ] {
        assert!(bench.path("run").join(file).is_file(), "{file}");
    }

    let evaluated = bench.run("evaluate run --json").succeeds().json();
    assert_eq!(
        evaluated["metrics"]["validation_loss"].as_f64().unwrap(),
        loss
    );
    bench
        .run("evaluate run --metrics bleu")
        .fails(1, &["no metric `bleu`", "validation_loss"]);

    let made = bench
        .run("generate run --prompt Once --max-tokens 12 -n 2 --seed 3 --json")
        .succeeds()
        .json();
    assert_eq!(made["outputs"].as_array().unwrap().len(), 2);
    let again = bench
        .run("generate run --prompt Once --max-tokens 12 -n 2 --seed 3 --json")
        .succeeds()
        .json();
    assert_eq!(made, again);
}

#[test]
fn the_same_seed_gives_the_same_weights_and_another_gives_others() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out a -q").succeeds();
    bench.run("train tiny.toml --out b -q").succeeds();
    bench.run("train tiny.toml --out c -q --seed 9").succeeds();
    bench
        .run("train tiny.toml --out one -q --threads 1")
        .succeeds();
    assert_eq!(
        bench.weights("a"),
        bench.weights("one"),
        "whatever the number of threads"
    );
    assert_eq!(bench.weights("a"), bench.weights("b"));
    assert_ne!(bench.weights("a"), bench.weights("c"));
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out whole -q").succeeds();
    bench.run("train tiny.toml --out cut -q").succeeds();
    bench.cut_after_the_first_checkpoint("cut");
    bench.run("train --resume cut -q").succeeds();
    assert_eq!(bench.weights("whole"), bench.weights("cut"));
    let lines = |run: &str| {
        fs::read_to_string(bench.path(run).join("metrics.jsonl"))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(lines("whole"), lines("cut"), "no record twice");
}

/// A folder of small pictures: `part/class/n.png`.
fn picture_folder(bench: &Bench, folder: &str, parts: &[(&str, usize)]) {
    for (part, count) in parts {
        for i in 0..*count {
            let class = ["dark", "light"][i % 2];
            let pixels: Vec<u8> = (0..64)
                .map(|at| (at * (i + 1) % 100 + i % 2 * 150) as u8)
                .collect();
            let picture = Picture::new(8, 8, 1, pixels).unwrap();
            let picture = encode_png(&picture, &[]).unwrap();
            bench.write(&format!("{folder}/{part}/{class}/{i}.png"), picture);
        }
    }
}

#[test]
fn a_folder_of_pictures_is_streamed_and_resumed_where_it_was() {
    let bench = Bench::new();
    picture_folder(&bench, "pictures", &[("train", 60), ("test", 10)]);
    let train = "train vae-mnist --data pictures --set data.streaming=true --set data.shuffle_buffer=16 \
                 --set train.batch=8 --steps 12 --set train.checkpoint_every=4 -q";
    bench.run(&format!("{train} --out whole")).succeeds();
    bench.run(&format!("{train} --out cut")).succeeds();
    bench.cut_after_the_first_checkpoint("cut");
    bench.run("train --resume cut -q").succeeds();
    assert_eq!(bench.weights("whole"), bench.weights("cut"));

    // Classes are folders, and both parts must have the same.
    fs::rename(
        bench.path("pictures/test/light"),
        bench.path("pictures/test/bright"),
    )
    .unwrap();
    bench
        .run(&format!("{train} --out other"))
        .fails(1, &["other classes", "bright", "light"]);
    fs::remove_dir_all(bench.path("pictures/test")).unwrap();
    bench
        .run(&format!("{train} --out none"))
        .fails(1, &["test"]);
}

#[test]
fn bf16_is_part_of_the_recipe_and_resumes_in_the_same_bytes() {
    let bench = Bench::new();
    let bf16 = "--set train.precision=bf16";
    bench.run("train tiny.toml --out exact -q").succeeds();
    bench
        .run(&format!("train tiny.toml --out whole -q {bf16}"))
        .succeeds();
    assert_ne!(bench.weights("exact"), bench.weights("whole"));
    let recipe = fs::read_to_string(bench.path("whole/recipe.toml")).unwrap();
    assert!(recipe.contains("precision = \"bf16\""), "{recipe}");
    bench
        .run(&format!("train tiny.toml --out cut -q {bf16}"))
        .succeeds();
    bench.cut_after_the_first_checkpoint("cut");
    bench.run("train --resume cut -q").succeeds();
    assert_eq!(bench.weights("whole"), bench.weights("cut"));
    bench
        .run("train tiny.toml --set train.precision=fp8")
        .fails(2, &["train.precision", "fp8", "bf16"]);
}

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
fn a_learning_rate_that_diverges_is_named() {
    let bench = Bench::new();
    bench
        .run("train tiny.toml --out run --set optimizer.lr=1e9 --set train.steps=200")
        .fails(1, &["diverged", "step", "optimizer.lr"]);
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

#[test]
fn a_dry_run_says_what_training_would_take() {
    let bench = Bench::new();
    let plan = bench
        .run("train tiny.toml --dry-run --json")
        .succeeds()
        .json();
    assert!(plan["parameters"].as_u64().unwrap() > 1000);
    assert!(plan["seconds_per_step"].as_f64().unwrap() > 0.0);
    assert!(
        plan["recipe"]
            .as_str()
            .unwrap()
            .contains("grad_accumulation")
    );
    assert!(!bench.path("runs").exists());
}

#[test]
fn a_picture_is_replayed_byte_for_byte() {
    let bench = Bench::new();
    let tiny = "--set train.steps=3 --set evaluate.samples=0 --set sample.count=2 --set data.glyphs.per_class=20";
    bench
        .run(&format!("train glyphs --out run -q {tiny}"))
        .succeeds();
    let made = bench
        .run("generate run --label B,A -n 3 --seed 5 --steps 3 --out pictures --json")
        .succeeds()
        .json();
    assert_eq!(made["outputs"].as_array().unwrap().len(), 3);
    for name in ["0000.png", "0002.png", "grid.png"] {
        let picture = format!("pictures/{name}");
        bench
            .run(&format!("generate --replay {picture} --out again.png"))
            .succeeds();
        assert_eq!(
            fs::read(bench.path(&picture)).unwrap(),
            fs::read(bench.path("again.png")).unwrap(),
            "{name}"
        );
    }
    bench
        .run("generate run --label 7Z")
        .fails(1, &["7Z", "A, B"]);
    bench.write("plain.txt", "no picture");
    bench
        .run("generate --replay plain.txt")
        .fails(1, &["plain.txt"]);
    fs::write(bench.path("run/model.safetensors"), b"other").unwrap();
    bench
        .run("generate --replay pictures/0000.png --out again.png")
        .fails(1, &["weights"]);
}

#[test]
fn experts_are_trained_and_their_load_is_told() {
    let bench = Bench::new();
    let recipe = TINY_GPT.replace(
        "d_model = 16",
        "d_model = 16\nbias = false\ntied_head = false\npositions = \"rotary\"\nnorm = \"rms-norm\"\n\
         mlp = \"swiglu\"\nexperts = { count = 3, active = 2 }",
    );
    bench.write("experts.toml", &recipe);
    let json = bench
        .run("train experts.toml --json --out run")
        .succeeds()
        .json();
    let used = json["metrics"]["validation_experts_used"].as_f64().unwrap();
    assert!(0.0 < used && used <= 1.0 + 1e-9, "{used}");
    let config = fs::read_to_string(bench.path("run/config.json")).unwrap();
    assert!(config.contains("MixtralForCausalLM"), "{config}");
    bench
        .run("generate run --prompt a --max-tokens 3 --json")
        .succeeds();
    // Converting a folder keeps its weights.
    bench.run("convert run copy").succeeds();
    assert_eq!(bench.weights("run"), bench.weights("copy"));
    // A tokenizer of more tokens than the embedding has rows is refused.
    bench
        .run("tokenizer train tiny.toml --kind byte --out copy/tokenizer.json")
        .succeeds();
    bench
        .run("generate copy --prompt a")
        .fails(1, &["256 tokens", "do not belong together"]);
    bench
        .run("convert run/tokenizer.json copy")
        .fails(2, &["neither a folder nor a .gguf or .bin"]);
}

#[test]
fn one_text_becomes_another() {
    let bench = Bench::new();
    let common = r#"
d_model = 16
n_layers = 1
n_heads = 2
seq_len = 32
[optimizer]
kind = "adamw"
lr = 1e-2
[train]
steps = 6
batch = 4
checkpoint_every = 3
"#;
    let t5 = "relative = { buckets = 8, max_distance = 16 }\nnorm = \"rms-norm\"\npre_norm = true\n\
              mlp = \"geglu\"\nbias = false\nscaled_scores = false";
    for (run, task, layout) in [("original", "reverse", ""), ("t5", "dates", t5)] {
        let recipe = format!(
            "summary = \"test\"\nfamily = \"seq2seq\"\n[data]\ntask = \"{task}\"\ncount = 40\n\
             held_out = 10\n[model]\n{layout}{common}"
        );
        bench.write("pairs.toml", recipe);
        let json = bench
            .run(&format!("train pairs.toml --json --out {run}"))
            .succeeds()
            .json();
        assert!(json["metrics"]["test_exact"].is_f64(), "{json}");
        let again = bench
            .run(&format!("evaluate {run} --json"))
            .succeeds()
            .json();
        assert_eq!(again["metrics"]["test_loss"], json["metrics"]["test_loss"]);
        bench
            .run(&format!("generate {run}"))
            .fails(1, &["--prompt"]);
    }
    bench
        .run("generate original --prompt abc --json")
        .succeeds();
    bench
        .run(&format!("generate original --prompt {}", "a".repeat(33)))
        .fails(1, &["1 more than the model reads"]);
}

#[test]
fn masked_words_are_guessed_and_the_reader_is_tuned() {
    let bench = Bench::new();
    let recipe = TINY_GPT
        .replace(
            "family = \"gpt\"",
            "family = \"bert\"\npairing = \"sentence-order\"",
        )
        .replace("[model]", "[model]\npooler = true\nhead = \"pretraining\"")
        .replace(
            "kind = \"char\"",
            "kind = \"word-piece\"\nvocab_size = 200\n\
             special_tokens = [\"[UNK]\", \"[CLS]\", \"[SEP]\", \"[MASK]\"]",
        );
    let (recipe, _) = recipe.split_once("[sample]").unwrap();
    bench.write("bert.toml", recipe);
    let json = bench
        .run("train bert.toml --json --out run")
        .succeeds()
        .json();
    for name in [
        "test_loss",
        "test_accuracy",
        "test_bits_per_byte",
        "test_pair_accuracy",
        "unigram_loss",
        "bigram_accuracy",
        "neighbours_loss",
    ] {
        assert!(json["metrics"][name].is_f64(), "{name}: {json}");
    }
    let again = bench.run("evaluate run --json").succeeds().json();
    assert_eq!(again["metrics"]["test_loss"], json["metrics"]["test_loss"]);
    assert_eq!(
        again["metrics"]["bigram_loss"],
        json["metrics"]["bigram_loss"]
    );

    // Gaps are filled, with the page of who looks at whom.
    let made = bench
        .run("generate run --prompt the[MASK] --top-k 3 --attention look.html --json")
        .succeeds()
        .json();
    let gaps = made["outputs"][0]["gaps"].as_array().unwrap();
    assert_eq!((gaps.len(), gaps[0].as_array().unwrap().len()), (1, 3));
    let page = fs::read_to_string(bench.path("look.html")).unwrap();
    assert!(page.contains("Heads by block"));
    bench
        .run("generate run --prompt the")
        .fails(1, &["no gap to fill; write [MASK]"]);

    // The encoder learns something else.
    let tuned = "summary = \"t\"\nfamily = \"finetune\"\ninit = \"run\"\n[data]\ntask = \"classify\"\n\
        source = \"path\"\n[optimizer]\nkind = \"adamw\"\nlr = 1e-3\n[train]\nsteps = 2\nbatch = 4\n";
    let lines = (0..20).map(|i| {
        let label = ["low", "high"][i % 2];
        format!("{{\"text\": \"a story {i}\", \"label\": \"{label}\"}}\n")
    });
    bench.write("texts.jsonl", &lines.collect::<String>());
    bench.write("tuned.toml", tuned);
    for reader in ["bert", "bag-of-words"] {
        let json = bench
            .run(&format!(
                "train tuned.toml --data texts.jsonl --set reader={reader} --json --out {reader}"
            ))
            .succeeds()
            .json();
        assert!(json["metrics"]["test_accuracy_low"].is_f64(), "{json}");
        let again = bench
            .run(&format!("evaluate {reader} --json"))
            .succeeds()
            .json();
        assert_eq!(again["metrics"]["test_loss"], json["metrics"]["test_loss"]);
    }
    let config = fs::read_to_string(bench.path("bert/config.json")).unwrap();
    assert!(config.contains("\"high\""));
    let source = |task: &str, source: &str| {
        let sets = format!("--set data.task={task} --set data.source={source} --set data.count=20");
        bench.run(&format!("train tuned.toml {sets} --out {task}"))
    };
    source("tag", "heroes").succeeds();
    // The little reader reads sixteen tokens.
    source("answer", "whereabouts").fails(1, &["more than the model's"]);
    bench
        .run("train tuned.toml --set data.task=tag --set data.source=whereabouts")
        .fails(2, &["whereabouts to answer"]);
    bench.write("no-init.toml", &tuned.replace("init = \"run\"\n", ""));
    bench
        .run("train no-init.toml --data texts.jsonl")
        .fails(1, &["--set init="]);
}

#[test]
fn packed_documents_stay_apart() {
    let bench = Bench::new();
    let packed = "train tiny.toml --set data.packing=true --json --out";
    bench
        .run(&format!("{packed} none"))
        .fails(1, &["needs a token that closes a document"]);
    let sets = "--set tokenizer.special_tokens=[\"<|endoftext|>\"]";
    let json = bench.run(&format!("{packed} run {sets}")).succeeds().json();
    let again = bench.run("evaluate run --json").succeeds().json();
    assert_eq!(
        again["metrics"]["validation_loss"],
        json["metrics"]["validation_loss"]
    );
}

#[test]
fn tokenizers_round_trip() {
    let bench = Bench::new();
    bench.write(
        "text.txt",
        "the cat sat on the mat and the rat sat on the cat. ".repeat(30),
    );
    for kind in ["byte", "char", "bpe", "word-piece", "unigram"] {
        bench
            .run(&format!(
                "tokenizer train text.txt --kind {kind} --vocab-size 300 --out {kind}.json"
            ))
            .succeeds();
        // A word of the text for the kind that keeps to words, an unseen one for the others.
        let word = if kind == "word-piece" {
            "cat"
        } else {
            "catmat"
        };
        let encoded = bench
            .run(&format!("tokenizer encode {kind}.json {word} --json"))
            .succeeds()
            .json();
        let ids: Vec<String> = encoded["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        let decoded = bench
            .run(&format!(
                "tokenizer decode {kind}.json {} --json",
                ids.join(" ")
            ))
            .succeeds()
            .json();
        assert_eq!(decoded["text"], word, "{kind}");
    }
    let found = bench
        .run("tokenizer inspect bpe.json --text text.txt --json")
        .succeeds()
        .json();
    assert!(found["bytes_per_token"].as_f64().unwrap() > 2.0);
}

#[test]
fn a_model_goes_through_gguf_and_comes_back() {
    let bench = Bench::new();
    bench
        .run(
            "train tiny.toml --out run --set tokenizer.kind=bpe --set tokenizer.vocab_size=300 \
             --set model.positions=rotary --set model.norm=rms-norm --set model.mlp=swiglu \
             --set model.bias=false --set model.n_kv_heads=1",
        )
        .succeeds();
    let says = |model: &str| {
        let command =
            format!("generate {model} --prompt Once --max-tokens 12 --temperature 0 --json");
        let made = bench.run(&command).succeeds().json();
        made["outputs"][0]["ids"].clone()
    };
    let expected = says("run");
    for format in ["f32", "f16", "q8_0", "q4_k_m"] {
        let made = bench
            .run(&format!(
                "convert run {format}.gguf --quantize {format} --json"
            ))
            .succeeds()
            .json();
        assert_eq!(made["tokenizer"], true);
    }
    assert_eq!(says("f32.gguf"), expected);
    assert_eq!(says("q8_0.gguf").as_array().unwrap().len(), 12);
    bench.run("convert f32.gguf again").succeeds();
    assert_eq!(says("again"), expected);
    let size = |name: &str| fs::metadata(bench.path(name)).unwrap().len();
    assert!(size("q8_0.gguf") < size("f16.gguf"));

    bench
        .run("convert run folder --quantize q8_0")
        .fails(2, &["--quantize", ".gguf"]);
    bench
        .run("convert run x.gguf --quantize q3")
        .fails(2, &["q3", "q4_k_m"]);
    bench
        .run("convert tiny.toml x.gguf")
        .fails(2, &["neither a folder nor a .gguf"]);
    let bytes = fs::read(bench.path("f16.gguf")).unwrap();
    bench.write("cut.gguf", &bytes[..bytes.len() / 2]);
    bench
        .run("generate cut.gguf --prompt a")
        .fails(1, &["cut.gguf", "reaches beyond the file"]);
}

/// Expected values: sacreBLEU 2.6.0 and rouge-score 0.1.2 on the same files.
#[test]
fn texts_are_measured_as_the_reference_tools_measure_them() {
    let bench = Bench::new();
    bench.write(
        "out.txt",
        "The dog bit the man.\nIt wasn't surprising.\nThe man had just bitten him.\n",
    );
    bench.write(
        "a.txt",
        "The dog bit the man.\nIt was not unexpected.\nThe man bit him first.\n",
    );
    bench.write(
        "b.txt",
        "The dog had bit the man.\nNo one was surprised.\nThe man had bitten the dog.\n",
    );
    bench.write(
        "old.txt",
        "A dog bites man.\nIt was surprising.\nThe man has bitten.\n",
    );
    bench.write("short.txt", "one line\n");
    bench.write("bad.txt", b"caf\xe9\n");
    let close = |got: &Value, want: f64| {
        let got = got.as_f64().unwrap();
        assert!((got - want).abs() < 1e-9, "{got} is not {want}");
    };
    let measure = |arguments: &str| {
        let command = format!("metric {arguments} -r a.txt -r b.txt --json");
        bench.run(&command).succeeds().json()
    };
    let bleu = measure("bleu out.txt --segments --baseline old.txt");
    close(&bleu["metrics"]["bleu"], 48.530827009929865);
    close(&bleu["segments"]["bleu"][1], 14.794015674776452);
    let signature = bleu["signature"]["bleu"].as_str().unwrap();
    assert!(signature.starts_with("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"));
    assert!(
        bleu["comparisons"]["bleu"]["difference"]["value"]
            .as_f64()
            .unwrap()
            > 20.0
    );
    let bleu = measure("bleu out.txt --tokenize char --smooth floor --lowercase");
    close(&bleu["metrics"]["bleu"], 72.26568811456055);
    let chrf = measure("chrf out.txt --word-order 2");
    close(&chrf["metrics"]["chrf++"], 59.15310444399262);
    close(&measure("ter out.txt")["metrics"]["ter"], 40.0);
    let rouge = measure("rouge out.txt --stem");
    close(&rouge["metrics"]["rouge2"], 0.4666666666666667);
    close(&rouge["metrics"]["rougeLsum"], 0.6388888888888888);
    close(
        &measure("answers out.txt")["metrics"]["exact_match"],
        1.0 / 3.0,
    );
    let varied = bench
        .run("metric diversity out.txt --json")
        .succeeds()
        .json();
    // 14 words, of which "The" comes twice.
    close(&varied["metrics"]["distinct_1"], 13.0 / 14.0);

    let bleu = "metric bleu out.txt -r";
    bench
        .run(&format!("{bleu} short.txt"))
        .fails(2, &["out.txt has 3 lines", "short.txt has 1"]);
    bench
        .run(&format!("{bleu} none.txt"))
        .fails(1, &["cannot read none.txt"]);
    bench
        .run(&format!("{bleu} bad.txt"))
        .fails(1, &["bad.txt is not UTF-8", "byte 3"]);
    bench
        .run(&format!("{bleu} a.txt --smooth-value 2"))
        .fails(2, &["--smooth floor"]);
    bench.run("metric bleu out.txt").fails(2, &["--reference"]);
}

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
        let ran = bench.run(&format!(
            "train {} --dry-run --set train.steps=1 --data nowhere",
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

#[test]
fn bench_measures_a_suite_and_goes_on_without_a_peer() {
    let bench = Bench::new();
    let ran = bench
        .run("bench train vae-mnist --peers --python no-such-python --rounds 1 --seconds 0.01 --json")
        .succeeds();
    assert!(
        ran.stderr.contains("-m pip install torch=="),
        "{}",
        ran.stderr
    );
    let result = &ran.json()["results"][0];
    assert_eq!(result["suite"], "vae-mnist");
    assert_eq!(result["precision"], "f32");
    assert_eq!(result["unit"], "images/s");
    assert!(result["ours"].as_f64().is_some_and(|rate| rate > 0.0));
    assert!(result["plain_burn"].as_f64().is_some_and(|rate| rate > 0.0));
    for absent in ["peer", "peer_name", "ratio", "peer_peak_mb"] {
        assert!(result[absent].is_null(), "{absent} is {}", result[absent]);
    }
    let sides = result["sides"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(sides.iter().all(|side| side["loss"].as_f64().is_some()));

    bench
        .run("bench train no-such-suite")
        .fails(2, &["no-such-suite", "gpt-tiny"]);
    bench
        .run("bench train --seconds 0")
        .fails(2, &["--seconds"]);
}

#[test]
fn bench_holds_kernels_against_the_machine() {
    let ran = Bench::new()
        .run("bench kernels training --rounds 1 --json")
        .succeeds()
        .json();
    assert!(ran["peak_gflops"].as_f64().is_some_and(|peak| peak > 0.0));
    let results = ran["results"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(results.len() > 3);
    for result in results {
        assert!(result["share"].as_f64().is_some_and(|share| share > 0.0));
    }
}
