//! What is known of status codes: their names, and which answers have no body.

/// Whether an answer of this status to this method has a body.
///
/// An answer to HEAD has none, nor has one of 1xx, 204 or 304 (RFC 9110 6.4.1). What a script sends all the same is read
/// and dropped (RFC 3875 4.3.2).
pub fn allows_body(status_code: u16, request_method: &[u8]) -> bool {
    !matches!(status_code, 100..=199 | 204 | 304) && request_method != b"HEAD"
}

/// The reason phrase of a status code in IANA's registry, `Unassigned` where it has none.
pub fn default_reason(status_code: u16) -> &'static str {
    match status_code {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        104 => "Upload Resumption Supported",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "Unassigned",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_no_content_not_modified_and_head_have_no_body() {
        for (code, method, expected) in [
            (200, "GET", true),
            (200, "HEAD", false),
            (200, "head", true),
            (100, "GET", false),
            (199, "GET", false),
            (204, "POST", false),
            (205, "POST", true),
            (304, "GET", false),
            (404, "GET", true),
            (404, "HEAD", false),
        ] {
            assert_eq!(allows_body(code, method.as_bytes()), expected, "{code} {method}");
        }
    }

    #[test]
    fn every_code_has_a_reason() {
        assert_eq!(default_reason(200), "OK");
        assert_eq!(default_reason(418), "Unassigned");
        for code in 0..=u16::MAX {
            let reason = default_reason(code);
            assert!(
                !reason.is_empty()
                    && reason.bytes().all(|byte| byte == b'-' || byte == b' ' || byte.is_ascii_alphabetic())
            );
        }
    }
}
