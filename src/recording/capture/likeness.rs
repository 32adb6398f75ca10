//! Which connections of a capture are FastCGI: what their bytes look like.

use crate::protocol::fastcgi::{HEADER_LEN, Header, RecordType, RequestId, VERSION};
use crate::recording::Direction;

/// Whether a direction that begins like this begins with a record: `None` while it is too short to tell.
///
/// This is lenient, so that what breaks the specification is seen, too. The first byte alone tells FastCGI from what else is spoken between servers.
pub(super) fn begins_with_record(start: &[u8]) -> Option<bool> {
    match start {
        [] => None,
        [version, ..] if *version != VERSION => Some(false),
        [_, record_type, ..] if matches!(RecordType::from(*record_type), RecordType::Unknown(_)) => Some(false),
        _ if start.len() < HEADER_LEN => None,
        _ => Some(true),
    }
}

/// To whom a piece from the middle of a direction goes, if there are records in it: two that follow each other, or the piece is one.
/// In bytes that are none, such a thing is found by chance once in terabytes.
pub(super) fn direction_of(piece: &[u8]) -> Option<Direction> {
    let likely = |offset: usize| piece.get(offset..).and_then(likely_header);
    // Nearly all offsets are ruled out by their first byte.
    memchr::memchr_iter(VERSION, piece).find_map(|offset| {
        let (header, direction) = likely(offset)?;
        let end = offset + HEADER_LEN + usize::from(header.content_len) + usize::from(header.padding_len);
        let is_all = offset == 0 && end == piece.len();
        let is_followed = likely(end).is_some_and(|(_, next)| next == direction);
        (is_all || is_followed).then_some(direction)
    })
}

/// A header as those are that servers send, and who receives such a record.
fn likely_header(bytes: &[u8]) -> Option<(Header, Direction)> {
    let header = Header::decode(bytes).ok()??;
    let management = header.request_id == RequestId::NULL;
    let direction = match (header.record_type, header.content_len) {
        (RecordType::BeginRequest, 8) | (RecordType::AbortRequest, 0) if !management => Direction::ToApplication,
        (RecordType::Params | RecordType::Stdin | RecordType::Data, _) if !management => Direction::ToApplication,
        (RecordType::EndRequest, 8) | (RecordType::Stdout | RecordType::Stderr, _) if !management => {
            Direction::ToWebServer
        }
        (RecordType::GetValues, _) if management => Direction::ToApplication,
        (RecordType::GetValuesResult, _) | (RecordType::UnknownType, 8) if management => Direction::ToWebServer,
        _ => return None,
    };
    // The last byte of a header is reserved. All servers send 0.
    (bytes[HEADER_LEN - 1] == 0).then_some((header, direction))
}
