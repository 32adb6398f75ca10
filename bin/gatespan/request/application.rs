//! A request to CGI programs or an HTTP server: both are applications, called through the one interface that all share.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use gatespan::address::Address;
use gatespan::application::{AnyApplication, Environ, Error, Errors, Frame, Input, Variables, driver};
use gatespan::protocol::Pairs;
use gatespan::upstream::cgi::spawn::close_on_exec_all;
use gatespan::upstream::{cgi, http};

use super::console::harmless;
use super::outcome::{Failure, Kind, Outcome};
use super::output::{Output, head_of};
use super::target::Target;
use super::{Request, variables};

pub(super) async fn ask(
    request: &Request<'_>,
    target: &Target,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    match &target.address {
        Address::Cgi(path) => {
            let host = match request.host.get() {
                Some(host) => host.clone(),
                None => {
                    let host = Arc::new(scripts(request, path)?);
                    request.host.get_or_init(|| host).clone()
                }
            };
            let report = cgi::Report::new();
            let application = AnyApplication::new(host.clone());
            let result = exchange(request, application, Some(&report), outcome, output).await;
            if result.is_ok() {
                // It may have something to do when its answer is complete, and its exit code comes last.
                host.idle().await;
            }
            outcome.application_status = report.exit_code().and_then(|code| u32::try_from(code).ok());
            outcome.signal = report.signal();
            match report.take_failure() {
                Some(failure) => Err(of_script(&failure)),
                None => result,
            }
        }
        address => {
            let proxy = http::Proxy::new(address, http_config(request));
            let proxy = proxy.map_err(|error| Failure::local(chain(&error)))?;
            request.console.line('*', format_args!("asking {address}"));
            exchange(request, AnyApplication::new(proxy), None, outcome, output).await
        }
    }
}

fn scripts(request: &Request<'_>, path: &Path) -> Result<cgi::Host, Failure> {
    let times = &request.arguments.times;
    let mut config = cgi::Config::default();
    // What whoever started this process left open is not for scripts.
    close_on_exec_all().map_err(|error| {
        Failure::local(format!(
            "the descriptors that this process was started with could not be kept from scripts: {error}"
        ))
    })?;
    // One that is to be a folder and is missing is a missing folder, and no missing program.
    if path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/") {
        config.roots.push(path.into());
    } else {
        let path = std::path::absolute(path).map_err(|error| Failure::local(format!("{}: {error}", path.display())))?;
        config.program = Some(path);
    }
    config.roots.extend(variables::root(request.arguments).filter(|_| config.program.is_none()).map(Into::into));
    config.head_timeout = times.head_timeout;
    config.read_timeout = times.read_timeout;
    config.stderr_to_web_server = true;
    cgi::Host::new(config).map_err(|error| Failure::new(Kind::Unreachable, chain(&error)))
}

fn http_config(request: &Request<'_>) -> http::Config {
    let times = &request.arguments.times;
    http::Config {
        forwarded: http::ForwardedFields::Off,
        connect_timeout: times.connect_timeout,
        head_timeout: times.head_timeout,
        read_timeout: times.read_timeout,
        idle: 0,
        ca_file: request.arguments.message.cacert.clone(),
        ..http::Config::default()
    }
}

async fn exchange(
    request: &Request<'_>,
    application: AnyApplication,
    report: Option<&cgi::Report>,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let message = &request.message;
    let variables: Pairs = message.variables.iter().map(|(name, value)| (name, value)).collect();
    let environ = Environ::new(Variables::from_pairs(variables)).with_errors(Errors::new(request.console.clone()));
    let mut environ = match &message.body {
        Some(body) => {
            let len = body.len();
            environ.with_input(Input::from_source(body.reader(), Some(len)))
        }
        None => environ,
    };
    if let Some(report) = report {
        environ.extensions_mut().insert(report.clone());
    }
    show(request, report.is_some());
    let mut response = driver::call(application, environ).await.map_err(|error| failed(&error))?;
    if report.is_some_and(cgi::Report::has_failed) {
        // The page is the host's, not the script's.
        return Ok(());
    }
    output.head(&head_of(&response.head), None, outcome).await?;
    while let Some(frame) = response.body.next().await {
        if let Frame::Data(data) = frame.map_err(|error| failed(&error))? {
            output.body(&data, outcome).await?;
        }
    }
    Ok(())
}

/// With `-v`: what is asked, as whoever is asked is told.
fn show(request: &Request<'_>, is_cgi: bool) {
    let (message, console) = (&request.message, &request.console);
    if is_cgi {
        for (name, value) in &message.variables {
            console.line('>', format_args!("{}={}", harmless(name), harmless(value)));
        }
        return;
    }
    let query = message.query.as_ref().map(|query| format!("?{}", harmless(query))).unwrap_or_default();
    console.line('>', format_args!("{} {}{query}", harmless(&message.method), harmless(&message.path)));
    for (name, value) in &message.fields {
        console.further_line('>', format_args!("{}: {}", harmless(name), harmless(value)));
    }
}

fn failed(error: &Error) -> Failure {
    if let Some(failure) = error.downcast_ref::<cgi::failure::Failure>() {
        return of_script(failure);
    }
    let kind = match error.downcast_ref::<http::Failure>() {
        Some(http::Failure::Connect { .. }) => Kind::Unreachable,
        Some(
            http::Failure::ConnectTimeout { .. }
            | http::Failure::HeadTimeout { .. }
            | http::Failure::ReadTimeout { .. }
            | http::Failure::Timeout { .. },
        ) => Kind::TimedOut,
        Some(http::Failure::Request { .. } | http::Failure::Upgrade(_)) => Kind::Local,
        _ => Kind::Protocol,
    };
    Failure::new(kind, error.to_string())
}

/// What a script failed with, in the terms of a request.
fn of_script(failure: &cgi::failure::Failure) -> Failure {
    use cgi::failure::Failure::{
        BadVariable, BodyTooLarge, ExitCode, HeadTimeout, Incomplete, MalformedHead, NoHead, Output, ReadTimeout,
        Signal, Spool, Timeout, TooManyVariables,
    };
    let kind = match failure {
        HeadTimeout { .. } | ReadTimeout { .. } | Timeout { .. } => Kind::TimedOut,
        MalformedHead { .. } | NoHead { .. } | Signal { .. } | ExitCode { .. } | Incomplete { .. } | Output { .. } => {
            Kind::Protocol
        }
        BadVariable { .. } | TooManyVariables { .. } | BodyTooLarge { .. } | Spool { .. } => Kind::Local,
        // There is no such script, or it could not be started.
        _ => Kind::Unreachable,
    };
    Failure::new(kind, format!("{}. {}", failure.cause(), failure.mend()))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}
