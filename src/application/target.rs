//! The target of a request, written again for somebody who is to be sent it.

use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::{percent_decode, percent_decode_str, percent_encode};

use super::environ::{Environ, PATH};
use crate::protocol::cgi::names;

/// The path and the query of a request as its request line writes them: SCRIPT_NAME and PATH_INFO together, or PATH_INFO alone. An
/// empty path is `/`.
pub(crate) fn path_and_query(environ: &Environ, with_script_name: bool) -> String {
    if environ.get(names::REQUEST_URI) == Some(b"*") && environ.path_info().is_empty() {
        return "*".into();
    }
    let mut target = path(environ, with_script_name);
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if !environ.query_string().is_empty() {
        target.push('?');
        // A query is passed as it is; a URI can't hold what is no UTF-8, which is refused there.
        target.push_str(&String::from_utf8_lossy(environ.query_string()));
    }
    target
}

/// PATH_INFO, below SCRIPT_NAME if that is wanted: in the client's own writing, which alone tells `%2F` from `/`, else encoded anew.
fn path(environ: &Environ, with_script_name: bool) -> String {
    if let Some(path) = path_of_request_uri(environ, with_script_name) {
        return path;
    }
    let script_name = if with_script_name { environ.script_name() } else { b"" };
    percent_encode(script_name, PATH).chain(percent_encode(environ.path_info(), PATH)).collect()
}

/// REQUEST_URI's path, where no web server has made something else of it: that counts.
fn path_of_request_uri(environ: &Environ, with_script_name: bool) -> Option<String> {
    let raw = std::str::from_utf8(environ.get(names::REQUEST_URI)?).ok()?;
    let path_and_query = match raw.starts_with('/') {
        true => raw.parse::<PathAndQuery>().ok()?,
        // HTTP/2 front ends have sent it in absolute form.
        false => raw.parse::<Uri>().ok()?.into_parts().path_and_query?,
    };
    let path = path_and_query.path();
    if environ.get(names::SCRIPT_NAME).is_none() && environ.get(names::PATH_INFO).is_none() {
        // An authorizer is told neither (FastCGI 6.3).
        return Some(path.to_owned());
    }
    let below = below(path, environ.script_name())?;
    let is_path_info = percent_decode_str(below).eq(environ.path_info().iter().copied());
    let is_query = path_and_query.query().unwrap_or("").as_bytes() == environ.query_string();
    let path = if with_script_name { path } else { below };
    (is_path_info && is_query).then(|| path.to_owned())
}

/// What of an encoded path comes after that decoded one.
fn below<'a>(path: &'a str, script_name: &[u8]) -> Option<&'a str> {
    let mut at = 0;
    for byte in script_name {
        let rest = &path.as_bytes()[at..];
        let first = match rest {
            [b'%', _, _, ..] if percent_decode(&rest[..3]).count() == 1 => &rest[..3],
            [_, ..] => &rest[..1],
            [] => return None,
        };
        if percent_decode(first).next() != Some(*byte) {
            return None;
        }
        at += first.len();
    }
    path.get(at..)
}
