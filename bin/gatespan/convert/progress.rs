//! How far a long conversion has come, on standard error where that is a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

pub(super) struct Progress {
    name: String,
    size: Option<u64>,
    begun: Instant,
    said: Option<Instant>,
    is_shown: bool,
}

/// What is done sooner says nothing.
const QUIET: Duration = Duration::from_secs(1);

const BETWEEN: Duration = Duration::from_millis(200);

impl Progress {
    pub(super) fn new(name: String, size: Option<u64>, is_shown: bool) -> Self {
        let is_shown = is_shown && io::stderr().is_terminal();
        Self { name, size, begun: Instant::now(), said: None, is_shown }
    }

    /// So many bytes were read.
    pub(super) fn at(&mut self, read: u64) {
        if !self.is_shown || self.begun.elapsed() < QUIET || self.said.is_some_and(|said| said.elapsed() < BETWEEN) {
            return;
        }
        self.said = Some(Instant::now());
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let line = match self.size.filter(|size| *size > 0) {
            Some(size) => {
                let percent = (read as f64 / size as f64 * 100.0).min(100.0);
                format!("\r\x1b[K{}: {:.1} of {:.1} MB, {percent:.0} %", self.name, megabytes(read), megabytes(size))
            }
            None => format!("\r\x1b[K{}: {:.1} MB", self.name, megabytes(read)),
        };
        let _ = io::stderr().write_all(line.as_bytes());
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        if self.said.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
