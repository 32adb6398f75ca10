//! The form `fastcgi`: records as they stand on the wire, one behind the other, of one direction or of both.
//!
//! Only bytes are held. To whom a record passes its type says; what has none that is known passes where the record before it did.

use crate::protocol::fastcgi::RecordType;
use crate::recording::records::{Framer, direction_of};
use crate::recording::{ConnectionId, Direction, Entry, EntryReader, Passed, ReadError};

/// Reads a stream of records as entries of one connection. It has nothing to refuse: what is no record is an entry too.
#[derive(Debug)]
pub struct Reader {
    framer: Framer,
    /// How many bytes went into entries.
    offset: u64,
    has_ended: bool,
    /// The direction of all that does not say.
    direction: Direction,
    /// Whether that is the direction of what does say, too.
    is_one_way: bool,
}

impl Default for Reader {
    fn default() -> Self {
        let framer = Framer::default();
        Self { framer, offset: 0, has_ended: false, direction: Direction::ToApplication, is_one_way: false }
    }
}

impl Reader {
    /// Reads a stream of which it is known that all of it passed in this direction.
    pub fn one_way(direction: Direction) -> Self {
        Self { direction, is_one_way: true, ..Self::default() }
    }
}

impl EntryReader for Reader {
    fn receive(&mut self, bytes: &[u8]) {
        self.framer.receive(bytes, 0, None);
    }

    fn end(&mut self) {
        self.has_ended = true;
    }

    fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let frame = match self.framer.next() {
            None if self.has_ended => self.framer.flush(),
            frame => frame,
        };
        let Some(frame) = frame else { return Ok(None) };
        let entry = frame.into_entry(ConnectionId(1), self.direction);
        let record_type = match &entry.passed {
            Passed::Record { record, .. } => Some(record.header().record_type),
            Passed::Cut { piece, .. } => piece.bytes.get(1).map(|byte| RecordType::from(*byte)),
            _ => None,
        };
        if let Some(direction) = record_type.and_then(direction_of)
            && !self.is_one_way
        {
            self.direction = direction;
        }
        let offset = self.offset;
        self.offset += entry.passed.bytes().len() as u64;
        Ok(Some(Entry { offset, ..directed(entry, self.direction) }))
    }
}

/// The entry, passing in that direction.
fn directed(mut entry: Entry, to: Direction) -> Entry {
    if let Passed::Record { direction, .. } | Passed::Garbage { direction, .. } | Passed::Cut { direction, .. } =
        &mut entry.passed
    {
        *direction = to;
    }
    entry
}

/// Writes what the form can hold of an entry: its bytes, and nothing for what has none.
pub fn write(entry: &Entry, out: &mut Vec<u8>) {
    out.extend_from_slice(entry.passed.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fastcgi::{RequestId, put_record};

    fn read(mut reader: Reader, bytes: &[u8]) -> Vec<Entry> {
        reader.receive(bytes);
        reader.end();
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    #[test]
    fn the_direction_is_that_of_the_type_or_of_the_record_before() {
        let mut bytes = Vec::new();
        for record_type in [99, 1, 100, 6, 101, 5] {
            put_record(RecordType::from(record_type), RequestId(1), b"x", 0, &mut bytes);
        }
        bytes.extend(b"garbage");
        let (to, back) = (Direction::ToApplication, Direction::ToWebServer);
        let directions = |entries: Vec<Entry>| -> Vec<Direction> {
            entries.iter().map(|entry| entry.passed.direction().unwrap()).collect()
        };
        let entries = read(Reader::default(), &bytes);
        assert_eq!(entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [0, 9, 18, 27, 36, 45, 54]);
        assert_eq!(directions(entries), [to, to, to, back, back, to, to]);
        assert_eq!(directions(read(Reader::one_way(back), &bytes)), [back; 7]);
    }
}
