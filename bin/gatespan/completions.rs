//! `gatespan completions`: a completion script for a shell, on standard output.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  gatespan completions bash > ~/.local/share/bash-completion/completions/gatespan
  gatespan completions zsh > ~/.zfunc/_gatespan
  gatespan completions fish > ~/.config/fish/completions/gatespan.fish";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut command = crate::Cli::command();
    // The generator takes a failed write for a fault of its own: it gets memory to write to.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "gatespan", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(())
}
