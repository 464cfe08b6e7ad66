//! `maquette metric`.

use crate::common::Bench;
use maquette::generate::image::{Picture, encode_png};
use serde_json::Value;

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

/// A grey or colour picture of one brightness, with a darker corner.
fn png(side: usize, channels: usize, brightness: u8) -> Vec<u8> {
    let mut pixels = vec![brightness; side * side * channels];
    pixels[..side].fill(brightness / 2);
    let picture = Picture::new(side, side, channels, pixels).unwrap();
    encode_png(&picture, &[]).unwrap()
}

#[test]
fn images_are_measured_by_a_classifier_of_our_own() {
    let bench = Bench::new();
    let train =
        "train glyphs-classifier --steps 6 --set train.batch=16 --set data.glyphs.per_class=4";
    bench.run(&format!("{train} --out judge")).succeeds();
    for i in 0..12 {
        bench.write(&format!("a/{i}.png"), png(28, 1, 10 * i));
        bench.write(&format!("b/{i}.png"), png(28, 1, 10 * i + 60));
        bench.write(&format!("data/train/{}/{i}.png", i % 2), png(28, 1, 10 * i));
        bench.write(
            &format!("data/test/{}/{i}.png", i % 2),
            png(28, 1, 20 * i + 5),
        );
    }
    bench.write("mixed/0.png", png(28, 1, 9));
    bench.write("mixed/1.png", png(20, 1, 9));
    bench.write("colour/0.png", png(28, 3, 9));
    let measure = |arguments: &str| bench.run(&format!("metric {arguments} --json"));
    let json = |arguments: &str| measure(arguments).succeeds().json();
    let value = |json: &Value, name: &str| json["metrics"][name].as_f64().unwrap();

    let apart = json("fid a b --features judge");
    let together = json("fid a a --features judge --resamples 0");
    assert!(value(&together, "fid").abs() < 1e-6 && value(&apart, "fid") > 1e-3);
    let signature = apart["signature"]["fid"].as_str().unwrap();
    assert!(signature.starts_with("fid|features=judge@"), "{signature}");
    assert!(
        signature.ends_with("|dims=128|n=12|resize=none|real=12|split=train"),
        "{signature}"
    );
    let interval = &apart["intervals"]["fid"];
    assert!(interval["low"].as_f64().unwrap() < interval["high"].as_f64().unwrap());
    assert!(
        apart["warnings"][0]
            .as_str()
            .unwrap()
            .contains("12 images are few")
    );
    let found = json("pr a a --features judge");
    assert_eq!(value(&found, "precision"), 1.0);
    assert!(value(&json("is a --features judge --splits 2"), "is") >= 1.0);
    let classes = json("classes a --features judge");
    assert!((1.0..=12.0).contains(&value(&classes, "classes")));
    let copies = json("copies a data");
    assert_eq!(value(&copies, "exact_copies"), 12.0);
    assert!(value(&copies, "median_held_out") > 0.0);
    let some = json("fid a data --split test --images 5 --resize 28 --features judge");
    let signature = some["signature"]["fid"].as_str().unwrap();
    assert!(
        signature.ends_with("|n=5|resize=triangle-28x28,none|real=5|split=test"),
        "{signature}"
    );

    let refused =
        |arguments: &str, code: i32, words: &[&str]| measure(arguments).fails(code, words);
    refused(
        "fid a mixed --features judge",
        1,
        &[
            "mixed/0.png is 28 x 28",
            "mixed/1.png is 20 x 20",
            "--resize 32x32",
        ],
    );
    refused(
        "fid a colour --features judge",
        1,
        &[
            "colour, 28 x 28",
            "reads grey, 28 x 28",
            "--features squeezenet",
        ],
    );
    refused(
        "kid a b --features judge",
        1,
        &["1000 needed, 12 given", "--subset-size"],
    );
    refused("fid a b", 2, &["by whose features", "--features"]);
    refused("fid a b --features squeezenet", 2, &["--weights FILE"]);
    refused(
        "fid a b --features inception-v3 --weights hf://some/net/w.safetensors",
        1,
        &["hf://some/net/w.safetensors", "HF_HUB_OFFLINE"],
    );
    refused(
        "fid a b --features nowhere",
        1,
        &["nowhere is no network", "squeezenet"],
    );
    refused("fid a b --features judge --resize 0", 2, &["32x32"]);
    refused("copies a b", 1, &["--held-out"]);
    refused("classes a b --features judge", 2, &["b has no labels"]);
}

#[test]
fn features_from_files_are_compared() {
    let bench = Bench::new();
    let npy = |rows: &[&[f32]]| {
        let header = format!(
            "{:<117}\n",
            format!(
                "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
                rows.len(),
                rows[0].len()
            )
        );
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(rows.concat().iter().flat_map(|x| x.to_le_bytes()));
        bytes
    };
    bench.write(
        "a.npy",
        npy(&[&[0.0, 0.0], &[2.0, 0.0], &[0.0, 2.0], &[2.0, 2.0]]),
    );
    bench.write(
        "b.npy",
        npy(&[&[3.0, 0.0], &[5.0, 0.0], &[3.0, 2.0], &[5.0, 2.0]]),
    );
    bench.write("wide.npy", npy(&[&[3.0, 0.0, 1.0], &[5.0, 0.0, 1.0]]));
    let value = |arguments: &str, name: &str| {
        let ran = bench.run(&format!("metric {arguments} --json")).succeeds();
        ran.json()["metrics"][name].as_f64().unwrap()
    };
    // The same square, moved by three.
    assert!((value("fid a.npy b.npy --resamples 0", "fid") - 9.0).abs() < 1e-9);
    let sliced = value("points a.npy b.npy --directions 2000", "sliced_wasserstein");
    assert!((sliced - (9.0f64 / 2.0).sqrt()).abs() < 0.1, "{sliced}");
    assert!(value("points a.npy b.npy", "mmd") > 0.1);
    assert_eq!(value("pr a.npy b.npy --neighbours 1", "precision"), 0.5);
    bench
        .run("metric fid a.npy wide.npy")
        .fails(1, &["a.npy has 2 numbers per image, wide.npy has 3"]);
    bench
        .run("metric fid a.npy none.npy")
        .fails(1, &["none.npy"]);
}
