//! Time limits: how long an application may take to begin, between two pieces, and in all.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::application::driver::{Call, Response, ResponseBody};
use crate::application::for_ever::bound;
use crate::application::{Application, Body, Cancellation, Environ, Error, Frame, Frames, StartResponse};

/// How long a body that has run out of time may take to close before its head: what it awaits is dropped then.
const CLOSE: Duration = Duration::from_secs(1);

/// How long an application may take. `None` is without limit, which is the default of all three.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// From the call until the head can be sent.
    pub head: Option<Duration>,
    /// Between two pieces of the body. Only what the application takes counts, not what the client does.
    pub between: Option<Duration>,
    /// From the call until the end of the body. What a slow client takes counts, too.
    pub total: Option<Duration>,
}

/// Gives an application up when it takes longer than its [`Limits`]: 504 as long as the head is not sent, afterwards the response is
/// cut. Its environ's cancellation is pulled, and its body closed.
///
/// ```
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::{Limits, timeout}};
/// # async fn shop(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// use std::time::Duration;
///
/// let patient = timeout(shop, Limits { head: Some(Duration::from_secs(10)), ..Limits::default() });
/// ```
pub fn timeout<A: Application>(application: A, mut limits: Limits) -> Timeout<A> {
    bound([&mut limits.head, &mut limits.between, &mut limits.total].into_iter().flatten());
    Timeout { application: Arc::new(application), limits }
}

/// See [`timeout`].
pub struct Timeout<A> {
    application: Arc<A>,
    limits: Limits,
}

/// An application took longer than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimedOut {
    /// [`Limits::head`].
    #[error("the application has not begun its response within {0:?}")]
    Head(Duration),
    /// [`Limits::between`].
    #[error("the application has not gone on with its response within {0:?}")]
    Between(Duration),
    /// [`Limits::total`].
    #[error("the response has not ended within {0:?}")]
    Total(Duration),
}

impl<A: Application> Application for Timeout<A> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let Limits { head, between, total } = self.limits;
        let start = Instant::now();
        let (environ, cancellation) = environ.with_own_cancellation();
        let mut call = Call::new(self.application.clone(), environ);
        let total = total.map(|total| (start + total, TimedOut::Total(total)));
        let head = head.map(|head| (start + head, TimedOut::Head(head)));
        let response = match sooner(head, total.clone()) {
            None => call.response().await?,
            Some((deadline, timed_out)) => match tokio::time::timeout_at(deadline, call.response()).await {
                Ok(response) => response?,
                Err(_) => {
                    cancellation.cancel();
                    // What has not closed by then is closed by being dropped.
                    let _ = tokio::time::timeout(CLOSE, call.close()).await;
                    return Err(gateway_timeout(timed_out));
                }
            },
        };
        let Response { head, body } = response;
        start_response.start(head.status, head.headers)?;
        if body.is_over() || (between.is_none() && total.is_none()) {
            return Ok(body.into());
        }
        Ok(Body::frames(Timed { body, cancellation, between, total, timer: None, waiting: None }))
    }
}

fn gateway_timeout(timed_out: TimedOut) -> Error {
    Error::new(timed_out).with_status(504)
}

type Deadline = (Instant, TimedOut);

fn sooner(first: Option<Deadline>, second: Option<Deadline>) -> Option<Deadline> {
    first.into_iter().chain(second).min_by_key(|(deadline, _)| *deadline)
}

/// A body that has its limits still before it.
struct Timed {
    body: ResponseBody,
    cancellation: Cancellation,
    between: Option<Duration>,
    total: Option<Deadline>,
    /// One timer for all waits; made when the first is needed.
    timer: Option<Pin<Box<Sleep>>>,
    /// What happens when the timer fires; `None` while the application is not waited for.
    waiting: Option<TimedOut>,
}

impl Timed {
    fn give_up(&mut self, timed_out: TimedOut) -> Poll<Option<Result<Frame, Error>>> {
        self.cancellation.cancel();
        Poll::Ready(Some(Err(gateway_timeout(timed_out))))
    }
}

impl Frames for Timed {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            this.waiting = None;
            // One that never waits would never see the timer.
            return match &this.total {
                Some((deadline, timed_out)) if frame.is_some() && Instant::now() >= *deadline => {
                    let timed_out = timed_out.clone();
                    this.give_up(timed_out)
                }
                _ => Poll::Ready(frame),
            };
        }
        if this.waiting.is_none() {
            let between = this.between.map(|between| (Instant::now() + between, TimedOut::Between(between)));
            let Some((deadline, timed_out)) = sooner(between, this.total.clone()) else { return Poll::Pending };
            match &mut this.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => this.timer = Some(Box::pin(sleep_until(deadline))),
            }
            this.waiting = Some(timed_out);
        }
        if let Some(timer) = &mut this.timer {
            ready!(timer.as_mut().poll(cx));
        }
        match this.waiting.take() {
            Some(timed_out) => this.give_up(timed_out),
            None => Poll::Pending,
        }
    }

    fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.body.poll_close(cx)
    }
}

impl<A> fmt::Debug for Timeout<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use bytes::Bytes;
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::super::forms::{counted_request, forms, request, text_of};
    use super::*;
    use crate::application::driver::call;
    use crate::application::{Class, class};

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(head: u32, between: u32, total: u32) -> Limits {
        let seconds = |seconds: u32| (seconds > 0).then(|| SECOND * seconds);
        Limits { head: seconds(head), between: seconds(between), total: seconds(total) }
    }

    /// Waits as many seconds as each digit of the path says, and then gives the digit. It leaves word of its token and close.
    struct Waits {
        start_response: Option<StartResponse>,
        seconds: VecDeque<u8>,
        left: Left,
        token: CancellationToken,
    }

    #[derive(Clone, Default)]
    struct Left(Arc<Mutex<Vec<&'static str>>>);

    impl Class for Waits {
        fn new(environ: Environ, start_response: StartResponse) -> Self {
            Self {
                start_response: Some(start_response),
                seconds: environ.path_info()[1..].iter().copied().collect(),
                left: environ.extensions().get::<Left>().cloned().unwrap_or_default(),
                token: environ.cancellation(),
            }
        }

        async fn next(&mut self) -> Option<Result<Bytes, Error>> {
            let digit = self.seconds.pop_front()?;
            sleep(SECOND * u32::from(digit - b'0')).await;
            if let Some(start) = self.start_response.take() {
                start.start("200 OK", ()).unwrap();
            }
            Some(Ok(Bytes::copy_from_slice(&[digit])))
        }

        async fn close(&mut self) {
            self.left.0.lock().unwrap().push(if self.token.is_cancelled() { "cancelled" } else { "closed" });
        }
    }

    async fn outcome(limits: Limits, path: &str) -> (Result<Bytes, Error>, Vec<&'static str>) {
        let mut environ = request(path);
        let left = Left::default();
        environ.extensions_mut().insert(left.clone());
        let result = match call(timeout(class::<Waits>(), limits), environ).await {
            Ok(mut response) => {
                let result = response.body.read_to_end(99).await;
                response.body.close().await;
                result
            }
            Err(error) => Err(error),
        };
        let left = left.0.lock().unwrap().clone();
        (result, left)
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_head_the_limit_is_a_504_and_the_application_is_cancelled_and_closed() {
        for (limits, timed_out) in
            [(limits(3, 1, 9), TimedOut::Head(SECOND * 3)), (limits(4, 0, 3), TimedOut::Total(SECOND * 3))]
        {
            let (result, left) = outcome(limits, "/5").await;
            let error = result.unwrap_err();
            assert_eq!(error.status(), 504);
            assert_eq!(error.downcast_ref(), Some(&timed_out));
            // The step that was under way takes two seconds more, and a close is not waited for so long.
            assert!(left.is_empty());
        }
        let (_, left) = outcome(limits(5, 0, 0), "/9").await;
        assert!(left.is_empty());
        let (_, left) = outcome(Limits { head: Some(SECOND * 9 / 2), ..limits(0, 0, 0) }, "/5").await;
        assert_eq!(left, ["cancelled"]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_head_the_response_is_cut() {
        let (result, left) = outcome(limits(0, 2, 0), "/4113").await;
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&TimedOut::Between(SECOND * 2)));
        assert_eq!(left, ["cancelled"]);
        let (result, left) = outcome(limits(0, 0, 5), "/11111111").await;
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&TimedOut::Total(SECOND * 5)));
        assert_eq!(left, ["cancelled"]);
    }

    #[tokio::test(start_paused = true)]
    async fn within_the_limits_nothing_changes() {
        let (result, left) = outcome(limits(2, 2, 6), "/11111").await;
        assert_eq!(result.unwrap(), "11111");
        assert_eq!(left, ["closed"]);
    }

    /// Not on the paused clock, which would run on while a thread of its own blocks.
    #[tokio::test]
    async fn all_forms_pass_through() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            assert_eq!(text_of(timeout(app, limits(9, 9, 9)), environ).await, (200, "|/a".into()), "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_client_takes_is_not_the_application_s_time() {
        let mut response = call(timeout(class::<Waits>(), limits(2, 2, 0)), request("/111")).await.unwrap();
        for _ in 0..3 {
            sleep(SECOND * 60).await;
            assert!(matches!(response.body.next().await, Some(Ok(Frame::Data(_)))));
        }
        assert!(response.body.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_waits_ends_too() {
        async fn endless(_: Environ, start_response: StartResponse) -> Result<Body, Error> {
            start_response.start("200 OK", ())?;
            Ok(Body::iter(std::iter::repeat("x")))
        }
        let mut response = call(timeout(endless, limits(0, 0, 1)), request("/")).await.unwrap();
        response.body.next().await.unwrap().unwrap();
        sleep(SECOND * 2).await;
        assert!(response.body.next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_request_s_own_cancellation_reaches_the_application() {
        let cancellation = Cancellation::default();
        let environ = request("/").with_request(crate::protocol::fastcgi::Role::Responder, 1, cancellation.clone());
        async fn waits(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
            environ.cancellation().cancelled().await;
            start_response.start("200 OK", ())?;
            Ok("told".into())
        }
        let cancelled = async move {
            sleep(SECOND).await;
            cancellation.cancel();
        };
        let (text, ()) = tokio::join!(text_of(timeout(waits, limits(5, 0, 0)), environ), cancelled);
        assert_eq!(text, (200, "told".into()));
    }
}
