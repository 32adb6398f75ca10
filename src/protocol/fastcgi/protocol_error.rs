//! What the peer did that ends a connection.

use super::body::BodyError;
use super::name_value::NameValueError;
use super::record::{DecodeError, RecordType, RequestId};

/// Bytes after which nothing more on the connection can be trusted. Both ends give it, and go on giving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// What came is no record.
    #[error(transparent)]
    Record(#[from] DecodeError),
    /// A record of a fixed length had another.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A record that belongs to a request named none (FastCGI 3.3).
    #[error("expected a request id in {0}, got 0")]
    NullRequestId(RecordType),
    /// A request began under the id of one that had not ended (FastCGI 3.3).
    #[error("expected an id that is free in BEGIN_REQUEST, got {0}, whose request has not ended")]
    ActiveRequestId(RequestId),
    /// A stream began before the one ahead of it had ended (FastCGI 6.1).
    #[error("expected the end of {expected} of request {id}, got {record_type}")]
    OutOfOrder {
        /// The request.
        id: RequestId,
        /// What came.
        record_type: RecordType,
        /// The stream that was still open.
        expected: RecordType,
    },
    /// A stream went on after its end (FastCGI 3.3).
    #[error("expected nothing more in {record_type} of request {id}, got {len} bytes")]
    StreamEnded {
        /// The request.
        id: RequestId,
        /// The stream.
        record_type: RecordType,
        /// Bytes of content that came after the end.
        len: u16,
    },
    /// GET_VALUES or GET_VALUES_RESULT is over the limit.
    #[error("expected at most {limit} bytes in {record_type}, got {len}")]
    ManagementTooLong {
        /// Which of the two.
        record_type: RecordType,
        /// Bytes of content.
        len: u16,
        /// The setting `max_management_len`.
        limit: usize,
    },
    /// GET_VALUES or GET_VALUES_RESULT holds something other than pairs.
    #[error("{record_type}: {error}")]
    ManagementPairs {
        /// Which of the two.
        record_type: RecordType,
        /// What is wrong with them.
        error: NameValueError,
    },
}
