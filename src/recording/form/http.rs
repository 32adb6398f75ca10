//! The form `http`: messages of HTTP/1.1 as they stand on the wire, one behind the other: request, answer, request, answer.
//!
//! Nothing stands between them. A body has a Content-Length or is chunked; that of a last answer may end with the file.

use std::io::{self, Read, Write};

use bytes::{Buf, BytesMut};
use percent_encoding::percent_decode;

use super::message::{Response, request, response};
use super::{ExchangeReadError, ExchangeReader, ExchangeWriter};
use crate::protocol::Pairs;
use crate::protocol::cgi::{Excerpt, Fields, allows_body, check_field, is_forbidden, variable_name};
use crate::protocol::fastcgi::{EndRequest, ProtocolStatus, RequestId};
use crate::recording::{ConnectionId, Exchange, ReadError, Spool, Spooled};

/// Writes exchanges as messages.
#[derive(Debug, Default)]
pub struct Writer(());

impl ExchangeWriter for Writer {
    fn write(&mut self, exchange: &Exchange, out: &mut dyn Write) -> io::Result<Vec<String>> {
        let (request, mut notes) = request(exchange);
        let mut head = Vec::new();
        head.extend(&request.method);
        head.push(b' ');
        head.extend(&request.target);
        head.extend(if request.is_http_1_0 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
        put_fields(&request.fields, &mut head);
        if let Some(content_type) = request.content_type {
            put_fields(&[(b"Content-Type".to_vec(), content_type)], &mut head);
        }
        if request.has_body {
            put_content_length(exchange.stdin.len(), &mut head);
        }
        head.extend(b"\r\n");
        out.write_all(&head)?;
        io::copy(&mut exchange.stdin.reader(), out)?;

        let (response, more) = response(exchange, &request.method)?;
        notes.extend(more);
        if exchange.end.is_none() {
            notes.push("the answer has no end".into());
        }
        write_response(exchange, &response, out)?;
        Ok(notes)
    }
}

fn write_response(exchange: &Exchange, response: &Response, out: &mut dyn Write) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} ", response.code).into_bytes();
    head.extend(&response.reason);
    head.extend(b"\r\n");
    put_fields(&response.fields, &mut head);
    let is_chunked = response.allows_body && response.content_length.is_none();
    match response.content_length {
        None if is_chunked => head.extend(b"Transfer-Encoding: chunked\r\n"),
        None => {}
        // Of what is not sent the script alone knows the length. 204 has none, not even of nothing (RFC 9110 8.6).
        Some(len) if !response.allows_body && response.code != 204 && response.code >= 200 => {
            put_content_length(len, &mut head);
        }
        Some(_) if !response.allows_body => {}
        Some(_) => put_content_length(response.body_len, &mut head),
    }
    head.extend(b"\r\n");
    out.write_all(&head)?;
    let mut body = exchange.stdout.reader_from(response.body_start).take(response.body_len);
    if !is_chunked {
        io::copy(&mut body, out)?;
        return Ok(());
    }
    let mut chunk = vec![0; 0x1_0000];
    loop {
        let len = body.read(&mut chunk)?;
        write!(out, "{len:x}\r\n")?;
        out.write_all(&chunk[..len])?;
        out.write_all(b"\r\n")?;
        if len == 0 {
            return Ok(());
        }
    }
}

fn put_fields(fields: &[super::message::Field], out: &mut Vec<u8>) {
    for (name, value) in fields {
        out.extend(name);
        out.extend(b": ");
        out.extend(value);
        out.extend(b"\r\n");
    }
}

fn put_content_length(len: u64, out: &mut Vec<u8>) {
    out.extend(format!("Content-Length: {len}\r\n").as_bytes());
}

/// Reads messages as exchanges, each of a connection of its own.
#[derive(Debug)]
pub struct Reader {
    spool: Spool,
    buffer: BytesMut,
    /// How many bytes went before the buffer's.
    offset: u64,
    has_ended: bool,
    count: u64,
    step: Step,
    /// The one that is being read.
    exchange: Option<Exchange>,
    method: Vec<u8>,
    failure: Option<ReadError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    RequestHead,
    ResponseHead,
    Body { of: Message, len: BodyLen },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLen {
    /// So many more bytes.
    Known(u64),
    /// A line with a chunk's length comes next.
    Chunked,
    /// So many more bytes of this chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Lines up to an empty one.
    Trailers,
    ToTheEnd,
}

/// The most bytes of a message's head, of a line of chunks, and of trailers.
pub const MAX_HEAD_LEN: usize = 256 * 1024;

/// The most fields of a head.
pub const MAX_FIELDS: usize = 1024;

impl Reader {
    /// Bodies are held there.
    pub fn new(spool: Spool) -> Self {
        Self {
            spool,
            buffer: BytesMut::new(),
            offset: 0,
            has_ended: false,
            count: 0,
            step: Step::RequestHead,
            exchange: None,
            method: Vec::new(),
            failure: None,
        }
    }

    fn wrong(&self, expected: impl Into<String>, got: impl Into<String>) -> ExchangeReadError {
        ReadError { offset: self.offset, expected: expected.into(), got: got.into() }.into()
    }

    fn advance(&mut self, len: usize) {
        self.buffer.advance(len);
        self.offset += len as u64;
    }

    /// One step on; false when more bytes are needed.
    fn go_on(&mut self) -> Result<bool, ExchangeReadError> {
        match self.step {
            Step::RequestHead => self.request_head(),
            Step::ResponseHead => self.response_head(),
            Step::Body { of, len } => self.body(of, len),
        }
    }

    /// When bytes are missing: whether there may be more.
    fn more(&self, expected: &str) -> Result<bool, ExchangeReadError> {
        if self.has_ended {
            return Err(self.wrong(expected, format!("the end after {}", Excerpt::new(&self.buffer))));
        }
        if self.buffer.len() > MAX_HEAD_LEN {
            return Err(self.wrong(format!("{expected} of at most {MAX_HEAD_LEN} bytes"), "more"));
        }
        Ok(false)
    }

    fn request_head(&mut self) -> Result<bool, ExchangeReadError> {
        // What the files of some tools have between messages is not held against them (RFC 9112 2.2).
        while self.buffer.starts_with(b"\r\n") {
            self.advance(2);
        }
        if self.buffer.is_empty() && self.has_ended {
            return Ok(false);
        }
        let mut fields = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Request::new(&mut fields);
        let parsed = head.parse(&self.buffer);
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return self.more("the head of a request"),
            Err(error) => {
                return Err(self.wrong("the head of a request", format!("{} ({error})", Excerpt::new(&self.buffer))));
            }
        };
        let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
        let body = body_len(head.headers).map_err(|got| self.wrong("one length of the body", got))?;
        let params = params(method, target, head.version == Some(0), head.headers);
        let method = method.as_bytes().to_vec();
        self.count += 1;
        let mut exchange = Exchange::new(&self.spool, ConnectionId(self.count), RequestId(1));
        (exchange.offset, exchange.params) = (self.offset, params);
        (self.exchange, self.method) = (Some(exchange), method);
        self.step = Step::Body { of: Message::Request, len: body.unwrap_or(BodyLen::Known(0)) };
        self.advance(len);
        Ok(true)
    }

    fn response_head(&mut self) -> Result<bool, ExchangeReadError> {
        if self.buffer.is_empty() && self.has_ended {
            // The last request has no answer.
            return Ok(false);
        }
        let mut fields = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let parsed = head.parse(&self.buffer);
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return self.more("the head of an answer"),
            Err(error) => {
                return Err(self.wrong("the head of an answer", format!("{} ({error})", Excerpt::new(&self.buffer))));
            }
        };
        let code = head.code.unwrap_or_default();
        // More is to come before the answer.
        if matches!(code, 100 | 102..=199) {
            self.advance(len);
            return Ok(true);
        }
        let body = body_len(head.headers).map_err(|got| self.wrong("one length of the body", got))?;
        let is_chunked = body == Some(BodyLen::Chunked);
        let mut pairs = Pairs::new();
        for field in head.headers.iter() {
            let is_length = field.name.eq_ignore_ascii_case("Content-Length");
            if check_field(field.name.as_bytes(), field.value).is_ok() && !(is_length && is_chunked) {
                pairs.push(field.name, field.value);
            }
        }
        let mut encoded = BytesMut::new();
        let reason = head.reason.unwrap_or_default().as_bytes();
        Fields::from(pairs)
            .encode_head(code, reason, &mut encoded)
            .map_err(|error| self.wrong("an answer's head that CGI can hold", error.to_string()))?;
        if let Some(exchange) = &mut self.exchange {
            exchange.stdout.append(&encoded)?;
        }
        let len_of_body = match allows_body(code, &self.method) {
            true => body.unwrap_or(BodyLen::ToTheEnd),
            false => BodyLen::Known(0),
        };
        self.step = Step::Body { of: Message::Response, len: len_of_body };
        self.advance(len);
        Ok(true)
    }

    fn body(&mut self, of: Message, len: BodyLen) -> Result<bool, ExchangeReadError> {
        let next = match len {
            BodyLen::Known(0) => return Ok(self.finish(of)),
            BodyLen::ToTheEnd if self.buffer.is_empty() && self.has_ended => return Ok(self.finish(of)),
            BodyLen::Known(left) | BodyLen::Chunk(left) => {
                if self.buffer.is_empty() {
                    return match self.has_ended {
                        true => Err(self.wrong(format!("{left} more bytes of a body"), "the end")),
                        false => Ok(false),
                    };
                }
                let now = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.store(of, now)?;
                match (len, left - now as u64) {
                    (BodyLen::Chunk(_), 0) => BodyLen::ChunkEnd,
                    (BodyLen::Chunk(_), left) => BodyLen::Chunk(left),
                    (_, left) => BodyLen::Known(left),
                }
            }
            BodyLen::ToTheEnd => {
                if self.buffer.is_empty() {
                    return Ok(false);
                }
                self.store(of, self.buffer.len())?;
                BodyLen::ToTheEnd
            }
            BodyLen::Chunked => match httparse::parse_chunk_size(&self.buffer) {
                Ok(httparse::Status::Complete((line, chunk))) => {
                    self.advance(line);
                    if chunk == 0 { BodyLen::Trailers } else { BodyLen::Chunk(chunk) }
                }
                Ok(httparse::Status::Partial) => return self.more("the length of a chunk"),
                Err(_) => return Err(self.wrong("the length of a chunk", Excerpt::new(&self.buffer).to_string())),
            },
            BodyLen::ChunkEnd => {
                if self.buffer.len() < 2 {
                    return self.more("a line end behind a chunk");
                }
                if !self.buffer.starts_with(b"\r\n") {
                    return Err(self.wrong("a line end behind a chunk", Excerpt::new(&self.buffer).to_string()));
                }
                self.advance(2);
                BodyLen::Chunked
            }
            BodyLen::Trailers => {
                let Some(line) = memchr::memchr(b'\n', &self.buffer) else {
                    return self.more("the lines behind the last chunk");
                };
                let is_last = self.buffer[..line].trim_ascii().is_empty();
                self.advance(line + 1);
                if is_last {
                    return Ok(self.finish(of));
                }
                BodyLen::Trailers
            }
        };
        self.step = Step::Body { of, len: next };
        Ok(true)
    }

    /// Moves the first bytes of the buffer into a body.
    fn store(&mut self, of: Message, len: usize) -> io::Result<()> {
        if let Some(exchange) = &mut self.exchange {
            let body: &mut Spooled = match of {
                Message::Request => &mut exchange.stdin,
                Message::Response => &mut exchange.stdout,
            };
            body.append(&self.buffer[..len])?;
        }
        self.advance(len);
        Ok(())
    }

    /// A body is complete.
    fn finish(&mut self, of: Message) -> bool {
        let Some(exchange) = &mut self.exchange else { return true };
        match of {
            Message::Request => {
                // A body that came in chunks has its length now.
                if !exchange.stdin.is_empty() && exchange.params.count(b"CONTENT_LENGTH") == 0 {
                    exchange.params.push("CONTENT_LENGTH", exchange.stdin.len().to_string());
                }
                self.step = Step::ResponseHead;
            }
            Message::Response => {
                let protocol_status = ProtocolStatus::RequestComplete;
                exchange.end = Some(EndRequest { application_status: 0, protocol_status });
                self.step = Step::RequestHead;
            }
        }
        true
    }
}

impl ExchangeReader for Reader {
    fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn end(&mut self) {
        self.has_ended = true;
    }

    fn next(&mut self) -> Result<Option<Exchange>, ExchangeReadError> {
        loop {
            if let Some(exchange) = self.exchange.take_if(|exchange| exchange.end.is_some()) {
                return Ok(Some(exchange));
            }
            if let Some(failure) = &self.failure {
                return Err(failure.clone().into());
            }
            match self.go_on() {
                Ok(true) => {}
                // What has begun is given out incomplete.
                Ok(false) => return Ok(if self.has_ended { self.exchange.take() } else { None }),
                Err(ExchangeReadError::Form(failure)) => {
                    self.failure = Some(failure);
                    if let Some(mut exchange) = self.exchange.take() {
                        exchange.is_damaged = true;
                        return Ok(Some(exchange));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The length that a head gives its body, if it gives one; else what it says instead.
fn body_len(fields: &[httparse::Header<'_>]) -> Result<Option<BodyLen>, String> {
    let mut len = None;
    for field in fields {
        if field.name.eq_ignore_ascii_case("Transfer-Encoding") {
            // Whatever Content-Length says then (RFC 9112 6.3).
            return match field.value.eq_ignore_ascii_case(b"chunked") {
                true => Ok(Some(BodyLen::Chunked)),
                false => Err(format!("Transfer-Encoding: {}", field.value.escape_ascii())),
            };
        }
        if field.name.eq_ignore_ascii_case("Content-Length") {
            let number =
                std::str::from_utf8(field.value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number = number.and_then(|text| text.parse().ok());
            match (number, len) {
                (Some(number), None) => len = Some(number),
                (Some(number), Some(before)) if number == before => {}
                _ => return Err(format!("Content-Length: {}", field.value.escape_ascii())),
            }
        }
    }
    Ok(len.map(BodyLen::Known))
}

/// The variables that a web server would make of the request, as far as the message says.
fn params(method: &str, target: &str, is_http_1_0: bool, fields: &[httparse::Header<'_>]) -> Pairs {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = match path.split_once("://") {
        // The absolute form.
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ if path == "*" => "",
        _ => path,
    };
    let host = fields.iter().find(|field| field.name.eq_ignore_ascii_case("Host"));
    let host = host.map_or("localhost".into(), |field| String::from_utf8_lossy(field.value));
    let (server_name, server_port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
        _ => (&*host, "80"),
    };
    let path_info: Vec<u8> = percent_decode(path.as_bytes()).collect();
    let mut params = Pairs::new();
    params.push("GATEWAY_INTERFACE", "CGI/1.1");
    params.push("SERVER_PROTOCOL", if is_http_1_0 { "HTTP/1.0" } else { "HTTP/1.1" });
    params.push("REQUEST_METHOD", method);
    params.push("REQUEST_URI", target);
    params.push("SCRIPT_NAME", "");
    params.push("PATH_INFO", path_info);
    params.push("QUERY_STRING", query);
    params.push("SERVER_NAME", server_name);
    params.push("SERVER_PORT", server_port);
    for field in fields {
        let mut name = Vec::new();
        if variable_name(field.name.as_bytes(), &mut name)
            && !is_forbidden(&name)
            && name != b"HTTP_TRANSFER_ENCODING"
            && !(name == b"CONTENT_LENGTH" && params.count(b"CONTENT_LENGTH") > 0)
        {
            params.push(name, field.value);
        }
    }
    params
}
