//! A running program: its pipes, its exit, and the end of its process group.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::ExitStatus;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::spawn::{Command, SpawnError, Step};
use super::watcher::Watcher;

/// A running program, the leader of a process group of its own.
///
/// Dropped while it runs, it is ended as by [`end`](Self::end).
#[derive(Debug)]
#[non_exhaustive]
pub struct Process {
    /// The program's input, if it was started with [`Input::Pipe`]. Dropping it is the end of the input.
    pub stdin: Option<pipe::Sender>,
    /// The program's output.
    pub stdout: Option<pipe::Receiver>,
    /// What the program says about itself.
    pub stderr: Option<pipe::Receiver>,
}

/// What a program reads as its descriptor 0.
#[derive(Debug)]
pub enum Input {
    /// Nothing: `/dev/null`.
    Nothing,
    /// What is written to [`Process::stdin`].
    Pipe,
    /// A file, from where it stands.
    File(OwnedFd),
}

/// How programs are started and ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// How long a group that was told to end has until it is killed. 5 s by default.
    pub grace: Duration,
    /// Whether what a program leaves behind in its group when it exits is ended too. Off by default.
    pub kill_leftovers: bool,
    /// Who ends the group when this process is killed. Nobody by default.
    pub watcher: Option<Watcher>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { grace: Duration::from_secs(5), kill_leftovers: false, watcher: None }
    }
}

impl Process {
    /// Starts a program. To be called within a tokio runtime.
    ///
    /// Cancel safe: a program that was started for nobody is ended.
    ///
    /// # Errors
    ///
    /// See [`Step`].
    pub async fn start(command: Command, input: Input, settings: &Settings) -> Result<Self, SpawnError> {
        let _ = (command, input, settings);
        Err(SpawnError { step: Step::Process, source: io::ErrorKind::Unsupported.into() })
    }

    /// The number of the process, and of its group.
    pub fn id(&self) -> u32 {
        0
    }

    /// Waits until the program has exited, and takes leave of it. What else is in its group runs on, unless
    /// [`Settings::kill_leftovers`] says otherwise; that goes on in the background then.
    ///
    /// Cancel safe. Called again, it returns the same.
    ///
    /// # Errors
    ///
    /// Somebody else in this process has waited for the program.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends the whole group: SIGTERM, and SIGKILL after [`Settings::grace`] for what is left, always before the leader
    /// is waited for, so that the group's number can't be another's by then.
    ///
    /// It happens in the background, whether the returned future is polled or not.
    pub fn end(self) -> Ending {
        Ending(tokio::spawn(async { Err(io::ErrorKind::Unsupported.into()) }))
    }
}

/// The end of a group: done when all of it is gone, with the leader's status.
#[derive(Debug)]
pub struct Ending(JoinHandle<io::Result<ExitStatus>>);

impl Future for Ending {
    type Output = io::Result<ExitStatus>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|ended| ended.unwrap_or_else(|error| Err(io::Error::other(error))))
    }
}
