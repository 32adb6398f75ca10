//! A FastCGI Authorizer (FastCGI 6.3): a web server asks it whether a request may pass, before it serves the page itself.
//!
//! A status of 200 lets the request pass, and its `Variable-AUTH_NAME` header becomes the variable AUTH_NAME of whatever answers it; any other
//! status is the client's answer. Apache's mod_authnz_fcgi and lighttpd's `"mode" => "authorizer"` ask in this role. nginx asks by
//! `auth_request`, as a plain Responder: at `/check` this program gives it the same verdict.
//!
//! Try it: `cargo run --example authorizer`, then `curl -i -H 'X-Token: swordfish' http://127.0.0.1:8080/check`

use std::process::ExitCode;

use gatespan::protocol::fastcgi::Role;
use gatespan::{Body, Environ, Error, Options, StartResponse};

/// Who may come in: a name, a token for a header or cookie, and a password. An example's; real ones are kept as salted hashes.
const USERS: [(&str, &str, &str); 2] = [("alice", "swordfish", "rabbit"), ("bob", "sesame", "builder")];

async fn application(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    let name = authenticate(&environ);
    match (environ.role(), environ.path_info(), name) {
        (Role::Authorizer, _, Some(name)) | (_, b"/check", Some(name)) => {
            start_response.start("200 OK", [("Variable-AUTH_NAME", name)])?;
            Ok(Body::empty())
        }
        (Role::Authorizer, _, None) | (_, b"/check", None) => {
            let headers =
                [("Content-Type", "text/plain; charset=utf-8"), ("WWW-Authenticate", "Basic realm=\"the example\"")];
            start_response.start("401 Unauthorized", headers)?;
            Ok("Who is there?\n".into())
        }
        // As a Responder behind its own verdict: AUTH_NAME is the web server's word, which no client can speak, since
        // headers become HTTP_… only.
        (_, _, _) => {
            let name = environ.text("AUTH_NAME")?.filter(|name| !name.is_empty()).unwrap_or("stranger");
            start_response.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])?;
            Ok(format!("Hello, {name}!\n").into())
        }
    }
}

/// The user's name, if the request proves one.
fn authenticate(environ: &Environ) -> Option<&'static str> {
    let token = environ.header("X-Token").or_else(|| cookie(environ, b"token"));
    // Apache has the client's Basic credentials decoded, and sends both as variables.
    let credentials = environ.get("REMOTE_USER").zip(environ.get("REMOTE_PASSWD"));
    let user = USERS.iter().find(|(name, secret, password)| {
        token.is_some_and(|token| same(token, secret.as_bytes()))
            || credentials.is_some_and(|(user, given)| user == name.as_bytes() && same(given, password.as_bytes()))
    });
    user.map(|(name, ..)| *name)
}

fn cookie<'a>(environ: &'a Environ, name: &[u8]) -> Option<&'a [u8]> {
    let mut cookies = environ.header("Cookie")?.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    cookies.find_map(|cookie| cookie.strip_prefix(name)?.strip_prefix(b"="))
}

/// Compares without telling, by the time it takes, how much of a guess was right.
fn same(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len() && given.iter().zip(expected).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn main() -> ExitCode {
    let mut options = Options::default();
    // A FastCGI program answers in the roles that it names, and in no other.
    options.fastcgi.roles = options.fastcgi.roles.with(Role::Authorizer);
    gatespan::run_with(application, options)
}
