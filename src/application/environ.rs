//! `environ`: all that an application is told about a request.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::str::Utf8Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use http::Extensions;
use percent_encoding::AsciiSet;
use tokio_util::sync::CancellationToken;

use super::body::{Body, DEFAULT_BLOCK_SIZE, FileRange};
use super::errors::Errors;
use super::input::Input;
use super::local_redirect::LocalRedirects;
use crate::protocol::Pairs;
use crate::protocol::cgi::{self, MetaVariables, names};
use crate::protocol::fastcgi::Role;

/// What a path is not made of (RFC 3986 3.3).
pub(crate) const PATH: &AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// A decoded path as it is written in an address.
#[cfg(any(feature = "upstream-files", feature = "upstream-http"))]
pub(crate) fn encode_path(path: &[u8]) -> String {
    percent_encoding::percent_encode(path, PATH).collect()
}

/// The variables of a request, cheap to clone, and its input, which is not: [`Environ::without_input`] makes the copy for
/// sub-requests, retries and redirects.
///
/// Names and values are bytes. `HTTP_PROXY`, `HTTP_CONTENT_TYPE` and `HTTP_CONTENT_LENGTH` are never in it: the first would steer
/// HTTP clients (httpoxy), and PEP 3333 has no such keys as the other two.
pub struct Environ {
    facts: Arc<Facts>,
    input: Input,
    /// Boxed, since only a Filter has one.
    data: Option<Box<Input>>,
    local_redirects: Option<LocalRedirects>,
    extensions: Extensions,
}

/// What a gateway knows of a request when it comes: all of an environ that its copies share. Who changes it has a copy from then on.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) variables: Variables,
    pub(crate) server: Arc<Server>,
    pub(crate) role: Role,
    pub(crate) number: u32,
    pub(crate) request: Cancellation,
    pub(crate) errors: Errors,
}

impl Facts {
    /// See [`Environ::request_id`].
    pub(crate) fn request_id(&self) -> &str {
        self.request.shared.cancelling().id.get_or_init(|| {
            let brought = self.variables.get(b"HTTP_X_REQUEST_ID").filter(|id| {
                (1..=128).contains(&id.len())
                    && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+/=:".contains(byte))
            });
            match brought.and_then(|id| std::str::from_utf8(id).ok()) {
                Some(id) => id.into(),
                None => random_id().into(),
            }
        })
    }

    /// The server's log.
    pub(crate) fn errors(&self) -> &Errors {
        &self.errors
    }
}

/// 64 random bits in hexadecimal digits.
fn random_id() -> String {
    let bits = fastrand::u64(..);
    (0..16).rev().map(|digit| char::from(b"0123456789abcdef"[(bits >> (4 * digit)) as usize & 0xf])).collect()
}

impl From<Facts> for Environ {
    fn from(facts: Facts) -> Self {
        Arc::new(facts).into()
    }
}

impl From<Arc<Facts>> for Environ {
    fn from(facts: Arc<Facts>) -> Self {
        Self { facts, input: Input::empty(), data: None, local_redirects: None, extensions: Extensions::new() }
    }
}

/// What a gateway says about itself, the same for all requests of one connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Server {
    /// The gateway: `cgi`, `fastcgi` or `http`.
    pub gateway: &'static str,
    /// Counts the connections of this process from 1; 0 where there are none (CGI).
    pub connection: u64,
    /// Who is at the other end of the connection: the web server behind FastCGI, the client under HTTP.
    pub peer: Peer,
    /// Whether another thread of this process may call the application at the same time.
    pub multithread: bool,
    /// Whether another process may serve the same application at the same time.
    pub multiprocess: bool,
    /// Whether this process serves one request only.
    pub run_once: bool,
}

impl Server {
    fn unknown() -> Arc<Self> {
        static UNKNOWN: OnceLock<Arc<Server>> = OnceLock::new();
        UNKNOWN.get_or_init(Arc::default).clone()
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            gateway: "test",
            connection: 0,
            peer: Peer::Unknown,
            multithread: true,
            multiprocess: true,
            run_once: false,
        }
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// TCP.
    Ip(SocketAddr),
    /// A Unix socket, with the peer's credentials where the system gave them.
    Unix {
        /// The peer's user id.
        uid: Option<u32>,
        /// The peer's process id.
        pid: Option<i32>,
    },
    /// A pipe, a test, or anything else.
    Unknown,
}

impl Environ {
    /// An environ of these variables: no input, errors to standard error. Gateways and tests add what they have with the `with_…` functions.
    pub fn new(variables: Variables) -> Self {
        let (server, role) = (Server::unknown(), Role::Responder);
        let (request, errors) = (Cancellation::default(), Errors::default());
        Facts { variables, server, role, number: 0, request, errors }.into()
    }

    /// All that its copies share, for those who keep it when the environ is the application's.
    pub(crate) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// The value of a variable; `None` where it is not there.
    ///
    /// A repeated `HTTP_…` variable is one value, joined with commas (cookies with semicolons: RFC 3875 4.1.18); of any other the last one wins.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.facts.variables.get(name.as_ref())
    }

    /// The value of a variable as text.
    ///
    /// # Errors
    ///
    /// When it is there and no UTF-8: [`Environ::get`] gives the bytes.
    pub fn text(&self, name: impl AsRef<[u8]>) -> Result<Option<&str>, NotText> {
        let name = name.as_ref();
        self.get(name).map(|value| std::str::from_utf8(value).map_err(|error| NotText::new(name, error))).transpose()
    }

    /// The value of a request header, whatever the spelling of its name: `environ.header("accept-language")`.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut variable = Vec::with_capacity(name.len() + 5);
        cgi::variable_name(name.as_bytes(), &mut variable).then(|| self.get(&variable)).flatten()
    }

    /// The meta-variables of RFC 3875 section 4, with their types.
    pub fn meta<'a>(&'a self) -> MetaVariables<'a, impl Fn(&[u8]) -> Option<&'a [u8]> + 'a> {
        MetaVariables::new(|name| self.facts.variables.get(name))
    }

    /// REQUEST_METHOD, empty where it is missing.
    pub fn method(&self) -> &[u8] {
        self.get("REQUEST_METHOD").unwrap_or_default()
    }

    /// SCRIPT_NAME: the part of the path that led to the application.
    pub fn script_name(&self) -> &[u8] {
        self.get("SCRIPT_NAME").unwrap_or_default()
    }

    /// PATH_INFO: the part of the path that is the application's, decoded.
    pub fn path_info(&self) -> &[u8] {
        self.get("PATH_INFO").unwrap_or_default()
    }

    /// QUERY_STRING, empty where there is none.
    pub fn query_string(&self) -> &[u8] {
        self.get("QUERY_STRING").unwrap_or_default()
    }

    /// The address that the client asked for, put together as PEP 3333's "URL Reconstruction" has it, with the path encoded again.
    pub fn url(&self) -> String {
        let text = |name: &str| String::from_utf8_lossy(self.get(name).unwrap_or_default()).into_owned();
        let scheme = self.url_scheme();
        let mut url = format!("{scheme}://");
        match self.get("HTTP_HOST").filter(|host| !host.is_empty()) {
            Some(host) => url.push_str(&String::from_utf8_lossy(host)),
            None => {
                url.push_str(&text("SERVER_NAME"));
                let port = text("SERVER_PORT");
                let usual = if scheme == "https" { "443" } else { "80" };
                if !port.is_empty() && port != usual {
                    url.push(':');
                    url.push_str(&port);
                }
            }
        }
        self.push_path_and_query(&mut url);
        url
    }

    /// What stood in the request line: REQUEST_URI where the server says it, else the path, encoded again, and the query.
    pub fn target(&self) -> Cow<'_, [u8]> {
        match self.get("REQUEST_URI").filter(|target| !target.is_empty()) {
            Some(target) => target.into(),
            None => {
                let mut target = String::new();
                self.push_path_and_query(&mut target);
                target.into_bytes().into()
            }
        }
    }

    fn push_path_and_query(&self, url: &mut String) {
        for part in [self.script_name(), self.path_info()] {
            url.extend(percent_encoding::percent_encode(part, PATH));
        }
        if !self.query_string().is_empty() {
            url.push('?');
            url.push_str(&String::from_utf8_lossy(self.query_string()));
        }
    }

    /// All variables.
    pub fn variables(&self) -> &Variables {
        &self.facts.variables
    }

    /// The variables, to be changed. Copies of this environ keep theirs.
    pub fn variables_mut(&mut self) -> &mut Variables {
        &mut self.facts_mut().variables
    }

    /// Sets a variable, in the place of all of that name.
    ///
    /// # Errors
    ///
    /// See [`Variables::set`].
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), VariableError> {
        self.variables_mut().set(name, value)
    }

    /// `wsgi.input`: the request's body.
    pub fn input(&mut self) -> &mut Input {
        &mut self.input
    }

    /// The input itself, for handing on; no body is left here.
    pub fn take_input(&mut self) -> Input {
        std::mem::take(&mut self.input)
    }

    /// The second input of a FastCGI Filter: the file to be filtered (FastCGI 6.4). Its length and time are in the variables
    /// FCGI_DATA_LENGTH and FCGI_DATA_LAST_MOD.
    pub fn data(&mut self) -> Option<&mut Input> {
        self.data.as_deref_mut()
    }

    /// `wsgi.errors`: the server's log.
    pub fn errors(&self) -> Errors {
        self.facts.errors.clone()
    }

    /// `wsgi.version`.
    pub fn version(&self) -> (u8, u8) {
        (1, 0)
    }

    /// `wsgi.url_scheme`: `https` when HTTPS says so, else `http`.
    pub fn url_scheme(&self) -> &'static str {
        if self.meta().is_https() { "https" } else { "http" }
    }

    /// `wsgi.multithread`.
    pub fn multithread(&self) -> bool {
        self.facts.server.multithread
    }

    /// `wsgi.multiprocess`.
    pub fn multiprocess(&self) -> bool {
        self.facts.server.multiprocess
    }

    /// `wsgi.run_once`.
    pub fn run_once(&self) -> bool {
        self.facts.server.run_once
    }

    /// `wsgi.file_wrapper`: a body that is a file from where it stands to its end, sent the best way that the gateway has, in blocks of
    /// `block_size` bytes.
    ///
    /// # Errors
    ///
    /// When its length or position can't be found out.
    pub fn file_wrapper(&self, mut file: File, block_size: Option<usize>) -> std::io::Result<Body> {
        let offset = std::io::Seek::stream_position(&mut file)?;
        let len = file.metadata()?.len().saturating_sub(offset);
        let block_size = block_size.unwrap_or(DEFAULT_BLOCK_SIZE).max(1);
        Ok(FileRange { file: Arc::new(file), offset, len, block_size }.into())
    }

    /// What the gateway says about itself and the connection.
    pub fn server(&self) -> &Server {
        &self.facts.server
    }

    /// What is asked of the application: Responder, save where a FastCGI server wants an Authorizer or a Filter.
    pub fn role(&self) -> Role {
        self.facts.role
    }

    /// The number of the request on its connection: the FastCGI request id; 0 elsewhere.
    pub fn request_number(&self) -> u32 {
        self.facts.number
    }

    /// The name under which the logs speak of this request: X-Request-Id where the request brought a harmless one, else a random one.
    pub fn request_id(&self) -> &str {
        self.facts.request_id()
    }

    /// Cancelled when nobody waits for the answer any more: the client left, a limit ended the request, the server stops.
    pub fn cancellation(&self) -> CancellationToken {
        self.facts.request.token()
    }

    /// Where an upstream leaves a local redirect; `None` where nobody would run the request again.
    pub fn local_redirects(&self) -> Option<&LocalRedirects> {
        self.local_redirects.as_ref()
    }

    /// Says who runs the request again after a local redirect, or that nobody does. Copies of this environ keep theirs.
    pub fn set_local_redirects(&mut self, redirects: Option<LocalRedirects>) {
        self.local_redirects = redirects;
    }

    /// What middleware and applications tell each other, by type.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// The same, to be changed. Copies of this environ keep theirs.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// The same request without its body: for sub-requests, retries and redirects.
    #[must_use]
    pub fn without_input(&self) -> Self {
        Self {
            facts: self.facts.clone(),
            input: Input::empty(),
            data: None,
            local_redirects: self.local_redirects.clone(),
            extensions: self.extensions.clone(),
        }
    }

    /// The same with another input.
    #[must_use]
    pub fn with_input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// The same with the file that a Filter is to filter.
    #[must_use]
    pub fn with_data(mut self, data: Input) -> Self {
        self.data = Some(Box::new(data));
        self
    }

    /// The same with another log.
    #[must_use]
    pub fn with_errors(mut self, errors: Errors) -> Self {
        self.facts_mut().errors = errors;
        self
    }

    /// The same on that server. It is shared: one per connection will do.
    #[must_use]
    pub fn with_server(mut self, server: Arc<Server>) -> Self {
        self.facts_mut().server = server;
        self
    }

    /// The same as a request of its own: role, number on the connection, and what cancels it.
    #[must_use]
    pub fn with_request(mut self, role: Role, number: u32, cancellation: Cancellation) -> Self {
        let facts = self.facts_mut();
        (facts.role, facts.number, facts.request) = (role, number, cancellation);
        self
    }

    /// The same request with a [`Cancellation`] of its own, for middleware that gives an application up: it is cancelled with the
    /// request, and alone by whoever holds what comes back with it.
    #[must_use]
    pub fn with_own_cancellation(mut self) -> (Self, Cancellation) {
        // The id is chosen now, so that both speak of the request by one name.
        self.request_id();
        let cancellation = self.facts.request.child();
        self.facts_mut().request = cancellation.clone();
        (self, cancellation)
    }

    fn facts_mut(&mut self) -> &mut Facts {
        Arc::make_mut(&mut self.facts)
    }

    /// The same with the variables of this process behind the request's own, which win. No gateway does this by itself: the
    /// environment of a server is not its clients' business.
    #[must_use]
    pub fn with_process_environment(mut self) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let variables = self.variables_mut();
        for (name, value) in std::env::vars_os() {
            if variables.get(name.as_bytes()).is_none() {
                // A name that is refused, such as HTTP_PROXY, stays out here too.
                let _ = variables.set(name.as_bytes(), value.as_bytes());
            }
        }
        self
    }
}

impl fmt::Debug for Environ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environ")
            .field("variables", &self.facts.variables)
            .field("input", &self.input)
            .field("server", &self.facts.server)
            .finish_non_exhaustive()
    }
}

/// A variable that was expected to be text.
#[derive(Debug, thiserror::Error)]
#[error("expected UTF-8 in {name}")]
pub struct NotText {
    name: String,
    #[source]
    error: Utf8Error,
}

impl NotText {
    fn new(name: &[u8], error: Utf8Error) -> Self {
        Self { name: name.escape_ascii().to_string(), error }
    }
}

/// The variables as they came, in wire order, and looked up as [`Environ::get`] says.
///
/// This is the one place where an environ's variables are built, whichever gateway they come from.
#[derive(Clone, Default)]
pub struct Variables {
    pairs: Pairs,
    /// Until one of them is changed.
    known: Option<Known>,
    /// The values of repeated `HTTP_…` variables, joined when the first of them is asked for.
    joined: OnceLock<Vec<(Box<[u8]>, Box<[u8]>)>>,
}

/// Where the last of those lies that every request is asked for, found as all names are looked at anyway.
#[derive(Clone, Copy, Default)]
struct Known {
    request_method: Option<u32>,
    content_length: Option<u32>,
}

/// The lengths of the names that are looked for in every request, a bit for each: the forbidden ones and the known.
const LENGTHS: u64 = {
    let [proxy, content_type, content_length] = cgi::FORBIDDEN;
    1 << proxy.len()
        | 1 << content_type.len()
        | 1 << content_length.len()
        | 1 << names::REQUEST_METHOD.len()
        | 1 << names::CONTENT_LENGTH.len()
};

/// Why a variable can't be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VariableError {
    /// An empty name, or one with `=` or NUL, which no process environment can hold.
    #[error("expected a variable's name without = and NUL, got \"{0}\"")]
    Name(String),
    /// A value with NUL, which no process environment can hold.
    #[error("the value of {0} holds NUL")]
    Value(String),
    /// HTTP_PROXY, HTTP_CONTENT_TYPE or HTTP_CONTENT_LENGTH.
    #[error("{0} is never part of an environ")]
    Forbidden(String),
}

impl Variables {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// These variables, without those that can't be in an environ.
    pub fn from_pairs(mut pairs: Pairs) -> Self {
        let (mut known, mut is_any_forbidden) = (Known::default(), false);
        for (place, name) in pairs.of_lengths(LENGTHS) {
            let place = Some(place as u32);
            if name == names::REQUEST_METHOD.as_bytes() {
                known.request_method = place;
            } else if name == names::CONTENT_LENGTH.as_bytes() {
                known.content_length = place;
            } else {
                is_any_forbidden |= cgi::is_forbidden(name);
            }
        }
        if is_any_forbidden {
            pairs.retain(|name, _| !cgi::is_forbidden(name));
        }
        let is_known = !is_any_forbidden && u32::try_from(pairs.len()).is_ok();
        Self { pairs, known: is_known.then_some(known), joined: OnceLock::new() }
    }

    /// See [`Environ::get`].
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        if let Some(known) = self.known {
            if name == names::REQUEST_METHOD.as_bytes() {
                return self.pairs.value(known.request_method? as usize);
            }
            if name == names::CONTENT_LENGTH.as_bytes() {
                return self.pairs.value(known.content_length? as usize);
            }
        }
        let last = self.pairs.last(name)?;
        if name.starts_with(b"HTTP_") && self.pairs.count(name) > 1 {
            return self.joined().iter().find(|(other, _)| **other == *name).map(|(_, value)| &**value);
        }
        Some(last)
    }

    /// The pairs as they came: in wire order, repeated ones each for itself.
    pub fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    /// The same, for whoever has no more use of the variables.
    #[cfg_attr(not(feature = "fastcgi"), allow(dead_code, reason = "that gateway uses their memory again"))]
    pub(crate) fn into_pairs(self) -> Pairs {
        self.pairs
    }

    /// Each variable once, with the value that [`Environ::get`] gives, in the order of first appearance.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut seen = std::collections::HashSet::new();
        self.pairs.iter().filter_map(move |(name, _)| {
            if !seen.insert(name) {
                return None;
            }
            self.get(name).map(|value| (name, value))
        })
    }

    /// Sets a variable, in the place of all of that name.
    ///
    /// # Errors
    ///
    /// For a name that is empty, holds `=` or NUL, or can't be in an environ, and for a value with NUL.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), VariableError> {
        self.set_all(std::iter::once((name.as_ref(), value.as_ref())))
    }

    /// Sets several variables, each in the place of all of its name, in one pass over those that are there. Of a name that is given more than
    /// once all values are kept.
    ///
    /// # Errors
    ///
    /// As [`Variables::set`], for the first that can't be set; none is then.
    pub fn set_all<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        variables: impl Iterator<Item = (N, V)> + Clone,
    ) -> Result<(), VariableError> {
        for (name, value) in variables.clone() {
            let name = name.as_ref();
            if !cgi::is_environment_name(name) {
                return Err(VariableError::Name(name.escape_ascii().to_string()));
            }
            if cgi::is_forbidden(name) {
                return Err(VariableError::Forbidden(name.escape_ascii().to_string()));
            }
            if !cgi::is_environment_value(value.as_ref()) {
                return Err(VariableError::Value(name.escape_ascii().to_string()));
            }
        }
        self.remove_all(variables.clone().map(|(name, _)| name));
        for (name, value) in variables {
            if matches!(name.as_ref(), b"REQUEST_METHOD" | b"CONTENT_LENGTH") {
                self.known = None;
            }
            self.pairs.push(name, value);
        }
        Ok(())
    }

    /// Removes all variables of that name.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) {
        self.remove_all(std::iter::once(name.as_ref()));
    }

    fn remove_all<N: AsRef<[u8]>>(&mut self, names: impl Iterator<Item = N> + Clone) {
        self.joined = OnceLock::new();
        if self.pairs.remove_named(names) {
            // Places may have changed.
            self.known = None;
        }
    }

    /// As the environment of a process: no name twice, nothing that an environment can't hold.
    ///
    /// # Errors
    ///
    /// For the first variable with an empty name, `=` or NUL in its name, or NUL in its value.
    pub fn process_environment(&self) -> Result<Vec<(&[u8], &[u8])>, VariableError> {
        self.iter()
            .map(|(name, value)| match (cgi::is_environment_name(name), cgi::is_environment_value(value)) {
                (true, true) => Ok((name, value)),
                (false, _) => Err(VariableError::Name(name.escape_ascii().to_string())),
                (true, false) => Err(VariableError::Value(name.escape_ascii().to_string())),
            })
            .collect()
    }

    fn joined(&self) -> &[(Box<[u8]>, Box<[u8]>)] {
        self.joined.get_or_init(|| {
            let mut values: Vec<(&[u8], Cow<'_, [u8]>)> = Vec::new();
            let mut places = std::collections::HashMap::new();
            for (name, value) in self.pairs.iter().filter(|(name, _)| name.starts_with(b"HTTP_")) {
                match places.get(name) {
                    None => {
                        places.insert(name, values.len());
                        values.push((name, value.into()));
                    }
                    Some(place) => {
                        let joined = values[*place].1.to_mut();
                        joined.extend_from_slice(cgi::separator(name));
                        joined.extend_from_slice(value);
                    }
                }
            }
            // Only the values that are joined from several.
            let joined = values.into_iter().filter(|(_, value)| matches!(value, Cow::Owned(_)));
            joined.map(|(name, value)| (name.into(), value.into_owned().into())).collect()
        })
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self::from_pairs(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pairs.fmt(f)
    }
}

/// One request to its gateway, which pulls this when nobody waits for an answer any more. The token that applications see is made when the first
/// asks for it: most never do.
#[derive(Clone)]
pub struct Cancellation {
    shared: Arc<dyn Cancellable>,
}

/// What a gateway shares with a request's application, where a [`Cancellation`] is part of it.
pub(crate) trait Cancellable: Send + Sync {
    fn cancelling(&self) -> &Cancelling;
}

/// The state of a [`Cancellation`].
#[derive(Default)]
pub(crate) struct Cancelling {
    cancelled: AtomicBool,
    token: OnceLock<CancellationToken>,
    /// The request's id, here so that all copies of its environ share one; see [`Environ::request_id`].
    id: OnceLock<Box<str>>,
    /// Its cancellation is one of this, too.
    parent: Option<Cancellation>,
}

impl Cancelling {
    /// Whether anybody asked for anything of it, or changed it.
    #[cfg_attr(
        not(feature = "fastcgi"),
        allow(dead_code, reason = "that gateway uses those again that nobody touched")
    )]
    pub(crate) fn is_touched(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst) || self.token.get().is_some() || self.id.get().is_some()
    }

    /// See [`Cancellation::cancel`].
    pub(crate) fn cancel(&self) {
        // Flag first, then token; `token` reads in the other order: one of the two sees the other.
        self.cancelled.store(true, Ordering::SeqCst);
        if let Some(token) = self.token.get() {
            token.cancel();
        }
    }
}

impl Cancellable for Cancelling {
    fn cancelling(&self) -> &Cancelling {
        self
    }
}

impl Cancellation {
    /// One that is part of what a gateway shares with the application anyway.
    pub(crate) fn of(shared: Arc<dyn Cancellable>) -> Self {
        Self { shared }
    }

    /// Cancels. Once is enough.
    pub fn cancel(&self) {
        self.shared.cancelling().cancel();
    }

    /// The token that it cancels.
    pub fn token(&self) -> CancellationToken {
        let state = self.shared.cancelling();
        let token = state.token.get_or_init(|| match &state.parent {
            Some(parent) => parent.token().child_token(),
            None => CancellationToken::new(),
        });
        if state.cancelled.load(Ordering::SeqCst) {
            token.cancel();
        }
        token.clone()
    }

    /// One that is cancelled with this one, and may be cancelled alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let id = self.shared.cancelling().id.clone();
        Self::of(Arc::new(Cancelling { id, parent: Some(self.clone()), ..Cancelling::default() }))
    }
}

impl Default for Cancellation {
    fn default() -> Self {
        Self::of(Arc::new(Cancelling::default()))
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.cancelling();
        f.debug_struct("Cancellation")
            .field("cancelled", &state.cancelled)
            .field("id", &state.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environ(pairs: &[(&str, &str)]) -> Environ {
        Environ::new(pairs.iter().copied().collect())
    }

    #[test]
    fn what_every_request_is_asked_for_is_found_after_every_change() {
        let mut variables = Variables::from_pairs(
            [
                ("REQUEST_METHOD", "PUT"),
                ("A", ""),
                ("CONTENT_LENGTH", "1"),
                ("REQUEST_METHOD", "GET"),
                ("SERVER_SOFTWARE", "x"),
            ]
            .into_iter()
            .collect(),
        );
        let both = |variables: &Variables| {
            [b"REQUEST_METHOD", b"CONTENT_LENGTH"].map(|name| variables.get(name).map(<[u8]>::to_vec))
        };
        let expected = |method: Option<&str>, length: Option<&str>| [method, length].map(|value| value.map(Into::into));
        assert_eq!(both(&variables), expected(Some("GET"), Some("1")));
        variables.set("SERVER_SOFTWARE", "y").unwrap();
        assert_eq!(both(&variables), expected(Some("GET"), Some("1")));
        variables.remove("A");
        assert_eq!(both(&variables), expected(Some("GET"), Some("1")));
        variables.set("REQUEST_METHOD", "POST").unwrap();
        assert_eq!(both(&variables), expected(Some("POST"), Some("1")));
        variables.remove("CONTENT_LENGTH");
        assert_eq!(both(&variables), expected(Some("POST"), None));
        assert_eq!(both(&Variables::new()), expected(None, None));
        let mut variables = Variables::from_pairs([("A", "b")].into_iter().collect());
        assert_eq!(both(&variables), expected(None, None));
        variables.set("CONTENT_LENGTH", "5").unwrap();
        assert_eq!(both(&variables), expected(None, Some("5")));
        let with_forbidden = [("HTTP_PROXY", "p"), ("REQUEST_METHOD", "GET"), ("CONTENT_LENGTH", "2")];
        let variables = Variables::from_pairs(with_forbidden.into_iter().collect());
        assert_eq!(both(&variables), expected(Some("GET"), Some("2")));
        assert_eq!(variables.get(b"HTTP_PROXY"), None);
    }

    #[test]
    fn several_variables_are_set_at_once_or_none() {
        let mut variables: Variables =
            [("A", "1"), ("REQUEST_METHOD", "GET"), ("B", "1"), ("A", "2"), ("HTTP_C", "1"), ("HTTP_C", "2")]
                .into_iter()
                .collect();
        assert_eq!(variables.get(b"HTTP_C"), Some(&b"1, 2"[..]));
        variables.set_all([("A", "3"), ("HTTP_C", "3"), ("D", "4")].into_iter()).unwrap();
        let told: Vec<_> = variables.pairs().iter().collect();
        let expected = [("REQUEST_METHOD", "GET"), ("B", "1"), ("A", "3"), ("HTTP_C", "3"), ("D", "4")];
        assert_eq!(told, expected.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        assert_eq!(variables.get(b"HTTP_C"), Some(&b"3"[..]));
        assert_eq!(variables.get(b"REQUEST_METHOD"), Some(&b"GET"[..]));
        variables.set_all([("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "5")].into_iter()).unwrap();
        assert_eq!(variables.get(b"REQUEST_METHOD"), Some(&b"POST"[..]));
        assert_eq!(variables.get(b"CONTENT_LENGTH"), Some(&b"5"[..]));
        for (wrong, value) in [("", "x"), ("E=F", "x"), ("HTTP_PROXY", "x"), ("E", "a\0b")] {
            let before: Vec<_> =
                variables.pairs().iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            assert!(variables.set_all([("A", "9"), (wrong, value)].into_iter()).is_err(), "{wrong}");
            let after: Vec<_> = variables.pairs().iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            assert_eq!(before, after, "{wrong}");
        }
    }

    #[test]
    fn repeated_headers_are_one_value_and_of_other_repeats_the_last_wins() {
        let environ = environ(&[
            ("HTTP_ACCEPT", "a"),
            ("X", "1"),
            ("HTTP_COOKIE", "c=1"),
            ("HTTP_ACCEPT", "b"),
            ("X", "2"),
            ("HTTP_COOKIE", "d=2"),
            ("HTTP_HOST", "h"),
        ]);
        assert_eq!(environ.get("HTTP_ACCEPT"), Some(&b"a, b"[..]));
        assert_eq!(environ.get("HTTP_COOKIE"), Some(&b"c=1; d=2"[..]));
        assert_eq!(environ.get("HTTP_HOST"), Some(&b"h"[..]));
        assert_eq!(environ.get("X"), Some(&b"2"[..]));
        assert_eq!(environ.variables().pairs().len(), 7);
        let process = environ.variables().process_environment().unwrap();
        assert_eq!(
            process,
            [(&b"HTTP_ACCEPT"[..], &b"a, b"[..]), (b"X", b"2"), (b"HTTP_COOKIE", b"c=1; d=2"), (b"HTTP_HOST", b"h")]
        );
    }

    #[test]
    fn httpoxy_http_proxy_is_never_in_an_environ() {
        let mut environ = environ(&[
            ("HTTP_PROXY", "http://evil"),
            ("HTTP_CONTENT_TYPE", "x"),
            ("HTTP_CONTENT_LENGTH", "1"),
            ("A", "b"),
        ]);
        assert_eq!(environ.variables().pairs().len(), 1);
        assert_eq!(environ.set("HTTP_PROXY", "x"), Err(VariableError::Forbidden("HTTP_PROXY".into())));
        assert_eq!(environ.get("HTTP_PROXY"), None);
    }

    #[test]
    fn a_process_environment_refuses_names_with_equals_and_nul() {
        assert!(environ(&[("A=B", "c")]).variables().process_environment().is_err());
        assert!(environ(&[("A\0", "c")]).variables().process_environment().is_err());
        assert!(environ(&[("", "c")]).variables().process_environment().is_err());
        assert!(environ(&[("A", "c\0d")]).variables().process_environment().is_err());
        assert!(environ(&[]).set("A=B", "c").is_err());
    }

    #[test]
    fn copies_are_independent() {
        let mut first = environ(&[("A", "1")]).with_input(Input::from_bytes("body"));
        let second = first.without_input();
        first.set("A", "2").unwrap();
        assert_eq!((first.get("A"), second.get("A")), (Some(&b"2"[..]), Some(&b"1"[..])));
        assert_eq!(first.input().remaining(), Some(4));
        assert_eq!(first.request_id(), second.request_id());
    }

    #[test]
    fn the_url_is_put_together_as_pep_3333_says() {
        let with_host = environ(&[
            ("HTTP_HOST", "example.org:8080"),
            ("SCRIPT_NAME", "/app"),
            ("PATH_INFO", "/a b/\u{e9}"),
            ("QUERY_STRING", "x=1"),
        ]);
        assert_eq!(with_host.url(), "http://example.org:8080/app/a%20b/%C3%A9?x=1");
        let without =
            environ(&[("SERVER_NAME", "example.org"), ("SERVER_PORT", "443"), ("HTTPS", "on"), ("PATH_INFO", "/")]);
        assert_eq!(without.url(), "https://example.org/");
    }

    #[test]
    fn a_token_made_after_the_cancellation_is_cancelled() {
        let cancellation = Cancellation::default();
        let before = cancellation.token();
        cancellation.cancel();
        assert!(before.is_cancelled() && cancellation.token().is_cancelled());
        let late = Cancellation::default();
        late.cancel();
        assert!(late.token().is_cancelled());
    }

    #[test]
    fn a_child_is_cancelled_with_its_parent_and_alone() {
        let parent = Cancellation::default();
        let (first, second) = (parent.child(), parent.child());
        first.cancel();
        assert!(first.token().is_cancelled() && !second.token().is_cancelled() && !parent.token().is_cancelled());
        parent.cancel();
        assert!(second.token().is_cancelled() && parent.child().token().is_cancelled());
    }

    #[test]
    fn a_request_with_a_cancellation_of_its_own_keeps_its_name_and_role() {
        let environ = environ(&[]).with_request(Role::Authorizer, 7, Cancellation::default());
        let copy = environ.without_input();
        let (inner, cancellation) = copy.with_own_cancellation();
        assert_eq!(inner.request_id(), environ.request_id());
        assert_eq!((inner.role(), inner.request_number()), (Role::Authorizer, 7));
        cancellation.cancel();
        assert!(inner.cancellation().is_cancelled() && !environ.cancellation().is_cancelled());
    }

    #[test]
    fn the_target_is_the_request_uri_or_the_path_encoded_again() {
        assert_eq!(&*environ(&[("REQUEST_URI", "/a%2Fb?c"), ("PATH_INFO", "/a/b")]).target(), b"/a%2Fb?c");
        assert_eq!(
            &*environ(&[("SCRIPT_NAME", "/s"), ("PATH_INFO", "/a b"), ("QUERY_STRING", "q")]).target(),
            b"/s/a%20b?q"
        );
    }

    #[test]
    fn a_request_id_is_accepted_only_when_harmless() {
        assert_eq!(environ(&[("HTTP_X_REQUEST_ID", "abc-123")]).request_id(), "abc-123");
        for bad in ["", "a b", "a\nb", &"x".repeat(129)] {
            let environ = environ(&[("HTTP_X_REQUEST_ID", bad)]);
            assert_eq!(environ.request_id().len(), 16, "{bad:?}");
            assert_eq!(environ.request_id(), environ.request_id());
        }
    }

    #[test]
    fn headers_are_found_whatever_their_spelling() {
        let environ = environ(&[("HTTP_ACCEPT_LANGUAGE", "eo"), ("CONTENT_TYPE", "text/plain")]);
        assert_eq!(environ.header("Accept-Language"), Some(&b"eo"[..]));
        assert_eq!(environ.header("content-type"), Some(&b"text/plain"[..]));
        assert_eq!(environ.header("Proxy"), None);
    }
}
