//! What became of each request, in a line: as much as can be said without keeping its bodies.

use std::fmt;

use super::bounded::{Bounded, of_connection};
use super::head::AwaitedHead;
use super::pair_stream::PairStream;
use super::records::{Entry, Passed};
use super::{ConnectionId, Direction, Times, Timestamp, role_name, status_name};
use crate::protocol::fastcgi::{BeginRequest, EndRequest, ProtocolStatus, RecordType, RequestId, Role};

/// One request, as far as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The how manieth request that began, from 1 on.
    pub number: u64,
    /// Where it passed.
    pub connection: ConnectionId,
    /// Under which id.
    pub id: RequestId,
    /// What the application was asked to be.
    pub role: Role,
    /// REQUEST_METHOD, the first bytes of it.
    pub method: String,
    /// REQUEST_URI or what stands for it, the first bytes of it.
    pub target: String,
    /// What the answer's head says; `None` where there was none.
    pub status: Option<u16>,
    /// How it ended; `None` when that was not seen.
    pub end: Option<EndRequest>,
    /// Whether the web server gave it up.
    pub is_aborted: bool,
    /// When what happened.
    pub times: Times,
    /// Bytes of the request's body.
    pub stdin: u64,
    /// Bytes of a Filter's file.
    pub data: u64,
    /// Bytes of the answer, head and body.
    pub stdout: u64,
    /// Bytes of error messages.
    pub stderr: u64,
    /// Breaches of the specification.
    pub findings: u64,
}

impl Summary {
    /// From the beginning to the first byte of the answer, in nanoseconds.
    pub fn to_first_byte(&self) -> Option<u64> {
        since(self.times.begun, self.times.answered)
    }

    /// From the beginning to the end, in nanoseconds.
    pub fn duration(&self) -> Option<u64> {
        since(self.times.begun, self.times.ended)
    }
}

fn since(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<u64> {
    Some(to?.0.saturating_sub(from?.0))
}

/// The line, without its number.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.role != Role::Responder {
            write!(f, "{} ", role_name(self.role))?;
        }
        let method = if self.method.is_empty() { "(no method)" } else { &self.method };
        write!(f, "{} {}: ", method.as_bytes().escape_ascii(), self.target.as_bytes().escape_ascii())?;
        match (self.status, self.stdout) {
            (Some(status), _) => write!(f, "status {status}")?,
            (None, 0) => f.write_str("no answer")?,
            (None, _) => f.write_str("an answer without a head")?,
        }
        write!(f, ", {} bytes in, {} out", self.stdin + self.data, self.stdout)?;
        if self.stderr > 0 {
            write!(f, ", {} of errors", self.stderr)?;
        }
        if let Some(nanoseconds) = self.to_first_byte() {
            write!(f, ", first byte after {:.3} ms", nanoseconds as f64 / 1e6)?;
        }
        if let Some(nanoseconds) = self.duration() {
            write!(f, ", {:.3} ms in all", nanoseconds as f64 / 1e6)?;
        }
        if self.is_aborted {
            f.write_str(", given up by the web server")?;
        }
        match self.end {
            None => f.write_str(", no END_REQUEST")?,
            Some(EndRequest { application_status, protocol_status }) => {
                if protocol_status != ProtocolStatus::RequestComplete {
                    write!(f, ", {}", status_name(protocol_status))?;
                }
                if application_status != 0 {
                    write!(f, ", application status {application_status}")?;
                }
            }
        }
        match self.findings {
            0 => Ok(()),
            1 => f.write_str(", 1 finding"),
            findings => write!(f, ", {findings} findings"),
        }
    }
}

/// Entries in, summaries out, in the order in which the requests end.
#[derive(Debug)]
pub struct Summaries {
    requests: Bounded<(ConnectionId, RequestId), Open>,
    begun: u64,
}

/// How many requests may be open at once: of more, the oldest is summed up as it is.
const MAX_OPEN: usize = 4096;

/// How many bytes of a method or a target are shown.
const SHOWN: usize = 200;

#[derive(Debug)]
struct Open {
    summary: Summary,
    params: PairStream,
    has_uri: bool,
    script_name: String,
    path_info: String,
    query: String,
    /// Until the answer's head is known.
    head: Option<AwaitedHead>,
}

impl Default for Summaries {
    fn default() -> Self {
        Self { requests: Bounded::new(MAX_OPEN), begun: 0 }
    }
}

impl Summaries {
    /// Takes an entry with the number of its findings, and gives back the number of the request that it belongs to and the requests that
    /// are over with it.
    pub fn receive(&mut self, entry: &Entry, findings: usize) -> (Option<u64>, Vec<Summary>) {
        let connection = entry.connection;
        match &entry.passed {
            Passed::Record { record, .. } => {
                let (header, content) = (record.header(), record.content());
                let key = (connection, header.request_id);
                let mut over = Vec::new();
                if header.record_type == RecordType::BeginRequest
                    && let Ok(BeginRequest { role, .. }) = BeginRequest::decode(content)
                {
                    self.begun += 1;
                    let gone = self.requests.insert(key, open(self.begun, key, role, entry.time));
                    over.extend(gone.map(|(_, gone)| sum_up(gone)));
                }
                let Some(open) = self.requests.touch(&key) else { return (None, over) };
                open.summary.findings += findings as u64;
                let number = open.summary.number;
                if self.record(key, header.record_type, content, entry.time) {
                    over.extend(self.requests.remove(&key).map(sum_up));
                }
                (Some(number), over)
            }
            Passed::Ended { direction: Direction::ToWebServer } | Passed::Broken { .. } => {
                let over = self.requests.take(of_connection(connection));
                (None, over.into_iter().map(|(_, open)| sum_up(open)).collect())
            }
            _ => (None, Vec::new()),
        }
    }

    /// There are no more entries: the requests that are open.
    pub fn end(&mut self) -> Vec<Summary> {
        self.requests.take(..).into_iter().map(|(_, open)| sum_up(open)).collect()
    }

    /// How many requests have begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Counts a record of an open request; true when it is over.
    fn record(
        &mut self,
        key: (ConnectionId, RequestId),
        record_type: RecordType,
        content: &[u8],
        time: Option<Timestamp>,
    ) -> bool {
        let Some(open) = self.requests.touch(&key) else { return false };
        let len = content.len() as u64;
        let Open { summary, params, has_uri, script_name, path_info, query, head } = open;
        summary.times.ended = time.or(summary.times.ended);
        match record_type {
            RecordType::Params => params.feed(content, |name, value| {
                let value = String::from_utf8_lossy(&value[..value.len().min(SHOWN)]).into_owned();
                match name {
                    b"REQUEST_METHOD" => summary.method = value,
                    b"REQUEST_URI" if !value.is_empty() => (summary.target, *has_uri) = (value, true),
                    b"SCRIPT_NAME" => *script_name = value,
                    b"PATH_INFO" => *path_info = value,
                    b"QUERY_STRING" => *query = value,
                    _ => {}
                }
            }),
            RecordType::Stdin => summary.stdin += len,
            RecordType::Data => summary.data += len,
            RecordType::Stderr => summary.stderr += len,
            RecordType::AbortRequest => summary.is_aborted = true,
            RecordType::Stdout => {
                summary.stdout += len;
                if !content.is_empty() {
                    summary.times.answered = summary.times.answered.or(time);
                }
                if let Some(found) = head.as_mut().and_then(|head| head.feed(content)) {
                    summary.status = found.ok().map(|found| found.status_or_default().0);
                    *head = None;
                }
            }
            RecordType::EndRequest => {
                summary.end = EndRequest::decode(content).ok();
                return true;
            }
            _ => {}
        }
        if matches!(record_type, RecordType::Params | RecordType::Stdin | RecordType::Data) {
            summary.times.received = time.or(summary.times.received);
        }
        false
    }
}

fn open(number: u64, (connection, id): (ConnectionId, RequestId), role: Role, time: Option<Timestamp>) -> Open {
    let summary = Summary {
        number,
        connection,
        id,
        role,
        method: String::new(),
        target: String::new(),
        status: None,
        end: None,
        is_aborted: false,
        times: Times { begun: time, ..Times::default() },
        stdin: 0,
        data: 0,
        stdout: 0,
        stderr: 0,
        findings: 0,
    };
    let [script_name, path_info, query] = Default::default();
    Open {
        summary,
        params: PairStream::default(),
        has_uri: false,
        script_name,
        path_info,
        query,
        head: Some(AwaitedHead::default()),
    }
}

fn sum_up(open: Open) -> Summary {
    let Open { mut summary, has_uri, script_name, path_info, query, .. } = open;
    if !has_uri {
        let question_mark = if query.is_empty() { "" } else { "?" };
        summary.target = format!("{script_name}{path_info}{question_mark}{query}");
    }
    summary
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::fastcgi::put_record;
    use crate::recording::{Piece, Record};

    /// The requests that are over with each of these records, which come a millisecond apart, and at the end.
    fn summaries(records: &[(u8, u16, &[u8])]) -> Vec<String> {
        let mut summaries = Summaries::default();
        let mut found = Vec::new();
        for (at, (record_type, id, content)) in records.iter().enumerate() {
            let mut bytes = Vec::new();
            put_record((*record_type).into(), RequestId(*id), content, 0, &mut bytes);
            let record = Record::new(Piece { bytes: Bytes::from(bytes), holes: Vec::new() }).unwrap();
            let passed = Passed::Record { direction: Direction::ToApplication, record };
            let time = Some(Timestamp(at as u64 * 1_000_000));
            found.extend(
                summaries
                    .receive(&Entry { offset: 0, time, connection: ConnectionId(1), passed }, usize::from(*id == 9))
                    .1,
            );
        }
        found.extend(summaries.end());
        found.iter().map(|summary| format!("{} {summary}", summary.number)).collect()
    }

    #[test]
    fn a_request_is_summed_up_like_this() {
        const BEGIN: &[u8] = &[0, 1, 1, 0, 0, 0, 0, 0];
        let lines = summaries(&[
            (1, 1, BEGIN),
            (4, 1, b"\x0e\x04REQUEST_METHODPOST\x0b\x04SCRIPT_NAME/app\x0c\x03QUERY_STRINGa=1"),
            (1, 9, &[0, 2, 1, 0, 0, 0, 0, 0]),
            (5, 1, b"body"),
            (7, 1, b"oh"),
            (6, 1, b"Status: 404 No"),
            (6, 1, b"t\n\nnot here"),
            (3, 1, &[0, 0, 0, 5, 0, 0, 0, 0]),
            (6, 9, b"<html>\n"),
            (2, 9, b""),
            (3, 9, &[0, 0, 0, 0, 2, 0, 0, 0]),
            (1, 1, BEGIN),
        ]);
        let expected = [
            "1 POST /app?a=1: status 404, 4 bytes in, 25 out, 2 of errors, first byte after 5.000 ms, 7.000 ms in all, application status 5",
            "2 Authorizer (no method) : an answer without a head, 0 bytes in, 7 out, first byte after 6.000 ms, 8.000 ms in all, given up by the web server, OVERLOADED, 4 findings",
            "3 (no method) : no answer, 0 bytes in, 0 out, 0.000 ms in all, no END_REQUEST",
        ];
        assert_eq!(lines, expected);
    }
}
