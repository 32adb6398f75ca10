//! `gatespan bridge FROM TO`: a gateway, some middleware, and an application that lives somewhere else. This file is its life, from
//! the command line to the end; what is on the way is in the folder beside it.

mod arguments;
mod options;
mod checks;
mod effect;
mod roots;
mod way;
mod target;
mod builtin;
mod told;
mod log_file;
mod words;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use gatespan::address::{Address, Endpoint};
use gatespan::application::AnyApplication;
use gatespan::gateway::{Afterwards, Event, RunError, run_at};
use gatespan::upstream::cgi;

pub(crate) use self::arguments::{Arguments, UsageError, parse_from};
pub(crate) use self::options::listening::Listening;
pub(crate) use self::target::parse as parse_to;
use self::way::{Prepared, prepare};
use crate::logging::{Form, SERVING};

pub(crate) fn run(arguments: &Arguments, form: Form) -> anyhow::Result<()> {
    run_around(arguments, form, |application| application, || {})
}

/// The same, with something around the application that is served, and something to do when a second signal ends the process.
pub(crate) fn run_around(
    arguments: &Arguments,
    form: Form,
    around: impl FnOnce(AnyApplication) -> AnyApplication,
    ending: impl Fn() + Send + 'static,
) -> anyhow::Result<()> {
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
            Event::Ending => {
                programs.kill();
                ending();
            }
            Event::Stopping => say(form, "stopping when the running requests are finished; another signal ends them"),
            _ => {}
        };
        let mut options = arguments.options();
        if !hosts.is_empty() && options.threads.is_none() {
            // All but one may stand still for scripts, of which each then has a processor.
            options.threads = std::thread::available_parallelism().ok().map(|processors| processors.get() + 1);
        }
        // Scripts that were cut off have their grace; as a script, this process has one request, and what answered it may finish.
        let grace = arguments.times.kill_grace.unwrap_or(cgi::Config::default().kill_grace);
        let at_most = (!is_script).then(|| grace.saturating_add(Duration::from_secs(1)));
        options.afterwards = Afterwards::new(idle(hosts, at_most));
        let application = around(application);
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

/// A line for whoever started the bridge, in the form of the log.
pub(crate) fn say(form: Form, line: impl Display) {
    match form {
        Form::Json => tracing::info!(target: SERVING, "{line}"),
        Form::Text if tracing::enabled!(target: SERVING, tracing::Level::INFO) => {
            // A standard error that is closed is no reason not to serve.
            let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
        }
        Form::Text => {}
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
