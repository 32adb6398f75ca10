//! The end of a pipe that a program writes to: the runtime hears of it only when there is something to wait for.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::io::{Errno, ioctl_fionread, read};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio::task::coop;

/// What a program writes to. It does not block.
///
/// Where many programs run at once, most have written all they will by the time that somebody looks. So the runtime is not told of
/// a pipe until a look was in vain: that spares two system calls, and the waking of a thread by each byte that comes meanwhile.
#[derive(Debug)]
pub(super) struct Outlet(State);

#[derive(Debug)]
enum State {
    Unknown(OwnedFd),
    Watched(pipe::Receiver),
    /// The runtime would not have it.
    Lost,
}

/// How much is read at once while the runtime does not know it.
const READ_SIZE: usize = 4096;

impl Outlet {
    /// For a pipe whose reads don't block.
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self(State::Unknown(descriptor))
    }

    /// What there is, whether the runtime knows or not. Nobody is woken when more comes.
    pub(super) fn read_now(&self, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        let mut bytes = [0; READ_SIZE];
        let read = ready!(match &self.0 {
            State::Unknown(descriptor) => look(descriptor, &mut bytes),
            State::Watched(pipe) => look(pipe, &mut bytes),
            State::Lost => return Poll::Ready(Err(lost())),
        });
        buffer.extend_from_slice(&bytes[..*read.as_ref().unwrap_or(&0)]);
        Poll::Ready(read)
    }

    /// Whether there is something to read.
    pub(super) fn is_ready(&self) -> bool {
        let waiting = match &self.0 {
            State::Unknown(descriptor) => ioctl_fionread(descriptor),
            State::Watched(pipe) => ioctl_fionread(pipe),
            State::Lost => return false,
        };
        matches!(waiting, Ok(1..))
    }

    /// Whether the runtime was told.
    pub(super) fn is_watched(&self) -> bool {
        !matches!(self.0, State::Unknown(_))
    }

    /// Tells the runtime.
    pub(super) fn watch(&mut self) -> io::Result<&mut pipe::Receiver> {
        self.0 = match mem::replace(&mut self.0, State::Lost) {
            State::Unknown(descriptor) => State::Watched(pipe::Receiver::from_owned_fd_unchecked(descriptor)?),
            told => told,
        };
        match &mut self.0 {
            State::Watched(pipe) => Ok(pipe),
            _ => Err(lost()),
        }
    }

    /// The same for those who wait by themselves.
    pub(super) fn into_watched(mut self) -> io::Result<pipe::Receiver> {
        self.watch()?;
        match self.0 {
            State::Watched(pipe) => Ok(pipe),
            _ => Err(lost()),
        }
    }
}

impl AsyncRead for Outlet {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let State::Unknown(descriptor) = &self.0 {
            // A program that writes faster than it is read is not to keep others from their turn.
            let turn = ready!(coop::poll_proceed(cx));
            let len = buffer.remaining().min(READ_SIZE);
            if let Poll::Ready(read) = look(descriptor, buffer.initialize_unfilled_to(len)) {
                turn.made_progress();
                return Poll::Ready(read.map(|len| buffer.advance(len)));
            }
        }
        Pin::new(self.watch()?).poll_read(cx, buffer)
    }
}

fn look(descriptor: impl AsFd, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        match read(&descriptor, &mut *bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Poll::Pending,
            done => return Poll::Ready(done.map_err(io::Error::from)),
        }
    }
}

fn lost() -> io::Error {
    io::Error::other("the runtime could not be told of a pipe")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use rustix::io::ioctl_fionbio;
    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::AsyncReadExt;

    use super::*;

    fn outlet() -> (Outlet, File) {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        ioctl_fionbio(&ours, true).unwrap();
        (Outlet::new(ours), theirs.into())
    }

    #[tokio::test]
    async fn what_is_there_already_is_read_without_the_runtime() {
        let (mut outlet, mut program) = outlet();
        program.write_all(b"all of it").unwrap();
        drop(program);
        let mut all = String::new();
        outlet.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "all of it");
        assert!(!outlet.is_watched());
    }

    #[tokio::test]
    async fn what_comes_later_is_waited_for() {
        let (mut outlet, mut program) = outlet();
        assert!(outlet.read_now(&mut BytesMut::new()).is_pending());
        assert!(!outlet.is_watched());
        let (came, ()) = tokio::join!(outlet.read_u8(), async { program.write_all(b"ab").unwrap() });
        assert_eq!(came.unwrap(), b'a');
        assert!(outlet.is_watched() && outlet.is_ready());
        let mut rest = BytesMut::new();
        assert!(matches!(outlet.read_now(&mut rest), Poll::Ready(Ok(1))));
        assert_eq!(rest, b"b"[..]);
        assert!(!outlet.is_ready());
    }
}
