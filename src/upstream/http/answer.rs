//! The server's answer as an application's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use http::header::{self, HeaderMap};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::{Connection, Place, Pool};
use super::request::{Progress, remove_hop_by_hop};
use super::{Config, Failure, via};
use crate::application::{Body, Error, Frame, Frames, Headers, StartResponse, Status, is_hop_by_hop};
use crate::protocol::cgi::default_reason;

/// Names the answer's head, and gives its body.
pub(super) fn pass_on(
    response: Response<Incoming>,
    start_response: StartResponse,
    lease: Lease,
    config: &Config,
    deadline: Option<Instant>,
) -> Result<Body, Error> {
    let (mut parts, incoming) = response.into_parts();
    let target = lease.pool.target();
    let codings: Vec<&[u8]> =
        parts.headers.get_all(header::TRANSFER_ENCODING).iter().map(|coding| coding.as_bytes().trim_ascii()).collect();
    match *codings {
        [] => {}
        // RFC 9112 6.3: of both the chunks count, and the length is not passed on.
        [coding] if coding.eq_ignore_ascii_case(b"chunked") => drop(parts.headers.remove(header::CONTENT_LENGTH)),
        // Nobody has asked for another one (RFC 9112 7), and without its field nobody would know of it.
        _ => {
            let coding = codings.join(&b", "[..]).escape_ascii().to_string();
            return Err(Failure::TransferCoding { target: target.into(), coding }.into_error());
        }
    }
    remove_hop_by_hop(&mut parts.headers);
    via::add(&mut parts.headers, via::version(parts.version), config);
    // Some servers add what CGI would read as the status.
    parts.headers.remove("status");
    let status = match parts.extensions.get::<ReasonPhrase>() {
        Some(reason) => Status::with_reason(parts.status.as_u16(), reason.as_bytes().trim_ascii())
            .unwrap_or_else(|_| parts.status.into()),
        None => usual_status(parts.status),
    };
    if let Err(error) = start_response.start(status, fields(&parts.headers)) {
        let failure = format!("expected a head from {target} that can be passed on: {error}");
        return Err(Error::new(failure).with_status(502));
    }
    if incoming.is_end_stream() {
        lease.finish();
        return Ok(Body::empty());
    }
    let timeouts =
        Timeouts { read: config.read_timeout, total: deadline.zip(config.timeout), timer: None, waiting: false };
    Ok(Body::frames(AnswerBody { incoming, lease: Some(lease), timeouts, flushed: false }))
}

/// A code with the reason that HTTP has for it, where CGI has none.
fn usual_status(code: http::StatusCode) -> Status {
    match code.canonical_reason() {
        Some(reason) if default_reason(code.as_u16()) == "Unassigned" => {
            Status::with_reason(code.as_u16(), reason).unwrap_or_else(|_| code.into())
        }
        _ => code.into(),
    }
}

pub(super) fn fields(map: &HeaderMap) -> Headers {
    map.iter()
        .filter(|(name, _)| !is_hop_by_hop(name.as_str().as_bytes()))
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect()
}

/// What an exchange holds until it is over: its connection, which is kept if both sides are done with it and else closed, and its place.
pub(super) struct Lease {
    pool: Arc<Pool>,
    connection: Connection,
    progress: Progress,
    _place: Place,
}

impl Lease {
    pub(super) fn new(pool: Arc<Pool>, connection: Connection, progress: Progress, place: Place) -> Self {
        Self { pool, connection, progress, _place: place }
    }

    /// The answer is whole.
    fn finish(self) {
        // A body that the server did not wait for would go on to be sent.
        if self.progress.is_finished() {
            self.pool.keep(self.connection);
        }
    }
}

struct AnswerBody {
    incoming: Incoming,
    /// There until the end.
    lease: Option<Lease>,
    timeouts: Timeouts,
    /// The head has gone out, or had its chance.
    flushed: bool,
}

struct Timeouts {
    read: Duration,
    total: Option<(Instant, Duration)>,
    /// One timer for all waits; made when the first is needed.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl AnswerBody {
    fn target(&self) -> String {
        self.lease.as_ref().map(|lease| lease.pool.target().to_owned()).unwrap_or_default()
    }

    /// Whether the server has taken too long.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Timeouts { read, total, timer, waiting } = &mut self.timeouts;
        let now = Instant::now();
        if !std::mem::replace(waiting, true) {
            let deadline = total.map_or(now + *read, |(total, _)| total.min(now + *read));
            match timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => *timer = Some(Box::pin(sleep_until(deadline))),
            }
        }
        if let Some(timer) = timer {
            ready!(timer.as_mut().poll(cx));
        }
        let (read, total) = (*read, *total);
        Poll::Ready(match total {
            Some((deadline, after)) if deadline <= Instant::now() => Failure::Timeout { target: self.target(), after },
            _ => Failure::ReadTimeout { target: self.target(), after: read },
        })
    }
}

impl Frames for AnswerBody {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = &mut *self;
        // A server that never pauses would never see the timer.
        if let Some((deadline, after)) = this.timeouts.total
            && deadline <= Instant::now()
        {
            return Poll::Ready(Some(Err(Failure::Timeout { target: this.target(), after }.into_error())));
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) else {
                // The server has given its head: it goes out even where the body takes its time.
                if !std::mem::replace(&mut this.flushed, true) {
                    return Poll::Ready(Some(Ok(Frame::Flush)));
                }
                return this.poll_timeout(cx).map(|failure| Some(Err(failure.into_error())));
            };
            this.flushed = true;
            this.timeouts.waiting = false;
            return Poll::Ready(match frame {
                None => {
                    if let Some(lease) = this.lease.take() {
                        lease.finish();
                    }
                    None
                }
                Some(Err(cause)) => Some(Err(Failure::Cut { target: this.target(), cause }.into_error())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => Some(Ok(Frame::Data(data))),
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => Some(Ok(Frame::Trailers(fields(&trailers)))),
                        // A kind of frame that is not known yet.
                        Err(_) => continue,
                    },
                },
            });
        }
    }

    fn exact_len(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        // A client that has all it was promised asks for no end.
        if let Some(lease) = self.lease.take()
            && self.incoming.is_end_stream()
        {
            lease.finish();
        }
        Poll::Ready(())
    }
}
