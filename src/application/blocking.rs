//! Applications that block: plain functions that return an iterator, each request on one thread from its call to its close.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::body::{Body, Frame, Frames, IntoChunk};
use super::callable::Application;
use super::environ::Environ;
use super::error::Error;
use super::start_response::StartResponse;

/// Makes an application of a function that blocks and returns an iterator over pieces of the body.
///
/// One thread of a bounded [`Pool`] owns a request: its call, every `next()` and the drop of the iterator, which is its close, all run
/// there. So neither generators nor thread-locals nor foreign interpreters see another thread, and the iterator need not be
/// `Send`. Read the body through [`Input::blocking`](super::Input::blocking), push through
/// [`Write::write_blocking`](super::Write::write_blocking).
pub fn blocking<F, I>(function: F) -> BlockingApplication<F>
where
    F: Fn(Environ, StartResponse) -> Result<I, Error> + Send + Sync + 'static,
    I: IntoIterator<Item: IntoChunk>,
{
    BlockingApplication { function: Arc::new(function), pool: Pool::shared() }
}

/// See [`blocking`].
pub struct BlockingApplication<F> {
    function: Arc<F>,
    pool: Pool,
}

impl<F> BlockingApplication<F> {
    /// The same on a pool of its own.
    #[must_use]
    pub fn on(self, pool: Pool) -> Self {
        Self { pool, ..self }
    }
}

impl<F> Clone for BlockingApplication<F> {
    fn clone(&self) -> Self {
        Self { function: self.function.clone(), pool: self.pool.clone() }
    }
}

impl<F> fmt::Debug for BlockingApplication<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingApplication").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl<F, I> Application for BlockingApplication<F>
where
    F: Fn(Environ, StartResponse) -> Result<I, Error> + Send + Sync + 'static,
    I: IntoIterator<Item: IntoChunk>,
{
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let permit = self.pool.permit().await?;
        let function = self.function.clone();
        let (returned, returns) = oneshot::channel();
        // One piece under way: the thread waits in `blocking_send` while the client takes the one before.
        let (pieces, receiver) = mpsc::channel(1);
        let (closed, closes) = oneshot::channel();
        self.pool.run(permit, move || {
            run(&*function, environ, start_response, returned, &pieces);
            drop(closed);
        });
        // The thread drops `returned` unanswered only by panicking between here and there.
        returns.await.unwrap_or_else(|_| Err(Error::new("the application's thread ended without an answer")))?;
        Ok(Body::frames(Received { pieces: receiver, closes }))
    }
}

/// What the thread does for one request.
fn run<F, I>(
    function: &F,
    environ: Environ,
    start_response: StartResponse,
    returned: oneshot::Sender<Result<(), Error>>,
    pieces: &mpsc::Sender<Result<Bytes, Error>>,
) where
    F: Fn(Environ, StartResponse) -> Result<I, Error>,
    I: IntoIterator<Item: IntoChunk>,
{
    let head = start_response.clone();
    let called = catch_unwind(AssertUnwindSafe(|| function(environ, start_response)));
    let iterable = match called {
        Ok(Ok(iterable)) => iterable,
        Ok(Err(error)) => return drop(returned.send(Err(error))),
        Err(payload) => return drop(returned.send(Err(Error::from_panic(payload)))),
    };
    if returned.send(Ok(())).is_err() {
        return;
    }
    let iterated = catch_unwind(AssertUnwindSafe(|| {
        for piece in iterable {
            let piece = piece.into_chunk();
            let failed = piece.is_err();
            // The iterator goes on before the driver has picked the piece up, and may not replace the head any more.
            if piece.as_ref().is_ok_and(|piece| !piece.is_empty()) {
                head.commit();
            }
            // A closed channel: the client left, and nobody takes what comes. Leaving the loop closes the iterator.
            if pieces.blocking_send(piece).is_err() || failed {
                break;
            }
        }
    }));
    if let Err(payload) = iterated {
        let _ = pieces.blocking_send(Err(Error::from_panic(payload)));
    }
}

struct Received {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    /// Ends, without ever bringing anything, when the thread has closed the iterator.
    closes: oneshot::Receiver<()>,
}

impl Frames for Received {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        Poll::Ready(ready!(self.pieces.poll_recv(cx)).map(|piece| piece.map(Frame::Data)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // The next piece is refused, by which the thread learns that it is to close the iterator.
        self.pieces.close();
        Pin::new(&mut self.closes).poll(cx).map(drop)
    }
}

/// A bounded number of named threads for applications that block. Cheap to clone. A thread ends when it had nothing to do for a while,
/// also after the last clone is gone.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// How large a [`Pool`] is.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The threads' name, followed by a number. Linux shows the first 15 bytes.
    pub name: String,
    /// How many requests run at the same time. Threads are started as needed.
    pub threads: usize,
    /// How many further requests wait, in order; one more is answered with 503.
    pub queue: usize,
    /// How long a thread without work stays.
    pub idle: Duration,
    /// The stack of each thread, in bytes.
    pub stack_size: usize,
}

/// `app-` threads, 32 of them, 1,024 waiting requests, 60 seconds, 2 MiB.
impl Default for PoolConfig {
    fn default() -> Self {
        Self { name: "app".into(), threads: 32, queue: 1024, idle: Duration::from_secs(60), stack_size: 2 << 20 }
    }
}

/// The pool has as many running and waiting requests as it may.
#[derive(Debug, thiserror::Error)]
#[error("all {threads} threads of the pool are busy and {queue} requests wait already")]
pub struct PoolFull {
    threads: usize,
    queue: usize,
}

struct Shared {
    config: PoolConfig,
    /// Running requests.
    running: Arc<Semaphore>,
    /// Running and waiting requests together.
    admitted: Arc<Semaphore>,
    jobs: Mutex<Jobs>,
    job_came: Condvar,
}

#[derive(Default)]
struct Jobs {
    // Never longer than `threads`: a job is queued only with a permit of `running`.
    queue: VecDeque<Job>,
    idle_threads: usize,
    live_threads: usize,
    threads_started: usize,
}

type Job = Box<dyn FnOnce() + Send>;

/// Leave to run one request.
struct Permit {
    _running: OwnedSemaphorePermit,
    _admitted: OwnedSemaphorePermit,
}

impl Pool {
    /// A pool of that size. No thread is started yet.
    pub fn new(config: PoolConfig) -> Self {
        let running = Arc::new(Semaphore::new(config.threads.max(1)));
        let admitted = Arc::new(Semaphore::new(config.threads.max(1) + config.queue));
        let shared = Shared { config, running, admitted, jobs: Mutex::default(), job_came: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// The pool that all [`blocking`] applications without one of their own share, of default size.
    pub fn shared() -> Self {
        static SHARED: std::sync::OnceLock<Pool> = std::sync::OnceLock::new();
        SHARED.get_or_init(|| Self::new(PoolConfig::default())).clone()
    }

    async fn permit(&self) -> Result<Permit, Error> {
        let config = &self.shared.config;
        let full = || Error::from(PoolFull { threads: config.threads, queue: config.queue }).with_status(503);
        let admitted = self.shared.admitted.clone().try_acquire_owned().map_err(|_| full())?;
        let running = self.shared.running.clone().acquire_owned().await?;
        Ok(Permit { _running: running, _admitted: admitted })
    }

    fn run(&self, permit: Permit, request: impl FnOnce() + Send + 'static) {
        let job = Box::new(move || {
            // What the request's own code doesn't catch must not end the thread either.
            let _ = catch_unwind(AssertUnwindSafe(request));
            drop(permit);
        });
        let mut jobs = self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.queue.push_back(job);
        // A request's permit is given back a moment before its thread looks for the next: that thread comes, even if it
        // is not idle yet, so that there are never more threads than requests that may run.
        if jobs.idle_threads >= jobs.queue.len() || jobs.live_threads == self.shared.config.threads.max(1) {
            return self.shared.job_came.notify_one();
        }
        jobs.live_threads += 1;
        jobs.threads_started += 1;
        let number = jobs.threads_started;
        drop(jobs);
        let config = &self.shared.config;
        let shared = Arc::downgrade(&self.shared);
        let started = std::thread::Builder::new()
            .name(format!("{}-{number}", config.name))
            .stack_size(config.stack_size)
            .spawn(move || {
                while let Some(job) = shared.upgrade().and_then(|shared| shared.next_job()) {
                    job();
                }
            });
        // Without a new thread the job waits for one of those that run; where there is none, it is dropped, which
        // its request reports.
        if let Err(error) = started {
            tracing::error!(%error, "a thread for a blocking application could not be started");
            let mut jobs = self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.live_threads -= 1;
            let stranded = if jobs.live_threads == 0 { std::mem::take(&mut jobs.queue) } else { VecDeque::new() };
            drop(jobs);
            drop(stranded);
        }
    }
}

impl Shared {
    /// The next job; `None` when none came for so long that the thread should end.
    fn next_job(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = jobs.queue.pop_front() {
            return Some(job);
        }
        jobs.idle_threads += 1;
        let waited = self.job_came.wait_timeout_while(jobs, self.config.idle, |jobs| jobs.queue.is_empty());
        let (mut jobs, _) = waited.unwrap_or_else(PoisonError::into_inner);
        jobs.idle_threads -= 1;
        let job = jobs.queue.pop_front();
        if job.is_none() {
            jobs.live_threads -= 1;
        }
        job
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::ThreadId;

    use super::*;
    use crate::application::Variables;
    use crate::application::driver::call;

    fn environ() -> Environ {
        Environ::new(Variables::new())
    }

    fn pool(threads: usize, queue: usize) -> Pool {
        Pool::new(PoolConfig { name: "test".into(), threads, queue, ..PoolConfig::default() })
    }

    #[tokio::test]
    async fn no_more_threads_are_started_than_requests_may_run() {
        let seen = Arc::new(Mutex::new(HashSet::<ThreadId>::new()));
        let list = seen.clone();
        let app = blocking(move |_, start_response| {
            list.lock().unwrap().insert(std::thread::current().id());
            start_response.start("200 OK", ())?;
            Ok(["ok"])
        })
        .on(pool(2, 100));
        for _ in 0..200 {
            let (first, second) = tokio::join!(call(app.clone(), environ()), call(app.clone(), environ()));
            for response in [first, second] {
                assert_eq!(response.unwrap().body.read_to_end(9).await.unwrap(), "ok");
            }
        }
        assert!(seen.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    #[expect(clippy::await_holding_lock, reason = "the lock is a gate for other threads: no task waits for it")]
    async fn one_request_more_than_run_and_wait_is_refused() {
        let gate = Arc::new(Mutex::new(()));
        let (closed, inside) = (gate.lock().unwrap(), gate.clone());
        let app = blocking(move |_, start_response| {
            drop(inside.lock());
            start_response.start("200 OK", ())?;
            Ok(["ok"])
        })
        .on(pool(1, 1));
        let mut running = Box::pin(call(app.clone(), environ()));
        assert!(futures_util::poll!(&mut running).is_pending());
        let mut waiting = Box::pin(call(app.clone(), environ()));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let error = call(app.clone(), environ()).await.unwrap_err();
        assert_eq!(error.status(), 503);
        assert!(error.downcast_ref::<PoolFull>().is_some(), "{error}");
        drop(closed);
        for response in [running.await, waiting.await] {
            assert_eq!(response.unwrap().body.read_to_end(9).await.unwrap(), "ok");
        }
    }

    #[tokio::test]
    async fn a_panic_costs_its_request_only() {
        let app = blocking(|environ, start_response| {
            assert!(environ.query_string().is_empty(), "asked for it");
            start_response.start("200 OK", ())?;
            Ok(["ok"])
        })
        .on(pool(1, 1));
        let mut bad = environ();
        bad.set("QUERY_STRING", "x").unwrap();
        let error = call(app.clone(), bad).await.unwrap_err();
        assert!(error.to_string().contains("asked for it"), "{error}");
        assert_eq!(call(app, environ()).await.unwrap().body.read_to_end(9).await.unwrap(), "ok");
    }

    #[tokio::test]
    async fn the_head_can_t_be_replaced_once_a_piece_was_given() {
        let app = blocking(|_, start_response| {
            start_response.start("200 OK", ())?;
            let mut step = 0;
            Ok(std::iter::from_fn(move || {
                step += 1;
                match step {
                    1 => Some(Ok("piece")),
                    _ => Some(start_response.restart("500 Oops", (), Error::new("too late")).map(|_| "page")),
                }
            }))
        });
        for _ in 0..100 {
            let mut response = call(app.clone(), environ()).await.unwrap();
            assert_eq!(response.head.status.code(), 200);
            assert_eq!(response.body.read_to_end(9).await.unwrap_err().to_string(), "too late");
        }
    }

    #[tokio::test]
    async fn an_iterator_that_is_not_send_lives_on_one_thread_and_is_closed_there() {
        struct Local {
            _not_send: Rc<()>,
            thread: ThreadId,
            closed: Arc<AtomicUsize>,
        }
        impl Iterator for Local {
            type Item = &'static str;
            fn next(&mut self) -> Option<&'static str> {
                assert_eq!(self.thread, std::thread::current().id());
                Some("x")
            }
        }
        impl Drop for Local {
            fn drop(&mut self) {
                assert_eq!(self.thread, std::thread::current().id());
                self.closed.fetch_add(1, Ordering::SeqCst);
            }
        }
        let closed = Arc::new(AtomicUsize::new(0));
        let counter = closed.clone();
        let app = blocking(move |_, start_response| {
            start_response.start("200 OK", ())?;
            Ok(Local { _not_send: Rc::new(()), thread: std::thread::current().id(), closed: counter.clone() })
        });
        let mut response = call(app, environ()).await.unwrap();
        response.body.next().await.unwrap().unwrap();
        response.body.close().await;
        assert_eq!(closed.load(Ordering::SeqCst), 1);
    }
}
