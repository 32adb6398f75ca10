//! What an application is: something that can be called with an environ and a `start_response` and gives back a body.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use super::body::Body;
use super::environ::Environ;
use super::error::Error;
use super::start_response::StartResponse;

/// The application interface of PEP 3333, in its three forms:
///
/// - any `async fn(Environ, StartResponse) -> Result<impl Into<Body>, Error>`, or closure of that shape. One that captures is
///   `move |environ, start_response| { let shared = shared.clone(); async move { … } }`, since the future of an `async move`
///   closure would borrow from it;
/// - a value whose type implements this trait (PEP 3333's instance with a call method);
/// - a type built per request and then iterated: [`class`](super::class()).
///
/// An application may be called by several connections at once, and calls others by passing `environ` and `start_response` on.
pub trait Application: Send + Sync + 'static {
    /// Answers one request. May be dropped at any await when the client leaves; [`Environ::cancellation`] tells before.
    fn call(&self, environ: Environ, start_response: StartResponse)
    -> impl Future<Output = Result<Body, Error>> + Send;
}

impl<F, R, B> Application for F
where
    F: Fn(Environ, StartResponse) -> R + Send + Sync + 'static,
    R: Future<Output = Result<B, Error>> + Send,
    B: Into<Body>,
{
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        self(environ, start_response).await.map(Into::into)
    }
}

impl<A: Application> Application for Arc<A> {
    fn call(
        &self,
        environ: Environ,
        start_response: StartResponse,
    ) -> impl Future<Output = Result<Body, Error>> + Send {
        (**self).call(environ, start_response)
    }
}

/// Any application behind one type, for tables of different ones. Cheap to clone.
#[derive(Clone)]
pub struct AnyApplication {
    application: Arc<dyn Erased>,
}

impl AnyApplication {
    /// Hides the type of an application. Costs an allocation and an indirect call per request.
    pub fn new(application: impl Application) -> Self {
        Self { application: Arc::new(application) }
    }
}

impl Application for AnyApplication {
    fn call(
        &self,
        environ: Environ,
        start_response: StartResponse,
    ) -> impl Future<Output = Result<Body, Error>> + Send {
        self.application.call_boxed(environ, start_response)
    }
}

impl fmt::Debug for AnyApplication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyApplication")
    }
}

type Calling<'a> = Pin<Box<dyn Future<Output = Result<Body, Error>> + Send + 'a>>;

trait Erased: Send + Sync {
    fn call_boxed(&self, environ: Environ, start_response: StartResponse) -> Calling<'_>;
}

impl<A: Application> Erased for A {
    fn call_boxed(&self, environ: Environ, start_response: StartResponse) -> Calling<'_> {
        Box::pin(self.call(environ, start_response))
    }
}
