//! A connection over a Unix socket, from the forwarder's side.
//!
//! tokio's own is woken twice for each request: when the answer comes, and before that when the server has read the request, because there is room for
//! more then. This one asks for room only when it has none.
#![expect(unsafe_code, reason = "tokio has the caller vouch for descriptors, and for memory that a system call filled")]

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A connected Unix socket.
#[derive(Debug)]
pub struct LocalStream {
    socket: AsyncFd<OwnedFd>,
    /// The same socket once more, for waiting until there is room to write; made when there first was none.
    room: Option<AsyncFd<OwnedFd>>,
}

impl LocalStream {
    /// Takes a socket that never blocks over. Within a tokio runtime only.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: register(socket, Interest::READABLE)?, room: None })
    }

    /// Writes at once where that is possible, and else when there is room.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let room = match &mut self.room {
            Some(room) => room,
            none => {
                match retry_on_intr(|| send(self.socket.get_ref())) {
                    Err(rustix::io::Errno::AGAIN) => {}
                    sent => return Poll::Ready(sent.map_err(io::Error::from)),
                }
                none.insert(register(self.socket.get_ref().try_clone()?, Interest::WRITABLE)?)
            }
        };
        loop {
            let mut ready = ready!(room.poll_write_ready(cx))?;
            if let Ok(sent) = ready.try_io(|socket| Ok(retry_on_intr(|| send(socket.get_ref()))?)) {
                return Poll::Ready(sent);
            }
        }
    }
}

fn register(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, always the same, until it is dropped; the `AsyncFd` owns it until then.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            // SAFETY: nothing is written there but what `recv` writes.
            let unfilled = unsafe { buf.unfilled_mut() };
            let room = unfilled.len();
            let received = ready.try_io(|socket| {
                let receive = || recv(socket.get_ref(), &mut *unfilled, RecvFlags::empty()).map(|received| received.1);
                Ok(retry_on_intr(receive)?)
            });
            let Ok(received) = received else { continue };
            let len = received?;
            if (1..room).contains(&len) {
                // That was all there is: asking again would only tell so.
                ready.clear_ready();
            }
            // SAFETY: the system has written so many bytes there.
            unsafe { buf.assume_init(len) };
            buf.advance(len);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| send(socket, buf, SendFlags::NOSIGNAL))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut nothing = SendAncillaryBuffer::default();
        self.poll_send(cx, |socket| sendmsg(socket, bufs, &mut nothing, SendFlags::NOSIGNAL))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.socket.get_ref(), Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (LocalStream, LocalStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (LocalStream::new(one.into()).unwrap(), LocalStream::new(other.into()).unwrap())
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_up_to_the_end() {
        let (mut one, mut other) = pair();
        one.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(other.read(&mut buffer).await.unwrap(), 5);
        let parts = [IoSlice::new(b"good"), IoSlice::new(b"bye")];
        assert_eq!(poll_fn(|cx| Pin::new(&mut other).poll_write_vectored(cx, &parts)).await.unwrap(), 7);
        drop(other);
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"goodbye");
        assert_eq!(one.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn who_finds_no_room_is_woken_when_there_is_some() {
        let (mut one, mut other) = pair();
        let sent = vec![b'x'; 4 << 20];
        let writing = async {
            one.write_all(&sent).await.unwrap();
            one.shutdown().await.unwrap();
            let mut answer = Vec::new();
            one.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let reading = async {
            let mut received = Vec::new();
            other.read_to_end(&mut received).await.unwrap();
            other.write_all(b"answer").await.unwrap();
            drop(other);
            received.len()
        };
        assert_eq!(tokio::join!(writing, reading), (b"answer".to_vec(), 4 << 20));
    }
}
