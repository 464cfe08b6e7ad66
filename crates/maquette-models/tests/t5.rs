//! T5's folders against `transformers`; `fixtures/make.py` made them and the numbers.

mod common;

use burn::tensor::Device;
use common::{Expected, fixture};
use maquette_models::{EncoderDecoderConfig, ModelError, hf, store};
use maquette_rng::{Stream, rng};

const FIXTURES: [&str; 2] = ["t5-relu", "t5-gated"];

#[test]
fn logits_equal_those_of_transformers() {
    for name in FIXTURES {
        let expected = Expected::of(name);
        let (_, model) = hf::load_t5(&fixture(name), &Device::flex()).unwrap();
        let mask = expected.ids("mask").float();
        let memory = model.encode(expected.ids("tokens"), Some(mask));
        let logits = model.decode(expected.ids("answers"), &memory, None);
        expected.check(name, "logits", logits);
    }
}

#[test]
fn saves_the_tensors_that_transformers_saved() {
    for name in FIXTURES {
        let (config, model) = hf::load_t5(&fixture(name), &Device::flex()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        hf::save_t5(copy.path(), &config, &model).unwrap();
        let read = |dir: &std::path::Path| store::read(&dir.join(hf::WEIGHTS)).unwrap();
        assert_eq!(read(copy.path()), read(&fixture(name)), "{name}");
        let again = hf::load_t5(copy.path(), &Device::flex()).unwrap().0;
        assert_eq!(again, config);
    }
}

#[test]
fn an_untied_head_stays_untied() {
    let config = EncoderDecoderConfig {
        vocab_size: 11,
        d_model: 8,
        n_layers: 1,
        tied_head: false,
        scaled_head: false,
        ..EncoderDecoderConfig::t5()
    };
    let device = Device::flex();
    let model = config.init(&device, &mut rng(0, Stream::Init, 0));
    let folder = tempfile::tempdir().unwrap();
    hf::save_t5(folder.path(), &config, &model).unwrap();
    let (loaded, again) = hf::load_t5(folder.path(), &device).unwrap();
    assert!(!loaded.tied_head && !loaded.scaled_head);
    assert_eq!(store::tensors(&again), store::tensors(&model));
}

#[test]
fn another_layout_is_no_t5() {
    let config = EncoderDecoderConfig {
        vocab_size: 11,
        ..EncoderDecoderConfig::default()
    };
    let model = config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
    let folder = tempfile::tempdir().unwrap();
    let saved = hf::save_t5(folder.path(), &config, &model);
    assert!(matches!(saved, Err(ModelError::Unsupported { .. })));
    let error = hf::load_t5(&fixture("gpt2-tiny"), &Device::flex()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("model_type gpt2 is not supported"),
        "{error}"
    );
}
