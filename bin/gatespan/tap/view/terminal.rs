//! The terminal, taken over and given back: on every way out, a panic and a second signal among them.
//!
//! While it is taken over, standard error goes into a pipe, since whatever is written there would be written across the screen: the log, what programs say
//! that were started here, and the message of a panic. The last lines can be seen in the view, and all that were kept are written
//! when the terminal is given back.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;

use super::super::following::text;

/// How many lines of standard error are kept.
const MAX_MESSAGES: usize = 200;

/// The longest line of standard error that is kept whole.
const MAX_MESSAGE_LEN: usize = 1000;

/// How long drawing may take before the terminal is given back in the middle of it.
const DRAWN_WITHIN: Duration = Duration::from_millis(500);

/// What whoever may have to give the terminal back holds.
#[derive(Debug, Default)]
pub(in crate::tap) struct Screen {
    /// Standard error as it was, while it is not.
    stderr: Mutex<Option<OwnedFd>>,
    messages: Mutex<VecDeque<String>>,
    /// The terminal was given back while the view was on it.
    is_lost: AtomicBool,
    /// Held while something is drawn.
    drawing: Mutex<()>,
}

impl Screen {
    /// Takes the terminal over for as long as `shown` lasts.
    pub(super) fn show(self: &Arc<Self>, shown: impl FnOnce(&mut DefaultTerminal) -> io::Result<()>) -> io::Result<()> {
        self.take_stderr()?;
        // This also has a panic give the terminal back before its message is written.
        let mut terminal = match ratatui::try_init() {
            Ok(terminal) => terminal,
            Err(error) => {
                self.give_back();
                return Err(error);
            }
        };
        let screen = self.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            screen.give_back();
            before(panic);
        }));
        // A panic has given the terminal back; the tap goes on, and what was the matter is on standard error.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shown(&mut terminal)));
        self.give_back();
        result.unwrap_or(Ok(()))
    }

    /// Gives the terminal back, if it was taken. Can be called from anywhere, any number of times.
    pub(in crate::tap) fn give_back(&self) {
        let stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(stderr) = stderr else { return };
        self.is_lost.store(true, Ordering::Release);
        // What is being drawn is drawn to its end. After a panic in the middle of that, nobody lets go of it.
        let until = Instant::now() + DRAWN_WITHIN;
        while matches!(self.drawing.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        ratatui::restore();
        let _ = ratatui::crossterm::execute!(io::stdout(), ratatui::crossterm::cursor::Show);
        // Where it can't be put back, there is nobody to tell.
        let _ = rustix::stdio::dup2_stderr(&stderr);
        let mut lines = String::new();
        for message in self.lines().drain(..) {
            lines.push_str(&message);
            lines.push('\n');
        }
        let _ = io::stderr().lock().write_all(lines.as_bytes());
    }

    /// Draws, unless the terminal was given back; false then.
    pub(super) fn draw(&self, draw: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
        let _drawing = self.drawing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_lost.load(Ordering::Acquire) {
            return Ok(false);
        }
        draw().map(|()| true)
    }

    pub(super) fn messages(&self) -> Vec<String> {
        self.lines().iter().cloned().collect()
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_stderr(self: &Arc<Self>) -> io::Result<()> {
        let before = io::stderr().as_fd().try_clone_to_owned()?;
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::stdio::dup2_stderr(&writer)?;
        *self.stderr.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let screen = self.clone();
        std::thread::Builder::new().name("gatespan-tap-messages".into()).spawn(move || {
            let mut reader = BufReader::new(std::fs::File::from(reader));
            let mut line = Vec::new();
            while let Ok(1..) = reader.read_until(b'\n', &mut line) {
                let whole = line.strip_suffix(b"\n").unwrap_or(&line);
                screen.keep(text(&whole[..whole.len().min(MAX_MESSAGE_LEN)]));
                line.clear();
            }
        })?;
        Ok(())
    }

    fn keep(&self, message: String) {
        let mut lines = self.lines();
        lines.push_back(message);
        if lines.len() > MAX_MESSAGES {
            lines.pop_front();
        }
    }
}
