//! What passed between web servers and applications, kept in files: read, told apart, written again.
//!
//! Everything here belongs to floor 0: bytes to values and back, no sockets, no clock, no runtime. A [`Reader`] is given a file's bytes
//! and gives back what was [`Seen`], whatever the file's form; all that is made of it, records, exchanges, other forms, starts from that.

mod seen;

pub mod log;

pub mod mask;

pub use log::LogReader;
pub use mask::Mask;
pub use seen::{ConnectionId, Direction, ReadError, Reader, Seen, Timestamp, What};
