//! The relay: a web server's FastCGI connections, each passed on to the application byte for byte, whatever the bytes are.
//!
//! What each end does, the other sees: bytes as they come, the end of one direction while the other goes on, and a close. Nothing is held back but
//! what the receiver does not take, which is at most one buffer in each direction; while that waits, nothing more is read.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use gatespan::address::Endpoint;
use gatespan::application::Peer;
use gatespan::gateway::fastcgi::Config;
use gatespan::gateway::listener::{Closed, Listener, Stream, Transport};
use gatespan::recording::Direction;
use gatespan::upstream::fastcgi::{Connect, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::recorder::{Recorder, Tape};

/// What all connections of a relay have in common.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) to: Endpoint,
    /// The same, as the recording names it.
    pub(super) name: String,
    /// Who may connect, how many at once, how long they have at the end.
    pub(super) config: Config,
    pub(super) recorder: Arc<Recorder>,
}

/// How long making a connection to the application may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How much is read at once, and held for one who does not take it.
const BUFFER_LEN: usize = 64 * 1024;

/// How often a connection is looked at that would not tell by itself that it was closed.
const CLOSED_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a web server may go on to send what no application takes, after it was answered.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// Relays a listener's connections until `stop` is cancelled and they are over, or their time is.
pub(super) async fn serve(relay: Arc<Relay>, listener: Listener, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(relay.config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            // Never closed.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let (stream, peer) = listener.accept().await;
            if let Err(reason) = relay.config.admit(&peer) {
                tracing::warn!(?peer, "a connection was refused: {reason}");
                continue;
            }
            // A token of its own, since all that ask one token wait for each other.
            let (relay, stop) = (relay.clone(), stop.child_token());
            connections.spawn(async move {
                let _permit = permit;
                pass_on(&relay, stream, &peer, &stop).await;
            });
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = accept => {}
    }
    drop(listener);
    connections.close();
    // Each keeps to the limit itself.
    connections.wait().await;
}

/// One connection, from its beginning to its end.
async fn pass_on(relay: &Relay, stream: Stream, peer: &Peer, stop: &CancellationToken) {
    let mut tape = Tape::begin(&relay.recorder, name(&stream, peer), relay.name.clone());
    let connected = match tokio::time::timeout(CONNECT_TIMEOUT, relay.to.connect()).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}"))),
    };
    match connected {
        Ok(application) => Connection::new(stream, application, tape).run(&relay.config, stop).await,
        Err(error) => {
            tracing::error!("fastcgi:{} could not be reached: {error}", relay.to);
            tape.broken(format!("the application could not be reached: {error}"));
        }
    }
}

/// A web server's end, as people find it again.
fn name(stream: &Stream, peer: &Peer) -> String {
    match (stream, peer) {
        (_, Peer::Ip(address)) => address.to_string(),
        (Stream::Unix(stream), _) => match stream.peer_credentials().ok().and_then(|credentials| credentials.pid) {
            Some(pid) => format!("pid {pid}"),
            None => String::new(),
        },
        _ => String::new(),
    }
}

struct Connection {
    web_server: Stream,
    application: Socket,
    to_application: Way,
    to_web_server: Way,
    tape: Tape,
    /// The application takes no more.
    is_deaf: bool,
    /// There is no web server any more: when the application has what was sent to it, all is over.
    is_left: bool,
}

/// One direction.
struct Way {
    direction: Direction,
    /// What was read and not taken yet.
    waiting: Vec<u8>,
    /// How much of that was taken.
    taken: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended; the receiver has still to be told.
    Ending,
    Ended,
}

/// Which end an error was met at.
enum Broken {
    Sender(io::Error),
    Receiver(io::Error),
}

thread_local! {
    /// What is read, on its way: nothing stays here while nothing is being done.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_LEN]);
}

impl Connection {
    fn new(web_server: Stream, application: Socket, tape: Tape) -> Self {
        let way = |direction| Way { direction, waiting: Vec::new(), taken: 0, state: State::Open };
        Self {
            web_server,
            application,
            to_application: way(Direction::ToApplication),
            to_web_server: way(Direction::ToWebServer),
            tape,
            is_deaf: false,
            is_left: false,
        }
    }

    async fn run(mut self, config: &Config, stop: &CancellationToken) {
        let mut stops_at: Option<Instant> = None;
        let mut idle_since: Option<Instant> = None;
        let mut lingers_until: Option<Instant> = None;
        loop {
            let has_ticks = self.must_look() || stops_at.is_some();
            tokio::select! {
                biased;
                over = poll_fn(|cx| self.poll(cx)) => if over { break },
                () = stop.cancelled(), if stops_at.is_none() => {
                    stops_at = Some(Instant::now() + config.shutdown_timeout);
                    continue;
                }
                () = tokio::time::sleep(CLOSED_CHECK_INTERVAL), if has_ticks => {}
            }
            let now = Instant::now();
            if self.must_look() && self.web_server.closed() == Closed::Everything {
                self.is_left = true;
            }
            if self.to_web_server.state == State::Ended {
                let until = *lingers_until.get_or_insert(now + LINGER_TIMEOUT);
                if now >= until && self.is_deaf {
                    break;
                }
            }
            let Some(until) = stops_at else { continue };
            match self.is_idle() {
                true => _ = idle_since.get_or_insert(now),
                false => idle_since = None,
            }
            // FastCGI has no way to say that the end is near: a request may just be on its way.
            let is_quiet = idle_since.is_some_and(|since| now - since >= config.shutdown_idle_timeout);
            if now >= until || is_quiet {
                break;
            }
        }
        for way in [&self.to_application, &self.to_web_server] {
            // What has ended was said to have.
            if way.state == State::Open {
                self.tape.ended(way.direction);
            }
        }
    }

    /// Whether the web server has to be asked: who has closed everything after closing one half, or while nothing is read from it, does not tell
    /// by itself.
    fn must_look(&self) -> bool {
        self.to_application.state != State::Open || self.to_application.is_full() || self.is_deaf
    }

    fn is_idle(&self) -> bool {
        self.tape.is_idle() && !self.to_application.is_full() && !self.to_web_server.is_full()
    }

    /// Moves what can be moved. Ready with true when all is over, with false when something has changed that must be looked at.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let before = self.condition();
        match BUFFER.with_borrow_mut(|buffer| self.poll_with(buffer, cx)) {
            Some(()) => Poll::Ready(true),
            None if before != self.condition() => Poll::Ready(false),
            None => Poll::Pending,
        }
    }

    /// What decides whether the connection has to be looked at from time to time.
    fn condition(&self) -> (State, bool, State, bool) {
        (self.to_application.state, self.to_application.is_full(), self.to_web_server.state, self.is_deaf)
    }

    /// Something when all is over.
    fn poll_with(&mut self, buffer: &mut [u8], cx: &mut Context<'_>) -> Option<()> {
        let Self { web_server, application, to_application, to_web_server, tape, .. } = self;
        let sent = match self.is_deaf {
            true => to_application.poll_discard(web_server, tape, buffer, cx),
            // A connection that has ended in the other direction as well is closed, which says it at once.
            false => {
                let is_last = to_web_server.state == State::Ended;
                to_application.poll(web_server, application, is_last, tape, buffer, cx)
            }
        };
        match sent {
            Poll::Ready(Err(Broken::Sender(error))) => {
                tape.broken(format!("the web server: {error}"));
                return Some(());
            }
            // It may have answered all the same.
            Poll::Ready(Err(Broken::Receiver(error))) => {
                tracing::debug!("the application takes no more: {error}");
                self.is_deaf = true;
                to_application.clear();
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        // Once it has been answered and told, it does not matter any more.
        let may_leave = to_application.state != State::Open && to_web_server.state != State::Ended;
        self.is_left = self.is_left || (may_leave && web_server.closed() == Closed::Everything);
        match to_web_server.poll(application, web_server, self.is_left, tape, buffer, cx) {
            // What came before goes to the web server, and then it sees the end.
            Poll::Ready(Err(Broken::Sender(error))) => {
                tracing::debug!("the application broke the connection: {error}");
                tape.broken(format!("the application: {error}"));
                to_web_server.state = State::Ending;
                self.is_deaf = true;
                to_application.clear();
                cx.waker().wake_by_ref();
            }
            Poll::Ready(Err(Broken::Receiver(_))) => return Some(()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let is_taken = to_application.state != State::Open && !to_application.is_full();
        let is_sent = to_application.state == State::Ended || (self.is_left && is_taken);
        let is_answered = to_web_server.state == State::Ended || self.is_left;
        (is_sent && is_answered).then_some(())
    }
}

impl Way {
    fn is_full(&self) -> bool {
        self.taken < self.waiting.len()
    }

    fn clear(&mut self) {
        // A connection at rest holds no memory for bytes.
        self.waiting = Vec::new();
        self.taken = 0;
    }

    /// Moves bytes until one end has to be waited for. Ready when there is nothing more to do. The receiver is told of the end, save where this is
    /// the last that passes on the connection.
    fn poll<S, R>(
        &mut self,
        sender: &mut S,
        receiver: &mut R,
        is_last: bool,
        tape: &mut Tape,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        S: AsyncRead + Unpin,
        R: AsyncWrite + Unpin,
    {
        loop {
            while self.is_full() {
                match ready!(Pin::new(&mut *receiver).poll_write(cx, &self.waiting[self.taken..])) {
                    Ok(0) => return Poll::Ready(Err(Broken::Receiver(io::ErrorKind::WriteZero.into()))),
                    Ok(len) => self.taken += len,
                    Err(error) => return Poll::Ready(Err(Broken::Receiver(error))),
                }
            }
            self.clear();
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    if !is_last {
                        // Who is gone already needs no telling.
                        let _ = ready!(Pin::new(&mut *receiver).poll_shutdown(cx));
                    }
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Open => {}
            }
            let bytes = match ready!(poll_read(sender, buffer, cx)) {
                Ok([]) => {
                    tape.ended(self.direction);
                    self.state = State::Ending;
                    continue;
                }
                Ok(bytes) => bytes,
                Err(error) => return Poll::Ready(Err(Broken::Sender(error))),
            };
            // First to whom they go; to remember them has time.
            let sent = Pin::new(&mut *receiver).poll_write(cx, bytes);
            tape.bytes(self.direction, bytes);
            match sent {
                Poll::Ready(Ok(len)) if len == bytes.len() => {}
                Poll::Ready(Ok(len)) => self.waiting.extend_from_slice(&bytes[len..]),
                Poll::Pending => self.waiting.extend_from_slice(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Receiver(error))),
            }
        }
    }

    /// As `poll`, where nobody takes the bytes.
    fn poll_discard<S: AsyncRead + Unpin>(
        &mut self,
        sender: &mut S,
        tape: &mut Tape,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if self.state != State::Open {
                self.state = State::Ended;
                return Poll::Ready(Ok(()));
            }
            match ready!(poll_read(sender, buffer, cx)) {
                Ok([]) => {
                    tape.ended(self.direction);
                    self.state = State::Ended;
                }
                Ok(bytes) => tape.bytes(self.direction, bytes),
                Err(error) => return Poll::Ready(Err(Broken::Sender(error))),
            }
        }
    }
}

/// What is there; nothing at the end.
fn poll_read<'a, S: AsyncRead + Unpin>(
    sender: &mut S,
    buffer: &'a mut [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<&'a [u8]>> {
    let mut into = ReadBuf::new(buffer);
    ready!(Pin::new(sender).poll_read(cx, &mut into))?;
    let len = into.filled().len();
    Poll::Ready(Ok(&buffer[..len]))
}
