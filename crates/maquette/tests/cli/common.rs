//! A folder to work in, the binary, and what it said.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A tiny language model: a second or so on any machine.
pub(crate) const TINY_GPT: &str = r#"
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

pub(crate) struct Bench {
    pub(crate) dir: TempDir,
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The JSON object on the last line of stdout.
    pub(crate) fn json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{error}: {line}\n{}", self.stderr))
    }

    /// It failed with this code and said all of this.
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
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

    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("tiny.toml"), TINY_GPT).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn run(&self, arguments: &str) -> Ran {
        self.run_with(&arguments.split(' ').collect::<Vec<_>>())
    }

    /// [`run`](Self::run), for arguments with spaces in them; the hub's cache is the folder `hub`, and
    /// there is no network.
    pub(crate) fn run_with(&self, arguments: &[&str]) -> Ran {
        let output = Command::cargo_bin("maquette")
            .unwrap()
            .current_dir(self.dir.path())
            .env_remove("MAQUETTE_DATA")
            .env_remove("HF_HUB_CACHE")
            .env("HF_HOME", self.path("hub"))
            .env("HF_HUB_OFFLINE", "1")
            // Whoever waits for ever fails.
            .timeout(Duration::from_secs(3600))
            .args(arguments)
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Leaves of a finished run of 12 steps what a kill after step 4 would have.
    pub(crate) fn cut_after_the_first_checkpoint(&self, run: &str) {
        let run = self.path(run);
        for file in ["model.safetensors", "result.json", "report.html"] {
            fs::remove_file(run.join(file)).unwrap();
        }
        for step in [8, 12] {
            fs::remove_dir_all(run.join(format!("checkpoints/step-{step:08}"))).unwrap();
        }
    }

    pub(crate) fn weights(&self, run: &str) -> Vec<u8> {
        fs::read(self.path(run).join("model.safetensors")).unwrap()
    }
}

pub(crate) fn newest_checkpoint(run: &Path) -> PathBuf {
    let mut all: Vec<_> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    all.sort();
    all.pop().unwrap()
}
