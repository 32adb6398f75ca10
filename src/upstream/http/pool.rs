//! The connections to the server: how many there may be, and those that are kept for the next request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connect::Connector;
use super::request::RequestBody;
use super::{Config, Failure};

/// How long a kept connection may take to be ready for another request before a new one is made: it is ready, or it is dead.
const READY: Duration = Duration::from_millis(500);

pub(super) struct Pool {
    connector: Connector,
    builder: http1::Builder,
    kept: Mutex<Kept>,
    running: Arc<Semaphore>,
    /// Running and waiting requests together.
    admitted: Arc<Semaphore>,
    connections: usize,
    queue: usize,
    queue_wait: Duration,
    idle: usize,
    idle_time: Duration,
}

#[derive(Default)]
struct Kept {
    /// The one that was used last stands last, and is used first.
    connections: Vec<(Instant, Connection)>,
    /// Somebody closes those that have been kept too long.
    swept: bool,
}

/// A connection of which a request has the use. Dropped, it is closed.
pub(super) struct Connection {
    pub(super) sender: SendRequest<RequestBody>,
    _task: DropGuard,
}

/// Leave for one request.
pub(super) struct Place {
    _running: OwnedSemaphorePermit,
    _admitted: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(connector: Connector, config: &Config) -> Self {
        let mut builder = http1::Builder::new();
        builder
            .max_headers(config.max_headers)
            .max_header_size(config.max_head_len)
            // hyper has one limit for what it holds of either direction.
            .max_buf_size(config.window.max(config.max_head_len).max(8 << 10));
        let connections = config.connections.clamp(1, Semaphore::MAX_PERMITS);
        let admitted = connections.saturating_add(config.queue).min(Semaphore::MAX_PERMITS);
        Self {
            connector,
            builder,
            kept: Mutex::default(),
            running: Arc::new(Semaphore::new(connections)),
            admitted: Arc::new(Semaphore::new(admitted)),
            connections,
            queue: config.queue,
            queue_wait: config.queue_wait,
            idle: config.idle,
            idle_time: config.idle_time,
        }
    }

    pub(super) fn target(&self) -> &str {
        self.connector.name()
    }

    /// Waits for the request's turn.
    pub(super) async fn place(&self) -> Result<Place, Failure> {
        let busy = || Failure::Busy { target: self.target().into(), running: self.connections, waiting: self.queue };
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| busy())?;
        let running = match self.running.clone().try_acquire_owned() {
            Ok(running) => running,
            Err(_) => match tokio::time::timeout(self.queue_wait, self.running.clone().acquire_owned()).await {
                Ok(running) => running.map_err(|_| busy())?,
                Err(_) => {
                    return Err(Failure::QueueTimeout { target: self.target().into(), after: self.queue_wait });
                }
            },
        };
        Ok(Place { _running: running, _admitted: admitted })
    }

    /// A connection that was kept and, as far as one can see, lives.
    pub(super) async fn kept(&self) -> Option<Connection> {
        loop {
            let (since, mut connection) = self.lock().connections.pop()?;
            if since.elapsed() < self.idle_time
                && matches!(tokio::time::timeout(READY, connection.sender.ready()).await, Ok(Ok(())))
            {
                return Some(connection);
            }
        }
    }

    /// A new connection. Its task ends with it.
    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        let stream = self.connector.connect().await?;
        let closed = |cause| Failure::Closed { target: self.target().into(), cause };
        let (sender, connection) = self.builder.handshake(TokioIo::new(stream)).await.map_err(closed)?;
        let token = CancellationToken::new();
        let ended = token.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled_owned() => {}
                // What goes wrong shows in the exchange under way.
                _ = connection.with_upgrades() => {}
            }
        });
        Ok(Connection { sender, _task: token.drop_guard() })
    }

    /// Keeps a connection whose exchange is over, on both sides.
    pub(super) fn keep(self: &Arc<Self>, connection: Connection) {
        if self.idle == 0 || connection.sender.is_closed() {
            return;
        }
        let mut kept = self.lock();
        if kept.connections.len() >= self.idle {
            kept.connections.remove(0);
        }
        kept.connections.push((Instant::now(), connection));
        if !std::mem::replace(&mut kept.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), self.idle_time));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what has been kept too long, as long as there is anything.
async fn sweep(pool: Weak<Pool>, idle_time: Duration) {
    let mut next = Instant::now() + idle_time;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut kept = pool.lock();
        kept.connections.retain(|(since, connection)| since.elapsed() < idle_time && !connection.sender.is_closed());
        match kept.connections.first() {
            Some((since, _)) => next = *since + idle_time,
            None => {
                kept.swept = false;
                return;
            }
        }
    }
}
