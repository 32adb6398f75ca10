//! The head of an answer, looked for in its first bytes as records bring them.

use bytes::BytesMut;

use crate::protocol::cgi::{Limits, ResponseHead, ResponseHeadDecoder, is_nph};

/// An answer's first bytes, until its head is known. Every byte is looked at once.
#[derive(Debug, Default)]
pub(super) struct AwaitedHead {
    buffer: BytesMut,
    /// Once the first bytes say which kind of head it is.
    decoder: Option<ResponseHeadDecoder>,
}

/// Up to how many bytes a head is looked for.
pub(super) const MAX_HEAD: usize = 16 * 1024;

impl AwaitedHead {
    /// Takes what comes next. `None` while more is needed; else the head, or why there is none, after which there is nothing more to take.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Result<ResponseHead, String>> {
        let room = MAX_HEAD.saturating_sub(self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if self.decoder.is_none() {
            let limits = Limits { max_len: MAX_HEAD, ..Limits::default() };
            self.decoder = is_nph(&self.buffer).map(|is_nph| match is_nph {
                true => ResponseHeadDecoder::nph(limits),
                false => ResponseHeadDecoder::new(limits),
            });
        }
        match self.decoder.as_mut()?.decode(&mut self.buffer) {
            Ok(Some(head)) => Some(Ok(head)),
            Ok(None) if self.buffer.len() < MAX_HEAD => None,
            Ok(None) => Some(Err(format!("no end within {MAX_HEAD} bytes"))),
            Err(error) => Some(Err(error.to_string())),
        }
    }

    /// The first bytes of the body, once the head is known.
    pub(super) fn body(&self) -> &[u8] {
        &self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_found_byte_by_byte_and_looked_for_no_further_than_the_limit() {
        for (text, expected) in [("A: b\n\nbody", 200), ("HTTP/1.1 404 No\r\n\r\nbody", 404), ("Status: 500\n\n", 500)]
        {
            let mut head = AwaitedHead::default();
            let found = text.bytes().find_map(|byte| head.feed(&[byte])).unwrap().unwrap();
            assert_eq!(found.status_or_default().0, expected);
        }
        let mut head = AwaitedHead::default();
        assert!(head.feed(b"A: ").is_none());
        let error = head.feed(&[b'x'; 2 * MAX_HEAD]).unwrap().unwrap_err();
        assert_eq!(error, "no end within 16384 bytes");
    }
}
