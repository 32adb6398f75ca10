//! An environ as the request that goes to the server, and its input as that request's body.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri, Version};
use http_body::SizeHint;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Config, Failure, HostField, TargetPath, forwarded, via};
use crate::application::target::path_and_query;
use crate::application::{Environ, Input, InputError, Upgrade};
use crate::protocol::cgi::names;

/// What belongs to one connection or to one proxy whatever Connection says of it (RFC 9110 7.6.1, and 11.7 for Proxy-…).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The one protocol that a connection can be handed over for.
pub(super) const WEBSOCKET: &[u8] = b"websocket";

/// The head of the request for the server. `len` is the length of its body, where that is known.
pub(super) fn head(environ: &Environ, len: Option<u64>, config: &Config, authority: &str) -> Result<Parts, Failure> {
    let mut fields = fields(environ)?;
    let switches = match websocket(&fields) {
        None => false,
        // RFC 6455 4.1: it is a GET, and what comes behind its head is WebSocket.
        Some(_) if environ.extensions().get::<Upgrade>().is_some() && environ.method() == b"GET" && len == Some(0) => {
            true
        }
        Some(protocol) => return Err(Failure::Upgrade(protocol)),
    };
    let takes_trailers = lists(&fields, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    let expects =
        fields.remove(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    remove_hop_by_hop(&mut fields);
    forwarded::add(&mut fields, environ, config)?;
    via::add(&mut fields, via::version_of(environ.get(names::SERVER_PROTOCOL).unwrap_or_default()), config);

    let host = match &config.host {
        HostField::Client => client_host(environ),
        HostField::Target => authority.as_bytes().to_vec(),
        HostField::Named(name) => name.as_bytes().to_vec(),
    };
    fields.insert(header::HOST, HeaderValue::from_bytes(&host).map_err(|_| refuse("HTTP_HOST", &host))?);
    if takes_trailers {
        // This proxy passes trailers of answers on, which is its own to say on this connection.
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        fields.append(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    if switches {
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        fields.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }

    let method = Method::from_bytes(environ.method()).map_err(|_| refuse(names::REQUEST_METHOD, environ.method()))?;
    if method == Method::CONNECT {
        return Err(refuse(names::REQUEST_METHOD, environ.method()));
    }
    // The framing is this connection's alone: one of both, whatever the client's fields say.
    fields.remove(header::CONTENT_LENGTH);
    match len {
        Some(0) if is_bodiless(&method) => {}
        Some(len) => drop(fields.insert(header::CONTENT_LENGTH, len.into())),
        None => drop(fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
    }
    if expects && len != Some(0) {
        fields.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }

    let target = path_and_query(environ, config.path == TargetPath::Whole);
    let uri = Uri::from_maybe_shared(Bytes::from(target))
        .map_err(|_| refuse(names::REQUEST_URI, environ.get(names::REQUEST_URI).unwrap_or_default()))?;
    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, Version::HTTP_11, fields);
    Ok(parts)
}

/// Whether a method mostly comes without a body, so that its absence goes without saying.
pub(super) fn is_bodiless(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::DELETE)
}

pub(super) fn refuse(name: &str, value: &[u8]) -> Failure {
    Failure::Request { name: name.into(), value: value[..value.len().min(64)].escape_ascii().to_string() }
}

/// The header fields that the variables were made of.
fn fields(environ: &Environ) -> Result<HeaderMap, Failure> {
    let pairs = environ.variables().pairs();
    let mut fields = HeaderMap::with_capacity(pairs.len() + 4);
    let mut name_buffer = Vec::with_capacity(32);
    for (name, value) in pairs.iter() {
        let (field, is_http) = match name.strip_prefix(b"HTTP_") {
            Some(field) => (field, true),
            // Empty is unset (RFC 3875 4.1.3).
            None if name == b"CONTENT_TYPE" && !value.is_empty() => (name, false),
            None => continue,
        };
        name_buffer.clear();
        name_buffer.extend(field.iter().map(|byte| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }));
        let field = HeaderName::from_bytes(&name_buffer).map_err(|_| refuse("the name of a variable", name))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| refuse(&name.escape_ascii().to_string(), value))?;
        match is_http {
            // HTTP/2 takes cookies apart, and HTTP/1.1 has one field for them (RFC 9113 8.2.3).
            true if field == header::COOKIE => {
                if !fields.contains_key(&field) {
                    let all = environ.get(name).unwrap_or_default();
                    let all = HeaderValue::from_bytes(all).map_err(|_| refuse("HTTP_COOKIE", all))?;
                    fields.insert(field, all);
                }
            }
            true => drop(fields.append(field, value)),
            // Of one that is repeated the last wins.
            false => drop(fields.insert(field, value)),
        }
    }
    Ok(fields)
}

/// The members of a field that is a list.
fn lists<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = fields.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// The protocol that a client wants to switch to and would not do without.
fn websocket(fields: &HeaderMap) -> Option<String> {
    let asks = lists(fields, &header::CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let is_websocket =
        |protocol: &&str| protocol.split('/').next().is_some_and(|name| name.eq_ignore_ascii_case("websocket"));
    lists(fields, &header::UPGRADE).find(is_websocket).filter(|_| asks).map(str::to_owned)
}

/// Takes away what is the connection's: the fields that are known, and those that Connection names (RFC 9110 7.6.1).
pub(super) fn remove_hop_by_hop(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        lists(fields, &header::CONNECTION).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        fields.remove(name);
    }
}

/// The host that the client asked for.
pub(super) fn client_host(environ: &Environ) -> Vec<u8> {
    if let Some(host) = environ.get("HTTP_HOST").filter(|host| !host.is_empty()) {
        return host.to_vec();
    }
    let mut host = environ.get(names::SERVER_NAME).filter(|name| !name.is_empty()).unwrap_or(b"localhost").to_vec();
    let usual: &[u8] = if environ.url_scheme() == "https" { b"443" } else { b"80" };
    if let Some(port) = environ.get(names::SERVER_PORT).filter(|port| !port.is_empty() && *port != usual) {
        host.push(b':');
        host.extend_from_slice(port);
    }
    host
}

/// How far a request's body has come, for the one who waits for the answer.
#[derive(Clone)]
pub(super) struct Progress {
    state: Arc<Mutex<State>>,
}

struct State {
    /// When the server last took something, or the client was last waited for.
    moved: Instant,
    /// The next piece is the client's to send.
    waits_for_client: bool,
    finished: bool,
    failed: Option<InputError>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let state = State { moved: Instant::now(), waits_for_client: false, finished: false, failed: None };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// When the server's time began to run.
    pub(super) fn moved(&self) -> Instant {
        let state = self.lock();
        if state.waits_for_client { Instant::now() } else { state.moved }
    }

    /// Whether the whole body has been handed over.
    pub(super) fn is_finished(&self) -> bool {
        self.lock().finished
    }

    /// What kept the body from being read.
    pub(super) fn failed(&self) -> Option<InputError> {
        self.lock().failed.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An environ's input as the body of a request.
pub(super) struct RequestBody {
    /// What was read of the input before.
    first: Option<Bytes>,
    input: Input,
    progress: Progress,
    /// What the body waits for before its first byte.
    gate: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl RequestBody {
    /// A first piece, and what is left of the input behind it.
    pub(super) fn new(first: Option<Bytes>, input: Input, progress: Progress) -> Self {
        progress.lock().finished = first.is_none() && input.remaining() == Some(0);
        Self { first, input, progress, gate: None }
    }

    /// The same, which waits until the server wants it: `go_on` is cancelled, or the wait is over.
    pub(super) fn expecting(mut self, go_on: CancellationToken, wait: Duration) -> Self {
        self.gate = Some(Box::pin(async move {
            let _ = tokio::time::timeout(wait, go_on.cancelled()).await;
        }));
        self
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Unread>>> {
        let this = &mut *self;
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        let chunk = match this.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut this.input).poll_next(cx),
        };
        let mut state = this.progress.lock();
        state.waits_for_client = chunk.is_pending();
        state.moved = Instant::now();
        Poll::Ready(match ready!(chunk) {
            Some(Ok(chunk)) => {
                state.finished = this.input.remaining() == Some(0);
                Some(Ok(http_body::Frame::data(chunk)))
            }
            Some(Err(error)) => {
                state.failed = Some(error);
                Some(Err(Unread))
            }
            None => {
                state.finished = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.input.remaining() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        self.input.remaining().map_or_else(SizeHint::new, |remaining| SizeHint::with_exact(first + remaining))
    }
}

/// The client's body could not be read to its end; why is in the [`Progress`].
#[derive(Debug, thiserror::Error)]
#[error("the request's body could not be read")]
pub(super) struct Unread;

#[cfg(test)]
mod tests {
    use super::super::ForwardedFields;
    use super::*;

    fn environ(pairs: &[(&str, &str)]) -> Environ {
        let usual = [("REQUEST_METHOD", "GET"), ("PATH_INFO", "/a b"), ("REMOTE_ADDR", "192.0.2.1")];
        Environ::new(usual.iter().chain(pairs).copied().collect())
    }

    fn off() -> Config {
        Config { forwarded: ForwardedFields::Off, via: None, ..Config::default() }
    }

    fn head_of(pairs: &[(&str, &str)], len: Option<u64>) -> Parts {
        head(&environ(pairs), len, &off(), "target:81").unwrap()
    }

    #[test]
    fn what_belongs_to_the_connection_stays_on_it() {
        let head = head_of(
            &[
                ("HTTP_CONNECTION", "close, X-Secret,Keep-Alive"),
                ("HTTP_CONNECTION", "x-other"),
                ("HTTP_X_SECRET", "1"),
                ("HTTP_X_OTHER", "1"),
                ("HTTP_KEEP_ALIVE", "5"),
                ("HTTP_PROXY_AUTHORIZATION", "x"),
                ("HTTP_PROXY_CONNECTION", "keep-alive"),
                ("HTTP_TE", "gzip"),
                ("HTTP_TRAILER", "x"),
                ("HTTP_TRANSFER_ENCODING", "chunked"),
                ("HTTP_UPGRADE", "h2c"),
                ("HTTP_X_KEPT", "1"),
                ("HTTP_X_KEPT", "2"),
                ("CONTENT_TYPE", "a/b"),
                ("CONTENT_LENGTH", "99"),
            ],
            Some(0),
        );
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "host", "x-kept"]);
        assert_eq!(head.headers.get_all("x-kept").iter().count(), 2);
        assert_eq!(head.uri, "/a%20b");
    }

    #[test]
    fn cookies_are_one_field() {
        let head = head_of(&[("HTTP_COOKIE", "a=1"), ("HTTP_COOKIE", "b=2")], Some(0));
        assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn without_a_path_the_target_is_the_request_s() {
        let asked = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a%2Fb?q=1"), ("QUERY_STRING", "q=1")];
        let environ = Environ::new(asked.into_iter().collect());
        assert_eq!(head(&environ, Some(0), &off(), "t").unwrap().uri, "/a%2Fb?q=1");
    }

    #[test]
    fn te_trailers_is_said_anew() {
        let head = head_of(&[("HTTP_TE", "gzip;q=1, Trailers")], Some(0));
        assert_eq!(
            (&head.headers["te"], &head.headers["connection"]),
            (&"trailers".parse().unwrap(), &"TE".parse().unwrap())
        );
    }

    #[test]
    fn the_framing_is_the_body_s_and_not_the_fields() {
        let post = [("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "7"), ("HTTP_TRANSFER_ENCODING", "chunked")];
        let with = |len| head_of(&post, len).headers;
        assert_eq!(with(Some(5))["content-length"], "5");
        assert_eq!(with(Some(0))["content-length"], "0");
        assert!(!with(Some(5)).contains_key("transfer-encoding"));
        assert_eq!(with(None)["transfer-encoding"], "chunked");
        assert!(!with(None).contains_key("content-length"));
        assert_eq!(head_of(&[], None).headers["transfer-encoding"], "chunked");
        assert!(!head_of(&[], Some(0)).headers.contains_key("content-length"));
    }

    #[test]
    fn the_host_is_the_client_s_the_target_s_or_another() {
        let host = |host, pairs: &[_]| {
            let config = Config { host, ..off() };
            head(&environ(pairs), Some(0), &config, "target:81").unwrap().headers["host"].clone()
        };
        let client = [("HTTP_HOST", "client:82")];
        assert_eq!(host(HostField::Client, &client), "client:82");
        assert_eq!(host(HostField::Target, &client), "target:81");
        assert_eq!(host(HostField::Named("other".into()), &client), "other");
        assert_eq!(host(HostField::Client, &[("SERVER_NAME", "s"), ("SERVER_PORT", "8080")]), "s:8080");
        assert_eq!(host(HostField::Client, &[("SERVER_NAME", "s"), ("SERVER_PORT", "443"), ("HTTPS", "on")]), "s");
    }

    #[test]
    fn a_wish_for_websocket_is_501_and_one_for_anything_else_is_left_out() {
        let upgrade = |protocol| {
            let environ = environ(&[("HTTP_CONNECTION", "keep-alive, Upgrade"), ("HTTP_UPGRADE", protocol)]);
            head(&environ, Some(0), &off(), "t").map(|head| head.headers.contains_key("upgrade"))
        };
        assert_eq!(upgrade("WebSocket").unwrap_err().status(), 501);
        assert_eq!(upgrade("h2c, websocket/13").unwrap_err().status(), 501);
        assert!(!upgrade("h2c").unwrap());
        // Where the gateway offers its connection, it is passed on for WebSocket, and only for that.
        let offered = |method, protocol, len| {
            let pairs = [
                ("REQUEST_METHOD", method),
                ("HTTP_CONNECTION", "upgrade"),
                ("HTTP_UPGRADE", protocol),
                ("HTTP_TE", "trailers"),
            ];
            let mut environ = environ(&pairs);
            environ.extensions_mut().insert(Upgrade::new());
            head(&environ, len, &off(), "t").map(|head| {
                let all = |name: HeaderName| {
                    head.headers
                        .get_all(name)
                        .iter()
                        .map(|value| value.to_str().unwrap().to_owned())
                        .collect::<Vec<_>>()
                };
                (all(header::UPGRADE), all(header::CONNECTION))
            })
        };
        let switched = (vec!["websocket".to_owned()], vec!["TE".to_owned(), "upgrade".to_owned()]);
        assert_eq!(offered("GET", "h2c, WebSocket", Some(0)).unwrap(), switched);
        assert_eq!(offered("GET", "h2c", Some(0)).unwrap(), (vec![], vec!["TE".to_owned()]));
        assert_eq!(offered("POST", "websocket", Some(0)).unwrap_err().status(), 501);
        assert_eq!(offered("GET", "websocket", None).unwrap_err().status(), 501);
        // Without the option in Connection it is no wish.
        assert!(!head_of(&[("HTTP_UPGRADE", "websocket")], Some(0)).headers.contains_key("upgrade"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for pair in [
            ("REQUEST_METHOD", "G T"),
            ("REQUEST_METHOD", "CONNECT"),
            ("QUERY_STRING", "a b"),
            ("HTTP_X", "a\nb"),
            ("HTTP_A B", "1"),
        ] {
            let refused = head(&environ(&[pair]), Some(0), &off(), "t").unwrap_err();
            assert_eq!(refused.status(), 400, "{pair:?}");
        }
    }

    #[test]
    fn the_path_is_whole_or_what_is_below_the_script() {
        let mounted = [
            ("SCRIPT_NAME", "/shop"),
            ("PATH_INFO", "/a/b"),
            ("REQUEST_URI", "/shop/a%2Fb?q=1"),
            ("QUERY_STRING", "q=1"),
        ];
        let target = |path| head(&environ(&mounted), Some(0), &Config { path, ..off() }, "t").unwrap().uri.to_string();
        assert_eq!(target(TargetPath::Whole), "/shop/a%2Fb?q=1");
        assert_eq!(target(TargetPath::PathInfo), "/a%2Fb?q=1");
        let options = [("REQUEST_METHOD", "OPTIONS"), ("REQUEST_URI", "*"), ("PATH_INFO", "")];
        assert_eq!(head_of(&options, Some(0)).uri, "*");
    }
}
