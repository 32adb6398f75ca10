//! HTTP servers as applications: a reverse proxy for HTTP/1.1 over TCP, TLS and Unix sockets, by hyper.
//!
//! Bodies stream both ways at once, and neither is held beyond a bounded window. Connections are kept and used again. What belongs to one
//! connection (RFC 9110 7.6.1) stays on it, and what the client says of proxies before it is believed only of [`Config::trusted`] peers.
//!
//! Before the head of an answer, what fails is 502, 503 or 504 with its cause in the request's log; after it, the answer is cut. See
//! [`Failure`]. An answer without any length ends where its connection does, so that nobody can see whether it was cut.
//!
//! A wish to switch to WebSocket is passed on where the gateway can hand its connection over ([`Upgrade`](crate::application::Upgrade): HTTP/1.1), and both sides
//! then have each other's bytes until one of them ends, or nothing has moved for [`Config::tunnel_timeout`]. Elsewhere such a request is answered with
//! 501. A wish to switch to anything else is left out, as RFC 9110 7.8 allows.
//!
//! Known limits: interim answers but 100 (Continue) are not passed on, nor are trailers of
//! requests. Names of header fields go out in lower case; those of requests are made of variables, so that `_` in them is `-`.

mod answer;
mod connect;
mod exchange;
mod failure;
mod forwarded;
mod pool;
mod request;
mod tunnel;
mod via;
#[cfg(feature = "upstream-https")]
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use failure::{Failure, TargetError};

use crate::address::{Address, Endpoint, Trusted};
use crate::application::for_ever::bound;
use crate::application::{Application, Body, Environ, Error, StartResponse};
use connect::Connector;
use pool::Pool;

/// Limits and manners of a [`Proxy`]. `Config { host: HostField::Target, ..Config::default() }` changes one.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which Host the server is told. Default: the client's.
    pub host: HostField,
    /// Which path the server is asked for. Default: the whole one.
    pub path: TargetPath,
    /// What the server is told of the client. Default: `X-Forwarded-*`.
    pub forwarded: ForwardedFields,
    /// The peers whose own such fields are passed on and added to. Those of others are replaced. Default: nobody.
    pub trusted: Trusted,
    /// How long a connection may take to be made, TLS included. Over it is 504. Default: 5 seconds.
    pub connect_timeout: Duration,
    /// How long the server may take for the head of its answer, counted from when it last took a part of the request; the client's own
    /// slowness does not count. Over it is 504. Default: 60 seconds.
    pub head_timeout: Duration,
    /// How long the server may send nothing of an answer's body that is waited for. Over it the answer is cut. Default: 60 seconds.
    pub read_timeout: Duration,
    /// How long the whole exchange may take. Over it is 504, or a cut answer. Default: no limit.
    pub timeout: Option<Duration>,
    /// How long nothing may pass either way on a connection on which WebSocket is spoken. Over it both connections are closed. [`Config::timeout`] and
    /// [`Config::read_timeout`] don't count there. Default: 5 minutes.
    pub tunnel_timeout: Duration,
    /// How long a body waits for the server's 100 (Continue) where the client asked for one (RFC 9110 10.1.1). Default: 1 second.
    pub expect_timeout: Duration,
    /// The longest head of an answer, in bytes. Over it is 502. Default: 64 KiB.
    pub max_head_len: usize,
    /// The most fields that an answer's head may have. Over it is 502. Default: 100.
    pub max_headers: usize,
    /// How much is held of each body on a connection, in bytes; at least 8 KiB. Default: 128 KiB.
    pub window: usize,
    /// How many requests may be under way at the same time, each on a connection of its own. Default: 1,024.
    pub connections: usize,
    /// How many more may wait for their turn. One more is 503. Default: 1,024.
    pub queue: usize,
    /// How long one may wait for its turn before it is 503, too. Default: 10 seconds.
    pub queue_wait: Duration,
    /// What Retry-After says in a 503: in how long to come again. Default: 5 seconds.
    pub retry_after: Duration,
    /// What this proxy calls itself in Via (RFC 9110 7.6.3), in requests and answers: one word, or a host and its port; `None` leaves Via as it is.
    /// Default: `gatespan`.
    pub via: Option<String>,
    /// How many connections are kept without a request; 0 closes each after its answer. Default: 64.
    pub idle: usize,
    /// How long a connection is kept without a request. Default: 60 seconds.
    pub idle_time: Duration,
    /// For `https:`: the certificates, in a file of PEM, that the server's must come from. Default: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// For `https:`: the name that the server's certificate must be for, and that it is told (SNI). Default: the address's host.
    pub server_name: Option<String>,
}

impl Config {
    /// Makes times such that can be added to any that it will be.
    fn bound_times(&mut self) {
        bound([
            &mut self.connect_timeout,
            &mut self.head_timeout,
            &mut self.read_timeout,
            &mut self.tunnel_timeout,
            &mut self.expect_timeout,
            &mut self.queue_wait,
            &mut self.idle_time,
        ]);
        bound(&mut self.timeout);
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: HostField::default(),
            path: TargetPath::default(),
            forwarded: ForwardedFields::default(),
            trusted: Trusted::default(),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            timeout: None,
            tunnel_timeout: Duration::from_secs(5 * 60),
            expect_timeout: Duration::from_secs(1),
            max_head_len: 64 << 10,
            max_headers: 100,
            window: 128 << 10,
            connections: 1024,
            queue: 1024,
            queue_wait: Duration::from_secs(10),
            retry_after: Duration::from_secs(5),
            via: Some("gatespan".into()),
            idle: 64,
            idle_time: Duration::from_secs(60),
            ca_file: None,
            server_name: None,
        }
    }
}

/// The Host of the requests that go to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostField {
    /// As the client wrote it, or SERVER_NAME and SERVER_PORT where it wrote none.
    #[default]
    Client,
    /// The server's own address; `localhost` for a Unix socket.
    Target,
    /// This one.
    Named(String),
}

/// The path of the requests that go to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TargetPath {
    /// SCRIPT_NAME and PATH_INFO: what the client asked for, so that the links in the answers fit.
    #[default]
    Whole,
    /// PATH_INFO alone, for a server that does not know where it is mounted. SCRIPT_NAME is then told as X-Forwarded-Prefix.
    PathInfo,
}

/// The fields that tell a server of the client that its proxy has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForwardedFields {
    /// None is added. What clients send of the kind is passed on as it is, and is nothing to rely on.
    Off,
    /// X-Forwarded-For, -Proto, -Host, -Port and, where it applies, -Prefix.
    #[default]
    XForwarded,
    /// Forwarded (RFC 7239) with `for`, `proto` and `host`.
    Forwarded,
}

/// An HTTP server as an application. Cheap to clone; clones share their connections.
///
/// ```no_run
/// use gatespan::upstream::http::{Config, Proxy};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shop = Proxy::new(&"http://127.0.0.1:3000".parse()?, Config::default())?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    pool: Arc<Pool>,
    /// The server's own name as a Host.
    authority: String,
}

impl Proxy {
    /// A proxy for the server at that address. Nothing is connected before there is a request.
    ///
    /// # Errors
    ///
    /// For a name in Via that is none, an address that is neither `http:` nor `https:`, or one of a socket that was handed over; and where the certificates that TLS
    /// needs can't be read.
    pub fn new(target: &Address, mut config: Config) -> Result<Self, TargetError> {
        config.bound_times();
        let (endpoint, usual_port) = match target {
            Address::Http(endpoint) => (endpoint, 80),
            Address::Https(endpoint) => (endpoint, 443),
            other => return Err(TargetError::Scheme(other.to_string())),
        };
        let authority = match endpoint {
            Endpoint::Tcp { host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                if *port == usual_port { host } else { format!("{host}:{port}") }
            }
            _ => "localhost".to_owned(),
        };
        if let Some(name) = config.via.as_ref().filter(|name| !via::is_name(name)) {
            return Err(TargetError::Via(name.clone()));
        }
        let connector = Connector::new(target, endpoint, &config)?;
        let pool = Arc::new(Pool::new(connector, &config));
        Ok(Self { shared: Arc::new(Shared { config, pool, authority }) })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }
}

impl Application for Proxy {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let Shared { config, pool, authority } = &*self.shared;
        exchange::forward(environ, start_response, config, pool, authority).await
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("target", &self.shared.pool.target()).finish_non_exhaustive()
    }
}
