//! The settings of the HTTP gateway.

use std::time::Duration;

use crate::application::Errors;
use crate::application::for_ever::bound;
use crate::application::message::{DEFAULT_CLOSE_LIMIT, SERVER_SOFTWARE};

/// Limits and names. `Config { max_requests: 100, ..Config::default() }` changes one.
#[derive(Debug, Clone)]
pub struct Config {
    /// The longest request head, in bytes: request line and fields. Over it is 431 (RFC 6585 5). Default: 64 KiB.
    pub max_head_len: usize,
    /// The most fields that a request's head may have. Over it is 431. HTTP/2 has no such limit, only the length. Default: 100.
    pub max_headers: usize,
    /// How long a request's head may take from its first byte to its last, and the first byte of a new connection. Over it is
    /// 408, or a closed connection where nothing came. Default: 30 seconds.
    pub head_timeout: Duration,
    /// How long a kept connection may stay without a request before it is closed. Default: 75 seconds.
    pub idle_timeout: Duration,
    /// How long a client may send nothing of a request's body while the application waits for it. The application's read fails
    /// then, with 408 if it lets it. Default: 60 seconds.
    pub body_timeout: Duration,
    /// How long a client may take nothing of what is sent before its connection is dropped. Default: 60 seconds.
    pub write_timeout: Duration,
    /// The longest request body, in bytes. Over it is 413, before the application is called where the client announces it. Default: no limit.
    pub max_body: Option<u64>,
    /// How many connections there may be. Further ones wait to be accepted. Default: 10,000.
    pub max_connections: usize,
    /// How many requests may run at the same time, on all connections together. One more is answered with 503 and Retry-After. Default: 10,000.
    pub max_requests: usize,
    /// How many requests a client may have open on one HTTP/2 connection. Default: 100.
    pub max_streams: u32,
    /// The most that is held of a response of HTTP/1.1 that the client has not taken yet, in bytes, beyond the last piece. Default: 64 KiB.
    pub output_window: usize,
    /// How long requests may go on after the server is asked to stop. Default: 30 seconds.
    pub shutdown_timeout: Duration,
    /// How long an application's `close()` may take after its client has left. Default: 5 seconds.
    pub close_timeout: Duration,
    /// What is read and thrown away of a request that was answered before it was read, in bytes, so that closing the connection
    /// does not cost the client its answer. Default: 16 MiB.
    pub linger_len: u64,
    /// How long that may take. Default: 2 seconds.
    pub linger_timeout: Duration,
    /// Whether a client that closes its sending half after a whole request still gets its answer. It can't be told apart from one that has left, so
    /// that requests of clients that left run on. HTTP/1.1 only. Default: false.
    pub finish_half_closed: bool,
    /// Where the application is mounted: SCRIPT_NAME, as the decoded path, such as `/app`. Requests for other paths are answered with 404.
    /// Default: at the root, for all paths.
    pub script_name: Option<Vec<u8>>,
    /// SERVER_NAME in the place of what requests say. Default: none.
    pub server_name: Option<String>,
    /// SERVER_PORT in the place of what requests say. Default: none.
    pub server_port: Option<u16>,
    /// SERVER_SOFTWARE. Default: `gatespan/` and the version.
    pub server_software: String,
    /// Whether the client's connections are encrypted by something in front: `https` as the scheme. Default: false.
    pub https: bool,
    /// Whether responses get a Date where the application gives none (RFC 9110 6.6.1). Default: true.
    pub date: bool,
    /// Whether responses get a Server with [`Config::server_software`] where the application gives none. Default: false.
    pub server: bool,
    /// Where applications write their errors. Default: standard error.
    pub errors: Errors,
    /// Whether other processes serve the same application. Default: false.
    pub multiprocess: bool,
}

impl Config {
    /// The same, with times that can be added to any that it will be.
    pub(super) fn with_times_that_end(mut self) -> Self {
        bound([
            &mut self.head_timeout,
            &mut self.idle_timeout,
            &mut self.body_timeout,
            &mut self.write_timeout,
            &mut self.shutdown_timeout,
            &mut self.close_timeout,
            &mut self.linger_timeout,
        ]);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_head_len: 64 << 10,
            max_headers: 100,
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            max_body: None,
            max_connections: 10_000,
            max_requests: 10_000,
            max_streams: 100,
            output_window: 64 << 10,
            shutdown_timeout: Duration::from_secs(30),
            close_timeout: DEFAULT_CLOSE_LIMIT,
            linger_len: 16 << 20,
            linger_timeout: Duration::from_secs(2),
            finish_half_closed: false,
            script_name: None,
            server_name: None,
            server_port: None,
            server_software: SERVER_SOFTWARE.into(),
            https: false,
            date: true,
            server: false,
            errors: Errors::stderr(),
            multiprocess: false,
        }
    }
}
