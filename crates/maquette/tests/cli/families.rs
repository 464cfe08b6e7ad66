//! Every family of text and numbers beside the GPT: trained a few steps, asked, measured.

use crate::common::Bench;

const SMALL: &str = "--set train.steps=4 --set train.batch=4 --set train.validate_every=4 \
                     --set train.checkpoint_every=4";

/// Trains a built-in recipe and measures the run: the measured value of `metric` is the trained one.
fn trained(recipe: &str, smaller: &str, metric: &str) -> Bench {
    let bench = Bench::new();
    let run = format!("train {recipe} --out run --json {SMALL} {smaller}");
    let trained = bench.run(&run).succeeds().json();
    let measured = bench.run("evaluate run --json").succeeds().json();
    let value = |json: &serde_json::Value| json["metrics"][metric].as_f64();
    assert!(value(&trained).is_some_and(f64::is_finite), "{trained}");
    assert_eq!(value(&trained), value(&measured), "{recipe}: {metric}");
    bench
}

#[test]
fn recurrent_networks_and_convolutions_write_text_and_pack_it() {
    let text = "--set data.count=60 --set data.validation=0.2 --set model.d_model=16 \
                --set model.seq_len=16 --set tokenizer.vocab_size=300 --set sample.count=1 \
                --set sample.options.max_tokens=8 --set train.sample_every=4";
    let packed = "--set data.packing=true --set tokenizer.special_tokens=[\"<|endoftext|>\"]";
    for recipe in ["lstm-stories", "conv-stories"] {
        for how in [text, &format!("{text} {packed}")] {
            let bench = trained(recipe, how, "validation_bits_per_byte");
            // Longer than the windows it is trained on.
            let ask = "generate run --prompt Once --max-tokens 40 --json";
            let made = bench.run(ask).succeeds().json();
            assert_eq!(made, bench.run(ask).succeeds().json());
            let search = "generate run --prompt Once --max-tokens 8 --beams 3 --logprobs 2 --json";
            let found = bench.run(search).succeeds().json();
            assert_eq!(
                found["outputs"][0]["logprobs"].as_array().map(Vec::len),
                Some(8),
                "{found}"
            );
            let page = "generate run --prompt Once --max-tokens 4 --attention page.html";
            bench.run(page).fails(1, &["no attention to show"]);
        }
    }
}

#[test]
fn answers_are_written_at_once() {
    let small = "--set data.count=50 --set data.held_out=20 --set model.d_model=16";
    for recipe in ["mask-predict-dates", "mask-predict-forms"] {
        let bench = trained(recipe, small, "test_exact_after_4");
        let ask = "generate run --prompt 1984 --json";
        let made = bench.run(ask).succeeds().json();
        assert_eq!(made["outputs"].as_array().map(Vec::len), Some(1), "{made}");
        bench
            .run("generate run --prompt 11111111111111111111111111111111")
            .fails(1, &["32 tokens, 1 more than the model reads"]);
    }
}

#[test]
fn functions_are_measured_and_nothing_is_written() {
    let small = "--set model.d_model=16 --set model.n_layers=1";
    let bench = trained("in-context-linear", small, "test_loss");
    bench
        .run("generate run --prompt x")
        .fails(1, &["in-context learner writes no text"]);
}

#[test]
fn date_forms_accept_any_of_eight_answers() {
    let small = "--set data.count=50 --set data.held_out=20 --set model.d_model=16";
    trained("date-forms", small, "test_bits_per_byte");
}
