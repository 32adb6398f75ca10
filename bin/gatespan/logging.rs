//! What the tool says on standard error while it runs: how much of it, and in which form.

use std::io::{self, IsTerminal};

use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

    /// Sends the log to standard error from here on. `left_out` is the part of the program that a command tells of by itself.
    pub(crate) fn start(&self, left_out: Option<&'static str>) {
        // no-color.org: any value but an empty one.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let mut shown = self.shown();
        if let Some(part) = left_out {
            shown = shown.with_target(part, LevelFilter::OFF);
        }
        let shown = tracing_subscriber::registry().with(shown);
        let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal() && !no_colour);
        match self.log_format {
            Form::Text => shown.with(lines.with_target(false)).init(),
            Form::Json => shown.with(lines.json().flatten_event(true)).init(),
        }
    }

    fn shown(&self) -> Targets {
        let all = |level| Targets::new().with_default(level);
        match (self.quiet, self.verbose) {
            (2.., _) => all(LevelFilter::OFF),
            (1, _) => all(LevelFilter::ERROR),
            (_, 0) => all(LevelFilter::WARN).with_target(SERVING, LevelFilter::INFO),
            (_, 1) => all(LevelFilter::INFO),
            (_, 2) => all(LevelFilter::DEBUG),
            (_, 3..) => all(LevelFilter::TRACE),
        }
    }
}
