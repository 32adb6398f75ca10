//! The settings of the script host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::spawn::{Identity, Limits};
use crate::application::for_ever::bound;
use crate::protocol::cgi;
use crate::upstream::watcher::Watcher;

/// Where scripts lie, how they are run, and how far they may go. Start from [`Config::default`] and change what differs; either
/// [`Config::roots`] or [`Config::program`] must be named.
///
/// The times are those that people's configurations already count on: nginx's `fastcgi_read_timeout` and Apache's `Timeout` are
/// 60 seconds too. Where one of them is raised for slow scripts, raise it here as well.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The folders that scripts may lie in, tried in this order. Each is resolved when the host is made, so that one that is named by a
    /// link is looked up anew only by a new host. Nothing outside is run, except through links that root owns. Default: none.
    pub roots: Vec<PathBuf>,
    /// One program for all requests, instead of folders. Default: none.
    pub program: Option<PathBuf>,
    /// The files that answer for the folder they lie in, tried in this order. A folder that is asked for without the slash at its
    /// end is then redirected to the address with it. Default: none, and a folder is refused.
    pub index: Vec<OsString>,
    /// Programs that run the files whose names end so (`.py`, `/usr/bin/python3`), which then need neither a `#!` line nor permission to be
    /// executed. The longest ending that fits counts. Default: none.
    pub interpreters: Vec<(OsString, PathBuf)>,
    /// Variables for every script. They win over what the web server and this process have under that name. Those
    /// that are made from the script that was found and from the request's body can't be set. Default: none.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables that are passed on although they steer loaders or interpreters, if the web server sent them, and from this process's own
    /// environment if it did not. A `*` at the end stands for any rest. Default: none.
    pub pass_environment: Vec<OsString>,
    /// Variables of this process that scripts get. A `*` at the end stands for any rest. Default: [`Config::INHERIT`].
    pub inherit: Vec<OsString>,
    /// Whether scripts see the clients' `Authorization` (and `Proxy-Authorization`), which RFC 3875 9.2 leaves to the administrator. Apache and
    /// HAProxy have taken it out before it arrives here, nginx has not, and fcgiwrap passes it on. Default: true.
    pub authorization: bool,
    /// What becomes of a request body whose length is not known beforehand. Default: [`RequestBody::Spool`].
    pub request_body: RequestBody,
    /// How much of a spooled body is kept in memory, in bytes, before it goes to a file. Default: 64 KiB.
    pub spool_memory: usize,
    /// The longest body that is spooled, in bytes. Over it is 413. Default: 1 GiB.
    pub spool_limit: u64,
    /// Where the files of spooled bodies lie, which have no name there. Default: the folder that TMPDIR names, else `/tmp`.
    pub spool_folder: Option<PathBuf>,
    /// How long a script may take to the end of its response head. Over it is 504. Default: 60 seconds.
    pub head_timeout: Duration,
    /// How long a script may write nothing after that, while its client takes what it writes. An event stream needs a sign of life more
    /// often than that, as it does behind nginx. Default: 60 seconds.
    pub read_timeout: Duration,
    /// How long a script may take in all. Default: no limit, since a large download may take hours and harm nobody.
    pub timeout: Option<Duration>,
    /// How long a script may work on after its response has ended, having closed its output or been cut off at its Content-Length. It counts as
    /// running all the while. Default: 60 seconds.
    pub linger: Duration,
    /// How long the output is read on after a script has ended while something that it started still holds the output. Then the
    /// response ends. Default: 250 milliseconds.
    pub leftover_grace: Duration,
    /// How long a script's process group has between TERM and KILL. Default: 5 seconds.
    pub kill_grace: Duration,
    /// Whether processes that a script leaves running are ended when it ends. Default: false, since scripts start services on purpose.
    pub kill_leftovers: bool,
    /// How long a thread may stand still until a script is over that was quick when it last ran, since to be told of its end would cost as much
    /// as a small script itself. Threads of the runtime do so too, all but one at a time, and while such a script is executed; what was never run before, or took
    /// long to be executed, holds up none. With zero no thread of the runtime ever stands still for a script. Default: 1 millisecond.
    pub standstill: Duration,
    /// How many scripts may run at once. fcgiwrap runs one unless told otherwise, and then one slow script stops them all. Default: 64.
    pub concurrent: usize,
    /// How many processes of one script may run at once. Default: no limit but [`Config::concurrent`].
    pub concurrent_per_script: Option<usize>,
    /// How many requests may wait for their turn. One more is answered with 503 and Retry-After. Default: 256.
    pub queue: usize,
    /// How long a request may wait for its turn before that is its answer. Default: 10 seconds.
    pub queue_wait: Duration,
    /// How long a response head may be. Default: 64 KiB and 256 fields.
    pub head_limits: cgi::Limits,
    /// What a script may use up. Default: as much as this process.
    pub limits: Limits,
    /// Whom scripts run as. Default: as this process.
    pub identity: Option<Identity>,
    /// Whether the query of a GET or HEAD request without `=` becomes arguments (RFC 3875 4.4). No word of it ever begins with a
    /// hyphen. Default: false, since programs have taken such words for options (CVE-2012-1823).
    pub isindex: bool,
    /// Whether output that begins with a status line is taken for that of an NPH script, which speaks HTTP itself (RFC 3875 5). The output
    /// tells, not the script's name, since no other head can begin so. Default: true.
    pub nph: bool,
    /// Whether what scripts write to standard error also goes to the web server's log ([`Environ::errors`](crate::Environ::errors)). Default: false.
    pub stderr_to_web_server: bool,
    /// Whether error pages say why the request failed and what mends it, which is for nobody but the administrator to read. Default: false.
    pub debug: bool,
    /// The process that ends running scripts if this one is killed. Default: none.
    pub watcher: Option<Watcher>,
}

impl Config {
    /// The variables of this process that scripts get unless told otherwise: where programs are (a script is lost without it), language,
    /// time zone, and the name of the machine. Not HOME, USER and the like: they are those of whoever started the bridge.
    pub const INHERIT: [&str; 5] = ["PATH", "LANG", "LC_*", "TZ", "HOSTNAME"];
}

impl Config {
    /// The same, with times that can be added to any that it will be.
    pub(super) fn with_times_that_end(mut self) -> Self {
        let Self { head_timeout, read_timeout, linger, leftover_grace, kill_grace, queue_wait, .. } = &mut self;
        bound([head_timeout, read_timeout, linger, leftover_grace, kill_grace, queue_wait]);
        bound(&mut self.timeout);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            program: None,
            index: Vec::new(),
            interpreters: Vec::new(),
            environment: Vec::new(),
            pass_environment: Vec::new(),
            inherit: Self::INHERIT.map(OsString::from).into(),
            authorization: true,
            request_body: RequestBody::Spool,
            spool_memory: 64 << 10,
            spool_limit: 1 << 30,
            spool_folder: None,
            head_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            timeout: None,
            linger: Duration::from_secs(60),
            leftover_grace: Duration::from_millis(250),
            kill_grace: Duration::from_secs(5),
            kill_leftovers: false,
            standstill: Duration::from_millis(1),
            concurrent: 64,
            concurrent_per_script: None,
            queue: 256,
            queue_wait: Duration::from_secs(10),
            head_limits: cgi::Limits::default(),
            limits: Limits::default(),
            identity: None,
            isindex: false,
            nph: true,
            stderr_to_web_server: false,
            debug: false,
            watcher: None,
        }
    }
}

/// What becomes of a request body whose length is not known beforehand, such as a chunked one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestBody {
    /// It is read to its end before the script is started, which then gets CONTENT_LENGTH: most scripts read nothing without.
    #[default]
    Spool,
    /// The script is started at once, without CONTENT_LENGTH, and reads up to the end of its input.
    Stream,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Neither folders nor a program.
    #[error("expected a folder of scripts or a program, and neither is named")]
    Nothing,
    /// Folders and a program.
    #[error("expected folders of scripts or a program, and both are named: {} and {}", root.display(), program.display())]
    Both {
        /// The first folder.
        root: PathBuf,
        /// The program.
        program: PathBuf,
    },
    /// A root that can't be used.
    #[error("expected a folder of scripts at {}", path.display())]
    Root {
        /// As it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// A root, or a folder above it, that others can write to, so that anybody could put a script there.
    #[error("expected a folder that only its owner and group can write to, and others can write to {} (mode {mode:o}){}", folder.display(), lies_in(path, folder))]
    Writable {
        /// The root or program.
        path: PathBuf,
        /// What others can write to.
        folder: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// A program or interpreter that can't be run.
    #[error("expected a program at {}", path.display())]
    Program {
        /// As it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// An ending that no file name has, or that all have.
    #[error("expected the ending of file names, such as .py, got \"{}\"", .0.display())]
    Ending(OsString),
    /// An index that is no file name.
    #[error("expected the name of a file as index, got \"{}\"", .0.display())]
    Index(OsString),
    /// A variable that no environment can hold.
    #[error("expected a variable's name without = and NUL and a value without NUL, got \"{}\"", .0.display())]
    Variable(OsString),
    /// A variable that is made from the request and the script, or that would be taken for a request's header.
    #[error("expected a variable that may be set, and {} is {why}", name.display())]
    Fixed {
        /// The variable.
        name: OsString,
        /// Why it may not.
        why: &'static str,
    },
}

fn lies_in(path: &Path, folder: &Path) -> String {
    if path == folder { String::new() } else { format!(", which {} lies in", path.display()) }
}
