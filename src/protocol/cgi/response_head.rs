//! The head of a script's answer (RFC 3875 sections 5 and 6): read as a server reads it, written as a script writes it.
//!
//! Reading goes line by line, so that a script that sends something else is found out at its first line and not at the
//! end of a buffer.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use memchr::{memchr, memchr2, memchr3};
use nom::{
    IResult, Parser,
    bytes::complete::{tag, take_while_m_n, take_while1},
    character::complete::{digit1, space0, space1},
    combinator::{all_consuming, map_opt, opt, rest},
    sequence::{preceded, terminated},
};
use thiserror::Error;

use super::{Excerpt, decimal, default_reason, is_token, is_token_byte};
use crate::protocol::Pairs;

/// The head of an answer: its status, if it has one, and its header fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// The `Status` field (6.3.3), or the status line of an NPH answer. See [`ResponseHead::status_or_default`].
    pub status: Option<Status>,
    /// The other fields, in their order and spelling, repeated ones too. Values have no blanks at their ends.
    pub headers: Pairs,
}

impl ResponseHead {
    /// Takes a head apart; `Ok(None)` when it is not all here. The number is how many bytes it has: the body follows.
    ///
    /// Each call starts at the first byte and copies the head. For one that arrives in pieces use [`ResponseHeadDecoder`].
    ///
    /// # Errors
    ///
    /// When it breaks a rule or is over a limit, as soon as the line that does so is here.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Option<(Self, usize)>, HeadError> {
        ResponseHeadDecoder::new(*limits).decode_slice(bytes)
    }

    /// As [`ResponseHead::decode`], for an NPH answer: a status line, then fields (section 5.2). See [`is_nph`].
    ///
    /// # Errors
    ///
    /// As [`ResponseHead::decode`].
    pub fn decode_nph(bytes: &[u8], limits: &Limits) -> Result<Option<(Self, usize)>, HeadError> {
        ResponseHeadDecoder::nph(*limits).decode_slice(bytes)
    }

    /// Which of the answers of section 6.2 it is.
    pub fn kind(&self) -> ResponseKind<'_> {
        match (self.location(), &self.status) {
            (None, _) => ResponseKind::Document,
            // With a Status, what stands in Location is the client's to follow, however short.
            (Some(location), Some(Status { code: 300..=399, .. })) => {
                ResponseKind::ClientRedirectWithDocument { location }
            }
            (Some(_), Some(_)) => ResponseKind::Document,
            (Some(path), None) if path.starts_with(b"/") => ResponseKind::LocalRedirect { path },
            (Some(location), None) => ResponseKind::ClientRedirect { location },
        }
    }

    /// The status and reason to answer with: the head's own; without one 302 if there is a `Location` (6.2.3), and 200
    /// if not (6.2.1). A status without a reason gets the usual one.
    pub fn status_or_default(&self) -> (u16, &[u8]) {
        let code = match &self.status {
            Some(status) if !status.reason.is_empty() => return (status.code, &status.reason),
            Some(status) => status.code,
            None if self.location().is_some() => 302,
            None => 200,
        };
        (code, default_reason(code).as_bytes())
    }

    /// The value of the first field of this name, in whatever case. An empty value is no value (6.3).
    pub fn field(&self, name: &[u8]) -> Option<&[u8]> {
        let (_, value) = self.headers.iter().find(|(each, _)| each.eq_ignore_ascii_case(name))?;
        Some(value).filter(|value| !value.is_empty())
    }

    /// How many bytes the body is said to have.
    pub fn content_length(&self) -> Option<u64> {
        self.field(b"Content-Length").and_then(decimal)
    }

    /// Whether another head follows this one: the status is 1xx and not 101, after which there is no more HTTP.
    pub fn is_interim(&self) -> bool {
        matches!(&self.status, Some(Status { code: 100 | 102..=199, .. }))
    }

    /// Writes it as CGI: the status if there is one, the fields, the blank line.
    ///
    /// # Errors
    ///
    /// When its status or a field would be read as something else (see [`check_status`] and [`check_field`]). Nothing is
    /// written then.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), FieldError> {
        let Some(status) = &self.status else {
            encode_fields(out.len(), self.headers.iter(), out)?;
            out.put_slice(b"\r\n");
            return Ok(());
        };
        encode_head(status.code, &status.reason, self.headers.iter(), out)
    }

    fn location(&self) -> Option<&[u8]> {
        self.field(b"Location")
    }
}

/// A status code and its reason phrase (6.3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Three digits: 100 to 999.
    pub code: u16,
    /// What it is called, to be shown to people; may be empty.
    pub reason: Bytes,
}

/// What an answer wants of the server (6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind<'a> {
    /// The body is for the client (6.2.1).
    Document,
    /// The server runs the request again, with another path (6.2.2). Whether there are other fields makes no difference:
    /// scripts that must not send any do.
    LocalRedirect {
        /// The path, which starts with `/`, and what follows it from a `?` on. Both are encoded.
        path: &'a [u8],
    },
    /// The client is sent elsewhere, with 302 (6.2.3).
    ClientRedirect {
        /// Where to.
        location: &'a [u8],
    },
    /// The client is sent elsewhere, with the status and the body of the answer (6.2.4).
    ClientRedirectWithDocument {
        /// Where to.
        location: &'a [u8],
    },
}

/// How much head is read before it is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of a head, its line ends and blank line too. 64 KiB unless told otherwise; over 2 GiB counts as 2 GiB.
    pub max_len: usize,
    /// The fields of a head, `Status` too. 256 unless told otherwise.
    pub max_fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_len: 64 * 1024, max_fields: 256 }
    }
}

/// Reads heads that arrive in pieces. Every byte is looked at once, however small the pieces are.
///
/// After a head it is ready for the next one, which NPH answers have after an interim one.
#[derive(Debug)]
pub struct ResponseHeadDecoder {
    limits: Limits,
    form: Form,
    // Where the line that is not yet complete starts, and up to where it was searched for its end.
    line_start: usize,
    searched: usize,
    lines: usize,
    status: Option<(u16, Range<usize>)>,
    fields: Vec<FieldSpan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Cgi,
    Nph,
}

#[derive(Debug)]
struct FieldSpan {
    name: Range<usize>,
    value: Range<usize>,
}

impl ResponseHeadDecoder {
    /// For the head of a CGI answer.
    pub fn new(limits: Limits) -> Self {
        Self::with_form(limits, Form::Cgi)
    }

    /// For the head of an NPH answer: a status line, then fields (section 5.2).
    pub fn nph(limits: Limits) -> Self {
        Self::with_form(limits, Form::Nph)
    }

    /// Takes a head off the front of `buffer`; `Ok(None)` when it is not all here. What stays in `buffer` is body.
    ///
    /// Between calls `buffer` may only grow at its end: what was read of it is not read again. The head keeps a part of
    /// the buffer's memory for as long as it lives.
    ///
    /// # Errors
    ///
    /// When the head breaks a rule or is over a limit, as soon as the line that does so is here. The next call says the
    /// same again.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<ResponseHead>, HeadError> {
        Ok(self.scan(buffer)?.map(|end| self.finish(buffer.split_to(end).freeze())))
    }

    /// The error when no more bytes will come and the head is not complete. `buffer` is what has been received of it.
    pub fn ended(&self, buffer: &[u8]) -> HeadError {
        HeadError::Ended { len: buffer.len(), start: Excerpt::new(buffer) }
    }

    fn with_form(limits: Limits, form: Form) -> Self {
        // A list of pairs has no room for more, and no head that is meant to be one comes near.
        let limits = Limits { max_len: limits.max_len.min(1 << 31), ..limits };
        Self { limits, form, line_start: 0, searched: 0, lines: 0, status: None, fields: Vec::new() }
    }

    fn decode_slice(mut self, bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, HeadError> {
        Ok(self.scan(bytes)?.map(|end| (self.finish(Bytes::copy_from_slice(&bytes[..end])), end)))
    }

    /// Reads the lines that are complete and says where the head ends, if that is among them.
    fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        let within = &bytes[..bytes.len().min(self.limits.max_len)];
        while let Some(at) = within.get(self.searched..).and_then(|unsearched| memchr(b'\n', unsearched)) {
            let line_end = self.searched + at;
            let line = &within[self.line_start..line_end];
            // 6.3: a line may end in whatever the system's lines end in.
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                self.check_end()?;
                return Ok(Some(line_end + 1));
            }
            self.line(within, self.line_start..self.line_start + line.len())?;
            self.lines += 1;
            self.line_start = line_end + 1;
            self.searched = line_end + 1;
        }
        if bytes.len() > within.len() {
            return Err(HeadError::TooLong { limit: self.limits.max_len });
        }
        self.searched = within.len();
        Ok(None)
    }

    /// Reads one line, which is not empty and lies at `at`.
    fn line(&mut self, bytes: &[u8], at: Range<usize>) -> Result<(), HeadError> {
        let line = &bytes[at.clone()];
        if let Some(byte) = memchr2(0, b'\r', line).map(|at| line[at]) {
            return Err(HeadError::ForbiddenByte { byte: Excerpt::new(&[byte]), line: Excerpt::new(line) });
        }
        // 6.3: CGI/1.1 has no continuation lines.
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(HeadError::Folded { line: Excerpt::new(line) });
        }
        // What is of interest in a line is its end, so that its length says where it starts.
        let line = trim_end(line);
        let to_end = |part: &[u8]| at.start + line.len() - part.len()..at.start + line.len();
        if self.form == Form::Nph && self.lines == 0 {
            let (code, reason) =
                parsed(status_line, line).ok_or_else(|| HeadError::InvalidStatusLine { line: Excerpt::new(line) })?;
            self.status = Some((code, to_end(reason)));
            return Ok(());
        }
        if self.lines - usize::from(self.form == Form::Nph) == self.limits.max_fields {
            return Err(HeadError::TooManyFields { limit: self.limits.max_fields });
        }
        let (name, value) = parsed(field, line).ok_or_else(|| what_is_wrong(line))?;
        let span = FieldSpan { name: at.start..at.start + name.len(), value: to_end(value) };
        match KnownField::of(name) {
            None => self.fields.push(span),
            Some(KnownField::TransferEncoding) => {
                // 6.3.4: how the answer travels to the client is the server's to say.
                return Err(HeadError::TransferEncoding { value: Excerpt::new(value) });
            }
            // 6.3: a field without a value is the same as no field.
            Some(_) if value.is_empty() => {}
            Some(KnownField::Status) => {
                let (code, reason) =
                    parsed(status, value).ok_or_else(|| HeadError::InvalidStatus { value: Excerpt::new(value) })?;
                if let Some((first, _)) = self.status {
                    let first = Excerpt::new(first.to_string().as_bytes());
                    return Err(HeadError::Repeated { field: "Status", first, second: Excerpt::new(value) });
                }
                self.status = Some((code, to_end(reason)));
            }
            Some(KnownField::ContentLength) => {
                let len = decimal::<u64>(value)
                    .ok_or_else(|| HeadError::InvalidContentLength { value: Excerpt::new(value) })?;
                self.once("Content-Length", bytes, span, |first| decimal(first) == Some(len))?;
            }
            Some(KnownField::ContentType) => self.once("Content-Type", bytes, span, |first| first == value)?,
            Some(KnownField::Location) => self.once("Location", bytes, span, |first| first == value)?,
        }
        Ok(())
    }

    /// Keeps a field that may not appear more than once (6.3). One that says the same again does no harm.
    fn once(
        &mut self,
        field: &'static str,
        bytes: &[u8],
        span: FieldSpan,
        same: impl FnOnce(&[u8]) -> bool,
    ) -> Result<(), HeadError> {
        let earlier = self.fields.iter().find(|each| bytes[each.name.clone()].eq_ignore_ascii_case(field.as_bytes()));
        let Some(earlier) = earlier else {
            self.fields.push(span);
            return Ok(());
        };
        let (first, second) = (&bytes[earlier.value.clone()], &bytes[span.value]);
        match same(first) {
            true => Ok(()),
            false => Err(HeadError::Repeated { field, first: Excerpt::new(first), second: Excerpt::new(second) }),
        }
    }

    /// Checks what can be checked at the blank line only.
    fn check_end(&self) -> Result<(), HeadError> {
        match self.form {
            Form::Nph if self.lines == 0 => Err(HeadError::InvalidStatusLine { line: Excerpt::new(b"") }),
            // 6.2: 1*header-field. Which fields they are is not held against anyone: 6.3 asks for a Content-Type, a
            // Location or a Status, scripts leave all three out, and web servers let them.
            Form::Cgi if self.status.is_none() && self.fields.is_empty() => Err(HeadError::Empty),
            _ => Ok(()),
        }
    }

    /// Makes the head of the lines read, which lie in `head`, and gets ready for the next one.
    fn finish(&mut self, head: Bytes) -> ResponseHead {
        let status = self.status.take().map(|(code, reason)| Status { code, reason: head.slice(reason) });
        // With room for what is added on the way to the client.
        let mut headers = Pairs::over(head, self.fields.len() + 4);
        for FieldSpan { name, value } in self.fields.drain(..) {
            headers.push_span((name.start, name.len()), (value.start, value.len()));
        }
        (self.line_start, self.searched, self.lines) = (0, 0, 0);
        ResponseHead { status, headers }
    }
}

/// The fields that have a rule of their own.
#[derive(Clone, Copy)]
enum KnownField {
    Status,
    Location,
    ContentType,
    ContentLength,
    TransferEncoding,
}

impl KnownField {
    fn of(name: &[u8]) -> Option<Self> {
        let (known, field) = match name.len() {
            6 => (&b"Status"[..], Self::Status),
            8 => (&b"Location"[..], Self::Location),
            12 => (&b"Content-Type"[..], Self::ContentType),
            14 => (&b"Content-Length"[..], Self::ContentLength),
            17 => (&b"Transfer-Encoding"[..], Self::TransferEncoding),
            _ => return None,
        };
        name.eq_ignore_ascii_case(known).then_some(field)
    }
}

/// Writes a head as CGI: `Status: 200 OK`, the fields, the blank line.
///
/// This is the one writer of heads. It allocates nothing beyond `out`.
///
/// # Errors
///
/// When the status or a field would not be read as what it is (see [`check_status`] and [`check_field`]). Nothing is
/// written then, so that no caller can split an answer in two.
pub fn encode_head<'a>(
    status_code: u16,
    reason: &[u8],
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    out: &mut BytesMut,
) -> Result<(), FieldError> {
    check_status(status_code, reason)?;
    let start = out.len();
    out.reserve(256);
    put_status(status_code, reason, out);
    encode_fields(start, headers, out)?;
    out.put_slice(b"\r\n");
    Ok(())
}

/// As [`encode_head`], with `Status` behind the fields. The order means nothing (RFC 3875 6.3), but to some readers: HAProxy 2.6 has
/// every `Location` that comes after a `Status` replace it by 302.
///
/// # Errors
///
/// As [`encode_head`].
pub fn encode_head_status_last<'a>(
    status_code: u16,
    reason: &[u8],
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    out: &mut BytesMut,
) -> Result<(), FieldError> {
    check_status(status_code, reason)?;
    encode_fields(out.len(), headers, out)?;
    out.reserve(reason.len() + 16);
    put_status(status_code, reason, out);
    out.put_slice(b"\r\n");
    Ok(())
}

pub(super) fn put_status(status_code: u16, reason: &[u8], out: &mut BytesMut) {
    out.put_slice(b"Status: ");
    out.put_slice(&[100, 10, 1].map(|unit| b'0' + (status_code / unit % 10) as u8));
    // 6.3.3: the blank stands there even if no reason follows.
    out.put_u8(b' ');
    out.put_slice(reason);
    out.put_slice(b"\r\n");
}

/// Writes the fields, or cuts `out` back to `start`.
fn encode_fields<'a>(
    start: usize,
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    out: &mut BytesMut,
) -> Result<(), FieldError> {
    for field in headers {
        if let Err(error) = check_field(field.0, field.1) {
            out.truncate(start);
            return Err(error);
        }
        put_fields([field], out);
    }
    Ok(())
}

/// Writes fields that were checked.
pub(super) fn put_fields<'a>(headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>, out: &mut BytesMut) {
    for (name, value) in headers {
        out.reserve(name.len() + value.len() + 4);
        out.put_slice(name);
        out.put_slice(b": ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }
}

/// Whether a field may stand in a head: its name is a token, its value has no CR, LF or NUL, and it is not one that is
/// the server's to write, `Status` or `Transfer-Encoding`.
///
/// # Errors
///
/// Says which of these it breaks.
pub fn check_field(name: &[u8], value: &[u8]) -> Result<(), FieldError> {
    let is_reserved = [&b"Status"[..], b"Transfer-Encoding"].iter().any(|known| name.eq_ignore_ascii_case(known));
    // All of a value is looked at, which is faster than to stop early: nearly always there is nothing to stop at.
    let is_text = value.iter().fold(true, |all, byte| all & !matches!(byte, b'\r' | b'\n' | 0));
    match is_token(name) && is_text && !is_reserved {
        true => Ok(()),
        false => Err(why_no_field(name, value)),
    }
}

/// Why [`check_field`] refuses a field.
#[cold]
fn why_no_field(name: &[u8], value: &[u8]) -> FieldError {
    let excerpt = Excerpt::new(name);
    if !is_token(name) {
        return FieldError::InvalidName { name: excerpt };
    }
    match memchr3(b'\r', b'\n', 0, value) {
        Some(at) => {
            FieldError::ForbiddenByte { name: excerpt, byte: Excerpt::new(&value[at..=at]), value: Excerpt::new(value) }
        }
        None => FieldError::Reserved { name: excerpt },
    }
}

/// Whether a status may stand in a head: its code has three digits, its reason no CR, LF or NUL.
///
/// # Errors
///
/// Says which of these it breaks.
pub fn check_status(code: u16, reason: &[u8]) -> Result<(), FieldError> {
    if !(100..=999).contains(&code) {
        return Err(FieldError::InvalidCode { code });
    }
    match memchr3(b'\r', b'\n', 0, reason) {
        None => Ok(()),
        Some(at) => Err(FieldError::ForbiddenByte {
            name: Excerpt::new(b"Status"),
            byte: Excerpt::new(&reason[at..=at]),
            value: Excerpt::new(reason),
        }),
    }
}

/// Whether an answer comes from an NPH script, by its first bytes: `HTTP/` and a digit. `None` when more are needed.
///
/// No field name has a `/` in it, so that the head of a CGI answer is never taken for one. (Section 5.1 leaves it to the
/// server how to tell.)
pub fn is_nph(first_bytes: &[u8]) -> Option<bool> {
    const START: &[u8] = b"HTTP/";
    match first_bytes.strip_prefix(START) {
        Some(rest) => rest.first().map(u8::is_ascii_digit),
        None if START.starts_with(first_bytes) => None,
        None => Some(false),
    }
}

/// Whether a script says by its name that it is an NPH script: its file's name starts with `nph-`.
pub fn is_nph_name(script_filename: &[u8]) -> bool {
    let name = script_filename.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b"nph-")
}

/// Why the head of an answer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeadError {
    /// The head is longer than [`Limits::max_len`].
    #[error("expected a response head of at most {limit} bytes, got a longer one")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// The head has more fields than [`Limits::max_fields`].
    #[error("expected a response head of at most {limit} fields, got more")]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// The output ended inside the head.
    #[error("expected a response head and a blank line, got the end after {len} bytes, {start}")]
    Ended {
        /// How many bytes there were.
        len: usize,
        /// The first of them.
        start: Excerpt,
    },
    /// A status below 200 where the answer itself was expected: 101 needs the connection, which is the server's, and
    /// the others come before an answer.
    #[error("expected a final status, got {code}")]
    NotFinal {
        /// The status.
        code: u16,
    },
    /// The blank line came, and no field before it (6.2).
    #[error("expected at least one header field, got the blank line that ends the head")]
    Empty,
    /// A line without a colon (6.3).
    #[error("expected a header field, got a line without a colon, {line}")]
    NoColon {
        /// The first bytes of the line.
        line: Excerpt,
    },
    /// A line that begins with its colon (6.3).
    #[error("expected a field name before the colon, got {line}")]
    EmptyName {
        /// The first bytes of the line.
        line: Excerpt,
    },
    /// A blank between the name and the colon (6.3).
    #[error("expected a colon right after the field name, got a blank, {line}")]
    BlankBeforeColon {
        /// The first bytes of the line.
        line: Excerpt,
    },
    /// A field name that is not a token (6.3).
    #[error("expected a token as field name, got {name}")]
    InvalidName {
        /// The first bytes of the name.
        name: Excerpt,
    },
    /// A NUL, or a CR that is not part of a line's end.
    #[error("expected text, got {byte} in {line}")]
    ForbiddenByte {
        /// The byte.
        byte: Excerpt,
        /// The first bytes of the line.
        line: Excerpt,
    },
    /// A line that begins with a blank (6.3).
    #[error("expected each field on a line of its own, got a continuation line, {line}")]
    Folded {
        /// The first bytes of the line.
        line: Excerpt,
    },
    /// A status that is not three digits and a reason (6.3.3).
    #[error("expected a status of three digits from 100 on and a reason, got {value}")]
    InvalidStatus {
        /// The first bytes of the value.
        value: Excerpt,
    },
    /// An NPH answer that does not begin with a status line (5.2).
    #[error("expected a status line such as HTTP/1.1 200 OK, got {line}")]
    InvalidStatusLine {
        /// The first bytes of the line.
        line: Excerpt,
    },
    /// A field that may be there once is there twice and says two things (6.3).
    #[error("expected {field} once, got {first} and {second}")]
    Repeated {
        /// The field.
        field: &'static str,
        /// What it said first.
        first: Excerpt,
        /// What it said then.
        second: Excerpt,
    },
    /// A body length that is not a number.
    #[error("expected a number of bytes in Content-Length, got {value}")]
    InvalidContentLength {
        /// The first bytes of the value.
        value: Excerpt,
    },
    /// A transfer coding, which is not the script's to apply (6.3.4).
    #[error("expected no Transfer-Encoding, which is the server's to choose, got {value}")]
    TransferEncoding {
        /// The first bytes of the value.
        value: Excerpt,
    },
}

/// Why a status or a field may not stand in a head.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FieldError {
    /// A status code that has not three digits.
    #[error("expected a status code from 100 to 999, got {code}")]
    InvalidCode {
        /// The code.
        code: u16,
    },
    /// A field name that is not a token.
    #[error("expected a token as field name, got {name}")]
    InvalidName {
        /// The first bytes of the name.
        name: Excerpt,
    },
    /// A CR, LF or NUL.
    #[error("expected text in {name}, got {byte} in {value}")]
    ForbiddenByte {
        /// The field.
        name: Excerpt,
        /// The byte.
        byte: Excerpt,
        /// The first bytes of the value.
        value: Excerpt,
    },
    /// A field that is the server's to write.
    #[error("expected no field {name}, which is the server's to write")]
    Reserved {
        /// The field.
        name: Excerpt,
    },
}

// header-field of 6.3, without its line end.
fn field(input: &[u8]) -> IResult<&[u8], (&[u8], &[u8])> {
    (terminated(take_while1(is_token_byte), tag(":")), preceded(space0, rest)).parse(input)
}

// The value of Status, 6.3.3. The reason may be missing, and its blank with it.
fn status(input: &[u8]) -> IResult<&[u8], (u16, &[u8])> {
    let digits = take_while_m_n(3, 3, |byte: u8| byte.is_ascii_digit());
    let code = map_opt(digits, |digits| decimal(digits).filter(|code| (100..=999).contains(code)));
    (code, opt(preceded(space1, rest)).map(Option::unwrap_or_default)).parse(input)
}

// Status-Line of HTTP/1.1, and of scripts that know a version without a dot.
fn status_line(input: &[u8]) -> IResult<&[u8], (u16, &[u8])> {
    let version = (tag("HTTP/"), digit1, opt((tag("."), digit1)));
    preceded((version, space1), status).parse(input)
}

/// What `grammar` makes of all of `input`.
fn parsed<'a, T>(
    grammar: impl Parser<&'a [u8], Output = T, Error = nom::error::Error<&'a [u8]>>,
    input: &'a [u8],
) -> Option<T> {
    all_consuming(grammar).parse(input).ok().map(|(_, value)| value)
}

/// Why a line is not a header field.
#[cold]
fn what_is_wrong(line: &[u8]) -> HeadError {
    let Some(colon) = memchr(b':', line) else { return HeadError::NoColon { line: Excerpt::new(line) } };
    match &line[..colon] {
        [] => HeadError::EmptyName { line: Excerpt::new(line) },
        name if is_token(trim_end(name)) => HeadError::BlankBeforeColon { line: Excerpt::new(line) },
        name => HeadError::InvalidName { name: Excerpt::new(name) },
    }
}

fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [start @ .., b' ' | b'\t'] = text {
        text = start;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> ResponseHead {
        let (head, consumed) = ResponseHead::decode(bytes, &Limits::default()).unwrap().unwrap();
        assert_eq!(consumed, bytes.len());
        head
    }

    fn refused(bytes: &[u8]) -> HeadError {
        ResponseHead::decode(bytes, &Limits::default()).unwrap_err()
    }

    fn encode(code: u16, reason: &[u8], headers: &[(&[u8], &[u8])]) -> Result<BytesMut, FieldError> {
        let mut out = BytesMut::from(&b"before "[..]);
        let result = encode_head(code, reason, headers.iter().copied(), &mut out);
        let written = out.split_off(b"before ".len());
        assert_eq!(out, &b"before "[..]);
        assert!(result.is_ok() || written.is_empty(), "a refused head leaves nothing behind");
        result.map(|()| written)
    }

    #[test]
    fn a_head_is_its_status_and_its_fields_in_order() {
        let head =
            decode(b"Content-type: text/plain\r\nSTATUS:  404   Not  here\t\r\nSet-Cookie: a\r\nset-cookie:b \r\n\r\n");
        assert_eq!(head.status, Some(Status { code: 404, reason: Bytes::from_static(b"Not  here") }));
        let expected = [("Content-type", "text/plain"), ("Set-Cookie", "a"), ("set-cookie", "b")];
        assert_eq!(head.headers, expected.into_iter().collect());
        assert_eq!(head.field(b"CONTENT-TYPE"), Some(&b"text/plain"[..]));
    }

    #[test]
    fn the_writer_puts_the_status_first() {
        let headers: [(&[u8], &[u8]); 2] = [(b"Content-Type", b"text/plain"), (b"X", b"")];
        assert_eq!(
            encode(200, b"OK", &headers).unwrap(),
            &b"Status: 200 OK\r\nContent-Type: text/plain\r\nX: \r\n\r\n"[..]
        );
        assert_eq!(encode(999, b"", &[]).unwrap(), &b"Status: 999 \r\n\r\n"[..]);
        assert_eq!(decode(b"Status: 999 \r\n\r\n").status, Some(Status { code: 999, reason: Bytes::new() }));
    }

    #[test]
    fn cve_2023_38709_response_splitting_is_refused_by_the_writer() {
        for byte in *b"\r\n\0" {
            let bad = [b'a', byte, b'b'];
            assert!(matches!(encode(200, &bad, &[]), Err(FieldError::ForbiddenByte { .. })), "{byte}");
            assert!(matches!(encode(200, b"OK", &[(b"A", b"a"), (b"B", &bad)]), Err(FieldError::ForbiddenByte { .. })));
            assert!(matches!(encode(200, b"OK", &[(b"A", b"a"), (&bad, b"b")]), Err(FieldError::InvalidName { .. })));
        }
        for name in [&b""[..], b"A:", b"A ", b" A", b"\xc3\xa4"] {
            assert!(matches!(encode(200, b"OK", &[(name, b"")]), Err(FieldError::InvalidName { .. })), "{name:?}");
        }
        for name in [&b"Status"[..], b"sTATUS", b"Transfer-Encoding"] {
            assert!(matches!(encode(200, b"OK", &[(name, b"1")]), Err(FieldError::Reserved { .. })), "{name:?}");
        }
        for code in [0, 99, 1000, u16::MAX] {
            assert_eq!(encode(code, b"OK", &[]), Err(FieldError::InvalidCode { code }));
        }
    }

    #[test]
    fn the_four_kinds_of_answer_are_told_apart() {
        use ResponseKind::*;
        let (path, location) = (&b"/a?b"[..], &b"http://host/"[..]);
        for (bytes, kind, status) in [
            (&b"Content-Type: a/b\n\n"[..], Document, (200, "OK")),
            (b"Status: 404\n\n", Document, (404, "Not Found")),
            (b"Status: 404 Lost\n\n", Document, (404, "Lost")),
            (b"Location: /a?b\n\n", LocalRedirect { path }, (302, "Found")),
            (b"Location: /a?b\nContent-Type: a/b\n\n", LocalRedirect { path }, (302, "Found")),
            (b"Location: http://host/\n\n", ClientRedirect { location }, (302, "Found")),
            (
                b"LOCATION:http://host/\nStatus: 307\n\n",
                ClientRedirectWithDocument { location },
                (307, "Temporary Redirect"),
            ),
            (b"Location: /a?b\nStatus: 302 Found\n\n", ClientRedirectWithDocument { location: path }, (302, "Found")),
            (b"Location: /a?b\nStatus: 201 Made\n\n", Document, (201, "Made")),
            (b"Location: \nContent-Type: a/b\n\n", Document, (200, "OK")),
        ] {
            let head = decode(bytes);
            assert_eq!(head.kind(), kind, "{}", bytes.escape_ascii());
            assert_eq!(head.status_or_default(), (status.0, status.1.as_bytes()));
        }
    }

    #[test]
    fn each_fault_has_its_error() {
        for (bytes, expected) in [
            (&b"hello\n"[..], r#"expected a header field, got a line without a colon, "hello""#),
            (b": a\n", r#"expected a field name before the colon, got ": a""#),
            (b"A : a\n", r#"expected a colon right after the field name, got a blank, "A : a""#),
            (b"A\t: a\n", r#"expected a colon right after the field name, got a blank, "A\t: a""#),
            (b"A B: a\n", r#"expected a token as field name, got "A B""#),
            (b"\xc3\xa4: a\n", r#"expected a token as field name, got "\xc3\xa4""#),
            (b"<p>a:b\n", r#"expected a token as field name, got "<p>a""#),
            (b"A: a\0b\n", r#"expected text, got "\x00" in "A: a\x00b""#),
            (b"A: a\rB: b\n", r#"expected text, got "\r" in "A: a\rB: b""#),
            (b"A: a\r\r\n", r#"expected text, got "\r" in "A: a\r""#),
            (b"A: a\n b\n", r#"expected each field on a line of its own, got a continuation line, " b""#),
            (b"A: a\n \n", r#"expected each field on a line of its own, got a continuation line, " ""#),
            (b"\tA: a\n", r#"expected each field on a line of its own, got a continuation line, "\tA: a""#),
            (b"Status: OK\n", r#"expected a status of three digits from 100 on and a reason, got "OK""#),
            (b"Status: 20\n", r#"expected a status of three digits from 100 on and a reason, got "20""#),
            (b"Status: 099\n", r#"expected a status of three digits from 100 on and a reason, got "099""#),
            (b"Status: 2000\n", r#"expected a status of three digits from 100 on and a reason, got "2000""#),
            (b"Status: 200OK\n", r#"expected a status of three digits from 100 on and a reason, got "200OK""#),
            (b"Status: +20\n", r#"expected a status of three digits from 100 on and a reason, got "+20""#),
            (b"Status: 200\nstatus: 200\n", r#"expected Status once, got "200" and "200""#),
            (b"Location: /a\nlocation: /b\n", r#"expected Location once, got "/a" and "/b""#),
            (b"Content-Type: a/b\nContent-Type: a/c\n", r#"expected Content-Type once, got "a/b" and "a/c""#),
            (b"Content-Length: 1\nContent-Length: 2\n", r#"expected Content-Length once, got "1" and "2""#),
            (b"Content-Length: 1, 1\n", r#"expected a number of bytes in Content-Length, got "1, 1""#),
            (b"Content-Length: -1\n", r#"expected a number of bytes in Content-Length, got "-1""#),
            (
                b"Transfer-Encoding: chunked\n",
                r#"expected no Transfer-Encoding, which is the server's to choose, got "chunked""#,
            ),
            (b"transfer-encoding:\n", r#"expected no Transfer-Encoding, which is the server's to choose, got """#),
            (b"\n", "expected at least one header field, got the blank line that ends the head"),
            (b"\r\nA: a\r\n\r\n", "expected at least one header field, got the blank line that ends the head"),
            (b"Status:\n\n", "expected at least one header field, got the blank line that ends the head"),
        ] {
            assert_eq!(refused(bytes).to_string(), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_field_that_says_the_same_twice_is_kept_once() {
        let head =
            decode(b"Content-Length: 5\nContent-Type: a/b\ncontent-length: 05\ncontent-type: a/b\nX: 1\nX: 1\n\n");
        let expected = [("Content-Length", "5"), ("Content-Type", "a/b"), ("X", "1"), ("X", "1")];
        assert_eq!(head.headers, expected.into_iter().collect());
        assert_eq!(head.content_length(), Some(5));
    }

    #[test]
    fn a_known_field_without_a_value_is_not_there() {
        let head = decode(b"Status: \nContent-Length:\nContent-Type:\t\nLocation:\nX-Other:\n\n");
        assert_eq!(head, ResponseHead { status: None, headers: [("X-Other", "")].into_iter().collect() });
    }

    #[test]
    fn each_limit_has_its_error_and_the_limit_itself_is_allowed() {
        let bytes = b"A: a\r\nB: b\r\n\r\n";
        let decode = |max_len, max_fields| ResponseHead::decode(bytes, &Limits { max_len, max_fields });
        assert!(matches!(decode(14, 2), Ok(Some((_, 14)))));
        assert_eq!(decode(13, 2), Err(HeadError::TooLong { limit: 13 }));
        assert_eq!(decode(0, 2), Err(HeadError::TooLong { limit: 0 }));
        assert_eq!(decode(14, 1), Err(HeadError::TooManyFields { limit: 1 }));
        assert_eq!(decode(14, 0), Err(HeadError::TooManyFields { limit: 0 }));
        assert!(matches!(decode(usize::MAX, usize::MAX), Ok(Some((_, 14)))));
        // A body does not count.
        let limits = Limits { max_len: 6, max_fields: 1 };
        assert!(matches!(ResponseHead::decode(b"A: a\n\nbody", &limits), Ok(Some((_, 6)))));
        // The status line of an NPH answer is no field.
        assert!(
            ResponseHead::decode_nph(b"HTTP/1.1 200\nA: a\n\n", &Limits { max_fields: 1, ..Limits::default() }).is_ok()
        );
    }

    #[test]
    fn nph_answers_are_told_by_their_first_bytes() {
        for (bytes, expected) in [
            ("", None),
            ("H", None),
            ("HTTP/", None),
            ("HTTP/1", Some(true)),
            ("HTTP/1.1 200 OK\r\n", Some(true)),
            ("HTTP/x", Some(false)),
            ("http/1.1", Some(false)),
            ("HTTP-X: a", Some(false)),
            ("Content-Type: text/plain", Some(false)),
        ] {
            assert_eq!(is_nph(bytes.as_bytes()), expected, "{bytes:?}");
        }
        assert!(is_nph_name(b"nph-a.cgi") && is_nph_name(b"/cgi-bin/nph-a"));
        assert!(!is_nph_name(b"nph") && !is_nph_name(b"/nph-a/b") && !is_nph_name(b"a-nph-") && !is_nph_name(b""));
    }

    #[test]
    fn an_nph_answer_is_its_status_line_and_its_fields() {
        for (line, code, reason) in [
            ("HTTP/1.1 200 OK", 200, "OK"),
            ("HTTP/1.0 404 Not here", 404, "Not here"),
            ("HTTP/1.1 404", 404, ""),
            ("HTTP/1.1 404 ", 404, ""),
            ("HTTP/2 200", 200, ""),
        ] {
            let bytes = format!("{line}\r\nA: a\r\n\r\n");
            let (head, consumed) = ResponseHead::decode_nph(bytes.as_bytes(), &Limits::default()).unwrap().unwrap();
            let status = Some(Status { code, reason: Bytes::from(reason) });
            assert_eq!(head, ResponseHead { status, headers: [("A", "a")].into_iter().collect() });
            assert_eq!(consumed, bytes.len());
        }
        assert!(matches!(ResponseHead::decode_nph(b"HTTP/1.1 204\n\n", &Limits::default()), Ok(Some((_, 14)))));
        for line in
            ["", "A: a", "HTTP/1.1", "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1 099 X", "HTTP/1.1200 OK", "http/1.1 200"]
        {
            let error = ResponseHead::decode_nph(format!("{line}\n\n").as_bytes(), &Limits::default()).unwrap_err();
            assert_eq!(error, HeadError::InvalidStatusLine { line: Excerpt::new(line.as_bytes()) });
        }
        let error = ResponseHead::decode_nph(b"HTTP/1.1 200 OK\nStatus: 404\n", &Limits::default()).unwrap_err();
        assert!(matches!(error, HeadError::Repeated { field: "Status", .. }));
    }

    #[test]
    fn interim_heads_are_followed_by_the_final_one() {
        let mut buffer =
            BytesMut::from(&b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nA: a\r\n\r\nbody"[..]);
        let mut decoder = ResponseHeadDecoder::nph(Limits::default());
        let interim = decoder.decode(&mut buffer).unwrap().unwrap();
        assert!(interim.is_interim());
        let head = decoder.decode(&mut buffer).unwrap().unwrap();
        assert!(!head.is_interim());
        assert_eq!((head.field(b"A"), head.field(b"Link")), (Some(&b"a"[..]), None));
        assert_eq!(buffer, &b"body"[..]);
        let (switching, _) = ResponseHead::decode_nph(b"HTTP/1.1 101\n\n", &Limits::default()).unwrap().unwrap();
        assert!(!switching.is_interim());
    }

    #[test]
    fn an_output_that_ends_in_its_head_is_shown() {
        let decoder = ResponseHeadDecoder::new(Limits::default());
        assert_eq!(
            decoder.ended(b"A: a\r\n").to_string(),
            r#"expected a response head and a blank line, got the end after 6 bytes, "A: a\r\n""#
        );
    }

    #[test]
    fn an_error_is_said_again_when_more_bytes_come() {
        let mut decoder = ResponseHeadDecoder::new(Limits::default());
        let mut buffer = BytesMut::from(&b"A: a\nhello\n"[..]);
        let error = decoder.decode(&mut buffer).unwrap_err();
        buffer.extend_from_slice(b"B: b\n\n");
        assert_eq!(decoder.decode(&mut buffer).unwrap_err(), error);
    }

    #[test]
    fn the_status_may_stand_last_and_is_refused_like_any_other() {
        let fields: [(&[u8], &[u8]); 1] = [(b"Location", b"/a")];
        let mut out = BytesMut::from("x");
        encode_head_status_last(301, b"Moved", fields, &mut out).unwrap();
        assert_eq!(out, "xLocation: /a\r\nStatus: 301 Moved\r\n\r\n");
        let mut out = BytesMut::from("x");
        assert!(encode_head_status_last(301, b"Mo\nved", fields, &mut out).is_err());
        assert!(encode_head_status_last(301, b"Moved", [(&b"Location"[..], &b"a\nb"[..])], &mut out).is_err());
        assert_eq!(out, "x");
    }
}
