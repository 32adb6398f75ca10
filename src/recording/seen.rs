//! The common word of all forms: which bytes were seen on which connection, when, and in which direction.

use std::fmt;

use bytes::Bytes;

/// One thing that was seen on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it stands in the file that it was read from, in bytes from its beginning.
    pub offset: u64,
    /// When it passed; `None` where the file's form does not say.
    pub time: Option<Timestamp>,
    /// Where it passed.
    pub connection: ConnectionId,
    /// What passed.
    pub what: What,
}

/// What can be seen on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// The connection was made. Addresses are as people write them, and empty where they are not known.
    Opened {
        /// The web server's end.
        from: String,
        /// The application's end.
        to: String,
    },
    /// These bytes passed.
    Bytes {
        /// To whom.
        direction: Direction,
        /// At least one.
        bytes: Bytes,
    },
    /// So many bytes passed, and what they were was not kept, on purpose. Where bytes are needed, `*` stands for each.
    Masked {
        /// To whom.
        direction: Direction,
        /// At least one.
        len: u64,
    },
    /// Bytes are missing here that did pass.
    Gap {
        /// To whom.
        direction: Direction,
        /// How many, where that is known.
        len: Option<u64>,
    },
    /// Nothing passes in this direction any more: that end has shut down writing, or closed.
    Ended {
        /// To whom nothing passes.
        direction: Direction,
    },
    /// The connection broke, as by a reset.
    Broken {
        /// What was said about it.
        reason: String,
    },
}

/// To whom bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the web server.
    ToApplication,
    /// From the application.
    ToWebServer,
}

impl Direction {
    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::ToApplication => Self::ToWebServer,
            Self::ToWebServer => Self::ToApplication,
        }
    }
}

/// Which of a file's connections: they are numbered from 1, in the order in which they appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment: nanoseconds since the beginning of 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// A reader of files of one form: bytes in, what was seen out. It knows no files, and holds no more of one than a fixed window.
pub trait Reader {
    /// Takes the next bytes of the file. To be called when [`next`](Self::next) has nothing more.
    fn receive(&mut self, bytes: &[u8]);

    /// There are no more bytes: what is incomplete now stays so.
    fn end(&mut self);

    /// The next thing that was seen; `None` when more bytes are needed, or all were read.
    ///
    /// # Errors
    ///
    /// The file can't be read on from here. What was returned before is good, and the same error comes again.
    fn next(&mut self) -> Result<Option<Seen>, ReadError>;
}

/// Why a file can't be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: expected {expected}, got {got}")]
pub struct ReadError {
    /// Where, in bytes from the file's beginning.
    pub offset: u64,
    /// What should stand there.
    pub expected: String,
    /// What stands there.
    pub got: String,
}
