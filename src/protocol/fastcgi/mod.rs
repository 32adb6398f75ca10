//! FastCGI 1.0, complete and without I/O: records, the bodies they carry, and the two ends of a connection.
//!
//! [`ApplicationEnd`] is what stands behind a web server's `fastcgi_pass`, [`WebServerEnd`] is what calls such an
//! application. Both are given bytes, give back events, and queue what is to be written in their [`Output`]. Neither
//! knows a socket or a clock, so how long to wait and when to close is their owner's business.
//!
//! Clauses in comments are those of the FastCGI specification, version 1.0 of 29 April 1996.

mod record;

mod body;

pub mod name_value;

mod output;

mod input;

mod protocol_error;

pub mod application_end;
pub mod web_server_end;

pub use application_end::ApplicationEnd;
pub use body::{BeginRequest, BodyError, EndRequest, ProtocolStatus, Role, UnknownType};
pub use output::Output;
pub use protocol_error::ProtocolError;
pub use record::{
    DecodeError, HEADER_LEN, Header, MAX_CONTENT_LEN, MAX_PADDED_CONTENT_LEN, MAX_PADDING_LEN, RecordType, RequestId,
    VERSION, put_record,
};
pub use web_server_end::WebServerEnd;

/// The descriptor on which a process that a web server or a spawner started finds its listening socket (FastCGI 2.2).
pub const LISTEN_SOCKET_FILENO: i32 = 0;

/// The environment variable that lists the addresses of web servers that may connect over TCP (FastCGI 3.2).
pub const WEB_SERVER_ADDRS: &str = "FCGI_WEB_SERVER_ADDRS";

/// The variable for GET_VALUES: how many connections the application takes at once (FastCGI 4.1).
pub const MAX_CONNS: &str = "FCGI_MAX_CONNS";

/// The variable for GET_VALUES: how many requests the application takes at once (FastCGI 4.1).
pub const MAX_REQS: &str = "FCGI_MAX_REQS";

/// The variable for GET_VALUES: `1` when the application multiplexes connections, `0` when not (FastCGI 4.1).
pub const MPXS_CONNS: &str = "FCGI_MPXS_CONNS";
