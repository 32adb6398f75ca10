//! The command-line tool: parse, run, exit code. Each subcommand has a file of its own.

mod demo;
mod completions;
mod man;
mod logging;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    Demo(demo::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

const EXAMPLES: &str = "\
Examples:
  gatespan demo                     see one application through three gateways, in a browser
  gatespan help demo                what a command does, with examples
  gatespan completions bash         a completion script for the shell
  gatespan man demo | man -l -      the manual page of a command

Exit codes:
  0  all went well
  1  something failed, and standard error says what
  2  the command line could not be understood";

fn main() -> ExitCode {
    // As a script of the demo the process has no command line of its own: what is there came with a request.
    if demo::is_cgi_script() {
        return demo::answer_as_cgi_script();
    }
    // Ends the process with 0 for --help and --version and with 2 for what it does not understand.
    let cli = Cli::parse();
    cli.logging.start();
    let result = match cli.command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A standard error that is closed leaves the exit code to tell.
            let _ = io::Write::write_all(&mut io::stderr().lock(), format!("gatespan: {error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Whether whoever read the output has seen enough, as `head` does. That is no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
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
