//! The FastCGI gateway: this process stands behind a web server's `fastcgi_pass` and calls an application.
//!
//! [`serve`] accepts connections, [`serve_connection`] is one of them; both take the application and a [`Config`] that names
//! every limit.

mod connection;
mod exchange;
mod spare;
mod stop;
mod unread;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
pub use self::connection::ConnectionError;
use super::listener::{Listener, Transport};
use crate::application::for_ever::bound;
use crate::application::{Application, Peer};
use crate::protocol::fastcgi::application_end::{Roles, Settings};
use crate::protocol::fastcgi::{ApplicationEnd, Role, WEB_SERVER_ADDRS};

/// What the gateway accepts, and for how long it waits.
#[derive(Debug, Clone)]
pub struct Config {
    /// The roles that the application has; a request for another is answered with UNKNOWN_ROLE. Default: Responder alone, since a Responder that is
    /// asked to authorize would let everybody in.
    pub roles: Roles,
    /// The addresses from which TCP connections are accepted; from any when empty, which only a listener on a loopback address may
    /// have. Default: what the environment variable FCGI_WEB_SERVER_ADDRS says, else empty.
    pub allow: Vec<IpAddr>,
    /// The users that may connect to an abstract socket besides root and the one that this process runs as. Default: none.
    pub allow_uids: Vec<u32>,
    /// Where the application is mounted: SCRIPT_NAME becomes this, and PATH_INFO the rest of what the web server sent as SCRIPT_NAME and PATH_INFO
    /// together. For web servers whose stock params leave PATH_INFO out. Default: both as they are sent.
    pub script_name: Option<Vec<u8>>,
    /// Whether GET_VALUES is told that requests may be multiplexed (FCGI_MPXS_CONNS). They are accepted either way. Default: no, because
    /// FastCGI has no flow control for each request: one upload that the application does not read holds up the others on its connection.
    pub announce_multiplexing: bool,
    /// Whether other processes serve the same application: `wsgi.multiprocess`. Default: no.
    pub multiprocess: bool,
    /// The most connections at once; further ones wait to be accepted. Default: 4,096.
    pub max_connections: usize,
    /// The most requests at once on all connections; further ones are answered with 503 and OVERLOADED. Default: 1,024.
    pub max_requests: usize,
    /// The most requests at once on one connection, answered likewise. Default: 64.
    pub max_requests_per_connection: usize,
    /// The most bytes of params that a request may have; more are answered with 431. Default: 256 KiB.
    pub max_params_len: usize,
    /// The most params that a request may have; more are answered with 431. Default: 4,096.
    pub max_params_count: usize,
    /// How many bytes of a request's body are kept for an application that does not read them; reading from the connection stops there. Default: 64 KiB.
    pub input_window: usize,
    /// How many bytes of answers may wait for the web server before the applications on the connection are held up. Default: 64 KiB.
    pub output_window: usize,
    /// How long a new connection may be silent. Default: 30 s.
    pub first_byte_timeout: Duration,
    /// How long a request may take from its first byte to its last param. Default: 30 s.
    pub params_timeout: Duration,
    /// How long a kept connection may have no request. Should be longer than the web server's own limit, which is 60 s in nginx. Default: 180 s.
    pub idle_timeout: Duration,
    /// How long the web server may take none of an answer that waits for it. Default: 60 s.
    pub write_timeout: Duration,
    /// How many bytes of a request's body are read and discarded after its answer. Default: 16 MiB.
    pub linger_len: u64,
    /// How long that may take. Default: 5 s.
    pub linger_timeout: Duration,
    /// Whether a TCP client that closes its sending half after a whole request still gets its answer. On TCP that looks the same as a client that left,
    /// so by default it cancels the request. On Unix sockets the two can be told apart, and this is not asked. Default: no.
    pub finish_half_closed: bool,
    /// How long the close of a response body may take after the client left. Default: 5 s.
    pub close_timeout: Duration,
    /// How long running requests, and new ones on kept connections, are still served after the shutdown began. Default: 30 s.
    pub shutdown_timeout: Duration,
    /// How long a kept connection must be without a request to be closed during that time: FastCGI has no way to tell the web server
    /// that the end is near, so one may just be on its way. Default: 1 s.
    pub shutdown_idle_timeout: Duration,
}

impl Config {
    /// The same, with times that can be added to any that it will be.
    fn with_times_that_end(mut self) -> Self {
        bound([
            &mut self.first_byte_timeout,
            &mut self.params_timeout,
            &mut self.idle_timeout,
            &mut self.write_timeout,
            &mut self.linger_timeout,
            &mut self.close_timeout,
            &mut self.shutdown_timeout,
            &mut self.shutdown_idle_timeout,
        ]);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: Roles::NONE.with(Role::Responder),
            allow: addresses_from_environment(),
            allow_uids: Vec::new(),
            script_name: None,
            announce_multiplexing: false,
            multiprocess: false,
            max_connections: 4096,
            max_requests: 1024,
            max_requests_per_connection: 64,
            max_params_len: 256 * 1024,
            max_params_count: 4096,
            input_window: 64 * 1024,
            output_window: 64 * 1024,
            first_byte_timeout: Duration::from_secs(30),
            params_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(180),
            write_timeout: Duration::from_secs(60),
            linger_len: 16 * 1024 * 1024,
            linger_timeout: Duration::from_secs(5),
            finish_half_closed: false,
            close_timeout: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(30),
            shutdown_idle_timeout: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// Whether a listener may be served under these settings.
    ///
    /// # Errors
    ///
    /// [`ServeError::AllowListRequired`].
    pub fn check(&self, listener: &Listener) -> Result<(), ServeError> {
        match listener.tcp_address() {
            Some(address) if !address.ip().to_canonical().is_loopback() && self.allow.is_empty() => {
                Err(ServeError::AllowListRequired(address))
            }
            _ => Ok(()),
        }
    }

    /// Whether a peer may connect under these settings.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub fn admit(&self, peer: &Peer) -> Result<(), &'static str> {
        match peer {
            Peer::Ip(address) => {
                let allow = &self.allow;
                let ip = address.ip().to_canonical();
                if allow.is_empty() || allow.iter().any(|allowed| allowed.to_canonical() == ip) {
                    return Ok(());
                }
                Err("its address is not on the allow-list")
            }
            // Asked for only on abstract sockets; elsewhere the path's mode decides.
            Peer::Unix { uid: Some(uid), .. } => {
                let own = rustix::process::geteuid().as_raw();
                if *uid == 0 || *uid == own || self.allow_uids.contains(uid) {
                    return Ok(());
                }
                Err("its user is neither root nor this process's nor on the allow-list")
            }
            Peer::Unix { uid: None, .. } | Peer::Unknown => Ok(()),
        }
    }

    fn end(&self) -> ApplicationEnd {
        let announced = |number: usize| Some(u32::try_from(number).unwrap_or(u32::MAX));
        ApplicationEnd::new(Settings {
            roles: self.roles,
            announced_connections: announced(self.max_connections),
            // By FastCGI 4.1 it is the number for the application. The one common client that asks, HAProxy, takes it for the number
            // on this connection, over its own setting.
            announced_requests: announced(self.max_requests.min(self.max_requests_per_connection)),
            announces_multiplexing: self.announce_multiplexing,
            max_params_len: self.max_params_len,
            max_params_count: self.max_params_count,
            max_requests: self.max_requests_per_connection,
            ..Settings::default()
        })
    }
}

/// FastCGI 3.2: a list of addresses with commas between them.
fn addresses_from_environment() -> Vec<IpAddr> {
    let Ok(list) = std::env::var(WEB_SERVER_ADDRS) else { return Vec::new() };
    parse_addresses(&list)
}

fn parse_addresses(list: &str) -> Vec<IpAddr> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut addresses: Vec<IpAddr> = names
        .filter_map(|name| match name.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                tracing::warn!("{WEB_SERVER_ADDRS}: expected IP addresses with commas between them, got \"{name}\"");
                None
            }
        })
        .collect();
    if addresses.is_empty() {
        // A list of nothing but mistakes must not let everybody in.
        addresses.push(IpAddr::from([127, 0, 0, 1]));
    }
    addresses
}

/// Why a listener can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Raw FastCGI on a TCP address that others can reach.
    #[error(
        "fastcgi://{0} can be reached from other machines, and whoever reaches a FastCGI server chooses all that it is told: expected the web servers' addresses \
         in {WEB_SERVER_ADDRS} or the allow-list, or a listener on a loopback address or a Unix socket"
    )]
    AllowListRequired(SocketAddr),
}

/// Serves the connections of a listener until `shutdown` is ready and the running requests are finished, or
/// [`Config::shutdown_timeout`] is over. Each connection is a task of the current runtime.
///
/// # Errors
///
/// [`ServeError::AllowListRequired`], before anything is accepted. Later errors concern single connections and go to the log.
///
/// # Cancellation
///
/// When the future is dropped no more connections are accepted; those that are there go on. End them through `shutdown`.
pub async fn serve<A: Application>(
    listener: Listener,
    application: A,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    config.check(&listener)?;
    let gateway = Arc::new(Gateway::new(application, config));
    let room = Arc::new(Semaphore::new(gateway.config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    let stop = CancellationToken::new();
    let accept = async {
        loop {
            // Never closed.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let (stream, peer) = listener.accept().await;
            if let Err(reason) = gateway.config.admit(&peer) {
                tracing::warn!(?peer, "a connection was refused: {reason}");
                continue;
            }
            let connection = Connection::new(stream, peer, gateway.clone(), stop.clone());
            connections.spawn(async move {
                let _permit = permit;
                connection.run_and_log().await;
            });
        }
    };
    tokio::select! {
        biased;
        () = shutdown => {}
        () = accept => {}
    }
    // From now on nobody waits in vain to be accepted.
    drop(listener);
    stop.cancel();
    connections.close();
    // Each keeps to the limit itself.
    connections.wait().await;
    Ok(())
}

/// Serves one connection to its end. Spawns nothing: the connection's own future polls its requests. Who may connect is the caller's
/// business here.
///
/// Once `stop` is cancelled, what runs is finished and what still comes is served as [`Config::shutdown_timeout`] says.
///
/// # Errors
///
/// What ended the connection, where that was not the web server's wish: a breach of the protocol, a time limit, an I/O error.
///
/// # Cancellation
///
/// Dropping the future cancels its requests and closes the connection.
pub async fn serve_connection<S: Transport, A: Application>(
    stream: S,
    peer: Peer,
    gateway: &Arc<Gateway<A>>,
    stop: &CancellationToken,
) -> Result<(), ConnectionError> {
    Connection::new(stream, peer, gateway.clone(), stop.clone()).run().await
}

/// An application with the settings under which it is served, and what its connections have in common.
#[derive(Debug)]
pub struct Gateway<A> {
    application: Arc<A>,
    config: Config,
    /// Requests at this moment, on all connections.
    requests: AtomicUsize,
}

impl<A: Application> Gateway<A> {
    /// That application under these settings.
    pub fn new(application: A, config: Config) -> Self {
        let config = config.with_times_that_end();
        Self { application: Arc::new(application), config, requests: AtomicUsize::new(0) }
    }
}

impl<A> Gateway<A> {
    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes a place among [`Config::max_requests`] for a request, unless all are taken.
    fn take_place(&self) -> bool {
        let is_free = self.requests.fetch_add(1, Ordering::Relaxed) < self.config.max_requests;
        if !is_free {
            self.give_place_back();
        }
        is_free
    }

    fn give_place_back(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Numbers the connections of this process.
fn next_connection() -> u64 {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1
}

/// Whether an I/O error means no more than that the peer is gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(list: &str, address: &str) -> bool {
        let config = Config { allow: parse_addresses(list), ..Config::default() };
        let address = SocketAddr::new(address.parse().unwrap(), 9000);
        config.admit(&Peer::Ip(address)).is_ok()
    }

    #[test]
    fn web_server_addrs_are_ipv4_and_ipv6_and_mapped_ones_are_the_same() {
        let list = "199.170.183.28, 2001:db8::7,::ffff:192.0.2.1";
        for address in ["199.170.183.28", "::ffff:199.170.183.28", "2001:db8::7", "192.0.2.1", "::ffff:192.0.2.1"] {
            assert!(admits(list, address), "{address}");
        }
        for address in ["199.170.183.71", "127.0.0.1", "::1", "2001:db8::8", "192.0.2.2"] {
            assert!(!admits(list, address), "{address}");
        }
    }

    #[test]
    fn a_list_of_mistakes_lets_nobody_in_from_outside() {
        for list in ["", ",", "localhost", "10.0.0.0/8", "1.2.3", "192.0.2.1:9000"] {
            assert!(!admits(list, "192.0.2.1"), "{list:?}");
        }
        assert!(admits("nonsense,192.0.2.1", "192.0.2.1"));
    }

    #[test]
    fn an_abstract_sockets_peer_must_be_root_ourselves_or_allowed() {
        let own = rustix::process::geteuid().as_raw();
        let stranger = own + 12_345;
        let admits = |allow_uids, uid| {
            let config = Config { allow_uids, ..Config::default() };
            config.admit(&Peer::Unix { uid, pid: None }).is_ok()
        };
        assert!(admits(vec![], Some(own)) && admits(vec![], Some(0)) && admits(vec![], None));
        assert!(!admits(vec![], Some(stranger)));
        assert!(admits(vec![stranger], Some(stranger)));
    }
}
