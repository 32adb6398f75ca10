//! The HTTP gateway: this process is an HTTP server. HTTP/1.1, and HTTP/2 where the client begins with it (h2c by prior
//! knowledge), by hyper.
//!
//! [`serve_connection`] is the unit: one connection, no task of its own for HTTP/1.1. [`serve`] accepts and spawns. Not for the open
//! Internet on its own: there is no TLS here.
//!
//! Known limits: a response to an HTTP/1.0 client without Content-Length ends where the connection does, so that such a client can't see
//! that it was cut. Another protocol is spoken on a connection of HTTP/1.1 only ([`Upgrade`](crate::application::Upgrade)); extended CONNECT of HTTP/2 (RFC 8441) is
//! not. Interim responses (1xx) other than 100 can't be sent. Header names go out in lower case.

mod clock;
mod config;
mod connection;
mod watched;
mod switched;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::Config;
pub use connection::{ConnectionError, serve_connection};

use super::listener::{Listener, Stream};
use crate::application::Application;
use crate::application::message::Closing;

/// An application with the settings under which it is served, and what its connections have in common.
#[derive(Debug)]
pub struct Gateway<A> {
    application: Arc<A>,
    config: Config,
    /// Requests that run.
    running: Arc<AtomicUsize>,
    /// Connections that there have been.
    connections: AtomicU64,
    closing: Closing,
}

impl<A: Application> Gateway<A> {
    /// That application under these settings.
    pub fn new(application: A, config: Config) -> Self {
        let config = config.with_times_that_end();
        let closing = Closing { limit: config.close_timeout, tasks: TaskTracker::new() };
        Self {
            application: Arc::new(application),
            config,
            running: Arc::default(),
            connections: AtomicU64::new(0),
            closing,
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Waits until applications whose clients have left are closed; at most [`Config::close_timeout`]. For the end of a server.
    pub async fn closed(&self) {
        self.closing.tasks.close();
        // Each has the same limit, and none begins after the last connection.
        let _ = tokio::time::timeout(self.config.close_timeout, self.closing.tasks.wait()).await;
    }
}

/// Serves all connections of a listener until `shutdown` is ready.
///
/// Then no more are accepted, idle ones are closed, and requests that run are finished within [`Config::shutdown_timeout`]. Dropping the
/// future drops all connections at once.
pub async fn serve<A: Application>(
    listener: Listener,
    application: A,
    config: Config,
    shutdown: impl Future<Output = ()>,
) {
    let gateway = Arc::new(Gateway::new(application, config));
    let places = Arc::new(Semaphore::new(gateway.config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // A place comes first: connections over the limit wait in the listener's backlog.
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, (stream, peer)) = tokio::select! {
            () = shutdown.as_mut() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept => accepted,
        };
        let local = match &stream {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        };
        let (gateway, stop) = (gateway.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = serve_connection(stream, peer.clone(), local, &gateway, &stop).await {
                error.log(&peer);
            }
        });
    }
    drop(listener);
    stop.cancel();
    // Each connection keeps to the limit itself.
    while connections.join_next().await.is_some() {}
    gateway.closed().await;
}
