//! Starting a program: what is to be run, and the one place where a process is made.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// A program that is to be started, with all that the kernel has to be told about it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Command {
    /// The path of the program: absolute, or relative to `directory`. No search path is consulted, and no shell.
    pub program: CString,
    /// The arguments, with the name of the program as the first.
    pub arguments: Vec<CString>,
    /// The whole environment, as `NAME=value`. Nothing is inherited.
    pub environment: Vec<CString>,
    /// The working directory.
    pub directory: CString,
    /// What the program may use up.
    pub limits: Limits,
    /// Whom the program runs as, if not as this process does.
    pub identity: Option<Identity>,
    /// The mode bits that the program's new files lack, if not those of this process.
    pub umask: Option<u32>,
}

impl Command {
    /// A program without further arguments, with an empty environment, in the root directory.
    pub fn new(program: CString) -> Self {
        Self {
            arguments: vec![program.clone()],
            program,
            environment: Vec::new(),
            directory: c"/".to_owned(),
            limits: Limits::default(),
            identity: None,
            umask: None,
        }
    }
}

/// What a program and its children may use up; `None` leaves the limit of this process. A limit that is stricter already
/// stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Seconds of processor time for each process (`RLIMIT_CPU`): then SIGXCPU, and SIGKILL a second later.
    pub cpu_time: Option<u64>,
    /// Bytes of address space for each process (`RLIMIT_AS`).
    pub memory: Option<u64>,
    /// Descriptors for each process (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// Processes and threads of the user in all (`RLIMIT_NPROC`). The kernel does not hold root to it.
    pub processes: Option<u64>,
    /// Bytes of each file that is written (`RLIMIT_FSIZE`): then SIGXFSZ.
    pub file_size: Option<u64>,
}

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The numbers of all groups.
    pub groups: Vec<u32>,
}

impl Identity {
    /// Looks up a user and, unless it is the user's own, a group. Both may be names or numbers.
    ///
    /// # Errors
    ///
    /// There is no such user or group, or they can't be looked up. A number that nobody has needs a group beside it.
    pub fn of_names(user: &str, group: Option<&str>) -> io::Result<Self> {
        let _ = (user, group);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct SpawnError {
    /// What was being done.
    pub step: Step,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The steps to a running program, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Finding room for it in the watcher's table.
    Watcher,
    /// Making pipes, and opening `/dev/null`.
    Pipes,
    /// Making the process.
    Process,
    /// Making it the leader of a process group.
    Group,
    /// Giving it descriptors 0, 1 and 2.
    Descriptors,
    /// Setting its limits.
    Limits,
    /// Changing to its user and groups.
    Identity,
    /// Changing to its working directory.
    Directory,
    /// Executing it: the program or its interpreter is missing, may not be executed, or is no program.
    Exec,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Watcher => "no room in the watcher's table",
            Self::Pipes => "no pipe for the program",
            Self::Process => "no process for the program",
            Self::Group => "no process group for the program",
            Self::Descriptors => "the program's descriptors could not be set",
            Self::Limits => "the program's limits could not be set",
            Self::Identity => "the program's user and groups could not be taken on",
            Self::Directory => "the program's working directory could not be entered",
            Self::Exec => "the program could not be executed",
        })
    }
}

/// Marks every descriptor above 2 that this process inherited as closed on exec.
///
/// # Errors
///
/// The system can't list or mark them.
pub fn close_on_exec_all() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Starts a program with the given descriptors 0, 1 and 2, and returns its number.
pub(super) fn spawn(command: &Command, descriptors: [BorrowedFd<'_>; 3]) -> Result<u32, SpawnError> {
    let _ = (&*command.program as &CStr, descriptors);
    Err(SpawnError { step: Step::Process, source: io::ErrorKind::Unsupported.into() })
}
