//! What one end has to write, in order, until its owner's socket takes it.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::body::BODY_LEN;
use super::record::{Header, MAX_PADDED_CONTENT_LEN, RecordType, RequestId};

/// A queue of bytes to write.
///
/// Read it as a [`Buf`]: write [`Buf::chunk`] or [`Buf::chunks_vectored`] and [`Buf::advance`] by what was written.
/// Headers, paddings and short payloads lie in one buffer, so a small response is one chunk; payloads of at least
/// [`Output::SHARE_FROM`] bytes stand between as they came.
#[derive(Debug, Default)]
pub struct Output {
    /// All the bytes that were copied, those of `small_start` on not yet written.
    small: Vec<u8>,
    small_start: usize,
    large: VecDeque<Large>,
    /// Bytes in `large`.
    large_len: usize,
    /// Bytes of `small` that come after the last of `large`.
    after_large: usize,
}

/// A payload that was not copied.
#[derive(Debug)]
struct Large {
    /// How many bytes of `small` come between the large payload before this one and this one.
    before: usize,
    payload: Bytes,
}

impl Output {
    /// From how many bytes on a payload is queued as it is rather than copied: where copying it costs about as much as
    /// two more parts of a vectored write.
    pub const SHARE_FROM: usize = 4 * 1024;

    /// How much memory is kept for the next response once all is written. What a long response needed is given back.
    pub const KEPT_CAPACITY: usize = 8 * 1024;

    /// Bytes not yet written.
    pub fn len(&self) -> usize {
        self.small.len() - self.small_start + self.large_len
    }

    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues one record with little content, padded.
    pub(super) fn put_record(&mut self, record_type: RecordType, request_id: RequestId, content: &[u8]) {
        debug_assert!(content.len() <= MAX_PADDED_CONTENT_LEN);
        let header = Header::padded(record_type, request_id, content.len() as u16);
        self.copy([&header.encode(), content, &PADDING[..usize::from(header.padding_len)]]);
    }

    /// Queues what each answer ends with, the end of STDOUT and END_REQUEST with this content: one part rather than four.
    pub(super) fn put_end(&mut self, request_id: RequestId, content: &[u8; BODY_LEN]) {
        let end_of_stdout = Header::padded(RecordType::Stdout, request_id, 0).encode();
        let end_request = Header::padded(RecordType::EndRequest, request_id, BODY_LEN as u16).encode();
        self.copy([&end_of_stdout, &end_request, content]);
    }

    /// Queues a part of a stream, as many records as it needs. An empty part is no record: that would end the stream.
    pub(super) fn put_stream(&mut self, record_type: RecordType, request_id: RequestId, mut data: Bytes) {
        while data.len() >= Self::SHARE_FROM {
            let payload = data.split_to(data.len().min(MAX_PADDED_CONTENT_LEN));
            // The line above keeps it within sixteen bits.
            let header = Header::padded(record_type, request_id, payload.len() as u16);
            self.copy([&header.encode()]);
            self.share(payload);
            self.copy([&PADDING[..usize::from(header.padding_len)]]);
        }
        self.put_stream_slice(record_type, request_id, &data);
    }

    /// The same for bytes that are not in a [`Bytes`]: all are copied.
    pub(super) fn put_stream_slice(&mut self, record_type: RecordType, request_id: RequestId, data: &[u8]) {
        for content in data.chunks(MAX_PADDED_CONTENT_LEN) {
            self.put_record(record_type, request_id, content);
        }
    }

    fn copy<const COUNT: usize>(&mut self, parts: [&[u8]; COUNT]) {
        let len = parts.iter().map(|part| part.len()).sum();
        self.make_room(len);
        parts.iter().for_each(|part| self.small.extend_from_slice(part));
        self.after_large += len;
    }

    fn share(&mut self, payload: Bytes) {
        self.large_len += payload.len();
        self.large.push_back(Large { before: std::mem::take(&mut self.after_large), payload });
    }

    /// Moves what is not yet written to the front rather than growing, when that is less than was written.
    fn make_room(&mut self, additional: usize) {
        if self.small.capacity() - self.small.len() >= additional {
            return;
        }
        if self.small_start >= self.small.len() / 2 {
            self.small.drain(..self.small_start);
            self.small_start = 0;
        }
        self.small.reserve(additional);
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        match self.large.front() {
            Some(Large { before: 0, payload }) => payload,
            Some(Large { before, .. }) => &self.small[self.small_start..][..*before],
            None => &self.small[self.small_start..],
        }
    }

    fn chunks_vectored<'a>(&'a self, chunks: &mut [IoSlice<'a>]) -> usize {
        let mut small = &self.small[self.small_start..];
        let pieces = self.large.iter().flat_map(|Large { before, payload }| {
            let (piece, rest) = small.split_at(*before);
            small = rest;
            [piece, payload]
        });
        let mut filled = 0;
        let mut pieces = pieces.filter(|piece| !piece.is_empty());
        for chunk in chunks.iter_mut() {
            let Some(piece) = pieces.next() else { break };
            *chunk = IoSlice::new(piece);
            filled += 1;
        }
        drop(pieces);
        if let Some(chunk) = chunks.get_mut(filled)
            && self.after_large > 0
        {
            *chunk = IoSlice::new(&self.small[self.small.len() - self.after_large..]);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut written: usize) {
        assert!(written <= self.len(), "{written} bytes cannot be written of {}", self.len());
        while written > 0 {
            let Some(Large { before, payload }) = self.large.front_mut() else {
                self.small_start += written;
                self.after_large -= written;
                break;
            };
            let copied = written.min(*before);
            *before -= copied;
            self.small_start += copied;
            written -= copied;
            let shared = written.min(payload.len());
            payload.advance(shared);
            self.large_len -= shared;
            written -= shared;
            if payload.is_empty() {
                self.large.pop_front();
            }
        }
        if self.is_empty() {
            self.small.clear();
            self.small_start = 0;
            self.small.shrink_to(Self::KEPT_CAPACITY);
            self.large.shrink_to(KEPT_LARGE);
        }
    }
}

/// How many places for large payloads are kept once all is written.
const KEPT_LARGE: usize = 32;

/// Padding is sent as zeros: whatever else it held would be somebody's memory.
const PADDING: [u8; 7] = [0; 7];

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId(1);

    #[test]
    fn small_records_are_one_chunk() {
        let mut output = Output::default();
        output.put_stream_slice(RecordType::Stdout, ID, b"hello");
        output.put_stream(RecordType::Stdout, ID, Bytes::from_static(b""));
        output.put_record(RecordType::Stdout, ID, b"");
        let expected = b"\x01\x06\0\x01\0\x05\x03\0hello\0\0\0\x01\x06\0\x01\0\0\0\0";
        assert_eq!(output.chunk(), expected);
        assert_eq!(output.len(), expected.len());
        let mut chunks = [IoSlice::new(b""); 4];
        assert_eq!(output.chunks_vectored(&mut chunks), 1);
        output.advance(expected.len());
        assert!(output.is_empty());
        assert!(output.chunk().is_empty());
    }

    #[test]
    fn large_payloads_are_not_copied() {
        let payload = Bytes::from(vec![b'x'; MAX_PADDED_CONTENT_LEN + 5001]);
        let mut output = Output::default();
        output.put_stream_slice(RecordType::Stdout, ID, b"head");
        output.put_stream(RecordType::Stdout, ID, payload.clone());
        output.put_record(RecordType::Stdout, ID, b"");
        let mut chunks = [IoSlice::new(b""); 8];
        assert_eq!(output.chunks_vectored(&mut chunks), 5);
        assert_eq!(chunks[1].as_ptr(), payload.as_ptr());
        assert_eq!(chunks[1].len(), MAX_PADDED_CONTENT_LEN);
        assert_eq!(chunks[3].as_ptr(), payload[MAX_PADDED_CONTENT_LEN..].as_ptr());
        assert_eq!((chunks[0].len(), chunks[2].len(), chunks[4].len()), (16 + 8, 8, 7 + 8));
        let mut few = [IoSlice::new(b""); 2];
        assert_eq!(output.chunks_vectored(&mut few), 2);
    }

    #[test]
    fn bytes_come_out_in_order_however_they_are_taken() {
        for step in [1, 3, 8, 4096, 70_000] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            let mut taken = Vec::new();
            for round in 0..40_usize {
                let data = vec![round as u8; (round * 397) % 9000 + 1];
                super::super::put_record(
                    RecordType::Stdout,
                    ID,
                    &data,
                    (data.len().wrapping_neg() & 7) as u8,
                    &mut expected,
                );
                output.put_stream(RecordType::Stdout, ID, data.into());
                let mut chunks = [IoSlice::new(b""); 128];
                let filled = output.chunks_vectored(&mut chunks);
                assert_eq!(chunks[..filled].iter().map(|chunk| chunk.len()).sum::<usize>(), output.len());
                // Not all is taken, so that what is left is moved and added to.
                for _ in 0..20 {
                    let n = step.min(output.chunk().len());
                    taken.extend_from_slice(&output.chunk()[..n]);
                    output.advance(n);
                }
            }
            taken.extend_from_slice(&output.copy_to_bytes(output.len()));
            assert_eq!(taken, expected);
        }
    }

    #[test]
    fn memory_of_a_long_answer_is_given_back() {
        let mut output = Output::default();
        for _ in 0..1000 {
            output.put_stream_slice(RecordType::Stdout, ID, &[0; 1000]);
        }
        output.advance(output.len());
        assert!(output.small.capacity() <= Output::KEPT_CAPACITY);
        output.put_stream_slice(RecordType::Stdout, ID, b"hello");
        let capacity = output.small.capacity();
        output.advance(output.len());
        assert_eq!(output.small.capacity(), capacity);
    }
}
