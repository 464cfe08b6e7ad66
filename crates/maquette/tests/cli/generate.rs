//! Pictures made again.

use std::fs;

use crate::common::Bench;

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
