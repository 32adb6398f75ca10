//! Why a request that was forwarded has failed, and what its client is told.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::application::{Error, InputError};
use crate::protocol::cgi::HeadError;
use crate::protocol::fastcgi::name_value::EncodeError;
use crate::protocol::fastcgi::{ProtocolError, Role};
use crate::upstream::spool::SpoolError;

/// A request that a FastCGI server did not answer as it should have.
///
/// It is the cause of the [`Error`] that the forwarder returns, so that middleware around it can tell one failure from another.
#[derive(Debug)]
pub struct Failure {
    /// The server, as it is written as an address; `None` where no server had been chosen.
    pub server: Option<Arc<str>>,
    /// What happened.
    pub cause: Cause,
}

/// What happened to a request that was forwarded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// There is no server at that address, or it takes no connection.
    #[error("expected a connection, got none")]
    Connect(#[source] io::Error),
    /// The server took no connection in time.
    #[error("expected a connection within {0:?}, got none")]
    ConnectTimeout(Duration),
    /// The connection was closed before END_REQUEST.
    #[error("expected END_REQUEST, got the end of the connection after {received} bytes{}", parenthesised(.error))]
    Closed {
        /// How many bytes came before that.
        received: u64,
        /// What the system said, where it was not a plain close.
        error: Option<io::Error>,
    },
    /// What came is not FastCGI.
    #[error("expected FastCGI records, got something else")]
    Protocol(#[from] ProtocolError),
    /// What came is no head of an answer, or one over a limit.
    #[error("expected the head of an answer, got something else")]
    Head(#[from] HeadError),
    /// The request ended without an answer.
    #[error("expected the head of an answer, got END_REQUEST with application status {application_status}")]
    NoHead {
        /// The exit status that the application would have had as a CGI program.
        application_status: u32,
    },
    /// The head asks for something that can't be passed on.
    #[error("expected a status that can be forwarded, got {0}")]
    Status(u16),
    /// The head of the answer did not come in time.
    #[error("expected the head of an answer within {0:?}, got none")]
    HeadTimeout(Duration),
    /// Nothing more of the answer came for too long, or nothing more of the request was taken.
    #[error("expected more of the answer within {0:?}, got nothing")]
    ReadTimeout(Duration),
    /// The request took longer than it may in all.
    #[error("expected the whole answer within {0:?}")]
    Timeout(Duration),
    /// The server has run out of something: the protocol status OVERLOADED.
    #[error("the server refused the request: it is overloaded")]
    Overloaded,
    /// The server does not take several requests on one connection at once: the protocol status CANT_MPX_CONN.
    #[error("the server refused the request: it takes one at a time on a connection")]
    CannotMultiplex,
    /// The server does not have the role: the protocol status UNKNOWN_ROLE.
    #[error("the server refused the request: it has no role {0:?}")]
    UnknownRole(Role),
    /// As many requests wait for a connection as may.
    #[error("expected a free connection, got a queue of {0} requests already")]
    QueueFull(usize),
    /// No connection became free in time.
    #[error("expected a free connection within {0:?}, got none")]
    QueueTimeout(Duration),
    /// The variables are over the limit.
    #[error("the variables can't be sent")]
    Params(#[from] EncodeError),
    /// The client's body could not be received.
    #[error("the request body could not be forwarded")]
    Upload(#[from] InputError),
    /// The client's body could not be stored.
    #[error(transparent)]
    Store(io::Error),
}

fn parenthesised(error: &Option<io::Error>) -> String {
    error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default()
}

impl Cause {
    /// The status that the client is answered with when no head has been sent.
    pub fn status(&self) -> u16 {
        match self {
            Self::Connect(_)
            | Self::Closed { .. }
            | Self::Protocol(_)
            | Self::Head(_)
            | Self::NoHead { .. }
            | Self::Status(_)
            | Self::CannotMultiplex
            | Self::UnknownRole(_) => 502,
            Self::Overloaded | Self::QueueFull(_) | Self::QueueTimeout(_) => 503,
            Self::ConnectTimeout(_) | Self::HeadTimeout(_) | Self::ReadTimeout(_) | Self::Timeout(_) => 504,
            Self::Params(_) => 431,
            Self::Upload(error) => error.status(),
            Self::Store(_) => 500,
        }
    }

    /// Whether the same request may well be answered a little later, so that the client is told when to come again.
    pub(super) fn passes(&self) -> bool {
        matches!(self.status(), 503)
    }

    /// Whether it is the server's connection that broke, rather than something that it said or that took too long.
    pub(super) fn is_broken_connection(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    pub(super) fn at(self, server: &Arc<str>) -> Failure {
        Failure { server: Some(server.clone()), cause: self }
    }
}

impl From<SpoolError> for Cause {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Input(error) => Self::Upload(error),
            store => Self::Store(io::Error::other(store)),
        }
    }
}

impl Failure {
    pub(super) fn into_error(self) -> Error {
        let status = self.cause.status();
        Error::new(self).with_status(status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "fastcgi:{server}: {}", self.cause),
            None => self.cause.fmt(f),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.cause)
    }
}

/// A message with those of all its causes, for a line of the log.
pub(super) struct Chain<'a>(pub(super) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}
