//! The sockets on which requests arrive: made, taken over from whoever started this process, and cleaned up.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::address::Endpoint;
use crate::application::Peer;
use crate::local_socket::LocalListener;
pub use crate::local_socket::{LocalStream, PeerCredentials};

/// A listening socket: TCP, a Unix socket with a path, or an abstract one.
///
/// Dropping it closes it, and removes the path of a Unix socket that it made and that is still its own.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    #[expect(dead_code, reason = "held for its drop, which removes the path")]
    file: Option<SocketFile>,
    abstract_name: bool,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Unix(LocalListener),
}

/// How sockets are made.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// The mode of a Unix socket's path. Default: 0660, since whoever may connect may run requests.
    pub socket_mode: u32,
    /// The owner and group of a Unix socket's path, by number; `None` for those of this process. Only root may give a file away. Default: none.
    pub socket_owner: (Option<u32>, Option<u32>),
    /// How many connections wait to be accepted; the system's own limit (`net.core.somaxconn`) holds too. Default: 4,096.
    pub backlog: i32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { socket_mode: 0o660, socket_owner: (None, None), backlog: 4096 }
    }
}

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The host has no address.
    #[error("{}: the host could not be resolved", place(endpoint))]
    Resolve {
        /// What was asked for.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The system refused.
    #[error("{}: could not listen there", place(endpoint))]
    Bind {
        /// What was asked for.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// Another process answers there.
    #[error("{}: another server answers on this socket; stop it first, or choose another path", place(.0))]
    Live(Endpoint),
    /// Something that is no socket is at the path.
    #[error("{}: there is a file of that name that is no socket; it was left alone", place(.0))]
    NoSocket(Endpoint),
    /// A descriptor that was handed over is no listening stream socket.
    #[error("descriptor {descriptor} was expected to be a listening stream socket (TCP or Unix)")]
    Inherited {
        /// Its number in this process.
        descriptor: i32,
        /// Why.
        source: io::Error,
    },
}

/// An endpoint as people write it, without what separates it from a scheme.
fn place(endpoint: &Endpoint) -> String {
    endpoint.to_string().trim_start_matches("//").into()
}

impl Listener {
    /// Listens at an endpoint. Must be called within a tokio runtime.
    ///
    /// A Unix socket never has more rights than [`ListenOptions::socket_mode`], not even for a moment. A socket that a dead server
    /// left is replaced, one that a live server answers on is not.
    ///
    /// # Errors
    ///
    /// When the host is unknown, the system refuses, or the path is taken.
    pub async fn bind(endpoint: &Endpoint, options: &ListenOptions) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind { endpoint: endpoint.clone(), source };
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let resolved = tokio::net::lookup_host((host.as_str(), *port)).await;
                let addresses =
                    resolved.map_err(|source| ListenError::Resolve { endpoint: endpoint.clone(), source })?;
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in addresses {
                    match bind_tcp(address, options) {
                        Ok(socket) => return Ok(Self { socket, file: None, abstract_name: false }),
                        Err(error) => last = error,
                    }
                }
                Err(failed(last))
            }
            Endpoint::Unix(path) => {
                remove_stale(path, endpoint)?;
                let (socket, file) = bind_unix(path, options).map_err(failed)?;
                Ok(Self { socket, file: Some(file), abstract_name: false })
            }
            Endpoint::Abstract(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name).map_err(failed)?;
                let listener = std::os::unix::net::UnixListener::bind_addr(&address).map_err(failed)?;
                Self::from_unix(listener).map_err(failed)
            }
            Endpoint::Inherited => {
                let descriptor = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
                Self::from_descriptor(descriptor, 0)
            }
        }
    }

    /// Takes over a listening socket that this process was started with. `number` is for messages.
    ///
    /// # Errors
    ///
    /// When it is no listening stream socket.
    pub fn from_descriptor(descriptor: OwnedFd, number: i32) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Inherited { descriptor: number, source };
        if !is_listening(descriptor.as_fd()) {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let socket = Socket::from(descriptor);
        let listener = match socket.domain().map_err(failed)? {
            Domain::UNIX => Self::from_unix(OwnedFd::from(socket).into()).map_err(failed)?,
            _ => {
                socket.set_nonblocking(true).map_err(failed)?;
                let listener = TcpListener::from_std(OwnedFd::from(socket).into()).map_err(failed)?;
                Self { socket: ListeningSocket::Tcp(listener), file: None, abstract_name: false }
            }
        };
        Ok(listener)
    }

    fn from_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        let abstract_name = listener.local_addr()?.as_abstract_name().is_some();
        Ok(Self { socket: ListeningSocket::Unix(LocalListener::new(listener)?), file: None, abstract_name })
    }

    /// The next connection. Waits and tries again where the process or the system has run out of descriptors or memory, so that
    /// connections that are there can end and make room. Cancel-safe.
    pub async fn accept(&self) -> (Stream, Peer) {
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                Err(error) if is_one_connections_fault(&error) => {
                    tracing::debug!(%error, "a connection ended before it was served");
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted; trying again in {pause:?}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<(Stream, Peer)> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole: waiting for more would only delay them.
                stream.set_nodelay(true).map_err(one_connections_fault)?;
                Ok((Stream::Tcp(stream), Peer::Ip(address)))
            }
            ListeningSocket::Unix(listener) => {
                let stream = listener.accept().await?;
                // Asked for only where it decides something: it is a system call for each connection.
                let credentials = self.abstract_name.then(|| stream.peer_credentials()).transpose();
                let credentials = credentials.map_err(one_connections_fault)?;
                let (uid, pid) = (credentials.map(|peer| peer.uid), credentials.and_then(|peer| peer.pid));
                Ok((Stream::Unix(stream), Peer::Unix { uid, pid }))
            }
        }
    }

    /// The TCP address it listens on; `None` for Unix sockets.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener.local_addr().ok(),
            ListeningSocket::Unix(_) => None,
        }
    }

    /// Whether it is a Unix socket without a path, which any local user can connect to.
    pub fn is_abstract(&self) -> bool {
        self.abstract_name
    }

    /// Where it listens, as [`Address`](crate::address::Address) writes it after the scheme.
    pub fn endpoint(&self) -> Endpoint {
        match &self.socket {
            ListeningSocket::Tcp(listener) => match listener.local_addr() {
                Ok(address) => Endpoint::Tcp { host: address.ip().to_string(), port: address.port() },
                Err(_) => Endpoint::Inherited,
            },
            ListeningSocket::Unix(listener) => match listener.local_addr() {
                Ok(address) => match (address.as_pathname(), address.as_abstract_name()) {
                    (Some(path), _) => Endpoint::Unix(path.into()),
                    (None, Some(name)) => Endpoint::Abstract(String::from_utf8_lossy(name).into_owned()),
                    (None, None) => Endpoint::Inherited,
                },
                Err(_) => Endpoint::Inherited,
            },
        }
    }
}

/// How long `accept` pauses when the system has no descriptor left: at first, and at most.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Whether a descriptor is a listening stream socket.
pub(crate) fn is_listening(descriptor: BorrowedFd<'_>) -> bool {
    use rustix::net::SocketType;
    rustix::net::sockopt::socket_acceptconn(descriptor).unwrap_or(false)
        && rustix::net::sockopt::socket_type(descriptor).is_ok_and(|kind| kind == SocketType::STREAM)
}

fn bind_tcp(address: SocketAddr, options: &ListenOptions) -> io::Result<ListeningSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec().nonblocking(), None)?;
    // A server that is started again must not wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(ListeningSocket::Tcp(TcpListener::from_std(OwnedFd::from(socket).into())?))
}

fn bind_unix(path: &Path, options: &ListenOptions) -> io::Result<(ListeningSocket, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    // Linux makes the path with the mode of the socket less the umask: never more than was asked for. `chmod` then gives what the umask
    // took; nobody can connect before `listen`.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(options.socket_mode))?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::at(path)?;
    let (user, group) = options.socket_owner;
    if user.is_some() || group.is_some() {
        // Before the mode, which the system takes back in part when the owner changes. The path was made here, so that no link is followed.
        std::os::unix::fs::lchown(path, user, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(options.socket_mode))?;
    socket.listen(options.backlog)?;
    Ok((ListeningSocket::Unix(LocalListener::new(OwnedFd::from(socket).into())?), file))
}

fn remove_stale(path: &Path, endpoint: &Endpoint) -> Result<(), ListenError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ListenError::Bind { endpoint: endpoint.clone(), source }),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NoSocket(endpoint.clone()));
    }
    // Without blocking: a live server whose queue is full would be waited for.
    let failed = |source| ListenError::Bind { endpoint: endpoint.clone(), source };
    let probe = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    match probe.connect(&SockAddr::unix(path).map_err(failed)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ListenError::Bind { endpoint: endpoint.clone(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whatever else it says, somebody holds it.
        Ok(_) | Err(_) => Err(ListenError::Live(endpoint.clone())),
    }
}

/// The path of a Unix socket that this process made, removed in the end if it is still the same.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: std::path::absolute(path)?, device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Ok(metadata) = fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == (self.device, self.inode)
        {
            // Nothing is lost where it can't be removed: the next server finds it stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What went wrong after a connection was accepted says nothing about the next one.
fn one_connections_fault(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

/// Whether an error of `accept` is about the connection that was to be accepted, and not about this process.
fn is_one_connections_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::InvalidInput
    )
}

/// A connection as gateways need it: bytes both ways, and whether the peer has closed it.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    /// What the peer has closed, found out without reading, as far as it can be told.
    fn closed(&self) -> Closed {
        Closed::Unknown
    }
}

/// What the peer of a connection has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Nothing.
    Nothing,
    /// Its sending half at least. On TCP a peer that closed everything looks the same until something is written to it.
    Sending {
        /// Whether a peer that closed everything would look different, so that this one is known to wait for an answer.
        for_certain: bool,
    },
    /// Everything.
    Everything,
    /// This kind of connection can't tell: the end of its input means everything.
    Unknown,
}

/// An accepted connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(LocalStream),
}

impl Transport for Stream {
    fn closed(&self) -> Closed {
        match self {
            Self::Tcp(stream) => stream.closed(),
            Self::Unix(stream) => stream.closed(),
        }
    }
}

impl Transport for TcpStream {
    fn closed(&self) -> Closed {
        poll_closed(self.as_fd(), false)
    }
}

impl Transport for LocalStream {
    fn closed(&self) -> Closed {
        poll_closed(self.as_fd(), true)
    }
}

impl Transport for UnixStream {
    fn closed(&self) -> Closed {
        poll_closed(self.as_fd(), true)
    }
}

/// For tests without a socket: the end of the input means everything.
impl Transport for tokio::io::DuplexStream {}

fn poll_closed(descriptor: BorrowedFd<'_>, for_certain: bool) -> Closed {
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut descriptors, Some(&at_once)).is_err() {
        return Closed::Unknown;
    }
    let events = descriptors[0].revents();
    match () {
        () if events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) => Closed::Everything,
        () if events.contains(PollFlags::RDHUP) => Closed::Sending { for_certain },
        () => Closed::Nothing,
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::into_inner(self) {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::into_inner(self) {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::into_inner(self) {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::into_inner(self) {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> Endpoint {
        Endpoint::Unix(path.into())
    }

    #[tokio::test]
    async fn cve_2014_0185_a_unix_socket_is_0660_whatever_the_umask_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = Listener::bind(&unix(&path), &ListenOptions::default()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&unix(&path), &ListenOptions::default()).await.unwrap();
        let second = Listener::bind(&unix(&path), &ListenOptions::default()).await;
        assert!(matches!(second, Err(ListenError::Live(_))));
        drop(listener);
        fs::write(&path, "precious").unwrap();
        let third = Listener::bind(&unix(&path), &ListenOptions::default()).await;
        assert!(matches!(third, Err(ListenError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn only_ones_own_socket_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = Listener::bind(&unix(&path), &ListenOptions::default()).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_half_close_is_told_apart_from_a_close_on_unix_sockets() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(ours.closed(), Closed::Nothing);
        let theirs = theirs.into_std().unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(ours.closed(), Closed::Sending { for_certain: true });
        drop(theirs);
        assert_eq!(ours.closed(), Closed::Everything);
    }

    #[tokio::test]
    async fn an_inherited_descriptor_must_be_a_listening_socket() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(Listener::from_descriptor(one.into(), 3), Err(ListenError::Inherited { descriptor: 3, .. })));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        assert_eq!(Listener::from_descriptor(tcp.into(), 3).unwrap().tcp_address(), Some(address));
    }
}
