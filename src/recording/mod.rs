//! What passed between web servers and applications, kept in files: read, told apart, written again.
//!
//! Everything here belongs to floor 0: bytes to values and back, no sockets, no clock, no runtime. Only [`Spool`] and the form [`cgi`](form::cgi),
//! which is made of files, touch files. In reading order:
//!
//! - A [`Reader`] is given a file's bytes and gives back what was [`Seen`]: pieces of bytes on connections. There is one for network captures
//!   ([`capture`]) and one for what `gatespan tap` records ([`log`]).
//! - [`Records`] cuts what was seen into records, as [`Entry`]s; an [`EntryReader`] gives entries, and [`InRecords`] makes one of a reader.
//! - What can be said of entries: [`Describer`] in words, [`Checker`] of breaches of the specification, [`Summaries`] of each request.
//! - [`Exchanges`] puts requests and their answers together, their bodies in a [`Spool`].
//! - A module for each [`form`] reads and writes entries or exchanges.

mod seen;

pub mod capture;
pub mod log;

pub mod mask;

mod records;

mod pair_stream;

mod head;

mod describe;

mod findings;

mod summary;

mod spool;

mod exchanges;

pub mod form;

mod bounded;

pub use capture::CaptureReader;
pub use describe::{Describer, role_name, status_name};
pub use exchanges::{Exchange, ExchangeRecords, Exchanges, MAX_EXCHANGES, MAX_PARAMS_LEN, Times};
pub use findings::{Checker, Finding};
pub use log::LogReader;
pub use mask::Mask;
pub use records::{
    Entry, EntryReader, Hole, InRecords, MAX_BUFFERED, MAX_CONNECTIONS, MAX_GARBAGE_LEN, MAX_RECORD_LEN, Passed, Piece,
    Record, Records, direction_of,
};
pub use seen::{ConnectionId, Direction, ReadError, Reader, Seen, Timestamp, What};
pub use spool::{DEFAULT_SPOOL_MEMORY, Spool, Spooled, SpooledReader};
pub use summary::{Summaries, Summary};
