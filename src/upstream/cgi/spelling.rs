//! The path of a request's script, in the many ways in which web servers spell it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use percent_encoding::percent_decode;

use super::walk::is_below;
use crate::application::Environ;

/// What of a request is looked at.
pub(super) struct Request<'a> {
    pub(super) environ: &'a Environ,
    pub(super) script_name: &'a [u8],
    pub(super) path_info: &'a [u8],
    pub(super) document_root: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    pub(super) fn of(environ: &'a Environ) -> Self {
        Self {
            environ,
            script_name: environ.script_name(),
            path_info: own_path_info(environ),
            document_root: set(environ, "DOCUMENT_ROOT"),
        }
    }
}

/// A variable's value, unless it is empty.
pub(super) fn set<'a>(environ: &'a Environ, name: &str) -> Option<&'a [u8]> {
    environ.get(name).filter(|value| !value.is_empty())
}

/// PATH_INFO without the SCRIPT_NAME that IIS repeats in it. Other servers send such a PATH_INFO only where the client asked for it.
fn own_path_info(environ: &Environ) -> &[u8] {
    let path_info = environ.path_info();
    match path_info.strip_prefix(environ.script_name()) {
        Some(rest)
            if (rest.is_empty() || rest.starts_with(b"/"))
                && set(environ, "SERVER_SOFTWARE").is_some_and(|name| name.starts_with(b"Microsoft-IIS/")) =>
        {
            rest
        }
        _ => path_info,
    }
}

/// The path in what Apache's mod_proxy makes of SCRIPT_FILENAME, without the query that may be glued to it, and whether it is such a one:
/// `proxy:fcgi://host:port/path`, `proxy:balancer://name/path`, `proxy:unix:/socket|fcgi://host/path`, with or without `proxy:`.
pub(super) fn without_proxy<'a>(filename: &'a [u8], query: &[u8]) -> (&'a [u8], bool) {
    let address = filename.strip_prefix(b"proxy:").unwrap_or(filename);
    let address = match address.strip_prefix(b"unix:") {
        Some(socket) => match memchr::memchr(b'|', socket) {
            Some(bar) => &socket[bar + 1..],
            None => return (filename, false),
        },
        None => address,
    };
    let rest = [&b"fcgi://"[..], b"balancer://"].iter().find_map(|scheme| address.strip_prefix(*scheme));
    let Some(rest) = rest else { return (filename, false) };
    let path = &rest[memchr::memchr(b'/', rest).unwrap_or(rest.len())..];
    // Only the query that this request has: a file's name may hold a question mark.
    let path = match memchr::memrchr(b'?', path) {
        Some(mark) if path[mark + 1..] == *query => &path[..mark],
        _ => path,
    };
    (path, true)
}

/// How many bytes of a path lead to that folder, if it is the folder's path or goes on behind it; slashes in a row count as one.
pub(super) fn prefix(path: &[u8], folder: &[u8]) -> Option<usize> {
    // Nearly always it is written the same way.
    if is_below(path, folder) {
        return Some(folder.strip_suffix(b"/").unwrap_or(folder).len());
    }
    let mut parts = Parts::new(path, 0).filter(|part| !part.bytes.is_empty());
    let mut used = 0;
    for expected in Parts::new(folder, 0).filter(|part| !part.bytes.is_empty()) {
        used = parts.next().filter(|part| part.bytes == expected.bytes)?.end;
    }
    Some(used)
}

/// The parts of a path that begins with a slash, from an offset on at which one stands.
pub(super) struct Parts<'a> {
    path: &'a [u8],
    at: usize,
}

/// What stands behind a slash, and where it ends.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) end: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(path: &'a [u8], at: usize) -> Self {
        Self { path, at }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let rest = self.path.get(self.at + 1..)?;
        let len = memchr::memchr(b'/', rest).unwrap_or(rest.len());
        self.at += 1 + len;
        Some(Part { bytes: &rest[..len], end: self.at })
    }
}

pub(super) fn trim_slashes(mut path: &[u8]) -> &[u8] {
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    path
}

/// PATH_TRANSLATED (RFC 3875 4.1.6): what the web server says, as long as PATH_INFO is what it says too; else the path in its documents. A
/// path that leads up is not translated.
pub(super) fn path_translated(
    request: &Request<'_>,
    path_info: &[u8],
    document_root: Option<&Path>,
) -> Option<Vec<u8>> {
    if path_info.is_empty() {
        return None;
    }
    if let Some(sent) = set(request.environ, "PATH_TRANSLATED")
        && path_info == request.environ.path_info()
    {
        return Some(sent.to_vec());
    }
    if path_info.split(|byte| *byte == b'/').any(|part| part == b".." || part == b".") {
        return None;
    }
    Some([trim_slashes(document_root?.as_os_str().as_bytes()), path_info].concat())
}

/// Whether a slash in the first `len` bytes of the path was sent encoded, so that another path was judged by a rule for folders than was
/// walked. Told only where REQUEST_URI is the address of this very path: a server that rewrote it has judged for itself.
pub(super) fn has_encoded_slash(request: &Request<'_>, len: usize) -> bool {
    let Some(uri) = set(request.environ, "REQUEST_URI") else { return false };
    if !uri.windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f")) {
        return false;
    }
    let path = raw_path(uri);
    let decoded = percent_decode(path);
    if !decoded.eq(request.environ.script_name().iter().chain(request.environ.path_info()).copied()) {
        return false;
    }
    let mut at = 0;
    for _ in 0..len {
        let Some(rest) = path.get(at..).filter(|rest| !rest.is_empty()) else { break };
        if rest.len() >= 3 && rest[..3].eq_ignore_ascii_case(b"%2f") {
            return true;
        }
        let encoded = rest.len() >= 3 && rest[0] == b'%' && rest[1..3].iter().all(u8::is_ascii_hexdigit);
        at += if encoded { 3 } else { 1 };
    }
    false
}

/// The path of a request's target, still encoded. HTTP/2 front ends have sent whole addresses.
fn raw_path(uri: &[u8]) -> &[u8] {
    let path = &uri[..memchr::memchr(b'?', uri).unwrap_or(uri.len())];
    match memchr::memmem::find(path, b"://") {
        Some(scheme) if !path.starts_with(b"/") => {
            let authority = &path[scheme + 3..];
            &authority[memchr::memchr(b'/', authority).unwrap_or(authority.len())..]
        }
        _ => path,
    }
}
