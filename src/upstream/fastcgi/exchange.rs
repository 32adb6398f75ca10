//! One request on one connection, from the web server's side: what is left of it is sent while its answer is read, both by one future.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Config;
use super::connection::{Connection, Io};
use super::failure::Cause;
use super::stderr::{Destination, Stderr};
use super::upload::Upload;
use crate::application::Environ;
use crate::protocol::fastcgi::web_server_end::{BeginError, Event};
use crate::protocol::fastcgi::{ProtocolStatus, RequestId, Role};

/// A request and what is needed to send it, again if need be.
pub(super) struct Request {
    /// Without its input, which is in `upload`.
    pub(super) environ: Environ,
    pub(super) role: Role,
    /// What CONTENT_LENGTH is to be, where that is not what the environ says.
    pub(super) content_length: Option<String>,
    pub(super) upload: Upload,
    pub(super) config: Arc<Config>,
    /// When it must be over.
    pub(super) deadline: Option<Instant>,
}

/// A request on a connection, which aborts it if it is dropped before the end.
pub(super) struct Exchange<S: Io> {
    /// Boxed because it moves to and from the pool.
    connection: Box<Connection<S>>,
    id: RequestId,
    pub(super) server: Arc<str>,
    /// Boxed because it moves from one connection to the next.
    pub(super) request: Box<Request>,
    stderr: Stderr,
    /// Bytes of the request that the system took.
    sent: u64,
    /// Bytes of anything that came.
    received: u64,
    /// Whether a byte of the answer came.
    answer_began: bool,
    /// Whether the answer's head is complete, after which another time limit counts.
    has_head: bool,
    /// Since when the server owes something.
    waiting_since: Option<Instant>,
    /// Nothing more can be sent. What there is to read is still to be read.
    write_error: Option<io::Error>,
    /// Something came that no server is to send, so that the connection is not used again.
    is_odd: bool,
    over: bool,
}

/// Part of an answer.
#[derive(Debug)]
pub(super) enum Part {
    /// Bytes of the head or the body.
    Stdout(Bytes),
    /// The end.
    End {
        /// The exit status that the application would have had as a CGI program.
        application_status: u32,
        /// Whether the protocol had a part in it.
        protocol_status: ProtocolStatus,
    },
}

/// What counts when a request that failed may be sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Bytes of the request that the system took.
    pub(super) sent: u64,
    /// Whether a byte of the answer came.
    pub(super) answer_began: bool,
    /// Whether the connection had been used before.
    pub(super) was_kept: bool,
}

impl<S: Io> Exchange<S> {
    /// How much of a request waits to be written before more of its body is asked for.
    const WINDOW: usize = 64 * 1024;

    /// Begins a request. Nothing is written before it is polled.
    pub(super) fn new(
        mut connection: Box<Connection<S>>,
        server: Arc<str>,
        request: Box<Request>,
    ) -> Result<Self, (Cause, Box<Request>)> {
        let keep = request.config.keep_alive;
        let variables = request.environ.variables().pairs().iter().filter(|(name, _)| {
            let is_replaced = request.content_length.is_some() && *name == b"CONTENT_LENGTH";
            !(is_replaced || request.role == Role::Authorizer && not_for_authorizers(name))
        });
        let length = request.content_length.as_ref().filter(|length| !length.is_empty());
        let length = length.map(|length| (&b"CONTENT_LENGTH"[..], length.as_bytes()));
        let id = match connection.end.begin(request.role, keep, variables.chain(length)) {
            Ok(id) => id,
            Err(BeginError::Params(error)) => return Err((error.into(), request)),
            // A connection has one request at a time, and none after one without FCGI_KEEP_CONN.
            Err(error) => return Err((Cause::Connect(io::Error::other(error)), request)),
        };
        connection.current = Some(id);
        Ok(Self {
            connection,
            id,
            server,
            request,
            stderr: Stderr::default(),
            sent: 0,
            received: 0,
            answer_began: false,
            has_head: false,
            waiting_since: None,
            write_error: None,
            is_odd: false,
            over: false,
        })
    }

    /// The next part of the answer. Cancel-safe. Not called again after the end or an error.
    pub(super) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Cause>> {
        loop {
            if let Some(part) = self.next_part()? {
                self.waiting_since = None;
                return Poll::Ready(Ok(part));
            }
            self.poll_send(cx)?;
            match self.connection.poll_read(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.closed(None))),
                Poll::Ready(Ok(len)) => self.received += len as u64,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.closed(Some(error)))),
                Poll::Pending => {
                    ready!(self.poll_limits(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// The head is complete: from now on the limit between bytes counts.
    pub(super) fn head_is_here(&mut self) {
        self.has_head = true;
    }

    /// What of the answer has been received and not been given out.
    fn next_part(&mut self) -> Result<Option<Part>, Cause> {
        while let Some(event) = self.connection.end.next_event()? {
            match event {
                Event::Stdout { id, data } if id == self.id => {
                    if !self.answer_began {
                        self.answer_began = true;
                        self.request.upload.lose();
                    }
                    return Ok(Some(Part::Stdout(data)));
                }
                Event::Stderr { id, data } if id == self.id => {
                    self.stderr.take(&data, destination(&self.request, &self.server));
                }
                Event::StdoutEnd { .. } | Event::StderrEnd { .. } => {}
                Event::EndRequest { id, application_status, protocol_status } if id == self.id => {
                    self.over = true;
                    self.connection.current = None;
                    self.stderr.finish(destination(&self.request, &self.server));
                    return Ok(Some(Part::End { application_status, protocol_status }));
                }
                Event::Ignored { id, record_type, len } => {
                    self.is_odd = true;
                    let (request_id, server) = (self.request.environ.request_id(), &*self.server);
                    tracing::debug!(request_id, server, "{len} bytes of {record_type} for request {id} are ignored");
                }
                _ => self.is_odd = true,
            }
        }
        Ok(None)
    }

    /// Sends as much as the client brings and the server takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Cause> {
        while self.write_error.is_none() {
            let Self { connection, request, id, .. } = self;
            let mut client_owes = false;
            while !request.upload.is_done() && connection.end.output().len() < Self::WINDOW {
                match request.upload.poll_piece(cx, &mut connection.end, *id) {
                    Poll::Ready(piece) => piece?,
                    Poll::Pending => {
                        client_owes = true;
                        break;
                    }
                }
            }
            if connection.end.output().is_empty() {
                if client_owes {
                    // The server may be waiting for that, so its time does not run.
                    self.waiting_since = None;
                }
                return Ok(());
            }
            match connection.poll_write(cx) {
                Poll::Ready(Ok(0)) => self.write_error = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.sent += written as u64;
                    self.waiting_since = None;
                }
                Poll::Ready(Err(error)) => self.write_error = Some(error),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    fn closed(&mut self, error: Option<io::Error>) -> Cause {
        self.connection.current = None;
        // Why nothing more could be sent says more than the end of what could be read.
        Cause::Closed { received: self.received, error: error.or(self.write_error.take()) }
    }

    /// An error when the server has let one of the time limits pass.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        let config = &self.request.config;
        let limit = if self.has_head { config.read_timeout } else { config.head_timeout };
        let server_owes = self.request.upload.is_done() || !self.connection.end.output().is_empty();
        loop {
            let now = Instant::now();
            let silent_until = (server_owes || self.write_error.is_some())
                .then(|| after(*self.waiting_since.get_or_insert(now), limit))
                .flatten();
            if let Some(deadline) = self.request.deadline
                && now >= deadline
            {
                return Poll::Ready(Err(Cause::Timeout(config.timeout.unwrap_or_default())));
            }
            if silent_until.is_some_and(|until| now >= until) {
                let cause = if self.has_head { Cause::ReadTimeout } else { Cause::HeadTimeout };
                return Poll::Ready(Err(cause(limit)));
            }
            let Some(deadline) = [silent_until, self.request.deadline].into_iter().flatten().min() else {
                return Poll::Pending;
            };
            ready!(self.connection.poll_deadline(deadline, cx));
        }
    }

    /// How far a request came that failed.
    pub(super) fn progress(&self) -> Progress {
        Progress { sent: self.sent, answer_began: self.answer_began, was_kept: self.connection.is_kept() }
    }

    /// Whether anything has come from the server.
    pub(super) fn is_heard(&self) -> bool {
        self.received > 0
    }

    /// The request, to be sent again elsewhere.
    pub(super) fn into_request(mut self) -> Box<Request> {
        self.finish_stderr();
        self.request
    }

    /// Logs what was said without an end of line.
    pub(super) fn finish_stderr(&mut self) {
        self.stderr.finish(destination(&self.request, &self.server));
    }

    /// The connection of a request that has ended, if another may follow on it.
    pub(super) fn into_connection(self) -> Option<Box<Connection<S>>> {
        let Self { mut connection, request, write_error, is_odd, over, .. } = self;
        // A server that has answered without waiting for all of the request may still be about to read it.
        let is_complete = over && request.upload.is_done() && write_error.is_none() && !is_odd;
        (is_complete && connection.keep()).then_some(connection)
    }
}

fn destination<'a>(request: &'a Request, server: &'a str) -> Destination<'a> {
    let Config { stderr_to_client_server, stderr_limit, .. } = *request.config;
    Destination { environ: &request.environ, server, to_errors: stderr_to_client_server, limit: stderr_limit }
}

/// FastCGI 6.3: what an Authorizer is not told.
fn not_for_authorizers(name: &[u8]) -> bool {
    matches!(name, b"CONTENT_LENGTH" | b"PATH_INFO" | b"PATH_TRANSLATED" | b"SCRIPT_NAME")
}

/// A limit that is too far away to be a time is none.
pub(super) fn after(instant: Instant, limit: Duration) -> Option<Instant> {
    instant.checked_add(limit)
}
