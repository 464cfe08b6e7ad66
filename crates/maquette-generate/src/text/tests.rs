use super::*;
use crate::text::Strategy;
use burn::tensor::Device;
use maquette_data::tokenizer::TokenizerConfig;
use maquette_models::gpt::{Gpt, GptConfig, Positions};
use maquette_models::nn::InitScheme;
use maquette_rng::{Stream, rng};
use proptest::prelude::*;

/// A model over bytes that always continues with the next byte of `script`, and records what
/// it was fed.
fn scripted<'a>(
    script: &'a [u8],
    seq_len: usize,
    feeds: &'a mut Vec<(bool, usize)>,
) -> TokenModel<impl FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError> + 'a> {
    let mut next = script.iter().cycle();
    TokenModel {
        forward: move |feed: Feed<'_>| {
            feeds.push(match feed {
                Feed::Restart(ids) => (true, ids.len()),
                Feed::Append(_) => (false, 1),
            });
            let mut logits = vec![f32::NEG_INFINITY; 256];
            logits[usize::from(*next.next().unwrap())] = 0.0;
            Ok(logits)
        },
        seq_len,
        vocab_size: 256,
    }
}

fn bytes(ids: &[u32]) -> Result<String, GenerateError> {
    let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A text of bytes after `prompt`.
fn after(
    prompt: &[u32],
    options: &GenerateOptions,
) -> Continuation<impl Fn(&[u32]) -> Result<String, GenerateError> + use<>> {
    let sampler = TokenSampler::new(options.decoding, prompt).unwrap();
    Continuation::new(sampler, options, bytes)
}

fn run(script: &str, options: &GenerateOptions) -> (Generated, Vec<String>) {
    let mut pieces = Vec::new();
    let mut feeds = Vec::new();
    let generated = generate(
        &mut scripted(script.as_bytes(), 1000, &mut feeds),
        after(&[1], options),
        &mut rng(0, Stream::Sample, 0),
        |piece| {
            pieces.push(piece.to_owned());
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    (generated, pieces)
}

fn options(max_tokens: usize, stop: &[&str]) -> GenerateOptions {
    GenerateOptions {
        max_tokens,
        stop: stop.iter().map(|s| (*s).to_owned()).collect(),
        ..GenerateOptions::default()
    }
}

#[test]
fn characters_are_never_split() {
    let text = "aé日🙂z";
    let (generated, pieces) = run(text, &options(text.len(), &[]));
    assert_eq!(generated.text, text);
    assert_eq!(generated.ids.len(), 11);
    assert_eq!(pieces, ["a", "é", "日", "🙂", "z"]);
    assert_eq!(generated.stop, StopReason::MaxTokens);
}

#[test]
fn a_character_cut_off_by_the_limit_is_marked() {
    let (generated, pieces) = run("a日", &options(3, &[]));
    assert_eq!(generated.text, "a\u{fffd}");
    assert_eq!(pieces.concat(), generated.text);
}

#[test]
fn a_character_begun_in_the_prompt_is_completed() {
    let mut feeds = Vec::new();
    let e = "é".as_bytes();
    let generated = generate(
        &mut scripted(&[e[1], b'!'], 10, &mut feeds),
        after(&[u32::from(b'x'), u32::from(e[0])], &options(2, &[])),
        &mut rng(0, Stream::Sample, 0),
        |_| ControlFlow::Continue(()),
    );
    assert_eq!(generated.unwrap().text, "é!");
}

#[test]
fn stop_strings_are_held_back_and_cut() {
    let (generated, pieces) = run("one\nUse\nUser: x", &options(100, &["\nUser:", "never"]));
    assert_eq!(generated.text, "one\nUse");
    assert_eq!(pieces.concat(), "one\nUse");
    assert_eq!(generated.stop, StopReason::StopString);
    assert_eq!(generated.ids.len(), 13);
    // Text that looked like the beginning of a stop string is given out in the end.
    let (generated, pieces) = run("ab\nUs", &options(5, &["\nUser:"]));
    assert_eq!(generated.text, "ab\nUs");
    assert_eq!(pieces, ["a", "b", "\nUs"]);
}

#[test]
fn the_earliest_stop_string_wins() {
    let (generated, _) = run("abcabc", &options(6, &["c", "bc", ""]));
    assert_eq!(generated.text, "a");
}

#[test]
fn end_tokens_and_cancelling_stop() {
    let ends = GenerateOptions {
        end_tokens: vec![u32::from(b'.')],
        ..options(100, &[])
    };
    let (generated, _) = run("so.", &ends);
    assert_eq!(
        (generated.text.as_str(), generated.stop),
        ("so", StopReason::EndToken)
    );
    let mut feeds = Vec::new();
    let generated = generate(
        &mut scripted(b"abcdef", 10, &mut feeds),
        after(&[1], &options(6, &[])),
        &mut rng(0, Stream::Sample, 0),
        |piece| match piece {
            "b" => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    )
    .unwrap();
    assert_eq!(
        (generated.text.as_str(), generated.stop),
        ("ab", StopReason::Cancelled)
    );
}

#[test]
fn a_full_context_restarts_on_its_last_half() {
    let mut feeds = Vec::new();
    let mut model = scripted(b"x", 4, &mut feeds);
    let prompt = [3, 4, 5, 6];
    let rng = &mut rng(0, Stream::Sample, 0);
    generate_ids(&mut model, &prompt, 6, &Decoding::greedy(), rng, |_| {
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    drop(model);
    let (restart, append) = (|n| (true, n), (false, 1));
    assert_eq!(
        feeds,
        [restart(4), restart(2), append, append, restart(2), append]
    );
}

#[test]
fn bad_requests_are_named() {
    let rng = &mut rng(0, Stream::Sample, 0);
    let mut feeds = Vec::new();
    let mut model = scripted(b"x", 4, &mut feeds);
    let mut ids = |prompt: &[u32], max, decoding: &Decoding| {
        generate_ids(&mut model, prompt, max, decoding, rng, |_| {
            Ok(ControlFlow::Continue(()))
        })
    };
    let d = Decoding::default();
    assert!(matches!(ids(&[], 1, &d), Err(GenerateError::EmptyPrompt)));
    assert!(ids(&[1], 0, &d).unwrap().is_empty());
    let long = ids(&[1; 6], 1, &d).unwrap_err().to_string();
    assert!(long.contains("6 tokens, 2 more"), "{long}");
    let unknown = ids(&[300], 1, &d).unwrap_err();
    assert!(unknown.to_string().contains("token 300"), "{unknown}");
    let wrong = Decoding {
        top_k: Some(0),
        ..d
    };
    assert!(ids(&[1], 1, &wrong).is_err());
}

/// The same model, which reads the whole context again for every token.
fn without_cache(
    model: &Gpt,
) -> TokenModel<impl FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>> {
    let mut context = Vec::new();
    let forward = move |feed: Feed<'_>| {
        match feed {
            Feed::Restart(ids) => context = ids.to_vec(),
            Feed::Append(id) => context.push(id),
        }
        (token_model(model).forward)(Feed::Restart(&context))
    };
    TokenModel {
        forward,
        seq_len: model.seq_len(),
        vocab_size: model.vocab_size(),
    }
}

#[test]
fn greedy_text_with_the_cache_is_greedy_text_without() {
    let base = GptConfig {
        vocab_size: 13,
        seq_len: 8,
        d_model: 16,
        n_layers: 2,
        init: InitScheme::He,
        ..GptConfig::default()
    };
    let llama = GptConfig {
        positions: Positions::Rotary,
        n_kv_heads: Some(2),
        ..base.clone()
    };
    for config in [base, llama] {
        let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
        let rng = &mut rng(1, Stream::Sample, 0);
        let all = |_| Ok(ControlFlow::Continue(()));
        // Far beyond the context of 8, so that it fills and restarts several times.
        let d = Decoding::greedy();
        let with = generate_ids(&mut token_model(&model), &[3, 1, 4], 30, &d, rng, all).unwrap();
        let without =
            generate_ids(&mut without_cache(&model), &[3, 1, 4], 30, &d, rng, all).unwrap();
        assert_eq!(with, without);
        assert_eq!(with.len(), 30);
        assert!(with.iter().any(|id| *id != with[0]), "{with:?}");
    }
}

#[test]
fn the_seed_decides_the_text() {
    let config = GptConfig {
        vocab_size: 256,
        ..GptConfig::default()
    };
    let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
    let text = |seed| {
        let rng = &mut rng(seed, Stream::Sample, 0);
        let text = after(&[7], &options(20, &[]));
        generate(&mut token_model(&model), text, rng, |_| {
            ControlFlow::Continue(())
        })
        .unwrap()
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1).ids, text(2).ids);
}

#[test]
fn a_prompt_is_completed_until_the_end_of_text() {
    let tokenizer = Tokenizer::byte(&["<|endoftext|>".to_owned()]);
    let config = GptConfig {
        vocab_size: tokenizer.vocab_size(),
        ..GptConfig::default()
    };
    let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
    let complete = |tokenizer: &Tokenizer, prompt: &str| {
        let mut pieces = String::new();
        let options = options(2000, &[]);
        let rng = &mut rng(4, Stream::Sample, 0);
        complete(&model, tokenizer, prompt, &options, rng, |piece| {
            pieces.push_str(piece);
            ControlFlow::Continue(())
        })
        .map(|generated| (generated, pieces))
    };
    // An untrained model draws each of 257 tokens about as often.
    for prompt in ["Once", ""] {
        let (generated, pieces) = complete(&tokenizer, prompt).unwrap();
        assert_eq!(generated.stop, StopReason::EndToken);
        assert_eq!(generated.ids.last(), tokenizer.end_of_text().as_ref());
        assert_eq!(generated.text, pieces);
        assert!(!pieces.contains("endoftext"));
    }
    let bare = complete(&Tokenizer::byte(&[]), "");
    assert!(matches!(bare, Err(GenerateError::EmptyPrompt)));
}

#[test]
fn a_learnt_vocabulary_streams_whole_characters() {
    let text = "Ein Bär 🐻 isst Äpfel. Ein Bär 🐻 isst Öl. ".repeat(3);
    let config = TokenizerConfig {
        vocab_size: 300,
        ..TokenizerConfig::default()
    };
    let tokenizer = config.train(std::iter::once(Ok(text.clone()))).unwrap();
    let ids = tokenizer.encode(&text).unwrap();
    let (prompt, script) = ids.split_at(3);
    let mut next = script.iter();
    let mut model = TokenModel {
        forward: |_: Feed<'_>| {
            let mut logits = vec![f32::NEG_INFINITY; tokenizer.vocab_size()];
            logits[*next.next().unwrap() as usize] = 0.0;
            Ok(logits)
        },
        seq_len: 1000,
        vocab_size: tokenizer.vocab_size(),
    };
    let mut pieces = Vec::new();
    let options = options(script.len(), &[]);
    let decode = |ids: &[u32]| {
        let text = tokenizer.decode(ids);
        text.map_err(|e| GenerateError::Decode(e.to_string()))
    };
    let sampler = options.sampler(&tokenizer, prompt).unwrap();
    let generated = generate(
        &mut model,
        Continuation::new(sampler, &options, decode),
        &mut rng(0, Stream::Sample, 0),
        |piece| {
            pieces.push(piece.to_owned());
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert_eq!(tokenizer.decode(prompt).unwrap() + &generated.text, text);
    assert_eq!(pieces.concat(), generated.text);
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    assert!(pieces.len() > 5, "{pieces:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn streamed_pieces_are_the_text(text in "[a-cé日🙂]{1,20}", stop in "[a-cé]{1,3}") {
        let (generated, pieces) = run(&text, &options(text.len(), &[&stop]));
        let want = text.split(stop.as_str()).next().unwrap();
        prop_assert_eq!(&generated.text, want);
        prop_assert_eq!(pieces.concat(), generated.text);
    }

    #[test]
    fn any_bytes_stream_to_their_lossy_text(script in prop::collection::vec(any::<u8>(), 1..40)) {
        let mut feeds = Vec::new();
        let generated = generate(
            &mut scripted(&script, 1000, &mut feeds), after(&[1], &options(script.len(), &[])),
            &mut rng(0, Stream::Sample, 0), |_| ControlFlow::Continue(()),
        ).unwrap();
        prop_assert_eq!(generated.text, String::from_utf8_lossy(&script));
    }
}

/// A small model over bytes with likes and dislikes.
fn byte_model(seq_len: usize) -> (Gpt, Tokenizer) {
    let config = GptConfig {
        vocab_size: 257,
        seq_len,
        d_model: 16,
        n_layers: 2,
        init: InitScheme::He,
        ..GptConfig::default()
    };
    let model = config.init(&Device::flex(), &mut rng(2, Stream::Init, 0));
    (model, Tokenizer::byte(&["<|endoftext|>".to_owned()]))
}

fn go_on(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_drawn_texts_log_probabilities_are_its_score() {
    let (model, tokenizer) = byte_model(64);
    let asked = GenerateOptions {
        log_probs: Some(3),
        ..options(20, &[])
    };
    let prompt = tokenizer.encode("Once").unwrap();
    let random = &mut rng(0, Stream::Sample, 0);
    let made = complete_ids(&model, &tokenizer, &prompt, &asked, random, go_on).unwrap();
    let all = [prompt.as_slice(), &made.ids].concat();
    let scores = score(&model, &all, 3).unwrap();
    assert_eq!(scores.len(), all.len() - 1);
    assert_eq!(made.log_probs.len(), made.ids.len());
    for (drawn, scored) in made.log_probs.iter().zip(&scores[prompt.len() - 1..]) {
        assert_eq!(drawn.id, scored.id);
        assert!((drawn.log_prob - scored.log_prob).abs() < 1e-4);
        assert_eq!(drawn.top.len(), 3);
        assert_eq!(drawn.top[0].0, scored.top[0].0);
    }
    assert!(score(&model, &[1], 3).unwrap().is_empty());
    assert!(score(&model, &[], 3).unwrap().is_empty());
    let long = score(&model, &[0; 66], 3).unwrap_err().to_string();
    assert!(long.contains("2 more"), "{long}");
}

#[test]
fn the_best_of_several_is_the_most_probable_on_average() {
    let (model, tokenizer) = byte_model(64);
    let asked = GenerateOptions {
        log_probs: Some(0),
        ..options(12, &[])
    };
    let prompt = [u32::from(b'a')];
    let mean = |made: &Generated| {
        let sum: f32 = made.log_probs.iter().map(|p| p.log_prob).sum();
        sum / made.log_probs.len() as f32
    };
    let by = |strategy: Strategy| {
        let random = &mut rng(7, Stream::Sample, 0);
        strategy.complete(&model, &tokenizer, &prompt, &asked, random, go_on)
    };
    let best = by(Strategy::BestOf { count: 8 }).unwrap();
    let random = &mut rng(7, Stream::Sample, 0);
    let draws = (0..8).map(|_| complete_ids(&model, &tokenizer, &prompt, &asked, random, go_on));
    let means: Vec<f32> = draws.map(|made| mean(&made.unwrap())).collect();
    assert_eq!(mean(&best), means.into_iter().fold(f32::MIN, f32::max));
    assert!(by(Strategy::BestOf { count: 0 }).is_err());
}

#[test]
fn searches_with_one_candidate_are_greedy() {
    let (model, tokenizer) = byte_model(64);
    let asked = GenerateOptions {
        decoding: Decoding::greedy(),
        log_probs: Some(0),
        ..options(20, &[])
    };
    let prompt = tokenizer.encode("Once").unwrap();
    let by = |strategy: Strategy| {
        let random = &mut rng(7, Stream::Sample, 0);
        let made = strategy.complete(&model, &tokenizer, &prompt, &asked, random, go_on);
        made.unwrap()
    };
    let greedy = by(Strategy::Draw);
    let beam = by(Strategy::Beams {
        beams: 1,
        length_penalty: 1.0,
        early_stopping: Default::default(),
    });
    let contrastive = by(Strategy::Contrastive {
        top_k: 1,
        penalty_alpha: 0.6,
    });
    for made in [beam, contrastive] {
        assert_eq!((&made.ids, &made.text), (&greedy.ids, &greedy.text));
        assert_eq!(made.log_probs.len(), greedy.log_probs.len());
    }
    let sum = |made: &Generated| made.log_probs.iter().map(|p| p.log_prob).sum::<f32>();
    let wide = by(Strategy::Beams {
        beams: 6,
        length_penalty: 0.0,
        early_stopping: Default::default(),
    });
    assert!(sum(&wide) > sum(&greedy) || wide.ids == greedy.ids);
}

#[test]
fn a_long_prompt_is_refused_or_cut_to_its_end() {
    let (model, tokenizer) = byte_model(8);
    let by = |truncate, prompt: &str| {
        let asked = GenerateOptions {
            truncate,
            decoding: Decoding::greedy(),
            ..options(5, &[])
        };
        let random = &mut rng(7, Stream::Sample, 0);
        complete(&model, &tokenizer, prompt, &asked, random, go_on)
    };
    let refused = by(false, "0123456789").unwrap_err().to_string();
    assert!(
        refused.contains("10 tokens, 2 more") && refused.contains("--truncate"),
        "{refused}"
    );
    assert_eq!(
        by(true, "0123456789").unwrap(),
        by(false, "23456789").unwrap()
    );
}

#[test]
fn a_form_completes_a_text() {
    let (model, tokenizer) = byte_model(64);
    let asked = |max_tokens| GenerateOptions {
        form: Some(Form::Regex("[a-c]{10}".to_owned())),
        ..options(max_tokens, &[])
    };
    let by = |max_tokens| {
        let random = &mut rng(7, Stream::Sample, 0);
        complete(&model, &tokenizer, "x", &asked(max_tokens), random, go_on).unwrap()
    };
    let whole = by(50);
    assert!(whole.in_form && whole.text.len() == 10, "{whole:?}");
    assert_ne!(whole.stop, StopReason::MaxTokens);
    let cut = by(4);
    assert_eq!((cut.in_form, cut.stop), (false, StopReason::MaxTokens));
}

#[test]
fn a_bias_decides() {
    let (model, tokenizer) = byte_model(64);
    let asked = GenerateOptions {
        logit_bias: vec![Bias {
            token: u32::from(b'q'),
            add: 1000.0,
        }],
        ..options(3, &[])
    };
    let by = |asked: &GenerateOptions| {
        let random = &mut rng(7, Stream::Sample, 0);
        complete(&model, &tokenizer, "x", asked, random, go_on)
    };
    assert_eq!(by(&asked).unwrap().text, "qqq");
    let mut outside = asked;
    outside.logit_bias[0].token = 300;
    assert!(by(&outside).unwrap_err().to_string().contains("token 300"));
}
