//! What the tool says on standard error while it runs: how much of it, and in which form.

use std::io::{self, IsTerminal};

use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The options that every command has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct Arguments {
    /// The form of the log on standard error
    #[arg(long, global = true, value_name = "FORM", value_enum, default_value_t = Form::Text)]
    log_format: Form,
    /// Log more: what happens (-v), every step (-vv), all there is (-vvv)
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Log errors only (-q), or nothing (-qq)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Lines for people, in colour on a terminal unless NO_COLOR is set
    Text,
    /// One JSON object a line
    Json,
}

/// Under this name goes what a server says to whoever started it: shown unless only errors are.
pub(crate) const SERVING: &str = "gatespan::serving";

impl Arguments {
    pub(crate) fn form(&self) -> Form {
        self.log_format
    }

    /// Sends the log to standard error from here on. `directive` says what a command leaves out of it, as
    /// [`EnvFilter`] has it.
    pub(crate) fn start(&self, directive: &str) {
        // no-color.org: any value but an empty one.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let subscriber = tracing_subscriber::fmt()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal() && !no_colour)
            .with_env_filter(EnvFilter::new(format!("{},{directive}", self.level())));
        match self.log_format {
            Form::Text => subscriber.with_target(false).init(),
            Form::Json => subscriber.json().flatten_event(true).init(),
        }
    }

    fn level(&self) -> &'static str {
        match (self.quiet, self.verbose) {
            (2.., _) => "off",
            (1, _) => "error",
            (_, 0) => "warn,gatespan::serving=info",
            (_, 1) => "info",
            (_, 2) => "debug",
            (_, 3..) => "trace",
        }
    }
}
