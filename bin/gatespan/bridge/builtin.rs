//! The applications that are built in, for trying a bridge out before there is anything behind it.

use std::fmt::Write as _;

use gatespan::application::{AnyApplication, Headers};
use gatespan::{Body, Environ, Error, StartResponse};
use tokio_util::sync::CancellationToken;

use crate::demo::DemoApplication;

/// Their names, each with what it is for.
pub(super) const NAMES: [(&str, &str); 4] = [
    ("hello", "a line of text"),
    ("environ", "what the application was told, a variable a line"),
    ("echo", "the request's body, as it arrives"),
    ("demo", "the application of gatespan demo: /environ, /form, /upload, /events"),
];

pub(super) fn find(name: &str) -> Option<AnyApplication> {
    match name {
        "hello" => Some(AnyApplication::new(hello)),
        "environ" => Some(AnyApplication::new(environ)),
        "echo" => Some(AnyApplication::new(echo)),
        // Its event streams are cut when the time for stopping is over.
        "demo" => Some(AnyApplication::new(DemoApplication::new(CancellationToken::new()))),
        _ => None,
    }
}

const TEXT: [(&str, &str); 1] = [("Content-Type", "text/plain; charset=utf-8")];

async fn hello(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", TEXT)?;
    Ok(format!("Hello by way of {}.\n", environ.server().gateway))
}

/// Sorted, so that two ways to the same application can be compared with diff. What is no printable text is escaped.
async fn environ(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", TEXT)?;
    let mut variables: Vec<_> = environ.variables().iter().collect();
    variables.sort();
    let mut page = String::new();
    for (name, value) in variables {
        let printable = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
            _ => bytes.escape_ascii().to_string(),
        };
        let _ = writeln!(page, "{}={}", printable(name), printable(value));
    }
    Ok(page)
}

async fn echo(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    let kind = environ.get("CONTENT_TYPE").filter(|kind| !kind.is_empty());
    let mut headers = Headers::from([("Content-Type", kind.unwrap_or(b"application/octet-stream"))]);
    if let Some(length) = environ.meta().content_length()? {
        headers.push("Content-Length", length.to_string());
    }
    start_response.start("200 OK", headers)?;
    Ok(Body::stream(environ.take_input()))
}
