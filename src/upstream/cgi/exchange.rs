//! One request and the script that answers it: input goes in while output comes out, within limits, to one end of all that is begun.
//!
//! Everything of a request is polled by whoever polls its response: there is no task beside it while it is answered. Only what is left to
//! do for a script when its response is over, such as waiting for its exit, is a task, a [`Tail`].

use std::future::poll_fn;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::ExitStatus;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio::task::coop;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::clock::Clock;
use super::config::Config;
use super::failure::{End, Failure};
use super::nph::HeadReader;
use super::outlet::Outlet;
use super::process::{Ending, Process, Started};
use super::pump::{Moved, Pump};
use super::queue::Place;
use super::report::Report;
use super::stderr::Stderr;
use crate::application::{Environ, Error, Frame, Frames, Input, InputError};
use crate::protocol::cgi::{Excerpt, HeadError, ResponseHead};
use crate::upstream::spool::{self, SpoolError, Spooled};

/// How much output is read at once, in bytes: all that a pipe holds.
const READ_SIZE: usize = 64 * 1024;

/// How much room the first read has, which is enough for most answers.
const FIRST_READ_SIZE: usize = 8 * 1024;

/// From when on a silent script's exit and standard error are watched, so that one whose output is held open by another process is noticed. Most
/// are done before, and spared that.
const WATCHED_AFTER: Duration = Duration::from_millis(20);

/// How long a response that has no length waits at its end for the script's exit, which says whether it is whole. A script
/// that closed its output and works on is not waited for any longer.
const SETTLED_AFTER: Duration = Duration::from_millis(100);

/// What is known of a request while its script runs.
pub(super) struct Request {
    /// The request, without its input.
    pub(super) environ: Environ,
    /// The script's name for the log.
    pub(super) script: String,
    pub(super) stderr_to_web_server: bool,
    pub(super) config: Arc<Config>,
}

impl Request {
    pub(super) fn id(&self) -> &str {
        self.environ.request_id()
    }
}

/// A request whose script runs. Dropped before its end, it ends the script.
pub(super) struct Exchange {
    running: Option<Box<Running>>,
}

/// Why there is no response, or no whole one.
#[derive(Debug)]
pub(super) enum Failed {
    /// It is the script's fault.
    Script(Failure),
    /// The client's body could not be received.
    Input(InputError),
    /// Nor could it be kept until the script reads it.
    NotReceived(SpoolError),
    /// Nobody waits for the response any more.
    Cancelled,
}

struct Running {
    request: Request,
    /// There until it is ended.
    process: Option<Process>,
    stdin: Pump,
    stdout: Option<Outlet>,
    stderr: Stderr,
    head: HeadReader,
    /// What was read and not passed on.
    buffer: BytesMut,
    phase: Phase,
    exit: Option<ExitStatus>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    clock: Clock,
    begun: Instant,
    /// Since when nothing but the script has been waited for.
    waiting_since: Instant,
    /// Whether its exit is watched.
    is_watched: bool,
    /// The script has exited, and its output ends then at the latest.
    leftovers_until: Option<Instant>,
    /// Its output has ended, and its exit is waited for so long.
    settled_at: Option<Instant>,
    /// Given back when nothing of the script is left.
    _place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Body {
        /// What Content-Length still owes.
        unsent: Option<u64>,
        announced: u64,
        received: u64,
        /// The head is on its way to the client.
        is_flushed: bool,
    },
    /// The response is over; what still comes is dropped.
    Over {
        /// Whether it is more than Content-Length announced, and nobody has been told.
        is_excess: bool,
    },
}

impl Exchange {
    /// Begins with a process that was just started. `input` goes to its standard input, if that is a pipe.
    pub(super) fn new(request: Request, started: Started, input: Input, place: Place) -> Self {
        let now = Instant::now();
        let Started { mut process, stdout, stderr } = started;
        let stdin = Pump::new(input, process.stdin.take());
        let running = Running {
            stdin,
            stdout: Some(stdout),
            stderr: Stderr::new(stderr),
            head: HeadReader::new(request.config.head_limits, request.config.nph),
            buffer: BytesMut::with_capacity(FIRST_READ_SIZE),
            phase: Phase::Head,
            exit: None,
            cancelled: Box::pin(request.environ.cancellation().cancelled_owned()),
            clock: Clock::default(),
            begun: now,
            waiting_since: now,
            is_watched: false,
            leftovers_until: None,
            settled_at: None,
            process: Some(process),
            request,
            _place: place,
        };
        Self { running: Some(Box::new(running)) }
    }

    /// The head of the answer.
    pub(super) async fn head(&mut self) -> Result<ResponseHead, Failed> {
        poll_fn(|cx| match &mut self.running {
            Some(running) => running.poll_head(cx),
            None => Poll::Ready(Err(Failed::Cancelled)),
        })
        .await
    }

    /// Receives what is left of the request's body before the answer begins, for web servers that send no more of it then. The script
    /// waits meanwhile. What is over the limit is left to the web server's own ways.
    pub(super) async fn receive_input(&mut self, limits: spool::Limits<'_>) -> Result<(), Failed> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let Some(mut input) = running.stdin.take_input(limits.max_len) else { return Ok(()) };
        running.stderr.watch();
        let mut receiving = pin!(Spooled::receive(&mut input, limits));
        let spooled = poll_fn(|cx| {
            if running.cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Failed::Cancelled));
            }
            // What it has not read when it ends, nobody reads any more.
            if running.poll_exit(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            let _ = running.stderr.poll(cx, &running.request);
            if let Poll::Ready(spooled) = receiving.as_mut().poll(cx) {
                return Poll::Ready(spooled.map(Some).map_err(Failed::NotReceived));
            }
            // The client is waited for and not the script, so that only the limit in all counts.
            let Some(limit) = running.request.config.timeout else { return Poll::Pending };
            ready!(running.clock.poll(cx, Some(running.begun + limit)));
            Poll::Ready(Err(Failed::Script(Failure::Timeout { limit })))
        });
        match spooled.await? {
            Some(spooled) => running.stdin.go_on_with(spooled.into_input()),
            None => running.stdin.close(),
        }
        // Up to now the script was not waited for.
        running.waiting_since = Instant::now();
        Ok(())
    }

    /// From now on this is the body, of that many bytes.
    pub(super) fn begin_body(&mut self, length: Option<u64>) {
        if let Some(running) = &mut self.running {
            let announced = length.unwrap_or_default();
            running.phase = Phase::Body { unsent: length, announced, received: 0, is_flushed: false };
            if length == Some(0) {
                running.reach_length();
                self.finish();
            }
        }
    }

    /// For answers whose body nobody will see: lets the script have its input to the end, or as long as it takes any.
    pub(super) async fn drain_input(&mut self) -> Result<(), Failed> {
        poll_fn(|cx| {
            let Some(running) = &mut self.running else { return Poll::Ready(Ok(())) };
            while running.stdin.is_open() {
                running.buffer.clear();
                if !ready!(running.poll_more(cx))? {
                    break;
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// The response is over without more of the script's output. The script may finish.
    pub(super) fn finish(&mut self) {
        if let Some(running) = self.running.take() {
            running.finish();
        }
    }
}

impl Frames for Exchange {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = Pin::into_inner(self);
        let Some(running) = &mut this.running else { return Poll::Ready(None) };
        match ready!(running.poll_body(cx)) {
            Ok(Some(frame)) => {
                // Whoever sends the last byte that was announced need not ask for more before it lets go of the body.
                if matches!(running.phase, Phase::Over { .. }) {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Err(failed) => {
                let error = match (failed, this.running.take()) {
                    (Failed::Script(failure), Some(running)) => {
                        let cut = Cut { script: running.request.script.clone(), failure };
                        running.end();
                        Error::new(cut)
                    }
                    (Failed::Input(error), Some(running)) => {
                        running.end();
                        Error::from(error)
                    }
                    (_, running) => {
                        running.into_iter().for_each(|running| running.end());
                        Error::new("the request was given up")
                    }
                };
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        // Before its end: nobody wants the rest. The end of the script is not waited for.
        if let Some(running) = Pin::into_inner(self).running.take() {
            running.end();
        }
        Poll::Ready(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

/// Why a response was cut, for the one line that the server's log has about it.
#[derive(Debug, thiserror::Error)]
#[error("{script}: {failure}. {}", failure.mend())]
struct Cut {
    script: String,
    failure: Failure,
}

impl Running {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Failed>> {
        loop {
            match self.head.decode(&mut self.buffer) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(Failed::Script(self.malformed(error)))),
            }
            if !ready!(self.poll_more(cx))? {
                let end = match ready!(self.poll_settled(cx)) {
                    None => End::Running,
                    Some(status) => match (status.code(), status.signal()) {
                        (_, Some(signal)) => End::Signal(signal),
                        (code, None) => End::Exit(code.unwrap_or_default()),
                    },
                };
                return Poll::Ready(Err(Failed::Script(Failure::NoHead { end, start: Excerpt::new(&self.buffer) })));
            }
        }
    }

    fn malformed(&self, error: HeadError) -> Failure {
        Failure::MalformedHead { error: Box::new(error), start: Excerpt::new(&self.buffer) }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Failed>> {
        loop {
            let Phase::Body { unsent, announced, received, is_flushed } = &mut self.phase else {
                return Poll::Ready(Ok(None));
            };
            if !self.buffer.is_empty() {
                let len = match unsent {
                    // Shorter than the buffer, so that it fits.
                    Some(unsent) => (self.buffer.len() as u64).min(*unsent) as usize,
                    None => self.buffer.len(),
                };
                let data = self.buffer.split_to(len).freeze();
                *unsent = unsent.map(|unsent| unsent - len as u64);
                *received += len as u64;
                *is_flushed = true;
                if *unsent == Some(0) {
                    self.reach_length();
                }
                return Poll::Ready(Ok(Some(Frame::Data(data))));
            }
            let (announced, received, was_flushed) = (*announced, *received, std::mem::replace(is_flushed, true));
            match self.poll_more(cx)? {
                Poll::Ready(true) => {}
                // The head goes out although there is no data yet: a client may wait for it.
                Poll::Pending if !was_flushed => return Poll::Ready(Ok(Some(Frame::Flush))),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(false) => {
                    let exit = ready!(self.poll_settled(cx));
                    if let Some(signal) = exit.and_then(|exit| exit.signal()) {
                        return Poll::Ready(Err(Failed::Script(Failure::Signal { signal })));
                    }
                    if received < announced {
                        let failure = Failure::Incomplete { expected: announced, received };
                        return Poll::Ready(Err(Failed::Script(failure)));
                    }
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    /// As many bytes as were announced are passed on. What is more than that is logged, once.
    fn reach_length(&mut self) {
        let is_excess_here = !self.buffer.is_empty();
        if is_excess_here {
            self.log_excess();
        }
        self.buffer.clear();
        self.phase = Phase::Over { is_excess: !is_excess_here };
    }

    /// Reads more into the buffer; false at the end. Moves input and standard error on, and keeps the limits, while it waits.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failed>> {
        loop {
            if self.cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Failed::Cancelled));
            }
            match self.stdin.poll(cx) {
                Ok(Moved::Nothing) => {}
                // What the script takes is a sign of life; and while the client is waited for, the script is not.
                Ok(Moved::Bytes) => self.waiting_since = Instant::now(),
                Err(error) => return Poll::Ready(Err(Failed::Input(error))),
            }
            let _ = self.stderr.poll(cx, &self.request);
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    self.stdout = None;
                    return Poll::Ready(Ok(false));
                }
                Poll::Ready(Ok(_)) => {
                    self.waiting_since = Instant::now();
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Script(Failure::Output { error }))),
                Poll::Pending => {}
            }
            if !coop::has_budget_remaining() {
                // tokio had the read wait although there may be something to read, and polls again at once. Nobody is late.
                return Poll::Pending;
            }
            match ready!(self.poll_limits(cx))? {
                Now::Read => {}
                Now::End => {
                    self.stdout = None;
                    return Poll::Ready(Ok(false));
                }
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(stdout) = &mut self.stdout else { return Poll::Ready(Ok(0)) };
        if self.buffer.capacity() - self.buffer.len() < 4096 {
            self.buffer.reserve(READ_SIZE);
        }
        poll_read_buf(Pin::new(stdout), cx, &mut self.buffer)
    }

    /// There is nothing to read: finds out whether there will be, and whether the script is late.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Result<Now, Failed>> {
        loop {
            if self.is_watched && self.exit.is_none() && self.poll_exit(cx).is_ready() {
                // What it wrote last may have come since the pipe was looked at.
                self.leftovers_until = Some(Instant::now() + self.request.config.leftover_grace);
                return Poll::Ready(Ok(Now::Read));
            }
            let now = Instant::now();
            let config = &self.request.config;
            let (watched_at, mut next) = (self.begun + WATCHED_AFTER, None);
            // True when it is over. Else it is one of those that the clock is set to.
            let mut is_over = |until: Option<Instant>| {
                let Some(until) = until else { return false };
                if now < until && next.is_none_or(|next| until < next) {
                    next = Some(until);
                }
                now >= until
            };
            if is_over(config.timeout.map(|timeout| self.begun + timeout)) {
                let limit = config.timeout.unwrap_or_default();
                return Poll::Ready(Err(Failed::Script(Failure::Timeout { limit })));
            }
            if is_over(self.leftovers_until) {
                // What the script itself wrote is all here, unless the runtime has yet to hear of it.
                if self.stdout.as_ref().is_some_and(Outlet::is_ready) {
                    return Poll::Pending;
                }
                tracing::debug!(
                    request_id = self.request.id(),
                    script = self.request.script,
                    "the script has exited, and what it started holds its output open: the response ends here"
                );
                return Poll::Ready(Ok(Now::End));
            }
            if !self.stdin.waits_for_client {
                let limit = match self.phase {
                    Phase::Head => config.head_timeout,
                    Phase::Body { .. } | Phase::Over { .. } => config.read_timeout,
                };
                if is_over(self.waiting_since.checked_add(limit)) {
                    return Poll::Ready(Err(Failed::Script(match self.phase {
                        Phase::Body { received, .. } => Failure::ReadTimeout { limit, received },
                        _ => Failure::HeadTimeout { limit, start: Excerpt::new(&self.buffer) },
                    })));
                }
            }
            if !self.is_watched && is_over(Some(watched_at)) {
                self.is_watched = true;
                self.stderr.watch();
                return Poll::Ready(Ok(Now::Read));
            }
            ready!(self.clock.poll(cx, next));
        }
    }

    /// The output has ended: the script's exit status, if it has exited or does so at once.
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<Option<ExitStatus>> {
        if self.poll_exit(cx).is_pending() {
            let until = *self.settled_at.get_or_insert_with(|| Instant::now() + SETTLED_AFTER);
            self.stderr.watch();
            let _ = self.stderr.poll(cx, &self.request);
            ready!(self.clock.poll(cx, Some(until)));
        }
        Poll::Ready(self.exit)
    }

    fn poll_exit(&mut self, cx: &mut Context<'_>) -> Poll<ExitStatus> {
        if let Some(exit) = self.exit {
            return Poll::Ready(exit);
        }
        let Some(process) = &mut self.process else { return Poll::Pending };
        let exit = match ready!(process.poll_exited(cx)) {
            Ok(exit) => exit,
            Err(error) => {
                tracing::error!(
                    request_id = self.request.id(),
                    script = self.request.script,
                    "the exit of a script was lost: {error}"
                );
                ExitStatus::default()
            }
        };
        self.exit = Some(exit);
        if let Some(report) = self.request.environ.extensions().get::<Report>() {
            report.exited(exit);
        }
        Poll::Ready(exit)
    }

    /// The response is over. The script may do so too, in its own time.
    fn finish(mut self: Box<Self>) {
        self.stdin.close();
        if !matches!(self.phase, Phase::Over { .. }) {
            self.phase = Phase::Over { is_excess: false };
        }
        if self.stdout.is_none() || self.process.as_ref().is_some_and(Process::is_over) {
            // It has mostly exited by now, and needs no task. Whoever waits looks again.
            let _ = self.poll_exit(&mut Context::from_waker(Waker::noop()));
        }
        match self.exit {
            Some(exit) => {
                self.buffer.clear();
                let more = self.stdout.as_ref().map(|stdout| stdout.read_now(&mut self.buffer));
                if self.phase == (Phase::Over { is_excess: true }) && matches!(more, Some(Poll::Ready(Ok(1..)))) {
                    self.log_excess();
                }
                self.exited(exit);
                self.last_lines();
            }
            None => self.tail(Work::Finishing),
        }
    }

    /// What it wrote to standard error last. What it left behind may hold that open, and is not waited for.
    fn last_lines(&mut self) {
        self.stderr.take_what_is_there(&self.request);
        self.stderr.finish(&self.request);
    }

    /// The script is ended, whatever it does.
    fn end(mut self: Box<Self>) {
        // One that waits to write, or reads to the end, has nothing to wait for any more.
        self.stdin.close();
        self.stdout = None;
        self.phase = Phase::Over { is_excess: false };
        let Some(process) = self.process.take() else { return };
        // Without a runtime nobody can do it later: the process sees to it that it is ended.
        match self.exit.is_none() && Handle::try_current().is_ok() {
            true => {
                let ending = process.end();
                self.tail(Work::Ending(ending));
            }
            false => self.last_lines(),
        }
    }

    fn tail(mut self: Box<Self>, work: Work) {
        if let Ok(runtime) = Handle::try_current() {
            let until = Instant::now() + self.request.config.linger;
            let total = self.request.config.timeout.map(|timeout| self.begun + timeout);
            let until = total.map_or(until, |total| total.min(until));
            self.stderr.watch();
            runtime.spawn(Tail { running: self, work, until });
        }
    }

    /// It has exited by itself, and its response is complete: what is worth a line.
    fn exited(&mut self, exit: ExitStatus) {
        let failure = match (exit.code(), exit.signal()) {
            (Some(0), _) => return,
            (_, Some(signal)) => Failure::Signal { signal },
            (code, None) => Failure::ExitCode { code: code.unwrap_or_default() },
        };
        tracing::warn!(
            request_id = self.request.id(),
            script = self.request.script,
            cause = failure.cause(),
            mend = &*failure.mend(),
            "a script failed after its response was complete"
        );
    }

    fn log_excess(&self) {
        tracing::warn!(
            request_id = self.request.id(),
            script = self.request.script,
            "the script wrote more than its Content-Length announced; that was not sent"
        );
    }
}

/// What is to be done when there is nothing to read.
enum Now {
    /// Look again.
    Read,
    /// The output is over, although somebody holds it open.
    End,
}

/// What is left to do for a script whose response is over: a task of its own.
struct Tail {
    running: Box<Running>,
    work: Work,
    /// When a script that finishes is ended.
    until: Instant,
}

enum Work {
    /// Waiting until it exits; what it writes is dropped.
    Finishing,
    /// Its group is being ended.
    Ending(Ending),
}

impl Future for Tail {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { running, work, until } = Pin::into_inner(self);
        loop {
            let _ = running.stderr.poll(cx, &running.request);
            match work {
                Work::Ending(ending) => {
                    let ended = ready!(Pin::new(ending).poll(cx));
                    if let Err(error) = ended {
                        tracing::error!(
                            request_id = running.request.id(),
                            script = running.request.script,
                            "a script could not be ended: {error}"
                        );
                    }
                    break;
                }
                Work::Finishing => {
                    while let Poll::Ready(read) = running.poll_read(cx) {
                        running.buffer.clear();
                        if !matches!(read, Ok(1..)) {
                            running.stdout = None;
                            break;
                        }
                        if running.phase == (Phase::Over { is_excess: true }) {
                            running.phase = Phase::Over { is_excess: false };
                            running.log_excess();
                        }
                    }
                    if let Poll::Ready(exit) = running.poll_exit(cx) {
                        running.exited(exit);
                        break;
                    }
                    ready!(running.clock.poll(cx, Some(*until)));
                    tracing::warn!(
                        request_id = running.request.id(),
                        script = running.request.script,
                        "the script works on after its response was complete, for longer than it may: it is ended"
                    );
                    running.stdout = None;
                    match running.process.take() {
                        Some(process) => *work = Work::Ending(process.end()),
                        None => break,
                    }
                }
            }
        }
        running.last_lines();
        Poll::Ready(())
    }
}
