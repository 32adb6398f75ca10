//! `run`: what an application's `main` calls. It finds out which gateway this process is, by how it was started.

use std::ffi::OsString;
use std::fmt::{self, Display};
#[cfg(feature = "cgi")]
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

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

/// The environment variable that says where a FastCGI or HTTP server has the application mounted: its SCRIPT_NAME, `/` or an empty value
/// for the root. See [`fastcgi::Config::script_name`](super::fastcgi::Config::script_name); a CGI script is told by its web server.
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
    /// What is waited for when the gateways have ended, before this process does. Default: nothing.
    pub afterwards: Afterwards,
}

/// Work of an application that may outlive its last request, such as that of scripts that were told to end: the script host's `idle` waits
/// for it.
#[derive(Clone, Default)]
pub struct Afterwards(Option<Arc<Mutex<Option<Work>>>>);

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Afterwards {
    /// Waits for that, once. It is polled only when the gateways have ended.
    pub fn new(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(Some(Box::pin(work))))))
    }

    /// What there is to wait for, unless it has been waited for.
    fn take(&self) -> Option<Work> {
        self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Afterwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Afterwards").field(&self.0.is_some()).finish()
    }
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

/// Serves an application at addresses that the caller chose, for programs that have a command line of their own, and comes back when
/// they have ended: after a SIGTERM or SIGINT and the requests that ran then, or when serving failed. A second signal ends the process.
///
/// The addresses are [`Address::Http`] and [`Address::FastCgi`], any number of them, or [`Address::CgiProcess`] alone: the one request of a CGI
/// script. [`Endpoint::Inherited`] is descriptor 0 where that is a listening socket, else all sockets of LISTEN_FDS, whatever their
/// names. Neither the arguments nor [`ADDRESS`] nor [`SCRIPT_NAME`] are read.
///
/// `tell` is told when there is something to say to whoever started the process. It runs within the tokio runtime, so that it may
/// spawn. A CGI script has nothing to say.
///
/// # Errors
///
/// [`RunError`]: an address that can't be served, a socket that is not to be had, an answer of a CGI script that is not complete.
pub fn run_at<A: Application>(
    addresses: &[Address],
    application: A,
    options: Options,
    tell: impl Fn(Event<'_>) + Send + 'static,
) -> Result<(), RunError> {
    if let [Address::CgiProcess] = addresses {
        #[cfg(feature = "cgi")]
        return answer_as_script(application, options);
        #[cfg(not(feature = "cgi"))]
        return Err(RunError::NotBuilt("CGI"));
    }
    let mut chosen = Vec::new();
    for address in addresses {
        chosen.push(match address {
            Address::Http(endpoint) => (Gateway::Http, endpoint),
            Address::FastCgi(endpoint) => (Gateway::FastCgi, endpoint),
            other => return Err(not_listened_on(&other.to_string())),
        });
    }
    runtime(options.threads)?.block_on(async {
        let mut listeners = Vec::new();
        let mut options = options;
        for (gateway, endpoint) in chosen {
            for listener in listeners_at(endpoint, &options.listen).await? {
                listeners.push((gateway, listener));
            }
            if *endpoint == Endpoint::Inherited {
                options = options.beside_other_processes();
            }
        }
        serve_all(listeners, application, options, tell).await
    })
}

/// Serves FastCGI connections in a way of the caller's own, where [`run_at`] has an application called: listens, and ends at signals, as that
/// does. `serve` gets each listening socket, and a token that is cancelled when the first signal comes; when all that it gave back is
/// over, so is this. Who may connect is its business, with [`fastcgi::Config::admit`].
///
/// # Errors
///
/// [`RunError`]: a socket that is not to be had, or one that everybody could reach.
#[cfg(feature = "fastcgi")]
pub fn run_connections_at<F: Future<Output = ()> + Send + 'static>(
    endpoint: &Endpoint,
    options: &Options,
    serve: impl Fn(Listener, CancellationToken) -> F,
    tell: impl Fn(Event<'_>) + Send + 'static,
) -> Result<(), RunError> {
    runtime(options.threads)?.block_on(async {
        let listeners = listeners_at(endpoint, &options.listen).await?;
        for listener in &listeners {
            options.fastcgi.check(listener)?;
        }
        let addresses: Vec<_> = listeners.iter().map(|listener| Address::FastCgi(listener.endpoint())).collect();
        let stop = stop_at_signals(&addresses, tell);
        let mut serving = tokio::task::JoinSet::new();
        for listener in listeners {
            serving.spawn(serve(listener, stop.clone()));
        }
        while serving.join_next().await.is_some() {}
        Ok(())
    })
}

/// The sockets that an address names.
async fn listeners_at(endpoint: &Endpoint, options: &ListenOptions) -> Result<Vec<Listener>, RunError> {
    if *endpoint != Endpoint::Inherited {
        return Ok(vec![Listener::bind(endpoint, options).await?]);
    }
    let sockets = match descriptor_0() {
        Some(socket) => vec![(Gateway::FastCgi, socket, 0)],
        None => listen_fds(),
    };
    if sockets.is_empty() {
        return Err(RunError::Arguments(
            "expected a socket that was handed over, got neither a listening one as descriptor 0 nor LISTEN_FDS for this process"
                .into(),
        ));
    }
    let mut listeners = Vec::new();
    for (_, socket, number) in sockets {
        listeners.push(Listener::from_descriptor(socket, number)?);
    }
    Ok(listeners)
}

/// What happens while [`run_at`] serves.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// All sockets listen; these are their addresses, with port numbers where the system chose them.
    Listening(&'a [Address]),
    /// A first signal came. The running requests are finished; another signal would end the process at once.
    Stopping,
    /// Another signal came. The process ends when `tell` has come back, whatever it still does.
    Ending,
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

/// Why an application was not served, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The command line, or what it names, can't be served.
    #[error("{0}")]
    Arguments(String),
    /// A socket is not to be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No runtime.
    #[error("the runtime could not be started")]
    Runtime(#[source] io::Error),
    /// A gateway that this program has not.
    #[error("this program was built without the {0} gateway")]
    NotBuilt(&'static str),
    /// A FastCGI listener that everybody could reach.
    #[cfg(feature = "fastcgi")]
    #[error(transparent)]
    FastCgi(#[from] fastcgi::ServeError),
    /// The answer of a CGI script is not complete.
    #[cfg(feature = "cgi")]
    #[error(transparent)]
    Cgi(#[from] cgi::CgiError),
}

impl Start {
    fn find() -> Result<Self, RunError> {
        // A worker that a CGI program started inherits its GATEWAY_INTERFACE: the socket is asked first.
        if let Some(socket) = descriptor_0() {
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
        if !arguments.is_empty() {
            let addresses = arguments.into_iter().map(|argument| parse_address(&text(argument)?));
            return addresses.collect::<Result<_, _>>().map(Self::Addresses);
        }
        match text(std::env::var_os(ADDRESS).unwrap_or_default())?.split_whitespace() {
            addresses if addresses.clone().next().is_none() => Ok(Self::Bare),
            addresses => addresses.map(parse_address).collect::<Result<_, _>>().map(Self::Addresses),
        }
    }

    fn run<A: Application>(self, application: A, options: Options) -> Result<(), RunError> {
        let options = options.mounted_by_environment();
        match self {
            #[cfg(feature = "cgi")]
            Self::Cgi => answer_as_script(application, options),
            Self::Sockets(sockets) => runtime(options.threads)?.block_on(async {
                let mut listeners = Vec::new();
                for (gateway, socket, number) in sockets {
                    listeners.push((gateway, Listener::from_descriptor(socket, number)?));
                }
                serve_all(listeners, application, options.beside_other_processes(), |_| {}).await
            }),
            Self::Addresses(addresses) => runtime(options.threads)?.block_on(async {
                let mut listeners = Vec::new();
                for (gateway, endpoint) in addresses {
                    let listener = Listener::bind(&endpoint, &options.listen).await?;
                    listeners.push((gateway, listener));
                }
                serve_all(listeners, application, options, announce).await
            }),
            Self::Bare => runtime(options.threads)?.block_on(async {
                let loopback = |port| Endpoint::Tcp { host: "127.0.0.1".into(), port };
                let listener = match Listener::bind(&loopback(DEFAULT_PORT), &options.listen).await {
                    Ok(listener) => listener,
                    Err(_) => Listener::bind(&loopback(0), &options.listen).await?,
                };
                serve_all(vec![(Gateway::Http, listener)], application, options, announce).await
            }),
            Self::Help => Ok(()),
        }
    }
}

impl Options {
    /// Whoever hands sockets over may have given them to several processes.
    #[cfg_attr(not(any(feature = "fastcgi", feature = "http")), expect(unused_mut, reason = "there is nothing to set"))]
    fn beside_other_processes(mut self) -> Self {
        #[cfg(feature = "fastcgi")]
        {
            self.fastcgi.multiprocess = true;
        }
        #[cfg(feature = "http")]
        {
            self.http.multiprocess = true;
        }
        self
    }

    /// What the environment says of where the application is mounted wins.
    #[cfg_attr(not(any(feature = "fastcgi", feature = "http")), expect(unused_mut, reason = "there is nothing to set"))]
    fn mounted_by_environment(mut self) -> Self {
        #[cfg(feature = "fastcgi")]
        {
            self.fastcgi.script_name = mounted_at().or(self.fastcgi.script_name);
        }
        #[cfg(feature = "http")]
        {
            self.http.script_name = mounted_at().or(self.http.script_name);
        }
        self
    }
}

#[cfg(any(feature = "fastcgi", feature = "http"))]
fn mounted_at() -> Option<Vec<u8>> {
    let script_name = std::env::var_os(SCRIPT_NAME)?.into_encoded_bytes();
    Some(script_name.strip_suffix(b"/").map(<[u8]>::to_vec).unwrap_or(script_name))
}

/// The one request of a CGI script: one thread.
#[cfg(feature = "cgi")]
fn answer_as_script<A: Application>(application: A, options: Options) -> Result<(), RunError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    // The signals are asked for only when the application has to be waited for.
    let result = runtime.block_on(cgi::serve(application, options.cgi, async {
        StopSignals::new().next().await;
    }));
    if let Some(work) = options.afterwards.take() {
        // The web server waits for the end of the output, not for this process. Where it can't be let go of, it waits longer.
        let _ = File::open("/dev/null").map(rustix::stdio::dup2_stdout);
        runtime.block_on(async {
            tokio::select! {
                () = work => {}
                _ = async { StopSignals::new().next().await } => {}
            }
        });
    }
    // Threads that the application left behind are not waited for.
    runtime.shutdown_background();
    Ok(result?)
}

/// Descriptor 0, where it is a listening socket.
fn descriptor_0() -> Option<OwnedFd> {
    is_listening(io::stdin().as_fd()).then(|| io::stdin().as_fd().try_clone_to_owned().ok()).flatten()
}

fn text(argument: OsString) -> Result<String, RunError> {
    argument.into_string().map_err(|argument| {
        RunError::Arguments(format!("expected an address in UTF-8, got {argument:?}; a socket's path may be a link"))
    })
}

fn parse_address(text: &str) -> Result<(Gateway, Endpoint), RunError> {
    let elsewhere = || not_listened_on(text);
    match text.parse() {
        Ok(Address::Http(endpoint)) => Ok((Gateway::Http, endpoint)),
        Ok(Address::FastCgi(endpoint)) => Ok((Gateway::FastCgi, endpoint)),
        Ok(_) | Err(AddressError::NoScheme(_) | AddressError::UnknownScheme(_)) => Err(elsewhere()),
        Err(error) => Err(RunError::Arguments(error.to_string())),
    }
}

fn not_listened_on(text: &str) -> RunError {
    RunError::Arguments(format!(
        "expected an address to listen on, such as http://127.0.0.1:{DEFAULT_PORT} or fastcgi:/run/app.sock, got \"{text}\"; \
         see --help"
    ))
}

/// Serves several listeners with one application until the signal comes and all are done.
async fn serve_all<A: Application>(
    listeners: Vec<(Gateway, Listener)>,
    application: A,
    options: Options,
    tell: impl Fn(Event<'_>) + Send + 'static,
) -> Result<(), RunError> {
    log_to_stderr();
    #[cfg(feature = "fastcgi")]
    for (_, listener) in listeners.iter().filter(|(gateway, _)| *gateway == Gateway::FastCgi) {
        options.fastcgi.check(listener)?;
    }
    let application = Arc::new(application);
    let afterwards = options.afterwards.clone();
    let addresses = listeners.iter().map(|(gateway, listener)| match gateway {
        Gateway::FastCgi => Address::FastCgi(listener.endpoint()),
        Gateway::Http => Address::Http(listener.endpoint()),
    });
    let stop = stop_at_signals(&addresses.collect::<Vec<_>>(), tell);
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
    if let Some(work) = afterwards.take() {
        work.await;
    }
    result
}

/// A token that the first signal cancels. The second ends the process.
fn stop_at_signals(addresses: &[Address], tell: impl Fn(Event<'_>) + Send + 'static) -> CancellationToken {
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    // Before anybody is told that this process serves: whoever knows may stop it.
    let mut signals = StopSignals::new();
    tell(Event::Listening(addresses));
    tokio::spawn(async move {
        signals.next().await;
        signalled.cancel();
        tell(Event::Stopping);
        // Whoever asks twice does not want to wait for anything.
        let signal = signals.next().await;
        tell(Event::Ending);
        std::process::exit(128 + signal);
    });
    stop
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
        Gateway::FastCgi => Ok(fastcgi::serve(listener, application, options.fastcgi, shutdown).await?),
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

fn announce(event: Event<'_>) {
    match event {
        Event::Listening(addresses) => addresses.iter().for_each(|address| say(format_args!("listening on {address}"))),
        Event::Stopping => say("stopping when the running requests are finished; another signal ends them"),
        Event::Ending => {}
    }
}

/// A line for whoever started this process.
fn say(line: impl Display) {
    // A standard error that is closed is no reason not to serve.
    let _ = io::Write::write_all(&mut io::stderr().lock(), format!("{line}\n").as_bytes());
}

/// What belongs to no request, such as a connection that breaks the protocol, goes to standard error unless the application
/// has set up a log of its own.
fn log_to_stderr() {
    #[cfg(any(feature = "fastcgi", feature = "http"))]
    if !tracing::dispatcher::has_been_set() {
        // Somebody else who is a moment faster has a log of his own.
        let _ = tracing_subscriber::fmt()
            .with_writer(io::stderr)
            .with_max_level(tracing::Level::INFO)
            .with_target(false)
            .try_init();
    }
}

fn complain(error: &(dyn std::error::Error + 'static)) {
    let mut message = program_name() + ": " + &error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        message += &format!(": {next}");
        cause = next.source();
    }
    say(message);
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
