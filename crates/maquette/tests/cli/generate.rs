//! Pictures made again, texts chosen and kept to a form, messages.

use std::fs;

use maquette::generate::image::read_png;
use serde_json::Value;

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

#[test]
fn text_is_searched_weighed_and_told() {
    let bench = Bench::new();
    bench
        .run("train tiny.toml --out run --set model.seq_len=32")
        .succeeds();
    let one = |words: &str| {
        let words =
            format!("generate run --prompt Once --max-tokens 8 --json --logprobs 2 {words}");
        bench.run(&words).succeeds().json()["outputs"][0].clone()
    };
    let sum = |output: &Value| {
        let all = output["logprobs"].as_array().unwrap().iter();
        all.map(|one| one["logprob"].as_f64().unwrap()).sum::<f64>()
    };
    let greedy = one("--temperature 0");
    assert_eq!(greedy["logprobs"].as_array().unwrap().len(), 8);
    assert_eq!(greedy["prompt_logprobs"].as_array().unwrap().len(), 3);
    let first = &greedy["logprobs"][0];
    assert_eq!(first["top_logprobs"][0]["id"], first["id"]);
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(greedy["stop"], "max-tokens");
    let beams = one("--beams 4");
    assert!(sum(&beams) >= sum(&greedy) - 1e-4);
    assert_eq!(one("--penalty-alpha 0.6 --top-k 1")["ids"], greedy["ids"]);
    assert!(one("--best-of 4")["text"].is_string());
    let id = &greedy["ids"][0];
    let other = one(&format!("--temperature 0 --logit-bias {id}=-inf"));
    assert_ne!(&other["ids"][0], id);
    one("--dry-multiplier 0.8 --dry-sequence-breaker . --dry-window 20");

    let long = "a".repeat(40);
    bench
        .run(&format!("generate run --prompt {long}"))
        .fails(1, &["40 tokens, 8 more", "--truncate"]);
    bench
        .run(&format!(
            "generate run --prompt {long} --max-tokens 2 --truncate"
        ))
        .succeeds();
    let ask = |flags: &str| bench.run(&format!("generate run --prompt Once {flags}"));
    ask("--beams 4 --max-tokens 40").fails(1, &["context of 32"]);
    ask("--beams 0 --max-tokens 4").fails(1, &["beams"]);
    ask("--logit-bias x=1").fails(2, &["50256=-inf"]);
    ask("--dry-multiplier 1 --dry-base 0.5").fails(1, &["dry.base"]);
    // What a search would not look at is refused.
    ask("--beams 2 --logit-bias 1=2").fails(2, &["--beams", "--logit-bias"]);
    ask("--beams 2 --top-k 3").fails(2, &["--beams", "--top-k"]);
    ask("--penalty-alpha 0.6 --temperature 0.5").fails(2, &["--penalty-alpha", "--temperature"]);
    ask("--length-penalty 2").fails(2, &["--beams"]);
}

#[test]
fn a_latent_space_is_walked() {
    let bench = Bench::new();
    let train = "train vae-glyphs --steps 3 --set train.batch=8 --set data.glyphs.per_class=2 \
                 --set model.network={mlp={hidden=[8]}} --set evaluate.importance_samples=0 --set evaluate.samples=0";
    bench.run(&format!("{train} --out run")).succeeds();
    let paths = |arguments: &str| -> Vec<String> {
        let ran = bench
            .run(&format!("generate run {arguments} --json"))
            .succeeds();
        let outputs = ran.json()["outputs"].clone();
        let outputs = outputs.as_array().unwrap().iter();
        outputs
            .map(|one| one["path"].as_str().unwrap().to_owned())
            .collect()
    };
    paths("-n 3 --out drawn");
    let walk = paths("--interpolate 0 2 --points 5 --out walk");
    assert_eq!(walk.len(), 2);
    assert!(
        std::fs::read(bench.path("walk/walk.gif"))
            .unwrap()
            .starts_with(b"GIF89a")
    );
    paths("--interpolate 0 2 --points 5 --out again");
    for file in ["latent.png", "walk.gif"] {
        let read = |folder: &str| std::fs::read(bench.path(folder).join(file)).unwrap();
        assert_eq!(read("walk"), read("again"), "the same bytes again");
    }
    // The ends of a walk are the draws of these numbers.
    let picture = |path: &str| read_png(&bench.path(path)).unwrap().0;
    let (grid, drawn) = (picture("walk/latent.png"), picture("drawn/0000.png"));
    let row = |i: usize| &grid.pixels()[(3 + 3 * i) * grid.width() + 3..][..3 * 28];
    for i in 0..28 {
        let shown: Vec<u8> = row(i).iter().step_by(3).copied().collect();
        assert_eq!(shown, drawn.pixels()[28 * i..][..28]);
    }
    paths("--interpolate 0 1 --path line --animation apng --out apng");
    assert!(bench.path("apng/walk.png").is_file());
    paths("--traverse 1 --axes 0,3 --points 4 --out axes");
    let axes = picture("axes/latent.png");
    assert_eq!(
        (axes.width(), axes.height()),
        (3 * (4 * 29 + 1), 3 * (2 * 29 + 1))
    );
    let sum = "generate run --project-steps 3 --out sum --latent";
    bench
        .run_with(&[sum.split(' ').collect(), vec!["drawn/0001.png - drawn + 2"]].concat())
        .succeeds();
    // Both images, both projections, the sum.
    assert_eq!(picture("sum/latent.png").width(), 3 * (5 * 29 + 1));
    paths("-n 2 --truncation 0.5 --out calm");
    assert_ne!(picture("calm/0000.png"), drawn);

    let refused = |arguments: &str, code: i32, words: &[&str]| {
        bench
            .run(&format!("generate run {arguments}"))
            .fails(code, words);
    };
    refused("--interpolate 0 2 --points 1", 1, &["two ends"]);
    refused("--interpolate 0", 2, &["--interpolate"]);
    refused("--latent none.png", 1, &["none.png"]);
    refused("--traverse 0 --axes 99", 1, &["no axis 99", "0 to 15"]);
    refused("-n 1 --truncation 0", 1, &["too small"]);
}

#[test]
fn text_keeps_to_a_form() {
    let bench = Bench::new();
    bench
        .run("train tiny.toml --out run --set tokenizer.kind=byte")
        .succeeds();
    let one = |words: &[&str]| {
        let words = [&["generate", "run", "--prompt", "Once", "--json"], words].concat();
        bench.run_with(&words).succeeds().json()["outputs"][0].clone()
    };
    let chosen = one(&["--choices", "yes,no"]);
    assert!(["yes", "no"].contains(&chosen["text"].as_str().unwrap()));
    assert_eq!(chosen["in_form"], true);
    let number = one(&["--regex", "[0-9]{2}-[0-9]{3}"]);
    assert_eq!(number["text"].as_str().unwrap().len(), 6);
    let schema = r#"{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["n"], "additionalProperties": false}"#;
    bench.write("schema.json", schema);
    for given in [schema, "schema.json"] {
        let object = one(&["--json-schema", given]);
        let object: Value = serde_json::from_str(object["text"].as_str().unwrap()).unwrap();
        assert!(object["n"].as_u64().unwrap() < 10);
    }
    bench.write("sum.lark", "start: /[1-9]/ (\"+\" /[1-9]/){2}");
    let sum = one(&["--grammar", "sum.lark"]);
    assert_eq!(sum["text"].as_str().unwrap().matches('+').count(), 2);
    let cut = bench
        .run("generate run --prompt Once --regex [a-z]{50} --max-tokens 9 --json")
        .succeeds();
    assert_eq!(cut.json()["outputs"][0]["in_form"], false);
    assert!(cut.stderr.contains("--max-tokens"), "{}", cut.stderr);

    bench.write("bad.json", "{\"type\":\n oops}");
    let ask = |form: &str| bench.run(&format!("generate run --prompt Once {form}"));
    ask("--json-schema bad.json").fails(1, &["bad.json", "line 2"]);
    ask("--json-schema none.json").fails(1, &["cannot read none.json"]);
    ask("--json-schema {\"type\":\"strin\"}").fails(1, &["JSON schema", "strin"]);
    ask("--regex [0-9").fails(1, &["regular expression"]);
    bench.write("bad.lark", "start: \"a\" missing");
    ask("--grammar bad.lark").fails(1, &["grammar", "missing"]);
    ask("--regex a --choices b").fails(2, &["--regex", "--choices"]);
    ask("--regex a --beams 2").fails(1, &["keep to no form"]);
}

#[test]
fn messages_are_written_with_the_models_template() {
    let bench = Bench::new();
    bench
        .run(
            "train tiny.toml --out run --set tokenizer.kind=bpe --set tokenizer.vocab_size=300 \
             --set model.seq_len=64 --set model.positions=rotary --set model.norm=rms-norm \
             --set model.mlp=swiglu --set model.bias=false",
        )
        .succeeds();
    bench
        .run("generate run --chat --prompt Hi")
        .fails(1, &["no chat template", "--chat-template"]);
    let template = "{% for m in messages %}{{ m.role[:1] }}:{{ m.content }}\n{% endfor %}a:";
    bench.write("run/chat_template.jinja", template);
    let ids = |model: &str, flags: &str| {
        let words = format!("generate {model} --temperature 0 --max-tokens 6 --json {flags}");
        let words: Vec<&str> = words
            .split(' ')
            .map(|w| if w == "PLAIN" { "s:Hm\nu:Hi\na:" } else { w })
            .collect();
        bench.run_with(&words).succeeds().json()["outputs"][0]["ids"].clone()
    };
    let plain = ids("run", "--prompt PLAIN");
    assert_eq!(ids("run", "--chat --system Hm --prompt Hi"), plain);
    let said = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
    bench.write("messages.json", said);
    assert_eq!(ids("run", "--messages messages.json --system Hm"), plain);
    bench.run("convert run run.gguf --quantize f32").succeeds();
    assert_eq!(ids("run.gguf", "--chat --system Hm --prompt Hi"), plain);
    bench.run("convert run.gguf again").succeeds();
    assert_eq!(ids("again", "--chat --system Hm --prompt Hi"), plain);

    bench.write("bad.json", "[{\"content\": 1}]");
    bench
        .run("generate run --messages bad.json")
        .fails(1, &["message 1", "`role`"]);
    bench.write("bad.jinja", "\n{{ raise_exception('not so') }}");
    bench
        .run("generate run --chat --prompt Hi --chat-template bad.jinja")
        .fails(1, &["line 2: not so"]);
    bench
        .run("generate run --chat")
        .fails(2, &["without a message"]);
}

#[test]
fn texts_are_drawn_side_by_side_and_guessed_ahead() {
    let bench = Bench::new();
    bench
        .run(
            "train tiny.toml --out run --set model.seq_len=32 --set tokenizer.kind=bpe --set tokenizer.vocab_size=300 \
             --set model.positions=rotary --set model.norm=rms-norm --set model.mlp=swiglu --set model.bias=false",
        )
        .succeeds();
    for mix in ["q8_0", "f16"] {
        bench
            .run(&format!("convert run {mix}.gguf --quantize {mix}"))
            .succeeds();
    }
    for model in ["run", "f16.gguf", "q8_0.gguf"] {
        let texts = |words: &str| {
            let words = format!("generate {model} --prompt Once --max-tokens 12 --json {words}");
            let ran = bench.run(&words).succeeds();
            let outputs = ran.json()["outputs"].as_array().unwrap().clone();
            outputs
                .iter()
                .map(|one| one["ids"].clone())
                .collect::<Vec<_>>()
        };
        let several = texts("-n 3 --seed 5");
        let alone = ["--seed 5", "--seed 6", "--seed 7"].map(|seed| texts(seed).remove(0));
        assert_eq!(several, alone, "{model}");
        let greedy = texts("--temperature 0");
        for ahead in ["--lookup", "--draft f16.gguf --guesses 3", "--best-of 2"] {
            assert_eq!(
                texts(&format!("--temperature 0 {ahead}")),
                greedy,
                "{ahead}"
            );
        }
    }
    let shown = bench
        .run("generate run --prompt Once --max-tokens 0 -n 2")
        .succeeds();
    assert_eq!(shown.stdout, "Once\nOnce\n");
    bench
        .run("train tiny.toml --out other --set tokenizer.vocab_size=280 --set tokenizer.kind=bpe")
        .succeeds();
    bench
        .run("generate run --prompt Once --draft other")
        .fails(1, &["280", "300", "same vocabulary"]);
    bench
        .run("generate run --prompt Once --draft other --beams 2")
        .fails(2, &["--draft", "--beams"]);
}
