//! HTTP messages and the waist: how a request becomes an environ and a response a body that HTTP can send. The one such
//! conversion, for the HTTP gateway and for tower, which shows the types of it that its users meet.
#![cfg_attr(not(feature = "tower"), allow(unreachable_pub, reason = "only tower shows them"))]

use std::any::Any;
use std::borrow::Cow;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Version};
use http_body::SizeHint;
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;

use super::body::Frame;
use super::callable::Application;
use super::driver::{self, Answer, Response, ResponseBody};
use super::environ::{Cancellation, Environ, Peer, Server, Variables};
use super::error::Error;
use super::errors::Errors;
use super::head::{Head, Headers};
use super::input::{Input, InputError, Source};
use super::upgrade::Upgrade;
use crate::protocol::Pairs;
use crate::protocol::cgi::{self, names};
use crate::protocol::fastcgi::Role;

/// SERVER_SOFTWARE, unless somebody says otherwise.
pub(crate) const SERVER_SOFTWARE: &str = concat!("gatespan/", env!("CARGO_PKG_VERSION"));

/// How long an application's `close()` may take once nobody waits for it any more, unless told otherwise: 5 seconds.
pub(crate) const DEFAULT_CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What a server knows of a request that the request's head does not say. Whoever puts one into the extensions of an
/// [`http::Request`] speaks for its connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The client: REMOTE_ADDR and REMOTE_PORT.
    pub peer: Peer,
    /// Where the request came to: SERVER_ADDR, and SERVER_NAME and SERVER_PORT where the request names no host.
    pub local: Option<SocketAddr>,
    /// Whether the client's connection is encrypted: HTTPS and REQUEST_SCHEME.
    pub https: bool,
    /// SERVER_SOFTWARE.
    pub software: String,
    /// SCRIPT_NAME: the path, decoded and without a slash at its end, under which the application lies. A request for anything
    /// else is answered with 404. Empty: the application has all paths.
    pub script_name: Vec<u8>,
    /// SERVER_NAME, in the place of what the request says.
    pub server_name: Option<String>,
    /// SERVER_PORT, in the place of what the request says.
    pub server_port: Option<u16>,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            peer: Peer::Unknown,
            local: None,
            https: false,
            software: SERVER_SOFTWARE.into(),
            script_name: Vec::new(),
            server_name: None,
            server_port: None,
        }
    }
}

/// A connection, and the variables that are the same for all of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    connection: Connection,
    variables: Pairs,
    server_addr: Option<String>,
    /// Whether the port is among the variables, since it is not the request that says it.
    has_port: bool,
}

impl From<Connection> for Described {
    fn from(connection: Connection) -> Self {
        let server_addr = connection.local.map(|local| local.ip().to_canonical().to_string());
        // 4.1.15: the port on which the request came; a Unix socket has none.
        let server_port = connection.server_port.or(connection.local.map(|local| local.port()));
        let mut variables = Pairs::new();
        variables.push(names::GATEWAY_INTERFACE, "CGI/1.1");
        variables.push(names::SERVER_SOFTWARE, &connection.software);
        if let Some(name) = &connection.server_name {
            variables.push(names::SERVER_NAME, name);
        }
        if let Some(port) = server_port {
            variables.push(names::SERVER_PORT, port.to_string());
        }
        if let Some(address) = &server_addr {
            variables.push(names::SERVER_ADDR, address);
        }
        variables.push(names::REQUEST_SCHEME, if connection.https { "https" } else { "http" });
        if connection.https {
            variables.push(names::HTTPS, "on");
        }
        variables.push(names::SCRIPT_NAME, &connection.script_name);
        match &connection.peer {
            Peer::Ip(address) => {
                variables.push(names::REMOTE_ADDR, address.ip().to_canonical().to_string());
                variables.push(names::REMOTE_PORT, address.port().to_string());
            }
            // 4.1.8 asks for one, and the client has none: what nginx says.
            Peer::Unix { .. } => variables.push(names::REMOTE_ADDR, "unix:"),
            Peer::Unknown => {}
        }
        Self { connection, variables, server_addr, has_port: server_port.is_some() }
    }
}

impl Described {
    /// What it says for itself.
    #[cfg(feature = "tower")]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// A request that no application is called for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// A `%` in the path without two hexadecimal digits (RFC 3986 2.1).
    #[error("expected two hexadecimal digits after each % of the path, got \"{0}\"")]
    Escape(String),
    /// A path that holds NUL once it is decoded: no program can be told of it.
    #[error("the path \"{0}\" holds NUL")]
    Nul(String),
    /// A target that is neither a path nor, with OPTIONS, `*`.
    #[error("expected a path as the target of {method}, got \"{target}\"")]
    Target {
        /// The method.
        method: Method,
        /// The target.
        target: String,
    },
    /// CONNECT, which is for proxies (RFC 9110 9.3.6).
    #[error("CONNECT is for proxies, and this is none")]
    Connect,
    /// A path outside the application's.
    #[error("the path \"{0}\" is not below SCRIPT_NAME")]
    Elsewhere(String),
    /// HTTP/1.1 without Host, or any version with two (RFC 9112 3.2).
    #[error("expected one Host, got {0}")]
    HostCount(usize),
    /// A host that is none (RFC 3986 3.2.2).
    #[error("expected a host and a port, got \"{0}\"")]
    Host(String),
    /// Content-Length is no number, or several.
    #[error("expected one decimal number as Content-Length, got \"{0}\"")]
    ContentLength(String),
    /// Content-Length is over the limit.
    #[error("the request body has {announced} bytes, the limit is {limit}")]
    TooLarge {
        /// Content-Length.
        announced: u64,
        /// The limit, in bytes.
        limit: u64,
    },
}

impl RequestError {
    /// The status of the answer.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Elsewhere(_) => 404,
            Self::TooLarge { .. } => 413,
            Self::Connect => 501,
            _ => 400,
        }
    }
}

/// The variables of a request (RFC 3875 section 4, and those that every server adds), the server's own first.
///
/// # Errors
///
/// For requests that have no meaning as variables: see [`RequestError`].
pub(crate) fn variables(head: &Parts, described: &Described) -> Result<Variables, RequestError> {
    let target = Target::of(head)?;
    let decoded = decode_path(target.path)?;
    let path = match decoded.strip_prefix(described.connection.script_name.as_slice()) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
        _ => return Err(RequestError::Elsewhere(target.path.into())),
    };
    let host = host(head)?;
    content_length(&head.headers)?;

    let values: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 5).sum();
    let room = values + 2 * target.path.len() + 2 * target.query.len() + 256;
    let mut pairs = described.variables.clone_with_room(head.headers.len() + 8, room);
    pairs.push(names::SERVER_PROTOCOL, protocol(head.version));
    push_server(&mut pairs, host.as_ref(), described);
    pairs.push(names::REQUEST_METHOD, head.method.as_str());
    pairs.push(names::PATH_INFO, path);
    // 4.1.7: it is set even where there is no query.
    pairs.push(names::QUERY_STRING, target.query);
    pairs.push(names::REQUEST_URI, target.origin_form);
    push_fields(&mut pairs, head, host.as_ref());
    Ok(Variables::from_pairs(pairs))
}

/// The parts of a request's target.
struct Target<'a> {
    path: &'a str,
    query: &'a str,
    origin_form: &'a str,
}

impl<'a> Target<'a> {
    fn of(head: &'a Parts) -> Result<Self, RequestError> {
        if head.method == Method::CONNECT {
            return Err(RequestError::Connect);
        }
        let refuse = || RequestError::Target { method: head.method.clone(), target: head.uri.to_string() };
        // RFC 9112 3.2: origin-form, absolute-form (of which a server of its own wants the path only) or, for OPTIONS, an asterisk.
        let path = head.uri.path();
        let origin_form = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        match path {
            // The whole server: no path, so that PATH_INFO is empty.
            "*" if head.method == Method::OPTIONS => Ok(Self { path: "", query: "", origin_form: "*" }),
            path if path.starts_with('/') => Ok(Self { path, query: head.uri.query().unwrap_or(""), origin_form }),
            _ => Err(refuse()),
        }
    }
}

fn decode_path(path: &str) -> Result<Cow<'_, [u8]>, RequestError> {
    let bytes = path.as_bytes();
    // Neither needs decoding most of the time, nor can a target hold NUL that is not encoded.
    let Some(escape) = bytes.iter().position(|byte| *byte == b'%') else { return Ok(bytes.into()) };
    let mut decoded = Vec::with_capacity(bytes.len());
    decoded.extend_from_slice(&bytes[..escape]);
    let mut rest = &bytes[escape..];
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let digit = |digit: Option<&u8>| digit.and_then(|digit| char::from(*digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(after.first()), digit(after.get(1))) else {
            return Err(RequestError::Escape(excerpt(bytes)));
        };
        // Two hexadecimal digits fit a byte.
        decoded.push((high * 16 + low) as u8);
        rest = &after[2..];
    }
    match decoded.contains(&0) {
        true => Err(RequestError::Nul(excerpt(bytes))),
        false => Ok(decoded.into()),
    }
}

/// Host as the request names it.
struct Host<'a> {
    /// As it is written, with its port.
    whole: &'a [u8],
    name: &'a [u8],
    port: Option<u16>,
}

fn host(head: &Parts) -> Result<Option<Host<'_>>, RequestError> {
    let all = head.headers.get_all(header::HOST);
    let mut hosts = all.iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(RequestError::HostCount(all.iter().count()));
    }
    // RFC 9112 3.2.2 and RFC 9113 8.3.1: the target's own authority counts, not Host.
    let whole = match (head.uri.authority(), host) {
        (Some(authority), _) => authority.as_str().as_bytes(),
        (None, Some(host)) => host.as_bytes(),
        (None, None) => return Ok(None),
    };
    if whole.is_empty() {
        return Ok(None);
    }
    parse_host(whole).map(Some).ok_or_else(|| RequestError::Host(excerpt(whole)))
}

/// `uri-host [ ":" port ]` (RFC 9110 7.2).
fn parse_host(whole: &[u8]) -> Option<Host<'_>> {
    let (name, port) = match whole.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !whole[colon..].contains(&b']') => (&whole[..colon], &whole[colon + 1..]),
        _ => (whole, &b""[..]),
    };
    let port = match port {
        b"" => None,
        digits => Some(cgi::decimal(digits)?),
    };
    let valid = match name.strip_prefix(b"[") {
        Some(literal) => {
            let address = literal.strip_suffix(b"]").and_then(|address| std::str::from_utf8(address).ok());
            address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        }
        // reg-name (RFC 3986 3.2.2), which an IPv4 address is as well.
        None => !name.is_empty() && name.iter().all(|byte| IN_HOST_NAMES[usize::from(*byte)]),
    };
    valid.then_some(Host { whole, name, port })
}

/// What may stand in a name of RFC 3986 3.2.2.
const IN_HOST_NAMES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let of_names = matches!(
            byte as u8,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        );
        table[byte] = (byte as u8).is_ascii_alphanumeric() || of_names;
        byte += 1;
    }
    table
};

fn push_server(pairs: &mut Pairs, host: Option<&Host<'_>>, described: &Described) {
    let Described { connection, server_addr, has_port, .. } = described;
    match (&connection.server_name, host, server_addr) {
        (Some(_), _, _) => {}
        (None, Some(host), _) => pairs.push(names::SERVER_NAME, host.name),
        (None, None, Some(address)) if address.contains(':') => pairs.push(names::SERVER_NAME, format!("[{address}]")),
        (None, None, Some(address)) => pairs.push(names::SERVER_NAME, address),
        (None, None, None) => pairs.push(names::SERVER_NAME, "localhost"),
    }
    if !has_port {
        // Without a port on which it came, the one that the client asked for counts.
        let usual_port = if connection.https { 443 } else { 80 };
        let asked_for = host.and_then(|host| host.port).unwrap_or(usual_port);
        pairs.push(names::SERVER_PORT, asked_for.to_string());
    }
}

/// The header fields, each value a pair (4.1.18).
fn push_fields(pairs: &mut Pairs, head: &Parts, host: Option<&Host<'_>>) {
    let mut variable = Vec::with_capacity(64);
    if let Some(host) = host {
        pairs.push("HTTP_HOST", host.whole);
    }
    let mut before = None;
    for (name, value) in &head.headers {
        // Host was added from where it counts. The transfer coding is gone by now, and 4.2 wants it gone from here too.
        if matches!(*name, header::TRANSFER_ENCODING | header::HOST) {
            continue;
        }
        // The values of one name stand together.
        if before.replace(name) != Some(name) {
            variable.clear();
            if !cgi::variable_name(name.as_str().as_bytes(), &mut variable) {
                variable.clear();
            }
        } else if matches!(*name, header::CONTENT_LENGTH | header::CONTENT_TYPE) {
            // Both speak of the one body, so that there is one value; `content_length` has seen to it that they agree.
            continue;
        }
        // A name that is no variable's has none.
        if !variable.is_empty() {
            pairs.push(&variable, value.as_bytes());
        }
    }
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, RequestError> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = Some(value.as_bytes()).filter(|value| value.iter().all(u8::is_ascii_digit));
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
        match (number, length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(before)) if number == before => {}
            _ => return Err(RequestError::ContentLength(excerpt(value.as_bytes()))),
        }
    }
    Ok(length)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// What of the peer's bytes goes into a message.
fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(64)].escape_ascii().to_string()
}

/// How an application is called with a request.
pub(crate) struct Call {
    /// For the environ.
    pub(crate) server: Arc<Server>,
    /// The number of the request on its connection.
    pub(crate) number: u32,
    /// For the environ.
    pub(crate) errors: Errors,
    /// The longest body that is read, in bytes.
    pub(crate) max_body: Option<u64>,
    /// How long the client may send nothing of a body that the application waits for.
    pub(crate) body_timeout: Option<Duration>,
    /// How applications are closed.
    pub(crate) closing: Closing,
    /// Dropped when the response is over.
    pub(crate) lease: Option<Box<dyn Any + Send>>,
}

impl Call {
    /// Calls the application with that request. What is wrong with the request, and what the application fails with before the head,
    /// is answered with a page.
    pub(crate) fn begin<A, B>(self, application: A, request: http::Request<B>, described: &Described) -> Answering
    where
        A: Application,
        B: http_body::Body<Data: Buf, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        let (mut head, body) = request.into_parts();
        let length = match content_length(&head.headers) {
            // Only the head of HTTP/1.1's framing that is left: a length beside chunks was dropped with the chunks.
            Ok(length) => length.or(body.size_hint().exact()),
            Err(error) => return self.refuse(&head, &error),
        };
        if let (Some(announced), Some(limit)) = (length, self.max_body)
            && announced > limit
        {
            return self.refuse(&head, &RequestError::TooLarge { announced, limit });
        }
        let variables = match variables(&head, described) {
            Ok(variables) => variables,
            Err(error) => return self.refuse(&head, &error),
        };
        let input = match body.is_end_stream() && length.is_none_or(|length| length == 0) {
            true => Input::empty(),
            false => {
                let source = HttpSource::new(body, self.max_body, self.body_timeout);
                Input::from_source(source, length)
            }
        };
        let cancellation = Cancellation::default();
        let mut environ = Environ::new(variables)
            .with_input(input)
            .with_server(self.server)
            .with_errors(self.errors)
            .with_request(Role::Responder, self.number, cancellation.clone());
        environ.set_local_redirects(head.extensions.remove());
        *environ.extensions_mut() = std::mem::take(&mut head.extensions);
        let request = environ.without_input();
        let exchange = Exchange::new(request, cancellation, self.closing, self.lease);
        Answering { answer: Answer::new(application, environ), exchange: Some(exchange) }
    }

    /// An answer without calling the application: a page with that status, and fields for its head. The log learns why, under the
    /// request id that is on the page.
    pub(crate) fn page(
        self,
        status: u16,
        method: &Method,
        fields: &[(&str, &str)],
        why: &dyn fmt::Display,
    ) -> Answering {
        let request = Environ::new(Variables::new()).with_server(self.server).with_errors(self.errors);
        request.errors().line(format_args!("request {} answered with {status}: {why}", request.request_id()));
        let mut response = driver::error_page(status, request.request_id(), method == Method::HEAD);
        for (name, value) in fields {
            response.head.headers.push(name, value);
        }
        let exchange = Exchange::new(request, Cancellation::default(), self.closing, self.lease);
        Answering { answer: Answer::of(response), exchange: Some(exchange) }
    }

    pub(crate) fn refuse(self, head: &Parts, error: &RequestError) -> Answering {
        self.page(error.status(), &head.method, &[], error)
    }
}

/// A call of an application on its way to the head of its response.
///
/// Dropping it cancels the request's token first and then drops what the application awaits.
pub struct Answering {
    answer: Answer,
    /// Until the head is there.
    exchange: Option<Box<Exchange>>,
}

/// What outlives the head. Boxed, since it moves from one type of hyper's to the next.
struct Exchange {
    /// From the head on.
    body: Option<ResponseBody>,
    /// The request without its body, for its id and its log.
    request: Environ,
    cancellation: Cancellation,
    closing: Closing,
    _lease: Option<Box<dyn Any + Send>>,
    /// Given out since the last pause.
    unflushed: bool,
    /// What the application failed with, until what came before it had its chance to be sent.
    failed: Option<Cut>,
    finished: bool,
}

impl Exchange {
    fn new(
        request: Environ,
        cancellation: Cancellation,
        closing: Closing,
        lease: Option<Box<dyn Any + Send>>,
    ) -> Box<Self> {
        Box::new(Self {
            request,
            cancellation,
            closing,
            _lease: lease,
            body: None,
            unflushed: true,
            failed: None,
            finished: false,
        })
    }

    fn fail(&self, error: Error) -> Cut {
        driver::log_failure(&self.request.errors(), self.request.request_id(), "was cut", &error);
        Cut(error)
    }
}

impl Future for Answering {
    type Output = Result<http::Response<HttpBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.exchange.is_none() {
            // Polled again after it was ready, which nobody does.
            return Poll::Pending;
        }
        let response = ready!(self.answer.poll(cx));
        match self.exchange.take() {
            Some(exchange) => Poll::Ready(Ok(to_http(response, exchange))),
            None => Poll::Pending,
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(exchange) = &self.exchange {
            exchange.cancellation.cancel();
        }
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answering")
    }
}

fn to_http(mut response: Response, mut exchange: Box<Exchange>) -> http::Response<HttpBody> {
    let accepted = exchange.request.extensions().get::<Upgrade>().and_then(Upgrade::accepted);
    let converted = match (response.head.status.code(), accepted) {
        (101, Some(protocol)) => switching_head(&response.head, protocol),
        // hyper would have it that this is all there is to come.
        (100..200, _) => Err(Error::new(format!("expected a final status, got \"{}\"", response.head.status))),
        _ => http_head(&response.head),
    };
    let head = match converted {
        Ok(head) => head,
        Err(error) => {
            let request = &exchange.request;
            driver::log_failure(&request.errors(), request.request_id(), "answered with an error page", &error);
            // The application is closed with the body that is replaced here.
            exchange.closing.close(&mut response.body);
            let page = driver::error_page(500, request.request_id(), request.method() == b"HEAD");
            response.body = page.body;
            // The page's head is one that HTTP can send.
            http_head(&page.head).unwrap_or_default()
        }
    };
    exchange.body = Some(response.body);
    let mut converted = http::Response::new(HttpBody { exchange: Some(exchange) });
    *converted.status_mut() = head.status;
    *converted.headers_mut() = head.headers;
    *converted.extensions_mut() = head.extensions;
    converted
}

#[derive(Default)]
struct HttpHead {
    status: StatusCode,
    headers: HeaderMap,
    extensions: http::Extensions,
}

/// Values and their order within one name are kept; names become lower-case, and stand together.
fn http_head(head: &Head) -> Result<HttpHead, Error> {
    let status = StatusCode::from_u16(head.status.code())?;
    let mut extensions = http::Extensions::new();
    let reason = head.status.reason();
    // A reason that is only a guess must not replace one that HTTP's own table has.
    let is_guess = reason == b"Unassigned" && status.canonical_reason().is_some();
    if status.canonical_reason().map(str::as_bytes) != Some(reason) && !is_guess {
        insert_reason(&mut extensions, reason);
    }
    Ok(HttpHead { status, headers: header_map(&head.headers)?, extensions })
}

/// The head of the answer by which the connection is the application's.
fn switching_head(head: &Head, protocol: Bytes) -> Result<HttpHead, Error> {
    let mut head = http_head(head)?;
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, HeaderValue::from_maybe_shared(protocol)?);
    Ok(head)
}

#[cfg(feature = "http")]
fn insert_reason(extensions: &mut http::Extensions, reason: &[u8]) {
    if let Ok(reason) = hyper::ext::ReasonPhrase::try_from(reason) {
        extensions.insert(reason);
    }
}

#[cfg(not(feature = "http"))]
fn insert_reason(_: &mut http::Extensions, _: &[u8]) {}

fn header_map(headers: &Headers) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        map.append(HeaderName::from_bytes(name)?, HeaderValue::from_bytes(value)?);
    }
    Ok(map)
}

/// How applications are closed once nobody waits for them: as a task of their own, within a limit.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    /// How long a `close()` may take.
    pub(crate) limit: Duration,
    /// Where the tasks can be waited for.
    pub(crate) tasks: TaskTracker,
}

impl Default for Closing {
    fn default() -> Self {
        Self { limit: DEFAULT_CLOSE_LIMIT, tasks: TaskTracker::new() }
    }
}

impl Closing {
    /// Closes it at once or takes it.
    fn close(&self, body: &mut ResponseBody) {
        // Most are closed at once.
        if body.poll_close(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        let limit = self.limit;
        let mut body = std::mem::replace(body, super::Body::empty().into());
        // Without a runtime nothing could be waited for: the drop is all there is.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(
                async move {
                    if tokio::time::timeout(limit, body.close()).await.is_err() {
                        tracing::warn!("an application's close() took more than {limit:?} and was dropped");
                    }
                },
                &runtime,
            );
        }
    }
}

/// The body of a response as HTTP sends it: data, then trailers. Parts of files are read.
///
/// A failure of the application is an error here, by which the server cuts the response. Dropping a body that is not over cancels
/// the request's token, and then closes the application's body.
#[derive(Default)]
pub struct HttpBody {
    /// `None`: no body, as some of tower's layers answer by themselves.
    exchange: Option<Box<Exchange>>,
}

/// The application failed after the head of its response, which is therefore cut.
#[derive(Debug)]
pub struct Cut(Error);

impl Cut {
    /// What it failed with.
    #[cfg_attr(not(feature = "tower"), expect(dead_code, reason = "only tower shows it"))]
    pub fn error(&self) -> &Error {
        &self.0
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response was cut: {}", self.0)
    }
}

impl StdError for Cut {}

impl http_body::Body for HttpBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Cut>>> {
        let Some(this) = &mut Pin::into_inner(self).exchange else { return Poll::Ready(None) };
        if let Some(cut) = this.failed.take() {
            this.finished = true;
            return Poll::Ready(Some(Err(cut)));
        }
        let Some(body) = this.body.as_mut().filter(|_| !this.finished) else { return Poll::Ready(None) };
        loop {
            let frame = match ready!(body.poll_data(cx)) {
                Some(Ok(Frame::Data(data))) if data.is_empty() => continue,
                Some(Ok(Frame::Data(data))) => http_body::Frame::data(data),
                Some(Ok(Frame::Trailers(trailers))) => match header_map(&trailers) {
                    Ok(trailers) => http_body::Frame::trailers(trailers),
                    Err(error) => {
                        this.finished = true;
                        return Poll::Ready(Some(Err(this.fail(error))));
                    }
                },
                Some(Ok(Frame::Flush)) if !this.unflushed => continue,
                Some(Ok(Frame::Flush)) => {
                    // A server sends what it has when a body has nothing ready: so this one hasn't, once.
                    this.unflushed = false;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // `poll_data` has made data of files.
                Some(Ok(Frame::File(_))) => continue,
                Some(Err(error)) => {
                    let cut = this.fail(error);
                    if !this.unflushed {
                        this.finished = true;
                        return Poll::Ready(Some(Err(cut)));
                    }
                    this.failed = Some(cut);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => {
                    this.finished = true;
                    return Poll::Ready(None);
                }
            };
            this.unflushed = true;
            if frame.is_trailers() {
                this.finished = true;
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.as_ref().is_none_or(|exchange| {
            let is_over = || exchange.body.as_ref().is_none_or(ResponseBody::is_over);
            exchange.failed.is_none() && (exchange.finished || is_over())
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(exchange) = &self.exchange else { return SizeHint::with_exact(0) };
        match exchange.body.as_ref().map_or(Some(0), ResponseBody::exact_len) {
            Some(len) if exchange.failed.is_none() => SizeHint::with_exact(len),
            _ => SizeHint::new(),
        }
    }
}

impl Drop for HttpBody {
    fn drop(&mut self) {
        let Some(exchange) = &mut self.exchange else { return };
        let Some(body) = &mut exchange.body else { return };
        // A server that has sent as many bytes as it announced asks for no end.
        if !(exchange.finished || body.is_over() || body.exact_len() == Some(0)) {
            exchange.cancellation.cancel();
        }
        exchange.closing.close(body);
    }
}

impl fmt::Debug for HttpBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HttpBody");
        if let Some(exchange) = &self.exchange {
            debug.field("body", &exchange.body).field("finished", &exchange.finished);
        }
        debug.finish_non_exhaustive()
    }
}

/// The body of a request. Nothing is read before the application asks; by its first question a client that sent
/// `Expect: 100-continue` is told to go on. Trailers of requests have no place in an environ and are dropped.
struct HttpSource<B> {
    body: Pin<Box<B>>,
    /// What the limit leaves, and the limit.
    unread_limit: Option<(u64, u64)>,
    timeout: Option<Duration>,
    clock: Option<Pin<Box<Sleep>>>,
    /// The clock runs: the application waits for the client.
    waiting: bool,
}

impl<B> HttpSource<B> {
    fn new(body: B, max_body: Option<u64>, timeout: Option<Duration>) -> Self {
        let unread_limit = max_body.map(|limit| (limit, limit));
        Self { body: Box::pin(body), unread_limit, timeout, clock: None, waiting: false }
    }

    /// Whether the client has sent nothing for too long.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<InputError> {
        let Some(after) = self.timeout else { return Poll::Pending };
        let clock = self.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        if !std::mem::replace(&mut self.waiting, true) {
            clock.as_mut().reset(Instant::now() + after);
        }
        ready!(clock.as_mut().poll(cx));
        Poll::Ready(InputError::TimedOut { after })
    }
}

impl<B> Source for HttpSource<B>
where
    B: http_body::Body<Data: Buf, Error: Into<Box<dyn StdError + Send + Sync>>> + Send,
{
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        loop {
            let Poll::Ready(frame) = self.body.as_mut().poll_frame(cx) else {
                return self.poll_timeout(cx).map(|error| Some(Err(error)));
            };
            self.waiting = false;
            return Poll::Ready(match frame {
                None => None,
                Some(Err(error)) => Some(Err(input_error(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(mut data) => {
                        let chunk = data.copy_to_bytes(data.remaining());
                        if chunk.is_empty() {
                            continue;
                        }
                        if let Some((unread, limit)) = &mut self.unread_limit {
                            match unread.checked_sub(chunk.len() as u64) {
                                Some(left) => *unread = left,
                                None => return Poll::Ready(Some(Err(InputError::TooLarge { limit: *limit }))),
                            }
                        }
                        Some(Ok(chunk))
                    }
                    Err(_) => continue,
                },
            });
        }
    }
}

/// What kept a body from being read: the client that left, one that sent nonsense, or something else.
fn input_error(error: Box<dyn StdError + Send + Sync>) -> InputError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
    while let Some(next) = cause {
        if let Some(io) = next.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => InputError::Malformed(error),
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => InputError::Aborted,
                _ => InputError::Io(io::Error::other(error)),
            };
        }
        #[cfg(feature = "http")]
        if let Some(hyper) = next.downcast_ref::<hyper::Error>()
            && (hyper.is_incomplete_message() || hyper.is_closed() || hyper.is_canceled() || hyper.source().is_none())
        {
            return InputError::Aborted;
        }
        cause = next.source();
    }
    InputError::Io(io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables_of(uri: &str, host: Option<&str>, connection: &Connection) -> Result<Variables, RequestError> {
        let mut request = http::Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        variables(&request.body(()).unwrap().into_parts().0, &connection.clone().into())
    }

    #[test]
    fn without_a_local_address_the_port_is_the_one_that_the_client_asked_for() {
        let secure = Connection { https: true, ..Connection::default() };
        for (connection, host, name, port) in [
            (Connection::default(), Some("a:81"), "a", "81"),
            (Connection::default(), Some("a"), "a", "80"),
            (Connection::default(), None, "localhost", "80"),
            (secure.clone(), Some("[::1]:8443"), "[::1]", "8443"),
            (secure, Some("a"), "a", "443"),
        ] {
            let variables = variables_of("/", host, &connection).unwrap();
            assert_eq!(variables.get(b"SERVER_NAME"), Some(name.as_bytes()), "{host:?}");
            assert_eq!(variables.get(b"SERVER_PORT"), Some(port.as_bytes()), "{host:?}");
        }
    }

    #[test]
    fn a_client_has_an_address_over_ip_and_over_a_unix_socket() {
        for (peer, address) in [
            (Peer::Ip("[::ffff:192.0.2.1]:5".parse().unwrap()), Some(&b"192.0.2.1"[..])),
            (Peer::Ip("[2001:db8::1]:5".parse().unwrap()), Some(b"2001:db8::1")),
            (Peer::Unix { uid: None, pid: None }, Some(b"unix:")),
            (Peer::Unknown, None),
        ] {
            let connection = Connection { peer, ..Connection::default() };
            assert_eq!(variables_of("/", None, &connection).unwrap().get(b"REMOTE_ADDR"), address);
        }
    }

    #[test]
    fn paths_are_decoded_byte_by_byte() {
        assert_eq!(*decode_path("/a%2Fb%c3%BC%ff+").unwrap(), *b"/a/b\xc3\xbc\xff+");
        for path in ["/%", "/%0", "/%g0", "/%0g", "/%\u{fc}", "/%00", "/%+1"] {
            assert!(decode_path(path).is_err(), "{path}");
        }
    }
}
