//! The CGI gateway: this process is a CGI script that a web server has started for one request (RFC 3875).
//!
//! The request is in the environment and on descriptor 0, the answer goes to descriptor 1. The process starts no thread of its own and
//! leaves the flags of the three descriptors as they were, since it may share them with others: what is waited for is readiness,
//! and what is done then does not block.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::application::driver::{self, Response, ResponseBody};
use crate::application::{
    Application, Cancellation, Environ, Error, Errors, FileRange, Frame, Input, InputError, Peer, Server, Source,
    Variables,
};
use crate::protocol::Pairs;
use crate::protocol::fastcgi::Role;

/// How the gateway reads and writes.
#[derive(Debug, Clone)]
pub struct Config {
    /// How much of the request's body is read at once, in bytes. Default: 64 KiB.
    pub block_size: usize,
    /// How much of the answer may wait for the web server before the application is held up, in bytes. Default: 64 KiB.
    pub output_window: usize,
    /// How long the close of the response's body may take after the web server stopped reading. Default: 5 s.
    pub close_timeout: Duration,
    /// How many bytes of a request's body are read and discarded when the application leaves them unread. Default: 16 MiB.
    pub linger_len: u64,
    /// How long that may take after the answer. Default: 5 s.
    pub linger_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            block_size: 64 * 1024,
            output_window: 64 * 1024,
            close_timeout: Duration::from_secs(5),
            linger_len: 16 * 1024 * 1024,
            linger_timeout: Duration::from_secs(5),
        }
    }
}

/// Why the answer is not complete. The process should then exit with something other than 0, which is all that CGI has for
/// saying so: the client sees it only where Content-Length was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgiError {
    /// The application failed after the head was sent. Its log has the cause.
    #[error("the response was cut: {0}")]
    Cut(Error),
    /// The process was told to stop.
    #[error("the process was told to stop before the answer was complete")]
    Stopped,
    /// The web server does not read the answer.
    #[error("the answer could not be written")]
    Write(#[source] io::Error),
    /// Descriptor 0 or 1 is not open or can't be used.
    #[error("descriptor {descriptor} can't be used")]
    Descriptor {
        /// Which.
        descriptor: i32,
        /// Why.
        source: io::Error,
    },
}

/// Answers the one request of this process. To be called within a tokio runtime with I/O.
///
/// `cancelled` ends the request early, for signals.
///
/// # Errors
///
/// When the answer is not complete.
pub async fn serve<A: Application>(
    application: A,
    config: Config,
    cancelled: impl Future<Output = ()>,
) -> Result<(), CgiError> {
    let duplicate = |descriptor: BorrowedFd<'_>, number| {
        descriptor.try_clone_to_owned().map_err(|source| CgiError::Descriptor { descriptor: number, source })
    };
    let stdin = duplicate(io::stdin().as_fd(), 0)?;
    let stdout = duplicate(io::stdout().as_fd(), 1)?;
    let mut variables = Pairs::new();
    for (name, value) in std::env::vars_os() {
        variables.push(name.into_vec(), value.into_vec());
    }
    serve_process(variables, stdin, stdout, application, config, cancelled).await
}

/// As [`serve`], with the environment and the two descriptors named: for hosts that are not the process itself, and for tests.
///
/// # Errors
///
/// When the answer is not complete.
pub async fn serve_process<A: Application>(
    variables: Pairs,
    stdin: OwnedFd,
    stdout: OwnedFd,
    application: A,
    config: Config,
    cancelled: impl Future<Output = ()>,
) -> Result<(), CgiError> {
    let of = |descriptor| move |source| CgiError::Descriptor { descriptor, source };
    let stdout = Arc::new(Descriptor::new(stdout, Interest::WRITABLE).map_err(of(1))?);
    let cancellation = Cancellation::default();
    let environ = Environ::new(Variables::from_pairs(variables))
        .with_server(Arc::new(Server {
            gateway: "cgi",
            connection: 0,
            peer: Peer::Unknown,
            multithread: false,
            multiprocess: true,
            run_once: true,
        }))
        .with_request(Role::Responder, 0, cancellation.clone())
        .with_errors(Errors::stderr());
    let mut stop = pin!(async {
        tokio::select! {
            () = cancelled => CgiError::Stopped,
            () = stdout.reader_gone() => CgiError::Write(io::ErrorKind::BrokenPipe.into()),
        }
    });
    let (leave, left) = oneshot::channel();
    // RFC 3875 4.2: the script reads no more than CONTENT_LENGTH, and nothing where there is none. Apache sends a chunked body, whose
    // length it does not know, and closes its end behind it; it says so in this variable.
    let length = environ.meta().content_length();
    let is_chunked = environ.header("Transfer-Encoding").is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    let response = match length {
        Ok(length) => {
            let environ = if length.is_some_and(|length| length > 0) || (length.is_none() && is_chunked) {
                let descriptor = Descriptor::new(stdin, Interest::READABLE).map_err(of(0))?;
                let unread = length.unwrap_or(u64::MAX);
                let source =
                    Stdin { descriptor: Some(descriptor), unread, leave: Some(leave), block_size: config.block_size };
                environ.with_input(Input::from_source(source, length))
            } else {
                // Nothing will be left.
                drop(leave);
                environ
            };
            // Pinned out here, so that the token comes before the drop.
            let mut call = pin!(driver::answer(application, environ));
            tokio::select! {
                biased;
                response = &mut call => response,
                reason = &mut stop => {
                    cancellation.cancel();
                    return Err(reason);
                }
            }
        }
        Err(error) => {
            drop(leave);
            environ.errors().line(format_args!("request {} answered with 400: {error}", environ.request_id()));
            driver::error_page(400, environ.request_id(), environ.method() == b"HEAD")
        }
    };
    let mut sending = Sending::new(response, stdout.clone(), config.output_window);
    // Apache writes all of a request's body before it reads any of the answer, and drops the answer when it can't: what the
    // application does not want is taken from it, while the answer is sent and after.
    let mut discarding = pin!(async {
        if let Ok((descriptor, unread)) = left.await {
            discard(&descriptor, unread.min(config.linger_len), config.block_size).await;
        }
    });
    let mut discarded = false;
    let sent = loop {
        tokio::select! {
            biased;
            sent = poll_fn(|cx| sending.poll(cx)) => break sent,
            () = &mut discarding, if !discarded => discarded = true,
            reason = &mut stop => break Err(reason),
        }
    };
    if sent.is_ok() && !discarded {
        // What the application still held of the input goes with its body.
        drop(sending);
        let _ = tokio::time::timeout(config.linger_timeout, discarding).await;
        return sent;
    }
    if sent.is_err() {
        cancellation.cancel();
        // A close that takes longer is given up with the process.
        let _ = tokio::time::timeout(config.close_timeout, sending.body.close()).await;
    }
    sent
}

/// A response on its way to descriptor 1: the head goes with the first of the body, each piece when the application has nothing
/// more ready, and the application is asked for more while there is room.
struct Sending {
    body: ResponseBody,
    output: Output,
    window: usize,
    file: Option<FileRange>,
    /// How the body ended.
    ended: Option<Result<(), Error>>,
}

impl Sending {
    fn new(response: Response, descriptor: Arc<Descriptor>, window: usize) -> Self {
        let Response { head, body } = response;
        let mut waiting = BytesMut::new();
        let encoded = head.headers.fields().encode_head(head.status.code(), head.status.reason(), &mut waiting);
        // Only middleware that changes a head behind the driver's checks makes one that can't be written.
        let ended = encoded.err().map(|error| Err(error.into()));
        Self { body, output: Output { descriptor, waiting, rest: Bytes::new() }, window, file: None, ended }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CgiError>> {
        loop {
            let mut flush = true;
            if let Some(file) = &mut self.file {
                // A CGI process has one request only, so nothing else waits while the disk is read.
                match file.read_block() {
                    Ok(block) => {
                        file.skip(block.len());
                        self.output.put(block);
                        self.file = self.file.take().filter(|file| file.len > 0);
                    }
                    Err(error) => (self.file, self.ended) = (None, Some(Err(error.into()))),
                }
            } else if self.ended.is_none() && self.output.len() < self.window {
                match self.body.poll_frame(cx) {
                    Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                        self.output.put(data);
                        flush = false;
                    }
                    Poll::Ready(Some(Ok(Frame::File(range)))) => self.file = Some(range).filter(|range| range.len > 0),
                    // CGI has no place for trailers.
                    Poll::Ready(Some(Ok(Frame::Flush | Frame::Trailers(_)))) => {}
                    Poll::Ready(Some(Err(error))) => self.ended = Some(Err(error)),
                    Poll::Ready(None) => self.ended = Some(Ok(())),
                    Poll::Pending if self.output.is_empty() => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            if flush {
                ready!(self.output.poll_flush(cx)).map_err(CgiError::Write)?;
                match self.ended.take() {
                    Some(Ok(())) => return Poll::Ready(Ok(())),
                    Some(Err(error)) => {
                        self.body.log_cut(&error);
                        return Poll::Ready(Err(CgiError::Cut(error)));
                    }
                    None => {}
                }
            }
        }
    }
}

/// What waits to be written to descriptor 1.
struct Output {
    descriptor: Arc<Descriptor>,
    /// Short pieces, put together.
    waiting: BytesMut,
    /// One long piece after them.
    rest: Bytes,
}

impl Output {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.rest.len()
    }

    fn put(&mut self, data: Bytes) {
        // From here on a copy costs more than another write.
        const LONG: usize = 16 * 1024;
        if self.rest.is_empty() && data.len() >= LONG {
            self.rest = data;
            return;
        }
        let rest = std::mem::take(&mut self.rest);
        self.waiting.extend_from_slice(&rest);
        self.waiting.extend_from_slice(&data);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let first: &mut dyn Buf = if self.waiting.is_empty() { &mut self.rest } else { &mut self.waiting };
            let written = ready!(self.descriptor.poll_write(cx, first.chunk()))?;
            first.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

/// The request's body on descriptor 0.
struct Stdin {
    /// There until it is dropped.
    descriptor: Option<Descriptor>,
    /// What the web server has announced and nobody has read.
    unread: u64,
    /// Takes the descriptor when the application is done with it and has not read everything.
    leave: Option<oneshot::Sender<(Descriptor, u64)>>,
    block_size: usize,
}

impl Source for Stdin {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        let Some(descriptor) = &self.descriptor else { return Poll::Ready(None) };
        // Whatever is behind CONTENT_LENGTH may be somebody else's.
        let len = usize::try_from(self.unread).unwrap_or(usize::MAX).min(self.block_size.max(1));
        let mut block = BytesMut::zeroed(len);
        match ready!(descriptor.poll_read(cx, &mut block)) {
            Ok(0) => {
                self.unread = 0;
                Poll::Ready(None)
            }
            Ok(len) => {
                self.unread = self.unread.saturating_sub(len as u64);
                block.truncate(len);
                Poll::Ready(Some(Ok(block.freeze())))
            }
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        if let (Some(descriptor), Some(leave), 1..) = (self.descriptor.take(), self.leave.take(), self.unread) {
            // Nobody takes it when the process is about to end for another reason.
            let _ = leave.send((descriptor, self.unread));
        }
    }
}

/// Reads so many bytes, or up to the end of file, for nothing.
async fn discard(descriptor: &Descriptor, mut len: u64, block_size: usize) {
    if matches!(descriptor, Descriptor::Plain(_)) {
        // Nobody waits for a file to be read.
        return;
    }
    let mut block = vec![0; block_size];
    while len > 0 {
        let room = usize::try_from(len).unwrap_or(usize::MAX).min(block_size);
        match poll_fn(|cx| descriptor.poll_read(cx, &mut block[..room])).await {
            Ok(read @ 1..) => len = len.saturating_sub(read as u64),
            _ => return,
        }
    }
}

/// One of the process's first descriptors, of whatever kind, used without blocking and without O_NONBLOCK, which would hold for everyone
/// who shares the open file: the web server, the shell, a grandchild.
enum Descriptor {
    /// Regular files and /dev/null are always ready.
    Plain(OwnedFd),
    /// Sockets have a flag for each call.
    Socket(AsyncFd<OwnedFd>),
    /// Pipes and terminals are waited for. A read of one that is ready gives what is there; a write of no more than PIPE_BUF bytes to one that is
    /// ready fits.
    Stream(AsyncFd<OwnedFd>),
}

/// How often it is looked whether the web server still reads.
const READER_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Linux's PIPE_BUF, in bytes: a pipe that is writable has room for that much.
const PIPE_BUF: usize = 4096;

impl Descriptor {
    fn new(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&descriptor)?.st_mode);
        Ok(match kind {
            FileType::Socket => Self::Socket(register(descriptor, interest)?),
            FileType::Fifo => Self::Stream(register(descriptor, interest)?),
            FileType::CharacterDevice if rustix::termios::isatty(&descriptor) => {
                Self::Stream(register(descriptor, interest)?)
            }
            _ => Self::Plain(descriptor),
        })
    }

    /// Ready when nobody can read any more what is written. Looked at now and then, because a pipe that is writable tells
    /// of nothing else.
    async fn reader_gone(&self) {
        let (Self::Socket(descriptor) | Self::Stream(descriptor)) = self else { return std::future::pending().await };
        loop {
            tokio::time::sleep(READER_CHECK_INTERVAL).await;
            if is_ready(descriptor.as_fd(), PollFlags::empty()) {
                return;
            }
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(descriptor) => Poll::Ready(retried(|| rustix::io::read(descriptor, &mut *buf))),
            Self::Socket(socket) => loop {
                let mut ready = ready!(socket.poll_read_ready(cx))?;
                let received = ready
                    .try_io(|fd| retried(|| rustix::net::recv(fd, &mut *buf, RecvFlags::DONTWAIT).map(|(len, _)| len)));
                if let Ok(received) = received {
                    return Poll::Ready(received);
                }
            },
            Self::Stream(stream) => loop {
                let mut ready = ready!(stream.poll_read_ready(cx))?;
                if is_ready(stream.as_fd(), PollFlags::IN) {
                    return Poll::Ready(retried(|| rustix::io::read(stream, &mut *buf)));
                }
                ready.clear_ready();
            },
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(descriptor) => Poll::Ready(retried(|| rustix::io::write(descriptor, buf))),
            Self::Socket(socket) => loop {
                let mut ready = ready!(socket.poll_write_ready(cx))?;
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                if let Ok(sent) = ready.try_io(|fd| retried(|| rustix::net::send(fd, buf, flags))) {
                    return Poll::Ready(sent);
                }
            },
            Self::Stream(stream) => loop {
                let mut ready = ready!(stream.poll_write_ready(cx))?;
                if is_ready(stream.as_fd(), PollFlags::OUT) {
                    return Poll::Ready(retried(|| rustix::io::write(stream, &buf[..buf.len().min(PIPE_BUF)])));
                }
                ready.clear_ready();
            },
        }
    }
}

#[expect(unsafe_code, reason = "tokio has no safe way for a descriptor that is not one of its own kinds")]
fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, always the same, until it is dropped; the `AsyncFd` owns it until then.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Whether a call would not block at this moment; true too when it would fail.
fn is_ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor, events)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut descriptors, Some(&at_once)).is_ok_and(|count| count > 0)
}

fn retried<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    Ok(rustix::io::retry_on_intr(&mut call)?)
}
