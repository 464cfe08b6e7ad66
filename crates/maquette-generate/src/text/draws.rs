//! One prompt continued several times, side by side, by the engine.

use std::ops::ControlFlow;

use maquette_data::Tokenizer;
use maquette_rng::{Stream, rng};

use super::{Continuation, GenerateOptions, Generated, best_of, decoder};
use crate::GenerateError;
use crate::engine::{Engine, Event, Handle, Request, Speculation, WhenFull};
use crate::sampling::TokenLogProb;

/// Texts after one prompt; the engine reads it once for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Draws<'a> {
    /// What the model's tokens spell.
    pub tokenizer: &'a Tokenizer,
    /// What every text goes on from.
    pub prompt: &'a [u32],
    /// How. The tokenizer's end-of-text token ends a text, whether or not it is among them.
    pub options: &'a GenerateOptions,
    /// One text for each of these.
    pub seeds: &'a [u64],
    /// How many are drawn for a seed; the one whose tokens are the most probable on average is kept.
    pub best_of: usize,
    /// Where guesses of the next tokens come from; they change no distribution.
    pub speculation: Speculation,
}

/// What came of [`Draws`].
#[derive(Debug)]
pub struct Drawn {
    /// The texts in the order of their seeds.
    pub texts: Vec<Generated>,
    /// The log-probabilities of the prompt's tokens from the second on, if the options ask for them.
    pub prompt: Vec<TokenLogProb>,
}

/// A text that goes on.
struct Open<D> {
    text: Continuation<D>,
    /// Gone when the text has ended.
    handle: Option<Handle>,
    /// What the reader has yet to be shown.
    unseen: String,
}

impl Draws<'_> {
    /// Draws all texts. `on_text` is handed each with its number, one after the other, the first of
    /// those that have not ended as it comes; it may end the text it is handed.
    ///
    /// # Errors
    /// Options out of range, a form that is not understood, a prompt that is empty or longer than the
    /// context, or what the engine reports of a text.
    pub fn by(
        &self,
        engine: &mut Engine,
        mut on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Drawn, GenerateError> {
        let mut options = self.options.clone();
        options.end_tokens.extend(self.tokenizer.end_of_text());
        if self.best_of > 1 {
            options.log_probs = options.log_probs.or(Some(0));
        }
        let prompt = options.fit(self.prompt, engine.weights().config().seq_len);
        let sampler = options.sampler(self.tokenizer, prompt)?;
        let mut open = Vec::with_capacity(self.seeds.len() * self.best_of);
        for &seed in self.seeds {
            for candidate in 0..self.best_of {
                let handle = engine.submit(Request {
                    max_tokens: options.max_tokens,
                    end_tokens: options.end_tokens.clone(),
                    when_full: WhenFull::Slide,
                    speculation: self.speculation,
                    score_prompt: self.options.log_probs.is_some() && open.is_empty(),
                    ..Request::new(sampler.clone(), rng(seed, Stream::Sample, candidate as u64))
                })?;
                open.push(Open {
                    text: Continuation::new(sampler.clone(), &options, decoder(self.tokenizer)),
                    handle: Some(handle),
                    unseen: String::new(),
                });
            }
        }
        let prompt = match self.best_of {
            1 => run(engine, &mut open, &mut on_text)?,
            _ => run(engine, &mut open, &mut |_, _| ControlFlow::Continue(()))?,
        };
        let mut all = open.into_iter().map(|open| open.text.finish());
        if self.best_of == 1 {
            let texts = all.collect();
            return Ok(Drawn { texts, prompt });
        }
        let mut texts = Vec::with_capacity(self.seeds.len());
        for at in 0..self.seeds.len() {
            let next = || Ok(all.next().expect("as many were submitted"));
            let best = best_of(self.best_of, next)?;
            let _ = on_text(at, &best.text);
            texts.push(best);
        }
        Ok(Drawn { texts, prompt })
    }
}

/// Steps until all texts have ended; the log-probabilities of the prompt, if they were asked for.
fn run<D: Fn(&[u32]) -> Result<String, GenerateError>>(
    engine: &mut Engine,
    open: &mut [Open<D>],
    on_text: &mut impl FnMut(usize, &str) -> ControlFlow<()>,
) -> Result<Vec<TokenLogProb>, GenerateError> {
    let mut prompt = Vec::new();
    // The text that is shown.
    let mut shown = 0;
    while open.iter().any(|open| open.handle.is_some()) {
        for event in engine.step() {
            let of = |request| {
                let mut handles = open.iter().map(|open| open.handle.as_ref());
                handles.position(|handle| handle.is_some_and(|handle| handle.id() == request))
            };
            match event {
                Event::Prompt { log_probs, .. } => prompt = log_probs,
                // A text that was told to end may have drawn more in the same step.
                Event::Token { request, token } => {
                    if let Some(at) = of(request) {
                        let progress = open[at].text.follow(token)?;
                        open[at].unseen.push_str(&progress.piece);
                        if progress.stop.is_some() {
                            open[at].handle = None;
                        }
                    }
                }
                Event::Finished { request, .. } => {
                    if let Some(at) = of(request) {
                        open[at].handle = None;
                    }
                }
                Event::Failed { error, .. } => return Err(error),
            }
        }
        while let Some(text) = open.get_mut(shown) {
            let piece = std::mem::take(&mut text.unseen);
            if !piece.is_empty() && on_text(shown, &piece).is_break() && text.handle.is_some() {
                text.text.cancel();
                text.handle = None;
            }
            if text.handle.is_some() {
                break;
            }
            shown += 1;
        }
    }
    Ok(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::Form;
    use crate::engine::{EngineOptions, Weights};
    use crate::sampling::Decoding;
    use crate::text::{StopReason, complete_ids};
    use burn::tensor::Device;
    use maquette_models::nn::InitScheme;
    use maquette_models::{Gpt, GptConfig};

    fn byte_model() -> (GptConfig, Gpt, Tokenizer) {
        let tokenizer = Tokenizer::byte(&[]);
        let config = GptConfig {
            vocab_size: tokenizer.vocab_size(),
            seq_len: 40,
            d_model: 32,
            n_layers: 2,
            n_heads: 2,
            init: InitScheme::He,
            ..GptConfig::llama()
        };
        let model = config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
        (config, model, tokenizer)
    }

    fn options() -> GenerateOptions {
        GenerateOptions {
            max_tokens: 60,
            stop: vec!["q".to_owned()],
            ..GenerateOptions::default()
        }
    }

    /// What is drawn, and what the reader is shown of each text.
    fn draw(draws: Draws<'_>) -> (Vec<Generated>, Vec<String>) {
        let (config, model, _) = byte_model();
        let sizes = EngineOptions {
            sequences: 3,
            ..EngineOptions::default()
        };
        let weights = || Weights::of(&config, &model);
        let mut engine = Engine::new(weights(), sizes).with_draft(weights()).unwrap();
        let mut shown = vec![String::new(); draws.seeds.len()];
        let mut last = 0;
        let drawn = draws.by(&mut engine, |at, piece| {
            assert!(at >= last, "texts come one after the other");
            last = at;
            shown[at].push_str(piece);
            ControlFlow::Continue(())
        });
        assert!(!engine.is_busy());
        (drawn.unwrap().texts, shown)
    }

    const PROMPT: [u32; 3] = [70, 105, 115];

    fn draws<'a>(tokenizer: &'a Tokenizer, options: &'a GenerateOptions) -> Draws<'a> {
        Draws {
            tokenizer,
            prompt: &PROMPT,
            options,
            seeds: &[1, 2, 3, 4, 5],
            best_of: 1,
            speculation: Speculation::Off,
        }
    }

    #[test]
    fn side_by_side_texts_are_those_drawn_alone_by_tensors() {
        let (_, model, tokenizer) = byte_model();
        let options = options();
        let draws = draws(&tokenizer, &options);
        let (texts, shown) = draw(draws);
        for ((seed, text), shown) in draws.seeds.iter().zip(&texts).zip(shown) {
            let random = &mut rng(*seed, Stream::Sample, 0);
            let go_on = |_: &str| ControlFlow::Continue(());
            let alone = complete_ids(&model, &tokenizer, &PROMPT, &options, random, go_on);
            assert_eq!(*text, alone.unwrap());
            assert_eq!(text.text, shown);
        }
    }

    #[test]
    fn guesses_change_no_text_in_a_form() {
        let (_, _, tokenizer) = byte_model();
        let options = GenerateOptions {
            form: Some(Form::Regex("(ab|[0-9]{2}c){3,9}".to_owned())),
            decoding: Decoding::greedy(),
            ..options()
        };
        let plain = draws(&tokenizer, &options);
        let (expected, _) = draw(plain);
        assert!(expected.iter().all(|text| text.in_form));
        for speculation in [Speculation::Lookup(4), Speculation::Draft(3)] {
            let draws = Draws {
                speculation,
                ..plain
            };
            assert_eq!(draw(draws).0, expected, "{speculation:?}");
        }
    }

    #[test]
    fn the_best_is_kept() {
        let (_, _, tokenizer) = byte_model();
        let options = GenerateOptions {
            log_probs: Some(0),
            ..options()
        };
        let one = draws(&tokenizer, &options);
        let (texts, _) = draw(one);
        let (best, shown) = draw(Draws { best_of: 4, ..one });
        let mean = |text: &Generated| {
            let sum: f32 = text.log_probs.iter().map(|one| one.log_prob).sum();
            sum / text.log_probs.len() as f32
        };
        for ((best, one), shown) in best.iter().zip(&texts).zip(shown) {
            assert!(mean(best) >= mean(one));
            assert_eq!(best.text, shown);
        }
    }

    #[test]
    fn a_reader_may_end_a_text() {
        let (config, model, tokenizer) = byte_model();
        let options = options();
        let mut engine = Engine::new(Weights::of(&config, &model), EngineOptions::default());
        let drawn = draws(&tokenizer, &options).by(&mut engine, |at, _| match at {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        let texts = drawn.unwrap().texts;
        assert_eq!(texts[0].stop, StopReason::Cancelled);
        assert_ne!(texts[1].stop, StopReason::Cancelled);
    }
}
