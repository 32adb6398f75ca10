//! Floor 2, one side of the waist: gateways take requests in and call an application.

mod run;
pub mod listener;
#[cfg(feature = "cgi")]
pub mod cgi;
#[cfg(feature = "fastcgi")]
pub mod fastcgi;
#[cfg(feature = "http")]
pub mod http;

#[cfg(feature = "fastcgi")]
pub use run::run_connections_at;
pub use run::{ADDRESS, Afterwards, DEFAULT_PORT, Event, Options, RunError, SCRIPT_NAME, run, run_at, run_with};
