//! `gatespan man`: the manual pages, one to standard output or all into a folder.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_mangen::Man;

/// Print a manual page, or write all of them into a folder
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The command whose page is printed; the tool's own without one
    command: Option<String>,
    /// Write the pages of all commands into this folder, which must exist
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    folder: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  gatespan man | man -l -
  gatespan man demo | man -l -
  gatespan man --folder ~/.local/share/man/man1";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut tool = crate::Cli::command();
    if let Some(folder) = &arguments.folder {
        return clap_mangen::generate_to(tool, folder)
            .with_context(|| format!("{}: the manual pages could not be written there", folder.display()));
    }
    // Names, options and headings of subcommands are complete only then.
    tool.build();
    let page = match &arguments.command {
        None => Man::new(tool),
        Some(name) => {
            let command = tool.get_subcommands().find(|command| command.get_name() == name);
            let command = command.with_context(|| {
                let names: Vec<_> = tool.get_subcommands().map(clap::Command::get_name).collect();
                format!("expected one of the commands {}, got \"{name}\"", names.join(", "))
            })?;
            Man::new(command.clone())
        }
    };
    let mut text = Vec::new();
    page.render(&mut text)?;
    io::stdout().lock().write_all(&text)?;
    Ok(())
}
