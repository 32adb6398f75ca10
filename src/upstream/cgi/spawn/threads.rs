//! The threads that start programs.
//!
//! A thread that starts a program stands still until the program is executed: a fraction of a millisecond mostly, but as long as
//! a slow disk takes to bring the file. On the runtime's own threads that would hold up everything else, and with as many of
//! them as processors it leaves processors idle: 8 programs at once ran 1.5 times as often with threads of their own.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use tokio::runtime::{Handle, RuntimeFlavor};

/// How many programs can be in the course of being started at once, for each processor and at least.
const THREADS_A_PROCESSOR: usize = 4;
const LEAST_THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// Runs a job on one of the threads, which are started as they are needed and stay. Jobs beyond their number wait; whoever
/// starts programs limits how many.
///
/// One job at a time runs at once on the calling thread, if the runtime can spare one of its threads: it saves two changes of threads,
/// a fifth of the time that a small program takes when nothing else runs.
pub(in crate::upstream::cgi) fn run(runtime: &Handle, job: impl FnOnce() + Send + 'static) {
    static IS_SPARED: AtomicBool = AtomicBool::new(false);
    let can_spare = runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1;
    if can_spare && !IS_SPARED.swap(true, Ordering::Relaxed) {
        job();
        IS_SPARED.store(false, Ordering::Relaxed);
        return;
    }
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
