//! The head of a response: a status and header fields, as PEP 3333's `start_response` takes them.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use crate::protocol::Pairs;
use crate::protocol::cgi::{FieldError, Fields, default_reason};

/// Status and header fields. Order, duplicates and spelling are the application's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status with its reason.
    pub status: Status,
    /// The fields.
    pub headers: Headers,
}

impl Head {
    /// The body's length, where the head announces it.
    ///
    /// # Errors
    ///
    /// When Content-Length is there and not a number, or there twice with two numbers.
    pub fn content_length(&self) -> Result<Option<u64>, HeadError> {
        let mut length = None;
        for value in self.headers.all("Content-Length") {
            let number = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            match (number.and_then(|text| text.parse().ok()), length) {
                (Some(number), None) => length = Some(number),
                (Some(number), Some(before)) if number == before => {}
                _ => return Err(HeadError::ContentLength(value.escape_ascii().to_string())),
            }
        }
        Ok(length)
    }

    /// Checks what PEP 3333 lets a server refuse: names that are no token, control characters (the way in for response
    /// splitting), hop-by-hop fields, a Content-Length that is none.
    pub(crate) fn check(&mut self) -> Result<(), HeadError> {
        self.headers.fields.check()?;
        for (name, _) in self.headers.iter() {
            if is_hop_by_hop(name) {
                return Err(HeadError::HopByHop(name.escape_ascii().to_string()));
            }
        }
        self.content_length().map(drop)
    }
}

/// Why a status or header can't be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// Not three digits, a blank and a reason without control characters.
    #[error("expected a status such as \"200 OK\", got \"{0}\"")]
    Status(String),
    /// A header's name is no token or reserved, or its value holds CR, LF or NUL.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A header that speaks of the connection, which is the server's (PEP 3333, "Other HTTP Features").
    #[error("header {0} is hop-by-hop and the server's alone")]
    HopByHop(String),
    /// Content-Length is no number, or two.
    #[error("expected one decimal number as Content-Length, got \"{0}\"")]
    ContentLength(String),
}

impl From<Infallible> for HeadError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A status code with its reason phrase.
#[derive(Clone, PartialEq, Eq)]
pub struct Status {
    code: u16,
    /// `None` for the code's usual reason, so that the usual case allocates nothing.
    reason: Option<Box<[u8]>>,
}

impl Status {
    /// A code with its usual reason.
    ///
    /// # Errors
    ///
    /// When it is not within 100 to 999.
    pub fn new(code: u16) -> Result<Self, HeadError> {
        match code {
            100..=999 => Ok(Self { code, reason: None }),
            _ => Err(HeadError::Status(code.to_string())),
        }
    }

    /// A code with a reason of its own, which may be empty.
    ///
    /// # Errors
    ///
    /// When the code is not within 100 to 999, or the reason holds control characters or begins or ends with a blank.
    pub fn with_reason(code: u16, reason: impl AsRef<[u8]>) -> Result<Self, HeadError> {
        let reason = reason.as_ref();
        let is_blank = |byte: Option<&u8>| byte == Some(&b' ');
        if reason.iter().any(|byte| byte.is_ascii_control()) || is_blank(reason.first()) || is_blank(reason.last()) {
            return Err(HeadError::Status(format!("{code} {}", reason.escape_ascii())));
        }
        let usual = reason == default_reason(code).as_bytes();
        Ok(Self { reason: (!usual).then(|| reason.into()), ..Self::new(code)? })
    }

    /// Reads `200 OK`; the reason may be missing.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(status: impl AsRef<[u8]>) -> Result<Self, HeadError> {
        let status = status.as_ref();
        let refuse = || HeadError::Status(status[..status.len().min(64)].escape_ascii().to_string());
        let (digits, reason) = status.split_at_checked(3).ok_or_else(refuse)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(refuse());
        }
        let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
        match reason {
            [] | [b' '] => Self::new(code),
            [b' ', reason @ ..] => Self::with_reason(code, reason).map_err(|_| refuse()),
            _ => Err(refuse()),
        }
    }

    /// The three digits.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The reason phrase; its bytes may be anything but control characters.
    pub fn reason(&self) -> &[u8] {
        match &self.reason {
            Some(reason) => reason,
            None => default_reason(self.code).as_bytes(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, String::from_utf8_lossy(self.reason()))
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Status {
    type Err = HeadError;
    fn from_str(status: &str) -> Result<Self, HeadError> {
        Self::parse(status)
    }
}

impl TryFrom<&str> for Status {
    type Error = HeadError;
    fn try_from(status: &str) -> Result<Self, HeadError> {
        Self::parse(status)
    }
}

impl TryFrom<String> for Status {
    type Error = HeadError;
    fn try_from(status: String) -> Result<Self, HeadError> {
        Self::parse(status)
    }
}

impl TryFrom<u16> for Status {
    type Error = HeadError;
    fn try_from(code: u16) -> Result<Self, HeadError> {
        Self::new(code)
    }
}

impl From<http::StatusCode> for Status {
    fn from(code: http::StatusCode) -> Self {
        Self { code: code.as_u16(), reason: None }
    }
}

/// Header fields in order, repeated ones each for itself, looked up whatever the spelling.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    fields: Fields,
}

impl Headers {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// All values of that name, in order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields.pairs().values_ignoring_case(name.as_bytes())
    }

    /// Whether there is a field of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Adds a field at the end, beside others of that name.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.fields.push(name, value);
    }

    /// Adds a Content-Length at the end.
    pub(crate) fn push_content_length(&mut self, len: u64) {
        self.fields.push_content_length(len);
    }

    /// Replaces all fields of that name by one at the end.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes all fields of that name.
    pub fn remove(&mut self, name: &str) {
        if self.contains(name) {
            self.fields.retain(|field, _| !field.eq_ignore_ascii_case(name.as_bytes()));
        }
    }

    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, keep: impl FnMut(&[u8], &[u8]) -> bool) {
        self.fields.retain(keep);
    }

    /// The fields in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> + ExactSizeIterator + Clone {
        self.fields.pairs().iter()
    }

    /// The same with what is known of them, for those who write a head.
    #[cfg(any(feature = "cgi", feature = "fastcgi"))]
    pub(crate) fn fields(&self) -> &Fields {
        &self.fields
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.pairs().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.pairs().is_empty()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields.pairs().fmt(f)
    }
}

impl From<Pairs> for Headers {
    fn from(fields: Pairs) -> Self {
        Self { fields: fields.into() }
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        fields.into_iter().collect::<Pairs>().into()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>, const COUNT: usize> From<[(N, V); COUNT]> for Headers {
    fn from(fields: [(N, V); COUNT]) -> Self {
        let len: usize = fields.iter().map(|(name, value)| name.as_ref().len() + value.as_ref().len()).sum();
        // With room for the Content-Length that the driver may add.
        let mut pairs = Pairs::with_capacity(COUNT + 1, len + 24);
        pairs.extend(fields);
        pairs.into()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> From<Vec<(N, V)>> for Headers {
    fn from(fields: Vec<(N, V)>) -> Self {
        fields.into_iter().collect()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> From<&[(N, V)]> for Headers {
    fn from(fields: &[(N, V)]) -> Self {
        fields.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect()
    }
}

/// No fields at all: `start_response.start("204 No Content", ())`.
impl From<()> for Headers {
    fn from((): ()) -> Self {
        Self::new()
    }
}

/// The fields that PEP 3333 keeps from applications: they speak of one connection.
pub(crate) fn is_hop_by_hop(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 8] = [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
    ];
    NAMES.iter().any(|hop| name.eq_ignore_ascii_case(hop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_three_digits_and_a_reason() {
        let status = Status::parse("418 Short and stout").unwrap();
        assert_eq!((status.code(), status.reason()), (418, &b"Short and stout"[..]));
        assert_eq!(Status::parse("404").unwrap().to_string(), "404 Not Found");
        assert_eq!(Status::parse("200 OK").unwrap(), Status::new(200).unwrap());
        for bad in [
            "", "20", "2000 OK", "20x OK", "099 Low", "200  OK", "200 OK ", "200 O\rK", "200 O\nK", "200\tOK",
            " 200 OK",
        ] {
            assert!(Status::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cve_2024_24795_response_splitting_is_refused_in_names_and_values() {
        for (name, value) in [
            ("X", "a\r\nSet-Cookie: b"),
            ("X", "a\nb"),
            ("X", "a\0b"),
            ("X\r\nY", "a"),
            ("X Y", "a"),
            ("X:", "a"),
            ("", "a"),
        ] {
            let mut head = Head { status: Status::new(200).unwrap(), headers: [(name, value)].into() };
            assert!(head.check().is_err(), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn hop_by_hop_headers_and_false_lengths_are_refused() {
        for (name, value) in [
            ("Transfer-Encoding", "chunked"),
            ("connection", "close"),
            ("Upgrade", "h2c"),
            ("Status", "200 OK"),
            ("Content-Length", "-1"),
            ("Content-Length", "1 2"),
            ("Content-Length", "99999999999999999999"),
        ] {
            let mut head = Head { status: Status::new(200).unwrap(), headers: [(name, value)].into() };
            assert!(head.check().is_err(), "{name}: {value}");
        }
        let twice = |first, second| Head {
            status: Status::new(200).unwrap(),
            headers: [("Content-Length", first), ("content-length", second)].into(),
        };
        assert_eq!(twice("5", "5").content_length(), Ok(Some(5)));
        assert!(twice("5", "6").content_length().is_err());
    }

    #[test]
    fn order_duplicates_and_spelling_of_headers_survive() {
        let mut headers = Headers::from([("x-A", "1"), ("B", "2"), ("X-a", "3")]);
        assert_eq!(headers.all("X-A").collect::<Vec<_>>(), [b"1", b"3"]);
        headers.set("b", "4");
        let fields: Vec<_> = headers.iter().collect();
        assert_eq!(fields, [(&b"x-A"[..], &b"1"[..]), (b"X-a", b"3"), (b"b", b"4")]);
    }
}
