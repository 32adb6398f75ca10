//! Starting a program: what is to be run, and the one place where a process is made.

mod child;
mod identity;
mod descriptors;
pub(super) mod threads;

use std::ffi::CString;
use std::fmt;
use std::io;

pub(super) use child::spawn;
pub use descriptors::close_on_exec_all;
pub(super) use descriptors::{signal_group, watched};

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
///
/// It takes root, or the capabilities to change both. For the moment between taking on the identity and executing the program a process of that user shares this one's
/// memory, and the kernel protects it as it does everywhere: this process is not dumpable any more from then on, so that no
/// debugger of that user can attach to either, and a bridge that is not root can't list its own `/proc/self/fd`.
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
        identity::of_names(user, group)
    }
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {}", meaning(*.step, .source))]
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

/// What the system's word for it means where it could mislead.
fn meaning(step: Step, source: &io::Error) -> String {
    let hint = match (step, source.raw_os_error()) {
        (Step::Exec, Some(libc::ENOENT)) => {
            "expected the program, and the interpreter that its first line or its format names, to be there"
        }
        (Step::Exec, Some(libc::EACCES)) => {
            "expected the program and its interpreter to be files that its user may execute (mode, folders above, noexec)"
        }
        (Step::Exec, Some(libc::ENOEXEC)) => {
            "expected a program for this machine, or a script whose first line begins with #!"
        }
        (Step::Exec, Some(libc::E2BIG)) => "expected shorter arguments and environment",
        (Step::Identity, Some(libc::EPERM)) => {
            "expected to be root, or to have the capabilities to change user and groups"
        }
        (Step::Process | Step::Exec, Some(libc::EAGAIN)) => "expected the user to have fewer processes than the limit",
        _ => return source.to_string(),
    };
    format!("{hint}: {source}")
}
