//! The three forms that an application can have, and the one for code that blocks, each at a path of its own.
//!
//! Try it: `cargo run --example three_forms`, then open the address that it prints.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gatespan::application::{Class, blocking, class};
use gatespan::middleware::Mount;
use gatespan::{Application, Body, Environ, Error, StartResponse};

const TEXT: [(&str, &str); 1] = [("Content-Type", "text/plain; charset=utf-8")];

/// The first form: a function. It returns anything that becomes a body, here text.
async fn function(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", TEXT)?;
    Ok(format!("A function, asked by {}.\n", String::from_utf8_lossy(environ.method())))
}

/// The second form: a value with a method. It keeps what outlives a request.
#[derive(Default)]
struct Counter {
    requests: AtomicU64,
}

impl Application for Counter {
    async fn call(&self, _environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        start_response.start("200 OK", TEXT)?;
        Ok(format!("A value that was called {number} times.\n").into())
    }
}

/// The third form: a type of which each request builds one, and which is its own body. Each piece is on its way while the next is
/// waited for.
struct Ticks {
    start_response: StartResponse,
    number: u32,
}

impl Class for Ticks {
    fn new(_environ: Environ, start_response: StartResponse) -> Self {
        Self { start_response, number: 0 }
    }

    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if self.number == 0 {
            // The head goes out with the first piece, so this is early enough.
            if let Err(error) = self.start_response.start("200 OK", TEXT) {
                return Some(Err(error));
            }
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.number += 1;
        (self.number <= 5).then(|| Ok(format!("An instance's piece {}.\n", self.number).into()))
    }
}

/// Code that blocks is a plain function that returns an iterator. A thread of a pool calls it, iterates and drops the iterator.
fn countdown(_environ: Environ, start_response: StartResponse) -> Result<impl Iterator<Item = String>, Error> {
    start_response.start("200 OK", TEXT)?;
    Ok((1..=5).rev().map(|number| {
        std::thread::sleep(Duration::from_millis(500));
        format!("{number}, says {}.\n", std::thread::current().name().unwrap_or("a thread"))
    }))
}

/// The page for all other paths. Its links begin with SCRIPT_NAME, so that they hold wherever a web server has put the program.
async fn index(environ: Environ, start_response: StartResponse) -> Result<String, Error> {
    start_response.start("200 OK", [("Content-Type", "text/html; charset=utf-8")])?;
    let root: String = String::from_utf8_lossy(environ.script_name())
        .replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('<', "&lt;");
    let link = |name: &str| format!("<li><a href=\"{root}/{name}\">{name}</a>\n");
    let links: String = ["function", "value", "class", "blocking"].into_iter().map(link).collect();
    Ok(format!("<!doctype html>\n<title>Three forms</title>\n<ul>\n{links}</ul>\n"))
}

fn main() -> ExitCode {
    gatespan::run(
        Mount::new()
            .at("/function", function)
            .at("/value", Counter::default())
            .at("/class", class::<Ticks>())
            .at("/blocking", blocking(countdown))
            .fallback(index),
    )
}
