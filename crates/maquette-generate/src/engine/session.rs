//! One text and the logits of what comes next, for loops that draw tokens themselves.

use maquette_kernels::paged::PAGE;

use super::Weights;
use super::cache::{PageId, Pool};
use super::forward::{Batch, Forward};
use crate::text::{Feed, TokenModel};

/// Most tokens read at once.
const BATCH: usize = 512;

/// A model reading one text.
#[derive(Debug)]
pub struct Session<'a> {
    weights: &'a Weights,
    pool: Pool,
    pages: Vec<PageId>,
    forward: Forward,
    batch: Batch,
    /// Tokens read.
    len: usize,
}

impl<'a> Session<'a> {
    /// A session that has read nothing.
    pub fn new(weights: &'a Weights) -> Self {
        let seq_len = weights.config().seq_len;
        Self {
            pool: Pool::new(weights.config(), seq_len),
            pages: Vec::new(),
            forward: Forward::new(weights, BATCH.min(seq_len), 1),
            batch: Batch::default(),
            len: 0,
            weights,
        }
    }

    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Reads on; the logits of the token after the last, `[vocab_size]`, none if `tokens` is empty.
    ///
    /// # Panics
    /// If the context cannot hold them, or a token is outside the vocabulary.
    pub fn read(&mut self, tokens: &[u32]) -> &[f32] {
        let seq_len = self.weights.config().seq_len;
        assert!(
            self.len + tokens.len() <= seq_len,
            "{} + {} tokens exceed the context of {seq_len}",
            self.len,
            tokens.len()
        );
        let mut left = tokens;
        while !left.is_empty() {
            let (part, rest) = left.split_at(left.len().min(self.forward.rows));
            while self.pages.len() * PAGE < self.len + part.len() {
                let page = self.pool.take();
                self.pages.push(page.expect("pages for a whole context"));
            }
            self.batch.clear();
            let wanted = usize::from(rest.is_empty());
            self.batch.push(part, self.len, &self.pages, wanted);
            self.forward.read(self.weights, &mut self.pool, &self.batch);
            self.len += part.len();
            left = rest;
        }
        let vocab_size = self.weights.config().vocab_size;
        let numbers = vocab_size * usize::from(!tokens.is_empty());
        self.forward.logits(0..numbers)
    }
}

/// A [`Session`] as a [`TokenModel`].
pub fn token_model<E>(
    weights: &Weights,
) -> TokenModel<impl FnMut(Feed<'_>) -> Result<Vec<f32>, E>> {
    let mut session = Session::new(weights);
    let forward = move |feed: Feed<'_>| {
        Ok(match feed {
            Feed::Restart(ids) => {
                session.truncate(0);
                session.read(ids).to_vec()
            }
            Feed::Append(id) => session.read(&[id]).to_vec(),
        })
    };
    TokenModel {
        forward,
        seq_len: weights.config().seq_len,
        vocab_size: weights.config().vocab_size,
    }
}
