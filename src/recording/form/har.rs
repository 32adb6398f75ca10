//! The form `har`: an archive of HTTP 1.2, which browsers' tools open. It is written only.

use std::io::{self, Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::ExchangeWriter;
use super::json::rfc_3339;
use super::message::{Field, request, response};
use crate::recording::{Exchange, Spooled, Timestamp};

/// Writes an archive.
#[derive(Debug, Default)]
pub struct Writer {
    has_begun: bool,
}

/// Up to how many bytes it is looked whether a body is text; a longer one is in base64 either way.
const MAX_TEXT: u64 = 1024 * 1024;

impl ExchangeWriter for Writer {
    fn write(&mut self, exchange: &Exchange, out: &mut dyn Write) -> io::Result<Vec<String>> {
        self.begin(out)?;
        let (request, mut notes) = request(exchange);
        let (response, more) = response(exchange, &request.method)?;
        notes.extend(more);
        let times = exchange.times;
        let scheme = if request.is_https { "https" } else { "http" };
        let url = match request.target.starts_with(b"/") {
            true => format!("{scheme}://{}{}", text(&request.authority), text(&request.target)),
            false => text(&request.target),
        };
        let version = if request.is_http_1_0 { "HTTP/1.0" } else { "HTTP/1.1" };
        let query = request.target.iter().position(|byte| *byte == b'?').map(|at| &request.target[at + 1..]);
        let mut request_fields = request.fields.clone();
        request_fields.extend(request.content_type.clone().map(|value| (b"Content-Type".to_vec(), value)));
        let mut request_object = json!({
            "method": text(&request.method),
            "url": url,
            "httpVersion": version,
            "cookies": cookies(&request.fields, "cookie"),
            "headers": headers(&request_fields),
            "queryString": query_string(query.unwrap_or_default()),
            "headersSize": -1,
            "bodySize": exchange.stdin.len(),
        });
        let started = times.begun.and_then(rfc_3339).unwrap_or_else(|| "1970-01-01T00:00:00Z".into());
        let [send, wait, receive] = timings(times.begun, times.received, times.answered, times.ended);
        write!(out, "{{\"startedDateTime\":{},\"time\":{},", json!(started), send + wait + receive)?;
        write!(out, "\"connection\":\"{}\",\"request\":", exchange.connection)?;
        if request.has_body {
            let mime_type = text(request.content_type.as_deref().unwrap_or(b"application/octet-stream"));
            request_object["postData"] = json!({ "mimeType": mime_type, "params": [] });
            put_with_body(
                &request_object,
                Some("postData"),
                &exchange.stdin,
                0,
                exchange.stdin.len(),
                "_encoding",
                out,
            )?;
        } else {
            write!(out, "{request_object}")?;
        }
        let mime_type = field(&response.fields, "content-type");
        let content = json!({ "size": response.body_len, "mimeType": mime_type.unwrap_or_else(|| "x-unknown".into()) });
        let response_object = json!({
            "status": response.code,
            "statusText": text(&response.reason),
            "httpVersion": "HTTP/1.1",
            "cookies": cookies(&response.fields, "set-cookie"),
            "headers": headers(&response.fields),
            "redirectURL": field(&response.fields, "location").unwrap_or_default(),
            "headersSize": -1,
            "bodySize": response.body_len,
            "content": content,
        });
        write!(out, ",\"response\":")?;
        let (start, len) = (response.body_start, response.body_len);
        put_with_body(&response_object, Some("content"), &exchange.stdout, start, len, "encoding", out)?;
        write!(out, ",\"cache\":{{}},\"timings\":{}", json!({ "send": send, "wait": wait, "receive": receive }))?;
        if !exchange.stderr.is_empty() {
            write!(out, ",\"_stderr\":")?;
            put_with_body(&json!({}), None, &exchange.stderr, 0, exchange.stderr.len(), "encoding", out)?;
        }
        if let Some(end) = exchange.end {
            write!(out, ",\"_applicationStatus\":{}", end.application_status)?;
        }
        match (exchange.is_complete(), exchange.is_masked) {
            (false, _) => write!(out, ",\"comment\":\"not all of it was seen\"")?,
            (true, true) => write!(out, ",\"comment\":\"parts of it were masked\"")?,
            (true, false) => {}
        }
        write!(out, "}}")?;
        Ok(notes)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if !self.has_begun {
            put_start(out)?;
        }
        out.write_all(b"\n]}}\n")
    }
}

impl Writer {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.has_begun {
            return out.write_all(b",\n");
        }
        self.has_begun = true;
        put_start(out)
    }
}

fn put_start(out: &mut dyn Write) -> io::Result<()> {
    let creator = json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") });
    writeln!(out, "{{\"log\":{{\"version\":\"1.2\",\"creator\":{creator},\"pages\":[],\"entries\":[")
}

/// Writes an object with a body's bytes as the field `text` of the object under `key`, its last, or of the object itself.
fn put_with_body(
    object: &Value,
    key: Option<&str>,
    body: &Spooled,
    start: u64,
    len: u64,
    encoding: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut outer = object.clone();
    let inner = match key {
        None => std::mem::take(&mut outer),
        Some(key) => outer.as_object_mut().and_then(|fields| fields.remove(key)).unwrap_or_else(|| json!({})),
    };
    // Both are written without their closing brace, so that what comes next is inside.
    if let Some(key) = key {
        put_open(&outer, out)?;
        write!(out, "{}:", json!(key))?;
    }
    put_open(&inner, out)?;
    let mut bytes = Vec::new();
    if len <= MAX_TEXT {
        body.reader_from(start).take(len).read_to_end(&mut bytes)?;
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) if len <= MAX_TEXT => write!(out, "\"text\":{}", json!(text))?,
        _ => {
            write!(out, "{}:\"base64\",\"text\":\"", json!(encoding))?;
            let mut rest = body.reader_from(start).take(len);
            loop {
                // A multiple of three, so that the pieces' base64 is that of the whole.
                bytes.clear();
                (&mut rest).take(3 * 16 * 1024).read_to_end(&mut bytes)?;
                if bytes.is_empty() {
                    break;
                }
                out.write_all(BASE64_STANDARD.encode(&bytes).as_bytes())?;
            }
            write!(out, "\"")?;
        }
    }
    write!(out, "}}{}", if key.is_some() { "}" } else { "" })
}

/// An object up to where another field may follow.
fn put_open(object: &Value, out: &mut dyn Write) -> io::Result<()> {
    let text = object.to_string();
    let open = text.strip_suffix('}').unwrap_or(&text);
    write!(out, "{open}{}", if open == "{" { "" } else { "," })
}

/// An archive holds text: what is none is shown as far as it goes.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn field(fields: &[Field], name: &str) -> Option<String> {
    let found = fields.iter().find(|(each, _)| each.eq_ignore_ascii_case(name.as_bytes()));
    found.map(|(_, value)| text(value))
}

fn headers(fields: &[Field]) -> Vec<Value> {
    fields.iter().map(|(name, value)| json!({ "name": text(name), "value": text(value) })).collect()
}

fn cookies(fields: &[Field], field: &str) -> Vec<Value> {
    let values = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(field.as_bytes()));
    let is_set = field == "set-cookie";
    let parts = values.flat_map(|(_, value)| {
        let all = text(value);
        let limit = if is_set { 1 } else { usize::MAX };
        all.split(';').take(limit).map(str::to_owned).collect::<Vec<_>>()
    });
    parts
        .filter_map(|part| {
            let (name, value) = part.trim().split_once('=')?;
            Some(json!({ "name": name, "value": value }))
        })
        .collect()
}

fn query_string(query: &[u8]) -> Vec<Value> {
    let text = |part: &[u8]| {
        let plus: Vec<u8> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        percent_encoding::percent_decode(&plus).decode_utf8_lossy().into_owned()
    };
    let parts = query.split(|byte| *byte == b'&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let at = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
            json!({ "name": text(&part[..at]), "value": text(part.get(at + 1..).unwrap_or_default()) })
        })
        .collect()
}

/// Milliseconds of sending, waiting and receiving; zeros where nothing is known.
fn timings(
    begun: Option<Timestamp>,
    received: Option<Timestamp>,
    answered: Option<Timestamp>,
    ended: Option<Timestamp>,
) -> [f64; 3] {
    let received = received.or(begun);
    // An answer may begin before the request has ended.
    let sent = match (received, answered) {
        (Some(received), Some(answered)) => Some(received.min(answered)),
        _ => received,
    };
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| match (from, to) {
        (Some(from), Some(to)) => to.0.saturating_sub(from.0) as f64 / 1e6,
        _ => 0.0,
    };
    let answered = answered.or(sent);
    [between(begun, sent), between(sent, answered), between(answered, ended)]
}
