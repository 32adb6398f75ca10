//! The recording file: what `gatespan tap` writes, and what all that reads recordings is given.
//!
//! A file is the line [`HEADER`] and then frames, one behind another. A frame is 21 bytes and its payload, numbers with the highest byte first:
//!
//! ```text
//! u32  bytes of payload, at most 1 MiB
//! u8   kind
//! u64  time, in nanoseconds since the beginning of 1970 (UTC); 0 where it is not known
//! u64  connection, from 1; 0 for the file as a whole
//! ```
//!
//! | kind | what | payload |
//! | --- | --- | --- |
//! | 0x01 | a writer begins here | u64 its run, a random number; u64 which of the run's files this is, from 1; the writer's name |
//! | 0x02 | a connection was made | u32 length of the web server's address, that address, the application's address |
//! | 0x03 | bytes to the application | the bytes |
//! | 0x04 | bytes to the web server | the bytes |
//! | 0x05 | bytes that were not kept on purpose | u8 direction (0x03 or 0x04), u64 how many |
//! | 0x06 | bytes that were lost | u8 direction; u64 how many, which is left out where nobody knows |
//! | 0x07 | nothing more in this direction | u8 direction |
//! | 0x08 | the connection broke | why |
//! | 0x09 | a connection goes on from the file before | u64 bytes to the application so far, u64 to the web server, then as 0x02 |
//! | 0x80 | a note for people | text |
//!
//! Text is UTF-8. A reader skips kinds from 0x80 on that it does not know; another kind that it does not know is an error, as later versions of the
//! format may use them.
//!
//! The file is only ever added to. What a crash leaves is whole frames and possibly the beginning of one, and a reader gives back all that stands before
//! that. A writer that adds to such a file cuts the beginning of a frame off first, says with 0x01 that it begins, and numbers its connections
//! from the highest that the file has.
//!
//! Files may be put one behind another, so that a file that was rotated is read with `cat`: where a frame could begin, the header may stand
//! again. Where the files follow each other in one run, connections go on; elsewhere 0x09 says what is missing, and is read as gaps.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{ConnectionId, Direction, ReadError, Reader, Seen, Timestamp, What};

/// The reader of recordings: bytes in, what was seen out. Of a file it holds the bytes of one frame and those it was given last.
///
/// The offset of [`What::Bytes`] is that of the first of these bytes in the file; that of anything else is its frame's.
#[derive(Debug, Default)]
pub struct LogReader {
    received: BytesMut,
    /// Where `received` begins in the file.
    offset: u64,
    /// There is nothing after `received`.
    is_whole: bool,
    /// The header is behind.
    has_begun: bool,
    /// The last writer's run, and which of its files.
    writer: Option<(u64, u64)>,
    /// Whether connections go on in this file that were opened in what was read before it.
    follows: bool,
    /// What one frame has told beyond the first.
    more: VecDeque<Seen>,
    failure: Option<ReadError>,
}

impl LogReader {
    /// One at the beginning of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the next frame begins that was not read yet, in bytes from the file's beginning: after an error, how much of the file is good.
    pub fn position(&self) -> u64 {
        self.offset
    }
}

impl Reader for LogReader {
    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    fn end(&mut self) {
        self.is_whole = true;
    }

    fn next(&mut self) -> Result<Option<Seen>, ReadError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let next = self.read();
        if let Err(failure) = &next {
            self.failure = Some(failure.clone());
        }
        next
    }
}

impl LogReader {
    fn read(&mut self) -> Result<Option<Seen>, ReadError> {
        loop {
            if let Some(seen) = self.more.pop_front() {
                return Ok(Some(seen));
            }
            // No frame begins as the header does: it would be longer than a frame may be.
            let is_header = !self.has_begun || self.received.starts_with(&HEADER[..4]);
            let read = if is_header { self.read_header()? } else { self.read_frame()? };
            match read {
                Read::Seen(seen) => return Ok(Some(seen)),
                Read::Nothing => {}
                Read::Incomplete => return Ok(None),
            }
        }
    }

    fn read_header(&mut self) -> Result<Read, ReadError> {
        let there = &self.received[..self.received.len().min(HEADER.len())];
        let is_right = there == &HEADER[..there.len()];
        if there.len() < HEADER.len() && is_right && !self.is_whole {
            return Ok(Read::Incomplete);
        }
        if there != HEADER {
            let line = there.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let got = match line {
                [] => "nothing".into(),
                line => format!("\"{}\"", line.escape_ascii()),
            };
            return Err(self.unexpected("the line \"gatespan recording 1\", which recordings begin with", got));
        }
        self.advance(HEADER.len());
        self.has_begun = true;
        self.follows = false;
        Ok(Read::Nothing)
    }

    fn read_frame(&mut self) -> Result<Read, ReadError> {
        let Some(header) = self.received.first_chunk() else {
            let there = self.received.len();
            return self.incomplete(there, "the beginning of a frame", FRAME_HEADER_LEN);
        };
        let frame = Frame::decode(header);
        // What no file can hold is said at once, and not after a wait for it.
        if frame.len > MAX_PAYLOAD_LEN {
            let expected = format!("a frame with at most {MAX_PAYLOAD_LEN} bytes of payload");
            return Err(self.unexpected(&expected, format!("one with {}", frame.len)));
        }
        if !matches!(frame.kind, kind::BEGUN..=kind::CONTINUED | kind::NOTE..) {
            let expected = format!(
                "a frame of a kind from {:#04x} to {:#04x}, or from {:#04x} on",
                kind::BEGUN,
                kind::CONTINUED,
                kind::NOTE
            );
            return Err(self.unexpected(&expected, format!("one of kind {:#04x}", frame.kind)));
        }
        let there = self.received.len() - FRAME_HEADER_LEN;
        if there < frame.len {
            return self.incomplete(there, "a frame's payload", frame.len);
        }
        let offset = self.offset;
        let payload = self.received.split_to(FRAME_HEADER_LEN + frame.len).freeze().slice(FRAME_HEADER_LEN..);
        let read = self.understand(frame, offset, payload);
        // A frame that is refused was not read.
        if read.is_ok() {
            self.offset += (FRAME_HEADER_LEN + frame.len) as u64;
        }
        read
    }

    /// What a whole frame says.
    fn understand(&mut self, frame: Frame, offset: u64, payload: Bytes) -> Result<Read, ReadError> {
        let seen = |offset, what| Seen { offset, time: frame.time, connection: frame.connection, what };
        let wrong = |expected: &str, got: String| {
            Err(ReadError { offset, expected: format!("{expected} in a frame of kind {:#04x}", frame.kind), got })
        };
        if (kind::OPENED..=kind::CONTINUED).contains(&frame.kind) && frame.connection.0 == 0 {
            return wrong("a connection from 1 on", "0".into());
        }
        let what = match frame.kind {
            kind::BEGUN => {
                let mut numbers = &payload[..];
                let (Ok(run), Ok(file)) = (numbers.try_get_u64(), numbers.try_get_u64()) else {
                    return wrong("at least 16 bytes", payload.len().to_string());
                };
                self.follows = self.writer == Some((run, file.wrapping_sub(1)));
                self.writer = Some((run, file));
                return Ok(Read::Nothing);
            }
            kind::OPENED => match addresses(&payload) {
                Some((from, to)) => What::Opened { from, to },
                None => return wrong("two addresses", format!("\"{}\"", payload.escape_ascii())),
            },
            kind::TO_APPLICATION | kind::TO_WEB_SERVER if payload.is_empty() => {
                return wrong("at least one byte", "none".into());
            }
            kind::TO_APPLICATION | kind::TO_WEB_SERVER => {
                let direction = if frame.kind == kind::TO_APPLICATION { TO_APPLICATION } else { TO_WEB_SERVER };
                let what = What::Bytes { direction, bytes: payload };
                return Ok(Read::Seen(seen(offset + FRAME_HEADER_LEN as u64, what)));
            }
            kind::MASKED | kind::GAP | kind::ENDED => {
                let direction = match payload.first() {
                    Some(&kind::TO_APPLICATION) => TO_APPLICATION,
                    Some(&kind::TO_WEB_SERVER) => TO_WEB_SERVER,
                    _ => return wrong("a direction, 0x03 or 0x04,", format!("\"{}\"", payload.escape_ascii())),
                };
                let number = payload[1..].try_into().map(u64::from_be_bytes).ok();
                match (frame.kind, payload.len(), number) {
                    (kind::MASKED, _, Some(len @ 1..)) => What::Masked { direction, len },
                    (kind::GAP, _, Some(len @ 1..)) => What::Gap { direction, len: Some(len) },
                    (kind::GAP, 1, None) => What::Gap { direction, len: None },
                    (kind::ENDED, 1, None) => What::Ended { direction },
                    (kind::ENDED, ..) => return wrong("a direction alone", format!("\"{}\"", payload.escape_ascii())),
                    _ => return wrong("a number from 1 on", format!("\"{}\"", payload[1..].escape_ascii())),
                }
            }
            kind::BROKEN => match text(&payload) {
                Some(reason) => What::Broken { reason },
                None => return wrong("UTF-8", format!("\"{}\"", payload.escape_ascii())),
            },
            kind::CONTINUED => {
                let mut rest = &payload[..];
                let lens = (rest.try_get_u64(), rest.try_get_u64());
                let ((Ok(to_application), Ok(to_web_server)), Some((from, to))) = (lens, addresses(rest)) else {
                    return wrong("two numbers and two addresses", format!("\"{}\"", payload.escape_ascii()));
                };
                if self.follows {
                    return Ok(Read::Nothing);
                }
                let lost = [(TO_APPLICATION, to_application), (TO_WEB_SERVER, to_web_server)];
                let gaps = lost.into_iter().filter(|(_, len)| *len > 0);
                self.more.extend(gaps.map(|(direction, len)| seen(offset, What::Gap { direction, len: Some(len) })));
                What::Opened { from, to }
            }
            _ => return Ok(Read::Nothing),
        };
        Ok(Read::Seen(seen(offset, what)))
    }

    /// Not all is there of what was expected: more must come, unless there is no more.
    fn incomplete(&mut self, there: usize, expected: &str, len: usize) -> Result<Read, ReadError> {
        if !self.is_whole || (self.received.is_empty() && self.has_begun) {
            return Ok(Read::Incomplete);
        }
        Err(self.unexpected(&format!("{expected} ({len} bytes)"), format!("the end of the file after {there} of them")))
    }

    fn unexpected(&self, expected: &str, got: String) -> ReadError {
        ReadError { offset: self.offset, expected: expected.into(), got }
    }

    fn advance(&mut self, len: usize) {
        self.received.advance(len);
        self.offset += len as u64;
    }
}

/// What came of looking at the next frame.
enum Read {
    Seen(Seen),
    Nothing,
    Incomplete,
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(Into::into)
}

/// The addresses of both ends.
fn addresses(mut payload: &[u8]) -> Option<(String, String)> {
    let len = usize::try_from(payload.try_get_u32().ok()?).ok()?;
    let (from, to) = payload.split_at_checked(len)?;
    Some((text(from)?, text(to)?))
}

/// What stands before every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of payload, at most [`MAX_PAYLOAD_LEN`] where anybody is to read it.
    pub len: usize,
    /// What it is: one of [`kind`].
    pub kind: u8,
    /// When.
    pub time: Option<Timestamp>,
    /// Where; 0 for the file as a whole.
    pub connection: ConnectionId,
}

impl Frame {
    /// What these bytes say, whatever that is.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Self {
        let mut bytes = &bytes[..];
        // Each is there, by the type.
        let (len, kind) = (bytes.get_u32(), bytes.get_u8());
        let (time, connection) = (bytes.get_u64(), bytes.get_u64());
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Self { len, kind, time: (time > 0).then_some(Timestamp(time)), connection: ConnectionId(connection) }
    }

    /// The bytes before the payload.
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let mut rest = &mut bytes[..];
        rest.put_u32(u32::try_from(self.len).unwrap_or(u32::MAX));
        rest.put_u8(self.kind);
        rest.put_u64(self.time.map_or(0, |time| time.0));
        rest.put_u64(self.connection.0);
        bytes
    }
}

/// Writes that a writer begins here, in the file of that number of its run. The name is for people.
pub fn put_begun(run: u64, file: u64, name: &str, time: Option<Timestamp>, out: &mut impl BufMut) {
    let frame = Frame { len: 16 + name.len(), kind: kind::BEGUN, time, connection: ConnectionId(0) };
    out.put_slice(&frame.encode());
    out.put_u64(run);
    out.put_u64(file);
    out.put_slice(name.as_bytes());
}

/// Writes that a connection goes on from the file before, in which so many bytes passed to the application and to the web server.
///
/// # Errors
///
/// [`EncodeError::TooLong`], and nothing is written.
pub fn put_continued(
    (from, to): (&str, &str),
    passed: (u64, u64),
    time: Option<Timestamp>,
    connection: ConnectionId,
    out: &mut impl BufMut,
) -> Result<(), EncodeError> {
    let len = fitting(20 + from.len() + to.len())?;
    out.put_slice(&Frame { len, kind: kind::CONTINUED, time, connection }.encode());
    out.put_u64(passed.0);
    out.put_u64(passed.1);
    put_addresses(from, to, out);
    Ok(())
}

/// Writes a note for people; connection 0 is the file as a whole.
///
/// # Errors
///
/// [`EncodeError::TooLong`], and nothing is written.
pub fn put_note(
    note: &str,
    time: Option<Timestamp>,
    connection: ConnectionId,
    out: &mut impl BufMut,
) -> Result<(), EncodeError> {
    let len = fitting(note.len())?;
    out.put_slice(&Frame { len, kind: kind::NOTE, time, connection }.encode());
    out.put_slice(note.as_bytes());
    Ok(())
}

/// Writes one thing that was seen, in as many frames as it takes.
///
/// # Errors
///
/// [`EncodeError::TooLong`], and nothing is written.
pub fn put(
    what: &What,
    time: Option<Timestamp>,
    connection: ConnectionId,
    out: &mut impl BufMut,
) -> Result<(), EncodeError> {
    let begin = |out: &mut _, kind, len| BufMut::put_slice(out, &Frame { len, kind, time, connection }.encode());
    match what {
        What::Opened { from, to } => {
            let len = fitting(4 + from.len() + to.len())?;
            begin(out, kind::OPENED, len);
            put_addresses(from, to, out);
        }
        What::Bytes { direction, bytes } => {
            for bytes in bytes.chunks(MAX_PAYLOAD_LEN) {
                begin(out, kind::of(*direction), bytes.len());
                out.put_slice(bytes);
            }
        }
        What::Masked { direction, len } => {
            begin(out, kind::MASKED, 9);
            out.put_u8(kind::of(*direction));
            out.put_u64(*len);
        }
        What::Gap { direction, len } => {
            begin(out, kind::GAP, if len.is_some() { 9 } else { 1 });
            out.put_u8(kind::of(*direction));
            if let Some(len) = len {
                out.put_u64(*len);
            }
        }
        What::Ended { direction } => {
            begin(out, kind::ENDED, 1);
            out.put_u8(kind::of(*direction));
        }
        What::Broken { reason } => {
            let len = fitting(reason.len())?;
            begin(out, kind::BROKEN, len);
            out.put_slice(reason.as_bytes());
        }
    }
    Ok(())
}

fn put_addresses(from: &str, to: &str, out: &mut impl BufMut) {
    // What fits into a payload fits into 32 bits.
    out.put_u32(from.len() as u32);
    out.put_slice(from.as_bytes());
    out.put_slice(to.as_bytes());
}

fn fitting(len: usize) -> Result<usize, EncodeError> {
    if len <= MAX_PAYLOAD_LEN { Ok(len) } else { Err(EncodeError::TooLong(len)) }
}

/// Why something can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Texts that are longer than a frame.
    #[error("expected at most {MAX_PAYLOAD_LEN} bytes for one frame, got {0}")]
    TooLong(usize),
}

/// What frames are.
pub mod kind {
    use super::Direction;

    /// A writer begins here.
    pub const BEGUN: u8 = 0x01;
    /// A connection was made.
    pub const OPENED: u8 = 0x02;
    /// Bytes to the application.
    pub const TO_APPLICATION: u8 = 0x03;
    /// Bytes to the web server.
    pub const TO_WEB_SERVER: u8 = 0x04;
    /// Bytes that were not kept on purpose.
    pub const MASKED: u8 = 0x05;
    /// Bytes that were lost.
    pub const GAP: u8 = 0x06;
    /// Nothing more in this direction.
    pub const ENDED: u8 = 0x07;
    /// The connection broke.
    pub const BROKEN: u8 = 0x08;
    /// A connection goes on from the file before.
    pub const CONTINUED: u8 = 0x09;
    /// A note for people. Kinds from here on may be skipped.
    pub const NOTE: u8 = 0x80;

    /// The kind of bytes in that direction.
    pub const fn of(direction: Direction) -> u8 {
        match direction {
            Direction::ToApplication => TO_APPLICATION,
            Direction::ToWebServer => TO_WEB_SERVER,
        }
    }
}

const TO_APPLICATION: Direction = Direction::ToApplication;
const TO_WEB_SERVER: Direction = Direction::ToWebServer;

/// What every recording begins with, the version in it.
pub const HEADER: &[u8] = b"gatespan recording 1\n";

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_LEN: usize = 21;

/// The longest payload of a frame, and with it what a reader has to hold.
pub const MAX_PAYLOAD_LEN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: ConnectionId = ConnectionId(1);

    /// All that was seen in a file that comes in pieces of `len` bytes, and how it ended.
    fn read(file: &[u8], len: usize) -> (Vec<Seen>, Option<ReadError>) {
        let mut reader = LogReader::new();
        let mut seen = Vec::new();
        let mut pieces = file.chunks(len);
        loop {
            match reader.next() {
                Ok(Some(next)) => seen.push(next),
                Ok(None) => match pieces.next() {
                    Some(piece) => reader.receive(piece),
                    None if reader.is_whole => return (seen, None),
                    None => reader.end(),
                },
                Err(error) => {
                    assert_eq!(reader.next(), Err(error.clone()), "the same error comes again");
                    return (seen, Some(error));
                }
            }
        }
    }

    fn file(whats: &[What]) -> Vec<u8> {
        let mut file = HEADER.to_vec();
        for what in whats {
            put(what, Some(Timestamp(7)), ONE, &mut file).unwrap();
        }
        file
    }

    fn whats(seen: Vec<Seen>) -> Vec<What> {
        seen.into_iter().map(|seen| seen.what).collect()
    }

    /// One frame of every kind, with the offset at which it is reported.
    fn every_kind() -> (Vec<u8>, Vec<(u64, What)>) {
        let table: [(&[u8], What); 9] = [
            (
                b"\x00\x00\x00\x10\x02\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x00\x00\x00\x06pid 42b.sock",
                What::Opened { from: "pid 42".into(), to: "b.sock".into() },
            ),
            (
                b"\x00\x00\x00\x03\x03\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x01\x01\x00",
                What::Bytes { direction: TO_APPLICATION, bytes: Bytes::from_static(b"\x01\x01\x00") },
            ),
            (
                b"\x00\x00\x00\x01\x04\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x01",
                What::Bytes { direction: TO_WEB_SERVER, bytes: Bytes::from_static(b"\x01") },
            ),
            (
                b"\x00\x00\x00\x09\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x03\0\0\0\0\0\x01\0\0",
                What::Masked { direction: TO_APPLICATION, len: 65_536 },
            ),
            (
                b"\x00\x00\x00\x09\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x04\0\0\0\0\0\0\0\x02",
                What::Gap { direction: TO_WEB_SERVER, len: Some(2) },
            ),
            (
                b"\x00\x00\x00\x01\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x03",
                What::Gap { direction: TO_APPLICATION, len: None },
            ),
            (
                b"\x00\x00\x00\x01\x07\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x03",
                What::Ended { direction: TO_APPLICATION },
            ),
            (b"\x00\x00\x00\x01\x07\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01\x04", What::Ended { direction: TO_WEB_SERVER }),
            (b"\x00\x00\x00\x05\x08\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01reset", What::Broken { reason: "reset".into() }),
        ];
        let mut file = HEADER.to_vec();
        let mut expected = Vec::new();
        for (bytes, what) in table {
            let mut encoded = Vec::new();
            put(&what, Some(Timestamp(7)), ONE, &mut encoded).unwrap();
            assert_eq!(encoded, bytes, "{what:?}");
            let of_bytes = if matches!(what, What::Bytes { .. }) { FRAME_HEADER_LEN } else { 0 };
            expected.push(((file.len() + of_bytes) as u64, what));
            file.extend_from_slice(bytes);
        }
        (file, expected)
    }

    #[test]
    fn every_kind_of_frame_is_these_bytes() {
        let (file, expected) = every_kind();
        for len in [1, 7, file.len()] {
            let (seen, error) = read(&file, len);
            assert_eq!(error, None);
            assert!(seen.iter().all(|seen| seen.time == Some(Timestamp(7)) && seen.connection == ONE));
            let seen: Vec<(u64, What)> = seen.into_iter().map(|seen| (seen.offset, seen.what)).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_file_cut_anywhere_gives_all_before_the_cut_and_says_where_it_is() {
        let (file, expected) = every_kind();
        let starts: Vec<usize> = {
            let mut reader = LogReader::new();
            reader.receive(&file);
            std::iter::from_fn(|| reader.next().unwrap().map(|_| reader.position() as usize)).collect()
        };
        for cut in 0..file.len() {
            let whole = starts.iter().filter(|end| **end <= cut).count();
            let (seen, error) = read(&file[..cut], 5);
            assert_eq!(seen.len(), whole);
            assert!(seen.iter().zip(&expected).all(|(seen, (_, what))| seen.what == *what));
            let good = if cut < HEADER.len() { 0 } else { starts[..whole].last().copied().unwrap_or(HEADER.len()) };
            match error {
                None => assert_eq!(cut, good, "nothing is missing"),
                Some(error) => {
                    assert_eq!(error.offset, good as u64);
                    assert!(cut > good || cut < HEADER.len());
                    assert!(error.got.contains("the end of the file after") || cut < HEADER.len(), "{error}");
                }
            }
        }
    }

    #[test]
    fn an_end_says_what_is_missing() {
        let file = file(&[What::Bytes { direction: TO_APPLICATION, bytes: Bytes::from_static(b"abc") }]);
        let messages =
            [0, 12, HEADER.len() + 20, file.len() - 1].map(|cut| read(&file[..cut], 9).1.unwrap().to_string());
        let expected = [
            "at byte 0: expected the line \"gatespan recording 1\", which recordings begin with, got nothing",
            "at byte 0: expected the line \"gatespan recording 1\", which recordings begin with, got \"gatespan rec\"",
            "at byte 21: expected the beginning of a frame (21 bytes), got the end of the file after 20 of them",
            "at byte 21: expected a frame's payload (3 bytes), got the end of the file after 2 of them",
        ];
        assert_eq!(messages, expected);
    }

    #[test]
    fn what_is_no_recording_is_told_from_its_first_bytes() {
        for (bytes, got) in [
            (&b"GET / HTTP/1.1\r\n"[..], "\"GET / HTTP/1.1\\r\""),
            (b"gatespan recording 2\n", "\"gatespan recording 2\""),
            (b"\x01\x01\0\x01\0\x08\0\0", "\"\\x01\\x01\\x00\\x01\\x00\\x08\\x00\\x00\""),
        ] {
            let mut reader = LogReader::new();
            reader.receive(bytes);
            let error = reader.next().unwrap_err();
            assert_eq!((error.offset, error.got.as_str()), (0, got));
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let frame = |len: usize, kind, connection, payload: &[u8]| {
            let header = Frame { len, kind, time: None, connection: ConnectionId(connection) }.encode();
            [HEADER, &header, payload].concat()
        };
        let table: [(Vec<u8>, &str); 15] = [
            (frame(MAX_PAYLOAD_LEN + 1, 3, 1, b""), "at most 1048576 bytes of payload, got one with 1048577"),
            (
                frame(0, 0, 0, b""),
                "expected a frame of a kind from 0x01 to 0x09, or from 0x80 on, got one of kind 0x00",
            ),
            (frame(0, 0x0a, 0, b""), "got one of kind 0x0a"),
            (frame(0, 0x7f, 0, b""), "got one of kind 0x7f"),
            (frame(1, 3, 0, b"a"), "expected a connection from 1 on in a frame of kind 0x03, got 0"),
            (frame(0, 3, 1, b""), "expected at least one byte in a frame of kind 0x03, got none"),
            (frame(2, 1, 0, b"ab"), "expected at least 16 bytes in a frame of kind 0x01, got 2"),
            (frame(3, 2, 1, b"abc"), "expected two addresses"),
            (frame(5, 2, 1, b"\0\0\0\x02a"), "expected two addresses"),
            (frame(5, 2, 1, b"\0\0\0\x01\xff"), "expected two addresses"),
            (frame(9, 5, 1, b"\x03\0\0\0\0\0\0\0\0"), "expected a number from 1 on in a frame of kind 0x05"),
            (frame(1, 5, 1, b"\x05"), "expected a direction, 0x03 or 0x04, in a frame of kind 0x05, got \"\\x05\""),
            (frame(2, 7, 1, b"\x03\x03"), "expected a direction alone in a frame of kind 0x07, got \"\\x03\\x03\""),
            (frame(1, 8, 1, b"\xff"), "expected UTF-8 in a frame of kind 0x08, got \"\\xff\""),
            (frame(16, 9, 1, &[0; 16]), "expected two numbers and two addresses"),
        ];
        for (file, part) in table {
            let (seen, error) = read(&file, 64);
            let message = error.expect(part).to_string();
            assert!(seen.is_empty() && message.starts_with("at byte 21: ") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn notes_and_what_later_writers_add_are_skipped() {
        let mut file = HEADER.to_vec();
        put_begun(1, 1, "gatespan", None, &mut file);
        put_note("the disk was full", None, ConnectionId(0), &mut file).unwrap();
        file.extend_from_slice(&Frame { len: 2, kind: 0xff, time: None, connection: ONE }.encode());
        file.extend_from_slice(b"??");
        put(&What::Ended { direction: TO_APPLICATION }, None, ONE, &mut file).unwrap();
        let (seen, error) = read(&file, 3);
        assert_eq!((seen.len(), error), (1, None));
        assert_eq!((seen[0].time, &seen[0].what), (None, &What::Ended { direction: TO_APPLICATION }));
    }

    #[test]
    fn files_of_one_run_follow_each_other() {
        let bytes =
            |text: &'static str| What::Bytes { direction: TO_WEB_SERVER, bytes: Bytes::from_static(text.as_bytes()) };
        let opened = What::Opened { from: "a".into(), to: "b".into() };
        let file = |run, number, whats: &[&What]| {
            let mut file = HEADER.to_vec();
            put_begun(run, number, "gatespan", None, &mut file);
            if number > 1 {
                put_continued(("a", "b"), (0, 5), None, ONE, &mut file).unwrap();
            }
            whats.iter().for_each(|what| put(what, None, ONE, &mut file).unwrap());
            file
        };
        let (first, second) = (file(9, 1, &[&opened, &bytes("first")]), file(9, 2, &[&bytes("second")]));
        let (both, error) = read(&[first.clone(), second.clone()].concat(), 11);
        assert_eq!((whats(both), error), (vec![opened.clone(), bytes("first"), bytes("second")], None));
        // By itself, behind another run's, or with one left out between them, what is missing is said.
        let gap = What::Gap { direction: TO_WEB_SERVER, len: Some(5) };
        let alone = vec![opened.clone(), gap, bytes("second")];
        assert_eq!(whats(read(&second, 11).0), alone);
        for other in [file(8, 1, &[]), file(9, 3, &[]), HEADER.to_vec()] {
            let seen = whats(read(&[other, second.clone()].concat(), 11).0);
            assert_eq!(seen[seen.len() - 3..], alone);
        }
    }

    #[test]
    fn what_is_longer_than_a_frame_is_several_or_refused() {
        let bytes = Bytes::from(vec![b'x'; MAX_PAYLOAD_LEN + 1]);
        let what = What::Bytes { direction: TO_APPLICATION, bytes };
        let (seen, error) = read(&file(&[what]), 64 * 1024);
        let lens: Vec<usize> = seen
            .iter()
            .map(|seen| match &seen.what {
                What::Bytes { bytes, .. } => bytes.len(),
                other => panic!("expected bytes, got {other:?}"),
            })
            .collect();
        assert_eq!((lens, error), (vec![MAX_PAYLOAD_LEN, 1], None));
        let long = "x".repeat(MAX_PAYLOAD_LEN + 1);
        let mut out = Vec::new();
        let too_long = Err(EncodeError::TooLong(long.len()));
        assert_eq!(put(&What::Broken { reason: long.clone() }, None, ONE, &mut out), too_long);
        assert_eq!(put_note(&long, None, ONE, &mut out), too_long);
        assert!(put(&What::Opened { from: long.clone(), to: String::new() }, None, ONE, &mut out).is_err());
        assert!(put_continued((&long, ""), (0, 0), None, ONE, &mut out).is_err());
        assert!(out.is_empty());
    }

    fn any_what() -> impl Strategy<Value = What> {
        let direction = || prop_oneof![Just(TO_APPLICATION), Just(TO_WEB_SERVER)];
        prop_oneof![
            (".{0,20}", ".{0,20}").prop_map(|(from, to)| What::Opened { from, to }),
            (direction(), prop::collection::vec(any::<u8>(), 1..100))
                .prop_map(|(direction, bytes)| What::Bytes { direction, bytes: bytes.into() }),
            (direction(), 1_u64..).prop_map(|(direction, len)| What::Masked { direction, len }),
            (direction(), prop::option::of(1_u64..)).prop_map(|(direction, len)| What::Gap { direction, len }),
            direction().prop_map(|direction| What::Ended { direction }),
            ".{0,20}".prop_map(|reason| What::Broken { reason }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            all in prop::collection::vec((any_what(), prop::option::of(1_u64..), 1_u64..), 0..20),
            len in 1_usize..200,
        ) {
            let mut file = HEADER.to_vec();
            for (what, time, connection) in &all {
                put(what, time.map(Timestamp), ConnectionId(*connection), &mut file).unwrap();
            }
            let (seen, error) = read(&file, len);
            prop_assert_eq!(error, None);
            let seen: Vec<_> =
                seen.into_iter().map(|seen| (seen.what, seen.time.map(|time| time.0), seen.connection.0)).collect();
            prop_assert_eq!(seen, all);
        }

        #[test]
        fn any_bytes_are_read_the_same_however_they_come(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 1_usize..50) {
            let file = [HEADER, &bytes].concat();
            prop_assert_eq!(read(&file, len), read(&file, file.len()));
        }
    }
}
