//! What passed between web servers and applications, kept in files: read, told apart, written again.
//!
//! Everything here belongs to floor 0: bytes to values and back, no sockets, no clock, no runtime. A [`Reader`] is given a file's bytes
//! and gives back what was [`Seen`], whatever the file's form; all that is made of it, records, exchanges, other forms, starts from that.

mod seen;

mod records;

mod pair_stream;

mod describe;

mod findings;

mod exchanges;

mod spool;

pub mod form;

mod bounded;

pub use describe::{Describer, role_name, status_name};
pub use exchanges::{Exchange, ExchangeRecords, Exchanges, MAX_EXCHANGES, MAX_PARAMS_LEN, Times};
pub use findings::{Checker, Finding};
pub use records::{
    Entry, EntryReader, Hole, InRecords, MAX_BUFFERED, MAX_CONNECTIONS, MAX_GARBAGE_LEN, MAX_RECORD_LEN, Passed, Piece,
    Record, Records, direction_of,
};
pub use seen::{ConnectionId, Direction, ReadError, Reader, Seen, Timestamp, What};
pub use spool::{DEFAULT_SPOOL_MEMORY, Spool, Spooled, SpooledReader};
