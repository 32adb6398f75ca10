//! `gatespan bridge FROM TO`: a gateway, some middleware, and an application that lives somewhere else. This file is the command line
//! and what is made of it.

mod builtin;
mod effect;
mod log_file;
mod options;
mod target;
mod told;
mod values;
mod words;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use gatespan::Options;
use gatespan::address::{Address, AddressError, Endpoint};
use gatespan::application::{AnyApplication, Errors, Log};
use gatespan::gateway::{Afterwards, Event, RunError, run_at};
use gatespan::middleware::{
    AuthorizerConfig, Format, Mount, Redirects, SendFileRoots, access_log, authorizer, client_address, local_redirect,
    request_id, send_file, to_writer,
};
use gatespan::upstream::cgi;
use gatespan::upstream::cgi::spawn::{Identity, close_on_exec_all};
use gatespan::upstream::cgi::watcher::Watcher;

use self::log_file::LogFile;
use self::target::{Beside, Settings};
use self::told::told;
use crate::logging::{Form, SERVING};

/// Take requests in at FROM, and have them answered by TO
///
/// FROM is where requests come in: http://HOST:PORT, http:/path/of/socket, fastcgi:/path/of/socket, fastcgi://HOST:PORT, either with @NAME for an abstract
/// socket or with fd for one that is handed over (descriptor 0, or LISTEN_FDS from systemd); or cgi:, where a web server starts this
/// process as a CGI script.
///
/// TO is what answers: cgi:/FOLDER/ for the CGI programs in a folder, cgi:/PROGRAM for one of them; fastcgi:/SOCKET, fastcgi://HOST:PORT or
/// fastcgi:@NAME for a FastCGI server, fastcgi:exec:/PROGRAM for one that is started here, each with --root for the scripts and files of a site;
/// http://HOST:PORT, http:/SOCKET or https://HOST for an HTTP server; file:/FOLDER for files; or an application that is built in: app:hello (a line of
/// text), app:environ (what an application is told), app:echo (the request's body), app:demo (that of gatespan demo).
///
/// An option that has no effect for the targets that are named is refused.
///
/// Sizes are such as 64K, 10M or 1G (K is 1,024), lengths of time such as 500ms, 30s or 2m; a number alone is bytes or seconds.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where requests come in
    #[arg(value_name = "FROM", value_parser = parse_from)]
    from: Address,
    /// What answers them
    #[arg(value_name = "TO", value_parser = target::parse)]
    to: Address,
    /// Send paths that begin so elsewhere, the longest first; what is sent there sees the rest as its path. May be repeated
    #[arg(long = "route", value_name = "/PREFIX=TO", value_parser = parse_route)]
    routes: Vec<(String, Address)>,
    /// Answer below this path only, which is then SCRIPT_NAME [default: the root, or what the web server says]
    #[arg(long, value_name = "/PREFIX", value_parser = values::prefix)]
    script_name: Option<String>,
    /// How often a script may send one request on to another path of the site
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    max_redirects: usize,
    #[command(flatten)]
    listening: Listening,
    #[command(flatten)]
    clients: options::Clients,
    #[command(flatten)]
    scripts: Scripts,
    #[command(flatten)]
    servers: options::Servers,
    #[command(flatten)]
    programs: options::Programs,
    #[command(flatten)]
    sites: options::Sites,
    #[command(flatten)]
    bodies: Bodies,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    numbers: Numbers,
    #[command(flatten)]
    limits: ScriptLimits,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    log: AccessLog,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Listening")]
struct Listening {
    /// The mode of a Unix socket: whoever may write to it may send requests
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = values::mode)]
    socket_mode: u32,
    /// The owner of a Unix socket, and its group [default: as this process]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = parse_owner)]
    socket_owner: Option<(u32, Option<u32>)>,
    /// Take FastCGI connections over TCP from this address only; needed outside loopback. May be repeated [default: what FCGI_WEB_SERVER_ADDRS
    /// says]
    #[arg(long, value_name = "ADDRESS")]
    allow: Vec<IpAddr>,
    /// Take FastCGI connections to an abstract socket from this user too, besides root and the user of this process. May be repeated
    #[arg(long = "allow-user", value_name = "USER", value_parser = parse_user)]
    allow_users: Vec<u32>,
    /// Connections at once; further ones wait to be accepted
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    max_connections: usize,
    /// The longest request body of HTTP; longer ones are 413. Behind FastCGI and CGI the web server has such a limit [default: none]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_body: Option<u64>,
    /// Threads that move bytes [default: one for each processor]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    threads: Option<usize>,
    /// How long running requests have to finish after SIGTERM or SIGINT; a second signal ends them at once
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    shutdown_timeout: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Scripts (cgi:, fastcgi:)")]
struct Scripts {
    /// For cgi: a further folder that scripts may lie in, after TO's; may be repeated. For fastcgi: the folder of a site, whose scripts go to TO (where
    /// TO is none, to the FastCGI servers of routes) and whose files are sent
    #[arg(long = "root", value_name = "FOLDER")]
    roots: Vec<PathBuf>,
    /// What answers for its folder. May be repeated; the first that is there counts [default: index.php and index.html for a site, index.html for
    /// file:, none for cgi:]
    #[arg(long, value_name = "NAME")]
    index: Vec<OsString>,
    /// Run files of this ending with a program, whether or not they are executable. May be repeated
    #[arg(long = "interpreter", value_name = ".ENDING=PROGRAM", value_parser = values::interpreter)]
    interpreters: Vec<(OsString, PathBuf)>,
    /// Set a variable for scripts and programs. May be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::variable)]
    env: Vec<(OsString, OsString)>,
    /// Let a variable through that steers loaders or interpreters, from the web server or from this process. May be repeated; NAME* is all that begin so
    #[arg(long, value_name = "NAME")]
    pass_env: Vec<OsString>,
    /// Run scripts as this user, by name or number (root only) [default: as this process]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Run scripts as this group [default: the user's]
    #[arg(long, value_name = "GROUP", requires = "user")]
    group: Option<String>,
    /// Make arguments of a query without "=" (RFC 3875 4.4), never one that begins with "-"
    #[arg(long)]
    isindex: bool,
    /// Send what scripts write to standard error to the web server's log as well
    #[arg(short = 'f', long)]
    stderr_to_server: bool,
    /// Say on error pages why a request failed, and what mends it: for nobody but you to see
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Request bodies of unknown length (cgi:, fastcgi:)")]
struct Bodies {
    /// What becomes of one [default: spool]
    #[arg(long, value_name = "HOW", value_enum)]
    request_body: Option<RequestBody>,
    /// The longest that is spooled; longer ones are 413 [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    spool_limit: Option<u64>,
    /// How much of each is kept in memory before it goes to a file without a name, in TMPDIR or /tmp [default: 64K for cgi:, 256K for fastcgi:]
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    spool_memory: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RequestBody {
    /// Read it first, so that the application is told CONTENT_LENGTH
    Spool,
    /// Pass it on as it comes, without CONTENT_LENGTH; the application reads to the end of its input
    Stream,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Time limits")]
struct Times {
    /// How long a script or server may take to the end of its response head; then 504 [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    head_timeout: Option<Duration>,
    /// How long it may send nothing after that [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    read_timeout: Option<Duration>,
    /// How long it may take in all [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// How long a script or program and what it started have between SIGTERM and SIGKILL [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    kill_grace: Option<Duration>,
    /// End processes that a script leaves running when it ends
    #[arg(long)]
    kill_leftovers: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How many at once")]
struct Numbers {
    /// Scripts that run at once, for each TO [default: 64]
    #[arg(short, long, value_name = "NUMBER", value_parser = values::at_least_one)]
    concurrent: Option<usize>,
    /// Processes of one script that run at once [default: no further limit]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    concurrent_per_script: Option<usize>,
    /// Requests that wait for their turn; one more is 503 [default: 256 for cgi:, 1024 for servers]
    #[arg(long, value_name = "NUMBER")]
    queue: Option<usize>,
    /// How long a request waits before it is 503 [default: 10s, 30s for fastcgi:]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    queue_wait: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What a script may use up (setrlimit)")]
struct ScriptLimits {
    /// Processor time, in whole seconds [default: as this process]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    limit_cpu: Option<Duration>,
    /// Address space [default: as this process]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    limit_memory: Option<u64>,
    /// Open files [default: as this process]
    #[arg(long, value_name = "NUMBER")]
    limit_files: Option<u64>,
    /// Processes of the script's user, all of them together [default: as this process]
    #[arg(long, value_name = "NUMBER")]
    limit_processes: Option<u64>,
    /// The longest file that it may write [default: as this process]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    limit_file_size: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files that are sent by name")]
struct Files {
    /// Serve X-Sendfile from this folder; else the header passes on. May be repeated
    #[arg(long = "send-file-root", value_name = "FOLDER")]
    send_file_roots: Vec<PathBuf>,
    /// Serve X-Accel-Redirect below this path from a folder; else the header passes on. May be repeated
    #[arg(long = "accel-root", value_name = "/PREFIX/=FOLDER", value_parser = values::accel_root)]
    accel_roots: Vec<(String, PathBuf)>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
struct AccessLog {
    /// A line for each request, in this file, or - for standard output: combined with seconds and request id behind it, or JSON with --log-format
    /// json. SIGHUP opens the file anew [default: none]
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Name each request in the response (X-Request-Id). Logs and scripts are told either way, and a name that the request brings is kept
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t = OnOff::On)]
    request_id: OnOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

const EXAMPLES: &str = "\
Examples:
  gatespan bridge http://127.0.0.1:8080 cgi:cgi-bin/               a web server for CGI programs
  gatespan bridge fastcgi:/run/gw.sock cgi:/usr/lib/cgi-bin/       what fcgiwrap does
  gatespan bridge fastcgi:fd cgi:/usr/lib/cgi-bin/                 with a socket from systemd
  gatespan bridge http://[::1]:8080 cgi:/usr/lib/cgit/cgit.cgi     one program for all paths
  gatespan bridge http://127.0.0.1:8080 fastcgi:/run/php/php-fpm.sock --root site/
                                                                   a web server for PHP
  gatespan bridge http://127.0.0.1:8080 fastcgi:exec:bin/app       a program, started and watched
  gatespan bridge fastcgi:/run/gw.sock http://127.0.0.1:3000       HTTP behind fastcgi_pass
  gatespan bridge http://127.0.0.1:8080 cgi:bin/ --route /hi=app:hello --access-log -
  gatespan bridge http://127.0.0.1:8080 app:environ                what an application is told

A PHP site with a front controller also needs, as WordPress has it:
  --try-files '$uri $uri/ /index.php?$args' --deny '/wp-content/uploads/*.php'

As a CGI script, with this as its first line; nothing that follows TO is read as an option:
  #!/usr/bin/env -S gatespan bridge cgi: cgi:/srv/scripts/
  #!/usr/bin/env -S gatespan bridge cgi: fastcgi:/run/app.sock

Signals:
  SIGTERM, SIGINT  running requests are finished, within --shutdown-timeout; a second ends them
  SIGHUP           the file of --access-log is opened anew

Exit codes:
  0    ended by a signal, or the script's request answered
  1    not served, or not to the end, and standard error says why
  2    the command line could not be understood
  143  ended by a second SIGTERM (130 by SIGINT)";

/// A mistake in the command line that only shows when its parts are put together: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

fn parse_from(text: &str) -> Result<Address, String> {
    let expected = || {
        format!(
            "expected where requests come in, such as http://127.0.0.1:8080, fastcgi:/run/gatespan.sock or cgi:, got \"{text}\""
        )
    };
    match text.parse() {
        Ok(address @ (Address::Http(_) | Address::FastCgi(_) | Address::CgiProcess)) => Ok(address),
        Ok(_) | Err(AddressError::NoScheme(_) | AddressError::UnknownScheme(_)) => Err(expected()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_route(text: &str) -> Result<(String, Address), String> {
    let (prefix, to) = values::pair(text, "/PREFIX=TO, such as /hello=app:hello")?;
    Ok((values::prefix(prefix)?, target::parse(to)?))
}

fn parse_owner(text: &str) -> Result<(u32, Option<u32>), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let identity = Identity::of_names(user, group).map_err(|error| format!("{error}"))?;
    Ok((identity.uid, group.map(|_| identity.gid)))
}

fn parse_user(text: &str) -> Result<u32, String> {
    Identity::of_names(text, None).map(|identity| identity.uid).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: &Arguments, form: Form) -> anyhow::Result<()> {
    let is_script = arguments.from == Address::CgiProcess;
    let running = target::Running::default();
    let served = prepare(arguments, form, &running).and_then(|Prepared { application, log, hosts }| {
        let at = arguments.script_name.clone().unwrap_or_default();
        let to = arguments.to.to_string();
        let programs = running.clone();
        let tell = move |event: Event<'_>| match event {
            Event::Listening(addresses) => {
                for address in addresses {
                    let slash = if matches!(address, Address::Http(Endpoint::Tcp { .. })) { "/" } else { "" };
                    say(form, format_args!("serving {to} at {address}{at}{slash}"));
                }
                if let Some(log) = &log {
                    log.reopen_at_hangup();
                }
            }
            Event::Ending => programs.kill(),
            Event::Stopping => say(form, "stopping when the running requests are finished; another signal ends them"),
            _ => {}
        };
        let mut options = arguments.options();
        // Scripts that were cut off have their grace; as a script, this process has one request, and what answered it may finish.
        let grace = arguments.times.kill_grace.unwrap_or(cgi::Config::default().kill_grace);
        let at_most = (!is_script).then(|| grace.saturating_add(Duration::from_secs(1)));
        options.afterwards = Afterwards::new(idle(hosts, at_most));
        run_at(std::slice::from_ref(&arguments.from), application, options, tell).map_err(|error| match error {
            RunError::Arguments(message) => UsageError(message).into(),
            error => error.into(),
        })
    });
    // Their requests are finished, or were given up.
    running.shutdown();
    // After the gateway has begun to answer, the page would be in the middle of another.
    if let Err(error) = &served
        && is_script
        && error.downcast_ref::<RunError>().is_none()
    {
        crate::answer_with_500();
    }
    served
}

/// Waits until no script runs, or so long. What still runs then is killed.
async fn idle(hosts: Vec<Arc<cgi::Host>>, at_most: Option<Duration>) {
    let all = async {
        for host in &hosts {
            host.idle().await;
        }
    };
    match at_most {
        Some(at_most) => _ = tokio::time::timeout(at_most, all).await,
        None => all.await,
    }
}

/// What is there before anything listens.
struct Prepared {
    application: AnyApplication,
    /// The file of the access log.
    log: Option<LogFile>,
    hosts: Vec<Arc<cgi::Host>>,
}

/// What is to be done before there is a thread that answers requests.
fn prepare(arguments: &Arguments, form: Form, running: &target::Running) -> anyhow::Result<Prepared> {
    arguments.check()?;
    arguments.check_effects()?;
    let has_scripts = arguments.targets().any(|to| matches!(to, Address::Cgi(_)));
    let has_programs = arguments.targets().any(|to| matches!(to, Address::FastCgiProgram(_)));
    let mut config = arguments.cgi_config()?;
    let as_root = rustix::process::geteuid().is_root() && config.identity.is_none();
    if has_scripts || has_programs {
        // What whoever started this process left open is not for scripts.
        close_on_exec_all()
            .context("the descriptors that this process was started with could not be kept from scripts")?;
    }
    if has_scripts {
        config.watcher = Some(Watcher::start().context("the process that watches over scripts could not be started")?);
    }
    let settings = target::Settings {
        cgi: config,
        fastcgi: arguments.fastcgi_config(),
        multiplex: arguments.servers.multiplex,
        // To find out how many processors there are takes a CGI program's time.
        program: has_programs.then(|| arguments.program_config()),
        http: arguments.http_config(),
        files: arguments.files_config()?,
        site: arguments.site_config()?,
        running: running.clone(),
        hosts: RefCell::default(),
    };
    let mut application = arguments.open_all(&settings)?;
    if has_scripts && as_root && arguments.from != Address::CgiProcess {
        tracing::warn!("scripts run as root, which few of them need: name somebody else with --user");
    }
    let Files { send_file_roots, accel_roots } = &arguments.files;
    if !send_file_roots.is_empty() || !accel_roots.is_empty() {
        let roots = SendFileRoots { files: send_file_roots.clone(), accel: accel_roots.clone() };
        application = AnyApplication::new(send_file(application, &roots)?);
    }
    for (_, to) in arguments.clients.authorizers.iter().filter(|(prefix, _)| prefix.is_none()) {
        application = asking_first(application, to, &settings)?;
    }
    let redirects = Redirects { max: arguments.max_redirects, mount: arguments.mount() };
    application = AnyApplication::new(local_redirect(application, redirects));
    let log = match &arguments.log.access_log {
        None => None,
        Some(path) => {
            let log = LogFile::open(path)
                .with_context(|| format!("{}: the access log could not be opened", path.display()))?;
            let format = match form {
                Form::Text => Format::Traced,
                Form::Json => Format::Json,
            };
            application = AnyApplication::new(access_log(application, format, to_writer(log.clone())));
            Some(log)
        }
    };
    if let Some(config) = arguments.clients.client_address() {
        application = AnyApplication::new(client_address(application, config));
    }
    // The web server's log is not this process's, where failures are to be found as well.
    if matches!(arguments.from, Address::FastCgi(_)) {
        application = AnyApplication::new(told(application));
    }
    let named = request_id(application);
    let named = match arguments.log.request_id {
        OnOff::On => named,
        OnOff::Off => named.without_response_header(),
    };
    Ok(Prepared { application: AnyApplication::new(named), log, hosts: settings.hosts.into_inner() })
}

/// The application, behind an authorizer.
fn asking_first(application: AnyApplication, to: &Address, settings: &Settings) -> anyhow::Result<AnyApplication> {
    let asked = target::open(to, Beside::default(), settings)?;
    Ok(AnyApplication::new(authorizer(application, asked, AuthorizerConfig::default())))
}

impl Arguments {
    /// What can't be together. An option that would have no effect is refused where somebody might count on it.
    fn check(&self) -> Result<(), UsageError> {
        let is_http = matches!(self.from, Address::Http(_));
        let is_script = self.from == Address::CgiProcess;
        let at = |wanted: fn(&Endpoint) -> bool| match &self.from {
            Address::Http(endpoint) | Address::FastCgi(endpoint) => wanted(endpoint),
            _ => false,
        };
        let listening = &self.listening;
        let mistakes = [
            (
                listening.max_body.is_some() && !is_http,
                "--max-body is for http: FROM; elsewhere the web server limits bodies (client_max_body_size in nginx)",
            ),
            (
                !listening.allow.is_empty()
                    && (is_http || !at(|endpoint| matches!(endpoint, Endpoint::Tcp { .. } | Endpoint::Inherited))),
                "--allow is for fastcgi://HOST:PORT; elsewhere the address or the socket's mode says who may connect",
            ),
            (
                !listening.allow_users.is_empty()
                    && (is_http || !at(|endpoint| matches!(endpoint, Endpoint::Abstract(_) | Endpoint::Inherited))),
                "--allow-user is for fastcgi:@NAME; elsewhere the socket's mode and owner say who may connect",
            ),
            (
                listening.socket_owner.is_some() && !at(|endpoint| matches!(endpoint, Endpoint::Unix(_))),
                "--socket-owner is for a socket in the file system, such as fastcgi:/run/gatespan.sock",
            ),
            (
                is_http && self.scripts.stderr_to_server,
                "--stderr-to-server is for fastcgi: and cgi: FROM; elsewhere there is no web server, and standard error is in this log",
            ),
            (
                is_script && self.script_name.is_some(),
                "--script-name is not for cgi: FROM; the web server that starts the script says what it is called",
            ),
            (
                is_script && self.log.access_log.as_deref().is_some_and(|path| path == "-"),
                "--access-log - is not for cgi: FROM, whose standard output is the answer",
            ),
        ];
        match mistakes.into_iter().find(|(is_made, _)| *is_made) {
            Some((_, message)) => Err(UsageError(message.into())),
            None => Ok(()),
        }
    }

    /// TO, and the routes in front of it.
    fn open_all(&self, settings: &Settings) -> anyhow::Result<AnyApplication> {
        let root = self.site_root();
        let is_served = |to: &Address| matches!(to, Address::FastCgi(_) | Address::FastCgiProgram(_));
        let beside = Beside { also: &self.servers.also, root: root.filter(|_| is_served(&self.to)) };
        let application = target::open(&self.to, beside, settings)?;
        if self.routes.is_empty() {
            return Ok(application);
        }
        let mut mount = Mount::new().fallback(application);
        for (prefix, to) in &self.routes {
            let root = root.filter(|_| is_served(to) && !is_served(&self.to));
            let mut application = target::open(to, Beside { also: &[], root }, settings)?;
            for (_, to) in self.clients.authorizers.iter().filter(|(at, _)| at.as_ref() == Some(prefix)) {
                application = asking_first(application, to, settings)?;
            }
            mount = mount.at(prefix, application);
        }
        Ok(AnyApplication::new(mount))
    }

    /// The folder of a site, where --root is one: TO says which it is, and if TO takes none, the routes do.
    fn site_root(&self) -> Option<&Path> {
        let routes = || self.routes.iter().map(|(_, to)| to);
        let is_site = match &self.to {
            Address::FastCgi(_) | Address::FastCgiProgram(_) => true,
            Address::Cgi(_) => false,
            _ => {
                !routes().any(|to| matches!(to, Address::Cgi(_)))
                    && routes().any(|to| matches!(to, Address::FastCgi(_) | Address::FastCgiProgram(_)))
            }
        };
        self.scripts.roots.first().filter(|_| is_site).map(PathBuf::as_path)
    }

    /// What is SCRIPT_NAME for the application as a whole, where that is known.
    fn mount(&self) -> Option<Vec<u8>> {
        match (&self.from, &self.script_name) {
            (_, Some(prefix)) => Some(prefix.clone().into_bytes()),
            // A web server may say there which script it has found.
            (Address::FastCgi(_), None) => Some(Vec::new()),
            _ => None,
        }
    }

    fn options(&self) -> Options {
        let Listening {
            socket_mode,
            socket_owner,
            allow,
            allow_users,
            max_connections,
            max_body,
            threads,
            shutdown_timeout,
        } = &self.listening;
        let mut options = Options::default();
        options.listen.socket_mode = *socket_mode;
        options.listen.socket_owner = (socket_owner.map(|(user, _)| user), socket_owner.and_then(|(_, group)| group));
        options.threads = *threads;
        if !allow.is_empty() {
            options.fastcgi.allow.clone_from(allow);
        }
        options.fastcgi.allow_uids.clone_from(allow_users);
        options.fastcgi.max_connections = *max_connections;
        options.fastcgi.shutdown_timeout = *shutdown_timeout;
        // Routes are looked for in PATH_INFO, where the stock parameters of web servers have no path.
        let routed = (!self.routes.is_empty()).then(Vec::new);
        options.fastcgi.script_name = self.script_name.clone().map(String::into_bytes).or(routed);
        options.http.max_connections = *max_connections;
        options.http.shutdown_timeout = *shutdown_timeout;
        options.http.max_body = *max_body;
        options.http.script_name = self.script_name.clone().map(String::into_bytes);
        options.http.errors = Errors::new(Arc::new(Tracing));
        options
    }

    fn cgi_config(&self) -> anyhow::Result<cgi::Config> {
        let mut config = cgi::Config::default();
        let Scripts { roots, index, interpreters, env, pass_env, user, group, isindex, stderr_to_server, debug } =
            &self.scripts;
        if self.site_root().is_none() {
            config.roots.clone_from(roots);
        }
        config.index.clone_from(index);
        config.interpreters.clone_from(interpreters);
        config.environment.clone_from(env);
        config.pass_environment.clone_from(pass_env);
        config.identity = user.as_deref().map(|user| identity(user, group.as_deref())).transpose()?;
        config.isindex = *isindex;
        config.stderr_to_web_server = *stderr_to_server;
        config.debug = *debug;
        let Bodies { request_body, spool_limit, spool_memory } = self.bodies;
        if let Some(how) = request_body {
            config.request_body = match how {
                RequestBody::Spool => cgi::RequestBody::Spool,
                RequestBody::Stream => cgi::RequestBody::Stream,
            };
        }
        set(&mut config.spool_limit, spool_limit);
        set(&mut config.spool_memory, spool_memory);
        let Times { head_timeout, read_timeout, timeout, kill_grace, kill_leftovers } = self.times;
        set(&mut config.head_timeout, head_timeout);
        set(&mut config.read_timeout, read_timeout);
        set(&mut config.kill_grace, kill_grace);
        (config.timeout, config.kill_leftovers) = (timeout, kill_leftovers);
        let Numbers { concurrent, concurrent_per_script, queue, queue_wait } = self.numbers;
        set(&mut config.concurrent, concurrent);
        set(&mut config.queue, queue);
        set(&mut config.queue_wait, queue_wait);
        config.concurrent_per_script = concurrent_per_script;
        let ScriptLimits { limit_cpu, limit_memory, limit_files, limit_processes, limit_file_size } = self.limits;
        let limits = &mut config.limits;
        // A part of a second is a whole one: none at all would end every script at once.
        limits.cpu_time = limit_cpu.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
        (limits.memory, limits.open_files, limits.processes) = (limit_memory, limit_files, limit_processes);
        limits.file_size = limit_file_size;
        Ok(config)
    }
}

/// Takes an option's value over, where there is one: else the library's own default stays.
fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

/// Whom scripts run as. Who is not root can be nobody else, which is better said now than at each request.
fn identity(user: &str, group: Option<&str>) -> anyhow::Result<Identity> {
    let identity = Identity::of_names(user, group)
        .with_context(|| format!("scripts can't run as user {user}, group {}", group.unwrap_or("of the user")))?;
    let own = rustix::process::geteuid();
    if !own.is_root() {
        anyhow::bail!(
            "expected to be started by root, since --user is given, and was started by user {own}",
            own = own.as_raw()
        );
    }
    Ok(identity)
}

/// A line for whoever started the bridge, in the form of the log.
fn say(form: Form, line: impl Display) {
    match form {
        Form::Json => tracing::info!(target: SERVING, "{line}"),
        Form::Text if tracing::enabled!(target: SERVING, tracing::Level::INFO) => {
            // A standard error that is closed is no reason not to serve.
            let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
        }
        Form::Text => {}
    }
}

/// What applications and the HTTP gateway have to say about a request, as part of the tool's log.
struct Tracing;

impl Log for Tracing {
    fn write(&self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            tracing::warn!("{line}");
        }
    }
}

/// The command line, cut behind TO, where FROM is `cgi:`: what follows may be a client's.
pub(crate) fn words_of_a_script(tool: &clap::Command, words: &[OsString]) -> Option<Vec<OsString>> {
    words::up_to_target(tool, words)
}

/// Whether descriptor 0 is a listening socket: then this process is a server, whatever else the environment says, and its command line its
/// administrator's.
pub(crate) fn is_handed_a_socket() -> bool {
    rustix::net::sockopt::socket_acceptconn(io::stdin().as_fd()).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use gatespan::upstream::{fastcgi, files, http, site};

    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        let words = ["gatespan", "bridge"].iter().chain(words);
        match crate::Cli::try_parse_from(words).expect("understood").command {
            crate::Command::Bridge(arguments) => *arguments,
            _ => unreachable!("the command is bridge"),
        }
    }

    #[test]
    fn the_defaults_that_help_shows_are_the_librarys() {
        let arguments = arguments(&["http://127.0.0.1:0", "app:hello"]);
        let config = arguments.cgi_config().unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", cgi::Config::default()));
        let defaults = [
            (format!("{:?}", arguments.fastcgi_config()), format!("{:?}", fastcgi::Config::default())),
            (format!("{:?}", arguments.http_config()), format!("{:?}", http::Config::default())),
            (format!("{:?}", arguments.files_config().unwrap()), format!("{:?}", files::Config::default())),
            (format!("{:?}", arguments.site_config().unwrap()), format!("{:?}", site::Config::default())),
            (format!("{:?}", arguments.program_config()), format!("{:?}", fastcgi::ProgramConfig::new(""))),
        ];
        for (own, library) in defaults {
            assert_eq!(own, library);
        }
        let options = arguments.options();
        let default = Options::default();
        assert_eq!(options.listen.socket_mode, default.listen.socket_mode);
        assert_eq!(options.fastcgi.shutdown_timeout, default.fastcgi.shutdown_timeout);
        assert_eq!(options.http.shutdown_timeout, default.http.shutdown_timeout);
        assert_eq!(options.fastcgi.max_connections, default.fastcgi.max_connections);
        assert_eq!(options.fastcgi.script_name, None);
        assert_eq!(arguments.max_redirects, Redirects::default().max);
    }

    #[test]
    fn what_can_not_be_together_is_refused() {
        for words in [
            &["fastcgi:@a", "app:hello", "--max-body", "1M"][..],
            &["cgi:", "app:hello", "--max-body", "1M"],
            &["http://127.0.0.1:0", "app:hello", "--allow", "127.0.0.1"],
            &["fastcgi:/a.sock", "app:hello", "--allow", "127.0.0.1"],
            &["fastcgi:/a.sock", "app:hello", "--allow-user", "0"],
            &["http://127.0.0.1:0", "app:hello", "--socket-owner", "0"],
            &["http://127.0.0.1:0", "app:hello", "-f"],
            &["cgi:", "app:hello", "--script-name", "/a"],
            &["cgi:", "app:hello", "--access-log", "-"],
        ] {
            assert!(arguments(words).check().is_err(), "{words:?}");
        }
        arguments(&["fastcgi:/a.sock", "app:hello", "--socket-owner", "0"]).check().unwrap();
        arguments(&["fastcgi:fd", "app:hello", "--allow", "::1", "--allow-user", "0"]).check().unwrap();
    }

    #[test]
    fn routes_are_found_in_the_whole_path_behind_fastcgi() {
        let words = ["fastcgi:@a", "app:hello", "--route", "/a=app:echo"];
        assert_eq!(arguments(&words).options().fastcgi.script_name, Some(Vec::new()));
    }
}
