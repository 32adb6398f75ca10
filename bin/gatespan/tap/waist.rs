//! The tap where FROM or TO is not FastCGI: around the application, every request is recorded as a FastCGI connection of its own would have
//! carried it, so that readers need to know one protocol only.
//!
//! What is recorded of a body is what the application has read of it, and its end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use gatespan::application::driver::{Response, ResponseBody, answer};
use gatespan::application::{
    AnyApplication, Application, Body, Environ, Error, Errors, Frame, Frames, Input, InputError, Log, Source,
    StartResponse,
};
use gatespan::protocol::cgi::Fields;
use gatespan::protocol::fastcgi::name_value::Contents;
use gatespan::protocol::fastcgi::{
    BeginRequest, EndRequest, HEADER_LEN, Header, MAX_PADDED_CONTENT_LEN, ProtocolStatus, RecordType, RequestId,
};
use gatespan::recording::Direction;

use super::recorder::{Recorder, Tape};

/// An application, and what is recorded of it.
pub(super) struct Tapped {
    pub(super) application: Arc<AnyApplication>,
    pub(super) recorder: Arc<Recorder>,
    /// What it is, for people.
    pub(super) to: String,
}

const ID: RequestId = RequestId(1);

impl Application for Tapped {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let variable = |name| String::from_utf8_lossy(environ.get(name).unwrap_or_default()).into_owned();
        let from = match (variable("REMOTE_ADDR"), variable("REMOTE_PORT")) {
            (address, port) if port.is_empty() => address,
            (address, port) if address.contains(':') => format!("[{address}]:{port}"),
            (address, port) => format!("{address}:{port}"),
        };
        let record = Arc::new(Exchange::begin(&self.recorder, from, self.to.clone(), &environ));
        let input = environ.take_input();
        let len = input.remaining();
        if len == Some(0) {
            record.end_input();
        }
        let errors = Errors::new(Arc::new(RecordedErrors { record: record.clone(), errors: environ.errors() }));
        let input = Input::from_source(RecordedInput { record: record.clone(), input }, len);
        let environ = environ.with_input(input).with_errors(errors);
        // With the page of the server where the application fails: that is what the client sees.
        let Response { head, body } = answer(self.application.clone(), environ).await;
        let mut fields = Fields::default();
        head.headers.iter().for_each(|(name, value)| fields.push(name, value));
        let mut bytes = bytes::BytesMut::new();
        if fields.encode_head(head.status.code(), head.status.reason(), &mut bytes).is_ok() {
            record.stream(Direction::ToWebServer, RecordType::Stdout, &bytes);
        }
        let unsent = head.content_length()?;
        let recorded = RecordedBody { is_over: body.is_over(), body, record, unsent };
        start_response.start(head.status, head.headers)?;
        Ok(Body::frames(recorded))
    }
}

/// What is recorded of one request.
struct Exchange(Mutex<State>);

struct State {
    tape: Tape,
    input_ended: bool,
    is_over: bool,
}

impl Exchange {
    fn begin(recorder: &Arc<Recorder>, from: String, to: String, environ: &Environ) -> Self {
        let tape = Tape::begin(recorder, from, to);
        let exchange = Self(Mutex::new(State { tape, input_ended: false, is_over: false }));
        let begin = BeginRequest { role: environ.role(), keep_connection: false };
        exchange.put(Direction::ToApplication, RecordType::BeginRequest, &begin.encode());
        // Names and values longer than a record straddle several, as the protocol has it; longer than it has numbers for there is none.
        if let Ok(contents) = Contents::lay_out(environ.variables().iter(), usize::MAX) {
            contents.iter().for_each(|content| exchange.put(Direction::ToApplication, RecordType::Params, content));
        }
        exchange.put(Direction::ToApplication, RecordType::Params, b"");
        exchange
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One record.
    fn put(&self, direction: Direction, record_type: RecordType, content: &[u8]) {
        let mut state = self.state();
        if state.is_over {
            return;
        }
        let header = Header::padded(record_type, ID, content.len() as u16);
        let padding = &[0; 8][..header.padding_len.into()];
        match content.len() {
            // In one piece, unless copying it would cost more than another frame.
            ..4096 => {
                let mut record = Vec::with_capacity(HEADER_LEN + content.len() + padding.len());
                record.extend_from_slice(&header.encode());
                record.extend_from_slice(content);
                record.extend_from_slice(padding);
                state.tape.bytes(direction, &record);
            }
            _ => {
                state.tape.bytes(direction, &header.encode());
                state.tape.bytes(direction, content);
                if !padding.is_empty() {
                    state.tape.bytes(direction, padding);
                }
            }
        }
    }

    /// Part of a stream, in as many records as it takes.
    fn stream(&self, direction: Direction, record_type: RecordType, bytes: &[u8]) {
        bytes.chunks(MAX_PADDED_CONTENT_LEN).for_each(|content| self.put(direction, record_type, content));
    }

    fn end_input(&self) {
        if !std::mem::replace(&mut self.state().input_ended, true) {
            self.put(Direction::ToApplication, RecordType::Stdin, b"");
        }
    }

    /// The response was given out whole.
    fn end(&self) {
        self.end_input();
        self.put(Direction::ToWebServer, RecordType::Stdout, b"");
        let end = EndRequest { application_status: 0, protocol_status: ProtocolStatus::RequestComplete };
        self.put(Direction::ToWebServer, RecordType::EndRequest, &end.encode());
        let mut state = self.state();
        if !std::mem::replace(&mut state.is_over, true) {
            state.tape.ended(Direction::ToWebServer);
            state.tape.ended(Direction::ToApplication);
        }
    }

    /// It was not.
    fn cut(&self, why: String) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.is_over, true) {
            state.tape.broken(why);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.cut("the request was given up".into());
    }
}

struct RecordedInput {
    record: Arc<Exchange>,
    input: Input,
}

impl Source for RecordedInput {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        let chunk = ready!(Pin::new(&mut self.input).poll_next(cx));
        match &chunk {
            Some(Ok(bytes)) => self.record.stream(Direction::ToApplication, RecordType::Stdin, bytes),
            Some(Err(_)) => {}
            None => self.record.end_input(),
        }
        Poll::Ready(chunk)
    }
}

struct RecordedErrors {
    record: Arc<Exchange>,
    errors: Errors,
}

impl Log for RecordedErrors {
    fn write(&self, text: &[u8]) {
        self.record.stream(Direction::ToWebServer, RecordType::Stderr, text);
        // Writing to it never fails.
        let _ = std::io::Write::write_all(&mut self.errors.clone(), text);
    }
}

struct RecordedBody {
    body: ResponseBody,
    record: Arc<Exchange>,
    /// What Content-Length still owes. A server that has sent all of it need not ask for the end.
    unsent: Option<u64>,
    is_over: bool,
}

impl Frames for RecordedBody {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let frame = ready!(self.body.poll_data(cx));
        match &frame {
            Some(Ok(Frame::Data(bytes))) => {
                self.record.stream(Direction::ToWebServer, RecordType::Stdout, bytes);
                self.unsent = self.unsent.map(|unsent| unsent.saturating_sub(bytes.len() as u64));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => self.record.cut(format!("the response was cut: {error}")),
            None => self.is_over = true,
        }
        Poll::Ready(frame)
    }

    fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.body.poll_close(cx)
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        match self.is_over || self.unsent == Some(0) {
            true => self.record.end(),
            false => self.record.cut("the response was given up before its end".into()),
        }
    }
}
