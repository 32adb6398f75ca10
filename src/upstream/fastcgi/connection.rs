//! One connection to a FastCGI server, from the web server's side: a stream with the state of the protocol on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use crate::protocol::fastcgi::web_server_end::Settings;
use crate::protocol::fastcgi::{RequestId, WebServerEnd};

/// A stream and the web server's end of the protocol on it.
///
/// Dropped with a request on it, it aborts that.
pub(super) struct Connection<S: Io> {
    stream: S,
    pub(super) end: WebServerEnd,
    /// The request that has begun and not ended.
    pub(super) current: Option<RequestId>,
    /// Made when first needed, and kept: the next request on this connection waits by the same one.
    timer: Option<Pin<Box<Sleep>>>,
    /// How much the next read asks for.
    read_room: usize,
    /// Whether a request was answered on it before.
    is_kept: bool,
}

/// What a connection runs over.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Io for S {}

/// How much is read at once: at first, and after a read that filled all the room it had.
const READ_ROOM: (usize, usize) = (8 * 1024, 128 * 1024);

impl<S: Io> Connection<S> {
    /// A connection that was just made.
    pub(super) fn new(stream: S, settings: Settings) -> Self {
        let end = WebServerEnd::new(settings);
        Self { stream, end, current: None, timer: None, read_room: READ_ROOM.0, is_kept: false }
    }

    /// Whether a request was answered on it before, so that the server may have closed it since.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether another request may follow the one that ended: what was received ends with it, and the server keeps the connection.
    pub(super) fn keep(&mut self) -> bool {
        // Padding behind the last record is digested by looking for the next.
        let nothing_left = matches!(self.end.next_event(), Ok(None)) && self.end.is_idle();
        self.is_kept = nothing_left && self.end.keeps_connection() && self.end.output().is_empty();
        self.read_room = READ_ROOM.0;
        self.is_kept
    }

    /// Whether nothing has happened on it while nobody used it. A server that closed it, or sent what nobody asked for, is not asked again
    /// on it.
    pub(super) fn is_quiet(&mut self) -> bool {
        // Where nothing has come this is no system call: the runtime knows that there is nothing to read.
        self.poll_read(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// One write of as much as there is.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let output = self.end.output();
        if output.chunk().len() < output.len() {
            return poll_write_buf(Pin::new(&mut self.stream), cx, output);
        }
        // The usual case, for which a vectored write costs the system more.
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, output.chunk()))?;
        output.advance(written);
        Poll::Ready(Ok(written))
    }

    /// One read. Where it fills all the room there is, the next has more.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffer = self.end.receive_buffer();
        buffer.reserve(self.read_room.saturating_sub(buffer.len()).max(READ_ROOM.0 / 2));
        let room = buffer.capacity() - buffer.len();
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, buffer);
        if let Poll::Ready(Ok(len)) = read
            && len == room
        {
            self.read_room = READ_ROOM.1;
        }
        read
    }

    /// Ready when the deadline is over. The timer is set anew only for an earlier one: a later one is looked at when it fires.
    pub(super) fn poll_deadline(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

impl<S: Io> Drop for Connection<S> {
    /// Tells the server that the request is given up, as far as it takes that at once. The close that follows says it to the many servers that
    /// know no other abort.
    fn drop(&mut self) {
        let Some(id) = self.current.take() else { return };
        self.end.abort(id);
        let mut cx = Context::from_waker(Waker::noop());
        while !self.end.output().is_empty() {
            match self.poll_write(&mut cx) {
                Poll::Ready(Ok(written)) if written > 0 => {}
                _ => break,
            }
        }
    }
}
