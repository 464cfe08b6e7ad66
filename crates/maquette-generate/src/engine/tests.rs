use super::cache::Pool;
use super::forward::{Batch, Forward};
use super::*;
use crate::sampling::{Decoding, distribution};
use crate::text::{generate_ids, token_model};
use burn::tensor::{Device, Int, Tensor, TensorData};
use maquette_kernels::paged::PAGE;
use maquette_models::gguf::{self, Metadata, Mix};
use maquette_models::gpt::{Experts, Positions};
use maquette_models::nn::{InitScheme, MlpKind, RopeScaling};
use maquette_models::{Gpt, GptConfig, RawWeights, hf};
use maquette_rng::{Stream, rng};
use std::ops::ControlFlow;

fn tiny(base: GptConfig) -> GptConfig {
    GptConfig {
        vocab_size: 23,
        seq_len: 96,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        // Large enough for differences to show.
        init: InitScheme::He,
        ..base
    }
}

fn llama() -> GptConfig {
    GptConfig {
        n_kv_heads: Some(2),
        ..tiny(GptConfig::llama())
    }
}

fn families() -> Vec<GptConfig> {
    let positions = |positions| GptConfig {
        positions,
        ..tiny(GptConfig::default())
    };
    let scaled = |scaling| GptConfig {
        rope_scaling: Some(scaling),
        ..llama()
    };
    vec![
        tiny(GptConfig::default()),
        GptConfig {
            bias: false,
            tied_head: false,
            mlp: MlpKind::GeluExact,
            ..tiny(GptConfig::default())
        },
        llama(),
        GptConfig {
            d_head: Some(6),
            qk_norm: true,
            qkv_bias: Some(true),
            window: Some(9),
            window_from: 1,
            tied_head: true,
            ..llama()
        },
        GptConfig {
            experts: Some(Experts::default()),
            ..llama()
        },
        GptConfig {
            mlp: MlpKind::Geglu,
            n_heads: 8,
            n_kv_heads: Some(1),
            ..llama()
        },
        positions(Positions::Sinusoidal),
        positions(Positions::Alibi),
        scaled(RopeScaling::Linear { factor: 2.0 }),
        scaled(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        }),
        scaled(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 24,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        }),
    ]
}

fn model(config: &GptConfig) -> Gpt {
    config.init(&Device::flex(), &mut rng(5, Stream::Init, 0))
}

fn text(len: usize, seed: usize) -> Vec<u32> {
    (0..len)
        .map(|i| ((i * i + 7 * i + seed * 11) % 23) as u32)
        .collect()
}

/// Logits of every position as training computes them.
fn expected(model: &Gpt, ids: &[u32]) -> Vec<f32> {
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    let len = ids.len();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, len]), &Device::flex());
    model.forward(tokens).into_data().iter::<f32>().collect()
}

/// Logits of every position, the text read in parts of `part` tokens.
fn logits(weights: &Weights, ids: &[u32], part: usize) -> Vec<f32> {
    let mut pool = Pool::new(weights.config(), ids.len());
    let pages: Vec<_> = (0..ids.len().div_ceil(PAGE))
        .map(|_| pool.take().unwrap())
        .collect();
    let mut forward = Forward::new(weights, part, part);
    let mut all = Vec::new();
    for (i, ids) in ids.chunks(part).enumerate() {
        let mut batch = Batch::default();
        batch.push(ids, i * part, &pages, ids.len());
        all.extend_from_slice(forward.read(weights, &mut pool, &batch));
    }
    all
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() < tolerance,
            "{what} {i}: {got} {expected}"
        );
    }
}

#[test]
fn logits_are_those_of_training_however_the_text_is_cut() {
    for config in families() {
        let model = model(&config);
        let weights = Weights::of(&config, &model);
        let ids = text(70, 1);
        let whole = logits(&weights, &ids, 70);
        assert_close(
            &whole,
            &expected(&model, &ids),
            1e-4,
            &format!("{config:?}"),
        );
        for part in [1, 7, 33] {
            assert_eq!(logits(&weights, &ids, part), whole, "{part} {config:?}");
        }
    }
}

/// Root mean square of the differences, as a share of that of `expected`.
fn distance(got: &[f32], expected: &[f32]) -> f32 {
    let squares: f32 = got.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / expected.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[test]
fn folders_and_files_give_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    let ids = text(40, 2);
    for (i, config) in families().into_iter().enumerate() {
        let model = model(&config);
        let folder = dir.path().join(i.to_string());
        if hf::save(&folder, &config, &model).is_err() {
            continue;
        }
        let expected = expected(&model, &ids);
        let weights = Weights::open(&folder).unwrap();
        let got = logits(&weights, &ids, 40);
        assert_close(&got, &expected, 1e-4, &format!("{config:?}"));
        for (name, mix) in Mix::ALL {
            // Products with fewer bits round their input, which sends a token to another expert now and
            // then.
            if config.experts.is_some() && name != "f32" {
                continue;
            }
            let file = dir.path().join(format!("{i}-{name}.gguf"));
            if gguf::save(&file, &config, &model, mix, Metadata::new()).is_err() {
                break;
            }
            // The model that is trained has the numbers of the file, widened.
            let opened = gguf::File::open(&file).unwrap();
            let (_, widened) = gguf::load(&opened, &Device::flex()).unwrap();
            let expected = self::expected(&widened, &ids);
            let weights = Weights::of_raw(RawWeights::gguf(&opened).unwrap()).unwrap();
            let got = logits(&weights, &ids, 40);
            let what = format!("{name} {config:?}");
            // A product of blocks rounds its input to eight bits, an error of half a percent or so that
            // two layers of random weights amplify; bf16 rounds it where the processor multiplies bf16.
            let error = distance(&got, &expected);
            match name {
                "f32" | "f16" => assert_close(&got, &expected, 1e-4, &what),
                "bf16" => assert!(error < 0.02, "{what}: {error} of the logits"),
                _ => assert!(error < 0.04, "{what}: {error} of the logits"),
            }
        }
    }
}

/// Steps until nothing is left to do; the tokens of each request in the order of their handles.
fn run(engine: &mut Engine, handles: &[Handle]) -> Vec<Vec<u32>> {
    let mut texts = vec![Vec::new(); handles.len()];
    let at = |id| handles.iter().position(|handle| handle.id() == id).unwrap();
    while engine.is_busy() {
        for event in engine.step() {
            match event {
                Event::Token { request, token } => texts[at(request)].push(token.id),
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }
    texts
}

fn engine(config: &GptConfig, options: EngineOptions) -> Engine {
    Engine::new(Weights::of(config, &model(config)), options)
}

fn request(ids: Vec<u32>, seed: u64, decoding: &Decoding) -> Request {
    let sampler = TokenSampler::new(*decoding, &ids).unwrap();
    Request {
        max_tokens: 30,
        ..Request::new(sampler, rng(seed, Stream::Sample, 0))
    }
}

/// What each request gives on an engine of its own.
fn alone(config: &GptConfig, requests: &[(Vec<u32>, u64)], decoding: &Decoding) -> Vec<Vec<u32>> {
    let one = |(ids, seed): &(Vec<u32>, u64)| {
        let mut engine = engine(config, EngineOptions::default());
        let handle = engine
            .submit(request(ids.clone(), *seed, decoding))
            .unwrap();
        run(&mut engine, &[handle]).remove(0)
    };
    requests.iter().map(one).collect()
}

fn requests() -> Vec<(Vec<u32>, u64)> {
    let prompt = text(40, 3);
    vec![
        (text(5, 1), 1),
        (prompt.clone(), 2),
        (text(64, 4), 3),
        // The same beginning as the second.
        ([&prompt[..35], &text(9, 5)[..]].concat(), 4),
        (prompt, 2),
        (vec![3], 5),
    ]
}

#[test]
fn texts_do_not_depend_on_each_other() {
    let small = EngineOptions {
        sequences: 3,
        batch: 16,
        guesses: 1,
        // Four pages: texts set each other aside.
        cache: Some(4 * PAGE),
    };
    for config in [llama(), families().swap_remove(4)] {
        for decoding in [Decoding::greedy(), Decoding::default()] {
            let expected = alone(&config, &requests(), &decoding);
            for options in [EngineOptions::default(), small] {
                let mut engine = engine(&config, options);
                let submit = |(ids, seed)| engine.submit(request(ids, seed, &decoding)).unwrap();
                let handles: Vec<_> = requests().into_iter().map(submit).collect();
                assert_eq!(run(&mut engine, &handles), expected);
                assert_eq!(engine.cache_use().0, 0);
            }
        }
    }
}

#[test]
fn a_beginning_is_read_once() {
    let config = llama();
    let mut engine = engine(&config, EngineOptions::default());
    let greedy = Decoding::greedy();
    let mut ask = |ids: Vec<u32>| {
        let handle = engine.submit(request(ids, 0, &greedy)).unwrap();
        (run(&mut engine, &[handle]).remove(0), engine.reused())
    };
    let prompt = text(70, 3);
    let (first, reused) = ask(prompt.clone());
    assert_eq!(reused, 0);
    let (again, reused) = ask(prompt.clone());
    assert_eq!((again, reused), (first, 2 * PAGE));
    let other = [&prompt[..PAGE + 3], &[1, 2, 3]].concat();
    assert_eq!(ask(other).1, 3 * PAGE);
    // Two that come together wait for each other's beginning.
    let handles = [9, 9].map(|seed| engine.submit(request(text(50, 9), seed, &greedy)).unwrap());
    let texts = run(&mut engine, &handles);
    assert_eq!(texts[0], texts[1]);
    assert_eq!(engine.reused(), 4 * PAGE);
}

#[test]
fn a_dropped_handle_frees_its_pages() {
    let config = llama();
    let mut engine = engine(&config, EngineOptions::default());
    let greedy = Decoding::greedy();
    let [kept, dropped] = [1, 2].map(|seed| engine.submit(request(text(40, seed), 0, &greedy)));
    let (kept, dropped) = (kept.unwrap(), dropped.unwrap());
    engine.step();
    assert_eq!(engine.cache_use().0, 4 * PAGE);
    let gone = dropped.id();
    drop(dropped);
    let ended = |event: &Event| matches!(event, Event::Finished { request, reason: Finish::Cancelled } if *request == gone);
    assert!(engine.step().iter().any(ended));
    assert_eq!(engine.cache_use().0, 2 * PAGE);
    assert_eq!(engine.load(), (0, 1));
    kept.cancel();
    engine.step();
    assert_eq!((engine.cache_use().0, engine.is_busy()), (0, false));
}

#[test]
fn a_full_context_slides_as_the_tensor_loop_does() {
    let config = GptConfig {
        seq_len: 24,
        ..llama()
    };
    let model = model(&config);
    let decoding = Decoding::default();
    let go_on = |_| Ok(ControlFlow::Continue(()));
    let random = &mut rng(7, Stream::Sample, 0);
    let prompt = text(20, 1);
    let expected = generate_ids(
        &mut token_model(&model),
        &prompt,
        60,
        &decoding,
        random,
        go_on,
    )
    .unwrap();
    let mut engine = Engine::new(Weights::of(&config, &model), EngineOptions::default());
    let ask = |when_full| Request {
        max_tokens: 60,
        when_full,
        ..request(prompt.clone(), 7, &decoding)
    };
    let handles = [WhenFull::Slide, WhenFull::Stop].map(|full| engine.submit(ask(full)).unwrap());
    let texts = run(&mut engine, &handles);
    assert_eq!(texts[0], expected);
    assert_eq!(texts[1], expected[..5]);
}

#[test]
fn guesses_change_no_greedy_text() {
    let config = llama();
    let draft = GptConfig {
        n_layers: 1,
        d_model: 16,
        ..config.clone()
    };
    let greedy = Decoding::greedy();
    let expected = alone(&config, &requests(), &greedy);
    // Itself as its draft: every guess is right.
    for draft in [draft, config.clone()] {
        let plain = engine(&config, EngineOptions::default());
        let mut engine = plain
            .with_draft(Weights::of(&draft, &model(&draft)))
            .unwrap();
        for speculation in [Speculation::Lookup(5), Speculation::Draft(4)] {
            let ask = |(ids, seed)| Request {
                speculation,
                ..request(ids, seed, &greedy)
            };
            let handles: Vec<_> = requests()
                .into_iter()
                .map(|one| engine.submit(ask(one)).unwrap())
                .collect();
            assert_eq!(run(&mut engine, &handles), expected, "{speculation:?}");
            assert_eq!(engine.cache_use().0, 0);
        }
    }
}

/// Over many seeds, pairs of tokens come as often as the model's distribution says.
#[test]
fn guesses_change_no_distribution() {
    let config = GptConfig {
        vocab_size: 4,
        ..llama()
    };
    let draft = GptConfig {
        n_layers: 1,
        d_model: 16,
        ..config.clone()
    };
    let decoding = Decoding {
        temperature: 0.8,
        min_p: Some(0.02),
        ..Decoding::default()
    };
    let weights = Weights::of(&config, &model(&config));
    let prompt = vec![1, 2, 3, 1, 2, 0, 1];
    let next = |ids: &[u32]| {
        let all = logits(&weights, ids, ids.len());
        distribution(&all[all.len() - 4..], ids, &decoding).unwrap()
    };
    let mut expected = [0.0f64; 64];
    for (a, p) in next(&prompt).into_iter().enumerate() {
        let with_a = [&prompt[..], &[a as u32]].concat();
        for (b, q) in next(&with_a).into_iter().enumerate() {
            let with_b = [&with_a[..], &[b as u32]].concat();
            for (c, r) in next(&with_b).into_iter().enumerate() {
                expected[16 * a + 4 * b + c] = f64::from(p) * f64::from(q) * f64::from(r);
            }
        }
    }
    let options = EngineOptions {
        sequences: 32,
        ..EngineOptions::default()
    };
    let n = 1500;
    let plain = Engine::new(weights, options);
    let mut engine = plain
        .with_draft(Weights::of(&draft, &model(&draft)))
        .unwrap();
    for speculation in [
        Speculation::Off,
        Speculation::Lookup(3),
        Speculation::Draft(2),
    ] {
        let ask = |seed| Request {
            max_tokens: 3,
            speculation,
            ..request(prompt.clone(), seed, &decoding)
        };
        let handles: Vec<_> = (0..n)
            .map(|seed| engine.submit(ask(seed)).unwrap())
            .collect();
        let mut counts = [0.0f64; 64];
        for text in run(&mut engine, &handles) {
            counts[text.iter().fold(0, |all, id| 4 * all + *id as usize)] += 1.0;
        }
        let (mut chi, mut cells) = (0.0, 0);
        for (count, p) in counts.iter().zip(expected) {
            let expected = p * n as f64;
            if expected < 5.0 {
                continue;
            }
            chi += (count - expected).powi(2) / expected;
            cells += 1;
        }
        // Mean and deviation of chi-square; four deviations.
        let degrees = f64::from(cells - 1);
        let bound = degrees + 4.0 * (2.0 * degrees).sqrt();
        assert!(
            cells > 8 && chi < bound,
            "{speculation:?}: {chi} of {cells} cells"
        );
    }
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let config = llama();
    let model = model(&config);
    let mut engine = Engine::new(Weights::of(&config, &model), EngineOptions::default());
    let prompt = text(50, 1);
    let sampler = TokenSampler::new(Decoding::greedy(), &prompt).unwrap();
    let handle = engine.submit(Request {
        max_tokens: 2,
        score_prompt: true,
        ..Request::new(sampler.log_probs(Some(3)), rng(0, Stream::Sample, 0))
    });
    let handle = handle.unwrap();
    let (mut scores, mut tokens) = (Vec::new(), Vec::new());
    while engine.is_busy() {
        for event in engine.step() {
            match event {
                Event::Prompt { log_probs, .. } => scores = log_probs,
                Event::Token { token, .. } => tokens.push(token),
                _ => {}
            }
        }
    }
    drop(handle);
    let expected = expected(&model, &prompt);
    let row = |i: usize| {
        let row: Vec<f64> = expected[i * 23..(i + 1) * 23]
            .iter()
            .map(|l| f64::from(*l))
            .collect();
        let scale = row.iter().map(|l| l.exp()).sum::<f64>().ln();
        row.into_iter()
            .map(move |l| (l - scale) as f32)
            .collect::<Vec<_>>()
    };
    assert_eq!(scores.len(), 49);
    for (i, score) in scores.iter().enumerate() {
        assert_eq!((score.id, score.top.len()), (prompt[i + 1], 3));
        assert!((score.log_prob - row(i)[prompt[i + 1] as usize]).abs() < 1e-4);
    }
    let first = tokens[0].log_prob.as_ref().unwrap();
    assert_eq!((first.top.len(), first.top[0].0), (3, first.id));
    assert_eq!(first.log_prob, first.top[0].1);
    assert!((first.top[0].1 - row(49)[first.id as usize]).abs() < 1e-4);
}

#[test]
fn impossible_requests_are_refused() {
    let mut engine = engine(&llama(), EngineOptions::default());
    let greedy = Decoding::greedy();
    let mut refused = |ids| {
        engine
            .submit(request(ids, 0, &greedy))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(vec![23]).contains("23"));
    let long = refused(text(100, 1));
    assert!(long.contains("4 more than the context of 96"), "{long}");
    let draft = GptConfig {
        vocab_size: 5,
        ..llama()
    };
    let error = engine
        .with_draft(Weights::of(&draft, &model(&draft)))
        .unwrap_err();
    assert!(error.to_string().contains("same vocabulary"));
}

#[test]
fn an_engine_goes_to_another_thread() {
    fn send<T: Send>(_: &T) {}
    send(&engine(&llama(), EngineOptions::default()));
}
