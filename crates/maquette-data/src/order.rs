//! The order in which a run visits its examples.

use std::sync::{Arc, Mutex};

use maquette_rng::{Stream, permutation, rng};

use crate::{DataError, Result};

/// A shuffled order over `0..len`, in batches, for ever.
///
/// Each epoch is a fresh permutation keyed by `(seed, epoch)`. An epoch has `len / batch` steps:
/// the `len % batch` examples at the end of its permutation are left out, other ones each time.
/// The indices of a step are a pure function of that step, so a run can resume at any.
#[derive(Debug)]
pub struct Order {
    len: usize,
    batch: usize,
    seed: u64,
    /// The permutation of the epoch last asked for: making it is the only cost.
    epoch: Mutex<Option<(u64, Arc<[usize]>)>>,
}

impl Order {
    /// An order over `len` examples in batches of `batch`.
    ///
    /// # Errors
    /// When `batch` is zero or larger than `len`.
    pub fn new(len: usize, batch: usize, seed: u64) -> Result<Self> {
        if batch == 0 {
            return Err(DataError::Config(
                "the batch size is 0; give at least 1".into(),
            ));
        }
        if batch > len {
            return Err(DataError::BatchTooLarge { batch, len });
        }
        Ok(Self {
            len,
            batch,
            seed,
            epoch: Mutex::new(None),
        })
    }

    /// Steps in one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.len / self.batch) as u64
    }

    /// The `batch` examples of `step` (counted from 0 over all epochs).
    pub fn indices(&self, step: u64) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch();
        let order = self.permutation(step / per_epoch);
        let from = (step % per_epoch) as usize * self.batch;
        order[from..from + self.batch].to_vec()
    }

    fn permutation(&self, epoch: u64) -> Arc<[usize]> {
        // A poisoned lock only means that another thread panicked; the cached value is whole.
        let mut cached = self.epoch.lock().unwrap_or_else(|e| e.into_inner());
        match &*cached {
            Some((e, order)) if *e == epoch => order.clone(),
            _ => {
                let order: Arc<[usize]> =
                    permutation(&mut rng(self.seed, Stream::Shuffle, epoch), self.len).into();
                *cached = Some((epoch, order.clone()));
                order
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_visits_distinct_examples(len in 1usize..200, batch in 1usize..50, seed: u64, epoch in 0u64..4) {
            prop_assume!(batch <= len);
            let order = Order::new(len, batch, seed).unwrap();
            let n = order.steps_per_epoch();
            let mut seen: Vec<usize> = (0..n).flat_map(|s| order.indices(epoch * n + s)).collect();
            prop_assert_eq!(seen.len(), len - len % batch);
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), len - len % batch);
            prop_assert!(seen.iter().all(|&i| i < len));
        }

        #[test]
        fn a_step_does_not_depend_on_those_before(step in 0u64..500) {
            let walked = Order::new(37, 5, 9).unwrap();
            for s in 0..step { walked.indices(s); }
            prop_assert_eq!(walked.indices(step), Order::new(37, 5, 9).unwrap().indices(step));
        }
    }

    #[test]
    fn epochs_differ() {
        let order = Order::new(100, 100, 1).unwrap();
        assert_ne!(order.indices(0), order.indices(1));
    }

    #[test]
    fn a_batch_larger_than_the_set_is_an_error() {
        let message = Order::new(10, 11, 0).unwrap_err().to_string();
        assert!(message.contains("batch (11)") && message.contains("10 examples"));
        assert!(Order::new(10, 0, 0).is_err());
    }
}
