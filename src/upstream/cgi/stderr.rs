//! What scripts write to standard error: taken line by line to the log, bounded in length and in number.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::exchange::Request;
use super::outlet::Outlet;

/// The bytes of a line that are logged; the rest of it is not.
const MAX_LINE: usize = 4096;

/// How many lines of one script are logged within a [`PERIOD`]; how many more there were is said afterwards.
const MAX_LINES: u32 = 500;

/// See [`MAX_LINES`].
const PERIOD: Duration = Duration::from_secs(10);

/// How often a pipe is looked at whose end is not waited for.
const MOST_LOOKS: usize = 64;

/// One script's standard error.
pub(super) struct Stderr {
    pipe: Option<Outlet>,
    /// Whoever polls is to be woken when something comes.
    is_awaited: bool,
    /// A line whose end has not come.
    line: BytesMut,
    /// The line was longer than may be, and what is still to come of it is dropped.
    is_cut: bool,
    begun: Option<Instant>,
    logged: u32,
    dropped: u64,
}

impl Stderr {
    pub(super) fn new(pipe: Outlet) -> Self {
        Self {
            pipe: Some(pipe),
            is_awaited: false,
            line: BytesMut::new(),
            is_cut: false,
            begun: None,
            logged: 0,
            dropped: 0,
        }
    }

    /// From the next poll on somebody waits for it.
    pub(super) fn watch(&mut self) {
        self.is_awaited = true;
    }

    /// Logs what there is. Ready at its end.
    ///
    /// Until it is to be [watched](Self::watch), or something has come, nobody is woken by what comes: it is looked at when it is polled.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, request: &Request) -> Poll<()> {
        loop {
            let Some(pipe) = &mut self.pipe else { return Poll::Ready(()) };
            let read = if self.is_awaited || pipe.is_watched() {
                self.line.reserve(1024);
                poll_read_buf(Pin::new(pipe), cx, &mut self.line)
            } else {
                pipe.read_now(&mut self.line)
            };
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => {
                    self.is_awaited = true;
                    self.take_lines(request);
                }
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.finish(request);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Logs what the pipe holds now, whether the runtime has heard of it or not, and no more than it can hold at once.
    pub(super) fn take_what_is_there(&mut self, request: &Request) {
        for _ in 0..MOST_LOOKS {
            match self.pipe.as_ref().map(|pipe| pipe.read_now(&mut self.line)) {
                Some(Poll::Ready(Ok(1..))) => self.take_lines(request),
                _ => return,
            }
        }
    }

    /// Nothing more is read: logs the line whose end never came, and how many were dropped.
    pub(super) fn finish(&mut self, request: &Request) {
        self.pipe = None;
        if !self.line.is_empty() && !mem::take(&mut self.is_cut) {
            let line = self.line.split();
            self.log(&line, request);
        }
        self.line.clear();
        self.say_dropped(request);
    }

    fn take_lines(&mut self, request: &Request) {
        while let Some(end) = memchr::memchr(b'\n', &self.line) {
            let line = self.line.split_to(end);
            self.line.advance(1);
            if !mem::take(&mut self.is_cut) {
                self.log(&line, request);
            }
        }
        if self.is_cut {
            self.line.clear();
        } else if self.line.len() > MAX_LINE {
            let line = self.line.split();
            self.log(&line, request);
            self.is_cut = true;
        }
    }

    fn log(&mut self, line: &[u8], request: &Request) {
        let now = Instant::now();
        if self.begun.is_none_or(|begun| now - begun >= PERIOD) {
            self.say_dropped(request);
            (self.begun, self.logged) = (Some(now), 0);
        }
        if self.logged == MAX_LINES {
            self.dropped += 1;
            return;
        }
        self.logged += 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (shown, more) = match line.get(..MAX_LINE) {
            Some(shown) if line.len() > MAX_LINE => (shown, "…"),
            _ => (line, ""),
        };
        let text = harmless(shown);
        tracing::warn!(request_id = request.id(), script = request.script, "{text}{more}");
        if request.stderr_to_web_server {
            // In one piece: web servers make a line of each.
            request.environ.errors().line(format_args!("{text}{more}"));
        }
    }

    fn say_dropped(&mut self, request: &Request) {
        let dropped = mem::take(&mut self.dropped);
        if dropped > 0 {
            tracing::warn!(
                request_id = request.id(),
                script = request.script,
                "{dropped} more lines of its standard error were not logged"
            );
        }
    }
}

/// A script's text, with what would steer a terminal or make up a line of the log escaped.
pub(super) fn harmless(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for character in String::from_utf8_lossy(line).chars() {
        match character {
            '\t' => text.push(character),
            character if character.is_control() => text.extend(character.escape_default()),
            character => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_log() {
        assert_eq!(harmless("a\tb\x1b[31m\u{85}ä\r".as_bytes()), "a\tb\\u{1b}[31m\\u{85}ä\\r");
        assert_eq!(harmless(b"\xff"), "\u{fffd}");
    }
}
