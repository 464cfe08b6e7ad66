//! `maquette tokenizer`.

use crate::common::Bench;
use serde_json::Value;

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
