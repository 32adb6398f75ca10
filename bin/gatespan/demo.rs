//! `gatespan demo`: one small application behind all three gateways at once, and a page that compares what comes through them.
//!
//! The page is served by the HTTP gateway. Below `/http` it calls the application itself, below `/fastcgi` it stands in for a web server
//! with `fastcgi_pass` to a Unix socket on which the same application answers, below `/cgi` for one that starts CGI scripts, and
//! the script is this program.

mod app;
mod multipart;
mod relay;
mod fastcgi_probe;
mod cgi_probe;
mod site;
mod page;

use std::fs::Permissions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use gatespan::address::{Address, Endpoint};
use gatespan::application::{Errors, Log};
use gatespan::gateway::listener::{ListenError, ListenOptions, Listener};
use gatespan::gateway::{DEFAULT_PORT, cgi, fastcgi, http};
use gatespan::middleware::validate;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(crate) use self::app::DemoApplication;
use self::cgi_probe::CgiProbe;
use self::fastcgi_probe::FastCgiProbe;
use self::site::Site;

/// Show one application behind HTTP, FastCGI and CGI side by side, in a browser
///
/// Starts one small application behind all three gateways at once: on a port, behind FastCGI on a Unix socket, and as a
/// CGI script. A page on this machine shows the three answers side by side, with what the application was told compared
/// variable by variable, a form, an upload and event streams. Ctrl-C ends it and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where the page is, on a loopback address [default: http://127.0.0.1:8080, or another port if that is taken]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    listen: Option<Endpoint>,
    /// Open the page in a browser, with xdg-open, where there is a display
    #[arg(long, overrides_with = "no_open")]
    open: bool,
    /// Only print where the page is, which is the default
    #[arg(long)]
    no_open: bool,
}

const EXAMPLES: &str = "\
Examples:
  gatespan demo                                   start it, and print where the page is
  gatespan demo --open                            show the page in the browser as well
  gatespan demo --listen http://127.0.0.1:8000    on another port
  gatespan demo -v                                with a log of what happens

While it runs:
  curl http://127.0.0.1:8080/cgi/environ          what a CGI script is told (or /http, /fastcgi)
  curl -N http://127.0.0.1:8080/fastcgi/events    the event stream
  curl -T file http://127.0.0.1:8080/cgi/upload   a file's length and checksum";

/// How long requests that run may take to end after Ctrl-C. Event streams end at once.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// The most requests at once, each of which may be a process.
const MAX_REQUESTS: usize = 64;

fn parse_listen(text: &str) -> Result<Endpoint, String> {
    let address: Address = text.parse().map_err(|error: gatespan::address::AddressError| error.to_string())?;
    match address {
        Address::Http(Endpoint::Tcp { host, port }) if is_loopback(&host) => Ok(Endpoint::Tcp { host, port }),
        other => Err(format!("expected http://HOST:PORT with a loopback address as its host, got {other}")),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build().context("the runtime could not be started")?;
    let result = runtime.block_on(serve(arguments));
    // Whatever still runs is past its limit.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = stop_signals().context("no handler for signals could be set")?;
    let folder = tempfile::Builder::new()
        .prefix("gatespan-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .context("no temporary folder could be made for the FastCGI socket")?;
    let socket = folder.path().join("application.sock");
    let fastcgi_listener = Listener::bind(&Endpoint::Unix(socket.clone()), &ListenOptions::default()).await?;
    let listener = listen(arguments.listen).await?;
    let address = format!("http:{listener}/");

    let stop = CancellationToken::new();
    let application = Arc::new(validate(DemoApplication::new(stop.clone())));
    let program = std::env::current_exe().context("this program could not be found on disk")?;
    let site = Site::new(
        address.clone(),
        application.clone(),
        (FastCgiProbe::new(socket.clone()), socket.display().to_string()),
        (CgiProbe::new(program.clone(), stop.clone()), program.display().to_string()),
    );
    let fastcgi_config = fastcgi::Config {
        // Whatever this process inherited is about other servers.
        allow: Vec::new(),
        shutdown_timeout: SHUTDOWN_LIMIT,
        shutdown_idle_timeout: Duration::ZERO,
        ..fastcgi::Config::default()
    };
    let http_config = http::Config {
        max_requests: MAX_REQUESTS,
        shutdown_timeout: SHUTDOWN_LIMIT,
        errors: Errors::new(Arc::new(Tracing)),
        ..http::Config::default()
    };
    let fastcgi_server =
        tokio::spawn(fastcgi::serve(fastcgi_listener, application, fastcgi_config, stop.clone().cancelled_owned()));
    let http_server = tokio::spawn(http::serve(listener, site, http_config, stop.clone().cancelled_owned()));

    announce(&address)?;
    if arguments.open {
        open(&address);
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    let both = async {
        http_server.await?;
        anyhow::Ok(fastcgi_server.await??)
    };
    tokio::select! {
        ended = both => ended,
        // Who asks twice does not want to wait. The folder is removed all the same.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn stop_signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

/// The listener that was asked for; without one the usual port, or any if that is taken.
async fn listen(endpoint: Option<Endpoint>) -> Result<Listener, ListenError> {
    let options = ListenOptions::default();
    match endpoint {
        Some(endpoint) => Listener::bind(&endpoint, &options).await,
        None => {
            let loopback = |port| Endpoint::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port };
            match Listener::bind(&loopback(DEFAULT_PORT), &options).await {
                Ok(listener) => Ok(listener),
                Err(_) => Listener::bind(&loopback(0), &options).await,
            }
        }
    }
}

fn announce(address: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "One application behind three gateways: {address}\nCtrl-C ends it.\n")?;
    stdout.flush()
}

/// Asks the desktop to show the page. That it can't is no reason not to serve it.
fn open(address: &str) {
    if ["DISPLAY", "WAYLAND_DISPLAY"].iter().all(|name| std::env::var_os(name).is_none_or(|value| value.is_empty())) {
        tracing::warn!("there is no display to open the page on");
        return;
    }
    let mut command = tokio::process::Command::new("xdg-open");
    match command.arg(address).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn() {
        // The runtime collects it when it has ended.
        Ok(child) => drop(child),
        Err(error) => tracing::warn!(%error, "xdg-open could not be started to open the page"),
    }
}

/// The gateways' and the applications' errors as part of the tool's log.
struct Tracing;

impl Log for Tracing {
    fn write(&self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            tracing::warn!("{line}");
        }
    }
}

/// Whether the demo started this process as its CGI script.
pub(crate) fn is_cgi_script() -> bool {
    std::env::var_os(cgi_probe::MARKER).is_some() && std::env::var_os("GATEWAY_INTERFACE").is_some()
}

/// Answers the one request of a CGI script with the demo's application.
pub(crate) fn answer_as_cgi_script() -> ExitCode {
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return ExitCode::FAILURE };
    let served = runtime.block_on(async {
        let stop = CancellationToken::new();
        let application = validate(DemoApplication::new(stop.clone()));
        let mut terminate = signal(SignalKind::terminate()).ok();
        // At SIGTERM event streams end, and with them the request: nothing is cut.
        let terminated = async {
            match &mut terminate {
                Some(terminate) => drop(terminate.recv().await),
                None => std::future::pending().await,
            }
            stop.cancel();
            std::future::pending().await
        };
        cgi::serve(application, cgi::Config::default(), terminated).await
    });
    runtime.shutdown_background();
    // The gateway and the application have said what is to be said about it.
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_listened_on() {
        for text in ["http://127.0.0.1:0", "http://localhost:80", "http://[::1]:8080", "http://127.1.2.3:1"] {
            assert!(parse_listen(text).is_ok(), "{text}");
        }
        for text in ["http://0.0.0.0:80", "http://example.org:80", "http:/a.sock", "fastcgi://127.0.0.1:1", "8080"] {
            assert!(parse_listen(text).is_err(), "{text}");
        }
    }
}
