//! A connection's stream, watched: for a client that takes nothing, for one that leaves, and for bytes that come.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::clock::Activity;

/// How much is read before hyper reads, to see which version the client speaks, and while hyper does not read, to see whether the
/// client has left: bytes.
const READ_AHEAD: usize = 4 << 10;

pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Read from the stream, and not by hyper yet.
    ahead: BytesMut,
    /// Whether an end of input means that the client has left.
    end_is_leaving: bool,
    write_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, write_timeout: Duration) -> Self {
        Self {
            stream,
            activity,
            ahead: BytesMut::new(),
            end_is_leaving: false,
            write_timeout,
            stalled: None,
            is_stalled: false,
        }
    }

    /// From now on, while requests run, a client that leaves is noticed even where hyper does not read: it has a
    /// request's body to read first, and the application has not asked for it.
    pub(super) fn notice_leaving(&mut self) {
        self.end_is_leaving = true;
    }

    /// The opposite: the end of input is passed on like any other.
    pub(super) fn let_leave(&mut self) {
        self.end_is_leaving = false;
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Whether the connection begins with `preface`. What was read for that is read again afterwards.
    pub(super) async fn begins_with(&mut self, preface: &[u8]) -> io::Result<bool> {
        while self.ahead.len() < preface.len() && preface.starts_with(&self.ahead) {
            if !std::future::poll_fn(|cx| self.poll_ahead(cx, READ_AHEAD)).await? {
                break;
            }
        }
        Ok(self.ahead.starts_with(preface))
    }

    /// Reads up to `room` bytes in all; false at the end of the input.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<bool>> {
        // Mostly nothing comes, so that nothing is made ready for it.
        let mut buffer = [MaybeUninit::uninit(); READ_AHEAD];
        let room = room.saturating_sub(self.ahead.len()).min(READ_AHEAD);
        let mut buffer = ReadBuf::uninit(&mut buffer[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        if !read.is_empty() {
            self.ahead.extend_from_slice(read);
            self.activity.received();
        }
        Poll::Ready(Ok(!read.is_empty()))
    }

    /// Sees to it that a client that has left is noticed by the task that polls.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.end_is_leaving && self.activity.is_busy() && self.ahead.len() < READ_AHEAD {
            match self.poll_ahead(cx, READ_AHEAD)? {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// What comes of a write: an error when the client has taken nothing for too long.
    fn wrote<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_stalled = false;
            return written;
        }
        let stall = self.write_timeout;
        let clock = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if !std::mem::replace(&mut self.is_stalled, true) {
            clock.as_mut().reset(Instant::now() + stall);
        }
        ready!(clock.as_mut().poll(cx));
        let message = format!("the client took nothing for {stall:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = Pin::into_inner(self);
        if !this.ahead.is_empty() {
            let len = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..len]);
            this.ahead.advance(len);
            if this.ahead.is_empty() {
                // Not needed again by most connections.
                this.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = Pin::into_inner(self);
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = Pin::into_inner(self);
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = Pin::into_inner(self);
        // hyper flushes each time it has nothing more to do, so this is where a connection is watched.
        this.watch(cx)?;
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.wrote(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = Pin::into_inner(self);
        let shut_down = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.wrote(cx, shut_down)
    }
}
