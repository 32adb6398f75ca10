//! One connection from a web server: reads requests, polls their applications, writes their answers.
//!
//! All of that is one future. It reads what is there, turns it into events, lets each request go on as far as it can, and
//! writes what came of it, so that a small request is one read and one write. A request is a call in a list, no task.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, Sleep};
use tokio_util::io::{poll_read_buf, poll_write_buf};
use tokio_util::sync::CancellationToken;

use super::exchange::{self, Exchange, StreamSource};
use super::spare::Spare;
use super::stop::Stop;
use super::unread::Unread;
use super::{Gateway, is_gone, next_connection};
use crate::application::driver::{self, Answer, Response, ResponseBody};
use crate::application::{Application, Environ, Error, Errors, Facts, Frame, Input, Peer, Server, Variables};
use crate::gateway::listener::{Closed, Transport};
use crate::protocol::Pairs;
use crate::protocol::fastcgi::application_end::{Event, RejectError};
use crate::protocol::fastcgi::name_value::NameValueError;
use crate::protocol::fastcgi::{ApplicationEnd, Output, ProtocolError, ProtocolStatus, RecordType, RequestId, Role};

/// Room for reading, in bytes: at first, which is all that an idle connection keeps, and while much arrives.
const READ_BUFFER: (usize, usize) = (8 * 1024, 64 * 1024);

/// How often a connection that is not read from is looked at, to find out whether the web server has closed it.
const CLOSED_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A piece of the body up to this length, in bytes, goes into one record with the head.
const JOINED_WITH_HEAD: usize = 4 * 1024;

/// The application status of a request that was given up (FastCGI 5.5); of all others it is 0.
const STATUS_ABORTED: u32 = 1;

/// What ended a connection other than the web server's wish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The web server broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The web server closed the connection in the middle of a record or of a request's params.
    #[error("expected the rest of a request, got the end of the connection")]
    Incomplete,
    /// A time limit is over.
    #[error("expected {expected} within {limit:?}, got nothing")]
    TimedOut {
        /// What did not come.
        expected: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The web server sent more after an answer than is discarded.
    #[error("expected at most {limit} bytes of a request body that the application left unread, got more")]
    Unread {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

pub(super) struct Connection<S, A> {
    stream: S,
    end: ApplicationEnd,
    requests: Vec<Request>,
    gateway: Arc<Gateway<A>>,
    server: Arc<Server>,
    phase: Phase,
    unread: Unread,
    spare: Spare,
    /// Something came that a request may go on with.
    runnable: bool,
    /// A request was held up because too much output waits.
    held_up: bool,
    /// The web server has closed its sending half.
    input_ended: bool,
    read_room: usize,
    waiting: Waiting,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the timer wakes whom.
    armed: Option<(Instant, Waker)>,
    stop: Stop,
    /// Once it has been told to stop: until when it has to be over.
    stops_until: Option<Instant>,
    /// For heads and error messages, so that no request needs a buffer of its own for them.
    scratch: BytesMut,
    errors: Vec<u8>,
}

enum Phase {
    /// Requests come and are answered.
    Open,
    /// The last answer was written. The sending half is being closed, and what still arrives is discarded: a plain close with unread
    /// input is a reset at the other end, which loses the answer.
    Lingering { shut: bool, len: u64, until: Instant },
    /// The web server is gone. The bodies of its requests are being closed.
    Abandoned,
}

struct Request {
    id: RequestId,
    state: State,
    exchange: Arc<Exchange>,
    /// The stream that comes last, and whether it has ended.
    last_stream: RecordType,
    is_complete: bool,
    /// The application was given a stream to read.
    has_reader: bool,
    /// The application holds as much unread input as it may.
    is_full: bool,
    /// With what it ends.
    protocol_status: ProtocolStatus,
    /// Whether it has a place among those that may run at once; one that is refused has none.
    has_place: bool,
    /// What is left of one that was answered in one go, for the next.
    left: Option<Arc<Facts>>,
}

enum State {
    Calling(Answer),
    Sending(ResponseBody),
    /// Given up: only the body's close is waited for, until then.
    Closing(ResponseBody, Instant),
    Over,
}

/// What the connection waits for, and since when: the base of all time limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    FirstByte(Instant),
    Idle(Instant),
    Params(Instant),
    Write(Instant),
    /// For the application, which may take as long as it likes.
    Application,
}

impl<S: Transport, A: Application> Connection<S, A> {
    pub(super) fn new(stream: S, peer: Peer, gateway: Arc<Gateway<A>>, stop: CancellationToken) -> Self {
        let server = Server {
            gateway: "fastcgi",
            connection: next_connection(),
            peer,
            multithread: true,
            multiprocess: gateway.config.multiprocess,
            run_once: false,
        };
        Self {
            stream,
            end: gateway.config.end(),
            requests: Vec::new(),
            server: Arc::new(server),
            phase: Phase::Open,
            unread: Unread::default(),
            spare: Spare::default(),
            runnable: false,
            held_up: false,
            input_ended: false,
            read_room: READ_BUFFER.0,
            waiting: Waiting::FirstByte(Instant::now()),
            timer: None,
            armed: None,
            stop: Stop::new(stop),
            stops_until: None,
            scratch: BytesMut::new(),
            errors: Vec::new(),
            gateway,
        }
    }

    /// For connections that nobody waits for: what went wrong goes to the log.
    pub(super) async fn run_and_log(self) {
        let (connection, peer) = (self.server.connection, self.server.peer.clone());
        if let Err(error) = self.run().await {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!(connection, ?peer, "FastCGI connection ended: {error}{cause}");
        }
    }

    pub(super) async fn run(mut self) -> Result<(), ConnectionError> {
        let result = poll_fn(|cx| self.poll(cx)).await;
        if result.is_err() {
            self.abandon();
        }
        if matches!(self.phase, Phase::Abandoned) {
            poll_fn(|cx| self.poll_abandoned(cx)).await;
        }
        result
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        // Whatever woke this future, a request may be meant.
        self.runnable = true;
        loop {
            let mut progress = false;
            let is_at_rest = self.is_at_rest();
            match self.phase {
                // Mostly it is input that wakes a connection: there is nothing to look at before it is read.
                Phase::Open if is_at_rest => {}
                Phase::Open => {
                    progress |= self.take_events()?;
                    progress |= self.poll_requests(cx);
                    progress |= self.poll_write(cx)?;
                }
                Phase::Lingering { .. } => return self.poll_linger(cx),
                Phase::Abandoned => return Poll::Ready(Ok(())),
            }
            if self.is_finished() {
                match !self.input_ended && (self.unread.is_expected() || !self.end.receive_buffer().is_empty()) {
                    true => {
                        let until = Instant::now() + self.gateway.config.linger_timeout;
                        self.phase = Phase::Lingering { shut: false, len: 0, until };
                    }
                    // Nothing is unread, so nothing can be lost by a plain close, and a system call is spared.
                    false => return Poll::Ready(Ok(())),
                }
                continue;
            }
            progress = match self.poll_read(cx) {
                Poll::Ready(read) => progress | read?,
                // With all done and written, only more input brings more to do: there is no need to look again.
                Poll::Pending => progress && !self.is_at_rest(),
            };
            if !progress {
                match self.poll_limits(cx)? {
                    Limits::Wait => return Poll::Pending,
                    Limits::Look => {}
                    Limits::Close => return Poll::Ready(Ok(())),
                }
            }
        }
    }

    /// Decodes what has been read, as long as there is room for it.
    fn take_events(&mut self) -> Result<bool, ConnectionError> {
        let mut progress = false;
        while !self.is_full() {
            let Some(event) = self.end.next_event()? else { break };
            progress = true;
            self.take_event(event)?;
        }
        Ok(progress)
    }

    fn take_event(&mut self, event: Event) -> Result<(), ConnectionError> {
        self.runnable = true;
        match event {
            Event::Request { id, role, params, .. } => {
                self.note_request(id);
                self.begin(id, role, params);
            }
            Event::Stdin { id, data } => self.push(id, exchange::Stream::Stdin, data),
            Event::StdinEnd { id } => self.end_stream(id, exchange::Stream::Stdin),
            Event::Data { id, data } => self.push(id, exchange::Stream::Data, data),
            Event::DataEnd { id } => self.end_stream(id, exchange::Stream::Data),
            Event::Abort { id } => {
                if let Some(index) = self.find(id) {
                    self.give_up(index);
                    self.end.end_request(id, STATUS_ABORTED, ProtocolStatus::RequestComplete);
                }
            }
            Event::Rejected { id, error, .. } => {
                self.note_request(id);
                self.reject(id, &error);
            }
            Event::UnknownRole { id, role } => {
                tracing::warn!(
                    connection = self.server.connection,
                    ?id,
                    "a request for {role:?}, a role that the application does not have, was refused"
                );
                self.note_request(id);
                // It was answered before its params came.
                self.unread.expect(id, last_stream(role));
            }
            Event::Ignored { id, record_type, len } => self.ignore(id, record_type, len)?,
        }
        Ok(())
    }

    /// A request has come: what is waited for afterwards is waited for from then on, even if the answer needs no waiting.
    fn note_request(&mut self, id: RequestId) {
        if !matches!(self.waiting, Waiting::Write(_)) {
            self.waiting = Waiting::Application;
        }
        self.unread.forget(id);
    }

    fn begin(&mut self, id: RequestId, role: Role, params: Pairs) {
        let variables = Variables::from_pairs(params);
        let (facts, exchange) = self.spare.take(&self.server, variables, role, id.0.into());
        let mut environ = Environ::from(facts);
        let lengths = match self.check(&mut environ, role) {
            Ok(lengths) => lengths,
            Err((code, reason)) => {
                return self.refuse(id, role, &environ, code, ProtocolStatus::RequestComplete, &reason);
            }
        };
        if !self.gateway.take_place() {
            let reason = format!("{} requests run already", self.gateway.config.max_requests);
            return self.refuse(id, role, &environ, 503, ProtocolStatus::Overloaded, &reason);
        }
        let config = &self.gateway.config;
        let stream = |stream, length| {
            let source = StreamSource { exchange: exchange.clone(), stream, window: config.input_window };
            Input::from_source(source, length)
        };
        let is_without_body = lengths.stdin == Some(0) || (lengths.stdin.is_none() && self.end.is_without_stdin(id));
        let has_reader = !is_without_body || role == Role::Filter;
        if !is_without_body {
            *environ.input() = stream(exchange::Stream::Stdin, lengths.stdin);
        }
        if role == Role::Filter {
            environ = environ.with_data(stream(exchange::Stream::Data, lengths.data));
        }
        let answer = Answer::new(self.gateway.application.clone(), environ);
        self.requests.push(Request {
            id,
            state: State::Calling(answer),
            exchange,
            last_stream: last_stream(role),
            is_complete: false,
            has_reader,
            is_full: false,
            protocol_status: ProtocolStatus::RequestComplete,
            has_place: true,
            left: None,
        });
    }

    /// What has to be right about the variables before an application sees them; else a status and what was expected.
    fn check(&self, environ: &mut Environ, role: Role) -> Result<Lengths, (u16, String)> {
        // No program can be told of a variable with NUL, and who cuts it there sees another path than who doesn't.
        if environ.variables().pairs().contains_zero() {
            return Err((400, "expected params without NUL".into()));
        }
        let length = environ.meta().content_length();
        let stdin = match length {
            Ok(length) => length,
            // Caddy's word for a body whose length it does not know. The rest of the world has none for it.
            Err(_) if environ.get("CONTENT_LENGTH") == Some(b"-1") => {
                environ.variables_mut().remove("CONTENT_LENGTH");
                None
            }
            Err(error) => return Err((400, error.to_string())),
        };
        // Where FCGI_DATA_LENGTH is missing, the stream's own end is the file's.
        let data_length = if role == Role::Filter { environ.get("FCGI_DATA_LENGTH") } else { None };
        let data = match data_length {
            None | Some([]) => None,
            Some(len) => match std::str::from_utf8(len).ok().and_then(|len| len.parse().ok()) {
                Some(len) => Some(len),
                None => {
                    return Err((
                        400,
                        format!("expected a number in FCGI_DATA_LENGTH, got \"{}\"", len.escape_ascii()),
                    ));
                }
            },
        };
        if let Some(script_name) = &self.gateway.config.script_name {
            mount(environ, script_name).map_err(|error| (404, error.to_string()))?;
        }
        Ok(Lengths { stdin, data })
    }

    fn push(&mut self, id: RequestId, stream: exchange::Stream, data: bytes::Bytes) {
        let window = self.gateway.config.input_window;
        if let Some(index) = self.find(id)
            && self.requests[index].has_reader
        {
            self.requests[index].is_full = self.requests[index].exchange.push(stream, data, window);
        }
    }

    fn end_stream(&mut self, id: RequestId, stream: exchange::Stream) {
        if let Some(index) = self.find(id) {
            let request = &mut self.requests[index];
            request.is_complete |= request.last_stream == stream.record_type();
            if request.has_reader {
                request.exchange.end(stream);
            }
        }
    }

    fn reject(&mut self, id: RequestId, error: &RejectError) {
        let (code, status) = match error {
            RejectError::Overloaded { .. } => (503, ProtocolStatus::Overloaded),
            RejectError::ParamsTooLong { .. } => (431, ProtocolStatus::RequestComplete),
            RejectError::Params(NameValueError::TooManyPairs { .. }) => (431, ProtocolStatus::RequestComplete),
            RejectError::Params(_) => (400, ProtocolStatus::RequestComplete),
        };
        // Its params can't be had.
        let environ = Environ::new(Variables::new());
        self.refuse(id, Role::Responder, &environ, code, status, error);
    }

    /// Answers a request that the application does not see: it is one whose response is there already.
    fn refuse(
        &mut self,
        id: RequestId,
        role: Role,
        environ: &Environ,
        code: u16,
        protocol_status: ProtocolStatus,
        reason: &dyn Display,
    ) {
        let exchange = Arc::new(Exchange::default());
        Errors::new(exchange.clone())
            .line(format_args!("request {} answered with {code}: {reason}", environ.request_id()));
        let mut page = driver::error_page(code, environ.request_id(), environ.method() == b"HEAD");
        // Of the common web servers only cgi-fcgi reads the protocol status: the page says it as well.
        if code == 503 {
            page.head.headers.push("Retry-After", "1");
        }
        self.requests.push(Request {
            id,
            state: State::Calling(Answer::of(page)),
            exchange,
            last_stream: last_stream(role),
            is_complete: false,
            has_reader: false,
            is_full: false,
            protocol_status,
            has_place: false,
            left: None,
        });
    }

    /// Counts what comes for a request that was answered.
    fn ignore(&mut self, id: RequestId, record_type: RecordType, len: u16) -> Result<(), ConnectionError> {
        tracing::debug!(connection = self.server.connection, ?id, ?record_type, len, "a record was ignored");
        let limit = self.gateway.config.linger_len;
        match self.unread.count(id, record_type, len) > limit {
            true => Err(ConnectionError::Unread { limit }),
            false => Ok(()),
        }
    }

    /// Lets each request go on as far as it can, until enough output waits.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> bool {
        if !std::mem::take(&mut self.runnable) {
            return false;
        }
        let mut progress = false;
        if std::mem::take(&mut self.held_up) && !self.requests.is_empty() {
            // Another one is the first to use the room that there is now: none that has much to send keeps the others waiting.
            self.requests.rotate_left(1);
        }
        let mut index = 0;
        while index < self.requests.len() {
            progress |= self.poll_request(index, cx);
            match self.requests[index].state {
                State::Over => {
                    let request = self.requests.swap_remove(index);
                    if request.has_place {
                        self.gateway.give_place_back();
                    }
                    if let Some(facts) = request.left
                        && !request.has_reader
                        && let Some(params) = self.spare.keep(facts, request.exchange)
                    {
                        self.end.reuse(params);
                    }
                }
                _ => index += 1,
            }
        }
        progress
    }

    fn poll_request(&mut self, index: usize, cx: &mut Context<'_>) -> bool {
        let window = self.gateway.config.output_window;
        let mut progress = false;
        loop {
            let state = &self.requests[index].state;
            if self.end.output().len() >= window && !state.is_given_up() && !state.is_all_sent() {
                self.held_up = true;
                break;
            }
            let request = &mut self.requests[index];
            match &mut request.state {
                State::Calling(answer) => {
                    let mut response = None;
                    if answer.poll_into(&mut response, cx).is_pending() {
                        break;
                    }
                    let Some(Response { head, body }) = &mut response else { break };
                    progress = true;
                    self.scratch.clear();
                    let id = request.id;
                    let (code, reason, fields) = (head.status.code(), head.status.reason(), head.headers.fields());
                    let encoded = match head.headers.contains("Location") {
                        // HAProxy 2.6 makes a 302 of every status that a Location follows.
                        true => fields.encode_head_status_last(code, reason, &mut self.scratch),
                        false => fields.encode_head(code, reason, &mut self.scratch),
                    };
                    if encoded.is_ok()
                        && let Some(whole) = body.take_whole()
                    {
                        request.left = body.take_facts();
                        self.send_head(id, whole);
                        self.finish(index, cx);
                        continue;
                    }
                    let Some(Response { mut body, .. }) = response else { break };
                    if let Err(error) = encoded {
                        // Only middleware that changes a head behind the driver's checks gets here.
                        request.state = State::Sending(body);
                        self.cut(index, &error.into(), cx);
                        continue;
                    }
                    let (first, more) = match body.poll_data(cx) {
                        Poll::Ready(Some(Ok(Frame::Data(data)))) => (Some(data), None),
                        Poll::Ready(other) => (None, Some(Poll::Ready(other))),
                        Poll::Pending => (None, Some(Poll::Pending)),
                    };
                    request.state = State::Sending(body);
                    self.send_head(id, first.unwrap_or_default());
                    let go_on = match more {
                        None => true,
                        Some(Poll::Pending) => false,
                        Some(Poll::Ready(frame)) => self.take_frame(index, frame, cx),
                    };
                    if !go_on {
                        break;
                    }
                }
                State::Sending(body) => {
                    let Poll::Ready(frame) = body.poll_data(cx) else { break };
                    progress = true;
                    if !self.take_frame(index, frame, cx) {
                        break;
                    }
                }
                State::Closing(body, until) => {
                    if body.poll_close(cx).is_pending() && Instant::now() < *until {
                        break;
                    }
                    request.state = State::Over;
                    progress = true;
                }
                State::Over => break,
            }
        }
        // Only now: one that is over by now needs nobody to be woken for it.
        if !matches!(self.requests[index].state, State::Over) {
            self.visit(index, cx, false);
        }
        progress
    }

    /// Sends the head, which was written to `scratch`, with the first data of the body.
    fn send_head(&mut self, id: RequestId, data: bytes::Bytes) {
        if data.len() <= JOINED_WITH_HEAD {
            self.scratch.extend_from_slice(&data);
            self.end.stdout_slice(id, &self.scratch);
        } else {
            self.end.stdout_slice(id, &self.scratch);
            self.end.stdout(id, data);
        }
    }

    /// Takes one part of a response. False when the request should not be polled on for now.
    fn take_frame(&mut self, index: usize, frame: Option<Result<Frame, Error>>, cx: &mut Context<'_>) -> bool {
        let id = self.requests[index].id;
        match frame {
            Some(Ok(Frame::Data(data))) => self.end.stdout(id, data),
            Some(Ok(Frame::Flush)) => {
                // Written now, and polled again after that.
                self.runnable = true;
                return false;
            }
            // FastCGI has no place for trailers; parts of files come as data.
            Some(Ok(_)) => {}
            Some(Err(error)) => self.cut(index, &error, cx),
            None => self.finish(index, cx),
        }
        true
    }

    fn finish(&mut self, index: usize, cx: &mut Context<'_>) {
        if self.requests[index].exchange.has_errors() {
            self.visit(index, cx, true);
        }
        let request = &mut self.requests[index];
        request.state = State::Over;
        let (id, last_stream, is_complete) = (request.id, request.last_stream, request.is_complete);
        self.end.end_request(id, 0, request.protocol_status);
        if !is_complete {
            self.unread.expect(id, last_stream);
        }
    }

    /// The response can't be finished: no END_REQUEST for it, no further request, and the connection closes after the others.
    fn cut(&mut self, index: usize, error: &Error, cx: &mut Context<'_>) {
        let until = Instant::now() + self.gateway.config.close_timeout;
        let request = &mut self.requests[index];
        if let State::Sending(body) = &request.state {
            body.log_cut(error);
        }
        request.exchange.cancel();
        request.state = match std::mem::replace(&mut request.state, State::Over) {
            State::Sending(body) | State::Closing(body, _) => State::Closing(body, until),
            State::Calling(_) | State::Over => State::Over,
        };
        let (id, last_stream, is_complete) = (request.id, request.last_stream, request.is_complete);
        self.visit(index, cx, true);
        self.end.forget_request(id);
        if !is_complete {
            self.unread.expect(id, last_stream);
        }
    }

    /// The web server does not want the answer any more: the token, then the future and the body are dropped and closed.
    fn give_up(&mut self, index: usize) {
        let until = Instant::now() + self.gateway.config.close_timeout;
        let request = &mut self.requests[index];
        request.exchange.cancel();
        request.exchange.abort();
        request.state = match std::mem::replace(&mut request.state, State::Over) {
            State::Sending(body) | State::Closing(body, _) => State::Closing(body, until),
            State::Calling(_) | State::Over => State::Over,
        };
    }

    /// Sends what the application wrote to Errors, unless there is no room for it and more may follow, and takes note of how
    /// much it holds unread.
    fn visit(&mut self, index: usize, cx: &Context<'_>, is_last: bool) {
        let has_room = self.end.output().len() < self.gateway.config.output_window;
        let request = &mut self.requests[index];
        let errors = (has_room || is_last).then_some(&mut self.errors);
        let visited = request.exchange.visit(cx, self.gateway.config.input_window, errors);
        request.is_full = visited.is_full;
        self.held_up |= visited.errors_wait;
        if !self.errors.is_empty() {
            self.end.stderr(request.id, &self.errors);
            self.errors = Vec::new();
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let mut progress = false;
        while !self.end.output().is_empty() {
            match poll_write(&mut self.stream, cx, self.end.output()) {
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(_)) => progress = true,
                Poll::Ready(Err(error)) if is_gone(&error) => {
                    self.abandon();
                    return Ok(true);
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => {
                    if progress || !matches!(self.waiting, Waiting::Write(_)) {
                        self.waiting = Waiting::Write(Instant::now());
                    }
                    break;
                }
            }
        }
        if self.held_up && self.end.output().len() < self.gateway.config.output_window {
            self.runnable = true;
        }
        Ok(progress || self.runnable)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ConnectionError>> {
        if self.is_full() || self.input_ended || matches!(self.phase, Phase::Abandoned) {
            return Poll::Ready(Ok(false));
        }
        let read = ready!(self.read(cx));
        Poll::Ready(match read {
            Ok(0) => self.take_end_of_input(),
            Ok(_) => Ok(true),
            Err(error) if is_gone(&error) => {
                self.abandon();
                Ok(true)
            }
            Err(error) => Err(error.into()),
        })
    }

    /// One read. Where it fills all the room there is, the next has more.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffer = self.end.receive_buffer();
        buffer.reserve(self.read_room.saturating_sub(buffer.len()).max(READ_BUFFER.0 / 2));
        let room = buffer.capacity() - buffer.len();
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, buffer);
        if let Poll::Ready(Ok(len)) = read
            && len == room
        {
            self.read_room = READ_BUFFER.1;
        }
        read
    }

    /// The web server has closed its sending half, and perhaps everything.
    fn take_end_of_input(&mut self) -> Result<bool, ConnectionError> {
        self.input_ended = true;
        // All that will ever come is here, though the applications may not have had room for it before.
        while let Some(event) = self.end.next_event()? {
            self.take_event(event)?;
        }
        let is_incomplete = |request: &Request| !request.is_complete && !request.state.is_given_up();
        let waits_for_answer = match self.stream.closed() {
            Closed::Everything | Closed::Unknown => false,
            Closed::Nothing | Closed::Sending { for_certain: true } => true,
            Closed::Sending { for_certain: false } => self.gateway.config.finish_half_closed,
        };
        if self.end.active_requests() > self.requests.len() || !self.end.receive_buffer().is_empty() {
            return Err(ConnectionError::Incomplete);
        }
        // Whoever waits has sent all of its request.
        if !self.requests.is_empty() && (!waits_for_answer || self.requests.iter().any(is_incomplete)) {
            self.abandon();
        }
        // A finished answer is written to whoever may still read it: writing tells whether anybody does.
        Ok(true)
    }

    /// Gives all requests up: there is nobody left to answer.
    fn abandon(&mut self) {
        for index in 0..self.requests.len() {
            self.give_up(index);
        }
        self.phase = Phase::Abandoned;
    }

    fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.runnable = true;
        // Nobody reads it.
        let waiting = self.end.output().len();
        self.end.output().advance(waiting);
        self.poll_requests(cx);
        if self.requests.is_empty() {
            return Poll::Ready(());
        }
        let deadline = self.requests.iter().filter_map(Request::closing_until).min();
        self.arm(deadline, Instant::now(), cx)
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let Phase::Lingering { shut, mut len, until } = self.phase else { return Poll::Ready(Ok(())) };
        if !shut {
            // An error means that the web server closed first, which is what is waited for.
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        }
        loop {
            self.end.receive_buffer().clear();
            match self.read(cx) {
                Poll::Ready(Ok(read @ 1..)) if len + read as u64 <= self.gateway.config.linger_len => {
                    len += read as u64
                }
                // Closed by the web server, or over the limit: whoever sends that much does not wait for the answer.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    self.phase = Phase::Lingering { shut: true, len, until };
                    return self.arm(Some(until), Instant::now(), cx).map(Ok);
                }
            }
        }
    }

    /// Nothing can go on for now: sets the timer, or finds that a limit is over.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Result<Limits, ConnectionError> {
        let now = Instant::now();
        if self.stops_until.is_none() && self.stop.poll(cx) {
            self.stops_until = Some(now + self.gateway.config.shutdown_timeout);
        }
        if self.stops_until.is_some_and(|until| now >= until) {
            let requests = self.requests.len();
            tracing::warn!(
                connection = self.server.connection,
                requests,
                "cut at the end of the time for the shutdown"
            );
            self.abandon();
            return Ok(Limits::Close);
        }
        self.waiting = self.waits_for(now);
        if matches!(self.waiting, Waiting::Idle(_)) {
            self.release_memory();
        }
        let config = &self.gateway.config;
        let limit = match self.waiting {
            Waiting::FirstByte(since) | Waiting::Idle(since) if self.stops_until.is_some() => {
                Some((since, config.shutdown_idle_timeout, ""))
            }
            Waiting::FirstByte(since) => Some((since, config.first_byte_timeout, "a request")),
            Waiting::Idle(since) => Some((since, config.idle_timeout, "")),
            Waiting::Params(since) => Some((since, config.params_timeout, "all params of a request")),
            Waiting::Write(since) => Some((since, config.write_timeout, "the web server to take the answer")),
            Waiting::Application => None,
        };
        let mut deadline = limit.map(|(since, limit, _)| since + limit);
        if let Some((since, limit, expected)) = limit
            && now >= since + limit
        {
            // A kept connection that is not used is no fault.
            if expected.is_empty() {
                return Ok(Limits::Close);
            }
            return Err(ConnectionError::TimedOut { expected, limit });
        }
        let earlier = |deadline: Option<Instant>, until: Option<Instant>| deadline.into_iter().chain(until).min();
        // The answer comes first: only then does the web server owe the rest of its request.
        if !matches!(self.waiting, Waiting::Write(_))
            && let Some(until) = self.unread.deadline(now, config.linger_timeout)
        {
            if now >= until {
                return Err(ConnectionError::TimedOut {
                    expected: "the end of an unread request body",
                    limit: config.linger_timeout,
                });
            }
            deadline = earlier(deadline, Some(until));
        }
        deadline = earlier(deadline, self.stops_until);
        deadline = earlier(deadline, self.requests.iter().filter_map(Request::closing_until).min());
        if !self.requests.is_empty() && (self.input_ended || self.is_full()) {
            // Not being read from, the connection does not tell by itself that it was closed.
            match self.stream.closed() {
                Closed::Everything => {
                    self.abandon();
                    return Ok(Limits::Close);
                }
                // All that will ever come is here: the socket's own buffer bounds it.
                Closed::Sending { .. } if !self.input_ended => return self.read_to_end(cx),
                _ => {}
            }
            deadline = earlier(deadline, Some(now + CLOSED_CHECK_INTERVAL));
        }
        Ok(match self.arm(deadline, now, cx) {
            Poll::Ready(()) => {
                self.runnable = true;
                Limits::Look
            }
            Poll::Pending => Limits::Wait,
        })
    }

    /// Reads past the window what a web server sent before it closed its sending half, to learn whether the request is whole.
    fn read_to_end(&mut self, cx: &mut Context<'_>) -> Result<Limits, ConnectionError> {
        loop {
            match self.read(cx) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => {
                    self.abandon();
                    return Ok(Limits::Close);
                }
                // The end is there already, so that this task is woken for what comes before it.
                Poll::Pending => return Ok(Limits::Wait),
            }
        }
        self.take_end_of_input()?;
        Ok(Limits::Look)
    }

    fn waits_for(&mut self, now: Instant) -> Waiting {
        let output_waits = !self.end.output().is_empty();
        match self.waiting {
            Waiting::Write(since) if output_waits => Waiting::Write(since),
            _ if output_waits => Waiting::Write(now),
            Waiting::FirstByte(since) if self.end.is_idle() => Waiting::FirstByte(since),
            Waiting::Idle(since) if self.end.is_idle() => Waiting::Idle(since),
            _ if self.end.is_idle() => Waiting::Idle(now),
            _ if !self.requests.is_empty() => Waiting::Application,
            Waiting::Params(since) => Waiting::Params(since),
            _ => Waiting::Params(now),
        }
    }

    /// An idle connection keeps no more than it needs to read the next request.
    fn release_memory(&mut self) {
        let was_large = std::mem::replace(&mut self.read_room, READ_BUFFER.0) > READ_BUFFER.0;
        let buffer = self.end.receive_buffer();
        // One of which only the end is left says no more how large it was.
        if was_large || buffer.capacity() > READ_BUFFER.0 {
            *buffer = BytesMut::new();
        }
        if self.scratch.capacity() > READ_BUFFER.0 {
            self.scratch = BytesMut::new();
        }
    }

    /// Ready when the deadline is over. The timer is set anew only for an earlier one: a later one is looked at when it fires. So
    /// a connection that is kept busy does not touch it.
    fn arm(&mut self, deadline: Option<Instant>, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        if let Some((at, waker)) = &self.armed
            && now < *at
            && *at <= deadline
            && waker.will_wake(cx.waker())
        {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        self.armed = None;
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                self.armed = Some((timer.deadline(), cx.waker().clone()));
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // It was set for something earlier.
            timer.as_mut().reset(deadline);
        }
    }

    /// Whether nothing more should be read: an application holds as much unread input as it may, or the web server sends without taking
    /// what it is answered.
    fn is_full(&mut self) -> bool {
        self.requests.iter().any(|request| request.is_full)
            || self.end.output().len() >= self.gateway.config.output_window.saturating_mul(2)
    }

    fn is_finished(&mut self) -> bool {
        matches!(self.phase, Phase::Open)
            && self.end.active_requests() == 0
            && self.requests.is_empty()
            && self.end.output().is_empty()
            && (!self.end.keeps_connection() || self.input_ended)
    }

    /// Whether there is nothing to go on with: nothing received, no request, nothing to write.
    fn is_at_rest(&mut self) -> bool {
        self.requests.is_empty() && self.end.receive_buffer().is_empty() && self.end.output().is_empty()
    }

    fn find(&self, id: RequestId) -> Option<usize> {
        // One that was given up keeps its place until it is closed, but its id may be in use again.
        self.requests.iter().position(|request| request.id == id && !request.state.is_given_up())
    }
}

impl<S, A> Drop for Connection<S, A> {
    fn drop(&mut self) {
        for request in &self.requests {
            request.exchange.cancel();
            request.exchange.abort();
            if request.has_place {
                self.gateway.give_place_back();
            }
        }
    }
}

/// How long the streams of a request are, where it says so.
struct Lengths {
    stdin: Option<u64>,
    data: Option<u64>,
}

enum Limits {
    Wait,
    /// A timer fired, or something else changed: look again.
    Look,
    Close,
}

impl Request {
    fn closing_until(&self) -> Option<Instant> {
        match self.state {
            State::Closing(_, until) => Some(until),
            _ => None,
        }
    }
}

/// FastCGI 6: what comes last of a request in that role.
fn last_stream(role: Role) -> RecordType {
    if role == Role::Filter { RecordType::Data } else { RecordType::Stdin }
}

impl State {
    fn is_given_up(&self) -> bool {
        matches!(self, Self::Closing(..) | Self::Over)
    }

    /// Whether Content-Length owes nothing any more. The web server may count such a request as over, and HAProxy sends another in its place: its
    /// END_REQUEST must not wait behind its data for room.
    fn is_all_sent(&self) -> bool {
        matches!(self, Self::Sending(body) if body.exact_len() == Some(0))
    }
}

/// One write of as much as there is.
fn poll_write<S: Transport>(stream: &mut S, cx: &mut Context<'_>, output: &mut Output) -> Poll<io::Result<usize>> {
    if output.chunk().len() < output.len() {
        return poll_write_buf(Pin::new(stream), cx, output);
    }
    // The usual case, for which a vectored write costs the system more.
    let written = ready!(Pin::new(stream).poll_write(cx, output.chunk()))?;
    output.advance(written);
    Poll::Ready(Ok(written))
}

/// Splits SCRIPT_NAME and PATH_INFO anew, at the place where the application is mounted.
fn mount(environ: &mut Environ, script_name: &[u8]) -> Result<(), NotMounted> {
    let path = [environ.script_name(), environ.path_info()].concat();
    let rest = path
        .strip_prefix(script_name)
        .filter(|rest| rest.is_empty() || rest.starts_with(b"/") || script_name.is_empty());
    let Some(path_info) = rest else {
        return Err(NotMounted::Elsewhere {
            path: path.escape_ascii().to_string(),
            script_name: script_name.escape_ascii().to_string(),
        });
    };
    environ.set("SCRIPT_NAME", script_name)?;
    environ.set("PATH_INFO", path_info)?;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum NotMounted {
    #[error("expected a path below {script_name}, got {path}")]
    Elsewhere { path: String, script_name: String },
    #[error(transparent)]
    Variable(#[from] crate::application::VariableError),
}
