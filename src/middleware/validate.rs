//! PEP 3333's validator, as middleware: it stands between a server and an application and watches both.
//!
//! # Rules that an application can break
//!
//! | rule | what is asked |
//! | --- | --- |
//! | `start-response-called` | `start_response` is called before the first non-empty piece of the body, and before its end |
//! | `start-response-once` | without an error it is called once, and that counts when it fails |
//! | `exc-info-propagated` | an error that `start_response` gives back, since the head was sent, ends the response |
//! | `status-form` | three digits, a blank and a reason, without control characters |
//! | `status-final` | 200 or more: interim answers are the server's; or 101 for an [`Upgrade`] that was accepted |
//! | `header-name` | a token, without a colon |
//! | `header-value` | no control characters, tabs included |
//! | `hop-by-hop` | no header that speaks of the connection, or that is the server's to write (`Status`, `Transfer-Encoding`) |
//! | `content-length-form` | one decimal number |
//! | `content-type` | there is one where there is a body |
//! | `content-headers` (should) | no Content-Type and no Content-Length for 204, no Content-Type for 304 |
//! | `content-length-exceeded` | no more data than Content-Length says, returned or written |
//! | `content-length-unmet` | and no less |
//! | `no-body` | no data with 204 and 304 |
//! | `no-body-for-head` (should) | no data for HEAD: the server drops it, but it is made in vain |
//! | `write-before-iteration` | `write` is not called from within the body, nor once it has given data |
//! | `write-after-end` | nor after the response has ended |
//! | `trailers-last` | no data after trailers |
//! | `input-after-end` (should) | the request's body is not read any more once the response has ended |
//!
//! # Rules that a server can break
//!
//! | rule | what is asked |
//! | --- | --- |
//! | `request-method` | REQUEST_METHOD is a token |
//! | `server-name` | SERVER_NAME is not empty (see [`ServerRules`]) |
//! | `server-port` | SERVER_PORT is a number up to 65535, and not empty |
//! | `server-protocol` | SERVER_PROTOCOL is there, and of the form `HTTP/1.1` |
//! | `script-name` | SCRIPT_NAME is empty or begins with `/`, and is never `/` alone |
//! | `path-info` | PATH_INFO is empty or begins with `/` |
//! | `path-present` | one of the two is not empty, save for `OPTIONS *`, CONNECT and an Authorizer (FastCGI 6.3 has neither there) |
//! | `content-length-digits` | CONTENT_LENGTH is empty, absent or a decimal number |
//! | `input-length` | the input has as many bytes as CONTENT_LENGTH says, or none are left |
//! | `variable-name` | a variable's name is not empty and has no `=` and NUL; its value has no NUL |
//! | `iterate-after-end` | a body is asked for nothing more after its end or an error |
//! | `close-called` | a body is closed on every way out |
//!
//! # Rules that types keep
//!
//! - `environ` is a builtin dictionary with native strings: [`Environ`]; arguments are positional: [`Application::call`].
//! - `wsgi.version`, `wsgi.url_scheme`, `wsgi.multithread`, `wsgi.multiprocess` and `wsgi.run_once` are there and have the right types: [`Environ::version`] and
//!   its neighbours.
//! - No `HTTP_CONTENT_TYPE`, `HTTP_CONTENT_LENGTH` and `HTTP_PROXY`: [`Variables`](crate::application::Variables) refuses them.
//! - `wsgi.input` and `wsgi.errors` have all methods, end at CONTENT_LENGTH and can't be closed: [`Input`] and [`Errors`].
//! - `start_response` returns a `write`, which takes bytes: [`StartResponse::start`] and [`Write::write`](crate::application::Write::write). It sends nothing: the head can
//!   only be picked up by the driver.
//! - Status and headers are strings and a list of pairs: [`Status`](crate::application::Status) and [`Headers`](crate::application::Headers).
//! - `exc_info` is an error, and no reference to it is kept: [`StartResponse::restart`] takes [`Error`] by value.
//! - What is returned is an iterable of byte strings, and neither a string nor nothing: [`Body`]. Its `len()` is right: only
//!   [`Body::exact_len`] counts, which is computed.
//! - `close()` is called once only, and nothing asked of the body after it: [`Body::poll_close`] lets go of what it closed.
//! - An application can be called more than once: [`Application::call`] takes `&self`.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};

use bytes::Bytes;
use futures_core::Stream;

use crate::application::{
    Application, Body, Environ, Error, Errors, Event, Frame, Frames, Head, HeadError, Input, InputError, Source,
    StartError, StartResponse, Upgrade,
};
use crate::protocol::cgi::{self, FieldError};
use crate::protocol::fastcgi::Role;

/// Watches an application, and the server that calls it, for breaches of PEP 3333.
///
/// A breach is an error that names the rule: before the head it is answered with 500, afterwards the response is cut. Breaches of what
/// an application or server only *should* do, and those that come when there is nothing left to fail, are reported: as a line to the
/// request's [`Errors`], or to [`Validate::report_to`].
pub fn validate<A: Application>(application: A) -> Validate<A> {
    Validate { application, server_rules: ServerRules::default(), only_report: false, report: None }
}

/// See [`validate`].
pub struct Validate<A> {
    application: A,
    server_rules: ServerRules,
    only_report: bool,
    report: Option<Report>,
}

type Report = Arc<dyn Fn(&Breach) + Send + Sync>;

/// How strict the rules are about variables that are not the gateway's own.
///
/// A FastCGI or CGI gateway plays dumb: it hands on what the web server in front says. Debian's nginx says an empty SERVER_NAME where its
/// configuration has no `server_name`, and a gateway that made one up, say of the Host header, would have a client's word pass for the server's.
/// So it is let through, and here it is reported instead of being failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ServerRules {
    /// Lenient behind `fastcgi` and `cgi`, strict else.
    #[default]
    ByGateway,
    /// An empty SERVER_NAME is a breach.
    Strict,
    /// An empty SERVER_NAME is reported only.
    Lenient,
}

impl<A> Validate<A> {
    /// Only reports, and never fails.
    #[must_use]
    pub fn only_report(self) -> Self {
        Self { only_report: true, ..self }
    }

    /// Has breaches reported there instead of to the request's [`Errors`].
    #[must_use]
    pub fn report_to(self, report: impl Fn(&Breach) + Send + Sync + 'static) -> Self {
        Self { report: Some(Arc::new(report)), ..self }
    }

    /// See [`ServerRules`].
    #[must_use]
    pub fn server_rules(self, server_rules: ServerRules) -> Self {
        Self { server_rules, ..self }
    }
}

/// A rule that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule} (PEP 3333, \"{}\"): {detail}", .rule.section())]
pub struct Breach {
    /// The rule.
    pub rule: Rule,
    /// What was expected and what came.
    pub detail: String,
}

/// Whose the fault is when a rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The application's.
    Application,
    /// The server's, gateway's or middleware's further out.
    Server,
}

/// The rules; the head of this file says what each asks. Displayed by name, in lower case with hyphens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the tables at the head of the file say what each asks")]
pub enum Rule {
    StartResponseCalled,
    StartResponseOnce,
    ExcInfoPropagated,
    StatusForm,
    StatusFinal,
    HeaderName,
    HeaderValue,
    HopByHop,
    ContentLengthForm,
    ContentType,
    ContentHeaders,
    ContentLengthExceeded,
    ContentLengthUnmet,
    NoBody,
    NoBodyForHead,
    WriteBeforeIteration,
    WriteAfterEnd,
    TrailersLast,
    InputAfterEnd,
    RequestMethod,
    ServerName,
    ServerPort,
    ServerProtocol,
    ScriptName,
    PathInfo,
    PathPresent,
    ContentLengthDigits,
    InputLength,
    VariableName,
    IterateAfterEnd,
    CloseCalled,
}

impl Rule {
    /// All rules, those of the application first.
    pub const ALL: [Self; 31] = [
        Self::StartResponseCalled,
        Self::StartResponseOnce,
        Self::ExcInfoPropagated,
        Self::StatusForm,
        Self::StatusFinal,
        Self::HeaderName,
        Self::HeaderValue,
        Self::HopByHop,
        Self::ContentLengthForm,
        Self::ContentType,
        Self::ContentHeaders,
        Self::ContentLengthExceeded,
        Self::ContentLengthUnmet,
        Self::NoBody,
        Self::NoBodyForHead,
        Self::WriteBeforeIteration,
        Self::WriteAfterEnd,
        Self::TrailersLast,
        Self::InputAfterEnd,
        Self::RequestMethod,
        Self::ServerName,
        Self::ServerPort,
        Self::ServerProtocol,
        Self::ScriptName,
        Self::PathInfo,
        Self::PathPresent,
        Self::ContentLengthDigits,
        Self::InputLength,
        Self::VariableName,
        Self::IterateAfterEnd,
        Self::CloseCalled,
    ];

    /// Its name, such as `start-response-once`.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// The section of PEP 3333 that it comes from.
    pub fn section(self) -> &'static str {
        self.entry().1
    }

    /// Who can break it.
    pub fn side(self) -> Side {
        // `Rule::ALL` has them in this order.
        if (self as u8) < Self::RequestMethod as u8 { Side::Application } else { Side::Server }
    }

    /// Whether it is a *must*: a breach of a *should* is reported and nothing else.
    pub fn is_must(self) -> bool {
        !matches!(self, Self::ContentHeaders | Self::NoBodyForHead | Self::InputAfterEnd)
    }

    fn entry(self) -> (&'static str, &'static str) {
        const START_RESPONSE: &str = "The start_response() Callable";
        const DETAILS: &str = "Specification Details";
        const LENGTH: &str = "Handling the Content-Length Header";
        const WRITE: &str = "The write() Callable";
        const STREAMS: &str = "Input and Error Streams";
        const VARIABLES: &str = "environ Variables";
        const HTTP: &str = "Other HTTP Features";
        match self {
            Self::StartResponseCalled => ("start-response-called", DETAILS),
            Self::StartResponseOnce => ("start-response-once", START_RESPONSE),
            Self::ExcInfoPropagated => ("exc-info-propagated", START_RESPONSE),
            Self::StatusForm => ("status-form", START_RESPONSE),
            Self::StatusFinal => ("status-final", HTTP),
            Self::HeaderName => ("header-name", START_RESPONSE),
            Self::HeaderValue => ("header-value", START_RESPONSE),
            Self::HopByHop => ("hop-by-hop", HTTP),
            Self::ContentLengthForm => ("content-length-form", LENGTH),
            Self::ContentType => ("content-type", HTTP),
            Self::ContentHeaders => ("content-headers", HTTP),
            Self::ContentLengthExceeded => ("content-length-exceeded", LENGTH),
            Self::ContentLengthUnmet => ("content-length-unmet", LENGTH),
            Self::NoBody => ("no-body", HTTP),
            Self::NoBodyForHead => ("no-body-for-head", HTTP),
            Self::WriteBeforeIteration => ("write-before-iteration", WRITE),
            Self::WriteAfterEnd => ("write-after-end", WRITE),
            Self::TrailersLast => ("trailers-last", HTTP),
            Self::InputAfterEnd => ("input-after-end", STREAMS),
            Self::RequestMethod => ("request-method", VARIABLES),
            Self::ServerName => ("server-name", VARIABLES),
            Self::ServerPort => ("server-port", VARIABLES),
            Self::ServerProtocol => ("server-protocol", VARIABLES),
            Self::ScriptName => ("script-name", VARIABLES),
            Self::PathInfo => ("path-info", VARIABLES),
            Self::PathPresent => ("path-present", VARIABLES),
            Self::ContentLengthDigits => ("content-length-digits", VARIABLES),
            Self::InputLength => ("input-length", STREAMS),
            Self::VariableName => ("variable-name", VARIABLES),
            Self::IterateAfterEnd => ("iterate-after-end", DETAILS),
            Self::CloseCalled => ("close-called", DETAILS),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl<A: Application> Application for Validate<A> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let watch = Arc::new(Watch {
            only_report: self.only_report,
            report: self.report.clone(),
            errors: environ.errors(),
            is_head: environ.method() == b"HEAD",
            upgrade: environ.extensions().get::<Upgrade>().cloned(),
            seen: Mutex::default(),
        });
        for (rule, detail) in server_breaches(&mut environ) {
            if rule == Rule::ServerName && self.is_lenient(&environ) {
                watch.report(&Breach { rule, detail });
            } else {
                watch.breach(rule, detail);
            }
        }
        watch.outcome()?;
        let remaining = environ.input().remaining();
        if remaining != Some(0) {
            let input = WatchedInput { input: environ.take_input(), watch: watch.clone() };
            environ = environ.with_input(Input::from_source(input, remaining));
        }
        let observer = watch.clone();
        let start_response = start_response.observe(move |event| observer.observe(&event));
        match self.application.call(environ, start_response).await {
            Ok(body) => {
                watch.seen().phase = Phase::Iterating;
                Ok(Body::frames(WatchedBody { body, watch, close_called: false }))
            }
            Err(error) => {
                watch.seen().phase = Phase::Ended;
                // The rule's name says more than what the application made of the breach.
                watch.outcome()?;
                Err(error)
            }
        }
    }
}

impl<A> Validate<A> {
    fn is_lenient(&self, environ: &Environ) -> bool {
        match self.server_rules {
            ServerRules::ByGateway => matches!(environ.server().gateway, "fastcgi" | "cgi"),
            ServerRules::Strict => false,
            ServerRules::Lenient => true,
        }
    }
}

impl<A> fmt::Debug for Validate<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validate")
            .field("server_rules", &self.server_rules)
            .field("only_report", &self.only_report)
            .finish_non_exhaustive()
    }
}

/// What the server did wrong before the application is called.
fn server_breaches(environ: &mut Environ) -> Vec<(Rule, String)> {
    let remaining = environ.input().remaining();
    let mut breaches = Vec::new();
    let mut expect = |kept: bool, rule: Rule, expected: &str, got: Option<&[u8]>| {
        if !kept {
            let got = got.map_or("nothing".into(), |got| format!("\"{}\"", got[..got.len().min(64)].escape_ascii()));
            breaches.push((rule, format!("expected {expected}, got {got}")));
        }
    };
    let value = |name: &str| environ.get(name).unwrap_or_default();
    let is_digits = |value: &[u8]| value.iter().all(u8::is_ascii_digit);
    let parsed = |value: &[u8]| std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());

    let method = environ.method();
    let is_token = cgi::check_field(method, b"").is_ok();
    expect(is_token, Rule::RequestMethod, "a token in REQUEST_METHOD", environ.get("REQUEST_METHOD"));
    let name = value("SERVER_NAME");
    expect(!name.is_empty(), Rule::ServerName, "a name in SERVER_NAME", environ.get("SERVER_NAME"));
    let port = value("SERVER_PORT");
    let is_port = is_digits(port) && parsed(port).is_some_and(|port| port <= 65535);
    expect(is_port, Rule::ServerPort, "a number up to 65535 in SERVER_PORT", environ.get("SERVER_PORT"));
    let is_protocol = matches!(environ.meta().server_protocol(), Ok(Some(_)));
    let protocol = environ.get("SERVER_PROTOCOL");
    expect(is_protocol, Rule::ServerProtocol, "a version such as HTTP/1.1 in SERVER_PROTOCOL", protocol);
    let (script_name, path_info) = (environ.script_name(), environ.path_info());
    let is_script_name = script_name.is_empty() || (script_name.starts_with(b"/") && script_name != b"/");
    expect(is_script_name, Rule::ScriptName, "nothing or a path longer than / in SCRIPT_NAME", Some(script_name));
    let is_path_info = path_info.is_empty() || path_info.starts_with(b"/");
    expect(is_path_info, Rule::PathInfo, "nothing or a path in PATH_INFO", Some(path_info));
    let may_lack_path = matches!(method, b"OPTIONS" | b"CONNECT") || environ.role() == Role::Authorizer;
    let has_path = !script_name.is_empty() || !path_info.is_empty();
    expect(has_path || may_lack_path, Rule::PathPresent, "a path in SCRIPT_NAME or PATH_INFO", None);
    let length = value("CONTENT_LENGTH");
    let is_length = length.is_empty() || (is_digits(length) && parsed(length).is_some());
    expect(is_length, Rule::ContentLengthDigits, "nothing or a number in CONTENT_LENGTH", Some(length));
    if let (Some(length), Some(remaining @ 1..)) = (parsed(length), remaining) {
        let got = remaining.to_string();
        expect(length == remaining, Rule::InputLength, &format!("an input of {length} bytes"), Some(got.as_bytes()));
    }
    for (name, value) in environ.variables().pairs().iter() {
        let is_kept = cgi::is_environment_name(name) && cgi::is_environment_value(value);
        expect(is_kept, Rule::VariableName, "a variable without = in its name and without NUL", Some(name));
    }
    breaches
}

/// What is watched of one call, shared by all that the application has in its hands.
struct Watch {
    only_report: bool,
    report: Option<Report>,
    errors: Errors,
    is_head: bool,
    upgrade: Option<Upgrade>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    phase: Phase,
    head: Option<SeenHead>,
    /// Bytes written and returned.
    given: u64,
    /// A non-empty piece was returned.
    returned_data: bool,
    trailers: bool,
    /// The thread on which the body is being asked for a frame.
    polling: Option<ThreadId>,
    /// The application was given its `exc_info` back and owes an error.
    owes_error: bool,
    /// The first breach that is to fail the response, until it has.
    breach: Option<Breach>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Calling,
    Iterating,
    /// At its end, be it whole or not.
    Ended,
}

struct SeenHead {
    status: u16,
    length: Option<u64>,
    has_type: bool,
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a breach: to fail the response by, if it may.
    fn breach(&self, rule: Rule, detail: impl Into<String>) {
        let breach = Breach { rule, detail: detail.into() };
        let mut seen = self.seen();
        if self.only_report || !rule.is_must() || seen.phase == Phase::Ended {
            drop(seen);
            self.report(&breach);
        } else {
            seen.breach.get_or_insert(breach);
        }
    }

    fn report(&self, breach: &Breach) {
        match &self.report {
            Some(report) => report(breach),
            None => self.errors.line(breach),
        }
    }

    /// Fails by the breach that was noted.
    fn outcome(&self) -> Result<(), Error> {
        match self.seen().breach.take() {
            Some(breach) => Err(breach.into()),
            None => Ok(()),
        }
    }

    fn observe(&self, event: &Event<'_>) -> Result<(), Error> {
        match event {
            Event::Head { head, .. } => {
                self.head(head);
                // Refused at the call, as PEP 3333 asks. It stays noted, in case the application does not pass it on.
                self.seen().breach.clone().map_or(Ok(()), |breach| Err(breach.into()))
            }
            Event::Refused { error, exc_info } => {
                match error.downcast_ref::<StartError>() {
                    Some(StartError::Head(head)) => self.breach(rule_of(head), head.to_string()),
                    Some(again @ StartError::Again) => self.breach(Rule::StartResponseOnce, again.to_string()),
                    Some(_) => {}
                    None => self.seen().owes_error |= exc_info,
                }
                Ok(())
            }
            Event::Write { len, refused } => {
                let (phase, in_body) = {
                    let seen = self.seen();
                    (seen.phase, seen.returned_data || seen.polling == Some(thread::current().id()))
                };
                match (refused, phase) {
                    (true, Phase::Ended) => {
                        self.breach(Rule::WriteAfterEnd, format!("{len} bytes were written after the end"));
                    }
                    // The client left: no fault of the application's.
                    (true, _) => {}
                    (false, _) => {
                        if phase == Phase::Iterating && in_body {
                            let detail = format!("{len} bytes were written while the body was iterated");
                            self.breach(Rule::WriteBeforeIteration, detail);
                        }
                        self.data(*len as u64);
                    }
                }
                Ok(())
            }
        }
    }

    fn head(&self, head: &Head) {
        let status = head.status.code();
        let switches = status == 101 && self.upgrade.as_ref().is_some_and(|upgrade| upgrade.accepted().is_some());
        if status < 200 && !switches {
            self.breach(Rule::StatusFinal, format!("expected a status of 200 or more, got {status}"));
        }
        for (name, value) in head.headers.iter() {
            if value.iter().any(u8::is_ascii_control) {
                let (name, value) = (name.escape_ascii(), value.escape_ascii());
                self.breach(Rule::HeaderValue, format!("expected no control characters in {name}, got \"{value}\""));
            }
        }
        // What comes behind a 101 is no body that could have a type.
        let has_type = switches || head.headers.contains("Content-Type");
        if has_type && matches!(status, 204 | 304) {
            self.breach(Rule::ContentHeaders, format!("expected no Content-Type with {status}"));
        }
        if status == 204 && head.headers.contains("Content-Length") {
            self.breach(Rule::ContentHeaders, "expected no Content-Length with 204");
        }
        let length = head.content_length().ok().flatten();
        let mut seen = self.seen();
        seen.head = Some(SeenHead { status, length, has_type });
        // A head that replaces another has dropped what was written for it.
        seen.given = 0;
    }

    /// Counts data, written or returned.
    fn data(&self, len: u64) {
        let mut seen = self.seen();
        let before = seen.given;
        seen.given += len;
        let given = seen.given;
        let broken = match &seen.head {
            None => Some((Rule::StartResponseCalled, format!("{len} bytes came before start_response was called"))),
            Some(SeenHead { status: status @ (204 | 304), .. }) => {
                Some((Rule::NoBody, format!("expected no data with {status}, got {len} bytes")))
            }
            Some(_) if self.is_head => {
                (before == 0).then(|| (Rule::NoBodyForHead, format!("expected no data for HEAD, got {len} bytes")))
            }
            Some(SeenHead { length: Some(length), .. }) if given > *length => {
                let detail = format!("expected {length} bytes, as Content-Length says, got {given}");
                (before <= *length).then_some((Rule::ContentLengthExceeded, detail))
            }
            Some(SeenHead { has_type: false, .. }) if before == 0 => {
                Some((Rule::ContentType, format!("expected a Content-Type for the body, got none before {len} bytes")))
            }
            Some(_) => None,
        };
        drop(seen);
        if let Some((rule, detail)) = broken {
            self.breach(rule, detail);
        }
    }

    /// What a frame, or the end, of the body breaks.
    fn frame(&self, frame: Option<&Frame>) {
        if std::mem::take(&mut self.seen().owes_error) {
            self.breach(Rule::ExcInfoPropagated, "the application went on after start_response gave its error back");
        }
        match frame {
            Some(Frame::Data(data)) if data.is_empty() => {}
            Some(Frame::Data(data)) => self.returned(data.len() as u64),
            Some(Frame::File(range)) => self.returned(range.len),
            Some(Frame::Trailers(_)) => self.seen().trailers = true,
            Some(Frame::Flush) => {}
            None => self.end(),
        }
    }

    fn returned(&self, len: u64) {
        if self.seen().trailers {
            self.breach(Rule::TrailersLast, format!("{len} bytes came after the trailers"));
        }
        self.data(len);
        self.seen().returned_data = true;
    }

    fn end(&self) {
        let seen = self.seen();
        let broken = match &seen.head {
            None => Some((Rule::StartResponseCalled, "the body ended before start_response was called".to_owned())),
            Some(SeenHead { length: Some(length), status, .. })
                if seen.given < *length && !self.is_head && !matches!(status, 204 | 304) =>
            {
                let detail = format!("expected {length} bytes, as Content-Length says, got {}", seen.given);
                Some((Rule::ContentLengthUnmet, detail))
            }
            Some(_) => None,
        };
        drop(seen);
        if let Some((rule, detail)) = broken {
            self.breach(rule, detail);
        }
    }
}

fn rule_of(error: &HeadError) -> Rule {
    match error {
        HeadError::Field(FieldError::InvalidName { .. }) => Rule::HeaderName,
        HeadError::Field(FieldError::ForbiddenByte { .. }) => Rule::HeaderValue,
        HeadError::Field(FieldError::Reserved { .. }) | HeadError::HopByHop(_) => Rule::HopByHop,
        HeadError::ContentLength(_) => Rule::ContentLengthForm,
        HeadError::Status(_) | HeadError::Field(_) => Rule::StatusForm,
    }
}

/// The body between application and server.
struct WatchedBody {
    body: Body,
    watch: Arc<Watch>,
    /// It need not have ended: the server may have a limit for it.
    close_called: bool,
}

impl Frames for WatchedBody {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let Self { body, watch, .. } = &mut *self;
        if watch.seen().phase == Phase::Ended {
            watch.breach(Rule::IterateAfterEnd, "the server asked for more after the end of the body");
            return Poll::Ready(None);
        }
        let polled = match watch.outcome() {
            Err(breach) => Poll::Ready(Some(Err(breach))),
            Ok(()) => {
                watch.seen().polling = Some(thread::current().id());
                let polled = body.poll_frame(cx);
                watch.seen().polling = None;
                match &polled {
                    Poll::Ready(Some(Ok(frame))) => watch.frame(Some(frame)),
                    Poll::Ready(None) => watch.frame(None),
                    Poll::Ready(Some(Err(_))) | Poll::Pending => {}
                }
                // Also where the application has its own error, or has nothing yet: it may have written.
                match watch.outcome() {
                    Err(breach) => Poll::Ready(Some(Err(breach))),
                    Ok(()) => polled,
                }
            }
        };
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            watch.seen().phase = Phase::Ended;
        }
        polled
    }

    fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.close_called = true;
        self.body.poll_close(cx)
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if !self.close_called {
            self.watch.report(&Breach {
                rule: Rule::CloseCalled,
                detail: "the server dropped the body without closing it".into(),
            });
        }
    }
}

/// The request's body between server and application.
struct WatchedInput {
    input: Input,
    watch: Arc<Watch>,
}

impl Source for WatchedInput {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        if self.watch.seen().phase == Phase::Ended {
            self.watch.breach(Rule::InputAfterEnd, "the request's body was read after the response had ended");
        }
        Pin::new(&mut self.input).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::future::poll_fn;

    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;
    use crate::application::driver::call;
    use crate::application::{AnyApplication, Headers, Server, Variables, Write};
    use crate::protocol::Pairs;

    const TYPE: (&str, &str) = ("Content-Type", "text/plain");

    /// An application that starts like this and then returns that body.
    fn answers<I>(status: &'static str, headers: &[(&'static str, &'static str)], pieces: I) -> AnyApplication
    where
        I: IntoIterator<Item = &'static str, IntoIter: Send> + Clone + Send + Sync + 'static,
    {
        let headers = Headers::from(headers);
        AnyApplication::new(move |_: Environ, start_response: StartResponse| {
            let (headers, pieces) = (headers.clone(), pieces.clone());
            async move {
                start_response.start(status, headers)?;
                Ok(Body::iter(pieces))
            }
        })
    }

    /// What an application does with what it was given, as a body of one step.
    fn steps(
        step: impl Fn(StartResponse, &mut Option<Write>) -> Result<&'static str, Error> + Send + Sync + 'static,
    ) -> AnyApplication {
        let step = Arc::new(step);
        AnyApplication::new(move |_: Environ, start_response: StartResponse| {
            let (step, mut write) = (step.clone(), None);
            async move {
                let mut count = 0;
                Ok(Body::iter(std::iter::from_fn(move || {
                    count += 1;
                    (count <= 3).then(|| step(start_response.clone(), &mut write))
                })))
            }
        })
    }

    fn late() -> Error {
        Error::new("the application's own")
    }

    /// For each rule of the application an application that breaks it, by a name.
    fn offenders() -> Vec<(Rule, AnyApplication)> {
        vec![
            (Rule::StartResponseCalled, AnyApplication::new(async |_: Environ, _: StartResponse| Ok("data"))),
            (Rule::StartResponseCalled, AnyApplication::new(async |_: Environ, _: StartResponse| Ok(()))),
            (
                Rule::StartResponseOnce,
                AnyApplication::new(async |_: Environ, start_response: StartResponse| {
                    start_response.start("200 OK", [TYPE])?;
                    let _ = start_response.start("500 Oops", [TYPE]);
                    Ok("data")
                }),
            ),
            (
                Rule::ExcInfoPropagated,
                steps(|start_response, _| {
                    if start_response.head_sent() {
                        let _ = start_response.restart("500 Oops", [TYPE], late());
                    } else {
                        start_response.start("200 OK", [TYPE])?;
                    }
                    Ok("data")
                }),
            ),
            (Rule::StatusForm, answers("200", &[TYPE, ("X", "a")], ["data"])),
            (Rule::StatusForm, answers("OK", &[TYPE], ["data"])),
            (Rule::StatusForm, answers("200 OK\r\n", &[TYPE], ["data"])),
            (Rule::StatusFinal, answers("100 Continue", &[], [])),
            (Rule::HeaderName, answers("200 OK", &[TYPE, ("X:", "a")], ["data"])),
            (Rule::HeaderValue, answers("200 OK", &[TYPE, ("X", "a\r\nY: b")], ["data"])),
            (Rule::HeaderValue, answers("200 OK", &[TYPE, ("X", "a\tb")], ["data"])),
            (Rule::HopByHop, answers("200 OK", &[TYPE, ("Connection", "close")], ["data"])),
            (Rule::HopByHop, answers("200 OK", &[TYPE, ("Transfer-Encoding", "chunked")], ["data"])),
            (Rule::HopByHop, answers("200 OK", &[TYPE, ("Status", "404")], ["data"])),
            (Rule::ContentLengthForm, answers("200 OK", &[TYPE, ("Content-Length", "four")], ["data"])),
            (Rule::ContentType, answers("200 OK", &[], ["", "data"])),
            (Rule::ContentHeaders, answers("204 No Content", &[TYPE], [])),
            (Rule::ContentHeaders, answers("304 Not Modified", &[TYPE], [])),
            (Rule::ContentLengthExceeded, answers("200 OK", &[TYPE, ("Content-Length", "3")], ["da", "ta"])),
            (
                Rule::ContentLengthExceeded,
                AnyApplication::new(async |_: Environ, start_response: StartResponse| {
                    let mut write = start_response.start("200 OK", [TYPE, ("Content-Length", "5")])?;
                    write.write("data").await?;
                    Ok("data")
                }),
            ),
            (Rule::ContentLengthUnmet, answers("200 OK", &[TYPE, ("Content-Length", "5")], ["da", "ta"])),
            (Rule::NoBody, answers("204 No Content", &[], ["data"])),
            (Rule::NoBody, answers("304 Not Modified", &[("Content-Length", "4")], ["data"])),
            (
                Rule::WriteBeforeIteration,
                steps(|start_response, write| {
                    match write {
                        None => *write = Some(start_response.start("200 OK", [TYPE])?),
                        Some(write) => write.write_blocking("written")?,
                    }
                    Ok("data")
                }),
            ),
            (
                Rule::TrailersLast,
                AnyApplication::new(async |_: Environ, start_response: StartResponse| {
                    start_response.start("200 OK", [TYPE])?;
                    let frames = [Frame::Data("a".into()), Frame::Trailers(Headers::new()), Frame::Data("b".into())];
                    Ok(Body::frames(Listed(frames.into())))
                }),
            ),
        ]
    }

    struct Listed(std::collections::VecDeque<Frame>);

    impl Frames for Listed {
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    type Told = Arc<Mutex<Vec<Rule>>>;

    fn told<A: Application>(validate: Validate<A>) -> (Validate<A>, Told) {
        let told = Told::default();
        let list = told.clone();
        (validate.report_to(move |breach| list.lock().unwrap().push(breach.rule)), told)
    }

    async fn collect<A: Application>(application: A, environ: Environ) -> Result<Bytes, Error> {
        let mut response = call(application, environ).await?;
        let collected = response.body.read_to_end(1 << 20).await;
        response.body.close().await;
        collected
    }

    #[tokio::test]
    async fn each_rule_of_the_application_is_named_when_it_is_broken() {
        for (rule, app) in offenders() {
            assert_eq!(rule.side(), Side::Application);
            let (validated, told) = told(validate(app));
            let result = collect(validated, request("/")).await;
            if rule.is_must() && rule != Rule::StatusForm {
                let error = result.expect_err(rule.name());
                assert_eq!(error.downcast_ref::<Breach>().map(|breach| breach.rule), Some(rule), "{error}");
                assert_eq!(error.status(), 500);
                assert_eq!(*told.lock().unwrap(), [], "{rule}");
            } else if !rule.is_must() {
                assert!(result.is_ok(), "{rule}");
                assert_eq!(*told.lock().unwrap(), [rule]);
            }
        }
    }

    #[tokio::test]
    async fn a_validator_that_only_reports_changes_nothing() {
        for (rule, app) in offenders() {
            let plain = collect(app.clone(), request("/")).await.map_err(|error| error.to_string());
            let (validated, told) = told(validate(app).only_report());
            let watched = collect(validated, request("/")).await.map_err(|error| error.to_string());
            assert_eq!(plain, watched, "{rule}");
            if rule != Rule::StatusForm {
                // One may be broken again and again.
                let mut told = told.lock().unwrap();
                told.dedup();
                assert_eq!(*told, [rule]);
            }
        }
    }

    #[tokio::test]
    async fn a_status_without_a_reason_is_understood() {
        // PEP 3333 wants one; `Status` supplies the usual one, so that nothing is left to break.
        assert_eq!(collect(validate(answers("200", &[TYPE], ["data"])), request("/")).await.unwrap(), "data");
        for status in ["OK", "200 OK\r\n", "20 OK", "2000 OK"] {
            let error = collect(validate(answers(status, &[TYPE], ["data"])), request("/")).await.unwrap_err();
            assert_eq!(error.downcast_ref::<Breach>().unwrap().rule, Rule::StatusForm);
        }
    }

    #[tokio::test]
    async fn a_body_for_head_is_reported_and_no_more() {
        let mut environ = request("/");
        environ.set("REQUEST_METHOD", "HEAD").unwrap();
        let (validated, told) = told(validate(answers("200 OK", &[TYPE], ["da", "ta"])));
        assert_eq!(collect(validated, environ).await.unwrap(), "");
        assert_eq!(*told.lock().unwrap(), [Rule::NoBodyForHead]);
    }

    #[tokio::test]
    async fn write_after_end_and_input_after_end_are_reported() {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let app = move |mut environ: Environ, start_response: StartResponse| {
            let keep = keep.clone();
            async move {
                let write = start_response.start("200 OK", [TYPE])?;
                *keep.lock().unwrap() = Some((write, environ.take_input()));
                Ok("data")
            }
        };
        let (validated, told) = told(validate(app));
        let mut environ = request("/").with_input(Input::from_bytes("body"));
        environ.set("CONTENT_LENGTH", "4").unwrap();
        assert_eq!(collect(validated, environ).await.unwrap(), "data");
        let (mut write, mut input) = kept.lock().unwrap().take().unwrap();
        write.write("late").await.unwrap_err();
        assert_eq!(input.read(9).await.unwrap(), "body");
        assert_eq!(*told.lock().unwrap(), [Rule::WriteAfterEnd, Rule::InputAfterEnd]);
    }

    #[tokio::test]
    async fn each_rule_of_the_server_s_variables_is_named_when_it_is_broken() {
        for (rule, name, value) in [
            (Rule::RequestMethod, "REQUEST_METHOD", ""),
            (Rule::RequestMethod, "REQUEST_METHOD", "GET /"),
            (Rule::ServerName, "SERVER_NAME", ""),
            (Rule::ServerPort, "SERVER_PORT", ""),
            (Rule::ServerPort, "SERVER_PORT", "http"),
            (Rule::ServerPort, "SERVER_PORT", "65536"),
            (Rule::ServerProtocol, "SERVER_PROTOCOL", ""),
            (Rule::ServerProtocol, "SERVER_PROTOCOL", "HTTP 1.1"),
            (Rule::ScriptName, "SCRIPT_NAME", "/"),
            (Rule::ScriptName, "SCRIPT_NAME", "app"),
            (Rule::PathInfo, "PATH_INFO", "path"),
            (Rule::PathPresent, "PATH_INFO", ""),
            (Rule::ContentLengthDigits, "CONTENT_LENGTH", "-1"),
            (Rule::ContentLengthDigits, "CONTENT_LENGTH", "99999999999999999999"),
            (Rule::InputLength, "CONTENT_LENGTH", "5"),
        ] {
            assert_eq!(rule.side(), Side::Server);
            let mut environ = request("/").with_input(Input::from_bytes("body"));
            environ.set(name, value).unwrap();
            let error = collect(validate(answers("200 OK", &[TYPE], ["data"])), environ).await.unwrap_err();
            assert_eq!(error.downcast_ref::<Breach>().unwrap().rule, rule, "{name}={value}: {error}");
        }
        let mut pairs: Pairs = request("/").variables().pairs().iter().collect();
        pairs.push("A=B", "c");
        let error =
            collect(validate(answers("200 OK", &[TYPE], ["data"])), Environ::new(Variables::from_pairs(pairs))).await;
        assert_eq!(error.unwrap_err().downcast_ref::<Breach>().unwrap().rule, Rule::VariableName);
    }

    #[tokio::test]
    async fn nginx_s_empty_server_name_is_reported_behind_fastcgi_and_failed_elsewhere() {
        for (gateway, passes) in [("fastcgi", true), ("cgi", true), ("http", false)] {
            let server = Server { gateway, ..Server::default() };
            let mut environ = request("/").with_server(Arc::new(server));
            environ.set("SERVER_NAME", "").unwrap();
            let (validated, told) = told(validate(answers("200 OK", &[TYPE], ["data"])));
            assert_eq!(collect(validated, environ).await.is_ok(), passes, "{gateway}");
            assert_eq!(told.lock().unwrap().len(), usize::from(passes), "{gateway}");
        }
        let mut environ = request("/");
        environ.set("SERVER_NAME", "").unwrap();
        let lenient = validate(answers("200 OK", &[TYPE], ["data"])).server_rules(ServerRules::Lenient);
        assert_eq!(collect(lenient, environ).await.unwrap(), "data");
    }

    #[tokio::test]
    async fn a_server_that_iterates_after_the_end_or_does_not_close_once_is_reported() {
        // This test is the server.
        async fn body(validated: &impl Application) -> Body {
            let kept = Arc::new(Mutex::new(None));
            let keep = kept.clone();
            let starts = move |_: Environ, start_response: StartResponse| {
                *keep.lock().unwrap() = Some(start_response);
                std::future::ready(Ok(()))
            };
            let _ = call(starts, request("/")).await;
            let start_response = kept.lock().unwrap().take().unwrap();
            validated.call(request("/"), start_response).await.unwrap()
        }
        let app = async |_: Environ, _: StartResponse| Ok(());
        let (validated, told) = told(validate(app));
        drop(body(&validated).await);
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [Rule::CloseCalled]);

        let app = answers("200 OK", &[TYPE], []);
        let (validated, told) = super::tests::told(validate(app).only_report());
        let mut body = body(&validated).await;
        assert!(poll_fn(|cx| body.poll_frame(cx)).await.is_none());
        assert!(poll_fn(|cx| body.poll_frame(cx)).await.is_none());
        poll_fn(|cx| body.poll_close(cx)).await;
        drop(body);
        assert_eq!(*told.lock().unwrap(), [Rule::IterateAfterEnd]);
    }

    #[tokio::test]
    async fn all_forms_keep_all_rules_and_so_does_the_driver() {
        for (form, app) in forms() {
            let (validated, told) = told(validate(app));
            let (environ, closed) = counted_request("/a");
            assert_eq!(text_of(validated, environ).await, (200, "|/a".into()), "{form}");
            assert_eq!((closed.count(), told.lock().unwrap().len()), (1, 0), "{form}");
        }
    }

    #[tokio::test]
    async fn a_certain_length_stays_certain() {
        let app = async |_: Environ, start_response: StartResponse| {
            start_response.start("200 OK", [TYPE])?;
            Ok("data")
        };
        let response = call(validate(app), request("/")).await.unwrap();
        assert_eq!(response.head.headers.get("Content-Length"), Some(&b"4"[..]));
    }

    #[test]
    fn every_rule_has_a_name_of_its_own_that_the_file_s_head_lists() {
        let head = include_str!("validate.rs").lines().take_while(|line| line.starts_with("//!"));
        let head: Vec<_> = head.collect();
        let names: HashSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
        for name in names {
            assert!(head.iter().any(|line| line.starts_with(&format!("//! | `{name}`"))), "{name}");
        }
        let breach = Breach { rule: Rule::StatusForm, detail: "why".into() };
        assert_eq!(breach.to_string(), "status-form (PEP 3333, \"The start_response() Callable\"): why");
    }
}
