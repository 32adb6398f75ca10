//! Write a web application once, against WSGI's `environ` and `start_response`, and run it unchanged as a CGI script, behind a web
//! server's `fastcgi_pass`, or on a port of its own.
//!
//! ```no_run
//! use gatespan::{Environ, Error, StartResponse};
//!
//! async fn hello(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
//!     start_response.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])?;
//!     Ok(format!("This is {}\n", environ.url()))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     gatespan::run(hello)
//! }
//! ```
//!
//! # The map
//!
//! Each floor imports only those below it.
//!
//! - Floor 0, [`protocol`]: bytes to values and back, without I/O. FastCGI records and both ends of a connection, CGI variables and response
//!   heads. [`address`] is the grammar of addresses, `recording` what was kept of what passed.
//! - Floor 1, `application`: the waist. What an application is, what it is told and what it gives back, and the driver that turns
//!   the one into the other. Read `application::Application` first.
//! - Floor 2, around the waist: `gateway` takes requests in (`cgi`, `fastcgi`, `http`, and `run`, which finds out which of them this
//!   process is), `middleware` wraps applications, `upstream` is the applications that live somewhere else (`cgi`, `fastcgi`, `http`,
//!   `files`), `tower` is the bridge to tower's services.
//!
//! # Features
//!
//! `cgi`, `fastcgi` and `http`, the gateways, are on by default. `tower`, `access-log` and `cli` (the tool) are not, nor are the upstreams (`upstream-cgi`,
//! `upstream-fastcgi`, `upstream-http`, `upstream-https` with TLS, `upstream-files`). Without any, floor 0 is
//! all there is, and tokio is not compiled.

pub mod address;
pub mod protocol;
#[cfg(feature = "recording")]
pub mod recording;
#[cfg(feature = "application")]
pub mod application;
#[cfg(feature = "application")]
pub mod middleware;
#[cfg(feature = "application")]
mod local_socket;
#[cfg(feature = "application")]
pub mod gateway;
#[cfg(any(
    feature = "upstream-cgi",
    feature = "upstream-fastcgi",
    feature = "upstream-files",
    feature = "upstream-http"
))]
pub mod upstream;
#[cfg(feature = "tower")]
pub mod tower;

#[cfg(feature = "application")]
pub use application::{Application, Body, Environ, Error, StartResponse};
/// The crate whose `Bytes` is what pieces of bodies are made of, such as those of [`application::Class::next`].
pub use bytes;
#[cfg(feature = "application")]
pub use gateway::{Options, run, run_with};
