//! How an application takes over the client's connection, where both sides want to speak another protocol on it (RFC 9110 7.8): WebSocket.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use super::input::{Input, InputError, Source};

/// In the extensions of an environ whose client asks for another protocol (HTTP_UPGRADE says which) and whose gateway can carry it. The HTTP
/// gateway puts it there for HTTP/1.1; no other can.
///
/// An application that agrees calls [`Upgrade::accept`] and answers with 101, without Connection and Upgrade, which are the gateway's. From then on
/// what the client sends is the [`Input`] that it got, and the body that it returns is what the client gets, as it is; the end of either is a half
/// of the connection closed. Both are polled independently of each other, so the input is best read by a task of its own.
///
/// ```
/// use gatespan::application::{Body, Environ, Error, StartResponse, Upgrade};
///
/// async fn echo(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
///     let upgrade = environ.extensions().get::<Upgrade>();
///     let Some(input) = upgrade.and_then(|upgrade| upgrade.accept("echo")) else {
///         start_response.start("426 Upgrade Required", [("Upgrade", "echo")])?;
///         return Ok(Body::empty());
///     };
///     start_response.start("101 Switching Protocols", ())?;
///     Ok(Body::stream(input))
/// }
/// ```
#[derive(Clone, Default)]
pub struct Upgrade {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
enum State {
    #[default]
    Offered,
    Accepted {
        protocol: Bytes,
        reader: oneshot::Sender<Reader>,
    },
    HandedOver,
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;

impl Upgrade {
    /// An offer that nobody has accepted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the application: it will speak that protocol, which the gateway names in Upgrade. What the client sends behind its request; `None` where
    /// the offer was accepted before.
    pub fn accept(&self, protocol: impl Into<Bytes>) -> Option<Input> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Offered) {
            return None;
        }
        let (reader, connection) = oneshot::channel();
        *state = State::Accepted { protocol: protocol.into(), reader };
        Some(Input::from_source(Connection::Awaited(connection), None))
    }

    /// For the gateway: the protocol that the application has agreed to.
    pub fn accepted(&self) -> Option<Bytes> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Accepted { protocol, .. } => Some(protocol.clone()),
            State::Offered | State::HandedOver => None,
        }
    }

    /// For the gateway: 101 is sent, and this is what the client sends from here on. The reader is dropped when it has ended, or nobody wants more
    /// of it.
    pub fn hand_over(&self, reader: impl AsyncRead + Send + Unpin + 'static) {
        let state =
            std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), State::HandedOver);
        if let State::Accepted { reader: waiting, .. } = state {
            // Where nobody waits, the reader is dropped at once.
            drop(waiting.send(Box::new(reader)));
        }
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").field("accepted", &self.accepted()).finish_non_exhaustive()
    }
}

/// What the client sends.
enum Connection {
    /// The 101 has not gone out.
    Awaited(oneshot::Receiver<Reader>),
    Open(Reader, BytesMut),
    Over,
}

/// How much is read at once, in bytes.
const BLOCK: usize = 16 << 10;

impl Source for Connection {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        if let Self::Awaited(waiting) = self {
            match ready!(Pin::new(waiting).poll(cx)) {
                Ok(reader) => *self = Self::Open(reader, BytesMut::new()),
                Err(_) => {
                    *self = Self::Over;
                    return Poll::Ready(Some(Err(InputError::Aborted)));
                }
            }
        }
        let Self::Open(reader, buffer) = self else { return Poll::Ready(None) };
        // Room is there only while something is read, so that a silent connection holds none.
        buffer.resize(BLOCK, 0);
        let mut room = ReadBuf::new(buffer);
        let polled = Pin::new(reader).poll_read(cx, &mut room);
        let len = room.filled().len();
        let chunk = match polled {
            Poll::Pending => {
                *buffer = BytesMut::new();
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) if len > 0 => {
                buffer.truncate(len);
                return Poll::Ready(Some(Ok(std::mem::take(buffer).freeze())));
            }
            Poll::Ready(Ok(())) => None,
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Some(Err(InputError::Aborted)),
            Poll::Ready(Err(error)) => Some(Err(error.into())),
        };
        *self = Self::Over;
        Poll::Ready(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_client_sends_is_there_once_the_connection_is() {
        let upgrade = Upgrade::new();
        assert_eq!(upgrade.accepted(), None);
        let mut input = upgrade.accept("echo").unwrap();
        assert_eq!(upgrade.accepted().unwrap(), "echo");
        assert!(upgrade.clone().accept("echo").is_none(), "it was accepted before");
        assert!(futures_util::poll!(std::pin::pin!(input.chunk())).is_pending());
        upgrade.hand_over(&b"hello"[..]);
        assert_eq!(input.chunk().await.unwrap().unwrap(), "hello");
        assert_eq!(input.chunk().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_connection_that_never_comes_is_a_client_that_left() {
        let upgrade = Upgrade::new();
        let mut input = upgrade.accept("echo").unwrap();
        drop(upgrade);
        assert!(matches!(input.chunk().await, Err(InputError::Aborted)));
    }

    #[tokio::test]
    async fn the_reader_goes_when_nobody_wants_more() {
        let (reader, other) = tokio::io::duplex(8);
        let upgrade = Upgrade::new();
        let input = upgrade.accept("echo").unwrap();
        drop(input);
        upgrade.hand_over(reader);
        let mut all = Vec::new();
        let (mut read, _write) = tokio::io::split(other);
        tokio::io::AsyncReadExt::read_to_end(&mut read, &mut all).await.unwrap();
        assert!(all.is_empty());
    }
}
