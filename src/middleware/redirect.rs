//! Local redirects: a script names another path of the same site, and the server runs the request again there (RFC 3875 6.2.2).

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::percent_decode;

use crate::application::driver::{Response, call};
use crate::application::{Application, Body, Environ, Error, Head, LocalRedirects, StartResponse, VariableError};

/// Under which path the application answers, and how often a request is run again.
#[derive(Debug, Clone)]
pub struct Redirects {
    /// How often one request is run again; one time more is 508 (Loop Detected). Default: 10.
    pub max: usize,
    /// Where the whole application is mounted, as the decoded path without a slash at its end: it is the SCRIPT_NAME of the request that is run
    /// again, and the client is sent to what is not below it. Default: the SCRIPT_NAME that the request came with.
    ///
    /// That default is right where SCRIPT_NAME says where this application is, and not where it says which script the web
    /// server has found, as nginx's stock parameters do. With a mount named (empty for the root), a request that came with another SCRIPT_NAME is
    /// taken for one of those: SCRIPT_FILENAME is then moved with the path, within the part of the site that the two names have shown to be one
    /// folder, and the client is sent to the rest, which only the web server knows.
    pub mount: Option<Vec<u8>>,
}

impl Default for Redirects {
    fn default() -> Self {
        Self { max: 10, mount: None }
    }
}

/// Runs a request again where an upstream below leaves a target in [`LocalRedirects`]: as GET (HEAD stays HEAD), without the request's
/// body, through the whole application, as though the client had asked for that path.
///
/// What the web server has found out about the first path (SCRIPT_FILENAME, PATH_TRANSLATED and their like) is not told again. The
/// variables REDIRECT_URL, REDIRECT_QUERY_STRING and REDIRECT_STATUS say where the request comes from, as Apache has them. The
/// other fields of the redirecting response are dropped: by RFC 3875 6.2.2 it has none.
///
/// A target that is not the application's to answer, because it is not below its mount, names another host (`//host`) or has a fragment, is
/// sent to the client with 302. One with control characters is 502.
///
/// ```
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::{Redirects, local_redirect}};
/// # async fn scripts(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// let site = local_redirect(scripts, Redirects { max: 3, ..Redirects::default() });
/// ```
pub fn local_redirect<A: Application>(application: A, redirects: Redirects) -> LocalRedirect<A> {
    LocalRedirect { application: Arc::new(application), redirects }
}

/// See [`local_redirect`].
pub struct LocalRedirect<A> {
    application: Arc<A>,
    redirects: Redirects,
}

/// A local redirect that was not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    /// One more than [`Redirects::max`].
    #[error("expected at most {max} local redirects, got another after {}", .chain.join(" -> "))]
    TooMany {
        /// The limit.
        max: usize,
        /// The paths that were run, the one that the client asked for first, and the target that was not.
        chain: Vec<String>,
    },
    /// A target that can't be a path.
    #[error("expected a path without control characters as the target of a local redirect, got \"{0}\"")]
    Target(String),
    /// Part of the answer is on its way already.
    #[error("expected a local redirect before any of the response's body, got one after it")]
    Late,
}

impl<A: Application> Application for LocalRedirect<A> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let original = environ.without_input();
        let redirects = LocalRedirects::new();
        environ.set_local_redirects(Some(redirects.clone()));
        // Nearly no answer is a redirect, so none is held up: its head is set already, and replaced if need be.
        let answer = self.application.call(environ, start_response.clone()).await;
        match redirects.take() {
            None => answer,
            // Boxed, since it is large and seldom needed.
            Some(target) => Box::pin(self.follow(target, answer, original, &redirects, &start_response)).await,
        }
    }
}

impl<A: Application> LocalRedirect<A> {
    /// Runs the request again at that target, and at those that come of it.
    async fn follow(
        &self,
        mut target: Bytes,
        mut answer: Result<Body, Error>,
        original: Environ,
        redirects: &LocalRedirects,
        start_response: &StartResponse,
    ) -> Result<Body, Error> {
        let mut chain = Vec::new();
        let mut from: Option<Environ> = None;
        loop {
            if let Ok(mut body) = answer {
                // Nobody is meant to see it.
                poll_fn(|cx| body.poll_close(cx)).await;
            }
            let before = from.as_ref().unwrap_or(&original);
            chain.push(before.target().escape_ascii().to_string());
            if chain.len() > self.redirects.max {
                chain.push(target.escape_ascii().to_string());
                let error = RedirectError::TooMany { max: self.redirects.max, chain };
                return Err(Error::new(error).with_status(508));
            }
            match self.redirected(&original, before, &target)? {
                Some(mut again) => {
                    again.set_local_redirects(Some(redirects.clone()));
                    let response = call(self.application.clone(), again.without_input()).await;
                    from = Some(again);
                    answer = match response {
                        Ok(Response { head: Head { status, headers }, body }) => {
                            let replaced = start_response.restart(status, headers, Error::new(RedirectError::Late));
                            replaced.map(|_| body.into())
                        }
                        Err(error) => Err(error),
                    };
                }
                None => {
                    let location = [(&b"Location"[..], &target[..])];
                    start_response.restart("302 Found", location, Error::new(RedirectError::Late))?;
                    return Ok(Body::empty());
                }
            }
            match redirects.take() {
                None => return answer,
                Some(next) => target = next,
            }
        }
    }
}

impl<A> LocalRedirect<A> {
    /// The request at its new path; `None` where that is not this application's.
    fn redirected(&self, original: &Environ, before: &Environ, target: &Bytes) -> Result<Option<Environ>, Error> {
        let refused = || Error::new(RedirectError::Target(target.escape_ascii().to_string())).with_status(502);
        if target.iter().any(u8::is_ascii_control) {
            return Err(refused());
        }
        // RFC 3875 6.2.2: a path and a query. RFC 3986 4.2: what begins with two slashes names a host.
        if !target.starts_with(b"/") || target.starts_with(b"//") || target.contains(&b'#') {
            return Ok(None);
        }
        let (path, query) = match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (&target[..], &b""[..]),
        };
        let path: Vec<u8> = percent_decode(path).collect();
        let mount = self.redirects.mount.as_deref().unwrap_or(original.script_name());
        let mount = mount.strip_suffix(b"/").unwrap_or(mount);
        let Some(path_info) = path.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with(b"/")) else {
            return Ok(None);
        };
        let script_filename = original.get("SCRIPT_FILENAME").filter(|filename| !filename.is_empty());
        let mut moved = None;
        let (script_name, path_info) = if mount == original.script_name() || original.script_name().is_empty() {
            (mount, path_info)
        } else {
            // As the web server would have asked for it: the host of the scripts splits the path.
            if let Some(filename) = script_filename {
                moved = relocate(filename, original.script_name(), &path);
                if moved.is_none() {
                    return Ok(None);
                }
            }
            (&path[..], &b""[..])
        };
        let mut again = original.without_input();
        for name in OF_THE_OLD_PATH {
            again.variables_mut().remove(name);
        }
        let method: &[u8] = if original.method() == b"HEAD" { b"HEAD" } else { b"GET" };
        let redirect_url = [before.script_name(), before.path_info()].concat();
        let set = [
            ("REQUEST_METHOD", method),
            ("REQUEST_URI", target),
            ("SCRIPT_NAME", script_name),
            ("PATH_INFO", path_info),
            ("QUERY_STRING", query),
            ("REDIRECT_URL", &redirect_url),
            ("REDIRECT_QUERY_STRING", before.query_string()),
            ("REDIRECT_STATUS", b"200"),
        ];
        for (name, value) in set {
            // A path with `%00` in it fits in no variable.
            again.set(name, value).map_err(|_: VariableError| refused())?;
        }
        if let Some(filename) = moved {
            again.set("SCRIPT_FILENAME", filename).map_err(|_: VariableError| refused())?;
        }
        Ok(Some(again))
    }
}

/// The file for another path, where a web server has said that `script_filename` is the file for `script_name`: the two end alike, so that the
/// folders before that end are one. The nearest folder that the other path lies in counts; the site's own root only for a script that
/// lies there, since the site is more than the scripts.
fn relocate(script_filename: &[u8], script_name: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut common = 0;
    loop {
        let end = script_name.len() - common;
        let start = script_name[..end].iter().rposition(|byte| *byte == b'/')?;
        if !script_filename.ends_with(&script_name[start..]) || (start == 0 && common > 0) {
            return None;
        }
        common = script_name.len() - start;
        if let Some(rest) = path.strip_prefix(&script_name[..start])
            && rest.starts_with(b"/")
        {
            return Some([&script_filename[..script_filename.len() - common], rest].concat());
        }
    }
}

/// What is about the body that is left behind, or what web servers have computed for the first path: nginx and php-fpm have the SCRIPT_FILENAME
/// kind, Apache the CONTEXT and SCRIPT_URL kind, IIS and php-cgi ORIG.
const OF_THE_OLD_PATH: [&str; 15] = [
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "HTTP_TRANSFER_ENCODING",
    "HTTP_EXPECT",
    "SCRIPT_FILENAME",
    "PATH_TRANSLATED",
    "DOCUMENT_URI",
    "SCRIPT_URL",
    "SCRIPT_URI",
    "CONTEXT_PREFIX",
    "CONTEXT_DOCUMENT_ROOT",
    "ORIG_SCRIPT_NAME",
    "ORIG_SCRIPT_FILENAME",
    "ORIG_PATH_INFO",
    "ORIG_PATH_TRANSLATED",
];

impl<A> fmt::Debug for LocalRedirect<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRedirect").field("redirects", &self.redirects).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::forms::{Closed, counted_request, forms, request, text_of};
    use super::*;
    use crate::application::{AnyApplication, Input};

    /// Leaves for the target in the query as long as there is one, with a response that nobody sees; otherwise the application answers.
    fn leaving(application: AnyApplication) -> impl Application {
        move |environ: Environ, start_response: StartResponse| {
            let application = application.clone();
            async move {
                if let Some(target) = environ.query_string().strip_prefix(b"to=") {
                    let target: Vec<u8> = percent_decode(target).collect();
                    environ.local_redirects().expect("somebody follows").set(target);
                    start_response.start("200 OK", [("X-Nobody", "sees this")])?;
                    let closed = environ.extensions().get::<Closed>().cloned().unwrap_or_default();
                    return Ok(Body::empty().on_close(move || closed.increase()));
                }
                application.call(environ, start_response).await
            }
        }
    }

    fn request_to(target: &str) -> Environ {
        let mut environ = request("/start");
        environ.set("QUERY_STRING", format!("to={target}")).unwrap();
        environ
    }

    #[tokio::test]
    async fn the_request_is_run_again_in_every_form_and_every_body_closed() {
        for (form, app) in forms() {
            let app = local_redirect(leaving(app), Redirects::default());
            let (mut environ, closed) = counted_request("/start");
            environ.set("QUERY_STRING", "to=/a%2520b").unwrap();
            assert_eq!(text_of(app, environ).await, (200, "|/a b".into()), "{form}");
            assert_eq!(closed.count(), 2, "{form}");
        }
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_not_replaced() {
        async fn writes(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
            let mut write = start_response.start("200 OK", ())?;
            write.write("a").await?;
            write.write("b").await?;
            environ.local_redirects().expect("somebody follows").set("/c");
            Ok(Body::empty())
        }
        let mut response = call(local_redirect(writes, Redirects::default()), request("/start")).await.unwrap();
        let error = loop {
            match response.body.next().await {
                Some(Err(error)) => break error,
                part => assert!(matches!(part, Some(Ok(_)))),
            }
        };
        assert!(error.to_string().contains("before any of the response's body"), "{error}");
    }

    #[tokio::test]
    async fn without_a_redirect_nothing_changes() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            assert_eq!(text_of(local_redirect(leaving(app), Redirects::default()), environ).await.1, "|/a", "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
    }

    /// Calls it, and gives the variables and the body of the request that was run last.
    async fn last(redirects: Redirects, environ: Environ) -> (Environ, Bytes) {
        let seen = Arc::new(Mutex::new(None));
        let sees = seen.clone();
        let app = leaving(AnyApplication::new(move |mut environ: Environ, start_response: StartResponse| {
            let sees = sees.clone();
            async move {
                let body = environ.input().read_to_end(99).await?;
                *sees.lock().unwrap() = Some((environ, body));
                start_response.start("200 OK", [("Set-Cookie", "a=1")])?;
                Ok("")
            }
        }));
        text_of(local_redirect(app, redirects), environ).await;
        let last = seen.lock().unwrap().take();
        last.expect("it was called")
    }

    #[tokio::test]
    async fn it_is_a_get_without_a_body_at_the_mount() {
        let mut environ = request_to("/app/x/%252e%2525?a=%2561");
        for (name, value) in [
            ("REQUEST_METHOD", "POST"),
            ("SCRIPT_NAME", "/app"),
            ("REQUEST_URI", "/app/start?old"),
            ("CONTENT_LENGTH", "5"),
            ("CONTENT_TYPE", "text/plain"),
            ("HTTP_TRANSFER_ENCODING", "chunked"),
            ("SCRIPT_FILENAME", "/srv/start"),
            ("PATH_TRANSLATED", "/srv/x"),
            ("DOCUMENT_URI", "/app/start"),
            ("DOCUMENT_ROOT", "/srv"),
            ("HTTP_COOKIE", "b=2"),
        ] {
            environ.set(name, value).unwrap();
        }
        let id = environ.request_id().to_owned();
        let environ = environ.with_input(Input::from_bytes("hello"));
        let (again, body) = last(Redirects::default(), environ).await;
        assert!(body.is_empty());
        let all = ["REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "DOCUMENT_ROOT"];
        let values: Vec<_> = all.map(|name| again.text(name).unwrap().unwrap()).into();
        assert_eq!(values, ["GET", "/app", "/x/.%", "a=%61", "/app/x/%2e%25?a=%61", "/srv"]);
        assert_eq!(again.text("HTTP_COOKIE").unwrap(), Some("b=2"));
        assert_eq!(again.text("REDIRECT_URL").unwrap(), Some("/app/start"));
        assert_eq!(again.text("REDIRECT_STATUS").unwrap(), Some("200"));
        for name in OF_THE_OLD_PATH {
            assert_eq!(again.get(name), None, "{name}");
        }
        assert_eq!(again.request_id(), id);
    }

    #[tokio::test]
    async fn head_stays_head_and_the_mount_may_be_named() {
        let mut environ = request_to("/cgi-bin/b");
        environ.set("REQUEST_METHOD", "HEAD").unwrap();
        // As nginx's stock parameters have it: SCRIPT_NAME is the script.
        environ.set("SCRIPT_NAME", "/cgi-bin/a").unwrap();
        let (again, _) = last(Redirects { mount: Some(Vec::new()), ..Redirects::default() }, environ).await;
        assert_eq!(
            (again.method(), again.script_name(), again.path_info()),
            (&b"HEAD"[..], &b"/cgi-bin/b"[..], &b""[..])
        );
    }

    #[test]
    fn a_script_s_neighbours_lie_beside_its_file() {
        for (filename, name, path, expected) in [
            ("/usr/lib/cgi-bin/a", "/cgi-bin/a", "/cgi-bin/b/c", Some("/usr/lib/cgi-bin/b/c")),
            ("/srv/scripts/a", "/cgi-bin/a", "/cgi-bin/b", Some("/srv/scripts/b")),
            ("proxy:fcgi://h:1/srv/a", "/cgi/a", "/cgi/b", Some("proxy:fcgi://h:1/srv/b")),
            ("/lib/cgi-bin/x/a", "/cgi-bin/x/a", "/cgi-bin/b", Some("/lib/cgi-bin/b")),
            ("/srv/a", "/a", "/b", Some("/srv/b")),
            ("/lib/cgi-bin/a", "/cgi-bin/a", "/other", None),
            ("/lib/cgi-bin/a", "/cgi-bin/a", "/cgi-binary", None),
            ("/usr/lib/git/gitweb", "/git", "/git/x", None),
            ("/srv/xa", "/cgi/a", "/cgi/b", None),
            ("/srv/a", "a", "/b", None),
        ] {
            let moved = relocate(filename.as_bytes(), name.as_bytes(), path.as_bytes());
            assert_eq!(moved.as_deref(), expected.map(str::as_bytes), "{filename} {name} {path}");
        }
    }

    #[tokio::test]
    async fn behind_a_web_server_that_finds_the_scripts_its_answer_is_made_for_the_new_path() {
        let mut environ = request_to("/cgi-bin/b/x");
        for (name, value) in [("PATH_INFO", ""), ("SCRIPT_NAME", "/cgi-bin/a"), ("SCRIPT_FILENAME", "/srv/cgi-bin/a")] {
            environ.set(name, value).unwrap();
        }
        let (again, _) = last(Redirects { mount: Some(Vec::new()), ..Redirects::default() }, environ).await;
        assert_eq!((again.script_name(), again.path_info()), (&b"/cgi-bin/b/x"[..], &b""[..]));
        assert_eq!(again.text("SCRIPT_FILENAME").unwrap(), Some("/srv/cgi-bin/b/x"));
    }

    #[tokio::test]
    async fn what_is_not_below_the_mount_is_sent_to_the_client() {
        for target in ["//host/x", "/application", "/", "/app/x%23there", "http://host/"] {
            let mut environ = request_to(target);
            environ.set("SCRIPT_NAME", "/app").unwrap();
            let app = local_redirect(leaving(forms().remove(0).1), Redirects::default());
            let response = call(app, environ).await.unwrap();
            assert_eq!(response.head.status.code(), 302, "{target}");
            let location = response.head.headers.get("Location").unwrap().to_vec();
            assert_eq!(location, percent_decode(target.as_bytes()).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn a_target_with_control_characters_is_502() {
        for target in ["/a%0d%0aSet-Cookie:x", "/a%00", "/a%2500", "/%7f", "//a%0a"] {
            let app = local_redirect(leaving(forms().remove(0).1), Redirects::default());
            let error = call(app, request_to(target)).await.unwrap_err();
            assert_eq!(error.status(), 502, "{target}");
            assert!(matches!(error.downcast_ref(), Some(RedirectError::Target(_))), "{target}");
        }
    }

    #[tokio::test]
    async fn a_loop_ends_at_the_limit_and_the_error_names_the_chain() {
        async fn circles(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
            let target: &'static str = if environ.path_info() == b"/a" { "/b" } else { "/a" };
            environ.local_redirects().expect("somebody follows").set(target);
            start_response.start("200 OK", ())?;
            Ok(Body::empty())
        }
        for (max, chain) in [(0, &["/start", "/a"][..]), (2, &["/start", "/a", "/b", "/a"])] {
            let app = local_redirect(circles, Redirects { max, ..Redirects::default() });
            let error = call(app, request("/start")).await.unwrap_err();
            assert_eq!(error.status(), 508);
            assert!(error.to_string().ends_with(&chain.join(" -> ")), "{error}");
        }
        assert_eq!(Redirects::default().max, 10);
        let error = call(local_redirect(circles, Redirects::default()), request("/start")).await.unwrap_err();
        assert_eq!(error.to_string().matches(" -> ").count(), 11, "{error}");
    }
}
