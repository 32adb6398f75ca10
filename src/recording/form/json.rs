//! The form `json`: a line for each entry, which holds all of it. docs/recording.md describes the lines, field by field.
//!
//! The bytes of a record that are always the same, or follow from the others, are not in its line. Whatever a record looks like, its line
//! read again gives the same bytes: what would not come back from the plain way to say it is said in base64.

use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::protocol::cgi::Excerpt;
use crate::protocol::fastcgi::name_value::NameValues;
use crate::protocol::fastcgi::{HEADER_LEN, MAX_CONTENT_LEN, MAX_PADDING_LEN, RecordType, RequestId, VERSION};
use crate::recording::bounded::Bounded;
use crate::recording::pair_stream::PairStream;
use crate::recording::{
    ConnectionId, Direction, Entry, EntryReader, Hole, MAX_GARBAGE_LEN, Passed, Piece, ReadError, Record, Timestamp,
};

/// The version of the form that is written, and the only one that is read.
pub const FORM_VERSION: u64 = 1;

/// What every line begins with: by it the form is recognised.
pub const LINE_START: &[u8] = b"{\"v\":";

/// The most bytes of a line. The longest that is written, for a record full of empty pairs and holes, has less.
pub const MAX_LINE_LEN: usize = 2 * 1024 * 1024;

/// Writes entries as lines.
#[derive(Debug)]
pub struct Writer {
    /// The requests whose variables stand within a pair, so that what comes next does not begin with one.
    params: Bounded<(ConnectionId, RequestId), PairStream>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { params: Bounded::new(MAX_REQUESTS) }
    }
}

/// Of how many requests it is remembered where in their variables they stand. Of others the lines are as good, and harder to read.
const MAX_REQUESTS: usize = 4096;

impl Writer {
    /// Writes an entry's line, with its line feed.
    pub fn write(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        self.write_with(entry, out, |_| {});
    }

    /// Writes an entry's line with further fields at its end, which readers pass over. `more` writes each with a comma before it.
    pub fn write_with(&mut self, entry: &Entry, out: &mut Vec<u8>, more: impl FnOnce(&mut Vec<u8>)) {
        put(out, format_args!("{{\"v\":{FORM_VERSION}"));
        if let Some(time) = entry.time.and_then(rfc_3339) {
            put(out, format_args!(",\"time\":\"{time}\""));
        }
        put(out, format_args!(",\"connection\":{}", entry.connection));
        match &entry.passed {
            Passed::Opened { from, to } => {
                out.put_slice(b",\"event\":\"opened\",\"from\":");
                put_text(from, out);
                out.put_slice(b",\"to\":");
                put_text(to, out);
            }
            Passed::Record { direction, record } => {
                put_direction(*direction, out);
                self.record(entry.connection, record, out);
                put_holes(&record.piece().holes, out);
            }
            Passed::Garbage { direction, piece } => put_piece("garbage", *direction, piece, out),
            Passed::Cut { direction, piece } => put_piece("cut", *direction, piece, out),
            Passed::Gap { direction, len } => {
                put_direction(*direction, out);
                out.put_slice(b",\"event\":\"gap\"");
                if let Some(len) = len {
                    put(out, format_args!(",\"bytes\":{len}"));
                }
            }
            Passed::Ended { direction } => {
                put_direction(*direction, out);
                out.put_slice(b",\"event\":\"ended\"");
            }
            Passed::Broken { reason } => {
                out.put_slice(b",\"event\":\"broken\",\"reason\":");
                put_text(reason, out);
            }
        }
        more(out);
        out.put_slice(b"}\n");
    }

    fn record(&mut self, connection: ConnectionId, record: &Record, out: &mut Vec<u8>) {
        let (header, content) = (record.header(), record.content());
        match header.record_type {
            RecordType::Unknown(number) => put(out, format_args!(",\"type\":{number}")),
            named => put(out, format_args!(",\"type\":\"{named}\"")),
        }
        put(out, format_args!(",\"id\":{}", header.request_id));
        if record.reserved() != 0 {
            put(out, format_args!(",\"reserved\":{}", record.reserved()));
        }
        let key = (connection, header.request_id);
        match (header.record_type, content) {
            (RecordType::BeginRequest, &[role_1, role_0, flags, ref rest @ ..]) if rest.len() == 5 => {
                self.params.remove(&key);
                let role = u16::from_be_bytes([role_1, role_0]);
                out.put_slice(b",\"role\":");
                put_name_or_number(&ROLES, role.into(), out);
                put(out, format_args!(",\"flags\":{flags}"));
                put_rest(rest, out);
            }
            (RecordType::EndRequest, &[a, b, c, d, status, ref rest @ ..]) if rest.len() == 3 => {
                put(out, format_args!(",\"application_status\":{}", u32::from_be_bytes([a, b, c, d])));
                out.put_slice(b",\"protocol_status\":");
                put_name_or_number(&STATUSES, status.into(), out);
                put_rest(rest, out);
            }
            (RecordType::UnknownType, &[record_type, ref rest @ ..]) if rest.len() == 7 => {
                put(out, format_args!(",\"unknown_type\":{record_type}"));
                put_rest(rest, out);
            }
            (RecordType::Params, _) if self.is_within_pair(key, content) => put_content(content, out),
            (RecordType::Params | RecordType::GetValues | RecordType::GetValuesResult, [_, ..]) => {
                put_pairs(content, out);
            }
            _ => put_content(content, out),
        }
        match record.padding() {
            [] => {}
            zeros if zeros.iter().all(|byte| *byte == 0) => put(out, format_args!(",\"padding\":{}", zeros.len())),
            odd => put(out, format_args!(",\"padding\":\"{}\"", BASE64_STANDARD.encode(odd))),
        }
    }

    /// Whether a record of variables begins within a pair. Counts the record.
    fn is_within_pair(&mut self, key: (ConnectionId, RequestId), content: &[u8]) -> bool {
        let mut stream = self.params.remove(&key).unwrap_or_default();
        let is_within = stream.begun() > 0;
        stream.feed(content, |_, _| {});
        if stream.begun() > 0 && !content.is_empty() {
            self.params.insert(key, stream);
        }
        is_within
    }
}

/// Writing to memory does not fail.
fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

/// A moment as RFC 3339 writes it, in UTC, with all its digits; `None` for one that no calendar has.
pub(in crate::recording) fn rfc_3339(time: Timestamp) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(time.0.into()).ok()?.format(&Rfc3339).ok()
}

fn put_direction(direction: Direction, out: &mut Vec<u8>) {
    out.put_slice(match direction {
        Direction::ToApplication => b",\"to\":\"application\"",
        Direction::ToWebServer => b",\"to\":\"web server\"",
    });
}

fn put_piece(event: &str, direction: Direction, piece: &Piece, out: &mut Vec<u8>) {
    put_direction(direction, out);
    put(out, format_args!(",\"event\":\"{event}\""));
    put_content(&piece.bytes, out);
    put_holes(&piece.holes, out);
}

fn put_holes(holes: &[Hole], out: &mut Vec<u8>) {
    for (name, is_masked) in [("masked", true), ("lost", false)] {
        let mut separator = "[";
        for hole in holes.iter().filter(|hole| hole.is_masked == is_masked) {
            if separator == "[" {
                put(out, format_args!(",\"{name}\":"));
            }
            put(out, format_args!("{separator}[{},{}]", hole.start, hole.len));
            separator = ",";
        }
        if separator == "," {
            out.put_u8(b']');
        }
    }
}

fn put_name_or_number(names: &[(&str, u64)], number: u64, out: &mut Vec<u8>) {
    match names.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => put(out, format_args!("\"{name}\"")),
        None => put(out, format_args!("{number}")),
    }
}

/// What of a body of eight bytes has no meaning: it is zeros, and then is left out.
fn put_rest(rest: &[u8], out: &mut Vec<u8>) {
    if rest.iter().any(|byte| *byte != 0) {
        put(out, format_args!(",\"rest\":\"{}\"", BASE64_STANDARD.encode(rest)));
    }
}

fn put_content(content: &[u8], out: &mut Vec<u8>) {
    match plain_text(content) {
        _ if content.is_empty() => {}
        Some(text) => {
            out.put_slice(b",\"text\":");
            put_text(text, out);
        }
        None => put(out, format_args!(",\"base64\":\"{}\"", BASE64_STANDARD.encode(content))),
    }
}

/// The pairs that a content begins with, and what follows the last whole one.
fn put_pairs(content: &[u8], out: &mut Vec<u8>) {
    out.put_slice(b",\"pairs\":[");
    let (mut pairs, mut at) = (NameValues::new(content), 0);
    let mut separator = "";
    while let Some(Ok((name, value))) = pairs.next() {
        put(out, format_args!("{separator}["));
        put_part(name, out);
        out.put_u8(b',');
        put_part(value, out);
        // A length of up to 127 bytes may be written in four bytes too, and then it is said.
        let name_width = width(content[at]);
        let value_width = width(content[at + name_width]);
        if (name_width == 4) != (name.len() > 0x7f) || (value_width == 4) != (value.len() > 0x7f) {
            put(out, format_args!(",{name_width},{value_width}"));
        }
        out.put_u8(b']');
        at += name_width + value_width + name.len() + value.len();
        separator = ",";
    }
    out.put_u8(b']');
    if at < content.len() {
        put(out, format_args!(",\"rest\":\"{}\"", BASE64_STANDARD.encode(&content[at..])));
    }
}

/// How many bytes a length has that begins with this one.
fn width(first: u8) -> usize {
    if first < 0x80 { 1 } else { 4 }
}

fn put_part(part: &[u8], out: &mut Vec<u8>) {
    match plain_text(part) {
        Some(text) => put_text(text, out),
        None => put(out, format_args!("{{\"base64\":\"{}\"}}", BASE64_STANDARD.encode(part))),
    }
}

/// The bytes as text, if that is what they are, and no terminal or editor would make something else of it.
pub(in crate::recording) fn plain_text(bytes: &[u8]) -> Option<&str> {
    let is_plain = |character: char| match character {
        '\t' | '\r' | '\n' => true,
        // What turns the direction of writing can make a line look like another.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        other => !other.is_control(),
    };
    std::str::from_utf8(bytes).ok().filter(|text| text.chars().all(is_plain))
}

pub(in crate::recording) fn put_text(text: &str, out: &mut Vec<u8>) {
    // Neither text nor memory can fail to be written.
    let _ = serde_json::to_writer(out, text);
}

const ROLES: [(&str, u64); 3] = [("RESPONDER", 1), ("AUTHORIZER", 2), ("FILTER", 3)];

const STATUSES: [(&str, u64); 4] =
    [("REQUEST_COMPLETE", 0), ("CANT_MPX_CONN", 1), ("OVERLOADED", 2), ("UNKNOWN_ROLE", 3)];

const TYPES: [RecordType; 11] = [
    RecordType::BeginRequest,
    RecordType::AbortRequest,
    RecordType::EndRequest,
    RecordType::Params,
    RecordType::Stdin,
    RecordType::Stdout,
    RecordType::Stderr,
    RecordType::Data,
    RecordType::GetValues,
    RecordType::GetValuesResult,
    RecordType::UnknownType,
];

/// Reads lines as entries. Their offsets are those of the lines.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Where in the buffer the line at hand begins, and how far its end was looked for.
    start: usize,
    searched: usize,
    /// How many bytes went before the buffer's.
    offset: u64,
    has_ended: bool,
    failure: Option<ReadError>,
}

impl EntryReader for Reader {
    fn receive(&mut self, bytes: &[u8]) {
        if self.failure.is_some() {
            return;
        }
        self.buffer.drain(..self.start);
        self.offset += self.start as u64;
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    fn end(&mut self) {
        self.has_ended = true;
    }

    fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            let end = memchr::memchr(b'\n', &self.buffer[self.searched..]).map(|at| self.searched + at);
            let line_end = match end {
                Some(end) => end,
                // The last line may be without a line feed.
                None if self.has_ended && self.start < self.buffer.len() => self.buffer.len(),
                None => {
                    self.searched = self.buffer.len();
                    if self.buffer.len() - self.start <= MAX_LINE_LEN {
                        return Ok(None);
                    }
                    self.buffer.len()
                }
            };
            let offset = self.offset + self.start as u64;
            let line = &self.buffer[self.start..line_end];
            let entry = match line.len() <= MAX_LINE_LEN {
                true => entry(line, offset),
                false => {
                    let expected = format!("a line of at most {MAX_LINE_LEN} bytes");
                    Err(ReadError { offset, expected, got: "a longer one".into() })
                }
            };
            self.start = (line_end + 1).min(self.buffer.len());
            self.searched = self.start;
            match entry {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) => {}
                Err(failure) => {
                    (self.buffer, self.start, self.searched) = (Vec::new(), 0, 0);
                    self.failure = Some(failure);
                }
            }
        }
    }
}

/// The entry that a line holds; `None` for an empty line, and one that is for people only.
fn entry(line: &[u8], offset: u64) -> Result<Option<Entry>, ReadError> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let excerpt = || Excerpt::new(line).to_string();
    let fields: Map<String, Value> = serde_json::from_slice(line).map_err(|error| ReadError {
        offset,
        expected: "a JSON object in a line".into(),
        got: format!("{} ({error})", excerpt()),
    })?;
    let fields = Fields { fields: &fields, offset };
    if fields.number("v", u64::MAX)? != FORM_VERSION {
        return Err(fields.wrong("v", &format!("{FORM_VERSION}, the version of the form that is known here")));
    }
    let time = match fields.optional("time") {
        None => None,
        Some(_) => {
            let text = fields.text("time")?;
            let nanoseconds = OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp_nanos);
            let time = nanoseconds.and_then(|nanoseconds| u64::try_from(nanoseconds).ok());
            Some(Timestamp(time.ok_or_else(|| fields.wrong("time", "a time such as 2026-01-31T12:00:00.5Z"))?))
        }
    };
    let connection = ConnectionId(fields.number("connection", u64::MAX)?);
    let Some(passed) = fields.passed()? else { return Ok(None) };
    Ok(Some(Entry { offset, time, connection, passed }))
}

/// A line's fields, to be taken as what they should be.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    offset: u64,
}

impl<'a> Fields<'a> {
    fn passed(&self) -> Result<Option<Passed>, ReadError> {
        if self.optional("type").is_some() {
            return Ok(Some(Passed::Record { direction: self.direction()?, record: self.record()? }));
        }
        Ok(Some(match self.text("event")? {
            "opened" => Passed::Opened { from: self.text("from")?.into(), to: self.text("to")?.into() },
            "garbage" => Passed::Garbage { direction: self.direction()?, piece: self.piece()? },
            "cut" => Passed::Cut { direction: self.direction()?, piece: self.piece()? },
            "gap" => {
                let len = self.optional("bytes").map(|_| self.number("bytes", u64::MAX)).transpose()?;
                Passed::Gap { direction: self.direction()?, len }
            }
            "ended" => Passed::Ended { direction: self.direction()? },
            "broken" => Passed::Broken { reason: self.text("reason")?.into() },
            // What decode adds for people.
            "summary" | "end" => return Ok(None),
            _ => return Err(self.wrong("event", "one of opened, garbage, cut, gap, ended, broken")),
        }))
    }

    fn record(&self) -> Result<Record, ReadError> {
        let record_type = match self.optional("type") {
            Some(Value::String(name)) => {
                let known = TYPES.into_iter().find(|known| known.to_string() == *name);
                known.ok_or_else(|| self.wrong("type", "a record type of FastCGI 1.0, or a number"))?
            }
            _ => RecordType::from(self.number("type", 0xff)? as u8),
        };
        let id = self.number("id", 0xffff)? as u16;
        let reserved = self.optional("reserved").map_or(Ok(0), |_| self.number("reserved", 0xff))? as u8;
        let content = self.content()?;
        if content.len() > MAX_CONTENT_LEN {
            let got = format!("{} bytes", content.len());
            let expected = format!("at most {MAX_CONTENT_LEN} bytes of content");
            return Err(ReadError { offset: self.offset, expected, got });
        }
        let padding = match self.optional("padding") {
            None => Vec::new(),
            Some(Value::String(_)) => self.base64("padding")?,
            Some(_) => vec![0; self.number("padding", MAX_PADDING_LEN as u64)? as usize],
        };
        if padding.len() > MAX_PADDING_LEN {
            return Err(self.wrong("padding", &format!("at most {MAX_PADDING_LEN} bytes")));
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN + content.len() + padding.len());
        let ([id_1, id_0], [len_1, len_0]) = (id.to_be_bytes(), (content.len() as u16).to_be_bytes());
        bytes.extend([VERSION, record_type.into(), id_1, id_0, len_1, len_0, padding.len() as u8, reserved]);
        bytes.extend(content);
        bytes.extend(padding);
        let holes = self.holes(bytes.len())?;
        Ok(Record::new(Piece { bytes: bytes.into(), holes }).expect("it was just put together as one"))
    }

    fn piece(&self) -> Result<Piece, ReadError> {
        let bytes: Bytes = self.content()?.into();
        if bytes.is_empty() || bytes.len() > MAX_GARBAGE_LEN.max(crate::recording::MAX_RECORD_LEN) {
            let (offset, got) = (self.offset, format!("{}", bytes.len()));
            let expected = format!("1 to {} bytes in text or base64", crate::recording::MAX_RECORD_LEN);
            return Err(ReadError { offset, expected, got });
        }
        let holes = self.holes(bytes.len())?;
        Ok(Piece { bytes, holes })
    }

    /// The content, whichever way it is said.
    fn content(&self) -> Result<Vec<u8>, ReadError> {
        let rest = |len: usize| match self.optional("rest") {
            None => Ok(vec![0; len]),
            Some(_) => self.base64("rest"),
        };
        let mut content = Vec::new();
        if self.optional("pairs").is_some() {
            self.pairs(&mut content)?;
            content.extend(rest(0)?);
        } else if self.optional("role").is_some() {
            content.put_u16(self.name_or_number("role", &ROLES, 0xffff)? as u16);
            content.put_u8(self.number("flags", 0xff)? as u8);
            content.extend(rest(5)?);
        } else if self.optional("application_status").is_some() {
            content.put_u32(self.number("application_status", u32::MAX.into())? as u32);
            content.put_u8(self.name_or_number("protocol_status", &STATUSES, 0xff)? as u8);
            content.extend(rest(3)?);
        } else if self.optional("unknown_type").is_some() {
            content.put_u8(self.number("unknown_type", 0xff)? as u8);
            content.extend(rest(7)?);
        } else if self.optional("text").is_some() {
            content.extend(self.text("text")?.as_bytes());
        } else if self.optional("base64").is_some() {
            content = self.base64("base64")?;
        }
        Ok(content)
    }

    fn pairs(&self, content: &mut Vec<u8>) -> Result<(), ReadError> {
        let wrong = || self.wrong("pairs", "a list of [name, value], each text or {\"base64\": …}");
        for pair in self.optional("pairs").and_then(Value::as_array).ok_or_else(wrong)? {
            let pair = pair.as_array().ok_or_else(wrong)?;
            let (name, value, widths) = match &pair[..] {
                [name, value] => (name, value, None),
                [name, value, name_width, value_width] => (name, value, Some([name_width, value_width])),
                _ => return Err(wrong()),
            };
            let parts = [part(name).ok_or_else(wrong)?, part(value).ok_or_else(wrong)?];
            for (at, part) in parts.iter().enumerate() {
                let width = match widths {
                    None => 4 - 3 * usize::from(part.len() <= 0x7f),
                    Some(widths) => widths[at].as_u64().ok_or_else(wrong)? as usize,
                };
                match width {
                    1 if part.len() <= 0x7f => content.put_u8(part.len() as u8),
                    4 if part.len() <= MAX_CONTENT_LEN => content.put_u32(part.len() as u32 | 0x8000_0000),
                    _ => return Err(wrong()),
                }
            }
            parts.iter().for_each(|part| content.extend(&part[..]));
        }
        Ok(())
    }

    fn holes(&self, len: usize) -> Result<Vec<Hole>, ReadError> {
        let mut holes = Vec::new();
        for (name, is_masked) in [("masked", true), ("lost", false)] {
            let Some(list) = self.optional(name) else { continue };
            let wrong = || self.wrong(name, "a list of [first byte, number of bytes], none beyond the bytes there are");
            for hole in list.as_array().ok_or_else(wrong)? {
                let [start, hole_len] = &hole.as_array().ok_or_else(wrong)?[..] else { return Err(wrong()) };
                let (start, hole_len) = (start.as_u64().ok_or_else(wrong)?, hole_len.as_u64().ok_or_else(wrong)?);
                if hole_len == 0 || start.checked_add(hole_len).is_none_or(|end| end > len as u64) {
                    return Err(wrong());
                }
                holes.push(Hole { start: start as usize, len: hole_len as usize, is_masked });
            }
        }
        holes.sort_by_key(|hole| hole.start);
        if holes.windows(2).any(|two| two[0].start + two[0].len > two[1].start) {
            return Err(self.wrong("masked", "places that do not overlap each other"));
        }
        Ok(holes)
    }

    fn direction(&self) -> Result<Direction, ReadError> {
        match self.text("to")? {
            "application" => Ok(Direction::ToApplication),
            "web server" => Ok(Direction::ToWebServer),
            _ => Err(self.wrong("to", "\"application\" or \"web server\"")),
        }
    }

    fn optional(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name)
    }

    fn text(&self, name: &str) -> Result<&'a str, ReadError> {
        self.optional(name).and_then(Value::as_str).ok_or_else(|| self.wrong(name, "a string"))
    }

    fn number(&self, name: &str, max: u64) -> Result<u64, ReadError> {
        let number = self.optional(name).and_then(Value::as_u64).filter(|number| *number <= max);
        number.ok_or_else(|| self.wrong(name, &format!("a number from 0 to {max}")))
    }

    fn name_or_number(&self, name: &str, names: &[(&str, u64)], max: u64) -> Result<u64, ReadError> {
        let Some(Value::String(text)) = self.optional(name) else { return self.number(name, max) };
        let known = names.iter().find(|(known, _)| known == text);
        known.map(|(_, number)| *number).ok_or_else(|| {
            let known: Vec<_> = names.iter().map(|(known, _)| *known).collect();
            self.wrong(name, &format!("one of {}, or a number", known.join(", ")))
        })
    }

    fn base64(&self, name: &str) -> Result<Vec<u8>, ReadError> {
        BASE64_STANDARD.decode(self.text(name)?).map_err(|_| self.wrong(name, "base64"))
    }

    /// That a field is not what it should be.
    fn wrong(&self, name: &str, expected: &str) -> ReadError {
        let got = self
            .optional(name)
            .map_or("nothing".into(), |value| Excerpt::new(value.to_string().as_bytes()).to_string());
        ReadError { offset: self.offset, expected: format!("in the field \"{name}\" {expected}"), got }
    }
}

/// A name or a value.
fn part(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.as_bytes().to_vec()),
        Value::Object(fields) => BASE64_STANDARD.decode(fields.get("base64")?.as_str()?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::fastcgi::put_record;
    use crate::recording::form::fastcgi;

    fn read<R: EntryReader>(mut reader: R, bytes: &[u8]) -> Result<Vec<Entry>, (Vec<Entry>, ReadError)> {
        let mut entries = Vec::new();
        for chunk in bytes.chunks(1000) {
            reader.receive(chunk);
            loop {
                match reader.next() {
                    Ok(Some(entry)) => entries.push(entry),
                    Ok(None) => break,
                    Err(error) => return Err((entries, error)),
                }
            }
        }
        reader.end();
        loop {
            match reader.next() {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => return Ok(entries),
                Err(error) => return Err((entries, error)),
            }
        }
    }

    fn lines(entries: &[Entry]) -> Vec<u8> {
        let (mut writer, mut out) = (Writer::default(), Vec::new());
        entries.iter().for_each(|entry| writer.write(entry, &mut out));
        out
    }

    fn wire(entries: &[Entry]) -> Vec<u8> {
        entries.iter().flat_map(|entry| entry.passed.bytes().to_vec()).collect()
    }

    fn record(record_type: u8, id: u16, content: &[u8], padding_len: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_record(record_type.into(), RequestId(id), content, padding_len, &mut bytes);
        bytes
    }

    /// Each way to say a record.
    fn wire_of_all_kinds() -> Vec<u8> {
        let mut wire = [
            record(1, 1, &[0, 1, 1, 0, 0, 0, 0, 0], 0),
            record(1, 2, &[0, 9, 0xff, 0, 0, 7, 0, 0], 0),
            record(4, 1, b"\x04\x05NAMEvalue\x01\x02\xff\x1b[\x04\x05NA", 7),
            record(4, 1, b"MEvalue", 0),
            record(4, 1, b"\x80\0\0\x01\x80\0\0\x02NvvAB", 0),
            record(4, 1, b"", 0),
            record(5, 1, b"text, \"quoted\"\n", 1),
            record(5, 1, "cut within \u{e9}".as_bytes().split_last().unwrap().1, 0),
            record(5, 1, b"", 8),
            record(2, 1, b"", 0),
            record(3, 1, &[0, 0, 0, 9, 2, 0, 0, 0], 0),
            record(3, 1, &[0, 0, 0, 9, 77, 1, 2, 3], 0),
            record(3, 1, b"short", 0),
            record(9, 0, b"\x0e\0FCGI_MAX_CONNS", 0),
            record(11, 0, &[99, 0, 0, 0, 0, 0, 0, 0], 0),
            record(99, 7, b"\0", 3),
            b"garbage\xff".to_vec(),
        ]
        .concat();
        let mut odd = record(6, 1, b"odd", 5);
        odd[7] = 0xaa;
        odd[12] = 0xbb;
        wire.extend(odd);
        wire.extend(&record(6, 1, b"not completed", 0)[..15]);
        wire
    }

    #[test]
    fn records_come_back_from_lines_byte_by_byte_and_look_like_this() {
        let wire_bytes = wire_of_all_kinds();
        let lines = lines(&read(fastcgi::Reader::default(), &wire_bytes).unwrap());
        assert!(wire(&read(Reader::default(), &lines).unwrap()) == wire_bytes);
        let text = String::from_utf8(lines).unwrap();
        let expected = [
            r#"{"v":1,"connection":1,"to":"application","type":"BEGIN_REQUEST","id":1,"role":"RESPONDER","flags":1}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"BEGIN_REQUEST","id":2,"role":9,"flags":255,"rest":"AAAHAAA="}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"PARAMS","id":1,"pairs":[["NAME","value"],[{"base64":"/w=="},{"base64":"G1s="}]],"rest":"BAVOQQ==","padding":7}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"PARAMS","id":1,"text":"MEvalue"}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"PARAMS","id":1,"pairs":[["N","vv",4,4]],"rest":"QUI="}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"PARAMS","id":1}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"STDIN","id":1,"text":"text, \"quoted\"\n","padding":1}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"STDIN","id":1,"base64":"Y3V0IHdpdGhpbiDD"}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"STDIN","id":1,"padding":8}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"ABORT_REQUEST","id":1}"#,
            r#"{"v":1,"connection":1,"to":"web server","type":"END_REQUEST","id":1,"application_status":9,"protocol_status":"OVERLOADED"}"#,
            r#"{"v":1,"connection":1,"to":"web server","type":"END_REQUEST","id":1,"application_status":9,"protocol_status":77,"rest":"AQID"}"#,
            r#"{"v":1,"connection":1,"to":"web server","type":"END_REQUEST","id":1,"text":"short"}"#,
            r#"{"v":1,"connection":1,"to":"application","type":"GET_VALUES","id":0,"pairs":[["FCGI_MAX_CONNS",""]]}"#,
            r#"{"v":1,"connection":1,"to":"web server","type":"UNKNOWN_TYPE","id":0,"unknown_type":99}"#,
            r#"{"v":1,"connection":1,"to":"web server","type":99,"id":7,"base64":"AA==","padding":3}"#,
            r#"{"v":1,"connection":1,"to":"web server","event":"garbage","base64":"Z2FyYmFnZf8BBgABAAMFqm9kZAC7AAAA"}"#,
            r#"{"v":1,"connection":1,"to":"web server","event":"cut","base64":"AQYAAQANAABub3QgY29t"}"#,
        ];
        for (line, expected) in text.lines().zip(expected) {
            assert_eq!(line, expected);
        }
        assert_eq!(text.lines().count(), expected.len());
    }

    #[test]
    fn what_is_no_record_comes_back_too() {
        let entry = |offset, passed| Entry {
            offset,
            time: Some(Timestamp(1_700_000_000_123_456_789)),
            connection: ConnectionId(9),
            passed,
        };
        let direction = Direction::ToWebServer;
        let holes = vec![Hole { start: 8, len: 2, is_masked: false }, Hole { start: 10, len: 1, is_masked: true }];
        let bytes = record(6, 1, b"****", 0).into();
        let all = [
            Passed::Opened { from: "127.0.0.1:1\n".into(), to: "".into() },
            Passed::Record { direction, record: Record::new(Piece { bytes, holes }).unwrap() },
            Passed::Gap { direction, len: Some(u64::MAX) },
            Passed::Gap { direction, len: None },
            Passed::Ended { direction },
            Passed::Broken { reason: "reset \u{7f}".into() },
        ]
        .map(|passed| entry(0, passed));
        let written = lines(&all);
        let mut again = read(Reader::default(), &written).unwrap();
        again.iter_mut().for_each(|entry| entry.offset = 0);
        assert_eq!(again, all);
        let text = String::from_utf8(written).unwrap();
        assert!(
            text.starts_with(r#"{"v":1,"time":"2023-11-14T22:13:20.123456789Z","connection":9,"event":"opened","#),
            "{text}"
        );
        assert!(text.contains(r#""text":"****","masked":[[10,1]],"lost":[[8,2]]}"#), "{text}");
    }

    #[test]
    fn a_line_that_is_wrong_is_an_error_that_says_what_was_expected() {
        let good = r#"{"v":1,"connection":1,"to":"application","type":"STDIN","id":1}"#;
        for (line, expected, got) in [
            ("{", "a JSON object in a line", "EOF while parsing"),
            ("[]", "a JSON object in a line", "\"[]\""),
            (r#"{"connection":1}"#, "in the field \"v\" a number", "nothing"),
            (r#"{"v":2}"#, "in the field \"v\" 1,", "\"2\""),
            (&good.replace("STDIN", "STDINE"), "a record type of FastCGI 1.0", "STDINE"),
            (&good.replace("\"id\":1", "\"id\":65536"), "a number from 0 to 65535", "65536"),
            (&good.replace("}", r#","base64":"?"}"#), "in the field \"base64\" base64", "?"),
            (&good.replace("}", r#","pairs":[["a"]]}"#), "a list of [name, value]", "a"),
            (&good.replace("}", r#","pairs":[["a","b",2,1]]}"#), "a list of [name, value]", "a"),
            (&good.replace("}", r#","masked":[[8,1]]}"#), "none beyond the bytes there are", "8"),
            (&good.replace("}", r#","padding":256}"#), "a number from 0 to 255", "256"),
            (&good.replace("}", r#","time":"noon"}"#), "a time such as", "noon"),
            (&good.replace("application", "me"), "\"application\" or \"web server\"", "me"),
            (&good.replace(r#""type":"STDIN""#, r#""event":"x""#), "one of opened", "x"),
        ] {
            let file = format!("{good}\n\n{line}\n{good}\n");
            let (entries, error) = read(Reader::default(), file.as_bytes()).unwrap_err();
            assert_eq!((entries.len(), error.offset), (1, good.len() as u64 + 2), "{line}");
            assert!(error.expected.contains(expected) && error.got.contains(got), "{line}: {error}");
        }
        let endless = vec![b' '; MAX_LINE_LEN + 5000];
        let (_, error) = read(Reader::default(), &endless).unwrap_err();
        assert!(error.expected.starts_with("a line of at most"), "{error}");
    }

    #[test]
    fn a_file_that_is_cut_anywhere_gives_what_was_whole() {
        let all = read(fastcgi::Reader::default(), &wire_of_all_kinds()).unwrap();
        let lines = lines(&all);
        for cut in 0..lines.len() {
            let whole = lines[..cut].iter().filter(|byte| **byte == b'\n').count();
            let is_at_end = lines[cut] == b'\n';
            match read(Reader::default(), &lines[..cut]) {
                Ok(entries) => assert!(entries.len() == whole + usize::from(is_at_end), "cut at {cut}"),
                Err((entries, error)) => {
                    assert!(entries.len() == whole && !is_at_end, "cut at {cut}");
                    assert!(error.expected == "a JSON object in a line", "{error}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_from_lines(
            parts in prop::collection::vec(
                prop_oneof![
                    1 => prop::collection::vec(any::<u8>(), 0..40),
                    4 => (0..13_u8, 0..3_u16, prop::collection::vec(prop_oneof![any::<u8>(), 0..4_u8, Just(0x80)], 0..40), 0..9_u8)
                        .prop_map(|(kind, id, content, padding)| record(kind, id, &content, padding)),
                    2 => (0..13_u8, prop::collection::vec(any::<u8>(), 8))
                        .prop_map(|(kind, content)| record(kind, 1, &content, 0)),
                ],
                0..12,
            ),
            odd: (usize, u8),
            cut in 0..1000_usize,
        ) {
            let mut bytes = parts.concat();
            bytes.truncate(bytes.len().saturating_sub(cut % 64));
            if !bytes.is_empty() {
                let at = odd.0 % bytes.len();
                bytes[at] = odd.1;
            }
            let entries = read(fastcgi::Reader::default(), &bytes).unwrap();
            let written = lines(&entries);
            let again = read(Reader::default(), &written).unwrap();
            prop_assert!(wire(&again) == bytes);
            // A second time nothing more changes.
            prop_assert!(lines(&again) == written);
        }

        #[test]
        fn any_line_is_an_entry_or_an_error(line: Vec<u8>) {
            let _ = read(Reader::default(), &line);
        }
    }
}
