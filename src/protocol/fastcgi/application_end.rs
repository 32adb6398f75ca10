//! The application's end of a connection: what stands behind a web server's `fastcgi_pass`.
//!
//! All that changes its state is in this file: [`ApplicationEnd::next_event`] for what the web server sends,
//! [`ApplicationEnd::stdout`] and what follows it for what the application answers.

use std::fmt::Write;
use std::mem;

use bytes::{Bytes, BytesMut};

use super::body::{BODY_LEN, BeginRequest, BodyError, EndRequest, ProtocolStatus, Role, UnknownType};
use super::input::Input;
use super::name_value::{self, NameValueError, NameValues};
use super::output::Output;
use super::protocol_error::ProtocolError;
use super::record::{Header, RecordType, RequestId};
use super::{MAX_CONNS, MAX_REQS, MPXS_CONNS};
use crate::protocol::pairs::{self, Pairs};

/// A connection on which a web server sends requests, as a value: bytes in, events out, answers in, bytes out.
///
/// GET_VALUES, management records of unknown types, roles that are not accepted and an ABORT_REQUEST for a request
/// that was not yet given out are answered into [`ApplicationEnd::output`] without an event or with one that is for the
/// log. Such an answer is at most twice as long as what asked for it, so an owner that reads no further while much
/// output waits bounds both.
#[derive(Debug)]
pub struct ApplicationEnd {
    settings: Settings,
    input: Input,
    output: Output,
    /// The active requests in no order. There is seldom more than one, so they are searched from the front.
    requests: Vec<Request>,
    /// An Authorizer's request that was given out and whose end of STDIN, which never comes, was not.
    without_stdin: Option<RequestId>,
    keeps_connection: bool,
    accepts_requests: bool,
    failure: Option<ProtocolError>,
    /// Memory for the next request's params and for the list of them.
    spare: (Vec<u8>, Vec<pairs::Span>),
}

/// What an [`ApplicationEnd`] accepts and says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The roles that the application has. A request for another is answered with UNKNOWN_ROLE. Default: Responder.
    pub roles: Roles,
    /// What GET_VALUES is told under FCGI_MAX_CONNS; `None` leaves it out. Default: `None`.
    pub announced_connections: Option<u32>,
    /// What GET_VALUES is told under FCGI_MAX_REQS; `None` leaves it out. Default: `None`.
    pub announced_requests: Option<u32>,
    /// What GET_VALUES is told under FCGI_MPXS_CONNS. Multiplexed requests are accepted either way. Default: false,
    /// since FastCGI has no flow control for each request.
    pub announces_multiplexing: bool,
    /// The most bytes that all params of a request may have, encoded. Over it the request is rejected. Default: 256 KiB.
    pub max_params_len: usize,
    /// The most params that a request may have, repeated names counted each time. Default: 4,096.
    pub max_params_count: usize,
    /// The most requests that may be active on the connection at once. Over it a request is rejected. Default: 64.
    pub max_requests: usize,
    /// The most bytes of content in GET_VALUES, which is awaited whole. Over it the connection fails. Default: 32 KiB.
    pub max_management_len: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            roles: Roles::NONE.with(Role::Responder),
            announced_connections: None,
            announced_requests: None,
            announces_multiplexing: false,
            max_params_len: 256 * 1024,
            max_params_count: 4096,
            max_requests: 64,
            max_management_len: 32 * 1024,
        }
    }
}

/// A set of roles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// No role.
    pub const NONE: Self = Self(0);

    /// The three roles of FastCGI 1.0.
    pub const ALL: Self = Self::NONE.with(Role::Responder).with(Role::Authorizer).with(Role::Filter);

    /// The set and this role. A role without a name cannot be in a set.
    #[must_use]
    pub const fn with(self, role: Role) -> Self {
        Self(self.0 | Self::bit(role))
    }

    /// Whether the role is in the set.
    pub const fn contains(self, role: Role) -> bool {
        self.0 & Self::bit(role) != 0
    }

    const fn bit(role: Role) -> u8 {
        match role {
            Role::Responder => 1,
            Role::Authorizer => 2,
            Role::Filter => 4,
            Role::Unknown(_) => 0,
        }
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        roles.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What the web server did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request has come, all its params with it.
    Request {
        /// Its id, until [`ApplicationEnd::end_request`].
        id: RequestId,
        /// What the application is asked to be: one of [`Settings::roles`].
        role: Role,
        /// Whether the connection is to stay open after the answer.
        keep_connection: bool,
        /// Its params in the order in which they came.
        params: Pairs,
    },
    /// Part of the request's body, never empty.
    Stdin {
        /// The request.
        id: RequestId,
        /// The bytes. They may share the buffer that they arrived in.
        data: Bytes,
    },
    /// The request's body is complete. Some web servers never say so. An Authorizer gets this right away.
    StdinEnd {
        /// The request.
        id: RequestId,
    },
    /// Part of a Filter's file, never empty.
    Data {
        /// The request.
        id: RequestId,
        /// The bytes. They may share the buffer that they arrived in.
        data: Bytes,
    },
    /// A Filter's file is complete.
    DataEnd {
        /// The request.
        id: RequestId,
    },
    /// The web server gives a request up. The answer is [`ApplicationEnd::end_request`], nothing else comes for it.
    Abort {
        /// The request.
        id: RequestId,
    },
    /// A request cannot be served. The answer is an error page on [`ApplicationEnd::stdout`] and
    /// [`ApplicationEnd::end_request`]; until then its id is taken and its records are ignored.
    Rejected {
        /// The request.
        id: RequestId,
        /// Whether the connection is to stay open after the answer.
        keep_connection: bool,
        /// Why.
        error: RejectError,
    },
    /// A request was for a role that the application does not have. It is already answered.
    UnknownRole {
        /// The request.
        id: RequestId,
        /// The role.
        role: Role,
    },
    /// A record, or the rest of one, is skipped: it is for a request that is not active or takes nothing more, or has a
    /// type that a web server does not send.
    Ignored {
        /// The request it is for, or [`RequestId::NULL`].
        id: RequestId,
        /// Its type.
        record_type: RecordType,
        /// How many bytes of content are skipped.
        len: u16,
    },
}

/// Why a request is rejected while the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RejectError {
    /// Its params are over [`Settings::max_params_len`].
    #[error("expected at most {limit} bytes of params, got {len} or more")]
    ParamsTooLong {
        /// How long they are with the record at which it was noticed.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Its params are not pairs, or more than [`Settings::max_params_count`].
    #[error("params: {0}")]
    Params(#[from] NameValueError),
    /// There are [`Settings::max_requests`] on the connection already.
    #[error("expected at most {limit} requests at once on a connection, got another")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    role: Role,
    keep_connection: bool,
    stage: Stage,
    /// Whether anything was sent on STDERR, which then has to be ended.
    stderr_used: bool,
}

/// Which stream a request is at. They come in this order, each ended before the next (FastCGI 6.1).
#[derive(Debug)]
enum Stage {
    /// PARAMS, as far as they came: the encoded pairs, which records cut anywhere.
    Params(Vec<u8>),
    Stdin,
    /// Of a Filter.
    Data,
    /// All streams have ended.
    Complete,
    /// Rejected or aborted: what still comes is ignored.
    Refused,
}

/// What one look at the input led to.
enum Step {
    Event(Event),
    /// Nothing for the owner; there may be more.
    Next,
    /// More bytes are needed.
    Wait,
}

impl ApplicationEnd {
    /// A connection that was just accepted.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            input: Input::default(),
            output: Output::default(),
            requests: Vec::new(),
            without_stdin: None,
            keeps_connection: true,
            accepts_requests: true,
            failure: None,
            spare: (Vec::new(), Vec::new()),
        }
    }

    /// Takes bytes that arrived, copying them.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.buffer().extend_from_slice(bytes);
    }

    /// The received bytes that are not yet made into events, for reading straight onto their end.
    ///
    /// Once [`ApplicationEnd::next_event`] says `None` little is left in it: at most what of GET_VALUES has come.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        self.input.buffer()
    }

    /// What the web server did next; `None` when more bytes are needed to know.
    ///
    /// After an error the connection is of no more use: every further call gives it again.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if let Some(id) = self.without_stdin.take()
            && self.find(id).is_some()
        {
            return Ok(Some(Event::StdinEnd { id }));
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
        if header.request_id == RequestId::NULL {
            return self.management(header);
        }
        if header.record_type == RecordType::BeginRequest {
            return self.begin_request(header);
        }
        let Some(index) = self.find(header.request_id) else { return Ok(self.ignore(header)) };
        match (header.record_type, &self.requests[index].stage) {
            (RecordType::AbortRequest, _) => Ok(self.abort_request(header, index)),
            (_, Stage::Refused) => Ok(self.ignore(header)),
            (RecordType::Params, _) => self.params(header, index),
            (RecordType::Stdin, _) => self.stdin(header, index),
            (RecordType::Data, _) => self.data(header, index),
            // FastCGI 4.2: UNKNOWN_TYPE answers management records only, so this stays without an answer.
            _ => Ok(self.ignore(header)),
        }
    }

    /// FastCGI 5.1.
    fn begin_request(&mut self, header: Header) -> Result<Step, ProtocolError> {
        let id = header.request_id;
        if self.find(id).is_some() {
            return Err(ProtocolError::ActiveRequestId(id));
        }
        if usize::from(header.content_len) != BODY_LEN {
            let len = header.content_len.into();
            return Err(BodyError { record_type: header.record_type, len }.into());
        }
        let Some(content) = self.input.whole_content() else { return Ok(Step::Wait) };
        let BeginRequest { role, keep_connection } = BeginRequest::decode(content)?;
        if !self.accepts_requests {
            return Ok(self.ignore(header));
        }
        self.input.skip_rest();
        self.keeps_connection &= keep_connection;
        if !self.settings.roles.contains(role) {
            put_end(&mut self.output, id, 0, ProtocolStatus::UnknownRole);
            return Ok(Step::Event(Event::UnknownRole { id, role }));
        }
        let limit = self.settings.max_requests;
        let overloaded = self.requests.len() >= limit;
        let stage = if overloaded { Stage::Refused } else { Stage::Params(mem::take(&mut self.spare.0)) };
        self.requests.push(Request { id, role, keep_connection, stage, stderr_used: false });
        if overloaded {
            let error = RejectError::Overloaded { limit };
            return Ok(Step::Event(Event::Rejected { id, keep_connection, error }));
        }
        Ok(Step::Next)
    }

    /// FastCGI 5.4. Of two only the first is an event, so that only one END_REQUEST results.
    fn abort_request(&mut self, header: Header, index: usize) -> Step {
        let id = header.request_id;
        match mem::replace(&mut self.requests[index].stage, Stage::Refused) {
            Stage::Refused => self.ignore(header),
            Stage::Params(_) => {
                // Nobody outside knows of the request yet, so nobody else can answer.
                self.input.skip_rest();
                self.requests.swap_remove(index);
                put_end(&mut self.output, id, 0, ProtocolStatus::RequestComplete);
                Step::Next
            }
            Stage::Stdin | Stage::Data | Stage::Complete => {
                self.input.skip_rest();
                Step::Event(Event::Abort { id })
            }
        }
    }

    /// FastCGI 5.2.
    fn params(&mut self, header: Header, index: usize) -> Result<Step, ProtocolError> {
        let id = header.request_id;
        let Request { role, keep_connection, stage, .. } = &mut self.requests[index];
        let Stage::Params(encoded) = stage else {
            return self.after_end(header);
        };
        let result = if header.content_len == 0 {
            self.input.skip_rest();
            let (buffer, room) = (mem::take(encoded), mem::take(&mut self.spare.1));
            name_value::decode_into(room, buffer, self.settings.max_params_count).map_err(RejectError::from)
        } else {
            // The check comes before the memory.
            let limit = self.settings.max_params_len;
            let len = encoded.len() + usize::from(self.input.content_left());
            if len <= limit {
                let content = self.input.content();
                if content.is_empty() {
                    return Ok(Step::Wait);
                }
                if encoded.is_empty() {
                    // Mostly all params come in one record.
                    encoded.reserve_exact(content.len());
                }
                encoded.extend_from_slice(content);
                let here = content.len();
                self.input.consume(here);
                return Ok(Step::Next);
            }
            self.input.skip_rest();
            Err(RejectError::ParamsTooLong { len, limit })
        };
        let (role, keep_connection) = (*role, *keep_connection);
        Ok(Step::Event(match result {
            Ok(params) => {
                *stage = if role == Role::Authorizer { Stage::Complete } else { Stage::Stdin };
                // FastCGI 6.3: an Authorizer gets no STDIN, so there is nothing to wait for.
                self.without_stdin = (role == Role::Authorizer).then_some(id);
                Event::Request { id, role, keep_connection, params }
            }
            Err(error) => {
                *stage = Stage::Refused;
                Event::Rejected { id, keep_connection, error }
            }
        }))
    }

    /// FastCGI 5.3.
    fn stdin(&mut self, header: Header, index: usize) -> Result<Step, ProtocolError> {
        let id = header.request_id;
        let request = &mut self.requests[index];
        match request.stage {
            // libfcgi refuses this too, and no web server does it: what would the body be of?
            Stage::Params(_) => Err(out_of_order(header, RecordType::Params)),
            Stage::Stdin if header.content_len == 0 => {
                self.input.skip_rest();
                request.stage = if request.role == Role::Filter { Stage::Data } else { Stage::Complete };
                Ok(Step::Event(Event::StdinEnd { id }))
            }
            Stage::Stdin => Ok(match self.input.take() {
                Some(data) => Step::Event(Event::Stdin { id, data }),
                None => Step::Wait,
            }),
            // FastCGI 6.3 has no STDIN here, but a web server that sends it all the same has done no harm.
            _ if request.role == Role::Authorizer => Ok(self.ignore(header)),
            _ => self.after_end(header),
        }
    }

    /// FastCGI 5.3 and 6.4.
    fn data(&mut self, header: Header, index: usize) -> Result<Step, ProtocolError> {
        let id = header.request_id;
        let request = &mut self.requests[index];
        match request.stage {
            Stage::Params(_) => Err(out_of_order(header, RecordType::Params)),
            _ if request.role != Role::Filter => Ok(self.ignore(header)),
            Stage::Stdin => Err(out_of_order(header, RecordType::Stdin)),
            Stage::Data if header.content_len == 0 => {
                self.input.skip_rest();
                request.stage = Stage::Complete;
                Ok(Step::Event(Event::DataEnd { id }))
            }
            Stage::Data => Ok(match self.input.take() {
                Some(data) => Step::Event(Event::Data { id, data }),
                None => Step::Wait,
            }),
            Stage::Complete | Stage::Refused => self.after_end(header),
        }
    }

    /// Some clients end a stream twice, which changes nothing. Content after the end has no place to go.
    fn after_end(&mut self, header: Header) -> Result<Step, ProtocolError> {
        let Header { record_type, request_id: id, content_len: len, .. } = header;
        if len > 0 {
            return Err(ProtocolError::StreamEnded { id, record_type, len });
        }
        self.input.skip_rest();
        Ok(Step::Next)
    }

    /// Records of the connection itself (FastCGI 4).
    fn management(&mut self, header: Header) -> Result<Step, ProtocolError> {
        match header.record_type {
            RecordType::GetValues => self.get_values(header),
            // Both are answers. To answer them could go on for ever.
            RecordType::GetValuesResult | RecordType::UnknownType => Ok(self.ignore(header)),
            // FastCGI 4.2.
            RecordType::Unknown(record_type) => {
                self.input.skip_rest();
                let body = UnknownType { record_type };
                self.output.put_record(RecordType::UnknownType, RequestId::NULL, &body.encode());
                Ok(Step::Next)
            }
            record_type => Err(ProtocolError::NullRequestId(record_type)),
        }
    }

    /// FastCGI 4.1. A name that is asked for several times is answered once, so the answer cannot grow with the question.
    fn get_values(&mut self, header: Header) -> Result<Step, ProtocolError> {
        let Header { record_type, content_len, .. } = header;
        let limit = self.settings.max_management_len;
        if usize::from(content_len) > limit {
            return Err(ProtocolError::ManagementTooLong { record_type, len: content_len, limit });
        }
        let Some(content) = self.input.whole_content() else { return Ok(Step::Wait) };
        let announced = [
            (MAX_CONNS, self.settings.announced_connections),
            (MAX_REQS, self.settings.announced_requests),
            (MPXS_CONNS, Some(self.settings.announces_multiplexing.into())),
        ];
        let mut asked = [false; 3];
        for pair in NameValues::new(content) {
            let (name, _) = pair.map_err(|error| ProtocolError::ManagementPairs { record_type, error })?;
            for ((known, _), asked) in announced.iter().zip(&mut asked) {
                *asked |= name == known.as_bytes();
            }
        }
        self.input.skip_rest();
        let mut result = Vec::new();
        let mut digits = String::new();
        for ((name, value), asked) in announced.into_iter().zip(asked) {
            if let (Some(value), true) = (value, asked) {
                digits.clear();
                write!(digits, "{value}").expect("a String takes all that is written to it");
                name_value::encode(name.as_bytes(), digits.as_bytes(), &mut result)
                    .expect("these names and values are short");
            }
        }
        self.output.put_record(RecordType::GetValuesResult, RequestId::NULL, &result);
        Ok(Step::Next)
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

    /// Sends part of the answer. Nothing is sent when `data` is empty or the request is not active.
    pub fn stdout(&mut self, id: RequestId, data: Bytes) {
        if self.find(id).is_some() {
            self.output.put_stream(RecordType::Stdout, id, data);
        }
    }

    /// The same for bytes that are not in a [`Bytes`].
    pub fn stdout_slice(&mut self, id: RequestId, data: &[u8]) {
        if self.find(id).is_some() {
            self.output.put_stream_slice(RecordType::Stdout, id, data);
        }
    }

    /// Sends an error message for the web server's log. Nothing is sent when it is empty or the request is not active.
    pub fn stderr(&mut self, id: RequestId, data: &[u8]) {
        if let Some(index) = self.find(id) {
            self.requests[index].stderr_used |= !data.is_empty();
            self.output.put_stream_slice(RecordType::Stderr, id, data);
        }
    }

    /// Ends the streams and the request (FastCGI 5.5), after which its id is free. Does nothing when it is not active.
    pub fn end_request(&mut self, id: RequestId, application_status: u32, protocol_status: ProtocolStatus) {
        let Some(index) = self.find(id) else { return };
        let request = self.requests.swap_remove(index);
        if request.stderr_used {
            self.output.put_record(RecordType::Stderr, id, &[]);
        }
        // FastCGI 6.1: STDOUT is sent even if it is empty.
        let body = EndRequest { application_status, protocol_status };
        self.output.put_end(id, &body.encode());
        self.spoil();
    }

    /// Cuts the answer: the web server gets no END_REQUEST and so can see that it is not complete.
    ///
    /// When no other request is left, an UNKNOWN_TYPE that nobody asked for is the last record, by which nginx notices too.
    /// The connection takes no further request, since the id is still taken at the other end; it is to be closed once the
    /// other requests are done. Does nothing when the request is not active.
    pub fn forget_request(&mut self, id: RequestId) {
        if let Some(index) = self.find(id) {
            self.requests.swap_remove(index);
            self.accepts_requests = false;
            self.keeps_connection = false;
            self.spoil();
        }
    }

    /// Makes the end of a connection with a cut answer an error for nginx as well.
    ///
    /// nginx takes a closed connection without END_REQUEST for the end of the answer, save where it both buffers answers and
    /// keeps connections. A record other than STDOUT, STDERR and END_REQUEST makes it give up, and lets its client see it. To others the
    /// record is nothing: management records may come at any time (FastCGI 4).
    fn spoil(&mut self) {
        if !self.accepts_requests && self.requests.is_empty() {
            let body = UnknownType { record_type: 0 };
            self.output.put_record(RecordType::UnknownType, RequestId::NULL, &body.encode());
        }
    }

    /// What is to be written to the web server.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Takes the params of a request that is over, to use their memory for the next: for owners that care about an allocation.
    pub fn reuse(&mut self, params: Pairs) {
        let memory = params.into_memory();
        // What is more than usual is not worth keeping while the connection is idle.
        if memory.0.capacity() <= KEPT_PARAMS_LEN && memory.1.capacity() <= KEPT_PARAMS {
            self.spare = memory;
        }
    }

    /// How many requests have begun and not ended, those included whose params are still coming.
    pub fn active_requests(&self) -> usize {
        self.requests.len()
    }

    /// Whether the request that was given out is known to have no STDIN: its end is what comes next, and is here.
    pub fn is_without_stdin(&self, id: RequestId) -> bool {
        let next = self.input.next_header();
        next.is_some_and(|next| next.request_id == id && next.record_type == RecordType::Stdin && next.content_len == 0)
    }

    /// Whether further requests are taken: until [`ApplicationEnd::forget_request`].
    pub fn accepts_requests(&self) -> bool {
        self.accepts_requests
    }

    /// Whether the connection is to stay open once no request is active: until one came without FCGI_KEEP_CONN or
    /// [`ApplicationEnd::forget_request`] was called.
    pub fn keeps_connection(&self) -> bool {
        self.keeps_connection
    }

    /// Whether the web server may close the connection without anything being lost: no request is active and nothing
    /// was received that is not yet made into events.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.input.is_empty()
    }
}

/// Of how many params the memory is used again, and of how many bytes of them.
const KEPT_PARAMS: usize = 128;
const KEPT_PARAMS_LEN: usize = KEPT_PARAMS * 32;

fn out_of_order(header: Header, expected: RecordType) -> ProtocolError {
    ProtocolError::OutOfOrder { id: header.request_id, record_type: header.record_type, expected }
}

fn put_end(output: &mut Output, id: RequestId, application_status: u32, protocol_status: ProtocolStatus) {
    let body = EndRequest { application_status, protocol_status };
    output.put_record(RecordType::EndRequest, id, &body.encode());
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::super::put_record;
    use super::*;

    const ONE: RequestId = RequestId(1);
    const TWO: RequestId = RequestId(2);
    const RESPONDER: &[u8] = &[0, 1, 1, 0, 0, 0, 0, 0];

    /// An end that has received these records.
    fn received(settings: Settings, records: &[(RecordType, RequestId, &[u8])]) -> ApplicationEnd {
        let mut end = ApplicationEnd::new(settings);
        receive(&mut end, records);
        end
    }

    fn receive(end: &mut ApplicationEnd, records: &[(RecordType, RequestId, &[u8])]) {
        for (record_type, id, content) in records {
            put_record(*record_type, *id, content, 3, end.receive_buffer());
        }
    }

    fn events(end: &mut ApplicationEnd) -> Vec<Event> {
        std::iter::from_fn(|| end.next_event().unwrap()).collect()
    }

    fn request(role: Role) -> Event {
        Event::Request { id: ONE, role, keep_connection: true, params: [("N", "v")].into_iter().collect() }
    }

    /// The types and ids of all the records in the output.
    fn sent(end: &mut ApplicationEnd) -> Vec<(RecordType, RequestId)> {
        let output = end.output();
        let mut bytes = output.copy_to_bytes(output.len());
        let mut records = Vec::new();
        while let Some(header) = Header::decode(&bytes).unwrap() {
            bytes.advance(8 + usize::from(header.content_len) + usize::from(header.padding_len));
            records.push((header.record_type, header.request_id));
        }
        assert!(bytes.is_empty());
        records
    }

    #[test]
    fn a_filter_gets_stdin_then_data() {
        let settings = Settings { roles: Roles::ALL, ..Settings::default() };
        let mut end = received(
            settings,
            &[
                (RecordType::BeginRequest, ONE, &[0, 3, 1, 0, 0, 0, 0, 0]),
                (RecordType::Params, ONE, b"\x01\x01Nv"),
                (RecordType::Params, ONE, b""),
                (RecordType::Stdin, ONE, b"body"),
                (RecordType::Stdin, ONE, b""),
                (RecordType::Data, ONE, b"file"),
                (RecordType::Data, ONE, b""),
                (RecordType::Data, ONE, b""),
            ],
        );
        let expected = [
            request(Role::Filter),
            Event::Stdin { id: ONE, data: Bytes::from_static(b"body") },
            Event::StdinEnd { id: ONE },
            Event::Data { id: ONE, data: Bytes::from_static(b"file") },
            Event::DataEnd { id: ONE },
        ];
        assert_eq!(events(&mut end), expected);
    }

    #[test]
    fn an_authorizer_needs_no_stdin() {
        let settings = Settings { roles: Roles::ALL, ..Settings::default() };
        let mut end = received(
            settings,
            &[
                (RecordType::BeginRequest, ONE, &[0, 2, 1, 0, 0, 0, 0, 0]),
                (RecordType::Params, ONE, b"\x01\x01Nv"),
                (RecordType::Params, ONE, b""),
                (RecordType::Stdin, ONE, b"all the same"),
            ],
        );
        let ignored = Event::Ignored { id: ONE, record_type: RecordType::Stdin, len: 12 };
        assert_eq!(events(&mut end), [request(Role::Authorizer), Event::StdinEnd { id: ONE }, ignored]);
    }

    #[test]
    fn params_and_stdin_may_be_ended_twice() {
        let mut end = received(
            Settings::default(),
            &[
                (RecordType::BeginRequest, ONE, RESPONDER),
                (RecordType::Params, ONE, b"\x01\x01Nv"),
                (RecordType::Params, ONE, b""),
                (RecordType::Params, ONE, b""),
                (RecordType::Stdin, ONE, b""),
                (RecordType::Stdin, ONE, b""),
            ],
        );
        assert_eq!(events(&mut end), [request(Role::Responder), Event::StdinEnd { id: ONE }]);
    }

    #[test]
    fn content_after_the_end_of_a_stream_is_an_error() {
        for (record_type, len) in [(RecordType::Params, 1), (RecordType::Stdin, 2)] {
            let mut end = received(
                Settings::default(),
                &[
                    (RecordType::BeginRequest, ONE, RESPONDER),
                    (RecordType::Params, ONE, b""),
                    (RecordType::Stdin, ONE, b""),
                    (record_type, ONE, &b"xx"[..len]),
                ],
            );
            assert!(matches!(end.next_event(), Ok(Some(Event::Request { .. }))));
            assert!(matches!(end.next_event(), Ok(Some(Event::StdinEnd { .. }))));
            let error = Err(ProtocolError::StreamEnded { id: ONE, record_type, len: len as u16 });
            assert_eq!(end.next_event(), error);
            end.receive(&[0; 100]);
            assert_eq!(end.next_event(), error, "an error is given again");
        }
    }

    #[test]
    fn streams_out_of_order_are_an_error() {
        let filter = &[0, 3, 1, 0, 0, 0, 0, 0];
        let params_open = &[(RecordType::BeginRequest, ONE, &filter[..])][..];
        let stdin_open = &[(RecordType::BeginRequest, ONE, &filter[..]), (RecordType::Params, ONE, b"")][..];
        let table = [
            (params_open, RecordType::Stdin, RecordType::Params),
            (params_open, RecordType::Data, RecordType::Params),
            (stdin_open, RecordType::Data, RecordType::Stdin),
        ];
        for (records, record_type, expected) in table {
            let mut end = received(Settings { roles: Roles::ALL, ..Settings::default() }, records);
            events(&mut end);
            receive(&mut end, &[(record_type, ONE, b"x")]);
            assert_eq!(end.next_event(), Err(ProtocolError::OutOfOrder { id: ONE, record_type, expected }));
        }
    }

    #[test]
    fn begin_request_needs_a_free_id_and_eight_bytes() {
        let begin = (RecordType::BeginRequest, ONE, RESPONDER);
        let mut end = received(Settings::default(), &[begin, begin]);
        assert_eq!(end.next_event(), Err(ProtocolError::ActiveRequestId(ONE)));

        let mut end = received(Settings::default(), &[(RecordType::BeginRequest, RequestId::NULL, RESPONDER)]);
        assert_eq!(end.next_event(), Err(ProtocolError::NullRequestId(RecordType::BeginRequest)));

        for len in [0, 1, 7] {
            let mut end = received(Settings::default(), &[(RecordType::BeginRequest, ONE, &RESPONDER[..len])]);
            let error = BodyError { record_type: RecordType::BeginRequest, len };
            assert_eq!(end.next_event(), Err(error.into()));
        }
    }

    #[test]
    fn a_role_that_is_not_accepted_is_answered_at_once() {
        for (body, role) in
            [([0, 2, 1, 0, 0, 0, 0, 0], Role::Authorizer), ([9, 9, 1, 0, 0, 0, 0, 0], Role::Unknown(0x0909))]
        {
            let records = [(RecordType::BeginRequest, ONE, &body[..]), (RecordType::Params, ONE, b"")];
            let mut end = received(Settings::default(), &records);
            let ignored = Event::Ignored { id: ONE, record_type: RecordType::Params, len: 0 };
            assert_eq!(events(&mut end), [Event::UnknownRole { id: ONE, role }, ignored]);
            assert_eq!(end.output().chunk(), b"\x01\x03\0\x01\0\x08\0\0\0\0\0\0\x03\0\0\0");
            assert_eq!(end.active_requests(), 0);
            assert!(end.keeps_connection());
        }
    }

    #[test]
    fn an_abort_gets_exactly_one_end_request() {
        let abort = (RecordType::AbortRequest, ONE, &b""[..]);
        let ignored = |record_type, len| Event::Ignored { id: ONE, record_type, len };
        let mut end = received(
            Settings::default(),
            &[
                (RecordType::BeginRequest, ONE, RESPONDER),
                (RecordType::Params, ONE, b"\x01\x01Nv"),
                (RecordType::Params, ONE, b""),
                abort,
                (RecordType::Stdin, ONE, b"late"),
                abort,
            ],
        );
        let expected = [
            request(Role::Responder),
            Event::Abort { id: ONE },
            ignored(RecordType::Stdin, 4),
            ignored(RecordType::AbortRequest, 0),
        ];
        assert_eq!(events(&mut end), expected);
        assert!(end.output().is_empty());
        end.end_request(ONE, 0, ProtocolStatus::RequestComplete);
        end.end_request(ONE, 0, ProtocolStatus::RequestComplete);
        receive(&mut end, &[abort]);
        assert_eq!(events(&mut end), [ignored(RecordType::AbortRequest, 0)]);
        assert_eq!(sent(&mut end), [(RecordType::Stdout, ONE), (RecordType::EndRequest, ONE)]);
    }

    #[test]
    fn an_abort_before_the_params_have_ended_is_answered_without_an_event() {
        let mut end = received(
            Settings::default(),
            &[(RecordType::BeginRequest, ONE, RESPONDER), (RecordType::AbortRequest, ONE, b"")],
        );
        assert_eq!(events(&mut end), []);
        end.end_request(ONE, 0, ProtocolStatus::RequestComplete);
        assert_eq!(sent(&mut end), [(RecordType::EndRequest, ONE)]);
        assert!(end.is_idle());
    }

    #[test]
    fn params_over_the_limit_are_rejected_before_they_are_kept() {
        let settings = Settings { max_params_len: 10, ..Settings::default() };
        let mut end = received(
            settings,
            &[(RecordType::BeginRequest, ONE, RESPONDER), (RecordType::Params, ONE, b"\x04\x04namevalu")],
        );
        assert_eq!(events(&mut end), [], "exactly at the limit");
        // Only the header of the next has come, and that is enough.
        end.receive(&[1, 4, 0, 1, 0xff, 0xff, 0, 0]);
        let error = RejectError::ParamsTooLong { len: 10 + 65_535, limit: 10 };
        assert_eq!(events(&mut end), [Event::Rejected { id: ONE, keep_connection: true, error }]);
        end.receive(&vec![b'x'; 65_535]);
        receive(&mut end, &[(RecordType::Params, ONE, b""), (RecordType::Stdin, ONE, b"")]);
        let ignored = |record_type| Event::Ignored { id: ONE, record_type, len: 0 };
        assert_eq!(events(&mut end), [ignored(RecordType::Params), ignored(RecordType::Stdin)]);
        assert_eq!(end.active_requests(), 1);
        end.stdout_slice(ONE, b"Status: 431\r\n\r\n");
        end.end_request(ONE, 1, ProtocolStatus::RequestComplete);
        let expected = [(RecordType::Stdout, ONE), (RecordType::Stdout, ONE), (RecordType::EndRequest, ONE)];
        assert_eq!(sent(&mut end), expected);
        assert!(end.is_idle());
    }

    #[test]
    fn params_that_are_not_pairs_or_too_many_are_rejected() {
        let settings = Settings { max_params_count: 1, ..Settings::default() };
        let table: [(&[u8], NameValueError); 2] = [
            (b"\x04\x04name", NameValueError::CutPair { offset: 0, needed: 8, left: 4 }),
            (b"\0\0\0\0", NameValueError::TooManyPairs { limit: 1 }),
        ];
        for (params, error) in table {
            let records = [
                (RecordType::BeginRequest, ONE, RESPONDER),
                (RecordType::Params, ONE, params),
                (RecordType::Params, ONE, b""),
            ];
            let mut end = received(settings.clone(), &records);
            let error = RejectError::Params(error);
            assert_eq!(events(&mut end), [Event::Rejected { id: ONE, keep_connection: true, error }]);
        }
    }

    #[test]
    fn requests_over_the_limit_are_rejected() {
        let settings = Settings { max_requests: 1, ..Settings::default() };
        let mut end = received(
            settings,
            &[
                (RecordType::BeginRequest, ONE, RESPONDER),
                (RecordType::BeginRequest, TWO, RESPONDER),
                (RecordType::Params, TWO, b"xyz"),
            ],
        );
        let error = RejectError::Overloaded { limit: 1 };
        let ignored = Event::Ignored { id: TWO, record_type: RecordType::Params, len: 3 };
        assert_eq!(events(&mut end), [Event::Rejected { id: TWO, keep_connection: true, error }, ignored]);
        end.end_request(TWO, 0, ProtocolStatus::Overloaded);
        assert_eq!(sent(&mut end), [(RecordType::Stdout, TWO), (RecordType::EndRequest, TWO)]);
        assert_eq!(end.active_requests(), 1);
    }

    #[test]
    fn after_a_cut_answer_no_request_is_accepted() {
        let begin = |id| [(RecordType::BeginRequest, id, RESPONDER), (RecordType::Params, id, b"")];
        let mut end = received(Settings::default(), &begin(ONE));
        assert_eq!(events(&mut end).len(), 1);
        end.stdout_slice(ONE, b"half");
        end.forget_request(ONE);
        end.stdout_slice(ONE, b"the rest");
        end.end_request(ONE, 0, ProtocolStatus::RequestComplete);
        // nginx notices a cut answer by the record that it does not know.
        assert_eq!(sent(&mut end), [(RecordType::Stdout, ONE), (RecordType::UnknownType, RequestId::NULL)]);
        assert!(!end.accepts_requests() && !end.keeps_connection());
        receive(&mut end, &begin(TWO));
        let ignored = |record_type, len| Event::Ignored { id: TWO, record_type, len };
        assert_eq!(events(&mut end), [ignored(RecordType::BeginRequest, 8), ignored(RecordType::Params, 0)]);
        assert_eq!(sent(&mut end), []);
    }

    #[test]
    fn stderr_is_ended_when_it_was_used() {
        let mut end = received(
            Settings::default(),
            &[(RecordType::BeginRequest, ONE, &[0, 1, 0, 0, 0, 0, 0, 0]), (RecordType::Params, ONE, b"")],
        );
        assert_eq!(events(&mut end).len(), 1);
        end.stderr(ONE, b"");
        end.stderr(ONE, b"oh");
        end.stdout(ONE, Bytes::new());
        end.end_request(ONE, 938, ProtocolStatus::RequestComplete);
        let expected = [RecordType::Stderr, RecordType::Stderr, RecordType::Stdout, RecordType::EndRequest];
        assert_eq!(sent(&mut end), expected.map(|record_type| (record_type, ONE)));
        assert!(!end.keeps_connection());
    }

    #[test]
    fn get_values_are_answered_with_what_is_known() {
        let settings = Settings {
            announced_connections: Some(2000),
            announced_requests: None,
            announces_multiplexing: true,
            ..Settings::default()
        };
        let asked = b"\x0f\0FCGI_MPXS_CONNS\x0d\0FCGI_MAX_REQS\x05\0OTHER\x0e\0FCGI_MAX_CONNS";
        let mut end = received(
            settings,
            &[(RecordType::GetValues, RequestId::NULL, asked), (RecordType::GetValues, RequestId::NULL, b"")],
        );
        assert_eq!(events(&mut end), []);
        let expected =
            b"\x01\x0a\0\0\0\x26\x02\0\x0e\x04FCGI_MAX_CONNS2000\x0f\x01FCGI_MPXS_CONNS1\0\0\x01\x0a\0\0\0\0\0\0";
        assert_eq!(end.output().chunk(), expected);
    }

    #[test]
    fn repeated_names_in_get_values_are_answered_once() {
        let asked = b"\x0f\0FCGI_MPXS_CONNS".repeat(1000);
        let mut end = received(Settings::default(), &[(RecordType::GetValues, RequestId::NULL, &asked)]);
        assert_eq!(events(&mut end), []);
        assert_eq!(end.output().chunk(), b"\x01\x0a\0\0\0\x12\x06\0\x0f\x01FCGI_MPXS_CONNS0\0\0\0\0\0\0");
        assert!(end.is_idle());

        let asked = b"\x0f\0FCGI_MPXS_CONNS".repeat(2000);
        let mut end = received(Settings::default(), &[(RecordType::GetValues, RequestId::NULL, &asked)]);
        let record_type = RecordType::GetValues;
        let error = ProtocolError::ManagementTooLong { record_type, len: 34_000, limit: 32_768 };
        assert_eq!(end.next_event(), Err(error));
    }

    #[test]
    fn unknown_types_are_answered_only_without_an_id() {
        let mut end = received(
            Settings::default(),
            &[
                (RecordType::Unknown(200), RequestId::NULL, b"what?"),
                (RecordType::Unknown(200), ONE, b"what?"),
                (RecordType::GetValues, ONE, b""),
                (RecordType::UnknownType, RequestId::NULL, b""),
            ],
        );
        let ignored = |id, record_type, len| Event::Ignored { id, record_type, len };
        let expected = [
            ignored(ONE, RecordType::Unknown(200), 5),
            ignored(ONE, RecordType::GetValues, 0),
            ignored(RequestId::NULL, RecordType::UnknownType, 0),
        ];
        assert_eq!(events(&mut end), expected);
        assert_eq!(end.output().chunk(), b"\x01\x0b\0\0\0\x08\0\0\xc8\0\0\0\0\0\0\0");
    }

    #[test]
    fn part_of_a_record_of_stdin_is_given_out_as_it_comes() {
        let mut end = received(
            Settings::default(),
            &[(RecordType::BeginRequest, ONE, RESPONDER), (RecordType::Params, ONE, b"")],
        );
        assert_eq!(events(&mut end).len(), 1);
        end.receive(&[1, 5, 0, 1, 0xff, 0xff, 0, 0]);
        assert_eq!(events(&mut end), []);
        assert!(!end.is_idle());
        end.receive(b"a");
        assert_eq!(events(&mut end), [Event::Stdin { id: ONE, data: Bytes::from_static(b"a") }]);
        end.receive(&[b'b'; 4096]);
        let address = end.receive_buffer().as_ptr();
        let Some(Event::Stdin { data, .. }) = end.next_event().unwrap() else { panic!("4,096 bytes are there") };
        assert_eq!(data.as_ptr(), address, "what is long is not copied");
        // The answer does not wait for the rest of it, which is then nobody's.
        end.end_request(ONE, 0, ProtocolStatus::RequestComplete);
        end.receive(b"c");
        let ignored = Event::Ignored { id: ONE, record_type: RecordType::Stdin, len: 65_535 - 4097 };
        assert_eq!(events(&mut end), [ignored]);
        end.receive(&[b'd'; 65_535 - 4098]);
        assert_eq!(events(&mut end), []);
        assert!(end.is_idle());
    }
}
