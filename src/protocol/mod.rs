//! Floor 0: bytes to values and back. nom decodes, plain functions encode.
//!
//! Nothing in here knows a socket, a clock or a runtime, so all of it can be driven by a test, byte by byte.

mod pairs;

pub mod cgi;
pub mod fastcgi;

pub use pairs::Pairs;
