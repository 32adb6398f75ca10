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
use crate::protocol::Pairs;

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
        let stage = if overloaded { Stage::Refused } else { Stage::Params(Vec::new()) };
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
            name_value::decode(mem::take(encoded).into(), self.settings.max_params_count).map_err(RejectError::from)
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
                    // Mostly all params come in one record, and a buffer that fits is not moved when it is shared.
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
        self.output.put_record(RecordType::Stdout, id, &[]);
        put_end(&mut self.output, id, application_status, protocol_status);
    }

    /// Cuts the answer: the web server gets no END_REQUEST and so can see that it is not complete.
    ///
    /// The connection takes no further request, since the id is still taken at the other end; it is to be closed once
    /// the other requests are done. Does nothing when the request is not active.
    pub fn forget_request(&mut self, id: RequestId) {
        if let Some(index) = self.find(id) {
            self.requests.swap_remove(index);
            self.accepts_requests = false;
            self.keeps_connection = false;
        }
    }

    /// What is to be written to the web server.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// How many requests have begun and not ended, those included whose params are still coming.
    pub fn active_requests(&self) -> usize {
        self.requests.len()
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

fn out_of_order(header: Header, expected: RecordType) -> ProtocolError {
    ProtocolError::OutOfOrder { id: header.request_id, record_type: header.record_type, expected }
}

fn put_end(output: &mut Output, id: RequestId, application_status: u32, protocol_status: ProtocolStatus) {
    let body = EndRequest { application_status, protocol_status };
    output.put_record(RecordType::EndRequest, id, &body.encode());
}
