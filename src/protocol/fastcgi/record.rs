//! The record: eight bytes of header, content, padding (FastCGI 3.3). Both ends send and receive nothing else.

use std::fmt;

use bytes::BufMut;
use nom::number::streaming::{be_u8, be_u16};
use nom::{Err, IResult, Parser};

/// What stands before every content: whose it is and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the content is.
    pub record_type: RecordType,
    /// Which request it belongs to; [`RequestId::NULL`] for the connection's own.
    pub request_id: RequestId,
    /// Bytes of content.
    pub content_len: u16,
    /// Bytes after the content that the receiver skips.
    pub padding_len: u8,
}

impl Header {
    /// A header whose padding brings the record to a multiple of eight bytes, as FastCGI 3.3 recommends.
    ///
    /// With at most [`MAX_PADDED_CONTENT_LEN`] bytes of content, content and padding stay at or under 65,535 together.
    /// Receivers that add both up in 16 bits read anything longer wrongly.
    pub fn padded(record_type: RecordType, request_id: RequestId, content_len: u16) -> Self {
        Self { record_type, request_id, content_len, padding_len: (content_len.wrapping_neg() & 7) as u8 }
    }

    /// The header at the start of `bytes`, `None` when fewer than eight are there.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        let Some(whole) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        match header(whole) {
            // FastCGI 3.3: this is version 1 of the protocol, and a record of another may be of any shape.
            Ok((_, (version, _))) if version != VERSION => Err(DecodeError::Version(version)),
            Ok((_, (_, header))) => Ok(Some(header)),
            // Numbers of a fixed width accept every byte, and none is missing.
            Err(Err::Incomplete(_) | Err::Error(()) | Err::Failure(())) => Ok(None),
        }
    }

    /// The eight bytes.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [id_1, id_0] = self.request_id.0.to_be_bytes();
        let [len_1, len_0] = self.content_len.to_be_bytes();
        [VERSION, self.record_type.into(), id_1, id_0, len_1, len_0, self.padding_len, 0]
    }
}

/// The version, and a header if that is the right one.
fn header(bytes: &[u8]) -> IResult<&[u8], (u8, Header), ()> {
    let (rest, (version, record_type, request_id, content_len, padding_len, _reserved)) =
        (be_u8, be_u8, be_u16, be_u16, be_u8, be_u8).parse(bytes)?;
    let (record_type, request_id) = (record_type.into(), RequestId(request_id));
    Ok((rest, (version, Header { record_type, request_id, content_len, padding_len })))
}

/// Writes one whole record, its padding as zeros.
///
/// # Panics
///
/// When `content` is longer than [`MAX_CONTENT_LEN`].
pub fn put_record(
    record_type: RecordType,
    request_id: RequestId,
    content: &[u8],
    padding_len: u8,
    out: &mut impl BufMut,
) {
    let content_len = u16::try_from(content.len()).expect("a record holds at most 65,535 bytes of content");
    out.put_slice(&Header { record_type, request_id, content_len, padding_len }.encode());
    out.put_slice(content);
    out.put_bytes(0, padding_len.into());
}

/// What a record is (FastCGI 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// The web server starts a request (FastCGI 5.1).
    BeginRequest,
    /// The web server gives a request up (FastCGI 5.4).
    AbortRequest,
    /// The application is done with a request (FastCGI 5.5).
    EndRequest,
    /// Stream: name-value pairs to the application (FastCGI 5.2).
    Params,
    /// Stream: the request's body to the application (FastCGI 5.3).
    Stdin,
    /// Stream: the answer to the web server (FastCGI 5.3).
    Stdout,
    /// Stream: error messages to the web server (FastCGI 5.3).
    Stderr,
    /// Stream: a Filter's file to the application (FastCGI 5.3).
    Data,
    /// The web server asks what the application can do (FastCGI 4.1).
    GetValues,
    /// The application's answer to that (FastCGI 4.1).
    GetValuesResult,
    /// The application's answer to a management record that it does not know (FastCGI 4.2).
    UnknownType,
    /// A type that FastCGI 1.0 has no name for.
    Unknown(u8),
}

impl From<u8> for RecordType {
    #[inline]
    fn from(byte: u8) -> Self {
        match byte {
            0x01 => Self::BeginRequest,
            0x02 => Self::AbortRequest,
            0x03 => Self::EndRequest,
            0x04 => Self::Params,
            0x05 => Self::Stdin,
            0x06 => Self::Stdout,
            0x07 => Self::Stderr,
            0x08 => Self::Data,
            0x09 => Self::GetValues,
            0x0a => Self::GetValuesResult,
            0x0b => Self::UnknownType,
            unknown => Self::Unknown(unknown),
        }
    }
}

impl From<RecordType> for u8 {
    #[inline]
    fn from(record_type: RecordType) -> Self {
        match record_type {
            RecordType::BeginRequest => 0x01,
            RecordType::AbortRequest => 0x02,
            RecordType::EndRequest => 0x03,
            RecordType::Params => 0x04,
            RecordType::Stdin => 0x05,
            RecordType::Stdout => 0x06,
            RecordType::Stderr => 0x07,
            RecordType::Data => 0x08,
            RecordType::GetValues => 0x09,
            RecordType::GetValuesResult => 0x0a,
            RecordType::UnknownType => 0x0b,
            RecordType::Unknown(unknown) => unknown,
        }
    }
}

/// The specification's name without its `FCGI_`.
impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeginRequest => "BEGIN_REQUEST",
            Self::AbortRequest => "ABORT_REQUEST",
            Self::EndRequest => "END_REQUEST",
            Self::Params => "PARAMS",
            Self::Stdin => "STDIN",
            Self::Stdout => "STDOUT",
            Self::Stderr => "STDERR",
            Self::Data => "DATA",
            Self::GetValues => "GET_VALUES",
            Self::GetValuesResult => "GET_VALUES_RESULT",
            Self::UnknownType => "UNKNOWN_TYPE",
            Self::Unknown(unknown) => return write!(f, "type {unknown}"),
        })
    }
}

/// Which of a connection's requests a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u16);

impl RequestId {
    /// The id of management records, which belong to no request (FastCGI 3.3).
    pub const NULL: Self = Self(0);
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first byte is not [`VERSION`].
    #[error("expected a record of FastCGI version 1, got one of version {0}")]
    Version(u8),
}

/// The only version there is.
pub const VERSION: u8 = 0x01;

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 8;

/// The most content that a record can have.
pub const MAX_CONTENT_LEN: usize = 0xffff;

/// The most padding that a record can have.
pub const MAX_PADDING_LEN: usize = 0xff;

/// The most content that is sent in one record: what needs no padding to be a multiple of eight.
pub const MAX_PADDED_CONTENT_LEN: usize = 0xfff8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_these_eight_bytes() {
        let table = [
            // FastCGI appendix B, the first example: {FCGI_BEGIN_REQUEST, 1, …} and its friends.
            ([1, 0x01, 0, 1, 0, 8, 0, 0], RecordType::BeginRequest, 1, 8, 0),
            ([1, 0x04, 0, 1, 0, 46, 2, 0], RecordType::Params, 1, 46, 2),
            ([1, 0x05, 0, 1, 0, 0, 0, 0], RecordType::Stdin, 1, 0, 0),
            ([1, 0x03, 0x01, 0x02, 0, 8, 0, 0], RecordType::EndRequest, 0x0102, 8, 0),
            ([1, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0], RecordType::Stdout, 0xffff, 0xffff, 0xff),
            ([1, 0x0c, 0, 0, 0, 0, 0, 0], RecordType::Unknown(12), 0, 0, 0),
        ];
        for (bytes, record_type, request_id, content_len, padding_len) in table {
            let header = Header { record_type, request_id: RequestId(request_id), content_len, padding_len };
            assert_eq!(Header::decode(&bytes), Ok(Some(header)));
            assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn a_header_cut_anywhere_is_incomplete() {
        for cut in 0..HEADER_LEN {
            assert_eq!(Header::decode(&[1, 4, 0, 1, 0, 46, 2, 0][..cut]), Ok(None));
        }
    }

    #[test]
    fn another_version_is_an_error() {
        assert_eq!(Header::decode(b"GET / HTTP/1.1"), Err(DecodeError::Version(b'G')));
        assert_eq!(Header::decode(&[0; 8]), Err(DecodeError::Version(0)));
    }

    #[test]
    fn reserved_bytes_are_ignored() {
        let header = Header::decode(&[1, 5, 0, 1, 0, 3, 5, 0xff]);
        assert_eq!(header, Ok(Some(Header::padded(RecordType::Stdin, RequestId(1), 3))));
    }

    #[test]
    fn content_and_padding_that_are_sent_stay_within_sixteen_bits() {
        for content_len in 0..=MAX_PADDED_CONTENT_LEN as u16 {
            let header = Header::padded(RecordType::Stdout, RequestId(1), content_len);
            let total = usize::from(content_len) + usize::from(header.padding_len);
            assert!(total.is_multiple_of(8) && total <= MAX_CONTENT_LEN, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(record_type: u8, id: u16, content_len: u16, padding_len: u8) {
            let header =
                Header { record_type: record_type.into(), request_id: RequestId(id), content_len, padding_len };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
            prop_assert_eq!(u8::from(header.record_type), record_type);
        }
    }
}
