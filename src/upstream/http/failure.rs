//! Why a request could not be forwarded, and what its client is answered.

use std::io;
use std::time::Duration;

use crate::application::Error;

/// Why there is no answer of the server, or no whole one. Before the head it is answered with [`Failure::status`], after it the answer is cut.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Nobody listens there, or the way there is barred.
    #[error("{target} can't be reached")]
    Connect {
        /// The server.
        target: String,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// [`Config::connect_timeout`](super::Config::connect_timeout).
    #[error("{target} has not taken the connection within {after:?}")]
    ConnectTimeout {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// [`Config::connections`](super::Config::connections) and [`Config::queue`](super::Config::queue) are full.
    #[error("{running} requests to {target} run and {waiting} wait already")]
    Busy {
        /// The server.
        target: String,
        /// The limit of those that run.
        running: usize,
        /// The limit of those that wait.
        waiting: usize,
    },
    /// [`Config::queue_wait`](super::Config::queue_wait).
    #[error("no connection to {target} became free within {after:?}")]
    QueueTimeout {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// The server closed the connection instead of answering.
    #[error("{target} closed the connection before the head of its answer was complete")]
    Closed {
        /// The server.
        target: String,
        /// What hyper says.
        #[source]
        cause: hyper::Error,
    },
    /// What the server sent is no HTTP, or its head is over [`Config::max_head_len`](super::Config::max_head_len) or
    /// [`Config::max_headers`](super::Config::max_headers).
    #[error("expected the head of an HTTP answer from {target}")]
    Head {
        /// The server.
        target: String,
        /// What hyper says.
        #[source]
        cause: hyper::Error,
    },
    /// The server wants to speak another protocol, which it was not asked for.
    #[error("{target} answered with 101 (Switching Protocols) to a request that did not ask for it")]
    Switched {
        /// The server.
        target: String,
    },
    /// A body in a coding that nobody asked for.
    #[error("expected an answer from {target} as it is or in chunks, got Transfer-Encoding \"{coding}\"")]
    TransferCoding {
        /// The server.
        target: String,
        /// What Transfer-Encoding says.
        coding: String,
    },
    /// [`Config::head_timeout`](super::Config::head_timeout).
    #[error("{target} has not begun its answer within {after:?}")]
    HeadTimeout {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// [`Config::read_timeout`](super::Config::read_timeout).
    #[error("{target} has not gone on with its answer within {after:?}")]
    ReadTimeout {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// [`Config::timeout`](super::Config::timeout).
    #[error("the exchange with {target} has not ended within {after:?}")]
    Timeout {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// The answer ended before its time, or its body is none.
    #[error("expected the rest of the answer of {target}")]
    Cut {
        /// The server.
        target: String,
        /// What hyper says.
        #[source]
        cause: hyper::Error,
    },
    /// [`Config::tunnel_timeout`](super::Config::tunnel_timeout).
    #[error("nothing has passed between the client and {target} for {after:?}")]
    TunnelIdle {
        /// The server.
        target: String,
        /// The limit.
        after: Duration,
    },
    /// The connection to a server with which WebSocket was spoken was lost.
    #[error("the connection to {target} was lost")]
    Tunnel {
        /// The server.
        target: String,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// The client wants to speak WebSocket, for which its own connection would have to be handed over.
    #[error("the client asked to switch to {0}, and its connection can't be handed over")]
    Upgrade(String),
    /// The request's variables make no request of HTTP.
    #[error("{name} can't be part of an HTTP request: \"{value}\"")]
    Request {
        /// The variable.
        name: String,
        /// The beginning of its value.
        value: String,
    },
}

impl Failure {
    /// What a client is answered: 502 where the server failed, 503 where there was no room, 504 where it took too long, and what the
    /// request itself deserves.
    pub fn status(&self) -> u16 {
        match self {
            Self::Connect { .. }
            | Self::Closed { .. }
            | Self::Head { .. }
            | Self::Switched { .. }
            | Self::TransferCoding { .. }
            | Self::Cut { .. }
            | Self::Tunnel { .. } => 502,
            Self::Busy { .. } | Self::QueueTimeout { .. } => 503,
            Self::ConnectTimeout { .. }
            | Self::HeadTimeout { .. }
            | Self::ReadTimeout { .. }
            | Self::Timeout { .. }
            | Self::TunnelIdle { .. } => 504,
            Self::Upgrade(_) => 501,
            Self::Request { .. } => 400,
        }
    }

    pub(super) fn into_error(self) -> Error {
        let status = self.status();
        Error::new(self).with_status(status)
    }
}

/// Why there can be no proxy for an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Not an HTTP server's address.
    #[error("expected http://HOST:PORT, https://HOST or http:/path/to.sock to forward to, got \"{0}\"")]
    Scheme(String),
    /// `http:fd` is a socket to listen on.
    #[error("expected the address of a server to forward to; \"{0}\" is a socket that was handed over to listen on")]
    Inherited(String),
    /// `https:` without the feature `upstream-https`.
    #[error("\"{0}\" needs TLS, without which this program was built")]
    WithoutTls(String),
    /// The certificates could not be read.
    #[error("expected certificates to check the server's with in {from}")]
    Certificates {
        /// Where they were looked for.
        from: String,
        /// Why there are none.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The proxy's own name can't be part of Via.
    #[error("expected one word, or a host and its port, as the name in Via, got \"{0}\"")]
    Via(String),
    /// The name for the server's certificate is none.
    #[error("expected a host name or an address for the server's certificate, got \"{0}\"")]
    ServerName(String),
}
