//! The encoder-decoder of the original layout against PyTorch's layers; `fixtures/original.py` made
//! the numbers.

mod common;

use burn::tensor::Device;
use common::{Expected, fixture};
use maquette_models::{EncoderDecoderConfig, store};
use maquette_rng::{Stream, rng};

#[test]
fn logits_equal_those_of_pytorch() {
    let config = EncoderDecoderConfig {
        vocab_size: 16,
        seq_len: 8,
        d_model: 8,
        n_layers: 2,
        n_heads: 2,
        d_ff: Some(12),
        ..EncoderDecoderConfig::default()
    };
    let device = Device::flex();
    let empty = config.init(&device, &mut rng(0, Stream::Init, 0));
    let model = store::load(empty, &fixture("original").join("model.safetensors")).unwrap();
    let expected = Expected::of("original");
    let memory = model.encode(expected.ids("tokens"), Some(expected.ids("mask").float()));
    let logits = model.decode(expected.ids("answers"), &memory, None);
    expected.check("original", "logits", logits);
}
