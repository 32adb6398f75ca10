//! `fastcgi:exec:PROGRAM`: a FastCGI program that is started for one request and ended after it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use gatespan::address::Endpoint;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};

use super::Request;
use super::fastcgi;
use super::outcome::{Failure, Kind, Outcome};
use super::output::Output;

/// How long a program that has closed its connection is given to end by itself.
const SETTLED: Duration = Duration::from_millis(500);

/// How long the program has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

pub(super) async fn ask(
    request: &Request<'_>,
    path: &Path,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("gatespan-").tempdir();
    let folder = folder.map_err(|error| Failure::local(format!("no folder for a socket could be made: {error}")))?;
    let socket = folder.path().join("0");
    let listener = UnixListener::bind(&socket);
    let listener = listener.map_err(|error| Failure::local(format!("no socket could be made: {error}")))?;
    let mut running = Running::start(path, listener)?;
    request.console.line('*', format_args!("started {} as process {}", path.display(), running.pid.as_raw_nonzero()));
    let mut stderr = running.stderr();
    let result = {
        let endpoint = Endpoint::Unix(socket);
        let exchange = fastcgi::ask(request, &endpoint, outcome, output);
        let mut exchange = std::pin::pin!(exchange);
        let mut text = Vec::with_capacity(4096);
        loop {
            let read = async {
                match &mut stderr {
                    Some(pipe) => pipe.read_buf(&mut text).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                result = &mut exchange => break result,
                read = read => {
                    request.console.stderr(&text);
                    text.clear();
                    if !matches!(read, Ok(1..)) {
                        stderr = None;
                    }
                }
            }
        }
    };
    // One that ends by itself before it has answered is the reason that there is no answer. Its descriptors are closed a little before.
    let is_unanswered = matches!(&result, Err(failure) if matches!(failure.kind, Kind::Protocol | Kind::Unreachable));
    let has_ended = is_unanswered && tokio::time::timeout(SETTLED, running.ended()).await.is_ok();
    let status = running.end().await;
    if let Some(mut pipe) = stderr {
        // All that it wrote is in the pipe; what it left behind, if anything, is not waited for.
        let mut rest = Vec::new();
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(50), pipe.read_buf(&mut rest)).await {}
        request.console.stderr(&rest);
    }
    match (result, status.filter(|_| has_ended)) {
        (Err(failure), Some(status)) => Err(Failure::protocol(format_args!(
            "{}: the program ended by itself ({status}): {}",
            path.display(),
            failure.message
        ))),
        (result, _) => result,
    }
}

/// The program with its group. Dropped while it runs, the group is killed.
struct Running {
    /// Until it is waited for. Before that its number can be nobody else's.
    child: Option<Child>,
    pid: Pid,
}

impl Running {
    fn start(path: &Path, listener: UnixListener) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(Kind::Unreachable, format!("{}: the program could not be started: {error}", path.display()))
        };
        // A path, never a name that would be looked for in PATH.
        let program = std::path::absolute(path).map_err(failed)?;
        let mut command = Command::new(&program);
        if let Some(directory) = program.parent() {
            command.current_dir(directory);
        }
        // FastCGI 2.2: the listening socket is descriptor 0.
        command.process_group(0).stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        Ok(Self { child: Some(child), pid })
    }

    fn stderr(&mut self) -> Option<Receiver> {
        let stderr = self.child.as_mut()?.stderr.take()?;
        Receiver::from_owned_fd(stderr.into()).ok()
    }

    /// Whether it has ended. It is not waited for yet.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    async fn ended(&self) {
        let Ok(mut children) = signal(SignalKind::child()) else { return };
        while !self.has_ended() {
            children.recv().await;
        }
    }

    /// Ends it, and what it started.
    async fn end(mut self) -> Option<ExitStatus> {
        let _ = kill_process_group(self.pid, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, self.ended()).await;
        self.kill()
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        let _ = kill_process_group(self.pid, Signal::KILL);
        // It has no choice, so this takes no time to speak of.
        child.wait().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
