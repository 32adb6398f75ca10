//! A web server in front of a FastCGI server: `FASTCGI_SERVER=/run/app.sock cargo run --example forward --features upstream-fastcgi -- http://127.0.0.1:8080`.
//!
//! `FASTCGI_SERVER` is a socket's path, `@` and an abstract name, or `//HOST:PORT`; several are separated by blanks.

use std::error::Error;
use std::process::ExitCode;

use gatespan::address::Address;
use gatespan::upstream::fastcgi::{Config, Forwarder};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut servers = Vec::new();
    for server in std::env::var("FASTCGI_SERVER")?.split_whitespace() {
        match format!("fastcgi:{server}").parse()? {
            Address::FastCgi(endpoint) => servers.push(endpoint),
            other => return Err(format!("expected the address of a FastCGI server, got {other}").into()),
        }
    }
    let keep_alive = std::env::var_os("KEEP_ALIVE").is_some();
    let forwarder = Forwarder::new(servers, Config { keep_alive, ..Config::default() })?;
    Ok(gatespan::run(forwarder))
}
