//! What passes between a connection and the application of one of its requests: the body and a cancellation in, error messages out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::application::{Cancellable, Cancelling, InputError, Log, Source};
use crate::protocol::fastcgi::RecordType;

/// How many bytes of error messages wait for the connection. What an application writes beyond is dropped and counted.
const MAX_ERRORS: usize = 64 * 1024;

/// Shared by the connection, the request's Input and its Errors, which may be on other threads.
///
/// Not a channel, because it is bounded in bytes, not in messages: records may have one byte or 65,535. The connection never
/// waits here; it stops reading from its socket when a pipe is full.
#[derive(Default)]
pub(super) struct Exchange {
    state: Mutex<State>,
    has_errors: AtomicBool,
    cancelling: Cancelling,
}

#[derive(Default)]
struct State {
    stdin: Pipe,
    data: Pipe,
    errors: Vec<u8>,
    errors_lost: usize,
    connection: Option<Waker>,
}

/// One stream of a request, on its way to the application.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<Bytes>,
    len: usize,
    ended: bool,
    aborted: bool,
    /// Nobody reads any more.
    closed: bool,
    reader: Option<Waker>,
}

/// What a connection learns by [`Exchange::visit`].
pub(super) struct Visited {
    /// The application holds as much unread input as it may.
    pub(super) is_full: bool,
    /// Something was written to Errors and not asked for.
    pub(super) errors_wait: bool,
}

/// Which of a request's two streams.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Stdin,
    Data,
}

impl Stream {
    pub(super) fn record_type(self) -> RecordType {
        match self {
            Self::Stdin => RecordType::Stdin,
            Self::Data => RecordType::Data,
        }
    }
}

impl Exchange {
    /// Whether it is as good as new, where nobody was given a stream to read.
    pub(super) fn is_unused(&self) -> bool {
        !self.has_errors() && !self.cancelling.is_touched()
    }

    /// Whether anything was ever written to Errors: mostly nothing was, and the lock is spared.
    pub(super) fn has_errors(&self) -> bool {
        self.has_errors.load(Ordering::Acquire)
    }

    /// Takes note of the connection's task, and gives back what was written to Errors if it is asked for.
    pub(super) fn visit(&self, cx: &Context<'_>, window: usize, errors: Option<&mut Vec<u8>>) -> Visited {
        let mut state = self.state();
        match &mut state.connection {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.connection = Some(cx.waker().clone()),
        }
        if !state.errors.is_empty()
            && let Some(errors) = errors
        {
            errors.append(&mut state.errors);
            let lost = std::mem::take(&mut state.errors_lost);
            if lost > 0 {
                errors.extend_from_slice(format!("\n({lost} bytes of error messages were dropped here)\n").as_bytes());
            }
        }
        Visited {
            is_full: state.stdin.len >= window || state.data.len >= window,
            errors_wait: !state.errors.is_empty(),
        }
    }

    /// Adds to a stream. True when the application holds `window` bytes or more unread.
    pub(super) fn push(&self, stream: Stream, piece: Bytes, window: usize) -> bool {
        let mut state = self.state();
        let pipe = state.pipe(stream);
        if pipe.closed {
            return false;
        }
        pipe.len += piece.len();
        pipe.pieces.push_back(piece);
        let full = pipe.len >= window;
        let reader = pipe.reader.take();
        drop(state);
        wake(reader);
        full
    }

    pub(super) fn end(&self, stream: Stream) {
        let mut state = self.state();
        let pipe = state.pipe(stream);
        pipe.ended = true;
        let reader = pipe.reader.take();
        drop(state);
        wake(reader);
    }

    /// The web server is gone, or has given the request up: reading fails from now on.
    pub(super) fn abort(&self) {
        for stream in [Stream::Stdin, Stream::Data] {
            let mut state = self.state();
            let pipe = state.pipe(stream);
            pipe.aborted = true;
            pipe.len = 0;
            let (pieces, reader) = (std::mem::take(&mut pipe.pieces), pipe.reader.take());
            drop(state);
            drop(pieces);
            wake(reader);
        }
    }

    /// Nobody waits for the answer any more.
    pub(super) fn cancel(&self) {
        self.cancelling.cancel();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole either way: nothing between two lines of this file can panic with it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pipe(&mut self, stream: Stream) -> &mut Pipe {
        match stream {
            Stream::Stdin => &mut self.stdin,
            Stream::Data => &mut self.data,
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Cancellable for Exchange {
    fn cancelling(&self) -> &Cancelling {
        &self.cancelling
    }
}

/// `wsgi.errors` of a FastCGI request: FCGI_STDERR.
impl Log for Exchange {
    fn write(&self, text: &[u8]) {
        let mut state = self.state();
        let room = MAX_ERRORS.saturating_sub(state.errors.len()).min(text.len());
        state.errors.extend_from_slice(&text[..room]);
        state.errors_lost += text.len() - room;
        self.has_errors.store(true, Ordering::Release);
        let connection = state.connection.take();
        drop(state);
        wake(connection);
    }
}

/// The application's end of one stream.
pub(super) struct StreamSource {
    pub(super) exchange: Arc<Exchange>,
    pub(super) stream: Stream,
    /// From how many waiting bytes on the connection stops reading, and has to be told when there is room again.
    pub(super) window: usize,
}

impl Source for StreamSource {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        let mut state = self.exchange.state();
        let pipe = state.pipe(self.stream);
        if let Some(piece) = pipe.pieces.pop_front() {
            let was_full = pipe.len >= self.window;
            pipe.len -= piece.len();
            let connection = if was_full && pipe.len < self.window { state.connection.take() } else { None };
            drop(state);
            wake(connection);
            return Poll::Ready(Some(Ok(piece)));
        }
        match (pipe.aborted, pipe.ended) {
            (true, _) => Poll::Ready(Some(Err(InputError::Aborted))),
            (false, true) => Poll::Ready(None),
            (false, false) => {
                pipe.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for StreamSource {
    fn drop(&mut self) {
        let mut state = self.exchange.state();
        let pipe = state.pipe(self.stream);
        pipe.closed = true;
        let was_full = pipe.len >= self.window;
        pipe.len = 0;
        // What they hold is freed after the lock.
        let pieces = std::mem::take(&mut pipe.pieces);
        let connection = if was_full { state.connection.take() } else { None };
        drop(state);
        drop(pieces);
        wake(connection);
    }
}
