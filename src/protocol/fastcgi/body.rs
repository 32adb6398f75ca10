//! The records whose content is always eight bytes: BEGIN_REQUEST, END_REQUEST and UNKNOWN_TYPE.

use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16, be_u32};
use nom::{IResult, Parser};

use super::record::RecordType;

/// How a request begins (FastCGI 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeginRequest {
    /// What the application is asked to be.
    pub role: Role,
    /// Whether the application leaves the connection open after its answer: the flag FCGI_KEEP_CONN.
    pub keep_connection: bool,
}

impl BeginRequest {
    /// The flag for [`BeginRequest::keep_connection`]. The others have no meaning and are ignored.
    pub const KEEP_CONN: u8 = 0x01;

    /// The body that `content`, a whole record's, is.
    pub fn decode(content: &[u8]) -> Result<Self, BodyError> {
        whole(RecordType::BeginRequest, content, |content| {
            let (rest, (role, flags, _reserved)) = (be_u16, be_u8, take(5_usize)).parse(content)?;
            Ok((rest, Self { role: role.into(), keep_connection: flags & Self::KEEP_CONN != 0 }))
        })
    }

    /// The eight bytes.
    pub fn encode(self) -> [u8; BODY_LEN] {
        let [role_1, role_0] = u16::from(self.role).to_be_bytes();
        [role_1, role_0, if self.keep_connection { Self::KEEP_CONN } else { 0 }, 0, 0, 0, 0, 0]
    }
}

/// What an application is asked to be (FastCGI 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Answers a request, as a CGI program does (FastCGI 6.2).
    Responder,
    /// Says whether a request is allowed (FastCGI 6.3).
    Authorizer,
    /// Answers with a file that the web server sends along, changed (FastCGI 6.4).
    Filter,
    /// A role that FastCGI 1.0 has no name for.
    Unknown(u16),
}

impl From<u16> for Role {
    fn from(number: u16) -> Self {
        match number {
            0x0001 => Self::Responder,
            0x0002 => Self::Authorizer,
            0x0003 => Self::Filter,
            unknown => Self::Unknown(unknown),
        }
    }
}

impl From<Role> for u16 {
    fn from(role: Role) -> Self {
        match role {
            Role::Responder => 0x0001,
            Role::Authorizer => 0x0002,
            Role::Filter => 0x0003,
            Role::Unknown(unknown) => unknown,
        }
    }
}

/// How a request ended (FastCGI 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndRequest {
    /// The exit status that the application would have had as a CGI program.
    pub application_status: u32,
    /// Whether the protocol had a part in the end.
    pub protocol_status: ProtocolStatus,
}

impl EndRequest {
    /// The body that `content`, a whole record's, is.
    pub fn decode(content: &[u8]) -> Result<Self, BodyError> {
        whole(RecordType::EndRequest, content, |content| {
            let (rest, (application_status, protocol_status, _reserved)) =
                (be_u32, be_u8, take(3_usize)).parse(content)?;
            Ok((rest, Self { application_status, protocol_status: protocol_status.into() }))
        })
    }

    /// The eight bytes.
    pub fn encode(self) -> [u8; BODY_LEN] {
        let [status_3, status_2, status_1, status_0] = self.application_status.to_be_bytes();
        [status_3, status_2, status_1, status_0, self.protocol_status.into(), 0, 0, 0]
    }
}

/// Why a request ended, as far as the protocol is concerned (FastCGI 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolStatus {
    /// The normal end.
    RequestComplete,
    /// Refused: the application takes one request at a time on a connection.
    CannotMultiplex,
    /// Refused: the application has run out of something.
    Overloaded,
    /// Refused: the application does not have the role.
    UnknownRole,
    /// A status that FastCGI 1.0 has no name for.
    Unknown(u8),
}

impl From<u8> for ProtocolStatus {
    fn from(byte: u8) -> Self {
        match byte {
            0x00 => Self::RequestComplete,
            0x01 => Self::CannotMultiplex,
            0x02 => Self::Overloaded,
            0x03 => Self::UnknownRole,
            unknown => Self::Unknown(unknown),
        }
    }
}

impl From<ProtocolStatus> for u8 {
    fn from(status: ProtocolStatus) -> Self {
        match status {
            ProtocolStatus::RequestComplete => 0x00,
            ProtocolStatus::CannotMultiplex => 0x01,
            ProtocolStatus::Overloaded => 0x02,
            ProtocolStatus::UnknownRole => 0x03,
            ProtocolStatus::Unknown(unknown) => unknown,
        }
    }
}

/// The answer to a management record of a type that the application does not know (FastCGI 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownType {
    /// The type that was not known, as it came.
    pub record_type: u8,
}

impl UnknownType {
    /// The body that `content`, a whole record's, is.
    pub fn decode(content: &[u8]) -> Result<Self, BodyError> {
        whole(RecordType::UnknownType, content, |content| {
            let (rest, (record_type, _reserved)) = (be_u8, take(7_usize)).parse(content)?;
            Ok((rest, Self { record_type }))
        })
    }

    /// The eight bytes.
    pub fn encode(self) -> [u8; BODY_LEN] {
        [self.record_type, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// Decodes content that has to be [`BODY_LEN`] bytes, no fewer and no more.
fn whole<'a, T>(
    record_type: RecordType,
    content: &'a [u8],
    decode: impl FnOnce(&'a [u8]) -> IResult<&'a [u8], T, ()>,
) -> Result<T, BodyError> {
    match decode(content) {
        Ok(([], body)) => Ok(body),
        _ => Err(BodyError { record_type, len: content.len() }),
    }
}

/// A record whose content has the wrong length for its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 8 bytes of content in {record_type}, got {len}")]
pub struct BodyError {
    /// What was to be decoded.
    pub record_type: RecordType,
    /// How many bytes of content it had.
    pub len: usize,
}

/// Bytes of each of these bodies.
pub(super) const BODY_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begin_request_is_these_eight_bytes() {
        let table = [
            ([0, 1, 0, 0, 0, 0, 0, 0], Role::Responder, false),
            ([0, 2, 1, 0, 0, 0, 0, 0], Role::Authorizer, true),
            ([0, 3, 1, 0, 0, 0, 0, 0], Role::Filter, true),
            ([1, 1, 0, 0, 0, 0, 0, 0], Role::Unknown(0x0101), false),
        ];
        for (bytes, role, keep_connection) in table {
            let body = BeginRequest { role, keep_connection };
            assert_eq!(BeginRequest::decode(&bytes), Ok(body));
            assert_eq!(body.encode(), bytes);
        }
    }

    #[test]
    fn unknown_flags_and_reserved_bytes_of_begin_request_are_ignored() {
        let body = BeginRequest { role: Role::Responder, keep_connection: false };
        assert_eq!(BeginRequest::decode(&[0, 1, 0xfe, 1, 2, 3, 4, 5]), Ok(body));
    }

    #[test]
    fn end_request_is_these_eight_bytes() {
        let table = [
            ([0, 0, 0, 0, 0, 0, 0, 0], 0, ProtocolStatus::RequestComplete),
            ([0, 0, 3, 0xaa, 0, 0, 0, 0], 938, ProtocolStatus::RequestComplete),
            ([0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0], u32::MAX, ProtocolStatus::CannotMultiplex),
            ([0, 0, 0, 1, 2, 0, 0, 0], 1, ProtocolStatus::Overloaded),
            ([0, 0, 0, 0, 3, 0, 0, 0], 0, ProtocolStatus::UnknownRole),
            ([0, 0, 0, 0, 4, 0, 0, 0], 0, ProtocolStatus::Unknown(4)),
        ];
        for (bytes, application_status, protocol_status) in table {
            let body = EndRequest { application_status, protocol_status };
            assert_eq!(EndRequest::decode(&bytes), Ok(body));
            assert_eq!(body.encode(), bytes);
        }
    }

    #[test]
    fn unknown_type_is_these_eight_bytes() {
        let body = UnknownType { record_type: 12 };
        assert_eq!(UnknownType::decode(&[12, 0, 0, 0, 0, 0, 0, 0]), Ok(body));
        assert_eq!(body.encode(), [12, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_short_or_long_body_is_an_error_that_says_what_came() {
        for len in (0..BODY_LEN).chain([9, 16]) {
            let content = [0; 16];
            let error = |record_type| BodyError { record_type, len };
            assert_eq!(BeginRequest::decode(&content[..len]), Err(error(RecordType::BeginRequest)));
            assert_eq!(EndRequest::decode(&content[..len]), Err(error(RecordType::EndRequest)));
            assert_eq!(UnknownType::decode(&content[..len]), Err(error(RecordType::UnknownType)));
        }
        let error = EndRequest::decode(&[0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "expected 8 bytes of content in END_REQUEST, got 5");
    }
}
