//! Translations of images: with pairs and without, resumed, asked, refused.

use std::fs;

use maquette::generate::image::{Picture, encode_png};

use crate::common::Bench;

/// Outlines to glyphs, a second or so.
const TINY: &str = r#"
summary = "test"
family = "translate"
[data]
source = "glyphs"
[data.glyphs]
size = 16
per_class = 8
[data.augment]
flip = true
shift = 1
[pairs]
from = "edges"
[model.generator]
width = 4
dropout = 0.1
[model.critic]
width = 4
[generator]
optimizer = { kind = "adam", lr = 1e-3 }
[critic]
optimizer = { kind = "adam", lr = 1e-3 }
[train]
steps = 12
batch = 8
checkpoint_every = 4
sample_every = 12
[evaluate]
images = 40
judge_steps = 4
"#;

const UNPAIRED: &str =
    "--set pairs.paired=false --set objective.loss=least-squares --set objective.identity=5.0";

#[test]
fn translations_resume_in_the_same_bytes_and_are_measured() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    let unpaired = format!("{UNPAIRED} --set model.critic.history=20 --set critic.turns=2");
    for (name, sets) in [("paired", "--set train.ema=0.9"), ("unpaired", &*unpaired)] {
        let train = |run: &str| {
            let ran = bench.run(&format!("train tiny.toml --out {run} --json {sets}"));
            ran.succeeds().json()
        };
        let (whole, cut) = (format!("{name}-whole"), format!("{name}-cut"));
        let metrics = train(&whole)["metrics"].clone();
        train(&cut);
        bench.cut_after_the_first_checkpoint(&cut);
        bench.run(&format!("train --resume {cut}")).succeeds();
        assert_eq!(bench.weights(&whole), bench.weights(&cut), "{name}");
        let critic = |run: &str| fs::read(bench.path(run).join("critic.safetensors")).unwrap();
        assert_eq!(critic(&whole), critic(&cut), "{name}");

        let measured = ["test_l1", "test_psnr", "test_source_l1", "readback", "fid"];
        let again = bench.run(&format!("evaluate {whole} --json"));
        let again = again.succeeds().json();
        for metric in measured {
            let value = metrics[metric].as_f64().unwrap_or(f64::NAN);
            assert!(value.is_finite(), "{metric}: {metrics}");
            assert_eq!(again["metrics"][metric].as_f64(), Some(value), "{metric}");
        }
        assert_eq!(metrics["test_cycle_l1"].is_number(), name == "unpaired");
        let sheet = format!("{whole}/samples/step-00000012/source-made-truth.png");
        assert!(bench.path(&sheet).is_file(), "no {sheet}");
    }
    let log = fs::read_to_string(bench.path("unpaired-whole/metrics.jsonl")).unwrap();
    for curve in ["cycle", "identity", "critic_accuracy_back", "fooling"] {
        assert!(log.contains(curve), "no {curve}");
    }
}

#[test]
fn pictures_are_translated() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    bench.run("train tiny.toml --out run").succeeds();
    let made = |ask: &str| {
        let ran = bench.run(&format!("generate run {ask} --json")).succeeds();
        ran.json()["outputs"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(made("-n 3 --out held-out"), 3);
    assert!(bench.path("held-out/grid.png").is_file());
    let picture = |side: usize, channels: usize| {
        let pixels = vec![128; side * side * channels];
        let picture = Picture::new(side, side, channels, pixels).unwrap();
        encode_png(&picture, &[]).unwrap()
    };
    bench.write("some/1.png", picture(24, 3));
    bench.write("some/2.png", picture(24, 3));
    assert_eq!(made("--images some --out other"), 2);
    // The same picture, alone or among others.
    assert_eq!(made("--images some/2.png --out alone"), 1);
    let bytes = |path: &str| {
        let path = bench.path(path);
        maquette::data::images::open(&path, maquette::data::Split::Train).unwrap()
    };
    assert_eq!(bytes("other/0001.png"), bytes("alone/0000.png"));

    bench.write("odd.png", picture(17, 1));
    for (ask, words) in [
        (
            "--images odd.png",
            "17x17 (height x width), and this model halves them 2 times",
        ),
        ("--images nowhere", "nowhere"),
        ("--label 3", "decided by its source"),
        ("--replay held-out/0000.png", "recipe"),
    ] {
        bench.run(&format!("generate run {ask}")).fails(1, &[words]);
    }
    bench.write("vae.toml", VAE);
    bench.run("train vae.toml --out vae").succeeds();
    bench
        .run("generate vae --images some")
        .fails(1, &["--images is for models that translate"]);
}

const VAE: &str = r#"
summary = "test"
family = "vae"
[data]
source = "glyphs"
glyphs = { per_class = 2 }
[model]
network = { mlp = { hidden = [8] } }
d_latent = 2
[optimizer]
kind = "adam"
lr = 1e-3
[train]
steps = 1
batch = 4
[evaluate]
importance_samples = 0
"#;

#[test]
fn folders_of_pairs_and_what_is_wrong_with_them() {
    let bench = Bench::new();
    let folders = TINY
        .replace("source = \"glyphs\"", "source = \"path\"")
        .replace("[data.glyphs]\nsize = 16\nper_class = 8\n", "")
        .replace("from = \"edges\"\n", "")
        .replace("judge_steps = 4", "judge_steps = 0");
    bench.write("pairs.toml", folders);
    let train = "train pairs.toml --data pairs --out";
    let write = |name: &str, side: usize, value: u8| {
        let picture = Picture::new(side, side, 1, vec![value; side * side]).unwrap();
        bench.write(
            &format!("pairs/{name}.png"),
            encode_png(&picture, &[]).unwrap(),
        );
    };
    for i in 0..20 {
        write(&format!("a/{i}"), 16, i);
        write(&format!("b/{i}"), 16, 200 - i);
    }
    let ran = bench.run(&format!("{train} run --json")).succeeds();
    assert!(ran.json()["metrics"]["test_l1"].is_number());
    write("b/20", 16, 9);
    bench
        .run(&format!("{train} odd"))
        .fails(1, &["20.png: has no partner", "20 sources, 21 targets"]);
    // Without pairs, names do not matter; nothing can be held against the truth.
    let ran = bench
        .run(&format!("{train} apart --json {UNPAIRED}"))
        .succeeds();
    let metrics = ran.json()["metrics"].clone();
    assert!(metrics["test_l1"].is_null() && metrics["test_cycle_l1"].is_number());
    fs::remove_dir_all(bench.path("pairs/b")).unwrap();
    bench
        .run(&format!("{train} half"))
        .fails(1, &["no such folder; pairs are two folders"]);
    write("b/0", 12, 9);
    bench
        .run(&format!("{train} sizes {UNPAIRED}"))
        .fails(1, &["the sources are 16x16 and the targets 12x12"]);
}

#[test]
fn recipes_of_translations_that_cannot_be_used() {
    let bench = Bench::new();
    bench.write("tiny.toml", TINY);
    for (code, sets, words) in [
        (
            2,
            "pairs.paired=false objective.l1=100.0",
            "l1: compares a translation with its target",
        ),
        (
            2,
            "objective.cycle=10.0",
            "cycle: is for images without pairs",
        ),
        (
            2,
            "model.critic.history=50",
            "critic.history: is for critics",
        ),
        (2, "model.critic.n_layers=5", "5 halvings do not fit 16x16"),
        (2, "data.glyphs.size=15", "cannot halve 15x15"),
        (1, "pairs.from=grey", "the images are grey already"),
        (2, "pairs.from=shadows", "shadows"),
        (
            2,
            "train.clip_norm=1.0",
            "move it to [generator] or [critic]",
        ),
        (
            2,
            "data.streaming=true",
            "only images from a path are streamed",
        ),
        (
            2,
            "data.sizes={only={height=8,width=8}}",
            "the size of glyphs",
        ),
        (1, "train.batch=50 pairs.paired=false", "batch (50)"),
    ] {
        let sets: Vec<_> = sets.split(' ').map(|set| format!("--set {set}")).collect();
        let ran = bench.run(&format!("train tiny.toml {}", sets.join(" ")));
        ran.fails(code, &[words]);
    }
    let without = TINY.replace("from = \"edges\"\n", "");
    bench.write("without.toml", without);
    bench
        .run("train without.toml")
        .fails(2, &["glyphs are targets alone"]);
    assert!(!bench.path("runs").exists(), "nothing is left behind");
}
