//! What a recipe hands to the loop.

use std::path::Path;

use burn::tensor::Tensor;

use crate::{BoxError, Metrics};

/// One micro-batch.
pub struct Batch<B> {
    /// What the loss takes.
    pub data: B,
    /// Where the stream it came from stands after it; none when batches are a function of their
    /// index.
    pub stream: Option<serde_json::Value>,
}

impl<B> From<B> for Batch<B> {
    fn from(data: B) -> Self {
        Self { data, stream: None }
    }
}

/// A loss with the parts it is the sum of.
pub struct Loss {
    /// What is minimised, one number, in nats.
    pub total: Tensor<1>,
    /// Further numbers to log.
    pub parts: Vec<(&'static str, Tensor<1>)>,
}

impl From<Tensor<1>> for Loss {
    fn from(total: Tensor<1>) -> Self {
        Self {
            total,
            parts: Vec::new(),
        }
    }
}

pub(crate) type BatchFn<'a, B> = Box<dyn FnMut(u64) -> Result<Batch<B>, BoxError> + 'a>;
type LossFn<'a, M, B> = Box<dyn FnMut(&M, B, u64) -> Loss + 'a>;
pub(crate) type ValidateFn<'a, M> = Box<dyn FnMut(&M) -> Result<Metrics, BoxError> + 'a>;
pub(crate) type SampleFn<'a, M> = Box<dyn FnMut(&M, u64, &Path) -> Result<(), BoxError> + 'a>;

/// What a recipe gives the loop: where batches come from and what is done with them.
pub struct Task<'a, M, B> {
    pub(crate) batch: BatchFn<'a, B>,
    pub(crate) loss: LossFn<'a, M, B>,
    pub(crate) validate: Option<ValidateFn<'a, M>>,
    pub(crate) sample: Option<SampleFn<'a, M>>,
    /// How many items a micro-batch holds (0: as many as examples), and their name.
    pub(crate) items: (f64, &'static str),
}

impl<'a, M, B> Task<'a, M, B> {
    /// `batch(i)` gives the `i`-th micro-batch of the run (step times accumulation); a run that is
    /// resumed begins at a later one. `loss(model, batch, i)` must draw its randomness from `i`;
    /// the backend's own generator (dropout) is seeded by the loop.
    pub fn new(
        batch: impl FnMut(u64) -> Result<Batch<B>, BoxError> + 'a,
        loss: impl FnMut(&M, B, u64) -> Loss + 'a,
    ) -> Self {
        Self {
            batch: Box::new(batch),
            loss: Box::new(loss),
            validate: None,
            sample: None,
            items: (0.0, "examples"),
        }
    }

    /// Metrics of the model (without gradients; the moving average if there is one) on held-out
    /// data. `loss` among them is what early stopping watches.
    pub fn validate(mut self, validate: impl FnMut(&M) -> Result<Metrics, BoxError> + 'a) -> Self {
        self.validate = Some(Box::new(validate));
        self
    }

    /// Writes samples of the model after `step` into a folder.
    pub fn sample(
        mut self,
        sample: impl FnMut(&M, u64, &Path) -> Result<(), BoxError> + 'a,
    ) -> Self {
        self.sample = Some(Box::new(sample));
        self
    }

    /// How many items one micro-batch holds, and what they are called: `768.0, "tokens"`.
    pub fn counting(mut self, items: f64, unit: &'static str) -> Self {
        self.items = (items, unit);
        self
    }
}
