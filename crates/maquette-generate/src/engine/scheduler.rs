//! Who is read in a step: texts that go on first, then parts of prompts, in the order they came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use maquette_kernels::paged::PAGE;

use super::cache::Pool;
use super::forward::{Batch, Forward};
use super::sequence::{Advance, Sequence};
use super::speculative::{Draft, lookup};
use super::{
    EngineOptions, Event, Finish, Handle, Request, RequestId, Speculation, Weights, WhenFull,
};
use crate::GenerateError;

/// Most positions kept unless the options say otherwise.
const CACHE: usize = 1 << 16;

/// Rows of which logits can be had at once, at least: parts of prompts that are scored.
const SCORED: usize = 32;

/// A model and the texts it continues.
pub struct Engine {
    weights: Weights,
    options: EngineOptions,
    pool: Pool,
    forward: Forward,
    batch: Batch,
    draft: Option<Draft>,
    waiting: VecDeque<Sequence>,
    /// In the order they came.
    running: Vec<Sequence>,
    submitted: u64,
    reused: usize,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (waiting, running) = (self.waiting.len(), self.running.len());
        write!(f, "Engine({waiting} waiting, {running} running)")
    }
}

impl Engine {
    /// An engine without texts.
    pub fn new(weights: Weights, options: EngineOptions) -> Self {
        let mut options = options;
        options.sequences = options.sequences.max(1);
        options.batch = options.batch.max(options.sequences * (1 + options.guesses));
        let wanted = (options.sequences * (1 + options.guesses)).max(SCORED.min(options.batch));
        Self {
            pool: Pool::new(weights.config(), Self::positions(&weights, &options)),
            forward: Forward::new(&weights, options.batch, wanted),
            batch: Batch::default(),
            draft: None,
            waiting: VecDeque::new(),
            running: Vec::new(),
            submitted: 0,
            reused: 0,
            weights,
            options,
        }
    }

    /// The same with a small model that guesses ahead; see [`Speculation::Draft`].
    ///
    /// # Errors
    /// [`GenerateError::Draft`] if its vocabulary has another size.
    pub fn with_draft(mut self, draft: Weights) -> Result<Self, GenerateError> {
        let [ours, theirs] = [&self.weights, &draft].map(|weights| weights.config().vocab_size);
        if ours != theirs {
            return Err(GenerateError::Draft { ours, theirs });
        }
        let positions = Self::positions(&self.weights, &self.options);
        self.draft = Some(Draft::new(draft, &self.options, positions));
        Ok(self)
    }

    fn positions(weights: &Weights, options: &EngineOptions) -> usize {
        let whole = weights.config().seq_len.saturating_mul(options.sequences);
        options.cache.unwrap_or(whole.min(CACHE))
    }

    /// The model.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The model back; all texts end.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// Takes a text in; its events come with the next steps.
    ///
    /// # Errors
    /// A prompt that is too long for the context or the cache, or a token outside the vocabulary.
    pub fn submit(&mut self, request: Request) -> Result<Handle, GenerateError> {
        let prompt = request.sampler.history();
        let config = self.weights.config();
        let most = config.seq_len.min(self.pool.limit() * PAGE);
        if prompt.len() > most {
            return Err(GenerateError::PromptTooLong {
                length: prompt.len(),
                context: most,
            });
        }
        let vocab_size = config.vocab_size;
        if let Some(&token) = prompt.iter().find(|id| **id as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        let id = RequestId(self.submitted);
        self.submitted += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        let sequence = Sequence::new(id, request, cancelled.clone());
        self.waiting.push_back(sequence);
        Ok(Handle { id, cancelled })
    }

    /// Whether there is anything to do.
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// Texts that wait, and texts that go on.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Positions that texts hold in the cache, in whole pages, and all there is room for.
    pub fn cache_use(&self) -> (usize, usize) {
        (self.pool.held() * PAGE, self.pool.limit() * PAGE)
    }

    /// Positions that were not read because another text had begun the same way.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// Reads once through the weights, and gives what came of it.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.sweep(&mut events);
        self.admit();
        self.guess();
        let plan = self.plan(&mut events);
        if plan.iter().all(|len| *len == 0) {
            return events;
        }
        // 1. Read.
        self.batch.clear();
        let mut wanted = Vec::with_capacity(plan.len());
        for (sequence, &len) in self.running.iter_mut().zip(&plan) {
            let guesses = len.saturating_sub(sequence.unread());
            sequence.guesses.truncate(guesses);
            let guessed = sequence.guesses.iter().map(|guess| guess.id);
            let unread = sequence.context()[sequence.read..].iter().copied();
            let tokens: Vec<u32> = unread.chain(guessed).take(len).collect();
            let rows = sequence.wanted(len);
            wanted.push(rows);
            if len > 0 {
                self.batch
                    .push(&tokens, sequence.read, &sequence.pages, rows);
            }
        }
        self.forward
            .read(&self.weights, &mut self.pool, &self.batch);
        // 2. Draw.
        let config = self.weights.config();
        let (seq_len, vocab_size) = (config.seq_len, config.vocab_size);
        let mut row = 0;
        let mut over = Vec::new();
        for (i, &len) in plan.iter().enumerate() {
            let sequence = &mut self.running[i];
            sequence.read += len - sequence.guesses.len();
            let rows = row * vocab_size..(row + wanted[i]) * vocab_size;
            row += wanted[i];
            let advance = sequence.take_in(self.forward.logits(rows), wanted[i], seq_len);
            let request = sequence.id;
            let goes_on = |made: &Advance| made.tokens.is_empty() && made.finish.is_none();
            if sequence.request.score_prompt && !advance.as_ref().is_ok_and(goes_on) {
                let log_probs = std::mem::take(&mut sequence.scores);
                sequence.request.score_prompt = false;
                events.push(Event::Prompt { request, log_probs });
            }
            match advance {
                Ok(advance) => {
                    let token = |token| Event::Token { request, token };
                    events.extend(advance.tokens.into_iter().map(token));
                    if let Some(reason) = advance.finish {
                        events.push(Event::Finished { request, reason });
                        over.push(i);
                    }
                }
                Err(error) => {
                    events.push(Event::Failed { request, error });
                    over.push(i);
                }
            }
            self.running[i].publish(&mut self.pool);
        }
        // 3. Let go.
        for i in over.into_iter().rev() {
            self.running.remove(i).forget(&mut self.pool);
        }
        for sequence in &mut self.running {
            sequence.slide(seq_len, &mut self.pool);
        }
        if let Some(draft) = &mut self.draft {
            draft.settle(&self.running);
        }
        events
    }

    /// Ends what was cancelled, and what asks for no token.
    fn sweep(&mut self, events: &mut Vec<Event>) {
        let pool = &mut self.pool;
        let mut stays = |sequence: &mut Sequence| {
            let reason = match () {
                () if sequence.is_cancelled() => Finish::Cancelled,
                () if sequence.left() == 0 && !sequence.request.score_prompt => Finish::MaxTokens,
                () => return true,
            };
            let request = sequence.id;
            events.push(Event::Finished { request, reason });
            sequence.forget(pool);
            false
        };
        self.running.retain_mut(&mut stays);
        self.waiting.retain_mut(&mut stays);
    }

    /// Lets waiting texts go on, first come, first served, while there are places and pages.
    fn admit(&mut self) {
        while self.running.len() < self.options.sequences {
            let Some(next) = self.waiting.front_mut() else {
                return;
            };
            next.reuse(&mut self.pool);
            // What another text is just computing is worth waiting for.
            if self.running.iter().any(|running| next.awaits(running)) {
                return;
            }
            let needed = (next.context().len() + 1).div_ceil(PAGE) - next.pages.len();
            if needed > self.pool.available() && !self.running.is_empty() {
                return;
            }
            self.reused += next.read;
            let next = self.waiting.pop_front().expect("seen above");
            let at = self.running.partition_point(|running| running.id < next.id);
            self.running.insert(at, next);
        }
    }

    /// Guesses ahead for texts that ask for it and have one token to read.
    fn guess(&mut self) {
        let seq_len = self.weights.config().seq_len;
        let mut drafted = Vec::new();
        for sequence in &mut self.running {
            sequence.guesses.clear();
            if sequence.unread() != 1 {
                continue;
            }
            // The token after the guesses is drawn too.
            let room = (seq_len - sequence.context().len()).min(sequence.left().saturating_sub(1));
            let most = room.min(self.options.guesses);
            match sequence.request.speculation {
                Speculation::Off => {}
                Speculation::Lookup(count) => {
                    sequence.guesses = lookup(sequence.context(), most.min(count));
                }
                Speculation::Draft(count) => drafted.push((sequence, most.min(count))),
            }
        }
        if let Some(draft) = &mut self.draft
            && !drafted.is_empty()
        {
            draft.guess(&mut drafted);
        }
    }

    /// How many tokens each running text reads, guesses included; pages for them are taken. Texts that
    /// came last are set aside where pages run out.
    fn plan(&mut self, events: &mut Vec<Event>) -> Vec<usize> {
        loop {
            let plan = self.lengths();
            let needed = |(sequence, len): (&Sequence, &usize)| {
                let pages = (sequence.read + len).div_ceil(PAGE);
                pages.saturating_sub(sequence.pages.len())
            };
            let total: usize = self.running.iter().zip(&plan).map(needed).sum();
            if total <= self.pool.available() {
                for (sequence, len) in self.running.iter_mut().zip(&plan) {
                    for _ in 0..needed((sequence, len)) {
                        sequence.pages.extend(self.pool.take());
                    }
                }
                return plan;
            }
            let Some(mut last) = self.running.pop() else {
                return plan;
            };
            last.forget(&mut self.pool);
            match (self.running.is_empty(), last.request.when_full) {
                // Alone it does not fit: the cache is its context.
                (true, WhenFull::Stop) => events.push(Event::Finished {
                    request: last.id,
                    reason: Finish::ContextFull,
                }),
                (true, WhenFull::Slide) => {
                    last.slide(self.pool.limit() * PAGE - 1, &mut self.pool);
                    self.running.push(last);
                }
                _ => self.waiting.push_front(last),
            }
        }
    }

    fn lengths(&self) -> Vec<usize> {
        let mut room = self.options.batch;
        let mut wanted = self.forward.wanted;
        let mut plan = vec![0; self.running.len()];
        for going_on in [true, false] {
            for (sequence, len) in self.running.iter().zip(&mut plan) {
                if (sequence.unread() == 1) != going_on {
                    continue;
                }
                *len = (sequence.unread() + sequence.guesses.len()).min(room);
                if sequence.wanted(*len) > wanted {
                    *len = (*len).min(wanted);
                }
                room -= *len;
                wanted -= sequence.wanted(*len);
            }
        }
        plan
    }
}
