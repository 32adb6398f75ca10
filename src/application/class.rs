//! The class form of an application: a type that is built for each request and then iterated.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::body::{Body, Frame, Frames};
use super::callable::Application;
use super::environ::Environ;
use super::error::Error;
use super::start_response::StartResponse;

/// A type that is an application by being built and iterated, as PEP 3333's `AppClass` is.
///
/// `start_response` may be called as late as before the first piece is given.
pub trait Class: Send + Sized + 'static {
    /// Python's `__init__`: keeps what it needs of the request.
    fn new(environ: Environ, start_response: StartResponse) -> Self;

    /// The next piece of the body; `None` at the end. Each is sent when the next has to be waited for.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, Error>>> + Send;

    /// Called once, on every way out. Not waited for longer than the gateway's limit.
    fn close(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Makes an application of a [`Class`].
pub fn class<T: Class>() -> ClassApplication<T> {
    ClassApplication { class: PhantomData }
}

/// See [`class`].
pub struct ClassApplication<T> {
    class: PhantomData<fn() -> T>,
}

impl<T: Class> Application for ClassApplication<T> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        Ok(Body::frames(Iterated { step: Step::Ready(T::new(environ, start_response)) }))
    }
}

impl<T> Clone for ClassApplication<T> {
    fn clone(&self) -> Self {
        Self { class: PhantomData }
    }
}

impl<T> fmt::Debug for ClassApplication<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "class({})", std::any::type_name::<T>())
    }
}

/// The instance moves into the future of each step and comes back with its result.
struct Iterated<T> {
    step: Step<T>,
}

enum Step<T> {
    Ready(T),
    Running(Pin<Box<dyn Future<Output = (T, Option<Result<Bytes, Error>>)> + Send>>),
    Closing(Pin<Box<dyn Future<Output = ()> + Send>>),
    Over,
}

impl<T> Unpin for Iterated<T> {}

impl<T: Class> Frames for Iterated<T> {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = Pin::into_inner(self);
        if let Step::Ready(_) = this.step
            && let Step::Ready(mut instance) = std::mem::replace(&mut this.step, Step::Over)
        {
            this.step = Step::Running(Box::pin(async move {
                let piece = instance.next().await;
                (instance, piece)
            }));
        }
        let Step::Running(running) = &mut this.step else { return Poll::Ready(None) };
        let (instance, piece) = ready!(running.as_mut().poll(cx));
        this.step = Step::Ready(instance);
        Poll::Ready(piece.map(|piece| piece.map(Frame::Data)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = Pin::into_inner(self);
        loop {
            match std::mem::replace(&mut this.step, Step::Over) {
                Step::Ready(mut instance) => this.step = Step::Closing(Box::pin(async move { instance.close().await })),
                // A step that is under way can't be taken back: it is finished, and the instance closed then.
                Step::Running(running) => {
                    this.step = Step::Closing(Box::pin(async move {
                        let (mut instance, _) = running.await;
                        instance.close().await;
                    }));
                }
                Step::Closing(mut closing) => {
                    if closing.as_mut().poll(cx).is_pending() {
                        this.step = Step::Closing(closing);
                        return Poll::Pending;
                    }
                }
                Step::Over => return Poll::Ready(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::application::driver::call;
    use crate::application::{Head, Variables};

    static CLOSED: AtomicUsize = AtomicUsize::new(0);

    /// PEP 3333's `AppClass`: calls `start_response` when it is iterated.
    struct Countdown {
        start_response: StartResponse,
        left: u8,
    }

    impl Class for Countdown {
        fn new(environ: Environ, start_response: StartResponse) -> Self {
            let left = environ.query_string().first().map_or(0, |digit| digit - b'0');
            Self { start_response, left }
        }

        async fn next(&mut self) -> Option<Result<Bytes, Error>> {
            tokio::task::yield_now().await;
            if !self.start_response.head_sent()
                && let Err(error) = self.start_response.start("200 OK", ())
            {
                return Some(Err(error));
            }
            self.left = self.left.checked_sub(1)?;
            Some(Ok(self.left.to_string().into()))
        }

        async fn close(&mut self) {
            tokio::task::yield_now().await;
            CLOSED.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_class_starts_its_response_when_it_is_iterated_and_closes_in_its_own_time() {
        let environ = |query: &str| Environ::new(Variables::from_iter([("QUERY_STRING", query)]));
        let mut response = call(class::<Countdown>(), environ("3")).await.unwrap();
        let Head { status, .. } = &response.head;
        assert_eq!(status.code(), 200);
        assert_eq!(response.body.read_to_end(9).await.unwrap(), "210");
        assert_eq!(CLOSED.load(Ordering::SeqCst), 1);

        // Closed in the middle of a step: the step is finished first.
        let mut response = call(class::<Countdown>(), environ("3")).await.unwrap();
        response.body.next().await.unwrap().unwrap();
        assert!(futures_util::poll!(Box::pin(response.body.next())).is_pending());
        response.body.close().await;
        assert_eq!(CLOSED.load(Ordering::SeqCst), 2);
    }
}
