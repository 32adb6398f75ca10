//! The command-line tool: parse, run, exit code. Each subcommand has a file of its own.

mod bridge;
mod tap;
mod demo;
mod request;
mod convert;
mod decode;
mod recordings;
mod completions;
mod man;
mod values;
mod logging;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// One application interface behind CGI, FastCGI and HTTP.
#[derive(Debug, Parser)]
#[command(name = "gatespan", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    logging: logging::Arguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // Boxed, since it has many options.
    Bridge(Box<bridge::Arguments>),
    Tap(Box<tap::Arguments>),
    Demo(demo::Arguments),
    // Boxed, since it has many options.
    Request(Box<request::Arguments>),
    Convert(convert::Arguments),
    Decode(decode::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

const EXAMPLES: &str = "\
Examples:
  gatespan bridge http://127.0.0.1:8080 cgi:cgi-bin/
                                    a web server for a folder of CGI programs
  gatespan tap fastcgi:/run/tap.sock fastcgi:/run/app.sock
                                    see and record what passes between a web server and it
  gatespan request fastcgi:/run/php-fpm.sock /ping
                                    one request, and what comes back
  gatespan demo                     see one application through three gateways, in a browser
  gatespan decode capture.pcap      what passed, record by record
  gatespan help demo                what a command does, with examples
  gatespan completions bash         a completion script for the shell
  gatespan man demo | man -l -      the manual page of a command

Exit codes:
  0  all went well
  1  something failed, and standard error says what
  2  the command line could not be understood
  gatespan help bridge names those of a server that a signal ends, gatespan help request those
  of a request";

fn main() -> ExitCode {
    // As a script of the demo the process has no command line of its own: what is there came with a request.
    if demo::is_cgi_script() {
        return demo::answer_as_cgi_script();
    }
    let Some(cli) = command_line() else { return ExitCode::FAILURE };
    cli.logging.start(match cli.command {
        Command::Request(_) => Some(request::LEFT_OUT_OF_THE_LOG),
        _ => None,
    });
    let result = match cli.command {
        Command::Bridge(arguments) => bridge::run(&arguments, cli.logging.form()),
        Command::Tap(arguments) => tap::run(&arguments, cli.logging.form()),
        Command::Demo(arguments) => demo::run(arguments),
        // It has exit codes of its own.
        Command::Request(arguments) => return request::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Decode(arguments) => decode::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A standard error that is closed leaves the exit code to tell.
            let _ = io::Write::write_all(&mut io::stderr().lock(), format!("gatespan: {error:#}\n").as_bytes());
            ExitCode::from(if error.is::<bridge::UsageError>() { 2 } else { 1 })
        }
    }
}

/// The command line; `None` where this process is a CGI script, and the client was told that it can't be answered.
fn command_line() -> Option<Cli> {
    let words: Vec<OsString> = std::env::args_os().collect();
    // A worker that a CGI program has started inherits GATEWAY_INTERFACE.
    let is_script = std::env::var_os("GATEWAY_INTERFACE").is_some() && !bridge::is_handed_a_socket();
    let mut tool = if is_script { bridge_alone() } else { Cli::command() };
    let of_a_script = bridge::words_of_a_script(&tool, &words);
    if is_script && of_a_script.is_none() {
        refuse_as_cgi_script();
        return None;
    }
    let parsed = tool.try_get_matches_from_mut(of_a_script.unwrap_or(words));
    let understood =
        parsed.and_then(|matches| Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut tool)));
    if is_script {
        // It lives for one request, which would only wait while this is taken apart.
        std::mem::forget(tool);
    }
    match understood {
        Ok(cli) => Some(cli),
        // Ends the process with 0 for --help and --version and with 2 for what it does not understand.
        Err(error) if !is_script => error.exit(),
        Err(error) => {
            answer_with_500();
            let _ = io::Write::write_all(&mut io::stderr().lock(), format!("gatespan: {error}").as_bytes());
            None
        }
    }
}

/// The tool with nothing but what a CGI script can be: the options of all the other commands would take a quarter of such a script's time.
fn bridge_alone() -> clap::Command {
    let bridge = bridge::Arguments::augment_args(clap::Command::new("bridge"));
    logging::Arguments::augment_args(clap::Command::new("gatespan")).subcommand(bridge)
}

/// A web server has started the tool as a CGI script, but not as a bridge. Its arguments may be a client's query (RFC 3875 4.4), so that
/// none of them is read.
fn refuse_as_cgi_script() {
    answer_with_500();
    let why = "gatespan: expected to be started from a command line, or as \"gatespan bridge cgi: TO\", got GATEWAY_INTERFACE, \
               which says that a web server started this process\n";
    let _ = io::Write::write_all(&mut io::stderr().lock(), why.as_bytes());
}

/// As a CGI script: the page for a client who can't do anything about it.
fn answer_with_500() {
    let page = "Status: 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n500 Internal Server Error\n";
    let _ = io::Write::write_all(&mut io::stdout().lock(), page.as_bytes());
}

/// Whether whoever read the output has seen enough, as `head` does. That is no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        bridge_alone().debug_assert();
    }

    #[test]
    fn a_script_is_understood_as_the_same_words_on_a_command_line() {
        let line = "gatespan -v --log-format json bridge --timeout 3s --env A=b -q cgi: --debug fastcgi:/run/app.sock";
        let read = |tool: clap::Command| {
            let matches = tool.try_get_matches_from(line.split(' ')).unwrap();
            format!("{:?}", Cli::from_arg_matches(&matches).unwrap())
        };
        assert_eq!(read(bridge_alone()), read(Cli::command()));
        let wrong = bridge_alone()
            .try_get_matches_from(["gatespan", "bridge", "cgi:", "--tmeout=3s", "app:hello"])
            .unwrap_err();
        assert!(wrong.to_string().contains("--timeout"), "{wrong}");
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:\n"), "{}", command.get_name());
        }
    }

    #[test]
    fn only_a_broken_pipe_of_our_own_is_quiet() {
        assert!(is_broken_pipe(&io::Error::from(io::ErrorKind::BrokenPipe).into()));
        assert!(!is_broken_pipe(&io::Error::from(io::ErrorKind::NotFound).into()));
    }
}
