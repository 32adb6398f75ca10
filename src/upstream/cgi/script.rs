//! Finding the script: which file answers a request, which part of the path is the script's name, and whether it may be run.
//!
//! # Where it is looked for
//!
//! - **One program** ([`Config::program`]): it answers whatever the path is.
//! - **Behind a web server**, which sends SCRIPT_FILENAME, or DOCUMENT_ROOT and SCRIPT_NAME: that file, which must lie below a root. This is
//!   fcgiwrap's contract with the roots as its border. What web servers make of it is understood: Apache's `proxy:fcgi://…`
//!   in front, the query or the PATH_INFO glued to its end (nginx without `fastcgi_split_path_info`), a folder in its place (OpenBSD's
//!   httpd), SCRIPT_NAME repeated in PATH_INFO (IIS). An empty variable counts as unset. A PATH_INFO that the server sent is kept.
//! - **Elsewhere**, the parts of PATH_INFO are walked below each root in turn: the first regular file is the script and what follows is
//!   PATH_INFO. Where this process is itself a CGI script, its SCRIPT_FILENAME is this process, and the path is walked as well.
//!
//! # What is refused
//!
//! In the script's part of the path: `.` and `..`, empty parts (behind a web server they are nothing, as in `root /srv/;`), NUL, backslashes,
//! names that no file can have, and slashes that were encoded in REQUEST_URI, where that is the address of the same path. PATH_INFO is the
//! script's own business, save NUL.
//!
//! On the disk: whatever is no regular file; files that may not be executed and for whose ending there is no interpreter; files and
//! folders, from the root down, that others can write to (by their mode's last digit; the group is the administrator's word). A link is followed
//! within the roots, whoever made it, and out of them only where root owns all links on the way and the folders that they lie in; others may not write to any of
//! the folders, up to `/`, of what such a link leads to.
//!
//! # What remains
//!
//! The script is executed by its resolved name after it was looked at, since a script with `#!` can't be executed by a descriptor that is closed then.
//! Between the two, only those can put another file in its place who may at any time: the owners and groups of the script and of its folders, and root.
//! What cannot be told from the mode is not looked at: an access list that lets others write is the administrator's word.

use std::borrow::Cow;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use percent_encoding::{percent_decode, percent_encode};

use super::config::{Config, ConfigError};
use super::failure::{Failure, PathFault};
use super::spelling::{Parts, Request, has_encoded_slash, path_translated, prefix, set, trim_slashes, without_proxy};
use super::walk::{Border, MAX_PATH_LEN, Place, Root, Unfit, Walk, check_folders, is_writable};
use crate::application::{Environ, PATH};
use crate::protocol::cgi::Excerpt;

/// A script that was found and may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Script {
    /// The file, absolute and with all links resolved. It is executed by this name.
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
    /// The script's name for the log.
    pub name: String,
}

/// Finds scripts.
#[derive(Debug)]
pub struct Finder {
    border: Border,
    program: Option<PathBuf>,
    index: Vec<OsString>,
    /// The longest ending first.
    interpreters: Vec<(OsString, CString)>,
}

impl Finder {
    /// Checks the folders, programs and interpreters that are named, and resolves them.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut trusted = vec![0, rustix::process::geteuid().as_raw()];
        trusted.extend(config.identity.as_ref().map(|identity| identity.uid));
        let mut border = Border { roots: Vec::new(), trusted, other_user: config.identity.is_some() };
        match (&config.program, config.roots.first()) {
            (None, None) => return Err(ConfigError::Nothing),
            (Some(program), Some(root)) => {
                return Err(ConfigError::Both { root: root.clone(), program: program.clone() });
            }
            _ => {}
        }
        for root in &config.roots {
            border.roots.push(check_root(root, &border.trusted)?);
        }
        let program = match &config.program {
            Some(program) => Some(check_program(program, &border.trusted)?),
            None => None,
        };
        if let Some(index) = config.index.iter().find(|index| !is_file_name(index)) {
            return Err(ConfigError::Index(index.clone()));
        }
        let mut interpreters = Vec::new();
        for (ending, interpreter) in &config.interpreters {
            if !is_file_name(ending) {
                return Err(ConfigError::Ending(ending.clone()));
            }
            // Not resolved: many a program goes by the name that it is called by.
            let found = std::path::absolute(interpreter).and_then(|path| is_program(&path).map(|()| path));
            let path = found.map_err(|error| ConfigError::Program { path: interpreter.clone(), error })?;
            interpreters.push((ending.clone(), c_string(path.into_os_string().into_vec())));
        }
        interpreters.sort_by_key(|(ending, _)| std::cmp::Reverse(ending.len()));
        Ok(Self { border, program, index: config.index.clone(), interpreters })
    }

    /// The script that answers a request. Looks at the disk, and so may block where that is slow.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn find(&self, environ: &Environ) -> Result<Script, Failure> {
        for variable in ["SCRIPT_FILENAME", "DOCUMENT_ROOT", "SCRIPT_NAME", "PATH_INFO"] {
            if let Some(value) = set(environ, variable).filter(|value| value.contains(&0)) {
                return Err(Failure::BadPath { variable, path: Excerpt::new(value), fault: PathFault::Nul });
            }
        }
        let request = Request::of(environ);
        if let Some(program) = &self.program {
            return self.one_program(program, &request);
        }
        // As a CGI script, the SCRIPT_FILENAME that this process was told is its own.
        if environ.server().gateway != "cgi" {
            if let Some(filename) = set(environ, "SCRIPT_FILENAME") {
                return self.behind_a_web_server(&request, "SCRIPT_FILENAME", filename);
            }
            if let (Some(document_root), false) = (request.document_root, request.script_name.is_empty()) {
                if !request.script_name.starts_with(b"/") {
                    let (variable, path) = ("SCRIPT_NAME", Excerpt::new(request.script_name));
                    return Err(Failure::BadPath { variable, path, fault: PathFault::Relative });
                }
                let filename = [document_root, request.script_name].concat();
                return self.behind_a_web_server(&request, "DOCUMENT_ROOT", &filename);
            }
        }
        self.below_the_roots(&request)
    }

    /// One program for all paths.
    fn one_program(&self, program: &Path, request: &Request<'_>) -> Result<Script, Failure> {
        let mode = match fs::metadata(program) {
            Ok(metadata) if metadata.is_file() => metadata.permissions().mode(),
            Ok(_) => return Err(Failure::NotRegular { file: program.into(), kind: "something else" }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::NotFound { looked: vec![program.into()], named: true });
            }
            Err(error) => return Err(Failure::Inaccessible { path: program.into(), error }),
        };
        if is_writable(mode) {
            return Err(Failure::Writable { file: program.into(), path: program.into(), mode: mode & 0o7777 });
        }
        let shown = program.as_os_str().as_bytes().into();
        let (script_name, path_info) = (request.script_name.into(), request.path_info.into());
        Ok(self.script(request, program.into(), Split { shown, script_name, path_info, root: None }))
    }

    /// The file that the web server names.
    fn behind_a_web_server(
        &self,
        request: &Request<'_>,
        variable: &'static str,
        filename: &[u8],
    ) -> Result<Script, Failure> {
        let (plain, proxied) = without_proxy(filename, request.environ.query_string());
        match self.named(request, variable, plain) {
            // Apache's ProxyPass hands on an encoded path, its SetHandler one as it is on the disk.
            Err(Failure::NotFound { mut looked, .. }) if proxied && plain.contains(&b'%') => {
                let decoded: Cow<'_, [u8]> = percent_decode(plain).into();
                if decoded.contains(&0) {
                    return Err(Failure::BadPath { variable, path: Excerpt::new(plain), fault: PathFault::Nul });
                }
                if plain.windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f")) {
                    let fault = PathFault::EncodedSlash;
                    return Err(Failure::BadPath { variable, path: Excerpt::new(plain), fault });
                }
                self.named(request, variable, &decoded).map_err(|failure| match failure {
                    Failure::NotFound { looked: also, named } => {
                        looked.extend(also);
                        Failure::NotFound { looked, named }
                    }
                    failure => failure,
                })
            }
            found => found,
        }
    }

    /// The script at or before the end of an absolute path.
    fn named(&self, request: &Request<'_>, variable: &'static str, filename: &[u8]) -> Result<Script, Failure> {
        if !filename.starts_with(b"/") {
            return Err(Failure::BadPath { variable, path: Excerpt::new(filename), fault: PathFault::Relative });
        }
        let not_found = |at: PathBuf| Failure::NotFound { looked: vec![at], named: true };
        // Where the path begins with a root, that is where the walk begins, and else at `/`.
        let mut start = None;
        for root in &self.border.roots {
            for folder in [&root.named, &root.real] {
                if let Some(used) = prefix(filename, folder.as_os_str().as_bytes())
                    && start.as_ref().is_none_or(|(longest, _)| used > *longest)
                {
                    start = Some((used, root));
                }
            }
        }
        let (mut used, mut walk) = match start {
            Some((used, root)) => match Walk::from_root(&self.border, root)? {
                Some(walk) => (used, walk),
                None => return Err(not_found(root.real.clone())),
            },
            None => (0, Walk::from_above(&self.border)),
        };
        let mut place = Place::Folder;
        for part in Parts::new(filename, used) {
            used = part.end;
            // Empty parts come from a root that is configured with a slash at its end.
            if part.bytes.is_empty() {
                continue;
            }
            if used > MAX_PATH_LEN {
                let fault = PathFault::TooLong { len: filename.len(), limit: MAX_PATH_LEN };
                return Err(Failure::BadPath { variable, path: Excerpt::new(filename), fault });
            }
            place = match walk.step(part.bytes, variable).map_err(|failure| in_whole(failure, filename))? {
                Place::Missing if walk.is_entering() => return Err(not_found(walk.path())),
                place => place,
            };
            if place != Place::Folder {
                break;
            }
        }
        let shown = trim_slashes(&filename[..used]);
        let glued = &filename[used..];
        let script_name = match (glued.is_empty(), request.script_name.strip_suffix(glued)) {
            (false, Some(script_name)) => script_name,
            _ => request.script_name,
        };
        match place {
            Place::Missing => Err(not_found(walk.path())),
            Place::File(mode) => {
                let path_info = match request.path_info {
                    b"" => glued,
                    // Some servers send it encoded.
                    sent if !glued.is_empty() && Cow::from(percent_decode(sent)) == glued => glued,
                    sent => sent,
                };
                let (shown, script_name, path_info) = (shown.into(), script_name.into(), path_info.into());
                self.finish(request, &walk, mode, Split { shown, script_name, path_info, root: None })
            }
            Place::Folder if walk.is_entering() => Err(walk.outside()),
            // The rest is in PATH_INFO: the web server looked for the script in another place than this one.
            Place::Folder => {
                let script_name = script_name.strip_suffix(b"/").unwrap_or(script_name);
                let has_slash = request.script_name.ends_with(b"/");
                self.go_on(request, walk, Lead { shown, script_name, has_slash, root: None })
            }
        }
    }

    /// PATH_INFO, below each root in turn.
    fn below_the_roots(&self, request: &Request<'_>) -> Result<Script, Failure> {
        let mut looked = Vec::new();
        let mut folder = None;
        for root in &self.border.roots {
            let Some(walk) = Walk::from_root(&self.border, root)? else {
                looked.push(root.real.clone());
                continue;
            };
            let shown = trim_slashes(root.named.as_os_str().as_bytes());
            let lead = Lead { shown, script_name: request.script_name, has_slash: false, root: Some(root) };
            match self.go_on(request, walk, lead) {
                Err(Failure::NotFound { looked: here, .. }) => looked.extend(here),
                Err(failure @ Failure::Folder { .. }) => folder = folder.or(Some(failure)),
                found => return found,
            }
        }
        Err(folder.unwrap_or(Failure::NotFound { looked, named: false }))
    }

    /// Goes on from a folder along PATH_INFO.
    fn go_on(&self, request: &Request<'_>, mut walk: Walk<'_>, lead: Lead<'_>) -> Result<Script, Failure> {
        let Lead { shown, script_name, mut has_slash, root } = lead;
        let path = request.path_info;
        if !path.is_empty() && !path.starts_with(b"/") {
            return Err(Failure::BadPath {
                variable: "PATH_INFO",
                path: Excerpt::new(path),
                fault: PathFault::Relative,
            });
        }
        for part in Parts::new(path, 0) {
            if part.bytes.is_empty() && part.end == path.len() {
                has_slash = true;
                break;
            }
            has_slash = false;
            if shown.len() + part.end > MAX_PATH_LEN {
                let fault = PathFault::TooLong { len: shown.len() + part.end, limit: MAX_PATH_LEN };
                return Err(Failure::BadPath { variable: "PATH_INFO", path: Excerpt::new(path), fault });
            }
            match walk.step(part.bytes, "PATH_INFO").map_err(|failure| in_whole(failure, path))? {
                Place::Folder => {}
                Place::Missing => return Err(Failure::NotFound { looked: vec![walk.path()], named: root.is_none() }),
                Place::File(mode) => {
                    let (taken, path_info) = path.split_at(part.end);
                    let script_name = [script_name, taken].concat().into();
                    let (shown, path_info) = ([shown, taken].concat().into(), path_info.into());
                    return self.finish(request, &walk, mode, Split { shown, script_name, path_info, root });
                }
            }
        }
        // A folder: its index answers for it.
        let folder = trim_slashes(path);
        for index in &self.index {
            let mut walk = walk.fork();
            let Place::File(mode) = walk.step(index.as_bytes(), "PATH_INFO")? else { continue };
            if !has_slash {
                return Err(no_slash(request, &[script_name, folder].concat()));
            }
            let script_name = [script_name, folder, b"/", index.as_bytes()].concat().into();
            let shown = [shown, folder, b"/", index.as_bytes()].concat().into();
            let path_info = Cow::Borrowed(&b""[..]);
            return self.finish(request, &walk, mode, Split { shown, script_name, path_info, root });
        }
        Err(Failure::Folder { folder: walk.path(), index: self.index.clone() })
    }

    /// The script that a walk came to, if it may be run.
    fn finish(&self, request: &Request<'_>, walk: &Walk<'_>, mode: u32, split: Split<'_>) -> Result<Script, Failure> {
        walk.finish(mode, self.interpreter(&split.shown).is_some())?;
        if has_encoded_slash(request, split.script_name.len()) {
            let path = Excerpt::new(set(request.environ, "REQUEST_URI").unwrap_or_default());
            return Err(Failure::BadPath { variable: "REQUEST_URI", path, fault: PathFault::EncodedSlash });
        }
        Ok(self.script(request, walk.path(), split))
    }

    fn script(&self, request: &Request<'_>, file: PathBuf, split: Split<'_>) -> Script {
        let shown = PathBuf::from(OsString::from_vec(split.shown.into_owned()));
        let path_info = split.path_info.into_owned();
        let executed = c_string(file.as_os_str().as_bytes().to_vec());
        let (program, arguments) = match self.interpreter(shown.as_os_str().as_bytes()) {
            Some(interpreter) => (interpreter.clone(), vec![interpreter.clone(), executed]),
            // Programs that do what their name says go by the name that was asked for.
            None => (executed, vec![c_string(shown.as_os_str().as_bytes().to_vec())]),
        };
        let document_root = request.document_root.map(|folder| OsStr::from_bytes(folder).into());
        let document_root: Option<PathBuf> = document_root.or_else(|| split.root.map(|root| root.named.clone()));
        Script {
            directory: shown.parent().unwrap_or(Path::new("/")).into(),
            program,
            arguments,
            path_translated: path_translated(request, &path_info, document_root.as_deref()),
            document_root,
            name: shown.to_string_lossy().into_owned(),
            file,
            script_name: split.script_name.into_owned(),
            path_info,
            script_filename: shown,
        }
    }

    fn interpreter(&self, file: &[u8]) -> Option<&CString> {
        let name = file.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let found = self.interpreters.iter().find(|(ending, _)| name.ends_with(ending.as_bytes()));
        found.map(|(_, interpreter)| interpreter)
    }
}

/// The folder that a walk goes on from.
struct Lead<'a> {
    /// As it was asked for.
    shown: &'a [u8],
    /// What of the path led to it.
    script_name: &'a [u8],
    /// Whether that ended in a slash.
    has_slash: bool,
    /// The root that it is, unless a web server named it.
    root: Option<&'a Root>,
}

/// What belongs to a script that was found.
struct Split<'a> {
    /// The file, as it was asked for.
    shown: Cow<'a, [u8]>,
    script_name: Cow<'a, [u8]>,
    path_info: Cow<'a, [u8]>,
    /// The root that it was found under, unless a web server named it.
    root: Option<&'a Root>,
}

/// A path that is none, shown from its beginning and not from the part that is wrong.
fn in_whole(failure: Failure, path: &[u8]) -> Failure {
    match failure {
        Failure::BadPath { variable, fault, .. } => Failure::BadPath { variable, path: Excerpt::new(path), fault },
        failure => failure,
    }
}

/// Where a folder is whose slash is missing. One slash at the beginning, never two, which would be another host's address.
fn no_slash(request: &Request<'_>, path: &[u8]) -> Failure {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let path = trim_slashes(&path[start..]);
    let mut location = match path.is_empty() {
        true => "/".to_owned(),
        false => format!("/{}/", percent_encode(path, PATH)),
    };
    let query = request.environ.query_string();
    if !query.is_empty() {
        location.push('?');
        location.extend(query.iter().map(|byte| match byte {
            b'!'..=b'~' => char::from(*byte).to_string(),
            byte => format!("%{byte:02X}"),
        }));
    }
    Failure::NoSlash { location, safe: matches!(request.environ.method(), b"GET" | b"HEAD") }
}

fn check_root(named: &Path, trusted: &[u32]) -> Result<Root, ConfigError> {
    let unusable = |error| ConfigError::Root { path: named.into(), error };
    let real = fs::canonicalize(named).map_err(unusable)?;
    if !fs::metadata(&real).map_err(unusable)?.is_dir() {
        return Err(unusable(std::io::ErrorKind::NotADirectory.into()));
    }
    check_folders(&real, None, trusted).map_err(|unfit| match unfit {
        Unfit::Writable { folder, mode } => ConfigError::Writable { path: named.into(), folder, mode },
        Unfit::Inaccessible { error, .. } => unusable(error),
    })?;
    Ok(Root { named: lexical(&std::path::absolute(named).map_err(unusable)?).unwrap_or_else(|| real.clone()), real })
}

fn check_program(named: &Path, trusted: &[u32]) -> Result<PathBuf, ConfigError> {
    let unusable = |error| ConfigError::Program { path: named.into(), error };
    let file = fs::canonicalize(named).map_err(unusable)?;
    let mode = fs::metadata(&file).map_err(unusable)?.permissions().mode();
    if is_writable(mode) {
        return Err(ConfigError::Writable { path: named.into(), folder: file, mode: mode & 0o7777 });
    }
    is_program(&file).map_err(unusable)?;
    check_folders(file.parent().unwrap_or(Path::new("/")), None, trusted).map_err(|unfit| match unfit {
        Unfit::Writable { folder, mode } => ConfigError::Writable { path: named.into(), folder, mode },
        Unfit::Inaccessible { error, .. } => unusable(error),
    })?;
    Ok(file)
}

/// Whether a file may be executed by anybody. Whether by the scripts' user is the kernel's answer when it is.
fn is_program(path: &Path) -> std::io::Result<()> {
    let metadata = fs::metadata(path)?;
    match (metadata.is_file(), metadata.permissions().mode() & 0o111) {
        (false, _) => Err(std::io::Error::other("it is no regular file")),
        (true, 0) => Err(std::io::Error::other("no exec bit is set")),
        (true, _) => Ok(()),
    }
}

/// An absolute path as it is, unless it leads up: then only the disk knows where.
fn lexical(path: &Path) -> Option<PathBuf> {
    (!path.components().any(|part| part == std::path::Component::ParentDir)).then(|| path.components().collect())
}

fn is_file_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0))
}

/// What holds no NUL because it came from the disk, or was walked.
fn c_string(bytes: Vec<u8>) -> CString {
    CString::new(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests;
