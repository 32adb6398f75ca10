//! Unix sockets, for gateways and forwarders.
//!
//! tokio's own is woken twice for each request: when something comes, and before that when the other side has read what was sent, because there is
//! room for more then. This one asks for room only when it has none.
#![expect(
    unsafe_code,
    reason = "tokio has the caller vouch for descriptors and for memory that a system call filled; a peer may have no pid"
)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, sendmsg, shutdown,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::task::coop;
use tokio::time::{Sleep, sleep};

/// How long to wait for room before it is looked for again, where nothing can tell of it.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A connected Unix socket.
#[derive(Debug)]
pub struct LocalStream {
    socket: AsyncFd<OwnedFd>,
    /// There as long as there is no room to write.
    room: Option<Room>,
    /// Something may have come before there was anybody to be told of it.
    may_have_begun: bool,
}

/// What tells of room to write.
#[derive(Debug)]
enum Room {
    /// The same socket once more.
    Watched(AsyncFd<OwnedFd>),
    /// The time, where the process has no descriptor to spare.
    Awaited(Pin<Box<Sleep>>),
}

/// Who is at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerCredentials {
    /// The user's id.
    pub uid: u32,
    /// The process's id; `None` where it has none here, because it is in another PID namespace.
    pub pid: Option<i32>,
}

impl LocalStream {
    /// Takes a socket that never blocks over. Within a tokio runtime only.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: register(socket, Interest::READABLE)?, room: None, may_have_begun: false })
    }

    /// Who is at the other end: the credentials that it had when it connected.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        // rustix has no way to say that there is no pid.
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = libc::socklen_t::try_from(size_of_val(&credentials)).unwrap_or(0);
        let (into, socket) = ((&raw mut credentials).cast(), self.socket.as_raw_fd());
        // SAFETY: it writes no more than `len` bytes to `credentials`, of which every value is one.
        match unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut len) } {
            0 => Ok(PeerCredentials { uid: credentials.uid, pid: Some(credentials.pid).filter(|pid| *pid != 0) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes at once where that is possible, and else when there is room.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let socket = self.socket.get_ref();
        let mut try_send = || match retry_on_intr(|| send(socket)) {
            Err(rustix::io::Errno::AGAIN) => None,
            sent => Some(sent.map_err(io::Error::from)),
        };
        loop {
            match &mut self.room {
                None => {
                    // Who is always read from at once is not to keep others from their turn.
                    let turn = ready!(coop::poll_proceed(cx));
                    if let Some(sent) = try_send() {
                        turn.made_progress();
                        return Poll::Ready(sent);
                    }
                    self.room = Some(Room::of(socket)?);
                }
                Some(Room::Watched(watched)) => {
                    let mut ready = ready!(watched.poll_write_ready(cx))?;
                    if let Some(sent) = try_send() {
                        self.room = None;
                        return Poll::Ready(sent);
                    }
                    ready.clear_ready();
                }
                Some(Room::Awaited(pause)) => {
                    ready!(pause.as_mut().poll(cx));
                    self.room = None;
                }
            }
        }
    }
}

impl Room {
    fn of(socket: &OwnedFd) -> io::Result<Self> {
        match socket.try_clone().and_then(|socket| register(socket, Interest::WRITABLE)) {
            Ok(watched) => Ok(Self::Watched(watched)),
            // What the system has none of now it may have later. tokio's own error is that the runtime has ended, and its timers with it.
            Err(error) if error.raw_os_error().is_some() => Ok(Self::Awaited(Box::pin(sleep(LOOK_AGAIN)))),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for LocalStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A listening Unix socket.
#[derive(Debug)]
pub(crate) struct LocalListener {
    socket: AsyncFd<UnixListener>,
}

impl LocalListener {
    /// Takes a listener over, which does not block from now on. Within a tokio runtime only.
    pub(crate) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { socket: register(listener, Interest::READABLE)? })
    }

    /// The next connection. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<LocalStream> {
        // Both flags go with the call that makes it.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &UnixListener| Ok(retry_on_intr(|| accept_with(listener, flags))?);
        let stream = LocalStream::new(self.socket.async_io(Interest::READABLE, accept).await?)?;
        // Clients mostly send at once.
        Ok(LocalStream { may_have_begun: true, ..stream })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }
}

fn register<S: AsRawFd + Into<OwnedFd>>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    // SAFETY: what can become an `OwnedFd` is one open descriptor, always the same, until it is dropped; the `AsyncFd` owns it until then.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Receives what is there, and says how much that is.
fn receive(socket: &OwnedFd, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: nothing is written there but what `recv` writes.
    let unfilled = unsafe { buf.unfilled_mut() };
    let len = retry_on_intr(|| recv(socket, &mut *unfilled, RecvFlags::empty()).map(|received| received.1))?;
    // SAFETY: the system has written so many bytes there.
    unsafe { buf.assume_init(len) };
    buf.advance(len);
    Ok(len)
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.may_have_begun {
            let turn = ready!(coop::poll_proceed(cx));
            self.may_have_begun = false;
            match receive(self.socket.get_ref(), buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => {
                    turn.made_progress();
                    return Poll::Ready(received.map(drop));
                }
            }
        }
        let room = buf.remaining();
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let Ok(received) = ready.try_io(|socket| receive(socket.get_ref(), buf)) else { continue };
            if (1..room).contains(&received?) {
                // That was all there is: asking again would only tell so.
                ready.clear_ready();
            }
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
    use std::io::Write;
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
    async fn an_accepted_connection_gives_what_came_before_and_after_it_was_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = LocalListener::new(UnixListener::bind(&path).unwrap()).unwrap();
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(&*path));
        for early in [&b"early"[..], b""] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(early).unwrap();
            let mut accepted = listener.accept().await.unwrap();
            assert!(rustix::fs::fcntl_getfl(&accepted).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
            assert!(rustix::io::fcntl_getfd(&accepted).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            assert_eq!(accepted.peer_credentials().unwrap().pid, Some(std::process::id().cast_signed()));
            let mut buffer = [0; 16];
            let mut first = ReadBuf::new(&mut buffer);
            let polled =
                poll_fn(|cx| Poll::Ready(Pin::new(&mut accepted).poll_read(cx, &mut first))).await.map(Result::unwrap);
            // Read without having been woken, or to be woken.
            assert_eq!(polled.is_ready(), !early.is_empty());
            assert_eq!(first.filled(), early);
            client.write_all(b"late").unwrap();
            drop(client);
            let mut rest = Vec::new();
            accepted.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"late");
        }
    }

    #[tokio::test]
    async fn who_finds_no_room_is_woken_when_there_is_some() {
        let (mut one, mut other) = pair();
        let sent = vec![b'x'; 4 << 20];
        let writing = async {
            one.write_all(&sent).await.unwrap();
            // No second descriptor is held for as long as the connection is open.
            assert!(one.room.is_none());
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

    #[tokio::test]
    async fn who_can_always_write_lets_others_have_their_turn() {
        let (mut one, _other) = pair();
        let writes = poll_fn(|cx| {
            let mut write = |_: &usize| Pin::new(&mut one).poll_write(cx, b"x").map(Result::unwrap) == Poll::Ready(1);
            Poll::Ready((0..200).take_while(|index| write(index)).count())
        });
        // As many as tokio lets a task do at once; there is room for more.
        assert!((1..200).contains(&writes.await));
        let more = poll_fn(|cx| Poll::Ready(Pin::new(&mut one).poll_write(cx, &[b'x'; 200]).is_ready()));
        tokio::task::yield_now().await;
        assert!(more.await);
    }

    #[test]
    fn who_finds_no_room_when_the_runtime_has_ended_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut one, _other) = runtime.block_on(async { pair() });
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let last = loop {
            match Pin::new(&mut one).poll_write(&mut cx, &[b'x'; 1 << 16]) {
                Poll::Ready(Ok(_)) => {}
                other => break other,
            }
        };
        assert!(matches!(last, Poll::Ready(Err(_))), "{last:?}");
    }
}
