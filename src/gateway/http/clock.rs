//! What a connection is doing, and for how long it may.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// What a connection is doing, told by its stream (bytes came) and by its requests (one began, one ended). HTTP/2's requests tell it
/// from other tasks.
#[derive(Debug)]
pub(super) struct Activity {
    started: Instant,
    /// Requests that run.
    running: AtomicUsize,
    /// Bytes have come since the last request began or ended.
    head_begun: AtomicBool,
    /// When the connection began to be what it is, in milliseconds since `started`.
    since: AtomicU64,
    /// A connection that has had a request waits for its next one for longer.
    served: AtomicBool,
}

/// What a connection that runs no request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The first byte of the connection.
    FirstByte,
    /// The rest of a request's head.
    Head,
    /// The next request.
    Request,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            running: AtomicUsize::new(0),
            head_begun: AtomicBool::new(false),
            since: AtomicU64::new(0),
            served: AtomicBool::new(false),
        }
    }

    /// Bytes came in.
    pub(super) fn received(&self) {
        if !self.is_busy() && !self.head_begun.swap(true, Ordering::AcqRel) {
            // The first head may take its time from the connection's beginning on.
            if self.served.load(Ordering::Acquire) {
                self.mark();
            }
        }
    }

    pub(super) fn request_began(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
        self.served.store(true, Ordering::Release);
    }

    pub(super) fn request_ended(&self) {
        self.mark();
        self.head_begun.store(false, Ordering::Release);
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }

    fn mark(&self) {
        // In 500 million years it will not fit.
        self.since.store(self.started.elapsed().as_millis() as u64, Ordering::Release);
    }

    fn waiting(&self) -> Waiting {
        match (self.head_begun.load(Ordering::Acquire), self.served.load(Ordering::Acquire)) {
            (true, _) => Waiting::Head,
            (false, true) => Waiting::Request,
            (false, false) => Waiting::FirstByte,
        }
    }

    fn since(&self) -> Instant {
        self.started + Duration::from_millis(self.since.load(Ordering::Acquire))
    }
}

/// Rings when a connection has waited too long. It is set anew only when it rings or has to ring earlier, so that a busy
/// connection costs no timer.
pub(super) struct Clock {
    head_timeout: Duration,
    idle_timeout: Duration,
    /// HTTP/2 has frames between requests, so that bytes don't begin a head.
    heads: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    pub(super) fn new(head_timeout: Duration, idle_timeout: Duration) -> Self {
        Self { head_timeout, idle_timeout, heads: true, sleep: Box::pin(tokio::time::sleep(head_timeout)) }
    }

    pub(super) fn without_heads(&mut self) {
        self.heads = false;
    }

    /// Ready with what the connection has waited for in vain.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, activity: &Activity) -> Poll<Waiting> {
        loop {
            let due = (!activity.is_busy()).then(|| {
                let waiting = match activity.waiting() {
                    Waiting::Head if !self.heads => Waiting::Request,
                    waiting => waiting,
                };
                let limit = match waiting {
                    Waiting::Request => self.idle_timeout,
                    Waiting::FirstByte | Waiting::Head => self.head_timeout,
                };
                (waiting, activity.since() + limit)
            });
            if let Some((_, due)) = due
                && due < self.sleep.deadline()
            {
                self.sleep.as_mut().reset(due);
            }
            ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            match due {
                Some((waiting, due)) if due <= now => return Poll::Ready(waiting),
                Some((_, due)) => self.sleep.as_mut().reset(due),
                None => self.sleep.as_mut().reset(now + self.idle_timeout),
            }
        }
    }
}
