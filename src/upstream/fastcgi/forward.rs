//! One request on its way: made ready, sent to a server, to another if need be, until there is the head of an answer or a failure.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::answer::Answer;
use super::connect::Connect;
use super::connection::{Connection, Io};
use super::exchange::{Exchange, Part, Progress, Request, after};
use super::failure::{Cause, Chain, Failure};
use super::pool::{Place, Pool};
use super::upload::Upload;
use super::{Config, RequestBody};
use crate::application::{Body, Environ, Error, Headers, Input, StartResponse, Status, driver};
use crate::protocol::cgi::{Limits, ResponseHead, ResponseHeadDecoder, ResponseKind};
use crate::protocol::fastcgi::web_server_end::Settings;
use crate::protocol::fastcgi::{ProtocolStatus, Role};
use crate::upstream::spool::{self, Spooled};

/// The application's call.
///
/// A future holds all that it is given for as long as it lives, so that the request is put together, and boxed, before there is one. What few requests
/// come to is boxed as well: the future would be several times as long.
pub(super) fn forward<'a, C: Connect>(
    pool: &'a Arc<Pool<C>>,
    config: &'a Arc<Config>,
    environ: Environ,
    start_response: StartResponse,
) -> impl Future<Output = Result<Body, Error>> + Send + 'a {
    let mut request = request(environ, config);
    async move {
        if is_to_be_spooled(&request)
            && let Err(cause) = Box::pin(within(request.deadline, config, spool(&mut request))).await
        {
            return fail(Failure { server: None, cause }, &request.environ, config, &start_response);
        }
        if request.role != Role::Authorizer {
            request.content_length = content_length(&request.environ, &request.upload);
        }
        match answered(pool, request).await {
            Ok(answered) => answered.pass_on(&start_response),
            Err((failure, request)) => fail(failure, &request.environ, config, &start_response),
        }
    }
}

/// The request with what of its body is for a server in its role.
fn request(mut environ: Environ, config: &Arc<Config>) -> Box<Request> {
    let deadline = config.timeout.and_then(|timeout| after(Instant::now(), timeout));
    let role = config.role.unwrap_or(environ.role());
    let stdin = environ.take_input();
    let upload = match role {
        // FastCGI 6.3: it gets no body, and the gateway throws it away.
        Role::Authorizer => Upload::new(Input::empty(), None, 0),
        // FastCGI 6.4: a Filter reads a file to its end, be it one that is not there; anybody else would not know what to do with one.
        Role::Filter => {
            let data = environ.data().map(std::mem::take).unwrap_or_default();
            Upload::new(stdin, Some(data), config.replay_limit)
        }
        _ => Upload::new(stdin, None, config.replay_limit),
    };
    Box::new(Request { environ, role, content_length: None, upload, config: config.clone(), deadline })
}

/// Whether the body has to be received whole, so that its length is known.
fn is_to_be_spooled(request: &Request) -> bool {
    request.upload.len().is_none() && request.config.request_body == RequestBody::Spool
}

/// Receives the body.
async fn spool(request: &mut Request) -> Result<(), Cause> {
    let Request { upload, config, .. } = request;
    let limits = spool::Limits {
        memory: config.spool_memory,
        max_len: config.spool_limit,
        folder: config.spool_folder.as_deref(),
    };
    let (mut stdin, data) = upload.take();
    *upload = match Spooled::receive(&mut stdin, limits).await? {
        // It is in memory already, so that keeping it costs nothing.
        Spooled::Memory(bytes) => Upload::new(Input::from_bytes(bytes), data, usize::MAX),
        Spooled::File { file, len } => Upload::stored(file, len, data),
    };
    Ok(())
}

/// What CONTENT_LENGTH is to say where the environ says something else: a server that is promised more than it gets waits without end. Empty where
/// there is to be none.
fn content_length(environ: &Environ, upload: &Upload) -> Option<String> {
    let announced = environ.get("CONTENT_LENGTH").filter(|value| !value.is_empty());
    match (upload.len(), announced) {
        (Some(0), None) => None,
        (Some(len), announced) => {
            let len = len.to_string();
            (announced != Some(len.as_bytes())).then_some(len)
        }
        (None, Some(_)) => Some(String::new()),
        (None, None) => None,
    }
}

/// Asks server after server for an answer.
async fn answered<C: Connect>(
    pool: &Arc<Pool<C>>,
    mut request: Box<Request>,
) -> Result<Answered<C>, (Failure, Box<Request>)> {
    let config = request.config.clone();
    let mut tried = Vec::new();
    let careful = !(is_idempotent(request.environ.method()) || config.retry_non_idempotent);
    loop {
        let mut place = match pool.place_now(&tried, careful) {
            Some(place) => place,
            None => match Box::pin(within(request.deadline, &config, place(pool, &tried, careful))).await {
                Ok(Ok(place)) => place,
                Ok(Err(failure)) => return Err((failure, request)),
                Err(cause) => return Err((Failure { server: None, cause }, request)),
            },
        };
        let server = place.server().name.clone();
        let cause = loop {
            let connection = match place.take_connection() {
                Some(connection) => connection,
                None => {
                    match Box::pin(within(request.deadline, &config, connect(pool, place.index(), &config))).await {
                        Ok(connection) => connection,
                        Err(cause) => break cause,
                    }
                }
            };
            let mut exchange = match Exchange::new(connection, server.clone(), request) {
                Ok(exchange) => exchange,
                Err((cause, request)) => return Err((cause.at(&server), request)),
            };
            let mut heading = Heading::new(&config);
            let cause = match poll_fn(|cx| heading.poll(&mut exchange, cx)).await {
                Ok(head) => {
                    place.succeeded();
                    return Ok(Answered { head, exchange, place });
                }
                Err(cause) => cause,
            };
            let progress = exchange.progress();
            if progress.answer_began || !cause.is_broken_connection() && exchange.is_heard() {
                place.succeeded();
            }
            request = exchange.into_request();
            if !may_repeat(&cause, progress, &request) || !request.upload.rewind() {
                if cause.is_broken_connection() && !progress.answer_began && !progress.was_kept
                    || matches!(cause, Cause::HeadTimeout(_))
                {
                    place.failed();
                }
                return Err((cause.at(&server), request));
            }
            if !(cause.is_broken_connection() && progress.was_kept) {
                break cause;
            }
            let request_id = request.environ.request_id();
            tracing::debug!(request_id, server = &*server, cause = %Chain(&cause), "the kept connection was dead");
            place.renew();
        };
        if !matches!(cause, Cause::Overloaded | Cause::CannotMultiplex | Cause::Timeout(_)) {
            place.failed();
        }
        tried.push(place.index());
        drop(place);
        if pool.untried(&tried) == 0 || matches!(cause, Cause::Timeout(_)) {
            return Err((cause.at(&server), request));
        }
        let request_id = request.environ.request_id();
        tracing::info!(request_id, server = &*server, cause = %Chain(&cause), "the request goes to another server");
    }
}

async fn place<C: Connect>(
    pool: &Arc<Pool<C>>,
    tried: &[usize],
    careful: bool,
) -> Result<Result<Place<C>, Failure>, Cause> {
    Ok(pool.place(tried, careful).await)
}

async fn connect<C: Connect>(
    pool: &Arc<Pool<C>>,
    server: usize,
    config: &Config,
) -> Result<Box<Connection<C::Stream>>, Cause> {
    match tokio::time::timeout(config.connect_timeout, pool.servers[server].connector.connect()).await {
        Ok(Ok(stream)) => {
            let settings = Settings { max_params_len: config.max_params_len, ..Settings::default() };
            Ok(Box::new(Connection::new(stream, settings)))
        }
        Ok(Err(error)) => Err(Cause::Connect(error)),
        Err(_) => Err(Cause::ConnectTimeout(config.connect_timeout)),
    }
}

/// Whether a request that failed may be sent again, to whatever server.
fn may_repeat(cause: &Cause, progress: Progress, request: &Request) -> bool {
    match cause {
        _ if progress.answer_began => false,
        // The server says that it has done nothing.
        Cause::Overloaded | Cause::CannotMultiplex => true,
        Cause::Closed { error, .. } => {
            let unread = progress.was_kept
                && progress.sent <= READ_AT_ONCE
                && error.as_ref().is_some_and(|error| {
                    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
                });
            progress.sent == 0
                || unread
                || is_idempotent(request.environ.method())
                || request.config.retry_non_idempotent
        }
        _ => false,
    }
}

/// Up to how many bytes a request is read at once by any server. If it resets the connection all the same, it has read none of it, and so has not
/// begun with it: a close after reading is no reset.
const READ_AT_ONCE: u64 = 4 * 1024;

/// RFC 9110 9.2.2 and the methods of WebDAV that only look.
fn is_idempotent(method: &[u8]) -> bool {
    matches!(
        method,
        b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE" | b"PROPFIND" | b"REPORT" | b"SEARCH"
    )
}

/// What is known once the head is here.
struct Head {
    head: ResponseHead,
    /// What came of the body with it.
    first: Bytes,
    /// What comes after that, where it is here already.
    next: Option<Result<Part, Cause>>,
}

/// Reads the head, and what is already here of the rest.
struct Heading {
    limits: Limits,
    decoder: ResponseHeadDecoder,
    /// What has come of a head that is not complete.
    buffer: BytesMut,
    /// How many interim heads there were.
    interim: usize,
    /// What came behind one of them.
    unread: Option<Bytes>,
}

impl Heading {
    fn new(config: &Config) -> Self {
        let limits = Limits { max_len: config.max_head_len, max_fields: config.max_head_fields };
        let decoder = ResponseHeadDecoder::new(limits);
        Self { limits, decoder, buffer: BytesMut::new(), interim: 0, unread: None }
    }

    fn poll<S: Io>(&mut self, exchange: &mut Exchange<S>, cx: &mut Context<'_>) -> Poll<Result<Head, Cause>> {
        let Self { limits, decoder, buffer, interim, unread } = self;
        loop {
            let data = match unread.take() {
                Some(data) => data,
                None => match ready!(exchange.poll_part(cx))? {
                    Part::Stdout(data) => data,
                    Part::End { application_status, protocol_status } => {
                        return Poll::Ready(Err(match protocol_status {
                            ProtocolStatus::Overloaded => Cause::Overloaded,
                            ProtocolStatus::CannotMultiplex => Cause::CannotMultiplex,
                            ProtocolStatus::UnknownRole => Cause::UnknownRole(exchange.request.role),
                            _ if buffer.is_empty() => Cause::NoHead { application_status },
                            _ => decoder.ended(buffer).into(),
                        }));
                    }
                },
            };
            // Mostly the head is in one piece, of which the body's part is not copied.
            let decoded = if buffer.is_empty() { ResponseHead::decode(&data, limits)? } else { None };
            let (head, first) = match decoded {
                Some((head, len)) => (head, data.slice(len..)),
                None => {
                    buffer.extend_from_slice(&data);
                    match decoder.decode(buffer)? {
                        Some(head) => (head, buffer.split().freeze()),
                        None => continue,
                    }
                }
            };
            match head.status_or_default().0 {
                // After 101 there is another protocol, which nobody here could carry.
                code if code == 101 || *interim >= MAX_INTERIM => return Poll::Ready(Err(Cause::Status(code))),
                _ if head.is_interim() => {
                    *interim += 1;
                    *unread = (!first.is_empty()).then_some(first);
                    continue;
                }
                _ => {}
            }
            exchange.head_is_here();
            let mut here = Head { head, first, next: None };
            while here.next.is_none() {
                match exchange.poll_part(cx) {
                    Poll::Ready(Ok(Part::Stdout(data))) if here.first.is_empty() => here.first = data,
                    Poll::Ready(next) => here.next = Some(next),
                    Poll::Pending => break,
                }
            }
            return Poll::Ready(Ok(here));
        }
    }
}

/// How many interim heads (1xx) one answer may have.
const MAX_INTERIM: usize = 16;

/// A request whose answer has a head.
struct Answered<C: Connect> {
    head: Head,
    exchange: Exchange<C::Stream>,
    place: Place<C>,
}

impl<C: Connect> Answered<C> {
    fn pass_on(self, start_response: &StartResponse) -> Result<Body, Error> {
        let Self { head: Head { head, first, next }, exchange, place } = self;
        let (code, reason) = head.status_or_default();
        // A reason that can't be passed on is replaced by the usual one, since it means nothing.
        let status = Status::with_reason(code, reason).or_else(|_| Status::new(code));
        let status = status.map_err(|error| Error::new(error).with_status(502))?;
        let redirect = match head.kind() {
            ResponseKind::LocalRedirect { path } => {
                exchange.request.environ.local_redirects().map(|redirects| (redirects, path))
            }
            _ => None,
        };
        if let Some((redirects, path)) = redirect {
            redirects.set(Bytes::copy_from_slice(path));
        }
        let is_redirected = redirect.is_some();
        let mut headers = Headers::from(head.headers);
        if headers.iter().any(|(name, _)| crate::application::is_hop_by_hop(name)) {
            // They speak of a connection that is not the client's.
            headers.retain(|name, _| !crate::application::is_hop_by_hop(name));
        }
        start_response.start(status, headers).map_err(|error| error.with_status(502))?;
        let mut answer = Answer::new(exchange, place);
        match next {
            // All of it is here: a body whose length is known.
            Some(Ok(Part::End { application_status, protocol_status })) => {
                answer.end(application_status, protocol_status);
                Ok(if is_redirected { Body::empty() } else { first.into() })
            }
            _ if is_redirected => {
                answer.let_run();
                Ok(Body::empty())
            }
            next => {
                answer.begin_with(first, next);
                Ok(Body::frames(answer))
            }
        }
    }
}

/// Ends a request that has no answer.
fn fail(failure: Failure, environ: &Environ, config: &Config, start_response: &StartResponse) -> Result<Body, Error> {
    log(&failure, environ, "the request failed");
    if !failure.cause.passes() {
        return Err(failure.into_error());
    }
    let request_id = environ.request_id();
    let status = failure.cause.status();
    let mut page = driver::error_page(status, request_id, environ.method() == b"HEAD");
    page.head.headers.push("Retry-After", seconds(config.retry_after).to_string());
    driver::log_failure(&environ.errors(), request_id, "answered with an error page", &failure.into_error());
    page.pass_on(start_response)
}

/// The one line about a request that failed.
pub(super) fn log(failure: &Failure, environ: &Environ, outcome: &str) {
    let request_id = environ.request_id();
    let server = failure.server.as_deref().unwrap_or("none");
    let cause = Chain(&failure.cause);
    match &failure.cause {
        // The client's doing.
        Cause::Upload(_) => tracing::info!(request_id, server, %cause, "{outcome}"),
        _ => tracing::warn!(request_id, server, %cause, status = failure.cause.status(), "{outcome}"),
    }
}

/// Rounded up: nobody is to come too early.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Waits for something as long as the request may take in all.
async fn within<T>(
    deadline: Option<Instant>,
    config: &Config,
    what: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Cause> {
    match deadline {
        None => what.await,
        Some(deadline) => match tokio::time::timeout_at(deadline, what).await {
            Ok(result) => result,
            Err(_) => Err(Cause::Timeout(config.timeout.unwrap_or_default())),
        },
    }
}
