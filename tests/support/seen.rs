//! What the tests of readers of recordings share: reading a file at once or cut everywhere, and telling shortly what was seen.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, missing_docs, reason = "a module of a test binary has no outside")]

use std::collections::BTreeMap;

use gatespan::recording::capture::{LeftOut, Settings};
use gatespan::recording::{CaptureReader, Direction, ReadError, Reader, Seen, What};

/// What a capture was read as, told shortly: `1 opened 10.0.0.1:40000 to 10.0.0.2:9000`, `1 > 8 bytes`, `1 < gap of 5`. Bytes that follow each other are one.
pub fn told(seen: &[Seen]) -> Vec<String> {
    let arrow = |direction| if direction == Direction::ToApplication { '>' } else { '<' };
    let mut lines = Vec::new();
    let mut last = (String::new(), 0);
    for Seen { connection, what, .. } in seen {
        let line = match what {
            What::Bytes { direction, bytes } => {
                let start = format!("{connection} {}", arrow(*direction));
                let before = if last.0 == start { lines.pop().map_or(0, |_: String| last.1) } else { 0 };
                last = (start.clone(), before + bytes.len());
                lines.push(format!("{start} {} bytes", last.1));
                continue;
            }
            What::Opened { from, to } => format!("{connection} opened {from} to {to}"),
            What::Gap { direction, len: Some(len) } => format!("{connection} {} gap of {len}", arrow(*direction)),
            What::Gap { direction, len: None } => format!("{connection} {} gap", arrow(*direction)),
            What::Ended { direction } => format!("{connection} {} ended", arrow(*direction)),
            What::Broken { reason } => format!("{connection} broken: {reason}"),
            other => panic!("a capture has no {other:?}"),
        };
        last = (String::new(), 0);
        lines.push(line);
    }
    lines
}

/// The bytes that passed, for each connection and direction.
pub fn bytes_of(seen: &[Seen]) -> BTreeMap<(u64, bool), Vec<u8>> {
    let mut streams: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for seen in seen {
        if let What::Bytes { direction, bytes } = &seen.what {
            assert!(!bytes.is_empty(), "no bytes are nothing to see");
            streams
                .entry((seen.connection.0, *direction == Direction::ToApplication))
                .or_default()
                .extend_from_slice(bytes);
        }
    }
    streams
}

/// The bytes that passed in their places: `None` for what is missing.
pub fn places_of(seen: &[Seen]) -> BTreeMap<(u64, bool), Vec<Option<u8>>> {
    let mut streams: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for seen in seen {
        let (direction, len, bytes) = match &seen.what {
            What::Bytes { direction, bytes } => (direction, 0, &bytes[..]),
            What::Gap { direction, len } => (direction, len.unwrap_or_default(), &[][..]),
            _ => continue,
        };
        let places = streams.entry((seen.connection.0, *direction == Direction::ToApplication)).or_default();
        places.extend((0..len).map(|_| None));
        places.extend(bytes.iter().map(|byte| Some(*byte)));
    }
    streams
}

/// All that a reader has now, and why it can't go on.
pub fn take(reader: &mut impl Reader, seen: &mut Vec<Seen>) -> Option<ReadError> {
    loop {
        match reader.next() {
            Ok(Some(next)) => seen.push(next),
            Ok(None) => return None,
            Err(error) => {
                assert_eq!(reader.next().as_ref(), Err(&error), "the same error comes again");
                return Some(error);
            }
        }
    }
}

/// Reads a file at once.
pub fn read_all(file: &[u8], settings: Settings) -> (Vec<Seen>, Option<ReadError>, LeftOut) {
    let (mut reader, mut seen) = (CaptureReader::new(settings), Vec::new());
    reader.receive(file);
    if let Some(error) = take(&mut reader, &mut seen) {
        return (seen, Some(error), reader.left_out());
    }
    reader.end();
    let error = take(&mut reader, &mut seen);
    (seen, error, reader.left_out())
}

/// What is seen in a whole file.
pub fn read(file: &[u8]) -> Vec<Seen> {
    let (seen, error, _) = read_all(file, Settings::default());
    assert_eq!(error, None);
    seen
}

/// Gives the file one byte at a time, and at each has the file end there: what is given out then is what the whole file begins with, but for gaps where more
/// could have come.
pub fn cut_everywhere(file: &[u8]) {
    let whole = read(file);
    let streams = places_of(&whole);
    let (mut reader, mut seen) = (CaptureReader::default(), Vec::new());
    // How much of each stream was given out before, and how much of `seen` that is.
    let (mut before, mut counted) = (BTreeMap::new(), 0);
    for cut in 0..file.len() {
        for (stream, places) in places_of(&seen[counted..]) {
            *before.entry(stream).or_insert(0) += places.len();
        }
        counted = seen.len();
        let (mut cut_here, mut seen_here) = (reader.clone(), Vec::new());
        cut_here.end();
        if let Some(error) = take(&mut cut_here, &mut seen_here) {
            assert!(error.offset <= cut as u64 && error.got.ends_with("the end of the file"), "cut at {cut}: {error}");
        }
        for (stream, places) in places_of(&seen_here) {
            let whole = &streams[&stream][before.get(&stream).copied().unwrap_or_default()..];
            let is_same = |(here, there): (&Option<u8>, &Option<u8>)| here.is_none() || here == there;
            assert!(places.len() <= whole.len() && places.iter().zip(whole).all(is_same), "cut at {cut}: {stream:?}");
        }
        reader.receive(&file[cut..=cut]);
        assert_eq!(take(&mut reader, &mut seen), None, "cut at {cut}");
    }
    reader.end();
    assert_eq!(take(&mut reader, &mut seen), None);
    assert_eq!(seen, whole);
}
