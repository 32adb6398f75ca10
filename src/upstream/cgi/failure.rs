//! Why a request to a script failed: what was expected and what came, what mends it, and which status the client gets.
//!
//! The administrator reads cause and mend in the log, and in the page only where [`Config::debug`](super::Config::debug) says so.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

pub use super::diagnosis::{not_started, why_not_started};
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
        match self {
            Self::BadPath { fault: PathFault::TooLong { .. } | PathFault::Nul, .. } => {
                "Nothing to mend here: the client asked for what can't be.".into()
            }
            Self::BadPath { variable: "PATH_INFO" | "REQUEST_URI", .. } => {
                "Nothing to mend here, unless the address was meant: then link to the script by its plain path.".into()
            }
            Self::BadPath { variable, .. } => {
                format!("Let the web server send the plain, absolute path of the script in {variable}.").into()
            }
            Self::NotFound { named: true, .. } => {
                "Put the script there, or mend SCRIPT_FILENAME (or DOCUMENT_ROOT and SCRIPT_NAME) in the web server's configuration."
                    .into()
            }
            Self::NotFound { .. } => "Put the script there, or name the folder that it lies in as a root.".into(),
            Self::OutsideRoot { link: Some(link), .. } => format!(
                "Give the link and the folder that it lies in to root (chown -h root {}), or name the folder that it leads to as a root.",
                Shown(link)
            )
            .into(),
            Self::OutsideRoot { .. } => {
                "Name the folder that it lies in as a root, or let the web server send the path of a script below one in SCRIPT_FILENAME."
                    .into()
            }
            Self::Folder { index, .. } if index.is_empty() => {
                "Ask for a script in it, or name an index file for folders.".into()
            }
            Self::Folder { .. } => "Put an index file there, or ask for a script in it.".into(),
            Self::NoSlash { .. } => "Nothing to mend: the client is sent on.".into(),
            Self::NotRegular { .. } => "Put a regular file in its place.".into(),
            Self::NotExecutable { file, mode } if mode & 0o111 == 0 => {
                format!("chmod +x {}, or name an interpreter for files of its ending.", Shown(file)).into()
            }
            Self::NotExecutable { .. } => {
                "Let the user that scripts run as execute it (owner, group, mode; the file system must not be mounted noexec)."
                    .into()
            }
            Self::Writable { path, .. } => format!("chmod o-w {}", Shown(path)).into(),
            Self::Inaccessible { .. } => {
                "Let the user that this process runs as search the folders on the way to the script.".into()
            }
            Self::TooManyLinks { .. } => "Mend the links: they go round in a circle, or are too many.".into(),
            Self::NoInterpreter { start, .. } if start.to_string().starts_with("\"\\x7fELF") => {
                "Build the program for this machine.".into()
            }
            Self::NoInterpreter { .. } => {
                "Begin the script with a line such as #!/bin/sh (its first two bytes must be #!, with nothing before them), or name an interpreter for files of its ending."
                    .into()
            }
            Self::InterpreterMissing { carriage_return: true, file, .. } => {
                format!("Give the script the line ends of Unix: sed -i 's/\\r$//' {}", Shown(file)).into()
            }
            Self::InterpreterMissing { interpreter: None, .. } => {
                "Install the loader and libraries that the program was built for, or link it statically.".into()
            }
            Self::InterpreterMissing { .. } => "Install the interpreter, or correct its path.".into(),
            Self::InterpreterDenied { interpreter, .. } => format!(
                "Let the user that scripts run as execute {}; it must be a program, not a folder.",
                Shown(interpreter)
            )
            .into(),
            Self::WrongFolder { .. } => {
                "Let the user that scripts run as search that folder and all folders above it (x in their modes).".into()
            }
            Self::CannotStart { error, .. } => cannot_start_mend(error).into(),
            Self::BadVariable { .. } => {
                "Nothing to mend here: the request is at fault, or the web server that passes it on.".into()
            }
            Self::TooManyVariables { name: Some(_), .. } => {
                "Let the web server accept shorter header fields only: the system passes on no longer ones.".into()
            }
            Self::TooManyVariables { .. } => {
                "Let the web server accept a shorter request head, or start this process with a higher limit on its stack, which this follows."
                    .into()
            }
            Self::BodyTooLarge { .. } => "Raise the limit on spooled bodies if such requests are meant.".into(),
            Self::Spool { .. } => {
                "Make room there, let this process write to it, or name another folder for spooled bodies.".into()
            }
            Self::Busy { .. } => {
                "Let more scripts run at once if the machine has room for them, or find out what makes them slow.".into()
            }
            Self::HeadTimeout { .. } | Self::ReadTimeout { .. } | Self::Timeout { .. } => {
                "Find out what the script waits for, or raise the limit; the web server in front has one of its own.".into()
            }
            Self::MalformedHead { .. } => {
                "Let the script write fields such as Content-Type: text/plain, then a blank line, before all else; debugging output belongs on standard error."
                    .into()
            }
            Self::NoHead { end: End::Exit(127), .. } => {
                "Exit code 127 mostly says that a command was not found, such as the interpreter that #!/usr/bin/env was to find in PATH. Standard error is in the log."
                    .into()
            }
            Self::NoHead { end: End::Exit(0), .. } => {
                "Let the script write at least Content-Type: text/plain and a blank line, and flush its output.".into()
            }
            Self::NoHead { end: End::Running, .. } => "Let the script write its answer before it closes its output.".into(),
            Self::NoHead { end: End::Exit(_), .. } => "See in the log what the script wrote to standard error.".into(),
            Self::NoHead { end: End::Signal(signal), .. } | Self::Signal { signal } => signal_mend(*signal).into(),
            Self::ExitCode { .. } => "See in the log what the script wrote to standard error.".into(),
            Self::Incomplete { .. } => {
                "Let the script leave Content-Length out, or count the bytes (not the characters) of its body.".into()
            }
            Self::Output { .. } => "See what the system says about it.".into(),
        }
    }

    /// The status that the client gets. A failure after the head was sent cuts the answer instead.
    ///
    /// A file that a web server names and that is missing is 403, like one that may not run: the answer that fcgiwrap gives, which people's
    /// `error_page` lines count on. Where this host walks the path itself, it is 404.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoSlash { safe: true, .. } => 301,
            // RFC 9110 15.4.9: the method is kept, as 301 does not promise.
            Self::NoSlash { safe: false, .. } => 308,
            Self::BadPath { fault: PathFault::TooLong { .. }, .. } => 414,
            // The web server's configuration, not the client.
            Self::BadPath {
                fault: PathFault::Relative,
                variable: "SCRIPT_FILENAME" | "SCRIPT_NAME" | "DOCUMENT_ROOT",
                ..
            } => 403,
            Self::BadPath { .. } | Self::BadVariable { .. } => 400,
            Self::NotFound { named: false, .. } => 404,
            Self::NotFound { .. }
            | Self::OutsideRoot { .. }
            | Self::Folder { .. }
            | Self::NotRegular { .. }
            | Self::NotExecutable { .. }
            | Self::Writable { .. }
            | Self::Inaccessible { .. }
            | Self::TooManyLinks { .. } => 403,
            // Rights, as where a script may not be executed.
            Self::WrongFolder { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => 403,
            Self::BodyTooLarge { .. } => 413,
            Self::TooManyVariables { .. } => 431,
            Self::CannotStart { error, .. } => match Errno::from_io_error(error) {
                Some(Errno::TOOBIG) => 431,
                // What passes by itself.
                Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::TXTBSY) => 503,
                _ => 500,
            },
            Self::NoInterpreter { .. }
            | Self::InterpreterMissing { .. }
            | Self::InterpreterDenied { .. }
            | Self::WrongFolder { .. }
            | Self::Spool { .. } => 500,
            Self::Busy { .. } => 503,
            Self::HeadTimeout { .. } | Self::ReadTimeout { .. } | Self::Timeout { .. } => 504,
            Self::MalformedHead { .. }
            | Self::NoHead { .. }
            | Self::Signal { .. }
            | Self::ExitCode { .. }
            | Self::Incomplete { .. }
            | Self::Output { .. } => 502,
        }
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
        match self {
            Self::BadPath { variable, path, fault } => {
                write!(f, "expected the path of a script in {variable}, got {path}, which {fault}")
            }
            Self::NotFound { looked, .. } => {
                f.write_str("expected a script, found none at ")?;
                list(f, looked, " or ")
            }
            Self::OutsideRoot { file, link, roots } => {
                f.write_str("expected a script below ")?;
                list(f, roots, " or ")?;
                write!(f, ", got {}", Shown(file))?;
                match link {
                    Some(link) => write!(
                        f,
                        ", led there by {}: root does not own both the link and the folder that it lies in",
                        Shown(link)
                    ),
                    None => Ok(()),
                }
            }
            Self::Folder { folder, index } if index.is_empty() => {
                write!(f, "expected a script, got the folder {}", Shown(folder))
            }
            Self::Folder { folder, index } => {
                write!(f, "expected a script, got the folder {}, in which there is no ", Shown(folder))?;
                list(f, index, " or ")
            }
            Self::NoSlash { location, .. } => write!(f, "expected a slash at the end of a folder's path: {location}"),
            Self::NotRegular { file, kind } => write!(f, "expected a regular file, got {kind} at {}", Shown(file)),
            Self::NotExecutable { file, mode } if mode & 0o111 == 0 => {
                write!(
                    f,
                    "expected a script that may be executed, got {} with mode {mode:04o}: no exec bit is set",
                    Shown(file)
                )
            }
            Self::NotExecutable { file, mode } => write!(
                f,
                "expected a script that may be executed, got {} with mode {mode:04o}, which this user may not execute",
                Shown(file)
            ),
            Self::Writable { file, path, mode } if file == path => write!(
                f,
                "expected a script or folder that only its owner and group can write to, got {} with mode {mode:04o}",
                Shown(file)
            ),
            Self::Writable { file, path, mode } => write!(
                f,
                "expected {} in folders that only their owners and groups can write to, got {} with mode {mode:04o}",
                Shown(file),
                Shown(path)
            ),
            Self::Inaccessible { path, error } => {
                write!(f, "expected a script, {} can't be looked at: {error}", Shown(path))
            }
            Self::TooManyLinks { path } => {
                write!(f, "expected a script, got more links than the system follows, from {} on", Shown(path))
            }
            Self::NoInterpreter { file, start } => write!(
                f,
                "expected a program or a script with #! and an interpreter in its first line, got {}, which begins with {start}",
                Shown(file)
            ),
            Self::InterpreterMissing { file, interpreter: Some(interpreter), carriage_return } => {
                write!(
                    f,
                    "expected the interpreter of {} at {}, where there is none",
                    Shown(file),
                    Shown(interpreter)
                )?;
                match carriage_return {
                    true => f.write_str(
                        ": the script's first line ends in a carriage return, which counts as a part of the name",
                    ),
                    false => Ok(()),
                }
            }
            Self::InterpreterMissing { file, .. } => {
                write!(f, "expected the loader that {} was linked for, which is not there", Shown(file))
            }
            Self::InterpreterDenied { file, interpreter } => {
                write!(f, "expected an interpreter of {} that may be executed, got {}", Shown(file), Shown(interpreter))
            }
            Self::WrongFolder { folder, error } => {
                write!(f, "expected the working directory {}, which can't be entered: {error}", Shown(folder))
            }
            Self::CannotStart { file, step, error } if step.is_empty() => {
                write!(f, "expected {} to start, and the system refused: {error}", Shown(file))
            }
            Self::CannotStart { file, step, error } => {
                write!(f, "expected {} to start, and {step}: {error}", Shown(file))
            }
            Self::BadVariable { name, fault } => {
                write!(f, "expected variables that an environment can hold, got {name}, {fault}")
            }
            Self::TooManyVariables { name: Some(name), len, limit } => {
                write!(f, "expected a variable of at most {limit} bytes, got {name} with {len}")
            }
            Self::TooManyVariables { name: None, len, limit } => {
                write!(f, "expected variables of at most {limit} bytes in all, got {len}")
            }
            Self::BodyTooLarge { limit } => write!(f, "expected a body of at most {limit} bytes, got a longer one"),
            Self::Spool { folder, error } => {
                write!(f, "expected to keep the request's body in {}, and could not: {error}", Shown(folder))
            }
            Self::Busy { limit: Busy::Queue, value, .. } => {
                write!(f, "expected room for one more request in the queue, and all of {value} wait already")
            }
            Self::Busy { limit: Busy::Wait, value, waited } => {
                write!(f, "expected a free place, and all of {value} ran scripts for {waited:.1?}")
            }
            Self::Busy { limit: Busy::WaitForScript, value, waited } => {
                write!(
                    f,
                    "expected a free place, and {value} processes of this script, as many as may, ran for {waited:.1?}"
                )
            }
            Self::HeadTimeout { limit, start } => {
                write!(f, "expected a response head within {limit:?}, got {start} so far")
            }
            Self::ReadTimeout { limit, received } => {
                write!(f, "expected output at least every {limit:?}, got none after {received} bytes of the body")
            }
            Self::Timeout { limit } => write!(f, "expected the script to end within {limit:?}, and it still ran"),
            Self::MalformedHead { error, start } => write!(f, "{error}; the output begins with {start}"),
            Self::NoHead { end, start } => {
                write!(f, "expected a response head, got {start}, and then the script {end}")
            }
            Self::Signal { signal } => {
                write!(f, "expected the script to end by itself, and {} ended it", SignalName(*signal))
            }
            Self::ExitCode { code } => write!(f, "expected exit code 0, got {code}"),
            Self::Incomplete { expected, received } => {
                write!(f, "expected a body of {expected} bytes, as its Content-Length said, got {received}")
            }
            Self::Output { error } => write!(f, "expected to read what the script writes: {error}"),
        }
    }
}

/// The messages hold what the system said already, so that there is no source to print once more.
impl std::error::Error for Failure {}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative => f.write_str("does not begin with a slash"),
            Self::Nul => f.write_str("holds NUL"),
            Self::Dots => f.write_str("has . or .. as a part"),
            Self::EmptyPart => f.write_str("has two slashes in a row"),
            Self::Backslash => f.write_str("holds a backslash"),
            Self::EncodedSlash => f.write_str("was sent with an encoded slash in the script's part"),
            Self::TooLong { len, limit } => write!(f, "has {len} bytes where {limit} may be"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "was ended by {}", SignalName(*signal)),
            Self::Running => f.write_str("closed its output and ran on"),
        }
    }
}

fn cannot_start_mend(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::TOOBIG) => {
            "Let the web server accept a shorter request head, or start this process with a higher limit on its stack, which the system's limit on variables follows."
        }
        Some(Errno::AGAIN | Errno::NOMEM) => {
            "Let fewer scripts run at once, or raise the limits on processes and memory."
        }
        Some(Errno::MFILE | Errno::NFILE) => "Raise the limit on open files, or let fewer scripts run at once.",
        Some(Errno::TXTBSY) => {
            "Nothing to mend: the program is being written to. Replace programs by renaming, and this does not happen."
        }
        Some(Errno::LOOP) => "Name a program as the script's interpreter, not a script that has one in turn.",
        Some(Errno::PERM | Errno::ACCESS) => {
            "Give this process the rights it needs: changing the user or raising limits is root's."
        }
        _ => "See what the system says about it.",
    }
}

fn signal_mend(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGABRT | libc::SIGTRAP => {
            "The program crashed: see its standard error in the log, and mend it."
        }
        libc::SIGXCPU => "It used up its processor time: raise that limit, or find out what takes so long.",
        libc::SIGXFSZ => "It wrote a file over its limit: raise that limit, or find out what it writes.",
        libc::SIGKILL => "Somebody killed it, or the system was out of memory: see the kernel's log.",
        libc::SIGSYS => "It made a system call that is forbidden here: see the service's sandbox.",
        _ => "Find out who sent the signal.",
    }
}

/// A signal's number, and its name where it has one.
struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::SIGHUP => "HUP",
            libc::SIGINT => "INT",
            libc::SIGQUIT => "QUIT",
            libc::SIGILL => "ILL",
            libc::SIGTRAP => "TRAP",
            libc::SIGABRT => "ABRT",
            libc::SIGBUS => "BUS",
            libc::SIGFPE => "FPE",
            libc::SIGKILL => "KILL",
            libc::SIGUSR1 => "USR1",
            libc::SIGSEGV => "SEGV",
            libc::SIGUSR2 => "USR2",
            libc::SIGPIPE => "PIPE",
            libc::SIGALRM => "ALRM",
            libc::SIGTERM => "TERM",
            libc::SIGXCPU => "XCPU",
            libc::SIGXFSZ => "XFSZ",
            libc::SIGSYS => "SYS",
            number => return write!(f, "signal {number}"),
        };
        write!(f, "signal {} ({name})", self.0)
    }
}

/// A path for a message: what would end a line or colour a terminal is escaped, and text in any language is not.
struct Shown<'a, T: ?Sized>(&'a T);

impl<T: AsRef<OsStr> + ?Sized> fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_ref().as_bytes().utf8_chunks() {
            for character in chunk.valid().chars() {
                match character.is_control() {
                    true => write!(f, "{}", character.escape_default())?,
                    false => write!(f, "{character}")?,
                }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

fn list<T: AsRef<OsStr>>(f: &mut fmt::Formatter<'_>, all: &[T], between: &str) -> fmt::Result {
    for (place, one) in all.iter().enumerate() {
        write!(f, "{}{}", if place == 0 { "" } else { between }, Shown(one))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind, as far as no other test makes it.
    fn all() -> Vec<Failure> {
        let start = || Excerpt::new(b"Hello\n");
        let second = Duration::from_secs(1);
        let error = || io::Error::from_raw_os_error(libc::ENOSPC);
        vec![
            Failure::NoSlash { location: "/x/".into(), safe: true },
            Failure::BadVariable { name: start(), fault: "which holds NUL" },
            Failure::TooManyVariables { name: None, len: 5, limit: 4 },
            Failure::BodyTooLarge { limit: 4 },
            Failure::Spool { folder: "/tmp".into(), error: error() },
            Failure::Busy { limit: Busy::Queue, value: 4, waited: second },
            Failure::Busy { limit: Busy::Wait, value: 4, waited: second },
            Failure::Busy { limit: Busy::WaitForScript, value: 4, waited: second },
            Failure::HeadTimeout { limit: second, start: start() },
            Failure::ReadTimeout { limit: second, received: 7 },
            Failure::Timeout { limit: second },
            Failure::MalformedHead { error: HeadError::NoColon { line: start() }.into(), start: start() },
            Failure::NoHead { end: End::Exit(0), start: start() },
            Failure::NoHead { end: End::Exit(127), start: start() },
            Failure::NoHead { end: End::Signal(libc::SIGSEGV), start: start() },
            Failure::NoHead { end: End::Running, start: start() },
            Failure::Signal { signal: libc::SIGKILL },
            Failure::Signal { signal: 64 },
            Failure::ExitCode { code: 3 },
            Failure::Incomplete { expected: 5, received: 4 },
            Failure::Output { error: error() },
        ]
    }

    #[test]
    fn each_failure_says_what_was_expected_what_mends_it_and_its_status() {
        for failure in all() {
            assert!(failure.cause().starts_with("expected "), "{failure}");
            assert!(!failure.mend().is_empty() && !failure.mend().contains("  "), "{failure:?}");
            assert_eq!(failure.location().is_some(), (300..400).contains(&failure.status()));
        }
        let causes: Vec<String> = all().iter().map(Failure::cause).collect();
        for expected in [
            "expected the script to end by itself, and signal 9 (KILL) ended it",
            "expected a response head, got \"Hello\\n\", and then the script was ended by signal 11 (SEGV)",
            "expected a response head within 1s, got \"Hello\\n\" so far",
        ] {
            assert!(causes.iter().any(|cause| cause == expected), "{causes:#?}");
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_the_path() {
        let failure =
            Failure::NotFound { looked: vec![OsStr::from_bytes(b"/a\n\x1b[31m\xff\xc3\xa9").into()], named: false };
        assert_eq!(failure.cause(), "expected a script, found none at /a\\n\\u{1b}[31m\\xffé");
    }

    #[test]
    fn a_failure_is_small_enough_to_be_handed_on() {
        assert!(size_of::<Failure>() <= 128, "{}", size_of::<Failure>());
    }
}
