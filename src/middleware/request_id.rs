//! Request ids: one name for a request in the logs of the web server, of this process and of what the request is handed on to.

use std::fmt;

use crate::application::{Application, Body, Environ, Error, StartResponse};

/// Tells an application the request's id as HTTP_X_REQUEST_ID, and the client as X-Request-Id.
///
/// It is [`Environ::request_id`]: the one that the request brought, where it is harmless, else a new one. An application that names one
/// itself keeps it. Pages of errors that the gateway makes have the id in their text.
pub fn request_id<A: Application>(application: A) -> RequestId<A> {
    RequestId { application, in_response: true }
}

/// See [`request_id`].
pub struct RequestId<A> {
    application: A,
    in_response: bool,
}

impl<A> RequestId<A> {
    /// The same without the response's header.
    #[must_use]
    pub fn without_response_header(mut self) -> Self {
        self.in_response = false;
        self
    }
}

impl<A: Application> Application for RequestId<A> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let id = environ.request_id().to_owned();
        // In the place of one that is not harmless, and of several.
        environ.set("HTTP_X_REQUEST_ID", &id)?;
        if !self.in_response {
            return self.application.call(environ, start_response).await;
        }
        let start_response = start_response.wrap(move |head| {
            if !head.headers.contains(HEADER) {
                head.headers.push(HEADER, &id);
            }
            Ok(())
        });
        self.application.call(environ, start_response).await
    }
}

const HEADER: &str = "X-Request-Id";

impl<A> fmt::Debug for RequestId<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestId").field("in_response", &self.in_response).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::{counted_request, forms, request};
    use super::*;
    use crate::application::driver::call;

    #[tokio::test]
    async fn the_id_is_in_the_response_of_every_form() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            let id = environ.request_id().to_owned();
            let mut response = call(request_id(app), environ).await.unwrap();
            assert_eq!(response.head.headers.get(HEADER), Some(id.as_bytes()), "{form}");
            assert_eq!(response.body.read_to_end(99).await.unwrap(), "|/a", "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
    }

    async fn tells(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        start_response.start("200 OK", ())?;
        Ok(environ.get("HTTP_X_REQUEST_ID").unwrap_or_default().to_vec().into())
    }

    #[tokio::test]
    async fn a_harmless_id_is_kept_and_another_replaced() {
        for (brought, is_kept) in [("abc-1", true), ("a b", false), ("a\nb", false), ("", false)] {
            let mut environ = request("/");
            environ.set("HTTP_X_REQUEST_ID", brought).unwrap();
            let mut response = call(request_id(tells).without_response_header(), environ).await.unwrap();
            assert!(!response.head.headers.contains(HEADER));
            let told = response.body.read_to_end(99).await.unwrap();
            assert_eq!(told == brought, is_kept, "{brought:?}");
            assert!(!told.is_empty() && told.iter().all(u8::is_ascii_graphic), "{told:?}");
        }
    }

    #[tokio::test]
    async fn an_application_s_own_id_stays() {
        async fn names(_: Environ, start_response: StartResponse) -> Result<Body, Error> {
            start_response.start("200 OK", [("x-request-id", "mine")])?;
            Ok(Body::empty())
        }
        let response = call(request_id(names), request("/")).await.unwrap();
        assert_eq!(response.head.headers.all(HEADER).collect::<Vec<_>>(), [b"mine"]);
    }
}
