//! Floor 2: applications that wrap applications.
//!
//! Each is an [`Application`](crate::application::Application) around another, and each streams: what a body gives passes through at once, and its
//! `close()` is passed on. They know neither gateways nor upstreams, so that any of them stands between any two.

pub mod validate;
mod mount;
mod limit;
mod timeout;
mod authorizer;
mod client_address;
mod redirect;
mod send_file;
mod request_id;
mod variables;
#[cfg(feature = "access-log")]
mod access_log;

#[cfg(feature = "access-log")]
pub use access_log::{AccessLog, Format, access_log, to_writer};
pub use authorizer::{Authorized, AuthorizerConfig, AuthorizerFailed, authorizer};
pub use client_address::{ClientAddress, ClientAddressConfig, ClientField, client_address};
pub use limit::{Limit, Limited, limit};
pub use mount::Mount;
pub use redirect::{LocalRedirect, RedirectError, Redirects, local_redirect};
pub use request_id::{RequestId, request_id};
pub use send_file::{SendFile, SendFileError, SendFileRoots, send_file};
pub use timeout::{Limits, TimedOut, Timeout, timeout};
pub use validate::{Breach, Rule, ServerRules, Side, Validate, validate};
pub use variables::{VariablesError, WithVariables, variables};

#[cfg(test)]
mod forms;
