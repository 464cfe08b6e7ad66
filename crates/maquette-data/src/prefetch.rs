//! Batches made ahead of time on a thread of their own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Calls `make(step)` for `start_step`, `start_step + 1`, ... on a background thread, at most
/// `depth` results ahead of the caller, and yields them in order for ever.
///
/// Dropping the iterator stops the thread. A panic in `make` resumes on the caller's thread.
///
/// A stream's position must travel with its batch: let `make` return both, because the thread
/// runs ahead of what has been trained on.
pub fn prefetch<T, F>(start_step: u64, depth: usize, mut make: F) -> Prefetch<T>
where
    T: Send + 'static,
    F: FnMut(u64) -> T + Send + 'static,
{
    let (sender, receiver) = sync_channel(depth);
    let alone = rayon::current_num_threads() == 1;
    let thread = std::thread::spawn(move || {
        // Where the shared pool has one worker, that worker may be the caller, which waits for a batch and
        // can lend no hand in making it: this thread is then a pool of its own.
        let own = rayon::ThreadPoolBuilder::new().num_threads(1);
        let _own = alone.then(|| own.use_current_thread().build());
        // The send fails when the iterator has been dropped: nobody is waiting any more.
        for step in start_step.. {
            if sender.send(make(step)).is_err() {
                break;
            }
        }
    });
    Prefetch {
        receiver: Some(receiver),
        thread: Some(thread),
    }
}

/// The iterator made by [`prefetch`].
#[derive(Debug)]
pub struct Prefetch<T> {
    receiver: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let item = self.receiver.as_ref()?.recv().ok();
        if item.is_none()
            && let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
        {
            std::panic::resume_unwind(panic);
        }
        item
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        // Closing the channel first wakes a thread that waits for room in it.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn keeps_the_order_and_the_start() {
        let got: Vec<u64> = prefetch(5, 2, |step| step * step).take(4).collect();
        assert_eq!(got, [25, 36, 49, 64]);
    }

    #[test]
    fn stays_within_its_depth() {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let mut ahead = prefetch(0, 2, move |step| {
            count.fetch_add(1, Ordering::SeqCst);
            step
        });
        ahead.next();
        std::thread::sleep(std::time::Duration::from_millis(50));
        // One taken, two in the channel, one waiting for room.
        assert!(made.load(Ordering::SeqCst) <= 4);
    }

    #[test]
    #[should_panic(expected = "no such page")]
    fn a_panic_reaches_the_caller() {
        prefetch(0, 1, |step| assert!(step < 2, "no such page")).for_each(drop);
    }
}
