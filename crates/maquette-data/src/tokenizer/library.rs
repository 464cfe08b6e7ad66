//! A tokenizer of the Hugging Face library, with a faster way to ids where there is one.

use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::{Encoding, Token, Tokenizer as HfTokenizer};

use super::byte_level::ByteLevel;
use super::error;
use crate::Result;

/// A tokenizer of the library.
#[derive(Debug, Clone)]
pub(super) struct Library {
    pub(super) hf: HfTokenizer,
    fast: Option<Arc<ByteLevel>>,
    /// The same, but special tokens are text like any other; made when it is first asked for.
    literal: OnceLock<Box<HfTokenizer>>,
}

impl Library {
    /// `file` is the `tokenizer.json` that `hf` was read from.
    pub(super) fn new(hf: HfTokenizer, file: &Value) -> Self {
        Self {
            fast: ByteLevel::from_json(file, &hf).map(Arc::new),
            hf,
            literal: OnceLock::new(),
        }
    }

    /// Without the fast way.
    #[cfg(test)]
    pub(super) fn slow(&self) -> Self {
        Self {
            fast: None,
            ..self.clone()
        }
    }

    pub(super) fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.fast {
            Some(fast) => Ok(fast.encode(text, true)),
            None => ids(self.hf.encode_fast(text, false)),
        }
    }

    pub(super) fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(fast) = &self.fast {
            return Ok(fast.encode(text, false));
        }
        let literal = self.literal.get_or_init(|| {
            let mut literal = Box::new(self.hf.clone());
            literal.set_encode_special_tokens(true);
            literal
        });
        ids(literal.encode_fast(text, false))
    }

    pub(super) fn encode_with_template(&self, text: &str) -> Result<Vec<u32>> {
        let Some(fast) = &self.fast else {
            return ids(self.hf.encode_fast(text, true));
        };
        let found = fast.encode(text, true);
        // The template looks at ids only.
        let tokens = found
            .into_iter()
            .map(|id| Token::new(id, String::new(), (0, 0)));
        let encoding = Encoding::from_tokens(tokens.collect(), 0);
        ids(self.hf.post_process(encoding, None, true))
    }
}

fn ids(encoding: tokenizers::Result<Encoding>) -> Result<Vec<u32>> {
    Ok(encoding.map_err(error)?.get_ids().to_vec())
}
