//! `maquette convert`.

use std::fs;

use crate::common::Bench;

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
