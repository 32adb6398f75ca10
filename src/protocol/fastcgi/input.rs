//! What one end has received and not yet made into events, cut into records.

use bytes::{Buf, Bytes, BytesMut};

use super::record::{DecodeError, HEADER_LEN, Header};

/// Received bytes and where in a record they stand.
///
/// A header is decoded once; after that the content is counted down, so a record that arrives byte by byte costs no
/// more looks at its header, and what is skipped is never read as one.
#[derive(Debug, Default)]
pub(super) struct Input {
    buffer: BytesMut,
    /// The record whose content is awaited, never one of which all content was taken.
    current: Option<Header>,
    /// How much of the current record's content has not been taken.
    content_left: u16,
    /// Padding and unwanted content to be skipped before the next header: at most 65,535 + 255.
    skip: u32,
}

impl Input {
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The header of the record at hand, `None` when more bytes are needed.
    ///
    /// It stays the same until its content is taken or skipped.
    pub(super) fn header(&mut self) -> Result<Option<Header>, DecodeError> {
        if let Some(header) = self.current {
            return Ok(Some(header));
        }
        if self.skip > 0 {
            let here = (self.skip as usize).min(self.buffer.len());
            self.buffer.advance(here);
            // It was the smaller of both, so it fits.
            self.skip -= here as u32;
            if self.skip > 0 {
                return Ok(None);
            }
        }
        let Some(header) = Header::decode(&self.buffer)? else { return Ok(None) };
        self.buffer.advance(HEADER_LEN);
        self.current = Some(header);
        self.content_left = header.content_len;
        Ok(Some(header))
    }

    /// The header after the record that was taken or skipped, where it is here.
    pub(super) fn next_header(&self) -> Option<Header> {
        let after = self.buffer.get(self.skip as usize..).filter(|_| self.current.is_none())?;
        Header::decode(after).ok().flatten()
    }

    /// How much of the current record's content has not been taken, here or not.
    pub(super) fn content_left(&self) -> u16 {
        self.content_left
    }

    /// What is here of the current record's content that has not been taken.
    pub(super) fn content(&self) -> &[u8] {
        &self.buffer[..self.buffer.len().min(self.content_left.into())]
    }

    /// The current record's content once all of it is here.
    pub(super) fn whole_content(&self) -> Option<&[u8]> {
        self.buffer.get(..self.content_left.into())
    }

    /// Takes what is here of the current record's content: `None` when nothing is here.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let here = self.content().len();
        if here == 0 {
            return None;
        }
        let bytes = if here >= SHARE_FROM {
            let bytes = self.buffer.split_to(here).freeze();
            self.count(here);
            bytes
        } else {
            let bytes = Bytes::copy_from_slice(self.content());
            self.consume(here);
            bytes
        };
        Some(bytes)
    }

    /// Leaves `len` bytes of what [`Input::content`] gave behind.
    pub(super) fn consume(&mut self, len: usize) {
        self.buffer.advance(len);
        self.count(len);
    }

    fn count(&mut self, len: usize) {
        debug_assert!(len <= usize::from(self.content_left));
        self.content_left -= len as u16;
        if self.content_left == 0 {
            self.skip_rest();
        }
    }

    /// Goes on to the next record, whatever of this one is still to come.
    pub(super) fn skip_rest(&mut self) {
        if let Some(header) = self.current.take() {
            self.skip = u32::from(self.content_left) + u32::from(header.padding_len);
            self.content_left = 0;
        }
    }

    /// Whether the last record was complete and nothing came after it.
    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.skip == 0 && self.buffer.is_empty()
    }
}

/// From how many bytes on content shares the buffer that it arrived in. Less is copied: it would keep all of that buffer, and up
/// to here the copy costs no more than the sharing.
const SHARE_FROM: usize = 512;
