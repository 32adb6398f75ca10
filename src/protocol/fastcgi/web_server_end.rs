//! The web server's end of a connection: what calls an application, as a web server's `fastcgi_pass` does.
//!
//! The mirror of [`application_end`](super::application_end), and as there all that changes its state is in this file.

use std::mem;

use bytes::{Bytes, BytesMut};

use super::body::{BODY_LEN, BeginRequest, BodyError, EndRequest, ProtocolStatus, Role, UnknownType};
use super::input::Input;
use super::name_value::{self, Contents, EncodeError};
use super::output::Output;
use super::protocol_error::ProtocolError;
use super::record::{Header, RecordType, RequestId};
use crate::protocol::Pairs;

/// A connection on which an application is sent requests, as a value: requests in, bytes out, bytes in, events out.
///
/// It passes what the common web servers pass: records of one byte, any padding, STDERR between STDOUT, an END_REQUEST
/// without an end of STDOUT before it.
#[derive(Debug)]
pub struct WebServerEnd {
    settings: Settings,
    input: Input,
    output: Output,
    /// The active requests in the order of their ids, so that a free one is where two are not next to each other.
    requests: Vec<Request>,
    /// How many GET_VALUES have no answer yet.
    values_awaited: usize,
    keeps_connection: bool,
    failure: Option<ProtocolError>,
}

/// The limits of a [`WebServerEnd`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The most requests that may be active on the connection at once. Default: 1, as few applications multiplex.
    pub max_requests: u16,
    /// The most bytes that all params of a request may have, encoded. Default: 256 KiB.
    pub max_params_len: usize,
    /// The most bytes of content in GET_VALUES_RESULT, which is awaited whole. Over it the connection fails. Default:
    /// 32 KiB.
    pub max_management_len: usize,
    /// The most values in GET_VALUES_RESULT. Over it the connection fails. Default: 64.
    pub max_values_count: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_requests: 1, max_params_len: 256 * 1024, max_management_len: 32 * 1024, max_values_count: 64 }
    }
}

/// What the application did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Part of the answer, never empty.
    Stdout {
        /// The request.
        id: RequestId,
        /// The bytes. They may share the buffer that they arrived in.
        data: Bytes,
    },
    /// The answer is complete, if END_REQUEST agrees.
    StdoutEnd {
        /// The request.
        id: RequestId,
    },
    /// Part of an error message, never empty.
    Stderr {
        /// The request.
        id: RequestId,
        /// The bytes. They may share the buffer that they arrived in.
        data: Bytes,
    },
    /// There are no more error messages.
    StderrEnd {
        /// The request.
        id: RequestId,
    },
    /// The request has ended, whether or not its streams had. Its id is free.
    EndRequest {
        /// The request.
        id: RequestId,
        /// The exit status that the application would have had as a CGI program.
        application_status: u32,
        /// Whether the protocol had a part in the end.
        protocol_status: ProtocolStatus,
    },
    /// The answer to [`WebServerEnd::get_values`]: the names that the application knows, with their values.
    Values(Pairs),
    /// The application does not know management records of this type; 9 is GET_VALUES.
    UnknownType(u8),
    /// A record is skipped: it is for a request that is not active, was not asked for, or has a type that an application
    /// does not send.
    Ignored {
        /// The request it is for, or [`RequestId::NULL`].
        id: RequestId,
        /// Its type.
        record_type: RecordType,
        /// How many bytes of content are skipped.
        len: u16,
    },
}

/// Why a request cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// There are [`Settings::max_requests`] already.
    #[error("expected at most {limit} requests at once on a connection, got another")]
    TooManyRequests {
        /// The limit.
        limit: u16,
    },
    /// The connection is to be closed: a request was sent without FCGI_KEEP_CONN.
    #[error("expected a connection that is kept, got one that ends with the request before")]
    ConnectionEnds,
    /// The params are over [`Settings::max_params_len`].
    #[error("params: {0}")]
    Params(#[from] EncodeError),
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    stdin_ended: bool,
    data_ended: bool,
    aborted: bool,
    stdout_ended: bool,
    stderr_ended: bool,
}

/// What one look at the input led to.
enum Step {
    Event(Event),
    /// Nothing for the owner; there may be more.
    Next,
    /// More bytes are needed.
    Wait,
}

impl WebServerEnd {
    /// A connection that was just made.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            input: Input::default(),
            output: Output::default(),
            requests: Vec::new(),
            values_awaited: 0,
            keeps_connection: true,
            failure: None,
        }
    }

    /// Begins a request under the lowest id that is free and sends all its params.
    ///
    /// After an error nothing was sent.
    pub fn begin<'a>(
        &mut self,
        role: Role,
        keep_connection: bool,
        params: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<RequestId, BeginError> {
        let limit = self.settings.max_requests;
        if self.requests.len() >= limit.into() {
            return Err(BeginError::TooManyRequests { limit });
        }
        if !self.keeps_connection {
            return Err(BeginError::ConnectionEnds);
        }
        let contents = Contents::lay_out(params, self.settings.max_params_len)?;
        // There are fewer than 65,535 requests, so one of the ids from 1 to there is free.
        let (index, id) = (1..=u16::MAX)
            .enumerate()
            .find(|(index, id)| self.requests.get(*index).is_none_or(|request| request.id.0 != *id))
            .map(|(index, id)| (index, RequestId(id)))
            .ok_or(BeginError::TooManyRequests { limit })?;
        self.requests.insert(
            index,
            Request {
                id,
                stdin_ended: false,
                data_ended: false,
                aborted: false,
                stdout_ended: false,
                stderr_ended: false,
            },
        );
        self.keeps_connection = keep_connection;
        let body = BeginRequest { role, keep_connection };
        self.output.put_record(RecordType::BeginRequest, id, &body.encode());
        for content in contents.iter() {
            self.output.put_stream_slice(RecordType::Params, id, content);
        }
        self.output.put_record(RecordType::Params, id, &[]);
        Ok(id)
    }

    /// Sends part of the request's body. Nothing is sent when `data` is empty, the stream has ended, the request was
    /// aborted or is not active.
    pub fn stdin(&mut self, id: RequestId, data: Bytes) {
        if self.open(id).is_some_and(|request| !request.stdin_ended) {
            self.output.put_stream(RecordType::Stdin, id, data);
        }
    }

    /// The same for bytes that are not in a [`Bytes`].
    pub fn stdin_slice(&mut self, id: RequestId, data: &[u8]) {
        if self.open(id).is_some_and(|request| !request.stdin_ended) {
            self.output.put_stream_slice(RecordType::Stdin, id, data);
        }
    }

    /// Ends the request's body, once.
    pub fn end_stdin(&mut self, id: RequestId) {
        if let Some(request) = self.open(id)
            && !mem::replace(&mut request.stdin_ended, true)
        {
            self.output.put_record(RecordType::Stdin, id, &[]);
        }
    }

    /// Sends part of a Filter's file, for which the request's body must have ended (FastCGI 6.4). Nothing is sent when it
    /// has not, and where [`WebServerEnd::stdin`] would send nothing.
    pub fn data(&mut self, id: RequestId, data: Bytes) {
        if self.open(id).is_some_and(|request| request.stdin_ended && !request.data_ended) {
            self.output.put_stream(RecordType::Data, id, data);
        }
    }

    /// Ends a Filter's file, once, and the request's body before it.
    pub fn end_data(&mut self, id: RequestId) {
        self.end_stdin(id);
        if let Some(request) = self.open(id)
            && !mem::replace(&mut request.data_ended, true)
        {
            self.output.put_record(RecordType::Data, id, &[]);
        }
    }

    /// Gives the request up, once. It is active until the application answers with END_REQUEST (FastCGI 5.4).
    pub fn abort(&mut self, id: RequestId) {
        if let Some(request) = self.open(id) {
            request.aborted = true;
            self.output.put_record(RecordType::AbortRequest, id, &[]);
        }
    }

    /// Asks the application for the values of these names (FastCGI 4.1).
    ///
    /// Some applications close the connection on that, so it is not for one with requests on it.
    pub fn get_values<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> Result<(), EncodeError> {
        let pairs = names.into_iter().map(|name| (name.as_bytes(), &b""[..]));
        let limit = self.settings.max_management_len.min(super::MAX_PADDED_CONTENT_LEN);
        let contents = Contents::lay_out(pairs, limit)?;
        // At most a record's length altogether is at most one record.
        let content = contents.iter().next().unwrap_or_default();
        self.output.put_record(RecordType::GetValues, RequestId::NULL, content);
        self.values_awaited += 1;
        Ok(())
    }

    /// Takes bytes that arrived, copying them.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.buffer().extend_from_slice(bytes);
    }

    /// The received bytes that are not yet made into events, for reading straight onto their end.
    ///
    /// Once [`WebServerEnd::next_event`] says `None` little is left in it: at most what of GET_VALUES_RESULT has come.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        self.input.buffer()
    }

    /// What the application did next; `None` when more bytes are needed to know.
    ///
    /// After an error the connection is of no more use: every further call gives it again.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        loop {
            match self.step() {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Next) => {}
                Ok(Step::Wait) => return Ok(None),
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(failure);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, ProtocolError> {
        let Some(header) = self.input.header()? else { return Ok(Step::Wait) };
        let id = header.request_id;
        if id == RequestId::NULL {
            return self.management(header);
        }
        let Some(index) = self.find(id) else { return Ok(self.ignore(header)) };
        let request = &mut self.requests[index];
        match header.record_type {
            RecordType::Stdout => {
                let ended = &mut request.stdout_ended;
                stream(&mut self.input, header, ended, Event::StdoutEnd { id }, |data| Event::Stdout { id, data })
            }
            RecordType::Stderr => {
                let ended = &mut request.stderr_ended;
                stream(&mut self.input, header, ended, Event::StderrEnd { id }, |data| Event::Stderr { id, data })
            }
            RecordType::EndRequest => {
                let Some(body) = self.body(header)? else { return Ok(Step::Wait) };
                let EndRequest { application_status, protocol_status } = EndRequest::decode(&body)?;
                self.requests.remove(index);
                Ok(Step::Event(Event::EndRequest { id, application_status, protocol_status }))
            }
            _ => Ok(self.ignore(header)),
        }
    }

    /// Records of the connection itself (FastCGI 4).
    fn management(&mut self, header: Header) -> Result<Step, ProtocolError> {
        match header.record_type {
            RecordType::GetValuesResult if self.values_awaited > 0 => self.get_values_result(header),
            RecordType::UnknownType => {
                let Some(body) = self.body(header)? else { return Ok(Step::Wait) };
                let UnknownType { record_type } = UnknownType::decode(&body)?;
                if RecordType::from(record_type) == RecordType::GetValues {
                    self.values_awaited = self.values_awaited.saturating_sub(1);
                }
                Ok(Step::Event(Event::UnknownType(record_type)))
            }
            RecordType::Stdout | RecordType::Stderr | RecordType::EndRequest => {
                Err(ProtocolError::NullRequestId(header.record_type))
            }
            _ => Ok(self.ignore(header)),
        }
    }

    /// FastCGI 4.1.
    fn get_values_result(&mut self, header: Header) -> Result<Step, ProtocolError> {
        let Header { record_type, content_len, .. } = header;
        let limit = self.settings.max_management_len;
        if usize::from(content_len) > limit {
            return Err(ProtocolError::ManagementTooLong { record_type, len: content_len, limit });
        }
        let Some(content) = self.input.whole_content() else { return Ok(Step::Wait) };
        let values = name_value::decode(content.to_vec(), self.settings.max_values_count)
            .map_err(|error| ProtocolError::ManagementPairs { record_type, error })?;
        self.input.skip_rest();
        self.values_awaited -= 1;
        Ok(Step::Event(Event::Values(values)))
    }

    /// The content of a record that has eight bytes of it, once they are here.
    fn body(&mut self, header: Header) -> Result<Option<[u8; BODY_LEN]>, BodyError> {
        if usize::from(header.content_len) != BODY_LEN {
            return Err(BodyError { record_type: header.record_type, len: header.content_len.into() });
        }
        let body = self.input.whole_content().and_then(|content| content.try_into().ok());
        if body.is_some() {
            self.input.skip_rest();
        }
        Ok(body)
    }

    /// Skips what is left of a record and says so.
    fn ignore(&mut self, header: Header) -> Step {
        let len = self.input.content_left();
        self.input.skip_rest();
        Step::Event(Event::Ignored { id: header.request_id, record_type: header.record_type, len })
    }

    #[inline]
    fn find(&self, id: RequestId) -> Option<usize> {
        self.requests.iter().position(|request| request.id == id)
    }

    /// The request, when it is active and was not aborted.
    fn open(&mut self, id: RequestId) -> Option<&mut Request> {
        self.requests.iter_mut().find(|request| request.id == id && !request.aborted)
    }

    /// What is to be written to the application.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// How many requests have begun and not ended.
    pub fn active_requests(&self) -> usize {
        self.requests.len()
    }

    /// Whether another request can follow: until one was begun without `keep_connection`.
    pub fn keeps_connection(&self) -> bool {
        self.keeps_connection
    }

    /// Whether the application may close the connection without anything being lost: no request is active, no values are
    /// awaited and nothing was received that is not yet made into events.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.values_awaited == 0 && self.input.is_empty()
    }
}

/// STDOUT or STDERR (FastCGI 5.3). An end that comes twice changes nothing, content after it has no place to go.
fn stream(
    input: &mut Input,
    header: Header,
    ended: &mut bool,
    end: Event,
    part: impl FnOnce(Bytes) -> Event,
) -> Result<Step, ProtocolError> {
    let Header { record_type, request_id: id, content_len: len, .. } = header;
    if len == 0 {
        input.skip_rest();
        let again = mem::replace(ended, true);
        return Ok(if again { Step::Next } else { Step::Event(end) });
    }
    if *ended {
        return Err(ProtocolError::StreamEnded { id, record_type, len });
    }
    Ok(match input.take() {
        Some(data) => Step::Event(part(data)),
        None => Step::Wait,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::super::put_record;
    use super::*;

    const ONE: RequestId = RequestId(1);
    const TWO: RequestId = RequestId(2);

    fn no_params() -> [(&'static [u8], &'static [u8]); 0] {
        []
    }

    /// An end with this many requests, all of them sent.
    fn begun(requests: u16) -> WebServerEnd {
        let mut end = WebServerEnd::new(Settings { max_requests: requests, ..Settings::default() });
        for id in 1..=requests {
            assert_eq!(end.begin(Role::Responder, true, no_params()), Ok(RequestId(id)));
        }
        let len = end.output().len();
        end.output().advance(len);
        end
    }

    fn receive(end: &mut WebServerEnd, records: &[(RecordType, RequestId, &[u8])]) {
        for (record_type, id, content) in records {
            put_record(*record_type, *id, content, 5, end.receive_buffer());
        }
    }

    fn events(end: &mut WebServerEnd) -> Vec<Event> {
        std::iter::from_fn(|| end.next_event().unwrap()).collect()
    }

    #[test]
    fn a_request_is_these_bytes() {
        let mut end = WebServerEnd::new(Settings::default());
        let id = end.begin(Role::Responder, false, [(&b"SERVER_PORT"[..], &b"80"[..])]).unwrap();
        end.stdin_slice(id, b"quantity=100&item=3047936");
        end.stdin(id, Bytes::new());
        end.end_stdin(id);
        end.end_stdin(id);
        end.stdin_slice(id, b"too late");
        let expected = [
            &b"\x01\x01\0\x01\0\x08\0\0\0\x01\0\0\0\0\0\0"[..],
            b"\x01\x04\0\x01\0\x0f\x01\0\x0b\x02SERVER_PORT80\0\x01\x04\0\x01\0\0\0\0",
            b"\x01\x05\0\x01\0\x19\x07\0quantity=100&item=3047936\0\0\0\0\0\0\0\x01\x05\0\x01\0\0\0\0",
        ];
        assert_eq!(end.output().chunk(), expected.concat());
        assert!(!end.keeps_connection());
    }

    #[test]
    fn the_lowest_free_id_is_taken() {
        let mut end = begun(3);
        let refused = Err(BeginError::TooManyRequests { limit: 3 });
        assert_eq!(end.begin(Role::Responder, true, no_params()), refused);
        receive(&mut end, &[(RecordType::EndRequest, TWO, &[0; 8]), (RecordType::EndRequest, ONE, &[0; 8])]);
        assert_eq!(events(&mut end).len(), 2);
        for id in [ONE, TWO] {
            assert_eq!(end.begin(Role::Responder, true, no_params()), Ok(id));
        }
        assert_eq!(end.begin(Role::Responder, true, no_params()), refused);
    }

    #[test]
    fn nothing_is_sent_for_a_request_that_cannot_begin() {
        let mut end = WebServerEnd::new(Settings { max_requests: 2, max_params_len: 5, ..Settings::default() });
        let error = EncodeError::TooLong { len: 6, limit: 5 };
        let begun = end.begin(Role::Responder, true, [(&b"ab"[..], &b"cd"[..])]);
        assert_eq!(begun, Err(BeginError::Params(error)));
        assert!(end.output().is_empty() && end.is_idle());
        end.begin(Role::Responder, false, no_params()).unwrap();
        assert_eq!(end.begin(Role::Responder, true, no_params()), Err(BeginError::ConnectionEnds));
    }

    #[test]
    fn an_answer_passes_with_what_good_front_ends_let_pass() {
        let mut end = begun(1);
        receive(
            &mut end,
            &[
                (RecordType::Stdout, ONE, b"S"),
                (RecordType::Stderr, ONE, b"oh"),
                (RecordType::Stdout, ONE, b"t"),
                (RecordType::Stderr, ONE, b""),
                (RecordType::Stderr, ONE, b""),
                (RecordType::EndRequest, ONE, &[0, 0, 3, 0xaa, 0, 0, 0, 0]),
                (RecordType::Stdout, ONE, b""),
            ],
        );
        let stdout = |data| Event::Stdout { id: ONE, data: Bytes::from_static(data) };
        let expected = [
            stdout(b"S"),
            Event::Stderr { id: ONE, data: Bytes::from_static(b"oh") },
            stdout(b"t"),
            Event::StderrEnd { id: ONE },
            Event::EndRequest { id: ONE, application_status: 938, protocol_status: ProtocolStatus::RequestComplete },
            Event::Ignored { id: ONE, record_type: RecordType::Stdout, len: 0 },
        ];
        assert_eq!(events(&mut end), expected);
        assert!(end.is_idle());
    }

    #[test]
    fn content_after_the_end_of_a_stream_is_an_error() {
        let mut end = begun(1);
        receive(&mut end, &[(RecordType::Stdout, ONE, b""), (RecordType::Stdout, ONE, b"more")]);
        assert_eq!(end.next_event(), Ok(Some(Event::StdoutEnd { id: ONE })));
        let error = ProtocolError::StreamEnded { id: ONE, record_type: RecordType::Stdout, len: 4 };
        assert_eq!(end.next_event(), Err(error));
        assert_eq!(end.next_event(), Err(error), "an error is given again");
    }

    #[test]
    fn a_short_end_request_is_an_error() {
        for len in [0, 4, 5, 7, 9] {
            let mut end = begun(1);
            receive(&mut end, &[(RecordType::EndRequest, ONE, &[0; 9][..len])]);
            let error = BodyError { record_type: RecordType::EndRequest, len };
            assert_eq!(end.next_event(), Err(error.into()));
        }
    }

    #[test]
    fn an_abort_is_sent_once_and_nothing_after_it() {
        let mut end = begun(1);
        end.abort(ONE);
        end.abort(ONE);
        end.stdin_slice(ONE, b"late");
        end.end_data(ONE);
        assert_eq!(end.output().chunk(), b"\x01\x02\0\x01\0\0\0\0");
        receive(&mut end, &[(RecordType::Stdout, ONE, b"still"), (RecordType::EndRequest, ONE, &[0; 8])]);
        assert_eq!(events(&mut end).len(), 2);
        assert_eq!(end.active_requests(), 0);
    }

    #[test]
    fn data_follows_stdin() {
        let mut end = begun(1);
        end.data(ONE, Bytes::from_static(b"too early"));
        end.end_stdin(ONE);
        end.data(ONE, Bytes::from_static(b"abcdefgh"));
        end.end_data(ONE);
        let expected = b"\x01\x05\0\x01\0\0\0\0\x01\x08\0\x01\0\x08\0\0abcdefgh\x01\x08\0\x01\0\0\0\0";
        assert_eq!(end.output().chunk(), expected);
    }

    #[test]
    fn values_are_given_out_when_they_were_asked_for() {
        let mut end = WebServerEnd::new(Settings::default());
        let result = (RecordType::GetValuesResult, RequestId::NULL, &b"\x0f\x01FCGI_MPXS_CONNS1"[..]);
        receive(&mut end, &[result]);
        let ignored = Event::Ignored { id: RequestId::NULL, record_type: RecordType::GetValuesResult, len: 18 };
        assert_eq!(events(&mut end), [ignored]);
        end.get_values([crate::protocol::fastcgi::MPXS_CONNS]).unwrap();
        assert_eq!(end.output().chunk(), b"\x01\x09\0\0\0\x11\x07\0\x0f\0FCGI_MPXS_CONNS\0\0\0\0\0\0\0");
        receive(&mut end, &[result]);
        assert_eq!(events(&mut end), [Event::Values([("FCGI_MPXS_CONNS", "1")].into_iter().collect())]);
        end.get_values([]).unwrap();
        receive(&mut end, &[(RecordType::UnknownType, RequestId::NULL, &[9, 0, 0, 0, 0, 0, 0, 0])]);
        assert_eq!(events(&mut end), [Event::UnknownType(9)]);
        assert!(end.is_idle());
    }

    #[test]
    fn what_an_application_does_not_send_is_ignored() {
        let mut end = begun(1);
        receive(
            &mut end,
            &[
                (RecordType::Params, ONE, b"x"),
                (RecordType::Unknown(99), ONE, b"xy"),
                (RecordType::Unknown(99), RequestId::NULL, b"xyz"),
                (RecordType::Stdout, TWO, b"stray"),
            ],
        );
        let ignored = |id, record_type, len| Event::Ignored { id, record_type, len };
        let expected = [
            ignored(ONE, RecordType::Params, 1),
            ignored(ONE, RecordType::Unknown(99), 2),
            ignored(RequestId::NULL, RecordType::Unknown(99), 3),
            ignored(TWO, RecordType::Stdout, 5),
        ];
        assert_eq!(events(&mut end), expected);
        assert!(end.output().is_empty());
        receive(&mut end, &[(RecordType::Stdout, RequestId::NULL, b"x")]);
        assert_eq!(end.next_event(), Err(ProtocolError::NullRequestId(RecordType::Stdout)));
    }
}
