//! How connections to a server are made, from the forwarder's side.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, SockAddr, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::address::Endpoint;
use crate::local_socket::LocalStream;

/// A server that connections can be made to.
///
/// An [`Endpoint`] is one. Anything else that brings streams can be as well: a tunnel, or a test without sockets.
pub trait Connect: Send + Sync + 'static {
    /// What a connection is.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Makes a connection. Dropped when that takes longer than [`Config::connect_timeout`](super::Config::connect_timeout).
    fn connect(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Connect for Endpoint {
    type Stream = Socket;

    async fn connect(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp { host, port } => {
                // A server's own addresses need no name service, which would be asked on another thread.
                let stream = match host.parse() {
                    Ok(address) => TcpStream::connect(SocketAddr::new(address, *port)).await?,
                    Err(_) if host == "localhost" => match TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await {
                        Ok(stream) => stream,
                        Err(_) => TcpStream::connect((host.as_str(), *port)).await?,
                    },
                    Err(_) => TcpStream::connect((host.as_str(), *port)).await?,
                };
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(path) => connect_unix(&SockAddr::unix(path)?).await,
            Self::Abstract(name) => connect_unix(&SockAddr::unix(format!("\0{name}"))?).await,
            Self::Inherited => {
                let message = "expected a server's address, got \"fd\": a socket that was handed over listens";
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
        }
    }
}

/// Connecting to a Unix socket never waits: it succeeds, fails, or says that the server's queue is full, for which there is no event.
async fn connect_unix(address: &SockAddr) -> io::Result<Socket> {
    let mut pause = SHORTEST_PAUSE;
    loop {
        // Both flags go with the call that makes it.
        let socket = socket2::Socket::new_raw(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        match socket.connect(address) {
            Ok(()) => return Ok(Socket::Unix(LocalStream::new(socket.into())?)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                drop(socket);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// How long to wait until a Unix socket whose queue is full is tried again: at first, and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A connection to an [`Endpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket, with a path or abstract.
    Unix(LocalStream),
}

macro_rules! delegate {
    ($self:ident, $stream:ident => $call:expr) => {
        match Pin::into_inner($self) {
            Socket::Tcp(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Socket::Unix(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(cx))
    }
}
