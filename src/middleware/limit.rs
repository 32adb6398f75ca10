//! So many requests at once, so many more in a queue, and 503 for the rest.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::application::driver::error_page;
use crate::application::{Application, Body, Environ, Error, StartResponse};

/// How many requests an application has at the same time.
#[derive(Debug, Clone)]
pub struct Limit {
    /// Requests under way, from the call to the close of the body; at least 1.
    pub concurrent: usize,
    /// Further requests that wait, in order. One more is a 503.
    pub queue: usize,
    /// How long a request waits before it is a 503 too. Retry-After names this time, in whole seconds.
    pub wait: Duration,
}

/// 256 at once, 256 waiting, for 10 seconds.
impl Default for Limit {
    fn default() -> Self {
        Self { concurrent: 256, queue: 256, wait: Duration::from_secs(10) }
    }
}

/// Keeps an application to a [`Limit`]. A request that is answered with 503 does not reach it.
///
/// A slow client holds its place as long as its body is under way: put [`timeout`](super::timeout()) inside to end that.
pub fn limit<A: Application>(application: A, limit: Limit) -> Limited<A> {
    let concurrent = limit.concurrent.max(1);
    let admitted = concurrent.saturating_add(limit.queue).min(Semaphore::MAX_PERMITS);
    Limited {
        application,
        running: Arc::new(Semaphore::new(concurrent.min(Semaphore::MAX_PERMITS))),
        admitted: Arc::new(Semaphore::new(admitted)),
        limit,
    }
}

/// See [`limit`].
pub struct Limited<A> {
    application: A,
    running: Arc<Semaphore>,
    /// Running and waiting requests together.
    admitted: Arc<Semaphore>,
    limit: Limit,
}

/// Leave for one request; given back when dropped.
struct Place {
    _running: OwnedSemaphorePermit,
    _admitted: OwnedSemaphorePermit,
}

impl<A> Limited<A> {
    async fn place(&self) -> Option<Place> {
        let admitted = self.admitted.clone().try_acquire_owned().ok()?;
        let running = match self.running.clone().try_acquire_owned() {
            Ok(running) => running,
            Err(_) => tokio::time::timeout(self.limit.wait, self.running.clone().acquire_owned()).await.ok()?.ok()?,
        };
        Some(Place { _running: running, _admitted: admitted })
    }
}

impl<A: Application> Application for Limited<A> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let Some(place) = self.place().await else {
            let mut page = error_page(503, environ.request_id(), environ.method() == b"HEAD");
            let seconds = self.limit.wait.as_secs() + u64::from(self.limit.wait.subsec_nanos() > 0);
            page.head.headers.push("Retry-After", seconds.max(1).to_string());
            return page.pass_on(&start_response);
        };
        let body = self.application.call(environ, start_response).await?;
        Ok(body.on_close(move || drop(place)))
    }
}

impl<A> fmt::Debug for Limited<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited").field("limit", &self.limit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;
    use crate::application::driver::call;

    fn one_at_once(queue: usize) -> Limit {
        Limit { concurrent: 1, queue, wait: Duration::from_secs(5) }
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_body_is_closed() {
        for (form, app) in forms() {
            let app = Arc::new(limit(app, one_at_once(0)));
            let (environ, closed) = counted_request("/");
            let mut first = call(app.clone(), environ).await.unwrap();
            let refused = call(app.clone(), request("/")).await.unwrap();
            assert_eq!(refused.head.status.code(), 503, "{form}");
            assert_eq!(refused.head.headers.get("Retry-After"), Some(&b"5"[..]));
            first.body.close().await;
            assert_eq!(closed.count(), 1, "{form}");
            assert_eq!(text_of(app.clone(), request("/")).await, (200, "|/".into()), "{form}");
            // Dropped, too.
            drop(call(app.clone(), request("/")).await.unwrap());
            assert_eq!(text_of(app, request("/")).await.0, 200, "{form}");
        }
    }

    #[tokio::test]
    async fn requests_wait_in_order_for_a_place() {
        let (_, app) = forms().remove(0);
        let app = Arc::new(limit(app, one_at_once(1)));
        let mut first = call(app.clone(), request("/1")).await.unwrap();
        let mut second = Box::pin(call(app.clone(), request("/2")));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(text_of(app.clone(), request("/3")).await.0, 503);
        first.body.read_to_end(99).await.unwrap();
        assert_eq!(second.await.unwrap().body.read_to_end(99).await.unwrap(), "|/2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_too_long_is_a_503_and_leaves_the_queue() {
        let (_, app) = forms().remove(0);
        let app = Arc::new(limit(app, one_at_once(1)));
        let first = call(app.clone(), request("/1")).await.unwrap();
        assert_eq!(text_of(app.clone(), request("/2")).await.0, 503);
        drop(first);
        assert_eq!(text_of(app, request("/3")).await.0, 200);
    }

    #[tokio::test]
    async fn an_error_and_a_client_that_leaves_give_the_place_back() {
        async fn fails(environ: Environ, _: StartResponse) -> Result<Body, Error> {
            match environ.path_info() {
                b"/wait" => std::future::pending().await,
                _ => Err(Error::new("failed")),
            }
        }
        let app = Arc::new(limit(fails, one_at_once(0)));
        call(app.clone(), request("/")).await.unwrap_err();
        {
            let mut leaves = Box::pin(call(app.clone(), request("/wait")));
            assert!(futures_util::poll!(&mut leaves).is_pending());
        }
        assert_eq!(call(app, request("/")).await.unwrap_err().to_string(), "failed");
    }
}
