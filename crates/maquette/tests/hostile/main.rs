//! Files from elsewhere, damaged: whatever is in them, they are read or refused, but nothing panics
//! and nothing is allocated because a header asks for it.
//!
//! A target mutates its seeds for a bounded time in a process of its own with little address space.
//! Mutations follow from their number alone, so that a failure is found again:
//! `MAQUETTE_HOSTILE_FROM=1234 cargo test --release -p maquette --test hostile gguf`.
//! `MAQUETTE_HOSTILE_SECONDS` (default 3) is how long each target runs.

mod mutate;
mod targets;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use targets::{TARGETS, Target};

/// Address space of a target's process, in KiB.
const MEMORY_KIB: u64 = 3 << 20;

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Mutates the seeds of `target` until its time is over. `counter` holds the number of the mutation at
/// work, for when the process is ended from outside.
fn work(target: &Target, counter: &Path) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty() && seeds.iter().all(|seed| !seed.is_empty()));
    let folder = tempfile::tempdir().unwrap();
    for seed in &seeds {
        (target.read)(seed, folder.path());
    }
    let time = Duration::from_secs(number("MAQUETTE_HOSTILE_SECONDS", 3));
    let began = Instant::now();
    let mut at = number("MAQUETTE_HOSTILE_FROM", 0);
    while began.elapsed() < time {
        std::fs::write(counter, at.to_string()).unwrap();
        let input = mutate::mutated(&seeds, at);
        (target.read)(&input, folder.path());
        at += 1;
    }
    println!("{}: {at} inputs", target.name);
}

/// The process that a target runs in; does nothing when it is run as a test.
#[test]
fn child() {
    let Ok(name) = std::env::var("MAQUETTE_HOSTILE_TARGET") else {
        return;
    };
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let counter = std::env::var_os("MAQUETTE_HOSTILE_COUNTER").unwrap();
    work(target, Path::new(&counter));
}

fn survives(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("counter");
    let tests = std::env::current_exe().unwrap();
    let mut command = match cfg!(target_os = "linux") {
        true => {
            let mut shell = Command::new("sh");
            let limited = format!("ulimit -v {MEMORY_KIB} && exec \"$0\" \"$@\"");
            shell.arg("-c").arg(limited).arg(tests);
            shell
        }
        false => Command::new(tests),
    };
    let output = command
        .args(["--exact", "child", "--nocapture"])
        .env("MAQUETTE_HOSTILE_TARGET", name)
        .env("MAQUETTE_HOSTILE_COUNTER", &counter)
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let at = std::fs::read_to_string(counter).unwrap_or_default();
    assert!(
        output.status.success(),
        "{name} fell over mutation {at}: {said}"
    );
}

macro_rules! each {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            survives(stringify!($name));
        })*

        #[test]
        fn every_target_is_a_test() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

each![
    gguf,
    safetensors,
    config,
    index,
    llama2c,
    tokenizer_json,
    tokenizer_model,
    tokenizer_bin,
    idx,
    png,
    recipe,
    squeezenet,
    task,
    template,
    chat_template,
    messages,
    schema,
    grammar,
    pattern,
];
