//! What a forwarder is told: limits, times, and what it does by choice.

use std::path::PathBuf;
use std::time::Duration;

use crate::protocol::fastcgi::Role;

/// How requests are forwarded, and for how long an answer is waited for.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the servers are asked to be. Default: what the environ says, which is a Responder save behind a FastCGI gateway that was asked for
    /// something else.
    pub role: Option<Role>,
    /// What becomes of a request body whose length nobody has announced. Default: [`RequestBody::Spool`].
    pub request_body: RequestBody,
    /// Up to how many bytes such a body is spooled in memory. Default: 256 KiB.
    pub spool_memory: usize,
    /// From how many bytes on it is refused with 413. Default: 1 GiB.
    pub spool_limit: u64,
    /// Where the files are made that larger ones are spooled into; they have no name. Default: the system's folder for temporary files.
    pub spool_folder: Option<PathBuf>,
    /// How many bytes of a request body are kept until the answer begins, so that the request can be sent again; a longer one is sent once, unless
    /// it was spooled. Default: 64 KiB.
    pub replay_limit: usize,
    /// Whether requests that must not be made twice (POST, PATCH and other methods that are not idempotent by RFC 9110 9.2.2) are sent again even
    /// when the server may have begun with them. Default: no.
    pub retry_non_idempotent: bool,
    /// Whether connections are kept for further requests. Default: no, because a server that serves one connection at a time (php-fpm's
    /// workers, most C and Perl programs) serves nobody else while one is kept. Where that is no concern it saves about half the cost of a request.
    pub keep_alive: bool,
    /// The most connections to one server that are kept without a request. Default: 32.
    pub idle: usize,
    /// How long they are. Default: 10 s.
    pub idle_time: Duration,
    /// The most connections to one server at once, idle ones aside. For a server that serves one connection at a time: how many processes it has.
    /// Default: 256.
    pub connections: usize,
    /// The most requests that wait for a connection; further ones are answered with 503. Default: 1,024.
    pub queue: usize,
    /// How long a request waits for a connection until it is answered with 503. Default: 30 s.
    pub queue_wait: Duration,
    /// What Retry-After says in a 503: in how long to come again. Default: 5 s.
    pub retry_after: Duration,
    /// How long a server may take to accept a connection; 504 after that. A Unix socket whose queue is full is tried again for so long.
    /// Default: 5 s.
    pub connect_timeout: Duration,
    /// How long a server may take from the end of the request, or the last of it that it took, to the whole head of the answer; 504 after that.
    /// The time that a client takes for its body does not count. Default: 60 s.
    pub head_timeout: Duration,
    /// How long a server may send nothing of the rest of the answer, which is cut then. Default: 60 s.
    pub read_timeout: Duration,
    /// How long a request may take in all; 504 after that, or the answer is cut. Default: as long as it takes.
    pub timeout: Option<Duration>,
    /// How long a server that failed is left alone, where there is another; twice as long each time that it fails again. Default: 500 ms.
    pub backoff: Duration,
    /// The most that it is left alone. Default: 30 s.
    pub backoff_max: Duration,
    /// The most bytes that all variables may have, encoded; 431 above. php-fpm takes some 100 KB and closes the connection above. Default: 256 KiB.
    pub max_params_len: usize,
    /// The most bytes that the head of an answer may have; 502 above. Default: 64 KiB.
    pub max_head_len: usize,
    /// The most fields that the head of an answer may have; 502 above. Default: 256.
    pub max_head_fields: usize,
    /// How many bytes of a request's FCGI_STDERR are logged. Default: 64 KiB.
    pub stderr_limit: usize,
    /// Whether they also go to the request's own log (`wsgi.errors`), which behind a FastCGI gateway is the web server's error log. Default: no.
    pub stderr_to_client_server: bool,
    /// How many bytes of an answer that nobody wants (to HEAD, or past its Content-Length) are read, so that the program behind it comes to its
    /// end. Default: 1 MiB.
    pub drain_len: u64,
    /// How long that may take. Default: 5 s.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: None,
            request_body: RequestBody::default(),
            spool_memory: 256 * 1024,
            spool_limit: 1 << 30,
            spool_folder: None,
            replay_limit: 64 * 1024,
            retry_non_idempotent: false,
            keep_alive: false,
            idle: 32,
            idle_time: Duration::from_secs(10),
            connections: 256,
            queue: 1024,
            queue_wait: Duration::from_secs(30),
            retry_after: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            timeout: None,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            max_params_len: 256 * 1024,
            max_head_len: 64 * 1024,
            max_head_fields: 256,
            stderr_limit: 64 * 1024,
            stderr_to_client_server: false,
            drain_len: 1 << 20,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// What becomes of a request body whose length nobody has announced (`Transfer-Encoding: chunked` in HTTP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestBody {
    /// It is received whole, so that CONTENT_LENGTH says how long it is: without that php-fpm reads none of it, and few programs do.
    #[default]
    Spool,
    /// It is passed on as it comes, without CONTENT_LENGTH.
    Stream,
}

/// Why a forwarder can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No server to forward to.
    #[error("expected the address of at least one FastCGI server, got none")]
    NoServer,
    /// A socket that was handed over, which is for listening.
    #[error(
        "expected a FastCGI server's address, got \"fastcgi:fd\": a socket that was handed over is one to listen on"
    )]
    Inherited,
    /// A limit under which nothing could be forwarded.
    #[error("expected {0} to be more than 0")]
    Zero(&'static str),
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (name, is_zero) in [
            ("connections", self.connections == 0),
            ("max_head_len", self.max_head_len == 0),
            ("max_head_fields", self.max_head_fields == 0),
            ("head_timeout", self.head_timeout.is_zero()),
            ("read_timeout", self.read_timeout.is_zero()),
            ("connect_timeout", self.connect_timeout.is_zero()),
        ] {
            if is_zero {
                return Err(ConfigError::Zero(name));
            }
        }
        Ok(())
    }
}
