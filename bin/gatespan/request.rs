//! `gatespan request TO [PATH]`: one request to a FastCGI server, a CGI program or an HTTP server. This file is the command line, and what
//! is made of its answer: retries, the summary, the exit code.

mod application;
mod body;
mod console;
mod fastcgi;
mod other_client;
mod outcome;
mod output;
mod program;
mod target;
mod values;
mod variables;
mod watched;

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use gatespan::address::Address;
use gatespan::protocol::fastcgi::Role;
use gatespan::upstream::cgi;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use self::body::Body;
use self::console::Console;
use self::outcome::{Failure, Kind, Outcome};
use self::output::Output;
use self::target::{To, parse_to};
use self::variables::Message;
use crate::values as text;

/// Send one request, and show what comes back
///
/// TO is a FastCGI server: fastcgi:/SOCKET, fastcgi://HOST:PORT, fastcgi:@NAME, or fastcgi:exec:/PROGRAM for one that is started here and ended afterwards; CGI
/// programs: cgi:/FOLDER/ or cgi:/PROGRAM; or an HTTP server: http://HOST:PORT, http:/SOCKET or https://HOST, with a path behind it if one likes.
///
/// Standard output is the body, standard error what the application writes to its own, each line marked with "stderr: ". FastCGI servers and CGI programs
/// are told what nginx tells them.
///
/// Lengths of time are such as 500ms, 30s or 2m; a number alone, with a fraction if need be, is seconds.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What answers
    #[arg(value_name = "TO", value_parser = parse_to)]
    to: To,
    /// What is asked for: a path, encoded as in an address, with a query if there is one [default: /, or that of --script]
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    #[command(flatten)]
    message: MessageOptions,
    #[command(flatten)]
    body: BodyOptions,
    #[command(flatten)]
    fastcgi: FastCgiOptions,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    times: Times,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "The request")]
struct MessageOptions {
    /// The method [default: GET, POST with a body, HEAD with -I]
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<OsString>,
    /// A header field: "Name: value"; "Name;" for one without a value; "Name:" leaves out one that would be sent. May be repeated
    #[arg(short = 'H', long = "header", value_name = "FIELD", value_parser = variables::parse_field)]
    headers: Vec<variables::FieldOption>,
    /// Ask for the head alone, with HEAD, and print it
    #[arg(short = 'I', long)]
    head: bool,
    /// The User-Agent [default: gatespan/VERSION]
    #[arg(short = 'A', long, value_name = "NAME")]
    user_agent: Option<OsString>,
    /// The Referer
    #[arg(short = 'e', long, value_name = "URL")]
    referer: Option<OsString>,
    /// Cookies: "a=1; b=2". May be repeated
    #[arg(short = 'b', long = "cookie", value_name = "COOKIES")]
    cookies: Vec<OsString>,
    /// Authorization by the scheme Basic
    #[arg(short = 'u', long, value_name = "USER:PASSWORD")]
    user: Option<OsString>,
    /// The certificates that an https: server's must come from, in a file of PEM [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Its body")]
struct BodyOptions {
    /// Data of a form, as it is, or from @FILE without its line ends (@- is standard input). Repeated ones are joined with &
    #[arg(short = 'd', long = "data", value_name = "DATA", visible_alias = "data-ascii")]
    data: Vec<OsString>,
    /// The same, and @FILE byte by byte
    #[arg(long, value_name = "DATA")]
    data_binary: Vec<OsString>,
    /// The same, and an @ is nothing special
    #[arg(long, value_name = "DATA")]
    data_raw: Vec<OsString>,
    /// The same, encoded: CONTENT, =CONTENT, NAME=CONTENT, @FILE or NAME@FILE
    #[arg(long, value_name = "DATA")]
    data_urlencode: Vec<OsString>,
    /// A part of a multipart/form-data body: NAME=CONTENT, NAME=@FILE for an upload, NAME=<FILE for a file's content, with ;type=TYPE and ;filename=NAME
    /// behind it. May be repeated
    #[arg(short = 'F', long = "form", value_name = "PART", conflicts_with_all = ["data", "data_binary", "data_raw", "data_urlencode", "get"])]
    forms: Vec<OsString>,
    /// Put the data into the query instead, and send GET
    #[arg(short = 'G', long)]
    get: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What FastCGI servers and CGI programs are told")]
struct FastCgiOptions {
    /// Set a variable, whatever it would be; "NAME=" is empty, "NAME" alone leaves it out. May be repeated
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE")]
    params: Vec<OsString>,
    /// Variables from a file with a NAME=VALUE on each line; those of -p come after them. Empty lines, and those that begin with #, are none; where the
    /// file holds NUL, that ends each (as in /proc/PID/environ). May be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
    /// Where scripts lie for the server: DOCUMENT_ROOT, and the beginning of SCRIPT_FILENAME. For cgi:/FOLDER/ it is that folder
    #[arg(long, value_name = "FOLDER")]
    root: Option<OsString>,
    /// The path of the script that answers, below --root; what PATH has behind it is PATH_INFO. Empty for an application that answers all paths
    /// [default: PATH up to the end of .php, else all of it, with index.php behind a slash if there is a --root]
    #[arg(long, value_name = "PATH")]
    script: Option<OsString>,
    /// What a FastCGI application is asked to be
    #[arg(long, value_enum, default_value_t = AskedRole::Responder)]
    role: AskedRole,
    /// The file that a filter is given
    #[arg(long, value_name = "FILE", required_if_eq("role", "filter"))]
    filter_data: Option<PathBuf>,
    /// Ask a FastCGI server to keep the connection (FCGI_KEEP_CONN)
    #[arg(long)]
    keep_conn: bool,
    /// Ask a FastCGI server for these values instead, on a connection of its own, and print them [default: the three that FastCGI knows]
    #[arg(long, value_name = "NAME", num_args = 0.., conflicts_with_all = ["path", "MessageOptions", "BodyOptions", "client"])]
    values: Option<Vec<String>>,
    /// What speaks FastCGI: this program, or the crate fastcgi-client, to tell a server's fault from a client's
    #[arg(long, value_enum, default_value_t = Client::Gatespan)]
    client: Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AskedRole {
    Responder,
    Authorizer,
    Filter,
}

impl From<AskedRole> for Role {
    fn from(role: AskedRole) -> Self {
        match role {
            AskedRole::Responder => Self::Responder,
            AskedRole::Authorizer => Self::Authorizer,
            AskedRole::Filter => Self::Filter,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Client {
    Gatespan,
    FastcgiClient,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is shown")]
struct OutputOptions {
    /// Print the head of the answer before its body
    #[arg(short = 'i', long)]
    include: bool,
    /// Write into this file instead of standard output
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print no body of an answer with 4xx or 5xx
    #[arg(short = 'f', long)]
    fail: bool,
    /// Show on standard error what passes, with seconds since the beginning: records in both directions (-v), with their content (-vv), the head, and
    /// the end
    // Of the same name as the tool's own, whose place it takes here.
    #[arg(short = 'v', long, action = ArgAction::Count)]
    verbose: u8,
    /// Say nothing of failures and retries; the exit code tells
    #[arg(short = 's', long)]
    silent: bool,
    /// With -s, say what failed all the same
    #[arg(short = 'S', long)]
    show_error: bool,
    /// Print a summary as an object of JSON instead of the body, which goes to -o if anywhere; its members are in docs/request.md
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Time limits and retries")]
struct Times {
    /// How long one try may take in all [default: no limit]
    #[arg(short = 'm', long, value_name = "TIME", value_parser = seconds)]
    max_time: Option<Duration>,
    /// How long a connection may take to be made
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "5s")]
    connect_timeout: Duration,
    /// How long the head of the answer may take from the end of the request
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "60s")]
    head_timeout: Duration,
    /// How long nothing may come after that
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "60s")]
    read_timeout: Duration,
    /// Try so often again after a time-out, a server that is overloaded, or 408, 429, 500, 502, 503 or 504
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    retry: u32,
    /// How long to wait before each retry [default: 1s, then twice as long each time, up to 10m; Retry-After if that is longer]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    retry_delay: Option<Duration>,
    /// Begin no retry when so much time has passed [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    retry_max_time: Option<Duration>,
    /// Try again after a connection that was refused, or whose socket is not there, too
    #[arg(long)]
    retry_connrefused: bool,
    /// Try again after any failure
    #[arg(long)]
    retry_all_errors: bool,
}

const EXAMPLES: &str = "\
Examples:
  gatespan request fastcgi:/run/php-fpm.sock /ping                 is php-fpm alive?
  gatespan request fastcgi://127.0.0.1:9000 '/status?json' --max-time 2
  gatespan request fastcgi:/run/php-fpm.sock /a.php --root /srv/www -i
  gatespan request fastcgi:/run/app.sock /a/path --script ''       an application at the root
  gatespan request fastcgi:/run/app.sock /form -d name=value -v    the records, with times
  gatespan request fastcgi:exec:bin/app /                          started, asked, ended
  gatespan request cgi:/usr/lib/cgi-bin/ /script.cgi/info?q=1      without a web server
  gatespan request http://127.0.0.1:8080/upload -F file=@photo.jpg
  gatespan request fastcgi:/run/app.sock / --role authorizer -p REMOTE_USER=me
  gatespan request fastcgi:/run/app.sock --values                  FCGI_MAX_CONNS and the like
  gatespan request fastcgi:/run/app.sock / --json                  a summary for programs
  gatespan request fastcgi:/run/app.sock / --client fastcgi-client

Exit codes:
  0    an answer with 2xx or 3xx
  1    something else failed, such as a file that could not be read or written
  2    the command line could not be understood
  4    an answer with 4xx
  5    an answer with 5xx
  7    no connection: refused, not there, unknown (curl's number)
  8    no answer, or none as the protocol has it: closed, cut, malformed, refused (curl's)
  9    an answer with 2xx or 3xx, and an application status or exit code that is not 0
  28   a time limit was over (curl's number)
  130  ended by SIGINT (143 by SIGTERM)
  What kept the answer from being complete goes before its status.";

/// What the log leaves out while a request is sent: failures are told by the command itself.
pub(crate) const LEFT_OUT_OF_THE_LOG: &str = "gatespan::upstream";

/// A length of time, in seconds with a fraction too, as curl has it.
fn seconds(value: &str) -> Result<Duration, String> {
    let fraction = value.split_once('.').filter(|(whole, part)| {
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        is_number(whole) && is_number(part)
    });
    let number = fraction.and_then(|_| value.parse::<f64>().ok());
    match number.filter(|number| *number < 1e6).and_then(|number| Duration::try_from_secs_f64(number).ok()) {
        Some(time) => Ok(time),
        None => text::duration(value),
    }
}

/// A mistake that shows when the parts of the command line are put together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Everything that one try needs.
struct Request<'a> {
    arguments: &'a Arguments,
    message: Message,
    console: Arc<Console>,
    /// Where CGI programs run, once one was asked.
    host: OnceCell<Arc<cgi::Host>>,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let console = Arc::new(Console::new(&arguments.output));
    let prepared = arguments.check().map_err(Failure::usage).and_then(|()| Message::new(arguments));
    let (outcome, code) = match prepared {
        Err(failure) => {
            console.failure(&failure);
            let code = failure.kind.exit_code();
            (Outcome { failure: Some(failure), ..Outcome::default() }, code)
        }
        Ok(message) => {
            let request = Request { arguments, message, console: console.clone(), host: OnceCell::new() };
            request.run()
        }
    };
    // What the command line has wrong is no request.
    if arguments.output.json && arguments.fastcgi.values.is_none() && code != 2 {
        let summary = outcome.summary(arguments, &console, code);
        if let Err(failure) = output::print(format!("{summary}\n").as_bytes()) {
            console.failure(&failure);
            return ExitCode::from(failure.kind.exit_code());
        }
    }
    ExitCode::from(code)
}

impl Request<'_> {
    fn run(&self) -> (Outcome, u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let failure = Failure::local(format!("the runtime could not be started: {error}"));
                self.console.failure(&failure);
                return (Outcome::default(), failure.kind.exit_code());
            }
        };
        let result = runtime.block_on(self.until_signal());
        // Where somebody does not read what is written, a thread waits for that.
        runtime.shutdown_background();
        result
    }

    /// The request, until a signal ends it. What it started is ended with it.
    async fn until_signal(&self) -> (Outcome, u8) {
        let mut signals = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => [interrupt, terminate],
            (Err(error), _) | (_, Err(error)) => {
                let failure = Failure::local(format!("signals can't be waited for: {error}"));
                self.console.failure(&failure);
                return (Outcome::default(), failure.kind.exit_code());
            }
        };
        let mut outcome = Outcome::default();
        let [interrupt, terminate] = &mut signals;
        let code = tokio::select! {
            code = self.tries(&mut outcome) => code,
            code = caught(interrupt, 130) => {
                outcome.failure = Some(Failure::new(Kind::Signal(code), "ended by a signal".into()));
                code
            }
            code = caught(terminate, 143) => {
                outcome.failure = Some(Failure::new(Kind::Signal(code), "ended by a signal".into()));
                code
            }
        };
        if let Some(host) = self.host.get() {
            // A script that was given up has its grace, and is not left behind.
            let _ = tokio::time::timeout(GRACE, host.idle()).await;
        }
        (outcome, code)
    }

    /// All tries. The outcome is that of the last.
    async fn tries(&self, outcome: &mut Outcome) -> u8 {
        let times = &self.arguments.times;
        let began = Instant::now();
        let mut pause = Duration::from_secs(1);
        let mut left = times.retry;
        let mut attempts = 1;
        loop {
            // Only what is not tried again is written out.
            *outcome = Outcome { attempts, ..Outcome::default() };
            self.console.begin();
            self.attempt(outcome, left > 0).await;
            let is_transient = outcome.is_transient(times);
            let delay = times.retry_delay.unwrap_or_else(|| pause.max(outcome.retry_after().unwrap_or_default()));
            let in_time = times.retry_max_time.is_none_or(|limit| began.elapsed() + delay <= limit);
            if !is_transient || left == 0 || !in_time {
                break;
            }
            left -= 1;
            attempts += 1;
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.console.message(format_args!(
                "{}; trying again in {delay:?}, {left} more after that",
                outcome.what_failed().unwrap_or_default()
            ));
            tokio::time::sleep(delay).await;
        }
        if let Some(failure) = &outcome.failure {
            self.console.failure(failure);
        }
        outcome.exit_code()
    }

    /// One try. What would be tried again is not written out while there are tries left.
    async fn attempt(&self, outcome: &mut Outcome, may_try_again: bool) {
        // Values have that limit with a message of their own.
        let max_time = self.arguments.times.max_time.filter(|_| self.arguments.fastcgi.values.is_none());
        let mut output = Output::new(self, may_try_again);
        let exchange = async {
            match &self.arguments.to {
                To::FastCgi(endpoint) => fastcgi::ask(self, endpoint, outcome, &mut output).await,
                To::Program(path) => program::ask(self, path, outcome, &mut output).await,
                To::Application(address) => application::ask(self, address, outcome, &mut output).await,
            }
        };
        let result = match max_time {
            None => exchange.await,
            Some(limit) => match tokio::time::timeout(limit, exchange).await {
                Ok(result) => result,
                Err(_) => Err(Failure::new(Kind::TimedOut, format!("expected the whole answer within {limit:?}"))),
            },
        };
        outcome.total = self.console.elapsed();
        let result = match result {
            Ok(()) => output.finish().await,
            // What came is written already, and whoever reads it may never go on.
            Err(failure) => Err(failure),
        };
        if let Err(mut failure) = result {
            if failure.kind == Kind::TimedOut && outcome.status.is_some() {
                failure.message += &format!(", got {} bytes of its body", outcome.bytes);
            }
            outcome.failure = Some(failure);
        }
        self.console.flush();
        self.console.end(outcome);
    }
}

async fn caught(signal: &mut Signal, code: u8) -> u8 {
    match signal.recv().await {
        Some(()) => code,
        // No more of them will come.
        None => std::future::pending().await,
    }
}

/// How long scripts that were given up may take to end: a little longer than the host itself gives them.
const GRACE: Duration = Duration::from_secs(6);

/// The most that is waited before a retry unless --retry-delay says so.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

impl Arguments {
    /// What can't be together. An option that would have no effect is refused where somebody might count on it.
    fn check(&self) -> Result<(), UsageError> {
        let (fastcgi, is_fastcgi) = (&self.fastcgi, !matches!(self.to, To::Application(_)));
        let is_http = matches!(&self.to, To::Application(target) if target::is_http(target));
        let is_https = matches!(&self.to, To::Application(target) if matches!(target.address, Address::Https(_)));
        let is_responder = fastcgi.role == AskedRole::Responder;
        let mistakes = [
            (!is_fastcgi && !is_responder, "--role is for fastcgi: TO; nothing else has roles"),
            (fastcgi.filter_data.is_some() && fastcgi.role != AskedRole::Filter, "--filter-data is for --role filter"),
            (!is_https && self.message.cacert.is_some(), "--cacert is for https: TO"),
            (!is_fastcgi && fastcgi.keep_conn, "--keep-conn is for fastcgi: TO"),
            (!is_fastcgi && fastcgi.values.is_some(), "--values is for fastcgi: TO; nothing else has them"),
            (
                !is_fastcgi && fastcgi.client != Client::Gatespan,
                "--client is for fastcgi: TO; nothing else can be asked by fastcgi-client",
            ),
            (
                fastcgi.client == Client::FastcgiClient && (!is_responder || fastcgi.keep_conn),
                "--client fastcgi-client takes neither --role nor --keep-conn: it only knows responders",
            ),
            (
                is_http && (!fastcgi.params.is_empty() || !fastcgi.env_files.is_empty()),
                "-p and --env-file are for fastcgi: and cgi: TO; an HTTP server is told header fields (-H)",
            ),
            (
                is_http && (fastcgi.root.is_some() || fastcgi.script.is_some()),
                "--root and --script are for fastcgi: and cgi: TO; an HTTP server knows its own files",
            ),
            (
                fastcgi.role == AskedRole::Authorizer && self.body.is_any() && !self.body.get,
                "an authorizer is given no body (FastCGI 6.3): leave out the data, or add -G",
            ),
        ];
        match mistakes.into_iter().find(|(is_made, _)| *is_made) {
            Some((_, message)) => Err(UsageError(message.into())),
            None => Ok(()),
        }
    }
}

impl BodyOptions {
    fn is_any(&self) -> bool {
        let all = [&self.data, &self.data_binary, &self.data_raw, &self.data_urlencode, &self.forms];
        all.into_iter().any(|each| !each.is_empty())
    }

    /// The body, and its Content-Type.
    fn body(&self) -> Result<Option<(Body, String)>, Failure> {
        body::of(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("1m"), Ok(Duration::from_secs(60)));
        for wrong in ["", ".5", "5.", "1.5s", "-1", "1e3", "99999999.0", "nan"] {
            assert!(seconds(wrong).unwrap_err().contains("expected a length of time"), "{wrong}");
        }
    }
}
