//! FastCGI programs that this process starts, watches and renews, and forwards requests to.
//!
//! Each worker is a server of its own to the forwarder: it finds a listening socket of its own on descriptor 0 (FastCGI 2.2), gets as many requests
//! at once as it can take, and is counted and renewed by itself. The socket stays when its process does not, so that what connects in between
//! waits for the next.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pool::Pool;
use super::stderr::{MAX_LINE_LEN, printable};
use super::{Config, ConfigError, Forwarder};
use crate::address::Endpoint;
use crate::upstream::watcher::{Place, Watcher};

/// A FastCGI program and how it is kept running.
#[derive(Debug, Clone)]
pub struct ProgramConfig {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments. Default: none.
    pub arguments: Vec<OsString>,
    /// The folder it is started in. Default: the one that the program lies in.
    pub directory: Option<PathBuf>,
    /// How many processes there are. Default: as many as there are processors.
    pub workers: usize,
    /// How many requests each of them serves at once. It takes the place of [`Config::connections`]. Default: 1, as most FastCGI programs do.
    pub requests_at_once: usize,
    /// After how many requests a process is replaced by a new one. Default: never.
    pub max_requests: Option<u64>,
    /// Variables of its environment. It has these, those of `pass_environment`, and of this process's own PATH, HOME, USER, LANG, LC_ALL, TZ and
    /// TMPDIR.
    pub environment: Vec<(OsString, OsString)>,
    /// Further variables of this process's own environment that it gets. Default: none.
    pub pass_environment: Vec<OsString>,
    /// How long to wait before a process is started in the place of one that ended by itself; twice as long each time. One that ended well after it
    /// had served requests is replaced at once. Default: 100 ms.
    pub backoff: Duration,
    /// The most that is waited. Default: 30 s.
    pub backoff_max: Duration,
    /// How long a process must have run to be started again as if it were the first time. Default: 10 s.
    pub stable_after: Duration,
    /// How long a process that is to end may go on with the requests it has. Default: 30 s.
    pub drain: Duration,
    /// Who ends the processes when this one is killed. Default: nobody.
    pub watcher: Option<Watcher>,
    /// How long it may then take from SIGTERM to its end, before its process group gets SIGKILL. Default: 5 s.
    pub kill_grace: Duration,
}

impl ProgramConfig {
    /// How a program is kept running unless it is said otherwise.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            directory: None,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            requests_at_once: 1,
            max_requests: None,
            environment: Vec::new(),
            pass_environment: Vec::new(),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            stable_after: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            watcher: None,
            kill_grace: Duration::from_secs(5),
        }
    }
}

/// What a program's environment takes over from this process's.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// Why programs can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Nothing is there, or it can't be run.
    #[error("expected a FastCGI program at {}, got {problem}", path.display())]
    Program {
        /// Where it should be.
        path: PathBuf,
        /// What is there instead.
        problem: String,
    },
    /// No socket could be made for it.
    #[error("no socket could be made for the program")]
    Socket(#[source] io::Error),
    /// Settings under which nothing could be forwarded.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Running programs. They end when this is dropped, in the background; [`Programs::shutdown`] waits for that.
///
/// If this process is killed by SIGKILL, they go on without anybody who asks them anything, unless [`ProgramConfig::watcher`] ends them.
#[derive(Debug)]
pub struct Programs {
    forwarder: Forwarder<Endpoint>,
    stop: CancellationToken,
    workers: TaskTracker,
}

impl Programs {
    /// Starts a program's workers. To be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the program can't be run, no socket can be made, or `config` says what can't be. A program that ends at once is no error: it is started
    /// again, ever more slowly, and requests that wait for it for too long are answered with 503.
    pub fn start(program: ProgramConfig, mut config: Config) -> Result<Self, ProgramError> {
        let program = Arc::new(check(program)?);
        if program.workers == 0 {
            return Err(ConfigError::Zero("workers").into());
        }
        config.connections = program.requests_at_once;
        // A folder that nobody else can enter, so that it makes no difference what mode its sockets have.
        let folder = tempfile::Builder::new().prefix("gatespan-").tempdir().map_err(ProgramError::Socket)?;
        let folder = Arc::new(folder);
        let mut endpoints = Vec::new();
        let mut listeners = Vec::new();
        for number in 0..program.workers {
            let path = folder.path().join(number.to_string());
            listeners.push(UnixListener::bind(&path).map_err(ProgramError::Socket)?);
            endpoints.push(Endpoint::Unix(path));
        }
        let forwarder = Forwarder::new(endpoints, config)?;
        let (stop, workers) = (CancellationToken::new(), TaskTracker::new());
        for (index, listener) in listeners.into_iter().enumerate() {
            // Until its process is there.
            forwarder.pool.hold(index);
            let worker =
                Worker { index, listener, program: program.clone(), pool: forwarder.pool.clone(), stop: stop.clone() };
            let folder = folder.clone();
            workers.spawn(async move {
                worker.run().await;
                // The last one takes it away.
                drop(folder);
            });
        }
        workers.close();
        Ok(Self { forwarder, stop, workers })
    }

    /// The application.
    pub fn forwarder(&self) -> &Forwarder<Endpoint> {
        &self.forwarder
    }

    /// Lets the workers finish their requests, within limits, and ends them.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.workers.wait().await;
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn check(mut program: ProgramConfig) -> Result<ProgramConfig, ProgramError> {
    let refuse =
        |problem: &dyn ToString| ProgramError::Program { path: program.program.clone(), problem: problem.to_string() };
    // A path, never a name that would be looked for in PATH.
    let path = std::path::absolute(&program.program).map_err(|error| refuse(&error))?;
    let metadata = path.metadata().map_err(|error| refuse(&error))?;
    if !metadata.is_file() {
        return Err(refuse(&"something that is no file"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(refuse(&"a file that nobody may execute"));
    }
    program.program = path;
    Ok(program)
}

/// One process after the other, on one socket.
struct Worker {
    index: usize,
    listener: UnixListener,
    program: Arc<ProgramConfig>,
    pool: Arc<Pool<Endpoint>>,
    stop: CancellationToken,
}

impl Worker {
    async fn run(self) {
        let Self { index, program, pool, stop, .. } = &self;
        let mut failures = 0;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let requests = program.max_requests.unwrap_or(u64::MAX).max(1);
            let outcome = match self.spawn() {
                Ok(process) => {
                    pool.resume(*index, requests);
                    tokio::select! {
                        exited = process.exited() => Err(exited.and_then(|()| process.reap())),
                        () = pool.used_up(*index) => Ok(process),
                        () = stop.cancelled() => Ok(process),
                    }
                }
                Err(error) => Err(Err(error)),
            };
            match outcome {
                Ok(process) => {
                    pool.pause(*index, program.drain).await;
                    process.end(program.kill_grace).await;
                    failures = 0;
                }
                Err(ended) => {
                    // What was asked of it meanwhile is asked of others, or of its successor.
                    pool.hold(*index);
                    let is_well = matches!(&ended, Ok(status) if status.success()) && pool.left(*index) < requests;
                    if is_well {
                        // Some programs renew themselves after a number of requests.
                        failures = 0;
                        continue;
                    }
                    if started.elapsed() >= program.stable_after {
                        failures = 0;
                    }
                    let pause = program.backoff.saturating_mul(1 << failures).min(program.backoff_max);
                    failures = (failures + 1).min(20);
                    let (path, ended) = (program.program.display(), Ended(ended));
                    tracing::warn!(program = %path, worker = index, "{ended}; it is started again in {pause:?}");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
        pool.hold(*index);
    }

    fn spawn(&self) -> io::Result<Process> {
        let program = &self.program;
        let mut command = Command::new(&program.program);
        command.args(&program.arguments).env_clear().process_group(0);
        for name in INHERITED.iter().map(OsString::from).chain(program.pass_environment.iter().cloned()) {
            if let Some(value) = std::env::var_os(&name) {
                command.env(name, value);
            }
        }
        command.envs(program.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = program.directory.as_deref().or(program.program.parent()) {
            command.current_dir(directory);
        }
        // FastCGI 2.2: the listening socket is descriptor 0, and there is nobody at the other end of standard output.
        command.stdin(OwnedFd::from(self.listener.try_clone()?)).stdout(Stdio::null()).stderr(Stdio::piped());
        let place = self.program.watcher.as_ref().map(|watcher| watcher.watch(&mut command)).transpose()?;
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        if let Some(stderr) = child.stderr.take() {
            let name = program.program.display().to_string();
            match pipe::Receiver::from_owned_fd(stderr.into()) {
                Ok(stderr) => drop(tokio::spawn(log(stderr, name, pid))),
                Err(error) => tracing::warn!(program = name, "its standard error is lost: {error}"),
            }
        }
        Ok(Process { child: Some(child), pid, place })
    }
}

/// A process with its group. Dropped while it runs, the group is killed.
struct Process {
    /// Until it is reaped. Before that its number can be nobody else's.
    child: Option<Child>,
    pid: Pid,
    /// Where the watcher finds the group; given up before it is reaped.
    place: Option<Place>,
}

impl Process {
    /// Waits until it has ended, without reaping it.
    async fn exited(&self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(self.pid), options)?.is_none() {
            children.recv().await;
        }
        Ok(())
    }

    /// Ends what is left of the group of a process that has ended, and asks how that was.
    fn reap(mut self) -> io::Result<ExitStatus> {
        let _ = kill_process_group(self.pid, Signal::KILL);
        self.place = None;
        match self.child.take() {
            Some(mut child) => child.wait(),
            None => Ok(ExitStatus::default()),
        }
    }

    /// SIGTERM, and SIGKILL after the grace.
    async fn end(self, grace: Duration) {
        let _ = kill_process_group(self.pid, Signal::TERM);
        if timeout(grace, self.exited()).await.is_err() {
            tracing::warn!(pid = self.pid.as_raw_nonzero(), "did not end {grace:?} after SIGTERM and is killed");
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = self.exited().await;
        }
        let _ = self.reap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.place = None;
            // It has no choice, so this takes no time to speak of.
            let _ = child.wait();
        }
    }
}

/// How a process ended, as a sentence.
struct Ended(io::Result<ExitStatus>);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Ok(status) => write!(f, "the program ended by itself ({status})"),
            Err(error) => write!(f, "the program could not be started: {error}"),
        }
    }
}

/// Passes a program's standard error on to the log, line by line.
async fn log(mut stderr: pipe::Receiver, program: String, pid: Pid) {
    let mut buffer = BytesMut::new();
    loop {
        let is_over = !matches!(stderr.read_buf(&mut buffer).await, Ok(1..));
        loop {
            let end = match memchr::memchr(b'\n', &buffer) {
                Some(end) => end + 1,
                None if is_over || buffer.len() >= MAX_LINE_LEN => buffer.len(),
                None => break,
            };
            let line = buffer.split_to(end);
            if let Some(text) = printable(&line) {
                tracing::warn!(program, pid = pid.as_raw_nonzero(), "stderr: {text}");
            }
            if buffer.is_empty() {
                break;
            }
        }
        if is_over {
            return;
        }
    }
}
