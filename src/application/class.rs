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
