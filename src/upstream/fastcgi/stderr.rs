//! What a server says on FCGI_STDERR, line by line into the log.

use bytes::BytesMut;

use crate::application::Environ;

/// Cuts the bytes of one request's FCGI_STDERR into lines.
#[derive(Default)]
pub(super) struct Stderr {
    /// The beginning of a line.
    line: BytesMut,
    /// How many bytes came.
    len: usize,
}

/// Over how many bytes a line is broken in two.
pub(super) const MAX_LINE_LEN: usize = 8 * 1024;

/// Where the lines go to.
#[derive(Clone, Copy)]
pub(super) struct Destination<'a> {
    /// The request.
    pub(super) environ: &'a Environ,
    /// Who says it.
    pub(super) server: &'a str,
    /// Whether the request's own log gets them too.
    pub(super) to_errors: bool,
    /// How many bytes of them are logged.
    pub(super) limit: usize,
}

impl Stderr {
    /// Takes some more, and logs the lines that are complete with it.
    pub(super) fn take(&mut self, mut data: &[u8], destination: Destination<'_>) {
        let room = destination.limit.saturating_sub(self.len);
        self.len = self.len.saturating_add(data.len());
        if data.len() > room {
            data = &data[..room];
        }
        while let Some(end) = memchr::memchr(b'\n', data) {
            let (line, rest) = (&data[..end], &data[end + 1..]);
            data = rest;
            match self.line.is_empty() {
                true => log(line, destination),
                false => {
                    self.line.extend_from_slice(line);
                    log(&self.line.split(), destination);
                }
            }
        }
        self.line.extend_from_slice(data);
        while self.line.len() >= MAX_LINE_LEN {
            log(&self.line.split_to(MAX_LINE_LEN), destination);
        }
    }

    /// Logs what has no end of line, and how much was not logged.
    pub(super) fn finish(&mut self, destination: Destination<'_>) {
        if !self.line.is_empty() {
            log(&self.line.split(), destination);
        }
        let missing = std::mem::take(&mut self.len).saturating_sub(destination.limit);
        if missing > 0 {
            let Destination { environ, server, limit, .. } = destination;
            let request_id = environ.request_id();
            tracing::warn!(
                request_id,
                server,
                "{missing} bytes of FCGI_STDERR over the limit of {limit} are not logged"
            );
        }
    }
}

fn log(line: &[u8], Destination { environ, server, to_errors, .. }: Destination<'_>) {
    let Some(text) = printable(line) else { return };
    tracing::warn!(request_id = environ.request_id(), server, "stderr: {text}");
    if to_errors {
        environ.errors().line(text);
    }
}

/// A line as it can be shown; nothing where there is nothing on it. A log is read by people and their terminals: neither is to be steered by what a
/// script prints.
pub(super) fn printable(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_end();
    let text = String::from_utf8_lossy(line);
    let shown = text.chars().map(|char| if char.is_control() && char != '\t' { '\u{fffd}' } else { char });
    (!line.is_empty()).then(|| shown.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::application::{Errors, Log, Variables};

    #[derive(Default)]
    struct Lines(Mutex<Vec<u8>>);

    impl Log for Lines {
        fn write(&self, text: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(text);
        }
    }

    fn logged(pieces: &[&[u8]], limit: usize) -> Vec<u8> {
        let lines = Arc::new(Lines::default());
        let environ = Environ::new(Variables::new()).with_errors(Errors::new(lines.clone()));
        let destination = Destination { environ: &environ, server: "test", to_errors: true, limit };
        let mut stderr = Stderr::default();
        for piece in pieces {
            stderr.take(piece, destination);
        }
        stderr.finish(destination);
        lines.0.lock().unwrap().split_off(0)
    }

    #[test]
    fn lines_are_put_together_and_taken_apart() {
        assert_eq!(logged(&[b"o", b"ne\r\ntwo\n", b"\n", b"thr", b"ee"], 100), b"one\ntwo\nthree\n");
        assert_eq!(logged(&[b"\x1b[2Jno\n"], 100), "\u{fffd}[2Jno\n".as_bytes());
    }

    #[test]
    fn a_line_without_end_and_a_talker_without_end_are_bounded() {
        let long = vec![b'x'; MAX_LINE_LEN * 2 + 1];
        let lines: Vec<usize> = logged(&[&long], 1 << 20).split(|byte| *byte == b'\n').map(<[u8]>::len).collect();
        assert_eq!(lines, [MAX_LINE_LEN, MAX_LINE_LEN, 1, 0]);
        assert_eq!(logged(&[b"12\n", b"34567"], 5), b"12\n34\n");
    }
}
