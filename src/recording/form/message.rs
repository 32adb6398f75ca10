//! What an exchange is as HTTP messages: the same for all forms that write HTTP.

use std::io;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::protocol::cgi::{
    Limits, MetaVariables, ResponseHead, allows_body, is_forbidden, is_nph, names, variable_name,
};
use crate::recording::Exchange;

/// A request's head.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Vec<u8>,
    /// The target, as a request line has it: nothing in it needs to be encoded.
    pub(super) target: Vec<u8>,
    pub(super) is_https: bool,
    /// Host and port, as in a URL.
    pub(super) authority: Vec<u8>,
    pub(super) is_http_1_0: bool,
    /// The fields, but for Content-Type and Content-Length.
    pub(super) fields: Vec<Field>,
    pub(super) content_type: Option<Vec<u8>>,
    /// Whether it has a body, were it an empty one.
    pub(super) has_body: bool,
}

/// A field's name and value.
pub(super) type Field = (Vec<u8>, Vec<u8>);

/// The head of the request, and what of it no HTTP message can hold.
pub(super) fn request(exchange: &Exchange) -> (Request, Vec<String>) {
    let mut notes = Vec::new();
    let params = &exchange.params;
    let variables = MetaVariables::new(|name| params.last(name));
    let method = match variables.request_method() {
        Ok(method) => method.to_vec(),
        Err(error) => {
            notes.push(format!("{error}: it is written as GET"));
            b"GET".to_vec()
        }
    };
    let mut fields = Vec::new();
    for (variable, value) in params.iter() {
        let Some(name) = variable.strip_prefix(b"HTTP_") else { continue };
        match field_name(name) {
            Some(_) if is_forbidden(variable) || variable == b"HTTP_TRANSFER_ENCODING" => {}
            Some(name) if is_field_value(value) => fields.push((name, trimmed(value))),
            _ => notes.push(format!("{} can't be a header field", variable.escape_ascii())),
        }
    }
    let server_name = variables.server_name().filter(|name| is_field_value(name)).unwrap_or(b"localhost");
    let is_https = variables.is_https();
    let authority =
        match params.last(b"HTTP_HOST").filter(|host| !host.is_empty() && host.iter().all(u8::is_ascii_graphic)) {
            Some(host) => host.to_vec(),
            None => match variables.server_port() {
                Ok(Some(port)) if port != if is_https { 443 } else { 80 } => {
                    [server_name, b":", port.to_string().as_bytes()].concat()
                }
                _ => server_name.to_vec(),
            },
        };
    let is_http_1_0 = params.last(names::SERVER_PROTOCOL.as_bytes()) == Some(b"HTTP/1.0");
    // HTTP/1.1 needs it.
    if !is_http_1_0 && params.count(b"HTTP_HOST") == 0 {
        fields.insert(0, (b"Host".to_vec(), authority.clone()));
    }
    let content_type = variables.content_type().map(trimmed).filter(|value| !value.is_empty());
    let content_type = content_type.filter(|value| {
        let is_value = is_field_value(value);
        notes.extend((!is_value).then(|| "CONTENT_TYPE can't be a header field".to_owned()));
        is_value
    });
    let has_body = !exchange.stdin.is_empty()
        || params.last(names::CONTENT_LENGTH.as_bytes()).is_some_and(|length| !length.is_empty());
    let target = target(&variables, params.last(names::REQUEST_URI.as_bytes()));
    (Request { method, target, is_https, authority, is_http_1_0, fields, content_type, has_body }, notes)
}

/// The name of the field that a variable was made from; `None` when none is made into it.
fn field_name(variable: &[u8]) -> Option<Vec<u8>> {
    let mut name = variable.to_ascii_lowercase();
    let mut is_first = true;
    for byte in &mut name {
        if *byte == b'_' {
            *byte = b'-';
        } else if is_first {
            byte.make_ascii_uppercase();
        }
        is_first = *byte == b'-';
    }
    let mut again = Vec::new();
    let is_same = variable_name(&name, &mut again) && again.strip_prefix(b"HTTP_") == Some(variable);
    // Those that are no HTTP_ variables are refused for their own reasons.
    let is_own = matches!(variable, b"CONTENT_TYPE" | b"CONTENT_LENGTH" | b"PROXY");
    (is_same || is_own).then_some(name)
}

/// Whether a field may have this value: what has other bytes would be read as something else.
fn is_field_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

/// A value as it is read: blanks around it do not belong to it (RFC 9110 5.5).
fn trimmed(value: &[u8]) -> Vec<u8> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    value[start..end].to_vec()
}

/// The target: the client's own writing if it is known, and else made of the path.
fn target<'a>(variables: &MetaVariables<'a, impl Fn(&[u8]) -> Option<&'a [u8]>>, uri: Option<&[u8]>) -> Vec<u8> {
    if let Some(uri) = uri.filter(|uri| !uri.is_empty()) {
        return percent_encode(uri, TARGET).to_string().into_bytes();
    }
    let mut target = percent_encode(variables.script_name(), PATH).to_string();
    target.extend(percent_encode(variables.path_info(), PATH));
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if !variables.query_string().is_empty() {
        target.push('?');
        target.extend(percent_encode(variables.query_string(), TARGET));
    }
    target.into_bytes()
}

/// What can't stand in a request line.
const TARGET: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

/// What means something else in a path than itself.
const PATH: &AsciiSet = &TARGET.add(b'#').add(b'?').add(b'%').add(b'{').add(b'}').add(b'\\').add(b'^').add(b'|');

/// An answer's head, and where its body lies.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) code: u16,
    pub(super) reason: Vec<u8>,
    /// The fields, but for Content-Length.
    pub(super) fields: Vec<Field>,
    /// What the script said of the length.
    pub(super) content_length: Option<u64>,
    /// Where in STDOUT the body begins.
    pub(super) body_start: u64,
    /// How long it is: nothing where none is allowed.
    pub(super) body_len: u64,
    /// Whether it may have one.
    pub(super) allows_body: bool,
}

/// What is read of an answer to find its head.
const MAX_HEAD: usize = 128 * 1024;

/// The head of the answer, and what of it no HTTP message can hold. An answer without one is what a web server makes of it: 502.
pub(super) fn response(exchange: &Exchange, method: &[u8]) -> io::Result<(Response, Vec<String>)> {
    let start = exchange.stdout.first(MAX_HEAD)?;
    let limits = Limits { max_len: MAX_HEAD, max_fields: 1024 };
    let decoded = match is_nph(&start) {
        Some(true) => ResponseHead::decode_nph(&start, &limits),
        _ => ResponseHead::decode(&start, &limits),
    };
    let mut notes = Vec::new();
    let (head, head_len) = match decoded {
        Ok(Some(found)) => found,
        other => {
            notes.push(match other {
                Err(error) => format!("the answer has no head: {error}"),
                _ => "the answer has no head, or not all of it".to_owned(),
            });
            let (reason, len) = (b"Bad Gateway".to_vec(), exchange.stdout.len());
            let (fields, content_length) = (Vec::new(), Some(0));
            return Ok((
                Response {
                    code: 502,
                    reason,
                    fields,
                    content_length,
                    body_start: len,
                    body_len: 0,
                    allows_body: allows_body(502, method),
                },
                notes,
            ));
        }
    };
    let (code, reason) = head.status_or_default();
    let mut fields = Vec::new();
    for (name, value) in head.headers.iter() {
        if name.eq_ignore_ascii_case(b"Content-Length") {
            continue;
        }
        match is_field_value(value) {
            true => fields.push((name.to_vec(), trimmed(value))),
            false => notes.push(format!("the field {} has bytes that no HTTP message can hold", name.escape_ascii())),
        }
    }
    let reason = if is_field_value(reason) { trimmed(reason) } else { Vec::new() };
    let (body_start, allows_body) = (head_len as u64, allows_body(code, method));
    let len = exchange.stdout.len() - body_start;
    if !allows_body && len > 0 {
        notes.push(format!(
            "an answer of status {code} to {} has no body: {len} bytes are left out",
            method.escape_ascii()
        ));
    }
    let body_len = if allows_body { len } else { 0 };
    let content_length = head.content_length();
    Ok((Response { code, reason, fields, content_length, body_start, body_len, allows_body }, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fields_name_is_spelled_as_usual_and_only_if_it_is_one() {
        for (variable, expected) in [
            ("ACCEPT_LANGUAGE", Some("Accept-Language")),
            ("X", Some("X")),
            ("X__Y", Some("X--Y")),
            ("Accept", None),
            ("", None),
            ("A.B", None),
            ("PROXY", Some("Proxy")),
        ] {
            let name = field_name(variable.as_bytes()).map(|name| String::from_utf8(name).unwrap());
            assert_eq!(name.as_deref(), expected, "{variable}");
        }
    }
}
