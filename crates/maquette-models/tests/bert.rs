//! BERT's folders against `transformers`; `fixtures/make.py` made them and the numbers.

mod common;

use std::fs;

use burn::tensor::{Device, Int, Tensor};
use common::{Expected, fixture};
use maquette_models::{BertHead, BertInput, hf, store};

const FIXTURES: [&str; 6] = [
    "bert-features",
    "bert-masked",
    "bert-pretraining",
    "bert-classify",
    "bert-tag",
    "bert-answer",
];

#[test]
fn outputs_equal_those_of_transformers() {
    let device = Device::flex();
    for name in FIXTURES {
        let expected = Expected::of(name);
        let (config, model) = hf::load_bert(&fixture(name), &device).unwrap();
        let input = BertInput {
            segments: Some(expected.ids("segments")),
            ..BertInput::new(expected.ids("tokens")).with_mask(expected.ids("mask").float())
        };
        let features = model.forward(input.clone());
        let [batch, seq, _] = features.dims();
        match config.head {
            BertHead::Features => {
                expected.check(name, "features", features);
                expected.check(name, "embeddings", model.embed(input));
            }
            BertHead::Classify(_) => {
                expected.check(name, "text_logits", model.text_logits(features));
            }
            BertHead::Tag(_) | BertHead::Answer => {
                expected.check(name, "token_logits", model.token_logits(features));
            }
            BertHead::MaskedLm | BertHead::Pretraining => {
                let all = Tensor::<1, Int>::arange(0..(batch * seq) as i64, &device);
                let logits = model.masked_logits(features.clone(), all);
                expected.check(name, "masked_logits", logits);
                if config.head == BertHead::Pretraining {
                    expected.check(name, "text_logits", model.text_logits(features));
                }
            }
        }
    }
}

#[test]
fn saves_the_tensors_that_transformers_saved() {
    for name in FIXTURES {
        let (config, model) = hf::load_bert(&fixture(name), &Device::flex()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        hf::save_bert(copy.path(), &config, &model).unwrap();
        let read = |dir: &std::path::Path| store::read(&dir.join(hf::WEIGHTS)).unwrap();
        assert_eq!(read(copy.path()), read(&fixture(name)), "{name}");
        let again = hf::load_bert(copy.path(), &Device::flex()).unwrap().0;
        assert_eq!(again, config);
    }
}

#[test]
fn faults_are_named() {
    let copy = tempfile::tempdir().unwrap();
    let name = "bert-masked";
    for file in [hf::WEIGHTS, hf::CONFIG] {
        fs::copy(fixture(name).join(file), copy.path().join(file)).unwrap();
    }
    let changed = |key: &str, value: serde_json::Value| {
        let bytes = fs::read(fixture(name).join(hf::CONFIG)).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        config[key] = value;
        fs::write(copy.path().join(hf::CONFIG), config.to_string()).unwrap();
        let error = hf::load_bert(copy.path(), &Device::flex()).unwrap_err();
        error.to_string()
    };
    let longer = changed("max_position_embeddings", 13.into());
    assert!(longer.contains("asks for [13, 8]"), "{longer}");
    let deeper = changed("num_hidden_layers", 3.into());
    assert!(deeper.contains("encoder.layer.2"), "{deeper}");
    let other = changed("architectures", serde_json::json!(["BertLMHeadModel"]));
    assert!(
        other.contains("the architecture BertLMHeadModel"),
        "{other}"
    );
    let relative = changed("position_embedding_type", "relative_key".into());
    assert!(relative.contains("relative_key"), "{relative}");
}
