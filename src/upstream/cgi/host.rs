//! The script host: an application that answers each request by running a program.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};

use super::config::{Config, ConfigError, RequestBody};
use super::environment::{self, Rules};
use super::exchange::{Exchange, Failed, Request};
use super::failure::{Busy, Failure, not_started};
use super::nph::end_to_end;
use super::pace::Pace;
use super::process::{self, Process, Started};
use super::queue::{self, NoPlace, Place, Places};
use super::report::Report;
use super::script::{Finder, Script};
use super::spawn::{Command, Step};
use super::stderr::harmless;
use crate::application::driver::{self, error_page};
use crate::application::{Application, Body, Environ, Error, Headers, Input, InputError, StartResponse, Status};
use crate::protocol::cgi::{ResponseHead, ResponseKind, allows_body};
use crate::upstream::spool::{self, SpoolError, Spooled};

/// Bodies of up to so many bytes are put into a pipe before the script is started: what any pipe holds.
const PUT_BEFOREHAND: u64 = 4096;

/// Runs CGI programs: an application that answers each request by the script that its path leads to.
///
/// ```no_run
/// use gatespan::middleware::Mount;
/// use gatespan::upstream::cgi::{Config, Host};
///
/// fn main() -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
///     let mut config = Config::default();
///     config.roots = vec!["/usr/lib/cgi-bin".into()];
///     config.concurrent = 16;
///     let scripts = Host::new(config)?;
///     Ok(gatespan::run(Mount::new().at("/cgi-bin", scripts)))
/// }
/// ```
///
/// As a tower service, beside others in one router, say:
///
#[cfg_attr(feature = "tower", doc = "```no_run")]
#[cfg_attr(not(feature = "tower"), doc = "```ignore")]
/// use gatespan::tower::EnvironService;
/// use gatespan::upstream::cgi::{Config, Host};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = Config::default();
/// config.program = Some("/usr/lib/git-core/git-http-backend".into());
/// config.environment = vec![("GIT_PROJECT_ROOT".into(), "/srv/git".into())];
/// let git = EnvironService::new(Host::new(config)?);
/// let app: axum::Router = axum::Router::new().nest_service("/git", git);
/// # Ok(())
/// # }
/// ```
///
/// It must be called within a tokio runtime that has its clock and its I/O. Where programs should not outlive this process even if it is
/// killed, see [`Watcher`](crate::upstream::watcher::Watcher).
pub struct Host {
    config: Arc<Config>,
    finder: Finder,
    rules: Rules,
    places: Places,
    settings: process::Settings,
}

/// What a script will read.
struct RequestInput {
    /// As CONTENT_LENGTH says it.
    length: Option<u64>,
    content: Content,
}

enum Content {
    Nothing,
    /// All of it.
    File(File),
    /// What there is of it and what is still to come from the client.
    Stream(Input),
}

/// Web servers that send no more of a request's body once a FastCGI answer has begun: a script that writes its head first, as many
/// do, would wait for the rest of its input for ever.
const STOPS_UPLOADS: [&[u8]; 1] = [b"nginx/"];

impl Host {
    /// A host for these scripts.
    ///
    /// # Errors
    ///
    /// For a folder or program that is not there, or that others can write to; see [`ConfigError`].
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let config = config.with_times_that_end();
        let finder = Finder::new(&config)?;
        let rules = Rules::new(&config)?;
        let places = Places::new(queue::Limits {
            concurrent: config.concurrent,
            concurrent_per_script: config.concurrent_per_script.unwrap_or(usize::MAX),
            queue: config.queue,
            wait: config.queue_wait,
        });
        let settings = process::Settings {
            grace: config.kill_grace,
            kill_leftovers: config.kill_leftovers,
            standstill: config.standstill,
            watcher: config.watcher.clone(),
        };
        Ok(Self { config: Arc::new(config), finder, rules, places, settings })
    }

    /// How many scripts run, those included whose response is over.
    pub fn running(&self) -> usize {
        self.places.running()
    }

    /// Waits until no script runs. For shutting down: when the gateway is done, scripts whose clients were cut off may still be in their
    /// [`Config::kill_grace`], and a runtime that ends before leaves it to the kernel and the watcher to end them.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    ///
    /// use gatespan::gateway::{Afterwards, Options, run_with};
    /// use gatespan::upstream::cgi::{Config, Host};
    ///
    /// # fn main() -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
    /// let mut config = Config::default();
    /// config.roots = vec!["/usr/lib/cgi-bin".into()];
    /// let host = Arc::new(Host::new(config)?);
    /// let scripts = host.clone();
    /// let mut options = Options::default();
    /// options.afterwards = Afterwards::new(async move { scripts.idle().await });
    /// Ok(run_with(host, options))
    /// # }
    /// ```
    pub async fn idle(&self) {
        self.places.empty().await;
    }

    async fn answer(&self, environ: &mut Environ, start_response: &StartResponse) -> Result<Body, Refused> {
        let script =
            self.finder.find(environ).map_err(|failure| Refused::Failure(path_for_the_log(environ), failure))?;
        let name = script.name.clone();
        let refused = |failure| Refused::Failure(name.clone(), failure);
        let input = environ.take_input();
        let input = match self.input(environ, input).await {
            Ok(input) => input,
            Err(error) => return Err(not_received(error, &name)),
        };
        let place = self.place(&script).await.map_err(refused)?;
        let (started, input, place) = self.start(environ, script, input, place).await.map_err(refused)?;
        let request = Request {
            environ: environ.without_input(),
            script: name.clone(),
            stderr_to_web_server: self.config.stderr_to_web_server,
            config: self.config.clone(),
        };
        let mut exchange = Exchange::new(request, started, input, place);
        let head = exchange.head().await.map_err(|failed| Refused::of(failed, &name))?;
        if STOPS_UPLOADS
            .iter()
            .any(|server| environ.get("SERVER_SOFTWARE").is_some_and(|name| name.starts_with(server)))
            && environ.server().gateway == "fastcgi"
        {
            exchange.receive_input(self.spool_limits()).await.map_err(|failed| Refused::of(failed, &name))?;
        }
        self.respond(environ, head, exchange, start_response).await.map_err(Refused::Error)
    }

    /// What the script will read of that body. A body without a length is received here, before the script has a place.
    async fn input(&self, environ: &Environ, mut input: Input) -> Result<RequestInput, SpoolError> {
        // The gateway's own word counts, not the variable: some of it may have been read on the way.
        match input.remaining() {
            Some(0) => {
                // RFC 3875 4.1.2: without a body it is unset, but a 0 that was sent is passed on.
                let is_said = environ.get("CONTENT_LENGTH").is_some_and(|length| !length.is_empty());
                return Ok(RequestInput { length: is_said.then_some(0), content: Content::Nothing });
            }
            Some(length) => return Ok(RequestInput { length: Some(length), content: Content::Stream(input) }),
            None => {}
        }
        // Behind FastCGI there is an input for every request, and some web servers never end it; elsewhere there is one where there is a body.
        let is_body = environ.server().gateway != "fastcgi" || environ.get("HTTP_TRANSFER_ENCODING").is_some();
        let first = match ready_chunk(&mut input).await {
            Some(first) => first?,
            None if !is_body && is_bodiless(environ.method()) => None,
            None => input.chunk().await?,
        };
        let Some(first) = first else {
            return Ok(RequestInput { length: is_body.then_some(0), content: Content::Nothing });
        };
        input.unread(first);
        match self.config.request_body {
            RequestBody::Stream => Ok(RequestInput { length: None, content: Content::Stream(input) }),
            RequestBody::Spool => {
                let spooled = Spooled::receive(&mut input, self.spool_limits()).await?;
                let length = Some(spooled.len());
                let content = match spooled {
                    Spooled::File { file, .. } => Content::File(file),
                    memory @ Spooled::Memory(_) => Content::Stream(memory.into_input()),
                };
                Ok(RequestInput { length, content })
            }
        }
    }

    fn spool_limits(&self) -> spool::Limits<'_> {
        spool::Limits {
            memory: self.config.spool_memory,
            max_len: self.config.spool_limit,
            folder: self.config.spool_folder.as_deref(),
        }
    }

    async fn place(&self, script: &Script) -> Result<Place, Failure> {
        let begun = Instant::now();
        self.places.place(&script.file).await.map_err(|none| {
            let per_script = self.config.concurrent_per_script.unwrap_or(self.config.concurrent);
            let (limit, value) = match none {
                NoPlace::Full => (Busy::Queue, self.config.queue),
                NoPlace::Waited if self.running() < self.config.concurrent => (Busy::WaitForScript, per_script),
                NoPlace::Waited => (Busy::Wait, self.config.concurrent),
            };
            Failure::Busy { limit, value, waited: begun.elapsed() }
        })
    }

    /// Starts the script. What of its input is not there yet comes back with it.
    async fn start(
        &self,
        environ: &Environ,
        script: Script,
        input: RequestInput,
        place: Place,
    ) -> Result<(Started, Input, Place), Failure> {
        let cannot_start =
            |step: &str, error| Failure::CannotStart { file: script.file.clone(), step: step.to_owned().into(), error };
        let environment = environment::build(environ, &script, &self.rules, input.length)?;
        let (stdin, rest) = match input.content {
            Content::Nothing => (process::Input::Nothing, Input::empty()),
            Content::File(file) => (process::Input::File(file.into()), Input::empty()),
            Content::Stream(mut input) => match put_beforehand(&mut input).await {
                Ok(Some(pipe)) => (process::Input::File(pipe), Input::empty()),
                Ok(None) => (process::Input::Pipe, input),
                Err(error) => return Err(cannot_start(&Step::Pipes.to_string(), error)),
            },
        };
        let directory = CString::new(script.directory.clone().into_os_string().into_vec());
        let mut command = Command::new(script.program.clone());
        command.arguments.clone_from(&script.arguments);
        command.arguments.extend(environment::arguments(environ, &self.rules));
        command.environment = environment;
        command.directory = directory.map_err(|error| cannot_start("its folder", error.into()))?;
        command.limits = self.config.limits;
        command.identity.clone_from(&self.config.identity);
        let pace = Pace::of(script.file.as_os_str().as_bytes());
        match Process::start_unwatched(command, stdin, &self.settings, pace, place).await {
            Ok((started, place)) => Ok((started, rest, place)),
            Err(error) => Err(not_started(&script, error)),
        }
    }

    /// Makes a response of what the script's head asks for (RFC 3875 6.2).
    async fn respond(
        &self,
        environ: &Environ,
        mut head: ResponseHead,
        mut exchange: Exchange,
        start_response: &StartResponse,
    ) -> Result<Body, Error> {
        let is_local = match head.kind() {
            ResponseKind::LocalRedirect { path } => match environ.local_redirects() {
                Some(redirects) => {
                    redirects.set(Bytes::copy_from_slice(path));
                    true
                }
                // Nobody runs the request again here: the client does.
                None => false,
            },
            _ => false,
        };
        let (code, reason) = head.status_or_default();
        // A reason that can't stand there is none.
        let status = Status::with_reason(code, reason).or_else(|_| Status::new(code)).map_err(Error::new)?;
        let length = head.content_length();
        let fields = end_to_end(&mut head);
        start_response.start(status, fields)?;
        if is_local || !allows_body(code, environ.method()) {
            if !is_local {
                // Whatever becomes of the script now, its answer is here.
                let _ = exchange.drain_input().await;
            }
            exchange.finish();
            return Ok(Body::empty());
        }
        exchange.begin_body(length);
        Ok(Body::frames(exchange))
    }

    /// Answers a request that failed, and says why in the log.
    fn refuse(
        &self,
        environ: &Environ,
        script: &str,
        failure: &Failure,
        start_response: &StartResponse,
    ) -> Result<Body, Error> {
        let (code, id, is_head) = (failure.status(), environ.request_id(), environ.method() == b"HEAD");
        let mut page = match self.config.debug {
            true => debug_page(code, id, is_head, failure),
            false => error_page(code, id, is_head),
        };
        if let Some(location) = failure.location() {
            page.head.headers.push("Location", location);
            return page.pass_on(start_response);
        }
        let (cause, mend) = (failure.cause(), &*failure.mend());
        if code < 500 {
            tracing::warn!(request_id = id, script, status = code, cause, mend, "request failed");
        } else {
            tracing::error!(request_id = id, script, status = code, cause, mend, "request failed");
        }
        if let Failure::Busy { .. } = failure {
            let seconds = self.config.queue_wait.as_secs() + u64::from(self.config.queue_wait.subsec_nanos() > 0);
            page.head.headers.push("Retry-After", seconds.max(1).to_string());
        }
        page.pass_on(start_response)
    }
}

impl Application for Host {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        match self.answer(&mut environ, &start_response).await {
            Ok(body) => Ok(body),
            Err(Refused::Failure(script, failure)) => {
                let page = self.refuse(&environ, &script, &failure, &start_response);
                // A client that is sent on has an answer.
                if failure.location().is_none()
                    && let Some(report) = environ.extensions().get::<Report>()
                {
                    report.failed(failure);
                }
                page
            }
            Err(Refused::Error(error)) => Err(error),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("config", &self.config).field("running", &self.running()).finish_non_exhaustive()
    }
}

/// Why a request is not answered by its script.
enum Refused {
    /// The script's name, and what is wrong.
    Failure(String, Failure),
    /// What is not the script's fault, for the driver to answer.
    Error(Error),
}

impl Refused {
    fn of(failed: Failed, script: &str) -> Self {
        match failed {
            Failed::Script(failure) => Self::Failure(script.to_owned(), failure),
            Failed::Input(error) => Self::Error(error.into()),
            Failed::NotReceived(error) => not_received(error, script),
            Failed::Cancelled => Self::Error(Error::new("the request was given up").with_status(503)),
        }
    }
}

/// Why there is no answer for a request whose body could not be received.
fn not_received(error: SpoolError, script: &str) -> Refused {
    let failure = match error {
        SpoolError::Input(InputError::TooLarge { limit }) => Failure::BodyTooLarge { limit },
        SpoolError::Input(error) => return Refused::Error(error.into()),
        SpoolError::Store { folder, source } => Failure::Spool { folder, error: source },
    };
    Refused::Failure(script.to_owned(), failure)
}

/// The next piece of an input, if it is there already; `None` if it has to be waited for.
async fn ready_chunk(input: &mut Input) -> Option<Result<Option<Bytes>, InputError>> {
    let mut chunk = pin!(input.chunk());
    poll_fn(|cx| match chunk.as_mut().poll(cx) {
        Poll::Ready(chunk) => Poll::Ready(Some(chunk)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A pipe that holds all of an input, where that is short and there already: the script is started with it, and nobody has to write.
async fn put_beforehand(input: &mut Input) -> io::Result<Option<OwnedFd>> {
    let Some(length @ 1..=PUT_BEFOREHAND) = input.remaining() else { return Ok(None) };
    // What is wrong with the input shows when it is read on.
    let Some(Ok(Some(bytes))) = ready_chunk(input).await else { return Ok(None) };
    if bytes.len() as u64 != length {
        input.unread(bytes);
        return Ok(None);
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // It can't block: an empty pipe takes that much at once.
    File::from(write).write_all(&bytes)?;
    Ok(Some(read))
}

/// Whether a request of this method has no body unless it says so.
fn is_bodiless(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"DELETE")
}

/// What a request asked for that no script was found for.
fn path_for_the_log(environ: &Environ) -> String {
    harmless(&[environ.script_name(), environ.path_info()].concat())
}

/// The page that says what the log says.
fn debug_page(code: u16, request_id: &str, is_head: bool, failure: &Failure) -> driver::Response {
    let mut page = error_page(code, request_id, true);
    let (status, cause, mend) = (page.head.status.to_string(), failure.cause(), failure.mend());
    let mut text = String::new();
    for (before, part, after) in [
        ("<!DOCTYPE html>\n<html>\n<head><title>", status.as_str(), "</title></head>\n"),
        ("<body>\n<h1>", &status, "</h1>\n"),
        ("<p>", &cause, "</p>\n"),
        ("<p>", &mend, "</p>\n"),
        ("<p><small>request ", request_id, "</small></p>\n</body>\n</html>\n"),
    ] {
        text.push_str(before);
        escape_html(part, &mut text);
        text.push_str(after);
    }
    page.head.headers = Headers::from([
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", &text.len().to_string()),
        // It holds what scripts put out: nothing of that is to run.
        ("Content-Security-Policy", "default-src 'none'"),
    ]);
    if !is_head {
        page.body = Body::from(text).into();
    }
    page
}

fn escape_html(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(character),
        }
    }
}
