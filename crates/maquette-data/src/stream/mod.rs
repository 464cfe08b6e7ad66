//! Readers for data larger than memory.
//!
//! A stream numbers its records (chunks of text, images) without reading them, draws numbers
//! through a shuffle buffer, and reads a record only when it is due. What it holds does not grow
//! with the data, and its position is a few numbers: a stream resumed from a saved
//! position yields exactly the batches that would have followed.

mod image;
mod text;

use maquette_rng::{Stream, rand::Rng as _, rng};
use serde::{Deserialize, Serialize};

use crate::{DataError, Result};

pub use image::{ImageStream, ImageStreamConfig, ImageStreamState};
pub use text::{TextStream, TextStreamConfig, TextStreamState};

/// Shuffles `0..records` for ever through a buffer of record numbers.
///
/// The buffer is kept full from a sequential walk over the records; each draw takes a random one
/// out. Every epoch visits every record once. Reads therefore stay near each other on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShuffleBuffer {
    records: u64,
    capacity: usize,
    seed: u64,
    epoch: u64,
    next: u64,
    drawn: u64,
    pending: Vec<u64>,
}

impl ShuffleBuffer {
    /// A buffer of `capacity` over `records` records.
    ///
    /// # Errors
    /// When either is zero.
    pub fn new(records: u64, capacity: usize, seed: u64) -> Result<Self> {
        if records == 0 || capacity == 0 {
            return Err(DataError::Config(format!(
                "a shuffle buffer of {capacity} over {records} records: both must be at least 1"
            )));
        }
        Ok(Self {
            records,
            capacity,
            seed,
            epoch: 0,
            next: 0,
            drawn: 0,
            pending: Vec::new(),
        })
    }

    /// The next record, and the epoch it belongs to.
    pub fn draw(&mut self) -> (u64, u64) {
        if self.pending.is_empty() && self.next == self.records {
            self.epoch += 1;
            self.next = 0;
        }
        while self.pending.len() < self.capacity && self.next < self.records {
            self.pending.push(self.next);
            self.next += 1;
        }
        let choice = rng(self.seed, Stream::Shuffle, self.drawn).next_u64();
        self.drawn += 1;
        let record = self
            .pending
            .swap_remove((choice % self.pending.len() as u64) as usize);
        (self.epoch, record)
    }

    /// Refuses a saved buffer that does not fit: positions come out of files.
    fn check(&self, records: u64, capacity: usize, seed: u64) -> Result<()> {
        let fits = (self.records, self.capacity, self.seed) == (records, capacity, seed)
            && self.next <= records
            && self.pending.len() <= capacity
            && self.pending.iter().all(|r| *r < self.next);
        match fits {
            true => Ok(()),
            false => Err(DataError::Resume(
                "the saved shuffle buffer does not fit".into(),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
