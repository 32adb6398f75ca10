//! What may be kept of a FastCGI connection's bytes, told as they pass: secrets are masked, the records around them are not.
//!
//! Masked are, unless they are [`Shown`]:
//!
//! - cookies: the values of variables and response headers whose name has `COOKIE` in it;
//! - authorization: the values of those whose name has one of [`SECRET_WORDS`] in it, in any case, `-` and `_` being the same;
//! - bodies: STDIN, DATA, what follows the head on STDOUT, and records of a type that nobody knows.
//!
//! Padding is masked where it is not zeros.
//!
//! Everything that can't be followed is masked: a STDOUT that has no head, and all that comes behind the first byte of what is no
//! record.
//! What is never masked: STDERR, and secrets in a place of their own, such as in a query string.
//!
//! Nothing is copied and bodies are not looked at, so that a body costs no more than its records' headers.

use memchr::memchr;

use super::Direction;
use crate::protocol::fastcgi::{HEADER_LEN, Header, RecordType, RequestId, VERSION};

/// What is not masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Cookies.
    pub cookies: bool,
    /// What proves who somebody is.
    pub authorization: bool,
    /// Bodies of requests and responses.
    pub bodies: bool,
}

impl Shown {
    /// All of it.
    pub const ALL: Self = Self { cookies: true, authorization: true, bodies: true };
}

/// Some bytes, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// So many that may be kept.
    Kept(usize),
    /// So many that may not.
    Masked(usize),
}

/// Follows one connection in both directions.
#[derive(Debug)]
pub struct Mask {
    shown: Shown,
    to_application: Side,
    to_web_server: Side,
    /// The requests that have begun and not ended.
    active: Vec<RequestId>,
    /// Whether `active` is all there is to know.
    is_followed: bool,
}

impl Mask {
    /// One for a new connection.
    pub fn new(shown: Shown) -> Self {
        Self { shown, to_application: Side::new(), to_web_server: Side::new(), active: Vec::new(), is_followed: true }
    }

    /// Follows bytes, and adds to `runs` what they are. The runs together are as long as the bytes; no two of a kind stand next to each other.
    pub fn pass(&mut self, direction: Direction, bytes: &[u8], runs: &mut Vec<Run>) {
        let side = match direction {
            Direction::ToApplication => &mut self.to_application,
            Direction::ToWebServer => &mut self.to_web_server,
        };
        let first = runs.len();
        let mut runs = Runs { first, all: runs };
        let mut rest = bytes;
        while !rest.is_empty() {
            let before = rest.len();
            match side.step(direction, rest, self.shown, &mut runs) {
                Step::Passed(len) => rest = &rest[len..],
                Step::Began(header) => {
                    rest = &rest[side.take_header()..];
                    match header.record_type {
                        RecordType::BeginRequest if self.active.contains(&header.request_id) => {}
                        RecordType::BeginRequest if self.active.len() < MAX_STREAMS => {
                            self.active.push(header.request_id)
                        }
                        RecordType::BeginRequest => self.is_followed = false,
                        RecordType::EndRequest => self.active.retain(|id| *id != header.request_id),
                        _ => {}
                    }
                }
                Step::Lost => {
                    rest = &rest[1..];
                    self.is_followed = false;
                }
            }
            debug_assert!(rest.len() < before);
        }
    }

    /// How many requests are under way; `None` where that can't be told.
    pub fn active(&self) -> Option<usize> {
        self.is_followed.then_some(self.active.len())
    }

    /// Whether nothing is under way: no request, and no record that has begun. False where that can't be told.
    pub fn is_idle(&self) -> bool {
        self.active() == Some(0) && self.to_application.is_between_records() && self.to_web_server.is_between_records()
    }
}

/// Collects runs, and puts those of a kind together.
struct Runs<'a> {
    first: usize,
    all: &'a mut Vec<Run>,
}

impl Runs<'_> {
    fn add(&mut self, len: usize, is_masked: bool) {
        if len == 0 {
            return;
        }
        let last = if self.all.len() > self.first { self.all.last_mut() } else { None };
        match (last, is_masked) {
            (Some(Run::Kept(before)), false) | (Some(Run::Masked(before)), true) => *before += len,
            (_, false) => self.all.push(Run::Kept(len)),
            (_, true) => self.all.push(Run::Masked(len)),
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Side {
    at: At,
    /// What was received of a header, and how much of it in the last step.
    header: [u8; HEADER_LEN],
    taken: usize,
    /// Streams that are not over, by request. Few, so that looking at each is quickest.
    streams: Vec<(RequestId, Stream)>,
}

/// Where in the records a direction is.
#[derive(Debug, Clone, Copy)]
enum At {
    /// So much of a header is there.
    Header(usize),
    /// In the content of a record, of which so much is left.
    Content(Header, usize),
    /// In its padding.
    Padding(usize),
    /// Nowhere: what comes is not FastCGI.
    Lost,
}

enum Step {
    /// So many bytes are told.
    Passed(usize),
    /// A record began.
    Began(Header),
    /// Nothing can be followed behind this byte.
    Lost,
}

impl Side {
    fn new() -> Self {
        Self { at: At::Header(0), header: [0; HEADER_LEN], taken: 0, streams: Vec::new() }
    }

    fn is_between_records(&self) -> bool {
        matches!(self.at, At::Header(0))
    }

    fn take_header(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// Tells what the next bytes are, of which there is at least one.
    fn step(&mut self, direction: Direction, bytes: &[u8], shown: Shown, runs: &mut Runs<'_>) -> Step {
        match self.at {
            At::Lost => {
                runs.add(bytes.len(), shown != Shown::ALL);
                Step::Passed(bytes.len())
            }
            At::Header(filled) => {
                if filled == 0 && bytes[0] != VERSION {
                    // One byte tells readers that this is no record.
                    runs.add(1, false);
                    self.at = At::Lost;
                    return Step::Lost;
                }
                let len = bytes.len().min(HEADER_LEN - filled);
                self.header[filled..filled + len].copy_from_slice(&bytes[..len]);
                runs.add(len, false);
                // Its version was looked at, so that all that can be missing is some bytes.
                let Ok(Some(header)) = Header::decode(&self.header[..filled + len]) else {
                    self.at = At::Header(filled + len);
                    return Step::Passed(len);
                };
                self.at = At::Content(header, header.content_len.into());
                self.begin(direction, header);
                self.taken = len;
                // A record without content is over with its header.
                self.skip_what_is_over();
                Step::Began(header)
            }
            At::Content(header, left) => {
                let len = left.min(bytes.len());
                self.content(header, &bytes[..len], shown, runs);
                self.at = At::Content(header, left - len);
                self.skip_what_is_over();
                Step::Passed(len)
            }
            At::Padding(left) => {
                let len = left.min(bytes.len());
                // Zeros say nothing; what else stands there may be what the sender's memory held before.
                bytes[..len].iter().for_each(|byte| runs.add(1, *byte != 0 && shown != Shown::ALL));
                self.at = At::Padding(left - len);
                self.skip_what_is_over();
                Step::Passed(len)
            }
        }
    }

    /// To the place where the next byte belongs.
    fn skip_what_is_over(&mut self) {
        if let At::Content(header, 0) = self.at {
            self.at = At::Padding(header.padding_len.into());
        }
        if let At::Padding(0) = self.at {
            self.at = At::Header(0);
        }
    }

    fn stream(&self, id: RequestId) -> Option<&Stream> {
        self.streams.iter().find(|(stream_id, _)| *stream_id == id).map(|(_, stream)| stream)
    }

    fn begin(&mut self, direction: Direction, header: Header) {
        let id = header.request_id;
        let stream = match (direction, header.record_type) {
            // FastCGI 5.2: an empty record ends the stream.
            (Direction::ToApplication, RecordType::Params) if header.content_len == 0 => None,
            (Direction::ToApplication, RecordType::BeginRequest) => None,
            (Direction::ToWebServer, RecordType::EndRequest) => None,
            (Direction::ToApplication, RecordType::Params) => Some(Stream::Params(Params::default())),
            (Direction::ToWebServer, RecordType::Stdout) => Some(Stream::Head(Head::default())),
            _ => return,
        };
        match stream {
            None => self.streams.retain(|(stream_id, _)| *stream_id != id),
            Some(stream) if self.stream(id).is_none() && self.streams.len() < MAX_STREAMS => {
                self.streams.push((id, stream))
            }
            Some(_) => {}
        }
    }

    fn content(&mut self, header: Header, bytes: &[u8], shown: Shown, runs: &mut Runs<'_>) {
        let stream = self.streams.iter_mut().find(|(id, _)| *id == header.request_id).map(|(_, stream)| stream);
        match (header.record_type, stream) {
            (RecordType::Params, Some(Stream::Params(params))) => params.pass(bytes, shown, runs),
            (RecordType::Stdout, Some(Stream::Head(head))) => head.pass(bytes, shown, runs),
            // One stream more than are followed, or one in the wrong direction.
            (RecordType::Params | RecordType::Stdout, _) => runs.add(bytes.len(), shown != Shown::ALL),
            (RecordType::Stdin | RecordType::Data | RecordType::Unknown(_), _) => runs.add(bytes.len(), !shown.bodies),
            (
                RecordType::BeginRequest
                | RecordType::AbortRequest
                | RecordType::EndRequest
                | RecordType::Stderr
                | RecordType::GetValues
                | RecordType::GetValuesResult
                | RecordType::UnknownType,
                _,
            ) => runs.add(bytes.len(), false),
        }
    }
}

/// How many streams are followed in one direction of a connection, and how many requests are counted. What is beyond is masked.
pub const MAX_STREAMS: usize = 1024;

/// A stream that has secrets in the middle of what may be kept.
#[derive(Debug)]
enum Stream {
    Params(Params),
    Head(Head),
}

/// Name-value pairs (FastCGI 3.4), which may straddle records.
#[derive(Debug, Default)]
struct Params {
    at: Pair,
    /// The lengths as far as they have come, or the name.
    held: Vec<u8>,
}

/// Where in a pair a stream is.
#[derive(Debug, Clone, Copy, Default)]
enum Pair {
    #[default]
    Lengths,
    Name {
        left: usize,
        value: usize,
    },
    Value {
        left: usize,
        is_masked: bool,
    },
}

impl Params {
    fn pass(&mut self, mut bytes: &[u8], shown: Shown, runs: &mut Runs<'_>) {
        while !bytes.is_empty() {
            let len = match self.at {
                Pair::Lengths => self.pass_lengths(bytes, runs),
                Pair::Name { left, value } => {
                    let len = left.min(bytes.len());
                    runs.add(len, false);
                    if len < left {
                        self.hold(&bytes[..len]);
                        self.at = Pair::Name { left: left - len, value };
                    } else {
                        let is_masked = match self.held.is_empty() {
                            true => is_masked(&bytes[..len], shown),
                            false => {
                                self.hold(&bytes[..len]);
                                is_masked(&self.held, shown)
                            }
                        };
                        self.held.clear();
                        self.at = if value > 0 { Pair::Value { left: value, is_masked } } else { Pair::Lengths };
                    }
                    len
                }
                Pair::Value { left, is_masked } => {
                    let len = left.min(bytes.len());
                    runs.add(len, is_masked);
                    self.at = if len < left { Pair::Value { left: left - len, is_masked } } else { Pair::Lengths };
                    len
                }
            };
            bytes = &bytes[len..];
        }
    }

    fn pass_lengths(&mut self, bytes: &[u8], runs: &mut Runs<'_>) -> usize {
        // Nearly always two bytes that are there.
        if let ([name @ 1..0x80, value @ ..0x80, ..], true) = (bytes, self.held.is_empty()) {
            runs.add(2, false);
            self.at = Pair::Name { left: (*name).into(), value: (*value).into() };
            return 2;
        }
        let mut len = 0;
        loop {
            if let Some((name, value)) = lengths(&self.held) {
                self.held.clear();
                self.at = match (name, value) {
                    (0, 0) => Pair::Lengths,
                    (0, value) => Pair::Value { left: value, is_masked: false },
                    (name, value) => Pair::Name { left: name, value },
                };
                break;
            }
            let Some(byte) = bytes.get(len) else { break };
            self.held.push(*byte);
            len += 1;
        }
        runs.add(len, false);
        len
    }

    /// Remembers part of a name, as much as can be a name that means something, and one byte more.
    fn hold(&mut self, bytes: &[u8]) {
        let room = (MAX_NAME_LEN + 1).saturating_sub(self.held.len());
        self.held.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// The lengths of name and value, where these bytes are both (FastCGI 3.4).
fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    let one = |bytes: &[u8]| -> Option<(usize, usize)> {
        match *bytes {
            [short @ ..0x80, ..] => Some((short.into(), 1)),
            [a, b, c, d, ..] => Some((u32::from_be_bytes([a & 0x7f, b, c, d]) as usize, 4)),
            _ => None,
        }
    };
    let (name, used) = one(bytes)?;
    let (value, _) = one(&bytes[used..])?;
    Some((name, value))
}

/// The head of a response and the body behind it (RFC 3875 6).
#[derive(Debug, Default)]
struct Head {
    line: Line,
    /// A header's name as far as it has come.
    name: Vec<u8>,
    /// Bytes of the head so far.
    len: usize,
}

/// Where in a head a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    /// Before the first line.
    #[default]
    First,
    /// At the beginning of a further line, after a value that was masked or not.
    Start { was_masked: bool },
    /// After a carriage return there, which a line feed makes an empty line of.
    CarriageReturn,
    /// In a header's name.
    Name,
    /// In its value.
    Value { is_masked: bool },
    /// Behind the head, or in what is none.
    Body,
}

impl Head {
    fn pass(&mut self, mut bytes: &[u8], shown: Shown, runs: &mut Runs<'_>) {
        while let Some(first) = bytes.first() {
            if self.len >= MAX_HEAD_LEN {
                self.line = Line::Body;
            }
            let within =
                if self.line == Line::Body { bytes } else { &bytes[..bytes.len().min(MAX_HEAD_LEN - self.len)] };
            // How many bytes are told, whether they are masked, and where what follows is.
            let (len, is_masked, next) = match self.line {
                Line::Body => (within.len(), !shown.bodies, Line::Body),
                Line::First | Line::Start { .. } if *first == b'\n' => (1, false, Line::Body),
                Line::First | Line::Start { .. } if *first == b'\r' => (1, false, Line::CarriageReturn),
                Line::Start { was_masked } if matches!(first, b' ' | b'\t') => {
                    (0, false, Line::Value { is_masked: was_masked })
                }
                Line::First | Line::Start { .. } => {
                    self.name.clear();
                    (0, false, Line::Name)
                }
                Line::CarriageReturn if *first == b'\n' => (1, false, Line::Body),
                // What has begun as no head does is a body from here on.
                Line::CarriageReturn => (0, false, Line::Body),
                Line::Name => {
                    let end = within.iter().position(|byte| !is_token(*byte));
                    let name = &within[..end.unwrap_or(within.len())];
                    let room = MAX_NAME_LEN - self.name.len();
                    match end {
                        _ if name.len() > room => (room, false, Line::Body),
                        None => {
                            self.name.extend_from_slice(name);
                            (name.len(), false, Line::Name)
                        }
                        Some(end) if bytes[end] == b':' && self.name.len() + end > 0 => {
                            let is_masked = match self.name.is_empty() {
                                true => is_masked(name, shown),
                                false => {
                                    self.name.extend_from_slice(name);
                                    is_masked(&self.name, shown)
                                }
                            };
                            (end + 1, false, Line::Value { is_masked })
                        }
                        Some(end) => (end, false, Line::Body),
                    }
                }
                Line::Value { is_masked } => match memchr(b'\n', within) {
                    Some(0) => (1, false, Line::Start { was_masked: is_masked }),
                    Some(end) => (end, is_masked, self.line),
                    None => (within.len(), is_masked, self.line),
                },
            };
            runs.add(len, is_masked);
            self.len += len;
            self.line = next;
            bytes = &bytes[len..];
        }
    }
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether the value of a variable or header of that name is a secret.
fn is_masked(name: &[u8], shown: Shown) -> bool {
    if name.len() > MAX_NAME_LEN {
        return shown != Shown::ALL;
    }
    // Every variable of every request comes by here, and nearly all have no such word: one look at each byte.
    name.iter().enumerate().any(|(at, first)| {
        let words: &[&str] = match first.to_ascii_uppercase() {
            b'C' if !shown.cookies => &["COOKIE"],
            _ if shown.authorization => return false,
            b'A' => &SECRET_WORDS[..3],
            b'P' => &SECRET_WORDS[3..6],
            b'S' => &SECRET_WORDS[6..7],
            b'T' => &SECRET_WORDS[7..],
            _ => return false,
        };
        words.iter().any(|word| begins_with(&name[at..], word.as_bytes()))
    })
}

/// Whether a name goes on with a word, in any case, `-` and `_` being the same.
fn begins_with(name: &[u8], word: &[u8]) -> bool {
    let is_same = |byte: u8| if byte == b'-' { b'_' } else { byte.to_ascii_uppercase() };
    name.len() >= word.len() && name.iter().zip(word).all(|(byte, expected)| is_same(*byte) == *expected)
}

/// What the names of variables and headers have in them whose values prove who somebody is, by their first letters.
pub const SECRET_WORDS: [&str; 8] =
    ["AUTHORIZATION", "API_KEY", "APIKEY", "PHP_AUTH_", "PASSWORD", "PASSWD", "SECRET", "TOKEN"];

/// The longest name that is looked at; the value of a longer one is masked.
pub const MAX_NAME_LEN: usize = 256;

/// The longest head that is followed; what comes then is masked as a body.
pub const MAX_HEAD_LEN: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::fastcgi::{BeginRequest, EndRequest, ProtocolStatus, Role, name_value, put_record};

    const ONE: RequestId = RequestId(1);
    const TO_APPLICATION: Direction = Direction::ToApplication;
    const TO_WEB_SERVER: Direction = Direction::ToWebServer;

    /// What is left of bytes that pass in pieces of `len`, a `*` for each that is masked.
    fn pass(mask: &mut Mask, direction: Direction, bytes: &[u8], len: usize) -> Vec<u8> {
        let mut kept = Vec::new();
        for piece in bytes.chunks(len) {
            let mut runs = Vec::new();
            mask.pass(direction, piece, &mut runs);
            let mut at = 0;
            for pair in runs.windows(2) {
                assert!(!matches!(pair, [Run::Kept(_), Run::Kept(_)] | [Run::Masked(_), Run::Masked(_)]), "{runs:?}");
            }
            for run in runs {
                match run {
                    Run::Kept(len) => kept.extend_from_slice(&piece[at..at + len]),
                    Run::Masked(len) => kept.extend(std::iter::repeat_n(b'*', len)),
                }
                let (Run::Kept(len) | Run::Masked(len)) = run;
                at += len;
            }
            assert_eq!(at, piece.len());
        }
        kept
    }

    fn masked(shown: Shown, direction: Direction, bytes: &[u8]) -> Vec<u8> {
        let whole = pass(&mut Mask::new(shown), direction, bytes, bytes.len().max(1));
        for len in [1, 2, 3, 7, 13] {
            assert_eq!(pass(&mut Mask::new(shown), direction, bytes, len), whole, "in pieces of {len}");
        }
        whole
    }

    fn records(records: &[(RecordType, &[u8], u8)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (record_type, content, padding) in records {
            put_record(*record_type, ONE, content, *padding, &mut bytes);
        }
        bytes
    }

    fn params(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut params = Vec::new();
        for (name, value) in pairs {
            name_value::encode(name.as_bytes(), value.as_bytes(), &mut params).unwrap();
        }
        params
    }

    fn request(pairs: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let begin = BeginRequest { role: Role::Responder, keep_connection: true }.encode();
        records(&[
            (RecordType::BeginRequest, &begin, 0),
            (RecordType::Params, &params(pairs), 3),
            (RecordType::Params, b"", 0),
            (RecordType::Stdin, body, 5),
            (RecordType::Stdin, b"", 0),
        ])
    }

    const SECRETS: [(&str, &str); 9] = [
        ("HTTP_COOKIE", "id=s3cret"),
        ("HTTP_AUTHORIZATION", "Basic s3cret"),
        ("REDIRECT_HTTP_AUTHORIZATION", "Basic s3cret"),
        ("HTTP_PROXY_AUTHORIZATION", "s3cret"),
        ("PHP_AUTH_PW", "s3cret"),
        ("PHP_AUTH_DIGEST", "s3cret"),
        ("HTTP_X_API_KEY", "s3cret"),
        ("HTTP_X_CSRF_TOKEN", "s3cret"),
        ("http_cookie", "s3cret"),
    ];

    #[test]
    fn secrets_are_masked_and_what_is_around_them_is_kept() {
        for (name, value) in SECRETS {
            let hidden = "*".repeat(value.len());
            let pairs =
                |value| [("REQUEST_METHOD", "POST"), (name, value), ("AUTH_TYPE", "Basic"), ("REMOTE_USER", "me")];
            let kept =
                masked(Shown { bodies: true, ..Shown::default() }, TO_APPLICATION, &request(&pairs(value), b"body"));
            assert_eq!(kept, request(&pairs(&hidden), b"body"), "{name}");
            assert_eq!(masked(Shown::ALL, TO_APPLICATION, &kept), kept);
        }
        let long = "x".repeat(30_000);
        let pairs = |value| [("HTTP_COOKIE", value), ("A", "")];
        let kept = masked(Shown::default(), TO_APPLICATION, &request(&pairs(&long), b""));
        assert_eq!(kept, request(&pairs(&"*".repeat(long.len())), b""));
    }

    #[test]
    fn every_word_is_found_wherever_it_stands_and_in_any_case() {
        let all = Shown::default();
        for word in SECRET_WORDS.into_iter().chain(["COOKIE"]) {
            for name in
                [word.to_owned(), format!("HTTP_X_{word}"), format!("x-{}-y", word.to_lowercase().replace('_', "-"))]
            {
                assert!(is_masked(name.as_bytes(), all) && !is_masked(name.as_bytes(), Shown::ALL), "{name}");
            }
            assert!(!is_masked(&word.as_bytes()[..word.len() - 1], all), "{word}");
        }
        for name in [
            "HTTP_ACCEPT",
            "AUTH_TYPE",
            "CONTENT_TYPE",
            "HTTP_COOKI",
            "PATH_TRANSLATED",
            "SCRIPT_NAME",
            "REMOTE_USER",
            "",
        ] {
            assert!(!is_masked(name.as_bytes(), all), "{name}");
        }
    }

    #[test]
    fn each_kind_is_shown_by_itself() {
        let pairs = [("HTTP_COOKIE", "aaa"), ("HTTP_AUTHORIZATION", "bbb")];
        let bytes = request(&pairs, b"ccc");
        let is_there = |shown, part: &[u8]| masked(shown, TO_APPLICATION, &bytes).windows(3).any(|bytes| bytes == part);
        for (shown, expected) in [
            (Shown::default(), [false, false, false]),
            (Shown { cookies: true, ..Shown::default() }, [true, false, false]),
            (Shown { authorization: true, ..Shown::default() }, [false, true, false]),
            (Shown { bodies: true, ..Shown::default() }, [false, false, true]),
            (Shown::ALL, [true, true, true]),
        ] {
            assert_eq!([b"aaa", b"bbb", b"ccc"].map(|part| is_there(shown, part)), expected, "{shown:?}");
        }
    }

    #[test]
    fn a_body_is_masked_and_its_records_are_kept() {
        let kept = masked(Shown::default(), TO_APPLICATION, &request(&[("A", "b")], b"body"));
        assert_eq!(kept, request(&[("A", "b")], b"****"));
    }

    #[test]
    fn padding_is_kept_where_it_is_zeros() {
        let mut bytes = records(&[(RecordType::Params, &params(&[("A", "b")]), 4)]);
        let len = bytes.len();
        bytes[len - 3..len - 1].copy_from_slice(b"ab");
        assert!(masked(Shown::default(), TO_APPLICATION, &bytes).ends_with(b"\0**\0"));
        assert_eq!(masked(Shown::ALL, TO_APPLICATION, &bytes), bytes);
    }

    #[test]
    fn pairs_may_straddle_records() {
        let all = params(&[("HTTP_ACCEPT", "x"), ("HTTP_COOKIE", "s3cret"), ("Z", "zz")]);
        for cut in 1..all.len() {
            let in_two =
                |all: &[u8]| records(&[(RecordType::Params, &all[..cut], 1), (RecordType::Params, &all[cut..], 0)]);
            let hidden = params(&[("HTTP_ACCEPT", "x"), ("HTTP_COOKIE", "******"), ("Z", "zz")]);
            assert_eq!(masked(Shown::default(), TO_APPLICATION, &in_two(&all)), in_two(&hidden));
        }
    }

    #[test]
    fn a_response_is_kept_up_to_its_body() {
        for (content, expected) in [
            (
                "Status: 200 OK\r\nSet-Cookie: a=b\r\nX: y\r\n\r\nbody",
                "Status: 200 OK\r\nSet-Cookie:*****\nX: y\r\n\r\n****",
            ),
            ("set-cookie: a=b\nX: y\n\nbody\n\n", "set-cookie:****\nX: y\n\n******"),
            ("Set-Cookie: a\n more\nX: y\n z\n\nbody", "Set-Cookie:**\n*****\nX: y\n z\n\n****"),
            ("Variable-PHP_AUTH_PW: a\nX-Auth-Token: b\n\n", "Variable-PHP_AUTH_PW:**\nX-Auth-Token:**\n\n"),
            ("\nbody", "\n****"),
            ("\r\nbody", "\r\n****"),
            ("<html>: no head", "***************"),
            ("{\"a\": 1}", "********"),
            (": x\n\n", "*****"),
            ("a b: c\n\n", "a*******"),
            (" a: b\n\n", "*******"),
            ("\rbody", "\r****"),
            ("word and more", "word*********"),
        ] {
            let bytes = records(&[(RecordType::Stdout, content.as_bytes(), 0)]);
            let kept = masked(Shown::default(), TO_WEB_SERVER, &bytes);
            assert_eq!(String::from_utf8_lossy(&kept[HEADER_LEN..]), expected);
            // The head in records of a byte each.
            let pieces: Vec<_> = content.as_bytes().chunks(1).map(|byte| (RecordType::Stdout, byte, 0)).collect();
            let kept = masked(Shown::default(), TO_WEB_SERVER, &records(&pieces));
            let kept: Vec<u8> = kept.chunks(HEADER_LEN + 1).map(|record| record[HEADER_LEN]).collect();
            assert_eq!(String::from_utf8_lossy(&kept), expected);
        }
    }

    #[test]
    fn the_next_response_on_a_connection_has_a_head_again() {
        let end = EndRequest { application_status: 0, protocol_status: ProtocolStatus::RequestComplete }.encode();
        let answer = |body| {
            records(&[
                (RecordType::Stdout, b"X: y\r\n\r\n", 0),
                (RecordType::Stdout, body, 0),
                (RecordType::Stderr, b"a warning", 0),
                (RecordType::EndRequest, &end, 0),
            ])
        };
        let twice = [answer(b"one"), answer(b"two")].concat();
        let hidden = [answer(b"***"), answer(b"***")].concat();
        assert_eq!(masked(Shown::default(), TO_WEB_SERVER, &twice), hidden);
    }

    #[test]
    fn what_is_not_fastcgi_is_masked_behind_its_first_byte() {
        assert_eq!(masked(Shown::default(), TO_APPLICATION, b"GET / HTTP/1.1"), b"G*************");
        let bytes = [request(&[("A", "b")], b""), b"\x02garbage".to_vec()].concat();
        let kept = masked(Shown::default(), TO_APPLICATION, &bytes);
        assert_eq!(kept, [request(&[("A", "b")], b""), b"\x02*******".to_vec()].concat());
        assert_eq!(masked(Shown::ALL, TO_APPLICATION, &bytes), bytes);
        let unknown = records(&[(RecordType::Unknown(99), b"abc", 1)]);
        assert!(masked(Shown::default(), TO_APPLICATION, &unknown).ends_with(b"***\0"));
    }

    #[test]
    fn names_and_heads_that_never_end_are_masked() {
        let name = "x".repeat(MAX_NAME_LEN + 1);
        let kept = masked(Shown::default(), TO_APPLICATION, &request(&[(&name, "value")], b""));
        assert_eq!(kept, request(&[(&name, "*****")], b""));
        let head = format!("{name}: value\n\n");
        let kept = masked(Shown::default(), TO_WEB_SERVER, &records(&[(RecordType::Stdout, head.as_bytes(), 0)]));
        assert!(kept.ends_with(b"**********"));
        let line = format!("X: {}\n", "y".repeat(30_000));
        let lines: Vec<_> = (0..10).map(|_| (RecordType::Stdout, line.as_bytes(), 0)).collect();
        let kept = pass(&mut Mask::new(Shown::default()), TO_WEB_SERVER, &records(&lines), 4096);
        assert!(kept.ends_with(&[b'*'; 30_000]) && !kept[..MAX_HEAD_LEN].contains(&b'*'));
    }

    #[test]
    fn requests_that_are_under_way_are_counted() {
        let mut mask = Mask::new(Shown::default());
        assert!(mask.is_idle());
        pass(&mut mask, TO_APPLICATION, &request(&[], b""), 5);
        assert_eq!((mask.active(), mask.is_idle()), (Some(1), false));
        let end = EndRequest { application_status: 0, protocol_status: ProtocolStatus::RequestComplete }.encode();
        let end = records(&[(RecordType::EndRequest, &end, 0)]);
        pass(&mut mask, TO_WEB_SERVER, &end[..end.len() - 1], 5);
        assert_eq!((mask.active(), mask.is_idle()), (Some(0), false));
        pass(&mut mask, TO_WEB_SERVER, &end[end.len() - 1..], 5);
        assert!(mask.is_idle());
        pass(&mut mask, TO_WEB_SERVER, b"HTTP", 5);
        assert_eq!((mask.active(), mask.is_idle()), (None, false));
    }

    #[test]
    fn streams_are_told_apart_and_no_more_are_followed_than_the_limit() {
        let mut mask = Mask::new(Shown::default());
        let begin = BeginRequest { role: Role::Responder, keep_connection: true }.encode();
        let cookie = params(&[("HTTP_COOKIE", "s3cret")]);
        let mut bytes = Vec::new();
        for id in 1..=MAX_STREAMS as u16 + 1 {
            put_record(RecordType::BeginRequest, RequestId(id), &begin, 0, &mut bytes);
            put_record(RecordType::Params, RequestId(id), &cookie[..5], 0, &mut bytes);
        }
        for id in 1..=MAX_STREAMS as u16 + 1 {
            put_record(RecordType::Params, RequestId(id), &cookie[5..], 0, &mut bytes);
        }
        let kept = pass(&mut mask, TO_APPLICATION, &bytes, 1000);
        assert!(!kept.windows(6).any(|part| part == b"s3cret"));
        assert!(kept.ends_with(&[b'*'; 14]) && mask.active().is_none());
        assert!(mask.to_application.streams.len() == MAX_STREAMS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_whole_and_the_same_however_they_come(bytes in prop::collection::vec(any::<u8>(), 0..300), len in 1_usize..40) {
            for direction in [TO_APPLICATION, TO_WEB_SERVER] {
                let bytes = [&[1, 4, 0, 1, 0, 30, 1, 0][..], &bytes].concat();
                let whole = pass(&mut Mask::new(Shown::default()), direction, &bytes, bytes.len());
                prop_assert_eq!(pass(&mut Mask::new(Shown::default()), direction, &bytes, len), whole);
                prop_assert_eq!(pass(&mut Mask::new(Shown::ALL), direction, &bytes, len), bytes);
            }
        }
    }
}
