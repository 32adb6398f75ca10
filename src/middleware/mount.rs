//! Applications side by side under one: the path says which is called. What is mounted sees the path as if it were alone.

use std::fmt;

use crate::application::driver::error_page;
use crate::application::{AnyApplication, Application, Body, Environ, Error, StartResponse};

/// Hands a request to the application mounted at the longest prefix of PATH_INFO, and moves that prefix to SCRIPT_NAME, so that the two
/// together stay the path that they were (PEP 3333, "`environ` Variables").
///
/// ```
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::Mount};
/// # async fn shop(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// # async fn home(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// let site = Mount::new().at("/shop", shop).fallback(home);
/// ```
///
/// A prefix ends at a `/` or the end of the path: `/shop` is there for `/shop`, `/shop/` and `/shop/cart`, and not for `/shopping`. Bytes are
/// compared as they are: no case is folded, no `//` or `..` tidied, so that a path names one application only.
/// Where the web server gives the whole path as SCRIPT_NAME and no PATH_INFO, as nginx's stock parameters do, all requests are the
/// root's: set PATH_INFO there.
#[derive(Clone, Default)]
pub struct Mount {
    /// The longest first.
    mounted: Vec<(Box<[u8]>, AnyApplication)>,
    fallback: Option<AnyApplication>,
}

impl Mount {
    /// Nothing but 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an application. Slashes at the end of the prefix are nothing, and one at its beginning is understood; `/` is the
    /// root, which has every path that no other prefix has. Of two at one prefix the later counts.
    #[must_use]
    pub fn at(mut self, prefix: &str, application: impl Application) -> Self {
        let prefix = match prefix.trim_end_matches('/') {
            trimmed if trimmed.is_empty() || trimmed.starts_with('/') => trimmed.to_owned(),
            trimmed => format!("/{trimmed}"),
        };
        self.mounted.retain(|(other, _)| **other != *prefix.as_bytes());
        let place = self.mounted.partition_point(|(other, _)| other.len() > prefix.len());
        self.mounted.insert(place, (prefix.into_bytes().into(), AnyApplication::new(application)));
        self
    }

    /// What is called where no prefix matches, with the path as it came; without it that is a 404.
    #[must_use]
    pub fn fallback(mut self, application: impl Application) -> Self {
        self.fallback = Some(AnyApplication::new(application));
        self
    }

    fn find(&self, path: &[u8]) -> Option<(&[u8], &AnyApplication)> {
        let found = self.mounted.iter().find(|(prefix, _)| {
            path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        });
        found.map(|(prefix, application)| (&**prefix, application))
    }
}

impl Application for Mount {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        match (self.find(environ.path_info()), &self.fallback) {
            (Some((prefix, application)), _) => {
                if !prefix.is_empty() {
                    let script_name = [environ.script_name(), prefix].concat();
                    let path_info = environ.path_info()[prefix.len()..].to_vec();
                    // Only NUL is refused, which no path should have.
                    environ.set("SCRIPT_NAME", script_name).map_err(|error| Error::new(error).with_status(400))?;
                    environ.set("PATH_INFO", path_info).map_err(|error| Error::new(error).with_status(400))?;
                }
                application.call(environ, start_response).await
            }
            (None, Some(fallback)) => fallback.call(environ, start_response).await,
            (None, None) => error_page(404, environ.request_id(), environ.method() == b"HEAD").pass_on(&start_response),
        }
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefixes = self.mounted.iter().map(|(prefix, _)| prefix.escape_ascii().to_string());
        f.debug_struct("Mount")
            .field("at", &prefixes.collect::<Vec<_>>())
            .field("fallback", &self.fallback.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;

    async fn name(site: &Mount, path: &str) -> String {
        let (status, text) = text_of(site.clone(), request(path)).await;
        if status == 404 { "404".into() } else { text }
    }

    #[tokio::test]
    async fn the_longest_prefix_wins_and_moves_to_script_name() {
        for (form, app) in forms() {
            let site = Mount::new().at("/a", app.clone()).at("/a/b", app.clone()).at("/c/", app);
            for (path, expected) in [
                ("/a", "/a|"),
                ("/a/", "/a|/"),
                ("/a/x", "/a|/x"),
                ("/a/b", "/a/b|"),
                ("/a/b/c", "/a/b|/c"),
                ("/a/bc", "/a|/bc"),
                ("/c", "/c|"),
                ("/c/", "/c|/"),
                ("/ab", "404"),
                ("/", "404"),
                ("", "404"),
            ] {
                assert_eq!(name(&site, path).await, expected, "{form} {path}");
            }
        }
    }

    #[tokio::test]
    async fn paths_are_compared_byte_by_byte() {
        let (_, app) = forms().remove(0);
        let site = Mount::new().at("/a", app.clone()).at("/\u{e9}", app);
        for (path, expected) in [
            ("//a", "404"),
            ("/a//b", "/a|//b"),
            ("/a//", "/a|//"),
            ("/A", "404"),
            ("/a/../c", "/a|/../c"),
            ("/\u{e9}/x", "/\u{e9}|/x"),
            // Composed and not: the same letter, another path.
            ("/e\u{301}/x", "404"),
            ("/\u{c9}/x", "404"),
            ("a", "404"),
        ] {
            assert_eq!(name(&site, path).await, expected, "{path}");
        }
    }

    #[tokio::test]
    async fn the_root_and_the_fallback_see_the_path_as_it_came() {
        let (_, app) = forms().remove(0);
        let root = Mount::new().at("/", app.clone()).at("/a", app.clone());
        assert_eq!(name(&root, "/x").await, "|/x");
        assert_eq!(name(&root, "/a/x").await, "/a|/x");
        assert_eq!(name(&root, "").await, "|");
        let fallback = Mount::new().fallback(app.clone()).at("/a", app);
        assert_eq!(name(&fallback, "//a").await, "|//a");
    }

    #[tokio::test]
    async fn mounts_nest() {
        let (_, app) = forms().remove(0);
        let site = Mount::new().at("/a", Mount::new().at("/b", app));
        assert_eq!(name(&site, "/a/b/c").await, "/a/b|/c");
        let mut environ = request("/a/b");
        environ.set("SCRIPT_NAME", "/app").unwrap();
        assert_eq!(text_of(site, environ).await.1, "/app/a/b|");
    }

    #[tokio::test]
    async fn the_close_of_what_is_mounted_is_passed_through() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a/b");
            text_of(Mount::new().at("/a", app), environ).await;
            assert_eq!(closed.count(), 1, "{form}");
        }
    }

    #[tokio::test]
    async fn the_404_page_has_no_body_for_head() {
        let mut environ = request("/");
        environ.set("REQUEST_METHOD", "HEAD").unwrap();
        assert_eq!(text_of(Mount::new(), environ).await, (404, String::new()));
    }
}
