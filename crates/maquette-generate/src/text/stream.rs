//! From a stream of ids to a stream of text.

use crate::GenerateError;

/// Ids in, whole characters out.
///
/// Decoding one id at a time is wrong twice: a character may take several tokens, and tokenizers
/// that write spaces with the following word drop the first one. So a few ids of context are
/// always decoded along, and their text is taken off again.
#[derive(Debug, Clone)]
pub(super) struct Characters<D> {
    decode: D,
    ids: Vec<u32>,
    /// `ids[context..read]` is decoded along; text up to `read` has been given out.
    context: usize,
    read: usize,
}

/// How many ids of the prompt are context for the first generated one.
const CONTEXT: usize = 6;

impl<D: Fn(&[u32]) -> Result<String, GenerateError>> Characters<D> {
    pub(super) fn after(prompt: &[u32], decode: D) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            decode,
            context: 0,
            read: ids.len(),
            ids,
        }
    }

    /// The text that `id` completes; empty while a character lacks bytes.
    pub(super) fn push(&mut self, id: u32) -> Result<String, GenerateError> {
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
    pub(super) fn rest(&self) -> Result<String, GenerateError> {
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
#[derive(Debug, Clone)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.to_vec(),
            held: String::new(),
        }
    }

    /// The text that is safe to give out now, and whether a stop string came right after it.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
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

    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
