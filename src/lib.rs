//! Gatespan: one application interface behind CGI, FastCGI and HTTP.

pub mod protocol;
#[cfg(feature = "application")]
pub mod application;
