//! What a record means, in a line for people.

use std::fmt::Write;

use bytes::Bytes;

use super::bounded::Bounded;
use super::head::AwaitedHead;
use super::pair_stream::PairStream;
use super::records::{Entry, Passed, Record};
use super::{ConnectionId, Direction};
use crate::protocol::cgi::{Excerpt, ResponseHead};
use crate::protocol::fastcgi::{BeginRequest, EndRequest, ProtocolStatus, RecordType, RequestId, Role, UnknownType};

/// Says what each entry means. It remembers of each request what its later records need: how far its variables have come, and its
/// answer's head.
#[derive(Debug)]
pub struct Describer {
    requests: Bounded<(ConnectionId, RequestId), Request>,
}

impl Default for Describer {
    fn default() -> Self {
        Self { requests: Bounded::new(MAX_DESCRIBED) }
    }
}

/// Of how many requests something is remembered.
const MAX_DESCRIBED: usize = 4096;

/// How many bytes a line has at most, or little more.
const LINE_LEN: usize = 160;

#[derive(Debug)]
struct Request {
    params: PairStream,
    stdin: u64,
    data: u64,
    stdout: u64,
    stderr: u64,
    /// `None` once it is over.
    head: Option<AwaitedHead>,
}

impl Default for Request {
    fn default() -> Self {
        let params = PairStream::default();
        Self { params, stdin: 0, data: 0, stdout: 0, stderr: 0, head: Some(AwaitedHead::default()) }
    }
}

impl Describer {
    /// What the entry means. Entries are to be given in their order.
    pub fn describe(&mut self, entry: &Entry) -> String {
        match &entry.passed {
            Passed::Opened { from, to } => match (from.is_empty(), to.is_empty()) {
                (true, true) => "connection opened".into(),
                _ => format!("connection opened from {} to {}", or_unknown(from), or_unknown(to)),
            },
            Passed::Record { record, .. } => {
                let mut line = self.record(entry.connection, record);
                if record.has_lost_bytes() {
                    line.push_str(", with bytes that were lost");
                } else if record.has_holes() {
                    line.push_str(", masked");
                }
                line
            }
            Passed::Garbage { piece, .. } => format!("no record: {}", Excerpt::new(&piece.bytes)),
            Passed::Cut { piece, .. } => {
                format!(
                    "{} bytes of a record that was not completed: {}",
                    piece.bytes.len(),
                    Excerpt::new(&piece.bytes)
                )
            }
            Passed::Gap { len: Some(len), .. } => format!("{len} bytes are missing"),
            Passed::Gap { len: None, .. } => "bytes are missing, nobody knows how many".into(),
            Passed::Ended { direction: Direction::ToApplication } => "the web server has closed its end".into(),
            Passed::Ended { direction: Direction::ToWebServer } => "the application has closed its end".into(),
            Passed::Broken { reason } => format!("connection broke: {reason}"),
        }
    }

    fn record(&mut self, connection: ConnectionId, record: &Record) -> String {
        let (id, content) = (record.header().request_id, record.content());
        let key = (connection, id);
        match record.header().record_type {
            RecordType::BeginRequest => {
                self.requests.insert(key, Request::default());
                match BeginRequest::decode(content) {
                    Ok(BeginRequest { role, keep_connection: true }) => {
                        format!("{}, keep the connection", role_name(role))
                    }
                    Ok(BeginRequest { role, keep_connection: false }) => {
                        format!("{}, close the connection after it", role_name(role))
                    }
                    Err(error) => error.to_string(),
                }
            }
            RecordType::AbortRequest => "the web server gives the request up".into(),
            RecordType::EndRequest => {
                self.requests.remove(&key);
                match EndRequest::decode(content) {
                    Ok(EndRequest { application_status, protocol_status: ProtocolStatus::RequestComplete }) => {
                        format!("complete, application status {application_status}")
                    }
                    Ok(EndRequest { application_status, protocol_status }) => {
                        format!("{}, application status {application_status}", status_name(protocol_status))
                    }
                    Err(error) => error.to_string(),
                }
            }
            RecordType::Params => params(&mut self.request(key).params, content),
            RecordType::Stdin => stream(&mut self.request(key).stdin, content, "request body"),
            RecordType::Data => stream(&mut self.request(key).data, content, "file for the filter"),
            RecordType::Stderr => stream(&mut self.request(key).stderr, content, "error messages"),
            RecordType::Stdout => stdout(self.request(key), content),
            RecordType::GetValues => format!("asks for {}", pairs(&mut PairStream::default(), content, false)),
            RecordType::GetValuesResult => pairs(&mut PairStream::default(), content, true),
            RecordType::UnknownType => match UnknownType::decode(content) {
                Ok(UnknownType { record_type }) => format!("type {record_type} is not known to the application"),
                Err(error) => error.to_string(),
            },
            RecordType::Unknown(_) => format!("{} bytes: {}", content.len(), Excerpt::new(content)),
        }
    }

    fn request(&mut self, key: (ConnectionId, RequestId)) -> &mut Request {
        if self.requests.touch(&key).is_none() {
            self.requests.insert(key, Request::default());
        }
        self.requests.touch(&key).expect("it was just inserted where it was missing")
    }
}

/// The specification's name without its `FCGI_`, in the case of people.
pub fn role_name(role: Role) -> String {
    match role {
        Role::Responder => "Responder".into(),
        Role::Authorizer => "Authorizer".into(),
        Role::Filter => "Filter".into(),
        Role::Unknown(number) => format!("role {number}"),
    }
}

/// The specification's name without its `FCGI_`.
pub fn status_name(status: ProtocolStatus) -> String {
    match status {
        ProtocolStatus::RequestComplete => "REQUEST_COMPLETE".into(),
        ProtocolStatus::CannotMultiplex => "CANT_MPX_CONN".into(),
        ProtocolStatus::Overloaded => "OVERLOADED".into(),
        ProtocolStatus::UnknownRole => "UNKNOWN_ROLE".into(),
        ProtocolStatus::Unknown(number) => format!("protocol status {number}"),
    }
}

fn or_unknown(address: &str) -> &str {
    if address.is_empty() { "somewhere" } else { address }
}

fn params(stream: &mut PairStream, content: &[u8]) -> String {
    if content.is_empty() {
        return match stream.begun() {
            0 => format!("end of the variables: {} in {} bytes", stream.pairs(), stream.len()),
            begun => format!("end of the variables after {begun} bytes of one that is not complete"),
        };
    }
    pairs(stream, content, true)
}

fn pairs(stream: &mut PairStream, content: &[u8], with_values: bool) -> String {
    let mut line = String::new();
    let before = stream.pairs();
    stream.feed(content, |name, value| {
        if line.len() >= LINE_LEN {
            return;
        }
        let separator = if line.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(line, "{separator}{}", name.escape_ascii());
        if with_values {
            let shown = &value[..value.len().min(Excerpt::MAX_LEN)];
            let more = if shown.len() < value.len() { "…" } else { "" };
            let _ = write!(line, "={}{more}", shown.escape_ascii());
        }
    });
    if line.len() >= LINE_LEN {
        let _ = write!(line, ", … ({} in all)", stream.pairs() - before);
    }
    if stream.begun() > 0 {
        line.push_str(if line.is_empty() { "part of a pair" } else { ", and part of another" });
    }
    line
}

fn stream(so_far: &mut u64, content: &[u8], what: &str) -> String {
    *so_far += content.len() as u64;
    match content.len() {
        0 => format!("end of the {what}: {so_far} bytes"),
        _ => Excerpt::new(content).to_string(),
    }
}

fn stdout(request: &mut Request, content: &[u8]) -> String {
    request.stdout += content.len() as u64;
    if content.is_empty() {
        return format!("end of the answer: {} bytes", request.stdout);
    }
    let Some(head) = &mut request.head else { return Excerpt::new(content).to_string() };
    let line = match head.feed(content) {
        None => return format!("part of the head: {}", Excerpt::new(content)),
        Some(Err(error)) => format!("no head: {error}"),
        Some(Ok(found)) => described(&found, head.body()),
    };
    request.head = None;
    line
}

fn described(head: &ResponseHead, body: &[u8]) -> String {
    let (code, reason) = head.status_or_default();
    let mut line = format!("{code} {}", reason.escape_ascii());
    for (name, value) in head.headers.iter() {
        if line.len() >= LINE_LEN {
            line.push_str(", …");
            break;
        }
        let _ = write!(line, ", {}: {}", name.escape_ascii(), value[..value.len().min(LINE_LEN)].escape_ascii());
    }
    if !body.is_empty() {
        let _ = write!(line, ", {}", Excerpt::new(body));
    }
    line
}

/// A record on its own, such as one that is about to be sent, in a line: its type, its id, what it means.
impl Describer {
    /// The line. What is remembered is remembered of connection 0.
    pub fn describe_record(&mut self, record: Bytes) -> Option<String> {
        let record = Record::new(super::Piece { bytes: record, holes: Vec::new() })?;
        let header = record.header();
        let meaning = self.record(ConnectionId(0), &record);
        Some(format!("{} {}: {meaning}", header.record_type, header.request_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fastcgi::put_record;

    /// The lines for these records, all of request 1.
    fn lines(records: &[(RecordType, &[u8])]) -> Vec<String> {
        let mut describer = Describer::default();
        let line = |(record_type, content): &(RecordType, &[u8])| {
            let mut record = Vec::new();
            put_record(*record_type, RequestId(1), content, 0, &mut record);
            describer.describe_record(record.into()).unwrap().split_once(": ").unwrap().1.to_owned()
        };
        records.iter().map(line).collect()
    }

    #[test]
    fn a_request_and_its_answer_read_like_this() {
        let lines = lines(&[
            (RecordType::BeginRequest, &[0, 1, 1, 0, 0, 0, 0, 0]),
            (RecordType::Params, b"\x0e\x03REQUEST_METHODGET\x04\x05NA"),
            (RecordType::Params, b"MEvalue"),
            (RecordType::Params, b""),
            (RecordType::Stdin, b"body"),
            (RecordType::Stdin, b""),
            (RecordType::Stderr, b"oh\n"),
            (RecordType::Stdout, b"Status: 404 Not Found\r\nContent-Type:"),
            (RecordType::Stdout, b" text/plain\r\n\r\nnot"),
            (RecordType::Stdout, b" here"),
            (RecordType::Stdout, b""),
            (RecordType::EndRequest, &[0, 0, 0, 9, 0, 0, 0, 0]),
        ]);
        let expected = [
            "Responder, keep the connection",
            "REQUEST_METHOD=GET, and part of another",
            "NAME=value",
            "end of the variables: 2 in 30 bytes",
            "\"body\"",
            "end of the request body: 4 bytes",
            "\"oh\\n\"",
            "part of the head: \"Status: 404 Not Found\\r\\nContent-Type:\"",
            "404 Not Found, Content-Type: text/plain, \"not\"",
            "\" here\"",
            "end of the answer: 59 bytes",
            "complete, application status 9",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn management_and_odd_records_have_a_meaning_too() {
        let lines = lines(&[
            (RecordType::GetValues, b"\x0e\0FCGI_MAX_CONNS\x0d\0FCGI_MAX_REQS"),
            (RecordType::GetValuesResult, b"\x0e\x01FCGI_MAX_CONNS5"),
            (RecordType::UnknownType, &[12, 0, 0, 0, 0, 0, 0, 0]),
            (RecordType::EndRequest, &[0, 0, 0, 0, 2, 0, 0, 0]),
            (RecordType::EndRequest, &[0; 3]),
            (RecordType::Unknown(99), b"\x1b[31m"),
            (RecordType::Stdout, b"<html>\n"),
        ]);
        let expected = [
            "asks for FCGI_MAX_CONNS, FCGI_MAX_REQS",
            "FCGI_MAX_CONNS=5",
            "type 12 is not known to the application",
            "OVERLOADED, application status 0",
            "expected 8 bytes of content in END_REQUEST, got 3",
            "5 bytes: \"\\x1b[31m\"",
        ];
        assert_eq!(&lines[..6], expected);
        assert!(lines[6].starts_with("no head: "), "{}", lines[6]);
    }

    #[test]
    fn a_line_stays_a_line() {
        let many = b"\x04\x04NAMEline".repeat(1000);
        let lines = lines(&[(RecordType::Params, &many), (RecordType::Stdin, &[b'x'; 60_000])]);
        assert!(lines[0].ends_with(", … (1000 in all)"), "{}", lines[0]);
        assert!(lines.iter().all(|line| line.len() < LINE_LEN + 200));
    }
}
