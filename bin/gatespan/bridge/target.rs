//! What TO names: opened once, before anything listens, so that a mistake is told to whoever starts the bridge.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use gatespan::address::{Address, AddressError};
use gatespan::application::AnyApplication;
use gatespan::upstream::cgi;

use super::builtin;

/// What all targets of a bridge have in common.
#[derive(Debug)]
pub(super) struct Settings {
    /// How scripts are run; each target adds where they are.
    pub(super) cgi: cgi::Config,
    /// Those that were opened, which have to be waited for at the end.
    pub(super) hosts: Vec<Arc<cgi::Host>>,
}

/// Where requests can be sent.
pub(super) fn parse(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|error| match error {
        AddressError::NoScheme(_) | AddressError::UnknownScheme(_) => expected(text),
        error => error.to_string(),
    })?;
    match &address {
        Address::App(name) if builtin::find(name).is_some() => Ok(address),
        Address::App(name) => {
            let names = builtin::NAMES.map(|(name, _)| format!("app:{name}"));
            Err(format!("expected one of {}, got \"app:{name}\"", names.join(", ")))
        }
        Address::Cgi(_) => Ok(address),
        _ => Err(expected(text)),
    }
}

fn expected(text: &str) -> String {
    format!("expected cgi:/FOLDER/, cgi:/PROGRAM or app:NAME, got \"{text}\"")
}

/// The application at an address.
pub(super) fn open(address: &Address, settings: &mut Settings) -> anyhow::Result<AnyApplication> {
    match address {
        Address::App(name) => builtin::find(name).context("it was checked"),
        Address::Cgi(path) => {
            let host = Arc::new(scripts(path, settings).with_context(|| format!("{address} can't be served"))?);
            settings.hosts.push(host.clone());
            Ok(AnyApplication::new(host))
        }
        other => anyhow::bail!("expected a target, got {other}"),
    }
}

/// What it is on disk decides: a folder of scripts, or one program for all requests.
fn scripts(path: &Path, settings: &Settings) -> anyhow::Result<cgi::Host> {
    let mut config = settings.cgi.clone();
    // One that is to be a folder and is missing is a missing folder, and no missing program.
    if path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/") {
        config.roots.insert(0, path.into());
    } else {
        config.program = Some(std::path::absolute(path)?);
    }
    Ok(cgi::Host::new(config)?)
}
