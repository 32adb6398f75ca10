//! An authorizer in front of an application: asked first, with the request but without its body (FastCGI 6.3).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::application::driver::{Call, Response};
use crate::application::{Application, Body, Environ, Error, ForwardedFor, StartResponse};
use crate::protocol::cgi::{is_environment_name, is_forbidden, names};
use crate::protocol::fastcgi::Role;

/// What a header of the authorizer's answer begins with whose rest is the name of a variable (FastCGI 6.3).
const PREFIX: &[u8] = b"Variable-";

/// Limits of an [`authorizer`].
#[derive(Debug, Clone)]
pub struct AuthorizerConfig {
    /// How long it may take for its verdict. Over it is 504. Default: 10 seconds.
    pub timeout: Duration,
    /// The most bytes of page that may come with a verdict of 200, where nobody sees them. Over it is 502. Default: 64 KiB.
    pub max_page: usize,
}

impl Default for AuthorizerConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), max_page: 64 << 10 }
    }
}

/// Asks `authorizer` about each request before `application` sees it.
///
/// It is called in the role Authorizer with the request's variables, save those that FastCGI 6.3 leaves out (PATH_INFO, PATH_TRANSLATED and
/// SCRIPT_NAME; REQUEST_URI says what the request is for), with CONTENT_LENGTH 0 and without the body. Any application will do: a FastCGI
/// server's, a script's, another HTTP server's, one's own.
///
/// - 200, whole, lets the request through. Each `Variable-NAME` of its head becomes the variable NAME of the request, in capitals, with `_`
///   for `-`, in the place of what was there. Not so what would be a header's (HTTP_…) or speaks of the body.
/// - Any other status is the client's answer, without such headers.
/// - A failure is never a yes: 502, 503 or 504 as the error says, and 500 where it says something else.
///
/// ```
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::{AuthorizerConfig, authorizer}};
/// # async fn shop(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// async fn only_local(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
///     match environ.get("REMOTE_ADDR") {
///         Some(b"127.0.0.1") => start_response.start("200 OK", [("Variable-ZONE", "local")])?,
///         _ => start_response.start("403 Forbidden", ())?,
///     };
///     Ok(Body::empty())
/// }
///
/// let guarded = authorizer(shop, only_local, AuthorizerConfig::default());
/// ```
pub fn authorizer<A: Application, Z: Application>(
    application: A,
    authorizer: Z,
    config: AuthorizerConfig,
) -> Authorized<A, Z> {
    Authorized { application, authorizer: Arc::new(authorizer), config }
}

/// See [`authorizer`].
pub struct Authorized<A, Z> {
    application: A,
    authorizer: Arc<Z>,
    config: AuthorizerConfig,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorizerFailed {
    /// [`AuthorizerConfig::timeout`].
    #[error("the authorizer has given no verdict within {0:?}")]
    TimedOut(Duration),
    /// It failed, or its answer broke off.
    #[error("the authorizer failed: {0}")]
    Failed(String),
}

impl<A: Application, Z: Application> Application for Authorized<A, Z> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let (asking, cancellation) = environ.without_input().with_own_cancellation();
        let number = asking.request_number();
        let asking = question(asking.with_request(Role::Authorizer, number, cancellation.clone()))?;
        let mut call = Call::new(self.authorizer.clone(), asking);
        let verdict = tokio::time::timeout(self.config.timeout, async {
            let mut response = call.response().await.map_err(failed)?;
            if response.head.status.code() == 200 {
                // A yes that breaks off is none.
                let page = response.body.read_to_end(self.config.max_page).await;
                response.body.close().await;
                page.map_err(failed)?;
            }
            Ok::<Response, Error>(response)
        });
        let Ok(verdict) = verdict.await else {
            cancellation.cancel();
            return Err(Error::new(AuthorizerFailed::TimedOut(self.config.timeout)).with_status(504));
        };
        let mut response = verdict?;
        if response.head.status.code() == 200 {
            for (name, value) in response.head.headers.iter() {
                let Some(name) = variable(name) else { continue };
                match is_allowed(&name) {
                    true => environ.set(&name, value)?,
                    false => environ.errors().line(format_args!(
                        "request {}: the authorizer may not set the variable {}",
                        environ.request_id(),
                        name.escape_ascii()
                    )),
                }
            }
            return self.application.call(environ, start_response).await;
        }
        response.head.headers.retain(|name, _| variable(name).is_none());
        response.pass_on(&start_response)
    }
}

/// The request as the authorizer sees it.
fn question(mut environ: Environ) -> Result<Environ, Error> {
    let request_uri = environ.target().into_owned();
    let variables = environ.variables_mut();
    for name in [names::PATH_INFO, names::PATH_TRANSLATED, names::SCRIPT_NAME, "HTTP_EXPECT"] {
        variables.remove(name);
    }
    variables.set(names::REQUEST_URI, request_uri)?;
    variables.set(names::CONTENT_LENGTH, "0")?;
    // What middleware around this one waits for is an answer of the application: a local redirect of the authorizer's, say, must not pass
    // for one.
    let forwarded = environ.extensions().get::<ForwardedFor>().cloned();
    environ.set_local_redirects(None);
    environ.extensions_mut().clear();
    if let Some(forwarded) = forwarded {
        environ.extensions_mut().insert(forwarded);
    }
    Ok(environ)
}

fn failed(error: Error) -> Error {
    let status = Some(error.status()).filter(|status| *status > 500).unwrap_or(500);
    Error::new(AuthorizerFailed::Failed(error.to_string())).with_status(status)
}

/// The variable that a header is for, where it is for one. Names of headers have no case, and HTTP servers drop some that have `_`.
fn variable(header: &[u8]) -> Option<Vec<u8>> {
    let (prefix, name) = header.split_at_checked(PREFIX.len())?;
    let capital = |byte: &u8| if *byte == b'-' { b'_' } else { byte.to_ascii_uppercase() };
    prefix.eq_ignore_ascii_case(PREFIX).then(|| name.iter().map(capital).collect())
}

/// No header's variable, which the client has sent or not, and nothing that the body is framed by.
fn is_allowed(name: &[u8]) -> bool {
    is_environment_name(name)
        && !is_forbidden(name)
        && !name.starts_with(b"HTTP_")
        && name != names::CONTENT_LENGTH.as_bytes()
        && name != names::CONTENT_TYPE.as_bytes()
}

impl<A, Z> fmt::Debug for Authorized<A, Z> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorized").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;
    use crate::application::driver::call;
    use crate::application::{Input, LocalRedirects};

    /// Says all variables that are of interest, and the body.
    async fn tells(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        start_response.start("200 OK", [("Content-Type", "text/plain")])?;
        let mut text = String::new();
        for name in ["AUTH_NAME", "REMOTE_USER", "HTTP_PROXY", "HTTP_X_ROLE", "CONTENT_LENGTH", "PATH_INFO"] {
            if let Some(value) = environ.get(name) {
                text.push_str(&format!("{name}={};", String::from_utf8_lossy(value)));
            }
        }
        text.push_str(std::str::from_utf8(&environ.input().read_to_end(99).await?)?);
        Ok(text.into())
    }

    fn upload() -> Environ {
        let mut environ = request("/path").with_input(Input::from_bytes("body"));
        environ.set("CONTENT_LENGTH", "4").unwrap();
        environ.set("REQUEST_METHOD", "POST").unwrap();
        environ.set("HTTP_X_ROLE", "guest").unwrap();
        environ.set("REMOTE_USER", "nobody").unwrap();
        environ
    }

    #[tokio::test]
    async fn a_yes_lets_the_request_through_with_its_body_and_its_new_variables() {
        async fn yes(_: Environ, start_response: StartResponse) -> Result<Body, Error> {
            let headers = [
                ("Variable-AUTH_NAME", "alice"),
                ("variable-remote-user", "alice"),
                ("Variable-HTTP_PROXY", "http://evil"),
                ("Variable-HTTP_X_ROLE", "admin"),
                ("Variable-CONTENT_LENGTH", "99"),
                ("Set-Cookie", "a=b"),
            ];
            start_response.start("200 OK", headers)?;
            Ok("nobody reads this".into())
        }
        let app = authorizer(tells, yes, AuthorizerConfig::default());
        let mut response = call(app, upload()).await.unwrap();
        assert!(!response.head.headers.contains("Set-Cookie"));
        let text = response.body.read_to_end(999).await.unwrap();
        assert_eq!(text, "AUTH_NAME=alice;REMOTE_USER=alice;HTTP_X_ROLE=guest;CONTENT_LENGTH=4;PATH_INFO=/path;body");
    }

    #[tokio::test]
    async fn the_authorizer_sees_the_request_without_its_body() {
        let seen = Arc::new(Mutex::new(None));
        let store = seen.clone();
        let app = authorizer(
            tells,
            move |mut environ: Environ, start_response: StartResponse| {
                let store = store.clone();
                async move {
                    let body = environ.input().read_to_end(99).await?;
                    *store.lock().unwrap() = Some((environ, body));
                    start_response.start("403 Forbidden", ())?;
                    Ok::<_, Error>(Body::empty())
                }
            },
            AuthorizerConfig::default(),
        );
        let mut environ = upload();
        environ.set_local_redirects(Some(LocalRedirects::new()));
        environ.extensions_mut().insert(ForwardedFor::new("10.0.0.1"));
        let id = environ.request_id().to_owned();
        assert_eq!(text_of(app, environ).await.0, 403);
        let (environ, body) = seen.lock().unwrap().take().unwrap();
        assert_eq!((environ.role(), &*body), (Role::Authorizer, &b""[..]));
        assert_eq!(environ.get("CONTENT_LENGTH"), Some(&b"0"[..]));
        assert_eq!(environ.get("REQUEST_URI"), Some(&b"/path"[..]));
        for gone in ["PATH_INFO", "SCRIPT_NAME", "PATH_TRANSLATED"] {
            assert_eq!(environ.get(gone), None, "{gone}");
        }
        assert_eq!(environ.request_id(), id);
        assert!(environ.local_redirects().is_none());
        assert!(environ.extensions().get::<ForwardedFor>().is_some());
    }

    #[tokio::test]
    async fn anything_but_200_is_the_answer() {
        for status in ["201 Created", "204 No Content", "302 Found", "401 Unauthorized", "500 Odd"] {
            let app = authorizer(
                tells,
                move |_: Environ, start_response: StartResponse| async move {
                    start_response.start(status, [("WWW-Authenticate", "Basic"), ("Variable-AUTH_NAME", "x")])?;
                    Ok::<_, Error>(Body::from("who?"))
                },
                AuthorizerConfig::default(),
            );
            let response = call(app, upload()).await.unwrap();
            assert_eq!(response.head.status.to_string(), status);
            assert!(response.head.headers.contains("WWW-Authenticate"), "{status}");
            assert!(!response.head.headers.contains("Variable-AUTH_NAME"), "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_never_a_yes() {
        async fn fails(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
            match environ.get("REQUEST_URI") {
                Some(b"/502") => Err(Error::new("refused").with_status(502)),
                Some(b"/404") => Err(Error::new("missing").with_status(404)),
                Some(b"/panic") => panic!("at the disco"),
                Some(b"/silent") => std::future::pending().await,
                Some(b"/never") => Ok("no head".into()),
                Some(b"/cut") => {
                    start_response.start("200 OK", [("Content-Length", "99")])?;
                    Ok("short".into())
                }
                Some(b"/breaks") => {
                    start_response.start("200 OK", ())?;
                    let pieces = [Ok(Bytes::from("a")), Err(Error::new("lost"))];
                    Ok(Body::iter(pieces))
                }
                Some(b"/stalls") => {
                    start_response.start("200 OK", ())?;
                    Ok(Body::stream(futures_util::stream::pending::<Bytes>()))
                }
                _ => {
                    start_response.start("200 OK", ())?;
                    Ok(Body::iter(std::iter::repeat("x")))
                }
            }
        }
        let app = Arc::new(authorizer(tells, fails, AuthorizerConfig::default()));
        for (path, status) in [
            ("/502", 502),
            ("/404", 500),
            ("/panic", 500),
            ("/silent", 504),
            ("/never", 500),
            ("/cut", 500),
            ("/breaks", 500),
            ("/stalls", 504),
            ("/endless", 500),
        ] {
            let error = call(app.clone(), request(path)).await.expect_err(path);
            assert_eq!(error.status(), status, "{path}: {error}");
            assert!(error.downcast_ref::<AuthorizerFailed>().is_some(), "{path}");
        }
    }

    #[tokio::test]
    async fn all_forms_pass_through_on_either_side() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            let guarded = authorizer(app.clone(), app, AuthorizerConfig::default());
            assert_eq!(text_of(guarded, environ).await, (200, "|/a".into()), "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
    }
}
