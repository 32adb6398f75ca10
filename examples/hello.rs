//! The smallest application: the same answer as a CGI script, behind a web server's `fastcgi_pass`, and on a port of its own.
//!
//! Try it: `cargo run --example hello`

use std::process::ExitCode;

use gatespan::{Environ, Error, StartResponse};

async fn hello(_environ: Environ, start_response: StartResponse) -> Result<&'static str, Error> {
    start_response.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])?;
    Ok("Hello, world!\n")
}

fn main() -> ExitCode {
    gatespan::run(hello)
}
