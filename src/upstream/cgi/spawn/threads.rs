//! The threads that start programs.
//!
//! A thread that starts a program stands still until the program is executed: a fraction of a millisecond mostly, but as long as
//! a slow disk takes to bring the file. On the runtime's own threads that would hold up everything else, so there are threads for it. To hand
//! a program over to one and back costs two changes of threads, though, a fifth of the time that a small program takes: where a program is known to be
//! quick, a thread of the runtime may [stand still](Standing) itself.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use tokio::runtime::{Handle, RuntimeFlavor};

/// How many programs can be in the course of being started at once, for each processor and at least.
const THREADS_A_PROCESSOR: usize = 4;
const LEAST_THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// How many threads of runtimes stand still.
static STANDING: AtomicUsize = AtomicUsize::new(0);

/// Leave for a thread of the runtime to stand still for a moment, until this is dropped.
pub(in crate::upstream::cgi) struct Standing(());

impl Standing {
    /// The runtime can spare all of its threads but one at a time, which looks after everything else.
    pub(in crate::upstream::cgi) fn of(runtime: &Handle) -> Option<Self> {
        let spared = match runtime.runtime_flavor() {
            RuntimeFlavor::MultiThread => runtime.metrics().num_workers() - 1,
            _ => 0,
        };
        let more = |standing| (standing < spared).then(|| standing + 1);
        STANDING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok().then(|| Self(()))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        STANDING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a job on one of the threads, which are started as they are needed and stay. Jobs beyond their number wait; whoever
/// starts programs limits how many.
pub(in crate::upstream::cgi) fn run(job: impl FnOnce() + Send + 'static) {
    let mut state = lock();
    state.jobs.push_back(Box::new(job));
    if state.idle >= state.jobs.len() {
        drop(state);
        THREADS.ready.notify_one();
        return;
    }
    if state.threads < most_threads() {
        state.threads += 1;
        drop(state);
        if thread::Builder::new().name("gatespan-spawn".into()).spawn(work).is_err() {
            let mut state = lock();
            state.threads -= 1;
            // The others get to it. Without any, this thread has to.
            if state.threads == 0 {
                let jobs = std::mem::take(&mut state.jobs);
                drop(state);
                jobs.into_iter().for_each(|job| job());
            }
        }
    }
}

struct Threads {
    state: Mutex<State>,
    ready: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// How many of the threads wait for a job.
    idle: usize,
}

static THREADS: Threads =
    Threads { state: Mutex::new(State { jobs: VecDeque::new(), threads: 0, idle: 0 }), ready: Condvar::new() };

fn lock() -> MutexGuard<'static, State> {
    THREADS.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn most_threads() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        LEAST_THREADS.max(THREADS_A_PROCESSOR * processors)
    })
}

fn work() {
    let mut state = lock();
    loop {
        match state.jobs.pop_front() {
            Some(job) => {
                drop(state);
                // Whoever waits for a job that panics sees that it is gone; the thread is still good for others.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = lock();
            }
            None => {
                state.idle += 1;
                state = THREADS.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}
