//! The engine: many texts at once through one decoder, on the CPU.
//!
//! A caller submits [`Request`]s and calls [`Engine::step`], which reads the weights once for all
//! texts that go on and gives the tokens they drew (continuous batching, Yu et al. 2022, Orca). Keys
//! and values lie in pages that texts with the same beginning share. Nothing here waits, speaks HTTP
//! or starts a thread: a server steps an engine on a thread of its own and passes the events on.
//!
//! A text does not depend on what else is computed with it: the same request gives the same tokens
//! alone and among others, in one piece or preempted.
//!
//! ```no_run
//! # use maquette_generate::engine::*;
//! # use maquette_generate::sampling::{Decoding, TokenSampler};
//! # use maquette_rng::{Stream, rng};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let weights = Weights::open("model.gguf".as_ref())?;
//! let mut engine = Engine::new(weights, EngineOptions::default());
//! let sampler = TokenSampler::new(Decoding::default(), &[1, 403, 407])?;
//! let handle = engine.submit(Request::new(sampler, rng(0, Stream::Sample, 0)))?;
//! while engine.is_busy() {
//!     for event in engine.step() {
//!         println!("{event:?}");
//!     }
//! }
//! # drop(handle);
//! # Ok(())
//! # }
//! ```

mod cache;
mod forward;
mod scheduler;
mod sequence;
mod session;
mod speculative;
#[cfg(test)]
mod tests;
mod weights;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maquette_rng::Rng;
use serde::Serialize;

use crate::GenerateError;
use crate::sampling::{Drawn, TokenLogProb, TokenSampler};

pub use scheduler::Engine;
pub use session::{Session, token_model};
pub use weights::Weights;

/// The sizes of an [`Engine`].
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Most texts that go on at once; others wait.
    pub sequences: usize,
    /// Most tokens read in a step: single tokens of texts that go on, then parts of prompts.
    pub batch: usize,
    /// Positions of all texts together that keys and values are kept of; as many as `sequences`
    /// whole contexts, but at most 64 Ki, if absent. Memory is taken page by page when it is needed.
    pub cache: Option<usize>,
    /// Most tokens guessed ahead per text, where requests ask for it.
    pub guesses: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            sequences: 8,
            batch: 512,
            cache: None,
            guesses: 8,
        }
    }
}

/// What becomes of a text whose context is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It ends.
    Stop,
    /// It goes on from the last half of it.
    Slide,
}

/// Where guesses of the next tokens come from. They are read in one step with the token before and
/// kept as far as the model agrees, so that the text's distribution stays the model's (Leviathan et
/// al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// Tokens are drawn one by one.
    Off,
    /// What followed the last two tokens where the text had them before (prompt lookup, Saxena 2023):
    /// at most so many tokens.
    Lookup(usize),
    /// The engine's draft model ([`Engine::with_draft`]): so many tokens.
    Draft(usize),
}

/// A text to be continued.
#[derive(Debug)]
pub struct Request {
    /// The prompt, which must not be longer than the context, and how each token after it is drawn.
    pub sampler: TokenSampler,
    /// What the draws depend on.
    pub rng: Rng,
    /// Most tokens to draw.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub end_tokens: Vec<u32>,
    /// What becomes of a full context.
    pub when_full: WhenFull,
    /// Where guesses come from.
    pub speculation: Speculation,
    /// Whether the prompt's tokens come with their log-probabilities, as an [`Event::Prompt`]; with as
    /// many others as the sampler tells of.
    pub score_prompt: bool,
}

impl Request {
    /// 256 tokens after the sampler's prompt.
    pub fn new(sampler: TokenSampler, rng: Rng) -> Self {
        Self {
            sampler,
            rng,
            max_tokens: 256,
            end_tokens: Vec::new(),
            when_full: WhenFull::Stop,
            speculation: Speculation::Off,
            score_prompt: false,
        }
    }
}

/// The name of a request in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// A submitted request. It is cancelled when its handle is dropped.
#[derive(Debug)]
pub struct Handle {
    id: RequestId,
    cancelled: Arc<AtomicBool>,
}

impl Handle {
    /// Whose events are this request's.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Ends the text at the next step; from any thread.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Something that happened in a step.
#[derive(Debug)]
pub enum Event {
    /// The prompt was read: the log-probability of each of its tokens but the first.
    Prompt {
        /// Whose.
        request: RequestId,
        /// In their order.
        log_probs: Vec<TokenLogProb>,
    },
    /// A token was drawn.
    Token {
        /// Whose.
        request: RequestId,
        /// Which.
        token: Drawn,
    },
    /// A text ended; its last event.
    Finished {
        /// Whose.
        request: RequestId,
        /// Why.
        reason: Finish,
    },
    /// A text broke off; its last event.
    Failed {
        /// Whose.
        request: RequestId,
        /// Why.
        error: GenerateError,
    },
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// `max_tokens` were drawn.
    MaxTokens,
    /// A token that ends the text was drawn; it is the last.
    EndToken,
    /// The text has the form that its sampler keeps to, and nothing may follow.
    Complete,
    /// The context is full.
    ContextFull,
    /// Its handle was dropped, or told so.
    Cancelled,
}
