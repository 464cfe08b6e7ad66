//! Threads that stay awake from one short section to the next.
//!
//! A pass that reads one token has a hundred products of a tenth of a millisecond. Handed to a pool one by
//! one, each would wake the other threads anew, and more time would go by than some products take. Here
//! they wait for the next section without sleeping, until the pass is over.
//!
//! Every thread of a section begins with a share of neighbouring tasks, so that each reads memory from front
//! to back; one that is done takes over the back half of another's.

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

/// Looks at what there is to do before a thread lets others go first: some tens of microseconds.
const PATIENCE: u32 = 1 << 11;

thread_local! {
    /// The team that this thread leads; null if it leads none.
    static LED: Cell<*const Team> = const { Cell::new(std::ptr::null()) };
}

/// Runs `body` on a thread of the pool while its other threads wait for the sections that kernels hand
/// out in it.
pub fn together<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    if !LED.get().is_null() {
        return body();
    }
    let team = Team::new(rayon::current_num_threads());
    rayon::scope(|scope| {
        let _over = Finally(|| team.over.store(true, Ordering::Release));
        for seat in 1..team.shares.len() {
            let team = &team;
            // A leader that waits for the pool may be handed this: it would wait for itself, or for another
            // leader that waits for it.
            scope.spawn(move |_| {
                if LED.get().is_null() {
                    team.help(seat)
                }
            });
        }
        let before = LED.replace(&raw const team);
        let _led = Finally(move || LED.set(before));
        body()
    })
}

/// `work(task)` of each task below `tasks`, by all threads.
pub(crate) fn each(tasks: usize, work: impl Fn(usize) + Sync) {
    each_share(tasks, |share| share.for_each(&work));
}

/// `work` by all threads, with the tasks below `tasks` that fall to each: for work that has something to
/// do before the first, or after the last. A thread of a team does it once per section, the pool once per
/// task.
pub(crate) fn each_share(tasks: usize, work: impl Fn(&mut dyn Iterator<Item = usize>) + Sync) {
    if tasks <= 1 {
        return work(&mut (0..tasks));
    }
    // SAFETY: `together` keeps the team alive as long as it is in `LED`.
    match unsafe { LED.get().as_ref() } {
        Some(team) if !team.in_section() => team.section(tasks, &work),
        _ => {
            let tasks = (0..tasks).into_par_iter().with_max_len(1);
            tasks.for_each(|task| work(&mut std::iter::once(task)));
        }
    }
}

/// `work(part, x)` of each `len` of `x`, by all threads; the last part may be shorter.
pub(crate) fn each_part<T: Send>(x: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    struct Start<T>(*mut T);
    // SAFETY: parts of it go to one thread each.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        fn at(&self, index: usize) -> *mut T {
            self.0.wrapping_add(index)
        }
    }
    let (all, start) = (x.len(), Start(x.as_mut_ptr()));
    each(all.div_ceil(len), |part| {
        let from = part * len;
        // SAFETY: inside of `x`, which is borrowed meanwhile; no two tasks have the same part.
        let x = unsafe { std::slice::from_raw_parts_mut(start.at(from), len.min(all - from)) };
        work(part, x);
    });
}

type Work<'a> = &'a (dyn Fn(&mut dyn Iterator<Item = usize>) + Sync);

struct Team {
    /// Odd while there is a section to work on.
    epoch: AtomicUsize,
    /// The work of that section; none before the first.
    work: UnsafeCell<Option<Work<'static>>>,
    /// Helpers that may be looking at `work`.
    inside: AtomicUsize,
    /// Whether a helper's task panicked.
    failed: AtomicBool,
    over: AtomicBool,
    /// A seat each for the leader and the helpers.
    shares: Box<[Share]>,
}

// SAFETY: `work` is written by the leader alone, while the epoch is even and nobody is inside.
unsafe impl Sync for Team {}

impl Team {
    fn new(threads: usize) -> Self {
        Self {
            epoch: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            inside: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            over: AtomicBool::new(false),
            shares: (0..threads).map(|_| Share::default()).collect(),
        }
    }

    /// Whether there is one, as its leader knows it.
    fn in_section(&self) -> bool {
        !self.epoch.load(Ordering::Relaxed).is_multiple_of(2)
    }

    /// All tasks of a section, with whichever helpers come in time.
    fn section(&self, tasks: usize, work: Work) {
        let (seats, count) = (self.shares.len(), u32::try_from(tasks).expect("tasks"));
        let first = |seat: usize| (u64::from(count) * seat as u64 / seats as u64) as u32;
        for (seat, share) in self.shares.iter().enumerate() {
            share.set(first(seat)..first(seat + 1));
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        // SAFETY: helpers look at it only between here and the end of this function, which `work` outlives,
        // by returning or by a panic: `_closed` waits for those that are inside.
        unsafe { *self.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work)) };
        self.epoch.store(epoch + 1, Ordering::Release);
        {
            let _closed = Finally(|| {
                // One order of this, of the count that follows, and of both in `help`: a helper that is not
                // counted finds the section closed.
                self.epoch.store(epoch + 2, Ordering::SeqCst);
                let mut patience = Patience::default();
                while self.inside.load(Ordering::SeqCst) > 0 {
                    patience.pause();
                }
            });
            self.take_part(0, work);
        }
        assert!(!self.failed.load(Ordering::Relaxed), "a task panicked");
    }

    /// Works on one section after the other.
    fn help(&self, seat: usize) {
        let (mut last, mut patience) = (0, Patience::default());
        while !self.over.load(Ordering::Acquire) {
            let epoch = self.epoch.load(Ordering::Relaxed);
            if epoch.is_multiple_of(2) || epoch == last {
                patience.pause();
                continue;
            }
            self.inside.fetch_add(1, Ordering::SeqCst);
            let _inside = Finally(|| {
                if std::thread::panicking() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                self.inside.fetch_sub(1, Ordering::Release);
            });
            if self.epoch.load(Ordering::SeqCst) == epoch {
                // SAFETY: the section is open, and does not end while this one is inside.
                if let Some(work) = unsafe { *self.work.get() } {
                    self.take_part(seat, work);
                }
                last = epoch;
                patience = Patience::default();
            }
        }
    }

    /// The tasks of a seat, then what can be taken over from others.
    fn take_part(&self, seat: usize, work: Work) {
        let own = &self.shares[seat];
        let mut begun = 0..0;
        let next = || {
            begun.next().or_else(|| {
                begun = own.front().or_else(|| {
                    let others = self.shares[seat + 1..].iter().chain(&self.shares[..seat]);
                    own.set(others.filter_map(Share::back_half).next()?);
                    own.front()
                })?;
                begun.next()
            })
        };
        work(&mut std::iter::from_fn(next).map(|task| task as usize));
    }
}

/// Tasks that nobody has begun, in a line of the cache of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn pack(tasks: Range<u32>) -> u64 {
        u64::from(tasks.start) << 32 | u64::from(tasks.end)
    }

    fn unpack(bits: u64) -> Range<u32> {
        (bits >> 32) as u32..bits as u32
    }

    /// Gives these tasks to whose share it is, which is empty.
    fn set(&self, tasks: Range<u32>) {
        self.0.store(Self::pack(tasks), Ordering::Relaxed);
    }

    /// Takes the first; of many an eighth, since to take them makes a thread wait for all that it reads.
    fn front(&self) -> Option<Range<u32>> {
        let end = |tasks: &Range<u32>| tasks.start + (tasks.len() as u32 / 8).max(1);
        self.split(|tasks| end(&tasks)..tasks.end)
            .map(|tasks| tasks.start..end(&tasks))
    }

    /// Takes the back half, the larger one.
    fn back_half(&self) -> Option<Range<u32>> {
        let middle = |tasks: &Range<u32>| tasks.start + tasks.len() as u32 / 2;
        self.split(|tasks| tasks.start..middle(&tasks))
            .map(|tasks| middle(&tasks)..tasks.end)
    }

    /// Leaves `keep` of what there is; what there was, unless nothing.
    fn split(&self, keep: impl Fn(Range<u32>) -> Range<u32>) -> Option<Range<u32>> {
        let split = |bits| {
            let tasks = Self::unpack(bits);
            (!tasks.is_empty()).then(|| Self::pack(keep(tasks)))
        };
        // What is written for a section is seen by its epoch, and its results by who is inside.
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, split)
            .ok()
            .map(Self::unpack)
    }
}

/// Waits without sleeping; where that takes long, others may have the core.
#[derive(Default)]
struct Patience(u32);

impl Patience {
    fn pause(&mut self) {
        if self.0 < PATIENCE {
            self.0 += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// Runs when it goes out of scope, by a panic too.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool")
    }

    /// Sections of every length, with what else may happen between them.
    fn all_once(threads: usize) {
        pool(threads).install(|| {
            together(|| {
                for tasks in (0..200).chain([1000, 5000]) {
                    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    each(tasks, |task| {
                        counts[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                }
            });
        });
    }

    #[test]
    fn each_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            all_once(threads);
        }
    }

    #[test]
    fn without_a_team_the_pool_does_the_same() {
        let sum = AtomicUsize::new(0);
        each(100, |task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }

    #[test]
    fn sections_within_sections_and_the_pool_within_a_team() {
        pool(3).install(|| {
            let sum = AtomicUsize::new(0);
            together(|| {
                each(4, |_| {
                    each(5, |task| {
                        sum.fetch_add(task, Ordering::Relaxed);
                    });
                });
                sum.fetch_add((0..10).into_par_iter().sum(), Ordering::Relaxed);
                together(|| each(2, |task| _ = sum.fetch_add(task, Ordering::Relaxed)));
            });
            assert_eq!(sum.into_inner(), 40 + 45 + 1);
        });
    }

    #[test]
    fn a_leader_that_waits_for_the_pool_does_not_help_itself() {
        let pool = pool(2);
        for _ in 0..500 {
            let sum: usize = pool.install(|| together(|| (0..64).into_par_iter().sum()));
            assert_eq!(sum, 2016);
        }
    }

    #[test]
    fn a_panic_of_any_thread_is_the_caller_s_and_the_pool_lives_on() {
        let pool = pool(2);
        for bad in [0, 99] {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.install(|| together(|| each(100, |task| assert_ne!(task, bad))));
            }));
            assert!(caught.is_err(), "task {bad}");
        }
        assert!(LED.get().is_null());
        assert_eq!(pool.install(|| together(|| 7)), 7);
    }

    #[test]
    fn halves_are_taken_from_the_back() {
        let share = Share::default();
        share.set(0..5);
        assert_eq!(share.front(), Some(0..1));
        assert_eq!(share.back_half(), Some(3..5));
        assert_eq!(share.back_half(), Some(2..3));
        assert_eq!(share.front(), Some(1..2));
        assert_eq!([share.front(), share.back_half()], [None, None]);
        share.set(7..30);
        assert_eq!(share.front(), Some(7..9));
    }
}
