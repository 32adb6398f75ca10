//! For the tests of all middleware: one application in each of the callable forms, and one that pushes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::application::driver::{Response, call};
use crate::application::{
    AnyApplication, Application, Body, Class, Environ, Error, StartResponse, Variables, blocking, class,
};

/// How often an application's body was closed.
#[derive(Clone, Default)]
pub(super) struct Closed(Arc<AtomicUsize>);

impl Closed {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn increase(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts when it is dropped.
struct Closing(Closed);

impl Closing {
    fn of(environ: &Environ) -> Self {
        Self(environ.extensions().get::<Closed>().cloned().unwrap_or_default())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.increase();
    }
}

/// What all of them answer, in three pieces: `SCRIPT_NAME|PATH_INFO`.
fn pieces(environ: &Environ) -> [Bytes; 3] {
    let copy = Bytes::copy_from_slice;
    [copy(environ.script_name()), "|".into(), copy(environ.path_info())]
}

const HEADERS: [(&str, &str); 1] = [("Content-Type", "text/plain")];

/// The applications by the name of their form. Where the client finds them, `closed` is told by way of the environ's extensions.
pub(super) fn forms() -> Vec<(&'static str, AnyApplication)> {
    vec![
        ("function", AnyApplication::new(function)),
        ("value", AnyApplication::new(Value)),
        ("class", AnyApplication::new(class::<Instance>())),
        ("blocking", AnyApplication::new(blocking(blocks))),
        ("write", AnyApplication::new(pushes)),
    ]
}

async fn function(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    start_response.start("200 OK", HEADERS)?;
    let body = Body::iter(pieces(&environ));
    let closing = Closing::of(&environ);
    Ok(body.on_close(move || drop(closing)))
}

struct Value;

impl Application for Value {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        tokio::task::yield_now().await;
        function(environ, start_response).await
    }
}

struct Instance {
    start_response: Option<StartResponse>,
    pieces: VecDeque<Bytes>,
    closed: Closed,
}

impl Class for Instance {
    fn new(environ: Environ, start_response: StartResponse) -> Self {
        let closed = environ.extensions().get::<Closed>().cloned().unwrap_or_default();
        Self { start_response: Some(start_response), pieces: pieces(&environ).into(), closed }
    }

    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        tokio::task::yield_now().await;
        if let Some(Err(error)) = self.start_response.take().map(|start| start.start("200 OK", HEADERS)) {
            return Some(Err(error));
        }
        self.pieces.pop_front().map(Ok)
    }

    async fn close(&mut self) {
        tokio::task::yield_now().await;
        self.closed.increase();
    }
}

fn blocks(environ: Environ, start_response: StartResponse) -> Result<impl Iterator<Item = Bytes>, Error> {
    let closing = Closing::of(&environ);
    start_response.start("200 OK", HEADERS)?;
    Ok(pieces(&environ).into_iter().inspect(move |_| {
        let _ = &closing;
    }))
}

async fn pushes(environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    let closing = Closing::of(&environ);
    let mut write = start_response.start("200 OK", HEADERS)?;
    for piece in pieces(&environ) {
        write.write(piece).await?;
    }
    Ok(Body::empty().on_close(move || drop(closing)))
}

/// A request for that path.
pub(super) fn request(path: &str) -> Environ {
    Environ::new(Variables::from_iter([
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", path),
        ("SERVER_NAME", "example.org"),
        ("SERVER_PORT", "80"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REMOTE_ADDR", "192.0.2.1"),
    ]))
}

/// The same, with the count of its closes.
pub(super) fn counted_request(path: &str) -> (Environ, Closed) {
    let mut environ = request(path);
    let closed = Closed::default();
    environ.extensions_mut().insert(closed.clone());
    (environ, closed)
}

/// Calls it and collects: the status, and the body as text.
pub(super) async fn text_of<A: Application>(application: A, environ: Environ) -> (u16, String) {
    let Response { head, mut body } = call(application, environ).await.expect("a response");
    let body = body.read_to_end(1 << 20).await.expect("a whole body");
    (head.status.code(), String::from_utf8(body.into()).expect("text"))
}
