//! Why a request to a script failed: what was expected and what came, what mends it, and which status the client gets.
//!
//! The administrator reads cause and mend in the log, and in the page only where [`Config::debug`](super::Config::debug) says so.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{ffi::OsString, fmt};

use super::script::Script;
use crate::protocol::cgi::{Excerpt, HeadError};

/// Why a request failed. Its text is [`Failure::cause`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The path can't be that of a script, whatever lies on the disk.
    BadPath {
        /// The variable it came in.
        variable: &'static str,
        /// The path's first bytes.
        path: Excerpt,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// There is no such file.
    NotFound {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
        /// Whether a web server named the file. Those that count on fcgiwrap then expect 403, not 404.
        named: bool,
    },
    /// The file lies outside all roots.
    OutsideRoot {
        /// The file, resolved.
        file: PathBuf,
        /// The link that led out of a root without being root's, if one did.
        link: Option<PathBuf>,
        /// The roots.
        roots: Vec<PathBuf>,
    },
    /// A folder, where a file was expected.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The index files that were looked for in it.
        index: Vec<OsString>,
    },
    /// A folder with an index, asked for without the slash at its end. The answer redirects there.
    NoSlash {
        /// The path with the slash, and the query; encoded.
        location: String,
        /// Whether the method is one that clients repeat as it is when redirected.
        safe: bool,
    },
    /// Neither file nor folder.
    NotRegular {
        /// Where it lies.
        file: PathBuf,
        /// What it is, such as `a socket`.
        kind: &'static str,
    },
    /// The file may not be executed.
    NotExecutable {
        /// The script.
        file: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// Others can write to the script, or to a folder that it lies in.
    Writable {
        /// The script.
        file: PathBuf,
        /// What others can write to: the script itself or a folder.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// A folder can't be searched, or the file system fails.
    Inaccessible {
        /// Where the look-up came to.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Links that lead to links, too many of them.
    TooManyLinks {
        /// The first of them.
        path: PathBuf,
    },
    /// The file is no program: no `#!` in its first line, and no interpreter for its ending.
    NoInterpreter {
        /// The script.
        file: PathBuf,
        /// Its first bytes.
        start: Excerpt,
    },
    /// The interpreter is not there.
    InterpreterMissing {
        /// The script.
        file: PathBuf,
        /// The interpreter, as it is named; for a binary program its loader, which is not named here.
        interpreter: Option<PathBuf>,
        /// Whether its name ends in a carriage return: the script has the line ends of another system.
        carriage_return: bool,
    },
    /// The interpreter is there and may not be executed.
    InterpreterDenied {
        /// The script.
        file: PathBuf,
        /// The interpreter.
        interpreter: PathBuf,
    },
    /// The working directory can't be entered.
    WrongFolder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The script could not be started for another reason.
    CannotStart {
        /// The script.
        file: PathBuf,
        /// What was being done, such as `a pipe`; empty where that is plain.
        step: Cow<'static, str>,
        /// What the system said.
        error: io::Error,
    },
    /// A variable that no environment can hold.
    BadVariable {
        /// Its name's first bytes.
        name: Excerpt,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// One variable, or all of them, are longer than the system passes on.
    TooManyVariables {
        /// The variable, or `None` for all together.
        name: Option<Excerpt>,
        /// The bytes they have.
        len: usize,
        /// The bytes they may have.
        limit: usize,
    },
    /// CONTENT_LENGTH is no number, or other than the body's length.
    BadContentLength {
        /// What it said.
        value: Excerpt,
    },
    /// The request's body is longer than what is spooled.
    BodyTooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The request's body could not be spooled.
    Spool {
        /// Where to.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A limit on what runs at the same time was reached.
    Busy {
        /// Which.
        limit: Busy,
        /// Its value.
        value: usize,
        /// How long the request waited before.
        waited: Duration,
    },
    /// The script's response head did not come in time.
    HeadTimeout {
        /// The limit.
        limit: Duration,
        /// The first bytes of what came.
        start: Excerpt,
    },
    /// The script wrote nothing for too long.
    ReadTimeout {
        /// The limit.
        limit: Duration,
        /// How many bytes of the body had come.
        received: u64,
    },
    /// The script took too long in all.
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The response head is none.
    MalformedHead {
        /// What is wrong with it.
        error: Box<HeadError>,
        /// The first bytes of what came.
        start: Excerpt,
    },
    /// The script wrote nothing at all, or stopped within its head.
    NoHead {
        /// How it ended.
        end: End,
        /// The first bytes of what came.
        start: Excerpt,
    },
    /// A signal ended the script.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The script ended with another exit code than 0. The answer passes all the same; this is for the log.
    ExitCode {
        /// The code.
        code: i32,
    },
    /// The body is shorter than its Content-Length.
    Incomplete {
        /// What Content-Length said.
        expected: u64,
        /// What came.
        received: u64,
    },
    /// Reading what the script writes failed.
    Output {
        /// What the system said.
        error: io::Error,
    },
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathFault {
    /// It does not begin with a slash.
    Relative,
    /// It holds NUL.
    Nul,
    /// A part of it is `.` or `..`.
    Dots,
    /// A part of it is empty: two slashes in a row.
    EmptyPart,
    /// It holds a backslash, which other systems and some servers take for a slash.
    Backslash,
    /// It holds a slash that was encoded in the request, so that the web server may have judged another path by its rules.
    EncodedSlash,
    /// A part of it is longer than a file's name can be, or all of it than a path can be.
    TooLong {
        /// The bytes it has.
        len: usize,
        /// The bytes it may have.
        limit: usize,
    },
}

/// A limit on what runs at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Busy {
    /// [`Config::queue`](super::Config::queue): as many requests wait as may.
    Queue,
    /// [`Config::queue_wait`](super::Config::queue_wait): it waited as long as it may, with [`Config::concurrent`](super::Config::concurrent) scripts running.
    Wait,
    /// The same, with [`Config::concurrent_per_script`](super::Config::concurrent_per_script) processes of its script running.
    WaitForScript,
    /// The host is shutting down.
    Shutdown,
}

/// How a script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It still runs, and has closed its output.
    Running,
}

impl Failure {
    /// What was expected, what came, and where it was looked for.
    pub fn cause(&self) -> String {
        self.to_string()
    }

    /// What to do about it, for the administrator.
    pub fn mend(&self) -> Cow<'static, str> {
        "".into()
    }

    /// The status that the client gets. A failure after the head was sent cuts the answer instead.
    pub fn status(&self) -> u16 {
        500
    }

    /// Where the client is sent instead, with a status of the 300s.
    pub fn location(&self) -> Option<&str> {
        match self {
            Self::NoSlash { location, .. } => Some(location),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The messages say what these said.
        None
    }
}

/// Finds out why the system did not start a script that had been found: the interpreter named in its first line, its working
/// directory, its rights. Reads the script's first bytes, which is no work for every request.
pub fn why_not_started(script: &Script, error: io::Error) -> Failure {
    Failure::CannotStart { file: script.file.clone(), step: "".into(), error }
}
