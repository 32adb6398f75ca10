//! What scripts write to standard error: taken line by line to the log, bounded in length and in number.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::exchange::Request;

/// The bytes of a line that are logged; the rest of it is not.
const MAX_LINE: usize = 4096;

/// How many lines of one script are logged within a [`PERIOD`]; how many more there were is said afterwards.
const MAX_LINES: u32 = 500;

/// See [`MAX_LINES`].
const PERIOD: Duration = Duration::from_secs(10);

/// One script's standard error.
pub(super) struct Stderr {
    pipe: Option<pipe::Receiver>,
    /// A line whose end has not come.
    line: BytesMut,
    /// The line was longer than may be, and what is still to come of it is dropped.
    is_cut: bool,
    begun: Option<Instant>,
    logged: u32,
    dropped: u64,
}

impl Stderr {
    pub(super) fn new(pipe: Option<pipe::Receiver>) -> Self {
        Self { pipe, line: BytesMut::new(), is_cut: false, begun: None, logged: 0, dropped: 0 }
    }

    /// Logs what there is. Ready at its end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, request: &Request) -> Poll<()> {
        loop {
            let Some(pipe) = &mut self.pipe else { return Poll::Ready(()) };
            self.line.reserve(1024);
            match poll_read_buf(Pin::new(pipe), cx, &mut self.line) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => self.take_lines(request),
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.finish(request);
                    return Poll::Ready(());
                }
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
