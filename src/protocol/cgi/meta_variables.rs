//! The variables of a request (RFC 3875 section 4), as the script's side reads them, and the rules by which the server's
//! side makes them from header fields.

use std::{marker::PhantomData, net::IpAddr, str};

use nom::{
    IResult, Parser,
    bytes::complete::{tag, take_while1},
    character::complete::digit1,
    combinator::{all_consuming, opt},
    sequence::preceded,
};
use thiserror::Error;

use super::{Excerpt, decimal, is_token, is_token_byte};

/// A typed view over the variables of one request, wherever they are kept.
///
/// RFC 3875 4.1 does not tell an empty value from one that is unset, and web servers send many empty ones: here both are
/// unset. Values are bytes, since nothing says which encoding they are in.
///
/// ```
/// use gatespan::protocol::{Pairs, cgi::MetaVariables};
///
/// let params: Pairs = [("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "12"), ("PATH_INFO", "")].into_iter().collect();
/// // Of a name that is repeated the last wins, so the search starts at the end.
/// let lookup = |name: &[u8]| params.iter().rfind(|(each, _)| *each == name).map(|(_, value)| value);
/// let variables = MetaVariables::new(lookup);
/// assert_eq!(variables.request_method(), Ok(&b"POST"[..]));
/// assert_eq!(variables.content_length(), Ok(Some(12)));
/// assert_eq!(variables.path_info(), b"");
/// ```
#[derive(Clone, Copy)]
pub struct MetaVariables<'a, F> {
    lookup: F,
    values: PhantomData<&'a [u8]>,
}

impl<'a, F: Fn(&[u8]) -> Option<&'a [u8]>> MetaVariables<'a, F> {
    /// A view over what `lookup` finds for a name.
    pub fn new(lookup: F) -> Self {
        Self { lookup, values: PhantomData }
    }

    /// How the server authenticated the user, such as `Basic`; to be compared without regard to case (4.1.1).
    pub fn auth_type(&self) -> Option<&'a [u8]> {
        self.set(names::AUTH_TYPE)
    }

    /// How many bytes the request's body has; `None` where there is no body, or none of a known length (4.1.2).
    ///
    /// # Errors
    ///
    /// When it is anything but ASCII digits, or 2⁶⁴ and more. Who guesses a length here reads another request's bytes.
    pub fn content_length(&self) -> Result<Option<u64>, MetaVariableError> {
        self.parse(names::CONTENT_LENGTH, "a number of bytes in digits", decimal)
    }

    /// The media type of the request's body, as sent (4.1.3).
    pub fn content_type(&self) -> Option<&'a [u8]> {
        self.set(names::CONTENT_TYPE)
    }

    /// The version of CGI that the server speaks (4.1.4).
    ///
    /// # Errors
    ///
    /// When it is not of the form `CGI/1.1`.
    pub fn gateway_interface(&self) -> Result<Option<Version>, MetaVariableError> {
        self.parse(names::GATEWAY_INTERFACE, "CGI/ and a version", |value| match ServerProtocol::decode(value)? {
            ServerProtocol { name: b"CGI", version } => version,
            _ => None,
        })
    }

    /// The part of the path that follows the script's, decoded; empty where there is none (4.1.5).
    pub fn path_info(&self) -> &'a [u8] {
        self.set(names::PATH_INFO).unwrap_or_default()
    }

    /// Where [`MetaVariables::path_info`] would lie in the server's documents (4.1.6).
    pub fn path_translated(&self) -> Option<&'a [u8]> {
        self.set(names::PATH_TRANSLATED)
    }

    /// What follows the `?`, still encoded; empty where nothing does (4.1.7).
    pub fn query_string(&self) -> &'a [u8] {
        self.set(names::QUERY_STRING).unwrap_or_default()
    }

    /// The client's network address (4.1.8). One that came over a Unix socket has none: nginx then says `unix:`.
    ///
    /// # Errors
    ///
    /// When it is neither an IPv4 nor an IPv6 address.
    pub fn remote_addr(&self) -> Result<Option<IpAddr>, MetaVariableError> {
        if self.set(names::REMOTE_ADDR) == Some(b"unix:") {
            return Ok(None);
        }
        self.parse(names::REMOTE_ADDR, "an IPv4 or IPv6 address", |value| str::from_utf8(value).ok()?.parse().ok())
    }

    /// The client's domain name, where the server looked it up (4.1.9).
    pub fn remote_host(&self) -> Option<&'a [u8]> {
        self.set(names::REMOTE_HOST)
    }

    /// What an RFC 1413 look-up said, which is nothing to rely on (4.1.10).
    pub fn remote_ident(&self) -> Option<&'a [u8]> {
        self.set(names::REMOTE_IDENT)
    }

    /// The user that the server authenticated (4.1.11).
    pub fn remote_user(&self) -> Option<&'a [u8]> {
        self.set(names::REMOTE_USER)
    }

    /// The method; case counts (4.1.12).
    ///
    /// # Errors
    ///
    /// When it is not set, or not a token.
    pub fn request_method(&self) -> Result<&'a [u8], MetaVariableError> {
        let method = self.set(names::REQUEST_METHOD).ok_or(MetaVariableError::Unset { name: names::REQUEST_METHOD })?;
        match is_token(method) {
            true => Ok(method),
            false => Err(MetaVariableError::invalid(names::REQUEST_METHOD, "a token", method)),
        }
    }

    /// The part of the path that names the script, decoded; may be empty (4.1.13).
    pub fn script_name(&self) -> &'a [u8] {
        self.set(names::SCRIPT_NAME).unwrap_or_default()
    }

    /// The host that the request is for. It must be set (4.1.14), yet nginx without a `server_name` sends it empty.
    pub fn server_name(&self) -> Option<&'a [u8]> {
        self.set(names::SERVER_NAME)
    }

    /// The port that the request came to. It must be set (4.1.15), yet one that came over a Unix socket has none.
    ///
    /// # Errors
    ///
    /// When it is not a number up to 65,535.
    pub fn server_port(&self) -> Result<Option<u16>, MetaVariableError> {
        self.parse(names::SERVER_PORT, "a port in digits, up to 65535", decimal)
    }

    /// The protocol of the request, such as HTTP/1.1, or `INCLUDED` (4.1.16).
    ///
    /// # Errors
    ///
    /// When it is not a token, with or without a version.
    pub fn server_protocol(&self) -> Result<Option<ServerProtocol<'a>>, MetaVariableError> {
        self.parse(names::SERVER_PROTOCOL, "a protocol and its version", ServerProtocol::decode)
    }

    /// The name and version of the server (4.1.17).
    pub fn server_software(&self) -> Option<&'a [u8]> {
        self.set(names::SERVER_SOFTWARE)
    }

    /// The value of a request's header field, by the field's name, such as `Accept-Language` (4.1.18).
    ///
    /// A field may be there and empty, and then is `Some`: to HTTP that is not the same as a field that was not sent. A
    /// name that [`variable_name`] refuses has no value.
    pub fn http(&self, field_name: impl AsRef<[u8]>) -> Option<&'a [u8]> {
        let field_name = field_name.as_ref();
        let mut name = Vec::with_capacity("HTTP_".len() + field_name.len());
        variable_name(field_name, &mut name).then(|| (self.lookup)(&name)).flatten()
    }

    /// Whether the client's connection to the server is encrypted: `HTTPS` is `on`, `ON`, `1` or `yes`.
    ///
    /// Nothing else is asked. A client chooses what stands in `REQUEST_URI`, and in some servers `REQUEST_SCHEME`.
    pub fn is_https(&self) -> bool {
        matches!(self.set(names::HTTPS), Some(b"on" | b"ON" | b"1" | b"yes"))
    }

    fn set(&self, name: &str) -> Option<&'a [u8]> {
        (self.lookup)(name.as_bytes()).filter(|value| !value.is_empty())
    }

    fn parse<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<Option<T>, MetaVariableError> {
        let Some(value) = self.set(name) else { return Ok(None) };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(MetaVariableError::invalid(name, expected, value)),
        }
    }
}

/// A version. 2.4 is lower than 2.13, which is lower than 12.3 (RFC 3875 4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// What stands before the dot.
    pub major: u32,
    /// What stands after the dot.
    pub minor: u32,
}

/// The value of `SERVER_PROTOCOL` (RFC 3875 4.1.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerProtocol<'a> {
    /// The protocol's name, usually `HTTP`; to be compared without regard to case.
    pub name: &'a [u8],
    /// Its version. `INCLUDED` has none.
    pub version: Option<Version>,
}

impl<'a> ServerProtocol<'a> {
    /// The version of HTTP to answer in, if it is HTTP: a script is to take `INCLUDED` for HTTP/1.0.
    pub fn http_version(&self) -> Option<Version> {
        match self.name {
            name if name.eq_ignore_ascii_case(b"HTTP") => self.version,
            name if name.eq_ignore_ascii_case(b"INCLUDED") => Some(Version { major: 1, minor: 0 }),
            _ => None,
        }
    }

    fn decode(value: &'a [u8]) -> Option<Self> {
        let (_, (name, digits)) = all_consuming(protocol).parse(value).ok()?;
        let version = match digits {
            None => None,
            Some((major, minor)) => Some(Version { major: decimal(major)?, minor: minor.map_or(Some(0), decimal)? }),
        };
        Some(Self { name, version })
    }
}

/// The digits of a version. Some servers write `HTTP/2`, so that a dot and what follows may be missing.
type VersionDigits<'a> = (&'a [u8], Option<&'a [u8]>);

fn protocol(input: &[u8]) -> IResult<&[u8], (&[u8], Option<VersionDigits<'_>>)> {
    let version = (digit1, opt(preceded(tag("."), digit1)));
    (take_while1(is_token_byte), opt(preceded(tag("/"), version))).parse(input)
}

/// Why a variable has no typed value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MetaVariableError {
    /// A variable that every request has is unset or empty.
    #[error("expected {name} to be set, and it is unset or empty")]
    Unset {
        /// The variable.
        name: &'static str,
    },
    /// A variable is not of its form.
    #[error("expected {expected} in {name}, got {value}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its form.
        expected: &'static str,
        /// The first bytes of its value.
        value: Excerpt,
    },
}

impl MetaVariableError {
    fn invalid(name: &'static str, expected: &'static str, value: &[u8]) -> Self {
        Self::Invalid { name, expected, value: Excerpt::new(value) }
    }
}

/// Appends the name of the variable that a header field becomes: `HTTP_` and the field's name in capitals, with `_` for
/// `-`; `CONTENT_TYPE` and `CONTENT_LENGTH` for the fields of those names (RFC 3875 4.1.18).
///
/// False, with nothing appended, for a field that must not become a variable:
///
/// - a name with any byte but ASCII letters, digits and `-`. `Remote_User` would become the same variable as
///   `Remote-User`, which a server in front may rely on having removed; some scripts' runtimes read `.` and others as
///   `_`, too. nginx and Apache httpd draw the line in the same place;
/// - `Proxy`, since `HTTP_PROXY` tells many libraries where to send their own requests (httpoxy, CVE-2016-5385).
pub fn variable_name(field_name: &[u8], out: &mut Vec<u8>) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    if field_name.is_empty() || !field_name.iter().all(plain) || field_name.eq_ignore_ascii_case(b"Proxy") {
        return false;
    }
    if !field_name.eq_ignore_ascii_case(b"Content-Type") && !field_name.eq_ignore_ascii_case(b"Content-Length") {
        out.extend_from_slice(b"HTTP_");
    }
    out.extend(field_name.iter().map(|byte| if *byte == b'-' { b'_' } else { byte.to_ascii_uppercase() }));
    true
}

/// Whether a variable of this name is dropped, whichever way it came: `HTTP_PROXY` (httpoxy), and `HTTP_CONTENT_TYPE` and
/// `HTTP_CONTENT_LENGTH`, which some servers send beside `CONTENT_TYPE` and `CONTENT_LENGTH`, so that the two can differ.
///
/// Names that differ only in case are one variable (RFC 3875 4.1), and `http_proxy` is read by as many libraries.
#[inline]
pub fn is_forbidden(name: &[u8]) -> bool {
    FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

/// See [`is_forbidden`].
pub(crate) const FORBIDDEN: [&[u8]; 3] = [b"HTTP_PROXY", b"HTTP_CONTENT_TYPE", b"HTTP_CONTENT_LENGTH"];

/// What stands between the values of a header field that was sent more than once, given the field's name or that of its
/// variable: `; ` for cookies (RFC 6265 5.4), `, ` for all others (RFC 9110 5.3).
pub fn separator(name: &[u8]) -> &'static [u8] {
    match name.eq_ignore_ascii_case(b"HTTP_COOKIE") || name.eq_ignore_ascii_case(b"Cookie") {
        true => b"; ",
        false => b", ",
    }
}

/// Whether a process's environment can hold a variable of this name: not empty, without `=` and NUL.
pub fn is_environment_name(name: &[u8]) -> bool {
    !name.is_empty() && memchr::memchr2(b'=', 0, name).is_none()
}

/// Whether a process's environment can hold this value: without NUL.
pub fn is_environment_value(value: &[u8]) -> bool {
    memchr::memchr(0, value).is_none()
}

/// The names of variables.
pub mod names {
    macro_rules! names {
        ($($(#[$doc:meta])* $name:ident)*) => {
            $($(#[$doc])* pub const $name: &str = stringify!($name);)*
        };
    }

    names! {
        /// RFC 3875 4.1.1.
        AUTH_TYPE
        /// RFC 3875 4.1.2.
        CONTENT_LENGTH
        /// RFC 3875 4.1.3.
        CONTENT_TYPE
        /// RFC 3875 4.1.4.
        GATEWAY_INTERFACE
        /// RFC 3875 4.1.5.
        PATH_INFO
        /// RFC 3875 4.1.6.
        PATH_TRANSLATED
        /// RFC 3875 4.1.7.
        QUERY_STRING
        /// RFC 3875 4.1.8.
        REMOTE_ADDR
        /// RFC 3875 4.1.9.
        REMOTE_HOST
        /// RFC 3875 4.1.10.
        REMOTE_IDENT
        /// RFC 3875 4.1.11.
        REMOTE_USER
        /// RFC 3875 4.1.12.
        REQUEST_METHOD
        /// RFC 3875 4.1.13.
        SCRIPT_NAME
        /// RFC 3875 4.1.14.
        SERVER_NAME
        /// RFC 3875 4.1.15.
        SERVER_PORT
        /// RFC 3875 4.1.16.
        SERVER_PROTOCOL
        /// RFC 3875 4.1.17.
        SERVER_SOFTWARE
        /// Not in RFC 3875: the folder that the server's documents lie in.
        DOCUMENT_ROOT
        /// Not in RFC 3875: set where the client's connection is encrypted.
        HTTPS
        /// Not in RFC 3875: the client's port.
        REMOTE_PORT
        /// Not in RFC 3875: `http` or `https`, as the server sees it.
        REQUEST_SCHEME
        /// Not in RFC 3875: the request's target, still encoded.
        REQUEST_URI
        /// Not in RFC 3875: the script's file.
        SCRIPT_FILENAME
        /// Not in RFC 3875: the address that the request came to.
        SERVER_ADDR
    }

    /// The variables that RFC 3875 names, in its order.
    pub const RFC_3875: [&str; 17] = [
        AUTH_TYPE,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        GATEWAY_INTERFACE,
        PATH_INFO,
        PATH_TRANSLATED,
        QUERY_STRING,
        REMOTE_ADDR,
        REMOTE_HOST,
        REMOTE_IDENT,
        REMOTE_USER,
        REQUEST_METHOD,
        SCRIPT_NAME,
        SERVER_NAME,
        SERVER_PORT,
        SERVER_PROTOCOL,
        SERVER_SOFTWARE,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one<'a>(name: &'a str, value: &'a [u8]) -> MetaVariables<'a, impl Fn(&[u8]) -> Option<&'a [u8]>> {
        MetaVariables::new(move |asked: &[u8]| (asked == name.as_bytes()).then_some(value))
    }

    fn unset() -> MetaVariables<'static, impl Fn(&[u8]) -> Option<&'static [u8]>> {
        MetaVariables::new(|_: &[u8]| None)
    }

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        let empty = MetaVariables::new(|_: &[u8]| Some(&b""[..]));
        assert_eq!(empty.auth_type(), None);
        assert_eq!(empty.content_length(), Ok(None));
        assert_eq!(empty.content_type(), None);
        assert_eq!(empty.gateway_interface(), Ok(None));
        assert_eq!(empty.path_info(), b"");
        assert_eq!(empty.path_translated(), None);
        assert_eq!(empty.query_string(), b"");
        assert_eq!(empty.remote_addr(), Ok(None));
        assert_eq!(empty.remote_host(), None);
        assert_eq!(empty.remote_ident(), None);
        assert_eq!(empty.remote_user(), None);
        assert_eq!(empty.request_method(), Err(MetaVariableError::Unset { name: "REQUEST_METHOD" }));
        assert_eq!(empty.script_name(), b"");
        assert_eq!(empty.server_name(), None);
        assert_eq!(empty.server_port(), Ok(None));
        assert_eq!(empty.server_protocol(), Ok(None));
        assert_eq!(empty.server_software(), None);
        assert!(!empty.is_https());
        assert_eq!(unset().content_length(), Ok(None));
        assert_eq!(unset().query_string(), b"");
        assert_eq!(unset().request_method(), empty.request_method());
    }

    #[test]
    fn a_header_field_may_be_there_and_empty() {
        assert_eq!(one("HTTP_ACCEPT_ENCODING", b"").http("Accept-Encoding"), Some(&b""[..]));
        assert_eq!(one("HTTP_ACCEPT_ENCODING", b"br").http("accept-encoding"), Some(&b"br"[..]));
        assert_eq!(one("HTTP_ACCEPT_ENCODING", b"br").http("Accept_Encoding"), None);
        assert_eq!(one("CONTENT_TYPE", b"a/b").http("Content-Type"), Some(&b"a/b"[..]));
        assert_eq!(one("HTTP_PROXY", b"x").http("Proxy"), None);
        assert_eq!(unset().http("Accept-Encoding"), None);
    }

    #[test]
    fn a_content_length_is_digits_and_nothing_else() {
        assert_eq!(one("CONTENT_LENGTH", b"0").content_length(), Ok(Some(0)));
        assert_eq!(one("CONTENT_LENGTH", b"18446744073709551615").content_length(), Ok(Some(u64::MAX)));
        for refused in ["+1", "-1", " 1", "1 ", "1,1", "1, 1", "0x10", "1.0", "18446744073709551616", "a", "\0"] {
            let error = one("CONTENT_LENGTH", refused.as_bytes()).content_length().unwrap_err();
            assert!(matches!(error, MetaVariableError::Invalid { name: "CONTENT_LENGTH", .. }), "{refused}: {error}");
        }
        assert_eq!(
            one("CONTENT_LENGTH", b"1,1").content_length().unwrap_err().to_string(),
            r#"expected a number of bytes in digits in CONTENT_LENGTH, got "1,1""#
        );
    }

    #[test]
    fn addresses_and_ports_are_checked() {
        assert_eq!(one("REMOTE_ADDR", b"192.0.2.1").remote_addr(), Ok(Some([192, 0, 2, 1].into())));
        assert_eq!(one("REMOTE_ADDR", b"2001:db8::1").remote_addr().unwrap().unwrap().to_string(), "2001:db8::1");
        assert_eq!(one("REMOTE_ADDR", b"unix:").remote_addr(), Ok(None));
        for refused in [&b"[::1]"[..], b"localhost", b"1.2.3", b"1.2.3.4:80", b"1.2.3.4 ", b"\xff"] {
            assert!(one("REMOTE_ADDR", refused).remote_addr().is_err(), "{refused:?}");
        }
        assert_eq!(one("SERVER_PORT", b"443").server_port(), Ok(Some(443)));
        assert_eq!(one("SERVER_PORT", b"65535").server_port(), Ok(Some(65535)));
        for refused in [&b"65536"[..], b"-1", b"http", b" 80"] {
            assert!(one("SERVER_PORT", refused).server_port().is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_method_is_a_token_and_keeps_its_case() {
        assert_eq!(one("REQUEST_METHOD", b"get").request_method(), Ok(&b"get"[..]));
        for refused in [&b"GET /"[..], b"GET\r\n", b"G\0", b"(GET)"] {
            assert!(one("REQUEST_METHOD", refused).request_method().is_err(), "{refused:?}");
        }
    }

    #[test]
    fn versions_are_two_numbers_and_not_a_fraction() {
        let gateway_interface = |value| one("GATEWAY_INTERFACE", value).gateway_interface();
        assert_eq!(gateway_interface(b"CGI/1.1"), Ok(Some(Version { major: 1, minor: 1 })));
        // RFC 3875 4.1.4: leading zeros are ignored, and this is the order of versions.
        assert_eq!(gateway_interface(b"CGI/01.010"), Ok(Some(Version { major: 1, minor: 10 })));
        let [a, b, c] = [&b"CGI/2.4"[..], b"CGI/2.13", b"CGI/12.3"].map(|value| gateway_interface(value).unwrap());
        assert!(a < b && b < c);
        for refused in [&b"CGI"[..], b"CGI/", b"CGI/1.", b"CGI/.1", b"CGI/1.1 ", b"HTTP/1.1", b"CGI/99999999999.1"] {
            assert!(gateway_interface(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_protocol_may_come_without_a_version() {
        let (one_zero, one_one) = (Version { major: 1, minor: 0 }, Version { major: 1, minor: 1 });
        let two = Version { major: 2, minor: 0 };
        for (value, name, version, http_version) in [
            ("HTTP/1.1", "HTTP", Some(one_one), Some(one_one)),
            ("http/1.0", "http", Some(one_zero), Some(one_zero)),
            ("HTTP/2.0", "HTTP", Some(two), Some(two)),
            ("HTTP/2", "HTTP", Some(two), Some(two)),
            ("INCLUDED", "INCLUDED", None, Some(one_zero)),
            ("SPDY", "SPDY", None, None),
            ("X-Own/1.0", "X-Own", Some(one_zero), None),
        ] {
            let protocol = one("SERVER_PROTOCOL", value.as_bytes()).server_protocol().unwrap().unwrap();
            assert_eq!(protocol, ServerProtocol { name: name.as_bytes(), version });
            assert_eq!(protocol.http_version(), http_version, "{value}");
        }
        for refused in ["HTTP/", "/1.1", "HTTP/1.1.1", "HTTP/a", "HTTP 1.1", "HTTP/1.1\n", "HTTP/-1.1"] {
            assert!(one("SERVER_PROTOCOL", refused.as_bytes()).server_protocol().is_err(), "{refused}");
        }
    }

    #[test]
    fn https_is_four_values_of_one_variable() {
        for (name, value, expected) in [
            ("HTTPS", "on", true),
            ("HTTPS", "ON", true),
            ("HTTPS", "1", true),
            ("HTTPS", "yes", true),
            ("HTTPS", "", false),
            ("HTTPS", "off", false),
            ("HTTPS", "0", false),
            ("HTTPS", "on ", false),
            ("HTTP_HTTPS", "on", false),
            ("REQUEST_SCHEME", "https", false),
            ("REQUEST_URI", "https://host/", false),
        ] {
            assert_eq!(one(name, value.as_bytes()).is_https(), expected, "{name}={value}");
        }
    }

    fn variable(field_name: &str) -> Option<String> {
        let mut out = b"before ".to_vec();
        let made = variable_name(field_name.as_bytes(), &mut out);
        let name = String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned();
        assert!(made || name.is_empty(), "a refused name leaves nothing behind");
        made.then_some(name)
    }

    #[test]
    fn a_header_field_becomes_a_variable() {
        for (field_name, expected) in [
            ("Host", "HTTP_HOST"),
            ("accept-language", "HTTP_ACCEPT_LANGUAGE"),
            ("X-A-1", "HTTP_X_A_1"),
            ("Proxy-Authorization", "HTTP_PROXY_AUTHORIZATION"),
            ("Content-Type", "CONTENT_TYPE"),
            ("CONTENT-LENGTH", "CONTENT_LENGTH"),
            ("Content-Length-2", "HTTP_CONTENT_LENGTH_2"),
        ] {
            assert_eq!(variable(field_name).as_deref(), Some(expected));
        }
        for refused in ["", "A B", "A:", "A\r", "A\0", "A=B", "Ä", "A/B"] {
            assert_eq!(variable(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn header_aliases_do_not_become_variables() {
        for (alias, meant) in [("Remote_User", "Remote-User"), ("X_Forwarded-For", "X-Forwarded-For"), ("A.B", "A-B")] {
            // Both orders, and repeated: the alias is not there whatever came before it.
            for sent in [[alias, meant, alias], [meant, alias, meant]] {
                let variables: Vec<_> = sent.iter().filter_map(|name| variable(name)).collect();
                assert_eq!(variables.len(), sent.iter().filter(|name| **name == meant).count());
            }
        }
        assert_eq!(variable("Content_Length"), None);
        assert_eq!(variable("Content_Type"), None);
    }

    #[test]
    fn httpoxy_is_refused_as_field_and_as_variable() {
        for name in ["Proxy", "proxy", "PROXY", "pRoXy"] {
            assert_eq!(variable(name), None);
        }
        assert!(is_forbidden(b"HTTP_PROXY") && is_forbidden(b"http_proxy"));
        assert!(is_forbidden(b"HTTP_CONTENT_TYPE") && is_forbidden(b"HTTP_CONTENT_LENGTH"));
        for allowed in ["", "HTTP_HOST", "HTTP_PROX", "HTTP_PROXY_", "HTTP_PROXY_AUTHORIZATION", "CONTENT_LENGTH"] {
            assert!(!is_forbidden(allowed.as_bytes()), "{allowed}");
        }
    }

    #[test]
    fn cve_2018_1283_and_cve_2025_65082_no_header_field_names_a_server_variable() {
        let server = names::RFC_3875.into_iter().chain([
            names::DOCUMENT_ROOT,
            names::HTTPS,
            names::REMOTE_PORT,
            names::REQUEST_SCHEME,
            names::REQUEST_URI,
            names::SCRIPT_FILENAME,
            names::SERVER_ADDR,
        ]);
        for name in server {
            let field_name = name.replace('_', "-");
            let made = variable(&field_name).unwrap();
            assert!(made == name && name.starts_with("CONTENT_") || made == format!("HTTP_{name}"), "{made}");
        }
    }

    #[test]
    fn repeated_cookies_are_joined_by_semicolons_and_all_else_by_commas() {
        assert_eq!(separator(b"HTTP_COOKIE"), b"; ");
        assert_eq!(separator(b"cookie"), b"; ");
        assert_eq!(separator(b"HTTP_ACCEPT"), b", ");
        assert_eq!(separator(b"HTTP_COOKIE2"), b", ");
    }

    #[test]
    fn an_environment_has_no_empty_names_equals_signs_or_nul() {
        assert!(is_environment_name(b"A") && is_environment_name(b"BASH_FUNC_x%%") && is_environment_name(b"\xff"));
        for refused in [&b""[..], b"=", b"A=", b"=A", b"A=B", b"\0", b"A\0"] {
            assert!(!is_environment_name(refused), "{refused:?}");
        }
        assert!(is_environment_value(b"") && is_environment_value(b"a=b\n") && !is_environment_value(b"a\0"));
    }
}
