//! The head of what a script puts out, in either of its two forms: that of a CGI answer, and that of an NPH script, which speaks HTTP
//! itself (RFC 3875 section 5).
//!
//! An NPH answer is taken apart: its status and fields are sent on, its interim answers are not, and what it says about the
//! connection is the server's to say. Chunks are not put together: a `Transfer-Encoding` is refused in both forms.

use std::mem;

use bytes::BytesMut;

use crate::application::{Headers, is_hop_by_hop};
use crate::protocol::Pairs;
use crate::protocol::cgi::{HeadError, Limits, ResponseHead, ResponseHeadDecoder, is_nph};

/// How many interim answers (1xx) may come before the answer itself.
const MAX_INTERIM: usize = 16;

/// Reads the head of one script's output.
#[derive(Debug)]
pub(super) struct HeadReader {
    limits: Limits,
    /// Whether it may be an NPH answer.
    nph: bool,
    /// Known from the first bytes on, with whether it is that of an NPH answer.
    decoder: Option<(ResponseHeadDecoder, bool)>,
    interim: usize,
}

impl HeadReader {
    /// For one script's output, which is an NPH answer only if `nph` lets it.
    pub(super) fn new(limits: Limits, nph: bool) -> Self {
        Self { limits, nph, decoder: None, interim: 0 }
    }

    /// Takes the head off the front of `buffer`; `Ok(None)` when it is not all there. What stays in `buffer` is body.
    ///
    /// Between calls `buffer` may only grow at its end.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<ResponseHead>, HeadError> {
        loop {
            let (decoder, is_nph) = match &mut self.decoder {
                Some(decoder) => decoder,
                // The form is told by the first bytes: no line of a CGI head can begin with `HTTP/`.
                None => match self.nph.then(|| is_nph(buffer)) {
                    Some(None) => return Ok(None),
                    Some(Some(true)) => self.decoder.insert((ResponseHeadDecoder::nph(self.limits), true)),
                    None | Some(Some(false)) => self.decoder.insert((ResponseHeadDecoder::new(self.limits), false)),
                },
            };
            let Some(head) = decoder.decode(buffer)? else { return Ok(None) };
            match head.status.as_ref().map(|status| status.code) {
                // RFC 9110 15.2: interim answers come before the final one; they are this hop's.
                Some(code @ (100 | 102..=199)) if *is_nph => {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Err(HeadError::NotFinal { code });
                    }
                }
                Some(code @ 100..=199) => return Err(HeadError::NotFinal { code }),
                _ => return Ok(Some(head)),
            }
        }
    }
}

/// The fields that are for the client: all but those that speak of one connection, and those that `Connection` names
/// (RFC 9110 7.6.1). RFC 3875 6.3.4 lets a server drop them, and scripts written for other servers send `Connection: close`.
pub(super) fn end_to_end(head: &mut ResponseHead) -> Headers {
    let mut fields = mem::take(&mut head.headers);
    if fields.iter().any(|(name, _)| is_hop_by_hop(name)) {
        let named: Vec<Vec<u8>> = fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"Connection"))
            .flat_map(|(_, value)| value.split(|byte| *byte == b','))
            .map(|name| name.trim_ascii().to_ascii_lowercase())
            .collect();
        let kept: Pairs = fields
            .iter()
            .filter(|(name, _)| !is_hop_by_hop(name) && !named.contains(&name.to_ascii_lowercase()))
            .collect();
        fields = kept;
    }
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, nph: bool) -> Result<Option<(ResponseHead, String)>, HeadError> {
        let mut reader = HeadReader::new(Limits::default(), nph);
        let mut buffer = BytesMut::new();
        // One byte at a time: no cut makes a difference.
        for (at, byte) in output.bytes().enumerate() {
            buffer.extend_from_slice(&[byte]);
            if let Some(head) = reader.decode(&mut buffer)? {
                return Ok(Some((head, output[at + 1..].to_owned())));
            }
        }
        Ok(None)
    }

    #[test]
    fn both_forms_are_told_by_their_first_bytes() {
        let (head, body) = read("HTTP/1.1 404 Gone fishing\r\nX: 1\r\n\r\nbody", true).unwrap().unwrap();
        assert_eq!((head.status_or_default(), body.as_str()), ((404, &b"Gone fishing"[..]), "body"));
        let (head, _) = read("Status: 404 Gone fishing\nX: 1\n\nbody", true).unwrap().unwrap();
        assert_eq!(head.status_or_default(), (404, &b"Gone fishing"[..]));
        assert!(read("HTTP/1.1 200 OK\n\n", false).is_err());
        assert_eq!(read("HTT", true).unwrap(), None);
    }

    #[test]
    fn interim_answers_do_not_leak() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let (head, body) = read(&format!("{interim}HTTP/1.1 200 OK\r\nX: 1\r\n\r\nbody"), true).unwrap().unwrap();
        assert_eq!((head.status_or_default().0, head.field(b"Link"), body.as_str()), (200, None, "body"));
        assert_eq!(read(&interim.repeat(MAX_INTERIM + 1), true).unwrap_err(), HeadError::NotFinal { code: 103 });
        assert_eq!(read("HTTP/1.1 101 Switching\r\n\r\n", true).unwrap_err(), HeadError::NotFinal { code: 101 });
        assert_eq!(read("Status: 103 Early\n\n", true).unwrap_err(), HeadError::NotFinal { code: 103 });
    }

    #[test]
    fn what_speaks_of_the_connection_is_not_passed_on() {
        let (mut head, _) = read(
            "HTTP/1.1 200 OK\nconnection: close, X-Hop\nKeep-Alive: timeout=5\nx-hop: 1\nX-End: 2\nSet-Cookie: a\nSet-Cookie: b\n\n",
            true,
        )
        .unwrap()
        .unwrap();
        let fields = end_to_end(&mut head);
        assert_eq!(fields, Headers::from([("X-End", "2"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]));
    }

    #[test]
    fn chunks_are_refused_in_both_forms() {
        for output in ["HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", "A: b\nTransfer-Encoding: chunked\n\n"] {
            let error = read(output, true).unwrap_err().to_string();
            assert!(error.contains("expected no Transfer-Encoding"), "{error}");
        }
    }
}
