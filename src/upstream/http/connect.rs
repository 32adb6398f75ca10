//! Connections to the server, however it is reached.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{Config, Failure, TargetError};
use crate::address::{Address, Endpoint};

/// How soon a Unix socket is tried again whose queue of connections is full: it can't be waited for.
const UNIX_RETRY: Duration = Duration::from_millis(10);

/// Whatever a connection is made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Makes the connections to one server.
pub(super) struct Connector {
    /// For messages.
    name: String,
    place: Place,
    timeout: Duration,
}

enum Place {
    Tcp {
        host: String,
        port: u16,
    },
    /// An abstract name begins with NUL.
    Unix(PathBuf),
    #[cfg(feature = "upstream-https")]
    Tls {
        host: String,
        port: u16,
        tls: super::tls::Tls,
    },
}

impl Connector {
    pub(super) fn new(address: &Address, endpoint: &Endpoint, config: &Config) -> Result<Self, TargetError> {
        let place = match (address, endpoint) {
            #[cfg(feature = "upstream-https")]
            (Address::Https(_), Endpoint::Tcp { host, port }) => {
                Place::Tls { host: host.clone(), port: *port, tls: super::tls::Tls::new(host, config)? }
            }
            (Address::Https(_), _) => return Err(TargetError::WithoutTls(address.to_string())),
            (_, Endpoint::Tcp { host, port }) => Place::Tcp { host: host.clone(), port: *port },
            (_, Endpoint::Unix(path)) => Place::Unix(path.clone()),
            (_, Endpoint::Abstract(name)) => Place::Unix(format!("\0{name}").into()),
            (_, Endpoint::Inherited) => return Err(TargetError::Inherited(address.to_string())),
        };
        Ok(Self { name: address.to_string(), place, timeout: config.connect_timeout })
    }

    /// The server's address, as it is written.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
        match tokio::time::timeout(self.timeout, self.stream()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(cause)) => Err(Failure::Connect { target: self.name.clone(), cause }),
            Err(_) => Err(Failure::ConnectTimeout { target: self.name.clone(), after: self.timeout }),
        }
    }

    async fn stream(&self) -> io::Result<Box<dyn Stream>> {
        match &self.place {
            Place::Tcp { host, port } => Ok(Box::new(tcp(host, *port).await?)),
            Place::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    Ok(stream) => return Ok(Box::new(stream)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(UNIX_RETRY).await,
                    Err(error) => return Err(error),
                }
            },
            #[cfg(feature = "upstream-https")]
            Place::Tls { host, port, tls } => Ok(Box::new(tls.connect(tcp(host, *port).await?).await?)),
        }
    }
}

/// Each address of the host is tried in turn.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.name).finish()
    }
}
