//! A request to a FastCGI server, by our own web server's end of the protocol.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use gatespan::address::Endpoint;
use gatespan::protocol::cgi::{Limits, ResponseHead, ResponseHeadDecoder};
use gatespan::protocol::fastcgi::web_server_end::{Event, Settings};
use gatespan::protocol::fastcgi::{ProtocolStatus, RequestId, Role, WebServerEnd};
use gatespan::recording::status_name;
use gatespan::upstream::fastcgi::{Connect, Socket};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::body::Reader;
use super::outcome::{Failure, Kind, Outcome};
use super::output::Output;
use super::watched::{Watch, Watched};
use super::{Client, Request, other_client, values};

/// How much of the request waits to be written at most.
const WINDOW: usize = 128 * 1024;

/// How much is read at once.
const READ_ROOM: usize = 64 * 1024;

/// The most bytes of variables: servers have limits far below, and it is worth seeing what they do over them.
const MAX_PARAMS: usize = 16 << 20;

/// The request on a connection of its own.
pub(super) async fn ask(
    request: &Request<'_>,
    endpoint: &Endpoint,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let stream = connect(request, endpoint, outcome).await?;
    on_connection(request, stream, outcome, output).await
}

pub(super) async fn on_connection(
    request: &Request<'_>,
    stream: Socket,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let watch = Watch::new(request.console.clone());
    let stream = watch.over(stream);
    let options = &request.arguments.fastcgi;
    let result = match (&options.values, options.client) {
        (Some(names), _) => values::ask(request, names, stream, &watch).await,
        (None, Client::Gatespan) => exchange(request, stream, &watch, outcome, output).await,
        (None, Client::FastcgiClient) => other_client::exchange(request, stream, &watch, outcome, output).await,
    };
    outcome.first_byte = watch.first_byte();
    watch.end();
    result
}

async fn connect(request: &Request<'_>, endpoint: &Endpoint, outcome: &mut Outcome) -> Result<Socket, Failure> {
    let limit = request.arguments.times.connect_timeout;
    request.console.line('*', format_args!("connecting to fastcgi:{endpoint}"));
    let stream = match tokio::time::timeout(limit, endpoint.connect()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let message = format!("fastcgi:{endpoint}: expected a connection, got none: {error}");
            return Err(Failure::new(Kind::Unreachable, message));
        }
        Err(_) => {
            let message = format!("fastcgi:{endpoint}: expected a connection within {limit:?}, got none");
            return Err(Failure::new(Kind::TimedOut, message));
        }
    };
    outcome.connect = Some(request.console.elapsed());
    request.console.line('*', "connected");
    Ok(stream)
}

/// A connection with the request on it. Dropped before its end, it gives the request up.
struct Connection {
    stream: Watched<Socket>,
    end: WebServerEnd,
    id: RequestId,
    /// The server takes no more; it may answer all the same.
    write_error: Option<io::Error>,
}

enum Step {
    Wrote(io::Result<usize>),
    Read(io::Result<usize>),
}

async fn exchange(
    request: &Request<'_>,
    stream: Watched<Socket>,
    watch: &Arc<Watch>,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let (message, times) = (&request.message, &request.arguments.times);
    let mut end = WebServerEnd::new(Settings { max_params_len: MAX_PARAMS, ..Settings::default() });
    let role = Role::from(request.arguments.fastcgi.role);
    let params = message.variables.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    let begun = end.begin(role, request.arguments.fastcgi.keep_conn, params);
    let id = begun.map_err(|error| Failure::local(format!("the request can't be sent: {error}")))?;
    let mut connection = Connection { stream, end, id, write_error: None };
    let mut upload = Upload::new(
        message.body.as_ref().filter(|_| role != Role::Authorizer).map(|body| body.reader()),
        message.data.as_ref().map(|data| data.reader()),
        role,
    );
    let mut answer = Answer::default();
    // The server's own time: from when it last took something of the request, or sent something after the head.
    let mut waiting_since = Instant::now();
    loop {
        upload.fill(&mut connection)?;
        while let Some(event) = connection
            .end
            .next_event()
            .map_err(|error| Failure::protocol(format_args!("expected FastCGI records, got something else: {error}")))?
        {
            if answer.take(event, request, role, outcome, output).await? {
                return answer.finish(role, outcome, output);
            }
            // What the reader of the output needs is not the server's.
            if answer.has_head() {
                waiting_since = Instant::now();
            }
        }
        let limit = if answer.has_head() { times.read_timeout } else { times.head_timeout };
        match tokio::time::timeout_at(deadline(waiting_since, limit), connection.step()).await {
            Ok(Step::Wrote(Ok(_))) => waiting_since = Instant::now(),
            Ok(Step::Wrote(Err(error))) => {
                let output = connection.end.output();
                let rest = output.len();
                output.advance(rest);
                connection.write_error = Some(error);
            }
            Ok(Step::Read(Ok(1..))) => {}
            Ok(Step::Read(Ok(0))) => return Err(closed(watch.received(), &answer, connection.write_error.take())),
            Ok(Step::Read(Err(error))) => return Err(closed(watch.received(), &answer, Some(error))),
            Err(_) => return Err(timed_out(limit, watch.received(), answer.has_head())),
        }
    }
}

/// A time that clocks have.
pub(super) fn deadline(since: Instant, limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    since + limit.min(FAR)
}

pub(super) fn timed_out(limit: Duration, received: u64, has_head: bool) -> Failure {
    let message = match (has_head, received) {
        (true, _) => format!("expected more of the answer within {limit:?}, got nothing"),
        (false, 0) => format!("expected the head of an answer within {limit:?}, got nothing"),
        (false, received) => {
            format!("expected the head of an answer within {limit:?}, got {received} bytes that are none")
        }
    };
    Failure::new(Kind::TimedOut, message)
}

/// The connection is over, and the request is not.
fn closed(received: u64, answer: &Answer, error: Option<io::Error>) -> Failure {
    let how = match &error {
        Some(error) => format!("the connection was closed ({error})"),
        None => "the connection was closed".into(),
    };
    Failure::protocol(match (received, answer.has_head()) {
        (0, _) => format!("expected an answer, but {how} without a byte of one"),
        (_, false) => format!("expected the head of an answer, but {how} after {received} bytes"),
        (_, true) => format!("expected END_REQUEST, but {how} after {received} bytes: the answer may be cut"),
    })
}

impl Connection {
    /// One write or one read, whichever is possible first.
    async fn step(&mut self) -> Step {
        poll_fn(|cx| self.poll_step(cx)).await
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(wrote) = self.poll_write(cx) {
            return Poll::Ready(Step::Wrote(wrote));
        }
        poll_read(&mut self.stream, self.end.receive_buffer(), cx).map(Step::Read)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.end.output().is_empty() {
            true => Poll::Pending,
            false => poll_write_buf(Pin::new(&mut self.stream), cx, self.end.output()),
        }
    }
}

impl Drop for Connection {
    /// Tells the server that nobody waits any more, as far as it takes that at once. Most servers know that by the close that follows.
    fn drop(&mut self) {
        if self.end.active_requests() == 0 || self.write_error.is_some() {
            return;
        }
        self.end.abort(self.id);
        let mut cx = Context::from_waker(Waker::noop());
        while matches!(self.poll_write(&mut cx), Poll::Ready(Ok(1..))) {}
    }
}

pub(super) fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    buffer.reserve(READ_ROOM);
    poll_read_buf(Pin::new(stream), cx, buffer)
}

/// As [`Connection::poll_write`], for connections without a request.
pub(super) fn poll_write(
    stream: &mut (impl AsyncWrite + Unpin),
    end: &mut WebServerEnd,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    match end.output().is_empty() {
        true => Poll::Pending,
        false => poll_write_buf(Pin::new(stream), cx, end.output()),
    }
}

/// What is to be sent behind the variables.
struct Upload {
    stdin: Option<Reader>,
    data: Option<Reader>,
    role: Role,
    is_over: bool,
}

impl Upload {
    fn new(stdin: Option<Reader>, data: Option<Reader>, role: Role) -> Self {
        Self { stdin, data, role, is_over: false }
    }

    /// Queues as much as the window takes.
    fn fill(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        let (end, id) = (&mut connection.end, connection.id);
        if connection.write_error.is_some() {
            // Nobody takes it.
            self.is_over = true;
        }
        while !self.is_over && end.output().len() < WINDOW {
            let read = |reader: &mut Reader| {
                reader.next().map_err(|error| Failure::local(format!("the body could not be read: {error}")))
            };
            if let Some(reader) = &mut self.stdin {
                match read(reader)? {
                    Some(data) => end.stdin(id, data),
                    None => self.stdin = None,
                }
                continue;
            }
            end.end_stdin(id);
            if let Some(reader) = &mut self.data {
                match read(reader)? {
                    Some(data) => end.data(id, data),
                    None => self.data = None,
                }
                continue;
            }
            if self.role == Role::Filter {
                end.end_data(id);
            }
            self.is_over = true;
        }
        Ok(())
    }
}

/// STDOUT, from the first byte to the last.
#[derive(Default)]
pub(super) struct Answer {
    /// Of the head, until it is complete.
    buffer: BytesMut,
    /// The same, to be shown as it came.
    raw: BytesMut,
    decoder: Option<ResponseHeadDecoder>,
    head: Option<ResponseHead>,
}

impl Answer {
    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Takes one event; true at the end of the request.
    async fn take(
        &mut self,
        event: Event,
        request: &Request<'_>,
        role: Role,
        outcome: &mut Outcome,
        output: &mut Output<'_>,
    ) -> Result<bool, Failure> {
        match event {
            Event::Stdout { data, .. } => self.stdout(data, outcome, output).await?,
            Event::Stderr { data, .. } => request.console.stderr(&data),
            Event::EndRequest { application_status, protocol_status, .. } => {
                outcome.application_status = Some(application_status);
                outcome.protocol_status = Some(protocol_status);
                return match protocol_status {
                    ProtocolStatus::RequestComplete => Ok(true),
                    // It says what went wrong itself.
                    _ if self.has_head() && outcome.status.is_some_and(|status| status >= 400) => Ok(true),
                    ProtocolStatus::Overloaded => {
                        let message = "the server refused the request: OVERLOADED, it has run out of something";
                        Err(Failure::new(Kind::Overloaded, message.into()))
                    }
                    ProtocolStatus::CannotMultiplex => Err(Failure::protocol(
                        "the server refused the request: CANT_MPX_CONN, although it was the only one on its connection",
                    )),
                    ProtocolStatus::UnknownRole => {
                        let role = format!("{role:?}").to_ascii_lowercase();
                        Err(Failure::protocol(format_args!(
                            "the server refused the request: UNKNOWN_ROLE, it is no {role}"
                        )))
                    }
                    status => Err(Failure::protocol(format_args!(
                        "expected a protocol status from 0 to 3 in END_REQUEST, got {}",
                        status_name(status)
                    ))),
                };
            }
            // They are shown as records.
            Event::Ignored { .. } | Event::StdoutEnd { .. } | Event::StderrEnd { .. } => {}
            Event::Values(_) | Event::UnknownType(_) => {}
        }
        Ok(false)
    }

    /// A piece of it: head, and what follows.
    pub(super) async fn stdout(
        &mut self,
        data: Bytes,
        outcome: &mut Outcome,
        output: &mut Output<'_>,
    ) -> Result<(), Failure> {
        if self.has_head() {
            return output.body(&data, outcome).await;
        }
        self.buffer.extend_from_slice(&data);
        self.raw.extend_from_slice(&data);
        let decoder = self.decoder.get_or_insert_with(|| ResponseHeadDecoder::new(Limits::default()));
        let head = decoder.decode(&mut self.buffer).map_err(|error| {
            Failure::protocol(format_args!("expected the head of an answer, got something else: {error}"))
        })?;
        let Some(head) = head else { return Ok(()) };
        self.raw.truncate(self.raw.len() - self.buffer.len());
        let result = output.head(&head, Some(&self.raw), outcome).await;
        self.head = Some(head);
        result?;
        let rest = self.buffer.split().freeze();
        output.body(&rest, outcome).await
    }

    /// The request has ended: whether all is here.
    pub(super) fn finish(&self, role: Role, outcome: &mut Outcome, output: &Output<'_>) -> Result<(), Failure> {
        if self.has_head() {
            return output.check_length(outcome);
        }
        let got = match self.buffer.len() {
            0 => "nothing".to_owned(),
            len => format!("{len} bytes that are none"),
        };
        let status = match outcome.application_status {
            Some(status) => format!(" and application status {status}"),
            None => String::new(),
        };
        let what = if role == Role::Authorizer { "the authorizer's answer" } else { "the head of an answer" };
        Err(Failure::protocol(format_args!("expected {what} before END_REQUEST, got {got}{status}")))
    }
}
