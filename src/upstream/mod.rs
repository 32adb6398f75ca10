//! Floor 2: applications that live somewhere else.
//!
//! An upstream is an [`Application`](crate::application::Application) like any other, so that it runs behind every gateway and
//! within any middleware, neither of which it knows. Each has a folder of its own; what two of them need stands beside them here.

#[cfg(feature = "upstream-cgi")]
pub mod cgi;
#[cfg(feature = "upstream-fastcgi")]
pub mod fastcgi;
#[cfg(feature = "upstream-files")]
pub mod files;
#[cfg(feature = "upstream-http")]
pub mod http;
#[cfg(feature = "upstream-files")]
mod root;
#[cfg(feature = "upstream-files")]
pub mod site;
#[cfg(any(feature = "upstream-cgi", feature = "upstream-fastcgi"))]
#[cfg_attr(
    not(feature = "upstream-cgi"),
    allow(dead_code, reason = "what is spooled for scripts is more than what FastCGI needs")
)]
mod spool;
#[cfg(any(feature = "upstream-cgi", feature = "upstream-fastcgi"))]
mod signals;
#[cfg(any(feature = "upstream-cgi", feature = "upstream-fastcgi"))]
pub mod watcher;
