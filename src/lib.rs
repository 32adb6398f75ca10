//! Gatespan: one application interface behind CGI, FastCGI and HTTP.

pub mod address;
pub mod protocol;
#[cfg(feature = "application")]
pub mod application;
#[cfg(feature = "application")]
pub mod middleware;
#[cfg(feature = "application")]
pub mod gateway;

#[cfg(feature = "application")]
pub use application::{Application, Body, Environ, Error, StartResponse};
#[cfg(feature = "application")]
pub use gateway::{Options, run, run_with};
