//! Gatespan: one application interface behind CGI, FastCGI and HTTP.
#![deny(unsafe_code)]

pub mod protocol;
