//! Standard error: failures, what the application writes to its own, and with `-v` what passes.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gatespan::application::Log;
use gatespan::recording::status_name;

use super::OutputOptions;
use super::outcome::{Failure, Kind, Outcome};

/// What stands before each line of the application's standard error.
const MARK: &str = "stderr: ";

/// From how many bytes on a line of the application's standard error goes out without its end.
const LONGEST_LINE: usize = 16 * 1024;

/// How much of the application's standard error the summary holds.
const COLLECTED: usize = 64 * 1024;

pub(super) struct Console {
    /// How much `-v` shows.
    verbose: u8,
    /// Whether failures are told.
    tells_failures: bool,
    /// Whether retries are told.
    tells_retries: bool,
    /// The application's standard error is for the summary.
    collects: bool,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    /// A line of the application's standard error that is not complete.
    line: Vec<u8>,
    collected: Vec<u8>,
    truncated: bool,
}

impl Console {
    pub(super) fn new(options: &OutputOptions) -> Self {
        let state = State { began: Instant::now(), line: Vec::new(), collected: Vec::new(), truncated: false };
        Self {
            verbose: options.verbose,
            tells_failures: !options.silent || options.show_error,
            tells_retries: !options.silent,
            collects: options.json,
            state: Mutex::new(state),
        }
    }

    /// A try begins: times count from here, and what was collected belonged to another.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        state.began = Instant::now();
        state.collected.clear();
        state.truncated = false;
    }

    /// Since the try began.
    pub(super) fn elapsed(&self) -> Duration {
        self.state().began.elapsed()
    }

    pub(super) fn verbose(&self) -> u8 {
        self.verbose
    }

    /// Something that concerns the command itself.
    pub(super) fn message(&self, message: impl fmt::Display) {
        if self.tells_retries {
            write(format!("gatespan: {message}\n").as_bytes());
        }
    }

    pub(super) fn failure(&self, failure: &Failure) {
        if self.tells_failures && !matches!(failure.kind, Kind::BrokenPipe | Kind::Signal(_)) {
            write(format!("gatespan: {}\n", failure.message).as_bytes());
        }
    }

    /// A line of `-v`: `>` before what is sent, `<` before what comes, `*` before anything else.
    pub(super) fn line(&self, mark: char, text: impl fmt::Display) {
        if self.verbose > 0 {
            write(format!("{mark} {:9.6} {text}\n", self.elapsed().as_secs_f64()).as_bytes());
        }
    }

    /// A line of `-v` that belongs to the one before it.
    pub(super) fn further_line(&self, mark: char, text: impl fmt::Display) {
        if self.verbose > 0 {
            write(format!("{mark} {:9} {text}\n", "").as_bytes());
        }
    }

    /// With `-v`: how it ended.
    pub(super) fn end(&self, outcome: &Outcome) {
        if self.verbose == 0 {
            return;
        }
        let mut text = format!("end after {:.6} s, {} bytes of body", outcome.total.as_secs_f64(), outcome.bytes);
        if let Some(status) = outcome.application_status {
            text += &format!(", application status {status}");
        }
        if let Some(signal) = outcome.signal {
            text += &format!(", by signal {signal}");
        }
        if let Some(status) = outcome.protocol_status {
            text += &format!(", protocol status {}", status_name(status));
        }
        self.line('*', text);
    }

    /// Part of what the application writes to its standard error.
    pub(super) fn stderr(&self, bytes: &[u8]) {
        let mut state = self.state();
        if self.collects {
            let room = COLLECTED - state.collected.len();
            state.truncated |= bytes.len() > room;
            state.collected.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            state.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || state.line.len() >= LONGEST_LINE {
                marked(&state.line, &mut out);
                state.line.clear();
            }
        }
        write(&out);
    }

    /// The last line, which may have no end.
    pub(super) fn flush(&self) {
        let mut state = self.state();
        if !state.line.is_empty() {
            let mut out = Vec::new();
            marked(&state.line, &mut out);
            state.line.clear();
            write(&out);
        }
    }

    /// For the summary, and whether there was more.
    pub(super) fn collected(&self) -> (Vec<u8>, bool) {
        let state = self.state();
        (state.collected.clone(), state.truncated)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The standard error of CGI programs comes by the application interface.
impl Log for Console {
    fn write(&self, text: &[u8]) {
        self.stderr(text);
    }
}

/// One line, with its mark before it and nothing in it that would steer a terminal.
fn marked(line: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(MARK.as_bytes());
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    out.extend_from_slice(harmless(line).as_bytes());
    out.push(b'\n');
}

/// Text from elsewhere, as it may stand on a terminal.
pub(super) fn harmless(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '\t' => text.push(character),
            character if character.is_control() => text.extend(character.escape_default()),
            character => text.push(character),
        }
    }
    text
}

/// A standard error that is closed is no reason to do anything else.
fn write(bytes: &[u8]) {
    let _ = io::stderr().lock().write_all(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_marked_and_harmless() {
        let mut out = Vec::new();
        marked(b"a\tb\x1b[31m\xff\r\n", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "stderr: a\tb\\u{1b}[31m\u{fffd}\n");
    }
}
