//! Floor 2, one side of the waist: gateways take requests in and call an application.

#[cfg(any(feature = "fastcgi", feature = "http"))]
pub mod listener;
#[cfg(feature = "cgi")]
pub mod cgi;
#[cfg(feature = "fastcgi")]
pub mod fastcgi;
#[cfg(feature = "http")]
pub mod http;
