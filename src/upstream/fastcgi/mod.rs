//! FastCGI servers as applications: this process is the web server in front of them.
//!
//! A [`Forwarder`] is an [`Application`] that passes each request on to one of its servers and the answer back, both at the same time and piece by
//! piece. What the server is told is what the environ says: whoever wants other params (a script's path for PHP, say) wraps the forwarder
//! into a middleware that sets them.
//!
//! [`Programs`] starts the servers as well, and [`Multiplexed`] shares one connection between several requests.
//!
//! # What a forwarded request costs
//!
//! No task and no channel: the body of the answer, when it is pulled, also sends what is left of the request. Both directions have a window of some
//! 64 KiB; nothing more is read while it is full. What is longer than half a KiB is not copied on its way.
//!
//! # When a request is sent again
//!
//! To another server, as long as there is one that was not asked and no byte of an answer has come, when
//!
//! - no connection could be made, or the server refused the request (OVERLOADED, CANT_MPX_CONN): whatever the method is;
//! - the connection was closed: if the method is idempotent (RFC 9110 9.2.2), or nothing of the request had been sent.
//!
//! To the same server on a new connection, when the one that was kept from the request before is found closed. Here a short request is sent again
//! whatever its method is if the system says that the server has not read it: the close was a reset. Not all closes are, so a request
//! that can't be sent again gets no connection on which an answer ended within the last 10 ms: a server that closes after an answer has done so by
//! then.
//!
//! In any case all of its body that was sent must still be here: see [`Config::replay_limit`].

mod config;
mod failure;
mod connect;
mod forward;
mod exchange;
mod upload;
mod answer;
mod stderr;
mod connection;
mod multiplex;
mod pool;
mod programs;

use std::fmt;
use std::sync::Arc;

pub use self::config::{Config, ConfigError, RequestBody};
pub use self::connect::{Connect, Socket};
pub use self::failure::{Cause, Failure};
pub use self::multiplex::{Line, Multiplexed};
use self::pool::Pool;
pub use self::programs::{ProgramConfig, ProgramError, Programs};
use crate::address::Endpoint;
use crate::application::{Application, Body, Environ, Error, StartResponse};
pub use crate::local_socket::LocalStream;

/// Forwards requests to FastCGI servers.
///
/// ```no_run
/// use gatespan::address::Endpoint;
/// use gatespan::upstream::fastcgi::{Config, Forwarder};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Endpoint::Unix("/run/app.sock".into());
/// let forwarder = Forwarder::new([server], Config { keep_alive: true, ..Config::default() })?;
/// # let _ = forwarder;
/// # Ok(())
/// # }
/// ```
///
/// Cheap to clone; clones share their connections.
pub struct Forwarder<C: Connect = Endpoint> {
    pool: Arc<Pool<C>>,
    config: Arc<Config>,
}

impl Forwarder<Endpoint> {
    /// A forwarder to the servers at these addresses. No connection is made before there is a request.
    ///
    /// # Errors
    ///
    /// When there is no address, or one that nothing can be sent to.
    pub fn new(servers: impl IntoIterator<Item = Endpoint>, config: Config) -> Result<Self, ConfigError> {
        let servers: Vec<_> = servers.into_iter().map(|server| (server.to_string(), server)).collect();
        if servers.iter().any(|(_, server)| *server == Endpoint::Inherited) {
            return Err(ConfigError::Inherited);
        }
        Self::with_connectors(servers, config)
    }
}

impl<C: Connect> Forwarder<C> {
    /// A forwarder to servers that are reached in some other way. The names are for the log.
    ///
    /// # Errors
    ///
    /// When there is no server.
    pub fn with_connectors(
        servers: impl IntoIterator<Item = (impl Into<Arc<str>>, C)>,
        config: Config,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let config = Arc::new(config);
        let servers: Vec<_> = servers.into_iter().map(|(name, connector)| (connector, name.into())).collect();
        if servers.is_empty() {
            return Err(ConfigError::NoServer);
        }
        Ok(Self { pool: Pool::new(servers, config.clone()), config })
    }
}

impl<C: Connect> Application for Forwarder<C> {
    fn call(
        &self,
        environ: Environ,
        start_response: StartResponse,
    ) -> impl Future<Output = Result<Body, Error>> + Send {
        forward::forward(&self.pool, &self.config, environ, start_response)
    }
}

impl<C: Connect> Clone for Forwarder<C> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), config: self.config.clone() }
    }
}

impl<C: Connect> fmt::Debug for Forwarder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.pool.servers.iter().map(|server| &*server.name);
        f.debug_struct("Forwarder").field("servers", &servers.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}
