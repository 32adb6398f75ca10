//! `run`: what an application's `main` calls. It finds out which gateway this process is, by how it was started.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "cgi")]
use super::cgi;
#[cfg(feature = "fastcgi")]
use super::fastcgi;
#[cfg(feature = "http")]
use super::http;
use super::listener::{ListenError, ListenOptions, Listener, is_listening};
use crate::address::{Address, AddressError, Endpoint};
use crate::application::Application;

/// The environment variable that holds the addresses to listen on, with blanks between them, where the command line names none.
pub const ADDRESS: &str = "GATESPAN_ADDRESS";

/// The environment variable that says where behind a FastCGI server the application is mounted:
/// [`fastcgi::Config::script_name`], `/` or an empty value for the root.
pub const SCRIPT_NAME: &str = "GATESPAN_SCRIPT_NAME";

/// The port that is tried first when nothing says where to listen; when it is taken, the system chooses one.
pub const DEFAULT_PORT: u16 = 8080;

/// The settings of all gateways, of which one will be used, or those of several listeners.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// For a process that is a CGI script.
    #[cfg(feature = "cgi")]
    pub cgi: cgi::Config,
    /// For a process behind a FastCGI server.
    #[cfg(feature = "fastcgi")]
    pub fastcgi: fastcgi::Config,
    /// For a process that is an HTTP server.
    #[cfg(feature = "http")]
    pub http: http::Config,
    /// How sockets are made.
    pub listen: ListenOptions,
    /// How many threads call the application, unless it is a CGI script, which has one. Default: one for each processor that
    /// this process may use.
    pub threads: Option<usize>,
}

/// Serves an application through whichever gateway this process is, and comes back with the process's exit code.
///
/// In this order:
///
/// 1. descriptor 0 is a listening socket: FastCGI on it, as web servers and spawners start such processes;
/// 2. `LISTEN_FDS` is for this process (systemd): each socket by its name in `LISTEN_FDNAMES`, `http` or `fastcgi`; FastCGI
///    without one;
/// 3. `GATEWAY_INTERFACE` is set: CGI;
/// 4. addresses on the command line, or in the environment variable [`ADDRESS`]: `http://HOST:PORT`, `fastcgi:/path/to.sock`, …;
/// 5. otherwise HTTP on a loopback port, which is printed.
///
/// A first SIGTERM or SIGINT lets running requests finish, within the gateways' limits; a second ends the process at once. The code is 0
/// after such an end, 1 when serving failed, 2 for a command line that can't be understood.
pub fn run<A: Application>(application: A) -> ExitCode {
    run_with(application, Options::default())
}

/// As [`run`], with other settings.
pub fn run_with<A: Application>(application: A, options: Options) -> ExitCode {
    let started = match Start::find() {
        Ok(Start::Help) => {
            print_help();
            return ExitCode::SUCCESS;
        }
        Ok(start) => start.run(application, options),
        Err(error) => Err(error),
    };
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(if matches!(error, RunError::Arguments(_)) { 2 } else { 1 })
        }
    }
}

/// How this process was started.
enum Start {
    #[cfg(feature = "cgi")]
    Cgi,
    /// With sockets that are there already.
    Sockets(Vec<(Gateway, OwnedFd, i32)>),
    /// With addresses.
    Addresses(Vec<(Gateway, Endpoint)>),
    /// With nothing that says anything.
    Bare,
    Help,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gateway {
    FastCgi,
    Http,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{0}")]
    Arguments(String),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the runtime could not be started")]
    Runtime(#[source] io::Error),
    #[cfg(not(all(feature = "cgi", feature = "fastcgi", feature = "http")))]
    #[error("this program was built without the {0} gateway")]
    NotBuilt(&'static str),
    #[cfg(feature = "fastcgi")]
    #[error(transparent)]
    FastCgi(#[from] fastcgi::ServeError),
    #[cfg(feature = "cgi")]
    #[error(transparent)]
    Cgi(#[from] cgi::CgiError),
}

impl Start {
    fn find() -> Result<Self, RunError> {
        // A worker that a CGI program started inherits its GATEWAY_INTERFACE: the socket is asked first.
        if is_listening(io::stdin().as_fd())
            && let Ok(socket) = io::stdin().as_fd().try_clone_to_owned()
        {
            return Ok(Self::Sockets(vec![(Gateway::FastCgi, socket, 0)]));
        }
        let sockets = listen_fds();
        if !sockets.is_empty() {
            return Ok(Self::Sockets(sockets));
        }
        if std::env::var_os("GATEWAY_INTERFACE").is_some() {
            #[cfg(feature = "cgi")]
            return Ok(Self::Cgi);
            #[cfg(not(feature = "cgi"))]
            return Err(RunError::NotBuilt("CGI"));
        }
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
            return Ok(Self::Help);
        }
        let addresses = if arguments.is_empty() {
            let variable = std::env::var_os(ADDRESS).unwrap_or_default();
            variable.to_string_lossy().split_whitespace().map(OsString::from).collect()
        } else {
            arguments
        };
        if addresses.is_empty() {
            return Ok(Self::Bare);
        }
        addresses
            .iter()
            .map(|address| parse_address(&address.to_string_lossy()))
            .collect::<Result<_, _>>()
            .map(Self::Addresses)
    }

    fn run<A: Application>(self, application: A, options: Options) -> Result<(), RunError> {
        match self {
            #[cfg(feature = "cgi")]
            Self::Cgi => {
                // One request, one thread; the signals are asked for only when the application has to be waited for.
                let runtime = Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
                let result = runtime.block_on(cgi::serve(application, options.cgi, async {
                    StopSignals::new().next().await;
                }));
                // Threads that the application left behind are not waited for.
                runtime.shutdown_background();
                Ok(result?)
            }
            Self::Sockets(sockets) => runtime(options.threads)?.block_on(async {
                let mut listeners = Vec::new();
                for (gateway, socket, number) in sockets {
                    listeners.push((gateway, Listener::from_descriptor(socket, number)?));
                }
                // Whoever hands sockets over may have given them to several processes.
                #[cfg(feature = "fastcgi")]
                let options = Options { fastcgi: fastcgi::Config { multiprocess: true, ..options.fastcgi }, ..options };
                serve_all(listeners, false, application, options).await
            }),
            Self::Addresses(addresses) => runtime(options.threads)?.block_on(async {
                let mut listeners = Vec::new();
                for (gateway, endpoint) in addresses {
                    let listener = Listener::bind(&endpoint, &options.listen).await?;
                    listeners.push((gateway, listener));
                }
                serve_all(listeners, true, application, options).await
            }),
            Self::Bare => runtime(options.threads)?.block_on(async {
                let loopback = |port| Endpoint::Tcp { host: "127.0.0.1".into(), port };
                let listener = match Listener::bind(&loopback(DEFAULT_PORT), &options.listen).await {
                    Ok(listener) => listener,
                    Err(_) => Listener::bind(&loopback(0), &options.listen).await?,
                };
                serve_all(vec![(Gateway::Http, listener)], true, application, options).await
            }),
            Self::Help => Ok(()),
        }
    }
}

fn parse_address(text: &str) -> Result<(Gateway, Endpoint), RunError> {
    match text.parse() {
        Ok(Address::Http(endpoint)) => Ok((Gateway::Http, endpoint)),
        Ok(Address::FastCgi(endpoint)) => Ok((Gateway::FastCgi, endpoint)),
        Ok(other) => {
            Err(RunError::Arguments(format!("expected an address to listen on, http:… or fastcgi:…, got \"{other}\"")))
        }
        Err(error) => {
            let error: AddressError = error;
            Err(RunError::Arguments(error.to_string()))
        }
    }
}

/// Serves several listeners with one application until the signal comes and all are done.
async fn serve_all<A: Application>(
    listeners: Vec<(Gateway, Listener)>,
    announced: bool,
    application: A,
    options: Options,
) -> Result<(), RunError> {
    let application = Arc::new(application);
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    // Before anybody is told that this process serves: whoever knows may stop it.
    let mut signals = StopSignals::new();
    for (gateway, listener) in listeners.iter().filter(|_| announced) {
        announce(*gateway, listener);
    }
    tokio::spawn(async move {
        signals.next().await;
        signalled.cancel();
        // Whoever asks twice does not want to wait for anything.
        std::process::exit(128 + signals.next().await);
    });
    let mut serving = tokio::task::JoinSet::new();
    for (gateway, listener) in listeners {
        let (application, options, stop) = (application.clone(), options.clone(), stop.clone());
        serving.spawn(async move { serve_one(gateway, listener, application, options, stop.cancelled_owned()).await });
    }
    let mut result = Ok(());
    while let Some(served) = serving.join_next().await {
        // A task that panicked has said so on standard error; it was one of ours, so there is no more to do for it.
        if let Ok(Err(error)) = served {
            result = Err(error);
            stop.cancel();
        }
    }
    result
}

#[cfg_attr(
    not(any(feature = "fastcgi", feature = "http")),
    expect(unused_variables, reason = "without a gateway for it there is nothing to do with a listener")
)]
async fn serve_one<A: Application>(
    gateway: Gateway,
    listener: Listener,
    application: Arc<A>,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    match gateway {
        #[cfg(feature = "fastcgi")]
        Gateway::FastCgi => {
            let mut config = options.fastcgi;
            if let Some(script_name) = std::env::var_os(SCRIPT_NAME) {
                let script_name = script_name.into_encoded_bytes();
                config.script_name = Some(script_name.strip_suffix(b"/").map(<[u8]>::to_vec).unwrap_or(script_name));
            }
            Ok(fastcgi::serve(listener, application, config, shutdown).await?)
        }
        #[cfg(not(feature = "fastcgi"))]
        Gateway::FastCgi => Err(RunError::NotBuilt("FastCGI")),
        #[cfg(feature = "http")]
        Gateway::Http => {
            http::serve(listener, application, options.http, shutdown).await;
            Ok(())
        }
        #[cfg(not(feature = "http"))]
        Gateway::Http => Err(RunError::NotBuilt("HTTP")),
    }
}

fn runtime(threads: Option<usize>) -> Result<Runtime, RunError> {
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let mut builder = match threads {
        // One thread that does all spares every hand-over between threads.
        0 | 1 => Builder::new_current_thread(),
        threads => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build().map_err(RunError::Runtime)
}

/// SIGTERM and SIGINT.
struct StopSignals(io::Result<(Signal, Signal)>);

impl StopSignals {
    fn new() -> Self {
        let both = || Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
        Self(both())
    }

    /// Waits for one and gives its number. For ever where the system has no room for a handler: then the signals act as they do
    /// without one.
    async fn next(&mut self) -> i32 {
        let Ok((terminate, interrupt)) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// The sockets that systemd, or who does as it does, hands to this process (sd_listen_fds).
fn listen_fds() -> Vec<(Gateway, OwnedFd, i32)> {
    const FIRST: i32 = 3;
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let (Some(process), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else { return Vec::new() };
    if process != std::process::id() || TAKEN.swap(true, std::sync::atomic::Ordering::Relaxed) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (0..i32::try_from(count).unwrap_or_default())
        .map_while(|index| {
            let gateway = match names.next() {
                Some("http") => Gateway::Http,
                _ => Gateway::FastCgi,
            };
            // They are one after the other: behind one that is not open there is none, whatever the number says.
            let number = FIRST.checked_add(index)?;
            take_descriptor(number).map(|socket| (gateway, socket, number))
        })
        .collect()
}

/// Whether the sockets have been taken: they can be owned only once.
static TAKEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

#[expect(
    unsafe_code,
    reason = "descriptors that arrive as numbers in the environment have no other way to become owned"
)]
fn take_descriptor(number: i32) -> Option<OwnedFd> {
    // /proc says whether it is open without touching it; a number that is not must not become an `OwnedFd`.
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
    // SAFETY: it is open; LISTEN_PID says that descriptors from 3 on were handed to this process for whoever reads these variables;
    // `TAKEN` makes sure that this is done once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    // Programs that the application starts must not hold the socket open.
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}

fn announce(gateway: Gateway, listener: &Listener) {
    let scheme = match gateway {
        Gateway::FastCgi => "fastcgi",
        Gateway::Http => "http",
    };
    // A standard error that is closed is no reason not to serve.
    let _ = io::Write::write_all(&mut io::stderr().lock(), format!("listening on {scheme}:{listener}\n").as_bytes());
}

fn complain(error: &(dyn std::error::Error + 'static)) {
    let mut message = program_name() + ": " + &error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        message += &format!(": {next}");
        cause = next.source();
    }
    let _ = io::Write::write_all(&mut io::stderr().lock(), (message + "\n").as_bytes());
}

fn print_help() {
    let program = program_name();
    let help = format!(
        "Usage: {program} [ADDRESS...]\n\n\
         Without an address: what the process was started as (FastCGI on descriptor 0 or LISTEN_FDS, CGI), else HTTP on\n\
         127.0.0.1:{DEFAULT_PORT}. The environment variable {ADDRESS} names addresses as well.\n\n\
         Examples:\n  \
         {program} http://127.0.0.1:8000\n  \
         {program} fastcgi:/run/{program}.sock\n  \
         {program} fastcgi://127.0.0.1:9000 http:/run/{program}-http.sock\n"
    );
    let _ = io::Write::write_all(&mut io::stdout().lock(), help.as_bytes());
}

fn program_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or("application".as_ref());
    let name: &dyn Display = &name.display();
    name.to_string()
}
