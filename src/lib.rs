//! Gatespan: one application interface behind CGI, FastCGI and HTTP.

pub mod address;
pub mod protocol;
#[cfg(feature = "application")]
pub mod application;
#[cfg(feature = "application")]
pub mod gateway;
#[cfg(feature = "tower")]
pub mod tower;
