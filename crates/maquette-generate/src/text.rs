//! Text, token by token: the loop around a language model, and the way from ids to a stream of
//! whole characters that stops where it was told to.

use crate::GenerateError;
use crate::sampling::{Decoding, distribution, sample};
use maquette_rng::Rng;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::ops::ControlFlow;

/// How much text to make and where to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Stop before any of these strings; they are not part of the text.
    pub stop: Vec<String>,
    /// Stop at any of these tokens; they are not part of the text.
    pub end_tokens: Vec<u32>,
    /// How each token is chosen.
    pub decoding: Decoding,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            stop: Vec::new(),
            end_tokens: Vec::new(),
            decoding: Decoding::default(),
        }
    }
}

/// Why the text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// `max_tokens` were generated.
    MaxTokens,
    /// A stop string appeared.
    StopString,
    /// The model drew an end token.
    EndToken,
    /// The callback asked to stop.
    Cancelled,
}

/// A finished piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Every token drawn, also those whose text a stop string cut off.
    pub ids: Vec<u32>,
    /// The text, without prompt, stop string and end token.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
}

/// What a language model is asked to read before it gives the logits of the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed<'a> {
    /// Forget everything and read these tokens; never empty, never longer than `seq_len`.
    Restart(&'a [u32]),
    /// Read one more token after what was read so far.
    Append(u32),
}

/// A language model as the loop sees it: a closure and the number of tokens it can look back on.
#[derive(Debug)]
pub struct TokenModel<F> {
    /// Reads tokens and gives one logit per token of the vocabulary for what comes next.
    pub forward: F,
    /// The longest context the model can read.
    pub seq_len: usize,
}

/// Generates token ids until `max_tokens`, or until `on_token` breaks; returns all of them.
///
/// When the context is full, the model starts again on the last half of it. A prompt longer than
/// the context is cut to its end. The repetition penalty of `decoding` counts prompt and output.
///
/// # Errors
/// An empty prompt, options out of range, or what `forward` reports.
pub fn generate_ids<F>(
    model: &mut TokenModel<F>,
    prompt: &[u32],
    max_tokens: usize,
    decoding: &Decoding,
    rng: &mut Rng,
    mut on_token: impl FnMut(u32) -> Result<ControlFlow<()>, GenerateError>,
) -> Result<Vec<u32>, GenerateError>
where
    F: FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>,
{
    decoding.check()?;
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if max_tokens == 0 {
        return Ok(Vec::new());
    }
    let seq_len = model.seq_len.max(1);
    let mut window = prompt[prompt.len().saturating_sub(seq_len)..].to_vec();
    let mut history = prompt.to_vec();
    let mut logits = (model.forward)(Feed::Restart(&window))?;
    loop {
        let id = sample(&distribution(&logits, &history, decoding)?, rng);
        history.push(id);
        if on_token(id)?.is_break() || history.len() == prompt.len() + max_tokens {
            return Ok(history.split_off(prompt.len()));
        }
        window.push(id);
        logits = if window.len() > seq_len {
            window.drain(..window.len() - (seq_len / 2).max(1));
            (model.forward)(Feed::Restart(&window))?
        } else {
            (model.forward)(Feed::Append(id))?
        };
    }
}

/// Generates text after `prompt` and hands it to `on_text` as it comes, in whole characters;
/// `on_text` may break off. The pieces together are the text that is returned.
///
/// `decode` turns ids into text, with U+FFFD where bytes make no whole character.
///
/// # Errors
/// As [`generate_ids`], or what `decode` reports.
pub fn generate<F, E: Display>(
    model: &mut TokenModel<F>,
    prompt: &[u32],
    options: &GenerateOptions,
    decode: impl Fn(&[u32]) -> Result<String, E>,
    rng: &mut Rng,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, GenerateError>
where
    F: FnMut(Feed<'_>) -> Result<Vec<f32>, GenerateError>,
{
    let decode = |ids: &[u32]| decode(ids).map_err(|e| GenerateError::Decode(e.to_string()));
    let mut characters = Characters::after(prompt, decode);
    let mut filter = StopFilter::new(&options.stop);
    let mut text = String::new();
    let mut stop = StopReason::MaxTokens;
    let mut emit = |piece: &str| {
        text.push_str(piece);
        match piece {
            "" => ControlFlow::Continue(()),
            piece => on_text(piece),
        }
    };
    let on_token = |id: u32| {
        if options.end_tokens.contains(&id) {
            stop = StopReason::EndToken;
            return Ok(ControlFlow::Break(()));
        }
        let (piece, stopped) = filter.push(&characters.push(id)?);
        let cancelled = emit(&piece).is_break();
        if stopped {
            stop = StopReason::StopString;
        } else if cancelled {
            stop = StopReason::Cancelled;
        }
        Ok(match stopped || cancelled {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    };
    let ids = generate_ids(
        model,
        prompt,
        options.max_tokens,
        &options.decoding,
        rng,
        on_token,
    )?;
    // What waited for more bytes or might have become a stop string is text after all.
    if matches!(stop, StopReason::MaxTokens | StopReason::EndToken) {
        let (piece, stopped) = filter.push(&characters.rest()?);
        let _ = emit(&piece);
        if stopped {
            stop = StopReason::StopString;
        } else {
            let _ = emit(&filter.rest());
        }
    }
    Ok(Generated { ids, text, stop })
}

/// Ids in, whole characters out.
///
/// Decoding one id at a time is wrong twice: a character may take several tokens, and tokenizers
/// that write spaces with the following word drop the first one. So a few ids of context are
/// always decoded along, and their text is taken off again.
struct Characters<D> {
    decode: D,
    ids: Vec<u32>,
    /// `ids[context..read]` is decoded along; text up to `read` has been given out.
    context: usize,
    read: usize,
}

/// How many ids of the prompt are context for the first generated one.
const CONTEXT: usize = 6;

impl<D: Fn(&[u32]) -> Result<String, GenerateError>> Characters<D> {
    fn after(prompt: &[u32], decode: D) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            decode,
            context: 0,
            read: ids.len(),
            ids,
        }
    }

    /// The text that `id` completes; empty while a character lacks bytes.
    fn push(&mut self, id: u32) -> Result<String, GenerateError> {
        self.ids.push(id);
        let text = self.unread()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.context = self.read;
        self.read = self.ids.len();
        Ok(text)
    }

    /// The text of what still waits, whole characters or not.
    fn rest(&self) -> Result<String, GenerateError> {
        self.unread()
    }

    fn unread(&self) -> Result<String, GenerateError> {
        let known = (self.decode)(&self.ids[self.context..self.read])?;
        let all = (self.decode)(&self.ids[self.context..])?;
        // The known text can end in a broken character of the prompt that is whole by now, so
        // only what both have in common is old.
        let shared = known
            .char_indices()
            .zip(all.chars())
            .find(|((_, a), b)| a != b)
            .map_or(known.len().min(all.len()), |((at, _), _)| at);
        Ok(all[shared..].to_owned())
    }
}

/// Holds text back as long as it might be the beginning of a stop string.
struct StopFilter<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> StopFilter<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// The text that is safe to give out now, and whether a stop string came right after it.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self
            .stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let suspect = |at: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.starts_with(&self.held[*at..]))
        };
        let keep_from = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(suspect)
            .unwrap_or(self.held.len());
        let held = self.held.split_off(keep_from);
        (std::mem::replace(&mut self.held, held), false)
    }

    fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        }
    }

    fn bytes(ids: &[u32]) -> Result<String, String> {
        let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn run(script: &str, options: &GenerateOptions) -> (Generated, Vec<String>) {
        let mut pieces = Vec::new();
        let mut feeds = Vec::new();
        let generated = generate(
            &mut scripted(script.as_bytes(), 1000, &mut feeds),
            &[1],
            options,
            bytes,
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
            &[u32::from(b'x'), u32::from(e[0])],
            &options(2, &[]),
            bytes,
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
            &[1],
            &options(6, &[]),
            bytes,
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
        let prompt = [1, 2, 3, 4, 5, 6];
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
        let wrong = Decoding {
            top_k: Some(0),
            ..d
        };
        assert!(ids(&[1], 1, &wrong).is_err());
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
                &mut scripted(&script, 1000, &mut feeds), &[1], &options(script.len(), &[]), bytes,
                &mut rng(0, Stream::Sample, 0), |_| ControlFlow::Continue(()),
            ).unwrap();
            prop_assert_eq!(generated.text, String::from_utf8_lossy(&script));
        }
    }
}
