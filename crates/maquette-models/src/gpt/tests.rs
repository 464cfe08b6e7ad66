use super::*;
use burn::tensor::TensorData;
use maquette_rng::{Stream, rng};

fn tiny(base: GptConfig) -> GptConfig {
    GptConfig {
        vocab_size: 11,
        seq_len: 8,
        d_model: 16,
        n_layers: 2,
        n_heads: 4,
        ..base
    }
}

fn families() -> [GptConfig; 6] {
    let llama = GptConfig {
        n_kv_heads: Some(2),
        ..tiny(GptConfig::llama())
    };
    let qwen3 = GptConfig {
        d_head: Some(6),
        qk_norm: true,
        qkv_bias: Some(true),
        window: Some(3),
        window_from: 1,
        ..llama.clone()
    };
    let positions = |positions| GptConfig {
        positions,
        ..tiny(GptConfig::default())
    };
    [
        tiny(GptConfig::default()),
        llama,
        qwen3,
        GptConfig {
            experts: Some(Experts::default()),
            ..tiny(GptConfig::llama())
        },
        positions(Positions::Sinusoidal),
        positions(Positions::Alibi),
    ]
}

fn model(config: &GptConfig) -> Gpt {
    // He weights make the logits large enough for differences to show.
    let config = GptConfig {
        init: InitScheme::He,
        ..config.clone()
    };
    config.init(&Device::flex(), &mut rng(5, Stream::Init, 0))
}

fn ids(values: &[i32]) -> Tensor<2, Int> {
    let data = TensorData::new(values.to_vec(), [1, values.len()]);
    Tensor::from_data(data, &Device::flex())
}

fn difference(a: Tensor<3>, b: Tensor<3>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

#[test]
fn cached_logits_equal_full_logits() {
    for config in families() {
        let model = model(&config);
        let text = [3, 1, 4, 1, 5, 9, 2, 6];
        let full = model.forward(ids(&text));
        let mut cache = KvCache::new();
        let mut parts = vec![model.forward_after(ids(&text[..3]), &mut cache)];
        parts.push(model.forward_after(ids(&text[3..5]), &mut cache));
        for token in &text[5..] {
            parts.push(model.forward_after(ids(&[*token]), &mut cache));
        }
        assert_eq!(cache.len(), 8);
        let difference = difference(full, Tensor::cat(parts, 1));
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn a_later_token_leaves_earlier_logits_unchanged() {
    for config in families() {
        let model = model(&config);
        let a = model.forward(ids(&[3, 1, 4, 1, 5]));
        let b = model.forward(ids(&[3, 1, 4, 7, 5]));
        let before = |x: &Tensor<3>| x.clone().narrow(1, 0, 3);
        let after = |x: &Tensor<3>| x.clone().narrow(1, 3, 2);
        assert_eq!(before(&a).into_data(), before(&b).into_data());
        assert!(difference(after(&a), after(&b)) > 1e-3);
    }
}

#[test]
fn fresh_model_is_near_uniform() {
    for config in families() {
        let model = config.init(&Device::flex(), &mut rng(5, Stream::Init, 0));
        let loss = model
            .loss(ids(&[1, 2, 3]), ids(&[2, 3, 4]))
            .into_scalar::<f32>();
        assert!((loss - 11f32.ln()).abs() < 0.1, "{loss}");
    }
}

#[test]
fn maps_are_distributions_and_change_no_logit() {
    for config in families() {
        let model = model(&config);
        let maps = model.attention_maps(ids(&[3, 1, 4, 1, 5])).own;
        assert_eq!(maps.len(), config.n_layers);
        for (layer, map) in maps.into_iter().enumerate() {
            assert_eq!(map.dims(), [1, 4, 5, 5]);
            let off = (map.clone().sum_dim(3) - 1.0).abs().max();
            assert!(off.into_scalar::<f32>() < 1e-5);
            // Nobody looks ahead, or out of its window.
            let window = config.window_of(layer).unwrap_or(5);
            for (at, weight) in map.into_data().iter::<f32>().enumerate() {
                let (query, key) = (at / 5 % 5, at % 5);
                let seen = key <= query && query < key + window;
                assert_eq!(weight > 0.0, seen, "{query} {key}");
            }
        }
        // The way that hands out weights is the way that does not.
        let mut maps = AttentionMaps::default();
        let reading = Reading {
            maps: Some(&mut maps),
            ..Reading::default()
        };
        let (x, _) = model.hidden(ids(&[3, 1, 4, 1, 5]), reading);
        let plain = model.forward(ids(&[3, 1, 4, 1, 5]));
        assert!(difference(model.logits(x), plain) < 1e-5);
    }
}

#[test]
fn packed_texts_have_the_loss_and_gradient_of_texts_apart() {
    let texts: [(&[i32], &[i32]); 3] = [
        (&[3, 1, 4, 1], &[1, 4, 1, 5]),
        (&[9, 2], &[2, 6]),
        (&[5, 3, 5, 8, 9, 7, 9], &[3, 5, 8, 9, 7, 9, 3]),
    ];
    let device = Device::flex().autodiff();
    let on = |ids: &[i32]| {
        let data = TensorData::new(ids.to_vec(), [1, ids.len()]);
        Tensor::<2, Int>::from_data(data, &device)
    };
    for config in families() {
        let config = GptConfig {
            init: InitScheme::He,
            experts: None,
            ..config
        };
        let model = config.init(&device, &mut rng(5, Stream::Init, 0));
        let lengths = texts.map(|(text, _)| text.len());
        let apart = texts
            .iter()
            .map(|(x, y)| model.loss(on(x), on(y)) * (x.len() as f64 / 13.0))
            .reduce(|sum, loss| sum + loss)
            .unwrap();
        let (x, y) = (texts.map(|t| t.0).concat(), texts.map(|t| t.1).concat());
        let packed = model.packed_loss(on(&x), on(&y), &lengths).text;
        let gap = (apart.clone() - packed.clone()).abs().into_scalar::<f32>();
        assert!(gap < 1e-5, "{gap}");
        let plain = model.loss(on(&x[..8]), on(&y[..8])).into_scalar::<f32>();
        assert!((plain - packed.clone().into_scalar::<f32>()).abs() > 1e-3);
        let (apart, packed) = (apart.backward(), packed.backward());
        for weight in [
            &model.tokens.weight,
            &model.blocks[0].attention.qkv.weight,
            &model.blocks[1].attention.proj.weight,
        ] {
            let [a, b] = [&apart, &packed].map(|grads| weight.val().grad(grads).unwrap());
            let gap = (a - b).abs().max().into_scalar::<f32>();
            assert!(gap < 1e-4, "{gap}");
        }
    }
}

#[test]
fn without_all_its_heads_attention_writes_nothing() {
    let config = GptConfig {
        n_layers: 1,
        positions: Positions::Rotary,
        ..tiny(GptConfig::default())
    };
    let model = model(&config);
    let last = |model: &Gpt, text: &[i32]| model.forward(ids(text)).narrow(1, 2, 1);
    let (a, b) = ([3, 1, 4], [5, 9, 4]);
    assert!(difference(last(&model, &a), last(&model, &b)) > 1e-3);
    let silent = (0..4).fold(model, |model, head| model.without_head(0, head));
    assert!(difference(last(&silent, &a), last(&silent, &b)) < 1e-6);
}

#[test]
fn counts_parameters_as_gpt2() {
    // GPT-2 small: 124,439,808 parameters.
    let config = GptConfig {
        vocab_size: 50_257,
        seq_len: 1024,
        d_model: 768,
        n_layers: 12,
        n_heads: 12,
        ..GptConfig::default()
    };
    let per_block = 12 * 768 * 768 + 13 * 768;
    let expected = (50_257 + 1024) * 768 + 12 * per_block + 2 * 768;
    assert_eq!(expected, 124_439_808);
    let one = GptConfig {
        vocab_size: 7,
        seq_len: 5,
        n_layers: 1,
        ..config
    };
    let model = one.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
    assert_eq!(model.num_params(), 12 * 768 + per_block + 2 * 768);
}

#[test]
fn gradient_matches_finite_differences() {
    for config in families() {
        let config = GptConfig {
            n_layers: 1,
            init: InitScheme::He,
            ..config
        };
        let device = Device::flex().autodiff();
        let model = config.init(&device, &mut rng(5, Stream::Init, 0));
        let (x, y) = ([3, 1, 4, 1], [1, 4, 1, 5]);
        let grads = model.loss(ids(&x), ids(&y)).backward();
        let weight = &model.blocks[0].attention.qkv.weight;
        let gradient = weight.val().grad(&grads).unwrap();
        let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
        let width = weight.val().dims()[1];
        for index in [0, 17, 40, 200] {
            let shifted = |by: f32| {
                let mut model = model.valid();
                model.blocks[0].attention.qkv.weight =
                    model.blocks[0].attention.qkv.weight.clone().map(|w| {
                        let at = [
                            index / width..index / width + 1,
                            index % width..index % width + 1,
                        ];
                        let value = w.clone().slice(at.clone()) + by;
                        w.slice_assign(at, value)
                    });
                model.loss(ids(&x), ids(&y)).into_scalar::<f32>()
            };
            let numeric = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
            let error = (numeric - gradient[index]).abs();
            assert!(
                error < 2e-3,
                "{index}: {numeric} against {}",
                gradient[index]
            );
        }
    }
}

#[test]
fn contradictions_name_their_key() {
    let heads = GptConfig {
        n_heads: 3,
        ..tiny(GptConfig::default())
    };
    assert!(
        heads
            .validate()
            .unwrap_err()
            .to_string()
            .starts_with("n_heads: 3 heads")
    );
    let vocab = GptConfig {
        vocab_size: 0,
        ..tiny(GptConfig::default())
    };
    assert!(
        vocab
            .validate()
            .unwrap_err()
            .to_string()
            .starts_with("vocab_size")
    );
    let stretched = GptConfig {
        rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
        ..tiny(GptConfig::default())
    };
    assert!(
        stretched
            .validate()
            .unwrap_err()
            .to_string()
            .starts_with("rope_scaling: stretches rotary")
    );
}
