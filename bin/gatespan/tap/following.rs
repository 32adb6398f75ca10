//! Requests, followed as they pass: the recording in, what is known of each request out, whether it is over or not.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gatespan::protocol::cgi::{Limits, ResponseHead};
use gatespan::protocol::fastcgi::name_value::NameValues;
use gatespan::protocol::fastcgi::{BeginRequest, EndRequest, ProtocolStatus, RecordType, RequestId, Role};
use gatespan::recording::log::HEADER;
use gatespan::recording::{
    Checker, ConnectionId, Direction, Entry, Finding, LogReader, Passed, Reader, Record, Records, Seen, Timestamp, What,
};

use super::recorder::{DIRECTIONS, Watched};

/// What is known of one request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Counted from 1, in the order in which they began.
    pub(super) number: u64,
    pub(super) connection: ConnectionId,
    pub(super) id: RequestId,
    pub(super) from: Arc<str>,
    pub(super) to: Arc<str>,
    pub(super) role: Option<Role>,
    pub(super) times: Times,
    /// The variables as they stand on the wire.
    pub(super) params: Kept,
    pub(super) stdin: Kept,
    /// The head of the response, and what follows it.
    pub(super) head: Kept,
    pub(super) body: Kept,
    pub(super) stderr: Kept,
    has_head: bool,
    /// Once the head is there, or was refused.
    pub(super) status: Option<u16>,
    pub(super) end: Option<EndRequest>,
    pub(super) is_aborted: bool,
    /// Why it is over without an end, where it is.
    pub(super) why: Option<String>,
    pub(super) findings: Vec<Found>,
}

/// When what happened.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    /// The connection was made for this request.
    pub(super) opened: Option<Timestamp>,
    pub(super) begun: Timestamp0,
    pub(super) params: Option<Timestamp>,
    pub(super) answered: Option<Timestamp>,
    pub(super) ended: Option<Timestamp>,
}

/// Nanoseconds since 1970. The recorder always knows the time.
pub(super) type Timestamp0 = u64;

/// The first bytes of something, and how many there were.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    pub(super) len: u64,
    /// Whether some of them stand for others that were not shown.
    pub(super) is_masked: bool,
}

/// How much is kept of each part of a request.
const MAX_KEPT: usize = 16 * 1024;

/// The most of a request's variables and of a response's head that is kept.
const MAX_KEPT_HEAD: usize = 64 * 1024;

/// How many requests are followed at once.
const MAX_FOLLOWED: usize = 16 * 1024;

impl Kept {
    fn add(&mut self, bytes: &[u8], limit: usize, is_masked: bool) {
        let room = limit.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.len += bytes.len() as u64;
        self.is_masked |= is_masked;
    }

    /// Whether there was more.
    pub(super) fn is_cut(&self) -> bool {
        self.len > self.bytes.len() as u64
    }
}

/// Something that the specification does not allow, and its clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) clause: &'static str,
    pub(super) text: String,
}

impl From<Finding> for Found {
    fn from(finding: Finding) -> Self {
        Self { clause: finding.clause(), text: finding.to_string() }
    }
}

/// What there is to say.
#[derive(Debug)]
pub(super) enum News {
    /// A request is over.
    Over(Box<Request>),
    /// Something was found that belongs to no request.
    Found { connection: ConnectionId, time: u64, found: Found },
    /// So much passed that it could not be followed.
    Missed,
}

/// Follows a recording while it is made.
#[derive(Debug)]
pub(super) struct Following {
    reader: LogReader,
    records: Records,
    checker: Checker,
    connections: HashMap<ConnectionId, Connection>,
    requests: BTreeMap<(ConnectionId, RequestId), Box<Request>>,
    limits: Limits,
    count: u64,
}

#[derive(Debug, Default)]
struct Connection {
    from: Arc<str>,
    to: Arc<str>,
    /// When it was made, for its first request.
    opened: Option<Timestamp>,
    has_ended: [bool; 2],
}

impl Following {
    pub(super) fn new() -> Self {
        let mut reader = LogReader::new();
        reader.receive(HEADER);
        Self {
            reader,
            records: Records::default(),
            checker: Checker::default(),
            connections: HashMap::new(),
            requests: BTreeMap::new(),
            limits: Limits::default(),
            count: 0,
        }
    }

    /// The requests that are under way.
    pub(super) fn running(&self) -> impl Iterator<Item = &Request> {
        self.requests.values().map(Box::as_ref)
    }

    /// How many requests have begun.
    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn receive(&mut self, watched: &Watched, news: &mut Vec<News>) {
        if watched.is_after_gap {
            self.lose_sight(news);
        }
        self.reader.receive(&watched.frames);
        // What the recorder writes can be read; and where it could not, there would be nothing more to say.
        while let Ok(Some(seen)) = self.reader.next() {
            self.take(seen, news);
        }
    }

    /// Something was missed: nothing is known of any request, and of each connection not where it is.
    fn lose_sight(&mut self, news: &mut Vec<News>) {
        news.push(News::Missed);
        for (_, mut request) in std::mem::take(&mut self.requests) {
            request.why = Some("more passed than could be followed".into());
            news.push(News::Over(request));
        }
        (self.records, self.checker) = (Records::default(), Checker::default());
        // Which of them are still there is not known either. One that is will be met again.
        self.connections.clear();
    }

    fn take(&mut self, seen: Seen, news: &mut Vec<News>) {
        let connection = seen.connection;
        if !matches!(seen.what, What::Opened { .. }) && !self.connections.contains_key(&connection) {
            // It was made where something was missed: where a record begins has to be looked for.
            self.connections.insert(connection, Connection::default());
            for direction in DIRECTIONS {
                self.pass(Seen { what: What::Gap { direction, len: None }, ..seen.clone() }, news);
            }
        }
        self.pass(seen, news);
    }

    fn pass(&mut self, seen: Seen, news: &mut Vec<News>) {
        self.records.receive(seen);
        while let Some(entry) = self.records.next() {
            self.entry(&entry, news);
        }
    }

    fn entry(&mut self, entry: &Entry, news: &mut Vec<News>) {
        let connection = entry.connection;
        let time = entry.time.map_or(0, |time| time.0);
        let findings = self.checker.check(entry);
        let mut key = None;
        match &entry.passed {
            Passed::Opened { from, to } => {
                let opened = Connection {
                    from: (&**from).into(),
                    to: (&**to).into(),
                    opened: entry.time,
                    has_ended: [false; 2],
                };
                self.connections.insert(connection, opened);
            }
            Passed::Record { direction, record } => {
                key = Some((connection, record.header().request_id));
                self.record(connection, *direction, record, time, news);
            }
            _ => {}
        }
        for finding in findings {
            match key.and_then(|key| self.requests.get_mut(&key)) {
                Some(request) => request.findings.push(finding.into()),
                None => news.push(News::Found { connection, time, found: finding.into() }),
            }
        }
        match &entry.passed {
            Passed::Record { record, .. } if record.header().record_type == RecordType::EndRequest => {
                if let Some(key) = key {
                    self.over(key, None, time, news);
                }
            }
            Passed::Ended { direction } => {
                if *direction == Direction::ToWebServer {
                    self.all_over(connection, "the application closed the connection", time, news);
                }
                let ended = self.connections.get_mut(&connection).map(|connection| {
                    connection.has_ended[super::recorder::index(*direction)] = true;
                    connection.has_ended == [true; 2]
                });
                if ended == Some(true) {
                    self.all_over(connection, "the connection ended", time, news);
                    self.connections.remove(&connection);
                }
            }
            Passed::Broken { reason } => {
                self.all_over(connection, reason, time, news);
                self.connections.remove(&connection);
            }
            _ => {}
        }
    }

    fn record(
        &mut self,
        connection: ConnectionId,
        direction: Direction,
        record: &Record,
        time: u64,
        news: &mut Vec<News>,
    ) {
        let (header, content) = (record.header(), record.content());
        let key = (connection, header.request_id);
        if header.record_type == RecordType::BeginRequest && direction == Direction::ToApplication {
            self.over(key, Some("another request began under its id"), time, news);
            let role = BeginRequest::decode(content).ok().map(|begin| begin.role);
            self.begin(key, role, time);
            return;
        }
        let Some(request) = self.requests.get_mut(&key) else { return };
        let (is_masked, moment) = (record.has_holes(), Some(Timestamp(time)));
        match header.record_type {
            RecordType::Params if content.is_empty() => request.times.params = request.times.params.or(moment),
            RecordType::Params => request.params.add(content, MAX_KEPT_HEAD, is_masked),
            RecordType::Stdin => request.stdin.add(content, MAX_KEPT, is_masked),
            RecordType::AbortRequest => request.is_aborted = true,
            RecordType::Stderr => request.stderr.add(content, MAX_KEPT, is_masked),
            RecordType::Stdout => {
                request.times.answered = request.times.answered.or(moment);
                request.stdout(content, is_masked, &self.limits);
            }
            RecordType::EndRequest => {
                request.end = EndRequest::decode(content).ok();
                if !request.has_head && request.head.len > 0 {
                    request.refuse_head(&format!(
                        "expected a response head before END_REQUEST, got {} bytes",
                        request.head.len
                    ));
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, key: (ConnectionId, RequestId), role: Option<Role>, time: u64) {
        if self.requests.len() >= MAX_FOLLOWED {
            return;
        }
        self.count += 1;
        let connection = self.connections.entry(key.0).or_default();
        let request = Request {
            number: self.count,
            connection: key.0,
            id: key.1,
            from: connection.from.clone(),
            to: connection.to.clone(),
            role,
            times: Times { opened: connection.opened.take(), begun: time, ..Times::default() },
            params: Kept::default(),
            stdin: Kept::default(),
            head: Kept::default(),
            body: Kept::default(),
            stderr: Kept::default(),
            has_head: false,
            status: None,
            end: None,
            is_aborted: false,
            why: None,
            findings: Vec::new(),
        };
        self.requests.insert(key, Box::new(request));
    }

    fn all_over(&mut self, connection: ConnectionId, why: &str, time: u64, news: &mut Vec<News>) {
        let all = (connection, RequestId(0))..=(connection, RequestId(u16::MAX));
        while let Some(key) = self.requests.range(all.clone()).next().map(|(key, _)| *key) {
            self.over(key, Some(why), time, news);
        }
    }

    fn over(&mut self, key: (ConnectionId, RequestId), why: Option<&str>, time: u64, news: &mut Vec<News>) {
        if let Some(mut request) = self.requests.remove(&key) {
            request.times.ended = Some(Timestamp(time));
            request.why = why.map(Into::into);
            news.push(News::Over(request));
        }
    }
}

impl Request {
    fn stdout(&mut self, content: &[u8], is_masked: bool, limits: &Limits) {
        if self.has_head {
            return self.body.add(content, MAX_KEPT, is_masked);
        }
        self.head.add(content, MAX_KEPT_HEAD, is_masked);
        match ResponseHead::decode(&self.head.bytes, limits) {
            Ok(Some((head, len))) => {
                self.has_head = true;
                self.status = Some(head.status_or_default().0);
                let body = self.head.bytes.split_off(len);
                self.body.add(&body, MAX_KEPT, self.head.is_masked);
                self.body.len += self.head.len - (len + body.len()) as u64;
                self.head.len = len as u64;
            }
            Ok(None) => {}
            Err(error) => self.refuse_head(&error.to_string()),
        }
    }

    /// What was to be a head is none: all of it is a body then.
    fn refuse_head(&mut self, why: &str) {
        self.has_head = true;
        self.body = std::mem::take(&mut self.head);
        // RFC 3875 6: this is CGI's business, and every web server makes a 502 of it.
        self.findings.push(Found { clause: "RFC 3875 6.2", text: format!("no response head: {why}") });
    }

    /// A variable as text that is fit for a terminal.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let found = self.variables().find(|(other, _)| *other == name.as_bytes());
        found.map(|(_, value)| text(value))
    }

    pub(super) fn variables(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        NameValues::new(&self.params.bytes).map_while(Result::ok)
    }

    /// The method and what was asked for.
    pub(super) fn target(&self) -> (String, String) {
        let method = self.variable("REQUEST_METHOD").unwrap_or_default();
        let uri = self.variable("REQUEST_URI").or_else(|| {
            let path = self.variable("SCRIPT_NAME")? + &self.variable("PATH_INFO").unwrap_or_default();
            Some(match self.variable("QUERY_STRING") {
                Some(query) if !query.is_empty() => format!("{path}?{query}"),
                _ => path,
            })
        });
        (method, uri.or_else(|| self.variable("SCRIPT_FILENAME")).unwrap_or_default())
    }

    /// Whether it went through, as far as FastCGI is concerned.
    pub(super) fn is_complete(&self) -> bool {
        self.end.is_some_and(|end| end.protocol_status == ProtocolStatus::RequestComplete)
    }

    /// The status as people read it: what there is instead, where there is none.
    pub(super) fn outcome(&self) -> String {
        match (self.status, &self.end, &self.why) {
            (_, Some(end), _) if end.protocol_status != ProtocolStatus::RequestComplete => {
                gatespan::recording::status_name(end.protocol_status)
            }
            (Some(status), ..) => status.to_string(),
            (None, Some(_), _) => "none".into(),
            (None, None, Some(_)) => "cut".into(),
            (None, None, None) => "…".into(),
        }
    }

    /// How long each part took, in nanoseconds, from the connection's making on; up to now where it is not over.
    pub(super) fn parts(&self, now: u64) -> Parts {
        let Times { opened, begun, params, answered, ended } = self.times;
        let end = ended.map_or(now, |ended| ended.0).max(begun);
        let at = |time: Option<Timestamp>| time.map(|time| time.0.clamp(begun, end));
        let params_at = at(params).unwrap_or_else(|| at(answered).unwrap_or(end));
        let answered_at = at(answered).unwrap_or(end).max(params_at);
        Parts {
            connect: opened.map_or(0, |opened| begun.saturating_sub(opened.0)),
            params: params_at - begun,
            wait: answered_at - params_at,
            answer: end - answered_at,
        }
    }
}

/// How long each part of a request took, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// From the connection's making to the request's first record.
    pub(super) connect: u64,
    /// To its last variable.
    pub(super) params: u64,
    /// To the first byte of the answer.
    pub(super) wait: u64,
    /// To its end.
    pub(super) answer: u64,
}

impl Parts {
    pub(super) fn total(self) -> u64 {
        self.connect + self.params + self.wait + self.answer
    }
}

/// Bytes as text on one line, with nothing in it that a terminal would obey.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                character if character.is_control() || is_invisible(character) => {
                    text.extend(character.escape_default())
                }
                character => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// What changes the order or the lines of other text.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A length of time for people, in four places: `0.1 ms`, `12 ms`, `1.2 s`.
pub(super) fn duration(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds as f64 / 1e6;
    match milliseconds {
        ..9.95 => format!("{milliseconds:.1} ms"),
        ..999.5 => format!("{milliseconds:.0} ms"),
        ..99_950.0 => format!("{:.1} s", milliseconds / 1e3),
        _ => format!("{:.0} s", milliseconds / 1e3),
    }
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    match kib {
        ..1.0 => format!("{bytes} B"),
        ..9.95 => format!("{kib:.1} K"),
        ..999.5 => format!("{kib:.0} K"),
        ..10_188.0 => format!("{:.1} M", kib / 1024.0),
        ..1_023_488.0 => format!("{:.0} M", kib / 1024.0),
        _ => format!("{:.1} G", kib / 1024.0 / 1024.0),
    }
}

/// What a clause belongs to and its number.
pub(super) fn clause(found: &Found) -> String {
    match found.clause.starts_with("RFC") {
        true => found.clause.into(),
        false => format!("FastCGI {}", found.clause),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use gatespan::protocol::fastcgi::{name_value, put_record};
    use gatespan::recording::log::put;

    use super::*;

    const ONE: RequestId = RequestId(1);
    const MS: u64 = 1_000_000;

    fn watched(whats: &[(u64, What)]) -> Watched {
        let mut frames = Vec::new();
        for (time, what) in whats {
            put(what, Some(Timestamp(*time * MS)), ConnectionId(1), &mut frames).unwrap();
        }
        Watched { frames, is_after_gap: false }
    }

    fn bytes(direction: Direction, records: &[(RecordType, &[u8])]) -> What {
        let mut bytes = Vec::new();
        records.iter().for_each(|(record_type, content)| put_record(*record_type, ONE, content, 0, &mut bytes));
        What::Bytes { direction, bytes: bytes.into() }
    }

    fn request() -> What {
        let mut params = Vec::new();
        for (name, value) in [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a\x1b[2J?b")] {
            name_value::encode(name.as_bytes(), value.as_bytes(), &mut params).unwrap();
        }
        let begin = BeginRequest { role: Role::Responder, keep_connection: true }.encode();
        let to_application = [
            (RecordType::BeginRequest, &begin[..]),
            (RecordType::Params, &params),
            (RecordType::Params, b""),
            (RecordType::Stdin, b""),
        ];
        bytes(Direction::ToApplication, &to_application)
    }

    /// A whole request on a connection of its own, by its number.
    pub(in crate::tap) fn example(number: u64) -> Watched {
        let mut params = Vec::new();
        let uri = format!("/path?number={number}");
        for (name, value) in [("REQUEST_METHOD", "GET"), ("REQUEST_URI", &uri), ("HTTP_HOST", "example.org")] {
            name_value::encode(name.as_bytes(), value.as_bytes(), &mut params).unwrap();
        }
        let begin = BeginRequest { role: Role::Responder, keep_connection: false }.encode();
        let request = [
            (RecordType::BeginRequest, &begin[..]),
            (RecordType::Params, &params),
            (RecordType::Params, b""),
            (RecordType::Stdin, b""),
        ];
        let answer = [
            (RecordType::Stdout, &b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nHello, world!\n"[..]),
            (RecordType::Stdout, b""),
            (RecordType::EndRequest, &end()),
        ];
        let whats = [
            opened(),
            bytes(Direction::ToApplication, &request),
            bytes(Direction::ToWebServer, &answer),
            What::Ended { direction: Direction::ToWebServer },
            What::Ended { direction: Direction::ToApplication },
        ];
        let mut frames = Vec::new();
        for (at, what) in whats.iter().enumerate() {
            let time = Timestamp((number * 10 + at as u64) * MS);
            put(what, Some(time), ConnectionId(number), &mut frames).unwrap();
        }
        Watched { frames, is_after_gap: false }
    }

    fn opened() -> What {
        What::Opened { from: "a".into(), to: "b".into() }
    }

    fn over(news: Vec<News>) -> Vec<Request> {
        let over =
            news.into_iter().filter_map(|news| if let News::Over(request) = news { Some(*request) } else { None });
        over.collect()
    }

    fn end() -> [u8; 8] {
        EndRequest { application_status: 0, protocol_status: ProtocolStatus::RequestComplete }.encode()
    }

    #[test]
    fn a_request_is_followed_from_its_connection_to_its_end() {
        let mut following = Following::new();
        let mut news = Vec::new();
        following.receive(&watched(&[(1, opened()), (3, request())]), &mut news);
        let running: Vec<_> = following.running().map(|request| (request.target(), request.outcome())).collect();
        assert_eq!(running, [(("GET".into(), "/a\\u{1b}[2J?b".into()), "…".into())]);
        let answer = [
            (RecordType::Stdout, &b"Status: 404 Not Found\r\nX: y\r\n\r\nbody"[..]),
            (RecordType::Stderr, b"oops"),
            (RecordType::Stdout, b""),
            (RecordType::Stderr, b""),
            (RecordType::EndRequest, &end()),
        ];
        following.receive(&watched(&[(10, bytes(Direction::ToWebServer, &answer))]), &mut news);
        let [request] = &over(news)[..] else { panic!("one request") };
        assert_eq!((request.status, request.body.len, request.stderr.len), (Some(404), 4, 4));
        assert!(request.is_complete() && request.findings.is_empty(), "{:?}", request.findings);
        let parts = Parts { connect: 2 * MS, params: 0, wait: 7 * MS, answer: 0 };
        assert_eq!(request.parts(0), parts);
        assert_eq!(following.running().count(), 0);
    }

    #[test]
    fn what_is_wrong_is_found_and_the_request_is_followed_all_the_same() {
        let mut following = Following::new();
        let mut news = Vec::new();
        let answer =
            bytes(Direction::ToWebServer, &[(RecordType::Stdout, b"<html>"), (RecordType::EndRequest, &end())]);
        following.receive(&watched(&[(1, opened()), (2, request()), (3, answer)]), &mut news);
        let [request] = &over(news)[..] else { panic!("one request") };
        let texts: Vec<&str> = request.findings.iter().map(|found| found.text.as_str()).collect();
        assert!(texts.iter().any(|text| text.starts_with("no response head: ")), "{texts:?}");
        assert_eq!((request.status, request.outcome()), (None, "none".into()));
    }

    #[test]
    fn what_ends_with_its_connection_is_cut() {
        let mut following = Following::new();
        let mut news = Vec::new();
        let broken = What::Broken { reason: "the application: reset".into() };
        following.receive(&watched(&[(1, opened()), (2, request()), (3, broken)]), &mut news);
        let [request] = &over(news)[..] else { panic!("one request") };
        assert_eq!((request.outcome(), request.why.as_deref()), ("cut".into(), Some("the application: reset")));
    }

    #[test]
    fn after_something_was_missed_requests_are_met_again() {
        let mut following = Following::new();
        let mut news = Vec::new();
        following.receive(&watched(&[(1, opened()), (2, request())]), &mut news);
        let answer = bytes(Direction::ToWebServer, &[(RecordType::EndRequest, &end())]);
        let mut after = watched(&[(5, answer), (6, request())]);
        after.is_after_gap = true;
        following.receive(&after, &mut news);
        assert!(matches!(news[0], News::Missed));
        assert!(!news.iter().any(|news| matches!(news, News::Found { .. })), "{news:?}");
        assert_eq!(over(news).len(), 1);
        assert_eq!(following.running().count(), 1);
    }

    #[test]
    fn times_and_sizes_are_short() {
        for (nanoseconds, expected) in
            [(0, "0.0 ms"), (1_240_000, "1.2 ms"), (12_400_000, "12 ms"), (1_240_000_000, "1.2 s")]
        {
            assert_eq!(duration(nanoseconds), expected);
        }
        for (bytes, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 K"), (1 << 20, "1.0 M"), (5 << 30, "5.0 G")]
        {
            assert_eq!(size(bytes), expected);
        }
    }
}
