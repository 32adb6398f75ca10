//! What was seen, cut into records: for each connection and direction, whatever the pieces in which it was seen.
//!
//! Nothing is left out: the bytes of all entries of a direction, one behind the other, are the bytes that were seen. What is no record is
//! an entry too, and behind it reading goes on where a header stands that can only be meant as one.

use std::collections::VecDeque;
use std::fmt;

use bytes::{Bytes, BytesMut};

use super::bounded::Bounded;
use super::{ConnectionId, Direction, ReadError, Reader, Seen, Timestamp, What};
use crate::protocol::fastcgi::{HEADER_LEN, Header, MAX_CONTENT_LEN, MAX_PADDING_LEN, RecordType, RequestId, VERSION};

/// One thing that passed on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where its first byte stands in the file that it was read from, or the packet that brought this byte.
    pub offset: u64,
    /// When its last byte passed; `None` where the file's form does not say.
    pub time: Option<Timestamp>,
    /// Where it passed.
    pub connection: ConnectionId,
    /// What passed.
    pub passed: Passed,
}

/// What can pass on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Passed {
    /// The connection was made. Addresses are as people write them, and empty where they are not known.
    Opened {
        /// The web server's end.
        from: String,
        /// The application's end.
        to: String,
    },
    /// A whole record.
    Record {
        /// To whom.
        direction: Direction,
        /// The record.
        record: Record,
    },
    /// Bytes where a record should begin, and none does.
    Garbage {
        /// To whom.
        direction: Direction,
        /// At least one byte, at most [`MAX_GARBAGE_LEN`]: more is several entries.
        piece: Piece,
    },
    /// A record that was begun and never completed.
    Cut {
        /// To whom.
        direction: Direction,
        /// At least one byte.
        piece: Piece,
    },
    /// Bytes are missing here, between records or from the middle of one on.
    Gap {
        /// To whom.
        direction: Direction,
        /// How many, where that is known.
        len: Option<u64>,
    },
    /// Nothing passes in this direction any more.
    Ended {
        /// To whom nothing passes.
        direction: Direction,
    },
    /// The connection broke, as by a reset.
    Broken {
        /// What was said about it.
        reason: String,
    },
}

impl Passed {
    /// To whom it passed, where it passed to one end only.
    pub fn direction(&self) -> Option<Direction> {
        match self {
            Self::Record { direction, .. }
            | Self::Garbage { direction, .. }
            | Self::Cut { direction, .. }
            | Self::Gap { direction, .. }
            | Self::Ended { direction } => Some(*direction),
            Self::Opened { .. } | Self::Broken { .. } => None,
        }
    }

    /// All its bytes, as they stood on the wire; none for what has no bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Record { record, .. } => record.bytes(),
            Self::Garbage { piece, .. } | Self::Cut { piece, .. } => &piece.bytes,
            Self::Opened { .. } | Self::Gap { .. } | Self::Ended { .. } | Self::Broken { .. } => &[],
        }
    }
}

/// Bytes, and which of them are not those that passed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    /// In their order; none overlaps another.
    pub holes: Vec<Hole>,
}

/// Bytes that passed and are not known: a `*` stands for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The first of them, counted from the first byte of what they belong to.
    pub start: usize,
    /// How many, at least one.
    pub len: usize,
    /// Whether they were left out on purpose; else they were lost.
    pub is_masked: bool,
}

/// A whole record, as it stood on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    header: Header,
    piece: Piece,
}

impl Record {
    /// The record that these bytes are; `None` when they are not exactly one.
    pub fn new(piece: Piece) -> Option<Self> {
        let header = Header::decode(&piece.bytes).ok()??;
        (record_len(header) == piece.bytes.len()).then_some(Self { header, piece })
    }

    /// Its header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The header's last byte, for which FastCGI 1.0 has no use.
    pub fn reserved(&self) -> u8 {
        self.piece.bytes[HEADER_LEN - 1]
    }

    /// Its content.
    pub fn content(&self) -> &[u8] {
        &self.piece.bytes[HEADER_LEN..HEADER_LEN + usize::from(self.header.content_len)]
    }

    /// What follows the content and is skipped.
    pub fn padding(&self) -> &[u8] {
        &self.piece.bytes[HEADER_LEN + usize::from(self.header.content_len)..]
    }

    /// Header, content and padding.
    pub fn bytes(&self) -> &[u8] {
        &self.piece.bytes
    }

    /// The same, shared.
    pub fn piece(&self) -> &Piece {
        &self.piece
    }

    /// Whether the content has bytes that are not known.
    pub fn has_holes(&self) -> bool {
        !self.piece.holes.is_empty()
    }

    /// Whether the content has bytes that were left out on purpose.
    pub fn is_masked(&self) -> bool {
        self.piece.holes.iter().any(|hole| hole.is_masked)
    }

    /// Whether the content has bytes that were lost, and not left out on purpose.
    pub fn has_lost_bytes(&self) -> bool {
        self.piece.holes.iter().any(|hole| !hole.is_masked)
    }
}

/// To whom records of a type pass; `None` for a type without a name.
pub fn direction_of(record_type: RecordType) -> Option<Direction> {
    match record_type {
        RecordType::BeginRequest
        | RecordType::AbortRequest
        | RecordType::Params
        | RecordType::Stdin
        | RecordType::Data
        | RecordType::GetValues => Some(Direction::ToApplication),
        RecordType::EndRequest
        | RecordType::Stdout
        | RecordType::Stderr
        | RecordType::GetValuesResult
        | RecordType::UnknownType => Some(Direction::ToWebServer),
        RecordType::Unknown(_) => None,
    }
}

/// As people read it.
impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToApplication => "application",
            Self::ToWebServer => "web server",
        })
    }
}

/// A reader of files of one form that knows of records: bytes in, entries out. As [`Reader`], it holds no more than a fixed window.
pub trait EntryReader {
    /// Takes the next bytes of the file. To be called when [`next`](Self::next) has nothing more.
    fn receive(&mut self, bytes: &[u8]);

    /// There are no more bytes: what is incomplete now stays so.
    fn end(&mut self);

    /// The next entry; `None` when more bytes are needed, or all were read.
    ///
    /// # Errors
    ///
    /// The file can't be read on from here. What was returned before is good, and the same error comes again.
    fn next(&mut self) -> Result<Option<Entry>, ReadError>;
}

/// A reader of what was seen, as a reader of entries.
#[derive(Debug)]
pub struct InRecords<R> {
    reader: R,
    records: Records,
    has_ended: bool,
    failure: Option<ReadError>,
}

impl<R: Reader> InRecords<R> {
    /// Reads with that reader.
    pub fn new(reader: R) -> Self {
        Self { reader, records: Records::default(), has_ended: false, failure: None }
    }

    /// What it reads with.
    pub fn reader(&self) -> &R {
        &self.reader
    }
}

impl<R: Reader> EntryReader for InRecords<R> {
    fn receive(&mut self, bytes: &[u8]) {
        self.reader.receive(bytes);
    }

    fn end(&mut self) {
        self.reader.end();
        self.has_ended = true;
    }

    fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            if let Some(entry) = self.records.next() {
                return Ok(Some(entry));
            }
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            match self.reader.next() {
                Ok(Some(seen)) => self.records.receive(seen),
                Ok(None) if self.has_ended && !self.records.has_ended => self.records.end(),
                Ok(None) => return Ok(None),
                // What came before the failure is given out first.
                Err(failure) => {
                    self.failure = Some(failure);
                    self.records.end();
                }
            }
        }
    }
}

/// What was seen in, entries out.
///
/// Connections are told apart, and in each the two directions. Incomplete records are held until they are complete, so memory is bounded by
/// [`MAX_CONNECTIONS`] and [`MAX_BUFFERED`]: over them what was used longest ago is given out as it is.
#[derive(Debug)]
pub struct Records {
    connections: Bounded<ConnectionId, Ends>,
    /// Bytes that are held for all connections, with what is noted of them.
    buffered: usize,
    waiting: VecDeque<Seen>,
    ready: VecDeque<Entry>,
    /// Where the bytes stand that were received last, which may be more entries yet.
    current: Option<(ConnectionId, Direction)>,
    has_ended: bool,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            connections: Bounded::new(MAX_CONNECTIONS),
            buffered: 0,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            current: None,
            has_ended: false,
        }
    }
}

/// Of how many connections it is known where in a record they stand.
pub const MAX_CONNECTIONS: usize = 16 * 1024;

/// How many bytes of incomplete records are held, of all connections together.
pub const MAX_BUFFERED: usize = 16 * 1024 * 1024;

/// The two directions of a connection.
#[derive(Debug, Default)]
struct Ends {
    to_application: Framer,
    to_web_server: Framer,
    /// Where nothing passes any more.
    ended: Option<Direction>,
}

impl Ends {
    fn of(&mut self, direction: Direction) -> &mut Framer {
        match direction {
            Direction::ToApplication => &mut self.to_application,
            Direction::ToWebServer => &mut self.to_web_server,
        }
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::ToApplication, Direction::ToWebServer];

impl Records {
    /// Takes what was seen next. To be called when [`next`](Self::next) has nothing more.
    pub fn receive(&mut self, seen: Seen) {
        self.waiting.push_back(seen);
    }

    /// Nothing more will be seen: what is incomplete is given out as that.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// The next entry; `None` when more must be seen for one.
    #[expect(clippy::should_implement_trait, reason = "it goes on after a None, as the readers do")]
    pub fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(entry);
            }
            if let Some((connection, direction)) = self.current {
                let Some(ends) = self.connections.touch(&connection) else {
                    self.current = None;
                    continue;
                };
                let framer = ends.of(direction);
                let before = framer.weight();
                let frame = framer.next();
                let after = framer.weight();
                self.buffered = self.buffered + after - before;
                match frame {
                    Some(frame) => return Some(frame.into_entry(connection, direction)),
                    None => self.current = None,
                }
                continue;
            }
            if let Some(seen) = self.waiting.pop_front() {
                self.take(seen);
                continue;
            }
            if !self.has_ended {
                return None;
            }
            let (connection, mut ends) = self.connections.remove_oldest()?;
            self.flush_all(connection, &mut ends);
        }
    }

    fn take(&mut self, seen: Seen) {
        let Seen { offset, time, connection, what } = seen;
        let entry = |passed| Entry { offset, time, connection, passed };
        match what {
            What::Opened { from, to } => self.ready.push_back(entry(Passed::Opened { from, to })),
            What::Bytes { direction, bytes } => {
                let framer = self.ends(connection).of(direction);
                let before = framer.weight();
                framer.receive(&bytes, offset, time);
                let after = framer.weight();
                self.buffered = self.buffered + after - before;
                self.current = Some((connection, direction));
                self.make_room(connection);
            }
            What::Masked { direction, len } => self.hole(&entry, direction, Some(len), true),
            What::Gap { direction, len } => self.hole(&entry, direction, len, false),
            What::Ended { direction } => {
                self.end_of(connection, direction);
                self.ready.push_back(entry(Passed::Ended { direction }));
            }
            What::Broken { reason } => {
                if let Some(mut ends) = self.connections.remove(&connection) {
                    self.flush_all(connection, &mut ends);
                }
                self.ready.push_back(entry(Passed::Broken { reason }));
            }
        }
    }

    /// Bytes that are not known: within a record they are a hole in it, and beyond it nobody knows where a record begins.
    fn hole(&mut self, entry: &dyn Fn(Passed) -> Entry, direction: Direction, len: Option<u64>, is_masked: bool) {
        let Entry { offset, time, connection, .. } = entry(Passed::Ended { direction });
        let framer = self.ends(connection).of(direction);
        let before = framer.weight();
        // Without a number of bytes the rest of the record is not known to be among them.
        let within = len.map_or(0, |len| len.min(framer.missing() as u64));
        framer.receive_hole(within as usize, is_masked, offset, time);
        if len != Some(within) {
            let frames = framer.drain();
            framer.lose();
            let entries = frames.into_iter().map(|frame| frame.into_entry(connection, direction));
            self.ready.extend(entries);
            self.ready.push_back(entry(Passed::Gap { direction, len: len.map(|len| len - within) }));
        }
        let after = self.ends(connection).of(direction).weight();
        self.buffered = self.buffered + after - before;
        self.current = Some((connection, direction));
    }

    fn ends(&mut self, connection: ConnectionId) -> &mut Ends {
        if self.connections.touch(&connection).is_none()
            && let Some((gone, mut ends)) = self.connections.insert(connection, Ends::default())
        {
            self.flush_all(gone, &mut ends);
        }
        self.connections.touch(&connection).expect("it was just inserted where it was missing")
    }

    /// Gives incomplete records out when all that are held are too much, but none of the connection that is being received.
    fn make_room(&mut self, current: ConnectionId) {
        while self.buffered > MAX_BUFFERED && self.connections.len() > 1 {
            let Some((connection, mut ends)) = self.connections.remove_oldest() else { return };
            if connection == current {
                self.connections.insert(connection, ends);
                continue;
            }
            self.flush_all(connection, &mut ends);
        }
    }

    /// Nothing more passes in a direction; when nothing passes in either, there is nothing left to be known.
    fn end_of(&mut self, connection: ConnectionId, direction: Direction) {
        let Some(ends) = self.connections.touch(&connection) else { return };
        let framer = ends.of(direction);
        self.buffered -= framer.weight();
        let frames = framer.drain();
        self.ready.extend(frames.into_iter().map(|frame| frame.into_entry(connection, direction)));
        match ends.ended {
            Some(other) if other != direction => drop(self.connections.remove(&connection)),
            _ => ends.ended = Some(direction),
        }
    }

    fn flush_all(&mut self, connection: ConnectionId, ends: &mut Ends) {
        for direction in DIRECTIONS {
            let framer = ends.of(direction);
            self.buffered -= framer.weight();
            let frames = framer.drain();
            self.ready.extend(frames.into_iter().map(|frame| frame.into_entry(connection, direction)));
        }
    }
}

/// Bytes of one stream in, records out.
#[derive(Debug)]
pub(super) struct Framer {
    buffer: BytesMut,
    /// How many bytes went before the buffer's.
    position: u64,
    /// Where the bytes came from that are in the buffer, in their order.
    marks: VecDeque<Mark>,
    /// As [`Hole`]s, counted from the first byte of all.
    holes: VecDeque<(u64, usize, bool)>,
    /// A record begins at the buffer's first byte; else one is looked for.
    is_at_record: bool,
    /// How far was looked for one.
    searched: usize,
}

/// The bytes up to `end` came from there.
#[derive(Debug, Clone, Copy)]
struct Mark {
    end: u64,
    offset: u64,
    time: Option<Timestamp>,
}

/// What a [`Framer`] finds.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) offset: u64,
    pub(super) time: Option<Timestamp>,
    pub(super) kind: FrameKind,
}

#[derive(Debug)]
pub(super) enum FrameKind {
    Record(Record),
    Garbage(Piece),
    Cut(Piece),
}

impl Frame {
    pub(super) fn into_entry(self, connection: ConnectionId, direction: Direction) -> Entry {
        let passed = match self.kind {
            FrameKind::Record(record) => Passed::Record { direction, record },
            FrameKind::Garbage(piece) => Passed::Garbage { direction, piece },
            FrameKind::Cut(piece) => Passed::Cut { direction, piece },
        };
        Entry { offset: self.offset, time: self.time, connection, passed }
    }
}

impl Default for Framer {
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            position: 0,
            marks: VecDeque::new(),
            holes: VecDeque::new(),
            is_at_record: true,
            searched: 0,
        }
    }
}

impl Framer {
    pub(super) fn receive(&mut self, bytes: &[u8], offset: u64, time: Option<Timestamp>) {
        if bytes.is_empty() {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        self.mark(offset, time);
    }

    /// Notes where the bytes came from that were put into the buffer last.
    fn mark(&mut self, offset: u64, time: Option<Timestamp>) {
        let end = self.position + self.buffer.len() as u64;
        match self.marks.back_mut() {
            Some(last) if last.offset == offset && last.time == time => last.end = end,
            _ => self.marks.push_back(Mark { end, offset, time }),
        }
    }

    /// Takes bytes that are not known. There are at most as many as are [`missing`](Self::missing).
    fn receive_hole(&mut self, len: usize, is_masked: bool, offset: u64, time: Option<Timestamp>) {
        if len == 0 {
            return;
        }
        let start = self.position + self.buffer.len() as u64;
        match self.holes.back_mut() {
            Some((last, so_far, masked)) if *last + *so_far as u64 == start && *masked == is_masked => *so_far += len,
            _ => self.holes.push_back((start, len, is_masked)),
        }
        self.buffer.resize(self.buffer.len() + len, b'*');
        self.mark(offset, time);
    }

    /// How many bytes the record that was begun still needs; 0 where its header is not all here.
    fn missing(&self) -> usize {
        match Header::decode(&self.buffer) {
            Ok(Some(header)) if self.is_at_record => record_len(header).saturating_sub(self.buffer.len()),
            _ => 0,
        }
    }

    /// Nothing tells any more where a record begins.
    fn lose(&mut self) {
        self.is_at_record = false;
    }

    /// What it costs in memory.
    fn weight(&self) -> usize {
        self.buffer.len() + self.marks.len() * size_of::<Mark>() + self.holes.len() * size_of::<(u64, usize, bool)>()
    }

    pub(super) fn next(&mut self) -> Option<Frame> {
        loop {
            if self.is_at_record {
                if *self.buffer.first()? != VERSION {
                    self.is_at_record = false;
                    continue;
                }
                // The first byte is the only one that a header can have wrong.
                let header = Header::decode(&self.buffer).ok()??;
                let len = record_len(header);
                if self.buffer.len() < len {
                    return None;
                }
                let (piece, offset, time) = self.split(len);
                return Some(Frame { offset, time, kind: FrameKind::Record(Record { header, piece }) });
            }
            let unsearched = self.buffer[self.searched..].windows(HEADER_LEN);
            let limit = MAX_GARBAGE_LEN - self.searched;
            let found = unsearched.take(limit).position(is_meant_as_header);
            let len = match found {
                Some(at) => self.searched + at,
                None => {
                    // A header may begin in the last seven bytes.
                    self.searched = (self.buffer.len() + 1).saturating_sub(HEADER_LEN).min(MAX_GARBAGE_LEN);
                    if self.searched < MAX_GARBAGE_LEN {
                        return None;
                    }
                    MAX_GARBAGE_LEN
                }
            };
            self.is_at_record = found.is_some();
            self.searched = 0;
            if len > 0 {
                let (piece, offset, time) = self.split(len);
                return Some(Frame { offset, time, kind: FrameKind::Garbage(piece) });
            }
        }
    }

    /// All there is when nothing more comes: nothing is left then.
    fn drain(&mut self) -> Vec<Frame> {
        let mut frames: Vec<_> = std::iter::from_fn(|| self.next()).collect();
        frames.extend(self.flush());
        frames
    }

    /// What is left when nothing more comes, and [`next`](Self::next) has nothing more.
    pub(super) fn flush(&mut self) -> Option<Frame> {
        let len = self.buffer.len();
        if len == 0 {
            return None;
        }
        let is_at_record = self.is_at_record;
        self.searched = 0;
        let (piece, offset, time) = self.split(len);
        let kind = if is_at_record { FrameKind::Cut(piece) } else { FrameKind::Garbage(piece) };
        Some(Frame { offset, time, kind })
    }

    /// Takes the first bytes out, with where they came from and when the last of them did.
    fn split(&mut self, len: usize) -> (Piece, u64, Option<Timestamp>) {
        let bytes = self.buffer.split_to(len).freeze();
        // A small part of a large buffer would keep all of it.
        let bytes = if len < SHARE_FROM { Bytes::copy_from_slice(&bytes) } else { bytes };
        let (start, end) = (self.position, self.position + len as u64);
        self.position = end;
        let first = self.marks.front().copied();
        while self.marks.front().is_some_and(|mark| mark.end < end) {
            self.marks.pop_front();
        }
        let last = self.marks.front().copied();
        if last.is_some_and(|mark| mark.end == end) {
            self.marks.pop_front();
        }
        let mut holes = Vec::new();
        while let Some((at, hole_len, is_masked)) = self.holes.front().copied()
            && at < end
        {
            self.holes.pop_front();
            holes.push(Hole { start: (at - start) as usize, len: hole_len, is_masked });
        }
        (Piece { bytes, holes }, first.map_or(0, |mark| mark.offset), last.and_then(|mark| mark.time))
    }
}

/// From how many bytes on an entry shares the buffer that its bytes arrived in.
const SHARE_FROM: usize = 512;

/// The most bytes in one entry of garbage.
pub const MAX_GARBAGE_LEN: usize = 0x1_0000;

/// The most bytes that a record has, all its parts together.
pub const MAX_RECORD_LEN: usize = HEADER_LEN + MAX_CONTENT_LEN + MAX_PADDING_LEN;

/// Header, content and padding together.
fn record_len(header: Header) -> usize {
    HEADER_LEN + usize::from(header.content_len) + usize::from(header.padding_len)
}

/// Whether eight bytes in the middle of something else can only be meant as a header: all that FastCGI 1.0 says of one is true of them.
pub(super) fn is_meant_as_header(bytes: &[u8]) -> bool {
    let &[VERSION, record_type, _, _, _, _, _, 0] = bytes else { return false };
    let Ok(Some(header)) = Header::decode(bytes) else { return false };
    let is_management = header.request_id == RequestId::NULL;
    match RecordType::from(record_type) {
        RecordType::BeginRequest | RecordType::EndRequest => !is_management && header.content_len == 8,
        RecordType::AbortRequest => !is_management && header.content_len == 0,
        RecordType::Params | RecordType::Stdin | RecordType::Data | RecordType::Stdout | RecordType::Stderr => {
            !is_management
        }
        RecordType::GetValues | RecordType::GetValuesResult => is_management,
        RecordType::UnknownType => is_management && header.content_len == 8,
        RecordType::Unknown(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::fastcgi::put_record;

    const ONE: ConnectionId = ConnectionId(1);

    fn seen(offset: u64, what: What) -> Seen {
        Seen { offset, time: Some(Timestamp(offset * 10)), connection: ONE, what }
    }

    fn bytes(offset: u64, bytes: &[u8]) -> Seen {
        let what = What::Bytes { direction: Direction::ToApplication, bytes: Bytes::copy_from_slice(bytes) };
        seen(offset, what)
    }

    fn entries(all: impl IntoIterator<Item = Seen>) -> Vec<Entry> {
        let mut records = Records::default();
        let mut entries = Vec::new();
        for seen in all {
            records.receive(seen);
            entries.extend(std::iter::from_fn(|| records.next()));
        }
        records.end();
        entries.extend(std::iter::from_fn(|| records.next()));
        assert_eq!(records.buffered, 0);
        entries
    }

    fn record(record_type: RecordType, content: &[u8], padding_len: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_record(record_type, RequestId(1), content, padding_len, &mut bytes);
        bytes
    }

    fn kinds(entries: &[Entry]) -> Vec<(char, usize)> {
        let kind = |passed: &Passed| match passed {
            Passed::Record { .. } => 'R',
            Passed::Garbage { .. } => 'G',
            Passed::Cut { .. } => 'C',
            Passed::Gap { .. } => '_',
            Passed::Opened { .. } => 'o',
            Passed::Ended { .. } => 'e',
            Passed::Broken { .. } => 'b',
        };
        entries.iter().map(|entry| (kind(&entry.passed), entry.passed.bytes().len())).collect()
    }

    #[test]
    fn a_connection_that_has_ended_in_both_directions_is_forgotten() {
        for both in [DIRECTIONS, [DIRECTIONS[1], DIRECTIONS[0]]] {
            let mut records = Records::default();
            let ends = both.map(|direction| seen(20, What::Ended { direction }));
            for (what, left) in
                [(bytes(0, &record(RecordType::Stdin, b"x", 0)), 1), (ends[0].clone(), 1), (ends[1].clone(), 0)]
            {
                records.receive(what);
                assert!(records.next().is_some());
                assert_eq!((records.connections.len(), records.buffered), (left, 0));
            }
        }
    }

    #[test]
    fn a_record_is_whole_whatever_the_pieces_it_came_in() {
        let wire = [record(RecordType::Stdin, b"hello", 3), record(RecordType::Stdin, b"", 0)].concat();
        let whole = entries([bytes(0, &wire)]);
        assert_eq!(kinds(&whole), [('R', 16), ('R', 8)]);
        let Passed::Record { direction, record } = &whole[0].passed else { panic!("{whole:?}") };
        assert_eq!(
            (*direction, record.content(), record.padding()),
            (Direction::ToApplication, &b"hello"[..], &[0; 3][..])
        );
        let single = entries(wire.iter().enumerate().map(|(at, byte)| bytes(at as u64, &[*byte])));
        assert_eq!(kinds(&single), kinds(&whole));
        // The offset is that of the first byte, the time that of the last.
        assert_eq!((single[1].offset, single[1].time), (16, Some(Timestamp(230))));
    }

    #[test]
    fn directions_and_connections_are_told_apart() {
        let wire = record(RecordType::Stdout, b"hello", 0);
        let half = |connection, direction, range: std::ops::Range<usize>| Seen {
            offset: 0,
            time: None,
            connection: ConnectionId(connection),
            what: What::Bytes { direction, bytes: Bytes::copy_from_slice(&wire[range]) },
        };
        let (to, back) = (Direction::ToApplication, Direction::ToWebServer);
        let all = [half(1, to, 0..9), half(1, back, 0..9), half(2, to, 0..9), half(1, to, 9..13), half(2, to, 9..13)];
        let entries = entries(all);
        assert_eq!(kinds(&entries), [('R', 13), ('R', 13), ('C', 9)]);
        assert_eq!(entries.iter().map(|entry| entry.connection.0).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(entries[2].passed.direction(), Some(back));
    }

    #[test]
    fn after_garbage_reading_goes_on_at_the_next_header() {
        let wire = [b"HTTP/1.1 200 OK\r\n\x01".to_vec(), record(RecordType::Stdin, b"x", 0)].concat();
        assert_eq!(kinds(&entries([bytes(0, &wire)])), [('G', 18), ('R', 9)]);
        let endless = vec![b'x'; 3 * MAX_GARBAGE_LEN];
        let found = entries(endless.chunks(1000).map(|chunk| bytes(0, chunk)));
        assert_eq!(kinds(&found), [('G', MAX_GARBAGE_LEN); 3]);
    }

    #[test]
    fn what_is_incomplete_at_the_end_is_cut() {
        let wire = [record(RecordType::Stdin, b"hello", 3), record(RecordType::Stdin, b"", 5)].concat();
        for cut in 0..=wire.len() {
            let mut expected = vec![('R', 16), ('R', 13)];
            expected.truncate(usize::from(cut >= 16) + usize::from(cut >= 29));
            let left = cut - expected.iter().map(|(_, len)| len).sum::<usize>();
            expected.extend((left > 0).then_some(('C', left)));
            assert_eq!(kinds(&entries([bytes(0, &wire[..cut])])), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_gap_within_a_record_is_a_hole_in_it() {
        let wire = record(RecordType::Stdin, b"hello, world", 0);
        let direction = Direction::ToApplication;
        let gap = |len| seen(12, What::Gap { direction, len });
        let found = entries([bytes(0, &wire[..10]), gap(Some(4)), bytes(14, &wire[14..]), bytes(20, &wire)]);
        assert_eq!(kinds(&found), [('R', 20), ('R', 20)]);
        let Passed::Record { record, .. } = &found[0].passed else { panic!("{found:?}") };
        assert_eq!(record.content(), b"he**** world");
        assert_eq!(record.piece().holes, [Hole { start: 10, len: 4, is_masked: false }]);
        assert!(record.has_lost_bytes());

        // One that goes beyond the record, or of which nobody knows how long it is, ends it.
        let found = entries([bytes(0, &wire[..10]), gap(Some(100)), bytes(110, b"rest"), bytes(114, &wire)]);
        assert_eq!(kinds(&found), [('R', 20), ('_', 0), ('G', 4), ('R', 20)]);
        assert_eq!(found[1].passed, Passed::Gap { direction, len: Some(90) });
        let found = entries([bytes(0, &wire[..10]), gap(None), bytes(110, &wire)]);
        assert_eq!(kinds(&found), [('C', 10), ('_', 0), ('R', 20)]);
    }

    #[test]
    fn what_was_masked_is_a_hole_too_and_never_more_than_its_record() {
        let wire = record(RecordType::Stdout, b"secret", 2);
        let masked = |len| seen(9, What::Masked { direction: Direction::ToApplication, len });
        let found = entries([bytes(0, &wire[..8]), masked(6), bytes(9, &wire[14..])]);
        let Passed::Record { record, .. } = &found[0].passed else { panic!("{found:?}") };
        assert_eq!((record.content(), record.has_lost_bytes(), record.has_holes()), (&b"******"[..], false, true));
        let found = entries([bytes(0, &wire[..8]), masked(u64::MAX)]);
        assert_eq!(kinds(&found), [('R', 16), ('_', 0)]);
    }

    #[test]
    fn many_connections_are_given_out_incomplete_rather_than_held() {
        let begun = &record(RecordType::Stdin, &[0; 60_000], 0)[..50_000];
        let all = (0..400).map(|connection| Seen { connection: ConnectionId(connection), ..bytes(0, begun) });
        let mut records = Records::default();
        let mut cut = 0;
        for seen in all {
            records.receive(seen);
            cut += std::iter::from_fn(|| records.next()).count();
            assert!(records.buffered <= MAX_BUFFERED);
        }
        assert_eq!(cut, 400 - MAX_BUFFERED / (50_000 + size_of::<Mark>()));
    }

    proptest! {
        #[test]
        fn nothing_is_left_out_and_pieces_make_no_difference(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    (1..12_u8, prop::collection::vec(any::<u8>(), 0..40), 0..9_u8)
                        .prop_map(|(kind, content, padding)| record(kind.into(), &content, padding)),
                ],
                0..12,
            ),
            cuts in prop::collection::vec(1..50_usize, 1..20),
        ) {
            let wire = parts.concat();
            let whole = entries([bytes(0, &wire)]);
            let all: Vec<u8> = whole.iter().flat_map(|entry| entry.passed.bytes().to_vec()).collect();
            prop_assert_eq!(&all, &wire);
            let (mut pieces, mut rest) = (Vec::new(), &wire[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(bytes(0, piece));
                rest = after;
            }
            prop_assert_eq!(kinds(&entries(pieces)), kinds(&whole));
        }
    }
}
