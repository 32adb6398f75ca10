//! Requests with their answers, put together from records, and taken apart into records again.

use std::io;

use bytes::Bytes;

use super::bounded::{Bounded, of_connection};
use super::records::{Entry, Passed, Piece, Record};
use super::spool::{Spool, Spooled};
use super::{ConnectionId, Direction, Timestamp};
use crate::protocol::Pairs;
use crate::protocol::fastcgi::name_value::{Contents, NameValues};
use crate::protocol::fastcgi::{
    BeginRequest, EndRequest, Header, MAX_PADDED_CONTENT_LEN, RecordType, RequestId, Role, put_record,
};

/// One request, and what was answered.
#[derive(Debug)]
pub struct Exchange {
    /// Where its first byte stands in the file that it was read from.
    pub offset: u64,
    /// On which connection it passed, and under which id.
    pub connection: ConnectionId,
    /// See [`Exchange::connection`].
    pub id: RequestId,
    /// What the application was asked to be.
    pub role: Role,
    /// The flags of BEGIN_REQUEST, as they came.
    pub flags: u8,
    /// The variables in the order in which they came, repeated ones each time.
    pub params: Pairs,
    /// The request's body.
    pub stdin: Spooled,
    /// A Filter's file.
    pub data: Spooled,
    /// The answer, head and body.
    pub stdout: Spooled,
    /// Error messages.
    pub stderr: Spooled,
    /// How it ended; `None` when that was not seen.
    pub end: Option<EndRequest>,
    /// Whether the web server gave it up.
    pub is_aborted: bool,
    /// Whether anything of it is missing: its variables could not be read, bytes were lost, it was forgotten.
    pub is_damaged: bool,
    /// Whether parts of it were left out of the recording, on purpose.
    pub is_masked: bool,
    /// When what happened.
    pub times: Times,
}

/// When what happened to an exchange, where that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// It began.
    pub begun: Option<Timestamp>,
    /// The last of the request came.
    pub received: Option<Timestamp>,
    /// The first of the answer came.
    pub answered: Option<Timestamp>,
    /// It ended, or the last of it was seen.
    pub ended: Option<Timestamp>,
}

impl Exchange {
    /// An exchange of which nothing is known yet.
    pub fn new(spool: &Spool, connection: ConnectionId, id: RequestId) -> Self {
        Self {
            offset: 0,
            connection,
            id,
            role: Role::Responder,
            flags: BeginRequest::KEEP_CONN,
            params: Pairs::new(),
            stdin: spool.body(),
            data: spool.body(),
            stdout: spool.body(),
            stderr: spool.body(),
            end: None,
            is_aborted: false,
            is_damaged: false,
            is_masked: false,
            times: Times::default(),
        }
    }

    /// Whether it was seen to its end, and all of it.
    pub fn is_complete(&self) -> bool {
        self.end.is_some() && !self.is_damaged
    }

    /// The records that such an exchange has, without any that it need not have: what was said in several records of another size may have
    /// been another number of them.
    pub fn records(&self) -> ExchangeRecords<'_> {
        ExchangeRecords { exchange: self, step: Step::Begin }
    }
}

/// Records in, exchanges out, in the order in which they end.
///
/// Bodies are held in a [`Spool`]. What is not seen to its end is given out at the end of its connection, when its id is used again, or at
/// the end of all; so is the oldest when there are more than [`MAX_EXCHANGES`] at once.
#[derive(Debug)]
pub struct Exchanges {
    spool: Spool,
    open: Bounded<(ConnectionId, RequestId), Open>,
    /// How often something was missing on a connection: whose it was is not known.
    losses: Bounded<ConnectionId, u64>,
    ready: std::collections::VecDeque<Exchange>,
}

/// How many exchanges may be open at once.
pub const MAX_EXCHANGES: usize = 4096;

/// The most bytes of variables, encoded, that are made into pairs. Over it an exchange is without them, and said to be damaged.
pub const MAX_PARAMS_LEN: usize = 4 * 1024 * 1024;

/// An exchange that is being put together.
#[derive(Debug)]
struct Open {
    exchange: Exchange,
    /// The variables, encoded.
    params: Spooled,
    stdin_ended: bool,
    /// How often something was missing on its connection before it began.
    losses: u64,
}

impl Exchanges {
    /// Bodies are held there.
    pub fn new(spool: Spool) -> Self {
        Self {
            spool,
            open: Bounded::new(MAX_EXCHANGES),
            losses: Bounded::new(MAX_EXCHANGES),
            ready: std::collections::VecDeque::new(),
        }
    }

    /// Takes the next entry.
    ///
    /// # Errors
    ///
    /// When a body can't be stored.
    pub fn receive(&mut self, entry: &Entry) -> io::Result<()> {
        let connection = entry.connection;
        match &entry.passed {
            Passed::Record { record, .. } => self.record(entry, record),
            Passed::Cut { .. } | Passed::Garbage { .. } | Passed::Gap { .. } => {
                match self.losses.touch(&connection) {
                    Some(losses) => *losses += 1,
                    None => drop(self.losses.insert(connection, 1)),
                }
                Ok(())
            }
            Passed::Ended { direction: Direction::ToWebServer } | Passed::Broken { .. } => {
                for (_, open) in self.open.take(of_connection(connection)) {
                    self.give_out(open)?;
                }
                self.losses.remove(&connection);
                Ok(())
            }
            Passed::Opened { .. } | Passed::Ended { .. } => Ok(()),
        }
    }

    /// There are no more entries: what is open is given out as it is.
    ///
    /// # Errors
    ///
    /// When a body can't be read again.
    pub fn end(&mut self) -> io::Result<()> {
        for (_, open) in self.open.take(..) {
            self.give_out(open)?;
        }
        Ok(())
    }

    /// The next exchange that is over.
    #[expect(clippy::should_implement_trait, reason = "it goes on after a None, as the readers do")]
    pub fn next(&mut self) -> Option<Exchange> {
        self.ready.pop_front()
    }

    fn record(&mut self, entry: &Entry, record: &Record) -> io::Result<()> {
        let key = (entry.connection, record.header().request_id);
        let content = record.content();
        if record.header().record_type == RecordType::BeginRequest {
            let Ok(BeginRequest { role, .. }) = BeginRequest::decode(content) else { return Ok(()) };
            if let Some(before) = self.open.remove(&key) {
                self.give_out(before)?;
            }
            let mut exchange = Exchange::new(&self.spool, key.0, key.1);
            (exchange.offset, exchange.role, exchange.flags) = (entry.offset, role, content[2]);
            exchange.times.begun = entry.time;
            let losses = self.losses.touch(&key.0).copied().unwrap_or_default();
            exchange.is_damaged = record.has_lost_bytes();
            let open = Open { exchange, params: self.spool.body(), stdin_ended: role == Role::Authorizer, losses };
            if let Some((_, mut forgotten)) = self.open.insert(key, open) {
                forgotten.exchange.is_damaged = true;
                self.give_out(forgotten)?;
            }
            return Ok(());
        }
        // What belongs to no request, or to one whose beginning was not seen, is in no exchange.
        let Some(open) = self.open.touch(&key) else { return Ok(()) };
        let Open { exchange, params, stdin_ended, .. } = open;
        exchange.is_damaged |= record.has_lost_bytes();
        exchange.is_masked |= record.is_masked();
        let is_over = exchange.end.is_some();
        match record.header().record_type {
            RecordType::Params => params.append(content)?,
            RecordType::Stdin => {
                exchange.stdin.append(content)?;
                *stdin_ended |= content.is_empty();
            }
            RecordType::Data => exchange.data.append(content)?,
            RecordType::AbortRequest => exchange.is_aborted = true,
            RecordType::Stdout if !is_over => exchange.stdout.append(content)?,
            RecordType::Stderr if !is_over => exchange.stderr.append(content)?,
            RecordType::EndRequest if !is_over => {
                // One that can't be read is an end all the same.
                exchange.is_damaged |= EndRequest::decode(content).is_err();
                let unknown = EndRequest {
                    application_status: 0,
                    protocol_status: crate::protocol::fastcgi::ProtocolStatus::RequestComplete,
                };
                exchange.end = Some(EndRequest::decode(content).unwrap_or(unknown));
            }
            _ => return Ok(()),
        }
        match record.header().record_type {
            RecordType::Params | RecordType::Stdin | RecordType::Data => exchange.times.received = entry.time,
            RecordType::Stdout => exchange.times.answered = exchange.times.answered.or(entry.time),
            _ => {}
        }
        if !is_over {
            exchange.times.ended = entry.time.or(exchange.times.ended);
        }
        // The rest of the request's body may come after the answer, or never.
        if exchange.end.is_some()
            && (*stdin_ended || exchange.is_aborted)
            && let Some(open) = self.open.remove(&key)
        {
            self.give_out(open)?;
        }
        Ok(())
    }

    fn give_out(&mut self, open: Open) -> io::Result<()> {
        let Open { mut exchange, params, losses, .. } = open;
        let losses_now = self.losses.touch(&exchange.connection).copied().unwrap_or(losses);
        exchange.is_damaged |= losses_now != losses;
        if params.len() > MAX_PARAMS_LEN as u64 {
            exchange.is_damaged = true;
        } else {
            let encoded = params.first(MAX_PARAMS_LEN)?;
            let mut pairs = Pairs::with_capacity(16, encoded.len());
            for pair in NameValues::new(&encoded) {
                match pair {
                    Ok((name, value)) => pairs.push(name, value),
                    Err(_) => exchange.is_damaged = true,
                }
            }
            exchange.params = pairs;
        }
        self.ready.push_back(exchange);
        Ok(())
    }
}

/// An exchange as records. Made by [`Exchange::records`].
#[derive(Debug)]
pub struct ExchangeRecords<'a> {
    exchange: &'a Exchange,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Begin,
    Params(Vec<Bytes>, usize),
    /// So much of this stream was given out.
    Stream(RecordType, u64),
    Abort,
    End,
    Over,
}

impl ExchangeRecords<'_> {
    fn step(&mut self) -> io::Result<Option<Entry>> {
        let exchange = self.exchange;
        loop {
            let (record_type, content, next) = match &mut self.step {
                Step::Begin => {
                    let [role_1, role_0] = u16::from(exchange.role).to_be_bytes();
                    let body = vec![role_1, role_0, exchange.flags, 0, 0, 0, 0, 0];
                    let pairs = Contents::lay_out(exchange.params.iter(), usize::MAX).map_err(io::Error::other)?;
                    let contents = pairs.iter().map(Bytes::copy_from_slice).chain([Bytes::new()]).collect();
                    (RecordType::BeginRequest, body, Some(Step::Params(contents, 0)))
                }
                Step::Params(contents, at) => match contents.get(*at) {
                    None => {
                        let has_stdin = exchange.role != Role::Authorizer || !exchange.stdin.is_empty();
                        self.step = match has_stdin {
                            true => Step::Stream(RecordType::Stdin, 0),
                            false => after(RecordType::Stdin, exchange),
                        };
                        continue;
                    }
                    Some(content) => {
                        *at += 1;
                        (RecordType::Params, content.to_vec(), None)
                    }
                },
                Step::Stream(record_type, at) => {
                    let stream = match record_type {
                        RecordType::Stdin => &exchange.stdin,
                        RecordType::Data => &exchange.data,
                        RecordType::Stderr => &exchange.stderr,
                        _ => &exchange.stdout,
                    };
                    let mut content = vec![0; MAX_PADDED_CONTENT_LEN.min((stream.len() - *at) as usize)];
                    io::Read::read_exact(&mut stream.reader_from(*at), &mut content)?;
                    *at += content.len() as u64;
                    let is_answer = matches!(record_type, RecordType::Stderr | RecordType::Stdout);
                    let (record_type, is_end) = (*record_type, content.is_empty());
                    if is_end {
                        self.step = after(record_type, exchange);
                        // An answer that has no end was not ended, and errors that there are none of need no end.
                        if (is_answer && exchange.end.is_none())
                            || (record_type == RecordType::Stderr && stream.is_empty())
                        {
                            continue;
                        }
                    }
                    (record_type, content, None)
                }
                Step::Abort => {
                    let next = Step::Stream(RecordType::Stderr, 0);
                    if !exchange.is_aborted {
                        self.step = next;
                        continue;
                    }
                    (RecordType::AbortRequest, Vec::new(), Some(next))
                }
                Step::End => match exchange.end {
                    Some(end) => (RecordType::EndRequest, end.encode().to_vec(), Some(Step::Over)),
                    None => return Ok(None),
                },
                Step::Over => return Ok(None),
            };
            if let Some(next) = next {
                self.step = next;
            }
            return Ok(Some(self.entry(record_type, &content)));
        }
    }

    fn entry(&self, record_type: RecordType, content: &[u8]) -> Entry {
        let Exchange { offset, connection, id, times, .. } = *self.exchange;
        // A stream is cut into pieces that fit.
        let padding_len = Header::padded(record_type, id, content.len() as u16).padding_len;
        let mut bytes = Vec::with_capacity(content.len() + 16);
        put_record(record_type, id, content, padding_len, &mut bytes);
        let piece = Piece { bytes: bytes.into(), holes: Vec::new() };
        let record = Record::new(piece).expect("it was just put together as one");
        let (direction, time) = match record_type {
            RecordType::BeginRequest | RecordType::Params => (Direction::ToApplication, times.begun),
            RecordType::Stdin | RecordType::Data => (Direction::ToApplication, times.received.or(times.begun)),
            RecordType::AbortRequest => (Direction::ToApplication, times.received.or(times.begun)),
            RecordType::EndRequest => (Direction::ToWebServer, times.ended),
            _ => (Direction::ToWebServer, times.answered.or(times.ended)),
        };
        Entry { offset, time, connection, passed: Passed::Record { direction, record } }
    }
}

/// What comes after a stream.
fn after(record_type: RecordType, exchange: &Exchange) -> Step {
    match record_type {
        RecordType::Stdin if exchange.role == Role::Filter || !exchange.data.is_empty() => {
            Step::Stream(RecordType::Data, 0)
        }
        RecordType::Stdin | RecordType::Data => Step::Abort,
        RecordType::Stderr => Step::Stream(RecordType::Stdout, 0),
        _ => Step::End,
    }
}

impl Iterator for ExchangeRecords<'_> {
    type Item = io::Result<Entry>;

    /// The next record; an error when a body can't be read again, after which there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.step();
        if entry.is_err() {
            self.step = Step::Over;
        }
        entry.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fastcgi::ProtocolStatus;
    use crate::recording::{EntryReader, form};

    fn exchanges_of(bytes: &[u8], spool: &Spool) -> Vec<Exchange> {
        let (mut reader, mut exchanges) = (form::fastcgi::Reader::default(), Exchanges::new(spool.clone()));
        reader.receive(bytes);
        reader.end();
        let mut found = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            exchanges.receive(&entry).unwrap();
            found.extend(std::iter::from_fn(|| exchanges.next()));
        }
        exchanges.end().unwrap();
        found.extend(std::iter::from_fn(|| exchanges.next()));
        found
    }

    fn records(list: &[(u8, u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (record_type, id, content) in list {
            put_record((*record_type).into(), RequestId(*id), content, 0, &mut bytes);
        }
        bytes
    }

    const BEGIN: &[u8] = &[0, 1, 1, 0, 0, 0, 0, 0];

    #[test]
    fn multiplexed_exchanges_are_told_apart() {
        let bytes = records(&[
            (1, 1, BEGIN),
            (1, 2, &[0, 3, 0, 0, 0, 0, 0, 0]),
            (4, 1, b"\x01\x02A"),
            (4, 2, b"\x01\x01Bb"),
            (4, 1, b"aa"),
            (4, 2, b""),
            (4, 1, b""),
            (5, 2, b"in two"),
            (5, 1, b""),
            (5, 2, b""),
            (8, 2, b"file"),
            (6, 2, b"out two"),
            (6, 1, b"out one"),
            (7, 1, b"oh"),
            (3, 2, &[0, 0, 0, 2, 0, 0, 0, 0]),
            (8, 2, b""),
            (3, 1, &[0; 8]),
        ]);
        let spool = Spool::default();
        let found = exchanges_of(&bytes, &spool);
        let text = |body: &Spooled| String::from_utf8(body.first(100).unwrap()).unwrap();
        let [two, one] = &found[..] else { panic!("{found:?}") };
        assert_eq!((two.id.0, two.role, two.flags, one.id.0, one.flags), (2, Role::Filter, 0, 1, 1));
        assert_eq!(
            (text(&two.stdin), text(&two.data), text(&two.stdout)),
            ("in two".into(), "file".into(), "out two".into())
        );
        assert_eq!(
            (text(&one.stdin), text(&one.stdout), text(&one.stderr)),
            ("".into(), "out one".into(), "oh".into())
        );
        assert_eq!(
            (&one.params, &two.params),
            (&[("A", "aa")].into_iter().collect(), &[("B", "b")].into_iter().collect())
        );
        assert!(one.is_complete() && two.is_complete());
        let end = EndRequest { application_status: 2, protocol_status: ProtocolStatus::RequestComplete };
        assert_eq!(two.end, Some(end));
    }

    #[test]
    fn what_is_not_seen_to_its_end_is_given_out_as_incomplete() {
        let bytes =
            records(&[(1, 1, BEGIN), (4, 1, b"\x01\x02A"), (1, 2, BEGIN), (1, 1, BEGIN), (6, 1, b"x"), (6, 9, b"y")]);
        let found = exchanges_of(&bytes, &Spool::default());
        assert_eq!(found.iter().map(|exchange| exchange.id.0).collect::<Vec<_>>(), [1, 2, 1]);
        assert!(found.iter().all(|exchange| !exchange.is_complete()));
        assert_eq!(found.iter().map(|exchange| exchange.is_damaged).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn what_is_open_while_something_is_missing_is_damaged_and_nothing_else_is() {
        let whole = records(&[(1, 1, BEGIN), (6, 1, b"x"), (5, 1, b""), (3, 1, &[0; 8])]);
        let bytes = [&whole[..], &whole[..16], b"garbage", &whole[16..], &whole].concat();
        let damaged: Vec<_> =
            exchanges_of(&bytes, &Spool::default()).iter().map(|exchange| exchange.is_damaged).collect();
        assert_eq!(damaged, [false, true, false]);
    }

    #[test]
    fn exchanges_that_never_end_do_not_pile_up() {
        let mut bytes = Vec::new();
        for id in 0..6000 {
            put_record(RecordType::BeginRequest, RequestId(id + 1), BEGIN, 0, &mut bytes);
            put_record(RecordType::Stdin, RequestId(id + 1), &[b'x'; 1000], 0, &mut bytes);
        }
        let (mut reader, spool) = (form::fastcgi::Reader::default(), Spool::new(100_000, None));
        let mut exchanges = Exchanges::new(spool.clone());
        reader.receive(&bytes);
        let mut given_out = 0;
        while let Some(entry) = reader.next().unwrap() {
            exchanges.receive(&entry).unwrap();
            given_out += std::iter::from_fn(|| exchanges.next()).count();
            assert!(spool.memory() <= 100_000);
        }
        assert_eq!(given_out, 6000 - MAX_EXCHANGES);
    }

    #[test]
    fn an_exchange_taken_apart_is_the_same_exchange() {
        let body = vec![b'b'; 200_000];
        let mut list: Vec<(u8, u16, &[u8])> =
            vec![(1, 7, &[0, 3, 1, 0, 0, 0, 0, 0]), (4, 7, b"\x01\x02Aaa"), (4, 7, b"")];
        list.extend(body.chunks(50_000).map(|chunk| (5, 7, chunk)));
        list.extend([(5, 7, &b""[..]), (8, 7, b"file"), (8, 7, b""), (2, 7, b""), (7, 7, b"oh")]);
        list.extend(body.chunks(60_000).map(|chunk| (6, 7, chunk)));
        list.push((3, 7, &[0, 0, 0, 5, 0, 0, 0, 0]));
        let again = |bytes: &[u8]| -> Vec<u8> {
            let found = exchanges_of(bytes, &Spool::new(10_000, None));
            found
                .iter()
                .flat_map(|exchange| exchange.records())
                .flat_map(|entry| entry.unwrap().passed.bytes().to_vec())
                .collect()
        };
        let once = again(&records(&list));
        assert!(again(&once) == once);
        let found = exchanges_of(&once, &Spool::default());
        assert!(
            found[0].stdin.first(usize::MAX).unwrap() == body && found[0].stdout.first(usize::MAX).unwrap() == body
        );
        assert!(found[0].is_complete() && found[0].is_aborted && found[0].data.len() == 4);
    }
}
