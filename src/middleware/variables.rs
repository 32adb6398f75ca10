//! Variables of one's own: what an application is told besides, or in the place of, what the request brought.

use std::fmt;

use crate::application::{Application, Body, Environ, Error, StartResponse, VariableError, Variables};
use crate::protocol::cgi::names;

/// Sets these variables for an application, as `fastcgi_param` does in nginx; of a name that is repeated the last counts. They are in the
/// place of what the request has under that name, be it a header's.
///
/// # Errors
///
/// When one can't be a variable (an empty name, or one with `=` or NUL), must not be one (`HTTP_PROXY` and its like), or is
/// CONTENT_LENGTH, which says where a body ends and is nobody's to choose.
///
/// ```
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::variables};
/// # async fn shop(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// let shop = variables(shop, [("APP_ENV", "staging"), ("PHP_VALUE", "memory_limit=64M")])?;
/// # Ok::<(), gatespan::middleware::VariablesError>(())
/// ```
pub fn variables<A: Application>(
    application: A,
    variables: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
) -> Result<WithVariables<A>, VariablesError> {
    let mut checked = Variables::default();
    let mut set = Vec::new();
    for (name, value) in variables {
        let (name, value) = (name.as_ref().to_vec(), value.as_ref().to_vec());
        if name == names::CONTENT_LENGTH.as_bytes() {
            return Err(VariablesError::Framing);
        }
        checked.set(&name, &value)?;
        set.push((name, value));
    }
    Ok(WithVariables { application, set })
}

/// See [`variables`].
pub struct WithVariables<A> {
    application: A,
    set: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why variables can't be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VariablesError {
    /// It can't be one, or must not.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// CONTENT_LENGTH.
    #[error("CONTENT_LENGTH says where the request's body ends, and can't be set")]
    Framing,
}

impl<A: Application> Application for WithVariables<A> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        for (name, value) in &self.set {
            environ.set(name, value)?;
        }
        self.application.call(environ, start_response).await
    }
}

impl<A> fmt::Debug for WithVariables<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.set.iter().map(|(name, _)| name.escape_ascii().to_string()).collect();
        f.debug_struct("WithVariables").field("set", &names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;

    #[tokio::test]
    async fn what_is_set_takes_the_place_of_what_was_there() {
        async fn tells(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
            start_response.start("200 OK", ())?;
            let seen = ["A", "REQUEST_METHOD", "HTTP_X"].map(|name| environ.text(name).ok().flatten().unwrap_or("-"));
            Ok(seen.join(" ").into())
        }
        let mut environ = request("/");
        environ.set("HTTP_X", "client").unwrap();
        let app = variables(tells, [("A", "1"), ("A", "2"), ("HTTP_X", "own")]).unwrap();
        assert_eq!(text_of(app, environ).await, (200, "2 GET own".into()));
    }

    #[test]
    fn what_can_not_be_set_is_refused() {
        async fn none(_: Environ, _: StartResponse) -> Result<Body, Error> {
            Ok(Body::empty())
        }
        for (name, part) in [
            ("", "expected a variable's name"),
            ("A=B", "expected a variable's name"),
            ("A\0", "expected a variable's name"),
            ("HTTP_PROXY", "HTTP_PROXY is never part"),
            ("CONTENT_LENGTH", "where the request's body ends"),
        ] {
            let error = variables(none, [(name, "x")]).expect_err(name).to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn all_forms_pass_through() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            assert_eq!(text_of(variables(app, [("A", "b")]).unwrap(), environ).await, (200, "|/a".into()), "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
    }
}
