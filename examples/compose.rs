//! Applications made of applications: one that hands on to another, a middleware of one's own, and two that come with the library.
//!
//! Try it: `cargo run --example compose --features access-log`, then `curl -i http://127.0.0.1:8080/notes/today`

use std::process::ExitCode;

use gatespan::application::driver;
use gatespan::middleware::{Format, Mount, access_log, to_writer};
use gatespan::{Application, Body, Environ, Error, StartResponse};

const TEXT: [(&str, &str); 1] = [("Content-Type", "text/plain; charset=utf-8")];

/// Knows one note only.
async fn notes(environ: Environ, start_response: StartResponse) -> Result<&'static str, Error> {
    let (status, text) = match environ.path_info() {
        b"/today" => ("200 OK", "Water the plants.\n"),
        _ => ("404 Not Found", "There is no such note.\n"),
    };
    start_response.start(status, TEXT)?;
    Ok(text)
}

/// Has an answer to everything.
async fn oracle(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", TEXT)?;
    Ok(format!("Nobody has written {} yet.\n", environ.path_info().escape_ascii()))
}

/// An application that asks one and, where that has found nothing, hands the request on to another.
struct Else<A, B>(A, B);

impl<A: Application + Clone, B: Application> Application for Else<A, B> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let Self(first, second) = self;
        // The driver is what servers use: it gives back a whole response to look at. The input can be read only once, so it is
        // kept for the application that answers for good.
        let mut response = driver::call(first.clone(), environ.without_input()).await?;
        if response.head.status.code() != 404 {
            return response.pass_on(&start_response);
        }
        // Whoever doesn't send a body closes it.
        response.body.close().await;
        second.call(environ, start_response).await
    }
}

/// A middleware of one's own. The head is changed on its way out; the body passes through untouched, piece by piece.
struct Branded<A>(A);

impl<A: Application> Application for Branded<A> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let request_id = environ.request_id().to_owned();
        let start_response = start_response.wrap(move |head| {
            head.headers.set("X-Request-Id", &request_id);
            Ok(())
        });
        self.0.call(environ, start_response).await
    }
}

fn main() -> ExitCode {
    let site = Mount::new().at("/notes", Else(notes, oracle));
    gatespan::run(access_log(Branded(site), Format::Combined, to_writer(std::io::stderr())))
}
