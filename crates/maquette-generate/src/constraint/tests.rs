use super::*;
use crate::sampling::{Decoding, TokenSampler};
use maquette_data::tokenizer::{TokenizerConfig, TokenizerKind};
use maquette_rng::{Stream, normal, rng};

const TEXT: &str =
    "{\"color\": \"green\", \"n\": -12.5} [true, false, null] abc xyz 0123456789 \\u_";

fn tokenizer(kind: TokenizerKind) -> Tokenizer {
    let config = TokenizerConfig {
        kind,
        vocab_size: 300,
        ..TokenizerConfig::default()
    };
    let text = TEXT.repeat(30);
    config.train(std::iter::once(Ok(text))).unwrap()
}

/// What a model that knows nothing writes in a form, until it may write nothing more, or `most` tokens.
fn written(tokenizer: &Tokenizer, form: &Form, seed: u64, most: usize) -> (String, bool) {
    let constraint = Vocabulary::new(tokenizer, &[]).unwrap();
    let constraint = constraint.constraint(form).unwrap();
    let sampler = TokenSampler::new(Decoding::default(), &[0]).unwrap();
    let mut sampler = sampler.constraint(Some(constraint));
    let mut random = rng(seed, Stream::Sample, 0);
    let end = tokenizer.end_of_text();
    let mut ids = Vec::new();
    for step in 0..most as u64 {
        let logits = normal(&mut rng(seed, Stream::Noise, step), tokenizer.vocab_size());
        let id = sampler.draw(&logits, &mut random).unwrap().id;
        if Some(id) == end {
            break;
        }
        ids.push(id);
        if sampler.complete() {
            break;
        }
    }
    (tokenizer.decode(&ids).unwrap(), sampler.may_end())
}

#[test]
fn every_kind_of_vocabulary_keeps_to_the_form() {
    use TokenizerKind::{Bpe, Byte, Char, Unigram};
    let words = ["abc", "a", "xyz"].map(str::to_owned).to_vec();
    for kind in [Byte, Char, Bpe, Unigram] {
        let tokenizer = tokenizer(kind);
        for seed in 0..10 {
            let choices = Form::Choices(words.clone());
            let (text, whole) = written(&tokenizer, &choices, seed, 50);
            assert!(
                whole && words.contains(&text.trim_start().to_owned()),
                "{kind:?} {text:?}"
            );
            let digits = Form::Regex("[0-9]{3}-[xyz]{2}".to_owned());
            let (text, whole) = written(&tokenizer, &digits, seed, 50);
            assert!(whole && text.trim_start().len() == 6, "{kind:?}: {text:?}");
            let schema =
                json!({"type": "array", "items": {"enum": ["green", null]}, "maxItems": 3});
            let (text, whole) = written(&tokenizer, &Form::JsonSchema(schema), seed, 100);
            assert!(whole, "{kind:?}: {text:?}");
            let value: Vec<Value> = serde_json::from_str(&text).unwrap();
            assert!(value.iter().all(|v| v.is_null() || v == "green"));
        }
    }
}

#[test]
fn grammars_are_followed() {
    let sum = "start: NUMBER (\"+\" NUMBER)* \";\"\nNUMBER: /[1-9][0-9]?/";
    let tokenizer = tokenizer(TokenizerKind::Byte);
    let (text, whole) = written(&tokenizer, &Form::Grammar(sum.to_owned()), 3, 400);
    assert!(whole && text.ends_with(';'), "{text:?}");
    let numbers = text.trim_end_matches(';').split('+');
    assert!(
        numbers
            .clone()
            .all(|n| n.parse::<u8>().is_ok_and(|n| n < 100))
    );
}

#[test]
fn a_text_that_is_cut_is_told_from_one_that_is_whole() {
    let tokenizer = tokenizer(TokenizerKind::Byte);
    let schema = Form::JsonSchema(json!({"type": "string", "minLength": 30, "maxLength": 40}));
    assert!(!written(&tokenizer, &schema, 0, 10).1);
    assert!(written(&tokenizer, &schema, 0, 400).1);
}

#[test]
fn bad_forms_are_named() {
    let tokenizer = Vocabulary::new(&tokenizer(TokenizerKind::Byte), &[]).unwrap();
    let message = |form: Form| match tokenizer.constraint(&form) {
        Ok(_) => panic!("{form:?} is understood"),
        Err(error) => error.to_string(),
    };
    let regex = message(Form::Regex("[0-9".to_owned()));
    assert!(regex.starts_with("regular expression:"), "{regex}");
    let grammar = message(Form::Grammar("start: \"a\" missing".to_owned()));
    assert!(grammar.contains("missing"), "{grammar}");
    let syntax = message(Form::Grammar("start: \"a\"\nb: ((".to_owned()));
    assert!(syntax.contains('2') || syntax.contains('3'), "{syntax}");
    let schema = message(Form::JsonSchema(json!({"type": "strin"})));
    assert!(schema.contains("strin"), "{schema}");
    assert!(message(Form::JsonSchema(json!([1]))).contains("an object"));
    assert!(
        message(Form::JsonSchema(json!({"not": {}, "contains": 1}))).starts_with("JSON schema:")
    );
    assert!(message(Form::Choices(vec![])).contains("no choice"));
    assert!(message(Form::Choices(vec![String::new()])).contains("empty"));
}

#[test]
fn a_vocabulary_without_the_characters_is_named() {
    let tokenizer = tokenizer(TokenizerKind::Char);
    let form = Form::Regex("É".to_owned());
    let constraint = Vocabulary::new(&tokenizer, &[]).unwrap().constraint(&form);
    let mut logits = vec![0.0; tokenizer.vocab_size()];
    let error = constraint.unwrap().mask(&mut logits).unwrap_err();
    assert!(error.to_string().contains("lacks characters"), "{error}");
}
