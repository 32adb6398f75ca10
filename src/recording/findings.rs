//! Where what passed breaks the specification, each with its clause.
//!
//! This is stricter than the two ends of a connection are: they take what does no harm, as they should, while who looks at a recording wants
//! to know who did what.

use super::bounded::{Bounded, of_connection};
use super::pair_stream::PairStream;
use super::records::{Entry, Passed, Record, direction_of};
use super::{ConnectionId, Direction};
use crate::protocol::fastcgi::name_value::NameValueError;
use crate::protocol::fastcgi::name_value::NameValues;
use crate::protocol::fastcgi::{BeginRequest, EndRequest, ProtocolStatus, RecordType, RequestId, Role, UnknownType};

/// One breach of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// Bytes are no record (FastCGI 3.3).
    #[error("expected a record of FastCGI version 1, got one of version {version}")]
    NotARecord {
        /// Their first.
        version: u8,
    },
    /// A record was not completed (FastCGI 3.3).
    #[error("expected {needed} bytes of a record, got {len}")]
    Cut {
        /// As far as its header says so.
        needed: usize,
        /// What came.
        len: usize,
    },
    /// The header's last byte is used (FastCGI 3.3).
    #[error("expected 0 in the reserved byte, got {0}")]
    Reserved(u8),
    /// A type that FastCGI 1.0 has no name for, of a request (FastCGI 8).
    #[error("expected a record type of FastCGI 1.0 for a request, got {0}")]
    UnknownRecordType(u8),
    /// A request's record names none (FastCGI 3.3).
    #[error("expected a request id in {0}, got 0")]
    NullRequestId(RecordType),
    /// A management record names a request (FastCGI 3.3).
    #[error("expected id 0 in {record_type}, got {id}")]
    ManagementId {
        /// Which.
        record_type: RecordType,
        /// What it names.
        id: RequestId,
    },
    /// A record passes to the end that sends such records.
    #[error("expected {record_type} to come from the {from} only")]
    WrongWay {
        /// Which.
        record_type: RecordType,
        /// Whose it is to send.
        from: Direction,
    },
    /// A content of fixed length has another.
    #[error("expected {expected} bytes of content in {record_type}, got {len}")]
    ContentLen {
        /// Which.
        record_type: RecordType,
        /// How long it is to be.
        expected: usize,
        /// How long it is.
        len: usize,
    },
    /// Reserved bytes of a body are used.
    #[error("expected zeros in the reserved bytes of {0}")]
    ReservedBytes(RecordType),
    /// A request is for a role that FastCGI 1.0 has no name for (FastCGI 5.1).
    #[error("expected a role of FastCGI 1.0, got {0}")]
    UnknownRole(u16),
    /// Flags other than FCGI_KEEP_CONN are set (FastCGI 5.1).
    #[error("expected no flag but 1, got {0}")]
    UnknownFlags(u8),
    /// A request began under the id of one that had not ended (FastCGI 3.3).
    #[error("expected an id that is free in BEGIN_REQUEST, got {0}, whose request has not ended")]
    ActiveRequestId(RequestId),
    /// A request began on a connection that was to be closed (FastCGI 5.1).
    #[error("expected no request after one without FCGI_KEEP_CONN, got BEGIN_REQUEST")]
    AfterLast,
    /// A record is for a request whose beginning was not seen (FastCGI 3.3).
    #[error("expected BEGIN_REQUEST before {0}")]
    NotBegun(RecordType),
    /// A stream began before the one ahead of it had ended (FastCGI 6.1).
    #[error("expected the end of {expected} before {record_type}")]
    OutOfOrder {
        /// What came.
        record_type: RecordType,
        /// What was still open.
        expected: RecordType,
    },
    /// A role has no such stream.
    #[error("expected no {record_type} for the role {}", super::role_name(*role))]
    NotOfRole {
        /// Which stream.
        record_type: RecordType,
        /// The role.
        role: Role,
    },
    /// A stream went on after its end, or ended twice (FastCGI 3.3).
    #[error("expected nothing more in {record_type} after its end, got {len} bytes")]
    StreamEnded {
        /// Which stream.
        record_type: RecordType,
        /// What came.
        len: usize,
    },
    /// Pairs are no pairs (FastCGI 3.4).
    #[error("{record_type}: {error}")]
    Pairs {
        /// Of what.
        record_type: RecordType,
        /// Why.
        error: NameValueError,
    },
    /// Variables ended within a pair (FastCGI 3.4).
    #[error("expected the rest of a pair before the end of PARAMS, of which {begun} bytes have come")]
    ParamsCut {
        /// How much of it has come.
        begun: u64,
    },
    /// GET_VALUES has values (FastCGI 4.1).
    #[error("expected names without values in GET_VALUES, got a value of {len} bytes")]
    ValueAsked {
        /// The first one's length.
        len: usize,
    },
    /// A request ended without an answer, which would have been sent even if it were empty (FastCGI 6.1).
    #[error("expected STDOUT before END_REQUEST, even if it is empty")]
    NoStdout,
    /// A request ended, and one of its streams had not (FastCGI 3.3).
    #[error("expected the end of {0} before END_REQUEST")]
    NotEnded(RecordType),
    /// The application went on with a request that it had ended (FastCGI 5.5).
    #[error("expected nothing more after END_REQUEST, got {0}")]
    AfterEnd(RecordType),
    /// A protocol status that FastCGI 1.0 has no name for (FastCGI 5.5).
    #[error("expected a protocol status of FastCGI 1.0, got {0}")]
    UnknownProtocolStatus(u8),
    /// The application closed a connection that it was to keep (FastCGI 5.1).
    #[error("expected the connection to stay open, since FCGI_KEEP_CONN was set, and the application closed it")]
    NotKept,
    /// The application closed the connection with requests that it had not ended (FastCGI 5.5).
    #[error("expected END_REQUEST of request {0} before the application closes the connection")]
    NoEnd(RequestId),
}

impl Finding {
    /// The clause of the FastCGI specification, version 1.0, that is broken.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::NotARecord { .. }
            | Self::Cut { .. }
            | Self::Reserved(_)
            | Self::NullRequestId(_)
            | Self::ManagementId { .. }
            | Self::ActiveRequestId(_)
            | Self::NotBegun(_)
            | Self::StreamEnded { .. }
            | Self::NotEnded(_) => "3.3",
            Self::Pairs { .. } | Self::ParamsCut { .. } => "3.4",
            Self::ValueAsked { .. } => "4.1",
            Self::UnknownRole(_) | Self::UnknownFlags(_) | Self::AfterLast | Self::NotKept => "5.1",
            Self::AfterEnd(_) | Self::UnknownProtocolStatus(_) | Self::NoEnd(_) => "5.5",
            Self::OutOfOrder { .. } | Self::NoStdout => "6.1",
            Self::NotOfRole { role: Role::Authorizer, .. } => "6.3",
            Self::NotOfRole { .. } => "6.4",
            Self::UnknownRecordType(_) => "8",
            Self::WrongWay { record_type, .. }
            | Self::ContentLen { record_type, .. }
            | Self::ReservedBytes(record_type) => clause_of(*record_type),
        }
    }
}

/// The clause that a record type comes from.
fn clause_of(record_type: RecordType) -> &'static str {
    match record_type {
        RecordType::GetValues | RecordType::GetValuesResult => "4.1",
        RecordType::UnknownType => "4.2",
        RecordType::BeginRequest => "5.1",
        RecordType::Params => "5.2",
        RecordType::Stdin | RecordType::Data | RecordType::Stdout | RecordType::Stderr => "5.3",
        RecordType::AbortRequest => "5.4",
        RecordType::EndRequest => "5.5",
        RecordType::Unknown(_) => "8",
    }
}

/// Looks at entries in their order, and remembers of each connection and request what the later ones are judged by.
#[derive(Debug)]
pub struct Checker {
    connections: Bounded<ConnectionId, Connection>,
    requests: Bounded<(ConnectionId, RequestId), Request>,
}

impl Default for Checker {
    fn default() -> Self {
        Self { connections: Bounded::new(MAX_CHECKED), requests: Bounded::new(MAX_CHECKED) }
    }
}

/// Of how many connections, and of how many requests, something is remembered.
const MAX_CHECKED: usize = 16 * 1024;

#[derive(Debug, Default)]
struct Connection {
    /// Whether FCGI_KEEP_CONN was set in all requests; `None` before the first.
    is_kept: Option<bool>,
    /// Something is missing: what came later can't be held against anyone.
    is_uncertain: bool,
    web_server_has_closed: bool,
    application_has_closed: bool,
}

#[derive(Debug)]
struct Request {
    /// `None` where its beginning was not seen.
    role: Option<Role>,
    params: PairStream,
    params_ended: bool,
    /// Bytes of them are not known.
    params_lost: bool,
    stdin_ended: bool,
    data_ended: bool,
    stdout: Stream,
    stderr: Stream,
    is_aborted: bool,
    has_ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Unused,
    Open,
    Ended,
}

impl Request {
    fn new(role: Option<Role>) -> Self {
        Self {
            role,
            params: PairStream::default(),
            params_ended: role.is_none(),
            params_lost: false,
            stdin_ended: false,
            data_ended: false,
            stdout: Stream::Unused,
            stderr: Stream::Unused,
            is_aborted: false,
            has_ended: false,
        }
    }
}

impl Checker {
    /// What is wrong about the entry.
    pub fn check(&mut self, entry: &Entry) -> Vec<Finding> {
        let mut findings = Vec::new();
        let connection = entry.connection;
        match &entry.passed {
            Passed::Record { direction, record } => self.record(connection, *direction, record, &mut findings),
            Passed::Garbage { piece, .. } => {
                self.connection(connection).is_uncertain = true;
                findings.push(Finding::NotARecord { version: piece.bytes[0] });
            }
            Passed::Cut { piece, .. } => {
                self.connection(connection).is_uncertain = true;
                let needed = match piece.bytes.get(..8) {
                    Some(header) => {
                        8 + usize::from(u16::from_be_bytes([header[4], header[5]])) + usize::from(header[6])
                    }
                    None => 8,
                };
                findings.push(Finding::Cut { needed, len: piece.bytes.len() });
            }
            Passed::Gap { .. } => self.connection(connection).is_uncertain = true,
            Passed::Ended { direction: Direction::ToApplication } => {
                let state = self.connection(connection);
                state.web_server_has_closed = true;
                if state.application_has_closed {
                    self.connections.remove(&connection);
                }
            }
            Passed::Ended { direction: Direction::ToWebServer } => self.closed(connection, &mut findings),
            Passed::Broken { .. } => {
                self.connections.remove(&connection);
                self.requests.take(of_connection(connection));
            }
            Passed::Opened { .. } => {}
        }
        findings
    }

    fn connection(&mut self, connection: ConnectionId) -> &mut Connection {
        if self.connections.touch(&connection).is_none() {
            self.connections.insert(connection, Connection::default());
        }
        self.connections.touch(&connection).expect("it was just inserted where it was missing")
    }

    /// The application closes the connection.
    fn closed(&mut self, connection: ConnectionId, findings: &mut Vec<Finding>) {
        let requests = self.requests.take(of_connection(connection));
        let Some(state) = self.connections.remove(&connection) else { return };
        // Once the web server has closed, there is nothing to keep, and what was running is given up.
        if state.web_server_has_closed {
            return;
        }
        // It may have gone on with a request before it saw that.
        let after = Connection { is_uncertain: true, application_has_closed: true, ..Connection::default() };
        self.connections.insert(connection, after);
        if state.is_uncertain {
            return;
        }
        for ((_, id), request) in requests {
            if !request.has_ended && request.role.is_some() {
                findings.push(Finding::NoEnd(id));
            }
        }
        if state.is_kept == Some(true) {
            findings.push(Finding::NotKept);
        }
    }

    fn record(&mut self, connection: ConnectionId, to: Direction, record: &Record, findings: &mut Vec<Finding>) {
        let (header, content) = (record.header(), record.content());
        let (record_type, id) = (header.record_type, header.request_id);
        if record.reserved() != 0 {
            findings.push(Finding::Reserved(record.reserved()));
        }
        if let Some(direction) = direction_of(record_type)
            && direction != to
        {
            findings.push(Finding::WrongWay { record_type, from: direction.opposite() });
            return;
        }
        let is_management =
            matches!(record_type, RecordType::GetValues | RecordType::GetValuesResult | RecordType::UnknownType);
        match (is_management, record_type) {
            (true, _) if id != RequestId::NULL => findings.push(Finding::ManagementId { record_type, id }),
            // FastCGI 4.2: later versions may have other management records.
            (false, RecordType::Unknown(_)) if id == RequestId::NULL => return,
            (false, RecordType::Unknown(number)) => return findings.push(Finding::UnknownRecordType(number)),
            (false, _) if id == RequestId::NULL => return findings.push(Finding::NullRequestId(record_type)),
            _ => {}
        }
        match record_type {
            RecordType::GetValues | RecordType::GetValuesResult => values(record_type, content, findings),
            RecordType::UnknownType => {
                fixed(record_type, content, UnknownType::decode(content).map(UnknownType::encode).ok(), findings);
            }
            RecordType::BeginRequest => self.begin(connection, id, content, findings),
            _ => self.of_request(connection, record_type, id, record, findings),
        }
    }

    fn begin(&mut self, connection: ConnectionId, id: RequestId, content: &[u8], findings: &mut Vec<Finding>) {
        if self.requests.touch(&(connection, id)).is_some_and(|request| !request.has_ended && request.role.is_some()) {
            findings.push(Finding::ActiveRequestId(id));
        }
        let body = BeginRequest::decode(content).ok();
        // Unknown flags have a finding of their own.
        let mut encoded = body.map(BeginRequest::encode);
        if let (Some(encoded), Some(flags)) = (&mut encoded, content.get(2)) {
            encoded[2] = *flags;
        }
        if !fixed(RecordType::BeginRequest, content, encoded, findings) {
            return;
        }
        let role = body.map(|body| body.role);
        if let Some(Role::Unknown(number)) = role {
            findings.push(Finding::UnknownRole(number));
        }
        if content[2] & !BeginRequest::KEEP_CONN != 0 {
            findings.push(Finding::UnknownFlags(content[2]));
        }
        let state = self.connection(connection);
        if state.is_kept == Some(false) {
            findings.push(Finding::AfterLast);
        }
        state.is_kept = Some(state.is_kept.unwrap_or(true) && body.is_some_and(|body| body.keep_connection));
        self.requests.insert((connection, id), Request::new(role));
    }

    fn of_request(
        &mut self,
        connection: ConnectionId,
        record_type: RecordType,
        id: RequestId,
        record: &Record,
        findings: &mut Vec<Finding>,
    ) {
        let key = (connection, id);
        if self.requests.touch(&key).is_none() {
            if !self.connection(connection).is_uncertain {
                findings.push(Finding::NotBegun(record_type));
            }
            // Once is enough.
            self.requests.insert(key, Request::new(None));
        }
        let Some(request) = self.requests.touch(&key) else { return };
        let content = record.content();
        match record_type {
            RecordType::AbortRequest => {
                request.is_aborted = true;
                if !content.is_empty() {
                    findings.push(Finding::ContentLen { record_type, expected: 0, len: content.len() });
                }
            }
            RecordType::Params => {
                if !went_on(request.params_ended, request.role, record_type, content, findings) {
                    return;
                }
                request.params_lost |= record.has_lost_bytes();
                request.params.feed(content, |_, _| {});
                if content.is_empty() {
                    request.params_ended = true;
                    if request.params.begun() > 0 && !request.params_lost {
                        findings.push(Finding::ParamsCut { begun: request.params.begun() });
                    }
                }
            }
            RecordType::Stdin => {
                let is_authorizer = request.role == Some(Role::Authorizer);
                if let Some(role) = request.role.filter(|_| is_authorizer && !content.is_empty()) {
                    findings.push(Finding::NotOfRole { record_type, role });
                }
                if !request.params_ended {
                    findings.push(Finding::OutOfOrder { record_type, expected: RecordType::Params });
                }
                if went_on(request.stdin_ended, request.role, record_type, content, findings) {
                    request.stdin_ended = content.is_empty();
                }
            }
            RecordType::Data => {
                if let Some(role) = request.role.filter(|role| matches!(role, Role::Responder | Role::Authorizer)) {
                    findings.push(Finding::NotOfRole { record_type, role });
                } else if request.role.is_some() && !request.stdin_ended {
                    findings.push(Finding::OutOfOrder { record_type, expected: RecordType::Stdin });
                }
                if went_on(request.data_ended, request.role, record_type, content, findings) {
                    request.data_ended = content.is_empty();
                }
            }
            RecordType::Stdout | RecordType::Stderr => {
                if request.has_ended {
                    return findings.push(Finding::AfterEnd(record_type));
                }
                let stream = if record_type == RecordType::Stdout { &mut request.stdout } else { &mut request.stderr };
                if *stream == Stream::Ended {
                    findings.push(Finding::StreamEnded { record_type, len: content.len() });
                }
                *stream = if content.is_empty() { Stream::Ended } else { Stream::Open };
            }
            RecordType::EndRequest => end(request, content, findings),
            RecordType::BeginRequest
            | RecordType::GetValues
            | RecordType::GetValuesResult
            | RecordType::UnknownType
            | RecordType::Unknown(_) => {}
        }
    }
}

/// FastCGI 5.5.
fn end(request: &mut Request, content: &[u8], findings: &mut Vec<Finding>) {
    if request.has_ended {
        return findings.push(Finding::AfterEnd(RecordType::EndRequest));
    }
    request.has_ended = true;
    let body = EndRequest::decode(content).ok();
    fixed(RecordType::EndRequest, content, body.map(EndRequest::encode), findings);
    let status = body.map(|body| body.protocol_status);
    if let Some(ProtocolStatus::Unknown(number)) = status {
        findings.push(Finding::UnknownProtocolStatus(number));
    }
    // A request that was refused or given up needs no answer.
    let is_answered = status == Some(ProtocolStatus::RequestComplete) && request.role.is_some() && !request.is_aborted;
    if is_answered && request.stdout == Stream::Unused {
        findings.push(Finding::NoStdout);
    }
    for (record_type, stream) in [(RecordType::Stdout, request.stdout), (RecordType::Stderr, request.stderr)] {
        if stream == Stream::Open {
            findings.push(Finding::NotEnded(record_type));
        }
    }
}

/// Whether a stream may go on. Of one whose beginning was not seen that is not known.
fn went_on(
    has_ended: bool,
    role: Option<Role>,
    record_type: RecordType,
    content: &[u8],
    findings: &mut Vec<Finding>,
) -> bool {
    if has_ended && role.is_some() {
        findings.push(Finding::StreamEnded { record_type, len: content.len() });
    }
    !has_ended
}

/// Checks a body of eight bytes against what it would be if it were written here.
fn fixed(record_type: RecordType, content: &[u8], encoded: Option<[u8; 8]>, findings: &mut Vec<Finding>) -> bool {
    match encoded {
        None => findings.push(Finding::ContentLen { record_type, expected: 8, len: content.len() }),
        Some(encoded) if encoded[..] != *content => findings.push(Finding::ReservedBytes(record_type)),
        Some(_) => {}
    }
    encoded.is_some()
}

/// FastCGI 4.1.
fn values(record_type: RecordType, content: &[u8], findings: &mut Vec<Finding>) {
    for pair in NameValues::new(content) {
        match pair {
            Ok((_, value)) if record_type == RecordType::GetValues && !value.is_empty() => {
                return findings.push(Finding::ValueAsked { len: value.len() });
            }
            Ok(_) => {}
            Err(error) => findings.push(Finding::Pairs { record_type, error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fastcgi::put_record;
    use crate::recording::{EntryReader, form};

    const BEGIN: &[u8] = &[0, 1, 1, 0, 0, 0, 0, 0];
    const FILTER: &[u8] = &[0, 3, 1, 0, 0, 0, 0, 0];
    const END: &[u8] = &[0; 8];

    fn bytes(records: &[(u8, u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (record_type, id, content) in records {
            put_record((*record_type).into(), RequestId(*id), content, 1, &mut bytes);
        }
        bytes
    }

    /// All that is found in these bytes, and at the application's close if `closes`.
    fn found(bytes: &[u8], closes: bool) -> Vec<(&'static str, String)> {
        let mut reader = form::fastcgi::Reader::default();
        reader.receive(bytes);
        reader.end();
        let mut entries: Vec<Entry> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        if closes {
            let passed = Passed::Ended { direction: Direction::ToWebServer };
            entries.push(Entry { offset: 0, time: None, connection: ConnectionId(1), passed });
        }
        let mut checker = Checker::default();
        let findings = entries.iter().flat_map(|entry| checker.check(entry));
        findings.map(|finding| (finding.clause(), finding.to_string())).collect()
    }

    #[test]
    fn a_good_exchange_has_no_findings() {
        let one = [
            (1, 1, BEGIN),
            (4, 1, b"\x01\x05Av"),
            (4, 1, b"alue"),
            (4, 1, b""),
            (5, 1, b"body"),
            (5, 1, b""),
            (7, 1, b"oh"),
            (6, 1, b"Status: 200\r\n\r\n"),
            (6, 1, b""),
            (7, 1, b""),
            (3, 1, END),
        ];
        let two = [
            (9, 0, &b"\x01\0A"[..]),
            (10, 0, b""),
            (77, 0, b""),
            (11, 0, &[77, 0, 0, 0, 0, 0, 0, 0]),
            (1, 2, FILTER),
            (4, 2, b""),
            (5, 2, b""),
            (8, 2, b"file"),
            (8, 2, b""),
            (2, 2, b""),
            (3, 2, END),
        ];
        assert_eq!(found(&bytes(&one), false), []);
        assert_eq!(found(&bytes(&[&one[..], &two, &one].concat()), false), []);
    }

    #[test]
    fn each_breach_is_found_with_its_clause() {
        let begun = |rest: &[(u8, u16, &'static [u8])]| [&[(1, 1, BEGIN), (4, 1, &b""[..])], rest].concat();
        let table: &[(Vec<(u8, u16, &[u8])>, &[(&str, &str)])] = &[
            (vec![(1, 0, BEGIN)], &[("3.3", "expected a request id in BEGIN_REQUEST, got 0")]),
            (vec![(9, 3, b"")], &[("3.3", "expected id 0 in GET_VALUES, got 3")]),
            (vec![(1, 1, b"short")], &[("5.1", "expected 8 bytes of content in BEGIN_REQUEST, got 5")]),
            (
                vec![(1, 1, &[0, 1, 1, 0, 0, 0, 0, 9])],
                &[("5.1", "expected zeros in the reserved bytes of BEGIN_REQUEST")],
            ),
            (vec![(1, 1, &[0, 9, 0, 0, 0, 0, 0, 0])], &[("5.1", "expected a role of FastCGI 1.0, got 9")]),
            (vec![(1, 1, &[0, 1, 3, 0, 0, 0, 0, 0])], &[("5.1", "expected no flag but 1, got 3")]),
            (
                vec![(1, 1, BEGIN), (1, 1, BEGIN)],
                &[("3.3", "expected an id that is free in BEGIN_REQUEST, got 1, whose request has not ended")],
            ),
            (vec![(5, 1, b"x"), (5, 1, b"y")], &[("3.3", "expected BEGIN_REQUEST before STDIN")]),
            (vec![(1, 1, BEGIN), (5, 1, b"x")], &[("6.1", "expected the end of PARAMS before STDIN")]),
            (vec![(1, 1, FILTER), (4, 1, b""), (8, 1, b"x")], &[("6.1", "expected the end of STDIN before DATA")]),
            (begun(&[(8, 1, b"x")]), &[("6.4", "expected no DATA for the role Responder")]),
            (
                vec![(1, 1, &[0, 2, 1, 0, 0, 0, 0, 0]), (4, 1, b""), (5, 1, b"x")],
                &[("6.3", "expected no STDIN for the role Authorizer")],
            ),
            (begun(&[(4, 1, b"")]), &[("3.3", "expected nothing more in PARAMS after its end, got 0 bytes")]),
            (
                begun(&[(5, 1, b""), (5, 1, b"x")]),
                &[("3.3", "expected nothing more in STDIN after its end, got 1 bytes")],
            ),
            (
                vec![(1, 1, BEGIN), (4, 1, b"\x04\x04n"), (4, 1, b"")],
                &[("3.4", "expected the rest of a pair before the end of PARAMS, of which 3 bytes have come")],
            ),
            (
                vec![(10, 0, b"\x04\x04n")],
                &[("3.4", "GET_VALUES_RESULT: expected 8 bytes of name and value in the pair at byte 0, got 1")],
            ),
            (
                vec![(9, 0, b"\x01\x01nv")],
                &[("4.1", "expected names without values in GET_VALUES, got a value of 1 bytes")],
            ),
            (begun(&[(2, 1, b"x")]), &[("5.4", "expected 0 bytes of content in ABORT_REQUEST, got 1")]),
            (begun(&[(3, 1, END)]), &[("6.1", "expected STDOUT before END_REQUEST, even if it is empty")]),
            (
                begun(&[(6, 1, b"x"), (7, 1, b"y"), (3, 1, END)]),
                &[
                    ("3.3", "expected the end of STDOUT before END_REQUEST"),
                    ("3.3", "expected the end of STDERR before END_REQUEST"),
                ],
            ),
            (
                begun(&[(6, 1, b""), (3, 1, END), (3, 1, END), (6, 1, b"")]),
                &[
                    ("5.5", "expected nothing more after END_REQUEST, got END_REQUEST"),
                    ("5.5", "expected nothing more after END_REQUEST, got STDOUT"),
                ],
            ),
            (
                begun(&[(6, 1, b""), (3, 1, &[0, 0, 0, 0, 9, 0, 0, 0])]),
                &[("5.5", "expected a protocol status of FastCGI 1.0, got 9")],
            ),
            (
                begun(&[(6, 1, b""), (6, 1, b"x")]),
                &[("3.3", "expected nothing more in STDOUT after its end, got 1 bytes")],
            ),
            (
                vec![(1, 1, &[0, 1, 0, 0, 0, 0, 0, 0]), (1, 2, BEGIN)],
                &[("5.1", "expected no request after one without FCGI_KEEP_CONN, got BEGIN_REQUEST")],
            ),
            (begun(&[(88, 1, b"")]), &[("8", "expected a record type of FastCGI 1.0 for a request, got 88")]),
        ];
        for (records, expected) in table {
            let expected: Vec<_> = expected.iter().map(|(clause, text)| (*clause, (*text).to_owned())).collect();
            assert_eq!(found(&bytes(records), false), expected);
        }
    }

    #[test]
    fn a_connection_that_has_ended_in_both_directions_is_forgotten() {
        let ended = |direction| Entry {
            offset: 0,
            time: None,
            connection: ConnectionId(1),
            passed: Passed::Ended { direction },
        };
        for first in [Direction::ToApplication, Direction::ToWebServer] {
            let mut checker = Checker::default();
            checker.connection(ConnectionId(1)).is_kept = Some(false);
            assert_eq!(checker.check(&ended(first)), []);
            assert_eq!(checker.check(&ended(first.opposite())), []);
            assert_eq!((checker.connections.len(), checker.requests.len()), (0, 0));
        }
    }

    #[test]
    fn what_the_header_and_the_connection_break_is_found() {
        assert_eq!(
            found(b"HTTP", false),
            [("3.3", "expected a record of FastCGI version 1, got one of version 72".into())]
        );
        assert_eq!(
            found(&bytes(&[(1, 1, BEGIN)])[..12], false),
            [("3.3", "expected 17 bytes of a record, got 12".into())]
        );
        let mut reserved = bytes(&[(1, 1, BEGIN)]);
        reserved[7] = 7;
        assert_eq!(found(&reserved, false), [("3.3", "expected 0 in the reserved byte, got 7".into())]);
        let open = bytes(&[(1, 1, BEGIN)]);
        let expected = [("5.5", "expected END_REQUEST of request 1"), ("5.1", "expected the connection to stay open")];
        for ((clause, text), (expected_clause, expected)) in found(&open, true).iter().zip(expected) {
            assert!(*clause == expected_clause && text.starts_with(expected), "{clause} {text}");
        }
        // What the web server has sent meanwhile can't be held against it.
        let mut checker = Checker::default();
        let mut reader = form::fastcgi::Reader::default();
        reader.receive(&bytes(&[
            (1, 1, &[0, 1, 0, 0, 0, 0, 0, 0]),
            (4, 1, b""),
            (6, 1, b""),
            (3, 1, END),
            (5, 1, b"x"),
        ]));
        let mut entries: Vec<Entry> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        let closed = Passed::Ended { direction: Direction::ToWebServer };
        entries.insert(4, Entry { passed: closed, ..entries[0].clone() });
        assert_eq!(entries.iter().flat_map(|entry| checker.check(entry)).collect::<Vec<_>>(), []);

        let mut reader = form::fastcgi::Reader::one_way(Direction::ToWebServer);
        reader.receive(&open);
        let wrong_way = Checker::default().check(&reader.next().unwrap().unwrap());
        assert_eq!(wrong_way[0].to_string(), "expected BEGIN_REQUEST to come from the web server only");
        assert_eq!(wrong_way[0].clause(), "5.1");
    }
}
