//! `maquette metric`.

use crate::common::Bench;
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
