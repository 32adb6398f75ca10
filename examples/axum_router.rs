//! An axum `Router` as a CGI script, behind `fastcgi_pass` and on its own port, without a change.
//!
//! `cargo run --example axum_router --features tower`

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};

fn main() -> ExitCode {
    let router = Router::new()
        .route("/", get(async || "hello from a router\n"))
        .route("/hello/{name}", get(async |Path(name): Path<String>| format!("hello {name}\n")))
        .route("/header", get(async |headers: HeaderMap| format!("{headers:#?}\n")))
        // The body goes back as it comes.
        .route("/echo", post(async |request: Request| Response::new(request.into_body())));
    // As a CGI script the router lies below the script's own path; elsewhere SCRIPT_NAME is empty.
    gatespan::run(gatespan::tower::from_service(router).below_script_name())
}
