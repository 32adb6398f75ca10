//! A running program: its pipes, its exit, and the end of its process group.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process_group, pidfd_open, waitid,
    waitpid,
};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use super::outlet::Outlet;
use super::pace::Pace;
use super::spawn::threads::{self, Standing};
use super::spawn::{Command, SpawnError, Step, signal_group, spawn, watched};
use crate::application::for_ever::FOR_EVER;
use crate::upstream::watcher::{Place, WATCHED, Watcher};

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
    number: u32,
    /// Gone when the program has been waited for.
    leader: Option<Leader>,
    status: Option<ExitStatus>,
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
    /// How long a thread may stand still until a program is over that was quick when it last ran. With zero no thread of the runtime ever
    /// stands still for a program. 1 ms by default.
    pub standstill: Duration,
    /// Who ends the group when this process is killed. Nobody by default.
    pub watcher: Option<Watcher>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            kill_leftovers: false,
            standstill: Duration::from_millis(1),
            watcher: None,
        }
    }
}

impl Process {
    /// Starts a program. To be called within a tokio runtime that has its clock and its I/O.
    ///
    /// Cancel safe: a program that was started for nobody is ended.
    ///
    /// # Errors
    ///
    /// See [`Step`].
    pub async fn start(command: Command, input: Input, settings: &Settings) -> Result<Self, SpawnError> {
        let pace = Pace::of(command.program.as_bytes());
        let launch = Launch { command, input, settings: settings.clone(), pace, told: Told::Beforehand };
        let (mut started, ()) = start(launch, ()).await?;
        // It was told already: this does not fail.
        started.process.stdout = started.stdout.into_watched().ok();
        started.process.stderr = started.stderr.into_watched().ok();
        Ok(started.process)
    }

    /// The same, with pipes that the runtime need not be told of. A program that is known to be quick may be over when it comes back.
    ///
    /// `held` comes back with it, or is dropped when there is no program: not before the end of one that was started for nobody.
    pub(super) async fn start_unwatched<H: Send + 'static>(
        command: Command,
        input: Input,
        settings: &Settings,
        pace: &'static Pace,
        held: H,
    ) -> Result<(Started, H), SpawnError> {
        start(Launch { command, input, settings: settings.clone(), pace, told: Told::Later }, held).await
    }

    /// Whether it is known to have exited.
    pub(super) fn is_over(&self) -> bool {
        self.leader.as_ref().is_none_or(|leader| leader.is_over)
    }

    /// The number of the process, and of its group.
    pub fn id(&self) -> u32 {
        self.number
    }

    /// Waits until the program has exited, and takes leave of it. What else is in its group runs on, unless
    /// [`Settings::kill_leftovers`] says otherwise; that goes on in the background then.
    ///
    /// Cancel safe. Called again, it returns the same.
    ///
    /// # Errors
    ///
    /// Somebody else in this process has waited for the program, or this process ignores SIGCHLD.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        poll_fn(|cx| self.poll_exited(cx)).await
    }

    /// As [`exited`](Self::exited), for those who wait for other things too. A future that is made for each look and dropped
    /// would take with it that somebody waits.
    pub(super) fn poll_exited(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ExitStatus>> {
        if let Some(leader) = &mut self.leader {
            if !leader.is_over || leader.kill_leftovers {
                self.status = Some(ready!(leader.poll_exit(cx))?);
            }
            if !leader.kill_leftovers {
                self.status = Some(leader.release()?);
                self.leader = None;
            } else if let Some(leader) = self.leader.take() {
                leader.signal(Signal::TERM);
                let deadline = Instant::now() + leader.grace;
                leader.runtime.clone().spawn(leader.end_leftovers(deadline));
            }
        }
        Poll::Ready(self.status.ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    /// Ends the whole group: SIGTERM, and SIGKILL after [`Settings::grace`] for what is left, always before the leader
    /// is waited for, so that the group's number can't be another's by then.
    ///
    /// It happens in the background, whether the returned future is polled or not. When the runtime ends first, what is
    /// left is killed.
    pub fn end(mut self) -> Ending {
        match self.leader.take() {
            Some(leader) => Ending(Outcome::Awaited(leader.end())),
            None => Ending(Outcome::Over(self.status)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(leader) = self.leader.take() {
            drop(leader.end());
        }
    }
}

/// The end of a group: done when all of it is gone, with the leader's status.
#[derive(Debug)]
pub struct Ending(Outcome);

#[derive(Debug)]
enum Outcome {
    Over(Option<ExitStatus>),
    Awaited(JoinHandle<io::Result<ExitStatus>>),
}

impl Future for Ending {
    type Output = io::Result<ExitStatus>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Outcome::Over(status) => Poll::Ready(status.ok_or_else(|| io::ErrorKind::NotFound.into())),
            Outcome::Awaited(task) => {
                Pin::new(task).poll(context).map(|ended| ended.unwrap_or_else(|error| Err(io::Error::other(error))))
            }
        }
    }
}

/// A program that was just started, with what it writes to beside it.
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) stdout: Outlet,
    pub(super) stderr: Outlet,
}

/// When the runtime is told of the pipes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Beforehand,
    Later,
}

/// All that it takes to start a program.
struct Launch {
    command: Command,
    input: Input,
    settings: Settings,
    pace: &'static Pace,
    told: Told,
}

/// Starts a program, on a thread that may stand still: this one, if it is one that the runtime can spare and the program is quick.
async fn start<H: Send + 'static>(launch: Launch, held: H) -> Result<(Started, H), SpawnError> {
    let runtime = Handle::current();
    if !launch.settings.standstill.is_zero()
        && launch.pace.is_executed_quickly()
        && let Some(_standing) = Standing::of(&runtime)
    {
        return launch.run(runtime).map(|started| (started, held));
    }
    let (started, outcome) = oneshot::channel();
    threads::run(move || {
        if started.is_closed() {
            // Nobody waits any more.
            return;
        }
        let outcome = launch.run(runtime.clone());
        drop(started.send(outcome.map(|started| OnItsWay { content: Some((started, held)), runtime })));
    });
    let lost = || SpawnError { step: Step::Process, source: io::Error::other("the thread that starts it panicked") };
    let mut on_its_way = outcome.await.unwrap_or_else(|_| Err(lost()))?;
    on_its_way.content.take().ok_or_else(lost)
}

/// A program that was just started, on its way to the task that wants it. When that is gone, the program is ended, and what was held for it
/// let go after that.
struct OnItsWay<H: Send + 'static> {
    content: Option<(Started, H)>,
    runtime: Handle,
}

impl<H: Send + 'static> Drop for OnItsWay<H> {
    fn drop(&mut self) {
        if let Some((Started { process, stdout, stderr }, held)) = self.content.take() {
            let ending = process.end();
            self.runtime.spawn(async move {
                let _ = ending.await;
                // What it writes while it ends politely is not read, and is no SIGPIPE either.
                drop((stdout, stderr, held));
            });
        }
    }
}

impl Launch {
    /// The calling thread stands still until the program is executed, and until it is over where that is to be expected.
    fn run(self, runtime: Handle) -> Result<Started, SpawnError> {
        let Self { command, input, settings, pace, told } = self;
        let place = match &settings.watcher {
            None => None,
            Some(watcher) => Some(watcher.place().ok_or_else(|| SpawnError {
                step: Step::Watcher,
                source: io::Error::other(format!("expected at most {WATCHED} programs at once")),
            })?),
        };
        // Nobody moves its input or its output meanwhile.
        let can_be_awaited = told == Told::Later && !matches!(input, Input::Pipe) && !settings.standstill.is_zero();
        // All that can fail is done before there is a process.
        let pipes = Pipes::open(input, &runtime, told).map_err(|source| SpawnError { step: Step::Pipes, source })?;
        let Pipes { input, output, errors, stdin, stdout, stderr } = pipes;
        let descriptors = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let begun = std::time::Instant::now();
        let (pid, pidfd) = spawn_when_written(&command, descriptors, place.as_ref().map(Place::number))?;
        pace.executed(begun.elapsed());
        // The end of its output is seen only when it alone has the other ends.
        drop((input, output, errors));
        let mut leader = Leader {
            pid,
            place,
            pidfd: pidfd.map_or(Pidfd::None, Pidfd::Unknown),
            pause: None,
            grace: FOR_EVER.min(settings.grace),
            kill_leftovers: settings.kill_leftovers,
            is_over: false,
            is_released: false,
            runtime,
        };
        if can_be_awaited && pace.is_awaited() {
            leader.stand_by(settings.standstill);
            pace.awaited(leader.is_over);
        }
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let process = Process { stdin, stdout: None, stderr: None, number, leader: Some(leader), status: None };
        Ok(Started { process, stdout, stderr })
    }
}

/// Starts a program, and tries again for a short while where somebody has it open for writing: whoever has just put it there, or a process
/// that is being made at this moment and has inherited the writer's descriptor until it executes its own program.
fn spawn_when_written(
    command: &Command,
    descriptors: [BorrowedFd<'_>; 3],
    slot: Option<&AtomicU32>,
) -> Result<(Pid, Option<OwnedFd>), SpawnError> {
    for pause in PAUSES_WHILE_WRITTEN {
        match spawn(command, descriptors, slot) {
            Err(error) if Errno::from_io_error(&error.source) == Some(Errno::TXTBSY) => {
                thread::sleep(Duration::from_millis(pause))
            }
            done => return done,
        }
    }
    spawn(command, descriptors, slot)
}

/// How many milliseconds are waited before a program that is being written to is tried again.
const PAUSES_WHILE_WRITTEN: [u64; 5] = [1, 2, 4, 8, 16];

/// Both ends of what a program is started with.
struct Pipes {
    input: Source,
    output: OwnedFd,
    errors: OwnedFd,
    stdin: Option<pipe::Sender>,
    stdout: Outlet,
    stderr: Outlet,
}

/// The program's descriptor 0.
enum Source {
    Own(OwnedFd),
    Nothing(&'static File),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(descriptor) => descriptor.as_fd(),
            Self::Nothing(file) => file.as_fd(),
        }
    }
}

impl Pipes {
    fn open(input: Input, runtime: &Handle, told: Told) -> io::Result<Self> {
        // The runtime's side of the pipes is told to it here, perhaps on a thread that is not one of the runtime's.
        let _entered = runtime.enter();
        let (input, stdin) = match input {
            Input::Nothing => (Source::Nothing(nothing()?), None),
            Input::File(file) => (Source::Own(file), None),
            Input::Pipe => {
                let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
                ioctl_fionbio(&ours, true)?;
                (Source::Own(theirs), Some(pipe::Sender::from_owned_fd_unchecked(ours)?))
            }
        };
        let receiver = || -> io::Result<_> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            // Only this end: the program's has a flag of its own, and programs expect to wait.
            ioctl_fionbio(&ours, true)?;
            let mut ours = Outlet::new(ours);
            if told == Told::Beforehand {
                ours.watch()?;
            }
            Ok((ours, theirs))
        };
        let (stdout, output) = receiver()?;
        let (stderr, errors) = receiver()?;
        Ok(Self { input, output, errors, stdin, stdout, stderr })
    }
}

/// `/dev/null`, opened once for all programs: nobody has a position in it.
fn nothing() -> io::Result<&'static File> {
    static NOTHING: OnceLock<File> = OnceLock::new();
    if let Some(file) = NOTHING.get() {
        return Ok(file);
    }
    let file = File::open("/dev/null")?;
    Ok(NOTHING.get_or_init(|| file))
}

/// A group's leader that has not been waited for. So long as it has not, its number, which is the group's, is no other's.
#[derive(Debug)]
struct Leader {
    pid: Pid,
    /// Where the watcher finds the group.
    place: Option<Place>,
    pidfd: Pidfd,
    /// Until the next look at a leader that has no descriptor.
    pause: Option<(Duration, Pin<Box<Sleep>>)>,
    grace: Duration,
    kill_leftovers: bool,
    /// Whether it is known to have exited.
    is_over: bool,
    /// Whether it has been waited for.
    is_released: bool,
    runtime: Handle,
}

/// A descriptor for a leader.
#[derive(Debug)]
enum Pidfd {
    /// Not opened, or not to be had.
    None,
    /// The runtime has not been told of it.
    Unknown(OwnedFd),
    Watched(AsyncFd<OwnedFd>),
}

/// The first and the longest pause between two looks at a group, or at a leader that has no descriptor.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

impl Leader {
    /// The leader's status, if it has exited. It remains to be waited for.
    fn status(&self) -> io::Result<Option<ExitStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::Pid(self.pid), options) {
                Err(Errno::INTR) => {}
                status => return Ok(status?.as_ref().map(exit_status)),
            }
        }
    }

    /// Waits until the leader has exited. It remains to be waited for.
    async fn exit(&mut self) -> io::Result<ExitStatus> {
        poll_fn(|cx| self.poll_exit(cx)).await
    }

    fn poll_exit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ExitStatus>> {
        loop {
            // After the end of its output it mostly has by now, or will have in a moment.
            if let Some(status) = self.status()? {
                return Poll::Ready(Ok(status));
            }
            if let Some(pidfd) = self.watch() {
                ready!(pidfd.poll_read_ready(cx))?.clear_ready();
            } else {
                // Without descriptors, or before Linux 5.3.
                let [first, longest] = PAUSES;
                let (pause, sleeping) = self.pause.get_or_insert_with(|| (first, Box::pin(sleep(first))));
                ready!(sleeping.as_mut().poll(cx));
                *pause = longest.min(*pause * 2);
                sleeping.as_mut().reset(Instant::now() + *pause);
            }
        }
    }

    /// Waits until the leader has exited, or so long. The thread stands still meanwhile.
    fn stand_by(&mut self, limit: Duration) {
        if let (Some(pidfd), Ok(limit)) = (self.descriptor(), Timespec::try_from(limit)) {
            // A signal may cut it short: nothing depends on it.
            self.is_over = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) == Ok(1);
        }
    }

    /// A descriptor for the leader.
    fn descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        if let Pidfd::None = self.pidfd {
            self.pidfd = pidfd_open(self.pid, PidfdFlags::empty()).map_or(Pidfd::None, Pidfd::Unknown);
        }
        match &self.pidfd {
            Pidfd::None => None,
            Pidfd::Unknown(pidfd) => Some(pidfd.as_fd()),
            Pidfd::Watched(pidfd) => Some(pidfd.get_ref().as_fd()),
        }
    }

    /// The same when the runtime has been told of it.
    fn watch(&mut self) -> Option<&AsyncFd<OwnedFd>> {
        self.descriptor();
        self.pidfd = match mem::replace(&mut self.pidfd, Pidfd::None) {
            Pidfd::Unknown(pidfd) => watched(pidfd).map_or(Pidfd::None, Pidfd::Watched),
            other => other,
        };
        match &self.pidfd {
            Pidfd::Watched(pidfd) => Some(pidfd),
            _ => None,
        }
    }

    /// Signals the whole group. To be called before the leader is released only.
    fn signal(&self, signal: Signal) {
        // If others have waited for it, its number may be another's already.
        if self.is_released || self.status().is_err() {
            return;
        }
        // It fails for groups that have taken on another user's rights, and there is nothing else to try then.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Takes leave of a leader that has exited: from now on its number may be another's.
    fn release(&mut self) -> io::Result<ExitStatus> {
        self.place = None;
        loop {
            match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(None) => return Err(io::Error::other("expected a program that has exited, and it has not")),
                Ok(Some((_, status))) => {
                    self.is_released = true;
                    return Ok(ExitStatus::from_raw(status.as_raw()));
                }
            }
        }
    }

    /// Ends the group, in the background.
    fn end(self) -> JoinHandle<io::Result<ExitStatus>> {
        // At once, however long the runtime takes to get to the rest.
        self.signal(Signal::TERM);
        self.runtime.clone().spawn(self.end_told())
    }

    /// Ends a group that has been told to end.
    async fn end_told(mut self) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + self.grace;
        match timeout_at(deadline, self.exit()).await {
            Ok(exited) => {
                let status = exited?;
                self.end_leftovers(deadline).await;
                Ok(status)
            }
            Err(_) => {
                self.signal(Signal::KILL);
                self.exit().await?;
                self.release()
            }
        }
    }

    /// Ends what is left of a group that has been told to end and whose leader has exited, and releases the leader.
    async fn end_leftovers(mut self, deadline: Instant) {
        let can_be_seen = self.descriptor().is_some_and(|pidfd| signal_group(pidfd, 0).is_ok());
        if !can_be_seen {
            return self.end_unseen(deadline).await;
        }
        let _ = self.release();
        let [mut pause, longest] = PAUSES;
        while let Some(pidfd) = self.descriptor() {
            // Nobody is left, or nobody whom this process may signal.
            if signal_group(pidfd, 0).is_err() {
                return;
            }
            if Instant::now() >= deadline {
                let _ = signal_group(pidfd, Signal::KILL.as_raw());
                return;
            }
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = longest.min(pause * 2);
        }
    }

    /// The same before Linux 6.9: whether anybody is left can't be seen while the leader is there, and no signal is safe
    /// when it is not. So it stays for the whole grace.
    async fn end_unseen(mut self, deadline: Instant) {
        sleep_until(deadline).await;
        self.signal(Signal::KILL);
        let _ = self.release();
    }
}

impl Drop for Leader {
    /// Reached without a release when the runtime ends before the group does, and when the program was waited for by others.
    fn drop(&mut self) {
        if self.is_released || self.status().is_err() {
            return;
        }
        self.signal(Signal::KILL);
        for _ in 0..LAST_LOOKS {
            if let Ok(Some(_)) | Err(_) = self.status() {
                let _ = self.release();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // The kernel can't end it yet. Its place is never used again, so that the watcher may see to it.
        mem::forget(self.place.take());
    }
}

/// How often, a millisecond apart, a killed leader is looked for when the runtime is gone.
const LAST_LOOKS: usize = 100;

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    const CORE_DUMPED: i32 = 0x80;
    ExitStatus::from_raw(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (None, Some(signal)) => signal | if status.dumped() { CORE_DUMPED } else { 0 },
        (None, None) => 0,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn an_old_kernel_keeps_the_leader_until_its_group_is_killed() {
        let mut command = Command::new(c"/bin/sh".to_owned());
        command.arguments.extend([c"-c".to_owned(), c"trap '' TERM; sleep 1000 >/dev/null 2>&1 & echo $!".to_owned()]);
        command.environment.push(c"PATH=/bin".to_owned());
        let mut process = Process::start(command, Input::Nothing, &Settings::default()).await.unwrap();
        let mut left = String::new();
        process.stdout.take().unwrap().read_to_string(&mut left).await.unwrap();
        let is_running = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", left.trim())).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['S', 'R', 'D']))
        };
        let mut leader = process.leader.take().unwrap();
        assert!(leader.exit().await.unwrap().success());
        assert!(is_running());
        let (pid, start) = (leader.pid, Instant::now());
        leader.end_unseen(start + Duration::from_millis(200)).await;
        assert!(start.elapsed() >= Duration::from_millis(200));
        while is_running() {
            assert!(start.elapsed() < Duration::from_secs(30));
            sleep(Duration::from_millis(5)).await;
        }
        assert!(waitpid(Some(pid), WaitOptions::NOHANG).is_err(), "it was waited for");
    }
}
